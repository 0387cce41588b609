//! The policies that users select by name.

mod lookahead;
mod none;
mod r_kv;
mod random;
pub(crate) mod rpc;
mod snapkv;
mod streaming;

use std::sync::Arc;

pub use lookahead::Lookahead;
pub use none::NoCompression;
pub use r_kv::RKv;
pub use random::Random;
pub use rpc::{Aggregation, Rpc, RpcOptions};
pub use snapkv::SnapKv;
pub use streaming::Streaming;

use crate::plan::{LayerPlan, PlanError};
use crate::policy::Policy;
use crate::schedule::OptionError;
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
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::Rpc,
        Self::SnapKv,
        Self::Streaming,
        Self::Random,
        Self::RKv,
        Self::Lookahead,
        Self::LookaheadMerge,
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
        }
    }

    /// The policy that a name selects.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The policy, with those of the options that it has: all follow the schedule (interval, window and
    /// budget), [`Rpc`] reads the rest too.
    ///
    /// # Errors
    /// An option that it reads cannot be.
    pub fn build(self, options: RpcOptions) -> Result<Arc<dyn Policy>, OptionError> {
        let schedule = || options.schedule();
        Ok(match self {
            Self::None => Arc::new(NoCompression),
            Self::Rpc => Arc::new(Rpc::new(options)?),
            Self::SnapKv => Arc::new(SnapKv::new(schedule()?)),
            Self::Streaming => Arc::new(Streaming::new(schedule()?)),
            Self::Random => Arc::new(Random::new(schedule()?)),
            Self::RKv => Arc::new(RKv::new(schedule()?)),
            Self::Lookahead => Arc::new(Lookahead::new(schedule()?, false)),
            Self::LookaheadMerge => Arc::new(Lookahead::new(schedule()?, true)),
        })
    }
}

/// Adds the `keep` best of `scores` to the plan as its next kept set.
fn keep_best(plan: &mut LayerPlan<'_>, scores: &[f32], keep: usize) -> Result<(), PlanError> {
    let (best, _) = plan.room(scores.len(), 0)?;
    let kept = top_k(scores, keep, best);
    plan.push_room(kept)
}
