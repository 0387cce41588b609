package reasoningrpc

// #include "shim.h"
import "C"

import (
	"context"
	"io"
	"iter"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"
)

// ToEndOfContext is as many tokens as the context has room for.
const ToEndOfContext uint64 = C.RRPC_TO_END_OF_CONTEXT

// GenerateOptions are the options of [Sequence.Generate], [Sequence.Reader] and [Scheduler.Submit].
type GenerateOptions struct {
	// MaxTokens is the most tokens to generate. Default ToEndOfContext.
	MaxTokens uint64
	// Stop are texts that end the answer; they are not part of it. None is empty. Default none.
	Stop []string
	// IgnoreEOS: the model's stop tokens do not end the answer; they are run like any other and shown in
	// the text. Default false.
	IgnoreEOS bool
}

// EventKind is what an event tells.
type EventKind uint32

const (
	// EventPrefill: a part of the given text was run.
	EventPrefill EventKind = C.RRPC_EVENT_PREFILL
	// EventToken: a token was generated.
	EventToken EventKind = C.RRPC_EVENT_TOKEN
	// EventEnd: the answer is complete, and the sequence free. The last event of every answer without an
	// error.
	EventEnd EventKind = C.RRPC_EVENT_END
)

// StopReason is why an answer ended.
type StopReason uint32

const (
	// StopEOS: the model wrote one of its stop tokens.
	StopEOS StopReason = C.RRPC_STOP_EOS
	// StopString: a stop string came up.
	StopString StopReason = C.RRPC_STOP_STRING
	// StopLength: MaxTokens were generated.
	StopLength StopReason = C.RRPC_STOP_LENGTH
	// StopContext: the model's context is full.
	StopContext StopReason = C.RRPC_STOP_CONTEXT
	// StopCancelled: the answer was cancelled.
	StopCancelled StopReason = C.RRPC_STOP_CANCELLED
)

func (r StopReason) String() string {
	switch r {
	case StopEOS:
		return "end of text"
	case StopString:
		return "stop string"
	case StopLength:
		return "length"
	case StopContext:
		return "context is full"
	case StopCancelled:
		return "cancelled"
	}
	return "unknown"
}

// Event is a part of an answer. Fields that an event does not name are zero.
type Event struct {
	// Kind; others than those named here may come with later versions.
	Kind EventKind
	// Text, of EventToken and EventEnd: what became complete: whole characters, and nothing that may still
	// become a stop string. May be empty.
	Text string
	// Token, of EventToken: its id.
	Token uint32
	// EndOfText, of EventToken: it is one of the model's stop tokens, which ends the answer or is passed
	// over.
	EndOfText bool
	// PrefillDone, of EventPrefill: how many of the PrefillTotal given tokens have been run.
	PrefillDone, PrefillTotal int
	// StopReason, of EventEnd.
	StopReason StopReason
}

// Generate writes an answer: it runs the text that is pending, then generates, samples and streams token
// by token until something stops it. Before the first token the cache of the whole answer is promised to
// the sequence, so that it fits the budget to the end or is refused at once. The answer becomes part of
// the sequence.
//
// The loop runs the model: an event is one step, and the next token is not begun before the loop asks for
// it. When ctx is done, or the loop is left, no further token is begun: what the sequence has is exactly
// what the loop has seen. Until the last event, or until the loop is left, calls that would change the
// sequence return [ErrBusy], from the loop's body too; those that read it work. Ranging over the result
// again writes another answer.
//
// An error comes with a zero event, last: ctx.Err() if ctx was done before the answer, [ErrBusy],
// [ErrPoisoned]; [ErrInvalidArgument] for an option or an empty sequence; [ErrText] for stop strings without
// a tokenizer; [ErrBudget] if the cache of the answer does not fit the budget; [ErrRuntime];
// [ErrInvalidHandle] if the sequence was closed. Tokens that were generated before an error stay in the
// sequence.
func (s *Sequence) Generate(ctx context.Context, options ...func(*GenerateOptions)) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		answer := answer{ctx: ctx, sequence: s, options: options}
		// The loop's body may panic or end its goroutine, too.
		defer answer.stop()
		for {
			event, err := answer.next()
			if err == io.EOF || !yield(event, err) || err != nil {
				return
			}
		}
	}
}

// Reader reads the text of an answer.
type Reader struct {
	answer *answer
	rest   string
	reason StopReason
	closed atomic.Bool
}

// Reader writes an answer as [Sequence.Generate] does, and is read for its text; EOF is its end. The
// answer advances when it is read. The sequence is in use from the first Read until the answer has ended,
// ctx is done and was noticed by a Read, or the reader is closed.
//
// Read returns the errors of Generate. One goroutine at a time reads; Close may come from another.
func (s *Sequence) Reader(ctx context.Context, options ...func(*GenerateOptions)) *Reader {
	r := &Reader{answer: &answer{ctx: ctx, sequence: s, options: options}}
	// One that is forgotten half read gives its sequence back.
	runtime.AddCleanup(r, func(a *answer) { a.stop() }, r.answer)
	return r
}

// Read reads text: whole characters, if p has room for them.
func (r *Reader) Read(p []byte) (int, error) {
	defer runtime.KeepAlive(r)
	if r.closed.Load() {
		return 0, io.ErrClosedPipe
	}
	if len(p) == 0 {
		return 0, nil
	}
	for r.rest == "" {
		event, err := r.answer.next()
		if err != nil {
			return 0, err
		}
		r.rest = event.Text
		if event.Kind == EventEnd {
			r.reason = event.StopReason
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// StopReason is why the answer ended, once Read has returned [io.EOF]; 0 before.
func (r *Reader) StopReason() StopReason {
	return r.reason
}

// Close cancels the answer, if it has not ended, before its next token: Read returns [io.ErrClosedPipe].
// It waits for a Read of another goroutine, which is one token at most. Closing again does nothing. The
// error is always nil.
func (r *Reader) Close() error {
	r.closed.Store(true)
	r.answer.stop()
	return nil
}

// answer is an answer that is pulled event by event.
type answer struct {
	ctx      context.Context
	sequence *Sequence
	options  []func(*GenerateOptions)
	// Readers are closed by other goroutines, and by the garbage collector.
	mutex sync.Mutex
	// Between the library's start of it and its end.
	underWay bool
	// What next returns from now on, if not nil.
	end error
}

// next is the next event; io.EOF behind the last one, or another error.
func (a *answer) next() (event Event, err error) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if a.end != nil {
		return Event{}, a.end
	}
	if err := a.ctx.Err(); err != nil {
		a.finish(err)
		return Event{}, err
	}
	if !a.underWay {
		if err := a.start(); err != nil {
			a.end = err
			return Event{}, err
		}
		a.underWay = true
	}
	s := a.sequence
	found := C.rrpc_event{struct_size: C.sizeof_rrpc_event}
	// Whoever reads the sequence in this moment is waited for.
	s.lent.Lock()
	err = s.borrowLocked(func() error {
		return check(C.go_generate_next(s.handle, &found))
	}, func() {
		event = eventOf(&found)
	})
	switch {
	case err != nil:
		a.finish(err)
	case event.Kind == EventEnd:
		a.underWay, a.end = false, io.EOF
	}
	return event, err
}

// stop cancels the answer, if it has not ended: the sequence is free.
func (a *answer) stop() {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.finish(io.ErrClosedPipe)
}

// finish ends the answer, with an error for whoever asks for more.
func (a *answer) finish(end error) {
	if a.end == nil || a.end == io.EOF {
		a.end = end
	}
	if a.underWay {
		a.underWay = false
		s := a.sequence
		s.lent.Lock()
		// It cannot fail but for a sequence that was closed.
		_ = s.borrowLocked(func() error { return check(C.go_generate_stop(s.handle)) }, func() {})
	}
}

func (a *answer) start() error {
	var memory copies
	defer func() { memory.free() }()
	o, err := generateOptions(a.options, &memory)
	if err != nil {
		return err
	}
	return a.sequence.use(func() *C.rrpc_error {
		return C.go_generate_start(a.sequence.handle, &o)
	})
}

// generateOptions are the defaults with the caller's changes; texts in them lie in memory.
func generateOptions(options []func(*GenerateOptions), memory *copies) (C.rrpc_generate_options, error) {
	chosen := GenerateOptions{MaxTokens: ToEndOfContext}
	for _, change := range options {
		change(&chosen)
	}
	var o C.rrpc_generate_options
	if err := check(C.rrpc_generate_options_init(&o, C.sizeof_rrpc_generate_options)); err != nil {
		return o, err
	}
	o.max_tokens = C.uint64_t(chosen.MaxTokens)
	o.ignore_eos = flag(chosen.IgnoreEOS)
	if count := len(chosen.Stop); count > 0 {
		stop := (*C.rrpc_text)(memory.array(count, C.sizeof_rrpc_text))
		for i, s := range chosen.Stop {
			unsafe.Slice(stop, count)[i] = memory.text(s)
		}
		o.stop, o.stop_count = stop, C.size_t(count)
	}
	return o, nil
}

// eventOf copies an event that is lent.
func eventOf(found *C.rrpc_event) Event {
	return Event{
		Kind:         EventKind(found.kind),
		Text:         C.GoStringN(found.text, C.int(found.text_len)),
		Token:        uint32(found.token),
		EndOfText:    found.end_of_text != 0,
		PrefillDone:  int(found.prefill_done),
		PrefillTotal: int(found.prefill_total),
		StopReason:   StopReason(found.stop_reason),
	}
}
