package reasoningrpc

// #include "shim.h"
import "C"

import (
	"fmt"
	"math"
	"runtime"
	"sync"
)

// PolicyCallback asks a function of the program's what to keep, when [PolicyRPC] would choose: Select of
// [SequenceOptions] or of [CompressorOptions].
const PolicyCallback Policy = C.RRPC_POLICY_CALLBACK

// ScaleDefault is 1 / sqrt(HeadDim).
const ScaleDefault float32 = C.RRPC_SCALE_DEFAULT

// RopeStyle is which elements of a head are rotated together.
type RopeStyle uint32

const (
	// RopeHalfSplit: i and i + half of those that are rotated: GPT-NeoX, and Llama in Hugging Face layout.
	RopeHalfSplit RopeStyle = C.RRPC_ROPE_HALF_SPLIT
	// RopeInterleaved: 2 i and 2 i + 1: GPT-J.
	RopeInterleaved RopeStyle = C.RRPC_ROPE_INTERLEAVED
)

// CompressorOptions are the options of [NewCompressor]. Heads, KVHeads and HeadDim have no default.
type CompressorOptions struct {
	// Heads (query heads) of a layer, a multiple of KVHeads.
	Heads int
	// KVHeads of a layer.
	KVHeads int
	// HeadDim is how many elements a head's key, value or query has.
	HeadDim int
	// DType of keys and values: DTypeF32, DTypeF16, DTypeBF16 or DTypeI8. Default DTypeF16.
	DType DType
	// Scale is what products of queries and keys are multiplied by before the softmax: above 0 and finite.
	// Default ScaleDefault.
	Scale float32
	// Policy: PolicyRPC, PolicySnapKV, PolicyStreaming, PolicyRandom, PolicyLookahead, PolicyLookaheadMerge (these two
	// with the queries of a whole Interval, InvFreq, and the layers' histories), PolicyCallback, or PolicyNone, which
	// is never due and keeps everything. The next six fields are those of SequenceOptions, with the same
	// defaults; Aggregation, Pooling and Kernel are PolicyRPC's. Default PolicyRPC.
	Policy Policy
	// Interval is how many generated tokens are between two compressions (P), a multiple of Ratio.
	// Default 4096.
	Interval uint32
	// Window is how many of the newest entries score the others and always stay (R): 1 or more, less than
	// Interval. Default 32.
	Window uint32
	// Ratio: one of so many entries stays (c), 1 or more. Default 4.
	Ratio uint32
	// Aggregation. Default AggregationLayer.
	Aggregation Aggregation
	// Pooling. Default PoolingAverage.
	Pooling Pooling
	// Kernel is the width of the pooling, in scores: odd, 1 (none) to 65535. Default 7.
	Kernel uint32
	// MaxMerges is the most merges of one sequence that Select or a plan may ask for; PolicyLookaheadMerge has room
	// for its own. Default 0.
	MaxMerges uint32
	// RecordedLayers that [Compressor.Record] keeps windows of. Default 0.
	RecordedLayers uint32
	// RecordedSequences are the slots that [Compressor.Record] keeps windows of. It takes
	// RecordedLayers * RecordedSequences * Window * Heads * HeadDim float32, with PolicyLookahead and
	// PolicyLookaheadMerge Interval in place of Window. Default 0.
	RecordedSequences uint32
	// BudgetEntries, in place of Ratio: so many entries stay in each KV head of each layer, the window not
	// counted. 0: not set, which is the default.
	BudgetEntries uint64
	// Seed of PolicyRandom, the same for all sequences. Default 0.
	Seed uint64
	// InvFreq, of PolicyLookahead and PolicyLookaheadMerge, is how queries and keys are rotated: radians per position
	// of each pair of elements, half as many as are rotated (RoPE: base^(-2 i / rotated), with what the model's
	// scaling makes of it). Those are all HeadDim elements, or the leading 2 * len(InvFreq). Copied. Default nil.
	InvFreq []float32
	// RopeStyle is which elements are rotated together. Default RopeHalfSplit.
	RopeStyle RopeStyle
	// Select, of PolicyCallback, chooses what stays of one sequence in one layer: it fills in Kept, and
	// Merges if entries are to be merged. It is called in the goroutine of [Compressor.Select] and
	// [Compressor.Compress], once for each sequence that has candidates, and at the same time for calls
	// that are. An error that it returns ends that call, which returns [ErrCallback] and wraps it; a panic
	// goes on in that call. It must not end its goroutine.
	Select func(*SelectRequest) error
}

// SelectRequest is what CompressorOptions.Select is shown of one sequence and layer, and where it answers.
type SelectRequest struct {
	// Layer, from 0.
	Layer int
	// Sequence is its index in the batch.
	Sequence int
	// KVHeads of the layer.
	KVHeads int
	// Candidates are the entries behind the prompt and before the window; at least 1.
	Candidates int
	// Compressions of the sequence before this one.
	Compressions int
	// Scores [KVHeads][Candidates] as [Compressor.Score] says, not pooled. Read during the call only, and
	// not written.
	Scores []float32
	// Kept, out: one set of candidates for all KV heads, or one for each, of the same length; ascending,
	// each candidate once. nil keeps none.
	Kept [][]uint32
	// Merges, out: sorted by KVHead, Into, From; no From twice. Their Sequence is this one.
	Merges []Merge
}

// Compressor compresses caches that the program owns: those of another runtime, or of a serving system. It
// needs no engine, no model and no ONNX Runtime. Any number of goroutines may use one at the same time, each
// with sequences and blocks of its own.
//
// When [Compressor.Due] says so: [Compressor.Compress] for each layer, or, to look or to interfere in between,
// [Compressor.Plan] (or [Compressor.Score] and [Compressor.Select]) and [Compressor.Apply]. After the last layer the program
// takes over the plan's lengths and blocks.
//
// The memory of a [KVLayer], a [Batch] and a [Window] is lent for the time of a call. It may be Go's or not.
type Compressor struct {
	handle  C.go_compressor
	cleanup runtime.Cleanup
	options CompressorOptions
	// []byte, for calls to use.
	workspaces sync.Pool
}

// NewCompressor makes a compressor. The caller closes it.
//
// Errors: [ErrInvalidArgument] for an option, such as Heads that is no multiple of KVHeads.
func NewCompressor(options ...func(*CompressorOptions)) (*Compressor, error) {
	var o C.rrpc_compressor_options
	if err := check(C.rrpc_compressor_options_init(&o, C.sizeof_rrpc_compressor_options)); err != nil {
		return nil, err
	}
	chosen := CompressorOptions{
		Heads:             int(o.heads),
		KVHeads:           int(o.kv_heads),
		HeadDim:           int(o.head_dim),
		DType:             DType(o.dtype),
		Scale:             float32(o.scale),
		Policy:            Policy(o.policy),
		Interval:          uint32(o.interval),
		Window:            uint32(o.window),
		Ratio:             uint32(o.ratio),
		Aggregation:       Aggregation(o.aggregation),
		Pooling:           Pooling(o.pooling),
		Kernel:            uint32(o.kernel),
		MaxMerges:         uint32(o.max_merges),
		RecordedLayers:    uint32(o.recorded_layers),
		RecordedSequences: uint32(o.recorded_sequences),
		BudgetEntries:     uint64(o.budget_entries),
		Seed:              uint64(o.seed),
		RopeStyle:         RopeStyle(o.rope_style),
	}
	for _, change := range options {
		change(&chosen)
	}
	if min(chosen.Heads, chosen.KVHeads, chosen.HeadDim) < 1 ||
		max(chosen.Heads, chosen.KVHeads, chosen.HeadDim) > math.MaxUint32 {
		return nil, invalid("Heads, KVHeads and HeadDim must be set to 1 or more, found %d, %d and %d",
			chosen.Heads, chosen.KVHeads, chosen.HeadDim)
	}
	if chosen.Policy == PolicyCallback && chosen.Select == nil {
		return nil, invalid("PolicyCallback needs a Select function")
	}
	o.heads = C.uint32_t(chosen.Heads)
	o.kv_heads = C.uint32_t(chosen.KVHeads)
	o.head_dim = C.uint32_t(chosen.HeadDim)
	o.dtype = C.uint32_t(chosen.DType)
	o.scale = C.float(chosen.Scale)
	o.policy = C.uint32_t(chosen.Policy)
	o.budget_entries = C.uint64_t(chosen.BudgetEntries)
	o.seed = C.uint64_t(chosen.Seed)
	o.interval = C.uint32_t(chosen.Interval)
	o.window = C.uint32_t(chosen.Window)
	o.ratio = C.uint32_t(chosen.Ratio)
	o.aggregation = C.uint32_t(chosen.Aggregation)
	o.pooling = C.uint32_t(chosen.Pooling)
	o.kernel = C.uint32_t(chosen.Kernel)
	o.max_merges = C.uint32_t(chosen.MaxMerges)
	o.recorded_layers = C.uint32_t(chosen.RecordedLayers)
	o.recorded_sequences = C.uint32_t(chosen.RecordedSequences)
	o.rope_style = C.uint32_t(chosen.RopeStyle)
	var pinner runtime.Pinner
	defer pinner.Unpin()
	if count := len(chosen.InvFreq); count > 0 {
		if 2*count > chosen.HeadDim {
			return nil, invalid("InvFreq: expected at most one for each pair of %d elements, found %d", chosen.HeadDim, count)
		}
		o.inv_freq, o.rotary_dim = floats(chosen.InvFreq), C.uint32_t(2*count)
		pinner.Pin(o.inv_freq)
	}
	c := &Compressor{options: chosen}
	if err := check(C.go_compressor_create(&o, &c.handle)); err != nil {
		return nil, err
	}
	c.cleanup = runtime.AddCleanup(c, func(handle C.go_compressor) { C.go_compressor_free(handle) }, c.handle)
	return c, nil
}

// Close frees the compressor and what it recorded. Calls that are under way end as if it were still there.
// Closing it again does nothing. The error is always nil.
func (c *Compressor) Close() error {
	c.cleanup.Stop()
	C.go_compressor_free(c.handle)
	runtime.KeepAlive(c)
	return nil
}

// Due is whether a sequence is to be compressed now: once generated is
// (compressions + 1) * Interval + Window or more. generated counts the generated tokens whose keys and
// values were written, dropped ones included.
func (c *Compressor) Due(generated, compressions uint64) (bool, error) {
	defer runtime.KeepAlive(c)
	var due C.uint32_t
	err := check(C.go_compressor_due(c.handle, C.uint64_t(generated), C.uint64_t(compressions), &due))
	return due != 0, err
}

// Record keeps the rotated queries of one token of one layer, [slots][Heads][HeadDim], in the rings of
// slots: the newest Window of each, with PolicyLookahead and PolicyLookaheadMerge the newest Interval. A zero [Window] then stands for them. One call at a time uses a slot of
// a layer.
//
// Errors: [ErrInvalidArgument] for a layer or slot that the options have no ring for, one slot twice, or
// too few queries; [ErrBusy] if another call is using a slot.
func (c *Compressor) Record(layer int, slots []int32, queries Elements) error {
	return c.RecordStrided(layer, slots, queries, c.options.Heads*c.options.HeadDim, c.options.HeadDim)
}

// RecordStrided is [Compressor.Record] with so many elements from one slot's queries to the next, and from
// one head to the next.
func (c *Compressor) RecordStrided(layer int, slots []int32, queries Elements, slotStride, headStride int) error {
	defer runtime.KeepAlive(c)
	if layer < 0 || layer > math.MaxUint32 {
		return invalid("there is no layer %d", layer)
	}
	if len(slots) == 0 {
		return nil
	}
	extents := [3]int{len(slots), c.options.Heads, 1}
	if err := queries.holds("queries", extents, [3]int{slotStride, headStride, 0}, c.options.HeadDim); err != nil {
		return err
	}
	// Nothing that is passed holds a pointer of Go: cgo keeps it where it is.
	return check(C.go_compressor_record(c.handle, C.uint32_t(layer), int32s(slots), C.size_t(len(slots)),
		queries.data, C.int64_t(slotStride), C.int64_t(headStride), C.uint32_t(queries.dtype)))
}

// Forget empties the rings of a slot in all layers, for another sequence.
//
// Errors: [ErrInvalidArgument] for a slot that the options have no rings for; [ErrBusy] if another call is
// using it.
func (c *Compressor) Forget(slot int32) error {
	defer runtime.KeepAlive(c)
	return check(C.go_compressor_forget(c.handle, C.int32_t(slot)))
}

// CompressorSizes is how much calls with a batch need.
type CompressorSizes struct {
	// Workspace in bytes. The package takes care of it.
	Workspace int
	// Scores are KVHeads times the sum of the candidates.
	Scores int
}

// Sizes says how much calls with a batch need.
//
// Errors: [ErrInvalidArgument] for a batch that cannot be.
func (c *Compressor) Sizes(batch *Batch) (CompressorSizes, error) {
	call, err := c.begin(batch)
	if err != nil {
		return CompressorSizes{}, err
	}
	defer call.end()
	return CompressorSizes{int(call.sizes.workspace_bytes), int(call.sizes.score_count)}, nil
}

// Candidates is how many entries of each sequence of a batch a compression chooses from: those behind the
// prompt and before the window. Scores of a batch are, for each sequence, [KVHeads][candidates].
func (c *Compressor) Candidates(batch *Batch) []int {
	candidates := make([]int, min(len(batch.Lengths), len(batch.PromptLengths)))
	for i := range candidates {
		candidates[i] = max(0, int(batch.Lengths[i])-int(batch.PromptLengths[i])-int(c.options.Window))
	}
	return candidates
}

// Score scores the candidates of every sequence in one layer: products of the window's queries with the
// candidates' keys, times the scale, softmax over the candidates, summed over the window's tokens, mean over
// the query heads of each KV head. It returns, for each sequence, [KVHeads][candidates], not pooled. The
// program may change them before it selects: add them up over ranks that have other heads, say.
//
// Errors: [ErrInvalidArgument] for a layer, batch or window that cannot be, memory that is too short for
// it, or a window that has recorded too few queries; [ErrBusy] if a recorded window is being written.
func (c *Compressor) Score(layer *KVLayer, batch *Batch, window *Window) ([]float32, error) {
	call, err := c.begin(batch)
	if err != nil {
		return nil, err
	}
	defer call.end()
	if err := call.lend(layer, window); err != nil {
		return nil, err
	}
	count := int(call.sizes.score_count)
	scores := make([]float32, max(count, 1))
	err = check(C.go_compressor_score(c.handle, &call.layer, &call.batch, &call.window,
		floats(scores), C.size_t(count), call.space(), call.sizes.workspace_bytes))
	if err != nil {
		return nil, err
	}
	return scores[:count], nil
}

// Plan is Score and Select in one call, for every policy: what a compression would do. Nothing is moved.
//
// Errors: those of the two; [ErrInvalidArgument] for PolicyLookahead and PolicyLookaheadMerge without histories in
// the layer.
func (c *Compressor) Plan(layer *KVLayer, batch *Batch, window *Window) (*Plan, error) {
	return c.planned(layer, batch, window, func(call *call, plan *C.rrpc_plan, selection C.uintptr_t) *C.rrpc_error {
		return C.go_compressor_plan(c.handle, &call.layer, &call.batch, &call.window, call.space(),
			call.sizes.workspace_bytes, plan, selection)
	})
}

// Select selects what stays by the scores of one layer, for policies that look at nothing else. PolicyRPC averages them
// over the KV heads (with AggregationLayer), pools them, and keeps the best
// min(candidates, (compressions + 1) * Interval / Ratio) of each sequence; of equal ones the first. Nothing is moved.
//
// Errors: [ErrInvalidArgument] for a batch that cannot be, another number of scores, one that is not a
// number, or an answer of Select that cannot be; [ErrBufferTooSmall] for too few spare blocks, with the
// number that is needed; [ErrCallback] with Select's error.
func (c *Compressor) Select(layer int, batch *Batch, scores []float32) (*Plan, error) {
	if layer < 0 || layer > math.MaxUint32 {
		return nil, invalid("there is no layer %d", layer)
	}
	call, err := c.begin(batch)
	if err != nil {
		return nil, err
	}
	defer call.end()
	return call.plan(func(plan *C.rrpc_plan, selection C.uintptr_t) *C.rrpc_error {
		return C.go_compressor_select(c.handle, C.uint32_t(layer), &call.batch, floats(scores),
			C.size_t(len(scores)), call.space(), call.sizes.workspace_bytes, plan, selection)
	})
}

// Apply carries a plan out in one layer: copies shared blocks that are in the way, merges, and moves what
// stays forward. Entries that stay and take no others in keep their bytes. The plan may be Plan's or Select's, that one
// changed, or one of the program's: all of it is checked against the batch before anything is written.
//
// Errors: [ErrInvalidArgument] for a layer or batch that cannot be, memory that is too short for it, or a
// plan that does not fit it; [ErrBufferTooSmall] for too few spare blocks. Nothing has been moved then.
func (c *Compressor) Apply(layer *KVLayer, batch *Batch, plan *Plan) error {
	call, err := c.begin(batch)
	if err != nil {
		return err
	}
	defer call.end()
	if err := call.lend(layer, &Window{}); err != nil {
		return err
	}
	given, err := call.lendPlan(plan)
	if err != nil {
		return err
	}
	return check(C.go_compressor_apply(c.handle, &call.layer, &call.batch, given, call.space(),
		call.sizes.workspace_bytes))
}

// Compress is Plan and Apply in one call. It returns what was done.
//
// Errors: those of the two. Nothing has been moved then.
func (c *Compressor) Compress(layer *KVLayer, batch *Batch, window *Window) (*Plan, error) {
	return c.planned(layer, batch, window, func(call *call, plan *C.rrpc_plan, selection C.uintptr_t) *C.rrpc_error {
		return C.go_compressor_compress(c.handle, &call.layer, &call.batch, &call.window, call.space(),
			call.sizes.workspace_bytes, plan, selection)
	})
}

// planned runs one of the library's functions that make a plan out of everything.
func (c *Compressor) planned(layer *KVLayer, batch *Batch, window *Window,
	run func(call *call, plan *C.rrpc_plan, selection C.uintptr_t) *C.rrpc_error) (*Plan, error) {
	call, err := c.begin(batch)
	if err != nil {
		return nil, err
	}
	defer call.end()
	if err := call.lend(layer, window); err != nil {
		return nil, err
	}
	return call.plan(func(plan *C.rrpc_plan, selection C.uintptr_t) *C.rrpc_error {
		return run(call, plan, selection)
	})
}

// joined is an error of the library with the one of a callback's that caused it.
func joined(err, cause error) error {
	return fmt.Errorf("%w: %w", err, cause)
}
