/* Forks, rewinds and the view of the cache. */
#include "check.h"

enum { KV_HEADS = 2, HEAD_DIM = 16, BLOCK = 16, LONGEST = 256 };

static rrpc_sequence_options rpc_options(rrpc_engine *engine)
{
    rrpc_sequence_options options = plain_options(engine);
    options.policy = RRPC_POLICY_RPC;
    options.interval = 32;
    options.window = 8;
    options.ratio = 4;
    options.aggregation = RRPC_AGGREGATION_KV_HEAD;
    options.record_kept = 1;
    options.temperature = 0.9f;
    options.repetition_penalty = 1.1f;
    options.seed = 5;
    return options;
}

static rrpc_sequence *started(rrpc_engine *engine, const rrpc_sequence_options *options)
{
    rrpc_sequence *sequence = NULL;
    NEED(rrpc_sequence_create(engine, options, &sequence));
    NEED(rrpc_sequence_append_tokens(sequence, PROMPT, PROMPT_LENGTH));
    return sequence;
}

static void run_pending(rrpc_sequence *sequence)
{
    size_t pending = 0;
    NEED(rrpc_sequence_pending(sequence, &pending));
    while (pending > 0) {
        NEED(rrpc_step(&sequence, 1));
        NEED(rrpc_sequence_pending(sequence, &pending));
    }
}

/* Draws `count` tokens; the last one is not run. */
static void draw(rrpc_sequence *sequence, int count)
{
    for (; count > 0; --count) {
        run_pending(sequence);
        NEED(rrpc_sequence_sample(sequence, NULL));
    }
}

typedef struct {
    uint32_t tokens[LONGEST];
    size_t count;
    uint32_t kept[LONGEST]; /* of the last compression of layer 0, KV head 1 */
    size_t kept_count, compressions;
} outcome;

static outcome outcome_of(const rrpc_sequence *sequence)
{
    outcome found;
    memset(&found, 0, sizeof found);
    NEED(rrpc_sequence_tokens(sequence, found.tokens, LONGEST, &found.count));
    NEED(rrpc_sequence_compression_count(sequence, &found.compressions));
    if (found.compressions > 0)
        NEED(rrpc_sequence_compression_kept(sequence, found.compressions - LAYERS, 1, found.kept, LONGEST, &found.kept_count));
    return found;
}

static int same(const outcome *a, const outcome *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

static rrpc_cache_view view_of(const rrpc_sequence *sequence, uint32_t layer, uint32_t kv_head)
{
    rrpc_cache_view view;
    memset(&view, 0xff, sizeof view);
    view.struct_size = sizeof view;
    NEED(rrpc_sequence_cache_view(sequence, layer, kv_head, &view));
    return view;
}

static const char *entry_of(const rrpc_cache_view *view, const void *base, uint64_t entry, uint64_t stride)
{
    uint64_t block = view->block_table[entry / view->block_entries];
    return (const char *)base + block * view->block_stride + entry % view->block_entries * stride;
}

static const char *key_of(const rrpc_cache_view *view, uint64_t entry)
{
    return entry_of(view, view->keys, entry, view->entry_stride);
}

static const char *value_of(const rrpc_cache_view *view, uint64_t entry)
{
    return entry_of(view, view->values, entry, view->entry_stride);
}

static uint32_t position_of(const rrpc_cache_view *view, uint64_t entry)
{
    uint32_t position;
    memcpy(&position, entry_of(view, view->positions, entry, sizeof position), sizeof position);
    return position;
}

/* Whether two caches hold the same bytes; the positions of each KV head ascend. */
static int same_caches(const rrpc_sequence *a, const rrpc_sequence *b)
{
    int good = 1;
    for (uint32_t layer = 0; layer < LAYERS; ++layer)
        for (uint32_t head = 0; head < KV_HEADS; ++head) {
            rrpc_cache_view one = view_of(a, layer, head), other = view_of(b, layer, head);
            good &= CHECK(one.length == other.length && one.entry_stride == other.entry_stride);
            for (uint64_t entry = 0; good && entry < one.length; ++entry) {
                good &= memcmp(key_of(&one, entry), key_of(&other, entry), one.entry_stride) == 0;
                good &= memcmp(value_of(&one, entry), value_of(&other, entry), one.entry_stride) == 0;
                good &= position_of(&one, entry) == position_of(&other, entry);
                good &= entry == 0 || position_of(&one, entry) > position_of(&one, entry - 1);
            }
        }
    return good;
}

static void forks_write_what_the_parent_writes(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_sequence_options options = rpc_options(engine);
    rrpc_sequence *whole = started(engine, &options);
    draw(whole, 120);
    outcome expected = outcome_of(whole);
    CHECK(expected.compressions == 3 * LAYERS && expected.kept_count == 24);

    /* In the middle of the first window, and of a block. */
    rrpc_sequence *parent = started(engine, &options), *child = NULL, *grandchild = NULL;
    draw(parent, 37);
    OK(rrpc_sequence_fork(parent, &child));
    CHECK(child != NULL && child != parent && same_caches(parent, child));
    draw(child, 30);
    OK(rrpc_sequence_fork(child, &grandchild));
    draw(parent, 83);
    outcome found = outcome_of(parent);
    CHECK(same(&found, &expected) && same_caches(parent, whole));
    rrpc_sequence_free(parent);
    rrpc_sequence_free(whole);
    draw(child, 53);
    found = outcome_of(child);
    CHECK(same(&found, &expected));
    rrpc_sequence_free(child);
    /* Its parents are gone; so is the caller's engine. */
    rrpc_engine_free(engine);
    draw(grandchild, 53);
    found = outcome_of(grandchild);
    CHECK(same(&found, &expected));
    rrpc_sequence_free(grandchild);
}

static void forks_with_seeds_of_their_own_write_answers_of_their_own(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_sequence_options options = rpc_options(engine);
    rrpc_sequence *parent = started(engine, &options), *forks[3];
    draw(parent, 5);
    run_pending(parent);
    outcome answers[3];
    for (int i = 0; i < 3; ++i) {
        NEED(rrpc_sequence_fork(parent, &forks[i]));
        OK(rrpc_sequence_set_seed(forks[i], i == 2 ? 100 : 100 + (uint64_t)i));
    }
    for (int step = 0; step < 60; ++step) {
        for (int i = 0; i < 3; ++i) NEED(rrpc_sequence_sample(forks[i], NULL));
        NEED(rrpc_step(forks, 3));
    }
    for (int i = 0; i < 3; ++i) answers[i] = outcome_of(forks[i]);
    CHECK(same(&answers[0], &answers[2]));
    CHECK(!same(&answers[0], &answers[1]));
    CHECK(memcmp(answers[0].tokens, answers[1].tokens, (PROMPT_LENGTH + 5) * sizeof(uint32_t)) == 0);
    /* A rewind puts the draws of the seed in use back. */
    OK(rrpc_sequence_rewind(forks[1], PROMPT_LENGTH + 5 + 45));
    draw(forks[1], 15);
    run_pending(forks[1]);
    outcome again = outcome_of(forks[1]);
    CHECK(same(&again, &answers[1]));
    for (int i = 0; i < 3; ++i) rrpc_sequence_free(forks[i]);
    rrpc_sequence_free(parent);
    rrpc_engine_free(engine);
}

static void shared_blocks_have_one_number_until_they_are_written(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_sequence *parent = prompted(engine), *child = NULL;
    draw(parent, 30);
    run_pending(parent);
    NEED(rrpc_sequence_fork(parent, &child));
    rrpc_cache_view one = view_of(parent, 2, 1), other = view_of(child, 2, 1);
    CHECK(one.struct_size == sizeof one && one.length == PROMPT_LENGTH + 30 && one.block_count == 3);
    CHECK(one.block_entries == BLOCK && one.head_dim == HEAD_DIM && one.dtype == RRPC_DTYPE_F32 && one.reserved == 0);
    CHECK(one.entry_stride == HEAD_DIM * sizeof(float));
    CHECK(one.block_stride == BLOCK * (2 * HEAD_DIM * sizeof(float) + sizeof(uint32_t)));
    CHECK(one.keys == other.keys && memcmp(one.block_table, other.block_table, 3 * sizeof(uint32_t)) == 0);
    for (uint64_t entry = 0; entry < one.length; ++entry) CHECK(position_of(&one, entry) == entry);
    /* The child writes the third. */
    draw(child, 1);
    run_pending(child);
    one = view_of(parent, 2, 1);
    other = view_of(child, 2, 1);
    CHECK(memcmp(one.block_table, other.block_table, 2 * sizeof(uint32_t)) == 0);
    CHECK(one.block_table[2] != other.block_table[2] && other.length == one.length + 1);
    OK(rrpc_sequence_rewind(child, PROMPT_LENGTH + 31));
    CHECK(same_caches(parent, child));
    rrpc_sequence_free(child);
    rrpc_sequence_free(parent);
    rrpc_engine_free(engine);
}

/* The stock operators' cache, from another graph and in another layout. They differ in the order of
   their float32 sums: 64 products of a size below 16 each round by less than 2^-20, together 6e-5. */
static void the_view_shows_what_the_stock_operators_compute(void)
{
    rrpc_engine *engines[2] = {open_engine(MODEL), open_portable()};
    rrpc_sequence *sequences[2], *fork = NULL;
    for (int i = 0; i < 2; ++i) {
        sequences[i] = prompted(engines[i]);
        draw(sequences[i], 60);
        run_pending(sequences[i]);
    }
    float largest = 0, difference = 0;
    for (uint32_t layer = 0; layer < LAYERS; ++layer)
        for (uint32_t head = 0; head < KV_HEADS; ++head) {
            rrpc_cache_view paged = view_of(sequences[0], layer, head), flat = view_of(sequences[1], layer, head);
            CHECK(paged.length == PROMPT_LENGTH + 60 && flat.length == paged.length);
            CHECK(flat.block_count == 1 && flat.block_table[0] == 0 && flat.block_entries >= flat.length);
            CHECK(paged.block_count == 5);
            for (uint64_t entry = 0; entry < paged.length; ++entry) {
                float a[2 * HEAD_DIM], b[2 * HEAD_DIM];
                memcpy(a, key_of(&paged, entry), HEAD_DIM * sizeof(float));
                memcpy(a + HEAD_DIM, value_of(&paged, entry), HEAD_DIM * sizeof(float));
                memcpy(b, key_of(&flat, entry), HEAD_DIM * sizeof(float));
                memcpy(b + HEAD_DIM, value_of(&flat, entry), HEAD_DIM * sizeof(float));
                for (int i = 0; i < 2 * HEAD_DIM; ++i) {
                    float size = a[i] < 0 ? -a[i] : a[i], apart = a[i] < b[i] ? b[i] - a[i] : a[i] - b[i];
                    largest = size > largest ? size : largest;
                    if (!(apart <= difference)) difference = apart;
                }
                CHECK(position_of(&paged, entry) == entry && position_of(&flat, entry) == entry);
            }
        }
    printf("keys and values: largest %g, largest difference %g\n", (double)largest, (double)difference);
    CHECK(largest > 0.1f && difference < 1e-4f);
    /* A fork of the portable flavour is a copy. */
    NEED(rrpc_sequence_fork(sequences[1], &fork));
    CHECK(view_of(fork, 0, 0).keys != view_of(sequences[1], 0, 0).keys);
    CHECK(same_caches(fork, sequences[1]));
    draw(fork, 40);
    draw(sequences[1], 40);
    outcome one = outcome_of(fork), other = outcome_of(sequences[1]);
    CHECK(same(&one, &other));
    rrpc_sequence_free(fork);
    for (int i = 0; i < 2; ++i) {
        rrpc_sequence_free(sequences[i]);
        rrpc_engine_free(engines[i]);
    }
}

static float number_at(const void *from, uint32_t dtype, uint32_t i)
{
    if (dtype == RRPC_DTYPE_I8) return ((const int8_t *)from)[i];
    if (dtype == RRPC_DTYPE_F32) return ((const float *)from)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)from)[i] << 16; /* bfloat16 */
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

/* The keys and values of the first layer are those of fp32 but for half a step: of 8 bits of precision, or
   1/127 of a row's largest. */
static void the_view_of_other_types_shows_the_same_rounded(void)
{
    static const uint32_t types[] = {RRPC_DTYPE_F32, RRPC_DTYPE_BF16, RRPC_DTYPE_I8};
    static const uint64_t bytes[] = {2 * 4 * HEAD_DIM + 4, 2 * 2 * HEAD_DIM + 4, 2 * (HEAD_DIM + 4) + 4};
    rrpc_sequence *sequences[3];
    rrpc_engine *engines[3];
    for (int i = 0; i < 3; ++i) {
        rrpc_engine_options options;
        NEED(rrpc_engine_options_init(&options, sizeof options));
        options.cache_dtype = types[i];
        options.block_entries = BLOCK;
        NEED(rrpc_engine_open(MODEL, &options, &engines[i]));
        rrpc_engine_info info = {.struct_size = sizeof info};
        OK(rrpc_engine_get_info(engines[i], &info));
        CHECK(info.cache_dtype == types[i] && info.token_bytes == LAYERS * KV_HEADS * bytes[i]);
        sequences[i] = prompted(engines[i]);
        rrpc_cache_view empty = view_of(sequences[i], 0, 0);
        CHECK(empty.key_scales == NULL && empty.value_scales == NULL);
        run_pending(sequences[i]);
    }
    for (int i = 1; i < 3; ++i) {
        rrpc_cache_view exact = view_of(sequences[0], 0, 1), rounded = view_of(sequences[i], 0, 1);
        CHECK(exact.key_scales == NULL && exact.value_scales == NULL && rounded.dtype == types[i]);
        CHECK((rounded.key_scales != NULL) == (types[i] == RRPC_DTYPE_I8)
              && (rounded.value_scales != NULL) == (types[i] == RRPC_DTYPE_I8));
        CHECK(rounded.length == PROMPT_LENGTH && rounded.block_stride == BLOCK * bytes[i]);
        for (uint64_t entry = 0; entry < rounded.length; ++entry)
            for (int value = 0; value < 2; ++value) {
                const void *from = value ? value_of(&exact, entry) : key_of(&exact, entry);
                const void *to = value ? value_of(&rounded, entry) : key_of(&rounded, entry);
                float scale = 1, largest = 0;
                if (types[i] == RRPC_DTYPE_I8) {
                    const float *scales = value ? rounded.value_scales : rounded.key_scales;
                    memcpy(&scale, entry_of(&rounded, scales, entry, sizeof scale), sizeof scale);
                }
                for (uint32_t d = 0; d < HEAD_DIM; ++d) {
                    float x = number_at(from, RRPC_DTYPE_F32, d);
                    largest = x > largest ? x : -x > largest ? -x : largest;
                }
                for (uint32_t d = 0; d < HEAD_DIM; ++d) {
                    float x = number_at(from, RRPC_DTYPE_F32, d), y = number_at(to, types[i], d) * scale;
                    float size = x < 0 ? -x : x, apart = x < y ? y - x : x - y;
                    float half_step = types[i] == RRPC_DTYPE_I8 ? largest / 254 : size / 256;
                    /* The bound is itself float32. */
                    CHECK(apart <= half_step * 1.00001f);
                }
            }
    }
    for (int i = 0; i < 3; ++i) {
        rrpc_sequence_free(sequences[i]);
        rrpc_engine_free(engines[i]);
    }
}

static void a_rewind_replays(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_sequence_options options = rpc_options(engine);
    rrpc_sequence *sequence = started(engine, &options);
    FAILS(INVALID_ARGUMENT, "expected 1 to 12 tokens, found 0", rrpc_sequence_rewind(sequence, 0));
    FAILS(INVALID_ARGUMENT, "found 13", rrpc_sequence_rewind(sequence, PROMPT_LENGTH + 1));
    FAILS(INVALID_ARGUMENT, "found 18446744073709551615", rrpc_sequence_rewind(sequence, SIZE_MAX));
    draw(sequence, 71);
    outcome expected = outcome_of(sequence);
    CHECK(expected.compressions == LAYERS);
    /* 40 generated tokens were written when it was compressed. */
    FAILS(INVALID_ARGUMENT, "expected 53 to 83 tokens", rrpc_sequence_rewind(sequence, 52));
    static const int lengths[] = {83, 82, 77, 60, 53};
    for (int i = 0; i < 5; ++i) {
        OK(rrpc_sequence_rewind(sequence, (size_t)lengths[i]));
        size_t pending = 0, count = 0;
        const float *logits = NULL;
        OK(rrpc_sequence_pending(sequence, &pending));
        OK(rrpc_sequence_logits(sequence, &logits, &count));
        CHECK(pending == 1 && logits == NULL);
        draw(sequence, 83 - lengths[i]);
        outcome found = outcome_of(sequence);
        CHECK(same(&found, &expected));
    }
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static void a_fork_that_cannot_be_promised_is_refused(void)
{
    rrpc_engine_options options;
    NEED(rrpc_engine_options_init(&options, sizeof options));
    options.cache_dtype = RRPC_DTYPE_F32;
    options.block_entries = BLOCK;
    options.budget_bytes = BLOCK * 792; /* one block for each KV head */
    rrpc_engine *engine = NULL;
    NEED(rrpc_engine_open(MODEL, &options, &engine));
    rrpc_sequence *sequence = prompted(engine), *fork = sequence;
    run_pending(sequence);
    FAILS(BUDGET, "12672 more bytes needed, 0 bytes available", rrpc_sequence_fork(sequence, &fork));
    CHECK(fork == NULL);
    draw(sequence, 4);
    run_pending(sequence);
    /* Now its blocks are full: nobody will write them. */
    OK(rrpc_sequence_fork(sequence, &fork));
    CHECK(same_caches(sequence, fork));
    draw(fork, 1);
    FAILS(BUDGET, "", rrpc_step(&fork, 1));
    rrpc_sequence_free(fork);
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static int32_t meddle(const rrpc_event *event, void *user_data)
{
    rrpc_sequence *sequence = user_data, *fork = sequence;
    rrpc_cache_view view = {.struct_size = sizeof view};
    (void)event;
    FAILS(BUSY, "in use", rrpc_sequence_fork(sequence, &fork));
    CHECK(fork == NULL);
    FAILS(BUSY, "in use", rrpc_sequence_set_seed(sequence, 1));
    FAILS(BUSY, "in use", rrpc_sequence_rewind(sequence, 1));
    FAILS(BUSY, "in use", rrpc_sequence_cache_view(sequence, 0, 0, &view));
    return 0;
}

static void what_cannot_be_is_refused(void)
{
    rrpc_engine *engine = open_engine(MODEL);
    rrpc_sequence *sequence = prompted(engine), *fork = NULL;
    /* Without entries there is nothing to point to. */
    rrpc_cache_view view = view_of(sequence, 0, 0);
    CHECK(view.length == 0 && view.block_count == 0 && view.keys == NULL && view.positions == NULL
          && view.block_table == NULL);
    OK(rrpc_sequence_fork(sequence, &fork));
    draw(fork, 1);
    rrpc_sequence_free(fork);

    FAILS(NULL_POINTER, "fork", rrpc_sequence_fork(sequence, NULL));
    FAILS(NULL_POINTER, "view", rrpc_sequence_cache_view(sequence, 0, 0, NULL));
    FAILS(INVALID_ARGUMENT, "layer: expected 0 to 2, found 3", rrpc_sequence_cache_view(sequence, 3, 0, &view));
    FAILS(INVALID_ARGUMENT, "KV head: expected 0 to 1, found 4294967295",
          rrpc_sequence_cache_view(sequence, 0, UINT32_MAX, &view));
    view.struct_size = 0;
    FAILS(INVALID_ARGUMENT, "rrpc_cache_view.struct_size", rrpc_sequence_cache_view(sequence, 0, 0, &view));
    /* An older caller's struct ends early. */
    struct { size_t struct_size; const void *keys, *after; } older = {2 * sizeof(size_t), NULL, &older};
    run_pending(sequence);
    OK(rrpc_sequence_cache_view(sequence, 0, 0, (rrpc_cache_view *)(void *)&older));
    CHECK(older.keys != NULL && older.after == &older);

    rrpc_generate_options two = at_most(2);
    OK(rrpc_generate(sequence, &two, meddle, sequence, NULL));

    rrpc_sequence_free(sequence);
    rrpc_sequence *wrong[] = {NULL, sequence, (rrpc_sequence *)engine, (rrpc_sequence *)(void *)&view};
    for (int i = 0; i < 4; ++i) {
        fork = sequence;
        view.struct_size = sizeof view;
        rrpc_error *errors[] = {rrpc_sequence_fork(wrong[i], &fork), rrpc_sequence_set_seed(wrong[i], 1),
                                rrpc_sequence_rewind(wrong[i], 1), rrpc_sequence_cache_view(wrong[i], 0, 0, &view)};
        for (int call = 0; call < 4; ++call) {
            CHECK(rrpc_error_code(errors[call]) == (i == 0 ? RRPC_ERROR_NULL_POINTER : RRPC_ERROR_INVALID_HANDLE));
            rrpc_error_free(errors[call]);
        }
        CHECK(fork == NULL);
    }
    rrpc_engine_free(engine);
}

int main(void)
{
    RUN(forks_write_what_the_parent_writes);
    RUN(forks_with_seeds_of_their_own_write_answers_of_their_own);
    RUN(shared_blocks_have_one_number_until_they_are_written);
    RUN(the_view_shows_what_the_stock_operators_compute);
    RUN(the_view_of_other_types_shows_the_same_rounded);
    RUN(a_rewind_replays);
    RUN(a_fork_that_cannot_be_promised_is_refused);
    RUN(what_cannot_be_is_refused);
    return check_end("forks");
}
