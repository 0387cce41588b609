/* Structs of callers whose header is older or newer than the library. */
#include <stddef.h>

#include "check.h"

/* A newer caller's: what the library knows, then more. */
typedef struct {
    rrpc_engine_options known;
    uint64_t more[2];
} newer_engine_options;
typedef struct {
    rrpc_sequence_options known;
    uint64_t more[2];
} newer_sequence_options;
typedef struct {
    rrpc_generate_options known;
    uint64_t more[2];
} newer_generate_options;
typedef struct {
    rrpc_engine_info known;
    uint64_t more[2];
} newer_engine_info;

static void init_fills_what_there_is(void)
{
    newer_engine_options newer;
    memset(&newer, 0xff, sizeof newer);
    OK(rrpc_engine_options_init(&newer.known, sizeof newer));
    CHECK(newer.known.struct_size == sizeof newer && newer.known.block_entries == 64);
    CHECK(newer.more[0] == 0 && newer.more[1] == 0);

    rrpc_engine_options older;
    memset(&older, 0xff, sizeof older);
    OK(rrpc_engine_options_init(&older, offsetof(rrpc_engine_options, block_entries)));
    CHECK(older.struct_size == offsetof(rrpc_engine_options, block_entries));
    CHECK(older.cache_dtype == RRPC_DTYPE_DEFAULT && older.block_entries == UINT32_MAX);

    size_t sizes[] = {0, 7, 4097, SIZE_MAX};
    rrpc_sequence_options sequence;
    rrpc_generate_options generate;
    rrpc_engine *engine = open_engine(MODEL);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; ++i) {
        FAILS(INVALID_ARGUMENT, "struct_size", rrpc_engine_options_init(&older, sizes[i]));
        FAILS(INVALID_ARGUMENT, "struct_size", rrpc_sequence_options_init(engine, &sequence, sizes[i]));
        FAILS(INVALID_ARGUMENT, "struct_size", rrpc_generate_options_init(&generate, sizes[i]));
    }
    rrpc_engine_free(engine);
}

static void older_options_have_defaults_for_the_rest(void)
{
    /* Up to cache_dtype; the garbage behind is another variable's. */
    rrpc_engine_options options;
    NEED(rrpc_engine_options_init(&options, sizeof options));
    options.struct_size = offsetof(rrpc_engine_options, block_entries);
    options.cache_dtype = RRPC_DTYPE_F32;
    options.block_entries = 7;
    options.map_weights = 7;
    rrpc_engine *engine = NULL;
    NEED(rrpc_engine_open(MODEL, &options, &engine));
    rrpc_engine_info info = {.struct_size = sizeof info};
    NEED(rrpc_engine_get_info(engine, &info));
    CHECK(info.cache_dtype == RRPC_DTYPE_F32 && info.block_entries == 64);

    rrpc_sequence_options sequence_options = plain_options(engine);
    sequence_options.struct_size = offsetof(rrpc_sequence_options, record_kept);
    sequence_options.record_kept = 7;
    rrpc_sequence *sequence = NULL;
    NEED(rrpc_sequence_create(engine, &sequence_options, &sequence));
    NEED(rrpc_sequence_append_tokens(sequence, PROMPT, PROMPT_LENGTH));

    rrpc_generate_options generate = at_most(3);
    generate.struct_size = offsetof(rrpc_generate_options, stop);
    generate.stop_count = 1000;
    OK(rrpc_generate(sequence, &generate, NULL, NULL, NULL));
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static void newer_options_are_read_while_they_ask_for_nothing_new(void)
{
    newer_engine_options options;
    NEED(rrpc_engine_options_init(&options.known, sizeof options));
    rrpc_engine *engine = NULL;
    options.more[1] = (uint64_t)1 << 63; /* the very last byte */
    FAILS(INVALID_ARGUMENT, "does not know", rrpc_engine_open(MODEL, &options.known, &engine));
    options.more[1] = 0;
    NEED(rrpc_engine_open(MODEL, &options.known, &engine));

    newer_sequence_options sequence_options;
    NEED(rrpc_sequence_options_init(engine, &sequence_options.known, sizeof sequence_options));
    rrpc_sequence *sequence = NULL;
    sequence_options.more[0] = 1;
    FAILS(INVALID_ARGUMENT, "does not know", rrpc_sequence_create(engine, &sequence_options.known, &sequence));
    FAILS(INVALID_ARGUMENT, "does not know",
          rrpc_peak_cache_bytes(engine, &sequence_options.known, 1, 1, NULL, NULL));
    CHECK(sequence == NULL);
    sequence_options.more[0] = 0;
    NEED(rrpc_sequence_create(engine, &sequence_options.known, &sequence));
    NEED(rrpc_sequence_append_tokens(sequence, PROMPT, PROMPT_LENGTH));

    newer_generate_options generate;
    NEED(rrpc_generate_options_init(&generate.known, sizeof generate));
    generate.known.max_tokens = 2;
    generate.more[0] = 1;
    FAILS(INVALID_ARGUMENT, "does not know", rrpc_generate(sequence, &generate.known, NULL, NULL, NULL));
    generate.more[0] = 0;
    OK(rrpc_generate(sequence, &generate.known, NULL, NULL, NULL));
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static void outputs_get_what_fits(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    newer_engine_info newer;
    memset(&newer, 0xff, sizeof newer);
    newer.known.struct_size = sizeof newer;
    OK(rrpc_engine_get_info(engine, &newer.known));
    CHECK(newer.known.struct_size == sizeof newer && newer.known.vocab == VOCABULARY);
    CHECK(newer.more[0] == 0 && newer.more[1] == 0);

    rrpc_engine_info older;
    memset(&older, 0xff, sizeof older);
    older.struct_size = offsetof(rrpc_engine_info, vocab);
    OK(rrpc_engine_get_info(engine, &older));
    CHECK(older.context == CONTEXT && older.vocab == UINT32_MAX);

    /* Not set at all. */
    rrpc_engine_info info = {0};
    FAILS(INVALID_ARGUMENT, "struct_size", rrpc_engine_get_info(engine, &info));
    rrpc_sequence *sequence = prompted(engine);
    rrpc_sequence_stats stats = {0};
    FAILS(INVALID_ARGUMENT, "struct_size", rrpc_sequence_get_stats(sequence, &stats));
    rrpc_generate_options generate = at_most(2);
    rrpc_generate_result result = {0};
    FAILS(INVALID_ARGUMENT, "struct_size", rrpc_generate(sequence, &generate, NULL, NULL, &result));
    size_t count = 0;
    OK(rrpc_sequence_tokens(sequence, NULL, 0, &count));
    CHECK(count == PROMPT_LENGTH); /* refused before anything was generated */
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static void options_that_were_never_initialised_are_refused(void)
{
    rrpc_engine_options options = {0};
    rrpc_engine *engine = NULL;
    FAILS(INVALID_ARGUMENT, "was the struct initialised?", rrpc_engine_open(MODEL, &options, &engine));
    memset(&options, 0xff, sizeof options);
    FAILS(INVALID_ARGUMENT, "was the struct initialised?", rrpc_engine_open(MODEL, &options, &engine));
}

int main(void)
{
    RUN(init_fills_what_there_is);
    RUN(older_options_have_defaults_for_the_rest);
    RUN(newer_options_are_read_while_they_ask_for_nothing_new);
    RUN(outputs_get_what_fits);
    RUN(options_that_were_never_initialised_are_refused);
    return check_end("structs");
}
