package reasoningrpc

// #include "shim.h"
import "C"

import (
	"math"
	"unsafe"
)

// Fork makes a second sequence with the same text, cache, policy, log and sampler: it continues with
// exactly the tokens that this one continues with, until [Sequence.SetSeed] makes it draw others. The cache
// is shared until one of the two changes it, block by block. The caller closes it.
//
// Errors: [ErrBusy], [ErrPoisoned]; [ErrBudget] if the blocks that both may have to write do not fit the
// budget.
func (s *Sequence) Fork() (*Sequence, error) {
	return ownSequence(s.selector, func(handle *C.go_sequence) error {
		return s.use(func() *C.rrpc_error { return C.go_sequence_fork(s.handle, handle) })
	})
}

// SetSeed makes the sampler begin anew with a seed: forks that got different ones go different ways.
//
// Errors: [ErrBusy], [ErrPoisoned].
func (s *Sequence) SetSeed(seed uint64) error {
	return s.use(func() *C.rrpc_error { return C.go_sequence_set_seed(s.handle, C.uint64_t(seed)) })
}

// Rewind shortens the text to its first tokens tokens. The last of them becomes pending, so that one step
// gives its logits again. The sampler's draws are put back too: what followed follows again. A promise made
// by Reserve ends. What a compression dropped cannot come back: a rewind ends no further back than one token
// behind the last one.
//
// Errors: [ErrBusy], [ErrPoisoned]; [ErrInvalidArgument], naming the possible lengths, for 0 tokens, more
// than there are, or an end before the last compression. Nothing has changed then.
func (s *Sequence) Rewind(tokens int) error {
	if tokens < 0 {
		return invalid("a text has no %d tokens", tokens)
	}
	return s.use(func() *C.rrpc_error { return C.go_sequence_rewind(s.handle, C.size_t(tokens)) })
}

// CacheEntries are the valid entries of one layer and KV head, in order of the text.
type CacheEntries struct {
	// Positions [entries] in the text, counted from 0: dropped ones are missing. They ascend, unless the policy is
	// PolicyH2O or PolicyTOVA.
	Positions []uint32
	// Keys [entries][HeadDim], rotated; the cache's elements as float32, which loses nothing (of DTypeI8,
	// their products with their scales).
	Keys []float32
	// Values [entries][HeadDim].
	Values []float32
	// HeadDim is how many elements a head has.
	HeadDim int
	// DType of the elements in the cache.
	DType DType
}

// CacheEntries copies what the cache holds for one layer and KV head, both counted from 0.
//
// Errors: [ErrBusy], [ErrPoisoned]; [ErrInvalidArgument] for a layer or head that there is not.
func (s *Sequence) CacheEntries(layer, kvHead int) (CacheEntries, error) {
	if layer < 0 || layer > math.MaxUint32 || kvHead < 0 || kvHead > math.MaxUint32 {
		return CacheEntries{}, invalid("there is no layer %d with a KV head %d", layer, kvHead)
	}
	view := C.rrpc_cache_view{struct_size: C.sizeof_rrpc_cache_view}
	var found CacheEntries
	err := s.borrow(func() error {
		return check(C.go_sequence_cache_view(s.handle, C.uint32_t(layer), C.uint32_t(kvHead), &view))
	}, func() {
		found = copyView(&view)
	})
	return found, err
}

func copyView(view *C.rrpc_cache_view) CacheEntries {
	entries, headDim := int(view.length), int(view.head_dim)
	found := CacheEntries{
		Positions: make([]uint32, entries),
		Keys:      make([]float32, entries*headDim),
		Values:    make([]float32, entries*headDim),
		HeadDim:   headDim,
		DType:     DType(view.dtype),
	}
	table := unsafe.Slice((*uint32)(view.block_table), int(view.block_count))
	for entry := range entries {
		block, inBlock := entry/int(view.block_entries), entry%int(view.block_entries)
		start := uintptr(table[block]) * uintptr(view.block_stride)
		offset := start + uintptr(inBlock)*uintptr(view.entry_stride)
		found.Positions[entry] = *(*uint32)(unsafe.Add(unsafe.Pointer(view.positions), start+uintptr(inBlock)*4))
		keyScale, valueScale := float32(1), float32(1)
		if found.DType == DTypeI8 {
			scale := start + uintptr(inBlock)*4
			keyScale = *(*float32)(unsafe.Add(unsafe.Pointer(view.key_scales), scale))
			valueScale = *(*float32)(unsafe.Add(unsafe.Pointer(view.value_scales), scale))
		}
		widen(found.Keys[entry*headDim:][:headDim], unsafe.Add(view.keys, offset), found.DType, keyScale)
		widen(found.Values[entry*headDim:][:headDim], unsafe.Add(view.values, offset), found.DType, valueScale)
	}
	return found
}

// widen copies elements as float32; scale is that of DTypeI8.
func widen(out []float32, from unsafe.Pointer, dtype DType, scale float32) {
	switch dtype {
	case DTypeF32:
		copy(out, unsafe.Slice((*float32)(from), len(out)))
	case DTypeF16:
		for i, bits := range unsafe.Slice((*uint16)(from), len(out)) {
			out[i] = half(bits)
		}
	case DTypeBF16:
		for i, bits := range unsafe.Slice((*uint16)(from), len(out)) {
			out[i] = math.Float32frombits(uint32(bits) << 16)
		}
	case DTypeI8:
		for i, x := range unsafe.Slice((*int8)(from), len(out)) {
			out[i] = float32(x) * scale
		}
	}
}

// half is the value of a binary16.
func half(bits uint16) float32 {
	sign, exponent, fraction := uint32(bits>>15)<<31, uint32(bits>>10&0x1f), uint32(bits&0x3ff)
	switch exponent {
	case 0: // fraction * 2^-24
		return math.Float32frombits(sign | math.Float32bits(float32(fraction)*0x1p-24))
	case 0x1f:
		return math.Float32frombits(sign | 0xff<<23 | fraction<<13)
	}
	return math.Float32frombits(sign | (exponent+127-15)<<23 | fraction<<13)
}
