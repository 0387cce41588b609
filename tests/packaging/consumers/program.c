/* The consumer in C99. Usage: program MODEL_FOLDER. Prints the tokens of a greedy answer. */
#include <inttypes.h>
#include <reasoning_rpc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(rrpc_error *error)
{
    if (error == NULL) return;
    fprintf(stderr, "error %d: %s\n", (int)rrpc_error_code(error), rrpc_error_message(error));
    rrpc_error_free(error);
    exit(1);
}

static int32_t print(const rrpc_event *event, void *user_data)
{
    (void)user_data;
    if (event->kind == RRPC_EVENT_TOKEN) printf(" %" PRIu32, event->token);
    return 0;
}

int main(int argc, char **argv)
{
    static const uint32_t prompt[] = {63, 43, 49, 70, 31, 87, 29, 75, 15, 9, 13, 8};
    if (argc != 2) return 2;
    if (rrpc_abi_version() != RRPC_ABI_VERSION || strcmp(rrpc_version(), RRPC_VERSION) != 0) return 3;
    rrpc_engine *engine;
    check(rrpc_engine_open(argv[1], NULL, &engine));
    rrpc_sequence_options options;
    check(rrpc_sequence_options_init(engine, &options, sizeof options));
    options.temperature = 0;
    options.repetition_penalty = 1;
    rrpc_sequence *sequence;
    check(rrpc_sequence_create(engine, &options, &sequence));
    check(rrpc_sequence_append_tokens(sequence, prompt, sizeof prompt / sizeof prompt[0]));
    rrpc_generate_options generate;
    check(rrpc_generate_options_init(&generate, sizeof generate));
    generate.max_tokens = 8;
    printf("tokens:");
    check(rrpc_generate(sequence, &generate, print, NULL, NULL));
    printf("\n");
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
    return 0;
}
