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
rrpc_error *go_sequence_create(go_engine engine, const rrpc_sequence_options *options, go_sequence *sequence);
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

/* Every event goes to the Go function of `handle`, a cgo.Handle. */
rrpc_error *go_generate(go_sequence sequence, const rrpc_generate_options *options, uintptr_t handle,
                        rrpc_generate_result *result);

#endif
