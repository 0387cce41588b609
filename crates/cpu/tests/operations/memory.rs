//! Scratch that the caller gives, and that nothing else is taken.

use crate::rng::Rng;
use crate::{allocations, paths};
use reasoning_rpc_cpu::*;
use std::mem::MaybeUninit;

#[test]
fn borrowed_scratch_that_is_too_small_is_an_error() {
    let simd = Simd::best();
    let numbers = vec![1f32; 40 * 16];
    let pages = KvPages::dense(&numbers, &numbers, Layout::contiguous(40, 16), 40).unwrap();
    let range = std::iter::once(0..40).collect::<Vec<_>>();
    let queries = [0.5f32; 6 * 16];
    let bytes = score_scratch_bytes(6, 40, 16);
    let mut memory = vec![MaybeUninit::uninit(); bytes + 64];
    let aligned = memory.as_ptr().align_offset(64);
    let mut run = |bytes: usize, out: &mut [f32]| {
        let mut scratch = ScratchOn::over(&mut memory[aligned..aligned + bytes]);
        assert_eq!(scratch.bytes(), bytes);
        score(simd, &pages, &range, &queries, 2, 1.0, out, &mut scratch)
    };
    for short in [0, 1, 64, bytes - 1] {
        let mut out = [7.0; 40];
        let error = Error::TooSmall {
            what: "bytes of scratch",
            least: bytes,
            found: short,
        };
        assert_eq!(run(short, &mut out), Err(error));
        assert_eq!(out, [7.0; 40], "an error came back, but something was written");
    }
    let mut out = [7.0; 40];
    assert_eq!(run(bytes, &mut out), Ok(()));
    // All keys are alike, and so are three queries of each of two heads.
    assert!(out.iter().all(|x| (x - 3.0 / 40.0).abs() < 1e-6), "{out:?}");

    let bytes = attend_scratch_bytes::<f32>(1, 2, 16);
    let heads = Heads::new(&queries, 1, 2, 16, 32).unwrap();
    let mut out = [7.0; 32];
    let mut to = HeadsMut::new(&mut out, 1, 2, 16, 32).unwrap();
    let mut memory = vec![MaybeUninit::uninit(); bytes + 64];
    let aligned = memory.as_ptr().align_offset(64);
    let memory = &mut memory[aligned..];
    let mut short = ScratchOn::over(&mut memory[..bytes - 1]);
    assert_eq!(
        attend(simd, &pages, 39, heads, &mut to, 1.0, &mut short),
        Err(Error::TooSmall {
            what: "bytes of scratch",
            least: bytes,
            found: bytes - 1
        })
    );
    let mut enough = ScratchOn::over(&mut memory[..bytes]);
    assert_eq!(attend(simd, &pages, 39, heads, &mut to, 1.0, &mut enough), Ok(()));
    assert_eq!(out, [1.0; 32]);

    // Less than the way to a cache line.
    let scratch = ScratchOn::over(&mut memory[1..3]);
    assert_eq!(scratch.bytes(), 0);
}

#[test]
fn a_compression_on_borrowed_memory_allocates_nothing() {
    let rng = &mut Rng::new();
    for simd in paths() {
        let (len, head_dim) = (rng.between(50, 300), rng.head_dim());
        let (mut keys, mut values) = (rng.normals(len * head_dim), rng.normals(len * head_dim));
        let queries = rng.normals(30 * head_dim);
        let kept: Vec<u32> = (5..len as u32 / 2).collect();
        let merge = |from| Merge {
            from,
            into: 7,
            key_weight: 0.25,
            value_weight: 0.5,
        };
        let mut out = vec![0.0; len];
        let mut rows = vec![0.0; 2 * head_dim];
        let mut memory = vec![MaybeUninit::uninit(); score_scratch_bytes(30, len, head_dim) + 63];
        let all = 0..len;
        let before = allocations();
        let mut scratch = ScratchOn::over(&mut memory);
        let layout = Layout::contiguous(len, head_dim);
        let mut pages = KvPagesMut::dense(&mut keys, &mut values, layout, len).unwrap();
        let ranges = std::slice::from_ref(&all);
        score(
            simd,
            &pages.view(),
            ranges,
            &queries,
            3,
            0.1,
            &mut out,
            &mut scratch,
        )
        .unwrap();
        let merges = [merge(len as u32 - 2), merge(len as u32 - 1)];
        assert_eq!(
            merged_rows(&pages.view(), merges.iter().copied(), &mut rows),
            Ok(1)
        );
        compact(simd, &mut pages, 5, &kept).unwrap();
        write_rows(&mut pages, std::iter::once(7), &rows).unwrap();
        assert_eq!(allocations(), before);
    }
}

#[test]
fn bad_merges_write_nothing() {
    let (mut keys, mut values) = (vec![1f32; 10 * 8], vec![2f32; 10 * 8]);
    let mut pages = KvPagesMut::dense(&mut keys, &mut values, Layout::contiguous(10, 8), 9).unwrap();
    let merge = |from, into| Merge {
        from,
        into,
        key_weight: 0.5,
        value_weight: 0.5,
    };
    let mut rows = [7f32; 32];
    let mut check = |merges: &[Merge], room: usize, expected| {
        let rows = &mut rows[..room];
        assert_eq!(merged_rows(&pages.view(), merges.iter().copied(), rows), expected);
        if expected.is_err() {
            assert!(rows.iter().all(|&x| x == 7.0));
        }
    };
    let beyond = |found| {
        Err(Error::TooSmall {
            what: "valid entries",
            least: found,
            found: 9,
        })
    };
    check(&[merge(9, 2)], 32, beyond(10));
    check(&[merge(2, 9)], 32, beyond(10));
    check(&[merge(2, u32::MAX)], 32, beyond(1 << 32));
    check(
        &[merge(4, 2), merge(3, 3)],
        32,
        Err(Error::MergeIntoItself { index: 1, entry: 3 }),
    );
    for (from, into) in [(4, 2), (3, 2), (8, 1)] {
        check(
            &[merge(4, 2), merge(from, into)],
            32,
            Err(Error::MergeOrder { index: 1, into, from }),
        );
    }
    check(
        &[merge(4, 2), merge(5, 2), merge(4, 3)],
        31,
        Err(Error::TooSmall {
            what: "floats of merged rows",
            least: 32,
            found: 31,
        }),
    );
    check(&[], 0, Ok(0));
    check(&[merge(4, 2), merge(5, 2), merge(4, 3)], 32, Ok(2));

    let rows = [3f32; 32];
    let mut write =
        |entries: &[u32], floats: usize| write_rows(&mut pages, entries.iter().copied(), &rows[..floats]);
    assert_eq!(write(&[3, 9], 32), beyond(10).map(|_| ()));
    assert_eq!(
        write(&[3, 3], 32),
        Err(Error::NotAscending {
            index: 1,
            previous: 3,
            found: 3
        })
    );
    for floats in [0, 16, 31] {
        assert_eq!(
            write(&[3, 4], floats),
            Err(Error::Mismatch {
                what: "floats of merged rows",
                expected: 32,
                found: floats
            })
        );
    }
    assert_eq!(write(&[], 0), Ok(()));
    assert!(keys.iter().all(|&x| x == 1.0) && values.iter().all(|&x| x == 2.0));
}

/// An iterator that lies about what it gives is safe code: it may spoil the rows, but nothing is read or written beyond the entries.
#[test]
fn entries_are_checked_where_they_are_used() {
    #[derive(Clone)]
    struct Lying<'a>(&'a std::cell::Cell<u32>, u32);
    impl Iterator for Lying<'_> {
        type Item = u32;
        fn next(&mut self) -> Option<u32> {
            self.1 = self.1.checked_sub(1)?;
            self.0.set(self.0.get() + 1);
            // The first time around, entries that exist.
            Some(if self.0.get() > 1 { 1 << 30 } else { 0 })
        }
    }
    let (mut keys, mut values) = (vec![1f32; 8], vec![2f32; 8]);
    let mut pages = KvPagesMut::dense(&mut keys, &mut values, Layout::contiguous(1, 8), 1).unwrap();
    let calls = std::cell::Cell::new(0);
    let error = write_rows(&mut pages, Lying(&calls, 1), &[0.0; 16]);
    assert_eq!(
        error,
        Err(Error::TooSmall {
            what: "valid entries",
            least: (1 << 30) + 1,
            found: 1
        })
    );
}
