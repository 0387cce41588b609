//! Tests that look into caches and steps. What a user can see is tested from outside, in ../tests.

#![allow(unsafe_code)] // views are pointers

mod caches;
mod evictions;
mod forks;
mod formulas;
mod operator;
mod policies;
mod queries;
mod retention;
mod rewinds;
#[cfg(not(feature = "shuttle"))]
mod scheduler;
mod steps;
#[cfg(not(feature = "shuttle"))]
mod thoughts;
mod weights;

use std::sync::Arc;

use reasoning_rpc_core::{Aggregation, Budget, NoCompression, Policy, Rpc, RpcOptions};
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
        budget: Budget::Ratio(ratio),
        aggregation: Some(aggregation),
        ..RpcOptions::default()
    };
    Arc::new(Rpc::new(options).unwrap())
}

/// rpc that keeps `entries`.
fn fixed(interval: usize, window: usize, entries: usize) -> Arc<dyn Policy> {
    let options = RpcOptions {
        interval,
        window,
        budget: Budget::Entries(entries),
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

/// Keys, values (each with its scale behind it, if it has one) and positions of every layer and KV head,
/// byte for byte, through the view.
fn contents(sequence: &Sequence) -> Vec<(Vec<u8>, Vec<u8>, Vec<u32>)> {
    let shape = *sequence.cache.as_ref().unwrap().shape();
    let mut all = Vec::new();
    for (layer, kv_head) in (0..shape.layers).flat_map(|l| (0..shape.kv_heads).map(move |h| (l, h))) {
        let view = sequence.cache_view(layer, kv_head).unwrap();
        let (mut keys, mut values, mut positions) = (Vec::new(), Vec::new(), Vec::new());
        for entry in 0..view.len {
            let block = view.blocks[entry / view.block_entries] as usize * view.block_stride;
            let at = block + entry % view.block_entries * view.entry_stride;
            // SAFETY: the view of a valid entry, while the sequence is borrowed.
            unsafe {
                keys.extend(std::slice::from_raw_parts(view.keys.add(at), view.entry_stride));
                values.extend(std::slice::from_raw_parts(view.values.add(at), view.entry_stride));
                for (scales, to) in [(view.key_scales, &mut keys), (view.value_scales, &mut values)] {
                    if !scales.is_null() {
                        let scale = scales.byte_add(block).add(entry % view.block_entries);
                        to.extend(scale.read().to_le_bytes());
                    }
                }
                let position = view.positions.byte_add(block).add(entry % view.block_entries);
                positions.push(position.read());
            }
        }
        all.push((keys, values, positions));
    }
    all
}

/// Tokens and the log of compressions: what two runs of one text must agree on.
fn outcome(sequence: &Sequence) -> (Vec<u32>, Vec<crate::CompressionRecord>) {
    (sequence.tokens().to_vec(), sequence.compressions().to_vec())
}

fn logits(sequence: &Sequence) -> Vec<u32> {
    let logits = sequence.logits().unwrap();
    logits.iter().map(|x| x.to_bits()).collect()
}

fn prompt(random: &mut Random, len: usize) -> Vec<u32> {
    (0..len).map(|_| random.below(96) as u32).collect()
}

/// 1 to `most` tokens.
fn prompt_up_to(random: &mut Random, most: usize) -> Vec<u32> {
    let len = 1 + random.below(most);
    prompt(random, len)
}
