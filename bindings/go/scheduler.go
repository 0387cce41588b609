package reasoningrpc

// #include "shim.h"
import "C"

import (
	"context"
	"io"
	"iter"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// SchedulerOptions are the options of [Engine.NewScheduler]. All are 1 to 65536.
type SchedulerOptions struct {
	// MaxRows is the most rows of a step, and of admitted answers that do not wait for their readers.
	// Default 32.
	MaxRows uint32
	// StepTokens is the most tokens of a step in which answers generate: they take one each, prompts the
	// rest, and one at least. A step of prompts alone takes up to the engine's PrefillChunk, if that is
	// more. Default 64.
	StepTokens uint32
	// QueueEvents is how many events of one answer may wait to be read, beside its last one. Default 64.
	QueueEvents uint32
	// MaxWaiting is how many answers may wait to be admitted. Default 1024.
	MaxWaiting uint32
}

// Scheduler writes many answers of one engine at once, on two threads of its own: each step of the model
// runs a row of every answer that can go on. Any number of goroutines may use it at the same time.
//
// Answers are admitted in the order in which they are submitted, each as soon as its whole cache can be
// promised: one that has begun is not broken off for want of budget, and none overtakes. An answer whose
// reader does not read waits for it; the others go on. An error ends the answer that it belongs to.
type Scheduler struct {
	handle  C.go_scheduler
	cleanup runtime.Cleanup
}

// NewScheduler makes a scheduler. The caller closes it; it keeps the model alive. Sequences may be stepped
// beside it.
//
// Errors: [ErrInvalidArgument] for an option; [ErrRuntime] if there can be no thread.
func (e *Engine) NewScheduler(options ...func(*SchedulerOptions)) (*Scheduler, error) {
	defer runtime.KeepAlive(e)
	var o C.rrpc_scheduler_options
	if err := check(C.rrpc_scheduler_options_init(&o, C.sizeof_rrpc_scheduler_options)); err != nil {
		return nil, err
	}
	chosen := SchedulerOptions{
		MaxRows:     uint32(o.max_rows),
		StepTokens:  uint32(o.step_tokens),
		QueueEvents: uint32(o.queue_events),
		MaxWaiting:  uint32(o.max_waiting),
	}
	for _, change := range options {
		change(&chosen)
	}
	o.max_rows = C.uint32_t(chosen.MaxRows)
	o.step_tokens = C.uint32_t(chosen.StepTokens)
	o.queue_events = C.uint32_t(chosen.QueueEvents)
	o.max_waiting = C.uint32_t(chosen.MaxWaiting)
	s := &Scheduler{}
	if err := check(C.go_scheduler_create(e.handle, &o, &s.handle)); err != nil {
		return nil, err
	}
	s.cleanup = runtime.AddCleanup(s, func(handle C.go_scheduler) { C.go_scheduler_free(handle) }, s.handle)
	return s, nil
}

// Close ends the scheduler: cancels its answers, and waits for the step and the compressions under way.
// What was written is still to be read, with StopCancelled at its end. Closing it again does nothing. The
// error is always nil.
func (s *Scheduler) Close() error {
	s.cleanup.Stop()
	C.go_scheduler_free(s.handle)
	runtime.KeepAlive(s)
	return nil
}

// Submit has an answer to a sequence written: the one that [Sequence.Generate] writes, whatever shares its
// steps. When ctx is done the answer is cancelled, wherever it is.
//
// Until the answer has ended, calls on the sequence return [ErrBusy]. Close may be called: it lets the cache
// go as soon as the answer has ended, for sequences that are not continued. A sequence keeps the cache that
// it has while it waits, and at rest: others wait for it.
//
// Errors: ctx.Err() if ctx is done; [ErrPoisoned]; [ErrBusy] for a sequence in use, and if MaxWaiting
// answers wait; [ErrInvalidArgument] for an option, an empty sequence or one of another engine; [ErrText]
// for stop strings without a tokenizer; [ErrBudget] if the cache of the answer is larger than the whole
// budget. The sequence is as it was then. [ErrFile] if the process can open no more files: an answer has
// one until it is closed. The answer was cancelled then, and has ended; what it had written is in the sequence.
func (s *Scheduler) Submit(ctx context.Context, sequence *Sequence, options ...func(*GenerateOptions)) (*Answer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	defer runtime.KeepAlive(s)
	var memory copies
	defer func() { memory.free() }()
	o, err := generateOptions(options, &memory)
	if err != nil {
		return nil, err
	}
	r := &reading{ctx: ctx, selector: sequence.selector}
	err = sequence.use(func() *C.rrpc_error {
		return C.go_scheduler_submit(s.handle, sequence.handle, &o, &r.handle)
	})
	if err != nil {
		return nil, err
	}
	if err := r.open(); err != nil {
		r.close()
		return nil, err
	}
	// It ends with a last event then, which wakes whoever reads.
	r.forget = context.AfterFunc(ctx, r.cancel)
	a := &Answer{reading: r}
	runtime.AddCleanup(a, func(r *reading) { go r.close() }, r)
	return a, nil
}

// Answer is an answer that a [Scheduler] writes. It is read as events, or as text by Read. One goroutine at
// a time reads; waiting takes no thread. Close may come from another.
type Answer struct {
	reading *reading
	rest    string
	reason  StopReason
}

// Events are the events of the answer; the last one is [EventEnd]. The loop waits for each. Leaving it does
// not end the answer: another loop goes on from there.
//
// An error comes with a zero event, last: ctx.Err() once ctx is done, even if events were written that the
// loop has not seen; [io.ErrClosedPipe] if the answer was closed; [ErrBudget] if it waits for cache that only
// answers behind it have; [ErrRuntime]. The sequence is free when the last event or an error is there.
func (a *Answer) Events() iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for {
			event, err := a.next()
			if err == io.EOF || !yield(event, err) || err != nil {
				return
			}
		}
	}
}

// Read reads the text of the answer: whole characters, if p has room for them. [io.EOF] is its end, other
// errors are those of Events.
func (a *Answer) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for a.rest == "" {
		event, err := a.next()
		if err != nil {
			return 0, err
		}
		a.rest = event.Text
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

func (a *Answer) next() (Event, error) {
	event, err := a.reading.next()
	if event.Kind == EventEnd {
		a.reason = event.StopReason
	}
	runtime.KeepAlive(a)
	return event, err
}

// StopReason is why the answer ended, once its last event was read; 0 before.
func (a *Answer) StopReason() StopReason {
	return a.reason
}

// Close cancels the answer, if it has not ended, and waits for its end, which takes a step: then the sequence
// is free. Closing it again does nothing. The error is always nil.
func (a *Answer) Close() error {
	a.reading.close()
	runtime.KeepAlive(a)
	return nil
}

// reading is what is left of an answer that was forgotten.
type reading struct {
	ctx    context.Context
	handle C.go_answer
	// The sequence's.
	selector *selector
	// Readable while there is an event to read.
	file *os.File
	wait syscall.RawConn
	// Ends the cancelling by the context.
	forget func() bool
	mutex  sync.Mutex
	// What next returns from now on, if not nil.
	end error
	// Nothing comes any more.
	ended  bool
	freed  bool
	closed atomic.Bool
}

// open opens what is waited for.
func (r *reading) open() error {
	var fd C.int
	if err := check(C.go_answer_fd(r.handle, &fd)); err != nil {
		return err
	}
	if fd < 0 {
		return &Error{ErrFile, "no file descriptor for an answer"}
	}
	r.file = os.NewFile(uintptr(fd), "reasoning-rpc answer")
	var err error
	r.wait, err = r.file.SyscallConn()
	return err
}

// next is the next event; io.EOF behind the last one, or another error.
func (r *reading) next() (Event, error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	switch {
	case r.closed.Load():
		return Event{}, io.ErrClosedPipe
	case r.end != nil:
		return Event{}, r.end
	case r.ctx.Err() != nil:
		r.drain()
		r.end = r.ctx.Err()
		return Event{}, r.end
	}
	event, err := r.read()
	switch {
	case err != nil:
		r.end = err
	case event.Kind != EventEnd:
		return event, nil
	case event.StopReason == StopCancelled && r.closed.Load():
		r.end = io.ErrClosedPipe
		return Event{}, r.end
	case event.StopReason == StopCancelled && r.ctx.Err() != nil:
		r.end = r.ctx.Err()
		return Event{}, r.end
	default:
		r.end = io.EOF
	}
	return event, err
}

// read waits for an event, as for a socket: without a thread.
func (r *reading) read() (event Event, err error) {
	found := C.rrpc_event{struct_size: C.sizeof_rrpc_event}
	if r.wait == nil {
		// No file: Submit failed, and drains the answer.
		err = check(C.go_answer_next(r.handle, C.RRPC_WAIT_FOREVER, &found))
	} else {
		broken := r.wait.Read(func(uintptr) bool {
			err = check(C.go_answer_next(r.handle, 0, &found))
			return err != nil || found.kind != C.RRPC_EVENT_NONE
		})
		if err == nil {
			err = broken
		}
	}
	if err != nil {
		r.ended = true
		return Event{}, r.selector.explain(err)
	}
	event = eventOf(&found)
	r.ended = event.Kind == EventEnd
	return event, nil
}

func (r *reading) cancel() {
	// It cannot fail but for an answer that was closed.
	_ = check(C.go_answer_cancel(r.handle))
}

// drain cancels the answer and reads it to its end.
func (r *reading) drain() {
	r.cancel()
	for !r.ended {
		_, _ = r.read()
	}
}

func (r *reading) close() {
	r.closed.Store(true)
	r.cancel()
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.freed {
		return
	}
	r.freed = true
	if r.forget != nil {
		r.forget()
	}
	r.drain()
	C.go_answer_free(r.handle)
	if r.file != nil {
		r.file.Close()
	}
}

// SchedulerMetrics are figures of a scheduler since it was made. Each is exact; they are not all of one
// moment.
type SchedulerMetrics struct {
	// Waiting answers, to be admitted.
	Waiting uint64
	// Running are the admitted answers that a step is due for.
	Running uint64
	// Paused are the admitted answers that wait for their readers.
	Paused uint64
	// Compressing are the admitted answers whose cache is being compressed, or about to be.
	Compressing uint64
	// Submitted answers, those that were refused not counted.
	Submitted uint64
	// Admitted answers.
	Admitted uint64
	// Completed answers: ended by themselves.
	Completed uint64
	// Cancelled answers.
	Cancelled uint64
	// Failed answers: ended with an error.
	Failed uint64
	// Steps of the scheduler.
	Steps uint64
	// Rows of all steps together; Rows / Steps is the mean of one.
	Rows uint64
	// WaitingTime is how long the admitted answers had waited, together.
	WaitingTime time.Duration
}

// Metrics reads the figures of the scheduler.
func (s *Scheduler) Metrics() (SchedulerMetrics, error) {
	defer runtime.KeepAlive(s)
	found := C.rrpc_scheduler_metrics{struct_size: C.sizeof_rrpc_scheduler_metrics}
	if err := check(C.go_scheduler_get_metrics(s.handle, &found)); err != nil {
		return SchedulerMetrics{}, err
	}
	return SchedulerMetrics{
		Waiting:     uint64(found.waiting),
		Running:     uint64(found.running),
		Paused:      uint64(found.paused),
		Compressing: uint64(found.compressing),
		Submitted:   uint64(found.submitted),
		Admitted:    uint64(found.admitted),
		Completed:   uint64(found.completed),
		Cancelled:   uint64(found.cancelled),
		Failed:      uint64(found.failed),
		Steps:       uint64(found.steps),
		Rows:        uint64(found.rows),
		WaitingTime: duration(found.waiting_seconds),
	}, nil
}

// WriteMetrics writes the figures of the scheduler as [Engine.WriteMetrics] does those of an engine, which
// they can follow. Names begin with reasoning_rpc_scheduler_.
//
// Errors: those of the writer.
func (s *Scheduler) WriteMetrics(w io.Writer) error {
	defer runtime.KeepAlive(s)
	text, err := fill(8192, func(out *byte, capacity C.size_t, count *C.size_t) error {
		return check(C.go_scheduler_metrics_text(s.handle, (*C.char)(unsafe.Pointer(out)), capacity, count))
	})
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}
