package reasoningrpc

// #include "shim.h"
import "C"

import (
	"context"
	"io"
	"iter"
	"runtime"
	"runtime/cgo"
	"sync"
	"unsafe"
)

// ToEndOfContext is as many tokens as the context has room for.
const ToEndOfContext uint64 = C.RRPC_TO_END_OF_CONTEXT

// GenerateOptions are the options of [Sequence.Generate] and [Sequence.Reader].
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
	// EventEnd: the answer is complete. The last event of every answer without an error.
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
// An event comes as soon as it is there, and the next token is not begun before the loop asks for it. When
// ctx is done, or the loop is left, no further token is begun: what the sequence has is exactly what the
// loop has seen. The sequence is in use until the last event or until the loop is left: calls from its
// body return [ErrBusy] before. Ranging over the result again writes another answer.
//
// An error comes with a zero event, last: ctx.Err() if ctx was done before the answer, [ErrBusy],
// [ErrPoisoned]; [ErrInvalidArgument] for an option or an empty sequence; [ErrText] for stop strings without
// a tokenizer; [ErrBudget] if the cache of the answer does not fit the budget; [ErrRuntime]. Tokens that
// were generated before an error stay in the sequence.
func (s *Sequence) Generate(ctx context.Context, options ...func(*GenerateOptions)) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		answer := newAnswer(ctx, s, options)
		defer answer.stop()
		for {
			event, more := answer.next()
			if !more {
				break
			}
			if !yield(event, nil) {
				return
			}
		}
		if answer.err != nil {
			yield(Event{}, answer.err)
		}
	}
}

// Reader reads the text of an answer. Used by one goroutine at a time.
type Reader struct {
	answer *answer
	rest   string
	reason StopReason
	closed bool
}

// Reader writes an answer as [Sequence.Generate] does, and is read for its text; EOF is its end. The
// answer advances when it is read. The sequence is in use from the first Read until the answer has ended,
// ctx is done, or the reader is closed.
//
// Read returns the errors of Generate.
func (s *Sequence) Reader(ctx context.Context, options ...func(*GenerateOptions)) *Reader {
	r := &Reader{answer: newAnswer(ctx, s, options)}
	// One that is forgotten half read gives its sequence back.
	runtime.AddCleanup(r, func(a *answer) { a.abandon() }, r.answer)
	return r
}

// Read reads text: whole characters, if p has room for them.
func (r *Reader) Read(p []byte) (int, error) {
	defer runtime.KeepAlive(r)
	if r.closed {
		return 0, io.ErrClosedPipe
	}
	if len(p) == 0 {
		return 0, nil
	}
	for r.rest == "" {
		event, more := r.answer.next()
		if !more {
			if r.answer.err != nil {
				return 0, r.answer.err
			}
			return 0, io.EOF
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

// Close cancels the answer, if it has not ended, before its next token. Closing again does nothing. The
// error is always nil.
func (r *Reader) Close() error {
	r.closed = true
	r.answer.stop()
	return nil
}

// answer is a call of rrpc_generate in a goroutine of its own, which waits after each event until the next
// one is asked for. So the loop that asks may panic or end its goroutine without unwinding the library.
type answer struct {
	ctx      context.Context
	sequence *Sequence
	options  []func(*GenerateOptions)
	started  bool
	events   chan Event
	resume   chan struct{}
	cancel   chan struct{}
	abandon  func()
	done     chan struct{}
	// The last event, for when the call has returned.
	end Event
	// Set when done is closed.
	err error
}

func newAnswer(ctx context.Context, s *Sequence, options []func(*GenerateOptions)) *answer {
	a := &answer{
		ctx:      ctx,
		sequence: s,
		options:  options,
		events:   make(chan Event),
		resume:   make(chan struct{}),
		cancel:   make(chan struct{}),
		done:     make(chan struct{}),
	}
	a.abandon = sync.OnceFunc(func() { close(a.cancel) })
	return a
}

// next is the next event, or false at the end of the answer, when err is set.
func (a *answer) next() (Event, bool) {
	if !a.started {
		a.started = true
		chosen := GenerateOptions{MaxTokens: ToEndOfContext}
		for _, change := range a.options {
			change(&chosen)
		}
		go func() {
			defer close(a.done)
			a.err = a.run(chosen)
		}()
	} else {
		select {
		case a.resume <- struct{}{}:
		case <-a.done:
		}
	}
	select {
	case event := <-a.events:
		return event, true
	case <-a.done:
		return Event{}, false
	}
}

// stop cancels the answer and waits until the sequence is free.
func (a *answer) stop() {
	a.abandon()
	if a.started {
		<-a.done
	}
}

func (a *answer) run(chosen GenerateOptions) error {
	if err := a.ctx.Err(); err != nil {
		return err
	}
	var o C.rrpc_generate_options
	if err := check(C.rrpc_generate_options_init(&o, C.sizeof_rrpc_generate_options)); err != nil {
		return err
	}
	var memory copies
	defer func() { memory.free() }()
	o.max_tokens = C.uint64_t(chosen.MaxTokens)
	o.ignore_eos = flag(chosen.IgnoreEOS)
	if count := len(chosen.Stop); count > 0 {
		stop := (*C.rrpc_text)(memory.array(count, C.sizeof_rrpc_text))
		for i, s := range chosen.Stop {
			unsafe.Slice(stop, count)[i] = memory.text(s)
		}
		o.stop, o.stop_count = stop, C.size_t(count)
	}
	handle := cgo.NewHandle(a)
	defer handle.Delete()
	result := C.rrpc_generate_result{struct_size: C.sizeof_rrpc_generate_result}
	err := a.sequence.change(func() *C.rrpc_error {
		return C.go_generate(a.sequence.handle, &o, C.uintptr_t(handle), &result)
	})
	if err != nil {
		return err
	}
	if result.stop_reason == C.RRPC_STOP_CANCELLED {
		return a.ctx.Err()
	}
	// Now that the sequence is free again.
	select {
	case a.events <- a.end:
	case <-a.cancel:
	}
	return nil
}

// pass hands an event over and waits until the next one is asked for. Whether to go on.
func (a *answer) pass(event Event) bool {
	if event.Kind == EventEnd {
		a.end = event
		return true
	}
	// Whoever asked is waiting for it, even if ctx is done by now.
	select {
	case a.events <- event:
	case <-a.cancel:
		return false
	}
	select {
	case <-a.resume:
		return a.ctx.Err() == nil
	case <-a.ctx.Done():
		return false
	case <-a.cancel:
		return false
	}
}
