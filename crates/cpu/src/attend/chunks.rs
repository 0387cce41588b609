//! Chunks of a cache: what each gives a query, and how that is merged.

use super::record::Recorded;
use super::{check, run};
use crate::element::Stored;
use crate::error::{Error, at_least, at_most, exactly, times};
use crate::heads::{Heads, HeadsMut};
use crate::kernels::padded;
use crate::pages::KvPages;
use crate::scratch::ScratchOn;
use crate::simd::Simd;
use crate::vector::{Kernel, Vector};
use std::ops::Range;

/// Entries of a chunk. The softmax begins anew at each, counted from entry 0, whoever works on it: so the bits of a result do not depend
/// on how the chunks are shared out. A short cache is one chunk, which nothing is merged with.
pub const ATTEND_CHUNK: usize = 512;

/// Floats before the weighted sum of a chunk's result: its largest logit, its sum of weights, and padding.
const SUMS_AT: usize = 16;

/// Floats of what one chunk gives one query.
pub fn chunk_floats(head_dim: usize) -> usize {
    SUMS_AT + padded(head_dim)
}

/// [`attend`](crate::attend()) over some chunks of the entries alone: what each gives each query goes to `partial`, `[chunks][tokens *
/// group]` times [`chunk_floats`], for [`merge_chunks`]. Chunk c is the entries from `c * ATTEND_CHUNK` on, up to the next one or to what
/// the last token sees. Several threads can work on the chunks of one cache, each with its part of `partial`. What is recorded is as for
/// [`attend_recorded`](crate::attend_recorded()), of these chunks.
///
/// # Errors
/// As [`attend_recorded`](crate::attend_recorded()); when a chunk begins behind what the last token sees, or `partial` is not as long as
/// that.
#[allow(clippy::too_many_arguments)] // those of `attend_recorded`, and the chunks
pub fn attend_chunks<E: Stored>(
    simd: Simd,
    pages: &KvPages<'_, E>,
    before: usize,
    queries: Heads<'_>,
    chunks: Range<usize>,
    partial: &mut [f32],
    recorded: Option<Recorded<'_>>,
    scale: f32,
    scratch: &mut ScratchOn<'_>,
) -> Result<(), Error> {
    let end = check(simd, pages, before, queries)?;
    at_least("end of the chunks", chunks.start, chunks.end)?;
    at_most("end of the chunks", end.div_ceil(ATTEND_CHUNK), chunks.end)?;
    let what = "floats of the chunks' results";
    let count = queries.tokens() * queries.group();
    let floats = times(what, chunks.len(), count)?;
    exactly(
        what,
        times(what, floats, chunk_floats(pages.layout().head_dim))?,
        partial.len(),
    )?;
    if let Some(recorded) = &recorded {
        recorded.check(&chunks, queries)?;
    }
    if partial.is_empty() {
        return Ok(());
    }
    let target = super::Target::Partial(partial.as_mut_ptr());
    run(
        simd, pages, before, queries, chunks, target, recorded, scale, scratch,
    )
}

/// Merges what [`attend_chunks`] gave for all chunks, in their order: `out` becomes what [`attend`](crate::attend()) gives, bit for bit.
/// The first chunk's part of `partial` is used up.
///
/// # Errors
/// When `partial` is not whole chunks of the heads of `out`, or empty and `out` is not.
pub fn merge_chunks(simd: Simd, partial: &mut [f32], out: &mut HeadsMut<'_>) -> Result<(), Error> {
    simd.check()?;
    let what = "floats of the chunks' results";
    let count = out.tokens() * out.group();
    let chunk = times(what, count, chunk_floats(out.head_dim()))?;
    if chunk == 0 {
        return Ok(());
    }
    at_least(what, chunk, partial.len())?;
    exactly("floats beyond whole chunks", 0, partial.len() % chunk)?;
    // SAFETY: the set is available; the parts have the sizes that were compared.
    unsafe { simd.run(Merge { partial, out }) }
    Ok(())
}

struct Merge<'a, 'o> {
    partial: &'a mut [f32],
    out: &'a mut HeadsMut<'o>,
}

impl Kernel for Merge<'_, '_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let (group, head_dim) = (self.out.group(), self.out.head_dim());
        let count = self.out.tokens() * group;
        let floats = chunk_floats(head_dim);
        let chunks = self.partial.len() / (count * floats);
        let base = self.partial.as_mut_ptr();
        // SAFETY: `merge_chunks` has compared the sizes.
        unsafe {
            for q in 0..count {
                let state = State::at(base.add(q * floats));
                for chunk in 1..chunks {
                    state.merge::<V>(State::at(base.add((chunk * count + q) * floats)), head_dim);
                }
                state.divide::<V>(head_dim);
                let to = self.out.token(q / group).add(q % group * head_dim);
                std::ptr::copy_nonoverlapping(state.sums, to, head_dim);
            }
        }
    }
}

/// Where the result goes.
pub(super) enum Target<'a, 'o> {
    /// The merged and divided one of all chunks.
    Heads(&'a mut HeadsMut<'o>),
    /// That of each chunk.
    Partial(*mut f32),
}

/// What entries have given a query so far: the largest logit, and relative to it the sum of the weights and the weighted sum of the
/// values, a padded row.
#[derive(Clone, Copy)]
pub(super) struct State {
    pub(super) maximum: *mut f32,
    pub(super) total: *mut f32,
    pub(super) sums: *mut f32,
}

// Contract of all: the parts are writable and, between two states, do not overlap.
impl State {
    /// One of `chunk_floats` floats.
    #[inline(always)]
    pub(super) unsafe fn at(base: *mut f32) -> State {
        State {
            maximum: base,
            total: base.wrapping_add(1),
            sums: base.wrapping_add(SUMS_AT),
        }
    }

    /// Nothing yet.
    #[inline(always)]
    pub(super) unsafe fn clear(self, head_dim: usize) {
        // SAFETY: see above.
        unsafe {
            *self.maximum = f32::NEG_INFINITY;
            *self.total = 0.0;
            for d in 0..padded(head_dim) {
                *self.sums.add(d) = 0.0;
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn set<V: Vector>(self, from: State, head_dim: usize) {
        // SAFETY: see above.
        unsafe {
            *self.maximum = *from.maximum;
            *self.total = *from.total;
            let mut d = 0;
            while d < padded(head_dim) {
                V::load(from.sums.add(d)).store(self.sums.add(d));
                d += V::LANES;
            }
        }
    }

    /// Adds what later entries have given.
    #[inline(always)]
    pub(super) unsafe fn merge<V: Vector>(self, from: State, head_dim: usize) {
        // SAFETY: see above.
        unsafe {
            // A query that sees nothing of a chunk must keep the bits that it has without the chunk.
            if *from.total == 0.0 {
                return;
            }
            let (mine, other) = (*self.maximum, *from.maximum);
            let now = if other > mine { other } else { mine };
            let keep = V::splat(mine - now).exp();
            let add = V::splat(other - now).exp();
            *self.maximum = now;
            *self.total = *self.total * keep.first() + *from.total * add.first();
            let mut d = 0;
            while d < padded(head_dim) {
                let at = self.sums.add(d);
                let more = V::load(from.sums.add(d)).mul(add);
                V::load(at).mul_add(keep, more).store(at);
                d += V::LANES;
            }
        }
    }

    /// The weighted mean in place of the weighted sum.
    #[inline(always)]
    pub(super) unsafe fn divide<V: Vector>(self, head_dim: usize) {
        // SAFETY: see above.
        unsafe {
            let total = V::splat(*self.total);
            let mut d = 0;
            while d < padded(head_dim) {
                let at = self.sums.add(d);
                V::load(at).div(total).store(at);
                d += V::LANES;
            }
        }
    }
}
