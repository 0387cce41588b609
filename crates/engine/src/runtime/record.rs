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
    /// Of each row and KV head, in this order: where its logits and its sums lie; empty if none are wanted.
    parts: Vec<(Range<usize>, Range<usize>)>,
    logits: Vec<f32>,
    sums: Vec<f32>,
}

/// [`Record`], lent to the workers.
pub(super) struct Recorded<'a> {
    parts: &'a [(Range<usize>, Range<usize>)],
    logits: Parts<'a, f32>,
    sums: Parts<'a, f32>,
}

impl Record {
    /// Makes room. `shape` gives the queries of a row for one KV head (tokens times query heads), and the
    /// entries that the last of them sees.
    pub(super) fn lay_out(
        &mut self,
        rows: &[StepRow],
        kv_heads: usize,
        shape: impl Fn(usize, usize) -> (usize, usize),
    ) {
        self.parts.clear();
        let (mut logits, mut sums) = (0, 0);
        for (index, row) in rows.iter().enumerate() {
            for kv_head in 0..kv_heads {
                let (floats, entries) = match row.attention {
                    Some(_) => {
                        let (queries, end) = shape(index, kv_head);
                        (
                            cpu::recorded_floats(end.div_ceil(cpu::ATTEND_CHUNK), queries),
                            end,
                        )
                    }
                    None => (0, 0),
                };
                self.parts.push((logits..logits + floats, sums..sums + entries));
                (logits, sums) = (logits + floats, sums + entries);
            }
        }
        self.logits.resize(self.logits.len().max(logits), 0.0);
        self.sums.resize(self.sums.len().max(sums), 0.0);
    }

    pub(super) fn lend(&mut self) -> Recorded<'_> {
        Recorded {
            parts: &self.parts,
            logits: Parts::new(&mut self.logits),
            sums: Parts::new(&mut self.sums),
        }
    }

    /// The sums, to the caches that will have them as histories.
    pub(super) fn hand_over(&self, rows: &mut [StepRow], kv_heads: usize, layer: usize) {
        for (row, parts) in rows.iter_mut().zip(self.parts.chunks_exact(kv_heads)) {
            if row.attention.is_some() {
                for (kv_head, (_, sums)) in parts.iter().enumerate() {
                    row.cache
                        .set_next_history(layer, kv_head, &self.sums[sums.clone()]);
                }
            }
        }
    }
}

impl Recorded<'_> {
    /// Where the logits of some chunks go; `count` queries.
    ///
    /// # Safety
    /// Nobody else has the logits of these chunks of this part.
    #[allow(clippy::mut_from_ref)] // the caller's promise
    pub(super) unsafe fn logits(&self, part: usize, chunks: &Range<usize>, count: usize) -> &mut [f32] {
        let first = self.parts[part].0.start + cpu::recorded_floats(chunks.start, count);
        // SAFETY: the caller's promise; the part has room for all chunks.
        unsafe { self.logits.part(first, cpu::recorded_floats(chunks.len(), count)) }
    }

    /// Adds up what all of a part's logits come to.
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
            // Several units would have logits of their own.
            return Err(Error::Internal(format!(
                "attention was asked for of {tokens} tokens, more than {ATTEND_TOKEN_TILE}"
            )));
        }
        let (logits, sums) = &self.parts[part];
        // SAFETY: the caller's promise.
        let (logits, sums) = unsafe {
            (
                self.logits.part(logits.start, logits.len()),
                self.sums.part(sums.start, sums.len()),
            )
        };
        sums.fill(0.0);
        let (added, weight) = match of {
            Attention::Newest => (tokens - 1..tokens, 1.0),
            Attention::Sum => (0..tokens, 1.0),
            Attention::Ahead { interval } => (0..tokens, 1.0 / (interval * group) as f32),
        };
        if of != Attention::Newest {
            sums[..history.len()].copy_from_slice(history);
        }
        Ok(cpu::add_attention(
            simd, logits, before, added, tokens, group, weight, sums,
        )?)
    }
}
