package reasoningrpc

import (
	"math"
	"slices"
	"testing"
)

// generate is what an answer adds.
func generate(t testing.TB, s *Sequence, tokens uint64) []uint32 {
	t.Helper()
	var found []uint32
	for event, err := range s.Generate(t.Context(), maxTokens(tokens)) {
		must(t, err)
		if event.Kind == EventToken {
			found = append(found, event.Token)
		}
	}
	return found
}

// drawn are the options of a golden answer with sampling in place of greed.
func (g golden) drawn(seed uint64) func(*SequenceOptions) {
	return func(o *SequenceOptions) {
		g.options("rpc")(o)
		o.Temperature, o.Seed = 1, seed
	}
}

// A fork in the middle of a window goes on as the original does, and another seed goes another way.
func TestFork(t *testing.T) {
	random := newRandom(t)
	expected := readGolden(t)
	want := expected.Results["rpc"].Tokens
	engine := openEngine(t)
	s := newSequence(t, engine, expected.Prompt, expected.options("rpc"))
	at := 1 + random.IntN(150)
	generate(t, s, uint64(at))
	fork, err := s.Fork()
	must(t, err)
	defer fork.Close()
	mustTokens(t, fork, expected.Prompt, want[:at])
	first, err := s.Logits()
	must(t, err)
	second, err := fork.Logits()
	if must(t, err); !slices.Equal(first, second) {
		t.Error("a fork has other logits")
	}
	// The log of the whole, kept positions included.
	generate(t, fork, 120)
	generate(t, s, 120)
	mustTokens(t, s, expected.Prompt, want[:at+120])
	mustTokens(t, fork, expected.Prompt, want[:at+120])
	log, err := s.Compressions()
	must(t, err)
	forked, err := fork.Compressions()
	must(t, err)
	if !slices.EqualFunc(log, forked, func(a, b Compression) bool {
		return a.AtToken == b.AtToken && a.LenAfter == b.LenAfter && slices.EqualFunc(a.Kept, b.Kept, slices.Equal)
	}) {
		t.Error("a fork has another log")
	}
	must(t, s.Close())
	_, err = s.Fork()
	mustBe(t, err, ErrInvalidHandle)
	if tokens := generate(t, fork, 10); !slices.Equal(tokens, want[at+120:at+130]) {
		t.Error("a fork needs its original")
	}

	// Drawn tokens: alike until the seed differs, and the seed decides.
	a := newSequence(t, engine, expected.Prompt, expected.drawn(1))
	generate(t, a, 20)
	b, err := a.Fork()
	must(t, err)
	defer b.Close()
	c, err := a.Fork()
	must(t, err)
	defer c.Close()
	must(t, b.SetSeed(77))
	must(t, c.SetSeed(77))
	x, y, z := generate(t, a, 100), generate(t, b, 100), generate(t, c, 100)
	if slices.Equal(x, y) || !slices.Equal(y, z) {
		t.Errorf("%v\n%v\n%v", x, y, z)
	}
}

func TestRewind(t *testing.T) {
	random := newRandom(t)
	expected := readGolden(t)
	engine := openEngine(t)
	s := newSequence(t, engine, expected.Prompt, expected.drawn(5))
	// 32 and 8: compressions at 40 and 72.
	whole := generate(t, s, 100)
	at := len(expected.Prompt) + int(expected.P*2+expected.R) + 2 + random.IntN(20)
	must(t, s.Rewind(at))
	mustTokens(t, s, expected.Prompt, whole[:at-len(expected.Prompt)])
	if pending, err := s.Pending(); err != nil || pending != 1 {
		t.Error(pending, err)
	}
	again := generate(t, s, uint64(len(expected.Prompt)+100-at))
	if !slices.Equal(again, whole[at-len(expected.Prompt):]) {
		t.Errorf("another text follows:\n%v\n%v", whole, again)
	}
	for _, tokens := range []int{-1, 0, 13, 200, math.MaxInt} {
		mustBe(t, s.Rewind(tokens), ErrInvalidArgument)
	}
	mustTokens(t, s, expected.Prompt, whole)
}

// The cache, entry for entry: positions are those of the log, and what a fork shares is the same.
func TestCacheEntries(t *testing.T) {
	expected := readGolden(t)
	var exact CacheEntries
	for _, dtype := range []DType{DTypeF32, DTypeF16, DTypeBF16, DTypeI8} {
		engine := openEngine(t, func(o *EngineOptions) { o.CacheDType = dtype })
		info, err := engine.Info()
		must(t, err)
		s := newSequence(t, engine, expected.Prompt, expected.options("rpc"))
		empty, err := s.CacheEntries(0, 0)
		if must(t, err); len(empty.Positions) != 0 || empty.HeadDim != info.HeadDim {
			t.Errorf("%+v", empty)
		}
		must(t, Step(s))
		given, err := s.CacheEntries(0, 1)
		must(t, err)
		if dtype == DTypeF32 {
			exact = given
		}
		nearRows(t, dtype, exact.Keys, given.Keys, info.HeadDim)
		nearRows(t, dtype, exact.Values, given.Values, info.HeadDim)
		written := len(expected.Prompt) + len(generate(t, s, 60)) - 1 // the last one is not run
		fork, err := s.Fork()
		must(t, err)
		log, err := s.Compressions()
		must(t, err)
		if len(log) != info.Layers {
			t.Fatalf("%d entries in the log", len(log))
		}
		for layer := range info.Layers {
			var positions []uint32
			for position := range expected.Prompt {
				positions = append(positions, uint32(position))
			}
			positions = append(positions, log[layer].Kept[0]...)
			for position := len(expected.Prompt) + int(expected.P); position < written; position++ {
				positions = append(positions, uint32(position))
			}
			for kvHead := range info.KVHeads {
				found, err := s.CacheEntries(layer, kvHead)
				must(t, err)
				if !slices.Equal(found.Positions, positions) || found.DType != dtype {
					t.Fatalf("expected %v, found %+v", positions, found)
				}
				if len(found.Keys) != len(positions)*info.HeadDim || len(found.Values) != len(found.Keys) {
					t.Fatalf("%d keys, %d values", len(found.Keys), len(found.Values))
				}
				forked, err := fork.CacheEntries(layer, kvHead)
				must(t, err)
				if !slices.Equal(found.Keys, forked.Keys) || !slices.Equal(found.Values, forked.Values) {
					t.Error("a fork has another cache")
				}
			}
		}
		must(t, fork.Close())
		for _, wrong := range [][2]int{{info.Layers, 0}, {0, info.KVHeads}, {-1, 0}, {0, -1}, {1 << 32, 0}} {
			_, err := s.CacheEntries(wrong[0], wrong[1])
			mustBe(t, err, ErrInvalidArgument)
		}
	}
}

// Keys and values of the first layer are those of float32 but for half a step of their type.
func nearRows(t *testing.T, dtype DType, exact, found []float32, headDim int) {
	t.Helper()
	if len(found) != len(exact) || len(found) == 0 {
		t.Fatalf("%d and %d elements", len(exact), len(found))
	}
	for row := 0; row < len(exact); row += headDim {
		largest := 0.0
		for _, x := range exact[row : row+headDim] {
			largest = max(largest, math.Abs(float64(x)))
		}
		for i, x := range exact[row : row+headDim] {
			size := math.Abs(float64(x))
			halfStep := map[DType]float64{
				DTypeF16: size/(1<<11) + 0x1p-25, DTypeBF16: size / (1 << 8), DTypeI8: largest / 254 * 1.00001,
			}[dtype]
			if y := found[row+i]; math.Abs(float64(y)-float64(x)) > halfStep {
				t.Fatalf("%v: expected %v, found %v", dtype, x, y)
			}
		}
	}
}

// Every binary16, against its definition.
func TestHalf(t *testing.T) {
	for bits := range 1 << 16 {
		sign, exponent, fraction := 1-2*float64(bits>>15), bits>>10&0x1f, float64(bits&0x3ff)
		expected := sign * math.Ldexp(1+fraction/1024, exponent-15)
		switch {
		case exponent == 0:
			expected = sign * math.Ldexp(fraction/1024, -14)
		case exponent == 0x1f && fraction == 0:
			expected = math.Inf(int(sign))
		case exponent == 0x1f:
			expected = math.NaN()
		}
		found := float64(half(uint16(bits)))
		if found != expected && !(math.IsNaN(found) && math.IsNaN(expected)) {
			t.Fatalf("%04x: expected %v, found %v", bits, expected, found)
		}
	}
}
