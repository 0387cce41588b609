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
    /// Of each row and KV head, in this order: where its weights and its sums lie; empty if none are wanted.
    parts: Vec<(Range<usize>, Range<usize>)>,
    weights: Vec<f32>,
    sums: Vec<f32>,
}

/// [`Record`], lent to the workers.
pub(super) struct Recorded<'a> {
    parts: &'a [(Range<usize>, Range<usize>)],
    weights: Parts<'a, f32>,
    sums: Parts<'a, f32>,
}

impl Record {
    /// Makes room. `shape` gives the queries of a row for one KV head (tokens times query heads), and the
    /// entries that the last of them sees; nothing if none of them is asked.
    pub(super) fn lay_out(
        &mut self,
        rows: usize,
        kv_heads: usize,
        shape: impl Fn(usize, usize) -> Option<(usize, usize)>,
    ) {
        self.parts.clear();
        let (mut weights, mut sums) = (0, 0);
        for row in 0..rows {
            for kv_head in 0..kv_heads {
                let (floats, entries) = shape(row, kv_head).map_or((0, 0), |(queries, end)| {
                    let chunks = end.div_ceil(cpu::ATTEND_CHUNK);
                    (cpu::recorded_floats(chunks, queries), end)
                });
                self.parts.push((weights..weights + floats, sums..sums + entries));
                (weights, sums) = (weights + floats, sums + entries);
            }
        }
        self.weights.resize(self.weights.len().max(weights), 0.0);
        self.sums.resize(self.sums.len().max(sums), 0.0);
    }

    pub(super) fn lend(&mut self) -> Recorded<'_> {
        Recorded {
            parts: &self.parts,
            weights: Parts::new(&mut self.weights),
            sums: Parts::new(&mut self.sums),
        }
    }

    /// The sums, to the caches that will have them as histories.
    pub(super) fn hand_over(&self, rows: &mut [StepRow], kv_heads: usize, layer: usize) {
        for (row, parts) in rows.iter_mut().zip(self.parts.chunks_exact(kv_heads)) {
            for (kv_head, (_, sums)) in parts.iter().enumerate() {
                if !sums.is_empty() {
                    row.cache
                        .set_next_history(layer, kv_head, &self.sums[sums.clone()]);
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
        let first = self.parts[part].0.start + cpu::recorded_floats(chunks.start, count);
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
        if tokens > ATTEND_TOKEN_TILE {
            // Several units would have weights of their own.
            return Err(Error::Internal(format!(
                "attention was asked for of {tokens} tokens, more than {ATTEND_TOKEN_TILE}"
            )));
        }
        let (weights, sums) = &self.parts[part];
        // SAFETY: the caller's promise.
        let (weights, sums) = unsafe {
            (
                self.weights.part(weights.start, weights.len()),
                self.sums.part(sums.start, sums.len()),
            )
        };
        let (first, weight) = match of {
            Attention::Newest => (tokens - 1, 1.0),
            Attention::Sum => (0, 1.0),
            Attention::Ahead { interval } => (0, 1.0 / (interval * group) as f32),
        };
        let known = if of == Attention::Newest { 0 } else { history.len() };
        sums[..known].copy_from_slice(&history[..known]);
        sums[known..].fill(0.0);
        cpu::add_attention(simd, weights, before, first..tokens, tokens, group, weight, sums)?;
        Ok(())
    }
}
