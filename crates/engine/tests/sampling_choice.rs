//! Choices against a plain implementation that sorts everything in float64.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // tests

mod text_support;

use reasoning_rpc_engine::Error;
use reasoning_rpc_engine::sampling::{Candidate, Sampler, SamplingOptions};
use text_support::Random;

/// Sorts all tokens and applies the options one after another. `None` if some decision was so close that
/// rounding decides it.
fn plain(logits: &[f32], seen: &[u32], options: &SamplingOptions) -> Option<Vec<(u32, f64)>> {
    let mut scores: Vec<f64> = logits.iter().map(|logit| f64::from(*logit)).collect();
    let mut once = seen.to_vec();
    once.sort_unstable();
    once.dedup();
    for id in once.into_iter().filter(|id| (*id as usize) < logits.len()) {
        let score = logits[id as usize];
        let penalty = options.repetition_penalty;
        scores[id as usize] = f64::from(if score < 0.0 {
            score * penalty
        } else {
            score / penalty
        });
    }
    let mut tokens: Vec<(u32, f64)> = (0..)
        .zip(scores)
        .filter(|token| token.1 > f64::NEG_INFINITY)
        .collect();
    tokens.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    if options.temperature == 0.0 {
        return Some(vec![(tokens[0].0, 1.0)]);
    }
    if let Some(kth) = tokens
        .get((options.top_k as usize).wrapping_sub(1))
        .map(|token| token.1)
    {
        tokens.retain(|token| token.1 >= kth);
    }
    let best = tokens[0].1;
    for token in &mut tokens {
        token.1 = ((token.1 - best) / f64::from(options.temperature)).exp();
    }
    let total: f64 = tokens.iter().map(|token| token.1).sum();
    if options.top_p < 1.0 {
        let top_p = f64::from(options.top_p);
        let mut before = 0.0;
        let mut kept = 0;
        for token in &tokens {
            if (before / total - top_p).abs() < 4e-6 {
                return None;
            }
            if kept > 0 && before / total >= top_p {
                break;
            }
            before += token.1;
            kept += 1;
        }
        tokens.truncate(kept);
    }
    let min_p = f64::from(options.min_p);
    if tokens
        .iter()
        .any(|token| token.1 != 1.0 && (token.1 - min_p).abs() < 1e-9 * min_p)
    {
        return None;
    }
    tokens.retain(|token| token.1 >= min_p);
    let total: f64 = tokens.iter().map(|token| token.1).sum();
    tokens.iter_mut().for_each(|token| token.1 /= total);
    Some(tokens)
}

fn some<T>(random: &mut Random, off: T, on: impl FnOnce(&mut Random) -> T) -> T {
    if random.below(2) == 0 { off } else { on(random) }
}

fn random_options(random: &mut Random) -> SamplingOptions {
    SamplingOptions {
        temperature: some(random, 1.0, |random| 0.1 + 2.0 * random.unit() as f32),
        top_k: some(random, 0, |random| 1 + random.below(50) as u32),
        top_p: some(random, 1.0, |random| random.unit() as f32),
        min_p: some(random, 0.0, |random| 0.3 * random.unit() as f32),
        repetition_penalty: some(random, 1.0, |random| 0.5 + random.unit() as f32),
        seed: random.bits(),
    }
}

/// Logits of many shapes: spread, flat, with ties, ascending, with tokens that are ruled out.
fn random_logits(random: &mut Random, size: usize) -> Vec<f32> {
    let spread = [0.0, 0.1, 1.0, 5.0, 30.0][random.below(5)];
    let mut logits: Vec<f32> = (0..size).map(|_| (random.normal() * spread) as f32).collect();
    match random.below(5) {
        0 => logits.iter_mut().for_each(|logit| *logit = logit.round()),
        1 => logits.sort_unstable_by(f32::total_cmp),
        2 => {
            for logit in &mut logits[1..] {
                if random.below(2) == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        _ => {}
    }
    logits
}

#[test]
fn the_tokens_kept_are_exactly_those_of_the_plain_implementation() {
    let mut random = Random::new();
    let mut close = 0;
    for round in 0..1500 {
        let size = [1, 2, 17, 64, 100, 1000, 3000][random.below(7)];
        let logits = random_logits(&mut random, size);
        let mut options = random_options(&mut random);
        if round % 10 == 0 {
            options.temperature = 0.0;
        }
        let seen: Vec<u32> = (0..random.below(40))
            .map(|_| random.below(size + 3) as u32)
            .collect();
        let mut sampler = Sampler::new(options).unwrap();
        let (one_by_one, at_once) = seen.split_at(seen.len() / 2);
        one_by_one.iter().for_each(|id| sampler.observe(*id));
        sampler.observe_all(at_once);
        let Some(expected) = plain(&logits, &seen, &options) else {
            close += 1;
            continue;
        };
        let kept: Vec<Candidate> = sampler.candidates(&logits).unwrap();
        let ids = |tokens: &[(u32, f64)]| tokens.iter().map(|token| token.0).collect::<Vec<_>>();
        let found: Vec<(u32, f64)> = kept.iter().map(|token| (token.id, token.probability)).collect();
        assert_eq!(ids(&found), ids(&expected), "size {size}, {options:?}");
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                (found.1 - expected.1).abs() <= 1e-9 * expected.1 + 1e-15,
                "{found:?} {expected:?} {options:?}"
            );
        }
        // A draw is one of them.
        let id = sampler.sample(&logits).unwrap();
        assert!(found.iter().any(|token| token.0 == id));
        assert_eq!(sampler.draws(), u64::from(options.temperature != 0.0));
    }
    println!("{close} of 1500 cases were too close to call");
    assert!(close < 300);
}

/// A false alarm has a probability below 1e-9 for each of the 8 sets of options: the statistic's cube
/// root is about normal (Wilson and Hilferty), and 6.5 standard deviations are allowed.
#[test]
fn draws_have_the_right_frequencies() {
    let mut random = Random::new();
    let base = SamplingOptions {
        temperature: 0.8,
        ..SamplingOptions::GREEDY
    };
    let variants = [
        base,
        SamplingOptions {
            temperature: 1.7,
            ..base
        },
        SamplingOptions { top_k: 10, ..base },
        SamplingOptions { top_p: 0.9, ..base },
        SamplingOptions { min_p: 0.05, ..base },
        SamplingOptions {
            repetition_penalty: 1.5,
            ..base
        },
        SamplingOptions {
            top_k: 20,
            top_p: 0.95,
            min_p: 0.02,
            ..base
        },
        SamplingOptions {
            top_p: 0.8,
            repetition_penalty: 1.2,
            ..base
        },
    ];
    for variant in variants {
        let options = SamplingOptions {
            seed: random.bits(),
            ..variant
        };
        let logits: Vec<f32> = (0..200).map(|_| (random.normal() * 1.5) as f32).collect();
        let seen: Vec<u32> = (0..50).map(|_| random.below(200) as u32).collect();
        let Some(expected) = plain(&logits, &seen, &options) else {
            continue;
        };
        let mut sampler = Sampler::new(options).unwrap();
        sampler.observe_all(&seen);
        let draws = 100_000;
        let mut counts = vec![0u32; 200];
        for _ in 0..draws {
            counts[sampler.sample(&logits).unwrap() as usize] += 1;
        }
        assert_eq!(sampler.draws(), draws);
        // Rare tokens go together, so that every expected count is at least 10.
        let (mut statistic, mut cells, mut rare) = (0.0, 0.0, (0.0, 0.0));
        let mut add = |expected: f64, found: f64| {
            statistic += (found - expected) * (found - expected) / expected;
            cells += 1.0;
        };
        for (id, probability) in &expected {
            let pair = (probability * draws as f64, f64::from(counts[*id as usize]));
            if pair.0 >= 10.0 {
                add(pair.0, pair.1);
            } else {
                rare = (rare.0 + pair.0, rare.1 + pair.1);
            }
        }
        if rare.0 >= 10.0 {
            add(rare.0, rare.1);
        }
        let kept: u32 = expected.iter().map(|(id, _)| counts[*id as usize]).sum();
        assert_eq!(
            u64::from(kept),
            draws,
            "a token was drawn that is not kept: {options:?}"
        );
        let freedom: f64 = cells - 1.0;
        let spread = 2.0 / (9.0 * freedom);
        let deviation = ((statistic / freedom).cbrt() - (1.0 - spread)) / spread.sqrt();
        println!(
            "{freedom} degrees of freedom, statistic {statistic:.1}, {deviation:.2} standard deviations"
        );
        assert!(deviation.abs() < 6.5, "{options:?}");
    }
}

/// ChaCha with 8 rounds, written out after its specification: word `2n` and `2n + 1` of the stream for a
/// seed.
fn chacha8(seed: u64, draw: u64) -> u64 {
    let mut input = [0u32; 16];
    input[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    (input[4], input[5]) = (seed as u32, (seed >> 32) as u32);
    let block = draw / 8;
    (input[12], input[13]) = (block as u32, (block >> 32) as u32);
    let mut state = input;
    let mut quarter = |a: usize, b: usize, c: usize, d: usize| {
        for (x, y, z, turn) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
            state[x] = state[x].wrapping_add(state[y]);
            state[z] = (state[z] ^ state[x]).rotate_left(turn);
        }
    };
    for _ in 0..4 {
        (0..4).for_each(|i| quarter(i, 4 + i, 8 + i, 12 + i));
        (0..4).for_each(|i| quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4));
    }
    let word = |index: usize| u64::from(state[index].wrapping_add(input[index]));
    let first = 2 * (draw % 8) as usize;
    word(first) | word(first + 1) << 32
}

#[test]
fn a_seed_replays() {
    let mut random = Random::new();
    for _ in 0..20 {
        let seed = random.bits();
        let options = SamplingOptions {
            temperature: 1.0,
            seed,
            ..SamplingOptions::GREEDY
        };
        let mut sampler = Sampler::new(options).unwrap();
        // Of 4096 equal tokens, the one chosen shows the upper 12 bits of the draw.
        let logits = [0.5f32; 4096];
        let expected = |draw: u64| (chacha8(seed, draw) >> 52) as u32;
        for draw in 0..40 {
            assert_eq!(sampler.sample(&logits).unwrap(), expected(draw));
        }
        let mut clone = sampler.clone();
        let mut resumed = Sampler::resume(options, sampler.draws()).unwrap();
        for draw in 40..60 {
            for sampler in [&mut sampler, &mut clone, &mut resumed] {
                assert_eq!(sampler.sample(&logits).unwrap(), expected(draw));
            }
        }
        let far = 3 << 40;
        assert_eq!(
            Sampler::resume(options, far).unwrap().sample(&logits).unwrap(),
            expected(far)
        );
    }
    // The first words of the published stream for a key of zeros.
    assert_eq!(
        chacha8(0, 0).to_le_bytes(),
        [0x3e, 0x00, 0xef, 0x2f, 0x89, 0x5f, 0x40, 0xd6]
    );
}

#[test]
fn greedy_takes_the_lowest_of_the_highest() {
    let mut sampler = Sampler::new(SamplingOptions::GREEDY).unwrap();
    let mut logits = vec![-1.0f32; 1000];
    for id in [900, 437, 438] {
        logits[id] = 2.5;
    }
    assert_eq!(sampler.sample(&logits).unwrap(), 437);
    assert_eq!(sampler.sample(&[-0.0, 0.0]).unwrap(), 0);
    assert_eq!(sampler.sample(&[f32::NEG_INFINITY, f32::MIN]).unwrap(), 1);

    // The penalty holds for greedy choices, and each id counts once.
    let options = SamplingOptions {
        repetition_penalty: 2.0,
        ..SamplingOptions::GREEDY
    };
    let mut sampler = Sampler::new(options).unwrap();
    sampler.observe_all(&[0, 0, 3, 4_000_000_000]);
    sampler.observe(0);
    assert_eq!(sampler.sample(&[4.0, 1.5, 1.9, 4.2]).unwrap(), 3);
    assert_eq!(sampler.sample(&[-1.0, -1.9, -2.5, -3.0]).unwrap(), 1);
}

#[test]
fn unusable_logits_are_refused() {
    for temperature in [0.0, 1.0] {
        let mut sampler = Sampler::new(SamplingOptions {
            temperature,
            ..SamplingOptions::GREEDY
        })
        .unwrap();
        for (place, value, expected) in [
            (0, f32::NAN, "token 0 is NaN"),
            (70, f32::NAN, "token 70 is NaN"),
            (99, f32::INFINITY, "token 99 is inf"),
        ] {
            let mut logits = vec![1.0; 100];
            logits[place] = value;
            let error = sampler.sample(&logits).unwrap_err();
            assert!(
                matches!(&error, Error::Model(text) if text.contains(expected)),
                "{error}"
            );
        }
        assert!(matches!(sampler.sample(&[]), Err(Error::Model(_))));
        assert!(matches!(
            sampler.sample(&[f32::NEG_INFINITY; 70]),
            Err(Error::Model(_))
        ));
        assert_eq!(sampler.draws(), 0);
    }
    // A penalty that makes a logit infinite.
    let options = SamplingOptions {
        repetition_penalty: 1e-30,
        ..SamplingOptions::GREEDY
    };
    let mut sampler = Sampler::new(options).unwrap();
    sampler.observe(1);
    assert!(matches!(sampler.sample(&[1.0, 1e20]), Err(Error::Model(_))));
}
