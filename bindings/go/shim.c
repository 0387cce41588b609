#include "shim.h"

#include "_cgo_export.h"

_Static_assert(sizeof(uintptr_t) == sizeof(rrpc_sequence *), "handles are as wide as numbers");

#define ENGINE ((rrpc_engine *)engine)
#define SEQUENCE ((rrpc_sequence *)sequence)

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

rrpc_error *go_sequence_create(go_engine engine, const rrpc_sequence_options *options, go_sequence *sequence)
{
    rrpc_sequence *created = NULL;
    rrpc_error *error = rrpc_sequence_create(ENGINE, options, &created);
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

static int32_t pass_on(const rrpc_event *event, void *user_data)
{
    return reasoning_rpc_go_event((rrpc_event *)event, (uintptr_t)user_data);
}

rrpc_error *go_generate(go_sequence sequence, const rrpc_generate_options *options, uintptr_t handle,
                        rrpc_generate_result *result)
{
    return rrpc_generate(SEQUENCE, options, pass_on, (void *)handle, result);
}
