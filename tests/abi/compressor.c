/* A compressor over caches of a host: against plain double arithmetic, and against itself in other
   layouts, in parts, and from several threads. */
#include <pthread.h>

#include "host.h"

/* What the tests have seen: they are to look at compressions that do something. */
static size_t all_dropped, all_copied, all_freed;

static int is_shared(const cache *cache, int32_t block)
{
    for (size_t i = 0; i < cache->batch.shared_count; ++i)
        if (cache->shared[i] == block) return 1;
    return 0;
}

static int compare_ids(const void *left, const void *right)
{
    int32_t a = *(const int32_t *)left, b = *(const int32_t *)right;
    return (a > b) - (a < b);
}

static const uint32_t *kept_of(const rrpc_plan *plan, uint32_t s, uint32_t head)
{
    const uint32_t *kept = plan->kept;
    for (uint32_t before = 0; before < s; ++before) kept += plan->sets * plan->kept_counts[before];
    return kept + (plan->sets == 1 ? 0 : head) * plan->kept_counts[s];
}

/* Lengths, copies and freed blocks follow from the kept counts. */
static void check_figures(const host *host, const cache *cache, const rrpc_plan *plan)
{
    int32_t freed[512], found[512], size = (int32_t)cache->batch.block_entries;
    size_t freed_count = 0, copies = 0, kept = 0;
    CHECK(plan->sequences == host->sequences && (plan->sets == 1 || plan->sets == host->options.kv_heads));
    for (uint32_t s = 0; s < host->sequences; ++s) {
        int32_t dropped = candidates_of(host, s) - (int32_t)plan->kept_counts[s], length = host->lengths[s] - dropped;
        CHECK(dropped >= 0 && plan->new_lengths[s] == length);
        kept += plan->sets * plan->kept_counts[s];
        all_dropped += (size_t)dropped;
        if (!cache->paged || dropped == 0) continue;
        const int32_t *row = cache->table + cache->rows[s] * cache->batch.block_table_stride;
        for (int32_t i = host->prompts[s] / size; i * size < length; ++i) {
            if (!is_shared(cache, row[i])) continue;
            if (!CHECK(copies < plan->copy_count)) return;
            const rrpc_block_copy *copy = &plan->copies[copies];
            CHECK(copy->sequence == s && copy->index == (uint32_t)i && copy->from == row[i]
                  && copy->to == cache->spare[copies]);
            ++copies;
            freed[freed_count++] = row[i];
        }
        for (int32_t i = (length + size - 1) / size; i * size < host->lengths[s]; ++i) freed[freed_count++] = row[i];
    }
    CHECK(plan->kept_len == kept && plan->copy_count == copies);
    all_copied += copies;
    all_freed += freed_count;
    if (!CHECK(plan->freed_count == freed_count) || freed_count == 0) return;
    memcpy(found, plan->freed_blocks, freed_count * sizeof *found);
    qsort(found, freed_count, sizeof *found, compare_ids);
    qsort(freed, freed_count, sizeof *freed, compare_ids);
    CHECK(memcmp(found, freed, freed_count * sizeof *found) == 0);
}

/* The kept sets are the best by the reference, ascending; what is within rounding of the last one may go
   either way. */
static void check_selected(const host *host, const rrpc_plan *plan)
{
    CHECK(plan->sets == (host->options.aggregation == RRPC_AGGREGATION_LAYER ? 1 : host->options.kv_heads));
    for (uint32_t s = 0; s < host->sequences; ++s) {
        int32_t count = candidates_of(host, s);
        uint32_t keep = kept_by_rpc(host, s);
        if (!CHECK(plan->kept_counts[s] == keep)) return;
        double *scores = reference_scores(host, s), *ranking = reference_ranking(host, s, scores);
        for (uint32_t set = 0; set < plan->sets; ++set) {
            const uint32_t *kept = kept_of(plan, s, set);
            const double *rank = ranking + set * (size_t)count;
            double lowest = INFINITY, dropped = -INFINITY;
            uint32_t at = 0;
            for (uint32_t c = 0; c < (uint32_t)count; ++c) {
                int stays = at < keep && kept[at] == c;
                if (stays) {
                    ++at;
                    lowest = rank[c] < lowest ? rank[c] : lowest;
                } else dropped = rank[c] > dropped ? rank[c] : dropped;
            }
            CHECK(at == keep);
            if (at > 0 && at < (uint32_t)count) CHECK(lowest >= dropped - 1e-5 * (1 + fabs(dropped)));
        }
        free(scores);
        free(ranking);
    }
}

/* Where a cache's entry lies after the compression: copied blocks are in their new places. */
static void take_over(cache *cache, const rrpc_plan *plan)
{
    for (size_t i = 0; i < plan->copy_count; ++i) {
        const rrpc_block_copy *copy = &plan->copies[i];
        cache->table[cache->rows[copy->sequence] * cache->batch.block_table_stride + copy->index] = copy->to;
    }
}

/* Every entry that stays is in its place, bit for bit, and nothing was written but to entries behind the
   prompt, in blocks that are not shared, and to copies. */
static void check_moved(const host *host, cache *cache, const rrpc_plan *plan)
{
    const rrpc_compressor_options *options = &host->options;
    size_t dim = options->head_dim, element = cache->element;
    struct {
        const unsigned char *now, *before;
        const int64_t *strides;
        size_t bytes, count, size;
    } parts[] = {
        {cache->keys, cache->keys_before, cache->strides, cache->bytes, dim, element},
        {cache->values, cache->values_before, cache->value_strides, cache->bytes, dim, element},
        {(unsigned char *)cache->key_scales, (unsigned char *)cache->key_scales_before, cache->scale_strides,
         cache->scale_count * 4, 1, 4},
        {(unsigned char *)cache->value_scales, (unsigned char *)cache->value_scales_before, cache->value_scale_strides,
         cache->scale_count * 4, 1, 4},
    };
    for (size_t part = 0; part < (options->dtype == RRPC_DTYPE_I8 ? 4 : 2); ++part) {
        unsigned char *marks = calloc(parts[part].bytes, 1);
        size_t wrong = 0, strange = 0, count = parts[part].count, size = parts[part].size;
        int32_t *table = cache->table;
        size_t ids = cache->paged ? (size_t)cache->batch.block_table_stride * cache->batch.row_count : 0;
        int32_t *new_table = cache->paged ? copy_of(table, ids * sizeof *table) : NULL;
        for (uint32_t s = 0; s < host->sequences; ++s)
            for (uint32_t head = 0; head < options->kv_heads; ++head) {
                const uint32_t *kept = kept_of(plan, s, head);
                for (int32_t e = 0; e < plan->new_lengths[s]; ++e) {
                    int32_t prompt = host->prompts[s], stay = (int32_t)plan->kept_counts[s];
                    int32_t from = e < prompt || plan->new_lengths[s] == host->lengths[s] ? e
                                   : e < prompt + stay ? prompt + (int32_t)kept[e - prompt]
                                                       : e - prompt - stay + prompt + candidates_of(host, s);
                    cache->table = table;
                    size_t source = at_entry(cache, parts[part].strides, s, head, from) * size;
                    cache->table = new_table;
                    if (new_table != NULL && e == 0 && head == 0) take_over(cache, plan);
                    size_t target = at_entry(cache, parts[part].strides, s, head, e) * size;
                    wrong += memcmp(parts[part].now + target, parts[part].before + source, count * size) != 0;
                }
                cache->table = new_table;
                if (new_table != NULL) take_over(cache, plan);
                for (int32_t e = plan->new_lengths[s] == host->lengths[s] ? host->lengths[s] : host->prompts[s];
                     e < host->lengths[s]; ++e) {
                    int64_t inner;
                    if (cache->paged && is_shared(cache, (int32_t)outer_of(cache, s, e, &inner))) continue;
                    memset(marks + at_entry(cache, parts[part].strides, s, head, e) * size, 1, count * size);
                }
                cache->table = table;
            }
        /* A copy may take the bytes between entries with it. */
        for (size_t i = 0; i < plan->copy_count; ++i) {
            size_t block = (size_t)parts[part].strides[0] * size;
            memset(marks + (size_t)plan->copies[i].to * block, 1, block);
        }
        for (size_t i = 0; i < parts[part].bytes; ++i)
            strange += !marks[i] && parts[part].now[i] != parts[part].before[i];
        CHECK(wrong == 0);
        CHECK(strange == 0);
        free(marks);
        free(new_table);
        cache->table = table;
    }
}

static void check_all(const host *host, cache *cache, const rrpc_plan *plan)
{
    check_selected(host, plan);
    check_figures(host, cache, plan);
    check_moved(host, cache, plan);
}

static void same_kept(const rrpc_plan *plan, uint32_t **kept)
{
    if (*kept == NULL) *kept = copy_of(plan->kept, plan->kept_len * sizeof **kept);
    else CHECK(memcmp(*kept, plan->kept, plan->kept_len * sizeof **kept) == 0);
}

/* One host in every layout, at any address of the workspace. */
static void compress_everywhere(uint32_t dtype)
{
    for (int round = 0; round < 12; ++round) {
        host host = new_host(dtype);
        rrpc_compressor *compressor = new_compressor(&host);
        uint32_t *kept = NULL;
        for (int layout = 0; layout < LAYOUTS; ++layout) {
            cache cache = place(&host, layout);
            wire(&cache, &host);
            size_t bytes;
            char *workspace = workspace_for(compressor, &cache, &bytes, NULL);
            rrpc_plan plan = {.struct_size = sizeof plan};
            NEED(rrpc_compressor_compress(compressor, &cache.layer, &cache.batch, &cache.window, workspace + round % 2,
                                          bytes, &plan));
            check_all(&host, &cache, &plan);
            same_kept(&plan, &kept);
            free(workspace);
            free_cache(&cache);
        }
        free(kept);
        rrpc_compressor_free(compressor);
        free_host(&host);
    }
}

static void float32(void)
{
    compress_everywhere(RRPC_DTYPE_F32);
}

static void float16(void)
{
    compress_everywhere(RRPC_DTYPE_F16);
}

static void bfloat16(void)
{
    compress_everywhere(RRPC_DTYPE_BF16);
}

static void bytes_with_scales(void)
{
    compress_everywhere(RRPC_DTYPE_I8);
}

static void scores_are_the_definitions(void)
{
    for (int round = 0; round < 20; ++round) {
        host host = new_host(RRPC_DTYPE_F32);
        if (round % 2) host.options.scale = 0.25f + fabsf(random_float()) / 8;
        cache cache = place(&host, round % LAYOUTS);
        wire(&cache, &host);
        rrpc_compressor *compressor = new_compressor(&host);
        size_t bytes, count, at = 0;
        char *workspace = workspace_for(compressor, &cache, &bytes, &count);
        float *scores = malloc((count + 1) * sizeof *scores);
        OK(rrpc_compressor_score(compressor, &cache.layer, &cache.batch, &cache.window, scores, count, workspace, bytes));
        CHECK(untouched(&cache));
        for (uint32_t s = 0; s < host.sequences; ++s) {
            double *expected = reference_scores(&host, s), worst = 0;
            size_t of_sequence = host.options.kv_heads * (size_t)candidates_of(&host, s);
            for (size_t i = 0; i < of_sequence; ++i)
                worst = fmax(worst, fabs((double)scores[at + i] - expected[i]) / (1e-3 + expected[i]));
            /* Logits are up to 100 or so large: float32 has them to 1e-5, and so their exponentials. */
            CHECK(worst < 1e-4);
            at += of_sequence;
            free(expected);
        }
        CHECK(at == count);
        free(scores);
        free(workspace);
        rrpc_compressor_free(compressor);
        free_cache(&cache);
        free_host(&host);
    }
}

/* Queries of two bytes are the numbers that they stand for, in a ring and recorded. */
static void queries_may_be_halves(void)
{
    const uint32_t types[] = {RRPC_DTYPE_F16, RRPC_DTYPE_BF16};
    for (int round = 0; round < 6; ++round) {
        host host = new_host(RRPC_DTYPE_F32);
        const rrpc_compressor_options *options = &host.options;
        host.options.recorded_layers = 1;
        host.options.recorded_sequences = SEQUENCES;
        size_t token = (size_t)options->heads * options->head_dim, numbers = options->window * token;
        for (uint32_t s = 0; s < host.sequences; ++s)
            for (size_t i = 0; i < numbers; ++i) host.queries[s][i] = random_number(RRPC_DTYPE_F16);
        cache cache = place(&host, round % LAYOUTS);
        wire(&cache, &host);
        rrpc_compressor *compressor = new_compressor(&host);
        size_t bytes, count, all = (host.sequences + 1) * cache.window.ring_tokens * token;
        char *workspace = workspace_for(compressor, &cache, &bytes, &count);
        float *whole = malloc((count + 1) * sizeof *whole), *halves = malloc((count + 1) * sizeof *halves);
        OK(rrpc_compressor_score(compressor, &cache.layer, &cache.batch, &cache.window, whole, count, workspace, bytes));
        rrpc_query_window ring = cache.window, recorded = {.struct_size = sizeof recorded};
        unsigned char *half_ring = calloc(all, 2), *step = malloc(SEQUENCES * token * 2);
        for (size_t i = 0; i < all; ++i)
            if (cache.ring[i] == cache.ring[i]) encode(types[round % 2], cache.ring[i], 0, half_ring + 2 * i);
        ring.queries = half_ring;
        ring.dtype = types[round % 2];
        OK(rrpc_compressor_score(compressor, &cache.layer, &cache.batch, &ring, halves, count, workspace, bytes));
        CHECK(memcmp(whole, halves, count * sizeof *whole) == 0);
        int32_t slots[SEQUENCES];
        for (int32_t i = 0; i < SEQUENCES; ++i) slots[i] = SEQUENCES - 1 - i;
        recorded.slots = slots;
        for (size_t t = 0; t < options->window; ++t) {
            for (uint32_t s = 0; s < host.sequences; ++s)
                for (size_t i = 0; i < token; ++i)
                    encode(types[round % 2], host.queries[s][t * token + i], 0, step + 2 * (s * token + i));
            OK(rrpc_compressor_record(compressor, 0, slots, host.sequences, step, (int64_t)token, options->head_dim,
                                      types[round % 2]));
        }
        OK(rrpc_compressor_score(compressor, &cache.layer, &cache.batch, &recorded, halves, count, workspace, bytes));
        CHECK(memcmp(whole, halves, count * sizeof *whole) == 0);
        free(half_ring);
        free(step);
        free(whole);
        free(halves);
        free(workspace);
        rrpc_compressor_free(compressor);
        free_cache(&cache);
        free_host(&host);
    }
}

/* score, select and apply are compress, for every type. */
static void parts_are_the_whole(void)
{
    const uint32_t types[] = {RRPC_DTYPE_F32, RRPC_DTYPE_F16, RRPC_DTYPE_BF16, RRPC_DTYPE_I8};
    for (int round = 0; round < 16; ++round) {
        host host = new_host(types[round / 4]);
        cache whole = place(&host, round % LAYOUTS), parts = whole;
        wire(&whole, &host);
        parts.keys = copy_of(whole.keys, whole.bytes);
        parts.values = copy_of(whole.values, whole.bytes);
        parts.key_scales = copy_of(whole.key_scales, whole.scale_count * 4);
        parts.value_scales = copy_of(whole.value_scales, whole.scale_count * 4);
        parts.layer = whole.layer;
        parts.layer.keys = parts.keys;
        parts.layer.values = parts.values;
        if (host.options.dtype == RRPC_DTYPE_I8) {
            parts.layer.key_scales = parts.key_scales;
            parts.layer.value_scales = parts.value_scales;
        }
        wire(&parts, &host);
        rrpc_compressor *compressor = new_compressor(&host);
        size_t bytes, count;
        char *workspace = workspace_for(compressor, &whole, &bytes, &count), *other = workspace_for(compressor, &parts, &bytes, &count);
        float *scores = malloc((count + 1) * sizeof *scores);
        rrpc_plan one = {.struct_size = sizeof one}, two = {.struct_size = sizeof two};
        NEED(rrpc_compressor_compress(compressor, &whole.layer, &whole.batch, &whole.window, workspace, bytes, &one));
        NEED(rrpc_compressor_score(compressor, &parts.layer, &parts.batch, &parts.window, scores, count, other, bytes));
        NEED(rrpc_compressor_select(compressor, 0, &parts.batch, scores, count, other, bytes, &two));
        CHECK(untouched(&parts));
        NEED(rrpc_compressor_apply(compressor, &parts.layer, &parts.batch, &two, other, bytes));
        check_all(&host, &parts, &two);
        CHECK(one.kept_len == two.kept_len && memcmp(one.kept, two.kept, one.kept_len * 4) == 0);
        CHECK(memcmp(whole.keys, parts.keys, whole.bytes) == 0 && memcmp(whole.values, parts.values, whole.bytes) == 0);
        CHECK(memcmp(whole.key_scales, parts.key_scales, whole.scale_count * 4) == 0);
        CHECK(memcmp(whole.value_scales, parts.value_scales, whole.scale_count * 4) == 0);
        free(scores);
        free(workspace);
        free(other);
        free(parts.keys);
        free(parts.values);
        free(parts.key_scales);
        free(parts.value_scales);
        rrpc_compressor_free(compressor);
        free_cache(&whole);
        free_host(&host);
    }
}

/* Recorded token by token, the same queries give the same scores; forgotten, none. */
static void recorded_windows_are_rings(void)
{
    for (int round = 0; round < 10; ++round) {
        host host = new_host(RRPC_DTYPE_F32);
        const rrpc_compressor_options *options = &host.options;
        host.options.recorded_layers = 2;
        host.options.recorded_sequences = SEQUENCES + 3;
        cache cache = place(&host, round % LAYOUTS);
        wire(&cache, &host);
        rrpc_compressor *compressor = new_compressor(&host);
        size_t bytes, count, token = (size_t)options->heads * options->head_dim;
        char *workspace = workspace_for(compressor, &cache, &bytes, &count);
        float *ring = malloc((count + 1) * sizeof *ring), *recorded = malloc((count + 1) * sizeof *recorded);
        int32_t slots[SEQUENCES + 3];
        for (int32_t i = 0; i < SEQUENCES + 3; ++i) slots[i] = i;
        shuffle(slots, SEQUENCES + 3);
        float *step = malloc(SEQUENCES * (token + 5) * sizeof *step);
        int32_t extra = random_int(0, 9);
        for (int32_t t = -extra; t < (int32_t)options->window; ++t) {
            for (uint32_t s = 0; s < host.sequences; ++s)
                for (size_t i = 0; i < token; ++i)
                    step[s * (token + 5) + i] = t < 0 ? random_float() : host.queries[s][(size_t)t * token + i];
            NEED(rrpc_compressor_record(compressor, 1, slots, host.sequences, step, (int64_t)token + 5, options->head_dim,
                                        RRPC_DTYPE_F32));
        }
        OK(rrpc_compressor_score(compressor, &cache.layer, &cache.batch, &cache.window, ring, count, workspace, bytes));
        rrpc_query_window window = {.struct_size = sizeof window, .slots = slots};
        cache.layer.layer = 1;
        OK(rrpc_compressor_score(compressor, &cache.layer, &cache.batch, &window, recorded, count, workspace, bytes));
        CHECK(memcmp(ring, recorded, count * sizeof *ring) == 0);
        int any = 0;
        for (uint32_t s = 0; s < host.sequences; ++s) any |= candidates_of(&host, s) > 0;
        cache.layer.layer = 2;
        FAILS(INVALID_ARGUMENT, "layer",
              rrpc_compressor_score(compressor, &cache.layer, &cache.batch, &window, recorded, count, workspace, bytes));
        cache.layer.layer = 1;
        for (uint32_t s = 0; s < host.sequences; ++s) OK(rrpc_compressor_forget(compressor, slots[s]));
        if (any)
            FAILS(INVALID_ARGUMENT, "recorded",
                  rrpc_compressor_score(compressor, &cache.layer, &cache.batch, &window, recorded, count, workspace, bytes));
        free(step);
        free(ring);
        free(recorded);
        free(workspace);
        rrpc_compressor_free(compressor);
        free_cache(&cache);
        free_host(&host);
    }
}

/* The host's own scores decide; of equal ones the first stay. */
static void changed_scores_change_the_plan(void)
{
    host host;
    for (;;) {
        host = new_host(RRPC_DTYPE_F32);
        if (host.lengths[0] - host.prompts[0] >= 40) break;
        free_host(&host);
    }
    keep_first(&host);
    /* 8 stay; the window may be shorter than new_host's, which has queries for the longer one. */
    host.options.interval = 8 * host.options.ratio;
    host.options.window = host.options.window < 4 ? host.options.window : 4;
    host.options.kernel = 1;
    host.compressions[0] = 0;
    cache cache = place(&host, PAGED_TOKENS);
    wire(&cache, &host);
    rrpc_compressor *compressor = new_compressor(&host);
    size_t bytes, count, candidates = (size_t)candidates_of(&host, 0);
    char *workspace = workspace_for(compressor, &cache, &bytes, &count);
    float *scores = malloc(count * sizeof *scores);
    rrpc_plan plan = {.struct_size = sizeof plan};
    for (size_t i = 0; i < count; ++i) scores[i] = 1;
    OK(rrpc_compressor_select(compressor, 0, &cache.batch, scores, count, workspace, bytes, &plan));
    CHECK(plan.kept_counts[0] == 8);
    for (uint32_t i = 0; i < 8; ++i) CHECK(plan.kept[i] == i);
    OK(rrpc_compressor_score(compressor, &cache.layer, &cache.batch, &cache.window, scores, count, workspace, bytes));
    for (uint32_t head = 0; head < host.options.kv_heads; ++head)
        for (uint32_t i = 0; i < 8; ++i) scores[head * candidates + 3 * i + 2] += 1000;
    OK(rrpc_compressor_select(compressor, 0, &cache.batch, scores, count, workspace, bytes, &plan));
    for (uint32_t set = 0; set < plan.sets; ++set)
        for (uint32_t i = 0; i < 8; ++i) CHECK(plan.kept[set * 8 + i] == 3 * i + 2);
    OK(rrpc_compressor_apply(compressor, &cache.layer, &cache.batch, &plan, workspace, bytes));
    check_figures(&host, &cache, &plan);
    check_moved(&host, &cache, &plan);
    scores[count / 2] = NAN;
    FAILS(INVALID_ARGUMENT, "NaN", rrpc_compressor_select(compressor, 0, &cache.batch, scores, count, workspace, bytes, &plan));
    free(scores);
    free(workspace);
    rrpc_compressor_free(compressor);
    free_cache(&cache);
    free_host(&host);
}

/* Blocks that others read are copied or let go, never written. */
static void shared_blocks_stay_as_they_are(void)
{
    for (int round = 0; round < 40; ++round) {
        host host = new_host(round % 2 ? RRPC_DTYPE_F32 : RRPC_DTYPE_I8);
        cache cache = place(&host, PAGED_HEADS + round / 2 % 2);
        wire(&cache, &host);
        rrpc_compressor *compressor = new_compressor(&host);
        /* A prefix of each sequence, and some more. */
        int32_t size = (int32_t)cache.batch.block_entries;
        for (uint32_t s = 0; s < host.sequences; ++s) {
            int32_t blocks = (host.lengths[s] + size - 1) / size, prefix = random_int(0, blocks);
            for (int32_t i = 0; i < blocks && cache.batch.shared_count < 32; ++i)
                if (i < prefix || random_int(0, 3) == 0)
                    cache.shared[cache.batch.shared_count++] = cache.table[cache.rows[s] * cache.batch.block_table_stride + i];
        }
        cache.batch.spare_count = 32;
        size_t bytes;
        char *workspace = workspace_for(compressor, &cache, &bytes, NULL);
        rrpc_plan plan = {.struct_size = sizeof plan};
        NEED(rrpc_compressor_compress(compressor, &cache.layer, &cache.batch, &cache.window, workspace, bytes, &plan));
        check_all(&host, &cache, &plan);
        size_t needed = plan.copy_count;
        free(workspace);
        /* One spare block too few: named, and nothing moves. */
        if (needed > 0) {
            cache.batch.spare_count = needed - 1;
            memcpy(cache.keys, cache.keys_before, cache.bytes);
            memcpy(cache.values, cache.values_before, cache.bytes);
            memcpy(cache.key_scales, cache.key_scales_before, cache.scale_count * 4);
            memcpy(cache.value_scales, cache.value_scales_before, cache.scale_count * 4);
            workspace = workspace_for(compressor, &cache, &bytes, NULL);
            char words[32];
            snprintf(words, sizeof words, "%zu", needed);
            FAILS(BUFFER_TOO_SMALL, words,
                  rrpc_compressor_compress(compressor, &cache.layer, &cache.batch, &cache.window, workspace, bytes, &plan));
            CHECK(untouched(&cache));
            free(workspace);
        }
        rrpc_compressor_free(compressor);
        free_cache(&cache);
        free_host(&host);
    }
}

static void something_was_done(void)
{
    CHECK(all_dropped > 0 && all_copied > 0 && all_freed > 0);
}

static void due_is_the_schedule(void)
{
    host host = new_host(RRPC_DTYPE_F32);
    rrpc_compressor *compressor = new_compressor(&host);
    uint64_t interval = host.options.interval, window = host.options.window;
    for (uint64_t done = 0; done < 3; ++done)
        for (uint64_t generated = 0; generated < 5 * interval; ++generated) {
            uint32_t due = 7;
            OK(rrpc_compressor_due(compressor, generated, done, &due));
            CHECK(due == (generated >= (done + 1) * interval + window));
        }
    uint32_t due = 7;
    OK(rrpc_compressor_due(compressor, UINT64_MAX - 1, UINT64_MAX, &due));
    CHECK(due == 0);
    rrpc_compressor_free(compressor);
    host.options.policy = RRPC_POLICY_NONE;
    compressor = new_compressor(&host);
    OK(rrpc_compressor_due(compressor, UINT64_MAX, 0, &due));
    CHECK(due == 0);
    rrpc_compressor_free(compressor);
    free_host(&host);
}

/* One compressor, many threads, each with blocks of its own. */
typedef struct {
    const rrpc_compressor *compressor;
    host *host;
    cache cache;
    int failed;
} worker;

static void *work(void *data)
{
    worker *worker = data;
    rrpc_compressor_sizes sizes = {.struct_size = sizeof sizes};
    worker->failed = rrpc_compressor_get_sizes(worker->compressor, &worker->cache.batch, &sizes) != NULL;
    if (worker->failed) return NULL;
    void *workspace = malloc(sizes.workspace_bytes + 1);
    for (int round = 0; round < 50; ++round) {
        memcpy(worker->cache.keys, worker->cache.keys_before, worker->cache.bytes);
        memcpy(worker->cache.values, worker->cache.values_before, worker->cache.bytes);
        rrpc_plan plan = {.struct_size = sizeof plan};
        rrpc_error *error = rrpc_compressor_compress(worker->compressor, &worker->cache.layer, &worker->cache.batch,
                                                     &worker->cache.window, workspace, sizes.workspace_bytes, &plan);
        worker->failed |= error != NULL;
        rrpc_error_free(error);
    }
    free(workspace);
    return NULL;
}

static void threads_share_a_compressor(void)
{
    host host = new_host(RRPC_DTYPE_F32);
    rrpc_compressor *compressor = new_compressor(&host);
    uint64_t seed = random_state;
    enum { WORKERS = 4 };
    worker workers[WORKERS];
    pthread_t threads[WORKERS];
    for (int i = 0; i < WORKERS; ++i) {
        random_state = seed;
        workers[i] = (worker){compressor, &host, place(&host, PAGED_HEADS), 0};
        wire(&workers[i].cache, &host);
        pthread_create(&threads[i], NULL, work, &workers[i]);
    }
    for (int i = 0; i < WORKERS; ++i) {
        pthread_join(threads[i], NULL);
        CHECK(!workers[i].failed);
        CHECK(memcmp(workers[i].cache.keys, workers[0].cache.keys, workers[i].cache.bytes) == 0);
    }
    for (int i = 0; i < WORKERS; ++i) free_cache(&workers[i].cache);
    rrpc_compressor_free(compressor);
    free_host(&host);
}

int main(void)
{
    seed_random();
    RUN(float32);
    RUN(float16);
    RUN(bfloat16);
    RUN(bytes_with_scales);
    RUN(scores_are_the_definitions);
    RUN(queries_may_be_halves);
    RUN(parts_are_the_whole);
    RUN(recorded_windows_are_rings);
    RUN(changed_scores_change_the_plan);
    RUN(shared_blocks_stay_as_they_are);
    RUN(something_was_done);
    RUN(due_is_the_schedule);
    RUN(threads_share_a_compressor);
    return check_end("compressor");
}
