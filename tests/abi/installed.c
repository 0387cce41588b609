/* A program that knows the library from pkg-config alone. Usage: installed MODEL_FOLDER */
#include <reasoning_rpc.h>
#include <stdio.h>

static int failed(rrpc_error *error)
{
    if (error == NULL) return 0;
    printf("error %d: %s\n", (int)rrpc_error_code(error), rrpc_error_message(error));
    rrpc_error_free(error);
    return 1;
}

int main(int argc, char **argv)
{
    static const uint32_t prompt[] = {63, 43, 49, 70, 31, 87, 29, 75, 15, 9, 13, 8};
    rrpc_engine *engine = NULL;
    rrpc_sequence *sequence = NULL;
    rrpc_generate_options options;
    rrpc_generate_result result = {.struct_size = sizeof result};
    if (argc != 2 || failed(rrpc_engine_open(argv[1], NULL, &engine))
        || failed(rrpc_sequence_create(engine, NULL, &sequence))
        || failed(rrpc_sequence_append_tokens(sequence, prompt, sizeof prompt / sizeof prompt[0]))
        || failed(rrpc_generate_options_init(&options, sizeof options)))
        return 1;
    options.max_tokens = 20;
    if (failed(rrpc_generate(sequence, &options, NULL, NULL, &result)) || result.tokens != 20) return 1;
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
    printf("version %s: 20 tokens\n", rrpc_version());
    return 0;
}
