//! What attention each entry gets, of the logits that attention leaves behind.

use super::ATTEND_CHUNK;
use crate::error::{Error, at_least, at_most, exactly, plus, times};
use crate::heads::Heads;
use crate::kernels::TILE;
use crate::simd::Simd;
use crate::vector::{Kernel, Vector};
use std::ops::Range;

const LOGITS: &str = "floats of the logits";

/// Floats of the logits of `queries` queries (tokens times query heads) over some chunks.
pub fn recorded_floats(chunks: usize, queries: usize) -> usize {
    chunks.saturating_mul(queries).saturating_mul(ATTEND_CHUNK)
}

/// Where scaled logits go while a call attends: `[chunks][tokens * group]` rows of [`ATTEND_CHUNK`] floats, of which those of entries
/// that a query does not see may be anything.
#[derive(Debug)]
pub struct Recorded<'a> {
    /// [`recorded_floats`] of the call's chunks.
    pub logits: &'a mut [f32],
    /// Whose logits they are: those of these queries, which see what the call's own in their places do and are asked for nothing else;
    /// if there are none, those of the call's own.
    pub others: Option<Heads<'a>>,
}

impl Recorded<'_> {
    /// For a call with these queries.
    pub(super) fn check(&self, chunks: &Range<usize>, queries: Heads<'_>) -> Result<(), Error> {
        if let Some(others) = self.others {
            exactly(
                "head_dim of the other queries",
                queries.head_dim(),
                others.head_dim(),
            )?;
            exactly("tokens of the other queries", queries.tokens(), others.tokens())?;
            exactly("heads of the other queries", queries.group(), others.group())?;
        }
        let count = times(LOGITS, queries.tokens(), queries.group())?;
        exactly(LOGITS, recorded_floats(chunks.len(), count), self.logits.len())
    }
}

/// Adds to each entry the attention that the last tokens of a call give it: `out[e] += weight * sum over t in tokens and g of softmax over
/// the entries that token t sees of logits[t, g]`, for `e` up to what the last of `tokens` sees.
///
/// `logits` are those of all chunks, in their order, of `tokens.end` tokens or more with `group` query heads each, the first of which has
/// `before` entries ahead of it; they are used up. The softmax is in `f32`. An entry's sum is added up token by token and, within one, head
/// by head, so that its bits do not depend on where a call's tokens began.
///
/// # Errors
/// When `logits` is not whole chunks of whole tokens, has fewer tokens than `tokens.end` or fewer entries than the last of them sees, or
/// `out` is shorter than that.
#[allow(clippy::too_many_arguments)] // each is a plain number or slice that the formula names
pub fn add_attention(
    simd: Simd,
    logits: &mut [f32],
    before: usize,
    tokens: Range<usize>,
    call_tokens: usize,
    group: usize,
    weight: f32,
    out: &mut [f32],
) -> Result<(), Error> {
    simd.check()?;
    at_most("end of the tokens", call_tokens, tokens.end)?;
    let count = times(LOGITS, call_tokens, group)?;
    if tokens.is_empty() || count == 0 {
        return Ok(());
    }
    let chunk = recorded_floats(1, count);
    exactly("floats beyond whole chunks", 0, logits.len() % chunk)?;
    let end = plus("entries seen by the last token", before, tokens.end)?;
    at_least("entries of the logits", end, logits.len() / count)?;
    at_least("entries of the output", end, out.len())?;
    // SAFETY: the set is available; the logits have the entries that are seen, and so has the output.
    unsafe {
        simd.run(AddAttention {
            logits: logits.as_mut_ptr(),
            before,
            tokens,
            group,
            count,
            weight,
            out,
        })
    }
    Ok(())
}

struct AddAttention<'a> {
    logits: *mut f32,
    before: usize,
    tokens: Range<usize>,
    group: usize,
    count: usize,
    weight: f32,
    out: &'a mut [f32],
}

impl Kernel for AddAttention<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for token in self.tokens.clone() {
            let seen = self.before + token + 1;
            for q in token * self.group..(token + 1) * self.group {
                let row = |chunk: usize| self.logits.wrapping_add((chunk * self.count + q) * ATTEND_CHUNK);
                let part = |chunk: usize| ATTEND_CHUNK.min(seen - chunk * ATTEND_CHUNK);
                let chunks = seen.div_ceil(ATTEND_CHUNK);
                // SAFETY: `add_attention` has compared the sizes; rows are whole registers long.
                unsafe {
                    let mut largest = V::splat(f32::NEG_INFINITY);
                    for chunk in 0..chunks {
                        let (row, seen) = (row(chunk), part(chunk));
                        let mut e = 0;
                        while e < seen {
                            let logits = V::load(row.add(e)).first_or(seen - e, f32::NEG_INFINITY);
                            largest = largest.max(logits);
                            e += V::LANES;
                        }
                    }
                    let largest = V::splat(largest.largest());
                    // Tiles are summed in f32, the tiles' sums in f64.
                    let mut sum = 0.0f64;
                    for chunk in 0..chunks {
                        let (row, seen) = (row(chunk), part(chunk));
                        let mut e = 0;
                        while e < seen {
                            let end = (e + TILE).min(seen);
                            let mut tile = V::zero();
                            while e < end {
                                let logits = V::load(row.add(e)).first_or(seen - e, f32::NEG_INFINITY);
                                let weights = logits.sub(largest).exp();
                                weights.store(row.add(e));
                                tile = tile.add(weights);
                                e += V::LANES;
                            }
                            sum += f64::from(tile.sum());
                        }
                    }
                    let factor = (f64::from(self.weight) / sum) as f32;
                    for (chunk, out) in self.out[..seen].chunks_mut(ATTEND_CHUNK).enumerate() {
                        let row = row(chunk);
                        for (e, sum) in out.iter_mut().enumerate() {
                            *sum += *row.add(e) * factor;
                        }
                    }
                }
            }
        }
    }
}
