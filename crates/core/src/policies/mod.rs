//! The policies that users select by name.

mod h2o;
mod lightthinker;
mod lookahead;
mod merge;
mod none;
mod r_kv;
mod random;
pub(crate) mod rpc;
mod snapkv;
mod streaming;
mod tova;

use std::sync::Arc;

pub use h2o::H2o;
pub use lightthinker::LightThinker;
pub use lookahead::Lookahead;
pub use none::NoCompression;
pub use r_kv::RKv;
pub use random::Random;
pub use rpc::{Aggregation, Queries, Rpc, RpcOptions, Similarity, Softmax};
pub use snapkv::SnapKv;
pub use streaming::Streaming;
pub use tova::Tova;

use crate::budget::CacheShape;
use crate::plan::{LayerPlan, PlanError};
use crate::policy::Policy;
use crate::schedule::{Budget, OptionError};
use crate::selection::top_k;

/// A policy of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyKind {
    /// [`NoCompression`].
    None,
    /// [`Rpc`].
    Rpc,
    /// [`SnapKv`].
    SnapKv,
    /// [`Streaming`].
    Streaming,
    /// [`Random`].
    Random,
    /// [`RKv`].
    RKv,
    /// [`Lookahead`] that drops.
    Lookahead,
    /// [`Lookahead`] that merges.
    LookaheadMerge,
    /// [`H2o`].
    H2o,
    /// [`Tova`].
    Tova,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::None,
        Self::Rpc,
        Self::SnapKv,
        Self::Streaming,
        Self::Random,
        Self::RKv,
        Self::Lookahead,
        Self::LookaheadMerge,
        Self::H2o,
        Self::Tova,
    ];

    /// The name that users select it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Rpc => "rpc",
            Self::SnapKv => "snapkv",
            Self::Streaming => "streaming",
            Self::Random => "random",
            Self::RKv => "r-kv",
            Self::Lookahead => "lookahead",
            Self::LookaheadMerge => "lookahead-merge",
            Self::H2o => "h2o",
            Self::Tova => "tova",
        }
    }

    /// The policy that a name selects.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The [`Budget::Entries`] with which generated entries take at most `bytes`, as [`Budget::within`], for this
    /// policy: one that drops an entry at every token has no window and no interval beside what it keeps.
    ///
    /// # Errors
    /// As [`Budget::within`].
    pub fn budget_within(
        self,
        bytes: usize,
        shape: &CacheShape,
        options: &RpcOptions,
    ) -> Result<Budget, OptionError> {
        let adaptive = match self {
            Self::H2o | Self::Tova => return Budget::within(bytes, shape, 1, 0, false),
            Self::Rpc | Self::SnapKv => options.aggregation == Some(Aggregation::Adaptive),
            Self::Lookahead | Self::LookaheadMerge => Lookahead::is_adaptive(options),
            Self::None | Self::Streaming | Self::Random | Self::RKv => false,
        };
        Budget::within(bytes, shape, options.interval, options.window, adaptive)
    }

    /// The policy, with those of the options that it has: all follow the schedule (interval, window and
    /// budget), those that look ahead read `queries`, and [`Rpc`] the rest.
    ///
    /// # Errors
    /// An option that it reads cannot be.
    pub fn build(self, options: RpcOptions) -> Result<Arc<dyn Policy>, OptionError> {
        let schedule = || options.schedule();
        Ok(match self {
            Self::None => Arc::new(NoCompression),
            Self::Rpc => Arc::new(Rpc::new(options)?),
            Self::SnapKv => Arc::new(SnapKv::new(schedule()?, options.aggregation)),
            Self::Streaming => Arc::new(Streaming::new(schedule()?)),
            Self::Random => Arc::new(Random::new(schedule()?)),
            Self::RKv => Arc::new(RKv::new(schedule()?)),
            Self::Lookahead => Arc::new(Lookahead::new(schedule()?, false, &options)?),
            Self::LookaheadMerge => Arc::new(Lookahead::new(schedule()?, true, &options)?),
            Self::H2o => Arc::new(H2o::new(schedule()?)),
            Self::Tova => Arc::new(Tova::new(schedule()?)),
        })
    }
}

fn check_share(name: &str, value: f32) -> Result<(), OptionError> {
    match (0.0..=1.0).contains(&value) {
        true => Ok(()),
        false => Err(OptionError(format!("{name}: expected 0 to 1, found {value}"))),
    }
}

/// Adds all candidates but the one with the lowest score, of equals the most recent, as the next kept set.
fn keep_all_but_worst(plan: &mut LayerPlan<'_>, scores: &[f32], positions: &[u32]) -> Result<(), PlanError> {
    let mut worst = 0;
    for (index, (score, position)) in scores.iter().zip(positions).enumerate() {
        if (score, std::cmp::Reverse(position)) < (&scores[worst], std::cmp::Reverse(&positions[worst])) {
            worst = index;
        }
    }
    let keep = scores.len().saturating_sub(1);
    let (kept, _) = plan.room(keep, 0)?;
    let indices = (0u32..).filter(|&index| index as usize != worst);
    kept.iter_mut()
        .zip(indices)
        .for_each(|(slot, index)| *slot = index);
    plan.push_room(keep)
}

/// The mean of the scores of some heads, each of as many candidates.
fn mean<'a>(mut heads: impl Iterator<Item = &'a [f32]>) -> Result<Vec<f32>, PlanError> {
    let mut mean = heads.next().unwrap_or_default().to_vec();
    let mut count = 1.0;
    for head in heads {
        if head.len() != mean.len() {
            return Err(PlanError::UnequalHeads {
                expected: mean.len(),
                found: head.len(),
            });
        }
        mean.iter_mut().zip(head).for_each(|(sum, x)| *sum += x);
        count += 1.0;
    }
    mean.iter_mut().for_each(|sum| *sum /= count);
    Ok(mean)
}

/// Adds the `keep` best of `scores` to the plan as its next kept set.
fn keep_best(plan: &mut LayerPlan<'_>, scores: &[f32], keep: usize) -> Result<(), PlanError> {
    let (best, _) = plan.room(scores.len(), 0)?;
    let kept = top_k(scores, keep, best);
    plan.push_room(kept)
}

/// How many candidates each KV head keeps of `keep` times as many as there are heads, by the scores of each: four fifths of
/// them go to the heads whose candidates are among the layer's best, a fifth to all alike, so that no head is left
/// without (Ada-KV, arXiv 2407.11550, safeguard 0.2). Ties: the lower head, then the lower index.
fn adaptive_counts(heads: &[Vec<f32>], keep: usize) -> Vec<usize> {
    let scores = heads.concat();
    let mut best = vec![0; scores.len()];
    let found = top_k(&scores, keep.saturating_mul(heads.len()), &mut best);
    let best = &best[..found];
    let (mut end, mut alike, mut before) = (0, 0, 0);
    let counts = heads.iter().map(|head| {
        end += head.len();
        alike += keep.min(head.len());
        // Sums are rounded, so that they add up.
        let sum = (4 * best.partition_point(|&index| (index as usize) < end) + alike) / 5;
        let count = sum - before;
        before = sum;
        count.min(head.len())
    });
    counts.collect()
}
