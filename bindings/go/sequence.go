package reasoningrpc

// #include "shim.h"
import "C"

import (
	"runtime"
	"runtime/cgo"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// Sequence is a text under generation: tokens, cache, compression policy and sampler. One call at a time
// uses it; a second one that comes meanwhile changes nothing and returns [ErrBusy]. It can be continued for
// as long as the context has room: append, generate, append the next turn, generate.
type Sequence struct {
	handle  C.go_sequence
	cleanup runtime.Cleanup
	// Of PolicyCallback, else nil; shared with forks.
	selector *selector
	// Held for writing while what the library lends (logits, an event's text, a view of the cache) is
	// copied, and for reading by every other call: it may take the lent away. Taken for reading, it is
	// only ever tried.
	lent   sync.RWMutex
	closed atomic.Bool
}

// NewSequence makes an empty sequence. The caller closes it; it keeps the model alive.
//
// Errors: [ErrInvalidArgument] for an option, such as an Interval that is no multiple of Ratio.
func (e *Engine) NewSequence(options ...func(*SequenceOptions)) (*Sequence, error) {
	defer runtime.KeepAlive(e)
	var pinner runtime.Pinner
	defer pinner.Unpin()
	o, chosen, err := e.sequenceOptions(options, &pinner)
	if err != nil {
		return nil, err
	}
	if o.policy != C.RRPC_POLICY_CALLBACK {
		return ownSequence(nil, func(handle *C.go_sequence) error {
			return check(C.go_sequence_create(e.handle, &o, 0, handle))
		})
	}
	made := &selector{choose: chosen.Select}
	callback := cgo.NewHandle(made)
	s, err := ownSequence(made, func(handle *C.go_sequence) error {
		return check(C.go_sequence_create(e.handle, &o, C.uintptr_t(callback), handle))
	})
	if err != nil {
		callback.Delete()
	}
	return s, err
}

// ownSequence is the sequence that call makes.
func ownSequence(selector *selector, call func(handle *C.go_sequence) error) (*Sequence, error) {
	s := &Sequence{selector: selector}
	if err := call(&s.handle); err != nil {
		return nil, err
	}
	s.cleanup = runtime.AddCleanup(s, func(handle C.go_sequence) { C.go_sequence_free(handle) }, s.handle)
	return s, nil
}

// Close frees the sequence and its cache. It may be called at any time: the call that is under way ends as
// if the sequence were still there, then the memory is freed; an answer ends with [ErrInvalidHandle] in
// place of its next event. Closing it again does nothing. The error is always nil.
func (s *Sequence) Close() error {
	s.closed.Store(true)
	s.free()
	return nil
}

// free frees a closed sequence, unless something lent is being copied: whoever does so frees it then.
func (s *Sequence) free() {
	if s.lent.TryRLock() {
		defer s.lent.RUnlock()
		s.cleanup.Stop()
		C.go_sequence_free(s.handle)
		runtime.KeepAlive(s)
	}
}

// use makes a call.
func (s *Sequence) use(call func() *C.rrpc_error) error {
	if !s.lent.TryRLock() {
		return s.busy()
	}
	defer s.lent.RUnlock()
	defer runtime.KeepAlive(s)
	return s.selector.explain(check(call()))
}

// borrow makes a call, and copy copies what it lends before another call can take it away.
func (s *Sequence) borrow(call func() error, copy func()) error {
	if !s.lent.TryLock() {
		return s.busy()
	}
	return s.borrowLocked(call, copy)
}

// borrowLocked is borrow once s.lent is locked; it unlocks it.
func (s *Sequence) borrowLocked(call func() error, copy func()) error {
	defer func() {
		s.lent.Unlock()
		if s.closed.Load() {
			s.free()
		}
	}()
	defer runtime.KeepAlive(s)
	err := call()
	if err == nil {
		copy()
	}
	return s.selector.explain(err)
}

func (s *Sequence) busy() error {
	if s.closed.Load() {
		return &Error{ErrInvalidHandle, "the sequence was closed"}
	}
	return &Error{ErrBusy, "another call is using the sequence"}
}

// AppendText appends raw text. Control tokens in it are parsed. Text that begins the sequence gets the
// beginning-of-text token if the model's tokenizer asks for one. Given text is protected: compression
// never drops any of it.
//
// Errors: [ErrBusy], [ErrPoisoned]; [ErrInvalidArgument] if the text is not UTF-8; [ErrText] if the model
// has no tokenizer; [ErrContext]. Nothing is appended then.
func (s *Sequence) AppendText(given string) error {
	data, length := text(given)
	return s.use(func() *C.rrpc_error { return C.go_sequence_append_text(s.handle, data, length) })
}

// Message is one message of a conversation.
type Message struct {
	// Role is "system", "user", "assistant", "tool" or "developer".
	Role string
	// Content is what was said. Ordinary text: what spells a control token in it does not become one.
	Content string
}

// AppendChat appends messages in the words of the model's chat template, up to where the assistant's
// answer begins.
//
// Errors: [ErrBusy], [ErrPoisoned]; [ErrInvalidArgument] if a text is not UTF-8; [ErrTemplate] if the model
// has no chat template, or it refuses the messages; [ErrText] if the model has no tokenizer; [ErrContext].
// Nothing is appended then.
func (s *Sequence) AppendChat(messages ...Message) error {
	var memory copies
	defer func() { memory.free() }()
	array := (*C.rrpc_message)(memory.array(len(messages), C.sizeof_rrpc_message))
	for i, message := range messages {
		unsafe.Slice(array, len(messages))[i] = C.rrpc_message{
			role:    memory.text(message.Role),
			content: memory.text(message.Content),
		}
	}
	return s.use(func() *C.rrpc_error {
		return C.go_sequence_append_chat(s.handle, array, C.size_t(len(messages)))
	})
}

// AppendTokens appends token ids as given text: protected from compression.
//
// Errors: [ErrBusy], [ErrPoisoned]; [ErrInvalidArgument] if an id is not in the vocabulary; [ErrContext].
// Nothing is appended then.
func (s *Sequence) AppendTokens(tokens ...uint32) error {
	return s.use(func() *C.rrpc_error {
		return C.go_sequence_append_tokens(s.handle, ids(tokens), C.size_t(len(tokens)))
	})
}

// Reserve promises the sequence the cache that it needs until newTokens more tokens are generated, so that
// no step on the way fails for want of budget. A later promise replaces this one; 0 with nothing pending
// gives back what is not in use. Not needed before Generate, which does it.
//
// Errors: [ErrBusy], [ErrPoisoned]; [ErrBudget] if the budget cannot hold it beside what other sequences
// were promised; [ErrContext]. The earlier promise stands then.
func (s *Sequence) Reserve(newTokens uint) error {
	return s.use(func() *C.rrpc_error { return C.go_sequence_reserve(s.handle, C.size_t(newTokens)) })
}

// Step runs one step of the model for sequences of one engine, in any mixture: each advances by the next
// part of its given text or by its generated tokens, and is compressed if that is due. Sequences with
// nothing pending afterwards have logits. A step is short and is not interrupted; one of an engine runs at
// a time, and a second call waits.
//
// Errors: [ErrBusy], [ErrPoisoned]; [ErrInvalidArgument] if there is no sequence, one occurs twice, one is
// of another engine or has nothing pending; [ErrBudget] if too little is free, which Reserve prevents.
// Nothing has advanced then. [ErrRuntime].
func Step(sequences ...*Sequence) error {
	handles := make([]C.go_sequence, max(len(sequences), 1))
	for i, s := range sequences {
		if !s.lent.TryRLock() {
			return s.busy()
		}
		defer s.lent.RUnlock()
		handles[i] = s.handle
	}
	defer runtime.KeepAlive(sequences)
	err := check(C.go_step(unsafe.SliceData(handles), C.size_t(len(sequences))))
	for _, s := range sequences {
		if s.selector != nil && s.selector.failed.Load() != nil {
			return s.selector.explain(err)
		}
	}
	return err
}

// Pending is how many tokens no step has run yet. While there are any, the sequence has no logits.
//
// Errors: [ErrBusy], [ErrPoisoned].
func (s *Sequence) Pending() (int, error) {
	var pending C.size_t
	err := s.use(func() *C.rrpc_error { return C.go_sequence_pending(s.handle, &pending) })
	if err != nil {
		return 0, err
	}
	return int(pending), nil
}

// Logits is a copy of the logits after the last token, one for each token of the vocabulary,
// unnormalised and not touched by the sampling options. nil while tokens are pending.
//
// Errors: [ErrBusy], [ErrPoisoned].
func (s *Sequence) Logits() (logits []float32, err error) {
	var lent *C.float
	var count C.size_t
	err = s.borrow(func() error {
		return check(C.go_sequence_logits(s.handle, &lent, &count))
	}, func() {
		if lent != nil {
			logits = slices.Clone(unsafe.Slice((*float32)(lent), int(count)))
		}
	})
	return logits, err
}

// Sample draws the next token from the logits by the sequence's sampling options, appends it and returns
// its id.
//
// Errors: [ErrBusy], [ErrPoisoned]; [ErrInvalidArgument] if there are no logits after the last token;
// [ErrContext] if the context is full.
func (s *Sequence) Sample() (uint32, error) {
	var token C.uint32_t
	err := s.use(func() *C.rrpc_error { return C.go_sequence_sample(s.handle, &token) })
	if err != nil {
		return 0, err
	}
	return uint32(token), nil
}

// Accept appends a token of the caller's choice in place of a sampled one. It counts as generated: it may
// be dropped by a compression.
//
// Errors: [ErrBusy], [ErrPoisoned]; [ErrInvalidArgument] if the id is not in the vocabulary or the sequence
// is empty; [ErrContext] if the context is full.
func (s *Sequence) Accept(token uint32) error {
	return s.use(func() *C.rrpc_error { return C.go_sequence_accept(s.handle, C.uint32_t(token)) })
}

// Tokens are the ids of all tokens, given and generated, the pending ones included.
//
// Errors: [ErrBusy], [ErrPoisoned].
func (s *Sequence) Tokens() ([]uint32, error) {
	return fill(0, func(out *uint32, capacity C.size_t, count *C.size_t) error {
		return s.use(func() *C.rrpc_error {
			return C.go_sequence_tokens(s.handle, (*C.uint32_t)(out), capacity, count)
		})
	})
}

// Compression is what one compression did to one layer.
type Compression struct {
	// AtToken is how many generated tokens had been in the cache when it ran, dropped ones included.
	AtToken int
	// Layer, from 0.
	Layer int
	// LenBefore is the entries of the layer before; of its longest KV head, if they differ.
	LenBefore int
	// LenAfter is the entries of the layer after.
	LenAfter int
	// Kept are the text positions of the kept candidates, counted from 0 with the given text, ascending:
	// one set for the layer or one for each KV head; nil unless SequenceOptions.RecordKept. Given text
	// and the window always stay and are not listed.
	Kept [][]uint32
}

// Compressions is the log: an entry for each compression and layer, in order of time, then layer.
//
// Errors: [ErrBusy], [ErrPoisoned].
func (s *Sequence) Compressions() ([]Compression, error) {
	var count C.size_t
	err := s.use(func() *C.rrpc_error { return C.go_sequence_compression_count(s.handle, &count) })
	if err != nil {
		return nil, err
	}
	log := make([]Compression, count)
	for i := range log {
		found := C.rrpc_compression{struct_size: C.sizeof_rrpc_compression}
		err := s.use(func() *C.rrpc_error {
			return C.go_sequence_get_compression(s.handle, C.size_t(i), &found)
		})
		if err != nil {
			return nil, err
		}
		log[i] = Compression{
			AtToken:   int(found.at_token),
			Layer:     int(found.layer),
			LenBefore: int(found.len_before),
			LenAfter:  int(found.len_after),
		}
		for set := range C.size_t(found.kept_sets) {
			kept, err := fill(0, func(out *uint32, capacity C.size_t, count *C.size_t) error {
				return s.use(func() *C.rrpc_error {
					return C.go_sequence_compression_kept(s.handle, C.size_t(i), set, (*C.uint32_t)(out), capacity, count)
				})
			})
			if err != nil {
				return nil, err
			}
			log[i].Kept = append(log[i].Kept, kept)
		}
	}
	return log, nil
}

// Stats are figures of one sequence. Times are wall-clock times of the steps that it took part in.
type Stats struct {
	// PrefillTokens are the given tokens that steps have run.
	PrefillTokens int
	// DecodeTokens are the generated tokens that steps have run; the last one of an answer is not run.
	DecodeTokens int
	// Compressions is how many there were.
	Compressions int
	// PrefillTime of the steps that ran given tokens.
	PrefillTime time.Duration
	// DecodeTime of the steps that ran generated tokens, compressions not included.
	DecodeTime time.Duration
	// CompactionTime of the compressions.
	CompactionTime time.Duration
	// CacheBytes now, in whole blocks.
	CacheBytes uint64
	// CachePeakBytes is the most at any moment.
	CachePeakBytes uint64
	// CacheUncompressedBytes is what the cache would have now without compression, in whole blocks.
	CacheUncompressedBytes uint64
}

// Stats reads the figures of the sequence.
//
// Errors: [ErrBusy], [ErrPoisoned].
func (s *Sequence) Stats() (Stats, error) {
	stats := C.rrpc_sequence_stats{struct_size: C.sizeof_rrpc_sequence_stats}
	err := s.use(func() *C.rrpc_error { return C.go_sequence_get_stats(s.handle, &stats) })
	if err != nil {
		return Stats{}, err
	}
	return Stats{
		PrefillTokens:          int(stats.prefill_tokens),
		DecodeTokens:           int(stats.decode_tokens),
		Compressions:           int(stats.compressions),
		PrefillTime:            duration(stats.prefill_seconds),
		DecodeTime:             duration(stats.decode_seconds),
		CompactionTime:         duration(stats.compaction_seconds),
		CacheBytes:             uint64(stats.cache_bytes),
		CachePeakBytes:         uint64(stats.cache_peak_bytes),
		CacheUncompressedBytes: uint64(stats.cache_uncompressed_bytes),
	}, nil
}

func duration(seconds C.double) time.Duration {
	return time.Duration(float64(seconds) * float64(time.Second))
}
