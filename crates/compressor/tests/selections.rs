//! Selections of the library that are not Reasoning Path Compression.
#![allow(unsafe_code)]

mod common;

use common::*;
use reasoning_rpc_compressor::*;
use reasoning_rpc_core::{Budget, RpcOptions};
use reasoning_rpc_test_support::{Random, seed};

const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const WINDOW: usize = 3;
const KEPT: usize = 9;
/// Length, prompt, compressions before. The first has more candidates than stay, the second fewer, the third none.
const SEQUENCES: [[i32; 3]; 3] = [[70, 9, 1], [13, 4, 0], [3, 1, 0]];

fn compressor(selection: Selection, dtype: Dtype) -> Compressor {
    let rpc = RpcOptions {
        interval: 12,
        window: WINDOW,
        budget: Budget::Entries(KEPT),
        ..RpcOptions::default()
    };
    let mut options = options(HEADS, KV_HEADS, HEAD_DIM, dtype, rpc);
    options.selection = selection;
    Compressor::new(&options).unwrap()
}

fn kept_sets(compressor: &Compressor, host: &Host, queries: &[f32]) -> Vec<Vec<u32>> {
    let mut memory = Memory::new(compressor, &host.batch());
    let mut host = host.clone();
    let layer = host.layer(0);
    let window = ring(queries, HEADS, HEAD_DIM, WINDOW, None);
    // SAFETY: the host's memory is what it says; it is changed, and then dropped.
    let plan = unsafe { compressor.compress(&layer, &host.batch(), &window, memory.workspace()) }.unwrap();
    let mut rest = plan.kept;
    let sets = plan
        .kept_counts
        .iter()
        .flat_map(|&count| [count; KV_HEADS])
        .map(|count| {
            let (set, tail) = rest.split_at(count as usize);
            rest = tail;
            set.to_vec()
        });
    assert_eq!(plan.sets, KV_HEADS as u32);
    let sets = sets.collect();
    host.adopt(&plan);
    sets
}

/// The attention of the window's queries over all entries that they see, in float64, averaged over 7.
fn attention(host: &Host, queries: &[f32], sequence: usize, kv_head: usize) -> Vec<f64> {
    let [length, prompt, _] = SEQUENCES[sequence].map(|number| number as usize);
    let keys: Vec<Vec<f32>> = (0..length)
        .map(|entry| numbers(Dtype::F32, &host.get(0, [sequence, kv_head, entry])))
        .collect();
    let mut sums = vec![0.0f64; length];
    for token in 0..WINDOW {
        for head in 3 * kv_head..3 * kv_head + 3 {
            let query = &queries[((sequence * WINDOW + token) * HEADS + head) * HEAD_DIM..][..HEAD_DIM];
            let visible = length - WINDOW + token + 1;
            let weights: Vec<f64> = keys[..visible]
                .iter()
                .map(|key| {
                    let products = query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k));
                    (products.sum::<f64>() / (HEAD_DIM as f64).sqrt()).exp()
                })
                .collect();
            let sum: f64 = weights.iter().sum();
            sums.iter_mut()
                .zip(weights)
                .for_each(|(total, weight)| *total += weight / sum / 3.0);
        }
    }
    let candidates = &sums[prompt..length - WINDOW];
    (0..candidates.len() as i64)
        .map(|i| {
            let near = (i - 3..=i + 3).filter_map(|j| candidates.get(usize::try_from(j).ok()?));
            near.sum::<f64>() / 7.0
        })
        .collect()
}

#[test]
fn snapkv_keeps_what_the_window_looks_at() {
    let mut random = Random::new(seed());
    let compressor = compressor(Selection::SnapKv, Dtype::F32);
    for place in PLACES {
        let mut host = Host::new(place, (KV_HEADS, HEAD_DIM, Dtype::F32), &SEQUENCES, &mut random);
        host.fill(&mut random);
        let queries = random_numbers(&mut random, 3 * WINDOW * HEADS * HEAD_DIM);
        let found = kept_sets(&compressor, &host, &queries);
        for (index, kept) in found.iter().enumerate().take(4) {
            let scores = attention(&host, &queries, index / KV_HEADS, index % KV_HEADS);
            let mut order: Vec<u32> = (0..scores.len() as u32).collect();
            order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
            order.truncate(KEPT);
            assert_eq!(kept.len(), order.len());
            // float32 may swap what is as good as equal.
            let worst = scores[*order.last().unwrap() as usize];
            assert!(
                kept.iter().all(|&i| scores[i as usize] >= worst - 1e-6),
                "{place:?} {index}"
            );
        }
        assert!(found[4].is_empty() && found[5].is_empty());
    }
}

#[test]
fn streaming_keeps_the_first_four_and_the_most_recent() {
    let mut random = Random::new(seed());
    let compressor = compressor(Selection::Streaming, Dtype::F16);
    let mut host = Host::new(
        PLACES[0],
        (KV_HEADS, HEAD_DIM, Dtype::F16),
        &SEQUENCES,
        &mut random,
    );
    host.fill(&mut random);
    let queries = vec![f32::NAN; 3 * WINDOW * HEADS * HEAD_DIM];
    // 70 - 9 - 3 = 58 candidates.
    let first: Vec<u32> = (0..4).chain(53..58).collect();
    let all: Vec<u32> = (0..6).collect();
    let found = kept_sets(&compressor, &host, &queries);
    assert_eq!(found, [first.clone(), first, all.clone(), all, vec![], vec![]]);
}

#[test]
fn random_draws_do_not_depend_on_the_batch() {
    let mut random = Random::new(seed());
    let seeded = |seed| compressor(Selection::Random { seed }, Dtype::I8);
    let mut host = Host::new(
        PLACES[1],
        (KV_HEADS, HEAD_DIM, Dtype::I8),
        &SEQUENCES,
        &mut random,
    );
    host.fill(&mut random);
    let queries = vec![0.0; 3 * WINDOW * HEADS * HEAD_DIM];
    let found = kept_sets(&seeded(5), &host, &queries);
    assert_eq!(found[0].len(), KEPT);
    assert_ne!(found[0], found[1], "KV heads draw alike");
    assert_eq!(found, kept_sets(&seeded(5), &host, &queries));
    assert_ne!(found[0], kept_sets(&seeded(6), &host, &queries)[0]);
    let mut alone = Host::new(
        PLACES[0],
        (KV_HEADS, HEAD_DIM, Dtype::I8),
        &SEQUENCES[..1],
        &mut random,
    );
    alone.fill(&mut random);
    assert_eq!(found[..2], kept_sets(&seeded(5), &alone, &queries));
}

#[test]
fn compressions_that_would_drop_nothing_are_not_due() {
    // 9 entries fit no interval of 12, 30 fit two.
    let rpc = |entries| RpcOptions {
        interval: 12,
        window: WINDOW,
        budget: Budget::Entries(entries),
        ..RpcOptions::default()
    };
    for (entries, due) in [(9, [15, 27]), (30, [39, 51])] {
        let compressor =
            Compressor::new(&options(HEADS, KV_HEADS, HEAD_DIM, Dtype::F32, rpc(entries))).unwrap();
        for (done, at) in due.into_iter().enumerate() {
            assert!(!compressor.due(at - 1, done as u64));
            assert!(compressor.due(at, done as u64));
        }
        assert!(!compressor.due(1 << 40, u64::MAX));
    }
}
