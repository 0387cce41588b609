/* 100,000 random sequences of calls (ABI_MISUSE_RUNS) with NULLs, freed, foreign and invented handles, calls in any order,
   impossible lengths, structs of other versions' sizes, hostile plans and blobs. Nothing may crash, hang or write where it
   must not (AddressSanitizer watches), and in between the engine still answers as ever. SEED= replays a run; what a
   sequence of calls did is printed if it does not end. */
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

static uint64_t state;

static uint64_t next(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state * 0x2545f4914f6cdd1du;
}

static uint32_t below(uint32_t limit)
{
    return (uint32_t)((next() >> 33) % limit);
}

static int one_in(uint32_t n)
{
    return below(n) == 0;
}

static uint64_t number(void)
{
    static const uint64_t SPECIAL[] = {0, 1, 2, 3, 15, 16, 64, 4095, 4096, 65536, 65537, 1u << 20, INT32_MAX,
                                       UINT32_MAX, (uint64_t)1 << 32, INT64_MAX, UINT64_MAX - 1, UINT64_MAX};
    switch (below(3)) {
    case 0: return SPECIAL[below(sizeof SPECIAL / sizeof SPECIAL[0])];
    case 1: return below(40);
    default: return next();
    }
}

/* The calls of the sequence under way, for the report. */
static const char *trace[64];
static int traced;
static uint64_t run, run_state;

static void stuck(int signal)
{
    char text[2048];
    int len = snprintf(text, sizeof text, "signal %d in run %llu:", signal, (unsigned long long)run);
    for (int i = 0; i < traced && len < (int)sizeof text - 64; ++i) {
        len += snprintf(text + len, sizeof text - (size_t)len, " %s", trace[i]);
    }
    text[len] = '\n';
    if (write(1, text, (size_t)len + 1) < 0) _exit(4);
    _exit(3);
}

/* Every result is looked at: a known code, a message that ends. */
static uint64_t seen[32];
static uint64_t calls;

static int look(const char *name, rrpc_error *error)
{
    if (traced < 64) trace[traced++] = name;
    ++calls;
    int32_t code = rrpc_error_code(error);
    const char *message = rrpc_error_message(error);
    if (code < 0 || code > RRPC_ERROR_CALLBACK || code == RRPC_ERROR_INTERNAL || strlen(message) == 0
        || strlen(message) > 4096) {
        printf("run %llu: %s gave code %d: %s\n", (unsigned long long)run, name, (int)code, message);
        ++failures_in_test;
    } else {
        ++seen[code];
    }
    rrpc_error_free(error);
    return code == RRPC_OK;
}

#define CALL(name, ...) look(#name, name(__VA_ARGS__))

/* ---- Handles ---- */

enum { ENGINE, SEQUENCE, COMPRESSOR, TENSOR, SCHEDULER, SCHEDULED, KINDS, LIVE = 6, STALE = 32 };

static void *live[KINDS][LIVE], *stale[STALE];
static rrpc_engine *engine;

static void *handle(int kind)
{
    switch (below(10)) {
    case 0: return NULL;
    case 1: return stale[below(STALE)];
    case 2: return live[below(KINDS)][below(LIVE)];
    case 3: {
        uintptr_t invented = (uintptr_t)number();
        if (one_in(2)) invented = (uintptr_t)stale[below(STALE)] ^ ((uintptr_t)1 << below(64));
        for (int k = 0; k < KINDS; ++k) {
            for (int i = 0; i < LIVE; ++i) {
                if (live[k][i] == (void *)invented) return NULL;
            }
        }
        return (void *)invented;
    }
    default: return kind == ENGINE ? (void *)engine : live[kind][below(LIVE)];
    }
}

static void free_handle(int kind, void *old)
{
    if (kind == ENGINE) rrpc_engine_free(old);
    if (kind == SEQUENCE) rrpc_sequence_free(old);
    if (kind == COMPRESSOR) rrpc_compressor_free(old);
    if (kind == TENSOR) rrpc_tensor_free(old);
    if (kind == SCHEDULER) rrpc_scheduler_free(old);
    if (kind == SCHEDULED) rrpc_answer_free(old);
}

static void keep(int kind, void *made)
{
    if (made == NULL) return;
    uint32_t place = below(LIVE);
    void *old = live[kind][place];
    live[kind][place] = made;
    if (old == NULL) return;
    stale[below(STALE)] = old;
    free_handle(kind, old);
}

/* ---- Memory that may be given ---- */

enum { ROOM = 1 << 14 };

static uint64_t room[ROOM / 8];

static void *buffer(size_t *capacity)
{
    *capacity = one_in(4) ? 0 : below(ROOM / 8);
    if (one_in(4)) {
        if (one_in(2)) *capacity = 0;
        return NULL;
    }
    return (char *)room + (one_in(8) ? 1 : 0);
}

/* A struct of any size: the real one filled by `known`, cut or grown, with or without a tail. */
static union {
    size_t struct_size;
    char bytes[8192];
    uint64_t aligned;
} any;

static void *any_struct(const void *known, size_t size)
{
    memset(&any, 0, sizeof any);
    memcpy(&any, known, size);
    switch (below(6)) {
    case 0: any.struct_size = 8 + below((uint32_t)size); break;
    case 1: any.struct_size = size + below(512); break;
    case 2:
        any.struct_size = size + 8 + below(512);
        memset(any.bytes + size, (int)below(256), any.struct_size - size);
        break;
    case 3: any.struct_size = one_in(2) ? (size_t)below(8) : 4097 + (size_t)number() / 2; break;
    default: any.struct_size = size;
    }
    return one_in(20) ? NULL : &any;
}

static void *output(size_t size)
{
    uint64_t nothing[64] = {0};
    return any_struct(nothing, size > sizeof nothing ? sizeof nothing : size);
}

static const char *text(size_t *len)
{
    static const char *TEXTS[] = {"", "a", "Once upon a time", "<|im_start|>user\n", "\xff\xfe", "\xe2\x82", "a\0b"};
    const char *chosen = TEXTS[below(sizeof TEXTS / sizeof TEXTS[0])];
    switch (below(5)) {
    case 0: *len = RRPC_NUL_TERMINATED; return chosen;
    case 1: *len = strlen(chosen); return chosen;
    case 2: *len = ((size_t)256 << 20) + 1 + (size_t)(number() >> 2); return chosen;
    case 3: *len = one_in(2) ? 0 : (size_t)number(); return NULL;
    default: *len = 3; return "abc";
    }
}

/* ---- Engines and sequences ---- */

static int32_t on_event(const rrpc_event *event, void *user_data)
{
    rrpc_sequence *sequence = user_data;
    if (event->text == NULL || event->struct_size < sizeof *event) ++failures_in_test;
    switch (below(12)) {
    case 0: CALL(rrpc_sequence_sample, sequence, NULL); return 0;
    case 1: CALL(rrpc_sequence_append_tokens, sequence, PROMPT, 2); return 0;
    case 2: rrpc_sequence_free(sequence); return 0;
    case 3: return (int32_t)number();
    default: return 0;
    }
}

/* Right answers and wrong ones. */
static int32_t select_anything(rrpc_sequence_select_request *request, void *user_data)
{
    uint32_t *kept = request->kept;
    if (request->struct_size < sizeof *request || user_data != NULL) ++failures_in_test;
    for (uint32_t head = 0; head < request->kv_heads; ++head) {
        uint32_t count = below(1 + (uint32_t)request->most / request->kv_heads);
        count = count < request->candidates[head] ? count : request->candidates[head];
        for (uint32_t i = 0; i < count; ++i) *kept++ = one_in(400) ? (uint32_t)number() : i;
        request->kept_counts[head] = one_in(40) ? (uint32_t)number() : count;
    }
    return one_in(20) ? (int32_t)number() : 0;
}

static void create_sequence(void)
{
    rrpc_sequence_options options;
    if (!CALL(rrpc_sequence_options_init, engine, &options, sizeof options)) return;
    options.interval = one_in(4) ? (uint32_t)number() : 16;
    options.window = one_in(4) ? (uint32_t)number() : 4;
    options.ratio = one_in(4) ? (uint32_t)number() : 4;
    options.policy = below(one_in(4) ? 12 : 3);
    options.select = one_in(8) ? NULL : select_anything;
    options.aggregation = below(one_in(8) ? 9 : 2);
    options.kernel = one_in(8) ? (uint32_t)number() : 7;
    options.record_kept = below(one_in(8) ? 9 : 2);
    options.temperature = one_in(8) ? -1.0f : one_in(2) ? 0 : 0.8f;
    if (one_in(16)) memset(&options.top_p, (int)below(256), 4);
    options.seed = number();
    rrpc_sequence *made = NULL;
    const void *given = one_in(3) ? any_struct(&options, sizeof options) : &options;
    if (CALL(rrpc_sequence_create, handle(ENGINE), given, one_in(20) ? NULL : &made)) {
        CALL(rrpc_sequence_append_tokens, made, PROMPT, 1 + below(PROMPT_LENGTH));
    }
    keep(SEQUENCE, made);
}

static rrpc_generate_options short_answer(void)
{
    rrpc_generate_options options;
    CALL(rrpc_generate_options_init, &options, sizeof options);
    options.max_tokens = below(30);
    options.ignore_eos = below(one_in(8) ? 5 : 2);
    static const rrpc_text STOPS[] = {{"a", 1}, {"", 0}, {NULL, 0}, {"\xff", 1}};
    if (one_in(4)) {
        options.stop = one_in(4) ? NULL : STOPS;
        options.stop_count = one_in(4) ? (size_t)1025 + (size_t)(number() >> 1) : below(5);
    }
    return options;
}

/* ---- Schedulers ---- */

static void use_scheduler(void)
{
    rrpc_scheduler *scheduler = handle(SCHEDULER), *made = NULL;
    rrpc_answer *answer = handle(SCHEDULED), *submitted = NULL;
    size_t capacity, count;
    void *out = buffer(&capacity);
    int32_t fd;
    switch (below(12)) {
    case 0: {
        rrpc_scheduler_options options;
        CALL(rrpc_scheduler_options_init, &options, sizeof options);
        options.max_rows = one_in(8) ? (uint32_t)number() : 1 + below(4);
        options.step_tokens = one_in(8) ? (uint32_t)number() : 1 + below(20);
        options.queue_events = one_in(8) ? (uint32_t)number() : 1 + below(4);
        options.max_waiting = one_in(8) ? (uint32_t)number() : 1 + below(4);
        CALL(rrpc_scheduler_create, handle(ENGINE), one_in(4) ? any_struct(&options, sizeof options) : &options, one_in(20) ? NULL : &made);
        keep(SCHEDULER, made);
        break;
    }
    case 1: case 2: case 3: {
        /* Never an answer without end: it would hold the budget while the engine is asked whether it is well. */
        rrpc_generate_options options = short_answer();
        CALL(rrpc_scheduler_submit, scheduler, handle(SEQUENCE), &options, one_in(20) ? NULL : &submitted);
        keep(SCHEDULED, submitted);
        break;
    }
    case 4: case 5: case 6: CALL(rrpc_answer_next, answer, below(3), output(sizeof(rrpc_event))); break;
    case 7:
        if (CALL(rrpc_answer_cancel, answer)) CALL(rrpc_answer_next, answer, RRPC_WAIT_FOREVER, output(sizeof(rrpc_event)));
        break;
    case 8: CALL(rrpc_answer_fd, answer, one_in(8) ? NULL : &fd); break;
    case 9: CALL(rrpc_scheduler_get_metrics, scheduler, output(sizeof(rrpc_scheduler_metrics))); break;
    case 10: CALL(rrpc_scheduler_metrics_text, scheduler, out, capacity, one_in(8) ? NULL : &count); break;
    default:
        CALL(rrpc_scheduler_options_init, (void *)room, (size_t)below(4096));
        rrpc_scheduler_free(one_in(2) ? stale[below(STALE)] : live[SCHEDULED][below(LIVE)]);
        rrpc_answer_free(one_in(2) ? stale[below(STALE)] : live[SCHEDULER][below(LIVE)]);
    }
}

static char *blob;
static size_t blob_len;

static void hostile_blob(void)
{
    rrpc_sequence *made = NULL;
    size_t len = one_in(3) ? below((uint32_t)blob_len) : blob_len;
    char *copy = malloc(len + 1);
    memcpy(copy, blob, len);
    for (uint32_t i = below(4); i > 0 && len > 0; --i) copy[below((uint32_t)len)] = (char)next();
    if (one_in(16)) len = 0;
    CALL(rrpc_sequence_restore, handle(ENGINE), one_in(30) ? NULL : copy, len, one_in(30) ? NULL : &made);
    free(copy);
    keep(SEQUENCE, made);
}

static void use_sequence(void)
{
    rrpc_sequence *sequence = handle(SEQUENCE), *made = NULL;
    size_t capacity, count, len;
    void *out = buffer(&capacity);
    const char *words = text(&len);
    const float *logits;
    switch (below(30)) {
    case 0: CALL(rrpc_sequence_append_text, sequence, words, len); break;
    case 1: {
        rrpc_message message = {{"user", 4}, {words, len}};
        CALL(rrpc_sequence_append_chat, sequence, one_in(8) ? NULL : &message, one_in(8) ? (size_t)65537 + (size_t)(number() >> 1) : 1);
        break;
    }
    case 2: CALL(rrpc_sequence_append_tokens, sequence, one_in(8) ? NULL : PROMPT, one_in(4) ? CONTEXT + (size_t)(number() >> 1) : below(PROMPT_LENGTH)); break;
    case 3: CALL(rrpc_sequence_reserve, sequence, (size_t)number()); break;
    case 4: case 5: case 6: {
        rrpc_sequence *all[4] = {sequence, handle(SEQUENCE), handle(SEQUENCE), sequence};
        CALL(rrpc_step, one_in(16) ? NULL : all, one_in(16) ? (size_t)65537 + (size_t)(number() >> 1) : below(5));
        break;
    }
    case 7: CALL(rrpc_sequence_pending, sequence, one_in(8) ? NULL : &count); break;
    case 8: CALL(rrpc_sequence_logits, sequence, one_in(8) ? NULL : &logits, one_in(8) ? NULL : &count); break;
    case 9: case 10: {
        uint32_t token;
        CALL(rrpc_sequence_sample, sequence, one_in(8) ? NULL : &token);
        break;
    }
    case 11: CALL(rrpc_sequence_accept, sequence, one_in(2) ? below(96) : (uint32_t)number()); break;
    case 12: CALL(rrpc_sequence_tokens, sequence, out, capacity, one_in(8) ? NULL : &count); break;
    case 13: CALL(rrpc_sequence_compression_count, sequence, one_in(8) ? NULL : &count); break;
    case 14: CALL(rrpc_sequence_get_compression, sequence, (size_t)number(), output(sizeof(rrpc_compression))); break;
    case 15: CALL(rrpc_sequence_compression_kept, sequence, (size_t)number(), (size_t)number(), out, capacity, &count); break;
    case 16: CALL(rrpc_sequence_get_stats, sequence, output(sizeof(rrpc_sequence_stats))); break;
    case 17: case 18: {
        rrpc_generate_options options = short_answer();
        void *given = one_in(3) ? any_struct(&options, sizeof options) : &options;
        if (given == NULL) given = &options;
        CALL(rrpc_generate, sequence, given, one_in(3) ? NULL : on_event, sequence, NULL);
        break;
    }
    case 19: {
        rrpc_generate_options options = short_answer();
        CALL(rrpc_generate_start, sequence, &options);
        break;
    }
    case 20: case 21: case 22: CALL(rrpc_generate_next, sequence, output(sizeof(rrpc_event))); break;
    case 23: CALL(rrpc_generate_stop, sequence); break;
    case 24:
        CALL(rrpc_sequence_fork, sequence, one_in(16) ? NULL : &made);
        keep(SEQUENCE, made);
        break;
    case 25: CALL(rrpc_sequence_rewind, sequence, one_in(2) ? below(30) : (size_t)number()); break;
    case 26: CALL(rrpc_sequence_set_seed, sequence, number()); break;
    case 27: CALL(rrpc_sequence_cache_view, sequence, one_in(4) ? (uint32_t)number() : below(3), one_in(4) ? (uint32_t)number() : below(2), output(sizeof(rrpc_cache_view))); break;
    case 28: CALL(rrpc_sequence_save, sequence, out, capacity, one_in(8) ? NULL : &count); break;
    default: hostile_blob();
    }
}

static void use_engine(void)
{
    rrpc_engine *given = handle(ENGINE), *made = NULL;
    size_t capacity, count, len;
    void *out = buffer(&capacity);
    const char *words = text(&len);
    uint64_t entries, bytes;
    uint32_t number32;
    switch (below(17)) {
    case 0: CALL(rrpc_engine_get_info, given, output(sizeof(rrpc_engine_info))); break;
    case 1: CALL(rrpc_engine_stop_tokens, given, out, capacity, one_in(8) ? NULL : &count); break;
    case 2: CALL(rrpc_tokenize, given, words, len, one_in(2) ? below(3) : (uint32_t)number(), out, capacity, one_in(8) ? NULL : &count); break;
    case 3: CALL(rrpc_detokenize, given, one_in(8) ? NULL : PROMPT, one_in(4) ? ((size_t)1 << 24) + 1 + (size_t)(number() >> 1) : below(PROMPT_LENGTH), below(one_in(8) ? 5 : 2), out, capacity, &count); break;
    case 4: CALL(rrpc_peak_cache_bytes, given, NULL, number(), number(), one_in(8) ? NULL : &entries, one_in(8) ? NULL : &bytes); break;
    case 5: CALL(rrpc_engine_get_metrics, given, output(sizeof(rrpc_metrics))); break;
    case 6: CALL(rrpc_engine_metrics_text, given, out, capacity, one_in(8) ? NULL : &count); break;
    case 16: CALL(rrpc_engine_trim, given, one_in(8) ? NULL : &bytes); break;
    case 7: {
        rrpc_engine_options options;
        CALL(rrpc_engine_options_init, &options, sizeof options);
        options.threads = one_in(2) ? 1 : (uint32_t)number();
        options.block_entries = one_in(2) ? 16 : (uint32_t)number();
        options.cache_dtype = below(9);
        options.prefill_chunk = one_in(2) ? 8 : (uint32_t)number();
        options.budget_bytes = one_in(2) ? 1 << 20 : number();
        options.verify_weights = below(3);
        options.map_weights = below(3);
        static const char *PATHS[] = {"/nowhere", "", "/dev/null", "/proc/self", "."};
        /* Opening the model over and over is slow: rarely, and never with more threads than there are cores. */
        int real = options.threads == 1 && one_in(200);
        CALL(rrpc_engine_open, real ? MODEL : PATHS[below(5)], one_in(3) ? any_struct(&options, sizeof options) : &options, one_in(16) ? NULL : &made);
        keep(ENGINE, made);
        break;
    }
    case 8: CALL(rrpc_set_log, below(one_in(8) ? 99 : 5), NULL, NULL); break;
    case 9: CALL(rrpc_policy_from_name, one_in(8) ? NULL : one_in(2) ? "rpc" : "\xff?", one_in(8) ? NULL : &number32); break;
    case 10: CALL(rrpc_engine_options_init, (void *)room, (size_t)(one_in(2) ? below(4096) : 4097 + (number() >> 1))); break;
    case 11: CALL(rrpc_sequence_options_init, given, (void *)room, (size_t)below(4096)); break;
    case 12: CALL(rrpc_compressor_options_init, (void *)room, (size_t)below(4096)); break;
    case 13:
        CALL(rrpc_sequence_restore_file, given, "/nowhere/at/all", one_in(8) ? NULL : (rrpc_sequence **)&made);
        break;
    case 14: CALL(rrpc_sequence_save_file, handle(SEQUENCE), one_in(8) ? NULL : "/nowhere/at/all"); break;
    default:
        /* Frees what was freed, is none, or is of another kind. */
        rrpc_engine_free(one_in(2) ? stale[below(STALE)] : live[SEQUENCE][below(LIVE)]);
        rrpc_sequence_free(one_in(2) ? stale[below(STALE)] : (void *)engine);
        rrpc_compressor_free(one_in(2) ? stale[below(STALE)] : (void *)engine);
        rrpc_tensor_free(one_in(2) ? stale[below(STALE)] : (void *)(uintptr_t)number());
    }
}

/* ---- The compressor ---- */

/* 3 rows of up to 64 entries, 2 KV heads, 16 elements; pages of 16 entries. */
enum { ROWS = 3, ENTRIES = 64, KV_HEADS = 2, HEADS = 4, DIM = 16, PAGE = 16, BLOCKS = ROWS * ENTRIES / PAGE + 4, WINDOW = 4 };

static float keys[BLOCKS * PAGE * KV_HEADS * DIM], values[BLOCKS * PAGE * KV_HEADS * DIM];
static float scales[2][BLOCKS * PAGE * KV_HEADS], histories[BLOCKS * PAGE * KV_HEADS];
static float queries[ROWS * 8 * HEADS * DIM], scores[ROWS * KV_HEADS * ENTRIES];
static char workspace[1 << 20];

static int32_t on_select(rrpc_select_request *request, void *user_data)
{
    (void)user_data;
    if (one_in(4)) return (int32_t)below(3);
    request->sets = one_in(4) ? (uint32_t)number() : 1 + below(2);
    request->kept_count = one_in(4) ? (uint32_t)number() : below(request->candidates + 1);
    request->merge_count = one_in(4) ? (uint32_t)number() : 0;
    uint32_t place = 0;
    for (uint32_t i = 0; i < request->kv_heads * request->candidates; ++i) {
        request->kept[i] = one_in(50) ? (uint32_t)number() : place++ % (request->kept_count ? request->kept_count : 1);
    }
    for (uint32_t i = 0; i < 2; ++i) {
        request->merges[i] = (rrpc_merge){below(4), below(3), below(70), below(70), 0.5f, 0.5f};
    }
    return 0;
}

static void create_compressor(void)
{
    rrpc_compressor_options options;
    if (!CALL(rrpc_compressor_options_init, &options, sizeof options)) return;
    /* What is accepted has to fit the memory here. */
    static const uint32_t NO_HEADS[] = {0, 3, 65537, UINT32_MAX}, NO_DIM[] = {0, 7, 257, 264, UINT32_MAX};
    options.heads = one_in(8) ? NO_HEADS[below(4)] : HEADS;
    options.kv_heads = one_in(8) ? NO_HEADS[below(4)] : KV_HEADS;
    options.head_dim = one_in(8) ? NO_DIM[below(5)] : DIM;
    options.dtype = one_in(8) ? (uint32_t)number() : 1 + below(4);
    /* As many as any head has. */
    static const float FREQUENCIES[128] = {1, 0.5f, 0.25f, 0.1f, 0.05f, 0.01f, 0.001f};
    static const uint32_t POLICIES[] = {0, 1, 2, 7, 8};
    options.policy = one_in(8) ? (uint32_t)number() : POLICIES[below(5)];
    options.inv_freq = one_in(20) ? NULL : FREQUENCIES;
    options.rotary_dim = one_in(8) ? below(DIM + 1) : 0;
    options.rope_style = below(one_in(8) ? 9 : 2);
    int ahead = options.policy == 7 || options.policy == 8;
    options.interval = one_in(8) ? (uint32_t)number() : ahead ? 8 : 16;
    options.window = one_in(8) ? (uint32_t)number() : WINDOW;
    options.ratio = one_in(8) ? (uint32_t)number() : 4;
    options.kernel = one_in(8) ? (uint32_t)number() : 3;
    options.aggregation = below(one_in(8) ? 9 : 2);
    options.device = one_in(20);
    options.max_merges = 2;
    /* What nobody has memory for; what somebody may have is not asked for. */
    int most = one_in(8);
    options.recorded_layers = most ? UINT32_MAX : 2;
    options.recorded_sequences =
        most ? UINT32_MAX - below(9) : options.window > 4096 || (ahead && options.interval > 4096) ? 0 : 3;
    options.select = on_select;
    if (one_in(8)) memset(&options.scale, (int)below(256), 4);
    rrpc_compressor *made = NULL;
    CALL(rrpc_compressor_create, one_in(4) ? any_struct(&options, sizeof options) : &options, one_in(20) ? NULL : &made);
    keep(COMPRESSOR, made);
}

static int64_t stride(int64_t right)
{
    return one_in(12) ? (one_in(2) ? (int64_t)below(40) - 20 : (int64_t)number()) : right;
}

static int32_t id(int32_t right)
{
    return one_in(12) ? (int32_t)number() : right;
}

static void use_compressor(void)
{
    rrpc_compressor *compressor = handle(COMPRESSOR);
    int paged = one_in(2), token_major = one_in(2);
    rrpc_kv_layer layer = {.struct_size = sizeof layer};
    layer.keys = one_in(20) ? NULL : keys;
    layer.values = one_in(20) ? NULL : values;
    layer.key_scales = one_in(2) ? NULL : scales[0];
    layer.value_scales = one_in(2) ? NULL : scales[1];
    int64_t entries = paged ? PAGE : ENTRIES;
    int64_t right[3] = {entries * KV_HEADS * DIM, token_major ? DIM : entries * DIM, token_major ? KV_HEADS * DIM : DIM};
    for (int i = 0; i < 3; ++i) {
        /* Strides that are wrong are refused or stay inside: larger ones than these would be a lie about memory that the
           library cannot see, so they only come where they cannot be used. */
        layer.key_strides[i] = one_in(20) ? -right[i] : right[i];
        layer.value_strides[i] = one_in(20) ? (int64_t)below(8) : right[i];
        layer.key_scale_strides[i] = right[i] / DIM;
        layer.value_scale_strides[i] = one_in(20) ? 0 : right[i] / DIM;
    }
    layer.layer = one_in(8) ? (uint32_t)number() : below(2);
    layer.history = one_in(8) ? NULL : histories;
    for (int i = 0; i < 3; ++i) layer.history_strides[i] = one_in(20) ? -1 : layer.key_scale_strides[i];

    int32_t lengths[ROWS], prompts[ROWS], compressions[ROWS], rows[ROWS], table[ROWS][ENTRIES / PAGE];
    int32_t shared[4], spare[4];
    for (int i = 0; i < ROWS; ++i) {
        lengths[i] = id((int32_t)below(ENTRIES + 1));
        prompts[i] = id((int32_t)below(20));
        compressions[i] = id((int32_t)below(3));
        rows[i] = id(i);
        for (int page = 0; page < ENTRIES / PAGE; ++page) table[i][page] = id(i * (ENTRIES / PAGE) + page);
    }
    for (int i = 0; i < 4; ++i) {
        shared[i] = id((int32_t)below(BLOCKS));
        spare[i] = id(BLOCKS - 4 + i);
    }
    rrpc_kv_batch batch = {.struct_size = sizeof batch};
    batch.lengths = one_in(20) ? NULL : lengths;
    batch.prompt_lengths = one_in(20) ? NULL : prompts;
    batch.compressions = one_in(20) ? NULL : compressions;
    batch.rows = one_in(2) ? NULL : rows;
    batch.block_table = paged ? table[0] : NULL;
    batch.block_table_stride = stride(ENTRIES / PAGE);
    if (paged && batch.block_table_stride != ENTRIES / PAGE) batch.block_table_stride = -(int64_t)below(9);
    batch.shared_blocks = shared;
    batch.shared_count = one_in(3) ? below(5) : 0;
    batch.spare_blocks = spare;
    batch.spare_count = below(5);
    batch.sequences = one_in(12) ? UINT32_MAX - below(9) : 1 + below(ROWS);
    batch.row_count = one_in(12) ? below(3) : ROWS;
    batch.block_entries = one_in(12) ? below((uint32_t)entries) : (uint32_t)entries;
    batch.block_count = paged ? (one_in(12) ? below(BLOCKS) : (uint32_t)BLOCKS) : below(12) / 11;
    rrpc_query_window window = {.struct_size = sizeof window, .ring_tokens = 8, .dtype = RRPC_DTYPE_F32};
    int32_t oldest[ROWS], slots[ROWS];
    for (int i = 0; i < ROWS; ++i) {
        oldest[i] = id((int32_t)below(8));
        slots[i] = id((int32_t)below(3));
    }
    window.queries = one_in(3) ? NULL : queries;
    window.strides[0] = 8 * HEADS * DIM;
    window.strides[1] = HEADS * DIM;
    window.strides[2] = one_in(12) ? -DIM : DIM;
    window.oldest = one_in(2) ? NULL : oldest;
    window.slots = one_in(2) ? NULL : slots;
    if (one_in(12)) window.ring_tokens = below(8);
    if (one_in(12)) window.dtype = (uint32_t)number();
    if (one_in(20)) {
        layer.struct_size = below(4096);
        if (layer.struct_size > sizeof layer) layer.struct_size = sizeof layer;
    }
    size_t space = one_in(8) ? below(4096) : sizeof workspace - 8;
    void *work = one_in(30) ? NULL : workspace + below(8);
    size_t score_count = one_in(8) ? below(sizeof scores / sizeof *scores) : 0;
    rrpc_compressor_sizes sizes = {.struct_size = sizeof sizes};
    if (CALL(rrpc_compressor_get_sizes, compressor, &batch, &sizes) && score_count == 0) {
        score_count = sizes.score_count;
        if (score_count > sizeof scores / sizeof *scores) score_count = 0;
    }
    rrpc_plan plan = {.struct_size = sizeof plan};
    uint32_t due;
    switch (below(9)) {
    case 0: CALL(rrpc_compressor_due, compressor, number(), number(), one_in(8) ? NULL : &due); break;
    case 1: CALL(rrpc_compressor_record, compressor, layer.layer, slots, below(ROWS + 1), one_in(20) ? NULL : queries, HEADS * DIM, DIM, one_in(8) ? (uint32_t)number() : RRPC_DTYPE_F32); break;
    case 2: CALL(rrpc_compressor_forget, compressor, id((int32_t)below(4))); break;
    case 3: CALL(rrpc_compressor_compress, compressor, one_in(20) ? NULL : &layer, one_in(20) ? NULL : &batch, one_in(20) ? NULL : &window, work, space, one_in(20) ? NULL : &plan); break;
    default: {
        int scored = CALL(rrpc_compressor_score, compressor, &layer, &batch, &window, scores, score_count, work, space);
        if (scored && one_in(8) && score_count > 0) memset(&scores[below((uint32_t)score_count)], 0xff, 4);
        int planned = one_in(2)
            ? CALL(rrpc_compressor_plan, compressor, one_in(20) ? NULL : &layer, one_in(20) ? NULL : &batch,
                   one_in(20) ? NULL : &window, work, space, one_in(20) ? NULL : &plan)
            : CALL(rrpc_compressor_select, compressor, layer.layer, &batch, scores, score_count, work, space, &plan);
        if (!planned || plan.kept_counts == NULL) break;
        /* A plan of the host's: the arrays are as long as it says, what they hold is anything. */
        uint32_t counts[ROWS], *kept = malloc((plan.kept_len + 1) * sizeof *kept);
        int32_t lengths_after[ROWS], freed[64];
        rrpc_block_copy copies[16] = {{0}};
        memcpy(counts, plan.kept_counts, plan.sequences * sizeof *counts);
        memcpy(kept, plan.kept, plan.kept_len * sizeof *kept);
        memcpy(lengths_after, plan.new_lengths, plan.sequences * sizeof *lengths_after);
        if (plan.freed_count <= 64 && plan.freed_count > 0) memcpy(freed, plan.freed_blocks, plan.freed_count * sizeof *freed);
        if (plan.copy_count <= 16 && plan.copy_count > 0) memcpy(copies, plan.copies, plan.copy_count * sizeof *copies);
        rrpc_plan hostile = plan;
        hostile.kept_counts = counts;
        hostile.kept = kept;
        hostile.new_lengths = lengths_after;
        hostile.freed_blocks = freed;
        hostile.copies = copies;
        rrpc_merge merge = {below(4), below(3), below(70), below(70), 0.5f, 0.5f};
        switch (below(14)) {
        case 0: counts[below(plan.sequences)] = (uint32_t)number(); break;
        case 1: kept[below((uint32_t)plan.kept_len + 1)] = (uint32_t)number(); break;
        case 2: lengths_after[below(plan.sequences)] = (int32_t)number(); break;
        case 3: freed[below(64)] = (int32_t)number(); break;
        case 4: copies[below(16)] = (rrpc_block_copy){below(4), below(9), (int32_t)number(), (int32_t)number()}; break;
        case 5: hostile.sets = (uint32_t)number(); break;
        case 6: hostile.sequences = plan.sequences - 1; break;
        case 7: hostile.kept = NULL; break;
        case 8: hostile.kept_len = below((uint32_t)plan.kept_len + 1); break;
        case 9: hostile.merges = &merge; hostile.merge_count = 1; break;
        case 11: hostile.history = one_in(2) ? NULL : (const float *)plan.kept; break;
        case 12: hostile.key_shifts = plan.key_directions == NULL ? NULL : plan.history; break;
        case 10: hostile.freed_count = plan.freed_count > 0 ? plan.freed_count - 1 : 0; break;
        default: break;
        }
        if (plan.freed_count > 64) hostile.freed_blocks = plan.freed_blocks;
        if (plan.copy_count > 16) hostile.copies = plan.copies;
        CALL(rrpc_compressor_apply, compressor, &layer, &batch, &hostile, work, space);
        free(kept);
    }
    }
}

/* ---- DLPack ---- */

typedef struct {
    void *data;
    struct { int32_t type, id; } device;
    int32_t dimensions;
    struct { uint8_t code, bits; uint16_t lanes; } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} dl_tensor;

typedef struct dl_managed {
    dl_tensor tensor;
    void *manager;
    void (*deleter)(struct dl_managed *);
} dl_managed;

static int64_t deleted, taken;

static void delete_tensor(dl_managed *managed)
{
    ++deleted;
    free(managed->tensor.shape);
    free(managed);
}

static void use_tensor(void)
{
    switch (below(4)) {
    case 0: {
        dl_managed *managed = calloc(1, sizeof *managed);
        managed->deleter = delete_tensor;
        managed->tensor.data = one_in(8) ? NULL : keys;
        managed->tensor.device.type = one_in(8) ? (int32_t)number() : 1;
        managed->tensor.dimensions = one_in(8) ? (int32_t)number() : 4;
        managed->tensor.dtype.code = one_in(8) ? (uint8_t)number() : 2;
        managed->tensor.dtype.bits = one_in(8) ? (uint8_t)number() : 32;
        managed->tensor.dtype.lanes = one_in(8) ? (uint16_t)number() : 1;
        managed->tensor.shape = calloc(8, sizeof(int64_t));
        static const int64_t SHAPE[8] = {ROWS, KV_HEADS, ENTRIES, DIM, 1, 1, 1, 1};
        for (int i = 0; i < 8; ++i) managed->tensor.shape[i] = one_in(16) ? (int64_t)number() : SHAPE[i];
        managed->tensor.byte_offset = one_in(8) ? number() : 0;
        rrpc_tensor *made = NULL;
        if (CALL(rrpc_tensor_from_dlpack, one_in(20) ? NULL : (void *)managed, one_in(16) ? 2 + (uint32_t)number() % 9 : 0, one_in(20) ? NULL : &made)) ++taken;
        else {
            free(managed->tensor.shape);
            free(managed);
        }
        keep(TENSOR, made);
        break;
    }
    case 1: CALL(rrpc_tensor_get_info, handle(TENSOR), output(sizeof(rrpc_tensor_info))); break;
    case 2: CALL(rrpc_kv_layer_from_tensors, handle(TENSOR), handle(TENSOR), one_in(8) ? (uint32_t)number() : below(2), output(sizeof(rrpc_kv_layer))); break;
    default: CALL(rrpc_query_window_from_tensor, handle(TENSOR), one_in(8) ? (uint32_t)number() : below(2), output(sizeof(rrpc_query_window)));
    }
}

/* ---- The test ---- */

static uint32_t answered[PROMPT_LENGTH + ANSWER_LENGTH];
static size_t answered_len;

/* The engine answers as it did before anything was misused. */
static void still_well(void)
{
    rrpc_sequence *sequence = prompted(engine);
    rrpc_generate_options options = at_most(ANSWER_LENGTH);
    uint32_t tokens[PROMPT_LENGTH + ANSWER_LENGTH];
    size_t count = 0;
    OK(rrpc_generate(sequence, &options, NULL, NULL, NULL));
    OK(rrpc_sequence_tokens(sequence, tokens, PROMPT_LENGTH + ANSWER_LENGTH, &count));
    if (answered_len == 0) {
        answered_len = count;
        memcpy(answered, tokens, count * sizeof *tokens);
    }
    CHECK(count == answered_len && memcmp(tokens, answered, count * sizeof *tokens) == 0);
    rrpc_sequence_free(sequence);
}

static void save_a_blob(void)
{
    rrpc_sequence *sequence = prompted(engine);
    rrpc_generate_options options = at_most(ANSWER_LENGTH);
    OK(rrpc_generate(sequence, &options, NULL, NULL, NULL));
    OK(rrpc_sequence_save(sequence, NULL, 0, &blob_len));
    blob = malloc(blob_len);
    OK(rrpc_sequence_save(sequence, blob, blob_len, &blob_len));
    rrpc_sequence_free(sequence);
}

static void random_misuse(void)
{
    const char *seed = getenv("SEED"), *runs = getenv("ABI_MISUSE_RUNS");
    uint64_t first = seed ? strtoull(seed, NULL, 10) : (uint64_t)time(NULL) * 1000003u + (uint64_t)getpid();
    uint64_t count = runs ? strtoull(runs, NULL, 10) : 100000;
    printf("SEED=%llu\n", (unsigned long long)first);
    signal(SIGALRM, stuck);
    engine = open_engine(TEXT_MODEL);
    save_a_blob();
    still_well();
    for (size_t i = 0; i < sizeof queries / sizeof *queries; ++i) queries[i] = (float)(i % 17) / 17 - 0.5f;
    for (run = 0; run < count && failures_in_test < 10; ++run) {
        state = run_state = (first + run) * 0x9e3779b97f4a7c15u + 1;
        for (int i = 0; i < 8; ++i) next();
        traced = 0;
        alarm(60);
        /* What earlier runs left in these would make a run depend on them. */
        for (size_t i = 0; i < sizeof keys / sizeof *keys; ++i) keys[i] = values[i] = (float)(i % 13) / 13;
        for (uint32_t steps = 1 + below(10); steps > 0; --steps) {
            switch (below(11)) {
            case 10: use_scheduler(); break;
            case 0: create_sequence(); break;
            case 1: create_compressor(); break;
            case 2: case 3: case 4: use_sequence(); break;
            case 5: use_engine(); break;
            case 6: use_tensor(); break;
            default: use_compressor();
            }
        }
        if (run % 5000 == 0) still_well();
    }
    alarm(0);
    still_well();
    for (int kind = 0; kind < KINDS; ++kind) {
        for (int i = 0; i < LIVE; ++i) {
            if (live[kind][i] != NULL) free_handle(kind, live[kind][i]);
        }
    }
    rrpc_engine_info info = {.struct_size = sizeof info};
    OK(rrpc_engine_get_info(engine, &info));
    CHECK(info.budget_used_bytes == 0);
    CHECK(deleted == taken);
    rrpc_engine_free(engine);
    free(blob);
    printf("%llu runs, %llu calls; by code:", (unsigned long long)run, (unsigned long long)calls);
    for (int code = 0; code <= RRPC_ERROR_CALLBACK; ++code) printf(" %d:%llu", code, (unsigned long long)seen[code]);
    printf("\n");
    /* The calls reached what they are meant to try. */
    CHECK(seen[RRPC_OK] > count / 2);
    static const int CODES[] = {RRPC_ERROR_INVALID_ARGUMENT, RRPC_ERROR_NULL_POINTER, RRPC_ERROR_INVALID_HANDLE,
                                RRPC_ERROR_BUSY, RRPC_ERROR_BUFFER_TOO_SMALL, RRPC_ERROR_MODEL, RRPC_ERROR_CONTEXT,
                                RRPC_ERROR_STATE, RRPC_ERROR_FILE, RRPC_ERROR_CALLBACK};
    if (count >= 100000) {
        for (size_t i = 0; i < sizeof CODES / sizeof *CODES; ++i) CHECK(seen[CODES[i]] > 0);
    }
}

int main(void)
{
    RUN(random_misuse);
    return check_end("misuse");
}
