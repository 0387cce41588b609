/* rrpc_generate: events, cancellation, re-entry, stop reasons. */
#include "check.h"

typedef struct {
    rrpc_engine *engine;
    rrpc_sequence *sequence;
    int prefills, tokens, ends;
    int cancel_at; /* token, from 1; 0: never */
    int cancel_prefill;
    uint64_t prefill_done;
    uint32_t ids[64];
    uint32_t stop_reason;
} watch;

static int32_t observe(const rrpc_event *event, void *user_data)
{
    watch *seen = user_data;
    CHECK(event->struct_size == sizeof *event);
    CHECK(event->text != NULL && event->text[event->text_len] == '\0');
    CHECK(seen->ends == 0); /* nothing comes after the end */
    switch (event->kind) {
    case RRPC_EVENT_PREFILL:
        CHECK(seen->tokens == 0 && event->prefill_total == PROMPT_LENGTH);
        CHECK(event->prefill_done > seen->prefill_done && event->prefill_done <= event->prefill_total);
        seen->prefill_done = event->prefill_done;
        ++seen->prefills;
        return seen->cancel_prefill;
    case RRPC_EVENT_TOKEN:
        if (seen->tokens < 64) seen->ids[seen->tokens] = event->token;
        ++seen->tokens;
        return seen->tokens == seen->cancel_at ? -1 : 0;
    case RRPC_EVENT_END:
        ++seen->ends;
        seen->stop_reason = event->stop_reason;
        return 1; /* means nothing any more */
    default:
        CHECK(!"a kind of event that is none");
        return 1;
    }
}

static size_t length(const rrpc_sequence *sequence)
{
    size_t count = 0;
    OK(rrpc_sequence_tokens(sequence, NULL, 0, &count));
    return count;
}

static void events_come_in_order(void)
{
    rrpc_engine_options options;
    NEED(rrpc_engine_options_init(&options, sizeof options));
    options.cache_dtype = RRPC_DTYPE_F32;
    options.prefill_chunk = 5;
    rrpc_engine *engine = NULL;
    NEED(rrpc_engine_open(MODEL, &options, &engine));
    rrpc_sequence *sequence = prompted(engine);
    watch seen = {0};
    rrpc_generate_options generate = at_most(ANSWER_LENGTH);
    rrpc_generate_result result = {.struct_size = sizeof result};
    OK(rrpc_generate(sequence, &generate, observe, &seen, &result));
    CHECK(seen.prefills == 3 && seen.tokens == ANSWER_LENGTH && seen.ends == 1);
    CHECK(memcmp(seen.ids, ANSWER, sizeof ANSWER) == 0);
    CHECK(result.stop_reason == RRPC_STOP_LENGTH && seen.stop_reason == RRPC_STOP_LENGTH);
    CHECK(result.tokens == ANSWER_LENGTH && result.struct_size == sizeof result);
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static void an_answer_goes_on_where_it_ended(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_sequence *sequence = prompted(engine);
    uint32_t parts[] = {0, 1, 5, 10};
    rrpc_generate_result result = {.struct_size = sizeof result};
    for (int i = 0; i < 4; ++i) {
        rrpc_generate_options generate = at_most(parts[i]);
        OK(rrpc_generate(sequence, &generate, NULL, NULL, &result));
        CHECK(result.tokens == parts[i] && result.stop_reason == RRPC_STOP_LENGTH);
    }
    uint32_t tokens[PROMPT_LENGTH + ANSWER_LENGTH];
    size_t count = 0;
    OK(rrpc_sequence_tokens(sequence, tokens, PROMPT_LENGTH + ANSWER_LENGTH, &count));
    CHECK(memcmp(tokens + PROMPT_LENGTH, ANSWER, sizeof ANSWER) == 0);
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static void cancellation_stops_before_the_next_token(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    for (int at = 1; at <= 3; ++at) {
        rrpc_sequence *sequence = prompted(engine);
        watch seen = {.cancel_at = at};
        rrpc_generate_result result = {.struct_size = sizeof result};
        OK(rrpc_generate(sequence, NULL, observe, &seen, &result));
        CHECK(seen.tokens == at && seen.ends == 1 && result.tokens == (uint64_t)at);
        CHECK(result.stop_reason == RRPC_STOP_CANCELLED && seen.stop_reason == RRPC_STOP_CANCELLED);
        CHECK(length(sequence) == (size_t)(PROMPT_LENGTH + at));
        /* It goes on from there. */
        rrpc_generate_options generate = at_most(1);
        OK(rrpc_generate(sequence, &generate, NULL, NULL, &result));
        uint32_t tokens[PROMPT_LENGTH + 4];
        size_t count = 0;
        OK(rrpc_sequence_tokens(sequence, tokens, PROMPT_LENGTH + 4, &count));
        CHECK(tokens[PROMPT_LENGTH + at] == ANSWER[at]);
        rrpc_sequence_free(sequence);
    }
    rrpc_sequence *sequence = prompted(engine);
    watch seen = {.cancel_prefill = 1};
    OK(rrpc_generate(sequence, NULL, observe, &seen, NULL));
    CHECK(seen.prefills == 1 && seen.tokens == 0 && seen.ends == 1);
    CHECK(length(sequence) == PROMPT_LENGTH);
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static void a_full_context_ends_the_answer(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_sequence *sequence = prompted(engine);
    static const uint32_t filler[CONTEXT - PROMPT_LENGTH - 3];
    NEED(rrpc_sequence_append_tokens(sequence, filler, CONTEXT - PROMPT_LENGTH - 3));
    rrpc_generate_result result = {.struct_size = sizeof result};
    OK(rrpc_generate(sequence, NULL, NULL, NULL, &result));
    CHECK(result.stop_reason == RRPC_STOP_CONTEXT && result.tokens == 3);
    CHECK(length(sequence) == CONTEXT);
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static void generate_options_are_checked(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_sequence *sequence = prompted(engine);
    rrpc_generate_options defaults, options;
    NEED(rrpc_generate_options_init(&defaults, sizeof defaults));
    CHECK(defaults.max_tokens == RRPC_TO_END_OF_CONTEXT && defaults.stop == NULL);
    CHECK(defaults.stop_count == 0 && defaults.ignore_eos == 0);
    options = defaults;
    options.ignore_eos = 2;
    FAILS(INVALID_ARGUMENT, "options.ignore_eos", rrpc_generate(sequence, &options, NULL, NULL, NULL));
    options = defaults;
    options.reserved = 2;
    FAILS(INVALID_ARGUMENT, "options.reserved", rrpc_generate(sequence, &options, NULL, NULL, NULL));
    rrpc_text stop = {"a", 1};
    options = defaults;
    options.stop = &stop;
    options.stop_count = 1025;
    FAILS(INVALID_ARGUMENT, "at most 1024 items", rrpc_generate(sequence, &options, NULL, NULL, NULL));
    options.stop_count = 1;
    FAILS(TEXT, "tokenizer", rrpc_generate(sequence, &options, NULL, NULL, NULL));
    CHECK(length(sequence) == PROMPT_LENGTH);
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

/* Everything that a callback may try on the sequence at work. */
static int32_t reenter(const rrpc_event *event, void *user_data)
{
    watch *seen = user_data;
    rrpc_sequence *sequence = seen->sequence;
    size_t count = 0;
    uint32_t id = 1;
    const float *logits = NULL;
    rrpc_sequence_stats stats = {.struct_size = sizeof stats};
    (void)event;
    FAILS(BUSY, "in use", rrpc_sequence_pending(sequence, &count));
    FAILS(BUSY, "in use", rrpc_sequence_logits(sequence, &logits, &count));
    FAILS(BUSY, "in use", rrpc_sequence_tokens(sequence, NULL, 0, &count));
    FAILS(BUSY, "in use", rrpc_sequence_get_stats(sequence, &stats));
    FAILS(BUSY, "in use", rrpc_sequence_append_tokens(sequence, &id, 1));
    FAILS(BUSY, "in use", rrpc_sequence_sample(sequence, &id));
    FAILS(BUSY, "in use", rrpc_sequence_accept(sequence, 1));
    FAILS(BUSY, "in use", rrpc_sequence_reserve(sequence, 1));
    FAILS(BUSY, "sequences[0]", rrpc_step(&sequence, 1));
    FAILS(BUSY, "in use", rrpc_generate(sequence, NULL, reenter, user_data, NULL));
    /* Others are free: even a whole answer of another sequence of the same engine. */
    if (seen->tokens++ == 2) {
        rrpc_sequence *other = prompted(seen->engine);
        rrpc_generate_options generate = at_most(4);
        OK(rrpc_generate(other, &generate, NULL, NULL, NULL));
        CHECK(length(other) == PROMPT_LENGTH + 4);
        rrpc_sequence_free(other);
    }
    return 0;
}

static void reentry_is_busy(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_sequence *sequence = prompted(engine);
    watch seen = {.engine = engine, .sequence = sequence};
    rrpc_generate_options generate = at_most(ANSWER_LENGTH);
    OK(rrpc_generate(sequence, &generate, reenter, &seen, NULL));
    uint32_t tokens[PROMPT_LENGTH + ANSWER_LENGTH];
    size_t count = 0;
    OK(rrpc_sequence_tokens(sequence, tokens, PROMPT_LENGTH + ANSWER_LENGTH, &count));
    CHECK(memcmp(tokens + PROMPT_LENGTH, ANSWER, sizeof ANSWER) == 0);
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static int32_t free_everything(const rrpc_event *event, void *user_data)
{
    watch *seen = user_data;
    size_t count = 0;
    if (seen->tokens == 0) {
        rrpc_sequence_free(seen->sequence);
        rrpc_engine_free(seen->engine);
    }
    FAILS(INVALID_HANDLE, "freed", rrpc_sequence_pending(seen->sequence, &count));
    if (event->kind == RRPC_EVENT_TOKEN) ++seen->tokens;
    if (event->kind == RRPC_EVENT_END) ++seen->ends;
    return 0;
}

static void a_callback_may_free_what_it_stands_on(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    watch seen = {.engine = engine, .sequence = prompted(engine)};
    rrpc_generate_options generate = at_most(5);
    OK(rrpc_generate(seen.sequence, &generate, free_everything, &seen, NULL));
    CHECK(seen.tokens == 5 && seen.ends == 1);
}

int main(void)
{
    RUN(events_come_in_order);
    RUN(an_answer_goes_on_where_it_ended);
    RUN(cancellation_stops_before_the_next_token);
    RUN(a_full_context_ends_the_answer);
    RUN(generate_options_are_checked);
    RUN(reentry_is_busy);
    RUN(a_callback_may_free_what_it_stands_on);
    return check_end("generate");
}
