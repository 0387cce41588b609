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
 * Nothing is printed but the report of a panic, which is a bug, on stderr.
 *
 * Handles. rrpc_engine and rrpc_sequence pointers are numbers in the shape of pointers: an index and a
 * generation, never dereferenced. One that was freed, is of the other kind or is garbage gives
 * INVALID_HANDLE; none is used twice. A sequence keeps what it needs of its engine alive. Freeing NULL or a
 * freed handle does nothing.
 *
 * Threads. Every function may be called from every thread. Engines are shared: any number of calls may
 * use one at the same time. Sequences are exclusive: one call at a time uses one, and a second one that
 * comes meanwhile, from another thread or from a callback, changes nothing and gives BUSY. Calls on
 * different sequences run at the same time, and never wait for each other but for the step that runs the
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
 * bytes, times in seconds, lengths of a cache in entries (one entry is one token of one KV head).
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

#ifndef REASONING_RPC_H
#define REASONING_RPC_H

#include <stddef.h>
#include <stdint.h>

/** Version of this header as text. */
#define RRPC_VERSION "0.1.0"

/** On functions whose result must be looked at. */
#if defined(__GNUC__)
#define RRPC_NODISCARD __attribute__((__warn_unused_result__))
#else
#define RRPC_NODISCARD
#endif

#ifdef __cplusplus
extern "C" {
#endif

/*
 * ==== Versions ====
 */

/** Major version of this header. */
#define RRPC_VERSION_MAJOR 0
/** Minor version of this header. */
#define RRPC_VERSION_MINOR 1
/** Patch version of this header. */
#define RRPC_VERSION_PATCH 0

/**
 * Version of the ABI that this header describes, and the number at the end of the library's
 * soname. A library with the same number serves every program built against it; functions,
 * constants and fields at the ends of structs are added without a new number.
 */
#define RRPC_ABI_VERSION 0

/**
 * The version of the library that is loaded, such as "0.1.0".
 *
 * Ownership: the string is the library's; it is never freed.
 * Threads: any, at any time.
 * Errors: none.
 * Since: 0.1
 */
const char *rrpc_version(void);

/**
 * The ABI version of the library that is loaded. A program that loads the library itself (`dlopen`)
 * compares it with RRPC_ABI_VERSION before anything else; the dynamic linker does so by the soname.
 *
 * Ownership: nothing changes hands.
 * Threads: any, at any time.
 * Errors: none.
 * Since: 0.1
 */
uint32_t rrpc_abi_version(void);

/*
 * ==== Errors ====
 *
 * Codes are only ever added.
 */

/** No error: what rrpc_error_code says of NULL. */
#define RRPC_OK 0

/** An argument or option cannot be used; the message names it, what was expected and what was found. */
#define RRPC_ERROR_INVALID_ARGUMENT 1
/** A pointer that is needed is NULL. */
#define RRPC_ERROR_NULL_POINTER 2
/** A handle was freed, is of another kind, or was never one. */
#define RRPC_ERROR_INVALID_HANDLE 3
/** Another call is using the sequence, or this one was made from its callback. */
#define RRPC_ERROR_BUSY 4
/** A buffer is too small; how much is needed was written to the count. */
#define RRPC_ERROR_BUFFER_TOO_SMALL 5
/** The model folder is missing, damaged, edited, or of another version. */
#define RRPC_ERROR_MODEL 6
/** ONNX Runtime is absent, too old, a second one in this process, or it failed. */
#define RRPC_ERROR_RUNTIME 7
/** The model has no chat template, or it cannot be rendered. */
#define RRPC_ERROR_TEMPLATE 8
/** Text cannot be turned into tokens or back; the model may have no tokenizer. */
#define RRPC_ERROR_TEXT 9
/** The cache would outgrow the engine's budget. */
#define RRPC_ERROR_BUDGET 10
/** The text would outgrow the model's context. */
#define RRPC_ERROR_CONTEXT 11
/** An earlier internal error left the sequence unusable: free it. The engine is well. */
#define RRPC_ERROR_POISONED 12
/** This process was forked from one that had opened an engine. */
#define RRPC_ERROR_FORKED 13
/** Memory ran out, or too many handles are alive. */
#define RRPC_ERROR_OUT_OF_MEMORY 14
/** A bug in the library. The sequences involved are poisoned. */
#define RRPC_ERROR_INTERNAL 15
/** A saved sequence is damaged, of another version, or of another model. */
#define RRPC_ERROR_STATE 16
/** A file cannot be read or written. */
#define RRPC_ERROR_FILE 17
/** A callback of the caller's reported a failure. */
#define RRPC_ERROR_CALLBACK 18

/** What went wrong: a code to act on and a message to read. */
typedef struct rrpc_error rrpc_error;

/**
 * The error's code, one of the RRPC_ERROR_ constants; RRPC_OK for NULL.
 *
 * Ownership: the error stays the caller's.
 * Threads: any; not while another thread frees this error.
 * Errors: none.
 * Since: 0.1
 */
int32_t rrpc_error_code(const rrpc_error *error);

/**
 * The error's message in English, UTF-8, NUL-terminated, without a line end; "no error" for NULL.
 *
 * Ownership: the string is the error's and lives as long.
 * Threads: any; not while another thread frees this error.
 * Errors: none.
 * Since: 0.1
 */
const char *rrpc_error_message(const rrpc_error *error);

/**
 * Frees an error. NULL is accepted.
 *
 * Ownership: takes the error; it and its message are gone.
 * Threads: any; one thread per error.
 * Errors: none.
 * Since: 0.1
 */
void rrpc_error_free(rrpc_error *error);

/*
 * ==== Engines ====
 *
 * An engine is an open model.
 */

/**
 * The element type that suits the model: fp16, or fp32 for a graph of the portable flavour, which
 * takes no other.
 */
#define RRPC_DTYPE_DEFAULT 0
/** IEEE 754 binary32, 4 bytes. */
#define RRPC_DTYPE_F32 1
/** IEEE 754 binary16, 2 bytes. */
#define RRPC_DTYPE_F16 2

/** A budget that holds one uncompressed text of the model's whole context. */
#define RRPC_BUDGET_DEFAULT UINT64_MAX

/** One thread for each core that the process may use. */
#define RRPC_THREADS_ONE_PER_CORE UINT32_MAX

/** A graph whose attention is the library's own operator, over a pool of blocks. */
#define RRPC_FLAVOUR_CACHED 1
/** A graph of stock ONNX Runtime operators, over one contiguous fp32 cache for each sequence. */
#define RRPC_FLAVOUR_PORTABLE 2

/**
 * A loaded model, the pool of its caches and the threads that run it. Shared by any number of
 * sequences and threads. A handle: never dereferenced, checked at every call.
 */
typedef struct rrpc_engine rrpc_engine;

/** Options of rrpc_engine_open, to be filled by rrpc_engine_options_init. */
typedef struct rrpc_engine_options {
    /** sizeof(rrpc_engine_options), set by rrpc_engine_options_init. */
    size_t struct_size;
    /**
     * Path of libonnxruntime.so, NUL-terminated. Default NULL: the file that the environment variable
     * RRPC_ONNXRUNTIME names (not in a set-user-id program), else libonnxruntime.so beside
     * libreasoning_rpc.so, else beside the program. A process has one ONNX Runtime.
     */
    const char *onnxruntime;
    /**
     * Bytes that the caches of all sequences may take together. Address space only, until it is
     * used. Rounded down to whole blocks. Default RRPC_BUDGET_DEFAULT.
     */
    uint64_t budget_bytes;
    /** Threads of a step, 1 to 1024. Default RRPC_THREADS_ONE_PER_CORE. */
    uint32_t threads;
    /** Element type of the cache, one of RRPC_DTYPE_. Default RRPC_DTYPE_DEFAULT. */
    uint32_t cache_dtype;
    /** Entries (tokens) of one block of the cache, a multiple of 16 up to 65536. Default 64. */
    uint32_t block_entries;
    /** The most given tokens of one sequence that one step runs, 1 to 1048576. Default 256. */
    uint32_t prefill_chunk;
    /**
     * 1: opening compares the hash of the weights with the manifest's, which reads them all. 0: their
     * size only. Default 1.
     */
    uint32_t verify_weights;
    /** 0. */
    uint32_t reserved;
} rrpc_engine_options;

/** What an engine is and how much of its budget is in use. Set struct_size before it is filled. */
typedef struct rrpc_engine_info {
    /** sizeof(rrpc_engine_info), set by the caller. */
    size_t struct_size;
    /**
     * Name of the instruction set that the library's loops use: "portable", "avx2" or "avx512".
     * Never freed.
     */
    const char *simd;
    /** Parameters of the model. */
    uint64_t parameters;
    /** Bytes of cache for each token, over all layers and KV heads, without block rounding. */
    uint64_t token_bytes;
    /** Bytes of the budget, in whole blocks. */
    uint64_t budget_bytes;
    /** Bytes of the budget that caches hold now. */
    uint64_t budget_used_bytes;
    /** Tokens of the context. */
    uint32_t context;
    /** Tokens of the vocabulary; ids are below it, and logits have as many elements. */
    uint32_t vocab;
    /** Decoder layers. */
    uint32_t layers;
    /** Query heads of a layer. */
    uint32_t heads;
    /** KV heads of a layer; a divisor of `heads`. */
    uint32_t kv_heads;
    /** Elements of a head. */
    uint32_t head_dim;
    /** Elements of a hidden state. */
    uint32_t hidden;
    /** RRPC_FLAVOUR_CACHED or RRPC_FLAVOUR_PORTABLE. */
    uint32_t flavour;
    /** Element type of the cache, RRPC_DTYPE_F32 or RRPC_DTYPE_F16. */
    uint32_t cache_dtype;
    /** Entries of one block of the cache. */
    uint32_t block_entries;
    /** 1 if the model has a tokenizer; without one it takes token ids only. */
    uint32_t has_tokenizer;
    /** 1 if the model has a chat template. */
    uint32_t has_chat_template;
} rrpc_engine_info;

/**
 * Fills `options` with the defaults. `size` is sizeof(rrpc_engine_options).
 *
 * Ownership: the struct is the caller's.
 * Threads: any.
 * Errors: NULL_POINTER; INVALID_ARGUMENT for a size that is none.
 * Since: 0.1
 */
RRPC_NODISCARD rrpc_error *rrpc_engine_options_init(rrpc_engine_options *options, size_t size);

/**
 * Opens a model folder, as the program reasoning-rpc-export writes it.
 *
 * `model` is the folder's path, NUL-terminated; `options` may be NULL for the defaults. The weights
 * are memory-mapped. Takes seconds for a large model.
 *
 * Ownership: the engine goes to `*engine` (NULL after an error); the caller frees it with
 * rrpc_engine_free. `model` and `options` are read during the call only.
 * Threads: any; engines may be opened at the same time.
 * Errors: NULL_POINTER; INVALID_ARGUMENT for an option, and for an environment variable RRPC_SIMD that
 * names an instruction set which the CPU lacks; MODEL; RUNTIME if there is no ONNX Runtime;
 * TEXT or TEMPLATE if the model's tokenizer or template cannot be used.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_engine_open(const char *model,
                             const rrpc_engine_options *options,
                             rrpc_engine **engine);

/**
 * Frees an engine. Its sequences stay usable; the model is unloaded when the last of them is freed.
 * NULL and handles that were freed before are accepted.
 *
 * Ownership: takes the engine's handle.
 * Threads: any; calls on the engine that are under way end as if it were still there.
 * Errors: none.
 * Since: 0.1
 */
void rrpc_engine_free(rrpc_engine *engine);

/**
 * Says what an engine is and how much of its budget is in use.
 *
 * Ownership: the struct is the caller's; the strings in it are the library's and never freed.
 * Threads: any.
 * Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for a struct_size that is none.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_engine_get_info(const rrpc_engine *engine,
                                 rrpc_engine_info *info);

/**
 * Copies the ids of the tokens that end an answer: for programs that step sequences themselves.
 *
 * `count` gets their number. `out` may be NULL with a `capacity` of 0, to ask for the number only;
 * otherwise it has room for `capacity` ids.
 *
 * Ownership: the buffer is the caller's.
 * Threads: any.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUFFER_TOO_SMALL.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_engine_stop_tokens(const rrpc_engine *engine,
                                    uint32_t *out,
                                    size_t capacity,
                                    size_t *count);

/*
 * ==== Sequences ====
 *
 * A sequence is a text: given parts, generated parts, and their cache. It can be continued for as
 * long as the context has room: append, generate, append the next turn, generate.
 */

/** In the place of a text's length: the text ends at its NUL. */
#define RRPC_NUL_TERMINATED SIZE_MAX

/** The cache is left whole. */
#define RRPC_POLICY_NONE 0

/**
 * Reasoning path compression: after every `interval` generated tokens, the queries of the newest
 * `window` score the generated ones before them, and the best stay: one in `ratio` of all intervals
 * so far. Text given by the caller is never dropped.
 */
#define RRPC_POLICY_RPC 1

/** Scores are averaged over all heads of a layer: one kept set for the layer. */
#define RRPC_AGGREGATION_LAYER 0
/** Scores are averaged over the query heads of each KV head: one kept set for each. */
#define RRPC_AGGREGATION_KV_HEAD 1

/** Neighbouring scores are averaged. */
#define RRPC_POOLING_AVERAGE 0
/** The highest of neighbouring scores counts. */
#define RRPC_POOLING_MAX 1

/**
 * A text under generation: tokens, cache, compression policy and sampler. Used by one call at a time.
 * A handle: never dereferenced, checked at every call.
 */
typedef struct rrpc_sequence rrpc_sequence;

/** Options of rrpc_sequence_create, to be filled by rrpc_sequence_options_init. */
typedef struct rrpc_sequence_options {
    /** sizeof(rrpc_sequence_options), set by rrpc_sequence_options_init. */
    size_t struct_size;
    /**
     * How the cache is compressed, one of RRPC_POLICY_. The next six fields are read for
     * RRPC_POLICY_RPC only. Default RRPC_POLICY_RPC.
     */
    uint32_t policy;
    /** Generated tokens between two compressions (P), a multiple of `ratio`. Default 4096. */
    uint32_t interval;
    /**
     * The newest generated tokens, which score the others and always stay (R): 1 or more, less than
     * `interval`. Default 32.
     */
    uint32_t window;
    /** One of so many entries stays (c), 1 or more. Default 4. */
    uint32_t ratio;
    /** One of RRPC_AGGREGATION_. Default RRPC_AGGREGATION_LAYER. */
    uint32_t aggregation;
    /** One of RRPC_POOLING_. Default RRPC_POOLING_AVERAGE. */
    uint32_t pooling;
    /** Width of the pooling, in scores: odd, 1 (none) to 65535. Default 7. */
    uint32_t kernel;
    /** 1: the log of compressions names the kept positions, and so grows with the text. Default 0. */
    uint32_t record_kept;
    /**
     * Divides the logits; 0 is greedy: the highest logit, and of equal ones the lowest id. The
     * defaults of this and the next four fields are those of the model's authors; if they give none,
     * temperature 0.6, top_p 0.95 and the rest off.
     */
    float temperature;
    /** Only the most probable tokens that together reach this probability, 0 to 1; 1 is off. */
    float top_p;
    /** Only tokens at least this times as probable as the most probable one, 0 to 1; 0 is off. */
    float min_p;
    /**
     * Divides the positive and multiplies the negative logits of tokens that the text has; above 0; 1
     * is off.
     */
    float repetition_penalty;
    /** Only so many of the most probable tokens; 0 is off. */
    uint32_t top_k;
    /** 0. */
    uint32_t reserved;
    /** The same seed gives the same text. Default 0. */
    uint64_t seed;
} rrpc_sequence_options;

/** A text inside a struct or an array. This struct never grows. */
typedef struct rrpc_text {
    /** UTF-8; may be NULL if `len` is 0. */
    const char *data;
    /** Bytes, or RRPC_NUL_TERMINATED. */
    size_t len;
} rrpc_text;

/** One message of a conversation. This struct never grows. */
typedef struct rrpc_message {
    /** "system", "user", "assistant", "tool" or "developer". */
    rrpc_text role;
    /** What was said. Ordinary text: what spells a control token in it does not become one. */
    rrpc_text content;
} rrpc_message;

/**
 * Fills `options` with the defaults for sequences of `engine`: its sampling defaults are the model's.
 * `size` is sizeof(rrpc_sequence_options).
 *
 * Ownership: the struct is the caller's.
 * Threads: any.
 * Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for a size that is none.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_sequence_options_init(const rrpc_engine *engine,
                                       rrpc_sequence_options *options,
                                       size_t size);

/**
 * Makes an empty sequence. `options` may be NULL for the defaults.
 *
 * Ownership: the sequence goes to `*sequence` (NULL after an error); the caller frees it with
 * rrpc_sequence_free. It keeps the engine's model alive. `options` is read during the call only.
 * Threads: any.
 * Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for an option, such as an `interval` that is
 * no multiple of `ratio` or a `window` that is not below `interval`.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_sequence_create(const rrpc_engine *engine,
                                 const rrpc_sequence_options *options,
                                 rrpc_sequence **sequence);

/**
 * Frees a sequence and its cache. NULL and handles that were freed before are accepted.
 *
 * Ownership: takes the sequence's handle. Pointers to its logits are no longer valid.
 * Threads: any. A call on the sequence that is under way in another thread, or that this one is made
 * from, ends as if it were still there; then the memory is freed.
 * Errors: none.
 * Since: 0.1
 */
void rrpc_sequence_free(rrpc_sequence *sequence);

/**
 * Appends raw text. Control tokens in it are parsed. Text that begins the sequence gets the
 * beginning-of-text token if the model's tokenizer asks for one. Given text is protected: compression
 * never drops any of it, whenever it is appended.
 *
 * `text` is UTF-8 of `len` bytes, or NUL-terminated if `len` is RRPC_NUL_TERMINATED.
 *
 * Ownership: `text` is read during the call only.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT if `text` is not UTF-8; TEXT
 * if the model has no tokenizer; CONTEXT if the text outgrows the context. Nothing is appended then.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_sequence_append_text(rrpc_sequence *sequence,
                                      const char *text,
                                      size_t len);

/**
 * Appends messages in the words of the model's chat template, up to where the assistant's answer
 * begins. Control tokens are parsed in the template's text, never in a message's content.
 *
 * Ownership: `messages` and what it points to are read during the call only.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT if a text is not UTF-8 or
 * there are more than 65536 messages; TEMPLATE if the model has no chat template, or it refuses the
 * messages; TEXT if the model has no tokenizer; CONTEXT if the text outgrows the context. Nothing is
 * appended then.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_sequence_append_chat(rrpc_sequence *sequence,
                                      const rrpc_message *messages,
                                      size_t count);

/**
 * Appends `count` token ids as given text: protected from compression.
 *
 * Ownership: `tokens` is read during the call only.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT if an id is not in the
 * vocabulary; CONTEXT if the text outgrows the context. Nothing is appended then.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_sequence_append_tokens(rrpc_sequence *sequence,
                                        const uint32_t *tokens,
                                        size_t count);

/**
 * Promises the sequence the cache that it needs until `new_tokens` more tokens are generated, to the
 * byte and with its compressions counted, so that no step on the way fails for want of budget. A
 * later promise replaces this one; 0 with nothing pending gives back what is not in use. Not
 * needed before rrpc_generate, which does it.
 *
 * Ownership: nothing changes hands.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; BUDGET if the budget cannot hold it beside
 * what other sequences were promised; CONTEXT if the text would outgrow the context. The earlier
 * promise stands then.
 * Since: 0.1
 */
RRPC_NODISCARD rrpc_error *rrpc_sequence_reserve(rrpc_sequence *sequence, size_t new_tokens);

/*
 * ==== A whole answer ====
 */

/** As many tokens as the context has room for. */
#define RRPC_TO_END_OF_CONTEXT UINT64_MAX

/** A part of the given text was run. */
#define RRPC_EVENT_PREFILL 1
/** A token was generated. */
#define RRPC_EVENT_TOKEN 2
/** The answer is complete. The last event of every call that returns no error. */
#define RRPC_EVENT_END 3

/** The model wrote one of its stop tokens. */
#define RRPC_STOP_EOS 1
/** A stop string came up. */
#define RRPC_STOP_STRING 2
/** `max_tokens` were generated. */
#define RRPC_STOP_LENGTH 3
/** The context is full. */
#define RRPC_STOP_CONTEXT 4
/** The callback asked for it. */
#define RRPC_STOP_CANCELLED 5

/** Options of rrpc_generate, to be filled by rrpc_generate_options_init. */
typedef struct rrpc_generate_options {
    /** sizeof(rrpc_generate_options), set by rrpc_generate_options_init. */
    size_t struct_size;
    /** The most tokens to generate. Default RRPC_TO_END_OF_CONTEXT. */
    uint64_t max_tokens;
    /** `stop_count` texts that end the answer; they are not part of it. None is empty. Default NULL. */
    const rrpc_text *stop;
    /** Stop strings, up to 1024. Default 0. */
    size_t stop_count;
    /**
     * 1: the model's stop tokens do not end the answer; they are run like any other and shown in the
     * text. Default 0.
     */
    uint32_t ignore_eos;
    /** 0. */
    uint32_t reserved;
} rrpc_generate_options;

/**
 * What rrpc_generate tells its callback, and rrpc_generate_next its caller. Fields that an event does not name are 0; `text` is never
 * NULL.
 */
typedef struct rrpc_event {
    /**
     * The size of the struct: of what the library passes to a callback, where fields at and behind it are
     * not there, or set by the caller of rrpc_generate_next.
     */
    size_t struct_size;
    /**
     * TOKEN and END: text that became complete, UTF-8 and NUL-terminated: whole characters, and nothing
     * that may still become a stop string. May be empty.
     */
    const char *text;
    /** Bytes of `text`, without its NUL. */
    size_t text_len;
    /** PREFILL: tokens of the given text run by this call. */
    uint64_t prefill_done;
    /** PREFILL: tokens of the given text that this call has to run. */
    uint64_t prefill_total;
    /** RRPC_EVENT_PREFILL, RRPC_EVENT_TOKEN or RRPC_EVENT_END; others may come with later versions. */
    uint32_t kind;
    /** TOKEN: its id. */
    uint32_t token;
    /** TOKEN: 1 if it is one of the model's stop tokens, which ends the answer or is passed over. */
    uint32_t end_of_text;
    /** END: why, one of RRPC_STOP_. */
    uint32_t stop_reason;
} rrpc_event;

/**
 * Called for each event of rrpc_generate, in the thread that called it. Returns 0 to go on; anything
 * else cancels the answer before its next token.
 *
 * The event and its text are the library's and valid during the call. The callback may call the
 * library, but for the sequence at work, which is BUSY. It must return: no exception and no
 * longjmp may leave it.
 */
typedef int32_t (*rrpc_event_callback)(const rrpc_event *event, void *user_data);

/** How an answer ended. Set struct_size before it is filled. */
typedef struct rrpc_generate_result {
    /** sizeof(rrpc_generate_result), set by the caller. */
    size_t struct_size;
    /** Tokens generated by the call, a stop token included. */
    uint64_t tokens;
    /** Why it ended, one of RRPC_STOP_. */
    uint32_t stop_reason;
    /** 0. */
    uint32_t reserved;
} rrpc_generate_result;

/**
 * Fills `options` with the defaults. `size` is sizeof(rrpc_generate_options).
 *
 * Ownership: the struct is the caller's.
 * Threads: any.
 * Errors: NULL_POINTER; INVALID_ARGUMENT for a size that is none.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_generate_options_init(rrpc_generate_options *options,
                                       size_t size);

/**
 * Writes an answer: runs the text that is pending, then generates, samples and streams token by token
 * until something stops it. Before its first token the cache of the whole answer is promised to the
 * sequence, so that it fits the budget to the end or is refused at once.
 *
 * `options` may be NULL for the defaults, `callback` if nothing is to be streamed, `result` if how it
 * ended is of no interest. `user_data` is passed on to the callback. The answer becomes part of the
 * sequence, which can be continued with more text or another call. An answer that ended for
 * RRPC_STOP_LENGTH continues seamlessly.
 *
 * Ownership: `options` and what it points to are read during the call only; `result` is the caller's.
 * Threads: any; one call at a time on a sequence. Answers of other sequences of the engine advance
 * meanwhile, a step of one at a time.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT for an option or an empty
 * sequence; TEXT for stop strings without a tokenizer; BUDGET if the cache of the answer does not fit
 * the budget; RUNTIME, INTERNAL. Tokens that were generated before an error stay in the sequence;
 * `result` is not filled then, and no END event comes.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_generate(rrpc_sequence *sequence,
                          const rrpc_generate_options *options,
                          rrpc_event_callback callback,
                          void *user_data,
                          rrpc_generate_result *result);

/**
 * Begins an answer whose events the caller pulls with rrpc_generate_next: what rrpc_generate writes, at
 * the caller's pace. The cache of the whole answer is promised to the sequence. Until the answer has
 * ended, calls with a pointer to this sequence that is not const give BUSY, but for
 * rrpc_generate_next, rrpc_generate_stop and rrpc_sequence_free.
 *
 * Ownership: `options` and what it points to are read during the call only.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT for an option or an empty
 * sequence; TEXT for stop strings without a tokenizer; BUDGET if the cache of the answer does not fit
 * the budget. No answer is under way then.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_generate_start(rrpc_sequence *sequence,
                                const rrpc_generate_options *options);

/**
 * Runs the answer under way up to its next event, and fills `event`. RRPC_EVENT_END is the last one: the
 * answer has ended then.
 *
 * Ownership: the struct is the caller's; its text is the sequence's and valid until the next call with a
 * pointer to it that is not const.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT for a struct_size that is none
 * (the answer goes on) and if no answer is under way; RUNTIME, INTERNAL: the answer has ended.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_generate_next(rrpc_sequence *sequence,
                               rrpc_event *event);

/**
 * Ends the answer under way before its next token; no event follows. Text that was held back, because it
 * could have become a stop string, is not told. Does nothing if no answer is under way.
 *
 * Ownership: nothing changes hands.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_generate_stop(rrpc_sequence *sequence);

/*
 * ==== Step by step ====
 *
 * For programs that have a loop of their own, or advance many sequences together:
 *
 * append text; while tokens are pending: rrpc_step; then until the answer ends: read the logits,
 * rrpc_sequence_sample (or rrpc_sequence_accept a token of one's own), rrpc_step.
 */

/**
 * Runs one step of the model for `count` sequences of one engine, in any mixture: each advances by the
 * next part of its given text (up to `prefill_chunk` tokens) or by its generated tokens, and is
 * compressed if that is due. Sequences with nothing pending afterwards have logits.
 *
 * Ownership: the array is read during the call only.
 * Threads: any; one call at a time on a sequence. One step of an engine runs at a time; a second call
 * waits.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT if there is no sequence, one
 * occurs twice, one is of another engine, one has nothing pending, or there are more than 65536;
 * BUDGET if the pool has too few free blocks (rrpc_sequence_reserve promises them). Nothing has
 * advanced then. RUNTIME, INTERNAL.
 * Since: 0.1
 */
RRPC_NODISCARD rrpc_error *rrpc_step(rrpc_sequence *const *sequences, size_t count);

/**
 * How many tokens of a sequence no step has run yet. While there are any, it has no logits.
 *
 * Ownership: nothing changes hands.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED.
 * Since: 0.1
 */
RRPC_NODISCARD rrpc_error *rrpc_sequence_pending(const rrpc_sequence *sequence, size_t *pending);

/**
 * The logits after the last token: `*logits` points to `*count` floats, one for each token of the
 * vocabulary, unnormalised and not touched by the sampling options. NULL and 0 while tokens are
 * pending.
 *
 * Ownership: the floats are the sequence's. They are valid until the next call on this sequence with
 * a pointer to it that is not const, and not to be written.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_sequence_logits(const rrpc_sequence *sequence,
                                 const float **logits,
                                 size_t *count);

/**
 * Draws the next token from the logits by the sequence's sampling options and appends it. `token`, if
 * not NULL, gets its id.
 *
 * Ownership: nothing changes hands.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT if there are no logits after
 * the last token, or they have no number to choose; CONTEXT if the context is full.
 * Since: 0.1
 */
RRPC_NODISCARD rrpc_error *rrpc_sequence_sample(rrpc_sequence *sequence, uint32_t *token);

/**
 * Appends a token of the caller's choice in place of a sampled one. It counts as generated: it may be
 * dropped by a compression.
 *
 * Ownership: nothing changes hands.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT if the id is not in the
 * vocabulary or the sequence is empty; CONTEXT if the context is full.
 * Since: 0.1
 */
RRPC_NODISCARD rrpc_error *rrpc_sequence_accept(rrpc_sequence *sequence, uint32_t token);

/**
 * Copies the ids of all tokens of a sequence, given and generated, the pending ones included.
 *
 * `count` gets their number. `out` may be NULL with a `capacity` of 0, to ask for the number only;
 * otherwise it has room for `capacity` ids.
 *
 * Ownership: the buffer is the caller's.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED, BUFFER_TOO_SMALL.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_sequence_tokens(const rrpc_sequence *sequence,
                                 uint32_t *out,
                                 size_t capacity,
                                 size_t *count);

/*
 * ==== What compressions did ====
 */

/** What one compression did to one layer. Set struct_size before it is filled. */
typedef struct rrpc_compression {
    /** sizeof(rrpc_compression), set by the caller. */
    size_t struct_size;
    /** Generated tokens whose keys and values were in the cache when it ran, or had been dropped. */
    uint64_t at_token;
    /** Entries (tokens) of the layer before; of its longest KV head, if they differ. */
    uint64_t len_before;
    /** Entries of the layer after. */
    uint64_t len_after;
    /** The layer, from 0. */
    uint32_t layer;
    /** Kept sets: 1 for the layer, or one for each KV head; 0 unless the sequence records them. */
    uint32_t kept_sets;
} rrpc_compression;

/**
 * How many entries the log of compressions has: one for each compression and layer, in order of time,
 * then layer.
 *
 * Ownership: nothing changes hands.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_sequence_compression_count(const rrpc_sequence *sequence,
                                            size_t *count);

/**
 * Reads entry `index` of the log of compressions.
 *
 * Ownership: the struct is the caller's.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT for an index beyond the log or
 * a struct_size that is none.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_sequence_get_compression(const rrpc_sequence *sequence,
                                          size_t index,
                                          rrpc_compression *compression);

/**
 * Copies the kept set `set` of entry `index` of the log: the original text positions of the kept
 * candidates, counted from 0 with the given text, ascending. Given text and the window always stay and
 * are not listed.
 *
 * `count` gets their number. `out` may be NULL with a `capacity` of 0, to ask for the number only;
 * otherwise it has room for `capacity` positions.
 *
 * Ownership: the buffer is the caller's.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED, BUFFER_TOO_SMALL; INVALID_ARGUMENT for an index
 * beyond the log or a set beyond its `kept_sets`.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_sequence_compression_kept(const rrpc_sequence *sequence,
                                           size_t index,
                                           size_t set,
                                           uint32_t *out,
                                           size_t capacity,
                                           size_t *count);

/*
 * ==== Saved sequences ====
 *
 * A saved sequence is read by engines of the same model and cache_dtype. It ends with a hash, which
 * tells damage, not forgery; but no bytes make the library crash.
 */

/**
 * Copies out all that a sequence is: its text, cache, policy, counters, window queries, sampler, logits
 * and log. Its size is the state of the cache and some kilobytes; a size that was asked for is exact
 * until the sequence changes.
 *
 * `count` gets the bytes. `out` may be NULL with a `capacity` of 0, to ask for their number only.
 *
 * Ownership: the buffer is the caller's.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED, BUFFER_TOO_SMALL.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_sequence_save(const rrpc_sequence *sequence,
                               void *out,
                               size_t capacity,
                               size_t *count);

/**
 * Saves a sequence to a file, which rrpc_sequence_restore_file reads. It is written beside the path,
 * flushed to the disk and renamed: a file of that name is whole or as it was.
 *
 * Ownership: `path` is read during the call only.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT for an empty path; FILE.
 * Since: 0.1
 */
RRPC_NODISCARD rrpc_error *rrpc_sequence_save_file(const rrpc_sequence *sequence, const char *path);

/**
 * Makes a sequence out of saved bytes. It continues with exactly the tokens and compressions of the
 * original. The engine has the same model and cache_dtype as the original's; its block_entries, budget
 * and threads may differ. Any bytes may be given: what is not a whole saved sequence is refused.
 *
 * Ownership: the sequence goes to `*sequence` (NULL after an error); the caller frees it with
 * rrpc_sequence_free. `data` is read during the call only.
 * Threads: any.
 * Errors: NULL_POINTER, INVALID_HANDLE; STATE; BUDGET if the cache does not fit the budget.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_sequence_restore(const rrpc_engine *engine,
                                  const void *data,
                                  size_t len,
                                  rrpc_sequence **sequence);

/**
 * As rrpc_sequence_restore, from a file.
 *
 * Ownership: the sequence goes to `*sequence` (NULL after an error); the caller frees it with
 * rrpc_sequence_free. `path` is read during the call only.
 * Threads: any.
 * Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for an empty path; FILE; STATE; BUDGET if the
 * cache does not fit the budget.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_sequence_restore_file(const rrpc_engine *engine,
                                       const char *path,
                                       rrpc_sequence **sequence);

/*
 * ==== Figures and planning ====
 */

/**
 * Figures of one sequence. Times are wall-clock times of the steps that it took part in. Set
 * struct_size before it is filled.
 */
typedef struct rrpc_sequence_stats {
    /** sizeof(rrpc_sequence_stats), set by the caller. */
    size_t struct_size;
    /** Given tokens that steps have run. */
    uint64_t prefill_tokens;
    /** Generated tokens that steps have run; the last one of an answer is not run. */
    uint64_t decode_tokens;
    /** Compressions. */
    uint64_t compressions;
    /** Seconds of the steps that ran given tokens. */
    double prefill_seconds;
    /** Seconds of the steps that ran generated tokens, compressions not included. */
    double decode_seconds;
    /** Seconds of the compressions. */
    double compaction_seconds;
    /** Bytes of the cache now, in whole blocks. */
    uint64_t cache_bytes;
    /** The most bytes of the cache at any moment. */
    uint64_t cache_peak_bytes;
    /** Bytes that the cache would have now without compression, in whole blocks. */
    uint64_t cache_uncompressed_bytes;
} rrpc_sequence_stats;

/**
 * Reads the figures of a sequence.
 *
 * Ownership: the struct is the caller's.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT for a struct_size that is none.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_sequence_get_stats(const rrpc_sequence *sequence,
                                    rrpc_sequence_stats *stats);

/**
 * The most cache that an answer of `new_tokens` tokens to a text of `prompt_tokens` tokens takes with
 * these options: exact, block rounding included, and known before its first token. It is what
 * rrpc_generate asks of the budget.
 *
 * `options` may be NULL for the defaults. `entries`, if not NULL, gets the most entries (tokens) that
 * a layer holds at any moment; `bytes`, if not NULL, the most bytes of the cache.
 *
 * Ownership: `options` is read during the call only.
 * Threads: any.
 * Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for an option; CONTEXT if so many tokens
 * outgrow the model's context.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_peak_cache_bytes(const rrpc_engine *engine,
                                  const rrpc_sequence_options *options,
                                  uint64_t prompt_tokens,
                                  uint64_t new_tokens,
                                  uint64_t *entries,
                                  uint64_t *bytes);

/*
 * ==== Metrics ====
 */

/**
 * Figures of an engine since it was opened, over all of its sequences. Each is exact; they are not all
 * of one moment while steps run. Set struct_size before it is filled.
 */
typedef struct rrpc_metrics {
    /** sizeof(rrpc_metrics), set by the caller. */
    size_t struct_size;
    /** Sequences that exist now. */
    uint64_t sequences_alive;
    /** Sequences made so far. */
    uint64_t sequences_created;
    /** Steps that the model has run. */
    uint64_t steps;
    /** Given tokens run. */
    uint64_t prefill_tokens;
    /** Generated tokens run. */
    uint64_t decode_tokens;
    /** Compressions of a sequence, all layers at once. */
    uint64_t compressions;
    /** Cache entries (one token of one KV head of one layer) that compressions dropped. */
    uint64_t entries_dropped;
    /** Requests for cache that did not fit the budget. */
    uint64_t budget_refusals;
    /** Steps that failed in the model. */
    uint64_t failed_steps;
    /** Seconds of the steps, compressions not included. */
    double step_seconds;
    /** Seconds of the compressions. */
    double compaction_seconds;
    /** Bytes of the budget, in whole blocks. */
    uint64_t budget_bytes;
    /** Bytes of it that caches hold now. */
    uint64_t budget_used_bytes;
    /** Bytes of it that are promised to sequences and not held yet. */
    uint64_t budget_promised_bytes;
    /** The most bytes that caches held at any moment. */
    uint64_t budget_peak_bytes;
} rrpc_metrics;

/**
 * Reads the figures of an engine.
 *
 * Ownership: the struct is the caller's.
 * Threads: any; waits for no step.
 * Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for a struct_size that is none.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_engine_get_metrics(const rrpc_engine *engine,
                                    rrpc_metrics *metrics);

/**
 * Copies the figures of an engine out in the text format of Prometheus, version 0.0.4, with HELP and
 * TYPE lines: UTF-8, not NUL-terminated. Names begin with reasoning_rpc_.
 *
 * `count` gets the bytes. `out` may be NULL with a `capacity` of 0, to ask for their number only; it can
 * grow by some bytes until the text is copied.
 *
 * Ownership: the buffer is the caller's.
 * Threads: any; waits for no step.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUFFER_TOO_SMALL.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_engine_metrics_text(const rrpc_engine *engine,
                                     char *out,
                                     size_t capacity,
                                     size_t *count);

/*
 * ==== Tokens and text ====
 */

/** The text as such: what spells a control token in it is ordinary text, and nothing is added. */
#define RRPC_TOKENIZE_PLAIN 0
/** Control tokens in the text are parsed; nothing is added. */
#define RRPC_TOKENIZE_SPECIAL 1

/**
 * As rrpc_sequence_append_text reads the beginning of a sequence: control tokens in the text are
 * parsed, and the beginning-of-text token goes first if the model's tokenizer asks for one.
 */
#define RRPC_TOKENIZE_PROMPT 2

/**
 * The token ids of a text.
 *
 * `text` is UTF-8 of `len` bytes, or NUL-terminated if `len` is RRPC_NUL_TERMINATED; `mode` is one of
 * RRPC_TOKENIZE_. `count` gets the number of ids. `out` may be NULL with a `capacity` of 0, to ask for
 * the number only; otherwise it has room for `capacity` ids.
 *
 * Ownership: the buffers are the caller's; `text` is read during the call only.
 * Threads: any.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUFFER_TOO_SMALL; INVALID_ARGUMENT if `text` is not UTF-8 or
 * `mode` is unknown; TEXT if the model has no tokenizer.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_tokenize(const rrpc_engine *engine,
                          const char *text,
                          size_t len,
                          uint32_t mode,
                          uint32_t *out,
                          size_t capacity,
                          size_t *count);

/**
 * The text of token ids, UTF-8. Bytes that are none become U+FFFD.
 *
 * `tokens` has `token_count` ids; `skip_special` is 1 to leave out control tokens, or 0 to write them
 * out. `count` gets the number of bytes, without a NUL, and none is written. `out` may be NULL
 * with a `capacity` of 0, to ask for the number only; otherwise it has room for `capacity` bytes.
 *
 * Ownership: the buffers are the caller's; `tokens` is read during the call only.
 * Threads: any.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUFFER_TOO_SMALL; INVALID_ARGUMENT if `skip_special` is
 * neither 0 nor 1 or there are more than 16777216 ids; TEXT if an id is no token or the model has no
 * tokenizer.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_detokenize(const rrpc_engine *engine,
                            const uint32_t *tokens,
                            size_t token_count,
                            uint32_t skip_special,
                            char *out,
                            size_t capacity,
                            size_t *count);

#ifdef __cplusplus
}
#endif

#endif
