/* 32 sequences of one engine from 8 threads, for a minute (ABI_SOAK_SECONDS): the same tokens as alone, whatever
   runs beside them and however they are driven, cancelled within one token, and nothing left behind. Without
   sanitizers, whose allocators hide what is allocated. */
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "check.h"

enum { THREADS = 8, EACH = 4, SEQUENCES = THREADS * EACH, LONGEST = 180 };

static rrpc_engine *engine;
static uint32_t alone[SEQUENCES][LONGEST];
static double warm_until, end;
static atomic_ulong answers, cancelled, problems;
static uint64_t seed;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static uint32_t below(uint64_t *state, uint32_t limit)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((*state >> 33) % limit);
}

/* Threads do not share the counters of check.h: what is wrong is said and counted here. */
static void good(rrpc_error *error, const char *what)
{
    if (error != NULL) {
        printf("%s: %s\n", what, rrpc_error_message(error));
        ++problems;
        rrpc_error_free(error);
    }
}

static void wrong(const char *what, int sequence)
{
    printf("sequence %d: %s\n", sequence, what);
    ++problems;
}

/* Every sequence has options of its own. */
static rrpc_sequence *create(int index)
{
    rrpc_sequence_options options;
    good(rrpc_sequence_options_init(engine, &options, sizeof options), "options");
    options.policy = index % 4 == 3 ? RRPC_POLICY_NONE : RRPC_POLICY_RPC;
    options.interval = index % 2 ? 32 : 48;
    options.window = 8;
    options.ratio = index % 3 ? 4 : 8;
    options.aggregation = index % 5 ? RRPC_AGGREGATION_LAYER : RRPC_AGGREGATION_KV_HEAD;
    options.temperature = index % 4 ? 0.9f : 0;
    options.seed = (uint64_t)index;
    rrpc_sequence *sequence = NULL;
    good(rrpc_sequence_create(engine, &options, &sequence), "create");
    uint32_t prompt[PROMPT_LENGTH];
    for (int i = 0; i < PROMPT_LENGTH; ++i) prompt[i] = (PROMPT[i] + (uint32_t)index) % VOCABULARY;
    good(rrpc_sequence_append_tokens(sequence, prompt, PROMPT_LENGTH), "append");
    return sequence;
}

static int length_of(int index)
{
    return LONGEST - index;
}

/* Its generated tokens are the first ones of what it wrote alone. */
static void compare(int index, const rrpc_sequence *sequence, size_t expected)
{
    uint32_t tokens[PROMPT_LENGTH + LONGEST];
    size_t count = 0;
    good(rrpc_sequence_tokens(sequence, tokens, PROMPT_LENGTH + LONGEST, &count), "tokens");
    if (count != PROMPT_LENGTH + expected) wrong("an answer of another length", index);
    else if (memcmp(tokens + PROMPT_LENGTH, alone[index], expected * sizeof *tokens) != 0) {
        wrong("other tokens than alone", index);
    }
}

typedef struct {
    int left;
} countdown;

static int32_t count_down(const rrpc_event *event, void *user_data)
{
    countdown *count = user_data;
    return event->kind == RRPC_EVENT_TOKEN && --count->left == 0;
}

static rrpc_generate_options whole(int index)
{
    rrpc_generate_options options;
    good(rrpc_generate_options_init(&options, sizeof options), "options");
    options.max_tokens = (uint64_t)length_of(index);
    options.ignore_eos = 1;
    return options;
}

static void generate(int index, rrpc_sequence *sequence, uint64_t *random)
{
    rrpc_generate_options options = whole(index);
    rrpc_generate_result result = {.struct_size = sizeof result};
    int cancel = below(random, 3) == 0;
    countdown count = {cancel ? 1 + (int)below(random, (uint32_t)length_of(index) - 1) : -1};
    size_t expected = (size_t)(cancel ? count.left : length_of(index));
    good(rrpc_generate(sequence, &options, count_down, &count, &result), "generate");
    if (cancel) ++cancelled;
    if (result.stop_reason != (cancel ? RRPC_STOP_CANCELLED : RRPC_STOP_LENGTH)) wrong("another reason", index);
    if (result.tokens != expected) wrong("not cancelled at that token", index);
    compare(index, sequence, expected);
}

/* All sequences of a thread in one batch, each joining when it likes. */
static void in_steps(int first, rrpc_sequence **sequences, uint64_t *random)
{
    int written[EACH] = {0}, start[EACH], finished = 0;
    for (int i = 0; i < EACH; ++i) start[i] = (int)below(random, 20);
    for (int step = 0; finished < EACH; ++step) {
        rrpc_sequence *batch[EACH];
        size_t count = 0;
        finished = 0;
        for (int i = 0; i < EACH; ++i) {
            if (written[i] == length_of(first + i)) ++finished;
            if (step < start[i] || written[i] == length_of(first + i)) continue;
            size_t pending = 0;
            good(rrpc_sequence_pending(sequences[i], &pending), "pending");
            if (pending == 0) {
                good(rrpc_sequence_sample(sequences[i], NULL), "sample");
                if (++written[i] == length_of(first + i)) continue;
            }
            batch[count++] = sequences[i];
        }
        if (count > 0) good(rrpc_step(batch, count), "step");
        if (problems > 0) return;
    }
    for (int i = 0; i < EACH; ++i) compare(first + i, sequences[i], (size_t)length_of(first + i));
}

static void *work(void *argument)
{
    int first = *(int *)argument * EACH;
    uint64_t random = seed * 1000003u + (uint64_t)first;
    double until = now() < warm_until ? warm_until : end;
    while (now() < until && problems == 0) {
        rrpc_sequence *sequences[EACH];
        for (int i = 0; i < EACH; ++i) sequences[i] = create(first + i);
        if (below(&random, 2)) {
            in_steps(first, sequences, &random);
        } else {
            for (int i = 0; i < EACH; ++i) generate(first + i, sequences[i], &random);
        }
        for (int i = 0; i < EACH; ++i) rrpc_sequence_free(sequences[i]);
        answers += EACH;
    }
    return NULL;
}

static size_t run_threads(void)
{
    pthread_t threads[THREADS];
    int indices[THREADS];
    for (int i = 0; i < THREADS; ++i) {
        indices[i] = i;
        CHECK(pthread_create(&threads[i], NULL, work, &indices[i]) == 0);
    }
    for (int i = 0; i < THREADS; ++i) pthread_join(threads[i], NULL);
    rrpc_engine_info info = {.struct_size = sizeof info};
    OK(rrpc_engine_get_info(engine, &info));
    CHECK(info.budget_used_bytes == 0);
    return mallinfo2().uordblks;
}

static void many_sequences_from_many_threads(void)
{
    const char *given = getenv("SEED"), *seconds = getenv("ABI_SOAK_SECONDS");
    seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    printf("SEED=%llu\n", (unsigned long long)seed);
    engine = open_engine(MODEL);
    for (int i = 0; i < SEQUENCES; ++i) {
        rrpc_sequence *sequence = create(i);
        rrpc_generate_options options = whole(i);
        OK(rrpc_generate(sequence, &options, NULL, NULL, NULL));
        uint32_t tokens[PROMPT_LENGTH + LONGEST];
        size_t count = 0;
        OK(rrpc_sequence_tokens(sequence, tokens, PROMPT_LENGTH + LONGEST, &count));
        CHECK(count == (size_t)(PROMPT_LENGTH + length_of(i)));
        memcpy(alone[i], tokens + PROMPT_LENGTH, (size_t)length_of(i) * sizeof *tokens);
        rrpc_sequence_free(sequence);
    }
    double length = seconds ? strtod(seconds, NULL) : 60;
    warm_until = now() + length / 6;
    end = warm_until + length * 5 / 6;
    size_t before = run_threads();
    unsigned long first_answers = answers;
    size_t after = run_threads();
    printf("%lu answers, %lu of them cancelled; %zu bytes allocated after %lu of them, %zu at the end\n", answers,
           cancelled, before, first_answers, after);
    CHECK(problems == 0);
    CHECK(answers > first_answers && first_answers >= SEQUENCES && cancelled > 0);
    CHECK(after < before + ((size_t)1 << 20));
    rrpc_engine_free(engine);
}

int main(void)
{
    RUN(many_sequences_from_many_threads);
    return check_end("soak");
}
