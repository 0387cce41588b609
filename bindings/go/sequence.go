package reasoningrpc

// #include "shim.h"
import "C"

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// Policy is how a cache is compressed.
type Policy uint32

const (
	// PolicyNone leaves the cache whole.
	PolicyNone Policy = C.RRPC_POLICY_NONE
	// PolicyRPC is reasoning path compression: after every Interval generated tokens, the queries of the
	// newest Window score the generated ones before them, and the best stay: one in Ratio of all
	// intervals so far. Given text is never dropped.
	PolicyRPC Policy = C.RRPC_POLICY_RPC
	// PolicySnapKV is SnapKV at the steps of RPC: the attention of the newest Window over all entries that
	// they see, averaged over 7 neighbours. This and those up to PolicyLookaheadMerge keep one set for
	// each KV head and read Interval, Window and the budget.
	PolicySnapKV Policy = C.RRPC_POLICY_SNAPKV
	// PolicyStreaming keeps the first 4 generated entries and the most recent ones.
	PolicyStreaming Policy = C.RRPC_POLICY_STREAMING
	// PolicyRandom draws entries, by Seed.
	PolicyRandom Policy = C.RRPC_POLICY_RANDOM
	// PolicyRKV is R-KV: attention against the redundancy of keys.
	PolicyRKV Policy = C.RRPC_POLICY_R_KV
	// PolicyLookahead is the attention of the last Interval tokens' queries, rotated on to where the next
	// ones will ask from. Not with models of the portable flavour. It remembers Interval * heads * head_dim
	// floats per layer.
	PolicyLookahead Policy = C.RRPC_POLICY_LOOKAHEAD
	// PolicyLookaheadMerge is the same, and what is dropped is merged into what is kept.
	PolicyLookaheadMerge Policy = C.RRPC_POLICY_LOOKAHEAD_MERGE
	// PolicyH2O drops at every token, once the budget is reached, the entry of each KV head that has had the
	// least attention of all queries since it was written; the more recent half of the budget always stays.
	// This and PolicyTOVA keep BudgetEntries, whatever Interval and Window are; with Ratio as many as
	// PolicyRPC holds at its peak. Not with models of the portable flavour.
	PolicyH2O Policy = C.RRPC_POLICY_H2O
	// PolicyTOVA is the same, but each layer drops the entry that the newest query gives the least attention.
	PolicyTOVA Policy = C.RRPC_POLICY_TOVA
	// PolicyLightThinker is for a model that was trained for it: behind a token of Delimiters the ids of Gists and
	// then Resume are put, as if generated. Once the gists are written, the entries of the thought go: all
	// generated since the ones before. Answers do not show what was put there, [Sequence.Tokens] has it, and
	// MaxTokens counts it. The peak is that of PolicyNone.
	PolicyLightThinker Policy = C.RRPC_POLICY_LIGHTTHINKER
)

// NoToken, in the place of Resume, is none.
const NoToken uint32 = C.RRPC_NO_TOKEN

var policyNames = map[Policy]string{
	PolicyNone: "none", PolicyRPC: "rpc", PolicyCallback: "callback", PolicySnapKV: "snapkv",
	PolicyStreaming: "streaming", PolicyRandom: "random", PolicyRKV: "r-kv", PolicyLookahead: "lookahead",
	PolicyLookaheadMerge: "lookahead-merge", PolicyH2O: "h2o", PolicyTOVA: "tova",
	PolicyLightThinker: "lightthinker",
}

// ParsePolicy is the policy that a name selects: "none", "rpc", "snapkv", "streaming", "random", "r-kv",
// "lookahead", "lookahead-merge", "h2o", "tova", "lightthinker", or "callback".
//
// Errors: [ErrInvalidArgument] for another name.
func ParsePolicy(name string) (Policy, error) {
	var memory copies
	defer func() { memory.free() }()
	var policy C.uint32_t
	err := check(C.rrpc_policy_from_name(memory.text(name).data, &policy))
	return Policy(policy), err
}

// String is the policy's name.
func (p Policy) String() string {
	if name, ok := policyNames[p]; ok {
		return name
	}
	return "unknown"
}

// Aggregation is over which heads scores are averaged.
type Aggregation uint32

const (
	// AggregationLayer: over all heads of a layer: one kept set for the layer.
	AggregationLayer Aggregation = C.RRPC_AGGREGATION_LAYER
	// AggregationKVHead: over the query heads of each KV head: one kept set for each.
	AggregationKVHead Aggregation = C.RRPC_AGGREGATION_KV_HEAD
	// AggregationAdaptive: the same, with longer sets where scores are higher. Not for compressors.
	AggregationAdaptive Aggregation = C.RRPC_AGGREGATION_ADAPTIVE
)

// Pooling is what becomes of neighbouring scores.
type Pooling uint32

const (
	// PoolingAverage averages them.
	PoolingAverage Pooling = C.RRPC_POOLING_AVERAGE
	// PoolingMax takes the highest.
	PoolingMax Pooling = C.RRPC_POOLING_MAX
	// PoolingNone leaves scores as they are. Not for compressors.
	PoolingNone Pooling = C.RRPC_POOLING_NONE
)

// Queries is how policies that look ahead have an interval's queries.
type Queries uint32

const (
	// QueriesStored stores them all, and asks each about all entries when the interval ends.
	QueriesStored Queries = C.RRPC_QUERIES_STORED
	// QueriesOnline stores none: each is asked while its token attends, about the entries that it sees. An entry
	// misses the queries before it, which costs some accuracy, and steps take longer.
	QueriesOnline Queries = C.RRPC_QUERIES_ONLINE
)

// Softmax is what a query's attention is shared out among.
type Softmax uint32

const (
	// SoftmaxCandidates: the entries that may be dropped, as published.
	SoftmaxCandidates Softmax = C.RRPC_SOFTMAX_CANDIDATES
	// SoftmaxAll: all entries that the query sees.
	SoftmaxAll Softmax = C.RRPC_SOFTMAX_ALL
)

// SequenceOptions are the options of [Engine.NewSequence] and [Engine.PeakCacheBytes]. All policies
// but PolicyNone and PolicyLightThinker read the next three fields and the budgets at the end; Aggregation, Pooling
// and Kernel are PolicyRPC's. The defaults of the sampling are those of the model's authors;
// if they give none, Temperature 0.6, TopP 0.95 and the rest off.
type SequenceOptions struct {
	// Policy. Default PolicyRPC.
	Policy Policy
	// Interval is how many generated tokens are between two compressions (P), a multiple of Ratio.
	// Default 4096.
	Interval uint32
	// Window is how many of the newest generated tokens score the others and always stay (R): 1 or more,
	// less than Interval. Default 32.
	Window uint32
	// Ratio: one of so many entries stays (c), 1 or more. Not read if BudgetEntries or BudgetBytes is set.
	// Default 4.
	Ratio uint32
	// Aggregation. Default AggregationLayer.
	Aggregation Aggregation
	// Pooling. Default PoolingAverage.
	Pooling Pooling
	// Kernel is the width of the pooling, in scores: odd, 1 (none) to 65535. Default 7.
	Kernel uint32
	// RecordKept makes the log of compressions name the kept positions, and so grow with the text.
	// Default false.
	RecordKept bool
	// Temperature divides the logits; 0 is greedy.
	Temperature float32
	// TopP: only the most probable tokens that together reach this probability, 0 to 1; 1 is off.
	TopP float32
	// MinP: only tokens at least this times as probable as the most probable one, 0 to 1; 0 is off.
	MinP float32
	// RepetitionPenalty divides the positive and multiplies the negative logits of tokens that the text
	// has; above 0; 1 is off.
	RepetitionPenalty float32
	// TopK: only so many of the most probable tokens; 0 is off.
	TopK uint32
	// Seed: the same seed gives the same text. Default 0.
	Seed uint64
	// BudgetEntries, in place of Ratio: so many entries stay in each KV head of each layer, the window not
	// counted. No layer ever holds more generated entries than BudgetEntries + Window + Interval. 0: not set,
	// which is the default.
	BudgetEntries uint64
	// BudgetBytes, in place of Ratio: the most bytes that the generated entries take at any moment, in whole
	// blocks, the window and an interval of new ones included. Given text comes on top. 0: not set, which is
	// the default.
	BudgetBytes uint64
	// Softmax is what a query's attention is shared out among. This and the next three are PolicyRPC's.
	// Default SoftmaxCandidates.
	Softmax Softmax
	// Queries is how PolicyLookahead and PolicyLookaheadMerge have an interval's queries. Default QueriesStored.
	Queries Queries
	// ValueNorms multiplies an entry's score by the sum of the magnitudes of its value. Default false.
	ValueNorms bool
	// History: so much of an entry's score at the compression before is added to the new one, 0 to 1.
	// Default -1: the policy's own, 0 of PolicyRPC, 0.6 of those that look ahead.
	History float32
	// Redundancy is the weight w of the redundancy of keys, as PolicyRKV has it, 0 to 1: (1 - w) times the
	// pooled scores less w times it, both normalised to a maximum of 1. Default 0.
	Redundancy float32
	// Delimiters are the token ids that end a thought. This and the next two are PolicyLightThinker's. Default nil.
	Delimiters []uint32
	// Gists are the token ids that take a thought's place, none of Delimiters. Default nil.
	Gists []uint32
	// Resume is a token id behind the gists, which sees them and not the thought, and stays; no delimiter. Default
	// NoToken.
	Resume uint32
}

// sequenceOptions are the defaults with the caller's changes; pinner holds what they point to.
func (e *Engine) sequenceOptions(options []func(*SequenceOptions), pinner *runtime.Pinner) (C.rrpc_sequence_options, error) {
	var o C.rrpc_sequence_options
	if err := check(C.go_sequence_options_init(e.handle, &o, C.sizeof_rrpc_sequence_options)); err != nil {
		return o, err
	}
	chosen := SequenceOptions{
		Policy:            Policy(o.policy),
		Interval:          uint32(o.interval),
		Window:            uint32(o.window),
		Ratio:             uint32(o.ratio),
		Aggregation:       Aggregation(o.aggregation),
		Pooling:           Pooling(o.pooling),
		Kernel:            uint32(o.kernel),
		RecordKept:        o.record_kept != 0,
		Temperature:       float32(o.temperature),
		TopP:              float32(o.top_p),
		MinP:              float32(o.min_p),
		RepetitionPenalty: float32(o.repetition_penalty),
		TopK:              uint32(o.top_k),
		Seed:              uint64(o.seed),
		BudgetEntries:     uint64(o.budget_entries),
		BudgetBytes:       uint64(o.budget_bytes),
		Softmax:           Softmax(o.softmax),
		Queries:           Queries(o.queries),
		ValueNorms:        o.value_norms != 0,
		History:           float32(o.history),
		Redundancy:        float32(o.redundancy),
		Resume:            uint32(o.resume),
	}
	for _, change := range options {
		change(&chosen)
	}
	o.policy = C.uint32_t(chosen.Policy)
	o.interval = C.uint32_t(chosen.Interval)
	o.window = C.uint32_t(chosen.Window)
	o.ratio = C.uint32_t(chosen.Ratio)
	o.aggregation = C.uint32_t(chosen.Aggregation)
	o.pooling = C.uint32_t(chosen.Pooling)
	o.kernel = C.uint32_t(chosen.Kernel)
	o.record_kept = flag(chosen.RecordKept)
	o.temperature = C.float(chosen.Temperature)
	o.top_p = C.float(chosen.TopP)
	o.min_p = C.float(chosen.MinP)
	o.repetition_penalty = C.float(chosen.RepetitionPenalty)
	o.top_k = C.uint32_t(chosen.TopK)
	o.seed = C.uint64_t(chosen.Seed)
	o.budget_entries = C.uint64_t(chosen.BudgetEntries)
	o.budget_bytes = C.uint64_t(chosen.BudgetBytes)
	o.softmax = C.uint32_t(chosen.Softmax)
	o.queries = C.uint32_t(chosen.Queries)
	o.value_norms = flag(chosen.ValueNorms)
	o.history = C.float(chosen.History)
	o.redundancy = C.float(chosen.Redundancy)
	if len(chosen.Delimiters) > 0 {
		o.delimiters, o.num_delimiters = ids(chosen.Delimiters), C.size_t(len(chosen.Delimiters))
		pinner.Pin(o.delimiters)
	}
	if len(chosen.Gists) > 0 {
		o.gists, o.num_gists = ids(chosen.Gists), C.size_t(len(chosen.Gists))
		pinner.Pin(o.gists)
	}
	o.resume = C.uint32_t(chosen.Resume)
	return o, nil
}

// Sequence is a text under generation: tokens, cache, compression policy and sampler. One call at a time
// uses it; a second one that comes meanwhile changes nothing and returns [ErrBusy]. It can be continued for
// as long as the context has room: append, generate, append the next turn, generate.
type Sequence struct {
	handle  C.go_sequence
	cleanup runtime.Cleanup
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
	o, err := e.sequenceOptions(options, &pinner)
	if err != nil {
		return nil, err
	}
	return ownSequence(func(handle *C.go_sequence) error {
		return check(C.go_sequence_create(e.handle, &o, handle))
	})
}

// ownSequence is the sequence that call makes.
func ownSequence(call func(handle *C.go_sequence) error) (*Sequence, error) {
	s := &Sequence{}
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
	return check(call())
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
	return err
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
	return check(C.go_step(unsafe.SliceData(handles), C.size_t(len(sequences))))
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
