//! Several answers to one text with a real model, and the cache as a user sees it.

#![allow(unsafe_code)] // views are pointers

use std::sync::Arc;

use half::f16;
use reasoning_rpc_core::{Aggregation, Budget, Policy, Rpc, RpcOptions};
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::{CacheType, Engine, EngineOptions, Sequence, SequenceOptions};
use reasoning_rpc_test_support::{Random, model, seed};

fn begin(engine: &Engine, prompt: &[u32], sampling: SamplingOptions) -> Sequence {
    let options = RpcOptions {
        interval: 32,
        window: 8,
        budget: Budget::Ratio(4),
        aggregation: Aggregation::KvHead,
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

/// Keys and values of the first layer do not depend on the cache: in fp16 they are those of fp32, rounded.
#[test]
fn a_view_of_fp16_is_the_view_of_fp32_rounded() {
    let mut random = Random::new(seed());
    let prompt = prompt_of(&mut random, 100, 96);
    let read = |cache: CacheType| -> Vec<u16> {
        let options = EngineOptions {
            cache_type: Some(cache),
            block_entries: 16,
            ..EngineOptions::new(model("golden/llama_p48_c8-cached"))
        };
        let engine = Engine::open(&options).unwrap();
        let sequence = begin(&engine, &prompt, SamplingOptions::GREEDY);
        let mut all = Vec::new();
        for kv_head in 0..engine.cache_shape().kv_heads {
            let view = sequence.cache_view(0, kv_head).unwrap();
            assert_eq!((view.len, view.block_entries, view.cache_type), (100, 16, cache));
            assert_eq!(view.blocks.len(), 7);
            for (entry, base) in (0..view.len).flat_map(|entry| [(entry, view.keys), (entry, view.values)]) {
                let block = view.blocks[entry / 16] as usize * view.block_stride;
                // SAFETY: a valid entry of `head_dim` elements, while the sequence is borrowed.
                unsafe {
                    let at = base.add(block + entry % 16 * view.entry_stride);
                    all.extend((0..view.head_dim).map(|i| match cache {
                        CacheType::F32 => f16::from_f32(at.cast::<f32>().add(i).read()).to_bits(),
                        CacheType::F16 => at.cast::<u16>().add(i).read(),
                    }));
                    let position = view.positions.byte_add(block).add(entry % 16);
                    assert_eq!(position.read(), entry as u32);
                }
            }
        }
        all
    };
    let (half, single) = (read(CacheType::F16), read(CacheType::F32));
    assert!(half.iter().any(|&bits| bits != 0));
    assert_eq!(half, single);
}
