//! What a decode step costs more while its policy asks: sequences of one text, one of each policy, take steps in turns.
//!
//! Usage: lookahead MODEL_FOLDER THREADS CACHE_TYPE ENTRIES...
//!
//! `online` is `--queries online`. Of each policy the median of the steps, and that of the means of rounds of steps, which have what
//! is done once in a round in them; both beside those of `none`.
use std::time::Instant;

use reasoning_rpc_engine::core::{Budget, PolicyKind, Queries, RpcOptions, Spec};
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::{CacheType, Engine, EngineOptions, Sequence, SequenceOptions};

const WINDOW: usize = 32;
const ROUNDS: usize = 6;
/// A whole number of turns in which moments are added up.
const ROUND: usize = Spec::MOMENT_TOKENS;

const POLICIES: [(&str, PolicyKind, Queries); 7] = [
    ("none", PolicyKind::None, Queries::Stored),
    ("rpc", PolicyKind::Rpc, Queries::Stored),
    ("h2o", PolicyKind::H2o, Queries::Stored),
    ("lookahead", PolicyKind::Lookahead, Queries::Stored),
    ("lookahead online", PolicyKind::Lookahead, Queries::Online),
    ("lookahead-merge", PolicyKind::LookaheadMerge, Queries::Stored),
    (
        "lookahead-merge online",
        PolicyKind::LookaheadMerge,
        Queries::Online,
    ),
];

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
        let mut sequences = POLICIES.map(|(_, kind, queries)| {
            let policy = kind.build(RpcOptions {
                interval: 1024,
                window: WINDOW,
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
            advance(&engine, &mut sequence);
            // Those that ask do so once the window is full.
            for _ in 0..WINDOW + 1 {
                sequence.sample().expect("a token");
                advance(&engine, &mut sequence);
            }
            sequence
        });
        let mut times = POLICIES.map(|_| Vec::new());
        for _ in 0..ROUNDS * ROUND {
            for (sequence, times) in sequences.iter_mut().zip(&mut times) {
                sequence.sample().expect("a token");
                let start = Instant::now();
                advance(&engine, sequence);
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        let figures = times.map(|times| {
            let rounds = times.chunks_exact(ROUND);
            let means = rounds
                .map(|round| round.iter().sum::<f64>() / ROUND as f64)
                .collect();
            [median(times), median(means)]
        });
        println!("{cache_type}, {entries} entries, {threads} threads: a step, and the mean of a round");
        for ((name, ..), of) in POLICIES.iter().zip(figures) {
            let [median, mean] = [0, 1].map(|i| of[i] / figures[0][i]);
            println!(
                "{name:24} {:6.2} ms {median:.3}  {:6.2} ms {mean:.3}",
                of[0], of[1]
            );
        }
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn advance(engine: &Engine, sequence: &mut Sequence) {
    while sequence.pending() > 0 {
        engine.step(&mut [&mut *sequence]).expect("a step");
    }
}
