//! Policies by number, and what options of sequences and of compressors say alike.

use reasoning_rpc_engine::core::{Aggregation, Budget, PolicyKind, Pooling, RpcOptions};

use crate::args::choice;
use crate::error::Failure;

/// The cache is left whole.
pub const RRPC_POLICY_NONE: u32 = 0;
/// Reasoning path compression: after every `interval` generated tokens, the queries of the newest
/// `window` score the generated ones before them, and the best stay: one in `ratio` of all intervals
/// so far. Text given by the caller is never dropped.
pub const RRPC_POLICY_RPC: u32 = 1;
/// A callback of the options (`select`) is asked what to keep when RRPC_POLICY_RPC would choose, with the same window and
/// budget: an rrpc_sequence_select_callback of a sequence, an rrpc_select_callback of a compressor. Sequences of models of
/// the portable flavour cannot have it, and those that do cannot be saved.
pub const RRPC_POLICY_CALLBACK: u32 = 2;

/// SnapKV at the steps of RPC: the attention of the newest `window` over all entries that they see, averaged
/// over 7 neighbours. This and the five up to
/// RRPC_POLICY_LOOKAHEAD_MERGE keep one set for each KV head and read `interval`, `window` and
/// the budget.
pub const RRPC_POLICY_SNAPKV: u32 = 3;
/// The first 4 generated entries and the most recent ones.
pub const RRPC_POLICY_STREAMING: u32 = 4;
/// Entries drawn at random, by `seed`.
pub const RRPC_POLICY_RANDOM: u32 = 5;
/// R-KV: attention against the redundancy of keys.
pub const RRPC_POLICY_R_KV: u32 = 6;
/// The attention of the last `interval` tokens' queries, rotated on to where the next ones will ask from. Not
/// with models of the portable flavour. It remembers interval * heads * head_dim numbers per layer (fp16, or fp32 beside a
/// cache of fp32), which the budget counts in whole blocks, or, with RRPC_QUERIES_ONLINE as `queries` and for an `interval`
/// above 256, none.
pub const RRPC_POLICY_LOOKAHEAD: u32 = 7;
/// The same, and what is dropped is merged into what is kept and the most similar (RRPC_SIMILARITY_LOGITS, unless `similarity`
/// of a sequence says otherwise).
pub const RRPC_POLICY_LOOKAHEAD_MERGE: u32 = 8;

/// H2O: at every token, once the budget is reached, each KV head drops the entry that has had the least attention
/// of all queries since it was written; the more recent half of the budget always stays. This and the next keep
/// `budget_entries`, whatever `interval` and `window` are; with `ratio` as many as RRPC_POLICY_RPC holds at its
/// peak. Not with models of the portable flavour. Entries in a cache's view are not in order of position then,
/// single entries that went count as compressions, and leave no record.
pub const RRPC_POLICY_H2O: u32 = 9;
/// TOVA: the same, but each layer drops the entry that the newest query gives the least attention.
pub const RRPC_POLICY_TOVA: u32 = 10;

/// LightThinker, for a model that was trained for it: when a token is drawn or accepted that is one of `delimiters`,
/// the ids of `gists` and then `resume` are put behind it, as if generated; the text has them
/// (rrpc_sequence_tokens), answers do not show them and count them in max_tokens. Once the gists are written, the
/// entries of the thought go: all generated since the ones before, the delimiter's included. Positions stay true
/// indices in the text. Where thoughts end is not known before, so the peak is that of RRPC_POLICY_NONE. After
/// a delimiter rrpc_step has more than one token to run before there are logits.
pub const RRPC_POLICY_LIGHTTHINKER: u32 = 11;
/// In the place of `resume`: none.
pub const RRPC_NO_TOKEN: u32 = u32::MAX;

/// Policies of the library and their constants.
pub(crate) const POLICIES: [(u32, PolicyKind); 10] = [
    (RRPC_POLICY_NONE, PolicyKind::None),
    (RRPC_POLICY_RPC, PolicyKind::Rpc),
    (RRPC_POLICY_SNAPKV, PolicyKind::SnapKv),
    (RRPC_POLICY_STREAMING, PolicyKind::Streaming),
    (RRPC_POLICY_RANDOM, PolicyKind::Random),
    (RRPC_POLICY_R_KV, PolicyKind::RKv),
    (RRPC_POLICY_LOOKAHEAD, PolicyKind::Lookahead),
    (RRPC_POLICY_LOOKAHEAD_MERGE, PolicyKind::LookaheadMerge),
    (RRPC_POLICY_H2O, PolicyKind::H2o),
    (RRPC_POLICY_TOVA, PolicyKind::Tova),
];

/// c of the paper.
pub(crate) const DEFAULT_RATIO: u32 = 4;

/// Scores are averaged over all heads of a layer: one kept set for the layer.
pub const RRPC_AGGREGATION_LAYER: u32 = 0;
/// Scores are averaged over the query heads of each KV head: one kept set for each.
pub const RRPC_AGGREGATION_KV_HEAD: u32 = 1;
/// The same, but the KV heads of a layer share their budgets: four fifths go to where the layer's best entries are, a fifth
/// to all alike (Ada-KV, arXiv 2407.11550). Read by snapkv and the policies that look ahead too, which have one kept set
/// for each KV head in any case. Not for compressors.
pub const RRPC_AGGREGATION_ADAPTIVE: u32 = 2;
/// The policy's own: RRPC_AGGREGATION_LAYER of RRPC_POLICY_RPC, RRPC_AGGREGATION_KV_HEAD of RRPC_POLICY_SNAPKV and,
/// in compressors, of those that look ahead, which in engines have RRPC_AGGREGATION_ADAPTIVE.
pub const RRPC_AGGREGATION_OWN: u32 = 3;

/// Neighbouring scores are averaged.
pub const RRPC_POOLING_AVERAGE: u32 = 0;
/// The highest of neighbouring scores counts.
pub const RRPC_POOLING_MAX: u32 = 1;
/// Scores stay as they are. Not for compressors, whose `kernel` 1 is the same.
pub const RRPC_POOLING_NONE: u32 = 2;

/// A query's attention is shared out among the entries that may be dropped, as published.
pub const RRPC_SOFTMAX_CANDIDATES: u32 = 0;
/// A query's attention is shared out among all entries that it sees.
pub const RRPC_SOFTMAX_ALL: u32 = 1;

/// All queries of an interval are stored, interval * heads * head_dim numbers per layer (fp16, or fp32 beside a cache of
/// fp32), which are of the budget, and each is asked about all entries when the interval ends.
pub const RRPC_QUERIES_STORED: u32 = 0;
/// No queries are stored: each is asked while its token attends, about the entries that it sees, which it
/// reads anyway. An entry misses the queries before it, which costs some accuracy, and steps take longer; two floats are
/// kept per entry, and for a merge head_dim * (head_dim + 1) floats per KV head and layer and the queries of 64 tokens.
/// Until the first compression a rewind runs tokens again; after it, tokens that were run cannot be taken back.
pub const RRPC_QUERIES_ONLINE: u32 = 1;
/// RRPC_QUERIES_STORED if the interval has at most 256 tokens, RRPC_QUERIES_ONLINE beyond.
pub const RRPC_QUERIES_AUTO: u32 = 2;

/// A dropped key is the most similar to the kept one of its KV head whose logits differ from its own by the least variance
/// over the interval's queries.
pub const RRPC_SIMILARITY_LOGITS: u32 = 0;
/// A dropped key is the most similar to the kept one of its KV head with the largest cosine.
pub const RRPC_SIMILARITY_COSINE: u32 = 1;

/// The fields by which options of sequences and of compressors say what stays, the same in both.
pub(crate) struct Recipe {
    pub interval: u32,
    pub window: u32,
    /// Read if `entries` is 0.
    pub ratio: u32,
    pub entries: u64,
    pub aggregation: u32,
    pub pooling: u32,
    pub kernel: u32,
}

impl Recipe {
    /// Converts them, and leaves the others at their defaults. `poolings` are those that may be asked for.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a constant that there is not.
    pub fn options(&self, poolings: &[(u32, Pooling)]) -> Result<RpcOptions, Failure> {
        Ok(RpcOptions {
            interval: self.interval as usize,
            window: self.window as usize,
            budget: match self.entries {
                0 => Budget::Ratio(self.ratio as usize),
                entries => Budget::Entries(usize::try_from(entries).unwrap_or(usize::MAX)),
            },
            aggregation: choice(
                "options.aggregation",
                self.aggregation,
                &[
                    (RRPC_AGGREGATION_LAYER, Some(Aggregation::Layer)),
                    (RRPC_AGGREGATION_KV_HEAD, Some(Aggregation::KvHead)),
                    (RRPC_AGGREGATION_ADAPTIVE, Some(Aggregation::Adaptive)),
                    (RRPC_AGGREGATION_OWN, None),
                ],
            )?,
            pooling: choice("options.pooling", self.pooling, poolings)?,
            kernel: self.kernel as usize,
            ..RpcOptions::default()
        })
    }
}
