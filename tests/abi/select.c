/* Sequences whose callback chooses what stays. */
#include "check.h"

enum { KV_HEADS = 2, INTERVAL = 32, WINDOW = 8, RATIO = 4, TOKENS = 220 };

typedef struct {
    /* How many of the best stay in each KV head of each layer, of what may stay; in eighths. */
    uint32_t eighths[LAYERS][KV_HEADS];
    int calls, wrong;
    int32_t answer;
    void (*spoil)(rrpc_sequence_select_request *request);
    uint32_t counts[LAYERS][KV_HEADS]; /* of the last compression */
    uint32_t kept[LAYERS][KV_HEADS][TOKENS]; /* positions */
} chooser;

/* The best `keep` scores, of equal ones the earlier, as ascending indices. */
static void best(const float *scores, uint32_t count, uint32_t keep, uint32_t *out)
{
    for (uint32_t i = 0, found = 0; i < count && found < keep; ++i) {
        uint32_t better = 0;
        for (uint32_t j = 0; j < count; ++j) better += scores[j] > scores[i] || (scores[j] == scores[i] && j < i);
        if (better < keep) out[found++] = i;
    }
}

static int32_t choose(rrpc_sequence_select_request *request, void *user_data)
{
    chooser *chooser = user_data;
    ++chooser->calls;
    if (chooser->answer != 0) return chooser->answer;
    chooser->wrong += request->struct_size != sizeof *request || request->kv_heads != KV_HEADS
                      || request->layer >= LAYERS || request->reserved != 0
                      || request->most != (uint64_t)KV_HEADS * (request->compressions + 1) * (INTERVAL / RATIO);
    if (chooser->wrong != 0) return 1;
    uint32_t keep = (uint32_t)request->most / KV_HEADS, at = 0, out = 0;
    for (uint32_t head = 0; head < KV_HEADS; ++head) {
        uint32_t candidates = request->candidates[head], previous = PROMPT_LENGTH - 1;
        /* What was kept, and an interval more. */
        uint32_t before = request->compressions > 0 ? chooser->counts[request->layer][head] : 0;
        chooser->wrong += candidates != before + INTERVAL || request->kept_counts[head] != 0;
        for (uint32_t i = 0; i < candidates; ++i) {
            uint32_t position = request->positions[at + i];
            if (i < before) chooser->wrong += position != chooser->kept[request->layer][head][i];
            chooser->wrong += position <= previous || !(request->scores[at + i] >= 0);
            previous = position;
        }
        uint32_t count = keep * chooser->eighths[request->layer][head] / 8;
        best(request->scores + at, candidates, count, request->kept + out);
        for (uint32_t i = 0; i < count; ++i)
            chooser->kept[request->layer][head][i] = request->positions[at + request->kept[out + i]];
        request->kept_counts[head] = chooser->counts[request->layer][head] = count;
        at += candidates;
        out += count;
    }
    if (chooser->spoil != NULL) chooser->spoil(request);
    return 0;
}

static rrpc_sequence_options options_for(rrpc_engine *engine, chooser *chooser)
{
    rrpc_sequence_options options = plain_options(engine);
    options.policy = RRPC_POLICY_CALLBACK;
    options.interval = INTERVAL;
    options.window = WINDOW;
    options.ratio = RATIO;
    options.record_kept = 1;
    options.select = choose;
    options.user_data = chooser;
    return options;
}

static size_t text_of(const rrpc_sequence *sequence, uint32_t *tokens)
{
    size_t count = 0;
    NEED(rrpc_sequence_tokens(sequence, tokens, PROMPT_LENGTH + TOKENS, &count));
    return count;
}

static chooser alike(void)
{
    chooser chooser = {.calls = 0};
    for (int i = 0; i < LAYERS * KV_HEADS; ++i) chooser.eighths[i / KV_HEADS][i % KV_HEADS] = 8;
    return chooser;
}

/* A callback that does what a policy of the library does gives its text. */
static void what_a_policy_would_keep(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    uint32_t expected[PROMPT_LENGTH + TOKENS], found[PROMPT_LENGTH + TOKENS], plain[PROMPT_LENGTH + TOKENS];
    rrpc_generate_options generate = at_most(TOKENS);
    for (uint32_t softmax = RRPC_SOFTMAX_CANDIDATES; softmax <= RRPC_SOFTMAX_ALL; ++softmax) {
        chooser chooser = alike();
        rrpc_sequence_options options = options_for(engine, &chooser);
        options.softmax = softmax;
        rrpc_sequence *mine = prompted_with(engine, &options);
        options.policy = RRPC_POLICY_RPC;
        options.aggregation = RRPC_AGGREGATION_KV_HEAD;
        options.pooling = RRPC_POOLING_NONE;
        rrpc_sequence *theirs = prompted_with(engine, &options), *whole = prompted(engine);
        NEED(rrpc_generate(mine, &generate, NULL, NULL, NULL));
        NEED(rrpc_generate(theirs, &generate, NULL, NULL, NULL));
        NEED(rrpc_generate(whole, &generate, NULL, NULL, NULL));
        CHECK(chooser.calls == 6 * LAYERS && chooser.wrong == 0);
        size_t count = text_of(theirs, expected);
        CHECK(text_of(mine, found) == count && memcmp(found, expected, count * sizeof *found) == 0);
        CHECK(text_of(whole, plain) == count && memcmp(plain, expected, count * sizeof *found) != 0);
        rrpc_sequence_free(mine);
        rrpc_sequence_free(theirs);
        rrpc_sequence_free(whole);
    }
    rrpc_engine_free(engine);
}

/* Layers and KV heads have budgets of their own, within what was promised. */
static void budgets_of_layers_and_kv_heads(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    chooser chooser = {.eighths = {{14, 2}, {6, 6}, {0, 3}}};
    rrpc_sequence_options options = options_for(engine, &chooser);
    rrpc_sequence *sequence = prompted_with(engine, &options), *fork = NULL;
    rrpc_generate_options generate = at_most(TOKENS);
    NEED(rrpc_generate(sequence, &generate, NULL, NULL, NULL));
    CHECK(chooser.calls == 6 * LAYERS && chooser.wrong == 0);
    /* 219 are written; the last compression came at 200. */
    for (uint32_t layer = 0; layer < LAYERS; ++layer)
        for (uint32_t head = 0; head < KV_HEADS; ++head) {
            uint32_t keep = 6 * (INTERVAL / RATIO) * chooser.eighths[layer][head] / 8;
            rrpc_cache_view view = {.struct_size = sizeof view};
            NEED(rrpc_sequence_cache_view(sequence, layer, head, &view));
            CHECK(view.length == PROMPT_LENGTH + keep + WINDOW + 19);
            uint32_t kept[TOKENS];
            size_t count = 0;
            NEED(rrpc_sequence_compression_kept(sequence, 5 * LAYERS + layer, head, kept, TOKENS, &count));
            CHECK(count == keep && memcmp(kept, chooser.kept[layer][head], keep * sizeof *kept) == 0);
        }
    rrpc_sequence_stats stats = {.struct_size = sizeof stats};
    uint64_t peak = 0;
    NEED(rrpc_sequence_get_stats(sequence, &stats));
    OK(rrpc_peak_cache_bytes(engine, &options, PROMPT_LENGTH, TOKENS, NULL, &peak));
    CHECK(stats.compressions == 6 && stats.cache_peak_bytes <= peak);
    NEED(rrpc_sequence_fork(sequence, &fork));
    NEED(rrpc_generate(fork, &generate, NULL, NULL, NULL));
    CHECK(chooser.calls > 6 * LAYERS && chooser.wrong == 0);
    /* Which function it was no file can say. */
    size_t size = 0;
    FAILS(INVALID_ARGUMENT, "callback", rrpc_sequence_save(sequence, NULL, 0, &size));
    rrpc_sequence_free(fork);
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static void too_many(rrpc_sequence_select_request *request)
{
    ++request->kept_counts[0];
}

static void far_too_many(rrpc_sequence_select_request *request)
{
    request->kept_counts[0] = request->kept_counts[1] = UINT32_MAX;
}

static void beyond(rrpc_sequence_select_request *request)
{
    request->kept[request->kept_counts[0] - 1] = request->candidates[0];
}

static void disorder(rrpc_sequence_select_request *request)
{
    request->kept[1] = request->kept[0];
}

static void what_cannot_be_is_refused(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_generate_options generate = at_most(TOKENS);
    const struct {
        int32_t answer;
        void (*spoil)(rrpc_sequence_select_request *request);
        const char *words;
    } cases[] = {
        {7, NULL, "expected 0, found 7 from the callback"},
        {0, too_many, "kept_counts: expected at most 16 in all, found 17"},
        {0, far_too_many, "found 8589934590"},
        {0, beyond, "plan of KV head 0: expected indices below 32 (its candidates), found 32"},
        {0, disorder, "plan of KV head 0: expected strictly ascending indices"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        chooser chooser = alike();
        chooser.answer = cases[i].answer;
        chooser.spoil = cases[i].spoil;
        rrpc_sequence_options options = options_for(engine, &chooser);
        rrpc_sequence *sequence = prompted_with(engine, &options);
        FAILS(CALLBACK, cases[i].words, rrpc_generate(sequence, &generate, NULL, NULL, NULL));
        FAILS(POISONED, "earlier error", rrpc_generate(sequence, &generate, NULL, NULL, NULL));
        rrpc_sequence_free(sequence);
    }
    rrpc_sequence_options options = options_for(engine, NULL);
    rrpc_sequence *sequence = NULL;
    options.select = NULL;
    FAILS(NULL_POINTER, "options.select", rrpc_sequence_create(engine, &options, &sequence));
    options.select = choose;
    options.window = INTERVAL;
    FAILS(INVALID_ARGUMENT, "window", rrpc_sequence_create(engine, &options, &sequence));
    rrpc_engine_free(engine);
}

static void on_release(void *user_data)
{
    ++*(int *)user_data;
}

static int32_t free_it(const rrpc_event *event, void *user_data)
{
    if (event->kind == RRPC_EVENT_TOKEN) rrpc_sequence_free(user_data);
    return 0;
}

static int32_t keep_none(rrpc_sequence_select_request *request, void *user_data)
{
    (void)request;
    (void)user_data;
    return 0;
}

/* Once, when the last that may call has gone; never for a sequence that was not made. */
static void the_data_is_released(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_generate_options generate = at_most(INTERVAL + WINDOW + 4);
    int released = 0;
    chooser chooser = alike();
    rrpc_sequence_options options = options_for(engine, &chooser);
    options.user_data = &released;
    options.release = on_release;
    options.select = keep_none;
    rrpc_sequence *sequence = prompted_with(engine, &options), *fork = NULL;
    NEED(rrpc_sequence_fork(sequence, &fork));
    rrpc_sequence_free(sequence);
    CHECK(released == 0);
    NEED(rrpc_generate(fork, &generate, NULL, NULL, NULL));
    rrpc_sequence_free(fork);
    CHECK(released == 1);

    /* Freed while it generates, by its own callback: the rest of the answer may still select. */
    sequence = prompted_with(engine, &options);
    NEED(rrpc_generate(sequence, &generate, free_it, sequence, NULL));
    CHECK(released == 2);

    /* An answer of a scheduler has the sequence. */
    rrpc_scheduler *scheduler = NULL;
    rrpc_answer *answer = NULL;
    NEED(rrpc_scheduler_create(engine, NULL, &scheduler));
    sequence = prompted_with(engine, &options);
    NEED(rrpc_scheduler_submit(scheduler, sequence, &generate, &answer));
    rrpc_sequence_free(sequence);
    rrpc_event event = {.struct_size = sizeof event};
    do NEED(rrpc_answer_next(answer, RRPC_WAIT_FOREVER, &event));
    while (event.kind != RRPC_EVENT_END);
    rrpc_answer_free(answer);
    rrpc_scheduler_free(scheduler);
    CHECK(released == 3);

    sequence = NULL;
    options.window = INTERVAL;
    FAILS(INVALID_ARGUMENT, "window", rrpc_sequence_create(engine, &options, &sequence));
    options.window = WINDOW;
    uint64_t peak = 0;
    OK(rrpc_peak_cache_bytes(engine, &options, PROMPT_LENGTH, TOKENS, NULL, &peak));
    options.policy = RRPC_POLICY_RPC;
    rrpc_sequence_free(prompted_with(engine, &options));
    CHECK(released == 3);
    rrpc_engine_free(engine);
}

int main(void)
{
    RUN(what_a_policy_would_keep);
    RUN(budgets_of_layers_and_kv_heads);
    RUN(what_cannot_be_is_refused);
    RUN(the_data_is_released);
    return check_end("select");
}
