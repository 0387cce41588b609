/*
 * A model thinks aloud while its cache is compressed.
 *
 *     cc -std=c99 example.c $(pkg-config --cflags --libs reasoning_rpc) -o example
 *     ./example MODEL_FOLDER ["a question"]
 *
 * Streams 800 tokens of an answer, then shows what compression did to the KV cache.
 */
#include <inttypes.h>
#include <reasoning_rpc.h>
#include <stdio.h>
#include <stdlib.h>

enum { TOKENS = 800 };

/* Every call that can fail returns NULL or an error that says what was expected and what was found. */
static void check(rrpc_error *error)
{
    if (error == NULL) return;
    fprintf(stderr, "error %d: %s\n", (int)rrpc_error_code(error), rrpc_error_message(error));
    rrpc_error_free(error);
    exit(EXIT_FAILURE);
}

/* Called for every event. Text comes in whole characters; a non-zero result would cancel the answer. */
static int32_t stream(const rrpc_event *event, void *user_data)
{
    unsigned *passed_over = user_data;
    if (event->kind == RRPC_EVENT_TOKEN && event->end_of_text) ++*passed_over;
    fwrite(event->text, 1, event->text_len, stdout);
    fflush(stdout);
    return 0;
}

/* The log has an entry for each compression and layer; all layers keep equally many tokens, so layer 0
   stands for all. */
static void print_compressions(const rrpc_sequence *sequence)
{
    size_t count;
    check(rrpc_sequence_compression_count(sequence, &count));
    for (size_t i = 0; i < count; ++i) {
        rrpc_compression one = {.struct_size = sizeof one};
        check(rrpc_sequence_get_compression(sequence, i, &one));
        if (one.layer != 0) continue;
        printf("compression at token %" PRIu64 ": %" PRIu64 " -> %" PRIu64 " entries per layer\n",
               one.at_token, one.len_before, one.len_after);
    }
}

static void print_figures(const rrpc_sequence *sequence)
{
    rrpc_sequence_stats stats = {.struct_size = sizeof stats};
    check(rrpc_sequence_get_stats(sequence, &stats));
    printf("cache: %" PRIu64 " bytes at the peak, %" PRIu64 " without compression (%.2f times as many)\n",
           stats.cache_peak_bytes, stats.cache_uncompressed_bytes,
           (double)stats.cache_uncompressed_bytes / (double)stats.cache_peak_bytes);
    double seconds = stats.decode_seconds + stats.compaction_seconds;
    printf("speed: %.1f tokens/s for the prompt, %.1f tokens/s for the answer (%.1f ms of it compressing)\n",
           (double)stats.prefill_tokens / stats.prefill_seconds, (double)stats.decode_tokens / seconds,
           1000 * stats.compaction_seconds);
}

int main(int argc, char **argv)
{
    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: %s MODEL_FOLDER [QUESTION]\n", argv[0]);
        return EXIT_FAILURE;
    }
    const char *question = argc == 3 ? argv[2] : "Explain step by step why the sky is blue.";

    rrpc_engine *engine;
    check(rrpc_engine_open(argv[1], NULL, &engine));

    /* Every 128 tokens, the newest 32 say which quarter of the older ones stays. */
    rrpc_sequence_options options;
    check(rrpc_sequence_options_init(engine, &options, sizeof options));
    options.policy = RRPC_POLICY_RPC;
    options.interval = 128;
    options.window = 32;
    options.ratio = 4;
    options.seed = 1;
    rrpc_sequence *sequence;
    check(rrpc_sequence_create(engine, &options, &sequence));

    rrpc_message message = {{"user", RRPC_NUL_TERMINATED}, {question, RRPC_NUL_TERMINATED}};
    check(rrpc_sequence_append_chat(sequence, &message, 1));

    /* A model that has said all it had to say goes on, so that there is something to compress. */
    rrpc_generate_options generate;
    check(rrpc_generate_options_init(&generate, sizeof generate));
    generate.max_tokens = TOKENS;
    generate.ignore_eos = 1;
    rrpc_generate_result result = {.struct_size = sizeof result};
    unsigned passed_over = 0;
    check(rrpc_generate(sequence, &generate, stream, &passed_over, &result));

    printf("\n\n%" PRIu64 " tokens, %u of them ends of text that were passed over\n", result.tokens, passed_over);
    print_compressions(sequence);
    print_figures(sequence);

    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
    return EXIT_SUCCESS;
}
