//! Scores of candidates.

use half::{bf16, f16};
use reasoning_rpc_core::ScoreRule;
use reasoning_rpc_cpu::{self as cpu, Element, ScratchOn, Stored, score_scratch_bytes};

use crate::batch::{Batched, Sequence};
use crate::compressor::Compressor;
use crate::error::{Result, refuse};
use crate::tensors::{Pages, Queries, Views};
use crate::types::{Batch, Dtype, Layer, Window, Workspace};
use crate::workspace::{Carver, Needs, divide};

/// A window that was checked.
pub(crate) enum Source<'a> {
    Recorded {
        layer: usize,
        slots: Option<&'a [i32]>,
    },
    Ring {
        oldest: Option<&'a [i32]>,
        places: usize,
        queries: AnyQueries,
    },
}

pub(crate) enum AnyQueries {
    F32(Queries<f32>),
    F16(Queries<f16>),
    Bf16(Queries<bf16>),
}

impl AnyQueries {
    /// # Safety
    /// As [`Queries::read`].
    unsafe fn read(&self, at: [usize; 3], out: &mut [f32]) {
        // SAFETY: the caller's contract.
        unsafe {
            match self {
                Self::F32(queries) => queries.read(at, out, Element::to_f32),
                Self::F16(queries) => queries.read(at, out, Element::to_f32),
                Self::Bf16(queries) => queries.read(at, out, Element::to_f32),
            }
        }
    }
}

impl Compressor {
    /// Scores the candidates of every sequence in one layer: per sequence `[kv_heads][candidates]`, one after
    /// the other: softmax over the candidates, summed over the window's tokens, mean over the query heads of
    /// the KV head; in float32, not pooled. [`Selection::Lookahead`](crate::Selection::Lookahead): rotated on,
    /// softmax over all entries, mean over the interval's tokens; histories are not read.
    ///
    /// # Errors
    /// A view that cannot be, too few recorded queries, a number of scores that is not
    /// [`sizes`](Self::sizes)', too small a workspace, a recorded window in use. `scores` is not written then.
    ///
    /// # Safety
    /// The tensors and the window are what the views say: valid entries and the window's queries initialised, readable and
    /// not written meanwhile; so are the ids in the block table. The workspace is not used by anyone else
    /// (plans of calls before may lie in it).
    pub unsafe fn score(
        &self,
        layer: &Layer,
        batch: &Batch<'_>,
        window: &Window<'_>,
        scores: &mut [f32],
        workspace: Workspace,
    ) -> Result<()> {
        let batch = Batched::new(batch, self.window())?;
        let needs = Needs::of(self, &batch);
        // SAFETY: the caller's contract.
        unsafe {
            let (_, mut scratch) = divide(workspace, &needs)?;
            self.score_in(layer, &batch, window, scores, &mut scratch)
        }
    }

    /// # Safety
    /// As [`score`](Self::score).
    pub(crate) unsafe fn score_in(
        &self,
        layer: &Layer,
        batch: &Batched<'_>,
        window: &Window<'_>,
        scores: &mut [f32],
        scratch: &mut Carver<'_>,
    ) -> Result<()> {
        let expected = batch.score_count(self.kv_heads);
        if scores.len() != expected {
            return refuse("scores", expected, scores.len());
        }
        // SAFETY: the caller's contract.
        unsafe {
            batch.check_ids()?;
            match self.dtype {
                Dtype::F32 => self.score_typed::<f32>(layer, batch, window, scores, scratch),
                Dtype::F16 => self.score_typed::<f16>(layer, batch, window, scores, scratch),
                Dtype::Bf16 => self.score_typed::<bf16>(layer, batch, window, scores, scratch),
                Dtype::I8 => self.score_typed::<i8>(layer, batch, window, scores, scratch),
            }
        }
    }

    /// # Safety
    /// As [`score`](Self::score); block ids were checked.
    unsafe fn score_typed<E: Stored>(
        &self,
        layer: &Layer,
        batch: &Batched<'_>,
        window: &Window<'_>,
        scores: &mut [f32],
        scratch: &mut Carver<'_>,
    ) -> Result<()> {
        let views = Views::<E>::new(self, layer, batch)?;
        let source = self.source(layer, batch, window)?;
        if self.scores.is_none() {
            scores.fill(0.0);
            return Ok(());
        }
        let over_all = self.scores != Some(ScoreRule::WindowOverCandidates);
        let (mut blocks, mut most) = (0, 0);
        for sequence in batch.sequences() {
            blocks = blocks.max(batch.blocks(sequence.length));
            most = most.max(if over_all {
                sequence.length
            } else {
                sequence.candidates
            });
        }
        let all = scratch.filled(if over_all { most } else { 0 }, 0.0f32)?;
        let visible = scratch.filled(if over_all { self.window() } else { 0 }, 0usize)?;
        let mut pages = Pages::new(scratch, blocks)?;
        let queries = scratch.filled(self.query_count() * self.head_dim, 0.0)?;
        let bytes = score_scratch_bytes(self.query_count(), most, self.head_dim);
        let mut own = ScratchOn::over(scratch.take(bytes)?);
        let mut rest = scores;
        for sequence in batch.sequences().filter(|sequence| sequence.candidates > 0) {
            let range = sequence.prompt..sequence.prompt + sequence.candidates;
            for kv_head in 0..self.kv_heads {
                let (out, tail) = rest.split_at_mut(sequence.candidates);
                rest = tail;
                // SAFETY: the caller's contract; `source` was checked for this batch.
                unsafe {
                    self.gather(&source, &sequence, kv_head, queries)?;
                    if let Some(ahead) = &self.ahead {
                        ahead.rotate(queries, self.head_dim);
                    }
                    let ids = (0..batch.blocks(sequence.length)).map(|index| batch.block(&sequence, index));
                    let count = pages.find(&views, kv_head, ids);
                    let pages = pages.read(&views, count, sequence.length)?;
                    if over_all {
                        let all = &mut all[..sequence.length];
                        if self.ahead.is_some() {
                            self.score_all(&pages, queries, all, &mut own)?;
                        } else {
                            for (count, seen) in visible.iter_mut().enumerate() {
                                *seen = range.end + count + 1;
                            }
                            let (group, scale) = (self.group(), self.scale);
                            cpu::score_visible(
                                self.simd, &pages, visible, queries, group, scale, all, &mut own,
                            )?;
                        }
                        out.copy_from_slice(&all[range.clone()]);
                        continue;
                    }
                    let ranges = std::slice::from_ref(&range);
                    cpu::score(
                        self.simd,
                        &pages,
                        ranges,
                        queries,
                        self.group(),
                        self.scale,
                        out,
                        &mut own,
                    )?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn source<'a>(
        &self,
        layer: &Layer,
        batch: &Batched<'_>,
        window: &Window<'a>,
    ) -> Result<Source<'a>> {
        let numbers = |what: &str, list: Option<&[i32]>| match list {
            Some(list) if list.len() != batch.len() => refuse(
                what,
                format_args!("one for each of {} sequences", batch.len()),
                list.len(),
            ),
            _ => Ok(()),
        };
        match *window {
            Window::Recorded { slots } => {
                self.rings.check_layer(layer.layer)?;
                numbers("slots", slots)?;
                let layer = layer.layer as usize;
                for sequence in batch.sequences().filter(|sequence| sequence.candidates > 0) {
                    let slot = self.rings.check_slot(slot_of(slots, &sequence))?;
                    self.rings.take(layer, slot)?.check(self.query_tokens, slot)?;
                }
                Ok(Source::Recorded { layer, slots })
            }
            Window::Ring {
                queries,
                strides,
                oldest,
                ring_tokens,
                dtype,
            } => {
                numbers("oldest", oldest)?;
                let places = ring_tokens as usize;
                if places < self.query_tokens {
                    return refuse(
                        "ring_tokens",
                        format_args!("at least {}, those that score", self.query_tokens),
                        places,
                    );
                }
                for (index, &place) in oldest.unwrap_or_default().iter().enumerate() {
                    if usize::try_from(place).is_ok_and(|place| place < places) {
                        continue;
                    }
                    return refuse(
                        format_args!("oldest[{index}]"),
                        format_args!("0 to below {places}"),
                        place,
                    );
                }
                let counts = [batch.batch.row_count as usize, places, self.heads];
                let queries = match dtype {
                    Dtype::F32 => AnyQueries::F32(Queries::new(queries, strides, counts, self.head_dim)?),
                    Dtype::F16 => AnyQueries::F16(Queries::new(queries, strides, counts, self.head_dim)?),
                    Dtype::Bf16 => AnyQueries::Bf16(Queries::new(queries, strides, counts, self.head_dim)?),
                    Dtype::I8 => return refuse("dtype of queries", "F32, F16 or BF16", "I8"),
                };
                Ok(Source::Ring {
                    oldest,
                    places,
                    queries,
                })
            }
        }
    }

    /// The queries that score of one KV head's query heads: tokens oldest first, heads inside.
    ///
    /// # Safety
    /// The source was checked, and a host's ring is readable.
    pub(crate) unsafe fn gather(
        &self,
        source: &Source<'_>,
        sequence: &Sequence,
        kv_head: usize,
        out: &mut [f32],
    ) -> Result<()> {
        let group = self.group();
        let width = group * self.head_dim;
        match source {
            Source::Recorded { layer, slots } => {
                let slot = self.rings.check_slot(slot_of(*slots, sequence))?;
                let ring = self.rings.take(*layer, slot)?;
                ring.check(self.query_tokens, slot)?;
                for (token, out) in ring.tokens(self.query_tokens).zip(out.chunks_exact_mut(width)) {
                    out.copy_from_slice(&token[kv_head * width..][..width]);
                }
            }
            Source::Ring {
                oldest,
                places,
                queries,
            } => {
                let oldest = oldest.map_or(0, |oldest| oldest[sequence.index] as usize);
                for (index, out) in out.chunks_exact_mut(self.head_dim).enumerate() {
                    let (token, head) = (index / group, kv_head * group + index % group);
                    // SAFETY: the caller's contract.
                    unsafe { queries.read([sequence.row, (oldest + token) % places, head], out) };
                }
            }
        }
        Ok(())
    }
}

fn slot_of(slots: Option<&[i32]>, sequence: &Sequence) -> i32 {
    slots.map_or(sequence.row as i32, |slots| slots[sequence.index])
}
