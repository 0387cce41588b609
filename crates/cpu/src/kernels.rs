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

impl<S: Stored> Ahead<S> {
    /// Fetches the cache lines of the `index`th entry that begin in its elements `from..to`.
    #[inline(always)]
    pub(crate) unsafe fn fetch<V: Vector>(self, index: usize, from: usize, to: usize) {
        // SAFETY: the list is long enough; a prefetch itself touches nothing.
        unsafe {
            let entry = (*self.0.add(index)).cast::<u8>();
            let mut byte = (from * S::SIZE).next_multiple_of(CACHE_LINE);
            while byte < to * S::SIZE {
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

/// Floats from one query of a call to the next: the same for every `head_dim`, so that blocks of queries are addressed by constants, and
/// not a power of two, so that they do not share a set of the first-level cache.
pub(crate) const QUERY_STRIDE: usize = crate::pages::MAX_HEAD_DIM + 16;

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
pub(crate) fn block<V: Vector>(left: usize) -> usize {
    left.div_ceil(left.div_ceil(V::QUERIES))
}

/// Bytes of a tile's keys that all queries meet before the next ones: they stay in the first-level cache.
const SPAN_BYTES: usize = 16 << 10;

/// Dot products of all queries (padded rows) with the keys of a tile: `out.row(q)[e]`. Up to three numbers behind the last of a row are
/// overwritten as well.
pub(crate) struct Dot<E, S> {
    /// `QUERY_STRIDE` apart.
    pub(crate) queries: Rows,
    /// Up to the next multiple of four; logits of those behind the last mean nothing.
    pub(crate) keys: *const *const E,
    pub(crate) entries: usize,
    pub(crate) head_dim: usize,
    pub(crate) out: Rows,
    pub(crate) ahead: Option<Ahead<S>>,
}

impl<E: Stored, S: Stored> Kernel for Dot<E, S> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller's contract.
        unsafe {
            let span = match self.queries.count <= V::QUERIES {
                true => TILE,
                false => (SPAN_BYTES / (self.head_dim * E::SIZE)).clamp(16, TILE) / 4 * 4,
            };
            let mut first = 0;
            while first < self.entries {
                let end = (first + span).min(self.entries);
                let mut q = 0;
                while q < self.queries.count {
                    let block = block::<V>(self.queries.count - q);
                    match block {
                        1 => self.queries::<V, 1>(q, first, end),
                        2 => self.queries::<V, 2>(q, first, end),
                        3 if V::QUERIES >= 3 => self.queries::<V, 3>(q, first, end),
                        4 if V::QUERIES >= 4 => self.queries::<V, 4>(q, first, end),
                        5 if V::QUERIES >= 5 => self.queries::<V, 5>(q, first, end),
                        6 if V::QUERIES >= 6 => self.queries::<V, 6>(q, first, end),
                        _ => {}
                    }
                    q += block;
                }
                first = end;
            }
        }
    }
}

impl<E: Stored, S: Stored> Dot<E, S> {
    /// Q queries from `q` on with the entries `first..end`.
    #[inline(always)]
    unsafe fn queries<V: Vector, const Q: usize>(&self, q: usize, first: usize, end: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            if Q <= V::QUERIES_OF_FOUR {
                self.block::<V, Q, 4>(q, first, end);
            } else {
                self.block::<V, Q, 2>(q, first, end);
            }
        }
    }

    /// K keys at a time.
    #[inline(always)]
    unsafe fn block<V: Vector, const Q: usize, const K: usize>(&self, q: usize, first: usize, end: usize) {
        let full = self.head_dim / V::LANES * V::LANES;
        // SAFETY: every key has `head_dim` elements, which end at a full or half register; queries are padded.
        unsafe {
            let ahead = if q == 0 { self.ahead } else { None };
            let queries = self.queries.first.add(q * QUERY_STRIDE).cast_const();
            let mut e = first;
            while e < end {
                let mut keys = [std::ptr::null(); K];
                for i in 0..K {
                    keys[i] = *self.keys.add(e + i);
                    if let Some(ahead) = ahead {
                        ahead.fetch::<V>(e + i, 0, self.head_dim);
                    }
                }
                let mut sums = [[V::zero(); K]; Q];
                let mut d = 0;
                while d < full {
                    Self::add(&mut sums, queries.add(d), |i| E::load::<V>(keys[i].add(d)));
                    d += V::LANES;
                }
                if d < self.head_dim {
                    Self::add(&mut sums, queries.add(d), |i| E::load_half::<V>(keys[i].add(d)));
                }
                self.store(&sums, q, e);
                e += K;
            }
        }
    }

    /// Adds the products of one register of each query, `from` being the first's, with one of each key, which `key` loads. Of queries and keys the fewer ones wait in
    /// registers for the others.
    #[inline(always)]
    unsafe fn add<V: Vector, const Q: usize, const K: usize>(
        sums: &mut [[V; K]; Q],
        from: *const f32,
        key: impl Fn(usize) -> V,
    ) {
        // SAFETY: as in `block`.
        unsafe {
            if K == 4 {
                let mut queries = [V::zero(); Q];
                for j in 0..Q {
                    queries[j] = V::load(from.add(j * QUERY_STRIDE));
                }
                for i in 0..K {
                    let key = key(i);
                    for j in 0..Q {
                        queries[j].mul_add_to(key, &mut sums[j][i]);
                    }
                }
            } else {
                let mut keys = [V::zero(); K];
                for i in 0..K {
                    keys[i] = key(i);
                }
                for j in 0..Q {
                    let query = V::load(from.add(j * QUERY_STRIDE));
                    for i in 0..K {
                        query.mul_add_to(keys[i], &mut sums[j][i]);
                    }
                }
            }
        }
    }

    /// Adds up each register and stores the logits of the entries from `e` on.
    #[inline(always)]
    unsafe fn store<V: Vector, const Q: usize, const K: usize>(
        &self,
        sums: &[[V; K]; Q],
        q: usize,
        e: usize,
    ) {
        // SAFETY: as in `block`; rows of logits have room for a multiple of four.
        unsafe {
            let sum = |n: usize| match n < Q * K {
                true => sums[n / K][n % K],
                false => V::zero(),
            };
            let mut n = 0;
            while n < Q * K {
                let four = |n| [sum(n), sum(n + 1), sum(n + 2), sum(n + 3)];
                let both = match n + 4 < Q * K {
                    true => V::sum_eight(four(n), four(n + 4)),
                    false => [V::sum_four(four(n)), [0.0; 4]],
                };
                for (half, from) in both.into_iter().zip([n, n + 4]) {
                    for part in 0..4 / K {
                        let j = from / K + part;
                        if j < Q {
                            let to = self.out.row(q + j).add(e);
                            for i in 0..K {
                                *to.add(i) = half[part * K + i];
                            }
                        }
                    }
                }
                n += 8;
            }
        }
    }
}

/// Adds a tile's weighted values to the running sums: `sums.row(q)[d] = sums.row(q)[d] * factors[q] + sum over e of
/// weights.row(q)[e] * value e [d]`.
pub(crate) struct Weigh<E, S> {
    /// Weights of the entries, one row per query, `TILE` apart.
    pub(crate) weights: Rows,
    /// The running sums, one padded row per query.
    pub(crate) sums: Rows,
    pub(crate) factors: *const f32,
    pub(crate) values: *const *const E,
    pub(crate) entries: usize,
    pub(crate) head_dim: usize,
    pub(crate) ahead: Option<Ahead<S>>,
}

impl<E: Stored, S: Stored> Kernel for Weigh<E, S> {
    type Output = ();

    /// All queries meet four registers of every value before the next four.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller's contract.
        unsafe {
            let mut d = 0;
            while d + 4 * V::LANES <= self.head_dim {
                self.slice::<V, 4>(d, false);
                d += 4 * V::LANES;
            }
            if d + 2 * V::LANES <= self.head_dim {
                self.slice::<V, 2>(d, false);
                d += 2 * V::LANES;
            }
            if d + V::LANES <= self.head_dim {
                self.slice::<V, 1>(d, false);
                d += V::LANES;
            }
            if d < self.head_dim {
                self.slice::<V, 1>(d, true);
            }
        }
    }
}

impl<E: Stored, S: Stored> Weigh<E, S> {
    /// The dimensions `from..from + N * LANES` (N = 1 and `half`: the last half register) for all queries.
    #[inline(always)]
    unsafe fn slice<V: Vector, const N: usize>(&self, from: usize, half: bool) {
        // SAFETY: the caller's contract.
        unsafe {
            let mut q = 0;
            while q < self.weights.count {
                let block = block::<V>(self.weights.count - q);
                match block {
                    1 => self.queries::<V, 1, N>(q, from, half),
                    2 => self.queries::<V, 2, N>(q, from, half),
                    3 if V::QUERIES >= 3 => self.queries::<V, 3, N>(q, from, half),
                    4 if V::QUERIES >= 4 => self.queries::<V, 4, N>(q, from, half),
                    5 if V::QUERIES >= 5 => self.queries::<V, 5, N>(q, from, half),
                    6 if V::QUERIES >= 6 => self.queries::<V, 6, N>(q, from, half),
                    _ => {}
                }
                q += block;
            }
        }
    }

    #[inline(always)]
    unsafe fn queries<V: Vector, const Q: usize, const N: usize>(&self, q: usize, from: usize, half: bool) {
        // Where the lines that are fetched begin.
        let fetched = from..(from + N * V::LANES).min(self.head_dim);
        // SAFETY: the caller's contract.
        unsafe {
            if N == 4 && Q > V::QUERIES_OF_FOUR {
                self.block::<V, Q, 2>(q, from, half, fetched);
                self.block::<V, Q, 2>(q, from + 2 * V::LANES, half, 0..0);
            } else {
                self.block::<V, Q, N>(q, from, half, fetched);
            }
        }
    }

    #[inline(always)]
    unsafe fn block<V: Vector, const Q: usize, const N: usize>(
        &self,
        q: usize,
        from: usize,
        half: bool,
        fetched: std::ops::Range<usize>,
    ) {
        // SAFETY: values have `head_dim` elements, weights are rows of `TILE`, sums are padded rows.
        unsafe {
            let mut sums = [[V::zero(); N]; Q];
            let weights = self.weights.row(q);
            let ahead = if q == 0 { self.ahead } else { None };
            for e in 0..self.entries {
                if let Some(ahead) = ahead {
                    ahead.fetch::<V>(e, fetched.start, fetched.end);
                }
                let value = (*self.values.add(e)).add(from);
                let part = |n: usize| match half {
                    true => E::load_half::<V>(value),
                    false => E::load::<V>(value.add(n * V::LANES)),
                };
                let weight = |i: usize| V::splat(*weights.add(i * TILE + e));
                // Of weights and values the fewer ones wait in registers for the others.
                if N == 4 {
                    let mut of_queries = [V::zero(); Q];
                    for i in 0..Q {
                        of_queries[i] = weight(i);
                    }
                    for n in 0..N {
                        let part = part(n);
                        for i in 0..Q {
                            of_queries[i].mul_add_to(part, &mut sums[i][n]);
                        }
                    }
                } else {
                    let mut parts = [V::zero(); N];
                    for n in 0..N {
                        parts[n] = part(n);
                    }
                    for i in 0..Q {
                        let weight = weight(i);
                        for n in 0..N {
                            weight.mul_add_to(parts[n], &mut sums[i][n]);
                        }
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
