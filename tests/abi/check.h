/* A C test in as few words as it takes: each program runs some tests, prints what failed where, and
   ends with a line "NAME: N passed, N failed". */
#ifndef CHECK_H
#define CHECK_H

#include <reasoning_rpc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures_in_test, tests_passed, tests_failed;

static inline int check_that(int condition, const char *what, const char *file, int line)
{
    if (!condition) {
        printf("%s:%d: %s\n", file, line, what);
        ++failures_in_test;
    }
    return condition;
}

static inline int check_error(rrpc_error *error, int32_t code, const char *words, const char *what,
                              const char *file, int line)
{
    int32_t found = rrpc_error_code(error);
    const char *message = rrpc_error_message(error);
    int good = found == code && message != NULL && message[0] != '\0'
               && (error == NULL || strstr(message, words) != NULL);
    if (!good) {
        printf("%s:%d: %s: expected code %d with \"%s\", found %d: %s\n", file, line, what, (int)code, words,
               (int)found, message);
        ++failures_in_test;
    }
    rrpc_error_free(error);
    return good;
}

/* The condition holds. */
#define CHECK(condition) check_that((condition) != 0, #condition, __FILE__, __LINE__)
/* The call succeeds. */
#define OK(call) check_error((call), RRPC_OK, "", #call, __FILE__, __LINE__)
/* The call fails with the code RRPC_ERROR_<code> and these words in its message. */
#define FAILS(code, words, call) \
    check_error((call), RRPC_ERROR_##code, (words), #call, __FILE__, __LINE__)
/* Nothing after this call makes sense if it fails. */
#define NEED(call)                                                                   \
    do {                                                                             \
        if (!OK(call)) {                                                             \
            printf("%s:%d: cannot go on\n", __FILE__, __LINE__);                     \
            exit(2);                                                                 \
        }                                                                            \
    } while (0)

#define RUN(test)                                            \
    do {                                                     \
        failures_in_test = 0;                                \
        test();                                              \
        if (failures_in_test) {                              \
            printf("failed: %s\n", #test);                   \
            ++tests_failed;                                  \
        } else {                                             \
            ++tests_passed;                                  \
        }                                                    \
    } while (0)

static inline int check_end(const char *name)
{
    printf("%s: %d passed, %d failed\n", name, tests_passed, tests_failed);
    return tests_failed != 0;
}

/* Models: the tiny one of tests/golden/generation/qwen2_p32, which takes ids only, and the same with a
   tokenizer and a chat template (text_model.py). 96 tokens, context 4096, 3 layers. */
static inline const char *environment(const char *name)
{
    const char *value = getenv(name);
    if (value == NULL) {
        printf("%s is not set: start the tests with tests/abi/run\n", name);
        exit(2);
    }
    return value;
}

#define MODEL environment("ABI_MODEL")
#define TEXT_MODEL environment("ABI_TEXT_MODEL")

enum { VOCABULARY = 96, CONTEXT = 4096, LAYERS = 3 };

static const uint32_t PROMPT[] = {63, 43, 49, 70, 31, 87, 29, 75, 15, 9, 13, 8};
enum { PROMPT_LENGTH = sizeof PROMPT / sizeof PROMPT[0] };
/* What the model answers, greedily and uncompressed (expected.json). */
static const uint32_t ANSWER[] = {31, 83, 67, 69, 16, 93, 15, 16, 6, 75, 10, 71, 46, 72, 85, 42};
enum { ANSWER_LENGTH = sizeof ANSWER / sizeof ANSWER[0] };

static inline rrpc_engine *open_engine(const char *model)
{
    rrpc_engine_options options;
    NEED(rrpc_engine_options_init(&options, sizeof options));
    options.threads = 1;
    options.cache_dtype = RRPC_DTYPE_F32;
    options.block_entries = 16;
    rrpc_engine *engine = NULL;
    NEED(rrpc_engine_open(model, &options, &engine));
    return engine;
}

/* MODEL as stock operators. */
static inline rrpc_engine *open_portable(void)
{
    char path[4096];
    snprintf(path, sizeof path, "%s", MODEL);
    char *end = strstr(path, "-cached");
    if (!CHECK(end != NULL)) exit(1);
    snprintf(end, sizeof path - (size_t)(end - path), "-portable");
    return open_engine(path);
}

/* Greedy, without compression. */
static inline rrpc_sequence_options plain_options(rrpc_engine *engine)
{
    rrpc_sequence_options options;
    NEED(rrpc_sequence_options_init(engine, &options, sizeof options));
    options.policy = RRPC_POLICY_NONE;
    options.temperature = 0;
    options.repetition_penalty = 1;
    return options;
}

/* With the prompt. */
static inline rrpc_sequence *prompted_with(rrpc_engine *engine, const rrpc_sequence_options *options)
{
    rrpc_sequence *sequence = NULL;
    NEED(rrpc_sequence_create(engine, options, &sequence));
    NEED(rrpc_sequence_append_tokens(sequence, PROMPT, PROMPT_LENGTH));
    return sequence;
}

/* Greedy, without compression, with the prompt. */
static inline rrpc_sequence *prompted(rrpc_engine *engine)
{
    rrpc_sequence_options options = plain_options(engine);
    return prompted_with(engine, &options);
}

static inline rrpc_generate_options at_most(uint64_t max_tokens)
{
    rrpc_generate_options options;
    NEED(rrpc_generate_options_init(&options, sizeof options));
    options.max_tokens = max_tokens;
    return options;
}

#endif
