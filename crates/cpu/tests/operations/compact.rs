use crate::cache::{Cache, bits};
use crate::paths;
use crate::rng::{ForElement, Rng, for_elements};
use reasoning_rpc_cpu::{Element, Error, PositionPagesMut, compact, compact_positions};
use std::ptr::NonNull;

/// Some of the entries `first..len`, ascending, in runs of random length.
fn random_kept(first: usize, len: usize, rng: &mut Rng) -> Vec<u32> {
    let (mut keep, mut kept) = (rng.coin(0.5), Vec::new());
    let change = rng.unit();
    for e in first..len {
        if rng.coin(change) {
            keep = !keep;
        }
        if keep {
            kept.push(e as u32);
        }
    }
    kept
}

#[test]
fn equals_a_gather_through_a_copy() {
    struct Test(Rng);
    impl ForElement for Test {
        fn run<E: Element>(&mut self) {
            let rng = &mut self.0;
            for simd in paths() {
                for _ in 0..60 {
                    let (head_dim, len) = (rng.head_dim(), rng.between(1, 300));
                    let mut cache = Cache::<E>::random(head_dim, len, rng);
                    for e in 0..len {
                        cache.write(e, &rng.normals(head_dim), &rng.normals(head_dim));
                    }
                    let before: Vec<_> = (0..len)
                        .map(|e| (bits(cache.key(e)), bits(cache.value(e))))
                        .collect();
                    let first = rng.between(0, len);
                    let kept = random_kept(first, len, rng);
                    assert_eq!(
                        compact(simd, &mut cache.pages_mut(), first, &kept),
                        Ok(first + kept.len())
                    );
                    let sources = (0..first).chain(kept.iter().map(|&k| k as usize));
                    for (e, source) in sources.enumerate() {
                        assert_eq!(
                            (bits(cache.key(e)), bits(cache.value(e))),
                            before[source],
                            "entry {e} from {source}"
                        );
                    }
                    assert!(cache.untouched_elsewhere(len), "wrote between entries");

                    let mut positions: Vec<u32> = (0..len as u32).map(|e| 10 * e).collect();
                    let page_entries = rng.between(1, 70);
                    let mut pages: Vec<Vec<u32>> =
                        positions.chunks(page_entries).map(<[u32]>::to_vec).collect();
                    let table: Vec<NonNull<u32>> = pages
                        .iter_mut()
                        .map(|page| NonNull::from(&mut page[..]).cast())
                        .collect();
                    // SAFETY: the pages are vectors of their own, the last one as long as the positions in it.
                    let mut view = unsafe { PositionPagesMut::new(&table, page_entries, len) }.unwrap();
                    assert_eq!(compact_positions(&mut view, first, &kept), Ok(first + kept.len()));
                    let mut view = PositionPagesMut::dense(&mut positions);
                    compact_positions(&mut view, first, &kept).unwrap();
                    let expected: Vec<u32> = (0..first as u32)
                        .chain(kept.iter().copied())
                        .map(|e| 10 * e)
                        .collect();
                    assert_eq!(positions[..expected.len()], expected);
                    assert_eq!(pages.concat()[..expected.len()], expected);
                }
            }
        }
    }
    for_elements(&mut Test(Rng::new()));
}

#[test]
fn a_bad_plan_moves_nothing() {
    let rng = &mut Rng::new();
    for simd in paths() {
        let mut cache = Cache::<f32>::random(16, 20, rng);
        for e in 0..20 {
            cache.write(e, &rng.normals(16), &rng.normals(16));
        }
        let before: Vec<_> = (0..20)
            .map(|e| (bits(cache.key(e)), bits(cache.value(e))))
            .collect();
        let bad: [(usize, &[u32], Error); 6] = [
            (
                2,
                &[4, 6, 6],
                Error::NotAscending {
                    index: 2,
                    previous: 6,
                    found: 6,
                },
            ),
            (
                2,
                &[4, 9, 7],
                Error::NotAscending {
                    index: 2,
                    previous: 9,
                    found: 7,
                },
            ),
            (
                2,
                &[1, 9],
                Error::Behind {
                    index: 0,
                    destination: 2,
                    found: 1,
                },
            ),
            (
                0,
                &[5, 20],
                Error::TooLarge {
                    what: "last kept entry",
                    most: 19,
                    found: 20,
                },
            ),
            (
                0,
                &[5, u32::MAX],
                Error::TooLarge {
                    what: "last kept entry",
                    most: 19,
                    found: u32::MAX as usize,
                },
            ),
            (
                21,
                &[],
                Error::TooLarge {
                    what: "first entry to compact",
                    most: 20,
                    found: 21,
                },
            ),
        ];
        for (first, kept, error) in bad {
            assert_eq!(compact(simd, &mut cache.pages_mut(), first, kept), Err(error));
            let mut positions: Vec<u32> = (0..20).collect();
            assert_eq!(
                compact_positions(&mut PositionPagesMut::dense(&mut positions), first, kept),
                Err(error)
            );
            assert!(positions.iter().enumerate().all(|(e, &p)| p as usize == e));
        }
        for (e, before) in before.iter().enumerate() {
            assert_eq!(&(bits(cache.key(e)), bits(cache.value(e))), before);
        }
        let none = Err(Error::TooSmall {
            what: "valid entries",
            least: 1,
            found: 0,
        });
        assert_eq!(
            compact_positions(&mut PositionPagesMut::dense(&mut []), 0, &[5]),
            none
        );
        assert_eq!(
            compact_positions(&mut PositionPagesMut::dense(&mut []), 0, &[]),
            Ok(0)
        );
        assert_eq!(compact(simd, &mut cache.pages_mut(), 20, &[]), Ok(20));
        let mut pages = cache.pages_mut();
        assert_eq!(compact(simd, &mut pages, 3, &[7, 8, 19]), Ok(6));
        assert_eq!(pages.len(), 6);
        assert_eq!(
            compact(simd, &mut pages, 0, &[6]),
            Err(Error::TooLarge {
                what: "last kept entry",
                most: 5,
                found: 6
            }),
            "what was dropped is no longer valid"
        );
    }
}
