/* Options, batches, layers, windows, workspaces and handles that cannot be: each is named, and nothing is
   written. */
#include <stddef.h>

#include "host.h"

typedef struct {
    host host;
    cache cache;
    rrpc_compressor *compressor;
    char *workspace;
    float *scores;
    size_t bytes, count;
    rrpc_plan plan;
} scene;

/* Two sequences at least: the first with something to drop, the second as long, so that one which names the first's
   row has every block that a compression writes. */
static void set_up(scene *scene, uint32_t dtype, layout layout)
{
    for (;;) {
        scene->host = new_host(dtype);
        host *host = &scene->host;
        if (host->sequences >= 2 && host->lengths[1] >= host->lengths[0]
            && kept_by_rpc(host, 0) + 16 < (uint32_t)candidates_of(host, 0))
            break;
        free_host(host);
    }
    scene->host.options.recorded_layers = 1;
    scene->host.options.recorded_sequences = 2;
    scene->cache = place(&scene->host, layout);
    wire(&scene->cache, &scene->host);
    scene->compressor = new_compressor(&scene->host);
    scene->workspace = workspace_for(scene->compressor, &scene->cache, &scene->bytes, &scene->count);
    scene->scores = malloc(scene->count * sizeof *scene->scores);
    for (size_t i = 0; i < scene->count; ++i) scene->scores[i] = (float)i;
    scene->plan = (rrpc_plan){.struct_size = sizeof scene->plan};
}

static void tear_down(scene *scene)
{
    free(scene->workspace);
    free(scene->scores);
    rrpc_compressor_free(scene->compressor);
    free_cache(&scene->cache);
    free_host(&scene->host);
}

static rrpc_error *compress(scene *scene)
{
    return rrpc_compressor_compress(scene->compressor, &scene->cache.layer, &scene->cache.batch, &scene->cache.window,
                                    scene->workspace, scene->bytes, &scene->plan);
}

static void policies_have_names(void)
{
    uint32_t policy = 77;
    OK(rrpc_policy_from_name("none", &policy));
    CHECK(policy == RRPC_POLICY_NONE);
    OK(rrpc_policy_from_name("rpc", &policy));
    CHECK(policy == RRPC_POLICY_RPC);
    OK(rrpc_policy_from_name("lightthinker", &policy));
    CHECK(policy == RRPC_POLICY_LIGHTTHINKER);
    OK(rrpc_policy_from_name("callback", &policy));
    CHECK(policy == RRPC_POLICY_CALLBACK);
    FAILS(INVALID_ARGUMENT, "\"RPC\"", rrpc_policy_from_name("RPC", &policy));
    FAILS(INVALID_ARGUMENT, "\"\"", rrpc_policy_from_name("", &policy));
    FAILS(INVALID_ARGUMENT, "UTF-8", rrpc_policy_from_name("\xff", &policy));
    FAILS(NULL_POINTER, "name", rrpc_policy_from_name(NULL, &policy));
    FAILS(NULL_POINTER, "policy", rrpc_policy_from_name("rpc", NULL));
}

static void options_are_checked(void)
{
    rrpc_compressor_options options, good;
    rrpc_compressor *compressor = (rrpc_compressor *)&options;
    NEED(rrpc_compressor_options_init(&good, sizeof good));
    CHECK(good.struct_size == sizeof good && good.interval == 4096 && good.window == 32 && good.ratio == 4
          && good.kernel == 7 && good.dtype == RRPC_DTYPE_F16 && good.scale == RRPC_SCALE_DEFAULT
          && good.policy == RRPC_POLICY_RPC && good.heads == 0 && good.select == NULL);
    FAILS(NULL_POINTER, "options", rrpc_compressor_options_init(NULL, sizeof good));
    FAILS(INVALID_ARGUMENT, "struct_size", rrpc_compressor_options_init(&options, 7));
    FAILS(INVALID_ARGUMENT, "heads", rrpc_compressor_create(&good, &compressor));
    CHECK(compressor == NULL);
    good.heads = 4;
    good.kv_heads = 2;
    good.head_dim = 16;
    FAILS(NULL_POINTER, "options", rrpc_compressor_create(NULL, &compressor));
    FAILS(NULL_POINTER, "compressor", rrpc_compressor_create(&good, NULL));
#define REFUSED_OPTION(code, words, change)                                                           \
    do {                                                                                              \
        options = good;                                                                               \
        change;                                                                                       \
        compressor = (rrpc_compressor *)&options;                                                     \
        FAILS(code, words, rrpc_compressor_create(&options, &compressor));                            \
        CHECK(compressor == NULL);                                                                    \
    } while (0)
    REFUSED_OPTION(INVALID_ARGUMENT, "struct_size", options.struct_size = 0);
    REFUSED_OPTION(INVALID_ARGUMENT, "device", options.device = 1);
    REFUSED_OPTION(INVALID_ARGUMENT, "device_index", options.device_index = 1);
    REFUSED_OPTION(INVALID_ARGUMENT, "reserved", options.reserved = 1);
    REFUSED_OPTION(INVALID_ARGUMENT, "heads", options.heads = 3);
    REFUSED_OPTION(INVALID_ARGUMENT, "heads", options.heads = UINT32_MAX);
    REFUSED_OPTION(INVALID_ARGUMENT, "kv_heads", options.kv_heads = 0);
    REFUSED_OPTION(INVALID_ARGUMENT, "head_dim", options.head_dim = 0);
    REFUSED_OPTION(INVALID_ARGUMENT, "head_dim", options.head_dim = 12);
    REFUSED_OPTION(INVALID_ARGUMENT, "head_dim", options.head_dim = UINT32_MAX - 7);
    REFUSED_OPTION(INVALID_ARGUMENT, "dtype", options.dtype = RRPC_DTYPE_DEFAULT);
    REFUSED_OPTION(INVALID_ARGUMENT, "dtype", options.dtype = 5);
    REFUSED_OPTION(INVALID_ARGUMENT, "scale", options.scale = 0);
    REFUSED_OPTION(INVALID_ARGUMENT, "scale", options.scale = -2);
    REFUSED_OPTION(INVALID_ARGUMENT, "scale", options.scale = NAN);
    REFUSED_OPTION(INVALID_ARGUMENT, "scale", options.scale = INFINITY);
    REFUSED_OPTION(INVALID_ARGUMENT, "policy", options.policy = 99);
    REFUSED_OPTION(NULL_POINTER, "select", options.policy = RRPC_POLICY_CALLBACK);
    REFUSED_OPTION(INVALID_ARGUMENT, "interval", options.interval = 4097);
    REFUSED_OPTION(INVALID_ARGUMENT, "window", options.window = 0);
    REFUSED_OPTION(INVALID_ARGUMENT, "window", options.window = 4096);
    REFUSED_OPTION(INVALID_ARGUMENT, "ratio", options.ratio = 0);
    REFUSED_OPTION(INVALID_ARGUMENT, "aggregation", options.aggregation = 2);
    REFUSED_OPTION(INVALID_ARGUMENT, "pooling", options.pooling = 2);
    REFUSED_OPTION(INVALID_ARGUMENT, "kernel", options.kernel = 2);
    REFUSED_OPTION(OUT_OF_MEMORY, "recorded", (options.recorded_layers = options.recorded_sequences = UINT32_MAX));
    /* An older caller's, without the last fields. */
    options = good;
    options.struct_size = offsetof(rrpc_compressor_options, aggregation);
    options.aggregation = 99;
    OK(rrpc_compressor_create(&options, &compressor));
    rrpc_compressor_free(compressor);
}

static void handles_are_checked(void)
{
    scene scene;
    set_up(&scene, RRPC_DTYPE_F32, DENSE_HEADS);
    rrpc_compressor *good = scene.compressor, *freed = new_compressor(&scene.host);
    rrpc_compressor_free(freed);
    rrpc_compressor_free(freed);
    rrpc_compressor_free(NULL);
    rrpc_compressor_sizes sizes = {.struct_size = sizeof sizes};
    int on_stack = 0;
    uint32_t due;
    void *handles[] = {freed, NULL, (void *)1, (void *)-1, &on_stack, (void *)0x5203000000000000, (void *)0x5203ffffffffffff,
                       (void *)0x5201000000100000};
    cache *cache = &scene.cache;
    for (size_t i = 0; i < sizeof handles / sizeof handles[0]; ++i) {
        rrpc_compressor *handle = handles[i];
#define STALE(call)                                                       \
    do {                                                                  \
        if (i == 0) FAILS(INVALID_HANDLE, "freed", call);                 \
        else if (i == 1) FAILS(NULL_POINTER, "compressor", call);         \
        else FAILS(INVALID_HANDLE, "expected a compressor", call);        \
    } while (0)
        STALE(rrpc_compressor_due(handle, 1, 0, &due));
        STALE(rrpc_compressor_record(handle, 0, NULL, 1, cache->ring, 1024, 64, RRPC_DTYPE_F32));
        STALE(rrpc_compressor_forget(handle, 0));
        STALE(rrpc_compressor_get_sizes(handle, &cache->batch, &sizes));
        STALE(rrpc_compressor_score(handle, &cache->layer, &cache->batch, &cache->window, scene.scores, scene.count,
                                    scene.workspace, scene.bytes));
        STALE(rrpc_compressor_select(handle, 0, &cache->batch, scene.scores, scene.count, scene.workspace, scene.bytes,
                                     &scene.plan));
        STALE(rrpc_compressor_apply(handle, &cache->layer, &cache->batch, &scene.plan, scene.workspace, scene.bytes));
        scene.compressor = handle;
        STALE(compress(&scene));
        if (i > 0) rrpc_compressor_free(handle);
    }
    scene.compressor = good;
    CHECK(untouched(cache));
    OK(compress(&scene));
    tear_down(&scene);
}

static void missing_pointers_are_named(void)
{
    scene scene;
    set_up(&scene, RRPC_DTYPE_F32, PAGED_HEADS);
    const rrpc_compressor *c = scene.compressor;
    cache *cache = &scene.cache;
    rrpc_compressor_sizes sizes = {.struct_size = sizeof sizes};
    char *workspace = scene.workspace;
    FAILS(NULL_POINTER, "due", rrpc_compressor_due(c, 1, 0, NULL));
    FAILS(NULL_POINTER, "queries", rrpc_compressor_record(c, 0, NULL, 1, NULL, 1024, 64, RRPC_DTYPE_F32));
    FAILS(NULL_POINTER, "batch", rrpc_compressor_get_sizes(c, NULL, &sizes));
    FAILS(NULL_POINTER, "sizes", rrpc_compressor_get_sizes(c, &cache->batch, NULL));
    FAILS(NULL_POINTER, "layer", rrpc_compressor_score(c, NULL, &cache->batch, &cache->window, scene.scores, scene.count, workspace, scene.bytes));
    FAILS(NULL_POINTER, "batch", rrpc_compressor_score(c, &cache->layer, NULL, &cache->window, scene.scores, scene.count, workspace, scene.bytes));
    FAILS(NULL_POINTER, "window", rrpc_compressor_score(c, &cache->layer, &cache->batch, NULL, scene.scores, scene.count, workspace, scene.bytes));
    FAILS(NULL_POINTER, "scores", rrpc_compressor_score(c, &cache->layer, &cache->batch, &cache->window, NULL, scene.count, workspace, scene.bytes));
    FAILS(NULL_POINTER, "workspace", rrpc_compressor_score(c, &cache->layer, &cache->batch, &cache->window, scene.scores, scene.count, NULL, scene.bytes));
    FAILS(NULL_POINTER, "batch", rrpc_compressor_select(c, 0, NULL, scene.scores, scene.count, workspace, scene.bytes, &scene.plan));
    FAILS(NULL_POINTER, "scores", rrpc_compressor_select(c, 0, &cache->batch, NULL, scene.count, workspace, scene.bytes, &scene.plan));
    FAILS(NULL_POINTER, "workspace", rrpc_compressor_select(c, 0, &cache->batch, scene.scores, scene.count, NULL, scene.bytes, &scene.plan));
    FAILS(NULL_POINTER, "plan", rrpc_compressor_select(c, 0, &cache->batch, scene.scores, scene.count, workspace, scene.bytes, NULL));
    FAILS(NULL_POINTER, "layer", rrpc_compressor_apply(c, NULL, &cache->batch, &scene.plan, workspace, scene.bytes));
    FAILS(NULL_POINTER, "batch", rrpc_compressor_apply(c, &cache->layer, NULL, &scene.plan, workspace, scene.bytes));
    FAILS(NULL_POINTER, "plan", rrpc_compressor_apply(c, &cache->layer, &cache->batch, NULL, workspace, scene.bytes));
    FAILS(NULL_POINTER, "plan", rrpc_compressor_compress(c, &cache->layer, &cache->batch, &cache->window, workspace, scene.bytes, NULL));
    size_t *struct_sizes[] = {&cache->layer.struct_size, &cache->batch.struct_size, &cache->window.struct_size, &scene.plan.struct_size};
    const size_t wrong[] = {0, 7, 4097, SIZE_MAX};
    for (size_t i = 0; i < sizeof struct_sizes / sizeof struct_sizes[0]; ++i)
        for (size_t j = 0; j < sizeof wrong / sizeof wrong[0]; ++j) {
            size_t right = *struct_sizes[i];
            *struct_sizes[i] = wrong[j];
            FAILS(INVALID_ARGUMENT, "struct_size", compress(&scene));
            *struct_sizes[i] = right;
        }
    sizes.struct_size = 3;
    FAILS(INVALID_ARGUMENT, "struct_size", rrpc_compressor_get_sizes(c, &cache->batch, &sizes));
    CHECK(untouched(cache));
    OK(compress(&scene));
    tear_down(&scene);
}

/* A newer caller's structs serve while their tails say nothing; an older one's plan gets what fits. */
static void structs_may_be_larger_or_smaller(void)
{
    scene scene;
    set_up(&scene, RRPC_DTYPE_F32, DENSE_TOKENS);
    struct {
        rrpc_kv_batch known;
        uint64_t more[2];
    } newer = {scene.cache.batch, {0, 0}};
    newer.known.struct_size = sizeof newer;
    rrpc_plan plan;
    memset(&plan, 0xff, sizeof plan);
    plan.struct_size = offsetof(rrpc_plan, merges);
    newer.more[1] = 1;
    FAILS(INVALID_ARGUMENT, "does not know",
          rrpc_compressor_compress(scene.compressor, &scene.cache.layer, &newer.known, &scene.cache.window, scene.workspace,
                                   scene.bytes, &plan));
    CHECK(untouched(&scene.cache));
    newer.more[1] = 0;
    OK(rrpc_compressor_compress(scene.compressor, &scene.cache.layer, &newer.known, &scene.cache.window, scene.workspace,
                                scene.bytes, &plan));
    CHECK(plan.struct_size == offsetof(rrpc_plan, merges) && plan.copy_count == 0 && plan.kept_len > 0);
    CHECK(plan.merge_count == SIZE_MAX && plan.sets == UINT32_MAX);
    tear_down(&scene);
}

/* One thing changed, refused, and put back. */
#define REFUSED(code, words, change)                                                                       \
    do {                                                                                                   \
        struct_copy = *(__typeof__(struct_copy) *)place_of_struct;                                         \
        change;                                                                                            \
        FAILS(code, words, compress(&scene));                                                              \
        CHECK(untouched(&scene.cache));                                                                    \
        *(__typeof__(struct_copy) *)place_of_struct = struct_copy;                                         \
    } while (0)

static void batches_are_checked(void)
{
    for (int layout = 0; layout < LAYOUTS; ++layout) {
        scene scene;
        set_up(&scene, RRPC_DTYPE_F32, layout);
        rrpc_kv_batch *batch = &scene.cache.batch, struct_copy;
        void *place_of_struct = batch;
        int32_t *rows = scene.cache.rows, *lengths = scene.host.lengths, *prompts = scene.host.prompts;
        int32_t *done = scene.host.compressions, *table = scene.cache.table;
        REFUSED(NULL_POINTER, "batch.lengths", batch->lengths = NULL);
        REFUSED(NULL_POINTER, "batch.prompt_lengths", batch->prompt_lengths = NULL);
        REFUSED(NULL_POINTER, "batch.compressions", batch->compressions = NULL);
        REFUSED(NULL_POINTER, "batch.shared_blocks", (batch->shared_blocks = NULL, batch->shared_count = 1));
        REFUSED(NULL_POINTER, "batch.spare_blocks", (batch->spare_blocks = NULL, batch->spare_count = 1));
        REFUSED(INVALID_ARGUMENT, "multiple of 4", batch->lengths = (const int32_t *)((const char *)lengths + 1));
        REFUSED(INVALID_ARGUMENT, "stream", batch->stream = &scene);
        REFUSED(INVALID_ARGUMENT, "expected", batch->sequences = UINT32_MAX);
        REFUSED(INVALID_ARGUMENT, "expected", batch->row_count = 0);
        REFUSED(INVALID_ARGUMENT, "expected", batch->block_entries = 0);
        REFUSED(INVALID_ARGUMENT, "expected", batch->block_entries = UINT32_MAX);
        REFUSED(INVALID_ARGUMENT, "expected", batch->block_count = (scene.cache.paged ? 0u : 1u));
#define REFUSED_ITEM(array, index, value)             \
    do {                                              \
        int32_t was = (array)[index];                 \
        (array)[index] = (value);                     \
        FAILS(INVALID_ARGUMENT, "expected", compress(&scene)); \
        CHECK(untouched(&scene.cache));               \
        (array)[index] = was;                         \
    } while (0)
        REFUSED_ITEM(rows, 1, -1);
        REFUSED_ITEM(rows, 0, (int32_t)batch->row_count);
        REFUSED_ITEM(rows, 1, INT32_MAX);
        REFUSED_ITEM(rows, 1, rows[0]);
        REFUSED_ITEM(lengths, 1, -1);
        REFUSED_ITEM(lengths, 0, INT32_MAX);
        REFUSED_ITEM(prompts, 0, -1);
        REFUSED_ITEM(done, 1, -1);
        if (!scene.cache.paged) REFUSED_ITEM(lengths, 0, (int32_t)batch->block_entries + 1);
        if (scene.cache.paged) {
            size_t first = (size_t)(rows[0] * batch->block_table_stride), at = first + (size_t)prompts[0] / batch->block_entries;
            REFUSED_ITEM(table, at, -1);
            REFUSED_ITEM(table, at, (int32_t)batch->block_count);
            REFUSED_ITEM(table, at, INT32_MIN);
            REFUSED_ITEM(table, at, table[at + 1]);
            batch->spare_count = 2;
            REFUSED_ITEM(scene.cache.spare, 0, -1);
            REFUSED_ITEM(scene.cache.spare, 1, (int32_t)batch->block_count);
            REFUSED_ITEM(scene.cache.spare, 1, scene.cache.spare[0]);
            REFUSED_ITEM(scene.cache.spare, 0, table[at]);
            batch->spare_count = 0;
            batch->shared_count = 1;
            scene.cache.shared[0] = table[at];
            REFUSED_ITEM(scene.cache.shared, 0, -1);
            REFUSED_ITEM(scene.cache.shared, 0, (int32_t)batch->block_count);
            batch->shared_count = 0;
            REFUSED(INVALID_ARGUMENT, "expected", batch->block_table_stride = -1);
            REFUSED(INVALID_ARGUMENT, "block_table", batch->block_table = (const int32_t *)((const char *)table + 2));
        }
        free(scene.workspace);
        scene.workspace = workspace_for(scene.compressor, &scene.cache, &scene.bytes, NULL);
        OK(compress(&scene));
        tear_down(&scene);
    }
}

static void layers_are_checked(void)
{
    for (int i = 0; i < 2 * LAYOUTS; ++i) {
        scene scene;
        int bytes = i % 2;
        set_up(&scene, bytes ? RRPC_DTYPE_I8 : RRPC_DTYPE_F32, i / 2);
        rrpc_kv_layer *layer = &scene.cache.layer, struct_copy;
        void *place_of_struct = layer;
        REFUSED(NULL_POINTER, "layer.keys", layer->keys = NULL);
        REFUSED(NULL_POINTER, "layer.values", layer->values = NULL);
        REFUSED(INVALID_ARGUMENT, "reserved", layer->reserved = 1);
        if (bytes) {
            REFUSED(NULL_POINTER, "layer.key_scales", layer->key_scales = NULL);
            REFUSED(NULL_POINTER, "layer.value_scales", layer->value_scales = NULL);
            REFUSED(INVALID_ARGUMENT, "expected", layer->key_scale_strides[2] = 0);
            REFUSED(INVALID_ARGUMENT, "expected", layer->value_scale_strides[2] = -1);
        } else {
            REFUSED(INVALID_ARGUMENT, "layer.key_scales", layer->key_scales = scene.cache.key_scales);
            REFUSED(INVALID_ARGUMENT, "layer.value_scales", layer->value_scales = scene.cache.key_scales);
            REFUSED(INVALID_ARGUMENT, "expected", layer->keys = (char *)layer->keys + 1);
        }
        const int64_t strides[] = {0, 1, -1, -64, INT64_MIN, INT64_MAX, INT64_MAX / 4};
        for (size_t j = 0; j < sizeof strides / sizeof strides[0]; ++j) {
            REFUSED(INVALID_ARGUMENT, "expected", layer->key_strides[2] = strides[j]);
            REFUSED(INVALID_ARGUMENT, "expected", layer->value_strides[2] = strides[j]);
            REFUSED(INVALID_ARGUMENT, "expected", layer->key_strides[0] = strides[j]);
            if (scene.host.options.kv_heads > 1) REFUSED(INVALID_ARGUMENT, "expected", layer->value_strides[1] = strides[j]);
        }
        REFUSED(INVALID_ARGUMENT, "expected", layer->key_strides[2] = scene.host.options.head_dim - 1);
        OK(compress(&scene));
        tear_down(&scene);
    }
}

static void windows_are_checked(void)
{
    scene scene;
    set_up(&scene, RRPC_DTYPE_F32, PAGED_TOKENS);
    rrpc_query_window *window = &scene.cache.window, struct_copy;
    void *place_of_struct = window;
    REFUSED(INVALID_ARGUMENT, "dtype", window->dtype = RRPC_DTYPE_I8);
    REFUSED(INVALID_ARGUMENT, "dtype", window->dtype = RRPC_DTYPE_DEFAULT);
    REFUSED(INVALID_ARGUMENT, "ring_tokens", window->ring_tokens = scene.host.options.window - 1);
    REFUSED(INVALID_ARGUMENT, "expected", window->queries = (const char *)window->queries + 1);
    REFUSED(INVALID_ARGUMENT, "expected", window->strides[1] = -1);
    REFUSED(INVALID_ARGUMENT, "expected", window->strides[0] = INT64_MAX);
    REFUSED_ITEM(scene.cache.oldest, 0, -1);
    REFUSED_ITEM(scene.cache.oldest, 1, (int32_t)window->ring_tokens);
    /* Recorded: nothing yet, or no such slot. */
    REFUSED(INVALID_ARGUMENT, "expected", window->queries = NULL);
    int32_t slots[SEQUENCES] = {0, 2, 0, 0};
    REFUSED(INVALID_ARGUMENT, "expected", (window->slots = slots, window->queries = NULL));
    slots[1] = -1;
    REFUSED(INVALID_ARGUMENT, "expected", (window->slots = slots, window->queries = NULL));
    slots[1] = 1;
    const rrpc_compressor *c = scene.compressor;
    const int64_t row = scene.host.options.heads * scene.host.options.head_dim, head = scene.host.options.head_dim;
    FAILS(INVALID_ARGUMENT, "layer", rrpc_compressor_record(c, 1, slots, 2, scene.cache.ring, row, head, RRPC_DTYPE_F32));
    FAILS(INVALID_ARGUMENT, "dtype", rrpc_compressor_record(c, 0, slots, 2, scene.cache.ring, row, head, RRPC_DTYPE_I8));
    FAILS(INVALID_ARGUMENT, "expected", rrpc_compressor_record(c, 0, slots, 2, scene.cache.ring, -1, head, RRPC_DTYPE_F32));
    FAILS(INVALID_ARGUMENT, "expected", rrpc_compressor_record(c, 0, slots, SIZE_MAX, scene.cache.ring, row, head, RRPC_DTYPE_F32));
    FAILS(INVALID_ARGUMENT, "expected", rrpc_compressor_record(c, 0, NULL, 3, scene.cache.ring, row, head, RRPC_DTYPE_F32));
    slots[1] = 2;
    FAILS(INVALID_ARGUMENT, "expected", rrpc_compressor_record(c, 0, slots, 2, scene.cache.ring, row, head, RRPC_DTYPE_F32));
    slots[1] = 0;
    FAILS(INVALID_ARGUMENT, "expected", rrpc_compressor_record(c, 0, slots, 2, scene.cache.ring, row, head, RRPC_DTYPE_F32));
    FAILS(INVALID_ARGUMENT, "slot", rrpc_compressor_forget(c, -1));
    FAILS(INVALID_ARGUMENT, "slot", rrpc_compressor_forget(c, 2));
    OK(rrpc_compressor_forget(c, 1));
    CHECK(untouched(&scene.cache));
    OK(compress(&scene));
    tear_down(&scene);
}

static void rooms_that_are_too_small_are_refused(void)
{
    for (int layout = 0; layout < LAYOUTS; ++layout) {
        scene scene;
        set_up(&scene, layout % 2 ? RRPC_DTYPE_F32 : RRPC_DTYPE_I8, layout);
        const rrpc_compressor *c = scene.compressor;
        cache *cache = &scene.cache;
        size_t bytes = scene.bytes;
        const size_t sizes[] = {0, 1, 63, bytes / 2, bytes - 1};
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; ++i) {
            scene.bytes = sizes[i];
            FAILS(BUFFER_TOO_SMALL, "workspace", compress(&scene));
            FAILS(BUFFER_TOO_SMALL, "workspace",
                  rrpc_compressor_select(c, 0, &cache->batch, scene.scores, scene.count, scene.workspace, sizes[i], &scene.plan));
            CHECK(untouched(cache));
        }
        scene.bytes = bytes;
        FAILS(BUFFER_TOO_SMALL, "workspace",
              rrpc_compressor_score(c, &cache->layer, &cache->batch, &cache->window, scene.scores, scene.count, NULL, 0));
        FAILS(INVALID_ARGUMENT, "scores",
              rrpc_compressor_score(c, &cache->layer, &cache->batch, &cache->window, scene.scores, scene.count - 1,
                                    scene.workspace, bytes));
        FAILS(INVALID_ARGUMENT, "scores",
              rrpc_compressor_select(c, 0, &cache->batch, scene.scores, scene.count - 1, scene.workspace, bytes, &scene.plan));
        CHECK(scene.scores[0] == 0 && scene.scores[1] == 1);
        OK(compress(&scene));
        tear_down(&scene);
    }
}

int main(void)
{
    seed_random();
    RUN(policies_have_names);
    RUN(options_are_checked);
    RUN(handles_are_checked);
    RUN(missing_pointers_are_named);
    RUN(structs_may_be_larger_or_smaller);
    RUN(batches_are_checked);
    RUN(layers_are_checked);
    RUN(windows_are_checked);
    RUN(rooms_that_are_too_small_are_refused);
    return check_end("compressor_misuse");
}
