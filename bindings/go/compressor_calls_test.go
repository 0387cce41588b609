package reasoningrpc

import (
	"errors"
	"math"
	"runtime"
	"slices"
	"sync"
	"testing"
)

func TestDue(t *testing.T) {
	c := newCompressor(t, shape{heads: 1, kvHeads: 1, headDim: 8, interval: 32, window: 8, ratio: 4}.options(DTypeF32))
	for _, one := range []struct {
		generated, compressions uint64
		due                     bool
	}{{0, 0, false}, {39, 0, false}, {40, 0, true}, {40, 1, false}, {71, 1, false}, {72, 1, true}} {
		if due, err := c.Due(one.generated, one.compressions); err != nil || due != one.due {
			t.Errorf("%+v: %v %v", one, due, err)
		}
	}
}

func TestPolicyNames(t *testing.T) {
	for policy := PolicyNone; policy <= PolicyLightThinker; policy++ {
		if found, err := ParsePolicy(policy.String()); err != nil || found != policy {
			t.Errorf("%v: %v %v", policy, found, err)
		}
	}
	for _, name := range []string{"", "RPC", "rpc ", "unknown", "rpc\x00x", "rpc\x00"} {
		_, err := ParsePolicy(name)
		mustBe(t, err, ErrInvalidArgument)
	}
}

// Recorded queries select what the same queries in a tensor select.
func TestRecordedWindow(t *testing.T) {
	random := newRandom(t)
	s := newShape(random)
	c := newCompressor(t, s.options(DTypeF32), func(o *CompressorOptions) {
		o.RecordedLayers, o.RecordedSequences = 2, uint32(s.rows)
	})
	h := newHost(random, TokenMajor, true, s.rows, s.room, s.kvHeads, s.headDim, random.Float32)
	batch := h.batch(s.lengths, s.prompts, s.done)
	if slices.Max(c.Candidates(batch)) > 0 {
		_, err := c.Score(h.layer(c, 1), batch, &Window{})
		mustBe(t, err, ErrInvalidArgument) // nothing was recorded
	}
	// Tokens that are overwritten, then the window: [token][row][head][head_dim].
	slots := make([]int32, s.rows)
	for row := range slots {
		slots[row] = int32(s.rows - 1 - row)
	}
	stride := s.rows * s.heads * s.headDim
	tokens := make([]float32, (5+int(s.window))*stride)
	for i := range tokens {
		tokens[i] = random.Float32()
	}
	for token := range 5 + int(s.window) {
		must(t, c.Record(1, slots, Float32(tokens[token*stride:][:stride])))
	}
	recorded, err := c.Score(h.layer(c, 1), batch, &Window{Slots: slots})
	must(t, err)
	given, err := c.Score(h.layer(c, 1), batch, &Window{
		Queries: Float32(tokens[5*stride:]), RingTokens: int(s.window),
		Strides: [3]int{s.heads * s.headDim, stride, s.headDim},
	})
	must(t, err)
	if !slices.Equal(recorded, given) {
		t.Error("recorded queries give other scores")
	}
	must(t, c.Forget(0))
	mustBe(t, c.Forget(int32(s.rows)), ErrInvalidArgument)
	mustBe(t, c.Record(2, slots, Float32(tokens)), ErrInvalidArgument)
	mustBe(t, c.Record(0, slots, Float32(tokens[:stride-1])), ErrInvalidArgument)
}

// Two sequences that begin alike share blocks: what moves is copied first.
func TestSharedBlocks(t *testing.T) {
	random := newRandom(t)
	s := shape{heads: 2, kvHeads: 2, headDim: 8, rows: 2, room: 64, interval: 32, window: 8, ratio: 4,
		lengths: []int32{52, 50}, prompts: []int32{12, 12}, done: []int32{0, 0}}
	c := newCompressor(t, s.options(DTypeF32))
	h := newHost(random, HeadMajor, false, 10, 8, s.kvHeads, s.headDim, random.Float32)
	h.rows, h.blocks, h.stride = 2, 10, 7
	// Blocks 0 to 2 are shared: 24 entries, 12 of them the prompt.
	h.table = []int32{0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 7, 8, 9, 9}
	batch := h.batch([]int32{52, 40}, s.prompts, s.done)
	window := c.Window(8, TokenMajor, Float32(s.queries(random)))
	batch.SharedBlocks = []int32{0, 1, 2}
	_, err := c.Compress(h.layer(c, 0), batch, &window)
	mustBe(t, err, ErrBufferTooSmall)

	// Four copies of three new blocks at most.
	h.keys = append(h.keys, make([]float32, 4*len(h.keys)/10)...)
	h.values = append(h.values, make([]float32, 4*len(h.values)/10)...)
	batch.BlockCount, batch.SpareBlocks = 14, []int32{13, 12, 11, 10}
	before := *h
	before.keys, before.values = slices.Clone(h.keys), slices.Clone(h.values)
	before.table = slices.Clone(h.table)
	plan, err := c.Compress(h.layer(c, 0), batch, &window)
	must(t, err)
	// Each: 12 + 8 + 8 = 28 entries, and blocks 1 and 2 of the row hold some from 12 on.
	expected := []BlockCopy{{0, 1, 1, 13}, {0, 2, 2, 12}, {1, 1, 1, 11}, {1, 2, 2, 10}}
	if !slices.Equal(plan.Copies, expected) || !slices.Equal(plan.NewLengths, []int32{28, 28}) {
		t.Fatalf("%+v", plan)
	}
	for _, made := range plan.Copies {
		h.table[int(made.Sequence)*h.stride+int(made.Index)] = made.To
	}
	if shared := 3 * 8 * 2 * 8; !slices.Equal(h.keys[:shared], before.keys[:shared]) || !slices.Equal(h.values[:shared], before.values[:shared]) {
		t.Error("a shared block was written")
	}
	for row, length := range batch.Lengths {
		for kvHead := range 2 {
			for i, index := range plan.KeptSet(row, kvHead) {
				if !slices.Equal(h.key(row, kvHead, 12+i), before.key(row, kvHead, 12+int(index))) {
					t.Fatal("other candidates are kept")
				}
			}
			for i := range 8 {
				if !slices.Equal(h.value(row, kvHead, 20+i), before.value(row, kvHead, int(length)-8+i)) {
					t.Fatal("another window is kept")
				}
			}
		}
	}
}

func TestSelectCallback(t *testing.T) {
	random := newRandom(t)
	s := shape{heads: 4, kvHeads: 2, headDim: 8, rows: 2, room: 60, interval: 32, window: 8, ratio: 4,
		lengths: []int32{52, 60}, prompts: []int32{12, 10}, done: []int32{0, 1}}
	var answer func(*SelectRequest) error
	c := newCompressor(t, s.options(DTypeF32), func(o *CompressorOptions) {
		o.Policy, o.MaxMerges = PolicyCallback, 1
		o.Select = func(request *SelectRequest) error { return answer(request) }
	})
	h := newHost(random, TokenMajor, true, s.rows, s.room, s.kvHeads, s.headDim, random.Float32)
	batch := h.batch(s.lengths, s.prompts, s.done)
	window := c.Window(8, TokenMajor, Float32(s.queries(random)))
	scores, err := c.Score(h.layer(c, 0), batch, &window)
	must(t, err)
	compress := func() (*Plan, error) { return c.Compress(h.layer(c, 7), batch, &window) }

	// One set, sets, merges, and a call within a call.
	seen := scores
	answer = func(request *SelectRequest) error {
		size := request.KVHeads * request.Candidates
		if request.Layer != 7 || request.Compressions != request.Sequence || !slices.Equal(request.Scores, seen[:size]) {
			t.Errorf("%+v", request)
		}
		seen = seen[size:]
		if _, err := c.Score(h.layer(c, 7), batch, &window); err != nil {
			t.Error(err)
		}
		request.Kept = [][]uint32{{0, 2, 4}, {1, 3, 5}}
		request.Merges = []Merge{{uint32(request.Sequence), 0, 3, 2, 0.5, 0.25}}
		return nil
	}
	before := *h
	before.keys, before.values = slices.Clone(h.keys), slices.Clone(h.values)
	plan, err := compress()
	must(t, err)
	if plan.Sets != 2 || !slices.Equal(plan.Kept, []uint32{0, 2, 4, 1, 3, 5, 0, 2, 4, 1, 3, 5}) || len(plan.Merges) != 2 ||
		!slices.Equal(plan.NewLengths, []int32{12 + 3 + 8, 10 + 3 + 8}) {
		t.Fatalf("%+v", plan)
	}
	for i, key := range h.key(0, 0, 12+1) {
		if expected := 0.5*before.key(0, 0, 12+2)[i] + 0.5*before.key(0, 0, 12+3)[i]; math.Abs(float64(key-expected)) > 1e-6 {
			t.Fatalf("expected %v, found %v", expected, key)
		}
	}
	if !slices.Equal(h.key(0, 1, 12+1), before.key(0, 1, 12+3)) {
		t.Error("another entry is kept")
	}

	// None at all is an answer, too.
	answer = func(*SelectRequest) error { return nil }
	selected, err := c.Select(7, batch, scores)
	must(t, err)
	if len(selected.Kept) != 0 || !slices.Equal(selected.NewLengths, []int32{20, 18}) {
		t.Errorf("%+v", selected)
	}

	own := errors.New("of the program's own")
	for name, wrong := range map[string]struct {
		answer func(*SelectRequest) error
		is     []error
	}{
		"an error":           {func(*SelectRequest) error { return own }, []error{own, ErrCallback}},
		"descending":         {func(r *SelectRequest) error { r.Kept = [][]uint32{{2, 1}}; return nil }, []error{ErrInvalidArgument}},
		"no candidate":       {func(r *SelectRequest) error { r.Kept = [][]uint32{{uint32(r.Candidates)}}; return nil }, []error{ErrInvalidArgument}},
		"too many":           {func(r *SelectRequest) error { r.Kept = [][]uint32{make([]uint32, r.Candidates+1)}; return nil }, []error{ErrInvalidArgument}},
		"two lengths":        {func(r *SelectRequest) error { r.Kept = [][]uint32{{1}, {1, 2}}; return nil }, []error{ErrInvalidArgument}},
		"three sets for two": {func(r *SelectRequest) error { r.Kept = [][]uint32{{1}, {2}, {3}}; return nil }, []error{ErrInvalidArgument}},
		"too many merges":    {func(r *SelectRequest) error { r.Merges = make([]Merge, 2); return nil }, []error{ErrInvalidArgument}},
	} {
		answer = wrong.answer
		keys := slices.Clone(h.keys)
		_, err := compress()
		for _, is := range wrong.is {
			if !errors.Is(err, is) {
				t.Errorf("%s: expected %v, found %v", name, is, err)
			}
		}
		if !slices.Equal(keys, h.keys) {
			t.Errorf("%s: something was moved", name)
		}
	}

	answer = func(*SelectRequest) error { panic("thrown") }
	func() {
		defer func() {
			if thrown := recover(); thrown != "thrown" {
				t.Errorf("%v", thrown)
			}
		}()
		compress()
		t.Error("no panic")
	}()
	_, err = NewCompressor(s.options(DTypeF32), func(o *CompressorOptions) { o.Policy = PolicyCallback })
	mustBe(t, err, ErrInvalidArgument)
}

// Memory that is too short for what is said of it is an error, not a fault.
func TestCompressorBounds(t *testing.T) {
	random := newRandom(t)
	s := shape{heads: 4, kvHeads: 2, headDim: 8, rows: 2, room: 60, interval: 32, window: 8, ratio: 4,
		lengths: []int32{52, 60}, prompts: []int32{12, 10}, done: []int32{0, 1}}
	c := newCompressor(t, s.options(DTypeF32))
	h := newHost(random, TokenMajor, true, s.rows, s.room, s.kvHeads, s.headDim, random.Float32)
	queries := s.queries(random)
	good := func() (*KVLayer, *Batch, *Window) {
		window := c.Window(8, TokenMajor, Float32(queries))
		return h.layer(c, 0), h.batch(slices.Clone(s.lengths), s.prompts, s.done), &window
	}
	for name, spoil := range map[string]func(*KVLayer, *Batch, *Window){
		"keys":          func(l *KVLayer, b *Batch, w *Window) { l.Keys = Float32(h.keys[:len(h.keys)-1]) },
		"values":        func(l *KVLayer, b *Batch, w *Window) { l.Values = Float32(h.values[1:]) },
		"no values":     func(l *KVLayer, b *Batch, w *Window) { l.Values = Elements{} },
		"another type":  func(l *KVLayer, b *Batch, w *Window) { l.Keys = Float16(make([]uint16, len(h.keys))) },
		"stride":        func(l *KVLayer, b *Batch, w *Window) { l.KeyStrides[0]++ },
		"negative":      func(l *KVLayer, b *Batch, w *Window) { l.KeyStrides[1] *= -1 },
		"overflow":      func(l *KVLayer, b *Batch, w *Window) { l.KeyStrides[0] = math.MaxInt },
		"overlap":       func(l *KVLayer, b *Batch, w *Window) { l.ValueStrides[1] = 1 },
		"layer":         func(l *KVLayer, b *Batch, w *Window) { l.Layer = -1 },
		"queries":       func(l *KVLayer, b *Batch, w *Window) { w.Queries = Float32(queries[1:]) },
		"query type":    func(l *KVLayer, b *Batch, w *Window) { w.Queries = Int8(make([]int8, len(queries))) },
		"small ring":    func(l *KVLayer, b *Batch, w *Window) { w.RingTokens = 7 },
		"oldest":        func(l *KVLayer, b *Batch, w *Window) { w.Oldest = []int32{0} },
		"oldest, high":  func(l *KVLayer, b *Batch, w *Window) { w.Oldest = []int32{0, 8} },
		"prompts":       func(l *KVLayer, b *Batch, w *Window) { b.PromptLengths = s.prompts[:1] },
		"compressions":  func(l *KVLayer, b *Batch, w *Window) { b.Compressions = nil },
		"rows":          func(l *KVLayer, b *Batch, w *Window) { b.Rows = []int32{0} },
		"row, high":     func(l *KVLayer, b *Batch, w *Window) { b.Rows = []int32{0, 2} },
		"row, negative": func(l *KVLayer, b *Batch, w *Window) { b.Rows = []int32{0, -1} },
		"table":         func(l *KVLayer, b *Batch, w *Window) { b.BlockTable = b.BlockTable[:h.stride+60/h.blockEntries-1] },
		"empty table":   func(l *KVLayer, b *Batch, w *Window) { b.BlockTable = []int32{} },
		"block": func(l *KVLayer, b *Batch, w *Window) {
			b.BlockTable = slices.Clone(b.BlockTable)
			b.BlockTable[0] = int32(b.BlockCount)
		},
		"negative block": func(l *KVLayer, b *Batch, w *Window) {
			b.BlockTable = slices.Clone(b.BlockTable)
			b.BlockTable[0] = -1
		},
		"length":       func(l *KVLayer, b *Batch, w *Window) { b.Lengths[1] = -1 },
		"no entries":   func(l *KVLayer, b *Batch, w *Window) { b.BlockEntries = 0 },
		"many blocks":  func(l *KVLayer, b *Batch, w *Window) { b.BlockCount += 1 + len(h.keys) },
		"many entries": func(l *KVLayer, b *Batch, w *Window) { b.BlockEntries = 1 << 33 },
	} {
		layer, batch, window := good()
		spoil(layer, batch, window)
		if _, err := c.Compress(layer, batch, window); !errors.Is(err, ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	layer, batch, window := good()
	scores, err := c.Score(layer, batch, window)
	must(t, err)
	_, err = c.Select(0, batch, scores[1:])
	mustBe(t, err, ErrInvalidArgument)
	for name, spoil := range map[string]func(*Plan){
		"counts":      func(p *Plan) { p.KeptCounts = p.KeptCounts[:1] },
		"kept":        func(p *Plan) { p.Kept = p.Kept[1:] },
		"no kept":     func(p *Plan) { p.Kept = nil },
		"lengths":     func(p *Plan) { p.NewLengths = nil },
		"new length":  func(p *Plan) { p.NewLengths[0]++ },
		"sets":        func(p *Plan) { p.Sets = 3 },
		"no freed":    func(p *Plan) { p.FreedBlocks = p.FreedBlocks[:0] },
		"merge":       func(p *Plan) { p.Merges = []Merge{{KVHead: 9}} },
		"copy":        func(p *Plan) { p.Copies = []BlockCopy{{}} },
		"negative":    func(p *Plan) { p.Sets = -1 },
		"a candidate": func(p *Plan) { p.Kept[len(p.Kept)-1] = 1 << 20 },
	} {
		plan, err := c.Select(0, batch, scores)
		must(t, err)
		if len(plan.FreedBlocks) == 0 && name == "no freed" {
			continue // blocks so large that none is
		}
		spoil(plan)
		if err := c.Apply(layer, batch, plan); !errors.Is(err, ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}

	// A batch of none.
	plan, err := c.Compress(layer, &Batch{RowCount: h.rows, BlockEntries: h.blockEntries, BlockTable: h.table,
		BlockTableStride: h.stride, BlockCount: h.blocks}, window)
	if err != nil || len(plan.NewLengths) != 0 {
		t.Errorf("%+v %v", plan, err)
	}
	must(t, c.Close())
	must(t, c.Close())
	_, err = c.Compress(layer, batch, window)
	mustBe(t, err, ErrInvalidHandle)
	var none Compressor
	_, err = none.Due(1, 1)
	mustBe(t, err, ErrNullPointer)
	_, err = NewCompressor()
	mustBe(t, err, ErrInvalidArgument)
	_, err = NewCompressor(s.options(DTypeF32), func(o *CompressorOptions) { o.Heads = 3 })
	mustBe(t, err, ErrInvalidArgument)
}

// What is lent stays where it is while the garbage collector runs, and one compressor serves many goroutines.
func TestCompressorUnderPressure(t *testing.T) {
	random := newRandom(t)
	s := newShape(random)
	c := newCompressor(t, s.options(DTypeF32))
	source := newHost(random, TokenMajor, true, s.rows, s.room, s.kvHeads, s.headDim, random.Float32)
	queries := s.queries(random)
	run := func() ([]float32, []float32, *Plan, error) {
		// Fresh memory that nothing else refers to.
		h := *source
		h.keys, h.values, h.table = slices.Clone(source.keys), slices.Clone(source.values), slices.Clone(source.table)
		window := c.Window(int(s.window), TokenMajor, Float32(slices.Clone(queries)))
		batch := h.batch(slices.Clone(s.lengths), slices.Clone(s.prompts), slices.Clone(s.done))
		plan, err := c.Compress(h.layer(c, 0), batch, &window)
		return h.keys, h.values, plan, err
	}
	keys, values, expected, err := run()
	must(t, err)
	done := make(chan struct{})
	var collecting, working sync.WaitGroup
	collecting.Add(1)
	go func() {
		defer collecting.Done()
		for {
			select {
			case <-done:
				return
			default:
				runtime.GC()
			}
		}
	}()
	for range 4 {
		working.Add(1)
		go func() {
			defer working.Done()
			for range 200 {
				k, v, plan, err := run()
				if err != nil || !slices.Equal(k, keys) || !slices.Equal(v, values) || !slices.Equal(plan.Kept, expected.Kept) {
					t.Errorf("other results: %v", err)
					return
				}
			}
		}()
	}
	working.Wait()
	close(done)
	collecting.Wait()
}
