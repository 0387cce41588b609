package reasoningrpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func newScheduler(t testing.TB, engine *Engine, options ...func(*SchedulerOptions)) *Scheduler {
	t.Helper()
	scheduler, err := engine.NewScheduler(options...)
	must(t, err)
	t.Cleanup(func() { scheduler.Close() })
	return scheduler
}

func submit(t testing.TB, scheduler *Scheduler, s *Sequence, options ...func(*GenerateOptions)) *Answer {
	t.Helper()
	answer, err := scheduler.Submit(context.Background(), s, options...)
	must(t, err)
	t.Cleanup(func() { answer.Close() })
	return answer
}

// tokensOf reads an answer to its end.
func tokensOf(answer *Answer) (tokens []uint32, err error) {
	for event, err := range answer.Events() {
		if err != nil {
			return tokens, err
		}
		if event.Kind == EventToken {
			tokens = append(tokens, event.Token)
		}
	}
	return tokens, nil
}

// until waits for a state that must come.
func until(t testing.TB, scheduler *Scheduler, state func(SchedulerMetrics) bool) {
	t.Helper()
	for range 60000 {
		metrics, err := scheduler.Metrics()
		if must(t, err); state(metrics) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("it did not come to that")
}

// occupied is a sequence that was promised all of an engine's budget, until it is closed.
func occupied(t testing.TB, engine *Engine, prompt []uint32) *Sequence {
	t.Helper()
	s := newSequence(t, engine, prompt, greedy, func(o *SequenceOptions) { o.Policy = PolicyNone })
	must(t, s.Reserve(uint(4096-len(prompt))))
	return s
}

func TestScheduledAnswersAreTheGolden(t *testing.T) {
	g := readGolden(t)
	engine := openEngine(t)
	scheduler := newScheduler(t, engine, func(o *SchedulerOptions) { o.QueueEvents = 3 })
	var group sync.WaitGroup
	for i := range 6 {
		mode := []string{"full", "rpc"}[i%2]
		s := newSequence(t, engine, g.Prompt, g.options(mode))
		answer := submit(t, scheduler, s, maxTokens(200))
		_, err := s.Tokens()
		mustBe(t, err, ErrBusy)
		group.Add(1)
		go func() {
			defer group.Done()
			tokens, err := tokensOf(answer)
			if expected := g.Results[mode].Tokens[:200]; err != nil || !slices.Equal(tokens, expected) {
				t.Errorf("%v, %s: expected %v\nfound %v", err, mode, expected, tokens)
				return
			}
			if all, err := s.Tokens(); err != nil || len(all) != len(g.Prompt)+200 || answer.StopReason() != StopLength {
				t.Errorf("%v, %d tokens, %v", err, len(all), answer.StopReason())
			}
			for _, err := range answer.Events() {
				t.Errorf("an event behind the last one: %v", err)
			}
		}()
	}
	group.Wait()
	metrics, err := scheduler.Metrics()
	must(t, err)
	if metrics.Completed != 6 || metrics.Rows < metrics.Steps || metrics.Steps < 200 || metrics.Waiting != 0 {
		t.Errorf("%+v", metrics)
	}
	var text bytes.Buffer
	must(t, scheduler.WriteMetrics(&text))
	if !strings.Contains(text.String(), "\nreasoning_rpc_scheduler_completed_total 6\n") {
		t.Errorf("%s", text.String())
	}
}

func TestScheduledText(t *testing.T) {
	engine, err := Open(textModel(t), f32)
	must(t, err)
	defer engine.Close()
	scheduler := newScheduler(t, engine)
	ignoreEOS := func(o *GenerateOptions) { o.MaxTokens, o.IgnoreEOS = 60, true }
	expected, err := io.ReadAll(newSequence(t, engine, []uint32{1, 2, 3}, greedy).Reader(context.Background(), ignoreEOS))
	must(t, err)
	answer := submit(t, scheduler, newSequence(t, engine, []uint32{1, 2, 3}, greedy), ignoreEOS)
	found, err := io.ReadAll(answer)
	if must(t, err); len(expected) < 20 || !bytes.Equal(found, expected) || answer.StopReason() != StopLength {
		t.Errorf("expected %q, found %q", expected, found)
	}
	// A stop string, the one of the middle.
	stop := string(expected[20:24])
	answer = submit(t, scheduler, newSequence(t, engine, []uint32{1, 2, 3}, greedy), ignoreEOS,
		func(o *GenerateOptions) { o.Stop = []string{stop} })
	found, err = io.ReadAll(answer)
	if must(t, err); string(found) != string(expected[:strings.Index(string(expected), stop)]) || answer.StopReason() != StopString {
		t.Errorf("%q, %v", found, answer.StopReason())
	}
}

func TestScheduledConversation(t *testing.T) {
	g := readGolden(t)
	engine := openEngine(t)
	scheduler := newScheduler(t, engine)
	s, alone := newSequence(t, engine, g.Prompt, g.options("rpc")), newSequence(t, engine, g.Prompt, g.options("rpc"))
	for turn := range uint32(3) {
		answer := submit(t, scheduler, s, maxTokens(50))
		tokens, err := tokensOf(answer)
		if must(t, err); !slices.Equal(tokens, generate(t, alone, 50)) {
			t.Fatalf("turn %d: %v", turn, tokens)
		}
		must(t, answer.Close())
		must(t, s.AppendTokens(turn, 7))
		must(t, alone.AppendTokens(turn, 7))
	}
}

func TestContextCancelsWhatIsScheduled(t *testing.T) {
	g := readGolden(t)
	engine := openEngine(t)
	scheduler := newScheduler(t, engine, func(o *SchedulerOptions) { o.QueueEvents = 4 })
	ctx, cancel := context.WithCancel(context.Background())
	s := newSequence(t, engine, g.Prompt, greedy)
	answer, err := scheduler.Submit(ctx, s, maxTokens(1000))
	must(t, err)
	defer answer.Close()
	seen := 0
	for event, err := range answer.Events() {
		if err != nil {
			mustBe(t, err, context.Canceled)
			break
		}
		if event.Kind == EventEnd {
			t.Fatal("it ended")
		}
		if event.Kind == EventToken {
			if seen++; seen == 10 {
				cancel()
			}
		}
	}
	// The sequence is free, and not further ahead than the queue is long, and a token at work.
	tokens, err := s.Tokens()
	if must(t, err); seen != 10 || len(tokens) < len(g.Prompt)+seen || len(tokens) > len(g.Prompt)+seen+5 {
		t.Errorf("%d seen, %d written", seen, len(tokens)-len(g.Prompt))
	}
	_, err = answer.Read(make([]byte, 8))
	mustBe(t, err, context.Canceled)
	must(t, answer.Close())
	_, err = answer.Read(make([]byte, 8))
	mustBe(t, err, io.ErrClosedPipe)
	_, err = scheduler.Submit(ctx, s)
	mustBe(t, err, context.Canceled)

	// One that waits to be admitted, by a reader that waits for it.
	must(t, s.Close())
	holder := occupied(t, engine, g.Prompt)
	ctx, cancel = context.WithCancel(context.Background())
	waiting := newSequence(t, engine, g.Prompt, greedy)
	answer, err = scheduler.Submit(ctx, waiting, maxTokens(5))
	must(t, err)
	defer answer.Close()
	time.AfterFunc(5*time.Millisecond, cancel)
	_, err = tokensOf(answer)
	mustBe(t, err, context.Canceled)
	mustTokens(t, waiting, g.Prompt)
	must(t, holder.Close())
}

func TestSlowReadersStopNobodyElse(t *testing.T) {
	g := readGolden(t)
	engine := openEngine(t)
	scheduler := newScheduler(t, engine, func(o *SchedulerOptions) { o.QueueEvents, o.MaxRows = 2, 1 })
	slow := submit(t, scheduler, newSequence(t, engine, g.Prompt, g.options("full")), maxTokens(30))
	until(t, scheduler, func(m SchedulerMetrics) bool { return m.Paused == 1 })
	quick := submit(t, scheduler, newSequence(t, engine, g.Prompt, g.options("rpc")), maxTokens(200))
	for mode, answer := range map[string]*Answer{"rpc": quick, "full": slow} {
		tokens, err := tokensOf(answer)
		if must(t, err); !slices.Equal(tokens, g.Results[mode].Tokens[:len(tokens)]) || len(tokens) < 30 {
			t.Errorf("%s: %v", mode, tokens)
		}
	}
}

// Waiting takes no thread: the runtime has made as many as it needs for what runs.
func TestReadersThatWaitTakeNoThreads(t *testing.T) {
	g := readGolden(t)
	engine := openEngine(t)
	scheduler := newScheduler(t, engine)
	holder := occupied(t, engine, g.Prompt)
	threads := pprof.Lookup("threadcreate").Count()
	const readers = 100
	var group sync.WaitGroup
	for range readers {
		answer := submit(t, scheduler, newSequence(t, engine, g.Prompt, g.options("full")), maxTokens(3))
		group.Add(1)
		go func() {
			defer group.Done()
			if tokens, err := tokensOf(answer); err != nil || !slices.Equal(tokens, g.Results["full"].Tokens[:3]) {
				t.Errorf("%v, %v", tokens, err)
			}
			answer.Close()
		}()
	}
	until(t, scheduler, func(m SchedulerMetrics) bool { return m.Waiting == readers })
	time.Sleep(20 * time.Millisecond)
	if made := pprof.Lookup("threadcreate").Count() - threads; made > readers/4 {
		t.Errorf("%d readers took %d threads", readers, made)
	}
	must(t, holder.Close())
	group.Wait()
}

func TestSchedulerRefuses(t *testing.T) {
	g := readGolden(t)
	engine := openEngine(t, func(o *EngineOptions) { o.BudgetBytes = 6 * 4 * 16 * 132 }) // 64 entries
	scheduler := newScheduler(t, engine, func(o *SchedulerOptions) { o.MaxWaiting, o.QueueEvents = 1, 1 })
	ctx := context.Background()
	s := newSequence(t, engine, g.Prompt, g.options("full"))
	_, err := scheduler.Submit(ctx, s, maxTokens(54))
	mustBe(t, err, ErrBudget)
	mustTokens(t, s, g.Prompt)
	_, err = scheduler.Submit(ctx, newSequence(t, engine, nil), maxTokens(5))
	mustBe(t, err, ErrInvalidArgument)
	_, err = scheduler.Submit(ctx, newSequence(t, openEngine(t), g.Prompt), maxTokens(5))
	mustBe(t, err, ErrInvalidArgument)
	_, err = engine.NewScheduler(func(o *SchedulerOptions) { o.MaxRows = 0 })
	mustBe(t, err, ErrInvalidArgument)

	first := submit(t, scheduler, s, maxTokens(53))
	_, err = scheduler.Submit(ctx, s)
	mustBe(t, err, ErrBusy)
	until(t, scheduler, func(m SchedulerMetrics) bool { return m.Paused == 1 })
	second := submit(t, scheduler, newSequence(t, engine, g.Prompt, g.options("full")), maxTokens(20))
	_, err = scheduler.Submit(ctx, newSequence(t, engine, g.Prompt), maxTokens(5))
	mustBe(t, err, ErrBusy) // the queue is full
	tokens, err := tokensOf(first)
	if must(t, err); len(tokens) != 53 {
		t.Errorf("%d tokens", len(tokens))
	}
	must(t, s.Close()) // the second one waits for its cache
	if tokens, err = tokensOf(second); err != nil || len(tokens) != 20 {
		t.Errorf("%v, %d tokens", err, len(tokens))
	}
}

// Without a file to wait for there is no answer, and the sequence is free when Submit returns.
func TestSubmitWithoutFiles(t *testing.T) {
	g := readGolden(t)
	engine := openEngine(t)
	scheduler := newScheduler(t, engine)
	var limit syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	restore := func() { must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)) }
	defer restore()
	for range 50 {
		s := newSequence(t, engine, g.Prompt, g.options("full"))
		must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 0, Max: limit.Max}))
		_, err := scheduler.Submit(context.Background(), s, maxTokens(300))
		mustBe(t, err, ErrFile)
		// What was written stays, and another answer goes on from there.
		tokens, err := s.Tokens()
		must(t, err)
		restore()
		written := len(tokens) - len(g.Prompt)
		if left := 300 - written; left > 0 {
			more, err := tokensOf(submit(t, scheduler, s, maxTokens(min(uint64(left), 3))))
			must(t, err)
			tokens = append(tokens, more...)
		}
		if found := tokens[len(g.Prompt):]; !slices.Equal(found, g.Results["full"].Tokens[:len(found)]) {
			t.Fatalf("%d written: %v", written, found)
		}
		must(t, s.Close())
	}
	if metrics, err := scheduler.Metrics(); err != nil || metrics.Failed != 0 {
		t.Errorf("%v, %+v", err, metrics)
	}
}

func TestClosing(t *testing.T) {
	g := readGolden(t)
	engine := openEngine(t)
	scheduler := newScheduler(t, engine)
	holder := occupied(t, engine, g.Prompt)
	// Close wakes a reader that waits.
	s := newSequence(t, engine, g.Prompt)
	answer := submit(t, scheduler, s, maxTokens(5))
	read := make(chan error)
	go func() {
		_, err := answer.Read(make([]byte, 8))
		read <- err
	}()
	time.Sleep(5 * time.Millisecond)
	must(t, answer.Close())
	must(t, answer.Close())
	mustBe(t, <-read, io.ErrClosedPipe)
	mustTokens(t, s, g.Prompt)
	// So does the scheduler's.
	answer = submit(t, scheduler, s, maxTokens(5))
	go func() {
		_, err := tokensOf(answer)
		read <- err
	}()
	must(t, scheduler.Close())
	must(t, scheduler.Close())
	if err := <-read; err != nil || answer.StopReason() != StopCancelled {
		t.Errorf("%v, %v", err, answer.StopReason())
	}
	_, err := scheduler.Submit(context.Background(), s)
	mustBe(t, err, ErrInvalidHandle)
	_, err = scheduler.Metrics()
	mustBe(t, err, ErrInvalidHandle)
	must(t, holder.Close())
}

// Answers that are forgotten are cancelled, and their sequences freed.
func TestForgottenAnswers(t *testing.T) {
	g := readGolden(t)
	engine := openEngine(t)
	scheduler := newScheduler(t, engine, func(o *SchedulerOptions) { o.QueueEvents = 1 })
	func() {
		s, err := engine.NewSequence(greedy)
		must(t, err)
		must(t, s.AppendTokens(g.Prompt...))
		_, err = scheduler.Submit(context.Background(), s, maxTokens(1000))
		must(t, err)
	}()
	for range 1000 {
		runtime.GC()
		time.Sleep(5 * time.Millisecond)
		metrics, err := engine.Metrics()
		if must(t, err); metrics.SequencesAlive == 0 && metrics.BudgetUsedBytes == 0 {
			return
		}
	}
	t.Error("it is still there")
}

// Everything at once, from many goroutines.
func TestScheduledAtRandom(t *testing.T) {
	random := newRandom(t)
	g := readGolden(t)
	engine := openEngine(t, func(o *EngineOptions) { o.BudgetBytes = 1 << 20 })
	scheduler := newScheduler(t, engine, func(o *SchedulerOptions) { o.MaxRows, o.QueueEvents = 3, 2 })
	end := time.Now().Add(3 * time.Second)
	var group sync.WaitGroup
	for range 8 {
		random := rand.New(rand.NewPCG(random.Uint64(), 0))
		group.Add(1)
		go func() {
			defer group.Done()
			for time.Now().Before(end) && !t.Failed() {
				scheduledAtRandom(t, engine, scheduler, g, random)
			}
		}()
	}
	group.Wait()
	// What was cancelled last may be in a step still.
	metrics, err := engine.Metrics()
	for tries := 0; err == nil && metrics.SequencesAlive > 0 && tries < 2000; tries++ {
		time.Sleep(5 * time.Millisecond)
		metrics, err = engine.Metrics()
	}
	if must(t, err); metrics.BudgetUsedBytes != 0 || metrics.BudgetPromisedBytes != 0 || metrics.FailedSteps != 0 {
		t.Errorf("%+v", metrics)
	}
	figures, err := scheduler.Metrics()
	must(t, err)
	t.Logf("%+v", figures)
}

func scheduledAtRandom(t *testing.T, engine *Engine, scheduler *Scheduler, g golden, random *rand.Rand) {
	mode := []string{"full", "rpc"}[random.IntN(2)]
	s, err := engine.NewSequence(g.options(mode))
	if err != nil {
		t.Error(err)
		return
	}
	defer s.Close()
	if err := s.AppendTokens(g.Prompt...); err != nil {
		t.Error(err)
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	answer, err := scheduler.Submit(ctx, s, maxTokens(100))
	if err != nil {
		t.Error(err)
		return
	}
	defer answer.Close()
	at, how := random.IntN(150), random.IntN(4)
	var tokens []uint32
	for event, err := range answer.Events() {
		switch {
		case errors.Is(err, context.Canceled) || errors.Is(err, io.ErrClosedPipe):
			if len(tokens) != at {
				t.Errorf("%v after %d tokens, not %d", err, len(tokens), at)
			}
		case err != nil:
			t.Error(err)
		case event.Kind == EventToken:
			tokens = append(tokens, event.Token)
		}
		if len(tokens) != at {
			continue
		}
		switch how {
		case 0:
			cancel()
		case 1:
			answer.Close()
		case 2:
			s.Close()
		case 3:
			return // the deferred calls see to the rest
		}
	}
	if expected := g.Results[mode].Tokens; !slices.Equal(tokens, expected[:len(tokens)]) {
		t.Errorf("other tokens: %v", tokens)
	}
}
