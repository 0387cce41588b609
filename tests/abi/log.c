/* Messages: to one callback, by level, on any thread, and silence otherwise. */
#include <pthread.h>
#include <stdatomic.h>

#include "check.h"

typedef struct {
    atomic_int calls, bad, by_level[5], busy;
    char last[512];
    int reenter;
} heard;

static void hear(uint32_t level, const char *message, size_t len, void *user_data)
{
    heard *to = user_data;
    ++to->calls;
    if (level < RRPC_LOG_ERROR || level > RRPC_LOG_DEBUG || strlen(message) != len || strchr(message, '\n')) ++to->bad;
    else ++to->by_level[level];
    if (to->reenter) {
        snprintf(to->last, sizeof to->last, "%s", message);
        rrpc_error *error = rrpc_set_log(RRPC_LOG_OFF, NULL, NULL);
        if (rrpc_error_code(error) == RRPC_ERROR_BUSY) ++to->busy;
        rrpc_error_free(error);
    }
}

/* More than the budget holds, and an answer with compressions. */
static void refuse_and_compress(rrpc_engine *engine)
{
    rrpc_sequence_options options = plain_options(engine);
    options.policy = RRPC_POLICY_RPC;
    options.interval = 16;
    options.window = 4;
    rrpc_sequence *sequence = NULL;
    NEED(rrpc_sequence_create(engine, &options, &sequence));
    OK(rrpc_sequence_append_tokens(sequence, PROMPT, PROMPT_LENGTH));
    FAILS(BUDGET, "budget", rrpc_sequence_reserve(sequence, 3000));
    rrpc_generate_options answer = at_most(40);
    answer.ignore_eos = 1;
    OK(rrpc_generate(sequence, &answer, NULL, NULL, NULL));
    rrpc_sequence_free(sequence);
}

static rrpc_engine *small_engine(void)
{
    rrpc_engine_options options;
    NEED(rrpc_engine_options_init(&options, sizeof options));
    options.threads = 1;
    options.block_entries = 16;
    options.budget_bytes = 200000;
    rrpc_engine *engine = NULL;
    NEED(rrpc_engine_open(MODEL, &options, &engine));
    return engine;
}

static void messages_come_by_level(void)
{
    static heard all, errors;
    all.reenter = 1;
    OK(rrpc_set_log(RRPC_LOG_DEBUG, hear, &all));
    rrpc_engine *engine = small_engine();
    CHECK(strstr(all.last, "opened ") != NULL && strstr(all.last, "1 threads") != NULL);
    refuse_and_compress(engine);
    CHECK(all.by_level[RRPC_LOG_INFO] == 1 && all.by_level[RRPC_LOG_WARNING] == 1);
    CHECK(all.by_level[RRPC_LOG_DEBUG] == 2 && all.by_level[RRPC_LOG_ERROR] == 0);
    CHECK(strstr(all.last, "compression 2 at 36 generated tokens") != NULL);
    CHECK(all.bad == 0 && all.busy == all.calls);
    /* Exchanged, then silenced in both ways. */
    OK(rrpc_set_log(RRPC_LOG_ERROR, hear, &errors));
    int calls = all.calls;
    refuse_and_compress(engine);
    CHECK(all.calls == calls && errors.calls == 0);
    OK(rrpc_set_log(RRPC_LOG_OFF, hear, &errors));
    OK(rrpc_set_log(RRPC_LOG_DEBUG, NULL, &errors));
    refuse_and_compress(engine);
    CHECK(errors.calls == 0);
    FAILS(INVALID_ARGUMENT, "level: expected one of 0, 1, 2, 3, 4, found 5", rrpc_set_log(5, hear, &errors));
    rrpc_engine_free(engine);
}

static rrpc_engine *shared;
static atomic_int stop;

static void *make_noise(void *unused)
{
    (void)unused;
    while (!stop) refuse_and_compress(shared);
    return NULL;
}

static void no_message_comes_after_an_exchange(void)
{
    enum { ROUNDS = 300 };
    static heard listeners[ROUNDS];
    pthread_t threads[3];
    shared = small_engine();
    for (int i = 0; i < 3; ++i) CHECK(pthread_create(&threads[i], NULL, make_noise, NULL) == 0);
    int total = 0;
    for (int i = 0; i < ROUNDS; ++i) {
        OK(rrpc_set_log(RRPC_LOG_DEBUG, hear, &listeners[i]));
        for (int spin = 0; spin < 100000 && listeners[i].calls == 0; ++spin) sched_yield();
        if (i == 0) continue;
        int calls = listeners[i - 1].calls;
        sched_yield();
        CHECK(listeners[i - 1].calls == calls && listeners[i - 1].bad == 0);
        total += calls;
    }
    stop = 1;
    for (int i = 0; i < 3; ++i) pthread_join(threads[i], NULL);
    OK(rrpc_set_log(RRPC_LOG_OFF, NULL, NULL));
    CHECK(total > 0);
    rrpc_engine_free(shared);
}

int main(void)
{
    RUN(messages_come_by_level);
    RUN(no_message_comes_after_an_exchange);
    return check_end("log");
}
