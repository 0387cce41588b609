package reasoningrpc

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

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
