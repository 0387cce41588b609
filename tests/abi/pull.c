/* An answer pulled event by event. */
#include "check.h"

static rrpc_engine *engine;

static void events_come_one_by_one(void)
{
    rrpc_sequence *sequence = prompted(engine);
    rrpc_generate_options options = at_most(ANSWER_LENGTH);
    rrpc_event event = {.struct_size = sizeof event};
    FAILS(INVALID_ARGUMENT, "none", rrpc_generate_next(sequence, &event));
    OK(rrpc_generate_start(sequence, &options));
    FAILS(BUSY, "under way", rrpc_generate_start(sequence, &options));
    FAILS(BUSY, "under way", rrpc_generate(sequence, &options, NULL, NULL, NULL));
    FAILS(BUSY, "under way", rrpc_sequence_append_tokens(sequence, PROMPT, 1));
    FAILS(BUSY, "under way", rrpc_step(&sequence, 1));
    FAILS(NULL_POINTER, "event", rrpc_generate_next(sequence, NULL));
    size_t tokens = 0, prefills = 0;
    for (;;) {
        if (!OK(rrpc_generate_next(sequence, &event))) break;
        CHECK(event.text != NULL && event.text[event.text_len] == '\0');
        if (event.kind == RRPC_EVENT_PREFILL) ++prefills;
        if (event.kind == RRPC_EVENT_TOKEN) {
            CHECK(tokens < ANSWER_LENGTH && event.token == ANSWER[tokens]);
            ++tokens;
            size_t count = 0;
            OK(rrpc_sequence_tokens(sequence, NULL, 0, &count)); /* const calls work */
            CHECK(count == PROMPT_LENGTH + tokens);
        }
        if (event.kind == RRPC_EVENT_END) break;
    }
    CHECK(tokens == ANSWER_LENGTH && prefills == 1 && event.stop_reason == RRPC_STOP_LENGTH);
    FAILS(INVALID_ARGUMENT, "none", rrpc_generate_next(sequence, &event));
    OK(rrpc_sequence_append_tokens(sequence, PROMPT, 1));
    rrpc_sequence_free(sequence);
}

static void stopping_and_freeing(void)
{
    rrpc_sequence *sequence = prompted(engine);
    rrpc_event event = {.struct_size = sizeof event};
    OK(rrpc_generate_stop(sequence));
    OK(rrpc_generate_start(sequence, NULL));
    OK(rrpc_generate_next(sequence, &event));
    OK(rrpc_generate_stop(sequence));
    rrpc_metrics metrics = {.struct_size = sizeof metrics};
    OK(rrpc_engine_get_metrics(engine, &metrics));
    CHECK(metrics.budget_promised_bytes == 0);
    FAILS(INVALID_ARGUMENT, "none", rrpc_generate_next(sequence, &event));
    OK(rrpc_generate_start(sequence, NULL));
    OK(rrpc_generate_next(sequence, &event));
    rrpc_sequence_free(sequence);
    FAILS(INVALID_HANDLE, "freed", rrpc_generate_next(sequence, &event));
    OK(rrpc_engine_get_metrics(engine, &metrics));
    CHECK(metrics.budget_used_bytes == 0 && metrics.budget_promised_bytes == 0);
}

int main(void)
{
    engine = open_engine(MODEL);
    RUN(events_come_one_by_one);
    RUN(stopping_and_freeing);
    rrpc_engine_free(engine);
    return check_end("pull");
}
