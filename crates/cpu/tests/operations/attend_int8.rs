//! Attention over `i8` with scales, against the formula in `f64` on the numbers that the cache stands for.

use crate::rng::Rng;
use crate::{EXP, U, paths};
use reasoning_rpc_cpu::*;
use std::ptr::NonNull;

/// A paged cache of `i8`.
struct Cache {
    layout: Layout,
    len: usize,
    keys: Vec<i8>,
    values: Vec<i8>,
    scales: [Vec<f32>; 2],
    tables: [Vec<NonNull<i8>>; 2],
    scale_tables: [Vec<NonNull<f32>>; 2],
    scale_strides: [usize; 2],
}

impl Cache {
    fn new(head_dim: usize, room: usize, rng: &mut Rng) -> Cache {
        let page_entries = rng.pick(&[1, 7, 16, 64, 100]);
        let layout = Layout {
            page_entries,
            key_stride: head_dim + 8 * rng.between(0, 1),
            value_stride: head_dim * rng.between(1, 2),
            head_dim,
        };
        let pages = room.div_ceil(page_entries);
        let scale_strides = [rng.between(1, 3), rng.between(1, 3)];
        let scales = scale_strides.map(|stride| vec![f32::NAN; pages * page_entries * stride]);
        let mut cache = Cache {
            layout,
            len: 0,
            keys: vec![77; pages * page_entries * layout.key_stride],
            values: vec![77; pages * page_entries * layout.value_stride],
            scales,
            tables: Default::default(),
            scale_tables: Default::default(),
            scale_strides,
        };
        fn pages_of<T>(all: &mut [T], pages: usize) -> Vec<NonNull<T>> {
            let page = all.len() / pages;
            all.chunks_mut(page)
                .map(|page| NonNull::from(page).cast())
                .collect()
        }
        cache.tables = [
            pages_of(&mut cache.keys, pages),
            pages_of(&mut cache.values, pages),
        ];
        let [keys, values] = &mut cache.scales;
        cache.scale_tables = [pages_of(keys, pages), pages_of(values, pages)];
        cache
    }

    fn scales(&self) -> Option<Scales<'_>> {
        Some(Scales {
            keys: &self.scale_tables[0],
            values: &self.scale_tables[1],
            key_stride: self.scale_strides[0],
            value_stride: self.scale_strides[1],
        })
    }

    fn push(&mut self, simd: Simd, key: &[f32], value: &[f32]) {
        // SAFETY: the pages are this cache's vectors, borrowed exclusively and never moved.
        let pages = unsafe {
            KvPagesMut::with_scales(
                &self.tables[0],
                &self.tables[1],
                self.scales(),
                self.layout,
                self.len,
            )
        };
        append(simd, &mut pages.unwrap(), self.len, key, value).unwrap();
        self.len += 1;
    }

    fn pages(&self) -> KvPages<'_, i8> {
        // SAFETY: as above.
        unsafe {
            KvPages::with_scales(
                &self.tables[0],
                &self.tables[1],
                self.scales(),
                self.layout,
                self.len,
            )
        }
        .unwrap()
    }

    /// The numbers and the scale of an entry's key (0) or value (1).
    fn row(&self, part: usize, entry: usize) -> (&[i8], f32) {
        let (all, stride) = [
            (&self.keys, self.layout.key_stride),
            (&self.values, self.layout.value_stride),
        ][part];
        (
            &all[entry * stride..][..self.layout.head_dim],
            self.scales[part][entry * self.scale_strides[part]],
        )
    }
}

struct Call {
    head_dim: usize,
    group: usize,
    tokens: usize,
    before: usize,
    queries: Vec<f32>,
    scale: f32,
}

impl Call {
    fn random(rng: &mut Rng, most: usize) -> Call {
        let head_dim = rng.head_dim();
        let group = rng.between(1, 17);
        let tokens = if rng.coin(0.6) { 1 } else { rng.between(2, 40) };
        Call {
            head_dim,
            group,
            tokens,
            before: rng.between(0, most),
            queries: rng.normals(tokens * group * head_dim),
            scale: 1.0 / (head_dim as f32).sqrt(),
        }
    }

    fn filled(&self, simd: Simd, rng: &mut Rng) -> Cache {
        let mut cache = Cache::new(self.head_dim, self.before + self.tokens, rng);
        for _ in 0..self.before + self.tokens {
            // Entries of very different sizes.
            let size = 2f32.powi(rng.between(0, 6) as i32 - 3);
            let mut row = || -> Vec<f32> { rng.normals(self.head_dim).iter().map(|x| x * size).collect() };
            let (key, value) = (row(), row());
            cache.push(simd, &key, &value);
        }
        cache
    }

    /// All tokens in calls of the sizes that `split` gives, of the query heads `heads`.
    fn run(
        &self,
        simd: Simd,
        cache: &Cache,
        heads: std::ops::Range<usize>,
        mut split: impl FnMut() -> usize,
    ) -> Vec<f32> {
        let width = self.group * self.head_dim;
        let mut out = vec![f32::NAN; self.tokens * heads.len() * self.head_dim];
        let mut scratch = Scratch::new();
        let from = &self.queries[heads.start * self.head_dim..];
        let queries = Heads::new(from, self.tokens, heads.len(), self.head_dim, width).unwrap();
        let narrow = heads.len() * self.head_dim;
        let mut to = HeadsMut::new(&mut out, self.tokens, heads.len(), self.head_dim, narrow).unwrap();
        let mut first = 0;
        while first < self.tokens {
            let range = first..(first + split()).min(self.tokens);
            let mut to = to.tokens_in(range.clone()).unwrap();
            let queries = queries.tokens_in(range.clone()).unwrap();
            let before = self.before + first;
            attend(
                simd,
                &cache.pages(),
                before,
                queries,
                &mut to,
                self.scale,
                &mut scratch,
            )
            .unwrap();
            first = range.end;
        }
        out
    }

    /// The formula, and a bound on the error of each number, of one query.
    fn reference(&self, cache: &Cache, token: usize, head: usize) -> Vec<(f64, f64)> {
        let query = &self.queries[(token * self.group + head) * self.head_dim..][..self.head_dim];
        let seen = self.before + token + 1;
        let scale = f64::from(self.scale);
        let largest_of = |row: &[f32]| row.iter().fold(0.0f64, |m, x| m.max(f64::from(x.abs())));
        let half_step = largest_of(query) / 32767.0 / 2.0 * (1.0 + 8.0 * U);
        let mut worst = 0.0f64;
        let logits: Vec<f64> = (0..seen)
            .map(|e| {
                let (key, key_scale) = cache.row(0, e);
                let (sum, size, ones) = query
                    .iter()
                    .zip(key)
                    .fold((0.0, 0.0, 0.0), |(s, m, o), (&q, &k)| {
                        let (q, k) = (f64::from(q), f64::from(k) * f64::from(key_scale));
                        (s + q * k, m + (q * k).abs(), o + k.abs())
                    });
                // Half a step of the query for each element, and a handful of roundings: of the sum of integers, of the step, of
                // the three products.
                worst = worst.max(scale * (half_step * ones + 8.0 * U * size));
                scale * sum
            })
            .collect();
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let smallest = logits.iter().copied().fold(f64::INFINITY, f64::min);
        let weights: Vec<f64> = logits.iter().map(|l| (l - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        // As for the other formats.
        let tiles = (seen.div_ceil(64) + 2 * seen.div_ceil(ATTEND_CHUNK)) as f64;
        let weight = (2.0 * worst + U * (largest - smallest) + tiles * (EXP + U) + EXP).exp_m1();
        let relative = 2.0 * (weight + (64.0 + 2.0 * tiles + 12.0) * U);
        (0..self.head_dim)
            .map(|d| {
                let (mut sum, mut size, mut rounding) = (0.0, 0.0, 0.0);
                for tile in (0..seen).step_by(64) {
                    let (mut most, mut ones) = (0.0f64, 0.0);
                    let end = (tile + 64).min(seen);
                    for (e, softmax) in (tile..end).zip(&weights[tile..end]) {
                        let (value, value_scale) = cache.row(1, e);
                        let term = softmax / total * f64::from(value_scale);
                        sum += term * f64::from(value[d]);
                        size += (term * f64::from(value[d])).abs();
                        most = most.max(term);
                        ones += f64::from(value[d].unsigned_abs());
                    }
                    // Half a step of the tile's weights for each entry.
                    rounding += most * (1.0 + weight + 8.0 * U) / 32767.0 / 2.0 * ones;
                }
                (sum, relative * size + rounding + 1e-30)
            })
            .collect()
    }
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn agrees_with_the_formula_on_what_the_cache_stands_for() {
    let rng = &mut Rng::new();
    for simd in paths() {
        for i in 0..60 {
            let call = Call::random(rng, if i % 10 == 0 { 2000 } else { 300 });
            let cache = call.filled(simd, rng);
            let out = call.run(simd, &cache, 0..call.group, || usize::MAX);
            for (query, found) in out.chunks(call.head_dim).enumerate() {
                let expected = call.reference(&cache, query / call.group, query % call.group);
                for (d, (&found, (expected, bound))) in found.iter().zip(expected).enumerate() {
                    let error = (f64::from(found) - expected).abs();
                    assert!(
                        error <= bound,
                        "{}: query {query} dim {d}: {found} for {expected}, off by {error:e}, allowed {bound:e} (D={} group={} tokens={} before={})",
                        simd.name(),
                        call.head_dim,
                        call.group,
                        call.tokens,
                        call.before
                    );
                }
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_call() {
    let rng = &mut Rng::new();
    for simd in paths() {
        for i in 0..20 {
            let call = Call::random(rng, if i % 5 == 0 { 1500 } else { 200 });
            let cache = call.filled(simd, rng);
            let whole = bits(&call.run(simd, &cache, 0..call.group, || usize::MAX));
            let cut = bits(&call.run(simd, &cache, 0..call.group, || rng.between(1, 20)));
            assert_eq!(whole, cut, "in chunks");
            for head in 0..call.group {
                let alone = bits(&call.run(simd, &cache, head..head + 1, || rng.between(1, 40)));
                for (t, token) in alone.chunks(call.head_dim).enumerate() {
                    let at = (t * call.group + head) * call.head_dim;
                    assert_eq!(
                        token,
                        &whole[at..at + call.head_dim],
                        "head {head} of token {t} alone"
                    );
                }
            }
        }
    }
}

/// A row that is not finite is NaN where it is seen, and nothing where it is not. Zeros are zeros.
#[test]
fn rows_that_are_not_finite_show_where_they_are_seen() {
    let rng = &mut Rng::new();
    for simd in paths() {
        for part in 0..3 {
            let mut call = Call::random(rng, 150);
            call.tokens = 6;
            call.queries = rng.normals(6 * call.group * call.head_dim);
            let mut cache = Cache::new(call.head_dim, call.before + 6, rng);
            for e in 0..call.before + 6 {
                let (mut key, mut value) = (rng.normals(call.head_dim), rng.normals(call.head_dim));
                if e == call.before + 4 && part < 2 {
                    [&mut key, &mut value][part][3] = f32::INFINITY;
                }
                cache.push(simd, &key, &value);
            }
            if part == 2 {
                call.queries[4 * call.group * call.head_dim] = f32::NAN;
            }
            let out = call.run(simd, &cache, 0..call.group, || usize::MAX);
            let row = call.group * call.head_dim;
            assert!(out[..4 * row].iter().all(|x| x.is_finite()));
            let head = &out[4 * row..][..call.head_dim];
            assert!(head.iter().all(|x| x.is_nan()), "part {part}: {head:?}");
            let later = out[5 * row..].iter();
            assert!(later.clone().all(|x| x.is_nan() == (part < 2)));
        }
        let call = Call {
            head_dim: 40,
            group: 3,
            tokens: 1,
            before: 9,
            queries: vec![0.0; 120],
            scale: 1.0,
        };
        let mut cache = Cache::new(40, 10, rng);
        for e in 0..10 {
            cache.push(simd, &[1.0; 40], &[e as f32; 40]);
        }
        // Equal weights: the mean, up to half a step of each.
        for x in call.run(simd, &cache, 0..3, || 1) {
            assert!((x - 4.5).abs() < 1e-3, "{x}");
        }
    }
}

#[test]
fn an_entry_is_appended_as_rows_are_written() {
    let rng = &mut Rng::new();
    for simd in paths() {
        for _ in 0..50 {
            let head_dim = rng.head_dim();
            let (key, value) = (rng.normals(head_dim), rng.normals(head_dim));
            let mut appended = Cache::new(head_dim, 1, rng);
            appended.push(simd, &key, &value);
            let mut written = Cache::new(head_dim, 1, rng);
            written.push(simd, &vec![0.0; head_dim], &vec![0.0; head_dim]);
            // SAFETY: the pages are the cache's vectors, and nothing else uses it.
            let pages = unsafe {
                KvPagesMut::with_scales(
                    &written.tables[0],
                    &written.tables[1],
                    written.scales(),
                    written.layout,
                    1,
                )
            };
            write_rows(&mut pages.unwrap(), std::iter::once(0), &[key, value].concat()).unwrap();
            for part in 0..2 {
                assert_eq!(appended.row(part, 0), written.row(part, 0));
            }
        }
    }
}
