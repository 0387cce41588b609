//! What a host's memory looks like changes no bit: dense rows, head-major pages and token-major pages, in every format; and no format
//! changes a score against `f32` keys of the same numbers.

use crate::host::{ForFormat, Format, Host, Row, Shape, for_formats};
use crate::paths;
use crate::rng::Rng;
use reasoning_rpc_cpu::*;
use std::mem::MaybeUninit;

type Heads<E> = Vec<Vec<(Row<E>, Row<E>)>>;

fn random<E: Format>(kv_heads: usize, len: usize, head_dim: usize, rng: &mut Rng) -> Heads<E> {
    let mut entry = || (Row::random(head_dim, rng), Row::random(head_dim, rng));
    (0..kv_heads)
        .map(|_| (0..len).map(|_| entry()).collect())
        .collect()
}

/// The same cache three times.
fn hosts<E: Format>(heads: &Heads<E>, rng: &mut Rng) -> Vec<Host<E>> {
    let (kv_heads, len) = (heads.len(), heads[0].len());
    let shapes = [
        Shape::dense(kv_heads, len, rng),
        Shape::paged(false, kv_heads, len, rng),
        Shape::paged(true, kv_heads, len, rng),
    ];
    shapes.iter().map(|shape| Host::new(shape, heads, rng)).collect()
}

#[test]
fn scores_are_those_of_dense_f32_keys() {
    struct Test(Rng);
    impl ForFormat for Test {
        fn run<E: Format>(&mut self) {
            let rng = &mut self.0;
            for simd in paths() {
                for _ in 0..12 {
                    let (head_dim, len, group) = (rng.head_dim(), rng.between(1, 300), rng.between(1, 4));
                    let heads = random::<E>(rng.between(1, 3), len, head_dim, rng);
                    let count = group * rng.between(1, 20);
                    let queries = rng.normals(count * head_dim);
                    let start = rng.between(0, len);
                    let ranges = [start..len, 0..rng.between(0, start)];
                    let total = len - start + ranges[1].len();
                    let scale = 1.0 / (head_dim as f32).sqrt();
                    // Whatever the memory holds, and wherever it begins.
                    let bytes = score_scratch_bytes(count, total, head_dim) + 63;
                    let mut memory = vec![MaybeUninit::new(0xff); bytes + 63];
                    let offset = rng.between(0, 63);
                    let mut scratch = ScratchOn::over(&mut memory[offset..offset + bytes]);
                    let mut own = Scratch::new();
                    for host in &mut hosts(&heads, rng) {
                        for (h, entries) in heads.iter().enumerate() {
                            let numbers: Vec<f32> =
                                entries.iter().flat_map(|(key, _)| key.numbers()).collect();
                            let layout = Layout::contiguous(len, head_dim);
                            let dense = KvPages::dense(&numbers, &numbers, layout, len).unwrap();
                            let mut expected = vec![f32::NAN; total];
                            let (q, own) = (&queries[..], &mut own);
                            score(simd, &dense, &ranges, q, group, scale, &mut expected, own).unwrap();
                            let mut found = vec![f32::NAN; total];
                            let before = host.around(h);
                            host.with_head(h, |pages| {
                                score(simd, pages, &ranges, q, group, scale, &mut found, &mut scratch)
                            })
                            .unwrap();
                            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                            assert_eq!(bits(&found), bits(&expected), "{} {}", simd.name(), E::NAME);
                            assert!(before == host.around(h), "scoring wrote to the cache");
                        }
                    }
                }
            }
        }
    }
    for_formats(&mut Test(Rng::new()));
}

/// Merging, compaction and writing the merged rows, against the same on rows of `f64`.
#[test]
fn compactions_with_merges_move_and_write_the_same_everywhere() {
    struct Test(Rng);
    impl ForFormat for Test {
        fn run<E: Format>(&mut self) {
            let rng = &mut self.0;
            let simds = paths();
            for _ in 0..60 {
                let simd = rng.pick(&simds);
                let (head_dim, len) = (rng.head_dim(), rng.between(1, 200));
                let heads = random::<E>(rng.between(1, 3), len, head_dim, rng);
                let first = rng.between(0, len - 1);
                let kept: Vec<u32> = (first..len).filter(|_| rng.coin(0.6)).map(|e| e as u32).collect();
                let dropped: Vec<u32> = (first as u32..len as u32).filter(|e| !kept.contains(e)).collect();
                let mut merges: Vec<Merge> = Vec::new();
                for &from in &dropped {
                    if !kept.is_empty() && rng.coin(0.7) {
                        let weight = |rng: &mut Rng| (rng.unit() / 4.0) as f32;
                        merges.push(Merge {
                            from,
                            // Few, so that several go into one.
                            into: kept[rng.between(0, (kept.len() - 1).min(9))],
                            key_weight: weight(rng),
                            value_weight: weight(rng),
                        });
                    }
                }
                merges.sort_by_key(|merge| (merge.into, merge.from));
                let mut intos: Vec<u32> = merges.iter().map(|merge| merge.into).collect();
                intos.dedup();
                let destination = |into: &u32| (first + kept.binary_search(into).unwrap()) as u32;
                for host in &mut hosts(&heads, rng) {
                    for (h, entries) in heads.iter().enumerate() {
                        let around = host.around(h);
                        let mut rows = vec![f32::NAN; intos.len() * 2 * head_dim + rng.between(0, 3)];
                        let merged =
                            host.with_head(h, |pages| merged_rows(pages, merges.iter().copied(), &mut rows));
                        assert_eq!(merged, Ok(intos.len()));
                        rows.truncate(intos.len() * 2 * head_dim);
                        let mut pages = host.head(h);
                        let after = compact(simd, &mut pages, first, &kept).unwrap();
                        write_rows(&mut pages, intos.iter().map(destination), &rows).unwrap();

                        let sources = (0..first as u32).chain(kept.iter().copied());
                        for (e, source) in sources.enumerate() {
                            let (key, value) = host.entry(h, e);
                            let old = &entries[source as usize];
                            if let Ok(row) = intos.binary_search(&source) {
                                let row = &rows[row * 2 * head_dim..][..2 * head_dim];
                                check_merged(entries, &merges, source, row);
                                check_written(&key, &row[..head_dim]);
                                check_written(&value, &row[head_dim..]);
                            } else {
                                assert_eq!(key.codes(), old.0.codes(), "{} entry {e}", E::NAME);
                                assert_eq!(value.codes(), old.1.codes(), "{} entry {e}", E::NAME);
                            }
                        }
                        assert_eq!(after, first + kept.len());
                        assert!(around == host.around(h), "wrote beside the KV head's entries");
                    }
                }
            }
        }
    }
    for_formats(&mut Test(Rng::new()));
}

/// A merged row against the formula in `f64`.
fn check_merged<E: Format>(entries: &[(Row<E>, Row<E>)], merges: &[Merge], into: u32, row: &[f32]) {
    let group: Vec<&Merge> = merges.iter().filter(|merge| merge.into == into).collect();
    let numbers = |e: u32, value: bool| {
        let (key, v) = &entries[e as usize];
        if value { v.numbers() } else { key.numbers() }
    };
    for (value, found) in [false, true].into_iter().zip(row.chunks(row.len() / 2)) {
        let weight = |merge: &Merge| {
            f64::from(if value {
                merge.value_weight
            } else {
                merge.key_weight
            })
        };
        let total: f64 = group.iter().map(|merge| weight(merge)).sum();
        let old = numbers(into, value);
        for (d, &found) in found.iter().enumerate() {
            let old = f64::from(old[d]);
            let (mut expected, mut magnitude) = ((1.0 - total) * old, (1.0 + total) * old.abs());
            for merge in &group {
                let term = weight(merge) * f64::from(numbers(merge.from, value)[d]);
                expected += term;
                magnitude += term.abs();
            }
            // One rounding per weight and the difference, per product, per sum; of each at most its part of the magnitude.
            let bound = 2.0 * (group.len() as f64 + 2.0) * crate::U * magnitude + 1e-44;
            assert!(
                (f64::from(found) - expected).abs() <= bound,
                "{found} for {expected}, allowed {bound:e}"
            );
        }
    }
}

/// A row as it was stored, against the numbers that it stands for.
fn check_written<E: Format>(stored: &Row<E>, row: &[f32]) {
    if E::SCALED {
        let most = row.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        assert_eq!(stored.scale.to_bits(), (most / 127.0).to_bits());
        for (e, &x) in stored.elements.iter().zip(row) {
            let number = f64::from(e.number());
            assert!(number.abs() <= 127.0);
            if stored.scale >= f32::MIN_POSITIVE {
                let exact = f64::from(x) / f64::from(stored.scale);
                assert!((number - exact).abs() <= 0.5 + 1e-4, "{number} for {exact}");
            }
        }
    } else {
        for (e, &x) in stored.elements.iter().zip(row) {
            let expected = match E::NAME {
                "f32" => x.to_bits(),
                "f16" => half::f16::from_f32(x).to_bits().into(),
                _ => half::bf16::from_f32(x).to_bits().into(),
            };
            assert_eq!(e.code(), expected, "{x}");
        }
    }
}

/// Positions that lie apart, with what lies between.
#[test]
fn strided_positions_move_like_dense_ones() {
    let rng = &mut Rng::new();
    for _ in 0..100 {
        let (len, page_entries, stride) = (rng.between(1, 200), rng.between(1, 70), rng.between(1, 5));
        let first = rng.between(0, len);
        let kept: Vec<u32> = (first..len).filter(|_| rng.coin(0.5)).map(|e| e as u32).collect();
        let mut dense: Vec<u32> = (0..len as u32).map(|e| 7 * e).collect();
        let mut pages = vec![vec![u32::MAX; page_entries * stride]; len.div_ceil(page_entries)];
        for (e, &position) in dense.iter().enumerate() {
            pages[e / page_entries][e % page_entries * stride] = position;
        }
        let table: Vec<_> = pages
            .iter_mut()
            .map(|page| std::ptr::NonNull::from(&mut page[..]).cast())
            .collect();
        // SAFETY: the pages are vectors of their own, long enough for their entries.
        let mut view = unsafe { PositionPagesMut::strided(&table, page_entries, stride, len) }.unwrap();
        assert_eq!(compact_positions(&mut view, first, &kept), Ok(first + kept.len()));
        compact_positions(&mut PositionPagesMut::dense(&mut dense), first, &kept).unwrap();
        for (e, page) in pages.concat().chunks(stride).enumerate() {
            if e < first + kept.len() {
                assert_eq!(page[0], dense[e]);
            }
            assert!(
                page[1..].iter().all(|&x| x == u32::MAX),
                "wrote between positions"
            );
        }
    }
}
