//! What attention the entries of some rows get: of those whose policy asks.

#![allow(unsafe_code)] // buffers that the workers share, in disjoint parts

use std::ops::Range;

use reasoning_rpc_core::Attention;
use reasoning_rpc_cpu::{self as cpu, ATTEND_TOKEN_TILE, Simd};

use super::workers::Parts;
use crate::error::{Error, Result};
use crate::runner::StepRow;

/// Buffers, reused from node to node.
#[derive(Default)]
pub(super) struct Record {
    /// Of each row and KV head, in this order: where its weights lie; empty if none are wanted.
    parts: Vec<Range<usize>>,
    weights: Vec<f32>,
    /// Of the same: the next histories of their caches, while the workers add them up.
    sums: Vec<Vec<f32>>,
}

/// [`Record`], lent to the workers.
pub(super) struct Recorded<'a> {
    parts: &'a [Range<usize>],
    weights: Parts<'a, f32>,
    sums: Parts<'a, Vec<f32>>,
}

impl Record {
    /// Makes room for the rows that ask, of `tokens` tokens each, and takes what their caches' histories become.
    ///
    /// # Errors
    /// When a row that asks has more tokens than one unit takes: several would have weights of their own.
    pub(super) fn lay_out(
        &mut self,
        rows: &mut [StepRow],
        kv_heads: usize,
        layer: usize,
        group: usize,
        tokens: impl Fn(usize) -> usize,
    ) -> Result<()> {
        self.parts.clear();
        self.sums.clear();
        let mut weights = 0;
        for (index, row) in rows.iter_mut().enumerate() {
            let tokens = tokens(index);
            if row.attention.is_some() && tokens > ATTEND_TOKEN_TILE {
                return Err(Error::Internal(format!(
                    "attention was asked for of {tokens} tokens, more than {ATTEND_TOKEN_TILE}"
                )));
            }
            for kv_head in 0..kv_heads {
                let floats = row.attention.map_or(0, |_| {
                    let end = row.cache.head(layer, kv_head).len() + tokens;
                    cpu::recorded_floats(end.div_ceil(cpu::ATTEND_CHUNK), tokens * group)
                });
                self.parts.push(weights..weights + floats);
                self.sums.push(match floats {
                    0 => Vec::new(),
                    _ => row.cache.take_next_history(layer, kv_head),
                });
                weights += floats;
            }
        }
        self.weights.resize(self.weights.len().max(weights), 0.0);
        Ok(())
    }

    pub(super) fn lend(&mut self) -> Recorded<'_> {
        Recorded {
            parts: &self.parts,
            weights: Parts::new(&mut self.weights),
            sums: Parts::new(&mut self.sums),
        }
    }

    /// The sums, to the caches that will have them as histories.
    pub(super) fn hand_over(&mut self, rows: &mut [StepRow], kv_heads: usize, layer: usize) {
        for (row, sums) in rows.iter_mut().zip(self.sums.chunks_exact_mut(kv_heads)) {
            if row.attention.is_some() {
                for (kv_head, sums) in sums.iter_mut().enumerate() {
                    row.cache.set_next_history(layer, kv_head, std::mem::take(sums));
                }
            }
        }
    }
}

impl Recorded<'_> {
    /// Where the weights of some chunks go; `count` queries.
    ///
    /// # Safety
    /// Nobody else has the weights of these chunks of this part.
    #[allow(clippy::mut_from_ref)] // the caller's promise
    pub(super) unsafe fn weights(&self, part: usize, chunks: &Range<usize>, count: usize) -> &mut [f32] {
        let first = self.parts[part].start + cpu::recorded_floats(chunks.start, count);
        // SAFETY: the caller's promise; the part has room for all chunks.
        unsafe {
            self.weights
                .part(first, cpu::recorded_floats(chunks.len(), count))
        }
    }

    /// Adds up what all of a part's weights come to. `asks` says of which tokens, if `of` does not mean the newest.
    ///
    /// # Safety
    /// Nobody else has anything of this part.
    #[allow(clippy::too_many_arguments)] // one row and KV head
    pub(super) unsafe fn add(
        &self,
        simd: Simd,
        part: usize,
        of: Attention,
        history: &[f32],
        before: usize,
        tokens: usize,
        group: usize,
    ) -> Result<()> {
        let weights = &self.parts[part];
        // SAFETY: the caller's promise.
        let (weights, sums) = unsafe {
            (
                self.weights.part(weights.start, weights.len()),
                &mut self.sums.part(part, 1)[0],
            )
        };
        let (first, weight) = match of {
            Attention::Newest => (tokens - 1, 1.0),
            Attention::Sum => (0, 1.0),
            Attention::Ahead { interval } => (0, 1.0 / (interval * group) as f32),
        };
        sums.clear();
        if of != Attention::Newest {
            sums.extend_from_slice(history);
        }
        sums.resize(before + tokens, 0.0);
        cpu::add_attention(simd, weights, before, first..tokens, tokens, group, weight, sums)?;
        Ok(())
    }
}
