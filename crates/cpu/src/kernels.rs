//! The inner loops that attention and scoring share. One query's arithmetic is fixed here and does not depend on how many queries are
//! worked on at a time:
//!
//! - a dot product is `LANES` partial sums over d, d + LANES, ..., added by a pairwise tree;
//! - a weighted sum over a tile's values is one chain in the order of the entries.
//!
//! Contract of all functions: the CPU has V's instructions, pointers are good for the lengths named. Rows of `f32` scratch are padded
//! with zeros to a multiple of `LANES` ("padded"); cache entries are `head_dim` elements and no more.

#![allow(clippy::needless_range_loop)] // indices into registers, unrolled: an iterator hides what the block computes

use crate::element::{Element, Stored};
use crate::vector::{Kernel, Vector};

/// Entries of a tile: attention goes through the cache in tiles of this many, counted from entry 0.
pub(crate) const TILE: usize = 64;

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

/// Up to how many numbers rows are padded in scratch.
#[inline(always)]
pub(crate) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

/// What to fetch while a tile is worked on: addresses of entries that will be read soon, the first of them while the tile's first is
/// read, and so on.
#[derive(Clone, Copy)]
pub(crate) struct Ahead<S>(pub(crate) *const *const S);

impl<S: Element> Ahead<S> {
    /// Fetches the elements `from..from + N * LANES` of the `index`th entry.
    #[inline(always)]
    unsafe fn fetch<V: Vector, const N: usize>(self, index: usize, from: usize) {
        // SAFETY: the list is long enough; a prefetch itself touches nothing.
        unsafe {
            let entry = (*self.0.add(index)).wrapping_add(from).cast::<u8>();
            let mut byte = 0;
            while byte < N * V::LANES * S::SIZE {
                V::prefetch(entry.wrapping_add(byte));
                byte += CACHE_LINE;
            }
        }
    }
}

/// `to[0..head_dim] = from`, rounded to E.
#[inline(always)]
pub(crate) unsafe fn store_row<V: Vector, E: Element>(from: *const f32, head_dim: usize, to: *mut E) {
    let full = head_dim / V::LANES * V::LANES;
    // SAFETY: `head_dim` is a multiple of 8, so what is left behind the full registers is nothing or half a register.
    unsafe {
        let mut d = 0;
        while d < full {
            E::store(V::load(from.add(d)), to.add(d));
            d += V::LANES;
        }
        if d < head_dim {
            E::store_half(V::load_half(from.add(d)), to.add(d));
        }
    }
}

/// `to[0..padded] = from[0..head_dim]`, zeros behind. `to` has room for `padded(head_dim)`.
#[inline(always)]
pub(crate) unsafe fn load_row<V: Vector, E: Stored>(from: *const E, head_dim: usize, to: *mut f32) {
    let full = head_dim / V::LANES * V::LANES;
    // SAFETY: as in `store_row`; the half register is stored whole, within the padding.
    unsafe {
        let mut d = 0;
        while d < full {
            E::load::<V>(from.add(d)).store(to.add(d));
            d += V::LANES;
        }
        if d < head_dim {
            E::load_half::<V>(from.add(d)).store(to.add(d));
            d += V::LANES;
        }
        while d < padded(head_dim) {
            V::zero().store(to.add(d));
            d += V::LANES;
        }
    }
}

/// `row[0..padded] *= factor`.
#[inline(always)]
pub(crate) unsafe fn scale_row<V: Vector>(row: *mut f32, head_dim: usize, factor: f32) {
    // SAFETY: the caller's contract; padding is a multiple of LANES.
    unsafe {
        let factor = V::splat(factor);
        let mut d = 0;
        while d < padded(head_dim) {
            V::load(row.add(d)).mul(factor).store(row.add(d));
            d += V::LANES;
        }
    }
}

/// Rows of `f32` scratch.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) first: *mut f32,
    pub(crate) stride: usize,
    pub(crate) count: usize,
}

impl Rows {
    #[inline(always)]
    pub(crate) fn row(self, index: usize) -> *mut f32 {
        self.first.wrapping_add(index * self.stride)
    }

    /// The rows `from..to`.
    #[inline(always)]
    pub(crate) fn between(self, from: usize, to: usize) -> Rows {
        Rows {
            first: self.row(from),
            stride: self.stride,
            count: to - from,
        }
    }
}

/// How many of `left` queries the next register block takes: as even blocks as possible.
#[inline(always)]
fn block<V: Vector>(left: usize) -> usize {
    left.div_ceil(left.div_ceil(V::QUERIES))
}

/// Dot products of all queries (padded rows) with the keys of a tile: `out.row(q)[e]`. Up to three numbers behind the last of a row are
/// overwritten as well.
pub(crate) struct Dot<E, S> {
    pub(crate) queries: Rows,
    /// Up to the next multiple of four; logits of those behind the last mean nothing.
    pub(crate) keys: *const *const E,
    pub(crate) entries: usize,
    pub(crate) head_dim: usize,
    pub(crate) out: Rows,
    pub(crate) ahead: Option<Ahead<S>>,
}

impl<E: Element, S: Element> Kernel for Dot<E, S> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller's contract.
        unsafe {
            // Two blocks of queries share the keys while these are in the first-level cache.
            let blocks = self.queries.count.div_ceil(V::QUERIES);
            let span = if blocks == 2 { 16 } else { TILE };
            let mut first = 0;
            while first < self.entries {
                let end = (first + span).min(self.entries);
                let mut q = 0;
                while q < self.queries.count {
                    let block = block::<V>(self.queries.count - q);
                    match block {
                        1 => self.block::<V, 1>(q, first, end),
                        2 => self.block::<V, 2>(q, first, end),
                        3 if V::QUERIES >= 3 => self.block::<V, 3>(q, first, end),
                        4 if V::QUERIES >= 4 => self.block::<V, 4>(q, first, end),
                        5 if V::QUERIES >= 5 => self.block::<V, 5>(q, first, end),
                        6 if V::QUERIES >= 6 => self.block::<V, 6>(q, first, end),
                        _ => {}
                    }
                    q += block;
                }
                first = end;
            }
        }
    }
}

impl<E: Element, S: Element> Dot<E, S> {
    /// Q queries from `q` on with the entries `first..end`.
    #[inline(always)]
    unsafe fn block<V: Vector, const Q: usize>(&self, q: usize, first: usize, end: usize) {
        let full = self.head_dim / V::LANES * V::LANES;
        // SAFETY: every key has `head_dim` elements, which end at a full or half register; queries are padded.
        unsafe {
            let out = self.out.row(q);
            let ahead = if q == 0 { self.ahead } else { None };
            let mut e = first;
            while e < end {
                let mut sums = [[V::zero(); 4]; Q];
                if Q <= 2 {
                    // Key by key: the order in which memory delivers best.
                    for i in 0..4 {
                        let mut d = 0;
                        while d < full {
                            self.add::<V, Q>(&mut sums, q, (e, i), d, ahead);
                            d += V::LANES;
                        }
                    }
                } else {
                    // Side by side: a query's register serves four keys.
                    let mut d = 0;
                    while d < full {
                        for i in 0..4 {
                            self.add::<V, Q>(&mut sums, q, (e, i), d, ahead);
                        }
                        d += V::LANES;
                    }
                }
                if full < self.head_dim {
                    for i in 0..4 {
                        let key = E::load_half::<V>((*self.keys.add(e + i)).add(full));
                        for j in 0..Q {
                            let query = V::load(self.queries.row(q + j).add(full));
                            sums[j][i] = query.mul_add(key, sums[j][i]);
                        }
                    }
                }
                let mut j = 0;
                while j + 1 < Q {
                    let to = out.add(j * self.out.stride + e);
                    V::sum_eight(sums[j], sums[j + 1], to, to.add(self.out.stride));
                    j += 2;
                }
                if j < Q {
                    V::sum_four(sums[j], out.add(j * self.out.stride + e));
                }
                e += 4;
            }
        }
    }

    /// One register of the `i`th key behind entry e, into its Q sums.
    #[inline(always)]
    unsafe fn add<V: Vector, const Q: usize>(
        &self,
        sums: &mut [[V; 4]; Q],
        q: usize,
        (e, i): (usize, usize),
        d: usize,
        ahead: Option<Ahead<S>>,
    ) {
        // SAFETY: as in `block`.
        unsafe {
            if let Some(ahead) = ahead {
                ahead.fetch::<V, 1>(e + i, d);
            }
            let key = E::load::<V>((*self.keys.add(e + i)).add(d));
            for j in 0..Q {
                let query = V::load(self.queries.row(q + j).add(d));
                sums[j][i] = query.mul_add(key, sums[j][i]);
            }
        }
    }
}

/// Adds a tile's weighted values to the running sums: `sums.row(q)[d] = sums.row(q)[d] * factors[q] + sum over e of
/// weights.row(q)[e] * value e [d]`.
pub(crate) struct Weigh<E, S> {
    /// Weights of the entries, one row per query.
    pub(crate) weights: Rows,
    /// The running sums, one padded row per query.
    pub(crate) sums: Rows,
    pub(crate) factors: *const f32,
    pub(crate) values: *const *const E,
    pub(crate) entries: usize,
    pub(crate) head_dim: usize,
    pub(crate) ahead: Option<Ahead<S>>,
}

impl<E: Element, S: Element> Kernel for Weigh<E, S> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller's contract.
        unsafe {
            let mut q = 0;
            while q < self.weights.count {
                let block = block::<V>(self.weights.count - q);
                match block {
                    1 => self.queries::<V, 1>(q),
                    2 => self.queries::<V, 2>(q),
                    3 if V::QUERIES >= 3 => self.queries::<V, 3>(q),
                    4 if V::QUERIES >= 4 => self.queries::<V, 4>(q),
                    5 if V::QUERIES >= 5 => self.queries::<V, 5>(q),
                    6 if V::QUERIES >= 6 => self.queries::<V, 6>(q),
                    _ => {}
                }
                q += block;
            }
        }
    }
}

impl<E: Element, S: Element> Weigh<E, S> {
    /// All dimensions for Q queries from `q` on, four registers at a time.
    #[inline(always)]
    unsafe fn queries<V: Vector, const Q: usize>(&self, q: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            let mut d = 0;
            while d + 4 * V::LANES <= self.head_dim {
                self.block::<V, Q, 4>(q, d, false);
                d += 4 * V::LANES;
            }
            if d + 2 * V::LANES <= self.head_dim {
                self.block::<V, Q, 2>(q, d, false);
                d += 2 * V::LANES;
            }
            if d + V::LANES <= self.head_dim {
                self.block::<V, Q, 1>(q, d, false);
                d += V::LANES;
            }
            if d < self.head_dim {
                self.block::<V, Q, 1>(q, d, true);
            }
        }
    }

    /// The dimensions `from..from + N * LANES` (N = 1 and `half`: the last half register) for Q queries from `q` on.
    #[inline(always)]
    unsafe fn block<V: Vector, const Q: usize, const N: usize>(&self, q: usize, from: usize, half: bool) {
        // SAFETY: values have `head_dim` elements, weights are rows of `TILE`, sums are padded rows.
        unsafe {
            let mut sums = [[V::zero(); N]; Q];
            let weights = self.weights.row(q);
            let ahead = if q == 0 { self.ahead } else { None };
            for e in 0..self.entries {
                if let Some(ahead) = ahead {
                    ahead.fetch::<V, N>(e, from);
                }
                let value = (*self.values.add(e)).add(from);
                for n in 0..N {
                    let v = if half {
                        E::load_half::<V>(value)
                    } else {
                        E::load::<V>(value.add(n * V::LANES))
                    };
                    for i in 0..Q {
                        sums[i][n] =
                            V::splat(*weights.add(i * self.weights.stride + e)).mul_add(v, sums[i][n]);
                    }
                }
            }
            for i in 0..Q {
                let factor = V::splat(*self.factors.add(q + i));
                for n in 0..N {
                    let at = self.sums.row(q + i).add(from + n * V::LANES);
                    V::load(at).mul_add(factor, sums[i][n]).store(at);
                }
            }
        }
    }
}
