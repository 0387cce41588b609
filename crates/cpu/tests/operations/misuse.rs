use reasoning_rpc_cpu::*;
use std::ptr::NonNull;

#[test]
fn views_check_their_sizes() {
    let numbers = vec![0f32; 1000];
    let dense = |layout, len| KvPages::dense(&numbers, &numbers, layout, len).map(|_| ());
    let layout = Layout::contiguous(10, 64);
    assert_eq!(dense(layout, 10), Ok(()));
    assert_eq!(
        dense(layout, 11),
        Err(Error::TooLarge {
            what: "valid entries",
            most: 10,
            found: 11
        })
    );
    for head_dim in [0, 4, 12, 264] {
        assert_eq!(
            dense(Layout::contiguous(1, head_dim), 1),
            Err(Error::HeadDim { found: head_dim })
        );
    }
    assert_eq!(
        dense(
            Layout {
                key_stride: 63,
                ..layout
            },
            1
        ),
        Err(Error::TooSmall {
            what: "key stride",
            least: 64,
            found: 63
        })
    );
    assert_eq!(
        dense(
            Layout {
                value_stride: 0,
                ..layout
            },
            1
        ),
        Err(Error::TooSmall {
            what: "value stride",
            least: 64,
            found: 0
        })
    );
    assert_eq!(
        dense(
            Layout {
                page_entries: 0,
                ..layout
            },
            0
        ),
        Err(Error::TooSmall {
            what: "entries in a page",
            least: 1,
            found: 0
        })
    );
    // The last entry needs its elements, not its stride.
    let strided = Layout {
        key_stride: 104,
        value_stride: 104,
        page_entries: 10,
        head_dim: 64,
    };
    assert_eq!(dense(strided, 10), Ok(()));
    assert_eq!(
        dense(
            Layout {
                key_stride: 112,
                ..strided
            },
            10
        ),
        Err(Error::TooSmall {
            what: "elements of the keys' slice",
            least: 1072,
            found: 1000
        })
    );
    assert!(matches!(
        dense(
            Layout {
                key_stride: usize::MAX,
                ..layout
            },
            1
        ),
        Err(Error::Overflow { .. })
    ));
    let page = [NonNull::<f32>::dangling()];
    // SAFETY: refused before anything is read.
    let mismatch = unsafe { KvPages::new(&page, &[], layout, 0) };
    assert_eq!(
        mismatch.map(|_| ()),
        Err(Error::Mismatch {
            what: "pages of values",
            expected: 1,
            found: 0
        })
    );
    // SAFETY: no page, no entry.
    let empty = unsafe { KvPages::<f32>::new(&[], &[], layout, 0) }.unwrap();
    assert!(empty.is_empty() && empty.capacity() == 0);
}

#[test]
fn operations_check_their_shapes() {
    let simd = Simd::best();
    let (mut keys, mut values) = (vec![1f32; 20 * 16], vec![1f32; 20 * 16]);
    let layout = Layout::contiguous(20, 16);
    let mut scratch = Scratch::new();
    let queries = [1f32; 64];
    let mut out = [0f32; 64];
    {
        let pages = KvPages::dense(&keys, &values, layout, 12).unwrap();
        let heads = |tokens, group, head_dim| {
            Heads::new(&queries, tokens, group, head_dim, group * head_dim).unwrap()
        };
        let mut attend = |before, q: Heads<'_>, tokens, group, head_dim| {
            let mut to = HeadsMut::new(&mut out, tokens, group, head_dim, group * head_dim).unwrap();
            attend(simd, &pages, before, q, &mut to, 1.0, &mut scratch)
        };
        assert_eq!(attend(10, heads(2, 2, 16), 2, 2, 16), Ok(()));
        assert_eq!(attend(0, heads(0, 2, 16), 0, 2, 16), Ok(()));
        assert_eq!(
            attend(11, heads(2, 2, 16), 2, 2, 16),
            Err(Error::TooLarge {
                what: "entries seen by the last token",
                most: 12,
                found: 13
            })
        );
        assert!(matches!(
            attend(usize::MAX, heads(2, 2, 16), 2, 2, 16),
            Err(Error::Overflow { .. })
        ));
        assert_eq!(
            attend(0, heads(2, 2, 16), 1, 2, 16),
            Err(Error::Mismatch {
                what: "tokens of the output",
                expected: 2,
                found: 1
            })
        );
        assert_eq!(
            attend(0, heads(2, 2, 16), 2, 1, 16),
            Err(Error::Mismatch {
                what: "query heads of the output",
                expected: 2,
                found: 1
            })
        );
        assert_eq!(
            attend(0, heads(1, 2, 24), 1, 2, 16),
            Err(Error::Mismatch {
                what: "head_dim of the queries",
                expected: 16,
                found: 24
            })
        );

        let ranges = |range: std::ops::Range<usize>| [range];
        let mut score = |range: &[_], queries: &[f32], group, out: &mut [f32]| {
            score(simd, &pages, range, queries, group, 1.0, out, &mut scratch)
        };
        assert_eq!(score(&ranges(3..5), &queries, 2, &mut [0.0; 2]), Ok(()));
        let backwards = std::ops::Range { start: 5, end: 4 };
        assert_eq!(
            score(&[backwards], &queries, 2, &mut []),
            Err(Error::Range {
                index: 0,
                start: 5,
                end: 4,
                len: 12
            })
        );
        assert_eq!(
            score(&[0..1, 3..13], &queries, 2, &mut [0.0; 11]),
            Err(Error::Range {
                index: 1,
                start: 3,
                end: 13,
                len: 12
            })
        );
        assert_eq!(
            score(&ranges(3..5), &queries, 2, &mut [0.0; 3]),
            Err(Error::Mismatch {
                what: "scores",
                expected: 2,
                found: 3
            })
        );
        assert_eq!(
            score(&ranges(3..5), &queries[1..], 2, &mut [0.0; 2]),
            Err(Error::Mismatch {
                what: "floats beyond whole queries",
                expected: 0,
                found: 15
            })
        );
        assert_eq!(
            score(&ranges(3..5), &queries, 0, &mut [0.0; 2]),
            Err(Error::TooSmall {
                what: "query heads in a group",
                least: 1,
                found: 0
            })
        );
        // No queries: all scores are zero. No candidates: no scores.
        let mut none = [7.0; 2];
        assert_eq!(score(&ranges(3..5), &[], 2, &mut none), Ok(()));
        assert_eq!(none, [0.0; 2]);
        assert_eq!(score(&[], &queries, 2, &mut []), Ok(()));
    }
    let mut pages = KvPagesMut::dense(&mut keys, &mut values, layout, 19).unwrap();
    let row = [1f32; 16];
    assert_eq!(
        append(simd, &mut pages, 3, &row[1..], &row),
        Err(Error::Mismatch {
            what: "floats in the key",
            expected: 16,
            found: 15
        })
    );
    assert_eq!(
        append(simd, &mut pages, 3, &row, &row[2..]),
        Err(Error::Mismatch {
            what: "floats in the value",
            expected: 16,
            found: 14
        })
    );
    assert_eq!(append(simd, &mut pages, 19, &row, &row), Ok(()));
    assert_eq!(
        append(simd, &mut pages, 20, &row, &row),
        Err(Error::TooLarge {
            what: "entry to append at",
            most: 19,
            found: 20
        })
    );
    let mut to = [0f32; 32];
    assert_eq!(
        rotate(simd, &queries[..33], &row[..8], &row[..8], 16, &mut to),
        Err(Error::Mismatch {
            what: "floats beyond whole heads in x",
            expected: 0,
            found: 1
        })
    );
    assert_eq!(
        rotate(simd, &queries[..32], &row[..7], &row[..8], 16, &mut to),
        Err(Error::Mismatch {
            what: "cosines",
            expected: 8,
            found: 7
        })
    );
    assert_eq!(
        rotate(simd, &queries[..32], &row[..8], &row[..8], 16, &mut to[1..]),
        Err(Error::Mismatch {
            what: "floats in out",
            expected: 32,
            found: 31
        })
    );
}

#[test]
fn heads_check_their_span() {
    let mut data = [0f32; 100];
    assert!(Heads::new(&data, 3, 2, 16, 34).is_ok());
    assert_eq!(
        Heads::new(&data, 3, 2, 16, 35).map(|_| ()),
        Err(Error::TooSmall {
            what: "floats in the heads' slice",
            least: 102,
            found: 100
        })
    );
    assert_eq!(
        Heads::new(&data, 1, 2, 16, 31).map(|_| ()),
        Err(Error::TooSmall {
            what: "token stride",
            least: 32,
            found: 31
        })
    );
    assert!(matches!(
        Heads::new(&data, usize::MAX, 2, 16, 32),
        Err(Error::Overflow { .. })
    ));
    assert!(matches!(
        Heads::new(&data, 1, usize::MAX, 16, 32),
        Err(Error::Overflow { .. })
    ));
    let heads = Heads::new(&data, 3, 2, 16, 34).unwrap();
    assert_eq!(heads.tokens_in(1..3).unwrap().tokens(), 2);
    assert_eq!(heads.tokens_in(3..3).unwrap().tokens(), 0);
    assert!(heads.tokens_in(1..4).is_err());
    let mut heads = HeadsMut::new(&mut data, 3, 2, 16, 34).unwrap();
    assert!(heads.tokens_in(2..4).is_err());
    assert_eq!(heads.tokens_in(2..3).unwrap().tokens(), 1);
}

#[test]
fn a_lacking_instruction_set_is_an_error() {
    for simd in Simd::ALL.into_iter().filter(|simd| !simd.is_available()) {
        let mut out = [0f32; 16];
        assert_eq!(
            rotate(simd, &[0.0; 16], &[0.0; 8], &[0.0; 8], 16, &mut out),
            Err(Error::SimdUnavailable { simd })
        );
    }
}
