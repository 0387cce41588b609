//! One eviction of one sequence: what goes at every token, by a policy that asks for it.
//!
//! An entry that goes is written over by the last one, so that one entry moves however long the text is.

use half::{bf16, f16};
use reasoning_rpc_core::{LayerView, PlanMemory};
use reasoning_rpc_cpu::{Simd, Stored};

use crate::cache::{CacheType, SequenceCache};
use crate::compress::Moment;
use crate::error::Result;

/// Buffers of [`evict`], reused.
#[derive(Default)]
pub(crate) struct Workspace {
    plan: PlanMemory,
    /// Of all KV heads, one after the other.
    candidates: Vec<u32>,
    counts: Vec<usize>,
    positions: Vec<u32>,
    scores: Vec<f32>,
    dropped: Vec<u32>,
}

/// Has the policy choose in every layer, and drops what it does not keep.
pub(crate) fn evict(
    simd: Simd,
    cache: &mut SequenceCache,
    moment: &Moment<'_>,
    workspace: &mut Workspace,
) -> Result<()> {
    match cache.element() {
        CacheType::F32 => evict_typed::<f32>(simd, cache, moment, workspace),
        CacheType::F16 => evict_typed::<f16>(simd, cache, moment, workspace),
        CacheType::Bf16 => evict_typed::<bf16>(simd, cache, moment, workspace),
        CacheType::I8 => evict_typed::<i8>(simd, cache, moment, workspace),
    }
}

fn evict_typed<E: Stored>(
    simd: Simd,
    cache: &mut SequenceCache,
    moment: &Moment<'_>,
    workspace: &mut Workspace,
) -> Result<()> {
    let shape = *cache.shape();
    for layer in 0..shape.layers {
        find_candidates(cache, layer, moment, workspace);
        let Workspace {
            plan,
            candidates,
            counts,
            positions,
            scores,
            dropped,
        } = workspace;
        let mut plan = plan.lend(counts, shape.head_dim);
        let view = LayerView {
            layer,
            done: moment.done,
            seed: moment.seed,
            head_dim: shape.head_dim,
            candidates: counts,
            scores,
            positions,
            ..LayerView::default()
        };
        moment.policy.plan(&view, &mut plan)?;
        plan.validate(counts)?;
        let mut rest = &candidates[..];
        for (kv_head, &count) in counts.iter().enumerate() {
            let (own, others) = rest.split_at(count);
            rest = others;
            let mut kept = plan.kept(kv_head).iter().copied().peekable();
            dropped.clear();
            for (index, &entry) in (0..).zip(own) {
                if kept.next_if_eq(&index).is_none() {
                    dropped.push(entry);
                }
            }
            // The last one first: what is moved into its place is no entry that is still to go.
            for &entry in dropped.iter().rev() {
                cache.drop_entry::<E>(simd, layer, kv_head, entry as usize)?;
            }
        }
    }
    Ok(())
}

/// The entries of every KV head that were neither given nor are in the window, with their positions and the
/// attention that they had.
fn find_candidates(cache: &SequenceCache, layer: usize, moment: &Moment<'_>, workspace: &mut Workspace) {
    workspace.candidates.clear();
    workspace.counts.clear();
    workspace.positions.clear();
    workspace.scores.clear();
    // What was given first is in front, and stays there.
    let first = match moment.given.first() {
        Some(given) if given.start == 0 => given.end as usize,
        _ => 0,
    };
    let later = moment.given.get(usize::from(first > 0)..).unwrap_or_default();
    for kv_head in 0..cache.shape().kv_heads {
        let attention = cache.head(layer, kv_head).history();
        let before = workspace.candidates.len();
        for (entry, position) in cache.positions(layer, kv_head).enumerate().skip(first) {
            if position < moment.window_start && !later.iter().any(|range| range.contains(&position)) {
                workspace.candidates.push(entry as u32);
                workspace.positions.push(position);
                workspace.scores.push(attention[entry]);
            }
        }
        workspace.counts.push(workspace.candidates.len() - before);
    }
}
