//! How long one choice takes, for a vocabulary of 151,936 tokens: medians of 30.
//!
//! `cargo run --release -p reasoning-rpc-engine --example sampling_time`

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::Instant;

use reasoning_rpc_engine::sampling::{Sampler, SamplingOptions};
use reasoning_rpc_test_support::{Random, seed};

/// About a standard normal number: the sum of twelve uniform ones.
fn normal(random: &mut Random) -> f32 {
    (0..12).map(|_| random.number()).sum::<f32>() / 2.0
}

fn main() {
    let mut random = Random::new(seed());
    let size = 151_936;
    let spread = |random: &mut Random, spread: f32| -> Vec<f32> {
        (0..size).map(|_| normal(random) * spread).collect()
    };
    let mut peaked = spread(&mut random, 2.5);
    for top in 0..8 {
        peaked[random.below(size)] = 22.0 - top as f32;
    }
    let shapes = [
        ("peaked", peaked),
        ("wide", spread(&mut random, 2.5)),
        ("flat", spread(&mut random, 0.3)),
    ];
    let base = SamplingOptions {
        temperature: 0.6,
        ..SamplingOptions::GREEDY
    };
    for (name, options) in [
        ("greedy", SamplingOptions::GREEDY),
        ("temperature", base),
        ("top-p 0.95", SamplingOptions { top_p: 0.95, ..base }),
        ("top-k 20", SamplingOptions { top_k: 20, ..base }),
        ("top-k 1000", SamplingOptions { top_k: 1000, ..base }),
        (
            "top-k 20, top-p 0.95",
            SamplingOptions {
                top_k: 20,
                top_p: 0.95,
                ..base
            },
        ),
        ("min-p 0.05", SamplingOptions { min_p: 0.05, ..base }),
        (
            "top-p 0.95, penalty",
            SamplingOptions {
                top_p: 0.95,
                repetition_penalty: 1.1,
                ..base
            },
        ),
    ] {
        let mut line = format!("{name:22}");
        for (shape, logits) in &shapes {
            let mut sampler = Sampler::new(options).unwrap();
            let seen: Vec<u32> = (0..8192).map(|_| random.below(size) as u32).collect();
            sampler.observe_all(&seen);
            let mut times: Vec<f64> = (0..30)
                .map(|_| {
                    let start = Instant::now();
                    sampler.sample(logits).unwrap();
                    start.elapsed().as_secs_f64() * 1e6
                })
                .collect();
            times.sort_unstable_by(f64::total_cmp);
            line += &format!("  {shape} {:7.0} us", times[15]);
        }
        println!("{line}");
    }
}
