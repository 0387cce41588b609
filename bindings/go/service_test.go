package reasoningrpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestMetrics(t *testing.T) {
	expected := readGolden(t)
	engine := openEngine(t, func(o *EngineOptions) { o.BudgetBytes = 1 << 18 })
	s := newSequence(t, engine, expected.Prompt, expected.options("rpc"))
	generate(t, s, 100)
	mustBe(t, s.Reserve(3000), ErrBudget)
	metrics, err := engine.Metrics()
	must(t, err)
	stats, err := s.Stats()
	must(t, err)
	info, err := engine.Info()
	must(t, err)
	log, err := s.Compressions()
	must(t, err)
	dropped := 0
	for _, one := range log {
		dropped += (one.LenBefore - one.LenAfter) * info.KVHeads
	}
	if metrics.SequencesAlive != 1 || metrics.SequencesCreated != 1 || metrics.PrefillTokens != uint64(len(expected.Prompt)) ||
		metrics.DecodeTokens != uint64(stats.DecodeTokens) || metrics.Compressions != uint64(stats.Compressions) ||
		metrics.EntriesDropped != uint64(dropped) || metrics.BudgetRefusals != 1 || metrics.FailedSteps != 0 ||
		metrics.Steps != 100 || metrics.StepTime <= 0 || metrics.CompactionTime <= 0 ||
		metrics.BudgetBytes != info.BudgetBytes || metrics.BudgetUsedBytes != info.BudgetUsedBytes ||
		metrics.BudgetPeakBytes != stats.CachePeakBytes || metrics.BudgetPromisedBytes != 0 {
		t.Errorf("%+v\n%+v\n%d dropped", metrics, stats, dropped)
	}
	var text bytes.Buffer
	must(t, engine.WriteMetrics(&text))
	for line := range strings.Lines(text.String()) {
		if fields := strings.Fields(line); len(fields) < 2 || !strings.HasSuffix(line, "\n") ||
			(fields[0] != "#" && (len(fields) != 2 || !strings.HasPrefix(fields[0], "reasoning_rpc_"))) {
			t.Errorf("%q", line)
		}
	}
	if line := fmt.Sprintf("\nreasoning_rpc_decode_tokens_total %d\n", stats.DecodeTokens); !strings.Contains(text.String(), line) {
		t.Errorf("no %q in %s", line, text.String())
	}
	must(t, s.Close())
	metrics, err = engine.Metrics()
	if must(t, err); metrics.SequencesAlive != 0 || metrics.BudgetUsedBytes != 0 || metrics.BudgetPromisedBytes != 0 {
		t.Errorf("%+v", metrics)
	}
	reader, writer := io.Pipe()
	must(t, reader.CloseWithError(io.ErrNoProgress))
	mustBe(t, engine.WriteMetrics(writer), io.ErrNoProgress)
	must(t, engine.Close())
	mustBe(t, engine.WriteMetrics(writer), ErrInvalidHandle)
}

// records is a handler that keeps what it is told.
type records struct {
	mutex sync.Mutex
	kept  []slog.Record
	also  func()
}

func (r *records) Enabled(context.Context, slog.Level) bool { return true }
func (r *records) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r *records) WithGroup(string) slog.Handler            { return r }
func (r *records) Handle(_ context.Context, record slog.Record) error {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.kept = append(r.kept, record)
	if r.also != nil {
		r.also()
	}
	return nil
}

func TestLogger(t *testing.T) {
	expected := readGolden(t)
	answer := func() {
		engine := openEngine(t)
		generate(t, newSequence(t, engine, expected.Prompt, expected.options("rpc")), 50)
		engine.Close()
	}
	all, few := &records{}, &records{}
	all.also = func() {
		if err := SetLogger(nil, 0); !errors.Is(err, ErrBusy) {
			t.Errorf("from a handler: %v", err)
		}
	}
	must(t, SetLogger(slog.New(all), slog.LevelDebug))
	answer()
	must(t, SetLogger(slog.New(few), slog.LevelError))
	seen := len(all.kept)
	answer()
	must(t, SetLogger(nil, slog.LevelDebug))
	answer()
	if len(all.kept) != seen || seen == 0 || len(few.kept) != 0 {
		t.Errorf("%d, then %d messages, %d errors", seen, len(all.kept), len(few.kept))
	}
	for _, record := range all.kept {
		if record.Message == "" || strings.Contains(record.Message, "\n") ||
			!slices.Contains([]slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn}, record.Level) {
			t.Errorf("%+v", record)
		}
	}
}

// Loggers come and go while others work.
func TestLoggerIsReplacedAtWork(t *testing.T) {
	engine := openEngine(t)
	done := make(chan struct{})
	var group sync.WaitGroup
	for range 4 {
		group.Add(1)
		go func() {
			defer group.Done()
			for {
				select {
				case <-done:
					return
				default:
					s, err := engine.NewSequence(greedy)
					if err != nil {
						t.Error(err)
						return
					}
					if err := errors.Join(s.AppendTokens(1, 2, 3), Step(s), s.Close()); err != nil {
						t.Error(err)
					}
				}
			}
		}()
	}
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
		to := &records{}
		must(t, SetLogger(slog.New(to), slog.LevelDebug))
		must(t, SetLogger(nil, 0))
		seen := len(to.kept) // the race detector watches: it is out of use
		if seen != len(to.kept) {
			t.Error("a logger that was replaced is in use")
		}
	}
	close(done)
	group.Wait()
}
