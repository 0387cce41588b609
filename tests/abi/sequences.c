/* Sequences step by step, and what their options and tokens may be. */
#include "check.h"

static void rpc_options_are_checked(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_sequence_options defaults, options;
    NEED(rrpc_sequence_options_init(engine, &defaults, sizeof defaults));
    CHECK(defaults.policy == RRPC_POLICY_LOOKAHEAD_MERGE && defaults.interval == 4096 && defaults.window == 32);
    CHECK(defaults.softmax == RRPC_SOFTMAX_CANDIDATES && defaults.value_norms == 0 && defaults.history == -1
          && defaults.redundancy == 0 && defaults.similarity == RRPC_SIMILARITY_LOGITS);
    CHECK(defaults.select == NULL && defaults.user_data == NULL && defaults.release == NULL);
    CHECK(defaults.delimiters == NULL && defaults.num_delimiters == 0 && defaults.gists == NULL
          && defaults.num_gists == 0 && defaults.resume == RRPC_NO_TOKEN);
    CHECK(defaults.ratio == 4 && defaults.aggregation == RRPC_AGGREGATION_OWN && defaults.kernel == 7);
    CHECK(defaults.pooling == RRPC_POOLING_AVERAGE && defaults.record_kept == 0 && defaults.seed == 0);
    /* The model gives no sampling defaults. */
    CHECK(defaults.temperature > 0.59f && defaults.temperature < 0.61f);
    CHECK(defaults.top_p > 0.94f && defaults.top_p < 0.96f);
    CHECK(defaults.min_p == 0 && defaults.repetition_penalty == 1 && defaults.top_k == 0);
    rrpc_sequence *sequence = (rrpc_sequence *)&options;
#define REFUSED(field, value, words)                                                          \
    do {                                                                                      \
        options = defaults;                                                                   \
        options.policy = RRPC_POLICY_RPC;                                                     \
        options.field = (value);                                                              \
        FAILS(INVALID_ARGUMENT, words, rrpc_sequence_create(engine, &options, &sequence));    \
        CHECK(sequence == NULL);                                                              \
    } while (0)
    REFUSED(policy, 99, "options.policy: expected one of 0, 1, ");
    REFUSED(policy, 12, "found 12");
    REFUSED(interval, 0, "interval");
    REFUSED(interval, 4095, "multiple of the ratio 4, found 4095");
    REFUSED(interval, 32, "below the interval 32), found 32");
    REFUSED(window, 0, "window");
    REFUSED(window, 4096, "below the interval 4096), found 4096");
    REFUSED(window, 5000, "found 5000");
    REFUSED(ratio, 0, "ratio: expected at least 1, found 0");
    REFUSED(aggregation, 4, "options.aggregation: expected one of 0, 1, 2, 3, found 4");
    REFUSED(pooling, 7, "options.pooling: expected one of 0, 1, 2, found 7");
    REFUSED(queries, 3, "options.queries: expected one of 0, 1, 2, found 3");
    REFUSED(similarity, 2, "options.similarity: expected one of 0, 1, found 2");
    REFUSED(reserved4, 1, "options.reserved4");
    REFUSED(softmax, 2, "options.softmax: expected one of 0, 1, found 2");
    REFUSED(value_norms, 2, "options.value_norms: expected 0 or 1, found 2");
    REFUSED(history, 1.5f, "history: expected 0 to 1, found 1.5");
    REFUSED(redundancy, -1.0f, "redundancy: expected 0 to 1, found -1");
    REFUSED(kernel, 8, "kernel: expected an odd width");
    REFUSED(kernel, 0, "kernel");
    REFUSED(record_kept, 2, "options.record_kept: expected 0 or 1, found 2");
    REFUSED(reserved, 1, "options.reserved");
    REFUSED(reserved3, 1, "options.reserved3");
    REFUSED(policy, RRPC_POLICY_LIGHTTHINKER, "delimiters: expected token ids, found none");
    REFUSED(temperature, -1, "temperature");
    REFUSED(top_p, 1.5f, "top_p");
    REFUSED(min_p, -0.5f, "min_p");
    REFUSED(repetition_penalty, 0, "repetition_penalty");
#undef REFUSED
    /* Without compression its options mean nothing. */
    options = defaults;
    options.policy = RRPC_POLICY_NONE;
    options.interval = 0;
    OK(rrpc_sequence_create(engine, &options, &sequence));
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

/* A model whose attention is not the library's has another default, which it can run. */
static void the_default_policy_is_the_models(void)
{
    rrpc_engine *engine = open_portable();
    rrpc_sequence_options options;
    rrpc_sequence *sequence;
    NEED(rrpc_sequence_options_init(engine, &options, sizeof options));
    CHECK(options.policy == RRPC_POLICY_RPC && options.aggregation == RRPC_AGGREGATION_OWN);
    NEED(rrpc_sequence_create(engine, NULL, &sequence));
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static void tokens_are_checked(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_sequence *sequence = prompted(engine);
    uint32_t beyond[] = {1, VOCABULARY};
    FAILS(INVALID_ARGUMENT, "expected 0 to 95, found 96", rrpc_sequence_append_tokens(sequence, beyond, 2));
    FAILS(INVALID_ARGUMENT, "found 4294967295", rrpc_sequence_accept(sequence, UINT32_MAX));
    /* A count that cannot be: nothing is read. */
    FAILS(CONTEXT, "4096", rrpc_sequence_append_tokens(sequence, beyond, SIZE_MAX));
    FAILS(CONTEXT, "4096", rrpc_sequence_append_tokens(sequence, beyond, CONTEXT));
    char bytes[32] = {0};
    FAILS(INVALID_ARGUMENT, "multiple of 4",
          rrpc_sequence_append_tokens(sequence, (const uint32_t *)(const void *)(bytes + 1 + (uintptr_t)bytes % 2), 2));
    size_t count = 0;
    OK(rrpc_sequence_tokens(sequence, NULL, 0, &count));
    CHECK(count == PROMPT_LENGTH); /* nothing was appended */
    /* Text needs a tokenizer. */
    rrpc_message message = {{"user", 4}, {"hi", 2}};
    FAILS(TEXT, "tokenizer", rrpc_sequence_append_text(sequence, "a", 1));
    FAILS(TEXT, "tokenizer", rrpc_sequence_append_chat(sequence, &message, 1));
    FAILS(TEXT, "tokenizer", rrpc_tokenize(engine, "a", 1, RRPC_TOKENIZE_PLAIN, NULL, 0, &count));
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static void a_full_context_takes_no_more(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_sequence_options options = plain_options(engine);
    rrpc_sequence *sequence = NULL;
    NEED(rrpc_sequence_create(engine, &options, &sequence));
    static uint32_t all[CONTEXT];
    OK(rrpc_sequence_append_tokens(sequence, all, CONTEXT));
    FAILS(CONTEXT, "4097", rrpc_sequence_append_tokens(sequence, all, 1));
    FAILS(CONTEXT, "4097", rrpc_sequence_accept(sequence, 1));
    FAILS(CONTEXT, "4097", rrpc_sequence_reserve(sequence, 1));
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static void an_empty_sequence_cannot_go_on(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_sequence *sequence = NULL;
    NEED(rrpc_sequence_create(engine, NULL, &sequence));
    FAILS(INVALID_ARGUMENT, "", rrpc_generate(sequence, NULL, NULL, NULL, NULL));
    FAILS(INVALID_ARGUMENT, "", rrpc_step(&sequence, 1));
    FAILS(INVALID_ARGUMENT, "", rrpc_sequence_sample(sequence, NULL));
    FAILS(INVALID_ARGUMENT, "", rrpc_sequence_accept(sequence, 1));
    const float *logits = (const float *)&sequence;
    size_t count = 7;
    OK(rrpc_sequence_logits(sequence, &logits, &count));
    CHECK(logits == NULL && count == 0);
    OK(rrpc_sequence_tokens(sequence, NULL, 0, &count));
    CHECK(count == 0);
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static void prompts_beyond_the_budget_are_refused(void)
{
    rrpc_engine_options options;
    NEED(rrpc_engine_options_init(&options, sizeof options));
    options.cache_dtype = RRPC_DTYPE_F32;
    options.block_entries = 16;
    options.budget_bytes = 32 * 792; /* 32 tokens */
    options.prefill_chunk = 8;
    rrpc_engine *engine = NULL;
    NEED(rrpc_engine_open(MODEL, &options, &engine));
    rrpc_sequence_options plain = plain_options(engine);
    rrpc_sequence *sequence = NULL;
    NEED(rrpc_sequence_create(engine, &plain, &sequence));
    static const uint32_t prompt[33];
    NEED(rrpc_sequence_append_tokens(sequence, prompt, 33));
    FAILS(BUDGET, "bytes available", rrpc_sequence_reserve(sequence, 1));
    rrpc_generate_options one = at_most(1);
    FAILS(BUDGET, "bytes available", rrpc_generate(sequence, &one, NULL, NULL, NULL));
    for (int step = 0; step < 4; ++step) OK(rrpc_step(&sequence, 1));
    FAILS(BUDGET, "0 bytes available", rrpc_step(&sequence, 1));
    rrpc_sequence_free(sequence);

    /* The engine is well: 12 + 21 tokens, of which the last is not written, fit; 22 do not. */
    sequence = prompted(engine);
    rrpc_generate_options options_22 = at_most(22), options_21 = at_most(21);
    FAILS(BUDGET, "bytes available", rrpc_generate(sequence, &options_22, NULL, NULL, NULL));
    OK(rrpc_generate(sequence, &options_21, NULL, NULL, NULL));
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static void steps_give_logits_and_tokens(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_sequence *sequence = prompted(engine);
    size_t count = 0;
    OK(rrpc_sequence_pending(sequence, &count));
    CHECK(count == PROMPT_LENGTH);
    FAILS(INVALID_ARGUMENT, "12 tokens", rrpc_sequence_sample(sequence, NULL));
    for (int i = 0; i < ANSWER_LENGTH; ++i) {
        NEED(rrpc_step(&sequence, 1));
        OK(rrpc_sequence_pending(sequence, &count));
        CHECK(count == 0);
        FAILS(INVALID_ARGUMENT, "with none", rrpc_step(&sequence, 1));
        const float *logits = NULL;
        NEED(rrpc_sequence_logits(sequence, &logits, &count));
        CHECK(count == VOCABULARY);
        uint32_t best = 0;
        for (uint32_t id = 1; id < VOCABULARY; ++id)
            if (logits[id] > logits[best]) best = id;
        CHECK(best == ANSWER[i]);
        /* Reading the sequence leaves the logits where they are. */
        rrpc_sequence_stats stats = {.struct_size = sizeof stats};
        OK(rrpc_sequence_get_stats(sequence, &stats));
        CHECK(stats.prefill_tokens == PROMPT_LENGTH && stats.decode_tokens == (uint64_t)i);
        CHECK(stats.cache_bytes == (uint64_t)(PROMPT_LENGTH + i + 15) / 16 * 16 * 792);
        uint32_t token = VOCABULARY;
        if (i % 2) {
            token = best;
            OK(rrpc_sequence_accept(sequence, token));
        } else {
            OK(rrpc_sequence_sample(sequence, &token));
        }
        CHECK(token == best);
        OK(rrpc_sequence_logits(sequence, &logits, &count));
        CHECK(logits == NULL && count == 0);
        OK(rrpc_sequence_pending(sequence, &count));
        CHECK(count == 1);
    }
    uint32_t tokens[PROMPT_LENGTH + ANSWER_LENGTH] = {0};
    FAILS(BUFFER_TOO_SMALL, "room for 28, found room for 27", rrpc_sequence_tokens(sequence, tokens, 27, &count));
    CHECK(count == PROMPT_LENGTH + ANSWER_LENGTH && tokens[0] == 0);
    OK(rrpc_sequence_tokens(sequence, tokens, 28, &count));
    CHECK(memcmp(tokens, PROMPT, sizeof PROMPT) == 0);
    CHECK(memcmp(tokens + PROMPT_LENGTH, ANSWER, sizeof ANSWER) == 0);
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static void one_step_advances_many(void)
{
    enum { MANY = 5 };
    rrpc_engine *engine = open_engine(MODEL), *other = open_engine(MODEL);
    rrpc_sequence *sequences[MANY];
    for (int i = 0; i < MANY; ++i) sequences[i] = prompted(engine);
    for (int i = 0; i < ANSWER_LENGTH; ++i) {
        NEED(rrpc_step(sequences, MANY));
        for (int k = 0; k < MANY; ++k) {
            uint32_t token = 0;
            OK(rrpc_sequence_sample(sequences[k], &token));
            CHECK(token == ANSWER[i]);
        }
    }
    rrpc_sequence *twice[] = {sequences[0], sequences[1], sequences[0]};
    FAILS(INVALID_ARGUMENT, "found one twice", rrpc_step(twice, 3));
    rrpc_sequence *foreign = prompted(other);
    rrpc_sequence *mixed[] = {sequences[0], foreign};
    FAILS(INVALID_ARGUMENT, "another", rrpc_step(mixed, 2));
    rrpc_sequence_free(foreign);
    FAILS(INVALID_HANDLE, "sequences[1]", rrpc_step(mixed, 2));
    size_t count = 0;
    OK(rrpc_sequence_pending(sequences[0], &count));
    CHECK(count == 1); /* nothing of it has advanced */
    for (int i = 0; i < MANY; ++i) rrpc_sequence_free(sequences[i]);
    rrpc_engine_free(other);
    rrpc_engine_free(engine);
}

static void compressions_are_logged(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_sequence_options options = plain_options(engine);
    options.policy = RRPC_POLICY_RPC;
    options.interval = 8;
    options.window = 4;
    options.ratio = 2;
    options.aggregation = RRPC_AGGREGATION_KV_HEAD;
    options.record_kept = 1;
    rrpc_sequence *sequence = NULL;
    NEED(rrpc_sequence_create(engine, &options, &sequence));
    NEED(rrpc_sequence_append_tokens(sequence, PROMPT, PROMPT_LENGTH));
    rrpc_generate_options generate = at_most(21); /* 20 are written: compressions at 12 and 20 */
    NEED(rrpc_generate(sequence, &generate, NULL, NULL, NULL));
    size_t count = 0;
    OK(rrpc_sequence_compression_count(sequence, &count));
    CHECK(count == 2 * LAYERS);
    for (size_t i = 0; i < count; ++i) {
        rrpc_compression one = {.struct_size = sizeof one};
        NEED(rrpc_sequence_get_compression(sequence, i, &one));
        uint64_t n = i / LAYERS; /* compressions before this one */
        CHECK(one.layer == i % LAYERS && one.at_token == 8 * n + 12);
        CHECK(one.len_before == PROMPT_LENGTH + 4 * n + 12 && one.len_after == PROMPT_LENGTH + 4 * (n + 1) + 4);
        CHECK(one.kept_sets == 2);
        for (size_t set = 0; set < one.kept_sets; ++set) {
            uint32_t kept[8];
            size_t kept_count = 0;
            OK(rrpc_sequence_compression_kept(sequence, i, set, kept, 8, &kept_count));
            CHECK(kept_count == 4 * (n + 1));
            for (size_t k = 0; k < kept_count; ++k) {
                CHECK(kept[k] >= PROMPT_LENGTH && kept[k] < PROMPT_LENGTH + 8 * (n + 1));
                CHECK(k == 0 || kept[k] > kept[k - 1]);
            }
            FAILS(BUFFER_TOO_SMALL, "room", rrpc_sequence_compression_kept(sequence, i, set, kept, 3, &kept_count));
        }
        FAILS(INVALID_ARGUMENT, "set: expected less than 2", rrpc_sequence_compression_kept(sequence, i, 2, NULL, 0, &count));
    }
    rrpc_compression one = {.struct_size = sizeof one};
    FAILS(INVALID_ARGUMENT, "index: expected less than 6, found 6", rrpc_sequence_get_compression(sequence, 6, &one));
    FAILS(INVALID_ARGUMENT, "index", rrpc_sequence_compression_kept(sequence, SIZE_MAX, 0, NULL, 0, &count));
    rrpc_sequence_stats stats = {.struct_size = sizeof stats};
    OK(rrpc_sequence_get_stats(sequence, &stats));
    CHECK(stats.compressions == 2 && stats.prefill_tokens == PROMPT_LENGTH && stats.decode_tokens == 20);
    CHECK(stats.prefill_seconds > 0 && stats.decode_seconds > 0 && stats.compaction_seconds > 0);
    uint64_t peak = 0;
    OK(rrpc_peak_cache_bytes(engine, &options, PROMPT_LENGTH, 21, NULL, &peak));
    CHECK(stats.cache_peak_bytes == peak);
    CHECK(stats.cache_uncompressed_bytes == 32 * 792 && stats.cache_bytes == 32 * 792);
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

int main(void)
{
    RUN(rpc_options_are_checked);
    RUN(the_default_policy_is_the_models);
    RUN(tokens_are_checked);
    RUN(a_full_context_takes_no_more);
    RUN(an_empty_sequence_cannot_go_on);
    RUN(prompts_beyond_the_budget_are_refused);
    RUN(steps_give_logits_and_tokens);
    RUN(one_step_advances_many);
    RUN(compressions_are_logged);
    return check_end("sequences");
}
