package reasoningrpc

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// newRandom is fresh each run; SEED= replays it.
func newRandom(t testing.TB) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano() % 1_000_000_000)
	if given := os.Getenv("SEED"); given != "" {
		var err error
		seed, err = strconv.ParseUint(given, 10, 64)
		must(t, err)
	}
	t.Logf("SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// tensors are those of a safetensors file, with its metadata.
type tensors struct {
	metadata map[string]string
	entries  map[string]struct {
		DType   string `json:"dtype"`
		Shape   []int
		Offsets [2]int `json:"data_offsets"`
	}
	data []byte
}

func readTensors(t *testing.T, path string) tensors {
	t.Helper()
	file, err := os.ReadFile(path)
	must(t, err)
	size := binary.LittleEndian.Uint64(file)
	header, data := file[8:8+size], file[8+size:]
	var metadata struct {
		Metadata map[string]string `json:"__metadata__"`
	}
	must(t, json.Unmarshal(header, &metadata))
	var raw map[string]json.RawMessage
	must(t, json.Unmarshal(header, &raw))
	delete(raw, "__metadata__")
	header, err = json.Marshal(raw)
	must(t, err)
	read := tensors{metadata: metadata.Metadata, data: data}
	must(t, json.Unmarshal(header, &read.entries))
	return read
}

// numbers are a tensor's elements, as they are.
func numbers[T any](t *testing.T, from tensors, name string) []T {
	t.Helper()
	offsets := from.entries[name].Offsets
	bytes := from.data[offsets[0]:offsets[1]]
	out := make([]T, len(bytes)/binary.Size(*new(T)))
	_, err := binary.Decode(bytes, binary.LittleEndian, out)
	must(t, err)
	return out
}

// elements are of the type that T stands for.
func elements[T any](s []T, sixteen func([]uint16) Elements) Elements {
	switch s := any(s).(type) {
	case []float32:
		return Float32(s)
	case []int8:
		return Int8(s)
	case []uint16:
		return sixteen(s)
	}
	panic("no such type")
}

// host is the cache of a program: dense, or paged in shuffled blocks, with room that no entry has used.
type host[T comparable] struct {
	layout                 Layout
	kvHeads, headDim       int
	rows, blockEntries     int
	blocks, stride         int
	table                  []int32 // nil: dense
	keys, values           []T
	keyScales, valueScales []float32
}

// newHost has room for some entries in each row, filled with what filler makes.
func newHost[T comparable](random *rand.Rand, layout Layout, paged bool, rows, room, kvHeads, headDim int, filler func() T) *host[T] {
	h := &host[T]{layout: layout, kvHeads: kvHeads, headDim: headDim, rows: rows, blockEntries: room}
	pages := rows
	if paged {
		h.blockEntries = 1 + random.IntN(24)
		h.stride = (room + h.blockEntries - 1) / h.blockEntries
		h.blocks = rows*h.stride + random.IntN(5)
		pages = h.blocks
		for _, block := range random.Perm(h.blocks)[:rows*h.stride] {
			h.table = append(h.table, int32(block))
		}
	}
	size := pages * kvHeads * h.blockEntries
	h.keys, h.values = make([]T, size*headDim), make([]T, size*headDim)
	for i := range h.keys {
		h.keys[i], h.values[i] = filler(), filler()
	}
	h.keyScales, h.valueScales = make([]float32, size), make([]float32, size)
	for i := range h.keyScales {
		h.keyScales[i], h.valueScales[i] = random.Float32(), random.Float32()
	}
	return h
}

// at is where an entry begins, counted in heads.
func (h *host[T]) at(row, kvHead, entry int) int {
	if h.table != nil {
		row, entry = int(h.table[row*h.stride+entry/h.blockEntries]), entry%h.blockEntries
	}
	strides := h.layout.Strides(h.kvHeads, h.blockEntries, 1)
	return row*strides[0] + kvHead*strides[1] + entry*strides[2]
}

func (h *host[T]) key(row, kvHead, entry int) []T {
	return h.keys[h.at(row, kvHead, entry)*h.headDim:][:h.headDim]
}

func (h *host[T]) value(row, kvHead, entry int) []T {
	return h.values[h.at(row, kvHead, entry)*h.headDim:][:h.headDim]
}

func (h *host[T]) layer(c *Compressor, layer int) *KVLayer {
	sixteen := Float16
	if c.options.DType == DTypeBF16 {
		sixteen = BFloat16
	}
	made := c.Layer(layer, h.blockEntries, h.layout, elements(h.keys, sixteen), elements(h.values, sixteen))
	if c.options.DType == DTypeI8 {
		made.KeyScales, made.ValueScales = h.keyScales, h.valueScales
	}
	return &made
}

func (h *host[T]) batch(lengths, prompts, compressions []int32) *Batch {
	return &Batch{
		Lengths: lengths, PromptLengths: prompts, Compressions: compressions,
		RowCount: h.rows, BlockEntries: h.blockEntries,
		BlockTable: h.table, BlockTableStride: h.stride, BlockCount: h.blocks,
	}
}

// hosts are one of each kind.
func hosts[T comparable](random *rand.Rand, rows, room, kvHeads, headDim int, filler func() T) map[string]*host[T] {
	all := map[string]*host[T]{}
	for _, layout := range []Layout{HeadMajor, TokenMajor} {
		for _, paged := range []bool{false, true} {
			name := fmt.Sprintf("paged=%v layout=%d", paged, layout)
			all[name] = newHost(random, layout, paged, rows, room, kvHeads, headDim, filler)
		}
	}
	return all
}

func newCompressor(t testing.TB, options ...func(*CompressorOptions)) *Compressor {
	t.Helper()
	c, err := NewCompressor(options...)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// shape is a random one.
type shape struct {
	heads, kvHeads, headDim, rows, room int
	interval, window, ratio             uint32
	lengths, prompts, done              []int32
}

func newShape(random *rand.Rand) shape {
	s := shape{kvHeads: 1 + random.IntN(3), headDim: 8 * (1 + random.IntN(4)), rows: 1 + random.IntN(4)}
	s.heads = s.kvHeads * (1 + random.IntN(3))
	s.ratio = 1 + random.Uint32N(4)
	s.interval = s.ratio * (2 + random.Uint32N(10))
	s.window = 1 + random.Uint32N(s.interval-1)
	for range s.rows {
		prompt, done := random.IntN(20), random.IntN(3)
		length := prompt + random.IntN(3*int(s.interval)) + int(s.window)
		s.lengths, s.prompts, s.done = append(s.lengths, int32(length)), append(s.prompts, int32(prompt)), append(s.done, int32(done))
		s.room = max(s.room, length)
	}
	return s
}

func (s shape) options(dtype DType) func(*CompressorOptions) {
	return func(o *CompressorOptions) {
		o.Heads, o.KVHeads, o.HeadDim, o.DType = s.heads, s.kvHeads, s.headDim, dtype
		o.Interval, o.Window, o.Ratio = s.interval, s.window, s.ratio
		o.Aggregation = AggregationKVHead
	}
}

func (s shape) queries(random *rand.Rand) []float32 {
	queries := make([]float32, s.rows*s.heads*int(s.window)*s.headDim)
	for i := range queries {
		queries[i] = random.Float32()*2 - 1
	}
	return queries
}
