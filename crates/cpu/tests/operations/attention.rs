//! The attention that entries get, and single entries that move.

use crate::cache::{Cache, bits};
use crate::rng::{ForElement, Rng, for_elements};
use crate::{EXP, U, logit_error, paths};
use reasoning_rpc_cpu::{
    ATTEND_CHUNK, Element, Error, Heads, HeadsMut, Recorded, Scratch, Simd, add_attention, add_moments,
    attend, attend_chunks, attend_recorded, chunk_floats, merge_chunks, move_entry, recorded_floats,
};

struct Attention<'r>(&'r mut Rng);

impl ForElement for Attention<'_> {
    fn run<E: Element>(&mut self) {
        let rng = &mut *self.0;
        for simd in paths() {
            for _ in 0..6 {
                check::<E>(simd, rng);
            }
        }
    }
}

fn check<E: Element>(simd: Simd, rng: &mut Rng) {
    let (head_dim, group, tokens) = (rng.head_dim(), rng.between(1, 8), rng.between(1, 32));
    let most = rng.pick(&[3, 100, 600, 1400]);
    let before = rng.between(0, most);
    let end = before + tokens;
    let mut cache = Cache::<E>::random(head_dim, end, rng);
    for entry in 0..end {
        cache.write(entry, &rng.normals(head_dim), &rng.normals(head_dim));
    }
    cache.set_len(end);
    let width = group * head_dim;
    let queries = rng.normals(tokens * width);
    let scale = 1.0 / (head_dim as f32).sqrt();
    // Whose weights are recorded: the queries' own, or those of others.
    let others = rng.between(0, 1) == 1;
    let asked = if others {
        rng.normals(tokens * width)
    } else {
        queries.clone()
    };
    let factor = rng.pick(&[1.0f32, 0.37]);
    let heads = |from: usize, to: usize| {
        let queries = &queries[from * width..to * width];
        Heads::new(queries, to - from, group, head_dim, width).unwrap()
    };
    let others_of = |from: usize, to: usize| {
        let asked = &asked[from * width..to * width];
        others.then(|| Heads::new(asked, to - from, group, head_dim, width).unwrap())
    };
    let mut scratch = Scratch::new();

    // What is recorded changes no bit of the output.
    let mut plain = vec![f32::NAN; tokens * width];
    let mut to = HeadsMut::new(&mut plain, tokens, group, head_dim, width).unwrap();
    attend(
        simd,
        &cache.pages(),
        before,
        heads(0, tokens),
        &mut to,
        scale,
        &mut scratch,
    )
    .unwrap();
    let count = tokens * group;
    let chunks = end.div_ceil(ATTEND_CHUNK);
    let mut out = vec![f32::NAN; tokens * width];
    let mut to = HeadsMut::new(&mut out, tokens, group, head_dim, width).unwrap();
    let mut weights = vec![f32::NAN; recorded_floats(chunks, count)];
    attend_recorded(
        simd,
        &cache.pages(),
        before,
        heads(0, tokens),
        &mut to,
        Some(Recorded {
            weights: &mut weights,
            others: others_of(0, tokens),
        }),
        scale,
        &mut scratch,
    )
    .unwrap();
    assert_eq!(bits(&out), bits(&plain));
    let start = rng.normals(end);
    let mut sums = start.clone();
    add_attention(
        simd,
        &mut weights,
        before,
        0..tokens,
        tokens,
        group,
        factor,
        &mut sums,
    )
    .unwrap();

    // The same in chunks of their own, and token by token.
    let mut partial = vec![f32::NAN; chunks * count * chunk_floats(head_dim)];
    let mut parts = vec![f32::NAN; recorded_floats(chunks, count)];
    for chunk in 0..chunks {
        attend_chunks(
            simd,
            &cache.pages(),
            before,
            heads(0, tokens),
            chunk..chunk + 1,
            &mut partial[chunk * count * chunk_floats(head_dim)..][..count * chunk_floats(head_dim)],
            Some(Recorded {
                weights: &mut parts[recorded_floats(chunk, count)..][..recorded_floats(1, count)],
                others: others_of(0, tokens),
            }),
            scale,
            &mut scratch,
        )
        .unwrap();
    }
    let mut to = HeadsMut::new(&mut out, tokens, group, head_dim, width).unwrap();
    merge_chunks(simd, &mut partial, &mut to).unwrap();
    assert_eq!(bits(&out), bits(&plain));
    let mut shared = start.clone();
    add_attention(
        simd,
        &mut parts,
        before,
        0..tokens,
        tokens,
        group,
        factor,
        &mut shared,
    )
    .unwrap();
    assert_eq!(bits(&shared), bits(&sums), "chunks");
    let mut single = start.clone();
    for token in 0..tokens {
        let chunks = (before + token + 1).div_ceil(ATTEND_CHUNK);
        let mut weights = vec![f32::NAN; recorded_floats(chunks, group)];
        let mut out = vec![0.0; width];
        let mut to = HeadsMut::new(&mut out, 1, group, head_dim, width).unwrap();
        attend_recorded(
            simd,
            &cache.pages_of(before + token + 1),
            before + token,
            heads(token, token + 1),
            &mut to,
            Some(Recorded {
                weights: &mut weights,
                others: others_of(token, token + 1),
            }),
            scale,
            &mut scratch,
        )
        .unwrap();
        add_attention(
            simd,
            &mut weights,
            before + token,
            0..1,
            1,
            group,
            factor,
            &mut single,
        )
        .unwrap();
    }
    assert_eq!(bits(&single), bits(&sums), "token by token");

    // The formula in f64. Of each weight: twice its logit's error (and the maximum's, which cancels as far as it
    // is the same), an exponential, the sum's rounding and the division; then as many additions.
    let mut expected: Vec<f64> = start.iter().copied().map(f64::from).collect();
    let mut bounds: Vec<f64> = expected.iter().map(|x| x.abs() * U * count as f64).collect();
    for q in 0..count {
        let query = &asked[q * head_dim..][..head_dim];
        let seen = before + q / group + 1;
        let (mut worst, mut values) = (0.0f64, Vec::new());
        for e in 0..seen {
            let products = query
                .iter()
                .zip(cache.key(e))
                .map(|(q, k)| f64::from(*q) * f64::from(k.to_f32()));
            let (sum, magnitude) = products.fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()));
            worst = worst.max(logit_error(head_dim, f64::from(scale) * magnitude));
            values.push(f64::from(scale) * sum);
        }
        let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
        let weights: Vec<f64> = values.iter().map(|x| (x - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let error = 2.0 * worst + U * (largest - smallest) + EXP;
        let relative = 2.0 * error.exp_m1() + (64.0 + 8.0 + count as f64) * U;
        for (e, weight) in weights.iter().enumerate() {
            let weight = f64::from(factor) * weight;
            expected[e] += weight / total;
            bounds[e] += relative * weight / total + U * count as f64 * expected[e].abs();
        }
    }
    for (e, (found, (expected, bound))) in sums.iter().zip(expected.iter().zip(&bounds)).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        assert!(
            error <= *bound,
            "{} {}: entry {e}: {found} for {expected}, off by {error:e}, allowed {bound:e}",
            simd.name(),
            E::NAME
        );
    }
}

#[test]
fn what_entries_get_is_the_softmax_summed() {
    for_elements(&mut Attention(&mut Rng::new()));
}

#[test]
fn moments_are_sums_of_elements_and_products() {
    let mut rng = Rng::new();
    for simd in paths() {
        let (head_dim, count) = (rng.head_dim(), rng.between(0, 40));
        let vectors = rng.normals(count * head_dim);
        let start = rng.normals(head_dim * (head_dim + 1));
        let mut sums = start.clone();
        add_moments(simd, &vectors, head_dim, &mut sums).unwrap();
        let check = |found: f32, start: f32, terms: &mut dyn Iterator<Item = f64>| {
            let (sum, magnitude) = terms.fold((f64::from(start), f64::from(start).abs()), |(s, m), x| {
                (s + x, m + x.abs())
            });
            // A rounding of each product and of each sum.
            assert!((f64::from(found) - sum).abs() <= (count + 1) as f64 * U * magnitude);
        };
        let rows = || vectors.chunks_exact(head_dim);
        for i in 0..head_dim {
            check(sums[i], start[i], &mut rows().map(|row| f64::from(row[i])));
            for j in 0..head_dim {
                let at = head_dim * (i + 1) + j;
                match j <= i {
                    true => check(
                        sums[at],
                        start[at],
                        &mut rows().map(|row| f64::from(row[i]) * f64::from(row[j])),
                    ),
                    false => assert_eq!(sums[at].to_bits(), start[at].to_bits()),
                }
            }
        }
        assert!(add_moments(simd, &vectors, head_dim, &mut sums[1..]).is_err());
    }
}

#[test]
fn misfits_are_refused() {
    let simd = paths()[0];
    let mut weights = vec![0.0; recorded_floats(1, 4)];
    let mut add = |tokens: std::ops::Range<usize>, before, out: usize| {
        add_attention(simd, &mut weights, before, tokens, 2, 2, 1.0, &mut vec![0.0; out])
    };
    assert_eq!(add(0..2, 10, 12), Ok(()));
    assert!(matches!(add(0..3, 10, 20), Err(Error::TooLarge { .. })));
    assert!(matches!(add(0..2, 10, 11), Err(Error::TooSmall { .. })));
    assert!(matches!(add(0..2, 511, 600), Err(Error::TooSmall { .. })));
    weights.pop();
    let refused = add_attention(simd, &mut weights, 0, 0..2, 2, 2, 1.0, &mut [0.0; 2]);
    assert!(refused.is_err());
}

#[test]
fn one_entry_moves_alone() {
    let mut rng = Rng::new();
    for simd in paths() {
        let mut cache = Cache::<f32>::random(16, 30, &mut rng);
        for entry in 0..30 {
            cache.write(entry, &rng.normals(16), &rng.normals(16));
        }
        cache.set_len(30);
        let all: Vec<_> = (0..30)
            .map(|e| (bits(cache.key(e)), bits(cache.value(e))))
            .collect();
        let (from, to) = (rng.between(0, 29), rng.between(0, 29));
        move_entry(simd, &mut cache.pages_mut(), from, to).unwrap();
        for (e, before) in all.iter().enumerate() {
            let expected = if e == to { &all[from] } else { before };
            assert_eq!(&(bits(cache.key(e)), bits(cache.value(e))), expected);
        }
        for (from, to) in [(30, 0), (0, 30)] {
            assert!(move_entry(simd, &mut cache.pages_mut(), from, to).is_err());
        }
    }
}
