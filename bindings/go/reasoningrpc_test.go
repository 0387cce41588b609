package reasoningrpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// folder is where a file of the repository is, or of the folder that the environment variable names.
func folder(variable, standard string, rest ...string) string {
	root := os.Getenv(variable)
	if root == "" {
		root = filepath.Join("..", "..", standard)
	}
	return filepath.Join(append([]string{root}, rest...)...)
}

func goldenModel() string {
	return folder("RRPC_MODELS", "models", "golden", "qwen2_p32-cached")
}

type golden struct {
	Prompt       []uint32
	MaxNewTokens uint64 `json:"max_new_tokens"`
	P, R, C      uint32
	KernelSize   uint32 `json:"kernel_size"`
	Results      map[string]struct {
		Tokens       []uint32
		Compressions []struct {
			Layer  int
			Before int `json:"cache_len_before"`
			After  int `json:"cache_len_after"`
			Kept   [][]uint32
		}
	}
}

func readGolden(t *testing.T) golden {
	t.Helper()
	var expected golden
	path := folder("RRPC_GOLDEN", "tests/golden", "generation", "qwen2_p32", "expected.json")
	data, err := os.ReadFile(path)
	must(t, err)
	must(t, json.Unmarshal(data, &expected))
	return expected
}

func (g golden) options(mode string) func(*SequenceOptions) {
	return func(o *SequenceOptions) {
		if o.Policy = PolicyRPC; mode == "full" {
			o.Policy = PolicyNone
		}
		o.Interval, o.Window, o.Ratio, o.Kernel = g.P, g.R, g.C, g.KernelSize
		o.Aggregation, o.Pooling = AggregationLayer, PoolingAverage
		o.Temperature, o.RepetitionPenalty = 0, 1
		o.RecordKept = true
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustBe(t testing.TB, err error, expected error) {
	t.Helper()
	if !errors.Is(err, expected) {
		t.Fatalf("expected %v, found %v", expected, err)
	}
}

func f32(o *EngineOptions) {
	o.CacheDType, o.BlockEntries = DTypeF32, 16
}

func openEngine(t testing.TB, options ...func(*EngineOptions)) *Engine {
	t.Helper()
	engine, err := Open(goldenModel(), append([]func(*EngineOptions){f32}, options...)...)
	must(t, err)
	t.Cleanup(func() { engine.Close() })
	return engine
}

func newSequence(t testing.TB, engine *Engine, prompt []uint32, options ...func(*SequenceOptions)) *Sequence {
	t.Helper()
	sequence, err := engine.NewSequence(options...)
	must(t, err)
	t.Cleanup(func() { sequence.Close() })
	must(t, sequence.AppendTokens(prompt...))
	return sequence
}

func greedy(o *SequenceOptions) {
	o.Temperature, o.RepetitionPenalty = 0, 1
}

func maxTokens(n uint64) func(*GenerateOptions) {
	return func(o *GenerateOptions) { o.MaxTokens = n }
}

func mustTokens(t testing.TB, s *Sequence, expected ...[]uint32) {
	t.Helper()
	found, err := s.Tokens()
	must(t, err)
	if want := slices.Concat(expected...); !slices.Equal(found, want) {
		t.Fatalf("expected %d tokens %v\nfound %d tokens %v", len(want), want, len(found), found)
	}
}

func TestGoldenAnswers(t *testing.T) {
	expected := readGolden(t)
	engine := openEngine(t)
	info, err := engine.Info()
	must(t, err)
	for _, mode := range []string{"full", "rpc"} {
		t.Run(mode, func(t *testing.T) {
			want := expected.Results[mode]
			s := newSequence(t, engine, expected.Prompt, expected.options(mode))
			var tokens []uint32
			var kinds []EventKind
			var last Event
			for event, err := range s.Generate(t.Context(), maxTokens(expected.MaxNewTokens)) {
				must(t, err)
				if last = event; event.Kind == EventToken {
					tokens = append(tokens, event.Token)
				}
				if event.Kind == EventPrefill && (event.PrefillDone != 12 || event.PrefillTotal != 12) {
					t.Errorf("prefill: %+v", event)
				}
				kinds = append(kinds, event.Kind)
				if event.Kind == EventEnd {
					mustTokens(t, s, expected.Prompt, tokens) // it is free again
				}
			}
			if !slices.Equal(tokens, want.Tokens) {
				t.Fatalf("expected %v\nfound    %v", want.Tokens, tokens)
			}
			if last.Kind != EventEnd || last.StopReason != StopLength || kinds[0] != EventPrefill || len(kinds) != 302 {
				t.Errorf("%d events, the last one %+v", len(kinds), last)
			}
			log, err := s.Compressions()
			must(t, err)
			if len(log) != len(want.Compressions) {
				t.Fatalf("expected %d compressions, found %d", len(want.Compressions), len(log))
			}
			// Golden sets count candidates: what was kept before, then what was generated since.
			candidates := map[int][]uint32{}
			for i, one := range want.Compressions {
				from := candidates[one.Layer]
				first := len(expected.Prompt) + i/info.Layers*int(expected.P)
				for position := range int(expected.P) {
					from = append(from, uint32(first+position))
				}
				var kept []uint32
				for _, index := range one.Kept[0] {
					kept = append(kept, from[index])
				}
				candidates[one.Layer] = kept
				if log[i].Layer != one.Layer || log[i].LenBefore != one.Before || log[i].LenAfter != one.After ||
					!slices.EqualFunc(log[i].Kept, [][]uint32{kept}, slices.Equal) {
					t.Errorf("compression %d: expected %+v with %v, found %+v", i, one, kept, log[i])
				}
			}
			stats, err := s.Stats()
			must(t, err)
			if stats.PrefillTokens != 12 || stats.DecodeTokens != 299 || stats.DecodeTime <= 0 ||
				(stats.Compressions > 0) != (mode == "rpc") {
				t.Errorf("%+v", stats)
			}
			_, bytes, err := engine.PeakCacheBytes(12, expected.MaxNewTokens, expected.options(mode))
			must(t, err)
			if bytes != stats.CachePeakBytes {
				t.Errorf("%d bytes of cache were foretold, %d taken", bytes, stats.CachePeakBytes)
			}
		})
	}
}

func TestBudgets(t *testing.T) {
	engine := openEngine(t)
	const prompt, most = 100, 3501
	peak := func(change func(*SequenceOptions)) (entries, bytes uint64) {
		t.Helper()
		entries, bytes, err := engine.PeakCacheBytes(prompt, most, func(o *SequenceOptions) {
			o.Policy, o.Interval, o.Window = PolicyRPC, 512, 32
			change(o)
		})
		must(t, err)
		return entries, bytes
	}
	if entries, _ := peak(func(o *SequenceOptions) { o.BudgetEntries = 300 }); entries != prompt+300+32+512 {
		t.Errorf("%d entries", entries)
	}
	_, given := peak(func(o *SequenceOptions) { o.BudgetEntries = 300 })
	if _, bytes := peak(func(o *SequenceOptions) { o.BudgetBytes = given }); bytes < given || bytes > 2*given {
		t.Errorf("%d bytes with the prompt, of at most %d without", bytes, given)
	}
	_, err := engine.NewSequence(func(o *SequenceOptions) { o.BudgetEntries, o.BudgetBytes = 1, 1 })
	if !errors.Is(err, ErrInvalidArgument) {
		t.Error(err)
	}
}

func TestStepByStep(t *testing.T) {
	expected := readGolden(t)
	engine := openEngine(t)
	want := expected.Results["rpc"].Tokens[:100]
	a := newSequence(t, engine, expected.Prompt, expected.options("rpc"))
	b := newSequence(t, engine, expected.Prompt, expected.options("rpc"))
	must(t, a.Reserve(100))
	logits, err := a.Logits()
	if must(t, err); logits != nil {
		t.Error("logits of what was not run")
	}
	info, err := engine.Info()
	must(t, err)
	for _, expected := range want {
		must(t, Step(a, b))
		logits, err := a.Logits()
		must(t, err)
		if len(logits) != info.Vocab {
			t.Fatalf("%d logits", len(logits))
		}
		if highest := uint32(slices.Index(logits, slices.Max(logits))); highest != expected {
			t.Fatalf("expected %d, found %d", expected, highest)
		}
		sampled, err := a.Sample()
		must(t, err)
		must(t, b.Accept(sampled))
		if pending, err := b.Pending(); err != nil || pending != 1 {
			t.Fatal(pending, err)
		}
	}
	mustTokens(t, a, expected.Prompt, want)
	mustTokens(t, b, expected.Prompt, want)
}

func TestCancellation(t *testing.T) {
	expected := readGolden(t)
	want := expected.Results["rpc"].Tokens
	engine := openEngine(t)
	s := newSequence(t, engine, expected.Prompt, expected.options("rpc"))
	var seen []uint32
	// until makes an answer until there are n tokens, and returns what error it ends with.
	until := func(ctx context.Context, n int, then func() bool) (found error) {
		for event, err := range s.Generate(ctx) {
			if err != nil {
				found = err
				continue
			}
			if event.Kind == EventToken {
				seen = append(seen, event.Token)
			}
			if len(seen) == n && !then() {
				break
			}
		}
		return found
	}

	ctx, cancel := context.WithCancel(t.Context())
	mustBe(t, until(ctx, 7, func() bool { cancel(); return true }), context.Canceled)
	mustTokens(t, s, expected.Prompt, want[:7])
	mustBe(t, until(ctx, 8, func() bool { return true }), context.Canceled)
	mustTokens(t, s, expected.Prompt, want[:7])

	must(t, until(t.Context(), 50, func() bool { return false }))
	mustTokens(t, s, expected.Prompt, want[:50])

	func() {
		defer func() {
			if recover() != "left" {
				t.Error("no panic")
			}
		}()
		until(t.Context(), 60, func() bool { panic("left") })
	}()
	mustTokens(t, s, expected.Prompt, want[:60])

	var group sync.WaitGroup
	group.Add(1)
	go func() {
		defer group.Done()
		until(t.Context(), 70, func() bool { runtime.Goexit(); return true })
	}()
	group.Wait()
	mustTokens(t, s, expected.Prompt, want[:70])

	// A deadline that passes in the middle of things.
	timed, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	mustBe(t, until(timed, -1, nil), context.DeadlineExceeded)
	mustTokens(t, s, expected.Prompt, seen)
	if compared := min(len(seen), len(want)); !slices.Equal(seen[:compared], want[:compared]) {
		t.Error("other tokens after cancellations")
	}
}

func TestErrors(t *testing.T) {
	_, err := Open("no such folder")
	mustBe(t, err, ErrModel)
	var detailed *Error
	if !errors.As(err, &detailed) || detailed.Code != ErrModel || !strings.Contains(err.Error(), "no such folder") {
		t.Errorf("%#v", err)
	}
	if errors.Is(err, ErrBudget) {
		t.Error("one code is another")
	}
	_, err = Open("a\x00b")
	mustBe(t, err, ErrInvalidArgument)
	_, err = Open(goldenModel(), func(o *EngineOptions) { o.Threads = 0 })
	mustBe(t, err, ErrInvalidArgument)

	engine := openEngine(t, func(o *EngineOptions) { o.BudgetBytes = 100_000 })
	_, err = engine.NewSequence(func(o *SequenceOptions) { o.Window = o.Interval })
	mustBe(t, err, ErrInvalidArgument)
	_, err = engine.Tokenize("text", TokenizePlain)
	mustBe(t, err, ErrText)
	_, _, err = engine.PeakCacheBytes(1, 1<<20)
	mustBe(t, err, ErrContext)

	s := newSequence(t, engine, nil)
	for _, err := range s.Generate(t.Context()) {
		mustBe(t, err, ErrInvalidArgument) // it is empty
	}
	mustBe(t, s.AppendTokens(96), ErrInvalidArgument)
	mustBe(t, s.AppendText("text"), ErrText)
	mustBe(t, s.AppendChat(Message{"user", "text"}), ErrText)
	mustBe(t, s.AppendTokens(make([]uint32, 5000)...), ErrContext)
	mustBe(t, Step(), ErrInvalidArgument)
	_, err = s.Sample()
	mustBe(t, err, ErrInvalidArgument)
	must(t, s.AppendTokens(1, 2, 3))
	mustBe(t, Step(s, s), ErrInvalidArgument)
	mustBe(t, s.Reserve(2000), ErrBudget)
	events := 0
	for _, err := range s.Generate(t.Context(), maxTokens(2000)) {
		mustBe(t, err, ErrBudget)
		events++
	}
	if events != 1 {
		t.Errorf("%d events", events)
	}
	for event, err := range s.Generate(t.Context(), maxTokens(3)) {
		must(t, err)
		if event.Kind != EventEnd {
			mustBe(t, s.AppendTokens(1), ErrBusy)
			mustBe(t, Step(s), ErrBusy)
			_, err = s.Logits() // it only reads
			must(t, err)
			for _, err := range s.Generate(t.Context()) {
				mustBe(t, err, ErrBusy)
			}
		}
	}
	var none Sequence
	mustBe(t, none.AppendTokens(1), ErrNullPointer)
	must(t, none.Close())
}

func TestClose(t *testing.T) {
	engine := openEngine(t)
	s := newSequence(t, engine, []uint32{1, 2, 3}, greedy)
	must(t, engine.Close())
	must(t, engine.Close())
	_, err := engine.Info()
	mustBe(t, err, ErrInvalidHandle)
	_, err = engine.NewSequence()
	mustBe(t, err, ErrInvalidHandle)
	_, err = engine.StopTokens()
	mustBe(t, err, ErrInvalidHandle)

	// The sequence stays usable until it is closed, within an answer too.
	tokens := 0
	var end error
	for event, err := range s.Generate(t.Context(), maxTokens(5)) {
		if end = err; event.Kind == EventToken {
			if tokens++; tokens == 3 {
				must(t, s.Close())
			}
		}
	}
	if tokens != 3 {
		t.Errorf("%d tokens", tokens)
	}
	mustBe(t, end, ErrInvalidHandle)
	must(t, s.Close())
	_, err = s.Tokens()
	mustBe(t, err, ErrInvalidHandle)
	_, err = s.Logits()
	mustBe(t, err, ErrInvalidHandle)
	mustBe(t, Step(s), ErrInvalidHandle)
	for _, err := range s.Generate(t.Context()) {
		mustBe(t, err, ErrInvalidHandle)
	}
}

// While something that the library lends is copied, nothing takes it away.
func TestLentIsCopiedWhole(t *testing.T) {
	engine := openEngine(t)
	used := func() uint64 {
		info, err := engine.Info()
		must(t, err)
		return info.BudgetUsedBytes
	}
	s := newSequence(t, engine, []uint32{1, 2, 3}, greedy)
	must(t, Step(s))
	err := s.borrow(func() error { return nil }, func() {
		for name, call := range map[string]func() error{
			"Step":   func() error { return Step(s) },
			"Sample": func() error { _, err := s.Sample(); return err },
			"Logits": func() error { _, err := s.Logits(); return err },
			"Tokens": func() error { _, err := s.Tokens(); return err },
		} {
			if err := call(); !errors.Is(err, ErrBusy) {
				t.Errorf("%s: %v", name, err)
			}
		}
		must(t, s.Close())
		if _, err := s.Tokens(); !errors.Is(err, ErrInvalidHandle) {
			t.Error(err)
		}
		if used() == 0 {
			t.Error("it was freed too early")
		}
	})
	must(t, err)
	if used() != 0 {
		t.Error("it was not freed")
	}
}

// What was forgotten is closed by the garbage collector.
func TestForgotten(t *testing.T) {
	engine := openEngine(t)
	used := func() uint64 {
		info, err := engine.Info()
		must(t, err)
		return info.BudgetUsedBytes
	}
	forget := func() {
		for range 10 {
			s, err := engine.NewSequence()
			must(t, err)
			must(t, s.AppendTokens(1, 2, 3))
			must(t, Step(s))
		}
		s, err := engine.NewSequence()
		must(t, err)
		must(t, s.AppendTokens(1, 2, 3))
		r := s.Reader(t.Context(), maxTokens(5))
		_, err = r.answer.next() // half read
		must(t, err)
	}
	forget()
	if used() == 0 {
		t.Fatal("nothing is in use")
	}
	eventually(t, func() bool { runtime.GC(); return used() == 0 })
}

func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	for range 200 {
		if condition() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("it did not come to pass in two seconds")
}

func TestConcurrentSequences(t *testing.T) {
	expected := readGolden(t)
	engine := openEngine(t, func(o *EngineOptions) { o.BudgetBytes = 64 << 20 })
	var group sync.WaitGroup
	for i := range 8 {
		mode := []string{"full", "rpc"}[i%2]
		s := newSequence(t, engine, expected.Prompt, expected.options(mode))
		group.Add(1)
		go func() {
			defer group.Done()
			var tokens []uint32
			for event, err := range s.Generate(t.Context(), maxTokens(150)) {
				if err != nil {
					t.Error(err)
				}
				if event.Kind == EventToken {
					tokens = append(tokens, event.Token)
				}
			}
			if !slices.Equal(tokens, expected.Results[mode].Tokens[:150]) {
				t.Errorf("goroutine %d has other tokens than alone: %v", i, tokens)
			}
		}()
	}
	group.Wait()
}

// Calls on one sequence that come together do not race: they are made or refused.
func TestSharedSequence(t *testing.T) {
	engine := openEngine(t)
	s := newSequence(t, engine, []uint32{1, 2, 3}, greedy)
	must(t, Step(s))
	calls := []func() error{
		func() error { _, err := s.Logits(); return err },
		func() error { _, err := s.Sample(); return err },
		func() error { return Step(s) },
		func() error { _, err := s.Tokens(); return err },
		func() error { _, err := s.Compressions(); return err },
	}
	var group sync.WaitGroup
	for _, call := range calls {
		group.Add(1)
		go func() {
			defer group.Done()
			for range 300 {
				err := call()
				if err != nil && !errors.Is(err, ErrBusy) && !errors.Is(err, ErrInvalidArgument) && !errors.Is(err, ErrInvalidHandle) {
					t.Error(err)
				}
			}
		}()
	}
	time.Sleep(5 * time.Millisecond)
	s.Close()
	group.Wait()
}

// Whoever looks at a sequence while its answer is written does not disturb it.
func TestReadersBesideAnAnswer(t *testing.T) {
	expected := readGolden(t)
	engine := openEngine(t)
	s := newSequence(t, engine, expected.Prompt, expected.options("rpc"))
	done := make(chan struct{})
	var group sync.WaitGroup
	var seen [4]int
	begin := func(i int, read func() error) {
		group.Add(1)
		go func() {
			defer group.Done()
			for {
				select {
				case <-done:
					return
				default:
				}
				switch err := read(); {
				case err == nil:
					seen[i]++
				case !errors.Is(err, ErrBusy):
					t.Error(err)
				}
			}
		}()
	}
	var tokens []uint32
	for event, err := range s.Generate(t.Context(), maxTokens(200)) {
		must(t, err)
		switch event.Kind {
		case EventPrefill:
			begin(0, func() error { _, err := s.Tokens(); return err })
			begin(1, func() error { _, err := s.Logits(); return err })
			begin(2, func() error { _, err := s.Stats(); return err })
			begin(3, func() error { return s.Accept(1) })
		case EventToken:
			if tokens = append(tokens, event.Token); len(tokens) == 200 {
				close(done)
				group.Wait()
			}
		}
	}
	if !slices.Equal(tokens, expected.Results["rpc"].Tokens[:200]) {
		t.Error("other tokens")
	}
	if seen[3] != 0 {
		t.Errorf("%d calls changed it", seen[3])
	}
}

func TestNames(t *testing.T) {
	if Version() == "" {
		t.Error("no version")
	}
	for code := ErrInvalidArgument; code <= ErrCallback; code++ {
		if codeNames[code] == "" {
			t.Errorf("code %d has no name", code)
		}
	}
	if text := fmt.Sprint(Code(99), StopEOS, StopReason(99)); text != "reasoning-rpc: error 99 end of text unknown" {
		t.Error(text)
	}
}
