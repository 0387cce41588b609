/* What others decide: callbacks that select, and plans that a host made. */
#include "host.h"

/* Every second candidate stays; each KV head may begin elsewhere. Its neighbour goes into it. */
typedef struct {
    const host *host;
    const float *scores;
    const rrpc_compressor *compressor;
    int32_t answer;
    int own_sets, calls, wrong;
    uint32_t max_merges;
    void (*spoil)(rrpc_select_request *request);
} chooser;

enum { KEY_WEIGHT = 4, VALUE_WEIGHT = 2 }; /* 1/4 and 1/2 */

static uint32_t first_kept(const chooser *chooser, uint32_t head, uint32_t candidates)
{
    return chooser->own_sets && candidates > 1 ? head % 2 : 0;
}

static uint32_t kept_count_of(const chooser *chooser, uint32_t candidates)
{
    return chooser->own_sets ? candidates > 1 ? candidates / 2 : 1 : (candidates + 1) / 2;
}

static int32_t choose(rrpc_select_request *request, void *user_data)
{
    chooser *chooser = user_data;
    ++chooser->calls;
    uint32_t count = request->candidates, due;
    if (chooser->answer) return chooser->answer;
    chooser->wrong += request->struct_size != sizeof *request || request->layer != 3 || request->sets != 1
                      || request->kept_count != 0 || request->merge_count != 0
                      || request->kv_heads != chooser->host->options.kv_heads
                      || count != (uint32_t)candidates_of(chooser->host, request->sequence)
                      || request->compressions != (uint32_t)chooser->host->compressions[request->sequence];
    size_t before = 0;
    for (uint32_t s = 0; s < request->sequence; ++s)
        before += request->kv_heads * (size_t)candidates_of(chooser->host, s);
    chooser->wrong +=
        chooser->scores != NULL
        && memcmp(request->scores, chooser->scores + before, request->kv_heads * count * sizeof(float)) != 0;
    /* The library may be called from here. */
    chooser->wrong += rrpc_error_code(rrpc_compressor_due(chooser->compressor, 1, 0, &due)) != RRPC_OK;
    request->sets = chooser->own_sets ? request->kv_heads : 1;
    request->kept_count = kept_count_of(chooser, count);
    uint32_t *kept = request->kept;
    for (uint32_t set = 0; set < request->sets; ++set)
        for (uint32_t i = 0; i < request->kept_count; ++i) *kept++ = first_kept(chooser, set, count) + 2 * i;
    for (uint32_t head = 0; head < request->kv_heads; ++head)
        for (uint32_t i = 0; i < request->kept_count && request->merge_count < chooser->max_merges; ++i) {
            uint32_t into = first_kept(chooser, head, count) + 2 * i;
            if (into + 1 < count && into + 1 < first_kept(chooser, head, count) + 2 * request->kept_count)
                request->merges[request->merge_count++] = (rrpc_merge){
                    request->sequence, head, into + 1, into, 1.0f / KEY_WEIGHT, 1.0f / VALUE_WEIGHT};
        }
    if (chooser->spoil != NULL) chooser->spoil(request);
    return 0;
}


static chooser chooser_for(host *host, int own_sets)
{
    host->options.policy = RRPC_POLICY_CALLBACK;
    host->options.select = choose;
    host->options.max_merges = 7;
    return (chooser){.host = host, .own_sets = own_sets, .max_merges = 7};
}

static uint32_t with_candidates(const host *host)
{
    uint32_t count = 0;
    for (uint32_t s = 0; s < host->sequences; ++s) count += candidates_of(host, s) > 0;
    return count;
}

/* The number of a float32 cache as it is now and as it was. */
static const float *number_at(const cache *cache, const unsigned char *part, uint32_t s, uint32_t head, int32_t entry)
{
    int is_value = part == cache->values || part == cache->values_before;
    const int64_t *strides = is_value ? cache->value_strides : cache->strides;
    return (const float *)(const void *)(part + at_entry(cache, strides, s, head, entry) * 4);
}

/* What is kept is what the callback said; what was merged into it is there in its parts. */
static void check_merged(const host *host, const cache *cache, const chooser *chooser, const rrpc_plan *plan)
{
    size_t merges = 0;
    for (uint32_t s = 0; s < host->sequences; ++s) {
        uint32_t count = (uint32_t)candidates_of(host, s), keep = count > 0 ? kept_count_of(chooser, count) : 0;
        CHECK(plan->kept_counts[s] == keep);
        uint32_t left = chooser->max_merges;
        for (uint32_t head = 0; head < host->options.kv_heads; ++head) {
            uint32_t first = count > 0 ? first_kept(chooser, chooser->own_sets ? head : 0, count) : 0;
            uint32_t first_merged = count > 0 ? first_kept(chooser, head, count) : 0;
            for (uint32_t i = 0; i < keep; ++i) {
                int32_t from = host->prompts[s] + (int32_t)(first + 2 * i), to = host->prompts[s] + (int32_t)i;
                int merged = left > 0 && first_merged + 2 * i + 1 < count;
                left -= (uint32_t)merged;
                merges += (size_t)merged;
                const unsigned char *now[] = {cache->keys, cache->values}, *before[] = {cache->keys_before, cache->values_before};
                const int weights[] = {KEY_WEIGHT, VALUE_WEIGHT};
                for (int part = 0; part < 2; ++part) {
                    const float *is = number_at(cache, now[part], s, head, to);
                    const float *was = number_at(cache, before[part], s, head, from);
                    int wrong = 0;
                    for (uint32_t d = 0; d < host->options.head_dim; ++d) {
                        double expected = was[d];
                        if (merged) {
                            double weight = 1.0 / weights[part];
                            expected = (1 - weight) * expected
                                       + weight * (double)number_at(cache, before[part], s, head, from + 1)[d];
                        }
                        wrong += merged ? fabs(expected - (double)is[d]) > 1e-6 : is[d] != was[d];
                    }
                    CHECK(wrong == 0);
                }
            }
        }
    }
    CHECK(plan->merge_count == merges);
}

static void a_callback_selects_and_merges(void)
{
    for (int round = 0; round < 24; ++round) {
        host host = new_host(RRPC_DTYPE_F32);
        chooser chooser = chooser_for(&host, round % 2);
        host.options.user_data = &chooser;
        cache cache = place(&host, round / 2 % LAYOUTS);
        wire(&cache, &host);
        cache.layer.layer = 3;
        rrpc_compressor *compressor = new_compressor(&host);
        chooser.compressor = compressor;
        size_t bytes, count;
        char *workspace = workspace_for(compressor, &cache, &bytes, &count);
        float *scores = malloc((count + 1) * sizeof *scores);
        OK(rrpc_compressor_score(compressor, &cache.layer, &cache.batch, &cache.window, scores, count, workspace, bytes));
        chooser.scores = scores;
        rrpc_plan plan = {.struct_size = sizeof plan};
        OK(rrpc_compressor_compress(compressor, &cache.layer, &cache.batch, &cache.window, workspace, bytes, &plan));
        CHECK(chooser.calls == (int)with_candidates(&host) && chooser.wrong == 0);
        check_merged(&host, &cache, &chooser, &plan);

        /* The parts do the same. */
        unsigned char *keys = copy_of(cache.keys, cache.bytes), *values = copy_of(cache.values, cache.bytes);
        memcpy(cache.keys, cache.keys_before, cache.bytes);
        memcpy(cache.values, cache.values_before, cache.bytes);
        OK(rrpc_compressor_select(compressor, 3, &cache.batch, scores, count, workspace, bytes, &plan));
        CHECK(untouched(&cache) && chooser.wrong == 0);
        OK(rrpc_compressor_apply(compressor, &cache.layer, &cache.batch, &plan, workspace, bytes));
        CHECK(memcmp(keys, cache.keys, cache.bytes) == 0 && memcmp(values, cache.values, cache.bytes) == 0);
        free(keys);
        free(values);
        free(scores);
        free(workspace);
        rrpc_compressor_free(compressor);
        free_cache(&cache);
        free_host(&host);
    }
}

/* A host of two KV heads and one sequence of 10 candidates, whose callback is spoiled. */
static host small_host(void)
{
    host host;
    for (;;) {
        host = new_host(RRPC_DTYPE_F32);
        int32_t length = host.prompts[0] + 10 + (int32_t)host.options.window;
        if (host.options.kv_heads == 2 && host.lengths[0] >= length) break;
        free_host(&host);
    }
    /* The arrays are longer than they need be, and the numbers are as good as any. */
    host.lengths[0] = host.prompts[0] + 10 + (int32_t)host.options.window;
    keep_first(&host);
    return host;
}

static void no_sets(rrpc_select_request *request)
{
    request->sets = 0;
}
static void three_sets(rrpc_select_request *request)
{
    request->sets = 3;
}
static void many_sets(rrpc_select_request *request)
{
    request->sets = UINT32_MAX;
}
static void too_many_kept(rrpc_select_request *request)
{
    request->kept_count = request->candidates + 1;
}
static void very_many_kept(rrpc_select_request *request)
{
    request->kept_count = UINT32_MAX;
}
static void descending(rrpc_select_request *request)
{
    request->kept[1] = 9, request->kept[2] = 1;
}
static void twice(rrpc_select_request *request)
{
    request->kept[1] = request->kept[0];
}
static void beyond(rrpc_select_request *request)
{
    request->kept[request->kept_count - 1] = request->candidates;
}
static void far_beyond(rrpc_select_request *request)
{
    request->kept[request->kept_count - 1] = UINT32_MAX;
}
static void too_many_merges(rrpc_select_request *request)
{
    request->merge_count = 8;
}
static void very_many_merges(rrpc_select_request *request)
{
    request->merge_count = UINT32_MAX;
}
static void merge_of_another_sequence(rrpc_select_request *request)
{
    request->merges[0].sequence = 1;
}
static void merge_of_a_third_head(rrpc_select_request *request)
{
    request->merges[request->merge_count - 1].kv_head = 2;
}
static void merge_of_a_kept_one(rrpc_select_request *request)
{
    request->merges[0].from = 2;
}
static void merge_into_a_dropped_one(rrpc_select_request *request)
{
    request->merges[0].into = 3;
    request->merge_count = 1;
}
static void merge_into_itself(rrpc_select_request *request)
{
    request->merges[0].from = request->merges[0].into;
}
static void merge_beyond(rrpc_select_request *request)
{
    request->merges[0].from = UINT32_MAX;
}
static void merge_twice(rrpc_select_request *request)
{
    request->merges[1] = request->merges[0];
}
static void merges_out_of_order(rrpc_select_request *request)
{
    rrpc_merge first = request->merges[0];
    request->merges[0] = request->merges[1];
    request->merges[1] = first;
}
static void merge_by_nan(rrpc_select_request *request)
{
    request->merges[0].key_weight = NAN;
}
static void merge_by_infinity(rrpc_select_request *request)
{
    request->merges[0].value_weight = INFINITY;
}

static void answers_that_cannot_be_are_refused(void)
{
    void (*const spoilers[])(rrpc_select_request *) = {
        no_sets, three_sets, many_sets, too_many_kept, very_many_kept, descending, twice, beyond, far_beyond,
        too_many_merges, very_many_merges, merge_of_another_sequence, merge_of_a_third_head, merge_of_a_kept_one,
        merge_into_a_dropped_one, merge_into_itself, merge_beyond, merge_twice, merges_out_of_order, merge_by_nan,
        merge_by_infinity};
    host host = small_host();
    chooser chooser = chooser_for(&host, 0);
    host.options.user_data = &chooser;
    rrpc_compressor *compressor = new_compressor(&host);
    chooser.compressor = compressor;
    for (int layout = 0; layout < LAYOUTS; ++layout) {
        cache cache = place(&host, layout);
        wire(&cache, &host);
        cache.layer.layer = 3;
        size_t bytes;
        char *workspace = workspace_for(compressor, &cache, &bytes, NULL);
        rrpc_plan plan = {.struct_size = sizeof plan};
        for (size_t i = 0; i < sizeof spoilers / sizeof spoilers[0]; ++i) {
            chooser.spoil = spoilers[i];
            if (!FAILS(INVALID_ARGUMENT, "expected",
                       rrpc_compressor_compress(compressor, &cache.layer, &cache.batch, &cache.window, workspace, bytes, &plan)))
                printf("spoiler %zu\n", i);
            CHECK(untouched(&cache));
        }
        chooser.spoil = NULL;
        chooser.answer = -7;
        FAILS(CALLBACK, "-7",
              rrpc_compressor_compress(compressor, &cache.layer, &cache.batch, &cache.window, workspace, bytes, &plan));
        chooser.answer = 0;
        CHECK(untouched(&cache));
        OK(rrpc_compressor_compress(compressor, &cache.layer, &cache.batch, &cache.window, workspace, bytes, &plan));
        check_merged(&host, &cache, &chooser, &plan);
        free(workspace);
        free_cache(&cache);
    }
    rrpc_compressor_free(compressor);
    free_host(&host);
}

/* A plan in arrays of the host's own, and what becomes of it when one thing is wrong. */
static void plans_of_the_host_are_carried_out_or_refused(void)
{
    host host = small_host();
    host.options.max_merges = 1;
    rrpc_compressor *compressor = new_compressor(&host);
    for (int layout = 0; layout < LAYOUTS; ++layout) {
        cache cache = place(&host, layout);
        wire(&cache, &host);
        size_t bytes;
        char *workspace = workspace_for(compressor, &cache, &bytes, NULL);
        /* KV head 0 keeps 1, 5, 9; KV head 1 keeps 0, 1, 2 and takes 3 into 2. */
        uint32_t counts[] = {3}, kept[] = {1, 5, 9, 0, 1, 2};
        int32_t lengths[] = {host.lengths[0] - 7}, freed[8], size = (int32_t)cache.batch.block_entries;
        rrpc_merge merge = {0, 1, 3, 2, 0.5f, 0.25f};
        rrpc_plan good = {.struct_size = sizeof good, .kept_counts = counts, .kept = kept, .kept_len = 6,
                          .new_lengths = lengths, .merges = &merge, .merge_count = 1, .sequences = 1, .sets = 2,
                          .freed_blocks = freed};
        if (cache.paged)
            for (int32_t i = (lengths[0] + size - 1) / size; i * size < host.lengths[0]; ++i)
                freed[good.freed_count++] = cache.table[cache.rows[0] * cache.batch.block_table_stride + i];
        rrpc_plan plan = good;
#define APPLY() rrpc_compressor_apply(compressor, &cache.layer, &cache.batch, &plan, workspace, bytes)
#define REFUSED(code, words, change, undo) \
    do {                                   \
        change;                            \
        FAILS(code, words, APPLY());       \
        CHECK(untouched(&cache));          \
        plan = good;                       \
        undo;                              \
    } while (0)
        int32_t stranger[8] = {0};
        rrpc_block_copy copy = {0, 0, 0, 1};
        REFUSED(INVALID_ARGUMENT, "struct_size", plan.struct_size = 0, );
        REFUSED(INVALID_ARGUMENT, "sequences", plan.sequences = 2, );
        REFUSED(INVALID_ARGUMENT, "expected", plan.sets = 0, );
        REFUSED(INVALID_ARGUMENT, "expected", plan.sets = 1, );
        REFUSED(INVALID_ARGUMENT, "expected", plan.sets = 3, );
        REFUSED(INVALID_ARGUMENT, "expected", plan.kept_len = 5, );
        REFUSED(INVALID_ARGUMENT, "expected", plan.kept_len = 0, );
        REFUSED(NULL_POINTER, "plan.kept", plan.kept = NULL, );
        REFUSED(NULL_POINTER, "plan.kept_counts", plan.kept_counts = NULL, );
        REFUSED(NULL_POINTER, "plan.new_lengths", plan.new_lengths = NULL, );
        REFUSED(NULL_POINTER, "plan.merges", plan.merges = NULL, );
        REFUSED(NULL_POINTER, "plan.copies", plan.copy_count = 1, );
        REFUSED(INVALID_ARGUMENT, "expected", (plan.copy_count = 1, plan.copies = &copy), );
        REFUSED(INVALID_ARGUMENT, "expected", (plan.freed_count += 1, plan.freed_blocks = stranger), );
        if (good.freed_count > 0) {
            REFUSED(INVALID_ARGUMENT, "expected", plan.freed_count -= 1, );
            REFUSED(NULL_POINTER, "plan.freed_blocks", plan.freed_blocks = NULL, );
            REFUSED(INVALID_ARGUMENT, "expected", freed[0] += 1, freed[0] -= 1);
        }
        REFUSED(INVALID_ARGUMENT, "expected", counts[0] = 2, counts[0] = 3);
        REFUSED(INVALID_ARGUMENT, "expected", counts[0] = UINT32_MAX, counts[0] = 3);
        REFUSED(INVALID_ARGUMENT, "expected", lengths[0] += 1, lengths[0] -= 1);
        REFUSED(INVALID_ARGUMENT, "expected", lengths[0] = -lengths[0], lengths[0] = -lengths[0]);
        REFUSED(INVALID_ARGUMENT, "expected", kept[2] = 10, kept[2] = 9);
        REFUSED(INVALID_ARGUMENT, "expected", kept[2] = 5, kept[2] = 9);
        REFUSED(INVALID_ARGUMENT, "expected", kept[2] = 2, kept[2] = 9);
        REFUSED(INVALID_ARGUMENT, "expected", merge.sequence = 1, merge.sequence = 0);
        REFUSED(INVALID_ARGUMENT, "expected", merge.kv_head = 0, merge.kv_head = 1);
        REFUSED(INVALID_ARGUMENT, "expected", merge.from = 1, merge.from = 3);
        REFUSED(INVALID_ARGUMENT, "expected", merge.into = 4, merge.into = 2);
        REFUSED(INVALID_ARGUMENT, "expected", merge.key_weight = NAN, merge.key_weight = 0.5f);
        OK(APPLY());
        int wrong = 0;
        for (uint32_t d = 0; d < host.options.head_dim; ++d) {
            int32_t prompt = host.prompts[0];
            for (int32_t i = 0; i < 3; ++i)
                for (uint32_t head = 0; head < 2; ++head) {
                    if (head == 1 && i == 2) continue;
                    wrong += number_at(&cache, cache.keys, 0, head, prompt + i)[d]
                             != number_at(&cache, cache.keys_before, 0, head, prompt + (int32_t)kept[head * 3 + (uint32_t)i])[d];
                }
            const float *into = number_at(&cache, cache.values_before, 0, 1, prompt + 2),
                        *from = number_at(&cache, cache.values_before, 0, 1, prompt + 3);
            double expected = 0.75 * (double)into[d] + 0.25 * (double)from[d];
            wrong += fabs(expected - (double)number_at(&cache, cache.values, 0, 1, prompt + 2)[d]) > 1e-6;
            for (int32_t i = 0; i < (int32_t)host.options.window; ++i)
                wrong += number_at(&cache, cache.values, 0, 1, prompt + 3 + i)[d]
                         != number_at(&cache, cache.values_before, 0, 1, prompt + 10 + i)[d];
        }
        CHECK(wrong == 0);
        free(workspace);
        free_cache(&cache);
    }
    rrpc_compressor_free(compressor);
    free_host(&host);
}

int main(void)
{
    seed_random();
    RUN(a_callback_selects_and_merges);
    RUN(answers_that_cannot_be_are_refused);
    RUN(plans_of_the_host_are_carried_out_or_refused);
    return check_end("compressor_callback");
}
