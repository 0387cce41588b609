/* Schedulers and their answers. */
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

static rrpc_engine *engine;

/* Blocks of 16 entries of 16 fp32 keys and values and a position, for 3 layers and 2 KV heads. */
static rrpc_engine *small_engine(uint64_t blocks)
{
    rrpc_engine_options options;
    NEED(rrpc_engine_options_init(&options, sizeof options));
    options.threads = 1;
    options.cache_dtype = RRPC_DTYPE_F32;
    options.block_entries = 16;
    options.budget_bytes = 6 * blocks * 16 * (2 * 16 * 4 + 4);
    rrpc_engine *opened = NULL;
    NEED(rrpc_engine_open(MODEL, &options, &opened));
    return opened;
}

static rrpc_scheduler *scheduler_of(rrpc_engine *of, uint32_t queue_events)
{
    rrpc_scheduler_options options;
    NEED(rrpc_scheduler_options_init(&options, sizeof options));
    options.queue_events = queue_events;
    rrpc_scheduler *scheduler = NULL;
    NEED(rrpc_scheduler_create(of, &options, &scheduler));
    return scheduler;
}

/* An answer of so many tokens. */
static rrpc_answer *submitted(rrpc_scheduler *scheduler, rrpc_sequence *sequence, uint64_t tokens)
{
    rrpc_generate_options options = at_most(tokens);
    options.ignore_eos = 1;
    rrpc_answer *answer = NULL;
    NEED(rrpc_scheduler_submit(scheduler, sequence, &options, &answer));
    return answer;
}

/* Reads to the end: how many tokens, the first ones copied out, and why it ended; 0 for a failure. */
static uint32_t read_all(rrpc_answer *answer, uint32_t *tokens, size_t room, size_t *count)
{
    *count = 0;
    for (;;) {
        rrpc_event event = {.struct_size = sizeof event};
        rrpc_error *error = rrpc_answer_next(answer, 60000, &event);
        if (error != NULL || event.kind == RRPC_EVENT_NONE) {
            rrpc_error_free(error);
            return 0;
        }
        if (event.kind == RRPC_EVENT_END) return event.stop_reason;
        if (event.kind != RRPC_EVENT_TOKEN) continue;
        if (*count < room) tokens[*count] = event.token;
        ++*count;
    }
}

static rrpc_scheduler_metrics figures_of(rrpc_scheduler *scheduler)
{
    rrpc_scheduler_metrics metrics = {.struct_size = sizeof metrics};
    NEED(rrpc_scheduler_get_metrics(scheduler, &metrics));
    return metrics;
}

/* A state that must come, within a minute. */
#define UNTIL(condition)                                             \
    do {                                                             \
        for (int i = 0; i < 60000 && !(condition); ++i) usleep(1000); \
        CHECK(condition);                                            \
    } while (0)

static uint64_t used(rrpc_engine *of)
{
    rrpc_metrics metrics = {.struct_size = sizeof metrics};
    NEED(rrpc_engine_get_metrics(of, &metrics));
    return metrics.budget_used_bytes + metrics.budget_promised_bytes;
}

static void an_answer_is_the_one_of_generate(void)
{
    rrpc_scheduler *scheduler = NULL;
    NEED(rrpc_scheduler_create(engine, NULL, &scheduler));
    rrpc_sequence *sequence = prompted(engine);
    rrpc_generate_options options = at_most(ANSWER_LENGTH);
    rrpc_answer *answer = NULL;
    NEED(rrpc_scheduler_submit(scheduler, sequence, &options, &answer));
    uint32_t tokens[ANSWER_LENGTH];
    size_t count = 0;
    CHECK(read_all(answer, tokens, ANSWER_LENGTH, &count) == RRPC_STOP_LENGTH);
    CHECK(count == ANSWER_LENGTH && memcmp(tokens, ANSWER, sizeof ANSWER) == 0);
    rrpc_event event = {.struct_size = sizeof event};
    FAILS(INVALID_ARGUMENT, "last event", rrpc_answer_next(answer, 0, &event));
    /* The sequence is free, and goes on. */
    OK(rrpc_sequence_tokens(sequence, NULL, 0, &count));
    CHECK(count == PROMPT_LENGTH + ANSWER_LENGTH);
    rrpc_answer_free(answer);
    OK(rrpc_sequence_append_tokens(sequence, PROMPT, 3));
    answer = submitted(scheduler, sequence, 5);
    CHECK(read_all(answer, tokens, 5, &count) == RRPC_STOP_LENGTH && count == 5);
    OK(rrpc_generate(sequence, &options, NULL, NULL, NULL));
    rrpc_sequence_stats stats = {.struct_size = sizeof stats};
    OK(rrpc_sequence_get_stats(sequence, &stats));
    CHECK(stats.prefill_tokens == PROMPT_LENGTH + 3);
    rrpc_answer_free(answer);
    rrpc_sequence_free(sequence);
    rrpc_scheduler_metrics metrics = figures_of(scheduler);
    CHECK(metrics.submitted == 2 && metrics.admitted == 2 && metrics.completed == 2 && metrics.steps > 20);
    char text[8192];
    OK(rrpc_scheduler_metrics_text(scheduler, text, sizeof text - 1, &count));
    text[count] = '\0';
    CHECK(strstr(text, "\nreasoning_rpc_scheduler_completed_total 2\n") != NULL);
    rrpc_scheduler_free(scheduler);
    CHECK(used(engine) == 0);
}

static void text_comes_whole(void)
{
    rrpc_engine *with_text = open_engine(TEXT_MODEL);
    rrpc_scheduler *scheduler = scheduler_of(with_text, 2);
    char expected[4096] = "", found[4096] = "";
    for (int scheduled = 0; scheduled < 2; ++scheduled) {
        char *out = scheduled ? found : expected;
        rrpc_sequence *sequence = prompted(with_text);
        rrpc_generate_options options = at_most(40);
        options.ignore_eos = 1;
        rrpc_answer *answer = NULL;
        if (scheduled) NEED(rrpc_scheduler_submit(scheduler, sequence, &options, &answer));
        else NEED(rrpc_generate_start(sequence, &options));
        rrpc_event event = {.struct_size = sizeof event};
        do {
            if (scheduled) NEED(rrpc_answer_next(answer, RRPC_WAIT_FOREVER, &event));
            else NEED(rrpc_generate_next(sequence, &event));
            CHECK(event.text[event.text_len] == '\0');
            strcat(out, event.text);
        } while (event.kind != RRPC_EVENT_END);
        rrpc_answer_free(answer);
        rrpc_sequence_free(sequence);
    }
    CHECK(strlen(expected) > 10 && strcmp(expected, found) == 0);
    rrpc_scheduler_free(scheduler);
    rrpc_engine_free(with_text);
}

static void a_sequence_at_work_is_busy(void)
{
    rrpc_scheduler *scheduler = scheduler_of(engine, 2);
    rrpc_sequence *sequence = prompted(engine);
    rrpc_answer *answer = submitted(scheduler, sequence, 100), *second = answer;
    size_t count = 0;
    rrpc_sequence *fork = NULL;
    rrpc_sequence_stats stats = {.struct_size = sizeof stats};
    FAILS(BUSY, "scheduler", rrpc_sequence_append_tokens(sequence, PROMPT, 1));
    FAILS(BUSY, "scheduler", rrpc_sequence_tokens(sequence, NULL, 0, &count));
    FAILS(BUSY, "scheduler", rrpc_sequence_get_stats(sequence, &stats));
    FAILS(BUSY, "scheduler", rrpc_sequence_fork(sequence, &fork));
    FAILS(BUSY, "scheduler", rrpc_step(&sequence, 1));
    FAILS(BUSY, "scheduler", rrpc_generate(sequence, NULL, NULL, NULL, NULL));
    FAILS(BUSY, "scheduler", rrpc_generate_start(sequence, NULL));
    FAILS(BUSY, "scheduler", rrpc_generate_stop(sequence));
    FAILS(BUSY, "scheduler", rrpc_scheduler_submit(scheduler, sequence, NULL, &second));
    CHECK(second == NULL);
    /* Its reader does not read; it is cancelled, and has what was written. */
    UNTIL(figures_of(scheduler).paused == 1);
    OK(rrpc_answer_cancel(answer));
    OK(rrpc_answer_cancel(answer));
    size_t told = 0;
    CHECK(read_all(answer, NULL, 0, &told) == RRPC_STOP_CANCELLED);
    OK(rrpc_sequence_tokens(sequence, NULL, 0, &count));
    CHECK(count == PROMPT_LENGTH + told && told > 0);
    OK(rrpc_answer_cancel(answer));
    rrpc_answer_free(answer);
    /* One with an answer of rrpc_generate_start is not taken. */
    OK(rrpc_generate_start(sequence, NULL));
    FAILS(BUSY, "under way", rrpc_scheduler_submit(scheduler, sequence, NULL, &answer));
    OK(rrpc_generate_stop(sequence));
    /* Freeing an answer cancels it, and the sequence is free soon. */
    answer = submitted(scheduler, sequence, 100);
    rrpc_answer_free(answer);
    rrpc_event event = {.struct_size = sizeof event};
    FAILS(INVALID_HANDLE, "freed", rrpc_answer_next(answer, 0, &event));
    rrpc_error *error = NULL;
    for (int i = 0; i < 60000; ++i) {
        rrpc_error_free(error);
        error = rrpc_sequence_append_tokens(sequence, PROMPT, 1);
        if (error == NULL) break;
        usleep(1000);
    }
    OK(error);
    /* So does freeing the sequence let its cache go, when the answer has ended. */
    answer = submitted(scheduler, sequence, 3);
    rrpc_sequence_free(sequence);
    CHECK(read_all(answer, NULL, 0, &told) == RRPC_STOP_LENGTH && told == 3);
    UNTIL(used(engine) == 0);
    rrpc_answer_free(answer);
    rrpc_scheduler_free(scheduler);
}

static void the_budget_is_waited_for_in_order(void)
{
    rrpc_engine *small = small_engine(4); /* 12 + 52 entries */
    rrpc_scheduler *scheduler = scheduler_of(small, 2);
    rrpc_sequence *sequences[3];
    rrpc_answer *answers[3], *none = NULL;
    for (int i = 0; i < 3; ++i) sequences[i] = prompted(small);
    rrpc_generate_options too_many = at_most(54);
    FAILS(BUDGET, "budget", rrpc_scheduler_submit(scheduler, sequences[0], &too_many, &none));
    CHECK(none == NULL);
    size_t count = 0;
    OK(rrpc_sequence_tokens(sequences[0], NULL, 0, &count)); /* it came back */
    CHECK(count == PROMPT_LENGTH);
    const uint64_t lengths[3] = {53, 40, 1};
    for (int i = 0; i < 3; ++i) answers[i] = submitted(scheduler, sequences[i], lengths[i]);
    UNTIL(figures_of(scheduler).paused == 1);
    rrpc_event event = {.struct_size = sizeof event};
    for (int i = 1; i < 3; ++i) {
        OK(rrpc_answer_next(answers[i], i == 1 ? 20 : 0, &event));
        CHECK(event.kind == RRPC_EVENT_NONE && event.text_len == 0);
    }
    CHECK(figures_of(scheduler).waiting == 2);
    for (int i = 0; i < 3; ++i) {
        CHECK(read_all(answers[i], NULL, 0, &count) == RRPC_STOP_LENGTH && count == lengths[i]);
        rrpc_sequence_free(sequences[i]); /* the next one waits for its cache */
        rrpc_answer_free(answers[i]);
    }
    CHECK(figures_of(scheduler).waiting_seconds > 0);
    rrpc_scheduler_free(scheduler);
    CHECK(used(small) == 0);
    rrpc_engine_free(small);
}

static void a_slow_reader_stops_nobody_else(void)
{
    rrpc_scheduler *scheduler = scheduler_of(engine, 1);
    rrpc_sequence *slow = prompted(engine), *quick = prompted(engine);
    rrpc_answer *of_slow = submitted(scheduler, slow, 60);
    UNTIL(figures_of(scheduler).paused == 1);
    rrpc_answer *of_quick = submitted(scheduler, quick, ANSWER_LENGTH);
    uint32_t tokens[ANSWER_LENGTH];
    size_t count = 0;
    CHECK(read_all(of_quick, tokens, ANSWER_LENGTH, &count) == RRPC_STOP_LENGTH);
    CHECK(count == ANSWER_LENGTH && memcmp(tokens, ANSWER, sizeof ANSWER) == 0);
    CHECK(figures_of(scheduler).paused == 1);
    CHECK(read_all(of_slow, tokens, ANSWER_LENGTH, &count) == RRPC_STOP_LENGTH && count == 60);
    CHECK(memcmp(tokens, ANSWER, sizeof ANSWER) == 0);
    rrpc_answer_free(of_slow);
    rrpc_answer_free(of_quick);
    rrpc_sequence_free(slow);
    rrpc_sequence_free(quick);
    rrpc_scheduler_free(scheduler);
}

/* ---- An event loop ---- */

static void one_thread_waits_for_many_answers(void)
{
    enum { MANY = 8 };
    rrpc_scheduler *scheduler = scheduler_of(engine, 3);
    rrpc_answer *answers[MANY];
    uint32_t tokens[MANY][ANSWER_LENGTH];
    size_t counts[MANY] = {0}, left = MANY;
    int loop = epoll_create1(EPOLL_CLOEXEC);
    for (uint32_t i = 0; i < MANY; ++i) {
        rrpc_sequence *sequence = prompted(engine);
        answers[i] = submitted(scheduler, sequence, ANSWER_LENGTH);
        rrpc_sequence_free(sequence);
        int fd = -1, again = -1;
        OK(rrpc_answer_fd(answers[i], &fd));
        OK(rrpc_answer_fd(answers[i], &again));
        CHECK(fd >= 0 && fd == again);
        struct epoll_event interest = {.events = EPOLLIN, .data.u32 = i};
        CHECK(epoll_ctl(loop, EPOLL_CTL_ADD, fd, &interest) == 0);
    }
    while (left > 0) {
        struct epoll_event ready[3];
        int count = epoll_wait(loop, ready, 3, 60000);
        if (!CHECK(count > 0)) break;
        for (int k = 0; k < count; ++k) {
            uint32_t i = ready[k].data.u32;
            rrpc_event event = {.struct_size = sizeof event};
            OK(rrpc_answer_next(answers[i], 0, &event));
            CHECK(event.kind != RRPC_EVENT_NONE); /* level-triggered, and true */
            if (event.kind == RRPC_EVENT_TOKEN && counts[i] < ANSWER_LENGTH) tokens[i][counts[i]++] = event.token;
            if (event.kind != RRPC_EVENT_END) continue;
            int fd = -1;
            OK(rrpc_answer_fd(answers[i], &fd));
            struct pollfd one = {.fd = fd, .events = POLLIN};
            CHECK(poll(&one, 1, 0) == 0);
            CHECK(epoll_ctl(loop, EPOLL_CTL_DEL, fd, NULL) == 0);
            CHECK(counts[i] == ANSWER_LENGTH && memcmp(tokens[i], ANSWER, sizeof ANSWER) == 0);
            rrpc_answer_free(answers[i]);
            --left;
        }
    }
    close(loop);
    rrpc_scheduler_free(scheduler);
    UNTIL(used(engine) == 0);
}

/* ---- Threads ---- */

enum { THREADS = 6, ROUNDS = 12 };

static rrpc_scheduler *contended;

/* No CHECK in threads: its counters are plain. Returns the number of surprises. */
static void *submit_read_cancel(void *argument)
{
    size_t surprises = 0;
    unsigned random = (unsigned)(uintptr_t)argument;
    for (int i = 0; i < ROUNDS; ++i) {
        rrpc_sequence *sequence = prompted(engine);
        rrpc_generate_options options = at_most(ANSWER_LENGTH);
        rrpc_answer *answer = NULL;
        rrpc_error *error = rrpc_scheduler_submit(contended, sequence, &options, &answer);
        surprises += error != NULL;
        rrpc_error_free(error);
        uint32_t tokens[ANSWER_LENGTH];
        size_t count = 0;
        switch (rand_r(&random) % 4) {
        case 0:
            rrpc_answer_free(answer);
            break;
        case 1:
            rrpc_error_free(rrpc_answer_cancel(answer));
            surprises += read_all(answer, tokens, ANSWER_LENGTH, &count) == 0;
            surprises += count > ANSWER_LENGTH || memcmp(tokens, ANSWER, count * sizeof *tokens) != 0;
            break;
        case 2:
            rrpc_sequence_free(sequence); /* fall through */
        default:
            surprises += read_all(answer, tokens, ANSWER_LENGTH, &count) != RRPC_STOP_LENGTH;
            surprises += count != ANSWER_LENGTH || memcmp(tokens, ANSWER, sizeof ANSWER) != 0;
        }
        rrpc_answer_free(answer);
        rrpc_sequence_free(sequence);
    }
    return (void *)surprises;
}

static void threads_share_a_scheduler(void)
{
    contended = scheduler_of(engine, 2);
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; ++i) {
        CHECK(pthread_create(&threads[i], NULL, submit_read_cancel, (void *)(i * 7919 + (uintptr_t)time(NULL))) == 0);
    }
    for (int i = 0; i < THREADS; ++i) {
        void *surprises = NULL;
        pthread_join(threads[i], &surprises);
        CHECK(surprises == NULL);
    }
    rrpc_scheduler_metrics metrics = figures_of(contended);
    CHECK(metrics.submitted == THREADS * ROUNDS && metrics.failed == 0);
    rrpc_scheduler_free(contended);
    CHECK(used(engine) == 0);
}

static rrpc_answer *watched;

static void *wait_for_it(void *unused)
{
    (void)unused;
    size_t count = 0;
    return (void *)(uintptr_t)read_all(watched, NULL, 0, &count);
}

/* Readers that wait in another thread come to an end, whatever is freed below them. */
static void freeing_wakes_those_who_wait(void)
{
    for (int what = 0; what < 3; ++what) {
        rrpc_engine *small = small_engine(4);
        rrpc_scheduler *scheduler = scheduler_of(small, 2);
        rrpc_sequence *holder = prompted(small), *sequence = prompted(small);
        NEED(rrpc_sequence_reserve(holder, 53));
        watched = submitted(scheduler, sequence, 20); /* waits for the holder's blocks */
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, wait_for_it, NULL) == 0);
        usleep(5000);
        if (what == 0) rrpc_scheduler_free(scheduler);
        if (what == 1) OK(rrpc_answer_cancel(watched));
        if (what == 2) rrpc_sequence_free(holder);
        void *reason = NULL;
        pthread_join(thread, &reason);
        CHECK((uintptr_t)reason == (what == 2 ? RRPC_STOP_LENGTH : RRPC_STOP_CANCELLED));
        rrpc_answer_free(watched);
        rrpc_sequence_free(sequence);
        rrpc_sequence_free(holder);
        rrpc_scheduler_free(scheduler);
        CHECK(used(small) == 0);
        rrpc_engine_free(small);
    }
}

static void a_second_reader_is_told(void)
{
    rrpc_engine *small = small_engine(4);
    rrpc_scheduler *scheduler = scheduler_of(small, 2);
    rrpc_sequence *holder = prompted(small), *sequence = prompted(small);
    NEED(rrpc_sequence_reserve(holder, 53));
    watched = submitted(scheduler, sequence, 20);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, wait_for_it, NULL) == 0);
    int32_t code = RRPC_OK;
    for (int i = 0; i < 60000 && code == RRPC_OK; ++i) {
        rrpc_event event = {.struct_size = sizeof event};
        rrpc_error *error = rrpc_answer_next(watched, 0, &event);
        code = rrpc_error_code(error);
        rrpc_error_free(error);
        usleep(100);
    }
    CHECK(code == RRPC_ERROR_BUSY);
    OK(rrpc_answer_cancel(watched));
    pthread_join(thread, NULL);
    rrpc_answer_free(watched);
    rrpc_sequence_free(sequence);
    rrpc_sequence_free(holder);
    rrpc_scheduler_free(scheduler);
    rrpc_engine_free(small);
}

static void everything_may_be_freed_in_any_order(void)
{
    for (int order = 0; order < 24; ++order) {
        rrpc_engine *own = small_engine(64);
        rrpc_scheduler *scheduler = scheduler_of(own, 4);
        rrpc_sequence *sequence = prompted(own);
        rrpc_answer *answer = submitted(scheduler, sequence, 30);
        rrpc_event event = {.struct_size = sizeof event};
        OK(rrpc_answer_next(answer, RRPC_WAIT_FOREVER, &event));
        int left[] = {0, 1, 2, 3}, n = order;
        for (int i = 4; i > 0; n /= i, --i) {
            int chosen = left[n % i];
            left[n % i] = left[i - 1];
            if (chosen == 0) rrpc_engine_free(own);
            if (chosen == 1) rrpc_scheduler_free(scheduler);
            if (chosen == 2) rrpc_sequence_free(sequence);
            if (chosen == 3) rrpc_answer_free(answer);
        }
    }
}

static void mistakes_are_told(void)
{
    rrpc_scheduler *scheduler = NULL, *none = NULL;
    rrpc_scheduler_options options;
    FAILS(NULL_POINTER, "options", rrpc_scheduler_options_init(NULL, sizeof options));
    FAILS(INVALID_ARGUMENT, "struct_size", rrpc_scheduler_options_init(&options, 7));
    NEED(rrpc_scheduler_options_init(&options, sizeof options));
    CHECK(options.max_rows == 32 && options.step_tokens == 64 && options.queue_events == 64 && options.max_waiting == 1024);
    FAILS(NULL_POINTER, "engine", rrpc_scheduler_create(NULL, &options, &none));
    FAILS(NULL_POINTER, "scheduler", rrpc_scheduler_create(engine, &options, NULL));
    FAILS(INVALID_HANDLE, "expected an engine", rrpc_scheduler_create((rrpc_engine *)77, &options, &none));
    options.max_rows = 0;
    FAILS(INVALID_ARGUMENT, "max rows: expected 1 to 65536, found 0", rrpc_scheduler_create(engine, &options, &none));
    CHECK(none == NULL);
    options.max_rows = 1;
    options.max_waiting = 1;
    NEED(rrpc_scheduler_create(engine, &options, &scheduler));

    rrpc_sequence *sequence = prompted(engine), *empty = NULL;
    rrpc_sequence_options plain = plain_options(engine);
    NEED(rrpc_sequence_create(engine, &plain, &empty));
    rrpc_answer *answer = NULL;
    FAILS(NULL_POINTER, "scheduler", rrpc_scheduler_submit(NULL, sequence, NULL, &answer));
    FAILS(INVALID_HANDLE, "found a sequence", rrpc_scheduler_submit((rrpc_scheduler *)sequence, sequence, NULL, &answer));
    FAILS(NULL_POINTER, "sequence", rrpc_scheduler_submit(scheduler, NULL, NULL, &answer));
    FAILS(NULL_POINTER, "answer", rrpc_scheduler_submit(scheduler, sequence, NULL, NULL));
    FAILS(INVALID_ARGUMENT, "prompt", rrpc_scheduler_submit(scheduler, empty, NULL, &answer));
    rrpc_engine *other = small_engine(8);
    rrpc_sequence *foreign = prompted(other);
    FAILS(INVALID_ARGUMENT, "another", rrpc_scheduler_submit(scheduler, foreign, NULL, &answer));
    rrpc_generate_options generate = at_most(4);
    generate.ignore_eos = 7;
    FAILS(INVALID_ARGUMENT, "ignore_eos", rrpc_scheduler_submit(scheduler, sequence, &generate, &answer));

    answer = submitted(scheduler, sequence, 4);
    rrpc_event event = {.struct_size = sizeof event};
    FAILS(NULL_POINTER, "event", rrpc_answer_next(answer, 0, NULL));
    event.struct_size = 3;
    FAILS(INVALID_ARGUMENT, "struct_size", rrpc_answer_next(answer, 0, &event));
    event.struct_size = sizeof event;
    FAILS(NULL_POINTER, "answer", rrpc_answer_next(NULL, 0, &event));
    FAILS(INVALID_HANDLE, "found a scheduler", rrpc_answer_next((rrpc_answer *)scheduler, 0, &event));
    FAILS(NULL_POINTER, "answer", rrpc_answer_cancel(NULL));
    FAILS(NULL_POINTER, "fd", rrpc_answer_fd(answer, NULL));
    rrpc_scheduler_metrics metrics = {.struct_size = 3};
    size_t count = 0;
    FAILS(INVALID_ARGUMENT, "struct_size", rrpc_scheduler_get_metrics(scheduler, &metrics));
    FAILS(NULL_POINTER, "count", rrpc_scheduler_metrics_text(scheduler, NULL, 0, NULL));
    OK(rrpc_scheduler_metrics_text(scheduler, NULL, 0, &count));
    char one;
    FAILS(BUFFER_TOO_SMALL, "room", rrpc_scheduler_metrics_text(scheduler, &one, 1, &count));
    rrpc_scheduler_free((rrpc_scheduler *)answer); /* nothing */
    rrpc_answer_free((rrpc_answer *)scheduler);
    CHECK(read_all(answer, NULL, 0, &count) == RRPC_STOP_LENGTH && count == 4);
    rrpc_answer_free(answer);
    rrpc_scheduler_free(scheduler);
    rrpc_scheduler_free(scheduler);
    rrpc_scheduler_free(NULL);
    rrpc_answer_free(answer);
    rrpc_answer_free(NULL);
    FAILS(INVALID_HANDLE, "freed", rrpc_scheduler_submit(scheduler, sequence, NULL, &answer));
    rrpc_sequence_free(sequence);
    rrpc_sequence_free(empty);
    rrpc_sequence_free(foreign);
    rrpc_engine_free(other);
}

static void a_forked_child_is_told(void)
{
    rrpc_scheduler *scheduler = scheduler_of(engine, 64);
    rrpc_sequence *sequence = prompted(engine), *second = prompted(engine);
    rrpc_answer *answer = submitted(scheduler, sequence, ANSWER_LENGTH);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        rrpc_event event = {.struct_size = sizeof event};
        rrpc_scheduler *own = NULL;
        rrpc_answer *none = NULL;
        int fd = -1;
        FAILS(FORKED, "forked", rrpc_scheduler_create(engine, NULL, &own));
        FAILS(FORKED, "forked", rrpc_scheduler_submit(scheduler, second, NULL, &none));
        FAILS(FORKED, "forked", rrpc_answer_next(answer, RRPC_WAIT_FOREVER, &event));
        FAILS(FORKED, "forked", rrpc_answer_cancel(answer));
        FAILS(FORKED, "forked", rrpc_answer_fd(answer, &fd));
        rrpc_answer_free(answer);
        rrpc_scheduler_free(scheduler);
        fflush(stdout);
        _exit(failures_in_test);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    uint32_t tokens[ANSWER_LENGTH];
    size_t count = 0;
    CHECK(read_all(answer, tokens, ANSWER_LENGTH, &count) == RRPC_STOP_LENGTH);
    CHECK(count == ANSWER_LENGTH && memcmp(tokens, ANSWER, sizeof ANSWER) == 0);
    rrpc_answer_free(answer);
    rrpc_sequence_free(sequence);
    rrpc_sequence_free(second);
    rrpc_scheduler_free(scheduler);
}

int main(void)
{
    engine = open_engine(MODEL);
    RUN(an_answer_is_the_one_of_generate);
    RUN(text_comes_whole);
    RUN(a_sequence_at_work_is_busy);
    RUN(the_budget_is_waited_for_in_order);
    RUN(a_slow_reader_stops_nobody_else);
    RUN(one_thread_waits_for_many_answers);
    RUN(threads_share_a_scheduler);
    RUN(freeing_wakes_those_who_wait);
    RUN(a_second_reader_is_told);
    RUN(everything_may_be_freed_in_any_order);
    RUN(mistakes_are_told);
    RUN(a_forked_child_is_told);
    rrpc_engine_free(engine);
    return check_end("scheduler");
}
