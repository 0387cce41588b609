//! Several answers to one text with a real model, and the cache as a user sees it.

#![allow(unsafe_code)] // views are pointers

use std::sync::Arc;

use half::{bf16, f16};
use reasoning_rpc_core::{Aggregation, Budget, Policy, Rpc, RpcOptions};
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::{CacheType, Engine, EngineOptions, Sequence, SequenceOptions};
use reasoning_rpc_test_support::{Random, model, seed};

fn begin(engine: &Engine, prompt: &[u32], sampling: SamplingOptions) -> Sequence {
    let options = RpcOptions {
        interval: 32,
        window: 8,
        budget: Budget::Ratio(4),
        aggregation: Some(Aggregation::KvHead),
        ..RpcOptions::default()
    };
    let policy: Arc<dyn Policy> = Arc::new(Rpc::new(options).unwrap());
    let options = SequenceOptions {
        policy,
        sampling,
        record_kept: true,
    };
    let mut sequence = engine.sequence(options).unwrap();
    sequence.append_tokens(prompt).unwrap();
    while sequence.pending() > 0 {
        engine.step(&mut [&mut sequence]).unwrap();
    }
    sequence
}

fn prompt_of(random: &mut Random, len: usize, vocab: usize) -> Vec<u32> {
    (0..len).map(|_| random.below(vocab) as u32).collect()
}

/// Four answers from one prefill, in one batch: each is what a sequence of its own with that seed writes.
#[test]
fn best_of_four_is_four_answers() {
    let mut random = Random::new(seed());
    let engine = Engine::open(&EngineOptions::new(model("smollm2-int4"))).unwrap();
    let prompt = prompt_of(&mut random, 150, 49152);
    let sampling = SamplingOptions {
        temperature: 0.9,
        top_p: 0.95,
        repetition_penalty: 1.1,
        ..SamplingOptions::GREEDY
    };
    let mut forks = vec![begin(&engine, &prompt, sampling)];
    let one = engine.budget().1;
    for _ in 1..4 {
        forks.push(forks[0].fork().unwrap());
    }
    assert_eq!(engine.budget().1, one, "the prompt is there once");
    for (seed, fork) in (10..).zip(&mut forks) {
        fork.set_seed(seed).unwrap();
        fork.reserve(90).unwrap();
    }
    for _ in 0..90 {
        for fork in &mut forks {
            fork.sample().unwrap();
        }
        engine.step(&mut forks.iter_mut().collect::<Vec<_>>()).unwrap();
    }
    // 2 of 3 blocks of the prompt, for each of 90 KV heads, are still there once.
    let apart: usize = forks.iter().map(|fork| fork.stats().cache_bytes).sum();
    let shared = 3 * 2 * 90 * engine.cache_shape().block_bytes();
    assert_eq!(engine.budget().1, apart - shared);

    for (seed, fork) in (10..).zip(&forks) {
        let mut alone = begin(&engine, &prompt, SamplingOptions { seed, ..sampling });
        for _ in 0..90 {
            alone.sample().unwrap();
            engine.step(&mut [&mut alone]).unwrap();
        }
        assert_eq!(fork.tokens(), alone.tokens(), "seed {seed}");
        assert_eq!(fork.compressions(), alone.compressions());
        assert_eq!(fork.stats().compressions, 2);
    }
    assert!(forks.windows(2).all(|pair| pair[0].tokens() != pair[1].tokens()));
    drop(forks);
    assert_eq!(engine.budget().1, 0);
}

/// A key or value as it lies in the cache, and its scale, if it has one.
type Row = (Vec<u8>, Option<f32>);

/// The keys and values of the first layer.
fn first_layer(cache: CacheType, prompt: &[u32]) -> Vec<Row> {
    let options = EngineOptions {
        cache_type: Some(cache),
        block_entries: 16,
        ..EngineOptions::new(model("golden/llama_p48_c8-cached"))
    };
    let engine = Engine::open(&options).unwrap();
    let sequence = begin(&engine, prompt, SamplingOptions::GREEDY);
    let mut all = Vec::new();
    for kv_head in 0..engine.cache_shape().kv_heads {
        let view = sequence.cache_view(0, kv_head).unwrap();
        assert_eq!((view.len, view.block_entries, view.cache_type), (100, 16, cache));
        assert_eq!(view.blocks.len(), 7);
        for entry in 0..view.len {
            let block = view.blocks[entry / 16] as usize * view.block_stride;
            for (base, scales) in [(view.keys, view.key_scales), (view.values, view.value_scales)] {
                assert_eq!(scales.is_null(), cache != CacheType::I8);
                // SAFETY: a valid entry of `head_dim` elements, while the sequence is borrowed; so is its scale.
                unsafe {
                    let at = base.add(block + entry % 16 * view.entry_stride);
                    let bytes = std::slice::from_raw_parts(at, view.head_dim * cache.bytes());
                    let scale = (!scales.is_null()).then(|| scales.byte_add(block).add(entry % 16).read());
                    all.push((bytes.to_vec(), scale));
                }
            }
            // SAFETY: as above.
            let position = unsafe { view.positions.byte_add(block).add(entry % 16).read() };
            assert_eq!(position, entry as u32);
        }
    }
    all
}

/// Keys and values of the first layer do not depend on the cache: in other types they are those of fp32,
/// rounded.
#[test]
fn a_view_of_any_type_is_the_view_of_fp32_rounded() {
    let mut random = Random::new(seed());
    let prompt = prompt_of(&mut random, 100, 96);
    let exact: Vec<Vec<f32>> = first_layer(CacheType::F32, &prompt)
        .iter()
        .map(|(bytes, _)| {
            bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|&x| f32::from_le_bytes(x))
                .collect()
        })
        .collect();
    assert!(exact.iter().flatten().any(|&x| x != 0.0));
    for cache in [CacheType::F16, CacheType::Bf16, CacheType::I8] {
        for (row, found) in exact.iter().zip(first_layer(cache, &prompt)) {
            let step = row.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
            let expected: Vec<u8> = match cache {
                CacheType::F16 => row.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
                CacheType::Bf16 => row
                    .iter()
                    .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
                    .collect(),
                _ => row
                    .iter()
                    .map(|&x| (x / step).round_ties_even() as i8 as u8)
                    .collect(),
            };
            let scale = (cache == CacheType::I8).then_some(step);
            assert_eq!(found, (expected, scale), "{cache:?}");
        }
    }
}
