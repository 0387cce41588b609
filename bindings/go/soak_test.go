package reasoningrpc

import (
	"context"
	"errors"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	soakGoroutines = 8
	soakEach       = 4
	soakSequences  = soakGoroutines * soakEach
	soakTokens     = 120
)

// soakPrompt and soakOptions are those of sequence i: each has its own.
func soakPrompt(g golden, i int) []uint32 {
	prompt := slices.Clone(g.Prompt)
	for at := range prompt {
		prompt[at] = (prompt[at] + uint32(i)) % 96
	}
	return prompt
}

func soakOptions(i int) func(*SequenceOptions) {
	return func(o *SequenceOptions) {
		if o.Policy = PolicyRPC; i%4 == 3 {
			o.Policy = PolicyNone
		}
		o.Interval, o.Window, o.Ratio = []uint32{48, 32}[i%2], 8, []uint32{8, 4}[min(i%3, 1)]
		o.Aggregation = []Aggregation{AggregationKVHead, AggregationLayer}[min(i%5, 1)]
		o.Temperature, o.Seed = []float32{0, 0.9}[min(i%4, 1)], uint64(i)
	}
}

// residentBytes of this process, with nothing of Go's that could be given back.
func residentBytes(t *testing.T) int {
	runtime.GC()
	debug.FreeOSMemory()
	status, err := os.ReadFile("/proc/self/status")
	must(t, err)
	for line := range strings.Lines(string(status)) {
		if rest, found := strings.CutPrefix(line, "VmRSS:"); found {
			kilobytes, err := strconv.Atoi(strings.Fields(rest)[0])
			must(t, err)
			return kilobytes << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// 32 sequences of one engine from 8 goroutines, for a minute (RRPC_SOAK_SECONDS): the same tokens as alone,
// whatever runs beside them and however they are driven, cancelled within one token, and nothing left behind.
func TestSoak(t *testing.T) {
	seconds := 60
	if given := os.Getenv("RRPC_SOAK_SECONDS"); given != "" {
		var err error
		seconds, err = strconv.Atoi(given)
		must(t, err)
	}
	random := newRandom(t)
	g := readGolden(t)
	engine := openEngine(t, func(o *EngineOptions) { o.BudgetBytes = 64 << 20 })
	alone := make([][]uint32, soakSequences)
	for i := range alone {
		s := newSequence(t, engine, soakPrompt(g, i), soakOptions(i))
		alone[i] = generate(t, s, soakTokens)
		must(t, s.Close())
	}
	var rounds, cancelled atomic.Int64
	work := func(end time.Time) {
		var group sync.WaitGroup
		for goroutine := range soakGoroutines {
			random := rand.New(rand.NewPCG(random.Uint64(), 0))
			group.Add(1)
			go func() {
				defer group.Done()
				for time.Now().Before(end) && !t.Failed() {
					soakRound(t, engine, g, alone, goroutine*soakEach, random, &cancelled)
					rounds.Add(1)
				}
			}()
		}
		group.Wait()
	}
	// What allocators and stacks take for good, they take at first.
	begin := time.Now()
	work(begin.Add(time.Duration(seconds) * time.Second / 3))
	warm, warmRounds := residentBytes(t), rounds.Load()
	work(begin.Add(time.Duration(seconds) * time.Second))
	after := residentBytes(t)
	made := rounds.Load() - warmRounds
	t.Logf("%d rounds of %d answers, %d cancelled; %d MiB resident, then %d", rounds.Load(), soakEach, cancelled.Load(), warm>>20, after>>20)

	info, err := engine.Info()
	must(t, err)
	if info.BudgetUsedBytes != 0 {
		t.Errorf("%d bytes of the budget are still in use", info.BudgetUsedBytes)
	}
	// A sequence that stayed would be more than 1 KiB. The race detector keeps some of every iter.Pull.
	if grown := after - warm; !underRace && grown > max(8<<20, int(made)*soakEach*1024) {
		t.Errorf("%d bytes more are resident after %d rounds", grown, made)
	}
	metrics, err := engine.Metrics()
	if must(t, err); metrics.SequencesAlive != 0 || metrics.BudgetPromisedBytes != 0 || metrics.FailedSteps != 0 {
		t.Errorf("%+v", metrics)
	}
}

// soakRound runs four answers by turns in one goroutine.
func soakRound(t *testing.T, engine *Engine, g golden, alone [][]uint32, first int, random *rand.Rand, cancelled *atomic.Int64) {
	type turn struct {
		s      *Sequence
		next   func() (Event, error)
		cancel context.CancelFunc
		at     int // tokens until it is cancelled
		tokens []uint32
		done   bool
	}
	turns := make([]*turn, soakEach)
	for i := range turns {
		s, err := engine.NewSequence(soakOptions(first + i))
		if err != nil {
			t.Error(err)
			return
		}
		defer s.Close()
		if err := s.AppendTokens(soakPrompt(g, first+i)...); err != nil {
			t.Error(err)
			return
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		turns[i] = &turn{s: s, cancel: cancel, at: random.IntN(3 * soakTokens)}
		if random.IntN(20) == 0 {
			next, stop := iter.Pull2(s.Generate(ctx, maxTokens(soakTokens)))
			defer stop()
			turns[i].next = func() (Event, error) {
				event, err, more := next()
				if !more {
					err = io.EOF
				}
				return event, err
			}
		} else {
			answer := answer{ctx: ctx, sequence: s, options: []func(*GenerateOptions){maxTokens(soakTokens)}}
			defer answer.stop()
			turns[i].next = answer.next
		}
	}
	for left := soakEach; left > 0; {
		i := random.IntN(soakEach)
		turn := turns[i]
		if turn.done {
			continue
		}
		event, err := turn.next()
		switch {
		case err == io.EOF:
			t.Error("an answer without an end")
			return
		case event.Kind == EventToken:
			turn.tokens = append(turn.tokens, event.Token)
			if len(turn.tokens) == turn.at {
				turn.cancel()
			}
			// A fork of an answer under way is of no consequence for it.
			if random.IntN(100) == 0 {
				fork, err := turn.s.Fork()
				if err != nil {
					t.Error(err)
					return
				}
				err = errors.Join(fork.Accept(1), Step(fork), fork.Close())
				if err != nil {
					t.Error(err)
				}
			}
		case err != nil && (!errors.Is(err, context.Canceled) || len(turn.tokens) != turn.at):
			t.Errorf("%v after %d tokens, cancelled at %d", err, len(turn.tokens), turn.at)
			return
		case err != nil || event.Kind == EventEnd:
			turn.done = true
			left--
			if err != nil {
				cancelled.Add(1)
			} else if len(turn.tokens) != soakTokens {
				t.Errorf("an answer of %d tokens", len(turn.tokens))
			}
			given := soakPrompt(g, first+i)
			all, err := turn.s.Tokens()
			if err != nil || !slices.Equal(all, append(given, alone[first+i][:len(turn.tokens)]...)) {
				t.Errorf("sequence %d: other tokens than alone, %v", first+i, err)
				return
			}
		}
	}
}
