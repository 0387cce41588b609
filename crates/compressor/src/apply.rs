//! Carrying a plan out.

use half::{bf16, f16};
use reasoning_rpc_cpu::{self as cpu, Stored};

use crate::batch::{Batched, Sequence};
use crate::compressor::Compressor;
use crate::error::{Result, refuse};
use crate::plan::{Effect, blocks, by_sequence, cut, effects, kept_sets, set_of};
use crate::tensors::{Pages, Views};
use crate::types::{Batch, BlockCopy, Dtype, Layer, Merge, Plan, Workspace};
use crate::workspace::{Carver, Needs, apart, divide};

impl Compressor {
    /// Carries a plan out in one layer: copies shared blocks that are in the way, merges, and moves what stays
    /// forward. The plan may be [`select`](Self::select)'s, a changed one, or the caller's own.
    ///
    /// # Errors
    /// A view or a plan that cannot be (all of it is checked first), too few spare blocks, too small a
    /// workspace. Nothing was written then.
    ///
    /// # Safety
    /// The tensors are what the views say: valid entries initialised and readable; blocks from the prompts' ends up to
    /// the new lengths, and spare ones that are used, writable and used by nobody else; the rest not written
    /// meanwhile; so are the ids in the block table. The workspace is not used by anyone else (the plan may lie in it).
    pub unsafe fn apply(
        &self,
        layer: &Layer,
        batch: &Batch<'_>,
        plan: &Plan<'_>,
        workspace: Workspace,
    ) -> Result<()> {
        let batch = Batched::new(batch, self.window())?;
        let needs = Needs::of(self, &batch);
        apart(plan, workspace, &needs)?;
        // SAFETY: the caller's contract; the plan does not lie in scratch.
        unsafe {
            let (_, mut scratch) = divide(workspace, &needs)?;
            self.apply_in(layer, &batch, plan, &mut scratch)
        }
    }

    /// # Safety
    /// As [`apply`](Self::apply).
    pub(crate) unsafe fn apply_in(
        &self,
        layer: &Layer,
        batch: &Batched<'_>,
        plan: &Plan<'_>,
        scratch: &mut Carver<'_>,
    ) -> Result<()> {
        self.check(plan, batch)?;
        // SAFETY: the caller's contract.
        unsafe {
            check_effects(plan, batch, &mut scratch.stage())?;
            match self.dtype {
                Dtype::F32 => self.apply_typed::<f32>(layer, batch, plan, scratch),
                Dtype::F16 => self.apply_typed::<f16>(layer, batch, plan, scratch),
                Dtype::Bf16 => self.apply_typed::<bf16>(layer, batch, plan, scratch),
                Dtype::I8 => self.apply_typed::<i8>(layer, batch, plan, scratch),
            }
        }
    }

    /// # Safety
    /// As [`apply`](Self::apply); the plan and the block ids were checked.
    unsafe fn apply_typed<E: Stored>(
        &self,
        layer: &Layer,
        batch: &Batched<'_>,
        plan: &Plan<'_>,
        scratch: &mut Carver<'_>,
    ) -> Result<()> {
        let views = Views::<E>::new(self, layer, batch)?;
        let (mut blocks, mut length, mut candidates) = (0, 0, 0);
        for sequence in batch.sequences() {
            candidates = candidates.max(sequence.candidates);
            blocks = blocks.max(batch.blocks(sequence.length));
            length = length.max(sequence.length);
        }
        let mut pages = Pages::new(scratch, blocks)?;
        let entries = scratch.filled(length, 0u32)?;
        let rows = scratch.filled(self.most_merged(candidates) * 2 * self.head_dim, 0.0f32)?;
        let (mut copies, mut merges) = (plan.copies, plan.merges);
        let changes = by_sequence(plan, plan.history).zip(by_sequence(plan, plan.key_shifts));
        let counts = plan.kept_counts.iter().zip(plan.new_lengths);
        let sequences = batch.sequences().zip(counts).zip(kept_sets(plan));
        for (((sequence, (&count, &new_length)), kept), (history, shifts)) in sequences.zip(changes) {
            if count as usize == sequence.candidates {
                continue;
            }
            let own = cut(&mut copies, |copy: &BlockCopy| {
                copy.sequence as usize == sequence.index
            });
            for copy in own {
                // SAFETY: the caller's contract; `effects` has seen that both are blocks and `to` is spare.
                unsafe { views.copy_block(copy.from as usize, copy.to as usize) };
            }
            for kv_head in 0..self.kv_heads {
                // SAFETY: the caller's contract; ids were checked, and copies take the place of shared blocks.
                unsafe {
                    let id = |index| match own.binary_search_by_key(&index, |copy| copy.index as usize) {
                        Ok(copy) => own[copy].to,
                        Err(_) => batch.block(&sequence, index),
                    };
                    let ids = (0..batch.blocks(sequence.length)).map(id);
                    let pages_count = pages.find(&views, kv_head, ids);
                    let set = set_of(kept, plan.sets, count, kv_head);
                    let these = cut(&mut merges, |merge: &Merge| {
                        (merge.sequence as usize, merge.kv_head as usize) == (sequence.index, kv_head)
                    });
                    let mut pages = pages.write(&views, pages_count, sequence.length)?;
                    let count = cpu::merged_rows(&pages.view(), of_entries(these, &sequence), rows)?;
                    let rows = &mut rows[..count * 2 * self.head_dim];
                    if !shifts.is_empty() {
                        let shifts = set_of(shifts, plan.sets, set.len() as u32, kv_head);
                        let first = (sequence.index * self.kv_heads + kv_head) * self.head_dim;
                        let direction = &plan.key_directions[first..first + self.head_dim];
                        let into = rows.chunks_exact_mut(2 * self.head_dim).zip(ranks(these, set));
                        for (row, rank) in into {
                            let key = row.iter_mut().zip(direction);
                            key.for_each(|(x, u)| *x += shifts[rank] * u);
                        }
                    }
                    let entries = list(entries, set, &sequence);
                    cpu::compact(self.simd, &mut pages, sequence.prompt, entries)?;
                    let places = ranks(these, set).map(|rank| entry(&sequence, rank as u32));
                    cpu::write_rows(&mut pages, places, rows)?;
                    // Of candidates that stay; behind them nothing is that a compression has seen.
                    let mut left = set_of(history, plan.sets, set.len() as u32, kv_head).iter();
                    let end = batch.blocks(new_length as usize) * batch.block_entries();
                    let behind = sequence.prompt..sequence.length.min(end);
                    views.history(kv_head, behind, id, |place| {
                        *place = left.next().copied().unwrap_or(0.0);
                    });
                }
            }
        }
        Ok(())
    }
}

/// Checks what follows from a plan's lengths against what it says.
///
/// # Safety
/// The batch's block ids are readable.
unsafe fn check_effects(plan: &Plan<'_>, batch: &Batched<'_>, scratch: &mut Carver<'_>) -> Result<()> {
    let mut copies = plan.copies.iter();
    let mut freed = plan.freed_blocks.iter();
    // SAFETY: the caller's contract.
    unsafe {
        let blocks = blocks(batch, scratch)?;
        effects(batch, &blocks, plan.new_lengths, |effect| match effect {
            Effect::Copy(expected) => match copies.next() {
                Some(found) if *found == expected => Ok(()),
                found => refuse(
                    "plan: copies",
                    format_args!("{expected:?}"),
                    format_args!("{found:?}"),
                ),
            },
            Effect::Free(expected) => match freed.next() {
                Some(found) if *found == expected => Ok(()),
                found => refuse("plan: freed_blocks", expected, format_args!("{found:?}")),
            },
        })?;
    }
    match (copies.next(), freed.next()) {
        (None, None) => Ok(()),
        (Some(copy), _) => refuse("plan: copies", "no more", format_args!("{copy:?}")),
        (None, Some(block)) => refuse("plan: freed_blocks", "no more", block),
    }
}

fn entry(sequence: &Sequence, candidate: u32) -> u32 {
    sequence.prompt as u32 + candidate
}

/// Merges of entries instead of candidates.
fn of_entries<'a>(
    merges: &'a [Merge],
    sequence: &'a Sequence,
) -> impl Iterator<Item = cpu::Merge> + Clone + 'a {
    merges.iter().map(|merge| cpu::Merge {
        from: entry(sequence, merge.from),
        into: entry(sequence, merge.into),
        key_weight: merge.key_weight,
        value_weight: merge.value_weight,
    })
}

/// The entries that others go into, each once, as their places in the kept set.
fn ranks<'a>(merges: &'a [Merge], set: &'a [u32]) -> impl Iterator<Item = usize> + Clone + 'a {
    let first = |index: usize| index == 0 || merges[index - 1].into != merges[index].into;
    (0..merges.len())
        .filter(move |&index| first(index))
        // `check` has found it.
        .map(|index| set.partition_point(|&kept| kept < merges[index].into))
}

/// The entries behind the prompt that stay: the kept candidates, then the window.
fn list<'a>(entries: &'a mut [u32], set: &[u32], sequence: &Sequence) -> &'a [u32] {
    let window = sequence.prompt + sequence.candidates..sequence.length;
    let count = set.len() + window.len();
    let all = set
        .iter()
        .map(|&candidate| entry(sequence, candidate))
        .chain(window.map(|entry| entry as u32));
    entries
        .iter_mut()
        .zip(all)
        .for_each(|(slot, entry)| *slot = entry);
    &entries[..count]
}
