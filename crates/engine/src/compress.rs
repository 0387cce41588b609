//! One compression of one sequence: score, ask the policy, check its plan, apply it.

use std::ops::Range;

use half::{bf16, f16};
use reasoning_rpc_core::{Attention, CacheShape, LayerPlan, LayerView, Merge, PlanMemory, Policy, ScoreRule};
use reasoning_rpc_cpu::{self as cpu, Scratch, Simd, Stored};

use crate::cache::{CacheType, QueryWindow, SequenceCache};
use crate::error::{Error, Result};
use crate::evict;
use crate::sequence::position_of_generated;

/// What one compression did to one layer.
#[derive(Debug, Clone, PartialEq)]
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
    /// What each KV head could have dropped. Empty unless the sequence records scores.
    pub candidates: Vec<Candidates>,
}

/// What one KV head could drop in one compression: the generated entries that it still had, outside the
/// window.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Candidates {
    /// Original text positions, ascending.
    pub positions: Vec<u32>,
    /// One for each: what the policy was shown ([`ScoreRule`]), before it pools, averages over KV heads, or
    /// adds anything of its own. Empty for a policy that looks at no scores.
    pub scores: Vec<f32>,
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
    /// The sequence's.
    pub seed: u64,
    pub record_kept: bool,
    pub record_scores: bool,
}

/// Buffers of [`compress`], reused.
#[derive(Default)]
pub(crate) struct Workspace {
    plan: PlanMemory,
    candidates: Vec<Vec<Range<usize>>>,
    counts: Vec<usize>,
    scores: Vec<f32>,
    positions: Vec<u32>,
    history: Vec<f32>,
    keys: Vec<f32>,
    value_norms: Vec<f32>,
    /// Of all KV heads, if the policy sees them; else of the last one.
    queries: Vec<f32>,
    moments: Vec<f32>,
    /// Scores of all entries of a KV head.
    all: Vec<f32>,
    visible: Vec<usize>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    kept: Vec<u32>,
    rewritten: Vec<u32>,
    rows: Vec<f32>,
    scratch: Scratch,
    pub eviction: evict::Workspace,
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
        CacheType::Bf16 => compress_typed::<bf16>(simd, cache, moment, workspace, log),
        CacheType::I8 => compress_typed::<i8>(simd, cache, moment, workspace, log),
    }
}

fn compress_typed<E: Stored>(
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
        show_entries::<E>(cache, layer, moment, workspace)?;
        let mut plan = workspace.plan.lend(&workspace.counts, shape.head_dim);
        let view = LayerView {
            layer,
            done: moment.done,
            seed: moment.seed,
            head_dim: shape.head_dim,
            candidates: &workspace.counts,
            scores: &workspace.scores,
            positions: &workspace.positions,
            history: &workspace.history,
            keys: &workspace.keys,
            value_norms: &workspace.value_norms,
            queries: match moment.policy.spec().queries {
                true => &workspace.queries,
                false => &[],
            },
            moments: &workspace.moments,
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
            candidates: match moment.record_scores {
                true => candidates_of(cache, layer, &workspace.candidates, &workspace.scores),
                false => Vec::new(),
            },
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
        // Sums go on from what the plan says; those of other entries, which no plan has seen, begin anew.
        let anew = matches!(moment.policy.spec().attention, Some(Attention::Ahead { .. }));
        let mut first_candidate = 0;
        for kv_head in 0..shape.kv_heads {
            let candidates = &workspace.candidates[kv_head];
            let own = first_candidate..first_candidate + workspace.counts[kv_head];
            first_candidate = own.end;
            if anew {
                cache.clear_history(layer, kv_head);
            }
            if !plan.history().is_empty() {
                for (entry, &value) in all_of(candidates).zip(&plan.history()[own.clone()]) {
                    cache.set_history(layer, kv_head, entry, value);
                }
            }
            let (rewritten, rows) = (&mut workspace.rewritten, &mut workspace.rows);
            merged_rows::<E>(cache, layer, kv_head, candidates, own, &plan, rewritten, rows)?;
            let kept = &mut workspace.kept;
            apply::<E>(simd, cache, layer, kv_head, candidates, &plan, kept)?;
            if let (false, Some(first)) = (rewritten.is_empty(), candidates.first()) {
                // Where they went.
                for entry in &mut *rewritten {
                    let place = kept
                        .binary_search(entry)
                        .map_err(|_| Error::Internal(format!("entry {entry} was merged into and is gone")))?;
                    *entry = (first.start + place) as u32;
                }
                cache.rewrite::<E>(layer, kv_head, rewritten, rows)?;
            }
        }
        record.len_after = longest(cache);
        log.push(record);
    }
    cache.forget_moments();
    cache.release_empty_blocks();
    Ok(())
}

/// Adds the queries of some generated tokens, each rotated on by `interval` positions, to the moments of
/// all layers and KV heads.
pub(crate) fn add_moments(
    simd: Simd,
    cache: &mut SequenceCache,
    generated: Range<usize>,
    num_heads: usize,
    interval: usize,
    workspace: &mut Workspace,
) -> Result<()> {
    let shape = *cache.shape();
    let group = num_heads / shape.kv_heads;
    for layer in 0..shape.layers {
        ahead_table(cache.window(layer), layer, interval, &shape, workspace)?;
        let window = cache.window_mut(layer);
        for kv_head in 0..shape.kv_heads {
            let heads = kv_head * group..(kv_head + 1) * group;
            let queries = &mut workspace.queries;
            queries.clear();
            window.gather(generated.clone(), heads, shape.head_dim, queries);
            rotate_on(simd, queries, shape.head_dim, &workspace.cos, &workspace.sin)?;
            let width = window.moments().len() / shape.kv_heads;
            let sums = &mut window.moments_mut()[kv_head * width..][..width];
            cpu::add_moments(simd, queries, shape.head_dim, sums)?;
        }
    }
    Ok(())
}

/// The rotation by so many positions.
fn ahead_table(
    window: &QueryWindow,
    layer: usize,
    positions: usize,
    shape: &CacheShape,
    workspace: &mut Workspace,
) -> Result<()> {
    let (frequencies, half) = (window.frequencies(), shape.head_dim / 2);
    if frequencies.len() != half {
        return Err(Error::Internal(format!(
            "layer {layer}: expected {half} frequencies of the rotation, found {}",
            frequencies.len()
        )));
    }
    // Rotations add up; what else they do to a query (the attention factor) was done when it was recorded.
    let ahead = [positions as i64];
    cpu::rope_table(&ahead, frequencies, 1.0, &mut workspace.cos, &mut workspace.sin);
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

/// The candidates of every KV head, and their scores.
fn candidates_of(
    cache: &SequenceCache,
    layer: usize,
    candidates: &[Vec<Range<usize>>],
    scores: &[f32],
) -> Vec<Candidates> {
    let mut scores = scores.iter().copied();
    let heads = candidates.iter().enumerate();
    heads
        .map(|(kv_head, candidates)| {
            let positions: Vec<u32> = all_of(candidates)
                .map(|entry| cache.position(layer, kv_head, entry))
                .collect();
            Candidates {
                scores: scores.by_ref().take(positions.len()).collect(),
                positions,
            }
        })
        .collect()
}

fn score_layer<E: Stored>(
    simd: Simd,
    cache: &SequenceCache,
    layer: usize,
    moment: &Moment<'_>,
    workspace: &mut Workspace,
) -> Result<()> {
    let spec = moment.policy.spec();
    workspace.scores.clear();
    workspace.queries.clear();
    workspace.moments.clear();
    let Some(rule) = spec.scores else {
        show_sums(cache, layer, moment, workspace);
        return Ok(());
    };
    let shape = *cache.shape();
    let (window, head_dim) = (cache.window(layer), shape.head_dim);
    let group = moment.num_heads / shape.kv_heads;
    let scale = 1.0 / (head_dim as f32).sqrt();
    if rule == ScoreRule::IntervalAhead {
        ahead_table(window, layer, window.tokens(), &shape, workspace)?;
    }
    for kv_head in 0..shape.kv_heads {
        if !spec.queries {
            workspace.queries.clear();
        }
        let first = workspace.queries.len();
        let heads = kv_head * group..(kv_head + 1) * group;
        let newest = moment.generated - window.tokens()..moment.generated;
        window.gather(newest, heads, head_dim, &mut workspace.queries);
        if rule == ScoreRule::IntervalAhead {
            rotate_on(
                simd,
                &mut workspace.queries[first..],
                head_dim,
                &workspace.cos,
                &workspace.sin,
            )?;
        }
        let queries = &workspace.queries[first..];
        let pages = cache.valid_pages::<E>(layer, kv_head)?;
        let (scores, scratch) = (&mut workspace.scores, &mut workspace.scratch);
        let candidates = &workspace.candidates[kv_head];
        if rule == ScoreRule::WindowOverCandidates {
            let start = scores.len();
            scores.resize(start + workspace.counts[kv_head], 0.0);
            let out = &mut scores[start..];
            cpu::score(simd, &pages, candidates, queries, group, scale, out, scratch)?;
            continue;
        }
        let all = &mut workspace.all;
        all.clear();
        all.resize(pages.len(), 0.0);
        if rule == ScoreRule::WindowOverAll {
            let tokens = window.tokens();
            workspace.visible.clear();
            workspace
                .visible
                .extend((moment.generated - tokens..moment.generated).map(|generated| {
                    let position = position_of_generated(moment.given, generated);
                    cache.entries_before(layer, kv_head, position + 1)
                }));
            let visible = &workspace.visible;
            cpu::score_visible(simd, &pages, visible, queries, group, scale, all, scratch)?;
        } else {
            let (entries, count) = (0..pages.len(), queries.len() / head_dim);
            let entries = std::slice::from_ref(&entries);
            cpu::score(simd, &pages, entries, queries, count, scale, all, scratch)?;
        }
        for range in candidates {
            scores.extend_from_slice(&all[range.clone()]);
        }
    }
    Ok(())
}

/// What attention has added up, of a policy that wants that.
fn show_sums(cache: &SequenceCache, layer: usize, moment: &Moment<'_>, workspace: &mut Workspace) {
    let Some(Attention::Ahead { interval }) = moment.policy.spec().attention else {
        return;
    };
    for (kv_head, candidates) in workspace.candidates.iter().enumerate() {
        let sums = cache.head(layer, kv_head).history();
        for range in candidates {
            workspace.scores.extend_from_slice(&sums[range.clone()]);
        }
    }
    let group = moment.num_heads / cache.shape().kv_heads;
    let mean = 1.0 / (interval * group) as f32;
    let sums = cache.window(layer).moments().iter();
    workspace.moments.extend(sums.map(|sum| sum * mean));
}

/// Rotates every query by the one angle of each pair.
fn rotate_on(simd: Simd, queries: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) -> Result<()> {
    let mut rotated = [0.0f32; cpu::MAX_HEAD_DIM];
    let rotated = &mut rotated[..head_dim];
    for query in queries.chunks_exact_mut(head_dim) {
        cpu::rotate(simd, query, cos, sin, head_dim, rotated)?;
        query.copy_from_slice(rotated);
    }
    Ok(())
}

/// What else the policy sees of the candidates.
fn show_entries<E: Stored>(
    cache: &SequenceCache,
    layer: usize,
    moment: &Moment<'_>,
    workspace: &mut Workspace,
) -> Result<()> {
    let spec = moment.policy.spec();
    workspace.positions.clear();
    let (history, keys, norms) = (
        &mut workspace.history,
        &mut workspace.keys,
        &mut workspace.value_norms,
    );
    history.clear();
    keys.clear();
    norms.clear();
    let mut row = [0.0f32; cpu::MAX_HEAD_DIM];
    let row = &mut row[..cache.shape().head_dim];
    for (kv_head, candidates) in workspace.candidates.iter().enumerate() {
        if spec.positions {
            let positions = all_of(candidates).map(|entry| cache.position(layer, kv_head, entry));
            workspace.positions.extend(positions);
        }
        if spec.history {
            let own = cache.head(layer, kv_head).history();
            candidates
                .iter()
                .for_each(|range| history.extend_from_slice(&own[range.clone()]));
        }
        if spec.value_norms {
            let pages = cache.valid_pages::<E>(layer, kv_head)?;
            for entry in all_of(candidates) {
                cpu::read_value(&pages, entry, row)?;
                norms.push(row.iter().map(|x| x.abs()).sum());
            }
        }
        if spec.keys {
            let pages = cache.valid_pages::<E>(layer, kv_head)?;
            for entry in all_of(candidates) {
                let start = keys.len();
                keys.resize(start + cache.shape().head_dim, 0.0);
                cpu::read_key(&pages, entry, &mut keys[start..])?;
            }
        }
    }
    Ok(())
}

/// The entries that others are merged into, ascending, and what they become, key and value: before anything
/// moves. `own` are the KV head's among the candidates of the layer.
#[allow(clippy::too_many_arguments)] // one head of one plan, and two buffers
fn merged_rows<E: Stored>(
    cache: &SequenceCache,
    layer: usize,
    kv_head: usize,
    candidates: &[Range<usize>],
    own: Range<usize>,
    plan: &LayerPlan<'_>,
    entries: &mut Vec<u32>,
    rows: &mut Vec<f32>,
) -> Result<()> {
    entries.clear();
    let merges = plan.merges(kv_head);
    if merges.is_empty() {
        return Ok(());
    }
    let head_dim = cache.shape().head_dim;
    let of_candidates: Vec<u32> = all_of(candidates).map(|entry| entry as u32).collect();
    let entry = |candidate: u32| of_candidates[candidate as usize];
    let (directions, shifts) = plan.shifts();
    let mut targets: Vec<u32> = merges.iter().map(|merge| merge.into).collect();
    targets.dedup();
    rows.clear();
    rows.resize(targets.len() * 2 * head_dim, 0.0);
    let pages = cache.valid_pages::<E>(layer, kv_head)?;
    let into_entries = merges.iter().map(
        |&Merge {
             into,
             from,
             value_weight,
             ..
         }| cpu::Merge {
            from: entry(from),
            into: entry(into),
            key_weight: 0.0,
            value_weight,
        },
    );
    cpu::merged_rows(&pages, into_entries, rows)?;
    for (&target, row) in targets.iter().zip(rows.chunks_exact_mut(2 * head_dim)) {
        entries.push(entry(target));
        if !shifts.is_empty() {
            let shift = shifts[own.start + target as usize];
            let direction = &directions[kv_head * head_dim..][..head_dim];
            row.iter_mut().zip(direction).for_each(|(x, u)| *x += shift * u);
        }
    }
    Ok(())
}

/// All entries of ranges.
fn all_of(ranges: &[Range<usize>]) -> impl Iterator<Item = usize> {
    ranges.iter().flat_map(Range::clone)
}

fn apply<E: Stored>(
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
