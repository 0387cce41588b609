/* Saved sequences: through memory and files, refused when damaged. */
#include <unistd.h>

#include "check.h"

static rrpc_engine *engine;

static rrpc_sequence *answered(void)
{
    rrpc_sequence *sequence = prompted(engine);
    rrpc_generate_options options = at_most(5);
    NEED(rrpc_generate(sequence, &options, NULL, NULL, NULL));
    return sequence;
}

/* The rest of the known answer. */
static void goes_on(rrpc_sequence *sequence)
{
    rrpc_generate_options options = at_most(ANSWER_LENGTH - 5);
    OK(rrpc_generate(sequence, &options, NULL, NULL, NULL));
    uint32_t tokens[64];
    size_t count = 0;
    OK(rrpc_sequence_tokens(sequence, tokens, 64, &count));
    CHECK(count == PROMPT_LENGTH + ANSWER_LENGTH);
    CHECK(memcmp(tokens + PROMPT_LENGTH, ANSWER, sizeof ANSWER) == 0);
}

static void a_restored_sequence_goes_on(void)
{
    rrpc_sequence *sequence = answered(), *restored = NULL;
    size_t size = 0, count = 0;
    OK(rrpc_sequence_save(sequence, NULL, 0, &size));
    char *data = malloc(size + 8);
    memset(data, 0x5a, size + 8);
    FAILS(BUFFER_TOO_SMALL, "room", rrpc_sequence_save(sequence, data, size - 1, &count));
    CHECK(count == size && data[0] == 0x5a);
    FAILS(NULL_POINTER, "out", rrpc_sequence_save(sequence, NULL, 1, &count));
    OK(rrpc_sequence_save(sequence, data + 1, size, &count)); /* no alignment is needed */
    CHECK(count == size && data[size + 1] == 0x5a);
    OK(rrpc_sequence_restore(engine, data + 1, size, &restored));
    goes_on(restored);
    goes_on(sequence);
    rrpc_sequence_free(restored);
    for (size_t cut = 0; cut < size; cut += 97) {
        FAILS(STATE, "saved sequence", rrpc_sequence_restore(engine, data + 1, cut, &restored));
        CHECK(restored == NULL);
        data[1 + cut] ^= 1;
        FAILS(STATE, "saved sequence", rrpc_sequence_restore(engine, data + 1, size, &restored));
        data[1 + cut] ^= 1;
    }
    FAILS(NULL_POINTER, "data", rrpc_sequence_restore(engine, NULL, 1, &restored));
    FAILS(NULL_POINTER, "sequence", rrpc_sequence_restore(engine, data + 1, size, NULL));
    free(data);
    rrpc_sequence_free(sequence);
}

static void files(void)
{
    char path[64];
    snprintf(path, sizeof path, "/tmp/rrpc-state-%d", (int)getpid());
    rrpc_sequence *sequence = answered(), *restored = NULL;
    OK(rrpc_sequence_save_file(sequence, path));
    OK(rrpc_sequence_save_file(sequence, path));
    OK(rrpc_sequence_restore_file(engine, path, &restored));
    goes_on(restored);
    unlink(path);
    FAILS(FILE, path, rrpc_sequence_restore_file(engine, path, &restored));
    FAILS(FILE, "/nowhere/", rrpc_sequence_save_file(sequence, "/nowhere/a"));
    FAILS(INVALID_ARGUMENT, "path", rrpc_sequence_save_file(sequence, ""));
    FAILS(NULL_POINTER, "path", rrpc_sequence_save_file(sequence, NULL));
    rrpc_sequence_free(restored);
    rrpc_sequence_free(sequence);
}

int main(void)
{
    engine = open_engine(MODEL);
    RUN(a_restored_sequence_goes_on);
    RUN(files);
    rrpc_engine_free(engine);
    return check_end("state");
}
