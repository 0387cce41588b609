//! The inner loops that attention and scoring share. One query's arithmetic is fixed here and does not depend on how many queries are
//! worked on at a time:
//!
//! - a dot product is `LANES` partial sums over d, d + LANES, ..., added by a pairwise tree;
//! - a weighted sum over a tile's values is one chain in the order of the entries.
//!
//! Contract of all functions: the CPU has V's instructions, pointers are good for the lengths named. Rows of `f32` scratch are padded
//! with zeros to a multiple of `LANES` ("padded"); cache entries are `head_dim` elements and no more.

#![allow(clippy::needless_range_loop)] // indices into registers, unrolled: an iterator hides what the block computes

use crate::element::Element;
use crate::vector::Vector;

/// Entries of a tile: attention goes through the cache in tiles of this many, counted from entry 0.
pub(crate) const TILE: usize = 64;

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

/// Up to how many numbers rows are padded in scratch.
#[inline(always)]
pub(crate) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

/// What to fetch while working: the entry whose address lies `distance` behind the current one in a list of addresses.
#[derive(Clone, Copy)]
pub(crate) struct Ahead<E> {
    pub(crate) first: *const *const E,
}

impl<E: Element> Ahead<E> {
    /// Fetches the elements `from..from + count` of the entry that lies ahead of the `index`th.
    #[inline(always)]
    pub(crate) unsafe fn fetch<V: Vector>(self, index: usize, from: usize, count: usize) {
        // SAFETY: the caller's list is long enough; a prefetch itself touches nothing.
        unsafe {
            let entry = (*self.first.add(index)).wrapping_add(from).cast::<u8>();
            let mut byte = 0;
            while byte < count * E::SIZE {
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
pub(crate) unsafe fn load_row<V: Vector, E: Element>(from: *const E, head_dim: usize, to: *mut f32) {
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

/// Dot products of Q queries (padded rows, `query_stride` apart) with four keys: `out[q * out_stride + e]`.
#[inline(always)]
unsafe fn dot_block<V: Vector, E: Element, const Q: usize>(
    queries: *const f32,
    query_stride: usize,
    keys: [*const E; 4],
    head_dim: usize,
    out: *mut f32,
    out_stride: usize,
) {
    let full = head_dim / V::LANES * V::LANES;
    // SAFETY: every key has `head_dim` elements, which end at a full or half register; queries are padded.
    unsafe {
        let mut sums = [[V::zero(); 4]; Q];
        let mut d = 0;
        while d < full {
            for e in 0..4 {
                let key = E::load::<V>(keys[e].add(d));
                for q in 0..Q {
                    sums[q][e] = V::load(queries.add(q * query_stride + d)).mul_add(key, sums[q][e]);
                }
            }
            d += V::LANES;
        }
        if d < head_dim {
            for e in 0..4 {
                let key = E::load_half::<V>(keys[e].add(d));
                for q in 0..Q {
                    sums[q][e] = V::load(queries.add(q * query_stride + d)).mul_add(key, sums[q][e]);
                }
            }
        }
        for q in 0..Q {
            V::sum_four(sums[q], out.add(q * out_stride));
        }
    }
}

/// Dot products of `count` queries with the `entries` keys at `keys`: `out[q * out_stride + e]`, of which up to three numbers behind
/// the last of a row are overwritten as well. `key_major` goes through all queries with each four keys (keys read once), else through
/// all keys with each block of queries.
#[inline(always)]
pub(crate) unsafe fn dot_tile<V: Vector, E: Element>(
    queries: Rows,
    keys: *const *const E,
    entries: usize,
    head_dim: usize,
    out: *mut f32,
    out_stride: usize,
    ahead: Option<Ahead<E>>,
) {
    // SAFETY: the caller's contract; the last block repeats the last key so that no other memory is read.
    unsafe {
        let four = |e: usize| -> [*const E; 4] {
            let last = entries - 1;
            [
                *keys.add(e),
                *keys.add((e + 1).min(last)),
                *keys.add((e + 2).min(last)),
                *keys.add((e + 3).min(last)),
            ]
        };
        let key_major = queries.count <= 2 * V::QUERIES;
        if key_major {
            let mut e = 0;
            while e < entries {
                if let Some(ahead) = ahead {
                    for i in 0..4 {
                        ahead.fetch::<V>(e + i, 0, head_dim);
                    }
                }
                let keys = four(e);
                let mut q = 0;
                while q < queries.count {
                    let block = block::<V>(queries.count - q);
                    dot_blocks::<V, E>(
                        block,
                        queries.row(q),
                        queries.stride,
                        keys,
                        head_dim,
                        out.add(q * out_stride + e),
                        out_stride,
                    );
                    q += block;
                }
                e += 4;
            }
        } else {
            let mut q = 0;
            while q < queries.count {
                let block = block::<V>(queries.count - q);
                let mut e = 0;
                while e < entries {
                    let keys = four(e);
                    dot_blocks::<V, E>(
                        block,
                        queries.row(q),
                        queries.stride,
                        keys,
                        head_dim,
                        out.add(q * out_stride + e),
                        out_stride,
                    );
                    e += 4;
                }
                q += block;
            }
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

/// [`dot_block`] for a number of queries known at run time, at most `V::QUERIES`.
#[inline(always)]
unsafe fn dot_blocks<V: Vector, E: Element>(
    count: usize,
    queries: *const f32,
    query_stride: usize,
    keys: [*const E; 4],
    head_dim: usize,
    out: *mut f32,
    out_stride: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        match count {
            1 => dot_block::<V, E, 1>(queries, query_stride, keys, head_dim, out, out_stride),
            2 => dot_block::<V, E, 2>(queries, query_stride, keys, head_dim, out, out_stride),
            3 if V::QUERIES >= 3 => {
                dot_block::<V, E, 3>(queries, query_stride, keys, head_dim, out, out_stride)
            }
            4 if V::QUERIES >= 4 => {
                dot_block::<V, E, 4>(queries, query_stride, keys, head_dim, out, out_stride)
            }
            5 if V::QUERIES >= 5 => {
                dot_block::<V, E, 5>(queries, query_stride, keys, head_dim, out, out_stride)
            }
            6 if V::QUERIES >= 6 => {
                dot_block::<V, E, 6>(queries, query_stride, keys, head_dim, out, out_stride)
            }
            _ => {}
        }
    }
}

/// `sums[q][d] = sums[q][d] * factors[q] + sum over e of weights[q * TILE + e] * value e [d]`, for Q queries and the dimensions
/// `from..from + N * LANES` (with N = 1 and `half`: the last half register).
#[inline(always)]
unsafe fn weigh_block<V: Vector, E: Element, const Q: usize, const N: usize>(
    w: &Weigh<E>,
    q: usize,
    from: usize,
    half: bool,
    ahead: Option<Ahead<E>>,
) {
    // SAFETY: values have `head_dim` elements, weights are rows of `TILE`, sums are padded rows.
    unsafe {
        let mut acc = [[V::zero(); N]; Q];
        let weights = w.weights.row(q);
        for e in 0..w.entries {
            if let Some(ahead) = ahead {
                ahead.fetch::<V>(e, from, if half { V::LANES / 2 } else { N * V::LANES });
            }
            let value = (*w.values.add(e)).add(from);
            for n in 0..N {
                let v = if half {
                    E::load_half::<V>(value)
                } else {
                    E::load::<V>(value.add(n * V::LANES))
                };
                for i in 0..Q {
                    acc[i][n] = V::splat(*weights.add(i * w.weights.stride + e)).mul_add(v, acc[i][n]);
                }
            }
        }
        for i in 0..Q {
            let factor = V::splat(*w.factors.add(q + i));
            for n in 0..N {
                let at = w.sums.row(q + i).add(from + n * V::LANES);
                V::load(at).mul_add(factor, acc[i][n]).store(at);
            }
        }
    }
}

/// Arguments of [`weigh_tile`].
pub(crate) struct Weigh<E> {
    /// Weights of the entries, one row per query.
    pub(crate) weights: Rows,
    /// The running sums, one padded row per query.
    pub(crate) sums: Rows,
    /// What each running sum is multiplied by first.
    pub(crate) factors: *const f32,
    pub(crate) values: *const *const E,
    pub(crate) entries: usize,
    pub(crate) head_dim: usize,
}

/// Adds a tile's weighted values to the running sums of all queries.
#[inline(always)]
pub(crate) unsafe fn weigh_tile<V: Vector, E: Element>(w: &Weigh<E>, ahead: Option<Ahead<E>>) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut q = 0;
        while q < w.weights.count {
            let block = block::<V>(w.weights.count - q);
            let ahead = if q == 0 { ahead } else { None };
            match block {
                1 => weigh_queries::<V, E, 1>(w, q, ahead),
                2 => weigh_queries::<V, E, 2>(w, q, ahead),
                3 if V::QUERIES >= 3 => weigh_queries::<V, E, 3>(w, q, ahead),
                4 if V::QUERIES >= 4 => weigh_queries::<V, E, 4>(w, q, ahead),
                5 if V::QUERIES >= 5 => weigh_queries::<V, E, 5>(w, q, ahead),
                6 if V::QUERIES >= 6 => weigh_queries::<V, E, 6>(w, q, ahead),
                _ => {}
            }
            q += block;
        }
    }
}

/// All dimensions for Q queries, four registers at a time.
#[inline(always)]
unsafe fn weigh_queries<V: Vector, E: Element, const Q: usize>(
    w: &Weigh<E>,
    q: usize,
    ahead: Option<Ahead<E>>,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut d = 0;
        while d + 4 * V::LANES <= w.head_dim {
            weigh_block::<V, E, Q, 4>(w, q, d, false, ahead);
            d += 4 * V::LANES;
        }
        if d + 2 * V::LANES <= w.head_dim {
            weigh_block::<V, E, Q, 2>(w, q, d, false, ahead);
            d += 2 * V::LANES;
        }
        if d + V::LANES <= w.head_dim {
            weigh_block::<V, E, Q, 1>(w, q, d, false, ahead);
            d += V::LANES;
        }
        if d < w.head_dim {
            weigh_block::<V, E, Q, 1>(w, q, d, true, ahead);
        }
    }
}
