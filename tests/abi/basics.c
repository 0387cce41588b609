/* Versions, errors, and what an engine says of itself. */
#include "check.h"

static void versions_agree(void)
{
    CHECK(strcmp(rrpc_version(), RRPC_VERSION) == 0);
    CHECK(rrpc_abi_version() == RRPC_ABI_VERSION);
    char composed[32];
    snprintf(composed, sizeof composed, "%d.%d.%d", RRPC_VERSION_MAJOR, RRPC_VERSION_MINOR, RRPC_VERSION_PATCH);
    CHECK(strcmp(composed, RRPC_VERSION) == 0);
}

static void no_error_is_accepted(void)
{
    CHECK(rrpc_error_code(NULL) == RRPC_OK);
    CHECK(strcmp(rrpc_error_message(NULL), "no error") == 0);
    rrpc_error_free(NULL);
}

static void models_that_cannot_be_opened(void)
{
    rrpc_engine *engine = (rrpc_engine *)&engine;
    FAILS(MODEL, "/nowhere", rrpc_engine_open("/nowhere", NULL, &engine));
    CHECK(engine == NULL);
    FAILS(INVALID_ARGUMENT, "model: expected a path", rrpc_engine_open("", NULL, &engine));
    FAILS(MODEL, "manifest.json", rrpc_engine_open("/", NULL, &engine));
}

static void a_process_has_one_onnx_runtime(void)
{
    rrpc_engine_options options;
    NEED(rrpc_engine_options_init(&options, sizeof options));
    options.onnxruntime = "/nowhere/libonnxruntime.so";
    rrpc_engine *engine = NULL;
    /* Whether before or after another one was loaded. */
    FAILS(RUNTIME, "/nowhere", rrpc_engine_open(MODEL, &options, &engine));
    rrpc_engine *good = open_engine(MODEL);
    FAILS(RUNTIME, "/nowhere", rrpc_engine_open(MODEL, &options, &engine));
    CHECK(engine == NULL);
    rrpc_engine_free(good);
}

static void engine_options_are_checked(void)
{
    rrpc_engine *engine = NULL;
    rrpc_engine_options defaults, options;
    NEED(rrpc_engine_options_init(&defaults, sizeof defaults));
    CHECK(defaults.struct_size == sizeof defaults);
    CHECK(defaults.budget_bytes == RRPC_BUDGET_DEFAULT);
    CHECK(defaults.threads == RRPC_THREADS_ONE_PER_CORE);
    CHECK(defaults.verify_weights == 1 && defaults.map_weights == 0);
#define REFUSED(field, value, words)                                                       \
    do {                                                                                   \
        options = defaults;                                                                \
        options.field = (value);                                                           \
        FAILS(INVALID_ARGUMENT, words, rrpc_engine_open(MODEL, &options, &engine));        \
        CHECK(engine == NULL);                                                             \
    } while (0)
    REFUSED(threads, 0, "options.threads: expected 1 to 1024");
    REFUSED(threads, 1025, "found 1025");
    REFUSED(cache_dtype, 5, "options.cache_dtype: expected one of 0, 1, 2, 3, 4, found 5");
    REFUSED(block_entries, 0, "found 0");
    REFUSED(block_entries, 24, "found 24");
    REFUSED(prefill_chunk, 0, "found 0");
    REFUSED(verify_weights, 2, "options.verify_weights: expected 0 or 1, found 2");
    REFUSED(map_weights, 2, "options.map_weights: expected 0 or 1, found 2");
#undef REFUSED
    /* 0 is a budget: one that holds nothing. */
    options = defaults;
    options.budget_bytes = 0;
    NEED(rrpc_engine_open(MODEL, &options, &engine));
    rrpc_sequence *sequence = prompted(engine);
    FAILS(BUDGET, "0 bytes available", rrpc_step(&sequence, 1));
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static void instruction_sets_that_are_none_are_refused(void)
{
    const char *before = getenv("RRPC_SIMD");
    char kept[32] = "";
    if (before != NULL) snprintf(kept, sizeof kept, "%s", before);
    rrpc_engine *engine = NULL;
    setenv("RRPC_SIMD", "mmx", 1);
    FAILS(INVALID_ARGUMENT, "mmx", rrpc_engine_open(MODEL, NULL, &engine));
    setenv("RRPC_SIMD", "portable", 1);
    OK(rrpc_engine_open(MODEL, NULL, &engine));
    rrpc_engine_info info = {.struct_size = sizeof info};
    OK(rrpc_engine_get_info(engine, &info));
    CHECK(strcmp(info.simd, "portable") == 0);
    rrpc_engine_free(engine);
    if (before != NULL) setenv("RRPC_SIMD", kept, 1);
    else unsetenv("RRPC_SIMD");
}

static void the_engine_is_described(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_engine_info info = {.struct_size = sizeof info};
    NEED(rrpc_engine_get_info(engine, &info));
    CHECK(info.struct_size == sizeof info);
    CHECK(info.vocab == VOCABULARY && info.context == CONTEXT && info.layers == LAYERS);
    CHECK(info.heads == 4 && info.kv_heads == 2 && info.head_dim == 16 && info.hidden == 64);
    CHECK(info.parameters == 123712);
    CHECK(info.cache_dtype == RRPC_DTYPE_F32 && info.block_entries == 16);
    CHECK(info.flavour == RRPC_FLAVOUR_CACHED);
    /* K, V and the position of each layer and KV head. */
    CHECK(info.token_bytes == 3 * 2 * (2 * 16 * 4 + 4));
    CHECK(info.budget_bytes == info.token_bytes * CONTEXT && info.budget_used_bytes == 0);
    CHECK(strcmp(info.simd, "portable") == 0 || strcmp(info.simd, "avx2") == 0 || strcmp(info.simd, "avx512") == 0);
    CHECK(info.has_tokenizer == 0 && info.has_chat_template == 0);
    size_t count = 77;
    OK(rrpc_engine_stop_tokens(engine, NULL, 0, &count));
    CHECK(count == 0);

    rrpc_sequence *sequence = prompted(engine);
    NEED(rrpc_step(&sequence, 1));
    NEED(rrpc_engine_get_info(engine, &info));
    CHECK(info.budget_used_bytes == info.token_bytes * 16);
    rrpc_sequence_free(sequence);
    NEED(rrpc_engine_get_info(engine, &info));
    CHECK(info.budget_used_bytes == 0);
    rrpc_engine_free(engine);
}

static void peaks_are_known_beforehand(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_sequence_options options;
    NEED(rrpc_sequence_options_init(engine, &options, sizeof options));
    options.policy = RRPC_POLICY_RPC;
    options.interval = 1024;
    options.window = 32;
    options.ratio = 4;
    uint64_t entries = 0, bytes = 0;
    /* max((n-1)T + R + P, nT + g - nP) with g = 3500, n = 3, T = 256. */
    OK(rrpc_peak_cache_bytes(engine, &options, 100, 3501, &entries, &bytes));
    CHECK(entries == 100 + 2 * 256 + 32 + 1024);
    CHECK(bytes == (100 + 1568 + 15) / 16 * 16 * 792);
    /* A fixed number of entries: nothing is compressed before 1024 + 32. In bytes: what 544 entries and the given text
     * beside them fill, in whole blocks. */
    options.budget_entries = 300;
    OK(rrpc_peak_cache_bytes(engine, &options, 100, 3501, &entries, &bytes));
    CHECK(entries == 100 + 300 + 32 + 1024);
    options.budget_bytes = bytes;
    FAILS(INVALID_ARGUMENT, "one of budget_entries and budget_bytes",
          rrpc_peak_cache_bytes(engine, &options, 100, 3501, &entries, NULL));
    options.budget_entries = 0;
    options.budget_bytes = 1600 / 16 * 16 * 792;
    OK(rrpc_peak_cache_bytes(engine, &options, 0, 3501, &entries, &bytes));
    CHECK(entries == 1600 && bytes == options.budget_bytes);
    options.budget_bytes = 1056 / 16 * 16 * 792; /* a window and an interval, and nothing that is kept */
    FAILS(INVALID_ARGUMENT, "bytes: expected at least 849024", rrpc_peak_cache_bytes(engine, &options, 0, 9, &entries, NULL));
    /* Where KV heads share what is kept, a block less one entry for each of them on top, of budgets in bytes too, but never
     * more than there are tokens. */
    options.policy = RRPC_POLICY_LOOKAHEAD_MERGE;
    options.budget_bytes = 1600 / 16 * 16 * 792;
    OK(rrpc_peak_cache_bytes(engine, &options, 0, 3501, &entries, &bytes));
    CHECK(entries == 1600 && bytes == options.budget_bytes);
    options.budget_bytes = 0;
    OK(rrpc_peak_cache_bytes(engine, &options, 100, 3501, &entries, &bytes));
    CHECK(entries == 100 + 2 * 256 + 32 + 1024 + 15);
    CHECK(bytes == (100 + 1568 + 15 + 15) / 16 * 16 * 792);
    OK(rrpc_peak_cache_bytes(engine, &options, 100, 501, &entries, &bytes));
    CHECK(entries == 600);
    options.policy = RRPC_POLICY_NONE;
    OK(rrpc_peak_cache_bytes(engine, &options, 100, 3501, &entries, NULL));
    CHECK(entries == 3600);
    OK(rrpc_peak_cache_bytes(engine, &options, 100, 0, &entries, NULL));
    CHECK(entries == 100);
    OK(rrpc_peak_cache_bytes(engine, NULL, 1, 1, NULL, NULL));
    FAILS(CONTEXT, "4096", rrpc_peak_cache_bytes(engine, NULL, 4000, 97, &entries, &bytes));
    FAILS(CONTEXT, "4096", rrpc_peak_cache_bytes(engine, NULL, UINT64_MAX, 2, &entries, &bytes));
    rrpc_engine_free(engine);
}

int main(void)
{
    RUN(versions_agree);
    RUN(no_error_is_accepted);
    RUN(models_that_cannot_be_opened);
    RUN(a_process_has_one_onnx_runtime);
    RUN(engine_options_are_checked);
    RUN(instruction_sets_that_are_none_are_refused);
    RUN(the_engine_is_described);
    RUN(peaks_are_known_beforehand);
    return check_end("basics");
}
