/* Handles that are stale, foreign or garbage, and NULL in the place of every pointer. */
#include "check.h"

static int32_t ignore(const rrpc_event *event, void *user_data)
{
    (void)event;
    (void)user_data;
    return 0;
}

/* Every function that takes an engine. */
static void refused_engine(const char *code, const rrpc_engine *engine)
{
    rrpc_sequence_options options = {.struct_size = sizeof options};
    rrpc_engine_info info = {.struct_size = sizeof info};
    rrpc_sequence *sequence = NULL;
    uint32_t id = 0;
    char text[8];
    size_t count = 0;
#define REFUSED(call)                                                    \
    do {                                                                 \
        if (strcmp(code, "NULL") == 0) FAILS(NULL_POINTER, "NULL", call); \
        else FAILS(INVALID_HANDLE, code, call);                          \
    } while (0)
    REFUSED(rrpc_engine_get_info(engine, &info));
    REFUSED(rrpc_engine_stop_tokens(engine, &id, 1, &count));
    REFUSED(rrpc_sequence_options_init(engine, &options, sizeof options));
    REFUSED(rrpc_sequence_create(engine, NULL, &sequence));
    REFUSED(rrpc_peak_cache_bytes(engine, NULL, 1, 1, NULL, NULL));
    REFUSED(rrpc_tokenize(engine, "a", 1, RRPC_TOKENIZE_PLAIN, &id, 1, &count));
    REFUSED(rrpc_detokenize(engine, &id, 1, 0, text, sizeof text, &count));
    CHECK(sequence == NULL);
}

/* Every function that takes a sequence. */
static void refused_sequence(const char *code, rrpc_sequence *sequence)
{
    rrpc_message message = {{"user", 4}, {"hi", 2}};
    rrpc_compression compression = {.struct_size = sizeof compression};
    rrpc_sequence_stats stats = {.struct_size = sizeof stats};
    const float *logits = NULL;
    uint32_t id = 0;
    size_t count = 0;
    REFUSED(rrpc_sequence_append_text(sequence, "a", 1));
    REFUSED(rrpc_sequence_append_chat(sequence, &message, 1));
    REFUSED(rrpc_sequence_append_tokens(sequence, &id, 1));
    REFUSED(rrpc_sequence_reserve(sequence, 1));
    REFUSED(rrpc_generate(sequence, NULL, ignore, NULL, NULL));
    REFUSED(rrpc_step(&sequence, 1));
    REFUSED(rrpc_sequence_pending(sequence, &count));
    REFUSED(rrpc_sequence_logits(sequence, &logits, &count));
    REFUSED(rrpc_sequence_sample(sequence, &id));
    REFUSED(rrpc_sequence_accept(sequence, 1));
    REFUSED(rrpc_sequence_tokens(sequence, &id, 1, &count));
    REFUSED(rrpc_sequence_compression_count(sequence, &count));
    REFUSED(rrpc_sequence_get_compression(sequence, 0, &compression));
    REFUSED(rrpc_sequence_compression_kept(sequence, 0, 0, &id, 1, &count));
    REFUSED(rrpc_sequence_get_stats(sequence, &stats));
}

static void null_handles(void)
{
    refused_engine("NULL", NULL);
    refused_sequence("NULL", NULL);
}

static void garbage_handles(void)
{
    int on_stack = 0;
    void *garbage[] = {(void *)1, (void *)-1, &on_stack, (void *)0x5201000000000000, (void *)0x52010000000fffff,
                       (void *)0x5202ffffffffffff, (void *)0x7fffffffffff};
    for (size_t i = 0; i < sizeof garbage / sizeof garbage[0]; ++i) {
        refused_engine("expected an engine", garbage[i]);
        refused_sequence("expected a sequence", garbage[i]);
        rrpc_engine_free(garbage[i]);
        rrpc_sequence_free(garbage[i]);
    }
}

static void freed_and_foreign_handles(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_sequence *sequence = prompted(engine);
    refused_engine("found a sequence", (rrpc_engine *)sequence);
    refused_sequence("found an engine", (rrpc_sequence *)engine);
    rrpc_engine_free((rrpc_engine *)sequence);
    rrpc_sequence_free((rrpc_sequence *)engine);
    size_t count = 0;
    OK(rrpc_sequence_tokens(sequence, NULL, 0, &count)); /* neither was freed by the wrong function */
    CHECK(count == PROMPT_LENGTH);

    rrpc_sequence_free(sequence);
    refused_sequence("freed", sequence);
    rrpc_sequence_free(sequence);
    /* A new one in the same place has another handle. */
    rrpc_sequence *next = prompted(engine);
    CHECK(next != sequence);
    refused_sequence("freed", sequence);
    rrpc_sequence_free(sequence);
    OK(rrpc_sequence_tokens(next, NULL, 0, &count));
    CHECK(count == PROMPT_LENGTH);
    rrpc_sequence_free(next);

    rrpc_engine_free(engine);
    refused_engine("freed", engine);
    rrpc_engine_free(engine);
    rrpc_engine_free(NULL);
    rrpc_sequence_free(NULL);
}

static void a_sequence_outlives_its_engine(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_sequence *sequence = prompted(engine);
    rrpc_engine_free(engine);
    rrpc_generate_options options = at_most(ANSWER_LENGTH);
    OK(rrpc_generate(sequence, &options, NULL, NULL, NULL));
    uint32_t tokens[PROMPT_LENGTH + ANSWER_LENGTH];
    size_t count = 0;
    OK(rrpc_sequence_tokens(sequence, tokens, sizeof tokens / sizeof tokens[0], &count));
    CHECK(count == PROMPT_LENGTH + ANSWER_LENGTH);
    CHECK(memcmp(tokens + PROMPT_LENGTH, ANSWER, sizeof ANSWER) == 0);
    rrpc_sequence_free(sequence);
}

/* NULL in the place of each pointer, one at a time; handles are in null_handles. */
static void null_pointers(void)
{
    rrpc_engine *engine = open_engine(TEXT_MODEL);
    rrpc_sequence *sequence = prompted(engine);
    rrpc_engine *no_engine = NULL;
    rrpc_message no_role = {{NULL, 4}, {"hi", 2}}, no_content = {{"user", 4}, {NULL, 2}};
    uint32_t id = 0;
    char text[8];
    size_t count = 0;
    const float *logits = NULL;

    FAILS(NULL_POINTER, "options", rrpc_engine_options_init(NULL, sizeof(rrpc_engine_options)));
    FAILS(NULL_POINTER, "model", rrpc_engine_open(NULL, NULL, &no_engine));
    FAILS(NULL_POINTER, "engine", rrpc_engine_open(MODEL, NULL, NULL));
    FAILS(NULL_POINTER, "info", rrpc_engine_get_info(engine, NULL));
    FAILS(NULL_POINTER, "count", rrpc_engine_stop_tokens(engine, &id, 1, NULL));
    FAILS(NULL_POINTER, "out", rrpc_engine_stop_tokens(engine, NULL, 1, &count));
    FAILS(NULL_POINTER, "options", rrpc_sequence_options_init(engine, NULL, sizeof(rrpc_sequence_options)));
    FAILS(NULL_POINTER, "sequence", rrpc_sequence_create(engine, NULL, NULL));
    FAILS(NULL_POINTER, "text", rrpc_sequence_append_text(sequence, NULL, 1));
    FAILS(NULL_POINTER, "text", rrpc_sequence_append_text(sequence, NULL, RRPC_NUL_TERMINATED));
    OK(rrpc_sequence_append_text(sequence, NULL, 0));
    FAILS(NULL_POINTER, "messages", rrpc_sequence_append_chat(sequence, NULL, 1));
    FAILS(NULL_POINTER, "messages[0].role", rrpc_sequence_append_chat(sequence, &no_role, 1));
    FAILS(NULL_POINTER, "messages[0].content", rrpc_sequence_append_chat(sequence, &no_content, 1));
    FAILS(NULL_POINTER, "tokens", rrpc_sequence_append_tokens(sequence, NULL, 1));
    OK(rrpc_sequence_append_tokens(sequence, NULL, 0));
    FAILS(NULL_POINTER, "options", rrpc_generate_options_init(NULL, sizeof(rrpc_generate_options)));
    rrpc_generate_options generate = at_most(1);
    generate.stop_count = 1;
    FAILS(NULL_POINTER, "options.stop", rrpc_generate(sequence, &generate, NULL, NULL, NULL));
    rrpc_text no_text = {NULL, 1};
    generate.stop = &no_text;
    FAILS(NULL_POINTER, "options.stop[0]", rrpc_generate(sequence, &generate, NULL, NULL, NULL));
    FAILS(NULL_POINTER, "sequences", rrpc_step(NULL, 1));
    rrpc_sequence *with_null[] = {sequence, NULL};
    FAILS(NULL_POINTER, "sequences[1]", rrpc_step(with_null, 2));
    FAILS(INVALID_ARGUMENT, "found none", rrpc_step(NULL, 0));
    FAILS(NULL_POINTER, "pending", rrpc_sequence_pending(sequence, NULL));
    FAILS(NULL_POINTER, "logits", rrpc_sequence_logits(sequence, NULL, &count));
    FAILS(NULL_POINTER, "count", rrpc_sequence_logits(sequence, &logits, NULL));
    FAILS(NULL_POINTER, "count", rrpc_sequence_tokens(sequence, &id, 1, NULL));
    FAILS(NULL_POINTER, "out", rrpc_sequence_tokens(sequence, NULL, 1, &count));
    FAILS(NULL_POINTER, "count", rrpc_sequence_compression_count(sequence, NULL));
    FAILS(NULL_POINTER, "stats", rrpc_sequence_get_stats(sequence, NULL));
    FAILS(NULL_POINTER, "text", rrpc_tokenize(engine, NULL, 1, RRPC_TOKENIZE_PLAIN, &id, 1, &count));
    FAILS(NULL_POINTER, "count", rrpc_tokenize(engine, "a", 1, RRPC_TOKENIZE_PLAIN, &id, 1, NULL));
    FAILS(NULL_POINTER, "out", rrpc_tokenize(engine, "a", 1, RRPC_TOKENIZE_PLAIN, NULL, 1, &count));
    FAILS(NULL_POINTER, "tokens", rrpc_detokenize(engine, NULL, 1, 0, text, sizeof text, &count));
    FAILS(NULL_POINTER, "out", rrpc_detokenize(engine, &id, 1, 0, NULL, 1, &count));
    FAILS(NULL_POINTER, "count", rrpc_detokenize(engine, &id, 1, 0, text, sizeof text, NULL));

    /* The sequence is as well as before; what sampled tokens are is not always asked. */
    NEED(rrpc_step(&sequence, 1));
    OK(rrpc_sequence_sample(sequence, NULL));
    rrpc_sequence_free(sequence);

    /* A log of compressions to read. */
    rrpc_sequence_options options = plain_options(engine);
    options.policy = RRPC_POLICY_RPC;
    options.interval = 8;
    options.window = 4;
    options.ratio = 2;
    options.record_kept = 1;
    NEED(rrpc_sequence_create(engine, &options, &sequence));
    NEED(rrpc_sequence_append_tokens(sequence, PROMPT, PROMPT_LENGTH));
    generate = at_most(14);
    generate.ignore_eos = 1;
    NEED(rrpc_generate(sequence, &generate, NULL, NULL, NULL));
    FAILS(NULL_POINTER, "compression", rrpc_sequence_get_compression(sequence, 0, NULL));
    FAILS(NULL_POINTER, "count", rrpc_sequence_compression_kept(sequence, 0, 0, &id, 1, NULL));
    FAILS(NULL_POINTER, "out", rrpc_sequence_compression_kept(sequence, 0, 0, NULL, 1, &count));
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

int main(void)
{
    RUN(null_handles);
    RUN(garbage_handles);
    RUN(freed_and_foreign_handles);
    RUN(a_sequence_outlives_its_engine);
    RUN(null_pointers);
    return check_end("handles");
}
