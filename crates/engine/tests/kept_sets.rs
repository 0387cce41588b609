//! What a rounded cache may keep in place of what an exact one keeps: only what scored as good as equally.

use std::sync::{Arc, Mutex};

use reasoning_rpc_core::{
    Aggregation, Budget, LayerPlan, LayerView, PlanError, Policy, Rpc, RpcOptions, Spec,
};
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::{CacheType, Engine, EngineOptions, SequenceOptions};
use reasoning_rpc_test_support::{golden, integers, json, model};
use serde_json::Value;

const WINDOW: usize = 8;
const KERNEL: usize = 7;
/// Float32 arithmetic: a few hundred roundings of 2^-24, relative to what is summed.
const FLOAT: f64 = 3e-5;

/// What the first compression saw of the first layer, and kept.
#[derive(Default, Clone)]
struct Seen {
    /// Of the candidates of each KV head.
    scores: Vec<f32>,
    keys: Vec<f32>,
    queries: Vec<f32>,
    /// One set for each KV head.
    kept: Vec<Vec<u32>>,
}

/// RPC, watched.
struct Watched {
    rpc: Rpc,
    seen: Mutex<Option<Seen>>,
}

impl Policy for Watched {
    fn name(&self) -> &str {
        "watched"
    }

    fn spec(&self) -> Spec {
        Spec {
            keys: true,
            queries: true,
            ..self.rpc.spec()
        }
    }

    fn peak_generated(&self, generated: usize) -> usize {
        self.rpc.peak_generated(generated)
    }

    fn plan(&self, view: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError> {
        self.rpc.plan(view, plan)?;
        if (view.done, view.layer) == (0, 0) {
            *self.seen.lock().unwrap() = Some(Seen {
                scores: view.scores.to_vec(),
                keys: view.keys.to_vec(),
                queries: view.queries.to_vec(),
                kept: (0..plan.sets()).map(|set| plan.set(set).to_vec()).collect(),
            });
        }
        Ok(())
    }
}

/// The first compression of the golden text's first tokens, whatever the cache would have said.
fn first_compression(file: &Value, cache: CacheType) -> Seen {
    let engine = Engine::open(&EngineOptions {
        cache_type: Some(cache),
        ..EngineOptions::new(model("smollm2-int8"))
    })
    .unwrap();
    let options = RpcOptions {
        interval: 96,
        window: WINDOW,
        budget: Budget::Ratio(4),
        aggregation: Some(Aggregation::KvHead),
        kernel: KERNEL,
        ..RpcOptions::default()
    };
    let watched = Arc::new(Watched {
        rpc: Rpc::new(options).unwrap(),
        seen: Mutex::default(),
    });
    let mut sequence = engine
        .sequence(SequenceOptions {
            policy: Arc::clone(&watched) as _,
            sampling: SamplingOptions::GREEDY,
            record_kept: false,
        })
        .unwrap();
    sequence.append_tokens(&integers(&file["prompt"])).unwrap();
    for token in integers(&file["forced"]).into_iter().take(96 + WINDOW) {
        sequence.accept(token).unwrap();
    }
    while sequence.pending() > 0 {
        engine.step(&mut [&mut sequence]).unwrap();
    }
    assert_eq!(sequence.stats().compressions, 1);
    watched.seen.lock().unwrap().clone().unwrap()
}

fn pooled(scores: &[f32]) -> Vec<f64> {
    let half = KERNEL / 2;
    (0..scores.len())
        .map(|i| {
            let near = &scores[i.saturating_sub(half)..(i + half + 1).min(scores.len())];
            near.iter().copied().map(f64::from).sum::<f64>() / KERNEL as f64
        })
        .collect()
}

/// Queries of the first layer do not depend on the cache, and its keys are those of fp32, rounded. So a logit
/// is off by at most e = scale * sum |q_d| * (half a step of k_d), a weight of a softmax by a factor within
/// exp(-2 e) and exp(2 e), and a score, a sum of such weights, and a mean of scores, too.
#[test]
fn a_rounded_cache_keeps_what_the_exact_one_keeps_but_for_near_ties() {
    let file = json(&golden("smollm2/forced_group/expected.json"));
    let exact = first_compression(&file, CacheType::F32);
    let heads = exact.kept.len();
    let candidates = exact.scores.len() / heads;
    let head_dim = exact.keys.len() / exact.scores.len();
    let scale = 1.0 / (head_dim as f64).sqrt();
    for cache in [CacheType::F16, CacheType::Bf16, CacheType::I8] {
        let found = first_compression(&file, cache);
        assert_eq!(found.queries, exact.queries, "{cache:?}");
        let (mut swapped, mut kept) = (0, 0);
        for head in 0..heads {
            let own = head * candidates..(head + 1) * candidates;
            let keys = &exact.keys[own.start * head_dim..own.end * head_dim];
            let queries = exact
                .queries
                .chunks_exact(exact.queries.len() / heads)
                .nth(head)
                .unwrap();
            let mut logit_error = 0.0f64;
            for key in keys.chunks_exact(head_dim) {
                let most = key.iter().fold(0.0f64, |most, &x| most.max(f64::from(x).abs()));
                let half_step = |x: f32| match cache {
                    CacheType::I8 => most / 127.0 / 2.0,
                    CacheType::Bf16 => f64::from(x).abs() * 2f64.powi(-8),
                    _ => f64::from(x).abs() * 2f64.powi(-11) + 2f64.powi(-25),
                };
                for query in queries.chunks_exact(head_dim) {
                    let off: f64 = key
                        .iter()
                        .zip(query)
                        .map(|(&k, &q)| half_step(k) * f64::from(q).abs())
                        .sum();
                    logit_error = logit_error.max(scale * off);
                }
            }
            let factor = (2.0 * logit_error + FLOAT).exp();
            let (before, after) = (&exact.scores[own.clone()], &found.scores[own]);
            for (&before, &after) in before.iter().zip(after) {
                let (before, after) = (f64::from(before), f64::from(after));
                assert!(
                    after <= before * factor && before <= after * factor,
                    "{cache:?}: score {after} for {before}, factor {factor}"
                );
            }
            // What is kept in place of another scores no less than it would, were both off by the factor.
            let scores = pooled(before);
            let (wanted, kept_here) = (&exact.kept[head], &found.kept[head]);
            assert_eq!(wanted.len(), kept_here.len());
            let missing = wanted.iter().filter(|entry| !kept_here.contains(entry));
            let best = missing.map(|&entry| scores[entry as usize]).fold(0.0, f64::max);
            for &entry in kept_here.iter().filter(|entry| !wanted.contains(entry)) {
                swapped += 1;
                assert!(
                    scores[entry as usize] * factor * factor >= best,
                    "{cache:?}: entry {entry}"
                );
            }
            kept += wanted.len();
        }
        eprintln!("{cache:?}: {swapped} of {kept} kept entries of the first layer are others");
    }
}
