//! The caller's memory, divided: plans at its beginning, scratch at its end. A smaller batch's scratch so
//! never reaches a plan that lies in a workspace made for both.

use std::mem::MaybeUninit;

use reasoning_rpc_core::{self as core, LayerPlan, ScoreRule};
use reasoning_rpc_cpu::score_scratch_bytes;

use crate::batch::Batched;
use crate::compressor::Compressor;
use crate::error::{Error, Result, refuse};
use crate::types::{BlockCopy, Merge, Plan, Workspace};

/// Parts begin at multiples of this.
const ALIGN: usize = 64;

/// Bytes of the parts of a workspace.
pub(crate) struct Needs {
    plan: usize,
    scratch: usize,
}

/// How many of each thing a batch may need: bounds by its lengths alone, so that a workspace for longer
/// sequences serves shorter ones whatever their prompts.
struct Counts {
    sequences: usize,
    /// Kept indices of all sequences and KV heads, and scores.
    all_candidates: usize,
    /// Of the sequence with the most.
    candidates: usize,
    length: usize,
    /// Blocks of all sequences, and of the one with the most.
    all_blocks: usize,
    blocks: usize,
    merges: usize,
}

impl Counts {
    fn of(compressor: &Compressor, batch: &Batched<'_>) -> Self {
        let window = compressor.window();
        let mut counts = Self {
            sequences: batch.len(),
            all_candidates: 0,
            candidates: 0,
            length: 0,
            all_blocks: 0,
            blocks: 0,
            merges: 0,
        };
        for sequence in batch.sequences() {
            let candidates = sequence.length.saturating_sub(window);
            let blocks = batch.blocks(sequence.length);
            counts.all_candidates += candidates;
            counts.merges = counts.merges.saturating_add(compressor.most_merges(candidates));
            counts.candidates = counts.candidates.max(candidates);
            counts.length = counts.length.max(sequence.length);
            counts.all_blocks += blocks;
            counts.blocks = counts.blocks.max(blocks);
        }
        counts.all_candidates = counts.all_candidates.saturating_mul(compressor.kv_heads);
        counts
    }
}

/// Adds up parts as [`Carver`] cuts them.
struct Measure(usize);

impl Measure {
    fn add<T>(&mut self, count: usize) -> &mut Self {
        let bytes = count
            .saturating_mul(size_of::<T>())
            .checked_next_multiple_of(ALIGN);
        self.0 = self.0.saturating_add(bytes.unwrap_or(usize::MAX));
        self
    }
}

impl Needs {
    pub(crate) fn of(compressor: &Compressor, batch: &Batched<'_>) -> Self {
        let counts = Counts::of(compressor, batch);
        let mut plan = Measure(0);
        plan.add::<u32>(counts.sequences)
            .add::<u32>(counts.all_candidates)
            .add::<i32>(counts.sequences)
            .add::<BlockCopy>(counts.all_blocks)
            .add::<i32>(counts.all_blocks.saturating_mul(2))
            .add::<Merge>(counts.merges);
        let keeps_history = usize::from(compressor.keeps_history());
        let merges = usize::from(compressor.merges());
        let heads = counts.sequences.saturating_mul(compressor.kv_heads);
        plan.add::<f32>(keeps_history * counts.all_candidates)
            .add::<f32>(merges * counts.all_candidates)
            .add::<f32>(merges * heads.saturating_mul(compressor.head_dim));
        let queries = compressor.query_count();
        let bitmap = batch.block_count().div_ceil(64);
        let (all, scored) = match compressor.scores {
            Some(ScoreRule::WindowOverAll | ScoreRule::IntervalAhead) => (counts.length, counts.length),
            _ => (0, counts.candidates),
        };
        let merged = compressor.most_merged(counts.candidates);
        let mut scratch = Measure(0);
        for _ in 0..4 {
            scratch.add::<u64>(bitmap).add::<usize>(counts.blocks);
        }
        scratch
            .add::<usize>(compressor.kv_heads)
            .add::<usize>(compressor.kv_heads)
            .add::<f32>(queries.saturating_mul(compressor.head_dim))
            .add::<f32>(LayerPlan::scratch_floats(
                counts.candidates,
                merges * compressor.head_dim,
            ))
            .add::<u32>(counts.length)
            .add::<f32>(merged.saturating_mul(2 * compressor.head_dim))
            .add::<u8>(score_scratch_bytes(queries, scored, compressor.head_dim))
            .add::<f32>(all)
            .add::<usize>(if all > 0 { compressor.window() } else { 0 })
            .add::<f32>(counts.all_candidates);
        if compressor.ahead.is_some() {
            // Histories before and behind, kept; then keys, shifts and merges.
            let candidates = counts.candidates;
            scratch
                .add::<f32>(candidates)
                .add::<f32>(candidates)
                .add::<u32>(candidates)
                .add::<f32>(merges * candidates.saturating_mul(compressor.head_dim))
                .add::<f32>(merges * candidates)
                .add::<core::Merge>(merges * candidates)
                .add::<f32>(merges * compressor.head_dim)
                .add::<f64>(merges * LayerPlan::moment_floats(compressor.head_dim));
        }
        Self {
            plan: plan.0,
            scratch: scratch.0,
        }
    }

    /// Bytes of a workspace at any address.
    pub(crate) fn bytes(&self) -> usize {
        self.plan.saturating_add(self.scratch).saturating_add(2 * ALIGN)
    }
}

/// Cuts parts off memory.
pub(crate) struct Carver<'w> {
    rest: &'w mut [MaybeUninit<u8>],
}

impl<'w> Carver<'w> {
    /// The next part: `count` numbers.
    pub(crate) fn take<T: Copy>(&mut self, count: usize) -> Result<&'w mut [MaybeUninit<T>]> {
        let bytes = count.saturating_mul(size_of::<T>());
        let padded = bytes.checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX);
        if padded > self.rest.len() {
            return Err(Error::TooSmall {
                what: "bytes of a part of the workspace",
                needed: padded,
                found: self.rest.len(),
            });
        }
        let (part, rest) = std::mem::take(&mut self.rest).split_at_mut(padded);
        self.rest = rest;
        // SAFETY: any bytes are a MaybeUninit<T>.
        let (_, part, _) = unsafe { part.align_to_mut::<MaybeUninit<T>>() };
        part.get_mut(..count).ok_or(Error::TooSmall {
            what: "aligned numbers of a part of the workspace",
            needed: count,
            found: 0,
        })
    }

    /// What is left, for work after which it is free again.
    pub(crate) fn stage(&mut self) -> Carver<'_> {
        Carver { rest: self.rest }
    }

    /// The next part, filled.
    pub(crate) fn filled<T: Copy>(&mut self, count: usize, value: T) -> Result<&'w mut [T]> {
        let part = self.take(count)?;
        part.fill(MaybeUninit::new(value));
        // SAFETY: all of it was just written.
        Ok(unsafe { part.assume_init_mut() })
    }
}

/// The plan's part and the scratch of a workspace that is large enough.
///
/// # Safety
/// For `'w`, the workspace's bytes are readable and writable and nobody else uses them, plans of calls
/// before excepted, which lie in the first part.
pub(crate) unsafe fn divide<'w>(workspace: Workspace, needs: &Needs) -> Result<(Region, Carver<'w>)> {
    if workspace.bytes < needs.bytes() {
        return Err(Error::TooSmall {
            what: "bytes of the workspace",
            needed: needs.bytes(),
            found: workspace.bytes,
        });
    }
    let start = workspace.address.addr();
    let plan = start.wrapping_neg() % ALIGN;
    let scratch = workspace.bytes - needs.scratch;
    let scratch = scratch - (start + scratch) % ALIGN;
    // SAFETY: both lie within the workspace, and `bytes` leaves room for both alignments between them.
    let rest = unsafe { std::slice::from_raw_parts_mut(workspace.address.add(scratch), needs.scratch) };
    let region = Region {
        address: workspace.address.wrapping_add(plan),
        bytes: needs.plan,
    };
    Ok((region, Carver { rest }))
}

/// Where a plan lies.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    address: *mut MaybeUninit<u8>,
    bytes: usize,
}

impl Region {
    /// The memory of the plan.
    ///
    /// # Safety
    /// As [`divide`]; no plan of a call before is used any more.
    pub(crate) unsafe fn carver<'w>(self) -> Carver<'w> {
        Carver {
            // SAFETY: the caller's contract; `divide` has checked the size.
            rest: unsafe { std::slice::from_raw_parts_mut(self.address, self.bytes) },
        }
    }
}

/// Refuses a plan whose arrays lie where scratch will be.
pub(crate) fn apart(plan: &Plan<'_>, workspace: Workspace, needs: &Needs) -> Result<()> {
    let end = workspace.address.addr().saturating_add(workspace.bytes);
    let start = end.saturating_sub(needs.scratch.saturating_add(ALIGN));
    fn range<T>(items: &[T]) -> (usize, usize) {
        let start = items.as_ptr().addr();
        (start, start + size_of_val(items))
    }
    for (name, (from, to)) in [
        ("kept_counts", range(plan.kept_counts)),
        ("kept", range(plan.kept)),
        ("new_lengths", range(plan.new_lengths)),
        ("copies", range(plan.copies)),
        ("freed_blocks", range(plan.freed_blocks)),
        ("merges", range(plan.merges)),
        ("history", range(plan.history)),
        ("key_shifts", range(plan.key_shifts)),
        ("key_directions", range(plan.key_directions)),
    ] {
        if from < to && from < end && start < to {
            return refuse(
                format_args!("plan: {name}"),
                "an array outside of the workspace's scratch",
                "one within",
            );
        }
    }
    Ok(())
}
