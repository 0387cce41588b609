/*
 * The library's functions, with its handles as the numbers that they are: Go sees no pointer that points
 * nowhere, and a cgo.Handle needs no detour through a void pointer.
 */
#ifndef REASONING_RPC_GO_SHIM_H
#define REASONING_RPC_GO_SHIM_H

#include <reasoning_rpc.h>
#include <stdint.h>
#include <stdlib.h>

typedef uintptr_t go_engine;
typedef uintptr_t go_sequence;
typedef uintptr_t go_compressor;
typedef uintptr_t go_scheduler;
typedef uintptr_t go_answer;

rrpc_error *go_engine_open(const char *model, const rrpc_engine_options *options, go_engine *engine);
void go_engine_free(go_engine engine);
rrpc_error *go_engine_get_info(go_engine engine, rrpc_engine_info *info);
rrpc_error *go_engine_stop_tokens(go_engine engine, uint32_t *out, size_t capacity, size_t *count);
rrpc_error *go_tokenize(go_engine engine, const char *text, size_t len, uint32_t mode, uint32_t *out,
                        size_t capacity, size_t *count);
rrpc_error *go_detokenize(go_engine engine, const uint32_t *tokens, size_t token_count, uint32_t skip_special,
                          char *out, size_t capacity, size_t *count);
rrpc_error *go_peak_cache_bytes(go_engine engine, const rrpc_sequence_options *options, uint64_t prompt_tokens,
                                uint64_t new_tokens, uint64_t *entries, uint64_t *bytes);

rrpc_error *go_sequence_options_init(go_engine engine, rrpc_sequence_options *options, size_t size);
/* Sets the callbacks of RRPC_POLICY_CALLBACK: `selector` below is what they are passed. */
void go_sequence_options_callback(rrpc_sequence_options *options);
rrpc_error *go_sequence_create(go_engine engine, const rrpc_sequence_options *options, uintptr_t selector,
                               go_sequence *sequence);
void go_sequence_free(go_sequence sequence);
rrpc_error *go_sequence_append_text(go_sequence sequence, const char *text, size_t len);
rrpc_error *go_sequence_append_chat(go_sequence sequence, const rrpc_message *messages, size_t count);
rrpc_error *go_sequence_append_tokens(go_sequence sequence, const uint32_t *tokens, size_t count);
rrpc_error *go_sequence_reserve(go_sequence sequence, size_t new_tokens);
rrpc_error *go_step(const go_sequence *sequences, size_t count);
rrpc_error *go_sequence_pending(go_sequence sequence, size_t *pending);
rrpc_error *go_sequence_logits(go_sequence sequence, const float **logits, size_t *count);
rrpc_error *go_sequence_sample(go_sequence sequence, uint32_t *token);
rrpc_error *go_sequence_accept(go_sequence sequence, uint32_t token);
rrpc_error *go_sequence_tokens(go_sequence sequence, uint32_t *out, size_t capacity, size_t *count);
rrpc_error *go_sequence_compression_count(go_sequence sequence, size_t *count);
rrpc_error *go_sequence_get_compression(go_sequence sequence, size_t index, rrpc_compression *compression);
rrpc_error *go_sequence_compression_kept(go_sequence sequence, size_t index, size_t set, uint32_t *out,
                                         size_t capacity, size_t *count);
rrpc_error *go_sequence_get_stats(go_sequence sequence, rrpc_sequence_stats *stats);

rrpc_error *go_sequence_fork(go_sequence sequence, go_sequence *fork);
rrpc_error *go_sequence_set_seed(go_sequence sequence, uint64_t seed);
rrpc_error *go_sequence_rewind(go_sequence sequence, size_t tokens);
rrpc_error *go_sequence_cache_view(go_sequence sequence, uint32_t layer, uint32_t kv_head, rrpc_cache_view *view);
rrpc_error *go_sequence_save(go_sequence sequence, void *out, size_t capacity, size_t *count);
rrpc_error *go_sequence_save_file(go_sequence sequence, const char *path);
rrpc_error *go_sequence_restore(go_engine engine, const void *data, size_t len, go_sequence *sequence);
rrpc_error *go_sequence_restore_file(go_engine engine, const char *path, go_sequence *sequence);

rrpc_error *go_generate_start(go_sequence sequence, const rrpc_generate_options *options);
rrpc_error *go_generate_next(go_sequence sequence, rrpc_event *event);
rrpc_error *go_generate_stop(go_sequence sequence);

rrpc_error *go_engine_trim(go_engine engine, uint64_t *bytes);
rrpc_error *go_engine_get_metrics(go_engine engine, rrpc_metrics *metrics);
rrpc_error *go_engine_metrics_text(go_engine engine, char *out, size_t capacity, size_t *count);

rrpc_error *go_scheduler_create(go_engine engine, const rrpc_scheduler_options *options, go_scheduler *scheduler);
void go_scheduler_free(go_scheduler scheduler);
rrpc_error *go_scheduler_submit(go_scheduler scheduler, go_sequence sequence, const rrpc_generate_options *options,
                                go_answer *answer);
rrpc_error *go_scheduler_get_metrics(go_scheduler scheduler, rrpc_scheduler_metrics *metrics);
rrpc_error *go_scheduler_metrics_text(go_scheduler scheduler, char *out, size_t capacity, size_t *count);
rrpc_error *go_answer_next(go_answer answer, uint32_t timeout_ms, rrpc_event *event);
rrpc_error *go_answer_cancel(go_answer answer);
/* A second descriptor, the caller's to close; -1, and errno is set, if the process can open no more. */
rrpc_error *go_answer_fd(go_answer answer, int *fd);
void go_answer_free(go_answer answer);

/* For RRPC_POLICY_CALLBACK the callback is set: it passes on the `call` of the call that it serves. */
rrpc_error *go_compressor_create(rrpc_compressor_options *options, go_compressor *compressor);
void go_compressor_free(go_compressor compressor);
rrpc_error *go_compressor_due(go_compressor compressor, uint64_t generated, uint64_t compressions, uint32_t *due);
rrpc_error *go_compressor_record(go_compressor compressor, uint32_t layer, const int32_t *slots, size_t count,
                                 const void *queries, int64_t row_stride, int64_t head_stride, uint32_t dtype);
rrpc_error *go_compressor_forget(go_compressor compressor, int32_t slot);
rrpc_error *go_compressor_get_sizes(go_compressor compressor, const rrpc_kv_batch *batch,
                                    rrpc_compressor_sizes *sizes);
rrpc_error *go_compressor_score(go_compressor compressor, const rrpc_kv_layer *layer, const rrpc_kv_batch *batch,
                                const rrpc_query_window *window, float *scores, size_t score_count,
                                void *workspace, size_t workspace_bytes);
rrpc_error *go_compressor_select(go_compressor compressor, uint32_t layer, const rrpc_kv_batch *batch,
                                 const float *scores, size_t score_count, void *workspace, size_t workspace_bytes,
                                 rrpc_plan *plan, uintptr_t call);
rrpc_error *go_compressor_apply(go_compressor compressor, const rrpc_kv_layer *layer, const rrpc_kv_batch *batch,
                                const rrpc_plan *plan, void *workspace, size_t workspace_bytes);
rrpc_error *go_compressor_plan(go_compressor compressor, const rrpc_kv_layer *layer, const rrpc_kv_batch *batch,
                               const rrpc_query_window *window, void *workspace, size_t workspace_bytes,
                               rrpc_plan *plan, uintptr_t call);
rrpc_error *go_compressor_compress(go_compressor compressor, const rrpc_kv_layer *layer,
                                   const rrpc_kv_batch *batch, const rrpc_query_window *window, void *workspace,
                                   size_t workspace_bytes, rrpc_plan *plan, uintptr_t call);

#endif
