#include "shim.h"

#include <fcntl.h>

#include "_cgo_export.h"

_Static_assert(sizeof(uintptr_t) == sizeof(rrpc_sequence *), "handles are as wide as numbers");

#define ENGINE ((rrpc_engine *)engine)
#define SEQUENCE ((rrpc_sequence *)sequence)
#define COMPRESSOR ((rrpc_compressor *)compressor)
#define SCHEDULER ((rrpc_scheduler *)scheduler)
#define SCHEDULED ((rrpc_answer *)answer)

rrpc_error *go_engine_open(const char *model, const rrpc_engine_options *options, go_engine *engine)
{
    rrpc_engine *opened = NULL;
    rrpc_error *error = rrpc_engine_open(model, options, &opened);
    *engine = (go_engine)opened;
    return error;
}

void go_engine_free(go_engine engine)
{
    rrpc_engine_free(ENGINE);
}

rrpc_error *go_engine_get_info(go_engine engine, rrpc_engine_info *info)
{
    return rrpc_engine_get_info(ENGINE, info);
}

rrpc_error *go_engine_stop_tokens(go_engine engine, uint32_t *out, size_t capacity, size_t *count)
{
    return rrpc_engine_stop_tokens(ENGINE, out, capacity, count);
}

rrpc_error *go_tokenize(go_engine engine, const char *text, size_t len, uint32_t mode, uint32_t *out,
                        size_t capacity, size_t *count)
{
    return rrpc_tokenize(ENGINE, text, len, mode, out, capacity, count);
}

rrpc_error *go_detokenize(go_engine engine, const uint32_t *tokens, size_t token_count, uint32_t skip_special,
                          char *out, size_t capacity, size_t *count)
{
    return rrpc_detokenize(ENGINE, tokens, token_count, skip_special, out, capacity, count);
}

rrpc_error *go_peak_cache_bytes(go_engine engine, const rrpc_sequence_options *options, uint64_t prompt_tokens,
                                uint64_t new_tokens, uint64_t *entries, uint64_t *bytes)
{
    return rrpc_peak_cache_bytes(ENGINE, options, prompt_tokens, new_tokens, entries, bytes);
}

rrpc_error *go_sequence_options_init(go_engine engine, rrpc_sequence_options *options, size_t size)
{
    return rrpc_sequence_options_init(ENGINE, options, size);
}

static int32_t sequence_select(rrpc_sequence_select_request *request, void *user_data)
{
    return reasoning_rpc_go_sequence_select((uintptr_t)user_data, request);
}

static void sequence_release(void *user_data)
{
    reasoning_rpc_go_sequence_release((uintptr_t)user_data);
}

void go_sequence_options_callback(rrpc_sequence_options *options)
{
    options->select = sequence_select;
    options->release = sequence_release;
}

rrpc_error *go_sequence_create(go_engine engine, const rrpc_sequence_options *options, uintptr_t selector,
                               go_sequence *sequence)
{
    rrpc_sequence_options with = *options;
    with.user_data = (void *)selector;
    rrpc_sequence *created = NULL;
    rrpc_error *error = rrpc_sequence_create(ENGINE, &with, &created);
    *sequence = (go_sequence)created;
    return error;
}

void go_sequence_free(go_sequence sequence)
{
    rrpc_sequence_free(SEQUENCE);
}

rrpc_error *go_sequence_append_text(go_sequence sequence, const char *text, size_t len)
{
    return rrpc_sequence_append_text(SEQUENCE, text, len);
}

rrpc_error *go_sequence_append_chat(go_sequence sequence, const rrpc_message *messages, size_t count)
{
    return rrpc_sequence_append_chat(SEQUENCE, messages, count);
}

rrpc_error *go_sequence_append_tokens(go_sequence sequence, const uint32_t *tokens, size_t count)
{
    return rrpc_sequence_append_tokens(SEQUENCE, tokens, count);
}

rrpc_error *go_sequence_reserve(go_sequence sequence, size_t new_tokens)
{
    return rrpc_sequence_reserve(SEQUENCE, new_tokens);
}

rrpc_error *go_step(const go_sequence *sequences, size_t count)
{
    return rrpc_step((rrpc_sequence *const *)sequences, count);
}

rrpc_error *go_sequence_pending(go_sequence sequence, size_t *pending)
{
    return rrpc_sequence_pending(SEQUENCE, pending);
}

rrpc_error *go_sequence_logits(go_sequence sequence, const float **logits, size_t *count)
{
    return rrpc_sequence_logits(SEQUENCE, logits, count);
}

rrpc_error *go_sequence_sample(go_sequence sequence, uint32_t *token)
{
    return rrpc_sequence_sample(SEQUENCE, token);
}

rrpc_error *go_sequence_accept(go_sequence sequence, uint32_t token)
{
    return rrpc_sequence_accept(SEQUENCE, token);
}

rrpc_error *go_sequence_tokens(go_sequence sequence, uint32_t *out, size_t capacity, size_t *count)
{
    return rrpc_sequence_tokens(SEQUENCE, out, capacity, count);
}

rrpc_error *go_sequence_compression_count(go_sequence sequence, size_t *count)
{
    return rrpc_sequence_compression_count(SEQUENCE, count);
}

rrpc_error *go_sequence_get_compression(go_sequence sequence, size_t index, rrpc_compression *compression)
{
    return rrpc_sequence_get_compression(SEQUENCE, index, compression);
}

rrpc_error *go_sequence_compression_kept(go_sequence sequence, size_t index, size_t set, uint32_t *out,
                                         size_t capacity, size_t *count)
{
    return rrpc_sequence_compression_kept(SEQUENCE, index, set, out, capacity, count);
}

rrpc_error *go_sequence_get_stats(go_sequence sequence, rrpc_sequence_stats *stats)
{
    return rrpc_sequence_get_stats(SEQUENCE, stats);
}

rrpc_error *go_sequence_fork(go_sequence sequence, go_sequence *fork)
{
    rrpc_sequence *made = NULL;
    rrpc_error *error = rrpc_sequence_fork(SEQUENCE, &made);
    *fork = (go_sequence)made;
    return error;
}

rrpc_error *go_sequence_set_seed(go_sequence sequence, uint64_t seed)
{
    return rrpc_sequence_set_seed(SEQUENCE, seed);
}

rrpc_error *go_sequence_rewind(go_sequence sequence, size_t tokens)
{
    return rrpc_sequence_rewind(SEQUENCE, tokens);
}

rrpc_error *go_sequence_cache_view(go_sequence sequence, uint32_t layer, uint32_t kv_head, rrpc_cache_view *view)
{
    return rrpc_sequence_cache_view(SEQUENCE, layer, kv_head, view);
}

rrpc_error *go_sequence_save(go_sequence sequence, void *out, size_t capacity, size_t *count)
{
    return rrpc_sequence_save(SEQUENCE, out, capacity, count);
}

rrpc_error *go_sequence_save_file(go_sequence sequence, const char *path)
{
    return rrpc_sequence_save_file(SEQUENCE, path);
}

rrpc_error *go_sequence_restore(go_engine engine, const void *data, size_t len, go_sequence *sequence)
{
    rrpc_sequence *made = NULL;
    rrpc_error *error = rrpc_sequence_restore(ENGINE, data, len, &made);
    *sequence = (go_sequence)made;
    return error;
}

rrpc_error *go_sequence_restore_file(go_engine engine, const char *path, go_sequence *sequence)
{
    rrpc_sequence *made = NULL;
    rrpc_error *error = rrpc_sequence_restore_file(ENGINE, path, &made);
    *sequence = (go_sequence)made;
    return error;
}

rrpc_error *go_generate_start(go_sequence sequence, const rrpc_generate_options *options)
{
    return rrpc_generate_start(SEQUENCE, options);
}

rrpc_error *go_generate_next(go_sequence sequence, rrpc_event *event)
{
    return rrpc_generate_next(SEQUENCE, event);
}

rrpc_error *go_generate_stop(go_sequence sequence)
{
    return rrpc_generate_stop(SEQUENCE);
}

rrpc_error *go_engine_trim(go_engine engine, uint64_t *bytes)
{
    return rrpc_engine_trim(ENGINE, bytes);
}

rrpc_error *go_engine_get_metrics(go_engine engine, rrpc_metrics *metrics)
{
    return rrpc_engine_get_metrics(ENGINE, metrics);
}

rrpc_error *go_engine_metrics_text(go_engine engine, char *out, size_t capacity, size_t *count)
{
    return rrpc_engine_metrics_text(ENGINE, out, capacity, count);
}

/* The call of Go's that this thread is making: callbacks come in the thread that makes the call. */
static _Thread_local uintptr_t call_under_way;

static int32_t select_callback(rrpc_select_request *request, void *user_data)
{
    (void)user_data;
    return reasoning_rpc_go_select(call_under_way, request);
}

rrpc_error *go_compressor_create(rrpc_compressor_options *options, go_compressor *compressor)
{
    if (options->policy == RRPC_POLICY_CALLBACK)
        options->select = select_callback;
    rrpc_compressor *made = NULL;
    rrpc_error *error = rrpc_compressor_create(options, &made);
    *compressor = (go_compressor)made;
    return error;
}

void go_compressor_free(go_compressor compressor)
{
    rrpc_compressor_free(COMPRESSOR);
}

rrpc_error *go_compressor_due(go_compressor compressor, uint64_t generated, uint64_t compressions, uint32_t *due)
{
    return rrpc_compressor_due(COMPRESSOR, generated, compressions, due);
}

rrpc_error *go_compressor_record(go_compressor compressor, uint32_t layer, const int32_t *slots, size_t count,
                                 const void *queries, int64_t row_stride, int64_t head_stride, uint32_t dtype)
{
    return rrpc_compressor_record(COMPRESSOR, layer, slots, count, queries, row_stride, head_stride, dtype);
}

rrpc_error *go_compressor_forget(go_compressor compressor, int32_t slot)
{
    return rrpc_compressor_forget(COMPRESSOR, slot);
}

rrpc_error *go_compressor_get_sizes(go_compressor compressor, const rrpc_kv_batch *batch,
                                    rrpc_compressor_sizes *sizes)
{
    return rrpc_compressor_get_sizes(COMPRESSOR, batch, sizes);
}

rrpc_error *go_compressor_score(go_compressor compressor, const rrpc_kv_layer *layer, const rrpc_kv_batch *batch,
                                const rrpc_query_window *window, float *scores, size_t score_count,
                                void *workspace, size_t workspace_bytes)
{
    return rrpc_compressor_score(COMPRESSOR, layer, batch, window, scores, score_count, workspace,
                                 workspace_bytes);
}

rrpc_error *go_compressor_select(go_compressor compressor, uint32_t layer, const rrpc_kv_batch *batch,
                                 const float *scores, size_t score_count, void *workspace, size_t workspace_bytes,
                                 rrpc_plan *plan, uintptr_t call)
{
    uintptr_t outer = call_under_way;
    call_under_way = call;
    rrpc_error *error = rrpc_compressor_select(COMPRESSOR, layer, batch, scores, score_count, workspace,
                                               workspace_bytes, plan);
    call_under_way = outer;
    return error;
}

rrpc_error *go_compressor_apply(go_compressor compressor, const rrpc_kv_layer *layer, const rrpc_kv_batch *batch,
                                const rrpc_plan *plan, void *workspace, size_t workspace_bytes)
{
    return rrpc_compressor_apply(COMPRESSOR, layer, batch, plan, workspace, workspace_bytes);
}

rrpc_error *go_compressor_plan(go_compressor compressor, const rrpc_kv_layer *layer, const rrpc_kv_batch *batch,
                               const rrpc_query_window *window, void *workspace, size_t workspace_bytes,
                               rrpc_plan *plan, uintptr_t call)
{
    uintptr_t outer = call_under_way;
    call_under_way = call;
    rrpc_error *error = rrpc_compressor_plan(COMPRESSOR, layer, batch, window, workspace, workspace_bytes, plan);
    call_under_way = outer;
    return error;
}

rrpc_error *go_compressor_compress(go_compressor compressor, const rrpc_kv_layer *layer,
                                   const rrpc_kv_batch *batch, const rrpc_query_window *window, void *workspace,
                                   size_t workspace_bytes, rrpc_plan *plan, uintptr_t call)
{
    uintptr_t outer = call_under_way;
    call_under_way = call;
    rrpc_error *error = rrpc_compressor_compress(COMPRESSOR, layer, batch, window, workspace, workspace_bytes,
                                                 plan);
    call_under_way = outer;
    return error;
}

rrpc_error *go_scheduler_create(go_engine engine, const rrpc_scheduler_options *options, go_scheduler *scheduler)
{
    rrpc_scheduler *created = NULL;
    rrpc_error *error = rrpc_scheduler_create(ENGINE, options, &created);
    *scheduler = (go_scheduler)created;
    return error;
}

void go_scheduler_free(go_scheduler scheduler)
{
    rrpc_scheduler_free(SCHEDULER);
}

rrpc_error *go_scheduler_submit(go_scheduler scheduler, go_sequence sequence, const rrpc_generate_options *options,
                                go_answer *answer)
{
    rrpc_answer *submitted = NULL;
    rrpc_error *error = rrpc_scheduler_submit(SCHEDULER, SEQUENCE, options, &submitted);
    *answer = (go_answer)submitted;
    return error;
}

rrpc_error *go_scheduler_get_metrics(go_scheduler scheduler, rrpc_scheduler_metrics *metrics)
{
    return rrpc_scheduler_get_metrics(SCHEDULER, metrics);
}

rrpc_error *go_scheduler_metrics_text(go_scheduler scheduler, char *out, size_t capacity, size_t *count)
{
    return rrpc_scheduler_metrics_text(SCHEDULER, out, capacity, count);
}

rrpc_error *go_answer_next(go_answer answer, uint32_t timeout_ms, rrpc_event *event)
{
    return rrpc_answer_next(SCHEDULED, timeout_ms, event);
}

rrpc_error *go_answer_cancel(go_answer answer)
{
    return rrpc_answer_cancel(SCHEDULED);
}

rrpc_error *go_answer_fd(go_answer answer, int *fd)
{
    int32_t lent = -1;
    rrpc_error *error = rrpc_answer_fd(SCHEDULED, &lent);
    *fd = error == NULL ? fcntl(lent, F_DUPFD_CLOEXEC, 0) : -1;
    return error;
}

void go_answer_free(go_answer answer)
{
    rrpc_answer_free(SCHEDULED);
}
