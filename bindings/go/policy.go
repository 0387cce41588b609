package reasoningrpc

// #include "shim.h"
import "C"

import "runtime"

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
	// numbers per layer (fp16, or fp32 beside a cache of fp32), or none (see Queries).
	PolicyLookahead Policy = C.RRPC_POLICY_LOOKAHEAD
	// PolicyLookaheadMerge is the same, and what is dropped is merged into what is kept and the most similar (see
	// Similarity; compressors have SimilarityLogits).
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
	if err := checkNoNUL("a policy's name", name); err != nil {
		return 0, err
	}
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
	// AggregationOwn is the policy's own: AggregationLayer of PolicyRPC, AggregationKVHead of PolicySnapKV and, in
	// compressors, of those that look ahead, which in engines have AggregationAdaptive.
	AggregationOwn Aggregation = C.RRPC_AGGREGATION_OWN
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
	// QueriesAuto is QueriesStored if the interval has at most 256 tokens, QueriesOnline beyond.
	QueriesAuto Queries = C.RRPC_QUERIES_AUTO
)

// Similarity is which kept key a dropped one is the most similar to, where entries are merged.
type Similarity uint32

const (
	// SimilarityLogits: the one of its KV head whose logits differ from its own by the least variance over the
	// interval's queries.
	SimilarityLogits Similarity = C.RRPC_SIMILARITY_LOGITS
	// SimilarityCosine: the one of its KV head with the largest cosine.
	SimilarityCosine Similarity = C.RRPC_SIMILARITY_COSINE
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
// but PolicyNone and PolicyLightThinker read the next three fields and the budgets at the end; Pooling and
// Kernel are PolicyRPC's; PolicySnapKV and those that look ahead read Aggregation too. The defaults of the
// sampling are those of the model's authors; if they give none, Temperature 0.6, TopP 0.95 and the rest off.
type SequenceOptions struct {
	// Policy. Default PolicyLookaheadMerge; PolicyRPC for a model of the portable flavour.
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
	// Aggregation. Default AggregationOwn.
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
	// Queries is how PolicyLookahead and PolicyLookaheadMerge have an interval's queries. Default QueriesAuto.
	Queries Queries
	// Similarity is what PolicyLookaheadMerge merges by. Default SimilarityLogits.
	Similarity Similarity
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
	// Select, of PolicyCallback, chooses what one layer keeps, when a compression is due: it fills in Kept. It is
	// called in goroutines of calls that generate and in threads of the library, of different sequences (forks
	// among them) in several at once. It may not use the sequence. An error that it returns, a panic in it and an
	// answer that cannot be end the call that generates, which returns [ErrCallback] and wraps the newest of these
	// errors; the sequence cannot be used any more. Default nil.
	Select func(*SequenceSelectRequest) error
}

// sequenceOptions are the defaults with the caller's changes; pinner holds what they point to.
func (e *Engine) sequenceOptions(options []func(*SequenceOptions), pinner *runtime.Pinner) (C.rrpc_sequence_options, *SequenceOptions, error) {
	var o C.rrpc_sequence_options
	if err := check(C.go_sequence_options_init(e.handle, &o, C.sizeof_rrpc_sequence_options)); err != nil {
		return o, nil, err
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
		Similarity:        Similarity(o.similarity),
		ValueNorms:        o.value_norms != 0,
		History:           float32(o.history),
		Redundancy:        float32(o.redundancy),
		Resume:            uint32(o.resume),
	}
	for _, change := range options {
		change(&chosen)
	}
	if chosen.Policy == PolicyCallback {
		if chosen.Select == nil {
			return o, nil, invalid("PolicyCallback needs a Select function")
		}
		C.go_sequence_options_callback(&o)
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
	o.similarity = C.uint32_t(chosen.Similarity)
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
	return o, &chosen, nil
}
