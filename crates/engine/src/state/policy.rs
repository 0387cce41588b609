//! Policies in saved sequences.

use std::any::Any;
use std::sync::Arc;

use reasoning_rpc_core::{
    Aggregation, Budget, LightThinker, Policy, PolicyKind, Pooling, Queries, RpcOptions, Similarity, Softmax,
};
use serde::{Deserialize, Serialize};

use super::restore::{Sections, damaged, refuse, too_large};
use crate::error::{Error, Result};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PolicyHeader {
    name: String,
    interval: u64,
    window: u64,
    /// One of the two.
    ratio: Option<u64>,
    entries: Option<u64>,
    per_kv_head: bool,
    adaptive: bool,
    max_pooling: bool,
    no_pooling: bool,
    kernel: u64,
    softmax_over_all: bool,
    /// Floats as their bits.
    history: Option<u32>,
    value_norms: bool,
    redundancy: u32,
    queries_online: bool,
    similar_by_cosine: bool,
}

/// lightthinker: how many ids of each kind there are, and the one behind the gists.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ThoughtsHeader {
    delimiters: u64,
    gists: u64,
    resume: Option<u32>,
}

/// # Errors
/// [`Error::InvalidArgument`]: it cannot be restored.
pub(super) fn policy_header(policy: &dyn Policy) -> Result<PolicyHeader> {
    let Some((kind, options)) = policy.recipe() else {
        return Err(Error::InvalidArgument(format!(
            "save: expected a policy that can be restored, found {:?}",
            policy.name()
        )));
    };
    let (ratio, entries) = match options.budget {
        Budget::Ratio(ratio) => (Some(ratio as u64), None),
        Budget::Entries(entries) => (None, Some(entries as u64)),
    };
    Ok(PolicyHeader {
        name: kind.name().into(),
        interval: options.interval as u64,
        window: options.window as u64,
        ratio,
        entries,
        per_kv_head: options.aggregation == Some(Aggregation::KvHead),
        adaptive: options.aggregation == Some(Aggregation::Adaptive),
        max_pooling: options.pooling == Pooling::Max,
        no_pooling: options.pooling == Pooling::None,
        kernel: options.kernel as u64,
        softmax_over_all: options.softmax == Softmax::All,
        history: options.history.map(f32::to_bits),
        value_norms: options.value_norms,
        redundancy: options.redundancy.to_bits(),
        queries_online: options.queries == Queries::Online,
        similar_by_cosine: options.similarity == Similarity::Cosine,
    })
}

/// The policy, if it is lightthinker.
pub(super) fn light_thinker(policy: &dyn Policy) -> Option<&LightThinker> {
    let policy: &dyn Any = policy;
    policy.downcast_ref()
}

pub(super) fn thoughts_header(policy: &LightThinker) -> ThoughtsHeader {
    ThoughtsHeader {
        delimiters: policy.delimiters().len() as u64,
        gists: policy.gists().len() as u64,
        resume: policy.resume(),
    }
}

pub(super) fn read_light_thinker(
    header: &ThoughtsHeader,
    sections: &mut Sections<'_>,
) -> Result<Arc<dyn Policy>> {
    let mut ids = |count: u64| -> Result<Vec<u32>> {
        let count = usize::try_from(count).map_err(|_| too_large())?;
        Ok(sections.words(count)?.collect())
    };
    let (delimiters, gists) = (ids(header.delimiters)?, ids(header.gists)?);
    let policy = LightThinker::new(delimiters, gists, header.resume).map_err(damaged)?;
    match policy.delimiters().len() as u64 == header.delimiters {
        true => Ok(Arc::new(policy)),
        false => refuse("delimiters", "each once", "one twice"),
    }
}

pub(super) fn read_policy(header: &PolicyHeader) -> Result<Arc<dyn Policy>> {
    let Some(kind) = PolicyKind::from_name(&header.name) else {
        return refuse(
            "policy",
            "one that this version knows",
            format!("{:?}", header.name),
        );
    };
    let options = RpcOptions {
        interval: header.interval as usize,
        window: header.window as usize,
        budget: match (header.ratio, header.entries) {
            (Some(ratio), None) => Budget::Ratio(ratio as usize),
            (None, Some(entries)) => Budget::Entries(entries as usize),
            _ => return refuse("header", "a ratio or entries", "both or none"),
        },
        aggregation: Some(match (header.per_kv_head, header.adaptive) {
            (false, false) => Aggregation::Layer,
            (true, false) => Aggregation::KvHead,
            (false, true) => Aggregation::Adaptive,
            (true, true) => return refuse("header", "one aggregation", "two"),
        }),
        pooling: match (header.max_pooling, header.no_pooling) {
            (false, false) => Pooling::Average,
            (true, false) => Pooling::Max,
            (false, true) => Pooling::None,
            (true, true) => return refuse("header", "one pooling", "two"),
        },
        kernel: header.kernel as usize,
        softmax: if header.softmax_over_all {
            Softmax::All
        } else {
            Softmax::Candidates
        },
        history: header.history.map(f32::from_bits),
        value_norms: header.value_norms,
        redundancy: f32::from_bits(header.redundancy),
        queries: match header.queries_online {
            true => Queries::Online,
            false => Queries::Stored,
        },
        similarity: match header.similar_by_cosine {
            true => Similarity::Cosine,
            false => Similarity::Logits,
        },
    };
    kind.build(options).map_err(damaged)
}
