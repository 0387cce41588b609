//! What a decode step costs more while queries are asked as they attend (`--queries online`), beside the same step that
//! stores them: two sequences of one text take steps in turns.
//!
//! Usage: lookahead MODEL_FOLDER THREADS CACHE_TYPE ENTRIES...

use std::time::Instant;

use reasoning_rpc_engine::core::{Budget, PolicyKind, Queries, RpcOptions};
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::{CacheType, Engine, EngineOptions, Sequence, SequenceOptions};

const STEPS: usize = 60;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, threads, cache_type, entries @ ..] = &arguments[..] else {
        eprintln!("usage: lookahead MODEL_FOLDER THREADS CACHE_TYPE ENTRIES...");
        std::process::exit(2);
    };
    let types = [CacheType::F32, CacheType::F16, CacheType::Bf16, CacheType::I8];
    let mut options = EngineOptions::new(folder);
    options.cache_type = types.into_iter().find(|of| of.name() == cache_type);
    options.threads = threads.parse().expect("a number of threads");
    options.verify_weights = false;
    options.budget = Some(4 << 30);
    let engine = Engine::open(&options).expect("a model");
    let vocab = engine.model().manifest().dimensions.vocab_size as u32;
    for entries in entries {
        let entries: u32 = entries.parse().expect("a number of entries");
        let text: Vec<u32> = (0..entries)
            .map(|i| i.wrapping_mul(2_654_435_761) % vocab.min(4000))
            .collect();
        for kind in [PolicyKind::Lookahead, PolicyKind::LookaheadMerge] {
            let mut sequences = [Queries::Stored, Queries::Online].map(|queries| {
                let policy = kind.build(RpcOptions {
                    interval: 1024,
                    window: 1,
                    budget: Budget::Ratio(4),
                    queries,
                    ..RpcOptions::default()
                });
                let mut sequence = engine
                    .sequence(SequenceOptions {
                        policy: policy.expect("a policy"),
                        sampling: SamplingOptions::GREEDY,
                        record_kept: false,
                    })
                    .expect("a sequence");
                sequence.append_tokens(&text).expect("a text");
                sequence
            });
            for sequence in &mut sequences {
                advance(&engine, sequence);
                sequence.sample().expect("a token");
                advance(&engine, sequence);
            }
            let mut times = [Vec::new(), Vec::new()];
            for _ in 0..STEPS {
                for (sequence, times) in sequences.iter_mut().zip(&mut times) {
                    sequence.sample().expect("a token");
                    let start = Instant::now();
                    advance(&engine, sequence);
                    times.push(start.elapsed().as_secs_f64() * 1e3);
                }
            }
            let [stored, online] = times.map(|mut times| {
                times.sort_by(f64::total_cmp);
                times[times.len() / 2]
            });
            println!(
                "{} {cache_type} {entries} entries: a step {stored:.2} ms stored, {online:.2} ms online, ratio {:.3}",
                kind.name(),
                online / stored
            );
        }
    }
}

fn advance(engine: &Engine, sequence: &mut Sequence) {
    while sequence.pending() > 0 {
        engine.step(&mut [&mut *sequence]).expect("a step");
    }
}
