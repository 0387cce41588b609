//! A plan under way, in its part of the workspace.

use reasoning_rpc_core::LayerPlan;

use crate::batch::{Batched, Blocks, Sequence};
use crate::compressor::Compressor;
use crate::error::{Result, refuse};
use crate::plan::{Effect, effects};
use crate::types::{BlockCopy, Merge, Plan};
use crate::workspace::Carver;

/// Sequences are added in their order.
pub(crate) struct Draft<'w> {
    kept_counts: &'w mut [u32],
    kept: &'w mut [u32],
    new_lengths: &'w mut [i32],
    copies: &'w mut [BlockCopy],
    freed: &'w mut [i32],
    merges: &'w mut [Merge],
    history: &'w mut [f32],
    key_shifts: &'w mut [f32],
    key_directions: &'w mut [f32],
    kv_heads: usize,
    /// Kept indices and merges so far.
    used: usize,
    merged: usize,
    /// Once a sequence has said so.
    sets: Option<u32>,
}

impl<'w> Draft<'w> {
    /// In memory as large as [`Needs`](crate::workspace::Needs) says.
    pub(crate) fn new(compressor: &Compressor, batch: &Batched<'_>, memory: &mut Carver<'w>) -> Result<Self> {
        let kept = batch.score_count(compressor.kv_heads);
        let all_blocks: usize = match batch.is_paged() {
            true => batch
                .sequences()
                .map(|sequence| batch.blocks(sequence.length))
                .sum(),
            false => 0,
        };
        let merges = batch.sequences().fold(0usize, |sum, sequence| {
            sum.saturating_add(compressor.most_merges(sequence.candidates))
        });
        let shifted = if compressor.merges() { batch.len() } else { 0 };
        Ok(Self {
            kept_counts: memory.filled(batch.len(), 0)?,
            kept: memory.filled(kept, 0)?,
            new_lengths: memory.filled(batch.len(), 0)?,
            copies: memory.filled(all_blocks, BlockCopy::default())?,
            freed: memory.filled(all_blocks, 0)?,
            merges: memory.filled(merges, Merge::default())?,
            history: memory.filled(if compressor.keeps_history() { kept } else { 0 }, 0.0)?,
            key_shifts: memory.filled(if shifted > 0 { kept } else { 0 }, 0.0)?,
            key_directions: memory.filled(shifted * compressor.kv_heads * compressor.head_dim, 0.0)?,
            kv_heads: compressor.kv_heads,
            used: 0,
            merged: 0,
            sets: None,
        })
    }

    /// Room for the next `entries` kept indices, and for so many merges.
    pub(crate) fn room(&mut self, entries: usize, merges: usize) -> (&mut [u32], &mut [Merge]) {
        (
            &mut self.kept[self.used..self.used + entries],
            &mut self.merges[self.merged..self.merged + merges],
        )
    }

    /// Counts what was written to the [`room`](Self::room) for a sequence.
    pub(crate) fn add(&mut self, sequence: &Sequence, sets: u32, count: u32, merges: usize) -> Result<()> {
        let before = *self.sets.get_or_insert(sets);
        if before != sets {
            let what = format_args!("sets of sequence {}", sequence.index);
            return refuse(what, format_args!("{before}, as before it"), sets);
        }
        self.used += sets as usize * count as usize;
        self.merged += merges;
        self.kept_counts[sequence.index] = count;
        Ok(())
    }

    /// Adds the next KV head's set of a sequence: what a plan for that KV head alone says.
    pub(crate) fn add_head(&mut self, sequence: &Sequence, kv_head: usize, plan: &LayerPlan<'_>) {
        let kept = plan.set(0);
        let (direction, shifts) = plan.shifts();
        let range = self.used..self.used + kept.len();
        self.kept[range.clone()].copy_from_slice(kept);
        for (at, &candidate) in range.zip(kept) {
            self.history[at] = plan.history()[candidate as usize];
            if !shifts.is_empty() {
                self.key_shifts[at] = shifts[candidate as usize];
            }
        }
        if !direction.is_empty() {
            let first = (sequence.index * self.kv_heads + kv_head) * direction.len();
            self.key_directions[first..first + direction.len()].copy_from_slice(direction);
        }
        for (place, merge) in self.merges[self.merged..].iter_mut().zip(plan.merges(0)) {
            *place = Merge {
                sequence: sequence.index as u32,
                kv_head: kv_head as u32,
                from: merge.from,
                into: merge.into,
                key_weight: 0.0,
                value_weight: merge.value_weight,
            };
        }
        self.used += kept.len();
        self.merged += plan.merges(0).len();
        self.sets = Some(self.kv_heads as u32);
        self.kept_counts[sequence.index] = kept.len() as u32;
    }

    /// The plan, once all sequences that have candidates were added; `sets` if there are none.
    ///
    /// # Safety
    /// The batch's block ids are readable.
    pub(crate) unsafe fn finish(
        self,
        batch: &Batched<'_>,
        blocks: &Blocks<'_>,
        sets: u32,
    ) -> Result<Plan<'w>> {
        for (sequence, new_length) in batch.sequences().zip(&mut *self.new_lengths) {
            let count = self.kept_counts[sequence.index] as usize;
            *new_length = (sequence.length - sequence.candidates + count) as i32;
        }
        let (mut copied, mut dropped) = (0, 0);
        // SAFETY: the caller's contract.
        unsafe {
            effects(batch, blocks, self.new_lengths, |effect| {
                match effect {
                    Effect::Copy(copy) => {
                        self.copies[copied] = copy;
                        copied += 1;
                    }
                    Effect::Free(block) => {
                        self.freed[dropped] = block;
                        dropped += 1;
                    }
                }
                Ok(())
            })?;
        }
        let per_kept = |floats: &'w [f32]| &floats[..floats.len().min(self.used)];
        Ok(Plan {
            kept_counts: self.kept_counts,
            kept: &self.kept[..self.used],
            new_lengths: self.new_lengths,
            copies: &self.copies[..copied],
            freed_blocks: &self.freed[..dropped],
            merges: &self.merges[..self.merged],
            history: per_kept(self.history),
            key_shifts: per_kept(self.key_shifts),
            key_directions: match self.used {
                // Shifts are one for each kept entry.
                0 => &[],
                _ => self.key_directions,
            },
            sets: self.sets.unwrap_or(sets),
        })
    }
}
