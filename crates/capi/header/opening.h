/*
 * reasoning_rpc.h: long answers of language models, with a KV cache that is compressed while they are
 * written. This header is generated and complete: it needs no other documentation.
 *
 * A first program, in full. It answers a question with an exported model:
 *
 *     #include <reasoning_rpc.h>
 *     #include <stdio.h>
 *     #include <stdlib.h>
 *
 *     static void check(rrpc_error *error)
 *     {
 *         if (error == NULL) return;
 *         fprintf(stderr, "%s\n", rrpc_error_message(error));
 *         rrpc_error_free(error);
 *         exit(1);
 *     }
 *
 *     static int32_t print(const rrpc_event *event, void *user_data)
 *     {
 *         (void)user_data;
 *         fputs(event->text, stdout);
 *         fflush(stdout);
 *         return 0; // anything else would cancel the answer
 *     }
 *
 *     int main(int argc, char **argv)
 *     {
 *         if (argc != 3) {
 *             fprintf(stderr, "usage: %s MODEL_FOLDER QUESTION\n", argv[0]);
 *             return 2;
 *         }
 *         rrpc_engine *engine;
 *         check(rrpc_engine_open(argv[1], NULL, &engine));
 *         rrpc_sequence *sequence;
 *         check(rrpc_sequence_create(engine, NULL, &sequence));
 *         rrpc_message question = {{"user", RRPC_NUL_TERMINATED}, {argv[2], RRPC_NUL_TERMINATED}};
 *         check(rrpc_sequence_append_chat(sequence, &question, 1));
 *         check(rrpc_generate(sequence, NULL, print, NULL, NULL));
 *         rrpc_sequence_free(sequence);
 *         rrpc_engine_free(engine);
 *         return 0;
 *     }
 *
 *     cc first.c $(pkg-config --cflags --libs reasoning_rpc) -o first && ./first MODEL_FOLDER QUESTION
 *
 * From here on the header goes from simple to advanced. What holds everywhere:
 *
 * Errors. A function that can fail returns an rrpc_error pointer: NULL is success; anything else has a
 * code and a message and is freed with rrpc_error_free. Each function lists its codes without their
 * prefix RRPC_ERROR_; FORKED and INTERNAL can come from any, OUT_OF_MEMORY from any that is given or
 * makes something large. After an error outputs are not to be read, unless something else is said.
 * States that a program expects (no logits yet, an answer that was cancelled) are outputs, not errors.
 * Nothing is printed; rrpc_set_log tells more. A panic, which is a bug, is a message and an INTERNAL.
 *
 * Handles. Pointers to rrpc_engine, rrpc_sequence, rrpc_scheduler, rrpc_answer, rrpc_compressor and
 * rrpc_tensor are numbers in the shape of pointers: an index and a generation, never dereferenced. One that
 * was freed, is of another kind or is garbage gives INVALID_HANDLE; none is used twice. A sequence or a
 * scheduler keeps what it needs of its engine alive. Freeing NULL or a freed handle does nothing.
 *
 * Threads. Every function may be called from every thread. Engines and schedulers are shared: any number of
 * calls may use one at the same time. Sequences are exclusive: one call at a time uses one, and a second
 * one that comes meanwhile, from another thread or from a callback, changes nothing and gives BUSY. Calls
 * on different sequences run at the same time, and never wait for each other but for the step that runs the
 * model. A function that takes a sequence as const leaves it, and pointers to its logits, as they are.
 *
 * Structs. Option structs are filled by their init function, which takes sizeof and writes every default
 * out: zero is a value like any other, never "the default". Output structs have their struct_size set by
 * the caller before the call: `rrpc_engine_info info = {.struct_size = sizeof info};`. Structs grow at
 * their ends only. A smaller struct, from an older header, is accepted: options that it lacks have their
 * defaults, outputs get what fits. A larger one, from a newer header, is refused if fields that the
 * library does not know are not zero. Fields named reserved are 0.
 *
 * Numbers. Token ids are uint32_t and below the vocabulary's size. Choices are uint32_t with the
 * constants that each field names, flags are uint32_t, 0 or 1; other values are refused. Sizes are in
 * bytes, times in seconds, timeouts in milliseconds, lengths of a cache in entries (one entry is one token of one KV head).
 *
 * Text is UTF-8, with its length in bytes or RRPC_NUL_TERMINATED in its place; up to 256 MiB. Paths are
 * NUL-terminated and in the file system's encoding.
 *
 * Buffers. What is copied out goes to a buffer of the caller's, with its capacity in items; the count says
 * how many items there are. A NULL buffer with capacity 0 asks for the count alone. A buffer that is too
 * small is left as it is, and gives BUFFER_TOO_SMALL with the count that is needed.
 *
 * Processes. After fork() the child of a process that has opened an engine gets FORKED from every call that
 * can fail, and frees nothing. A program that forks opens its engines in the children, or lets them exec.
 * The library sets no signal handler and is not unloaded by dlclose.
 *
 * Versions. Constants, codes and functions are never renumbered or taken away under one ABI version; new
 * ones are added. `Since` names the version of the header that a function came with.
 */
