//! What attention each entry gets, of the weights that attention leaves behind.

use super::ATTEND_CHUNK;
use crate::error::{Error, at_least, at_most, exactly, plus, times};
use crate::heads::Heads;
use crate::kernels::TILE;
use crate::simd::Simd;
use crate::vector::{Kernel, Vector};
use std::ops::Range;

const WEIGHTS: &str = "floats of the weights";

/// A query's row of a chunk: weights of the entries, then what each tile's are relative to (the logit whose weight is 1), then each
/// tile's sum.
pub(super) const MAXIMA_AT: usize = ATTEND_CHUNK;
pub(super) const SUMS_AT: usize = MAXIMA_AT + 16;
pub(super) const RECORDED_ROW: usize = SUMS_AT + 16;
/// Tiles of a chunk. There is room for as many numbers as the widest register has.
const TILES: usize = ATTEND_CHUNK / TILE;
const _: () = assert!(TILES <= 16);

/// Floats of the weights of `queries` queries (tokens times query heads) over some chunks.
pub fn recorded_floats(chunks: usize, queries: usize) -> usize {
    chunks.saturating_mul(queries).saturating_mul(RECORDED_ROW)
}

/// Where weights go while a call attends: of all chunks and, within each, of `tokens * group` queries, in a form that
/// [`add_attention`] knows.
#[derive(Debug)]
pub struct Recorded<'a> {
    /// [`recorded_floats`] of the call's chunks.
    pub weights: &'a mut [f32],
    /// Whose weights they are: those of these queries, which see what the call's own in their places do and are asked for nothing else;
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
        let count = times(WEIGHTS, queries.tokens(), queries.group())?;
        exactly(WEIGHTS, recorded_floats(chunks.len(), count), self.weights.len())
    }
}

/// Adds to each entry the attention that the last tokens of a call give it: `out[e] += weight * sum over t in tokens and g of softmax over
/// the entries that token t sees of logits[t, g]`, for `e` up to what the last of `tokens` sees.
///
/// `weights` are those that were recorded of all chunks, in their order, of `call_tokens` tokens with `group` query heads each, the first
/// of which has `before` entries ahead of it; those of `tokens` are used up. The softmax is in `f32`. An entry's sum is added up token by
/// token and, within one, head by head, so that its bits do not depend on where a call's tokens began.
///
/// # Errors
/// When `weights` is not whole chunks of whole tokens, has fewer tokens than `tokens.end` or fewer entries than the last of them sees, or
/// `out` is shorter than that.
#[allow(clippy::too_many_arguments)] // each is a plain number or slice that the formula names
pub fn add_attention(
    simd: Simd,
    weights: &mut [f32],
    before: usize,
    tokens: Range<usize>,
    call_tokens: usize,
    group: usize,
    weight: f32,
    out: &mut [f32],
) -> Result<(), Error> {
    simd.check()?;
    at_most("end of the tokens", call_tokens, tokens.end)?;
    let count = times(WEIGHTS, call_tokens, group)?;
    if tokens.is_empty() || count == 0 {
        return Ok(());
    }
    let chunk = recorded_floats(1, count);
    exactly("floats beyond whole chunks", 0, weights.len() % chunk)?;
    let end = plus("entries seen by the last token", before, tokens.end)?;
    at_least(
        "entries of the weights",
        end,
        weights.len() / chunk * ATTEND_CHUNK,
    )?;
    at_least("entries of the output", end, out.len())?;
    // SAFETY: the set is available; the weights have the entries that are seen, and so has the output.
    unsafe {
        simd.run(AddAttention {
            weights: weights.as_mut_ptr(),
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
    weights: *mut f32,
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
            let heads = token * self.group..(token + 1) * self.group;
            let row = |chunk: usize, q: usize| {
                self.weights
                    .wrapping_add(recorded_floats(chunk, self.count) + q * RECORDED_ROW)
            };
            // SAFETY: `add_attention` has compared the sizes; rows have whole registers of their tiles' weights, maxima and sums.
            unsafe {
                for q in heads.clone() {
                    share_out::<V>(|chunk| row(chunk, q), seen, self.weight);
                }
                for (tile, out) in self.out[..seen].chunks_mut(TILE).enumerate() {
                    let (chunk, tile) = (tile / TILES, tile % TILES);
                    for q in heads.clone() {
                        let row = row(chunk, q);
                        add_row::<V>(row.add(tile * TILE), *row.add(MAXIMA_AT + tile), out);
                    }
                }
            }
        }
    }
}

/// Puts in place of each tile's maximum what its weights are to be multiplied with, so that those of the `seen` entries come to `weight`.
#[inline(always)]
unsafe fn share_out<V: Vector>(row: impl Fn(usize) -> *mut f32, seen: usize, weight: f32) {
    // The tiles of a chunk that are seen, in registers.
    let tiles = |chunk: usize| (seen - chunk * ATTEND_CHUNK).div_ceil(TILE).min(TILES);
    let registers = |chunk: usize| (0..tiles(chunk)).step_by(V::LANES);
    let chunks = 0..seen.div_ceil(ATTEND_CHUNK);
    // SAFETY: the caller's contract.
    unsafe {
        let mut largest = V::splat(f32::NEG_INFINITY);
        for chunk in chunks.clone() {
            for tile in registers(chunk) {
                let maxima = V::load(row(chunk).add(MAXIMA_AT + tile));
                largest = largest.max(maxima.first_or(tiles(chunk) - tile, f32::NEG_INFINITY));
            }
        }
        let largest = V::splat(largest.largest());
        // Chunks are summed in f32, the chunks' sums in f64.
        let mut sum = 0.0f64;
        for chunk in chunks.clone() {
            for tile in registers(chunk) {
                let maxima = row(chunk).add(MAXIMA_AT + tile);
                let factors = V::load(maxima).sub(largest).exp();
                factors.store(maxima);
                let sums = V::load(row(chunk).add(SUMS_AT + tile)).mul(factors);
                sum += f64::from(sums.first_or(tiles(chunk) - tile, 0.0).sum());
            }
        }
        let factor = V::splat((f64::from(weight) / sum) as f32);
        for chunk in chunks {
            for tile in registers(chunk) {
                let factors = row(chunk).add(MAXIMA_AT + tile);
                V::load(factors).mul(factor).store(factors);
            }
        }
    }
}

/// `out[e] += weights[e] * factor`, of a tile or fewer.
#[inline(always)]
unsafe fn add_row<V: Vector>(weights: *const f32, factor: f32, out: &mut [f32]) {
    let mut e = 0;
    let mut registers = out.chunks_exact_mut(V::LANES);
    // SAFETY: the caller's contract; `last` holds the widest register.
    unsafe {
        let factor = V::splat(factor);
        for out in registers.by_ref() {
            let sums = V::load(out.as_ptr());
            let sums = V::load(weights.add(e)).mul_add(factor, sums);
            sums.store(out.as_mut_ptr());
            e += V::LANES;
        }
        let rest = registers.into_remainder();
        if !rest.is_empty() {
            let mut last = [0.0; 16];
            last[..rest.len()].copy_from_slice(rest);
            let sums = V::load(last.as_ptr());
            let sums = V::load(weights.add(e)).mul_add(factor, sums);
            sums.store(last.as_mut_ptr());
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }
}
