//! The products of a tile of `i8`: sums of integers, exact whatever their order.
//!
//! A query becomes numbers of 16 bits with one scale, so do a tile's weights, each times its value's scale: both lose half a step of
//! 1/32767 of their largest, which is little beside the half step of 1/127 that the cache has lost. Sums fit 32 bits: a product of two
//! such numbers is below 2^22, and at most 256 are added.

#![allow(clippy::needless_range_loop)] // indices into registers, as in `kernels`

use super::Buffers;
use super::tile::{Soften, Tile};
use crate::kernels::{Ahead, Rows, TILE, block};
use crate::pages::MAX_HEAD_DIM;
use crate::vector::{Kernel, Vector};

/// Numbers from one query to the next; the widest registers have 32.
const STRIDE: usize = MAX_HEAD_DIM + 32;
/// Below this the numbers of a row count as 0: the reciprocal of their step must be finite.
const LEAST: f32 = 1e-30;

/// Buffers of `i8` alone.
#[derive(Clone, Copy)]
pub(super) struct Words {
    /// Queries, `STRIDE` apart, zeros behind `head_dim`.
    pub(super) queries: *mut i16,
    /// What each query's numbers are multiples of.
    pub(super) query_steps: *mut f32,
    /// Weights times scales, `TILE` apart.
    pub(super) weights: *mut i16,
    pub(super) weight_steps: *mut f32,
    /// Scales of a tile.
    pub(super) key_scales: *mut f32,
    pub(super) value_scales: *mut f32,
}

impl Words {
    /// Floats that the parts take: queries and weights of one query.
    pub(super) const QUERY_FLOATS: usize = STRIDE / 2;
    pub(super) const WEIGHT_FLOATS: usize = TILE / 2;
}

/// Rounds a padded row to multiples of a step, which is returned. A row that is not finite has no such step: it is NaN, and so is what
/// it is multiplied with.
#[inline(always)]
unsafe fn round_row<V: Vector>(row: *const f32, count: usize, to: *mut i16) -> f32 {
    // SAFETY: the caller's contract; `count` is a multiple of LANES.
    unsafe {
        let (mut most, mut sum) = (V::zero(), V::zero());
        let mut d = 0;
        while d < count {
            let x = V::load(row.add(d));
            most = most.max(x).max(V::zero().sub(x));
            sum = sum.add(x);
            d += V::LANES;
        }
        let most = most.largest();
        let inverse = V::splat(if most > LEAST { 32767.0 / most } else { 0.0 });
        d = 0;
        while d < count {
            V::load(row.add(d)).mul(inverse).store_words(to.add(d));
            d += V::LANES;
        }
        most / 32767.0 + 0.0 * sum.sum()
    }
}

/// A padded query as words.
#[inline(always)]
pub(super) unsafe fn query_words<V: Vector>(b: &Buffers, words: Words, q: usize) {
    // SAFETY: the caller's contract: the query's row is loaded; a row of words has room for the padding.
    unsafe {
        let to = words.queries.add(q * STRIDE);
        let width = b.sums.stride;
        *words.query_steps.add(q) = round_row::<V>(b.queries.row(q), width, to);
        for d in width..STRIDE.min(width + 32) {
            *to.add(d) = 0;
        }
    }
}

impl Tile<'_> {
    /// [`Tile::run`] for `i8`, whose scales are in `words`.
    #[inline(always)]
    pub(super) unsafe fn run_int8<V: Vector>(&self, tile: &[*const i8], words: Words, ahead: Ahead<i8>) {
        // SAFETY: as for `run`.
        unsafe {
            for (from, to) in self.asked() {
                if from < to {
                    V::call(DotInt8 {
                        queries: words.queries.add(from * STRIDE),
                        keys: tile.as_ptr(),
                        entries: self.seen,
                        head_dim: self.head_dim,
                        out: self.b.weights.between(from, to),
                        ahead,
                    });
                }
            }
            V::call(Soften::<true> {
                tile: self,
                query_steps: words.query_steps,
                key_scales: words.key_scales,
            });
            V::call(RoundWeights { tile: self, words });
            V::call(WeighInt8 {
                weights: words.weights.add(self.from * TILE),
                steps: words.weight_steps.add(self.from),
                sums: self.b.sums.between(self.from, self.to),
                factors: self.b.factors.add(self.from),
                values: tile[TILE..].as_ptr(),
                entries: self.seen,
                head_dim: self.head_dim,
                ahead: Ahead(ahead.0.add(TILE)),
            });
        }
    }
}

/// As [`Dot`](crate::kernels::Dot), in multiples of the steps of query and key.
struct DotInt8 {
    queries: *const i16,
    keys: *const *const i8,
    entries: usize,
    head_dim: usize,
    out: Rows,
    ahead: Ahead<i8>,
}

impl Kernel for DotInt8 {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller's contract.
        unsafe {
            // Two blocks of queries share the keys while these are in the first-level cache.
            let span = if self.out.count <= V::QUERIES { TILE } else { 32 };
            let mut first = 0;
            while first < self.entries {
                let end = (first + span).min(self.entries);
                let mut q = 0;
                while q < self.out.count {
                    let block = block::<V>(self.out.count - q);
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

impl DotInt8 {
    #[inline(always)]
    unsafe fn queries<V: Vector, const Q: usize>(&self, q: usize, first: usize, end: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            if Q <= V::INT_QUERIES_OF_FOUR {
                self.block::<V, Q, 4>(q, first, end);
            } else {
                self.block::<V, Q, 2>(q, first, end);
            }
        }
    }

    #[inline(always)]
    unsafe fn block<V: Vector, const Q: usize, const K: usize>(&self, q: usize, first: usize, end: usize) {
        let full = self.head_dim / (2 * V::LANES) * (2 * V::LANES);
        // SAFETY: every key has `head_dim` elements; what is left behind whole registers is copied behind which zeros are.
        unsafe {
            let queries = self.queries.add(q * STRIDE);
            let mut e = first;
            while e < end {
                let mut keys = [std::ptr::null(); K];
                for i in 0..K {
                    keys[i] = *self.keys.add(e + i);
                    if q == 0 {
                        self.ahead.fetch::<V>(e + i, 0, self.head_dim);
                    }
                }
                let mut sums = [[V::no_ints(); K]; Q];
                let mut d = 0;
                while d < full {
                    Self::add::<V, Q, K>(&mut sums, queries.add(d), keys.map(|key| key.add(d)));
                    d += 2 * V::LANES;
                }
                if d < self.head_dim {
                    let rests = keys.map(|key| rest(key.add(d), self.head_dim - d));
                    let mut parts = [std::ptr::null(); K];
                    for i in 0..K {
                        parts[i] = rests[i].as_ptr();
                    }
                    Self::add::<V, Q, K>(&mut sums, queries.add(d), parts);
                }
                self.store::<V, Q, K>(&sums, q, e);
                e += K;
            }
        }
    }

    #[inline(always)]
    unsafe fn add<V: Vector, const Q: usize, const K: usize>(
        sums: &mut [[V::Ints; K]; Q],
        queries: *const i16,
        keys: [*const i8; K],
    ) {
        // SAFETY: as in `block`.
        unsafe {
            let keys = keys.map(|key| V::words_of(key));
            for j in 0..Q {
                let query = V::load_words(queries.add(j * STRIDE));
                for i in 0..K {
                    V::add_products(query, keys[i], &mut sums[j][i]);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn store<V: Vector, const Q: usize, const K: usize>(
        &self,
        sums: &[[V::Ints; K]; Q],
        q: usize,
        e: usize,
    ) {
        // SAFETY: as in `block`; rows of logits have room for a multiple of four.
        unsafe {
            let mut n = 0;
            while n < Q * K {
                let mut eight = [V::no_ints(); 8];
                for i in 0..8 {
                    if n + i < Q * K {
                        eight[i] = sums[(n + i) / K][(n + i) % K];
                    }
                }
                let eight = V::sum_ints(eight);
                for i in 0..8 {
                    if n + i < Q * K {
                        let row = self.out.row(q + (n + i) / K);
                        *row.add(e + (n + i) % K) = eight[i] as f32;
                    }
                }
                n += 8;
            }
        }
    }
}

/// Up to 31 bytes with zeros behind.
#[inline(always)]
unsafe fn rest(from: *const i8, count: usize) -> [i8; 32] {
    let mut bytes = [0; 32];
    // SAFETY: `count` readable bytes, fewer than 32.
    unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), count) };
    bytes
}

/// Weights times the values' scales, as words.
struct RoundWeights<'a> {
    tile: &'a Tile<'a>,
    words: Words,
}

impl Kernel for RoundWeights<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Tile {
            b, from, to, seen, ..
        } = *self.tile;
        // SAFETY: rows of weights and scales have `TILE` numbers, a multiple of LANES.
        unsafe {
            for q in from..to {
                let row = b.weights.row(q);
                let mut e = 0;
                while e < seen {
                    // What is not seen counts as 0, whatever its scale.
                    V::load(row.add(e))
                        .mul(V::load(self.words.value_scales.add(e)))
                        .first_or(seen - e, 0.0)
                        .store(row.add(e));
                    e += V::LANES;
                }
                *self.words.weight_steps.add(q) = round_row::<V>(row, e, self.words.weights.add(q * TILE));
            }
        }
    }
}

/// As [`Weigh`](crate::kernels::Weigh), with weights in multiples of their steps.
struct WeighInt8 {
    weights: *const i16,
    steps: *const f32,
    sums: Rows,
    factors: *const f32,
    /// Up to the next even number.
    values: *const *const i8,
    entries: usize,
    head_dim: usize,
    ahead: Ahead<i8>,
}

impl Kernel for WeighInt8 {
    type Output = ();

    /// All queries meet two registers of every value before the next two.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller's contract.
        unsafe {
            let mut d = 0;
            while d < self.head_dim {
                let mut q = 0;
                while q < self.sums.count {
                    let block = block::<V>(self.sums.count - q);
                    match block {
                        1 => self.block::<V, 1>(q, d),
                        2 => self.block::<V, 2>(q, d),
                        3 if V::QUERIES >= 3 => self.block::<V, 3>(q, d),
                        4 if V::QUERIES >= 4 => self.block::<V, 4>(q, d),
                        5 if V::QUERIES >= 5 => self.block::<V, 5>(q, d),
                        6 if V::QUERIES >= 6 => self.block::<V, 6>(q, d),
                        _ => {}
                    }
                    q += block;
                }
                d += 2 * V::LANES;
            }
        }
    }
}

impl WeighInt8 {
    #[inline(always)]
    unsafe fn block<V: Vector, const Q: usize>(&self, q: usize, from: usize) {
        let width = (self.head_dim - from).min(2 * V::LANES);
        // SAFETY: values have `head_dim` elements, weights are rows of `TILE`, 0 behind those that are seen; sums are padded rows.
        unsafe {
            let mut sums = [[V::no_ints(); 2]; Q];
            let weights = self.weights.add(q * TILE);
            let mut e = 0;
            while e < self.entries {
                if q == 0 {
                    self.ahead.fetch::<V>(e, from, from + width);
                    self.ahead.fetch::<V>(e + 1, from, from + width);
                }
                let (first, second) = (
                    (*self.values.add(e)).add(from),
                    (*self.values.add(e + 1)).add(from),
                );
                let parts = if width == 2 * V::LANES {
                    V::pairs_of(first, second)
                } else {
                    let (first, second) = (rest(first, width), rest(second, width));
                    V::pairs_of(first.as_ptr(), second.as_ptr())
                };
                for i in 0..Q {
                    let weight = V::splat_pair(weights.add(i * TILE + e));
                    for n in 0..2 {
                        V::add_products(weight, parts[n], &mut sums[i][n]);
                    }
                }
                e += 2;
            }
            for i in 0..Q {
                let factor = V::splat(*self.factors.add(q + i));
                let step = V::splat(*self.steps.add(q + i));
                for n in 0..2 {
                    if n * V::LANES < width {
                        let at = self.sums.row(q + i).add(from + n * V::LANES);
                        let more = V::of_ints(sums[i][n]).mul(step);
                        V::load(at).mul_add(factor, more).store(at);
                    }
                }
            }
        }
    }
}
