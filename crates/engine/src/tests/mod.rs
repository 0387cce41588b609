//! Tests that look into caches and steps. What a user can see is tested from outside, in ../tests.

mod caches;
mod steps;

use std::sync::Arc;

use reasoning_rpc_core::{Aggregation, NoCompression, Policy, Rpc, RpcOptions};
use reasoning_rpc_test_support::{Random, model};

use crate::sampling::SamplingOptions;
use crate::{CacheType, Engine, EngineOptions, Sequence, SequenceOptions};

/// A tiny model: 3 layers, 4 query and 2 KV heads of 16 elements, 96 tokens, context 4096.
fn tiny(change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let mut options = EngineOptions {
        cache_type: Some(CacheType::F32),
        block_entries: 16,
        ..EngineOptions::new(model("golden/qwen2_p32-cached"))
    };
    change(&mut options);
    Engine::open(&options).unwrap()
}

fn rpc(interval: usize, window: usize, ratio: usize, aggregation: Aggregation) -> Arc<dyn Policy> {
    let options = RpcOptions {
        interval,
        window,
        ratio,
        aggregation,
        ..RpcOptions::default()
    };
    Arc::new(Rpc::new(options).unwrap())
}

fn none() -> Arc<dyn Policy> {
    Arc::new(NoCompression)
}

fn start(engine: &Engine, policy: Arc<dyn Policy>, prompt: &[u32]) -> Sequence {
    let mut sequence = engine
        .sequence(SequenceOptions {
            policy,
            sampling: SamplingOptions::GREEDY,
            record_kept: true,
        })
        .unwrap();
    sequence.append_tokens(prompt).unwrap();
    sequence
}

fn run_pending(engine: &Engine, sequence: &mut Sequence) {
    while sequence.pending() > 0 {
        engine.step(&mut [&mut *sequence]).unwrap();
    }
}

/// Samples `count` tokens; the last one is not run.
fn write(engine: &Engine, sequence: &mut Sequence, count: usize) -> Vec<u32> {
    (0..count)
        .map(|_| {
            run_pending(engine, sequence);
            sequence.sample().unwrap()
        })
        .collect()
}

fn prompt(random: &mut Random, len: usize) -> Vec<u32> {
    (0..len).map(|_| random.below(96) as u32).collect()
}
