package reasoningrpc

// #include "shim.h"
import "C"

import (
	"math/bits"
	"unsafe"
)

// Elements are keys, values or queries in memory, with their type. The zero value is none.
type Elements struct {
	data   unsafe.Pointer
	length int
	dtype  DType
}

// Float32 elements, DTypeF32.
func Float32(s []float32) Elements {
	return Elements{unsafe.Pointer(unsafe.SliceData(s)), len(s), DTypeF32}
}

// Float16 elements, DTypeF16, as their bits.
func Float16(s []uint16) Elements {
	return Elements{unsafe.Pointer(unsafe.SliceData(s)), len(s), DTypeF16}
}

// BFloat16 elements, DTypeBF16, as their bits.
func BFloat16(s []uint16) Elements {
	return Elements{unsafe.Pointer(unsafe.SliceData(s)), len(s), DTypeBF16}
}

// Int8 elements, DTypeI8. Their scales are float32, one for each entry and KV head.
func Int8(s []int8) Elements {
	return Elements{unsafe.Pointer(unsafe.SliceData(s)), len(s), DTypeI8}
}

// holds checks that the elements reach to the last of last that lie together, at the last index of each
// extent.
func (e Elements) holds(name string, extents, strides [3]int, last int) error {
	needed := uint64(last)
	for i, stride := range strides {
		if extents[i] == 0 {
			return nil
		}
		if stride < 0 {
			return invalid("%s: a stride cannot be negative, found %d", name, stride)
		}
		high, step := bits.Mul64(uint64(extents[i]-1), uint64(stride))
		sum, carry := bits.Add64(needed, step, 0)
		if high != 0 || carry != 0 {
			return invalid("%s: strides of %v are too large", name, strides)
		}
		needed = sum
	}
	if uint64(e.length) < needed {
		return invalid("%s: %d elements are needed for %v with strides of %v, found %d", name, needed, extents, strides, e.length)
	}
	return nil
}

// Layout is the order of a tensor's dimensions.
type Layout uint32

const (
	// HeadMajor is [sequence or block][head][entry][head_dim].
	HeadMajor Layout = iota
	// TokenMajor is [sequence or block][entry][head][head_dim].
	TokenMajor
)

// Strides are the elements from one sequence (dense) or block (paged), head and entry to the next, in a
// tensor without gaps.
func (l Layout) Strides(heads, entries, headDim int) [3]int {
	if l == TokenMajor {
		return [3]int{heads * entries * headDim, headDim, heads * headDim}
	}
	return [3]int{heads * entries * headDim, entries * headDim, headDim}
}

// KVLayer is one layer's keys and values. The elements of an entry lie together. Layouts differ in the
// strides only, which are elements (or scales) from one sequence (dense) or block (paged), KV head and
// entry to the next, in this order, and not negative.
type KVLayer struct {
	// Layer, from 0.
	Layer int
	// Keys, rotated, of the compressor's DType.
	Keys Elements
	// Values, of the same type.
	Values Elements
	// KeyStrides are elements.
	KeyStrides [3]int
	// ValueStrides are elements.
	ValueStrides [3]int
	// KeyScales of DTypeI8: one for each entry and KV head. nil for the other types.
	KeyScales []float32
	// ValueScales, likewise.
	ValueScales []float32
	// KeyScaleStrides are scales.
	KeyScaleStrides [3]int
	// ValueScaleStrides are scales.
	ValueScaleStrides [3]int
	// History of PolicyLookahead and PolicyLookaheadMerge: a float32 of the policy's for each entry and KV head, which
	// belongs to the entry as its key does. The program sets it to 0 for every entry of a row or block that it takes
	// into use; from then on compressions write it. nil for other policies.
	History []float32
	// HistoryStrides are float32s.
	HistoryStrides [3]int
}

// Layer describes one layer's keys and values in tensors without gaps, of one layout. entries is how many
// entries a block has (paged), or each row has room for (dense). KeyScales and ValueScales have to be set
// for DTypeI8, History for the policies that look ahead; their strides are those of the layout with one element for a
// head.
func (c *Compressor) Layer(layer, entries int, layout Layout, keys, values Elements) KVLayer {
	strides := layout.Strides(c.options.KVHeads, entries, c.options.HeadDim)
	scales := layout.Strides(c.options.KVHeads, entries, 1)
	return KVLayer{
		Layer: layer,
		Keys:  keys, Values: values,
		KeyStrides: strides, ValueStrides: strides,
		KeyScaleStrides: scales, ValueScaleStrides: scales, HistoryStrides: scales,
	}
}

// Batch are the sequences to compress: the same for every layer.
type Batch struct {
	// Lengths [sequences] are the valid entries of each.
	Lengths []int32
	// PromptLengths [sequences] are the leading entries that are never dropped.
	PromptLengths []int32
	// Compressions [sequences] before this one.
	Compressions []int32
	// Rows [sequences] of the tensors (dense), of the block table (paged). nil: 0, 1, 2, ...
	Rows []int32
	// RowCount of the tensors (dense) or of the block table (paged).
	RowCount int
	// BlockEntries: entries of a block (paged), entries that each row has room for (dense).
	BlockEntries int
	// BlockTable [RowCount][BlockTableStride] of a paged cache: the blocks of each row. nil: dense.
	BlockTable []int32
	// BlockTableStride is how many items of BlockTable a row has.
	BlockTableStride int
	// BlockCount of the tensors of a paged cache; ids are below it. Dense: 0.
	BlockCount int
	// SharedBlocks are never written.
	SharedBlocks []int32
	// SpareBlocks are free blocks that a compression may use, in order, for copies of shared ones.
	SpareBlocks []int32
}

// check checks what the library cannot see: that slices are as long as the batch says.
func (b *Batch) check() error {
	sequences := len(b.Lengths)
	if len(b.PromptLengths) != sequences || len(b.Compressions) != sequences || (b.Rows != nil && len(b.Rows) != sequences) {
		return invalid("Lengths has %d sequences, PromptLengths %d, Compressions %d, Rows %d",
			sequences, len(b.PromptLengths), len(b.Compressions), len(b.Rows))
	}
	for _, count := range []struct {
		name  string
		value int
	}{
		{"RowCount", b.RowCount},
		{"BlockEntries", b.BlockEntries},
		{"BlockCount", b.BlockCount},
		{"BlockTableStride", b.BlockTableStride},
	} {
		if count.value < 0 || uint64(count.value) > 1<<32-1 {
			return invalid("%s cannot be %d", count.name, count.value)
		}
	}
	if b.BlockTable == nil {
		return nil
	}
	if b.BlockEntries == 0 {
		return invalid("BlockEntries cannot be 0")
	}
	for sequence, length := range b.Lengths {
		row := b.row(sequence)
		if row < 0 || row >= b.RowCount || length < 0 {
			return invalid("sequence %d has %d entries in row %d of %d", sequence, length, row, b.RowCount)
		}
		blocks := (int(length) + b.BlockEntries - 1) / b.BlockEntries
		if blocks > 0 && row*b.BlockTableStride+blocks > len(b.BlockTable) {
			return invalid("BlockTable: sequence %d needs %d blocks behind item %d, there are %d items",
				sequence, blocks, row*b.BlockTableStride, len(b.BlockTable))
		}
	}
	return nil
}

func (b *Batch) row(sequence int) int {
	if b.Rows == nil {
		return sequence
	}
	return int(b.Rows[sequence])
}

// Window are the rotated queries of the newest Window tokens of each sequence, with PolicyLookahead and
// PolicyLookaheadMerge of its newest Interval tokens. Its zero value stands for
// what [Compressor.Record] recorded, with the batch's rows as slots.
type Window struct {
	// Queries of a ring of the program's, of DTypeF32, DTypeF16 or DTypeBF16.
	Queries Elements
	// Strides are elements from one row (as Batch.Rows), token and query head to the next.
	Strides [3]int
	// RingTokens are the places of the ring, at least as many as tokens that score.
	RingTokens int
	// Oldest [sequences] is the place in the ring of the window's oldest token. nil: 0.
	Oldest []int32
	// Slots [sequences] of what was recorded. nil: as Batch.Rows.
	Slots []int32
}

// Window describes queries in a tensor without gaps: [row][head][token][head_dim] or
// [row][token][head][head_dim]. tokens is how many the ring has place for.
func (c *Compressor) Window(tokens int, layout Layout, queries Elements) Window {
	strides := layout.Strides(c.options.Heads, tokens, c.options.HeadDim)
	return Window{Queries: queries, Strides: [3]int{strides[0], strides[2], strides[1]}, RingTokens: tokens}
}

// Merge is one dropped entry that is merged into a kept one: key(Into) becomes
// (1 - sum of KeyWeight) * key(Into) + sum of KeyWeight * key(From), and values alike, in float32, rounded
// once. Entries count as they were before the compression.
type Merge struct {
	// Sequence is its index in the batch.
	Sequence uint32
	// KVHead whose entries are merged.
	KVHead uint32
	// From is the candidate that is dropped.
	From uint32
	// Into is the candidate that is kept.
	Into uint32
	// KeyWeight and ValueWeight are finite.
	KeyWeight, ValueWeight float32
}

// BlockCopy is a block that is copied before a sequence is compressed, because it is shared and in the way
// of what moves.
type BlockCopy struct {
	// Sequence is its index in the batch.
	Sequence uint32
	// Index of the item of the sequence's row of the block table that becomes To.
	Index uint32
	// From is the shared block.
	From int32
	// To is the spare block that takes its place.
	To int32
}

// Plan is what a compression of one layer keeps, moves, copies and sets free. Everything but the kept sets,
// the merges and what becomes of histories and keys follows from them and the batch, and is the same for every layer if the kept counts are.
//
// After the compression a sequence's cache is its prompt, the kept candidates in their order, and the
// window. The program sets its length to NewLengths, writes Copies to its block table, and drops one
// reference to each of FreedBlocks.
type Plan struct {
	// Sets of each sequence: 1 for all KV heads, or one for each.
	Sets int
	// KeptCounts [sequences] are the entries of each set of each sequence.
	KeptCounts []uint32
	// Kept are, for each sequence and each of its sets, the candidates that stay, ascending. Candidate 0 is
	// the entry behind the prompt. KeptSet cuts it.
	Kept []uint32
	// NewLengths [sequences] are the entries of each afterwards.
	NewLengths []int32
	// Copies of shared blocks, in order of sequence and index.
	Copies []BlockCopy
	// FreedBlocks: to each the sequence has one reference less afterwards.
	FreedBlocks []int32
	// Merges, sorted by sequence, KV head, into, from.
	Merges []Merge
	// History, of PolicyLookahead and PolicyLookaheadMerge: what the history of each of Kept becomes. nil for others.
	History []float32
	// KeyShifts, of PolicyLookaheadMerge: how much of its direction is added to the key of each of Kept, after the
	// merges and before it is rounded. nil for others.
	KeyShifts []float32
	// KeyDirections [sequences][KVHeads][HeadDim] are the directions; nil if KeyShifts is.
	KeyDirections []float32
}

// KeptSet is a part of Kept: what stays of a sequence in a KV head.
func (p *Plan) KeptSet(sequence, kvHead int) []uint32 {
	start := 0
	for _, count := range p.KeptCounts[:sequence] {
		start += int(count) * p.Sets
	}
	count := int(p.KeptCounts[sequence])
	return p.Kept[start+min(kvHead, p.Sets-1)*count:][:count:count]
}

// As C has them, and to stay so: neither ever grows.
var (
	_ [unsafe.Sizeof(Merge{})]byte     = [C.sizeof_rrpc_merge]byte{}
	_ [unsafe.Sizeof(BlockCopy{})]byte = [C.sizeof_rrpc_block_copy]byte{}
)
