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

/**
 * Another call is using the sequence, or this one was made from its callback; an answer is under way; or
 * a scheduler's queue is full.
 */
#define RRPC_ERROR_BUSY 4
/** A buffer is too small; how much is needed was written to the count, or the message says it. */
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
    /**
     * Element type of the cache: RRPC_DTYPE_DEFAULT, RRPC_DTYPE_F32, RRPC_DTYPE_F16, RRPC_DTYPE_BF16 or
     * RRPC_DTYPE_I8 (a byte for each element and a float for each key and each value, its scale). A
     * model of the portable flavour takes RRPC_DTYPE_F32 only. Default RRPC_DTYPE_DEFAULT.
     */
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
    /**
     * 0: opening reads quantised weights into huge pages of this process, which its engines of the same model
     * share. 1: they are read where their file is mapped, in the page cache: engines of all processes share them and
     * the system takes them back as it needs, but a step with one row is some 20% slower. Default 0.
     */
    uint32_t map_weights;
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
    /** Element type of the cache, RRPC_DTYPE_F32, RRPC_DTYPE_F16, RRPC_DTYPE_BF16 or RRPC_DTYPE_I8. */
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
 * are read or mapped (`map_weights`). Takes seconds for a large model.
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
 * Gives the memory of cache blocks that no sequence holds back to the operating system, at once: what
 * freed sequences and compressions have left. Without it the memory stays with the engine, for the next
 * sequence. The budget is as it was; pages come anew as blocks are used again, which costs the first
 * writes. `bytes`, if it is not NULL, gets how many bytes were resident there.
 *
 * Whole pages only: what a free block shares with one in use on its first and last page stays. Of a
 * huge page that is free in part the system takes the part back when it needs memory. A model of the
 * portable flavour has no blocks, and gives back a cache when its sequence is freed: 0 bytes.
 *
 * Ownership: nothing changes hands.
 * Threads: any. Sequences may be used meanwhile; what takes or frees blocks waits.
 * Errors: NULL_POINTER, INVALID_HANDLE.
 * Since: 0.1
 */
RRPC_NODISCARD rrpc_error *rrpc_engine_trim(rrpc_engine *engine, uint64_t *bytes);

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

/**
 * A callback of the options (`select`) is asked what to keep when RRPC_POLICY_RPC would choose, with the same window and
 * budget: an rrpc_sequence_select_callback of a sequence, an rrpc_select_callback of a compressor. Sequences of models of
 * the portable flavour cannot have it, and those that do cannot be saved.
 */
#define RRPC_POLICY_CALLBACK 2

/**
 * SnapKV at the steps of RPC: the attention of the newest `window` over all entries that they see, averaged
 * over 7 neighbours. This and the five up to
 * RRPC_POLICY_LOOKAHEAD_MERGE keep one set for each KV head and read `interval`, `window` and
 * the budget.
 */
#define RRPC_POLICY_SNAPKV 3
/** The first 4 generated entries and the most recent ones. */
#define RRPC_POLICY_STREAMING 4
/** Entries drawn at random, by `seed`. */
#define RRPC_POLICY_RANDOM 5
/** R-KV: attention against the redundancy of keys. */
#define RRPC_POLICY_R_KV 6

/**
 * The attention of the last `interval` tokens' queries, rotated on to where the next ones will ask from. Not
 * with models of the portable flavour. It remembers interval * heads * head_dim numbers per layer (fp16, or fp32 beside a
 * cache of fp32), which the budget counts in whole blocks, or, with RRPC_QUERIES_ONLINE as `queries` and for an `interval`
 * above 256, none.
 */
#define RRPC_POLICY_LOOKAHEAD 7

/**
 * The same, and what is dropped is merged into what is kept and the most similar (RRPC_SIMILARITY_LOGITS, unless `similarity`
 * of a sequence says otherwise).
 */
#define RRPC_POLICY_LOOKAHEAD_MERGE 8

/**
 * H2O: at every token, once the budget is reached, each KV head drops the entry that has had the least attention
 * of all queries since it was written; the more recent half of the budget always stays. This and the next keep
 * `budget_entries`, whatever `interval` and `window` are; with `ratio` as many as RRPC_POLICY_RPC holds at its
 * peak. Not with models of the portable flavour. Entries in a cache's view are not in order of position then,
 * single entries that went count as compressions, and leave no record.
 */
#define RRPC_POLICY_H2O 9
/** TOVA: the same, but each layer drops the entry that the newest query gives the least attention. */
#define RRPC_POLICY_TOVA 10

/**
 * LightThinker, for a model that was trained for it: when a token is drawn or accepted that is one of `delimiters`,
 * the ids of `gists` and then `resume` are put behind it, as if generated; the text has them
 * (rrpc_sequence_tokens), answers do not show them and count them in max_tokens. Once the gists are written, the
 * entries of the thought go: all generated since the ones before, the delimiter's included. Positions stay true
 * indices in the text. Where thoughts end is not known before, so the peak is that of RRPC_POLICY_NONE. After
 * a delimiter rrpc_step has more than one token to run before there are logits.
 */
#define RRPC_POLICY_LIGHTTHINKER 11

/** In the place of `resume`: none. */
#define RRPC_NO_TOKEN UINT32_MAX

/** Scores are averaged over all heads of a layer: one kept set for the layer. */
#define RRPC_AGGREGATION_LAYER 0
/** Scores are averaged over the query heads of each KV head: one kept set for each. */
#define RRPC_AGGREGATION_KV_HEAD 1

/**
 * The same, but the KV heads of a layer share their budgets: four fifths go to where the layer's best entries are, a fifth
 * to all alike (Ada-KV, arXiv 2407.11550). Read by snapkv and the policies that look ahead too, which have one kept set
 * for each KV head in any case. Not for compressors.
 */
#define RRPC_AGGREGATION_ADAPTIVE 2

/**
 * The policy's own: RRPC_AGGREGATION_LAYER of RRPC_POLICY_RPC, RRPC_AGGREGATION_KV_HEAD of RRPC_POLICY_SNAPKV and,
 * in compressors, of those that look ahead, which in engines have RRPC_AGGREGATION_ADAPTIVE.
 */
#define RRPC_AGGREGATION_OWN 3

/** Neighbouring scores are averaged. */
#define RRPC_POOLING_AVERAGE 0
/** The highest of neighbouring scores counts. */
#define RRPC_POOLING_MAX 1
/** Scores stay as they are. Not for compressors, whose `kernel` 1 is the same. */
#define RRPC_POOLING_NONE 2

/** A query's attention is shared out among the entries that may be dropped, as published. */
#define RRPC_SOFTMAX_CANDIDATES 0
/** A query's attention is shared out among all entries that it sees. */
#define RRPC_SOFTMAX_ALL 1

/**
 * All queries of an interval are stored, interval * heads * head_dim numbers per layer (fp16, or fp32 beside a cache of
 * fp32), which are of the budget, and each is asked about all entries when the interval ends.
 */
#define RRPC_QUERIES_STORED 0

/**
 * No queries are stored: each is asked while its token attends, about the entries that it sees, which it
 * reads anyway. An entry misses the queries before it, which costs some accuracy, and steps take longer; two floats are
 * kept per entry, and for a merge head_dim * (head_dim + 1) floats per KV head and layer and the queries of 64 tokens.
 * Until the first compression a rewind runs tokens again; after it, tokens that were run cannot be taken back.
 */
#define RRPC_QUERIES_ONLINE 1
/** RRPC_QUERIES_STORED if the interval has at most 256 tokens, RRPC_QUERIES_ONLINE beyond. */
#define RRPC_QUERIES_AUTO 2

/**
 * A dropped key is the most similar to the kept one of its KV head whose logits differ from its own by the least variance
 * over the interval's queries.
 */
#define RRPC_SIMILARITY_LOGITS 0
/** A dropped key is the most similar to the kept one of its KV head with the largest cosine. */
#define RRPC_SIMILARITY_COSINE 1

/**
 * A text under generation: tokens, cache, compression policy and sampler. Used by one call at a time.
 * A handle: never dereferenced, checked at every call.
 */
typedef struct rrpc_sequence rrpc_sequence;

/**
 * What a callback that selects is shown of one layer of a sequence, and where it answers. Lists of candidates are those
 * of every KV head, one head after the other, each from the oldest to the newest.
 */
typedef struct rrpc_sequence_select_request {
    /** The size of what the library passes; fields at and behind it are not there. */
    size_t struct_size;
    /**
     * How many candidates each KV head has, `kv_heads` of them: generated entries before the window that were kept so
     * far.
     */
    const uint32_t *candidates;
    /**
     * The candidates' scores: the attention that the window's queries give them, as RRPC_POLICY_RPC has it for each KV
     * head (`softmax` says what it is shared out among), not pooled.
     */
    const float *scores;
    /**
     * The candidates' positions in the text, from 0 with the prompt counted: indices into rrpc_sequence_tokens.
     */
    const uint32_t *positions;
    /**
     * Out: room for as many indices as there are candidates: those that the first KV head keeps, counted from 0 among its
     * candidates, ascending; behind them the second's, and so on.
     */
    uint32_t *kept;
    /** Out: how many each KV head keeps, `kv_heads` of them. 0 before the call. */
    uint32_t *kept_counts;
    /**
     * The most that the KV heads of the layer may keep together: `kv_heads` times what RRPC_POLICY_RPC would keep.
     * Layers and KV heads may keep less, and KV heads more than others.
     */
    uint64_t most;
    /** The layer. */
    uint32_t layer;
    /** KV heads. */
    uint32_t kv_heads;
    /** Compressions of the sequence before this one. */
    uint32_t compressions;
    /** 0. */
    uint32_t reserved;
} rrpc_sequence_select_request;

/**
 * Selects what one layer of a sequence keeps, when a compression is due. Returns 0 to go on; anything else, and an answer
 * that cannot be, ends the call that generates with CALLBACK, and the sequence cannot be used any more.
 *
 * The request and its arrays are the library's and valid during the call. It is called in threads of the
 * library's or the caller's, of different sequences (forks among them) in several at once. It may not use the sequence.
 * It must return: no exception and no longjmp may leave it.
 */
typedef int32_t (*rrpc_sequence_select_callback)(rrpc_sequence_select_request *request,
                                                 void *user_data);

/**
 * Told that nothing uses `user_data` any more. It may come from any thread, in the call that lets the last use go, and may
 * not make calls of this library. It must return: no exception and no longjmp may leave it.
 */
typedef void (*rrpc_release_callback)(void *user_data);

/** Options of rrpc_sequence_create, to be filled by rrpc_sequence_options_init. */
typedef struct rrpc_sequence_options {
    /** sizeof(rrpc_sequence_options), set by rrpc_sequence_options_init. */
    size_t struct_size;
    /**
     * How the cache is compressed, one of RRPC_POLICY_. All but RRPC_POLICY_NONE and
     * RRPC_POLICY_LIGHTTHINKER read the next three fields and the budgets at the end; `pooling` and `kernel` are read for
     * RRPC_POLICY_RPC only. Default RRPC_POLICY_LOOKAHEAD_MERGE; RRPC_POLICY_RPC for a model of the portable flavour.
     */
    uint32_t policy;
    /** Generated tokens between two compressions (P), a multiple of `ratio`. Default 4096. */
    uint32_t interval;
    /**
     * The newest generated tokens, which score the others and always stay (R): 1 or more, less than
     * `interval`. Default 32.
     */
    uint32_t window;
    /**
     * One of so many entries stays (c), 1 or more. Not read if `budget_entries` or `budget_bytes` is
     * set. Default 4.
     */
    uint32_t ratio;
    /** One of RRPC_AGGREGATION_. Default RRPC_AGGREGATION_OWN. */
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
    /**
     * In place of `ratio`: so many entries stay in each KV head of each layer, the window not counted.
     * No layer ever holds more generated entries than budget_entries + window + interval, however long
     * the text gets. 0: not set, which is the default.
     */
    uint64_t budget_entries;
    /**
     * In place of `ratio`: the most bytes that the generated entries take at any moment, in whole
     * blocks, the window and an interval of new ones included. Given text comes on top. It sets
     * `budget_entries`, to what fits. 0: not set, which is the default.
     */
    uint64_t budget_bytes;
    /**
     * One of RRPC_SOFTMAX_. This and the next three are read for RRPC_POLICY_RPC only. Default
     * RRPC_SOFTMAX_CANDIDATES.
     */
    uint32_t softmax;
    /** 1: an entry's score is multiplied by the sum of the magnitudes of its value. Default 0. */
    uint32_t value_norms;
    /**
     * So much of an entry's score at the compression before is added to the new one, 0 to 1. It takes a float
     * per entry. Read for RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE too. Default -1: the policy's own, 0 of
     * RRPC_POLICY_RPC, 0.6 of those two.
     */
    float history;
    /**
     * Weight w of the redundancy of keys, as RRPC_POLICY_R_KV has it, 0 to 1: (1 - w) times the pooled scores
     * less w times it, both normalised to a maximum of 1. Default 0.
     */
    float redundancy;
    /**
     * RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE: one of RRPC_QUERIES_. Default RRPC_QUERIES_AUTO.
     */
    uint32_t queries;
    /** 0. */
    uint32_t reserved2;
    /**
     * Token ids that end a thought, `num_delimiters` of them, 1 to 4096; copied. This and the next four are read for
     * RRPC_POLICY_LIGHTTHINKER only. Default NULL.
     */
    const uint32_t *delimiters;
    /** Default 0. */
    size_t num_delimiters;
    /**
     * Token ids that take a thought's place, `num_gists` of them, 1 to 4096, none of `delimiters`; copied. Default
     * NULL.
     */
    const uint32_t *gists;
    /** Default 0. */
    size_t num_gists;
    /**
     * A token id behind the gists, which sees them and not the thought, and stays; no delimiter. Default
     * RRPC_NO_TOKEN.
     */
    uint32_t resume;
    /** 0. */
    uint32_t reserved3;
    /** RRPC_POLICY_CALLBACK: what selects. Default NULL. */
    rrpc_sequence_select_callback select;
    /**
     * Passed to `select`; must live as long as the sequence, its forks and, if a scheduler has them, their answers:
     * `release` says when. Default NULL.
     */
    void *user_data;
    /**
     * Called once for a sequence that was created, with `user_data`, when the sequence, its forks and their answers have
     * gone and the last call on them has ended. NULL: nothing is. Default NULL.
     */
    rrpc_release_callback release;
    /** RRPC_POLICY_LOOKAHEAD_MERGE: one of RRPC_SIMILARITY_. Default RRPC_SIMILARITY_LOGITS. */
    uint32_t similarity;
    /** 0. */
    uint32_t reserved4;
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
 * rrpc_sequence_free. It keeps the engine's model alive. `options` is read during the call only, but for the
 * `user_data` of a callback, which stays in use (`release`) unless there is an error.
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
 * from, ends as if it were still there; then the memory is freed. So does an answer of a scheduler.
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
 * What rrpc_generate tells its callback, and rrpc_generate_next and rrpc_answer_next their callers. Fields that an event does
 * not name are 0; `text` is never NULL.
 */
typedef struct rrpc_event {
    /**
     * The size of the struct: of what the library passes to a callback, where fields at and behind it are
     * not there, or set by the caller of rrpc_generate_next or rrpc_answer_next.
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
 * library, but for the sequence at work, which is BUSY. It must return: no C++ exception and no
 * longjmp may leave it. (A Rust panic that does is an INTERNAL of the call and poisons the sequence.)
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
 * the budget; RUNTIME, INTERNAL, CALLBACK of `select`. Tokens that were generated before an error stay in the sequence;
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
 * ==== Many answers at once ====
 *
 * A scheduler runs the answers of one engine together: each step of the model runs a row of every answer
 * that can go on, which takes less time than a step for each. Answers join and leave between steps. Each
 * is the one that rrpc_generate writes.
 *
 * Answers are admitted in the order in which they are submitted, each as soon as its whole cache can be
 * promised: one that has begun is not broken off for want of budget, and none overtakes. Prompts are run
 * in parts, beside the answers that generate. Compressions run on a thread of their own. What is written
 * waits in a queue for each answer, and when that is full this answer alone waits for its reader. An
 * error ends the answer that it belongs to.
 *
 * submit sequences; for each answer: rrpc_answer_next until RRPC_EVENT_END, waiting there, or in the
 * program's own event loop for what rrpc_answer_fd gives; rrpc_answer_free.
 */

/**
 * An answer that a scheduler writes, or has written. A handle: never dereferenced, checked at every call.
 */
typedef struct rrpc_answer rrpc_answer;

/**
 * Writes many answers of one engine at once, on two threads of its own. Shared by any number of threads.
 * A handle: never dereferenced, checked at every call.
 */
typedef struct rrpc_scheduler rrpc_scheduler;

/** Options of rrpc_scheduler_create, to be filled by rrpc_scheduler_options_init. All are 1 to 65536. */
typedef struct rrpc_scheduler_options {
    /** sizeof(rrpc_scheduler_options), set by rrpc_scheduler_options_init. */
    size_t struct_size;
    /** The most rows of a step, and of admitted answers that do not wait for their readers. Default 32. */
    uint32_t max_rows;
    /**
     * The most tokens of a step in which answers generate: they take one each, prompts the rest, and one
     * at least. A step of prompts alone takes up to the engine's prefill_chunk, if that is more. Default
     * 64.
     */
    uint32_t step_tokens;
    /** Events of one answer that may wait to be read, beside its last one. Default 64. */
    uint32_t queue_events;
    /** Answers that may wait to be admitted. Default 1024. */
    uint32_t max_waiting;
} rrpc_scheduler_options;

/**
 * Figures of a scheduler since it was made. Each is exact; they are not all of one moment. Set struct_size
 * before it is filled.
 */
typedef struct rrpc_scheduler_metrics {
    /** sizeof(rrpc_scheduler_metrics), set by the caller. */
    size_t struct_size;
    /** Answers that wait to be admitted. */
    uint64_t waiting;
    /** Admitted answers that a step is due for. */
    uint64_t running;
    /** Admitted answers that wait for their readers. */
    uint64_t paused;
    /** Admitted answers whose cache is being compressed, or about to be. */
    uint64_t compressing;
    /** Answers submitted, those that were refused not counted. */
    uint64_t submitted;
    /** Answers admitted. */
    uint64_t admitted;
    /** Answers that ended by themselves. */
    uint64_t completed;
    /** Answers that were cancelled. */
    uint64_t cancelled;
    /** Answers that ended with an error. */
    uint64_t failed;
    /** Steps. */
    uint64_t steps;
    /** Rows of all steps together; `rows / steps` is the mean of one. */
    uint64_t rows;
    /** Seconds that the admitted answers had waited, together. */
    double waiting_seconds;
} rrpc_scheduler_metrics;

/**
 * Fills `options` with the defaults. `size` is sizeof(rrpc_scheduler_options).
 *
 * Ownership: the struct is the caller's.
 * Threads: any.
 * Errors: NULL_POINTER; INVALID_ARGUMENT for a size that is none.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_scheduler_options_init(rrpc_scheduler_options *options,
                                        size_t size);

/**
 * Makes a scheduler. `options` may be NULL for the defaults. Sequences may be stepped beside it, and an
 * engine may have several: their steps take turns.
 *
 * Ownership: the scheduler goes to `*scheduler` (NULL after an error); the caller frees it with
 * rrpc_scheduler_free. It keeps the engine's model alive. `options` is read during the call only.
 * Threads: any. The two threads that it starts inherit the calling thread's signal mask, scheduling policy
 * and affinity.
 * Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for an option; RUNTIME if there can be no thread.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_scheduler_create(const rrpc_engine *engine,
                                  const rrpc_scheduler_options *options,
                                  rrpc_scheduler **scheduler);

/**
 * Frees a scheduler: cancels its answers, those that wait to be admitted included, and returns when its
 * threads have ended, which takes a step and the compressions under way. Answers that were submitted keep
 * their handles: what was written is still to be read, with RRPC_STOP_CANCELLED at its end. NULL and handles
 * that were freed before are accepted.
 *
 * Ownership: takes the scheduler's handle.
 * Threads: any; calls on the scheduler that are under way end as if it were still there. From a log
 * callback it does not wait for the thread that made the call.
 * Errors: none.
 * Since: 0.1
 */
void rrpc_scheduler_free(rrpc_scheduler *scheduler);

/**
 * Has an answer to a sequence written: the one that rrpc_generate writes, whatever shares its steps. It
 * waits until the cache of the whole answer can be promised, behind those that came before; nobody
 * overtakes it. `options` may be NULL for the defaults.
 *
 * Until the answer has ended, all calls on the sequence give BUSY, but for rrpc_sequence_free, which lets
 * the cache go as soon as the answer has ended: for sequences that are not continued. When
 * RRPC_EVENT_END or an error has been read the sequence is free. A sequence that waits keeps the cache that
 * it has; so does one at rest, and others wait for it.
 *
 * Ownership: the answer goes to `*answer` (NULL after an error); the caller frees it with rrpc_answer_free.
 * The sequence stays the caller's. `options` and what it points to are read during the call only.
 * Threads: any; one call at a time on a sequence. Waits for no step.
 * Errors: NULL_POINTER, INVALID_HANDLE, POISONED; BUSY for a sequence in use, and if max_waiting answers
 * wait; INVALID_ARGUMENT for an option, an empty sequence or one of another engine; TEXT for stop strings
 * without a tokenizer; BUDGET if the cache of the answer is larger than the whole budget. Nothing has
 * changed then.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_scheduler_submit(const rrpc_scheduler *scheduler,
                                  rrpc_sequence *sequence,
                                  const rrpc_generate_options *options,
                                  rrpc_answer **answer);

/**
 * Reads the figures of a scheduler.
 *
 * Ownership: the struct is the caller's.
 * Threads: any; waits for no step.
 * Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for a struct_size that is none.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_scheduler_get_metrics(const rrpc_scheduler *scheduler,
                                       rrpc_scheduler_metrics *metrics);

/**
 * Copies the figures of a scheduler out as rrpc_engine_metrics_text does those of an engine, which they can
 * follow: their names begin with reasoning_rpc_scheduler_.
 *
 * Ownership: the buffer is the caller's.
 * Threads: any; waits for no step.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUFFER_TOO_SMALL.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_scheduler_metrics_text(const rrpc_scheduler *scheduler,
                                        char *out,
                                        size_t capacity,
                                        size_t *count);

/*
 * ==== Their events ====
 */

/** Nothing came in time: no event, but what rrpc_answer_next tells then. Its fields are 0. */
#define RRPC_EVENT_NONE 0

/** In the place of a timeout: as long as it takes. */
#define RRPC_WAIT_FOREVER UINT32_MAX

/**
 * The next event of an answer. Waits for it, up to `timeout_ms` milliseconds: 0 does not wait,
 * RRPC_WAIT_FOREVER waits as long as it takes. If none comes in time the event's kind is RRPC_EVENT_NONE.
 *
 * RRPC_EVENT_END is the last one. An answer whose reader lets queue_events of them wait is not continued
 * until it has read; others go on. RRPC_EVENT_PREFILL events that were not read give way to newer ones.
 *
 * Ownership: the struct is the caller's; its text is the answer's and valid until the next
 * rrpc_answer_next or rrpc_answer_free on it.
 * Threads: any; one at a time reads an answer.
 * Errors: NULL_POINTER, INVALID_HANDLE; BUSY if another call reads; INVALID_ARGUMENT for a struct_size that
 * is none, and behind RRPC_EVENT_END. Why the answer has failed, behind the events before that: BUDGET if it
 * waits for cache that only answers behind it have; RUNTIME, INTERNAL.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_answer_next(const rrpc_answer *answer,
                             uint32_t timeout_ms,
                             rrpc_event *event);

/**
 * Ends an answer before its next token, wherever it is: waiting, at work, or full of events that were not
 * read. Those can still be; RRPC_EVENT_END is the last one as ever. Does nothing to an answer that has
 * ended.
 *
 * Ownership: nothing changes hands.
 * Threads: any, also while another reads it; waits for nothing.
 * Errors: NULL_POINTER, INVALID_HANDLE.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_answer_cancel(const rrpc_answer *answer);

/**
 * A file descriptor for poll, epoll and the like: it is readable while rrpc_answer_next has an event or an
 * error to tell that was not told yet, so that level-triggered waiting is right, and edge-triggered if all
 * is read each time. It is an eventfd, opened by the first call for an answer.
 *
 * Ownership: the descriptor is the answer's, and closed by rrpc_answer_free: take it out of an epoll set
 * before. It is only to be waited for: not to be read, written or closed.
 * Threads: any.
 * Errors: NULL_POINTER, INVALID_HANDLE; FILE if the process can open no more.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_answer_fd(const rrpc_answer *answer,
                           int32_t *fd);

/**
 * Frees an answer. One that has not ended is cancelled: its sequence is BUSY until its step has ended, and
 * then as any other. NULL and handles that were freed before are accepted.
 *
 * Ownership: takes the answer's handle. The text of its last event and its descriptor are no longer valid.
 * Threads: any; waits for nothing. A call that reads the answer in another thread ends as if it were still
 * there: soon, as it is cancelled.
 * Errors: none.
 * Since: 0.1
 */
void rrpc_answer_free(rrpc_answer *answer);

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
 * advanced then. RUNTIME, INTERNAL; CALLBACK of a sequence's `select`.
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
 * ==== Forks, rewinds, the cache ====
 *
 * Several answers to one text, or several ways to go on with an answer: append the text, run it,
 * then fork as often as answers are wanted, give each fork a seed of its own, and step them together.
 * Forks share what they have in common. To try again from an earlier place, rewind.
 */

/**
 * The cache of one KV head of one layer, as it lies in memory: `length` entries of a key, a value and
 * a position in the text, in blocks. Entry e is in block b = block_table[e / block_entries] at place
 * p = e % block_entries. Set struct_size before it is filled.
 */
typedef struct rrpc_cache_view {
    /** sizeof(rrpc_cache_view), set by the caller. */
    size_t struct_size;
    /**
     * Keys, rotated for their positions: `head_dim` elements of `dtype` at
     * keys + b * block_stride + p * entry_stride bytes. NULL if there is no entry.
     */
    const void *keys;
    /**
     * Values: `head_dim` elements of `dtype` at values + b * block_stride + p * entry_stride bytes.
     * NULL if there is no entry.
     */
    const void *values;
    /**
     * Positions in the text, from 0 with the given text counted: a uint32_t at
     * (const char *)positions + b * block_stride + p * 4 bytes. They ascend with e, unless the
     * policy is RRPC_POLICY_H2O or RRPC_POLICY_TOVA: then the last entry takes the place of one that goes.
     * NULL if there is no entry.
     */
    const uint32_t *positions;
    /**
     * The blocks of the entries, in order: `block_count` of them. Sequences that share a block have the
     * same number here. NULL if there is no entry.
     */
    const uint32_t *block_table;
    /** Blocks in `block_table`: `length` / `block_entries`, rounded up. */
    uint64_t block_count;
    /** Entries. */
    uint64_t length;
    /** Bytes from one block to the next, of keys, values, positions and scales alike. */
    uint64_t block_stride;
    /** Bytes from one key (value) of a block to the next. */
    uint64_t entry_stride;
    /**
     * Entries that a block has room for. A model of the portable flavour has one block, of number 0,
     * with room for as many entries as the cache has taken memory for.
     */
    uint32_t block_entries;
    /** Elements of a key, and of a value. */
    uint32_t head_dim;
    /** Their type: RRPC_DTYPE_F32, RRPC_DTYPE_F16, RRPC_DTYPE_BF16 or RRPC_DTYPE_I8. */
    uint32_t dtype;
    /** 0. */
    uint32_t reserved;
    /**
     * For RRPC_DTYPE_I8, what the elements of a key are multiplied with: a float at
     * (const char *)key_scales + b * block_stride + p * 4 bytes. NULL for the other types, and if there
     * is no entry.
     */
    const float *key_scales;
    /** The same for values. */
    const float *value_scales;
} rrpc_cache_view;

/**
 * Makes a second sequence that goes on exactly as `sequence` would: the same text, options, cache,
 * logits, sampler state, log of compressions and figures. Compressions still to come are the same,
 * too. From then on the two know nothing of each other. A promise (rrpc_sequence_reserve) is not
 * inherited.
 *
 * Blocks of the cache are shared and copied when one of the two is about to write them, by appending
 * to one that is not full or by a compression; until then they count once in the budget. The blocks
 * that both may have to write (those that are not full, and with compression all that are not full of
 * the text given first) are promised a copy at once, so that neither fails for the other's sake. A
 * model of the portable flavour has no blocks to share: its cache is copied.
 *
 * Ownership: the fork goes to `*fork` (NULL after an error); the caller frees it with
 * rrpc_sequence_free, before or after `sequence`. It keeps the engine's model alive.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; BUDGET if the copies cannot be promised. Nothing
 * has changed then. OUT_OF_MEMORY if there are too many sequences.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_sequence_fork(const rrpc_sequence *sequence,
                               rrpc_sequence **fork);

/**
 * Sets the seed of the tokens drawn from now on: the next one takes its first draw. For forks that are
 * to write different answers. Without effect on greedy sampling.
 *
 * Ownership: nothing changes hands.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED.
 * Since: 0.1
 */
RRPC_NODISCARD rrpc_error *rrpc_sequence_set_seed(rrpc_sequence *sequence, uint64_t seed);

/**
 * Shortens the text to its first `tokens` tokens, given and generated counted. The last one becomes
 * pending, so that one rrpc_step gives its logits again. The sampler is put back to where it was, a
 * rrpc_sequence_set_seed behind the new end included: left to itself, the sequence writes the text that
 * it wrote. A promise (rrpc_sequence_reserve) ends. The figures of rrpc_sequence_get_stats go on
 * counting the work done.
 *
 * What a compression dropped cannot come back, so a rewind ends no further back than one token behind
 * the last compression. RRPC_POLICY_H2O and RRPC_QUERIES_ONLINE add up attention, which cannot be taken back either: before its first
 * entry went, all generated tokens become pending; later, none that was written can.
 *
 * Ownership: nothing changes hands. Pointers to the sequence's logits and cache are no longer valid.
 * Threads: any; one call at a time on a sequence.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT, naming the possible lengths, if
 * `tokens` is 0, more than the text has, or before the last compression. Nothing has changed then.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_sequence_rewind(rrpc_sequence *sequence,
                                 size_t tokens);

/**
 * The cache of KV head `kv_head` of layer `layer`, both counted from 0, without a copy: what the steps
 * have run and the compressions have left.
 *
 * Ownership: the struct is the caller's; what it points to is the sequence's. The pointers are valid
 * until the next call with a pointer to this sequence that is not const, and not to be written. Only
 * the entries are to be read: the rest of a block, and other blocks, may belong to others.
 * Threads: any; one call at a time on a sequence. The pointers may be read from any thread.
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT if there is no such layer or KV
 * head, or for a struct_size that is none.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_sequence_cache_view(const rrpc_sequence *sequence,
                                     uint32_t layer,
                                     uint32_t kv_head,
                                     rrpc_cache_view *view);

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
 * Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED, BUFFER_TOO_SMALL; INVALID_ARGUMENT for RRPC_POLICY_CALLBACK.
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
    /**
     * Bytes of the cache now, in whole blocks, those shared with forks and those that the budget counts for stored
     * queries included.
     */
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
 * these options, block rounding included, known before its first token: exact but for RRPC_AGGREGATION_ADAPTIVE, whose
 * KV heads together may take up to a block each less. It is what
 * rrpc_generate asks of the budget. Of RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE the queries that they
 * store are among the bytes.
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
    /**
     * Of step_seconds, those inside attention nodes: rotation, appending, attending. 0 in portable graphs.
     */
    double attention_seconds;
    /**
     * Of step_seconds, those inside products with quantised matrices, their norms, gates and residuals, and
     * the lookup of their rows. 0 where ONNX Runtime multiplies.
     */
    double product_seconds;
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
 * ==== Logging ====
 */

/** Nothing. */
#define RRPC_LOG_OFF 0
/** What went wrong inside of the library, panics included. */
#define RRPC_LOG_ERROR 1
/** What was refused for want of budget. */
#define RRPC_LOG_WARNING 2
/** Engines that were opened. */
#define RRPC_LOG_INFO 3
/** Compressions; engines that were closed. */
#define RRPC_LOG_DEBUG 4

/**
 * Gets each message, on the thread that it came up on, which may be one of the library's: UTF-8 of
 * `message_len` bytes, NUL-terminated, without a line end, valid during the call. `level` is one of
 * RRPC_LOG_. Several threads may call it at the same time.
 *
 * It may call the library, but for rrpc_set_log; what those calls would log is left out. It must
 * return: no exception and no longjmp may leave it.
 */
typedef void (*rrpc_log_callback)(uint32_t level,
                                  const char *message,
                                  size_t message_len,
                                  void *user_data);

/**
 * Sends messages up to `level`, one of RRPC_LOG_, to `callback`, for the whole process, in place of what
 * was set before. RRPC_LOG_OFF or a NULL callback: silence, which is how a process begins. The library
 * itself never prints; ONNX Runtime's messages are turned off.
 *
 * Ownership: `callback` and `user_data` have to live until this is called again; when that returns, no
 * call of the old callback is running and none comes.
 * Threads: any. From inside of a log callback it is BUSY.
 * Errors: BUSY; INVALID_ARGUMENT for an unknown level.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_set_log(uint32_t level,
                         rrpc_log_callback callback,
                         void *user_data);

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

/*
 * ==== Compressors ====
 *
 * For hosts that run the model themselves and own its cache: serving systems, other runtimes. A
 * compressor needs no engine. It works on the host's memory, dense or paged, where it lies:
 *
 * when rrpc_compressor_due says so, for each layer: rrpc_compressor_compress; or, to look or to
 * interfere between them: rrpc_compressor_score, rrpc_compressor_select, rrpc_compressor_apply.
 * After the last layer, the host takes over the plan's lengths and blocks.
 *
 * score, select, apply, compress, record and forget allocate nothing (but the text of an error) and
 * wait for nothing. Any number of calls may use one compressor at the same time, each with its own
 * workspace, sequences and blocks.
 */

/** The host's memory: tensors, workspaces and everything else lie in main memory. */
#define RRPC_DEVICE_CPU 0

/** bfloat16, 2 bytes: the range of binary32, 8 bits of precision. */
#define RRPC_DTYPE_BF16 3

/**
 * Signed bytes with one float scale for each entry and KV head: number = byte * scale. Keys and values
 * only. An engine's cache rounds each key and each value to 1/127 of its largest magnitude.
 */
#define RRPC_DTYPE_I8 4

/** The scale of attention: 1 / sqrt(head_dim). */
#define RRPC_SCALE_DEFAULT -1.0

/**
 * The elements i and i + rotary_dim / 2 of a head are rotated together: GPT-NeoX, and Llama in Hugging Face layout.
 */
#define RRPC_ROPE_HALF_SPLIT 0
/** The elements 2 i and 2 i + 1: GPT-J. */
#define RRPC_ROPE_INTERLEAVED 1

/**
 * One dropped entry that is merged into a kept one. This struct never grows.
 *
 * All merges into one entry make, in float32 and rounded once to the tensor's type,
 * key(into) = (1 - sum of key_weight) * key(into) + sum of key_weight * key(from); values alike, with
 * value_weight. Entries are as they were before the compression. RRPC_DTYPE_I8: the entry gets a new
 * scale too, its largest magnitude / 127; entries without merges keep their bytes and scales.
 */
typedef struct rrpc_merge {
    /** The sequence's index in the batch. */
    uint32_t sequence;
    /** The KV head whose entries are merged. */
    uint32_t kv_head;
    /** The candidate that is dropped: 0 is the entry after the prompt. */
    uint32_t from;
    /** The candidate that is kept and takes it in. */
    uint32_t into;
    /** Finite. */
    float key_weight;
    /** Finite. */
    float value_weight;
} rrpc_merge;

/** What a callback that selects is shown of one sequence and layer, and where it answers. */
typedef struct rrpc_select_request {
    /** The size of what the library passes; fields at and behind it are not there. */
    size_t struct_size;
    /**
     * The candidates' scores, `[kv_heads][candidates]`: what rrpc_compressor_score wrote and the host
     * may have changed; not pooled.
     */
    const float *scores;
    /**
     * Out: room for kv_heads * candidates indices of candidates. `sets` sets of `kept_count` each, one
     * after the other; within a set ascending, each once.
     */
    uint32_t *kept;
    /**
     * Out: room for `max_merges` of the compressor's options. Their `sequence` is this one; sorted by
     * kv_head, into, from, none twice.
     */
    rrpc_merge *merges;
    /** The layer. */
    uint32_t layer;
    /** The sequence's index in the batch. */
    uint32_t sequence;
    /** KV heads. */
    uint32_t kv_heads;
    /** Candidates: entries behind the prompt and before the window. At least 1. */
    uint32_t candidates;
    /** Compressions of the sequence before this one. */
    uint32_t compressions;
    /**
     * Out: 1, one set for all KV heads, or kv_heads, one set for each; the same for all sequences of the
     * batch. 1 before the call.
     */
    uint32_t sets;
    /** Out: entries of each set, up to `candidates`. 0 before the call. */
    uint32_t kept_count;
    /** Out: merges. 0 before the call. */
    uint32_t merge_count;
} rrpc_select_request;

/**
 * Selects what stays of one sequence in one layer. Called by rrpc_compressor_select and
 * rrpc_compressor_compress, in the thread that called them, for each sequence of the batch that has
 * candidates. Returns 0 to go on; anything else ends the call with CALLBACK, and nothing has been moved.
 *
 * The request and its arrays are the library's and valid during the call. What it answers is checked.
 * It may call the library, also with this compressor, but not with the workspace or the blocks at
 * work. It must return: no exception and no longjmp may leave it.
 */
typedef int32_t (*rrpc_select_callback)(rrpc_select_request *request, void *user_data);

/** Options of rrpc_compressor_create, to be filled by rrpc_compressor_options_init. */
typedef struct rrpc_compressor_options {
    /** sizeof(rrpc_compressor_options), set by rrpc_compressor_options_init. */
    size_t struct_size;
    /** Where tensors lie and the work is done. RRPC_DEVICE_CPU, which is the default. */
    uint32_t device;
    /** Which of the devices of that kind. 0, which is the default. */
    uint32_t device_index;
    /** Query heads, a multiple of `kv_heads`. Must be set: the default 0 is refused. */
    uint32_t heads;
    /** KV heads. Must be set. */
    uint32_t kv_heads;
    /** Elements of one head's key, value or query: a multiple of 8 up to 256. Must be set. */
    uint32_t head_dim;
    /**
     * Type of keys and values: RRPC_DTYPE_F32, RRPC_DTYPE_F16, RRPC_DTYPE_BF16 or RRPC_DTYPE_I8. Default
     * RRPC_DTYPE_F16.
     */
    uint32_t dtype;
    /**
     * What products of queries and keys are multiplied by before the softmax: above 0 and finite. Default
     * RRPC_SCALE_DEFAULT.
     */
    float scale;
    /**
     * RRPC_POLICY_RPC, RRPC_POLICY_SNAPKV, RRPC_POLICY_STREAMING, RRPC_POLICY_RANDOM (these two are not
     * scored: scores are 0 and queries are not read), RRPC_POLICY_LOOKAHEAD, RRPC_POLICY_LOOKAHEAD_MERGE (with
     * queries of a whole interval, `inv_freq`, and the layers' histories) or RRPC_POLICY_CALLBACK;
     * RRPC_POLICY_NONE is never due and keeps everything. The others of the library work inside attention or need
     * more than keys, values and queries. The next six
     * fields are those of rrpc_sequence_options, with the same defaults but for `aggregation`; only RRPC_POLICY_RPC reads
     * `aggregation`, `pooling` and `kernel`. Default RRPC_POLICY_RPC.
     */
    uint32_t policy;
    /** Generated tokens between two compressions (P), a multiple of `ratio`. Default 4096. */
    uint32_t interval;
    /**
     * The newest entries, which score the others and always stay (R): 1 or more, less than
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
    /**
     * The most merges of one sequence that a callback or a plan may ask for; RRPC_POLICY_LOOKAHEAD_MERGE has room
     * for all that it may need. Default 0.
     */
    uint32_t max_merges;
    /** Layers that rrpc_compressor_record keeps windows of. Default 0. */
    uint32_t recorded_layers;
    /**
     * Slots that rrpc_compressor_record keeps windows of. It takes
     * recorded_layers * recorded_sequences * window * heads * head_dim floats; with RRPC_POLICY_LOOKAHEAD and
     * RRPC_POLICY_LOOKAHEAD_MERGE, `interval` in place of `window`. Default 0.
     */
    uint32_t recorded_sequences;
    /** 0. */
    uint32_t reserved;
    /** RRPC_POLICY_CALLBACK: what selects. Default NULL. */
    rrpc_select_callback select;
    /** Passed to `select`; must live as long as the compressor. Default NULL. */
    void *user_data;
    /**
     * In place of `ratio`: so many entries stay in each KV head of each layer, the window not counted.
     * Compressions that would drop nothing are not due. 0: not set, which is the default.
     */
    uint64_t budget_entries;
    /**
     * RRPC_POLICY_RANDOM: draws are those of the seed, the layer, the KV head and the number of
     * compressions, the same for all sequences. Default 0.
     */
    uint64_t seed;
    /**
     * RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE, not read for others: how queries and keys are rotated,
     * `[rotary_dim / 2]` radians per position of each pair of elements (RoPE: base^(-2 i / rotary_dim), with what
     * the model's scaling makes of it). Copied. Default NULL, which is refused for the two.
     */
    const float *inv_freq;
    /**
     * The leading elements of a head that are rotated: even, up to head_dim. 0: head_dim, which is the default.
     */
    uint32_t rotary_dim;
    /** One of RRPC_ROPE_. Default RRPC_ROPE_HALF_SPLIT. */
    uint32_t rope_style;
} rrpc_compressor_options;

/**
 * The policy that a name selects: "none", "rpc", "snapkv", "streaming", "random", "r-kv", "lookahead",
 * "lookahead-merge", "h2o", "tova", "lightthinker", or "callback". `name` is NUL-terminated.
 *
 * Ownership: nothing changes hands.
 * Threads: any.
 * Errors: NULL_POINTER; INVALID_ARGUMENT for another name.
 * Since: 0.1
 */
RRPC_NODISCARD rrpc_error *rrpc_policy_from_name(const char *name, uint32_t *policy);

/**
 * Fills `options` with the defaults. `size` is sizeof(rrpc_compressor_options). `heads`, `kv_heads` and
 * `head_dim` are 0 then, and have to be set.
 *
 * Ownership: the struct is the caller's.
 * Threads: any.
 * Errors: NULL_POINTER; INVALID_ARGUMENT for a size that is none.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_compressor_options_init(rrpc_compressor_options *options,
                                         size_t size);

/*
 * ==== The host's cache ====
 */

/**
 * The keys and values of one layer. Strides are counted in elements of the tensor (scale strides in
 * floats) and go from one sequence (dense) or block (paged) to the next, from one KV head to the next,
 * and from one entry to the next: head-major and token-major pages differ in them only. The head_dim
 * elements of an entry lie together. Strides are not negative; entries that overlap are refused.
 */
typedef struct rrpc_kv_layer {
    /** sizeof(rrpc_kv_layer), set by the caller. */
    size_t struct_size;
    /** Keys, rotated, of the compressor's dtype and aligned to it: row or block 0, KV head 0, entry 0. */
    void *keys;
    /** Values, likewise. */
    void *values;
    /** RRPC_DTYPE_I8: the scale of each key of each KV head. NULL for the other types. */
    float *key_scales;
    /** Likewise, of each value. */
    float *value_scales;
    /** Elements from one sequence or block, KV head, entry of the keys to the next. */
    int64_t key_strides[3];
    /** Likewise, of the values. */
    int64_t value_strides[3];
    /** Likewise, of the keys' scales, in floats. Read for RRPC_DTYPE_I8 only. */
    int64_t key_scale_strides[3];
    /** Likewise, of the values' scales. */
    int64_t value_scale_strides[3];
    /** The layer: which recorded windows are read, what a callback is told, what errors say. */
    uint32_t layer;
    /** 0. */
    uint32_t reserved;
    /**
     * RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE, not read for others: a float for each entry of each
     * KV head, the policy's, which belongs to the entry as its key does and is moved and copied with it. The host
     * sets it to 0 for every entry of a row or block that it takes into use; from then on compressions write it: for
     * candidates that stay, and 0 where entries were.
     */
    float *history;
    /** Floats from one sequence or block, KV head, entry of the history to the next. */
    int64_t history_strides[3];
} rrpc_kv_layer;

/**
 * The sequences to compress, the same for every layer. Arrays are read during the call only, and must
 * not be changed meanwhile.
 *
 * A sequence's entries are its prompt (`prompt_lengths`), then the candidates, then the window:
 * candidates = max(0, length - prompt_length - window). The prompt and the window always stay.
 *
 * Blocks of a sequence that a compression may write must be its own: such a block occurs once in the
 * batch, or is named in `shared_blocks`.
 */
typedef struct rrpc_kv_batch {
    /** sizeof(rrpc_kv_batch), set by the caller. */
    size_t struct_size;
    /** `[sequences]` Valid entries of each sequence, those of the newest token included. */
    const int32_t *lengths;
    /** `[sequences]` Leading entries of each that are never dropped. */
    const int32_t *prompt_lengths;
    /** `[sequences]` Compressions of each before this one. */
    const int32_t *compressions;
    /**
     * `[sequences]` The row of each in the tensors (dense) or in the block table (paged). NULL: 0, 1,
     * 2, and so on. Dense rows occur once each.
     */
    const int32_t *rows;
    /**
     * Paged: ids of blocks, below `block_count`. Row r begins at block_table + r * block_table_stride
     * and has at least as many ids as its sequence's length takes; what lies behind is not read. NULL:
     * dense.
     */
    const int32_t *block_table;
    /** Ids from one row of the block table to the next. */
    int64_t block_table_stride;
    /**
     * `[shared_count]` Blocks that others read too (prefix caches, forks), which are never written. NULL
     * if there are none.
     */
    const int32_t *shared_blocks;
    /** Shared blocks. */
    size_t shared_count;
    /**
     * `[spare_count]` Free blocks that shared ones may be copied to: copy k goes to spare_blocks[k]. NULL
     * if there are none.
     */
    const int32_t *spare_blocks;
    /** Spare blocks. */
    size_t spare_count;
    /** The stream to work on. NULL on the CPU. */
    void *stream;
    /** Sequences of the batch, up to 65536. With none nothing is done. */
    uint32_t sequences;
    /** Rows of the tensors (dense) or of the block table (paged). */
    uint32_t row_count;
    /** Paged: entries of one block. Dense: entries that each row has room for. */
    uint32_t block_entries;
    /** Paged: blocks of the tensors. Dense: 0. */
    uint32_t block_count;
} rrpc_kv_batch;

/**
 * The rotated queries that score the candidates: those of each sequence's newest `window` tokens, with
 * RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE of its newest `interval` tokens. A ring of the host's, or
 * what rrpc_compressor_record kept.
 */
typedef struct rrpc_query_window {
    /** sizeof(rrpc_query_window), set by the caller. */
    size_t struct_size;
    /**
     * The ring: row 0, token 0, query head 0; aligned to its type. NULL: the recorded queries of this
     * layer; the next two fields are not read then.
     */
    const void *queries;
    /**
     * Elements from one row, token, query head to the next. Rows are those of the batch's `rows`; the
     * head_dim elements of a query lie together. Not negative.
     */
    int64_t strides[3];
    /**
     * `[sequences]` The place in the ring, below `ring_tokens`, of the oldest of those tokens; the next
     * ones follow, and place 0 follows the last. NULL: 0.
     */
    const int32_t *oldest;
    /** `[sequences]` Recorded queries: the slot of each sequence. NULL: its row. */
    const int32_t *slots;
    /** Tokens that each row of the ring has room for, at least as many as those that score. */
    uint32_t ring_tokens;
    /** Type of the queries: RRPC_DTYPE_F32, RRPC_DTYPE_F16 or RRPC_DTYPE_BF16. */
    uint32_t dtype;
} rrpc_query_window;

/*
 * ==== Compressions of the host's cache ====
 */

/**
 * Compresses caches that a host owns. Shared by any number of threads. A handle: never dereferenced,
 * checked at every call. It needs no engine, no model and no ONNX Runtime.
 */
typedef struct rrpc_compressor rrpc_compressor;

/** What calls with a batch need. Set struct_size before it is filled. */
typedef struct rrpc_compressor_sizes {
    /** sizeof(rrpc_compressor_sizes), set by the caller. */
    size_t struct_size;
    /** Bytes of the workspace, at any address. */
    size_t workspace_bytes;
    /** Floats of the scores: kv_heads times the sum of the candidates. */
    size_t score_count;
} rrpc_compressor_sizes;

/**
 * A block that is copied before a sequence is compressed, because it is shared and in the way of what
 * moves. This struct never grows.
 */
typedef struct rrpc_block_copy {
    /** The sequence's index in the batch. */
    uint32_t sequence;
    /** Which entry of the sequence's row of the block table becomes `to`. */
    uint32_t index;
    /** The shared block. */
    int32_t from;
    /** The spare block that takes its place. */
    int32_t to;
} rrpc_block_copy;

/**
 * What a compression of one layer keeps, moves, copies and sets free.
 *
 * Made by rrpc_compressor_select or rrpc_compressor_plan, its arrays lie in the workspace of that call. A host may
 * change it, or make one of its own, for rrpc_compressor_apply. Everything but the kept sets, the merges and what
 * becomes of histories and keys follows from them and the batch, and is the same for every layer if the kept counts are.
 *
 * After the compression a sequence's cache is its prompt, the kept candidates in their order, and the
 * window; a host sets its length to `new_lengths`, writes the copies to its block table, and drops one
 * reference to each of `freed_blocks`. Positions that a host stores for each entry it moves alike.
 *
 * If anything of a sequence is dropped, each of its shared blocks that holds an entry from its
 * prompt_length up to its new length is copied first, whole, with all KV heads, keys, values and scales.
 * Freed are the blocks behind the new length and the `from` of the copies.
 */
typedef struct rrpc_plan {
    /** sizeof(rrpc_plan), set by the caller. */
    size_t struct_size;
    /** `[sequences]` Entries of each kept set of each sequence. */
    const uint32_t *kept_counts;
    /**
     * For each sequence, for each of its sets, its candidates that stay, ascending. Candidate 0 is the
     * entry behind the prompt.
     */
    const uint32_t *kept;
    /** Items of `kept`: `sets` times the sum of the kept counts. */
    size_t kept_len;
    /** `[sequences]` Entries of each sequence afterwards. */
    const int32_t *new_lengths;
    /** Blocks to copy, in order of sequence and index. */
    const rrpc_block_copy *copies;
    /** Copies; 0 for dense tensors. */
    size_t copy_count;
    /**
     * Paged: blocks to which a sequence has one reference less afterwards: for each sequence in the order
     * of its row, the `from` of its copies, then the blocks behind its new length. A block that several
     * sequences let go occurs so many times.
     */
    const int32_t *freed_blocks;
    /** Freed blocks; 0 for dense tensors. */
    size_t freed_count;
    /** Entries that are merged into others, sorted by sequence, kv_head, into, from. */
    const rrpc_merge *merges;
    /** Merges. */
    size_t merge_count;
    /** Sequences of the batch. */
    uint32_t sequences;
    /** Kept sets of each sequence: 1 for all KV heads, or one for each. */
    uint32_t sets;
    /**
     * RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE: `[kept_len]` what the history of each of `kept`
     * becomes. NULL for other policies.
     */
    const float *history;
    /**
     * RRPC_POLICY_LOOKAHEAD_MERGE: `[kept_len]` how much of its direction is added to the key of each of `kept`,
     * after the merges and before it is rounded; 0 for entries that nothing is merged into. NULL: 0 for all.
     */
    const float *key_shifts;
    /** `[sequences][kv_heads][head_dim]` The directions; NULL if `key_shifts` is. */
    const float *key_directions;
} rrpc_plan;

/**
 * Makes a compressor.
 *
 * Ownership: the compressor goes to `*compressor` (NULL after an error); the caller frees it with
 * rrpc_compressor_free. `options` is read during the call only; its `user_data` has to live as long as
 * the compressor.
 * Threads: any.
 * Errors: NULL_POINTER; INVALID_ARGUMENT for an option, such as `heads` that is no multiple of `kv_heads`
 * or a policy that calls back without a callback; OUT_OF_MEMORY for more recorded queries than there is
 * memory for.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_compressor_create(const rrpc_compressor_options *options,
                                   rrpc_compressor **compressor);

/**
 * Frees a compressor. NULL and handles that were freed before are accepted. Plans and recorded windows
 * that a call is using stay until it ends; plans of ended calls stay valid, in their workspace.
 *
 * Ownership: takes the compressor's handle and what it recorded.
 * Threads: any.
 * Errors: none.
 * Since: 0.1
 */
void rrpc_compressor_free(rrpc_compressor *compressor);

/**
 * Whether a sequence is to be compressed now: `*due` gets 1 once `generated` is
 * (compressions + 1) * interval + window or more (with `budget_entries`: intervals that would leave less
 * than it to choose from are left out), else 0; always 0 with RRPC_POLICY_NONE.
 *
 * `generated` counts the generated tokens whose keys and values were written, dropped ones included;
 * `compressions` the sequence's compressions so far.
 *
 * Ownership: nothing changes hands.
 * Threads: any.
 * Errors: NULL_POINTER, INVALID_HANDLE.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_compressor_due(const rrpc_compressor *compressor,
                                uint64_t generated,
                                uint64_t compressions,
                                uint32_t *due);

/**
 * Records the rotated queries of one token of one layer, `[count][heads][head_dim]`, in the rings of
 * `count` slots: the newest `window` (RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE: `interval`) of each
 * slot are kept, as float32.
 *
 * `slots` are below the options' recorded_sequences, each once; NULL: 0 to count - 1. `row_stride` and
 * `head_stride` are elements from one slot's queries and from one head to the next, positive; the
 * head_dim elements lie together. `dtype` is RRPC_DTYPE_F32, RRPC_DTYPE_F16 or RRPC_DTYPE_BF16.
 *
 * Ownership: the queries are copied.
 * Threads: any; one call at a time on a slot of a layer, those that read its window included.
 * Errors: NULL_POINTER, INVALID_HANDLE; BUSY if another call is using a slot; INVALID_ARGUMENT for a layer
 * or slot that the options have no ring for, one slot twice, or a stride or dtype that cannot be.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_compressor_record(const rrpc_compressor *compressor,
                                   uint32_t layer,
                                   const int32_t *slots,
                                   size_t count,
                                   const void *queries,
                                   int64_t row_stride,
                                   int64_t head_stride,
                                   uint32_t dtype);

/**
 * Empties the rings of a slot in all layers, for another sequence.
 *
 * Ownership: nothing changes hands.
 * Threads: any; not while another call uses the slot.
 * Errors: NULL_POINTER, INVALID_HANDLE; BUSY if another call is using the slot; INVALID_ARGUMENT for a slot
 * that the options have no rings for.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_compressor_forget(const rrpc_compressor *compressor,
                                   int32_t slot);

/**
 * How large the workspace and the scores of a batch are. The size of a workspace is enough for every
 * call with this batch, and for batches whose sequences are not more and not longer.
 *
 * Ownership: the structs are the caller's.
 * Threads: any.
 * Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for a struct_size that is none or a batch that
 * cannot be.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_compressor_get_sizes(const rrpc_compressor *compressor,
                                      const rrpc_kv_batch *batch,
                                      rrpc_compressor_sizes *sizes);

/**
 * Scores the candidates of every sequence in one layer: products of the window's queries with the
 * candidates' keys, times the scale, softmax over the candidates, summed over the window's tokens, mean
 * over the query heads of each KV head; in float32. Not pooled. Other policies score as their constants say; with
 * RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE scores are the mean attention of the interval's queries,
 * rotated on, without what the histories add.
 *
 * `scores` gets, for each sequence, `[kv_heads][candidates]` floats, one sequence after the other. The
 * host may change them before it selects: add them up over ranks that have other heads, say.
 *
 * Ownership: everything stays the caller's and is used during the call only.
 * Threads: any; each call with its own scores and workspace.
 * Errors: NULL_POINTER, INVALID_HANDLE; BUFFER_TOO_SMALL for the workspace; BUSY if a recorded window is
 * being written; INVALID_ARGUMENT for a layer, batch or window that cannot be, a window that has recorded
 * too few queries, or a score_count that is not the one of rrpc_compressor_get_sizes. Nothing has been
 * written to `scores` then.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_compressor_score(const rrpc_compressor *compressor,
                                  const rrpc_kv_layer *layer,
                                  const rrpc_kv_batch *batch,
                                  const rrpc_query_window *window,
                                  float *scores,
                                  size_t score_count,
                                  void *workspace,
                                  size_t workspace_bytes);

/**
 * Selects what stays by the scores of one layer. RRPC_POLICY_RPC averages them over the KV heads (with
 * RRPC_AGGREGATION_LAYER), pools them, and keeps the best
 * min(candidates, (compressions + 1) * interval / ratio) of each sequence (or `budget_entries`, if they are
 * set); of equal ones the first. The library's other policies do as their constants say, but for
 * RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE, which look at more than scores: rrpc_compressor_plan.
 *
 * `layer` is what a callback is told and errors say. `plan` gets pointers into the workspace, valid until
 * the next rrpc_compressor_select, rrpc_compressor_plan or rrpc_compressor_compress with it.
 *
 * Ownership: the structs are the caller's; the plan's arrays lie in the caller's workspace.
 * Threads: any; each call with its own workspace.
 * Errors: NULL_POINTER, INVALID_HANDLE; BUFFER_TOO_SMALL for the workspace, or for too few spare blocks,
 * with the number that is needed; CALLBACK if a callback returned anything but 0; INVALID_ARGUMENT for a
 * policy that looks at more than scores, a batch that cannot be, a score that is not a number, or an answer of a callback that cannot be.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_compressor_select(const rrpc_compressor *compressor,
                                   uint32_t layer,
                                   const rrpc_kv_batch *batch,
                                   const float *scores,
                                   size_t score_count,
                                   void *workspace,
                                   size_t workspace_bytes,
                                   rrpc_plan *plan);

/**
 * Carries a plan out in one layer: copies shared blocks that are in the way, merges, and moves what stays
 * forward, keys, values, scales and histories. Entries that stay keep their bytes, but for those that others are
 * merged into.
 *
 * The plan may be the one of rrpc_compressor_select or rrpc_compressor_plan, that one changed, or one of the
 * host's, with arrays wherever it wants, but not in the part of the workspace that is scratch: a plan of
 * those two lies outside of it. All of it is checked against the batch before anything is
 * written.
 *
 * Ownership: everything stays the caller's and is used during the call only.
 * Threads: any; each call with its own workspace and its own blocks.
 * Errors: NULL_POINTER, INVALID_HANDLE; BUFFER_TOO_SMALL for the workspace or too few spare blocks;
 * INVALID_ARGUMENT for a layer or batch that cannot be, or a plan that does not fit it. Nothing has been
 * moved then.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_compressor_apply(const rrpc_compressor *compressor,
                                  const rrpc_kv_layer *layer,
                                  const rrpc_kv_batch *batch,
                                  const rrpc_plan *plan,
                                  void *workspace,
                                  size_t workspace_bytes);

/**
 * rrpc_compressor_score and rrpc_compressor_select in one call, for every policy: what a compression would do. Only
 * the workspace is written. `plan` is as rrpc_compressor_select has it.
 *
 * Ownership: the structs are the caller's; the plan's arrays lie in the caller's workspace.
 * Threads: any; each call with its own workspace.
 * Errors: those of the two; INVALID_ARGUMENT for RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE without
 * histories in `layer`, or with one that is not finite.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_compressor_plan(const rrpc_compressor *compressor,
                                 const rrpc_kv_layer *layer,
                                 const rrpc_kv_batch *batch,
                                 const rrpc_query_window *window,
                                 void *workspace,
                                 size_t workspace_bytes,
                                 rrpc_plan *plan);

/**
 * rrpc_compressor_plan and rrpc_compressor_apply in one call. `plan` gets what was done.
 *
 * Ownership: the structs are the caller's; the plan's arrays lie in the caller's workspace.
 * Threads: any; each call with its own workspace and its own blocks.
 * Errors: those of the two. Nothing has been moved then.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_compressor_compress(const rrpc_compressor *compressor,
                                     const rrpc_kv_layer *layer,
                                     const rrpc_kv_batch *batch,
                                     const rrpc_query_window *window,
                                     void *workspace,
                                     size_t workspace_bytes,
                                     rrpc_plan *plan);

/*
 * ==== Tensors of other libraries ====
 *
 * DLPack, as PyTorch, JAX, NumPy and others export it, for compressors.
 */

/** `[sequence or block][head][entry][head_dim]` */
#define RRPC_LAYOUT_HEAD_MAJOR 0
/** `[sequence or block][entry][head][head_dim]` */
#define RRPC_LAYOUT_TOKEN_MAJOR 1

/** A tensor of another library. A handle: never dereferenced, checked at every call. */
typedef struct rrpc_tensor rrpc_tensor;

/** What a tensor is. Set struct_size before it is filled. */
typedef struct rrpc_tensor_info {
    /** sizeof(rrpc_tensor_info), set by the caller. */
    size_t struct_size;
    /** Its first element: DLPack's byte_offset is counted in. It lives as long as the tensor. */
    void *data;
    /** The size of each dimension; 0 behind the last one. */
    int64_t shape[8];
    /** Elements from one index of each dimension to the next; 0 behind the last one. */
    int64_t strides[8];
    /** Dimensions, up to 8. */
    uint32_t dimensions;
    /** RRPC_DTYPE_F32, RRPC_DTYPE_F16, RRPC_DTYPE_BF16 or RRPC_DTYPE_I8 (bytes without their scales). */
    uint32_t dtype;
    /** RRPC_DEVICE_CPU. */
    uint32_t device;
    /** Which of the devices of that kind. */
    uint32_t device_index;
    /** 1: its producer forbids writing to it. */
    uint32_t read_only;
    /** 0. */
    uint32_t reserved;
} rrpc_tensor_info;

/**
 * Takes over a tensor of another library, given as DLPack: a DLManagedTensor if `versioned` is 0, a
 * DLManagedTensorVersioned of major version 1 if it is 1. No data are copied. It has to lie in main
 * memory (kDLCPU, kDLCUDAHost or kDLROCMHost), with up to 8 dimensions, and to be float32, float16,
 * bfloat16 or int8. Strides of NULL are those of a compact row-major tensor.
 *
 * Ownership: after success `managed` is the library's, and its deleter runs once, when the tensor is
 * freed; a deleter of NULL is accepted. After an error it is still the caller's and its deleter has not
 * run. The tensor goes to `*tensor` (NULL after an error); the caller frees it with rrpc_tensor_free.
 * Threads: any. The deleter runs in the thread that frees the tensor, or in one that was using it then.
 * Errors: NULL_POINTER; INVALID_ARGUMENT for a tensor that is not as said above.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_tensor_from_dlpack(void *managed,
                                    uint32_t versioned,
                                    rrpc_tensor **tensor);

/**
 * Frees a tensor and runs its deleter. NULL and handles that were freed before are accepted.
 *
 * Ownership: takes the tensor's handle. Pointers into it are no longer valid, those in a rrpc_kv_layer
 * or rrpc_query_window included.
 * Threads: any. If a call is using the tensor, the deleter runs when that call ends, in its thread.
 * Errors: none.
 * Since: 0.1
 */
void rrpc_tensor_free(rrpc_tensor *tensor);

/**
 * Says what a tensor is.
 *
 * Ownership: the struct is the caller's; `data` points into the tensor.
 * Threads: any.
 * Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for a struct_size that is none.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_tensor_get_info(const rrpc_tensor *tensor,
                                 rrpc_tensor_info *info);

/**
 * Fills keys, values, key_strides and value_strides of `layer` from two tensors of one type and shape,
 * of four dimensions in the order that `layout` names, one of RRPC_LAYOUT_. The other fields stay as they
 * are; struct_size is set before. Blocks, entries, heads and head_dim of the tensors have to be at least
 * those of the batch and the compressor that the layer is used with.
 *
 * Ownership: the tensors have to live as long as the layer is used.
 * Threads: any.
 * Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for a struct_size that is none, tensors of other
 * dimensions, of two types or shapes, that may not be written, or whose last stride is not 1.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_kv_layer_from_tensors(const rrpc_tensor *keys,
                                       const rrpc_tensor *values,
                                       uint32_t layout,
                                       rrpc_kv_layer *layer);

/**
 * Fills queries, strides, ring_tokens and dtype of `window` from a tensor of four dimensions: its rows,
 * and then tokens and query heads in the order that `layout` names, one of RRPC_LAYOUT_ (entries are the
 * ring's tokens). The other fields stay as they are; struct_size is set before.
 *
 * Ownership: the tensor has to live as long as the window is used.
 * Threads: any.
 * Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for a struct_size that is none, a tensor of other
 * dimensions, of bytes, or whose last stride is not 1.
 * Since: 0.1
 */
RRPC_NODISCARD
rrpc_error *rrpc_query_window_from_tensor(const rrpc_tensor *queries,
                                          uint32_t layout,
                                          rrpc_query_window *window);

#ifdef __cplusplus
}
#endif

#endif
