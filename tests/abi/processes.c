/* Threads and forks. */
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { THREADS = 6, ANSWERS = 8 };

static rrpc_engine *shared_engine;

/* No CHECK in threads: its counters are plain. Returns the number of wrong answers. */
static void *answer_alone(void *unused)
{
    size_t wrong = 0;
    (void)unused;
    for (int i = 0; i < ANSWERS; ++i) {
        rrpc_sequence *sequence = prompted(shared_engine);
        rrpc_generate_options options = at_most(ANSWER_LENGTH);
        rrpc_error *error = rrpc_generate(sequence, &options, NULL, NULL, NULL);
        uint32_t tokens[PROMPT_LENGTH + ANSWER_LENGTH] = {0};
        size_t count = 0;
        if (error == NULL) error = rrpc_sequence_tokens(sequence, tokens, PROMPT_LENGTH + ANSWER_LENGTH, &count);
        wrong += error != NULL || memcmp(tokens + PROMPT_LENGTH, ANSWER, sizeof ANSWER) != 0;
        rrpc_error_free(error);
        rrpc_sequence_free(sequence);
    }
    return (void *)wrong;
}

static void threads_share_an_engine(void)
{
    shared_engine = open_engine(MODEL);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; ++i) CHECK(pthread_create(&threads[i], NULL, answer_alone, NULL) == 0);
    for (int i = 0; i < THREADS; ++i) {
        void *wrong = NULL;
        pthread_join(threads[i], &wrong);
        CHECK(wrong == NULL);
    }
    rrpc_engine_free(shared_engine);
}

static rrpc_sequence *shared_sequence;

/* Everybody pulls at one sequence: each call is done whole or refused. */
static void *contend(void *unused)
{
    size_t wrong = 0;
    (void)unused;
    for (int i = 0; i < 400; ++i) {
        size_t count = 0;
        rrpc_error *errors[] = {rrpc_sequence_accept(shared_sequence, (uint32_t)i % VOCABULARY),
                                rrpc_step(&shared_sequence, 1), rrpc_sequence_pending(shared_sequence, &count)};
        for (int k = 0; k < 3; ++k) {
            int32_t code = rrpc_error_code(errors[k]);
            /* Another thread may have stepped in between. */
            wrong += code != RRPC_OK && code != RRPC_ERROR_BUSY && code != RRPC_ERROR_INVALID_ARGUMENT;
            rrpc_error_free(errors[k]);
        }
    }
    return (void *)wrong;
}

static void threads_that_share_a_sequence_are_told(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    shared_sequence = prompted(engine);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; ++i) CHECK(pthread_create(&threads[i], NULL, contend, NULL) == 0);
    for (int i = 0; i < THREADS; ++i) {
        void *wrong = NULL;
        pthread_join(threads[i], &wrong);
        CHECK(wrong == NULL);
    }
    size_t count = 0, pending = 0;
    OK(rrpc_sequence_tokens(shared_sequence, NULL, 0, &count));
    OK(rrpc_sequence_pending(shared_sequence, &pending));
    rrpc_sequence_stats stats = {.struct_size = sizeof stats};
    OK(rrpc_sequence_get_stats(shared_sequence, &stats));
    CHECK(stats.prefill_tokens + stats.decode_tokens + pending == count);
    rrpc_sequence_free(shared_sequence);
    rrpc_engine_free(engine);
}

static void *free_it(void *unused)
{
    (void)unused;
    usleep(2000);
    rrpc_sequence_free(shared_sequence);
    return NULL;
}

static void a_sequence_may_be_freed_while_it_is_at_work(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    for (int i = 0; i < 5; ++i) {
        shared_sequence = prompted(engine);
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, free_it, NULL) == 0);
        rrpc_generate_options options = at_most(200);
        rrpc_error *error = rrpc_generate(shared_sequence, &options, NULL, NULL, NULL);
        CHECK(rrpc_error_code(error) == RRPC_OK || rrpc_error_code(error) == RRPC_ERROR_INVALID_HANDLE);
        rrpc_error_free(error);
        pthread_join(thread, NULL);
    }
    rrpc_engine_info info = {.struct_size = sizeof info};
    OK(rrpc_engine_get_info(engine, &info));
    CHECK(info.budget_used_bytes == 0);
    rrpc_engine_free(engine);
}

static void before_any_engine_a_child_is_free_to_open_one(void)
{
    pid_t child = fork();
    if (child == 0) {
        rrpc_engine *engine = open_engine(MODEL);
        rrpc_engine_free(engine);
        _exit(failures_in_test);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void a_forked_child_is_told(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_sequence *sequence = prompted(engine);
    NEED(rrpc_step(&sequence, 1));
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        rrpc_engine *own = NULL;
        size_t count = 0;
        FAILS(FORKED, "forked", rrpc_engine_open(MODEL, NULL, &own));
        FAILS(FORKED, "forked", rrpc_step(&sequence, 1));
        FAILS(FORKED, "forked", rrpc_sequence_sample(sequence, NULL));
        FAILS(FORKED, "forked", rrpc_sequence_tokens(sequence, NULL, 0, &count));
        rrpc_sequence_free(sequence);
        rrpc_engine_free(engine);
        CHECK(strcmp(rrpc_version(), RRPC_VERSION) == 0);
        fflush(stdout);
        _exit(failures_in_test);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    uint32_t token = 0;
    OK(rrpc_sequence_sample(sequence, &token));
    CHECK(token == ANSWER[0]);
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

int main(void)
{
    RUN(before_any_engine_a_child_is_free_to_open_one);
    RUN(threads_share_an_engine);
    RUN(threads_that_share_a_sequence_are_told);
    RUN(a_sequence_may_be_freed_while_it_is_at_work);
    RUN(a_forked_child_is_told);
    return check_end("processes");
}
