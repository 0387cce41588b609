package reasoningrpc

// #include "shim.h"
import "C"

import (
	"errors"
	"math"
	"runtime"
	"runtime/cgo"
	"slices"
	"unsafe"
)

// call is one call of a compressor: what is lent to the library is pinned until its end.
type call struct {
	compressor *Compressor
	given      *Batch
	batch      C.rrpc_kv_batch
	layer      C.rrpc_kv_layer
	window     C.rrpc_query_window
	sizes      C.rrpc_compressor_sizes
	workspace  []byte
	pinner     runtime.Pinner
}

func (c *Compressor) begin(b *Batch) (*call, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	call := &call{compressor: c, given: b}
	call.batch = C.rrpc_kv_batch{
		struct_size:        C.sizeof_rrpc_kv_batch,
		lengths:            pinned(call, b.Lengths),
		prompt_lengths:     pinned(call, b.PromptLengths),
		compressions:       pinned(call, b.Compressions),
		block_table_stride: C.int64_t(b.BlockTableStride),
		shared_blocks:      pinned(call, b.SharedBlocks),
		shared_count:       C.size_t(len(b.SharedBlocks)),
		spare_blocks:       pinned(call, b.SpareBlocks),
		spare_count:        C.size_t(len(b.SpareBlocks)),
		sequences:          C.uint32_t(len(b.Lengths)),
		row_count:          C.uint32_t(b.RowCount),
		block_entries:      C.uint32_t(b.BlockEntries),
		block_count:        C.uint32_t(b.BlockCount),
	}
	if b.Rows != nil {
		call.batch.rows = pinned(call, b.Rows)
	}
	if b.BlockTable != nil {
		call.batch.block_table = pinned(call, b.BlockTable)
	}
	call.sizes.struct_size = C.sizeof_rrpc_compressor_sizes
	if err := check(C.go_compressor_get_sizes(c.handle, &call.batch, &call.sizes)); err != nil {
		call.end()
		return nil, err
	}
	return call, nil
}

// space is the workspace.
func (c *call) space() unsafe.Pointer {
	if c.workspace == nil {
		if kept, there := c.compressor.workspaces.Get().(*[]byte); there {
			c.workspace = *kept
		}
		if size := max(int(c.sizes.workspace_bytes), 1); len(c.workspace) < size {
			c.workspace = make([]byte, size)
		}
		c.pinner.Pin(unsafe.SliceData(c.workspace))
	}
	return unsafe.Pointer(unsafe.SliceData(c.workspace))
}

func (c *call) end() {
	c.pinner.Unpin()
	if workspace := c.workspace; workspace != nil {
		c.compressor.workspaces.Put(&workspace)
	}
	runtime.KeepAlive(c.compressor)
}

// pinned is where the items are until the call's end; never NULL.
func pinned(c *call, items []int32) *C.int32_t {
	data := int32s(items)
	c.pinner.Pin(data)
	return data
}

// lend lends a layer and a window.
func (c *call) lend(layer *KVLayer, window *Window) error {
	options, batch := &c.compressor.options, c.given
	if layer.Layer < 0 || layer.Layer > math.MaxUint32 {
		return invalid("there is no layer %d", layer.Layer)
	}
	extents := [3]int{batch.RowCount, options.KVHeads, batch.BlockEntries}
	if batch.BlockTable != nil {
		extents[0] = batch.BlockCount
	}
	c.layer.struct_size = C.sizeof_rrpc_kv_layer
	c.layer.layer = C.uint32_t(layer.Layer)
	for _, tensor := range []struct {
		name    string
		given   Elements
		strides [3]int
		last    int
		dtype   DType
		data    *unsafe.Pointer
		into    *[3]C.int64_t
		needed  bool
	}{
		{"Keys", layer.Keys, layer.KeyStrides, options.HeadDim, options.DType, &c.layer.keys, &c.layer.key_strides, true},
		{"Values", layer.Values, layer.ValueStrides, options.HeadDim, options.DType, &c.layer.values, &c.layer.value_strides, true},
		{"KeyScales", Float32(layer.KeyScales), layer.KeyScaleStrides, 1, DTypeF32,
			(*unsafe.Pointer)(unsafe.Pointer(&c.layer.key_scales)), &c.layer.key_scale_strides, options.DType == DTypeI8},
		{"ValueScales", Float32(layer.ValueScales), layer.ValueScaleStrides, 1, DTypeF32,
			(*unsafe.Pointer)(unsafe.Pointer(&c.layer.value_scales)), &c.layer.value_scale_strides, options.DType == DTypeI8},
		{"History", Float32(layer.History), layer.HistoryStrides, 1, DTypeF32,
			(*unsafe.Pointer)(unsafe.Pointer(&c.layer.history)), &c.layer.history_strides, false},
	} {
		if tensor.given.length == 0 && !tensor.needed {
			continue
		}
		if tensor.given.dtype != tensor.dtype {
			return invalid("%s: expected elements of %v, found %v", tensor.name, tensor.dtype, tensor.given.dtype)
		}
		if err := tensor.given.holds(tensor.name, extents, tensor.strides, tensor.last); err != nil {
			return err
		}
		*tensor.data = c.lent(tensor.given)
		for i, stride := range tensor.strides {
			tensor.into[i] = C.int64_t(stride)
		}
	}
	return c.lendWindow(window)
}

func (c *call) lendWindow(window *Window) error {
	options, batch := &c.compressor.options, c.given
	c.window.struct_size = C.sizeof_rrpc_query_window
	for _, list := range []struct {
		name  string
		given []int32
		data  **C.int32_t
	}{{"Oldest", window.Oldest, &c.window.oldest}, {"Slots", window.Slots, &c.window.slots}} {
		if list.given == nil {
			continue
		}
		if len(list.given) != len(batch.Lengths) {
			return invalid("the batch has %d sequences, %s %d", len(batch.Lengths), list.name, len(list.given))
		}
		*list.data = pinned(c, list.given)
	}
	if window.Queries.dtype == DTypeDefault {
		return nil
	}
	if window.RingTokens < 0 || window.RingTokens > math.MaxUint32 {
		return invalid("RingTokens cannot be %d", window.RingTokens)
	}
	rows := 0
	for sequence := range batch.Lengths {
		rows = max(rows, batch.row(sequence)+1)
	}
	extents := [3]int{rows, window.RingTokens, options.Heads}
	if err := window.Queries.holds("Queries", extents, window.Strides, options.HeadDim); err != nil {
		return err
	}
	c.window.queries = c.lent(window.Queries)
	c.window.ring_tokens = C.uint32_t(window.RingTokens)
	c.window.dtype = C.uint32_t(window.Queries.dtype)
	for i, stride := range window.Strides {
		c.window.strides[i] = C.int64_t(stride)
	}
	return nil
}

// lent is where elements are until the call's end; never NULL.
func (c *call) lent(e Elements) unsafe.Pointer {
	if e.length == 0 {
		e.data = unsafe.Pointer(new(uint64))
	}
	c.pinner.Pin(e.data)
	return e.data
}

// lendPlan lends a plan of the program's.
func (c *call) lendPlan(plan *Plan) (*C.rrpc_plan, error) {
	sequences := len(c.given.Lengths)
	if len(plan.KeptCounts) != sequences || len(plan.NewLengths) != sequences {
		return nil, invalid("the batch has %d sequences, KeptCounts %d, NewLengths %d",
			sequences, len(plan.KeptCounts), len(plan.NewLengths))
	}
	if plan.Sets < 0 || plan.Sets > math.MaxUint32 {
		return nil, invalid("Sets cannot be %d", plan.Sets)
	}
	directions := 0
	if len(plan.KeyShifts) > 0 {
		directions = sequences * c.compressor.options.KVHeads * c.compressor.options.HeadDim
	}
	for _, list := range []struct {
		name            string
		found, expected int
		optional        bool
	}{
		{"History", len(plan.History), len(plan.Kept), true},
		{"KeyShifts", len(plan.KeyShifts), len(plan.Kept), true},
		{"KeyDirections", len(plan.KeyDirections), directions, false},
	} {
		if list.found != list.expected && !(list.optional && list.found == 0) {
			return nil, invalid("%s: expected %d numbers, found %d", list.name, list.expected, list.found)
		}
	}
	return &C.rrpc_plan{
		struct_size:    C.sizeof_rrpc_plan,
		history:        pinnedFloats(c, plan.History),
		key_shifts:     pinnedFloats(c, plan.KeyShifts),
		key_directions: pinnedFloats(c, plan.KeyDirections),
		kept_counts:    (*C.uint32_t)(pinnedData(c, plan.KeptCounts)),
		kept:           (*C.uint32_t)(pinnedData(c, plan.Kept)),
		kept_len:       C.size_t(len(plan.Kept)),
		new_lengths:    (*C.int32_t)(pinnedData(c, plan.NewLengths)),
		copies:         (*C.rrpc_block_copy)(pinnedData(c, plan.Copies)),
		copy_count:     C.size_t(len(plan.Copies)),
		freed_blocks:   (*C.int32_t)(pinnedData(c, plan.FreedBlocks)),
		freed_count:    C.size_t(len(plan.FreedBlocks)),
		merges:         (*C.rrpc_merge)(pinnedData(c, plan.Merges)),
		merge_count:    C.size_t(len(plan.Merges)),
		sequences:      C.uint32_t(sequences),
		sets:           C.uint32_t(plan.Sets),
	}, nil
}

func pinnedData[T any](c *call, items []T) unsafe.Pointer {
	if len(items) == 0 {
		items = make([]T, 1)
	}
	data := unsafe.SliceData(items)
	c.pinner.Pin(data)
	return unsafe.Pointer(data)
}

// pinnedFloats is where they are until the call's end; NULL for none.
func pinnedFloats(c *call, items []float32) *C.float {
	if len(items) == 0 {
		return nil
	}
	return (*C.float)(pinnedData(c, items))
}

// plan makes a call that selects, and copies the plan out of the workspace.
func (c *call) plan(run func(plan *C.rrpc_plan, selection C.uintptr_t) *C.rrpc_error) (*Plan, error) {
	plan := C.rrpc_plan{struct_size: C.sizeof_rrpc_plan}
	chosen := selection{options: &c.compressor.options}
	var handle cgo.Handle
	if chosen.options.Policy == PolicyCallback {
		handle = cgo.NewHandle(&chosen)
		defer handle.Delete()
	}
	err := check(run(&plan, C.uintptr_t(handle)))
	if chosen.thrown != nil {
		panic(chosen.thrown)
	}
	if err != nil {
		if chosen.err != nil && errors.Is(err, ErrCallback) {
			err = joined(err, chosen.err)
		}
		return nil, err
	}
	kept := plan.kept_len
	has := func(floats *C.float, count C.size_t) C.size_t {
		if floats == nil {
			return 0
		}
		return count
	}
	directions := C.size_t(plan.sequences) * C.size_t(chosen.options.KVHeads) * C.size_t(chosen.options.HeadDim)
	return &Plan{
		History:       cloned[float32](unsafe.Pointer(plan.history), has(plan.history, kept)),
		KeyShifts:     cloned[float32](unsafe.Pointer(plan.key_shifts), has(plan.key_shifts, kept)),
		KeyDirections: cloned[float32](unsafe.Pointer(plan.key_directions), has(plan.key_directions, directions)),
		Sets:          int(plan.sets),
		KeptCounts:    cloned[uint32](unsafe.Pointer(plan.kept_counts), C.size_t(plan.sequences)),
		Kept:          cloned[uint32](unsafe.Pointer(plan.kept), kept),
		NewLengths:    cloned[int32](unsafe.Pointer(plan.new_lengths), C.size_t(plan.sequences)),
		Copies:        cloned[BlockCopy](unsafe.Pointer(plan.copies), plan.copy_count),
		FreedBlocks:   cloned[int32](unsafe.Pointer(plan.freed_blocks), plan.freed_count),
		Merges:        cloned[Merge](unsafe.Pointer(plan.merges), plan.merge_count),
	}, nil
}

func cloned[T any](data unsafe.Pointer, count C.size_t) []T {
	if count == 0 {
		return nil
	}
	return slices.Clone(unsafe.Slice((*T)(data), int(count)))
}

// selection is what a call knows of its callbacks.
type selection struct {
	options *CompressorOptions
	err     error
	thrown  any
}

// choose asks the program's function and hands its answer over.
func (s *selection) choose(request *C.rrpc_select_request) error {
	kvHeads, candidates := int(request.kv_heads), int(request.candidates)
	shown := SelectRequest{
		Layer:        int(request.layer),
		Sequence:     int(request.sequence),
		KVHeads:      kvHeads,
		Candidates:   candidates,
		Compressions: int(request.compressions),
		Scores:       unsafe.Slice((*float32)(request.scores), kvHeads*candidates),
	}
	if err := s.options.Select(&shown); err != nil {
		return err
	}
	if len(shown.Kept) == 0 {
		shown.Kept = [][]uint32{nil}
	}
	if sets := len(shown.Kept); sets != 1 && sets != kvHeads {
		return invalid("Select: expected 1 or %d kept sets, found %d", kvHeads, sets)
	}
	count := len(shown.Kept[0])
	if count > candidates {
		return invalid("Select: %d of %d candidates were kept", count, candidates)
	}
	room := unsafe.Slice((*uint32)(request.kept), kvHeads*candidates)
	for i, set := range shown.Kept {
		if len(set) != count {
			return invalid("Select: kept sets of %d and %d candidates, expected the same number", count, len(set))
		}
		copy(room[i*count:], set)
	}
	if len(shown.Merges) > int(s.options.MaxMerges) {
		return invalid("Select: %d merges, MaxMerges is %d", len(shown.Merges), s.options.MaxMerges)
	}
	copy(unsafe.Slice((*Merge)(unsafe.Pointer(request.merges)), len(shown.Merges)), shown.Merges)
	request.sets, request.kept_count = C.uint32_t(len(shown.Kept)), C.uint32_t(count)
	request.merge_count = C.uint32_t(len(shown.Merges))
	return nil
}

//export reasoning_rpc_go_select
func reasoning_rpc_go_select(call C.uintptr_t, request *C.rrpc_select_request) (failed C.int32_t) {
	selection := cgo.Handle(call).Value().(*selection)
	// A panic may not unwind the library: it goes on when the call has returned.
	defer func() {
		if selection.thrown = recover(); selection.thrown != nil {
			failed = 1
		}
	}()
	if selection.err = selection.choose(request); selection.err != nil {
		return 1
	}
	return 0
}

// int32s is where items are; never NULL.
func int32s(items []int32) *C.int32_t {
	if len(items) == 0 {
		return new(C.int32_t)
	}
	return (*C.int32_t)(unsafe.SliceData(items))
}

// floats is where items are; never NULL.
func floats(items []float32) *C.float {
	if len(items) == 0 {
		return new(C.float)
	}
	return (*C.float)(unsafe.SliceData(items))
}
