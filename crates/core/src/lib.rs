//! What to keep of a KV cache, and when.
//!
//! This room knows nothing of devices, files or models: it has the compression [`schedule`], the
//! [`policy`] trait and its implementations, the [`plan`] a policy answers with, the exact
//! [`budget`] formulas, and plain [`reference`](mod@reference) implementations of every numeric
//! operation that the other crates do fast.
//!
//! Source of the formulas: Song, Jo, Kim, Kim, "Reasoning Path Compression", arXiv 2505.13866.

#![forbid(unsafe_code)]

pub mod budget;
pub mod plan;
pub mod policies;
pub mod policy;
pub mod pooling;
pub mod reference;
pub mod rolling;
pub mod schedule;
pub mod selection;
mod vectors;

pub use budget::CacheShape;
pub use plan::{LayerPlan, Merge, PlanError, PlanMemory, PlanParts};
pub use policies::{
    Aggregation, LightThinker, NoCompression, PolicyKind, Queries, Rpc, RpcOptions, Similarity, Softmax,
};
pub use policy::{Attention, LayerView, Policy, ScoreRule, Spec, Trigger};
pub use pooling::Pooling;
pub use rolling::Rolling;
pub use schedule::{Budget, OptionError, Schedule};
