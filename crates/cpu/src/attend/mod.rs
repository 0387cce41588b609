mod chunks;
mod int8;
mod record;
mod tile;

use crate::element::Stored;
use crate::error::{Error, at_most, exactly, plus};
use crate::heads::{Heads, HeadsMut};
use crate::kernels::{Ahead, QUERY_STRIDE, Rows, TILE, load_row, padded};
use crate::pages::KvPages;
use crate::scratch::{Parts, ScratchOn};
use crate::simd::Simd;
use crate::vector::{Kernel, Vector};
pub use chunks::{ATTEND_CHUNK, attend_chunks, chunk_floats, merge_chunks};
use chunks::{State, Target};
use int8::{Words, query_words};
pub use record::{Recorded, add_attention, recorded_floats};
use std::ops::Range;
use tile::{AHEAD_BYTES, Addresses, Tile};

/// A good number of tokens for one call when a prefill is split for several threads: enough to reuse every key and value that was
/// converted, few enough that the queries stay in the cache. A call takes any number.
pub const ATTEND_TOKEN_TILE: usize = 32;

/// Causal attention of some tokens' query heads over one KV head:
/// `out[t, g] = sum over e < before + t + 1 of softmax(scale * queries[t, g] . key[e]) value[e]`.
///
/// Token t of the call sees the `before` entries ahead of the call's tokens and the tokens up to itself, which were appended as the
/// entries `before..before + tokens`. To split a prefill, give a sub-range of tokens with `before` advanced by its start.
///
/// The softmax is in `f32`, online over tiles of 64 entries (Milakov and Gimelshein, arXiv 1805.02867), with the running maximum
/// subtracted: any finite logits are safe. Products with `i8` are sums of integers: a query, and a tile's weights times the values'
/// scales, are rounded to 16 bits for that, which adds at most 1/65534 of the largest of them to each. It begins anew at each chunk of [`ATTEND_CHUNK`] entries counted from entry 0, and the chunks'
/// results are merged in their order, so that [`attend_chunks`] can share them out. Entries that a token does not see contribute exactly nothing, whatever they
/// hold. The bits of a result depend on its own query and entries alone (and on the instruction set).
///
/// # Errors
/// When shapes disagree, `before + tokens` is above `pages.len()`, or borrowed scratch is too small.
pub fn attend<E: Stored>(
    simd: Simd,
    pages: &KvPages<'_, E>,
    before: usize,
    queries: Heads<'_>,
    out: &mut HeadsMut<'_>,
    scale: f32,
    scratch: &mut ScratchOn<'_>,
) -> Result<(), Error> {
    attend_recorded(simd, pages, before, queries, out, None, scale, scratch)
}

/// [`attend`], which leaves weights, if they are wanted, for [`add_attention`].
///
/// # Errors
/// As [`attend`]; when the weights have not the room of all chunks, or other queries not the shape of the call's.
#[allow(clippy::too_many_arguments)] // those of `attend`, and what is recorded
pub fn attend_recorded<E: Stored>(
    simd: Simd,
    pages: &KvPages<'_, E>,
    before: usize,
    queries: Heads<'_>,
    out: &mut HeadsMut<'_>,
    recorded: Option<Recorded<'_>>,
    scale: f32,
    scratch: &mut ScratchOn<'_>,
) -> Result<(), Error> {
    let chunks = 0..check(simd, pages, before, queries)?.div_ceil(ATTEND_CHUNK);
    exactly("head_dim of the output", pages.layout().head_dim, out.head_dim())?;
    exactly("tokens of the output", queries.tokens(), out.tokens())?;
    exactly("query heads of the output", queries.group(), out.group())?;
    if let Some(recorded) = &recorded {
        recorded.check(&chunks, queries)?;
    }
    if queries.tokens() == 0 || queries.group() == 0 {
        return Ok(());
    }
    let target = Target::Heads(out);
    run(
        simd, pages, before, queries, chunks, target, recorded, scale, scratch,
    )
}

/// The end of the entries that the last token sees, which are there.
fn check<E: Stored>(
    simd: Simd,
    pages: &KvPages<'_, E>,
    before: usize,
    queries: Heads<'_>,
) -> Result<usize, Error> {
    simd.check()?;
    exactly(
        "head_dim of the queries",
        pages.layout().head_dim,
        queries.head_dim(),
    )?;
    let end = plus("entries seen by the last token", before, queries.tokens())?;
    at_most("entries seen by the last token", pages.len(), end)?;
    Ok(end)
}

/// What both public functions do, once shapes are checked and there are queries.
#[allow(clippy::too_many_arguments)] // one struct of them is what it makes
fn run<E: Stored>(
    simd: Simd,
    pages: &KvPages<'_, E>,
    before: usize,
    queries: Heads<'_>,
    chunks: Range<usize>,
    target: Target<'_, '_>,
    recorded: Option<Recorded<'_>>,
    scale: f32,
    scratch: &mut ScratchOn<'_>,
) -> Result<(), Error> {
    let head_dim = pages.layout().head_dim;
    let count = queries.tokens() * queries.group();
    let base = scratch.floats(Buffers::parts::<E>(std::ptr::null_mut(), count, head_dim).1)?;
    let buffers = Buffers::parts::<E>(base, count, head_dim).0;
    let (record, others) = match recorded {
        Some(recorded) => (recorded.weights.as_mut_ptr(), recorded.others),
        None => (std::ptr::null_mut(), None),
    };
    // SAFETY: the set is available; the entries that are seen are readable, heads and partial results have the shapes that were
    // compared, and the scratch was sized by the same function that divided it.
    unsafe {
        simd.run(Attend {
            pages,
            before,
            queries,
            chunks,
            target,
            record,
            others,
            scale,
            buffers,
        })
    }
    Ok(())
}

/// Bytes of scratch that [`attend`] needs for a call of that size, whatever it records.
pub fn attend_scratch_bytes<E: Stored>(tokens: usize, group: usize, head_dim: usize) -> usize {
    Buffers::parts::<E>(std::ptr::null_mut(), tokens.saturating_mul(group), head_dim)
        .1
        .saturating_mul(size_of::<f32>())
}

/// The parts of the scratch.
#[derive(Clone, Copy)]
struct Buffers {
    /// The call's, then as many others if they are asked as well.
    queries: Rows,
    /// Running weighted sums of a chunk's values.
    sums: Rows,
    /// Logits of a tile, then their weights; of others their logits alone.
    weights: Rows,
    /// Running maxima of a chunk.
    maxima: *mut f32,
    /// Running sums of a chunk's weights.
    totals: *mut f32,
    /// The same of all chunks so far.
    all_sums: Rows,
    all_maxima: *mut f32,
    all_totals: *mut f32,
    /// What a tile multiplies the running sums by.
    factors: *mut f32,
    /// A tile's keys and values as `f32`.
    keys: *mut f32,
    values: *mut f32,
    /// There if the format has scales.
    words: Words,
}

impl Buffers {
    /// The parts for `count` queries and the floats they take together.
    fn parts<E: Stored>(base: *mut f32, count: usize, head_dim: usize) -> (Buffers, usize) {
        let mut parts = Parts::new(base);
        let width = padded(head_dim);
        let wide = count.saturating_mul(width);
        let asked = count.saturating_mul(2);
        let buffers = Buffers {
            queries: Rows {
                first: parts.take(asked.saturating_mul(QUERY_STRIDE)),
                stride: QUERY_STRIDE,
                count: asked,
            },
            sums: Rows {
                first: parts.take(wide),
                stride: width,
                count,
            },
            weights: Rows {
                first: parts.take(asked.saturating_mul(TILE)),
                stride: TILE,
                count: asked,
            },
            maxima: parts.take(count),
            totals: parts.take(count),
            all_sums: Rows {
                first: parts.take(wide),
                stride: width,
                count,
            },
            all_maxima: parts.take(count),
            all_totals: parts.take(count),
            factors: parts.take(count),
            keys: parts.take(TILE * converted_stride(head_dim)),
            values: parts.take(TILE * converted_stride(head_dim)),
            words: {
                let (count, asked) = if E::SCALED { (count, asked) } else { (0, 0) };
                let scales = if E::SCALED { TILE } else { 0 };
                Words {
                    queries: parts.take(asked.saturating_mul(Words::QUERY_FLOATS)).cast(),
                    query_steps: parts.take(asked),
                    weights: parts.take(count.saturating_mul(Words::WEIGHT_FLOATS)).cast(),
                    weight_steps: parts.take(count),
                    key_scales: parts.take(scales),
                    value_scales: parts.take(scales),
                }
            },
        };
        (buffers, parts.used())
    }

    /// What a chunk has given a query.
    #[inline(always)]
    unsafe fn chunk(&self, q: usize) -> State {
        State {
            maximum: self.maxima.wrapping_add(q),
            total: self.totals.wrapping_add(q),
            sums: self.sums.row(q),
        }
    }

    /// What all chunks so far have given a query.
    #[inline(always)]
    unsafe fn all(&self, q: usize) -> State {
        State {
            maximum: self.all_maxima.wrapping_add(q),
            total: self.all_totals.wrapping_add(q),
            sums: self.all_sums.row(q),
        }
    }
}

/// Floats from one converted key or value to the next: an odd number of cache lines, so that the same dimensions of a tile's do not
/// share a set of the first-level cache.
fn converted_stride(head_dim: usize) -> usize {
    padded(head_dim) / 16 / 2 * 32 + 16
}

struct Attend<'a, 'k, 'o, E> {
    pages: &'a KvPages<'k, E>,
    before: usize,
    queries: Heads<'a>,
    chunks: Range<usize>,
    target: Target<'a, 'o>,
    /// Where recorded weights go, `[chunks][queries][RECORDED_ROW]`, or null.
    record: *mut f32,
    /// Whose they are, if not those of `queries`.
    others: Option<Heads<'a>>,
    scale: f32,
    buffers: Buffers,
}

impl<E: Stored> Kernel for Attend<'_, '_, '_, E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let b = self.buffers;
        let (tokens, group) = (self.queries.tokens(), self.queries.group());
        let head_dim = self.pages.layout().head_dim;
        let count = tokens * group;
        let end = (self.before + tokens).min(self.chunks.end * ATTEND_CHUNK);
        let start = self.chunks.start * ATTEND_CHUNK;
        if start >= end {
            return;
        }
        // SAFETY: `run` has checked the shapes and sized the buffers.
        unsafe {
            for (first, queries) in [(0, Some(self.queries)), (count, self.others)] {
                let Some(queries) = queries else {
                    continue;
                };
                for q in 0..count {
                    let from = queries.token(q / group).add(q % group * head_dim);
                    load_row::<V, f32>(from, head_dim, b.queries.row(first + q));
                    if E::SCALED {
                        query_words::<V>(&b, b.words, first + q);
                    }
                }
            }
            let others = if self.others.is_some() { count } else { 0 };
            let convert = !E::SCALED && E::SIZE < size_of::<f32>() && count + others > V::CONVERT_ABOVE;
            let distance = (AHEAD_BYTES / (head_dim * E::SIZE)).clamp(4, TILE);
            let mut addresses = Addresses::new(self.pages.tables(), start, end);
            let mut converted = [std::ptr::null::<f32>(); 2 * TILE];
            for e in 0..TILE {
                converted[e] = b.keys.add(e * converted_stride(head_dim));
                converted[TILE + e] = b.values.add(e * converted_stride(head_dim));
            }
            let mut first = start;
            while first < end {
                if first.is_multiple_of(ATTEND_CHUNK) {
                    for q in 0..count {
                        b.chunk(q).clear(head_dim);
                    }
                }
                let entries = TILE.min(end - first);
                addresses.advance();
                // The first token that sees any of the tile, and the first that sees all of it.
                let some = first.saturating_sub(self.before);
                let all = (first + entries - 1).saturating_sub(self.before).max(some);
                if convert {
                    for e in 0..entries {
                        load_row::<V, E>(addresses.keys()[e], head_dim, converted[e].cast_mut());
                        load_row::<V, E>(addresses.values()[e], head_dim, converted[TILE + e].cast_mut());
                    }
                }
                if let Some(scales) = &self.pages.tables().scales {
                    scales.keys.gather(first, entries, b.words.key_scales);
                    scales.values.gather(first, entries, b.words.value_scales);
                }
                let mut from = some;
                while from < tokens {
                    // Tokens on the diagonal one by one, all the others together.
                    let (to, seen) = if from < all {
                        (from + 1, self.before + from + 1 - first)
                    } else {
                        (tokens, entries)
                    };
                    let tile = Tile {
                        b: &b,
                        from: from * group,
                        to: to * group,
                        others,
                        seen,
                        head_dim,
                        scale: self.scale,
                        record: match self.record.is_null() {
                            true => self.record,
                            false => {
                                let chunk = first / ATTEND_CHUNK - self.chunks.start;
                                self.record.add(recorded_floats(chunk, count))
                            }
                        },
                        first: first % ATTEND_CHUNK,
                    };
                    if E::SCALED {
                        let (list, ahead) = (addresses.tile(), addresses.ahead(distance));
                        // `i8` is the only format with scales.
                        let list = std::slice::from_raw_parts(list.as_ptr().cast::<*const i8>(), list.len());
                        tile.run_int8::<V>(list, b.words, Ahead(ahead.0.cast()));
                    } else if convert {
                        tile.run::<V, f32, E>(&converted, addresses.ahead(2 * TILE));
                    } else {
                        tile.run::<V, E, E>(addresses.tile(), addresses.ahead(distance));
                    }
                    from = to;
                }
                first += entries;
                if first.is_multiple_of(ATTEND_CHUNK) || first == end {
                    let chunk = (first - 1) / ATTEND_CHUNK;
                    for q in 0..count {
                        match &self.target {
                            Target::Partial(to) => {
                                let index = (chunk - self.chunks.start) * count + q;
                                let to = State::at(to.wrapping_add(index * chunk_floats(head_dim)));
                                to.set::<V>(b.chunk(q), head_dim);
                            }
                            Target::Heads(_) if self.chunks.len() == 1 => {}
                            Target::Heads(_) if chunk == 0 => b.all(q).set::<V>(b.chunk(q), head_dim),
                            Target::Heads(_) => b.all(q).merge::<V>(b.chunk(q), head_dim),
                        }
                    }
                }
            }
            if let Target::Heads(out) = self.target {
                for q in 0..count {
                    let state = match self.chunks.len() {
                        1 => b.chunk(q),
                        _ => b.all(q),
                    };
                    state.divide::<V>(head_dim);
                    let to = out.token(q / group).add(q % group * head_dim);
                    std::ptr::copy_nonoverlapping(state.sums, to, head_dim);
                }
            }
        }
    }
}
