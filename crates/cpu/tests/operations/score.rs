use crate::cache::{Cache, bits};
use crate::rng::{ForElement, Rng, for_elements};
use crate::{EXP, U, logit_error, paths};
use reasoning_rpc_cpu::{Element, Error, Scratch, Simd, score, score_scratch_bytes, score_visible};
use std::ops::Range;

struct Call {
    head_dim: usize,
    group: usize,
    queries: Vec<f32>,
    candidates: Vec<Range<usize>>,
    scale: f32,
}

impl Call {
    fn random(rng: &mut Rng, len: usize) -> Call {
        let head_dim = rng.head_dim();
        let group = rng.between(1, 8);
        let count = group * rng.between(1, 33);
        // Ascending or not, empty ones too.
        let candidates = (0..rng.between(1, 4))
            .map(|_| {
                let start = rng.between(0, len);
                start..rng.between(start, len)
            })
            .collect();
        Call {
            head_dim,
            group,
            queries: rng.normals(count * head_dim),
            candidates,
            scale: 1.0 / (head_dim as f32).sqrt(),
        }
    }

    fn total(&self) -> usize {
        self.candidates.iter().map(ExactSizeIterator::len).sum()
    }

    fn run<E: Element>(&self, simd: Simd, cache: &Cache<E>) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.total()];
        let mut scratch = Scratch::new();
        score(
            simd,
            &cache.pages(),
            &self.candidates,
            &self.queries,
            self.group,
            self.scale,
            &mut out,
            &mut scratch,
        )
        .unwrap();
        let count = self.queries.len() / self.head_dim;
        assert!(scratch.bytes() <= score_scratch_bytes(count, self.total(), self.head_dim) + 64);
        out
    }

    /// The formula in `f64`, and a bound on the error of each score.
    fn reference<E: Element>(&self, cache: &Cache<E>) -> Vec<(f64, f64)> {
        let entries: Vec<usize> = self.candidates.iter().cloned().flatten().collect();
        let mut out = vec![(0.0, 0.0); entries.len()];
        let count = (self.queries.len() / self.head_dim) as f64;
        for query in self.queries.chunks(self.head_dim) {
            let scale = f64::from(self.scale);
            let mut worst = 0.0f64;
            let logits: Vec<f64> = entries
                .iter()
                .map(|&e| {
                    let products = query
                        .iter()
                        .zip(cache.key(e))
                        .map(|(q, k)| f64::from(*q) * f64::from(k.to_f32()));
                    let (sum, magnitude) = products.fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()));
                    worst = worst.max(logit_error(self.head_dim, scale * magnitude));
                    scale * sum
                })
                .collect();
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let smallest = logits.iter().copied().fold(f64::INFINITY, f64::min);
            let total: f64 = logits.iter().map(|l| (l - largest).exp()).sum();
            // A weight: its logit, the rounding of the difference, the exponential. The total: the same, and 8 sums of a lane with the
            // tree in a tile. Then the reciprocal, the product, and at most one sum per query.
            let weight = (worst + U * (largest - smallest) + EXP).exp_m1();
            let relative = 2.0 * weight + (8.0 + 4.0 + 3.0 + count) * U;
            for (out, logit) in out.iter_mut().zip(&logits) {
                let weight = (logit - largest).exp() / total / self.group as f64;
                out.0 += weight;
                out.1 += weight * relative + 1e-37;
            }
        }
        out
    }
}

fn filled<E: Element>(head_dim: usize, len: usize, rng: &mut Rng) -> Cache<E> {
    let mut cache = Cache::random(head_dim, len, rng);
    for e in 0..len {
        cache.write(e, &rng.normals(head_dim), &vec![f32::NAN; head_dim]);
    }
    cache
}

#[test]
fn agrees_with_the_formula() {
    struct Test(Rng);
    impl ForElement for Test {
        fn run<E: Element>(&mut self) {
            let rng = &mut self.0;
            for simd in paths() {
                for _ in 0..25 {
                    let len = rng.between(1, 500);
                    let call = Call::random(rng, len);
                    let cache = filled::<E>(call.head_dim, len, rng);
                    let out = call.run(simd, &cache);
                    let mut sum = 0.0;
                    for (c, (&found, (expected, bound))) in out.iter().zip(call.reference(&cache)).enumerate()
                    {
                        let error = (f64::from(found) - expected).abs();
                        assert!(
                            error <= bound,
                            "{} {c}: {found} for {expected}, allowed {bound:e}",
                            simd.name()
                        );
                        sum += f64::from(found);
                    }
                    if !out.is_empty() {
                        let window = call.queries.len() as f64 / call.head_dim as f64 / call.group as f64;
                        assert!(
                            (sum - window).abs() < 1e-3 * window,
                            "scores add up to {sum}, the window is {window}"
                        );
                    }
                }
            }
        }
    }
    for_elements(&mut Test(Rng::new()));
}

/// Neither the layout nor the way in which the candidates are cut into ranges changes a bit, and entries that are not candidates do not
/// take part.
#[test]
fn bits_do_not_depend_on_ranges_or_layout() {
    struct Test(Rng);
    impl ForElement for Test {
        fn run<E: Element>(&mut self) {
            let rng = &mut self.0;
            for simd in paths() {
                for _ in 0..15 {
                    let len = rng.between(10, 400);
                    let mut call = Call::random(rng, len);
                    let range = rng.between(0, 5)..rng.between(6, len);
                    call.candidates = vec![range.clone()];
                    let cache = filled::<E>(call.head_dim, len, rng);
                    let whole = bits(&call.run(simd, &cache));
                    let cut = rng.between(range.start, range.end);
                    call.candidates = vec![range.start..cut, cut..cut, cut..range.end];
                    assert_eq!(whole, bits(&call.run(simd, &cache)), "cut at {cut}");

                    let mut other = Cache::<E>::random(call.head_dim, len, rng);
                    let nan = vec![f32::NAN; call.head_dim];
                    for e in 0..len {
                        let key: Vec<f32> = cache.key(e).iter().map(|k| k.to_f32()).collect();
                        other.write(e, if range.contains(&e) { &key } else { &nan }, &nan);
                    }
                    assert_eq!(
                        whole,
                        bits(&call.run(simd, &other)),
                        "other pages, NaN around the candidates"
                    );
                }
            }
        }
    }
    for_elements(&mut Test(Rng::new()));
}

#[test]
fn many_candidates_and_extreme_logits() {
    let rng = &mut Rng::new();
    for simd in paths() {
        let mut call = Call::random(rng, 33_000);
        call.candidates = std::iter::once(0..33_000).collect();
        call.head_dim = 16;
        call.group = 1;
        call.queries = rng.normals(3 * 16);
        call.scale = 50.0;
        let cache = filled::<f32>(16, 33_000, rng);
        for (found, (expected, bound)) in call.run(simd, &cache).iter().zip(call.reference(&cache)) {
            assert!(
                (f64::from(*found) - expected).abs() <= bound,
                "{found} for {expected}, allowed {bound:e}"
            );
        }
    }
}

/// A query that sees only some entries scores those as if there were no others: token by token, to the last bits that another order of
/// the sums leaves.
#[test]
fn hidden_entries_take_no_part() {
    struct Test(Rng);
    impl ForElement for Test {
        fn run<E: Element>(&mut self) {
            let rng = &mut self.0;
            for simd in paths() {
                for _ in 0..15 {
                    let len = rng.between(1, 400);
                    let call = Call::random(rng, len);
                    let cache = filled::<E>(call.head_dim, len, rng);
                    let width = call.group * call.head_dim;
                    let visible: Vec<usize> =
                        call.queries.chunks(width).map(|_| rng.between(0, len)).collect();
                    let mut found = vec![f32::NAN; len];
                    let (pages, scratch) = (cache.pages(), &mut Scratch::new());
                    score_visible(
                        simd,
                        &pages,
                        &visible,
                        &call.queries,
                        call.group,
                        call.scale,
                        &mut found,
                        scratch,
                    )
                    .unwrap();
                    let mut expected = vec![(0.0, 0.0); len];
                    for (queries, &count) in call.queries.chunks(width).zip(&visible) {
                        let alone = Call {
                            queries: queries.to_vec(),
                            candidates: std::iter::once(0..count).collect(),
                            ..call
                        };
                        for (sum, score) in expected.iter_mut().zip(alone.reference(&cache)) {
                            *sum = (sum.0 + score.0, sum.1 + score.1 + U);
                        }
                    }
                    for (&found, (expected, bound)) in found.iter().zip(expected) {
                        let bound = bound + visible.len() as f64 * U * expected;
                        assert!(
                            (f64::from(found) - expected).abs() <= bound,
                            "{found} for {expected}"
                        );
                    }
                    let beyond = vec![len + 1; visible.len()];
                    let refused = score_visible(
                        simd,
                        &pages,
                        &beyond,
                        &call.queries,
                        call.group,
                        call.scale,
                        &mut found,
                        scratch,
                    );
                    assert!(refused.is_err());
                    let refused: Result<(), Error> = score_visible(
                        simd,
                        &pages,
                        &beyond[1..],
                        &call.queries,
                        call.group,
                        call.scale,
                        &mut found,
                        scratch,
                    );
                    assert!(refused.is_err());
                }
            }
        }
    }
    for_elements(&mut Test(Rng::new()));
}
