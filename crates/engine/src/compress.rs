//! One compression of one sequence: score, ask the policy, check its plan, apply it.

use std::ops::Range;

use half::f16;
use reasoning_rpc_core::{LayerPlan, LayerView, PlanMemory, Policy, ScoreRule};
use reasoning_rpc_cpu::{self as cpu, Element, Scratch, Simd};

use crate::cache::{CacheType, SequenceCache};
use crate::error::{Error, Result};

/// What one compression did to one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompressionRecord {
    /// Generated tokens whose K and V were written when it ran.
    pub at_token: usize,
    /// The layer, from 0.
    pub layer: usize,
    /// Entries of the layer before; of its longest KV head, if they differ.
    pub len_before: usize,
    /// Entries of the layer after.
    pub len_after: usize,
    /// Original text positions of the kept candidates, ascending, from 0 with the prompt counted;
    /// one set for the layer or one per KV head. Empty unless the sequence records kept sets.
    pub kept: Vec<Vec<u32>>,
}

/// What a compression must know of its sequence.
pub(crate) struct Moment<'a> {
    pub policy: &'a dyn Policy,
    /// Compressions before this one.
    pub done: usize,
    /// Generated tokens written.
    pub generated: usize,
    /// Text positions that the caller gave, ascending and apart from each other.
    pub given: &'a [Range<u32>],
    /// The first text position of the window.
    pub window_start: u32,
    pub num_heads: usize,
    pub record_kept: bool,
}

/// Buffers of [`compress`], reused.
#[derive(Default)]
pub(crate) struct Workspace {
    plan: PlanMemory,
    candidates: Vec<Vec<Range<usize>>>,
    counts: Vec<usize>,
    scores: Vec<f32>,
    queries: Vec<f32>,
    kept: Vec<u32>,
    scratch: Scratch,
}

/// Compresses every layer and appends a record of each to `log`.
///
/// Either all layers are compressed or, on an error before the first move of a layer, that layer
/// and the ones after it are left as they were.
pub(crate) fn compress(
    simd: Simd,
    cache: &mut SequenceCache,
    moment: &Moment<'_>,
    workspace: &mut Workspace,
    log: &mut Vec<CompressionRecord>,
) -> Result<()> {
    match cache.element() {
        CacheType::F32 => compress_typed::<f32>(simd, cache, moment, workspace, log),
        CacheType::F16 => compress_typed::<f16>(simd, cache, moment, workspace, log),
    }
}

fn compress_typed<E: Element>(
    simd: Simd,
    cache: &mut SequenceCache,
    moment: &Moment<'_>,
    workspace: &mut Workspace,
    log: &mut Vec<CompressionRecord>,
) -> Result<()> {
    let shape = *cache.shape();
    for layer in 0..shape.layers {
        find_candidates(cache, layer, moment, workspace);
        score_layer::<E>(simd, cache, layer, moment, workspace)?;
        let mut plan = workspace.plan.lend(&workspace.counts);
        let view = LayerView {
            layer,
            done: moment.done,
            candidates: &workspace.counts,
            scores: &workspace.scores,
        };
        moment.policy.plan(&view, &mut plan)?;
        plan.validate(&workspace.counts)?;

        let longest = |cache: &SequenceCache| {
            (0..shape.kv_heads)
                .map(|kv_head| cache.head(layer, kv_head).len())
                .max()
                .unwrap_or(0)
        };
        let mut record = CompressionRecord {
            at_token: moment.generated,
            layer,
            len_before: longest(cache),
            len_after: 0,
            kept: Vec::new(),
        };
        if moment.record_kept {
            record.kept = (0..plan.sets())
                .map(|set| {
                    entries_of(&workspace.candidates[set], plan.set(set))
                        .map(|entry| cache.position(layer, set, entry))
                        .collect()
                })
                .collect();
        }
        for kv_head in 0..shape.kv_heads {
            let candidates = &workspace.candidates[kv_head];
            let kept = &mut workspace.kept;
            apply::<E>(simd, cache, layer, kv_head, candidates, &plan, kept)?;
        }
        record.len_after = longest(cache);
        log.push(record);
    }
    cache.release_empty_blocks();
    Ok(())
}

/// The candidates of every KV head as ranges of entries: what was neither given nor lies in the
/// window.
fn find_candidates(cache: &SequenceCache, layer: usize, moment: &Moment<'_>, workspace: &mut Workspace) {
    let kv_heads = cache.shape().kv_heads;
    workspace.candidates.resize_with(kv_heads, Vec::new);
    workspace.counts.clear();
    for kv_head in 0..kv_heads {
        let ranges = &mut workspace.candidates[kv_head];
        ranges.clear();
        let entry = |position| cache.entries_before(layer, kv_head, position);
        let end = entry(moment.window_start);
        let mut start = 0;
        for given in moment.given {
            let before = entry(given.start).min(end);
            if before > start {
                ranges.push(start..before);
            }
            start = entry(given.end).min(end);
        }
        if end > start {
            ranges.push(start..end);
        }
        workspace.counts.push(ranges.iter().map(Range::len).sum());
    }
}

fn score_layer<E: Element>(
    simd: Simd,
    cache: &SequenceCache,
    layer: usize,
    moment: &Moment<'_>,
    workspace: &mut Workspace,
) -> Result<()> {
    let Workspace {
        candidates,
        counts,
        scores,
        queries,
        scratch,
        ..
    } = workspace;
    scores.clear();
    let Some(ScoreRule::WindowOverCandidates) = moment.policy.spec().scores else {
        return Ok(());
    };
    let shape = cache.shape();
    let group = moment.num_heads / shape.kv_heads;
    let scale = 1.0 / (shape.head_dim as f32).sqrt();
    for kv_head in 0..shape.kv_heads {
        queries.clear();
        let heads = kv_head * group..(kv_head + 1) * group;
        cache
            .window(layer)
            .gather(moment.generated, heads, shape.head_dim, queries);
        let start = scores.len();
        scores.resize(start + counts[kv_head], 0.0);
        let pages = cache.valid_pages::<E>(layer, kv_head)?;
        cpu::score(
            simd,
            &pages,
            &candidates[kv_head],
            queries,
            group,
            scale,
            &mut scores[start..],
            scratch,
        )?;
    }
    Ok(())
}

fn apply<E: Element>(
    simd: Simd,
    cache: &mut SequenceCache,
    layer: usize,
    kv_head: usize,
    candidates: &[Range<usize>],
    plan: &LayerPlan<'_>,
    kept: &mut Vec<u32>,
) -> Result<()> {
    let len = cache.head(layer, kv_head).len();
    let Some(first) = candidates.first().map(|range| range.start) else {
        return Ok(());
    };
    let to_u32 = |entry: usize| {
        u32::try_from(entry).map_err(|_| Error::Internal(format!("entry {entry} is beyond 32 bits")))
    };
    to_u32(len)?;
    // All that stays from the first candidate on: kept candidates, and whatever lies between and
    // behind the candidates.
    kept.clear();
    let mut plan = entries_of(candidates, plan.kept(kv_head)).peekable();
    let mut end = first;
    for range in candidates {
        kept.extend(end as u32..range.start as u32);
        while let Some(entry) = plan.next_if(|&entry| entry < range.end) {
            kept.push(entry as u32);
        }
        end = range.end;
    }
    kept.extend(end as u32..len as u32);
    cache.compact::<E>(simd, layer, kv_head, first, kept)
}

/// The cache entries of the candidates that `kept` names (indices into the concatenated ranges,
/// ascending).
fn entries_of<'a>(ranges: &'a [Range<usize>], kept: &'a [u32]) -> impl Iterator<Item = usize> + 'a {
    let mut index = 0;
    let mut before = 0;
    kept.iter().filter_map(move |&candidate| {
        let candidate = candidate as usize;
        while candidate >= before + ranges.get(index)?.len() {
            before += ranges[index].len();
            index += 1;
        }
        Some(ranges[index].start + candidate - before)
    })
}
