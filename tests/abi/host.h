/* A host with caches of its own: random keys, values and queries, placed in memory dense or paged,
   head-major or token-major, and what a compression makes of them, in plain double arithmetic. */
#ifndef HOST_H
#define HOST_H

#include <math.h>
#include <stdint.h>
#include <time.h>

#include "check.h"

static uint64_t random_state;

/* SEED if set, else from the clock; printed, so that a failure can be replayed. */
static inline void seed_random(void)
{
    const char *given = getenv("SEED");
    random_state = given != NULL ? strtoull(given, NULL, 0) : (uint64_t)time(NULL) * 1000003u;
    printf("SEED=%llu\n", (unsigned long long)random_state);
}

static inline uint64_t random_bits(void)
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* From low to high, both included. */
static inline int32_t random_int(int32_t low, int32_t high)
{
    return low + (int32_t)(random_bits() % (uint64_t)(high - low + 1));
}

/* Between -2 and 2. */
static inline float random_float(void)
{
    return (float)((double)(random_bits() >> 11) / 9007199254740992.0 * 4 - 2);
}

enum { SEQUENCES = 4 };

/* What the sequences hold, whatever their memory looks like. */
typedef struct {
    rrpc_compressor_options options;
    uint32_t sequences;
    int32_t lengths[SEQUENCES], prompts[SEQUENCES], compressions[SEQUENCES];
    /* [KV head][entry][head_dim], as the stored type has them. */
    float *keys[SEQUENCES], *values[SEQUENCES];
    /* [KV head][entry]: RRPC_DTYPE_I8. */
    float *key_scales[SEQUENCES], *value_scales[SEQUENCES];
    /* [window][head][head_dim] */
    float *queries[SEQUENCES];
} host;

typedef enum { DENSE_HEADS, DENSE_TOKENS, PAGED_HEADS, PAGED_TOKENS, LAYOUTS } layout;

/* The same in memory. */
typedef struct {
    int paged;
    size_t element, bytes, scale_count;
    unsigned char *keys, *values, *keys_before, *values_before;
    float *key_scales, *value_scales, *key_scales_before, *value_scales_before;
    int64_t strides[3], value_strides[3], scale_strides[3], value_scale_strides[3];
    int32_t rows[SEQUENCES], *table, spare[64], shared[64];
    float *ring;
    int32_t oldest[SEQUENCES];
    rrpc_kv_layer layer;
    rrpc_kv_batch batch;
    rrpc_query_window window;
} cache;

static inline size_t size_of_type(uint32_t dtype)
{
    return dtype == RRPC_DTYPE_F32 ? 4 : dtype == RRPC_DTYPE_I8 ? 1 : 2;
}

/* A number that the type has, in multiples of 1/64 but for float32. */
static inline float random_number(uint32_t dtype)
{
    if (dtype == RRPC_DTYPE_F32) return random_float();
    return (float)random_int(-127, 127) / 64;
}

/* A stored number of random_number, or a byte (`scale` above 0) times its scale. */
static inline void encode(uint32_t dtype, float number, float scale, unsigned char *to)
{
    uint32_t bits;
    memcpy(&bits, &number, 4);
    uint16_t half = (uint16_t)(bits >> 16);
    switch (dtype) {
    case RRPC_DTYPE_F32: memcpy(to, &number, 4); break;
    case RRPC_DTYPE_I8: *to = (unsigned char)(signed char)lroundf(number / scale); break;
    case RRPC_DTYPE_F16:
        if (number == 0) half = (uint16_t)(bits >> 16);
        else half = (uint16_t)((bits >> 31 << 15) | (((bits >> 23 & 255) - 112) << 10) | (bits >> 13 & 1023));
        memcpy(to, &half, 2);
        break;
    default: memcpy(to, &half, 2);
    }
}

static inline uint32_t group_of(const host *host)
{
    return host->options.heads / host->options.kv_heads;
}

static inline int32_t candidates_of(const host *host, uint32_t s)
{
    int32_t count = host->lengths[s] - host->prompts[s] - (int32_t)host->options.window;
    return count > 0 ? count : 0;
}

static inline uint32_t kept_by_rpc(const host *host, uint32_t s)
{
    uint32_t keep = (uint32_t)(host->compressions[s] + 1) * (host->options.interval / host->options.ratio);
    return keep < (uint32_t)candidates_of(host, s) ? keep : (uint32_t)candidates_of(host, s);
}

static inline host new_host(uint32_t dtype)
{
    host made = {.sequences = (uint32_t)random_int(1, SEQUENCES)};
    rrpc_compressor_options *options = &made.options;
    NEED(rrpc_compressor_options_init(options, sizeof *options));
    options->dtype = dtype;
    options->kv_heads = (uint32_t)random_int(1, 3);
    options->heads = options->kv_heads * (uint32_t)random_int(1, 4);
    options->head_dim = (uint32_t)random_int(1, 5) * 8;
    options->ratio = (uint32_t)random_int(1, 4);
    options->interval = options->ratio * (uint32_t)random_int(3, 9);
    options->window = (uint32_t)random_int(1, (int32_t)options->interval - 1 < 8 ? (int32_t)options->interval - 1 : 8);
    options->aggregation = (uint32_t)random_int(0, 1);
    options->pooling = (uint32_t)random_int(0, 1);
    options->kernel = (uint32_t)random_int(0, 4) * 2 + 1;
    for (uint32_t s = 0; s < made.sequences; ++s) {
        made.prompts[s] = random_int(0, 20);
        made.compressions[s] = random_int(0, 2);
        made.lengths[s] = made.prompts[s] + random_int(1, 90);
        size_t entries = options->kv_heads * (size_t)made.lengths[s], numbers = entries * options->head_dim;
        float **arrays[] = {&made.keys[s], &made.values[s]}, **scales[] = {&made.key_scales[s], &made.value_scales[s]};
        for (int i = 0; i < 2; ++i) {
            float *numbers_of = *arrays[i] = malloc(numbers * sizeof(float));
            float *scales_of = *scales[i] = malloc(entries * sizeof(float));
            for (size_t e = 0; e < entries; ++e) {
                scales_of[e] = 0.001f + fabsf(random_float()) / 64;
                for (uint32_t d = 0; d < options->head_dim; ++d)
                    numbers_of[e * options->head_dim + d] = dtype == RRPC_DTYPE_I8
                        ? (float)random_int(-127, 127) * scales_of[e]
                        : random_number(dtype);
            }
        }
        size_t count = (size_t)options->window * options->heads * options->head_dim;
        made.queries[s] = malloc(count * sizeof(float));
        for (size_t i = 0; i < count; ++i) made.queries[s][i] = random_float() * 3;
    }
    return made;
}

static inline void free_host(host *host)
{
    for (uint32_t s = 0; s < host->sequences; ++s) {
        free(host->keys[s]);
        free(host->values[s]);
        free(host->key_scales[s]);
        free(host->value_scales[s]);
        free(host->queries[s]);
    }
}

/* Without the other sequences. */
static inline void keep_first(host *host)
{
    for (uint32_t s = 1; s < host->sequences; ++s) {
        free(host->keys[s]);
        free(host->values[s]);
        free(host->key_scales[s]);
        free(host->value_scales[s]);
        free(host->queries[s]);
    }
    host->sequences = 1;
}

/* The block or row of an entry, and its place in there. */
static inline int64_t outer_of(const cache *cache, uint32_t s, int32_t entry, int64_t *inner)
{
    int64_t entries = cache->batch.block_entries;
    if (!cache->paged) {
        *inner = entry;
        return cache->rows[s];
    }
    *inner = entry % entries;
    return cache->table[cache->rows[s] * cache->batch.block_table_stride + entry / entries];
}

static inline size_t at_entry(const cache *cache, const int64_t *strides, uint32_t s, uint32_t head, int32_t entry)
{
    int64_t inner, outer = outer_of(cache, s, entry, &inner);
    return (size_t)(outer * strides[0] + head * strides[1] + inner * strides[2]);
}

static inline void shuffle(int32_t *items, int32_t count)
{
    for (int32_t i = count - 1; i > 0; --i) {
        int32_t j = random_int(0, i), other = items[j];
        items[j] = items[i];
        items[i] = other;
    }
}

static inline void set_strides(int64_t *strides, int tokens, int64_t entries, int64_t heads, int64_t size)
{
    strides[tokens ? 2 : 1] = tokens ? heads * size : entries * size;
    strides[tokens ? 1 : 2] = size;
    strides[0] = entries * heads * size + random_int(0, 2) * size;
}

static inline int64_t larger(int64_t one, int64_t other)
{
    return one > other ? one : other;
}

static inline void *random_bytes(size_t count)
{
    unsigned char *bytes = malloc(count);
    for (size_t i = 0; i < count; ++i) bytes[i] = (unsigned char)random_bits();
    return bytes;
}

static inline void *copy_of(const void *bytes, size_t count)
{
    return memcpy(malloc(count), bytes, count);
}

/* Puts the host's sequences into memory: rows and blocks in random places, the rest filled with noise. */
static inline cache place(const host *host, layout layout)
{
    const rrpc_compressor_options *options = &host->options;
    int32_t longest = 0, outer = (int32_t)host->sequences + 1, heads = (int32_t)options->kv_heads;
    for (uint32_t s = 0; s < host->sequences; ++s) longest = host->lengths[s] > longest ? host->lengths[s] : longest;
    cache made = {.paged = layout >= PAGED_HEADS, .element = size_of_type(options->dtype)};
    rrpc_kv_batch *batch = &made.batch;
    *batch = (rrpc_kv_batch){.struct_size = sizeof *batch, .sequences = host->sequences, .row_count = (uint32_t)outer};
    int32_t rows[SEQUENCES + 1];
    for (int32_t i = 0; i < outer; ++i) rows[i] = i;
    shuffle(rows, outer);
    memcpy(made.rows, rows, sizeof made.rows);
    batch->block_entries = (uint32_t)(made.paged ? 1 << random_int(2, 4) : longest + random_int(0, 5));
    if (made.paged) {
        int32_t size = (int32_t)batch->block_entries, width = (longest + size - 1) / size + 1;
        int32_t rows_of = outer, ids[512], used = 0;
        batch->block_table_stride = width;
        outer = (int32_t)host->sequences * width + 40;
        batch->block_count = (uint32_t)outer;
        for (int32_t i = 0; i < outer; ++i) ids[i] = i;
        shuffle(ids, outer);
        made.table = malloc((size_t)(rows_of * width) * sizeof *made.table);
        for (int32_t i = 0; i < rows_of * width; ++i) made.table[i] = -1;
        for (uint32_t s = 0; s < host->sequences; ++s)
            for (int32_t i = 0; i * size < host->lengths[s]; ++i) made.table[made.rows[s] * width + i] = ids[used++];
        batch->block_table = made.table;
        memcpy(made.spare, ids + used, 32 * sizeof *ids);
    }
    set_strides(made.strides, layout % 2, batch->block_entries, heads, options->head_dim + random_int(0, 1) * 8);
    set_strides(made.scale_strides, layout % 2, batch->block_entries, heads, random_int(1, 2));
    set_strides(made.value_strides, layout % 2, batch->block_entries, heads, options->head_dim + random_int(0, 1) * 8);
    set_strides(made.value_scale_strides, layout % 2, batch->block_entries, heads, random_int(1, 2));
    made.bytes = (size_t)(outer * larger(made.strides[0], made.value_strides[0])) * made.element;
    made.scale_count = (size_t)(outer * larger(made.scale_strides[0], made.value_scale_strides[0]));
    made.keys = random_bytes(made.bytes);
    made.values = random_bytes(made.bytes);
    made.key_scales = random_bytes(made.scale_count * sizeof(float));
    made.value_scales = random_bytes(made.scale_count * sizeof(float));
    made.window.ring_tokens = options->window + (uint32_t)random_int(0, 3);
    size_t token = (size_t)options->heads * options->head_dim, row = made.window.ring_tokens * token;
    made.ring = malloc((host->sequences + 1) * row * sizeof(float));
    for (size_t i = 0; i < (host->sequences + 1) * row; ++i) made.ring[i] = NAN;
    for (uint32_t s = 0; s < host->sequences; ++s) {
        for (int32_t head = 0; head < heads; ++head)
            for (int32_t e = 0; e < host->lengths[s]; ++e) {
                size_t from = (size_t)head * (size_t)host->lengths[s] + (size_t)e;
                size_t to = at_entry(&made, made.strides, s, (uint32_t)head, e) * made.element;
                size_t value_to = at_entry(&made, made.value_strides, s, (uint32_t)head, e) * made.element;
                made.key_scales[at_entry(&made, made.scale_strides, s, (uint32_t)head, e)] = host->key_scales[s][from];
                made.value_scales[at_entry(&made, made.value_scale_strides, s, (uint32_t)head, e)] =
                    host->value_scales[s][from];
                for (size_t d = 0; d < options->head_dim; ++d) {
                    size_t number = from * options->head_dim + d;
                    encode(options->dtype, host->keys[s][number], host->key_scales[s][from], made.keys + to + d * made.element);
                    encode(options->dtype, host->values[s][number], host->value_scales[s][from],
                           made.values + value_to + d * made.element);
                }
            }
        made.oldest[s] = random_int(0, (int32_t)made.window.ring_tokens - 1);
        for (uint32_t t = 0; t < options->window; ++t) {
            size_t slot = ((size_t)made.oldest[s] + t) % made.window.ring_tokens;
            memcpy(made.ring + (size_t)made.rows[s] * row + slot * token, host->queries[s] + t * token, token * sizeof(float));
        }
    }
    made.keys_before = copy_of(made.keys, made.bytes);
    made.values_before = copy_of(made.values, made.bytes);
    made.key_scales_before = copy_of(made.key_scales, made.scale_count * sizeof(float));
    made.value_scales_before = copy_of(made.value_scales, made.scale_count * sizeof(float));
    made.layer = (rrpc_kv_layer){.struct_size = sizeof made.layer, .keys = made.keys, .values = made.values};
    memcpy(made.layer.key_strides, made.strides, sizeof made.strides);
    memcpy(made.layer.value_strides, made.value_strides, sizeof made.value_strides);
    if (options->dtype == RRPC_DTYPE_I8) {
        made.layer.key_scales = made.key_scales;
        made.layer.value_scales = made.value_scales;
        memcpy(made.layer.key_scale_strides, made.scale_strides, sizeof made.scale_strides);
        memcpy(made.layer.value_scale_strides, made.value_scale_strides, sizeof made.value_scale_strides);
    }
    made.window.struct_size = sizeof made.window;
    made.window.queries = made.ring;
    made.window.dtype = RRPC_DTYPE_F32;
    made.window.strides[0] = (int64_t)row;
    made.window.strides[1] = (int64_t)token;
    made.window.strides[2] = options->head_dim;
    return made;
}

/* The batch and the window point to arrays beside them: to be called where the cache and the host stay. */
static inline void wire(cache *cache, const host *host)
{
    cache->batch.lengths = host->lengths;
    cache->batch.prompt_lengths = host->prompts;
    cache->batch.compressions = host->compressions;
    cache->batch.rows = cache->rows;
    cache->batch.spare_blocks = cache->spare;
    cache->batch.shared_blocks = cache->shared;
    cache->window.oldest = cache->oldest;
}

static inline void free_cache(cache *cache)
{
    void *parts[] = {cache->keys, cache->values, cache->keys_before, cache->values_before, cache->key_scales,
                     cache->value_scales, cache->key_scales_before, cache->value_scales_before, cache->table, cache->ring};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; ++i) free(parts[i]);
}

/* Nothing was written. */
static inline int untouched(const cache *cache)
{
    size_t scales = cache->scale_count * sizeof(float);
    return memcmp(cache->keys, cache->keys_before, cache->bytes) == 0
           && memcmp(cache->values, cache->values_before, cache->bytes) == 0
           && memcmp(cache->key_scales, cache->key_scales_before, scales) == 0
           && memcmp(cache->value_scales, cache->value_scales_before, scales) == 0;
}

static inline void *workspace_for(const rrpc_compressor *compressor, const cache *cache, size_t *bytes, size_t *scores)
{
    rrpc_compressor_sizes sizes = {.struct_size = sizeof sizes};
    NEED(rrpc_compressor_get_sizes(compressor, &cache->batch, &sizes));
    *bytes = sizes.workspace_bytes;
    if (scores != NULL) *scores = sizes.score_count;
    return random_bytes(sizes.workspace_bytes + 1);
}

static inline rrpc_compressor *new_compressor(const host *host)
{
    rrpc_compressor *compressor = NULL;
    NEED(rrpc_compressor_create(&host->options, &compressor));
    return compressor;
}

/* Scores of a sequence by definition: [KV head][candidate]. */
static inline double *reference_scores(const host *host, uint32_t s)
{
    const rrpc_compressor_options *options = &host->options;
    size_t count = (size_t)candidates_of(host, s), dim = options->head_dim;
    double *scores = calloc(options->kv_heads * count + 1, sizeof(double)), *row = malloc((count + 1) * sizeof(double));
    double scale = options->scale == RRPC_SCALE_DEFAULT ? 1 / sqrt((double)dim) : (double)options->scale;
    for (uint32_t head = 0; head < options->heads && count > 0; ++head) {
        uint32_t kv_head = head / group_of(host);
        for (uint32_t t = 0; t < options->window; ++t) {
            const float *query = host->queries[s] + (t * options->heads + head) * dim;
            double highest = -INFINITY, sum = 0;
            for (size_t c = 0; c < count; ++c) {
                size_t entry = kv_head * (size_t)host->lengths[s] + (size_t)host->prompts[s] + c;
                row[c] = 0;
                for (size_t d = 0; d < dim; ++d) row[c] += (double)query[d] * (double)host->keys[s][entry * dim + d];
                row[c] *= scale;
                highest = row[c] > highest ? row[c] : highest;
            }
            for (size_t c = 0; c < count; ++c) sum += row[c] = exp(row[c] - highest);
            for (size_t c = 0; c < count; ++c) scores[kv_head * count + c] += row[c] / sum / group_of(host);
        }
    }
    free(row);
    return scores;
}

/* What RRPC_POLICY_RPC ranks: [set][candidate]. */
static inline double *reference_ranking(const host *host, uint32_t s, const double *scores)
{
    const rrpc_compressor_options *options = &host->options;
    int32_t count = candidates_of(host, s), half = (int32_t)options->kernel / 2;
    uint32_t sets = options->aggregation == RRPC_AGGREGATION_LAYER ? 1 : options->kv_heads;
    double *ranking = calloc(sets * (size_t)count + 1, sizeof(double)), *mean = malloc(((size_t)count + 1) * sizeof(double));
    for (uint32_t set = 0; set < sets; ++set) {
        for (int32_t c = 0; c < count; ++c) {
            mean[c] = 0;
            for (uint32_t head = sets == 1 ? 0 : set; head < (sets == 1 ? options->kv_heads : set + 1); ++head)
                mean[c] += scores[head * (size_t)count + (size_t)c];
            if (sets == 1) mean[c] /= options->kv_heads;
        }
        for (int32_t c = 0; c < count; ++c) {
            double sum = 0, highest = -INFINITY;
            for (int32_t i = c - half; i <= c + half; ++i)
                if (i >= 0 && i < count) {
                    sum += mean[i];
                    highest = mean[i] > highest ? mean[i] : highest;
                }
            ranking[set * (size_t)count + (size_t)c] =
                options->pooling == RRPC_POOLING_AVERAGE ? sum / options->kernel : highest;
        }
    }
    free(mean);
    return ranking;
}

#endif
