//! Tiny models whose every logit, token and kept entry an independent implementation wrote down.

use std::collections::BTreeMap;
use std::sync::Arc;

use reasoning_rpc_core::{Aggregation, Budget, NoCompression, Policy, Pooling, Rpc, RpcOptions};
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::{CacheType, Engine, EngineOptions, SequenceOptions};
use reasoning_rpc_test_support::{Tensors, golden, integers, json, model};
use serde_json::Value;

/// The golden logits and ours are both float32 of logits up to 18.5. Against a float64 evaluation of the
/// same models the golden logits are off by up to 1.05e-4 and a plain numpy float32 evaluation by up
/// to 2.23e-4, nearly all of it from the matrix products' rounding; two such evaluations may differ
/// by the sum.
const LOGIT_TOLERANCE: f32 = 3.3e-4;
const MODELS: [&str; 3] = ["qwen2_p32", "llama_p48_c8", "qwen2_group_p64_c2"];

fn rpc_of(expected: &Value) -> Arc<dyn Policy> {
    let number = |name: &str| expected[name].as_u64().unwrap() as usize;
    let options = RpcOptions {
        interval: number("P"),
        window: number("R"),
        budget: Budget::Ratio(number("c")),
        aggregation: Some(match expected["aggregation"].as_str().unwrap() {
            "all" => Aggregation::Layer,
            "group" => Aggregation::KvHead,
            other => panic!("{other}"),
        }),
        pooling: match expected["pooling"].as_str().unwrap() {
            "avgpool" => Pooling::Average,
            "maxpool" => Pooling::Max,
            other => panic!("{other}"),
        },
        kernel: number("kernel_size"),
        ..RpcOptions::default()
    };
    Arc::new(Rpc::new(options).unwrap())
}

fn run(name: &str, flavour: &str, mode: &str, policy: &dyn Fn(&Value) -> Arc<dyn Policy>) {
    let folder = golden(&format!("generation/{name}"));
    let expected = json(&folder.join("expected.json"));
    let logits = Tensors::read(&folder.join("logits.safetensors"))
        .get(&format!("logits_{mode}"))
        .f32();
    let engine = Engine::open(&EngineOptions {
        cache_type: Some(CacheType::F32),
        block_entries: 16,
        ..EngineOptions::new(model(&format!("golden/{name}-{flavour}")))
    })
    .unwrap();
    let mut sequence = engine
        .sequence(SequenceOptions {
            policy: policy(&expected),
            sampling: SamplingOptions::GREEDY,
            record_kept: true,
        })
        .unwrap();
    let prompt = integers(&expected["prompt"]);
    sequence.append_tokens(&prompt).unwrap();
    let result = &expected["results"][mode];
    let tokens = integers(&result["tokens"]);
    let vocab = logits.len() / tokens.len();
    let mut worst = 0.0f32;
    for (step, token) in tokens.iter().enumerate() {
        while sequence.pending() > 0 {
            engine.step(&mut [&mut sequence]).unwrap();
        }
        let row = &logits[step * vocab..(step + 1) * vocab];
        for (found, expected) in sequence.logits().unwrap().iter().zip(row) {
            let error = (found - expected).abs();
            assert!(
                error <= LOGIT_TOLERANCE,
                "{name} {flavour} {mode} step {step}: {found} for {expected}"
            );
            worst = worst.max(error);
        }
        assert_eq!(
            sequence.sample().unwrap(),
            *token,
            "{name} {flavour} {mode} step {step}"
        );
    }
    eprintln!("{name} {flavour} {mode}: largest logit error {worst:e}");
    let compressions = result["compressions"].as_array().unwrap();
    assert_eq!(sequence.compressions().len(), compressions.len());
    let mut past: BTreeMap<(usize, usize), (Vec<u32>, u32)> = BTreeMap::new();
    let window = expected["R"].as_u64().unwrap() as usize;
    for (record, expected) in sequence.compressions().iter().zip(compressions) {
        assert_eq!(record.layer as u64, expected["layer"].as_u64().unwrap());
        assert_eq!(
            record.len_before as u64,
            expected["cache_len_before"].as_u64().unwrap()
        );
        assert_eq!(
            record.len_after as u64,
            expected["cache_len_after"].as_u64().unwrap()
        );
        // Golden sets count candidates, ours are text positions. Candidates are what was kept
        // before, then what has left the window since.
        let window_start = (prompt.len() + record.at_token - window) as u32;
        for (set, kept) in expected["kept"].as_array().unwrap().iter().enumerate() {
            let (candidates, fresh) = past
                .entry((record.layer, set))
                .or_insert((Vec::new(), prompt.len() as u32));
            candidates.extend(*fresh..window_start);
            let positions: Vec<u32> = integers(kept)
                .iter()
                .map(|&index| candidates[index as usize])
                .collect();
            assert_eq!(
                record.kept[set], positions,
                "{name} {flavour} layer {} at {}",
                record.layer, record.at_token
            );
            (*candidates, *fresh) = (positions, window_start);
        }
    }
}

fn none(_: &Value) -> Arc<dyn Policy> {
    Arc::new(NoCompression)
}

#[test]
fn full_cache() {
    for name in MODELS {
        run(name, "cached", "full", &none);
        run(name, "portable", "full", &none);
    }
}

#[test]
fn compressed_cache() {
    for name in MODELS {
        run(name, "cached", "rpc", &rpc_of);
        run(name, "portable", "rpc", &rpc_of);
    }
}
