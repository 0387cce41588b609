package reasoningrpc

import (
	"cmp"
	"errors"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// likeRPC keeps the best of each KV head: what PolicyRPC does with sets per KV head and without pooling.
func likeRPC(request *SequenceSelectRequest) error {
	keep := request.Most / len(request.Scores)
	for _, scores := range request.Scores {
		order := make([]uint32, len(scores))
		for i := range order {
			order[i] = uint32(i)
		}
		slices.SortStableFunc(order, func(a, b uint32) int { return cmp.Compare(scores[b], scores[a]) })
		kept := order[:min(keep, len(order))]
		slices.Sort(kept)
		request.Kept = append(request.Kept, kept)
	}
	return nil
}

func selecting(g golden, choose func(*SequenceSelectRequest) error) func(*SequenceOptions) {
	return func(o *SequenceOptions) {
		g.options("rpc")(o)
		o.Policy, o.Select = PolicyCallback, choose
	}
}

// A callback that does what a policy does gives its text: called alone, by forks at once, and by a scheduler.
func TestSequencesSelect(t *testing.T) {
	g := readGolden(t)
	engine := openEngine(t)
	theirs := newSequence(t, engine, g.Prompt, func(o *SequenceOptions) {
		g.options("rpc")(o)
		o.Aggregation, o.Pooling = AggregationKVHead, PoolingNone
	})
	want := generate(t, theirs, 200)
	if slices.Equal(want, g.Results["full"].Tokens[:200]) {
		t.Fatal("nothing was lost by compressing")
	}
	var calls atomic.Int32
	positions := map[int][][]uint32{}
	s := newSequence(t, engine, g.Prompt, selecting(g, func(request *SequenceSelectRequest) error {
		calls.Add(1)
		err := likeRPC(request)
		before, now := positions[request.Layer], [][]uint32{}
		for head, kept := range request.Kept {
			// What stayed before comes first.
			if before != nil && !slices.Equal(before[head], request.Positions[head][:len(before[head])]) {
				t.Errorf("layer %d, KV head %d: kept %v, now shown %v", request.Layer, head, before[head], request.Positions[head])
			}
			var names []uint32
			for _, index := range kept {
				names = append(names, request.Positions[head][index])
			}
			now = append(now, names)
		}
		positions[request.Layer] = now
		return err
	}))
	if found := generate(t, s, 200); !slices.Equal(found, want) {
		t.Errorf("expected %v\nfound    %v", want, found)
	}
	stats, err := s.Stats()
	must(t, err)
	info, err := engine.Info()
	must(t, err)
	if found := int(calls.Load()); stats.Compressions < 3 || found != stats.Compressions*int(info.Layers) {
		t.Errorf("%d calls, %+v", found, stats)
	}

	scheduler := newScheduler(t, engine)
	begun := newSequence(t, engine, g.Prompt, selecting(g, likeRPC))
	head := generate(t, begun, 50)
	var answers []*Answer
	for range 3 {
		fork, err := begun.Fork()
		must(t, err)
		answers = append(answers, submit(t, scheduler, fork, maxTokens(150)))
		// The answer has it.
		must(t, fork.Close())
	}
	must(t, begun.Close())
	for _, answer := range answers {
		rest, err := tokensOf(answer)
		if must(t, err); !slices.Equal(slices.Concat(head, rest), want) {
			t.Errorf("expected %v\nfound    %v", want, slices.Concat(head, rest))
		}
	}
}

// What a callback returns is wrapped; the sequence ends, the engine does not.
func TestSelectFails(t *testing.T) {
	g := readGolden(t)
	engine := openEngine(t)
	scheduler := newScheduler(t, engine)
	unwilling := errors.New("unwilling")
	for name, choose := range map[string]func(*SequenceSelectRequest) error{
		"error":        func(*SequenceSelectRequest) error { return unwilling },
		"panic":        func(*SequenceSelectRequest) error { panic(unwilling) },
		"one set":      func(r *SequenceSelectRequest) error { r.Kept = [][]uint32{{0}}; return nil },
		"longer set":   func(r *SequenceSelectRequest) error { r.Kept = [][]uint32{make([]uint32, 9999), nil}; return nil },
		"out of range": func(r *SequenceSelectRequest) error { r.Kept = [][]uint32{{uint32(len(r.Scores[0]))}, nil}; return nil },
	} {
		fails := func(call func(s *Sequence) error) {
			t.Helper()
			s := newSequence(t, engine, g.Prompt, selecting(g, choose))
			err := call(s)
			if mustBe(t, err, ErrCallback); (name == "error" || name == "panic") && !errors.Is(err, unwilling) {
				t.Errorf("%s: %v", name, err)
			}
			mustBe(t, s.AppendTokens(1), ErrPoisoned)
		}
		fails(func(s *Sequence) error {
			for _, err := range s.Generate(t.Context(), maxTokens(200)) {
				if err != nil {
					return err
				}
			}
			return nil
		})
		fails(func(s *Sequence) error {
			_, err := tokensOf(submit(t, scheduler, s, maxTokens(200)))
			return err
		})
		fails(func(s *Sequence) error {
			for range 200 {
				if err := Step(s); err != nil {
					return err
				}
				must(t, s.Accept(7))
			}
			return nil
		})
	}
	_, err := engine.NewSequence(func(o *SequenceOptions) { o.Policy = PolicyCallback })
	mustBe(t, err, ErrInvalidArgument)
	_, _, err = engine.PeakCacheBytes(10, 100, selecting(g, likeRPC))
	must(t, err)
	generate(t, newSequence(t, engine, g.Prompt, selecting(g, likeRPC)), 200)
}

// The function is let go of with the last sequence that may call it, and when none was made.
func TestSelectIsReleased(t *testing.T) {
	g := readGolden(t)
	engine := openEngine(t)
	var freed atomic.Int32
	watched := func() func(*SequenceSelectRequest) error {
		held := &[1024]byte{}
		runtime.AddCleanup(held, func(int) { freed.Add(1) }, 0)
		return func(request *SequenceSelectRequest) error {
			held[0]++
			return likeRPC(request)
		}
	}
	collected := func(expected int32) {
		t.Helper()
		for range 200 {
			if runtime.GC(); freed.Load() == expected {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("expected %d freed, found %d", expected, freed.Load())
	}
	s, err := engine.NewSequence(selecting(g, watched()))
	must(t, err)
	must(t, s.AppendTokens(g.Prompt...))
	fork, err := s.Fork()
	must(t, err)
	must(t, s.Close())
	s = nil
	runtime.GC()
	generate(t, fork, 200)
	if freed.Load() != 0 {
		t.Fatal("freed while a fork may call it")
	}
	must(t, fork.Close())
	fork = nil
	collected(1)
	_, err = engine.NewSequence(selecting(g, watched()), func(o *SequenceOptions) { o.Window = o.Interval })
	mustBe(t, err, ErrInvalidArgument)
	collected(2)
}
