/* The consumer that loads the library itself. Usage: loaded LIBRARY MODEL_FOLDER [ABI_VERSION]. The ABI
   version is looked at before anything else; the third argument stands for a program of another one. */
#include <dlfcn.h>
#include <reasoning_rpc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *find(void *library, const char *name)
{
    void *symbol = dlsym(library, name);
    if (symbol == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    return symbol;
}

/* ISO C has no conversion from an object's pointer to a function's; POSIX does. */
#define FUNCTION(name)                                                                                               \
    static __typeof__(name) *name##_;                                                                                \
    static void load_##name(void *library)                                                                           \
    {                                                                                                                \
        void *symbol = find(library, #name);                                                                         \
        memcpy(&name##_, &symbol, sizeof symbol);                                                                    \
    }
FUNCTION(rrpc_abi_version)
FUNCTION(rrpc_error_message)
FUNCTION(rrpc_engine_open)
FUNCTION(rrpc_engine_free)
FUNCTION(rrpc_sequence_options_init)
FUNCTION(rrpc_sequence_create)
FUNCTION(rrpc_sequence_free)
FUNCTION(rrpc_sequence_append_tokens)
FUNCTION(rrpc_generate_options_init)
FUNCTION(rrpc_generate)

static void check(rrpc_error *error)
{
    if (error == NULL) return;
    fprintf(stderr, "%s\n", rrpc_error_message_(error));
    exit(1);
}

static int32_t print(const rrpc_event *event, void *user_data)
{
    (void)user_data;
    if (event->kind == RRPC_EVENT_TOKEN) printf(" %u", (unsigned)event->token);
    return 0;
}

int main(int argc, char **argv)
{
    static const uint32_t prompt[] = {63, 43, 49, 70, 31, 87, 29, 75, 15, 9, 13, 8};
    if (argc < 3) return 2;
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    load_rrpc_abi_version(library);
    unsigned wanted = argc > 3 ? (unsigned)atoi(argv[3]) : RRPC_ABI_VERSION;
    if (rrpc_abi_version_() != wanted) {
        fprintf(stderr, "ABI version: expected %u, found %u\n", wanted, (unsigned)rrpc_abi_version_());
        return 4;
    }
    load_rrpc_error_message(library);
    load_rrpc_engine_open(library);
    load_rrpc_engine_free(library);
    load_rrpc_sequence_options_init(library);
    load_rrpc_sequence_create(library);
    load_rrpc_sequence_free(library);
    load_rrpc_sequence_append_tokens(library);
    load_rrpc_generate_options_init(library);
    load_rrpc_generate(library);

    rrpc_engine *engine;
    check(rrpc_engine_open_(argv[2], NULL, &engine));
    rrpc_sequence_options options;
    check(rrpc_sequence_options_init_(engine, &options, sizeof options));
    options.temperature = 0;
    options.repetition_penalty = 1;
    rrpc_sequence *sequence;
    check(rrpc_sequence_create_(engine, &options, &sequence));
    check(rrpc_sequence_append_tokens_(sequence, prompt, sizeof prompt / sizeof prompt[0]));
    rrpc_generate_options generate;
    check(rrpc_generate_options_init_(&generate, sizeof generate));
    generate.max_tokens = 8;
    printf("tokens:");
    check(rrpc_generate_(sequence, &generate, print, NULL, NULL));
    printf("\n");
    rrpc_sequence_free_(sequence);
    rrpc_engine_free_(engine);
    /* Its threads are still there: closing it must not take the code away. */
    if (dlclose(library) != 0 || rrpc_abi_version_() != wanted) return 5;
    return 0;
}
