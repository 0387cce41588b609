use crate::element::Stored;
use crate::error::{Error, at_least, exactly, plus, times};
use crate::kernels::{Ahead, Dot, QUERY_STRIDE, Rows, TILE, load_row, padded, scale_row};
use crate::pages::KvPages;
use crate::scratch::{Parts, ScratchOn};
use crate::simd::Simd;
use crate::vector::{Kernel, Vector};
use std::ops::Range;

/// Queries that are worked on at a time.
const BATCH: usize = 24;

/// Importance of candidate entries to a window of queries, for one KV head:
/// `out[c] = 1/group * sum over q of softmax over the candidates of (scale * queries[q] . key[c])`.
///
/// `candidates` are ranges of entries; their concatenation, C entries, is what the softmax runs over and what `out` lists. `queries` is
/// `[count, head_dim]`, rotated: the R newest queries of each of the `group` query heads of this KV head, in any order that the caller
/// keeps. So the result is the mean over the query heads of the sum over the window (arXiv 2505.13866, section 3). Softmax in `f32`;
/// queries are summed in their order. Bits are those that `f32` keys of the same values give, whatever the format of the keys.
///
/// # Errors
/// When a range does not lie within the cache, `queries` is not a whole number of rows, `out` is not C long, `group` is 0, or borrowed
/// scratch is smaller than [`score_scratch_bytes`].
#[allow(clippy::too_many_arguments)] // each is a plain number or slice that the formula names
pub fn score<E: Stored>(
    simd: Simd,
    pages: &KvPages<'_, E>,
    candidates: &[Range<usize>],
    queries: &[f32],
    group: usize,
    scale: f32,
    out: &mut [f32],
    scratch: &mut ScratchOn<'_>,
) -> Result<(), Error> {
    score_masked(simd, pages, candidates, None, queries, group, scale, out, scratch)
}

/// [`score`] of all entries, where queries do not see all of them: those of token t, `group` rows of
/// `queries` from row `t * group` on, see the first `visible[t]` entries. `out` is as long as the cache.
///
/// # Errors
/// As [`score`]; when `queries` is not `group` rows for each of `visible`, or one of those is beyond the cache.
#[allow(clippy::too_many_arguments)] // as above
pub fn score_visible<E: Stored>(
    simd: Simd,
    pages: &KvPages<'_, E>,
    visible: &[usize],
    queries: &[f32],
    group: usize,
    scale: f32,
    out: &mut [f32],
    scratch: &mut ScratchOn<'_>,
) -> Result<(), Error> {
    let rows = times("queries", visible.len(), group)?;
    let elements = times("queries", rows, pages.layout().head_dim)?;
    exactly("elements of the queries", elements, queries.len())?;
    for &count in visible {
        at_least("valid entries", count, pages.len())?;
    }
    let all = 0..pages.len();
    let all = std::slice::from_ref(&all);
    score_masked(
        simd,
        pages,
        all,
        Some(visible),
        queries,
        group,
        scale,
        out,
        scratch,
    )
}

#[allow(clippy::too_many_arguments)] // as above
fn score_masked<E: Stored>(
    simd: Simd,
    pages: &KvPages<'_, E>,
    candidates: &[Range<usize>],
    visible: Option<&[usize]>,
    queries: &[f32],
    group: usize,
    scale: f32,
    out: &mut [f32],
    scratch: &mut ScratchOn<'_>,
) -> Result<(), Error> {
    simd.check()?;
    let head_dim = pages.layout().head_dim;
    let mut total = 0;
    for (index, range) in candidates.iter().enumerate() {
        if range.start > range.end || range.end > pages.len() {
            return Err(Error::Range {
                index,
                start: range.start,
                end: range.end,
                len: pages.len(),
            });
        }
        total = plus("candidates", total, range.end - range.start)?;
    }
    at_least("query heads in a group", 1, group)?;
    exactly("floats beyond whole queries", 0, queries.len() % head_dim)?;
    exactly("scores", total, out.len())?;
    let count = queries.len() / head_dim;
    if count == 0 || total == 0 {
        out.fill(0.0);
        return Ok(());
    }
    times(
        "scratch of the scores",
        total.div_ceil(TILE) * TILE,
        BATCH * size_of::<f32>(),
    )?;
    let base = scratch.floats(Buffers::parts(std::ptr::null_mut(), count, total, head_dim).1)?;
    out.fill(0.0);
    let buffers = Buffers::parts(base, count, total, head_dim).0;
    // SAFETY: the set is available; the ranges lie within the valid entries, `out` holds all of them, and the scratch was sized by the
    // same function that divided it.
    unsafe {
        simd.run(Score {
            pages,
            candidates,
            visible,
            total,
            queries,
            group,
            scale,
            out,
            buffers,
        })
    }
    Ok(())
}

/// Bytes of scratch that [`score`] needs for that many queries and candidates, from the start of a cache line (see
/// [`ScratchOn::over`]).
pub fn score_scratch_bytes(queries: usize, candidates: usize, head_dim: usize) -> usize {
    Buffers::parts(std::ptr::null_mut(), queries, candidates, head_dim)
        .1
        .saturating_mul(size_of::<f32>())
}

/// The parts of the scratch.
#[derive(Clone, Copy)]
struct Buffers {
    queries: Rows,
    /// Logits, then weights: one row of all candidates per query of a batch.
    weights: Rows,
    /// A tile's keys as `f32`.
    keys: *mut f32,
}

impl Buffers {
    fn parts(base: *mut f32, queries: usize, candidates: usize, head_dim: usize) -> (Buffers, usize) {
        let mut parts = Parts::new(base);
        let width = padded(head_dim);
        let count = queries.min(BATCH);
        let stride = candidates.div_ceil(TILE).saturating_mul(TILE);
        let buffers = Buffers {
            queries: Rows {
                first: parts.take(count * QUERY_STRIDE),
                stride: QUERY_STRIDE,
                count,
            },
            weights: Rows {
                first: parts.take(stride.saturating_mul(count)),
                stride,
                count,
            },
            keys: parts.take(TILE * width),
        };
        (buffers, parts.used())
    }
}

struct Score<'a, 'k, E> {
    pages: &'a KvPages<'k, E>,
    candidates: &'a [Range<usize>],
    /// Of each token; all, if absent.
    visible: Option<&'a [usize]>,
    total: usize,
    queries: &'a [f32],
    group: usize,
    scale: f32,
    out: &'a mut [f32],
    buffers: Buffers,
}

impl<E: Stored> Kernel for Score<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let b = self.buffers;
        let head_dim = self.pages.layout().head_dim;
        let tables = self.pages.tables();
        let mut list = [std::ptr::null::<E>(); TILE];
        let mut scales = [std::ptr::null::<f32>(); TILE];
        let mut converted = [std::ptr::null::<f32>(); TILE];
        for (e, slot) in converted.iter_mut().enumerate() {
            *slot = b.keys.wrapping_add(e * padded(head_dim));
        }
        for (index, batch) in self.queries.chunks(BATCH * head_dim).enumerate() {
            let count = batch.len() / head_dim;
            // SAFETY: `score` has checked the ranges and sized the buffers.
            unsafe {
                for q in 0..count {
                    load_row::<V, f32>(batch.as_ptr().add(q * head_dim), head_dim, b.queries.row(q));
                }
                let mut cursor = Cursor {
                    ranges: self.candidates,
                    index: 0,
                    offset: 0,
                };
                let mut first = 0;
                while first < self.total {
                    let entries = TILE.min(self.total - first);
                    cursor.next(entries, |at, first, count| {
                        tables.keys.addresses(first, &mut list[at..at + count]);
                        if let Some(columns) = &tables.scales {
                            columns.keys.addresses(first, &mut scales[at..at + count]);
                        }
                    });
                    let queries = b.queries.between(0, count);
                    let (out, stride) = (b.weights.first.add(first), b.weights.stride);
                    for (e, &key) in list[..entries].iter().enumerate() {
                        let row = b.keys.add(e * padded(head_dim));
                        load_row::<V, E>(key, head_dim, row);
                        if tables.scales.is_some() {
                            scale_row::<V>(row, head_dim, *scales[e]);
                        }
                    }
                    V::call(Dot {
                        queries,
                        keys: converted.as_ptr(),
                        entries,
                        head_dim,
                        out: Rows {
                            first: out,
                            stride,
                            count,
                        },
                        ahead: None::<Ahead<f32>>,
                    });
                    first += entries;
                }
                for q in 0..count {
                    let total = match self.visible {
                        None => self.total,
                        Some(visible) => visible[(index * BATCH + q) / self.group],
                    };
                    if total > 0 {
                        add_softmax::<V>(b.weights.row(q), total, self.scale, &mut self.out[..total]);
                    }
                }
            }
        }
        let group = self.group as f32;
        for score in self.out {
            *score /= group;
        }
    }
}

/// Goes through the concatenation of the ranges.
struct Cursor<'a> {
    ranges: &'a [Range<usize>],
    index: usize,
    offset: usize,
}

impl Cursor<'_> {
    /// Calls `take(at, first, count)` for each run of neighbours among the next `entries`, of which there are as many: the `at`th of
    /// them and `count - 1` more are the entries from `first` on.
    #[inline(always)]
    fn next(&mut self, entries: usize, mut take: impl FnMut(usize, usize, usize)) {
        let mut done = 0;
        while done < entries {
            let range = &self.ranges[self.index];
            let left = range.end - range.start - self.offset;
            let count = left.min(entries - done);
            take(done, range.start + self.offset, count);
            done += count;
            self.offset += count;
            if count == left {
                self.index += 1;
                self.offset = 0;
            }
        }
    }
}

/// `out[c] += softmax(scale * row)[c]`. The row is a multiple of LANES long; what it holds behind `total` does not matter.
#[inline(always)]
unsafe fn add_softmax<V: Vector>(row: *mut f32, total: usize, scale: f32, out: &mut [f32]) {
    // SAFETY: the caller's contract.
    unsafe {
        let scale = V::splat(scale);
        let mut largest = V::splat(f32::NEG_INFINITY);
        let mut c = 0;
        while c < total {
            let logits = V::load(row.add(c))
                .mul(scale)
                .first_or(total - c, f32::NEG_INFINITY);
            logits.store(row.add(c));
            largest = largest.max(logits);
            c += V::LANES;
        }
        let largest = V::splat(largest.largest());
        // Tiles are summed in f32, the tiles' sums in f64.
        let mut sum = 0.0f64;
        c = 0;
        while c < total {
            let end = (c + TILE).min(total);
            let mut tile = V::zero();
            while c < end {
                let weights = V::load(row.add(c)).sub(largest).exp();
                weights.store(row.add(c));
                tile = tile.add(weights);
                c += V::LANES;
            }
            sum += f64::from(tile.sum());
        }
        let factor = (1.0 / sum) as f32;
        for (c, score) in out.iter_mut().enumerate() {
            *score += *row.add(c) * factor;
        }
    }
}
