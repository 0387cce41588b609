package reasoningrpc

// #include "shim.h"
import "C"

import (
	"runtime"
	"unsafe"
)

// DType is an element type of a cache.
type DType uint32

const (
	// DTypeDefault is fp16, or fp32 for a graph of the portable flavour, which takes no other.
	DTypeDefault DType = C.RRPC_DTYPE_DEFAULT
	// DTypeF32 is IEEE 754 binary32, 4 bytes.
	DTypeF32 DType = C.RRPC_DTYPE_F32
	// DTypeF16 is IEEE 754 binary16, 2 bytes.
	DTypeF16 DType = C.RRPC_DTYPE_F16
	// DTypeBF16 is bfloat16, the upper half of a binary32.
	DTypeBF16 DType = C.RRPC_DTYPE_BF16
	// DTypeI8 is int8 with a float32 scale for each key and each value of a KV head.
	DTypeI8 DType = C.RRPC_DTYPE_I8
)

// Flavour is how a model's graph keeps its cache.
type Flavour uint32

const (
	// FlavourCached: attention is the library's own operator, over a pool of blocks.
	FlavourCached Flavour = C.RRPC_FLAVOUR_CACHED
	// FlavourPortable: stock ONNX Runtime operators, over one contiguous fp32 cache for each sequence.
	FlavourPortable Flavour = C.RRPC_FLAVOUR_PORTABLE
)

func (t DType) String() string {
	switch t {
	case DTypeDefault:
		return "default"
	case DTypeF32:
		return "float32"
	case DTypeF16:
		return "float16"
	case DTypeBF16:
		return "bfloat16"
	case DTypeI8:
		return "int8"
	}
	return "unknown"
}

const (
	// BudgetDefault holds one uncompressed text of the model's whole context.
	BudgetDefault uint64 = C.RRPC_BUDGET_DEFAULT
	// ThreadsOnePerCore is one thread for each core that the process may use.
	ThreadsOnePerCore uint32 = C.RRPC_THREADS_ONE_PER_CORE
)

// EngineOptions are the options of [Open].
type EngineOptions struct {
	// ONNXRuntime is the path of libonnxruntime.so. Default "": the file that the environment variable
	// RRPC_ONNXRUNTIME names, else libonnxruntime.so beside the library, else beside the program. A
	// process has one ONNX Runtime.
	ONNXRuntime string
	// BudgetBytes is what the caches of all sequences may take together. Address space only, until it is
	// used. Default BudgetDefault.
	BudgetBytes uint64
	// Threads of a step, 1 to 1024. Default ThreadsOnePerCore.
	Threads uint32
	// CacheDType is the element type of the cache. Default DTypeDefault.
	CacheDType DType
	// BlockEntries is how many entries (tokens) one block of the cache has, a multiple of 16. Default 64.
	BlockEntries uint32
	// PrefillChunk is the most given tokens of one sequence that one step runs. Default 256.
	PrefillChunk uint32
	// VerifyWeights compares the hash of the weights with the manifest's when the model is opened, not
	// their size only. Default true.
	VerifyWeights bool
	// MapWeights reads quantised weights where their file is mapped: in the page cache, which engines of all
	// processes share and which the system takes back as it needs. Otherwise Open reads them into huge pages
	// of this process, and a step with one row is some 20% faster. Default false.
	MapWeights bool
}

// EngineInfo says what an engine is and how much of its budget is in use.
type EngineInfo struct {
	// SIMD is the instruction set that the library's loops use: "portable", "avx2" or "avx512".
	SIMD string
	// Parameters of the model.
	Parameters uint64
	// TokenBytes of cache for each token, over all layers and KV heads, without block rounding.
	TokenBytes uint64
	// BudgetBytes in whole blocks.
	BudgetBytes uint64
	// BudgetUsedBytes is what caches hold now.
	BudgetUsedBytes uint64
	// Context is how many tokens a text may have.
	Context int
	// Vocab is how many tokens there are; ids are below it, and logits have as many elements.
	Vocab int
	// Layers of the decoder.
	Layers int
	// Heads (query heads) of a layer.
	Heads int
	// KVHeads of a layer; a divisor of Heads.
	KVHeads int
	// HeadDim is how many elements a head has.
	HeadDim int
	// Hidden is how many elements a hidden state has.
	Hidden int
	// Flavour of the graph.
	Flavour Flavour
	// CacheDType is DTypeF32, DTypeF16, DTypeBF16 or DTypeI8.
	CacheDType DType
	// BlockEntries of one block of the cache.
	BlockEntries int
	// HasTokenizer: without one a model takes token ids only.
	HasTokenizer bool
	// HasChatTemplate: without one AppendChat returns ErrTemplate.
	HasChatTemplate bool
}

// Engine is an open model: its weights, the pool of its caches and the threads that run it. Any number of
// goroutines and sequences may use it at the same time.
type Engine struct {
	handle  C.go_engine
	cleanup runtime.Cleanup
}

// Open opens a model folder, as the program reasoning-rpc-export writes it. It takes seconds for a large
// model.
//
// Errors: [ErrInvalidArgument] for an option or a path with a NUL; [ErrModel]; [ErrRuntime] if there is no
// ONNX Runtime; [ErrText] or [ErrTemplate] if the model's tokenizer or template cannot be used.
func Open(modelDir string, options ...func(*EngineOptions)) (*Engine, error) {
	var o C.rrpc_engine_options
	if err := check(C.rrpc_engine_options_init(&o, C.sizeof_rrpc_engine_options)); err != nil {
		return nil, err
	}
	chosen := EngineOptions{
		BudgetBytes:   uint64(o.budget_bytes),
		Threads:       uint32(o.threads),
		CacheDType:    DType(o.cache_dtype),
		BlockEntries:  uint32(o.block_entries),
		PrefillChunk:  uint32(o.prefill_chunk),
		VerifyWeights: o.verify_weights != 0,
		MapWeights:    o.map_weights != 0,
	}
	for _, change := range options {
		change(&chosen)
	}
	for _, path := range []string{modelDir, chosen.ONNXRuntime} {
		if err := checkPath(path); err != nil {
			return nil, err
		}
	}
	o.budget_bytes = C.uint64_t(chosen.BudgetBytes)
	o.threads = C.uint32_t(chosen.Threads)
	o.cache_dtype = C.uint32_t(chosen.CacheDType)
	o.block_entries = C.uint32_t(chosen.BlockEntries)
	o.prefill_chunk = C.uint32_t(chosen.PrefillChunk)
	o.verify_weights = flag(chosen.VerifyWeights)
	o.map_weights = flag(chosen.MapWeights)
	var memory copies
	defer func() { memory.free() }()
	if chosen.ONNXRuntime != "" {
		o.onnxruntime = memory.text(chosen.ONNXRuntime).data
	}
	e := &Engine{}
	if err := check(C.go_engine_open(memory.text(modelDir).data, &o, &e.handle)); err != nil {
		return nil, err
	}
	e.cleanup = runtime.AddCleanup(e, func(handle C.go_engine) { C.go_engine_free(handle) }, e.handle)
	return e, nil
}

// Close closes the engine. Its sequences stay usable; the model is unloaded when the last of them is
// closed. Closing it again does nothing. The error is always nil.
func (e *Engine) Close() error {
	e.cleanup.Stop()
	C.go_engine_free(e.handle)
	runtime.KeepAlive(e)
	return nil
}

// Info says what the engine is and how much of its budget is in use.
func (e *Engine) Info() (EngineInfo, error) {
	defer runtime.KeepAlive(e)
	info := C.rrpc_engine_info{struct_size: C.sizeof_rrpc_engine_info}
	if err := check(C.go_engine_get_info(e.handle, &info)); err != nil {
		return EngineInfo{}, err
	}
	return EngineInfo{
		SIMD:            C.GoString(info.simd),
		Parameters:      uint64(info.parameters),
		TokenBytes:      uint64(info.token_bytes),
		BudgetBytes:     uint64(info.budget_bytes),
		BudgetUsedBytes: uint64(info.budget_used_bytes),
		Context:         int(info.context),
		Vocab:           int(info.vocab),
		Layers:          int(info.layers),
		Heads:           int(info.heads),
		KVHeads:         int(info.kv_heads),
		HeadDim:         int(info.head_dim),
		Hidden:          int(info.hidden),
		Flavour:         Flavour(info.flavour),
		CacheDType:      DType(info.cache_dtype),
		BlockEntries:    int(info.block_entries),
		HasTokenizer:    info.has_tokenizer != 0,
		HasChatTemplate: info.has_chat_template != 0,
	}, nil
}

// Trim gives the memory of cache blocks that no sequence holds back to the operating system, at once, and
// returns how many bytes of it were resident. Sequences may be used meanwhile; what takes or frees blocks
// waits. A model of the portable flavour has no blocks: 0.
func (e *Engine) Trim() (uint64, error) {
	defer runtime.KeepAlive(e)
	var bytes C.uint64_t
	err := check(C.go_engine_trim(e.handle, &bytes))
	return uint64(bytes), err
}

// StopTokens are the ids that end an answer: for programs that step sequences themselves.
func (e *Engine) StopTokens() ([]uint32, error) {
	defer runtime.KeepAlive(e)
	return fill(0, func(out *uint32, capacity C.size_t, count *C.size_t) error {
		return check(C.go_engine_stop_tokens(e.handle, (*C.uint32_t)(out), capacity, count))
	})
}

// TokenizeMode is how a text is read.
type TokenizeMode uint32

const (
	// TokenizePlain: what spells a control token is ordinary text, and nothing is added.
	TokenizePlain TokenizeMode = C.RRPC_TOKENIZE_PLAIN
	// TokenizeSpecial: control tokens are parsed; nothing is added.
	TokenizeSpecial TokenizeMode = C.RRPC_TOKENIZE_SPECIAL
	// TokenizePrompt: as AppendText reads the beginning of a sequence: control tokens are parsed, and the
	// beginning-of-text token goes first if the model's tokenizer asks for one.
	TokenizePrompt TokenizeMode = C.RRPC_TOKENIZE_PROMPT
)

// Tokenize returns the token ids of a text.
//
// Errors: [ErrInvalidArgument] if the text is not UTF-8 or the mode is unknown; [ErrText] if the model has
// no tokenizer.
func (e *Engine) Tokenize(s string, mode TokenizeMode) ([]uint32, error) {
	defer runtime.KeepAlive(e)
	data, length := text(s)
	return fill(0, func(out *uint32, capacity C.size_t, count *C.size_t) error {
		return check(C.go_tokenize(e.handle, data, length, C.uint32_t(mode), (*C.uint32_t)(out), capacity, count))
	})
}

// Detokenize returns the text of token ids; bytes that are not UTF-8 become U+FFFD. skipSpecial leaves
// control tokens out.
//
// Errors: [ErrInvalidArgument] for more than 16777216 ids; [ErrText] if an id is no token or the model has
// no tokenizer.
func (e *Engine) Detokenize(tokens []uint32, skipSpecial bool) (string, error) {
	defer runtime.KeepAlive(e)
	bytes, err := fill(0, func(out *byte, capacity C.size_t, count *C.size_t) error {
		return check(C.go_detokenize(e.handle, ids(tokens), C.size_t(len(tokens)), flag(skipSpecial),
			(*C.char)(unsafe.Pointer(out)), capacity, count))
	})
	return string(bytes), err
}

// PeakCacheBytes is the most cache that an answer of newTokens tokens to a text of promptTokens tokens
// takes with these options: exact, block rounding included, and known before its first token. It is what
// Generate asks of the budget. entries are the most entries (tokens) that a layer holds at any moment.
//
// Errors: [ErrInvalidArgument] for an option; [ErrContext] if so many tokens outgrow the model's context.
func (e *Engine) PeakCacheBytes(promptTokens, newTokens uint64, options ...func(*SequenceOptions)) (entries, bytes uint64, err error) {
	defer runtime.KeepAlive(e)
	var pinner runtime.Pinner
	defer pinner.Unpin()
	o, _, err := e.sequenceOptions(options, &pinner)
	if err != nil {
		return 0, 0, err
	}
	var foundEntries, foundBytes C.uint64_t
	err = check(C.go_peak_cache_bytes(e.handle, &o, C.uint64_t(promptTokens), C.uint64_t(newTokens), &foundEntries, &foundBytes))
	if err != nil {
		return 0, 0, err
	}
	return uint64(foundEntries), uint64(foundBytes), nil
}

// ids is where token ids are; never NULL.
func ids(tokens []uint32) *C.uint32_t {
	if len(tokens) == 0 {
		return new(C.uint32_t)
	}
	return (*C.uint32_t)(unsafe.SliceData(tokens))
}
