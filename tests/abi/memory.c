/* No memory for what the caller asked. Without AddressSanitizer: address space is limited here. */
#include <sys/resource.h>

#include "check.h"

/* Address space in use, from the first number in /proc/self/statm (pages). */
static size_t address_space(void)
{
    FILE *file = fopen("/proc/self/statm", "r");
    size_t pages = 0;
    if (file == NULL || fscanf(file, "%zu", &pages) != 1) pages = 0;
    if (file != NULL) fclose(file);
    return pages * 4096;
}

static void running_out_of_memory_is_an_error(void)
{
    rrpc_engine *engine = open_engine(TEXT_MODEL);
    rrpc_sequence *sequence = prompted(engine);
    size_t len = (size_t)200 << 20;
    char *content = malloc(len);
    CHECK(content != NULL);
    memset(content, 'a', len);
    rrpc_message message = {{"user", 4}, {content, len}};
    struct rlimit unlimited, limit;
    getrlimit(RLIMIT_AS, &unlimited);
    limit = unlimited;
    limit.rlim_cur = address_space() + ((size_t)100 << 20);
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    FAILS(OUT_OF_MEMORY, "out of memory", rrpc_sequence_append_chat(sequence, &message, 1));
    CHECK(setrlimit(RLIMIT_AS, &unlimited) == 0);
    free(content);
    /* It goes on. */
    rrpc_generate_options options = at_most(3);
    OK(rrpc_generate(sequence, &options, NULL, NULL, NULL));
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

int main(void)
{
    RUN(running_out_of_memory_is_an_error);
    return check_end("memory");
}
