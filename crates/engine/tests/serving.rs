//! Many sequences over one engine, long answers, thousands of answers.

use std::sync::Arc;

use reasoning_rpc_core::{Aggregation, Budget, NoCompression, Policy, Rpc, RpcOptions};
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::{
    CacheType, Engine, EngineOptions, Error, Event, GenerateOptions, Sequence, SequenceOptions, StopReason,
};
use reasoning_rpc_test_support::{Random, model, seed};

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

/// One request of a mixed batch.
struct Request {
    prompt: Vec<u32>,
    policy: Arc<dyn Policy>,
    sampling: SamplingOptions,
    /// The step at which it joins, and the tokens after which it leaves.
    joins: usize,
    tokens: usize,
}

fn begin(engine: &Engine, request: &Request) -> Sequence {
    let options = SequenceOptions {
        policy: Arc::clone(&request.policy),
        sampling: request.sampling,
        record_kept: true,
    };
    let mut sequence = engine.sequence(options).unwrap();
    sequence.append_tokens(&request.prompt).unwrap();
    sequence
}

/// Tokens, and the kept sets of every compression.
type Outcome = (Vec<u32>, Vec<Vec<Vec<u32>>>);

fn alone(engine: &Engine, request: &Request) -> Outcome {
    let mut sequence = begin(engine, request);
    for _ in 0..request.tokens {
        while sequence.pending() > 0 {
            engine.step(&mut [&mut sequence]).unwrap();
        }
        sequence.sample().unwrap();
    }
    let kept = sequence
        .compressions()
        .iter()
        .map(|record| record.kept.clone())
        .collect();
    (sequence.tokens().to_vec(), kept)
}

fn together(engine: &Engine, requests: &[Request]) -> Vec<Outcome> {
    let mut sequences: Vec<Sequence> = requests.iter().map(|request| begin(engine, request)).collect();
    for step in 0.. {
        let mut running: Vec<&mut Sequence> = sequences
            .iter_mut()
            .zip(requests)
            .filter(|(sequence, request)| {
                step >= request.joins && sequence.tokens().len() < request.prompt.len() + request.tokens
            })
            .map(|(sequence, _)| sequence)
            .collect();
        if running.is_empty() {
            if requests.iter().all(|request| request.joins <= step) {
                break;
            }
            continue;
        }
        engine.step(&mut running).unwrap();
        for sequence in running {
            if sequence.pending() == 0 {
                sequence.sample().unwrap();
            }
        }
    }
    sequences
        .iter()
        .map(|s| {
            (
                s.tokens().to_vec(),
                s.compressions()
                    .iter()
                    .map(|record| record.kept.clone())
                    .collect(),
            )
        })
        .collect()
}

/// Eight requests that differ in everything: the same tokens and kept sets as each of them alone.
fn mixed_batch(name: &str, vocab: usize, cache: CacheType) {
    let mut random = Random::new(seed());
    let engine = Engine::open(&EngineOptions {
        cache_type: Some(cache),
        prefill_chunk: 37,
        ..EngineOptions::new(model(name))
    })
    .unwrap();
    let requests: Vec<Request> = (0..8)
        .map(|index| Request {
            prompt: (0..1 + random.below(90))
                .map(|_| random.below(vocab) as u32)
                .collect(),
            policy: match index % 4 {
                0 => Arc::new(NoCompression),
                1 => rpc(24, 5, 4, Aggregation::Layer),
                2 => rpc(40, 8, 2, Aggregation::KvHead),
                _ => rpc(16 + 8 * random.below(3), 4, 8, Aggregation::Layer),
            },
            sampling: SamplingOptions {
                temperature: if index % 2 == 0 { 0.0 } else { 0.8 },
                seed: random.bits(),
                ..SamplingOptions::GREEDY
            },
            joins: random.below(30),
            tokens: 60 + random.below(60),
        })
        .collect();
    for (index, (found, request)) in together(&engine, &requests).iter().zip(&requests).enumerate() {
        assert_eq!(*found, alone(&engine, request), "request {index} of {name}");
    }
}

#[test]
fn a_batch_gives_each_sequence_what_it_gets_alone() {
    mixed_batch("golden/qwen2_p32-cached", 96, CacheType::F32);
    mixed_batch("golden/llama_p48_c8-cached", 96, CacheType::F16);
    mixed_batch("golden/llama_p48_c8-cached", 96, CacheType::Bf16);
    mixed_batch("golden/qwen2_p32-cached", 96, CacheType::I8);
    mixed_batch("golden/qwen2_p32-portable", 96, CacheType::F32);
    mixed_batch("smollm2-int4", 49152, CacheType::F16);
    mixed_batch("smollm2-int8", 49152, CacheType::I8);
}

#[test]
fn a_long_answer_peaks_where_the_formula_says() {
    let engine = Engine::open(&EngineOptions::new(model("smollm2-int4"))).unwrap();
    let prompt = vec![1u32; 100];
    let policy = rpc(1024, 32, 4, Aggregation::Layer);
    // g = 4096 written of N = 4097: L + 1792 entries (the worked example of the formula).
    let entries = prompt.len() + 1792;
    assert_eq!(prompt.len() + policy.peak_generated(4096), entries);
    let request = Request {
        prompt,
        policy,
        sampling: SamplingOptions::GREEDY,
        joins: 0,
        tokens: 0,
    };
    let mut sequence = begin(&engine, &request);
    let options = GenerateOptions {
        max_tokens: Some(4097),
        ignore_eos: true,
        ..GenerateOptions::default()
    };
    let mut answer = sequence.generate(&options).unwrap();
    while answer.next_event().unwrap().is_some() {}
    drop(answer);
    let stats = sequence.stats();
    assert_eq!((stats.decode_tokens, stats.compressions), (4096, 3));
    // 30 layers, 3 KV heads, blocks of 64 entries of 2 * 64 fp16 elements and a position.
    let blocks = 30 * 3 * entries.div_ceil(64);
    assert_eq!(stats.cache_peak_bytes, blocks * 64 * (2 * 64 * 2 + 4));
    assert_eq!(stats.cache_peak_bytes, engine.cache_shape().bytes(entries));
    eprintln!(
        "4,096 tokens: peak {} of {} bytes, {:.1} tokens/s, {:.2}% of the time in compactions",
        stats.cache_peak_bytes,
        stats.cache_uncompressed_bytes,
        4096.0 / stats.decode_time.as_secs_f64(),
        100.0 * stats.compaction_time.as_secs_f64() / stats.decode_time.as_secs_f64()
    );
}

#[test]
fn what_the_budget_cannot_hold_is_refused_before_the_first_token() {
    let path = model("golden/qwen2_p32-cached");
    let shape = *Engine::open(&EngineOptions::new(&path)).unwrap().cache_shape();
    let policy = rpc(64, 16, 4, Aggregation::Layer);
    let need = shape.bytes(12 + policy.peak_generated(299));
    let run = |budget: usize| {
        let engine = Engine::open(&EngineOptions {
            budget: Some(budget),
            ..EngineOptions::new(&path)
        })
        .unwrap();
        let request = Request {
            prompt: vec![5; 12],
            policy: Arc::clone(&policy),
            sampling: SamplingOptions::GREEDY,
            joins: 0,
            tokens: 0,
        };
        let mut sequence = begin(&engine, &request);
        let options = GenerateOptions {
            max_tokens: Some(300),
            ..GenerateOptions::default()
        };
        let mut answer = sequence.generate(&options)?;
        while answer.next_event()?.is_some() {}
        drop(answer);
        Ok(sequence.stats())
    };
    assert_eq!(run(need).unwrap().cache_peak_bytes, need);
    let refused = run(need - 1).map(|stats| stats.decode_tokens);
    assert!(matches!(refused, Err(Error::Budget { .. })), "{refused:?}");
}

#[test]
fn an_answer_ends_where_it_should() {
    let engine = Engine::open(&EngineOptions::new(model("golden/qwen2_p32-cached"))).unwrap();
    let end_of = |prompt: usize, max_tokens: Option<usize>, cancel_at: usize| {
        let request = Request {
            prompt: vec![5; prompt],
            policy: rpc(1024, 16, 4, Aggregation::Layer),
            sampling: SamplingOptions::GREEDY,
            joins: 0,
            tokens: 0,
        };
        let mut sequence = begin(&engine, &request);
        let options = GenerateOptions {
            max_tokens,
            ..GenerateOptions::default()
        };
        let mut answer = sequence.generate(&options).unwrap();
        let (mut tokens, mut end) = (0, None);
        while let Some(event) = answer.next_event().unwrap() {
            match event {
                Event::Token { .. } => tokens += 1,
                Event::End { reason, .. } => end = Some(reason),
                Event::Prefill { .. } => {}
            }
            if tokens == cancel_at && end.is_none() {
                answer.cancel();
            }
        }
        drop(answer);
        assert_eq!(sequence.tokens().len(), prompt + tokens);
        (tokens, end.unwrap())
    };
    assert_eq!(end_of(10, Some(50), usize::MAX), (50, StopReason::Length));
    assert_eq!(end_of(10, Some(0), usize::MAX), (0, StopReason::Length));
    assert_eq!(end_of(4090, None, usize::MAX), (6, StopReason::Context));
    assert_eq!(end_of(4096, None, usize::MAX), (0, StopReason::Context));
    assert_eq!(end_of(10, Some(50), 7), (7, StopReason::Cancelled));
}

#[test]
fn prefill_events_count_given_tokens_alone() {
    let options = EngineOptions {
        prefill_chunk: 8,
        ..EngineOptions::new(model("golden/qwen2_p32-cached"))
    };
    let engine = Engine::open(&options).unwrap();
    let request = Request {
        prompt: vec![5; 20],
        policy: Arc::new(NoCompression),
        sampling: SamplingOptions::GREEDY,
        joins: 0,
        tokens: 0,
    };
    let mut sequence = begin(&engine, &request);
    let three = GenerateOptions {
        max_tokens: Some(3),
        ..GenerateOptions::default()
    };
    let mut events_of = |given: &[u32]| {
        sequence.append_tokens(given).unwrap();
        let mut answer = sequence.generate(&three).unwrap();
        let mut events = Vec::new();
        while let Some(event) = answer.next_event().unwrap() {
            match event {
                Event::Prefill { done, total } => events.push((done, total)),
                Event::Token { .. } => events.push((0, 0)),
                Event::End { .. } => {}
            }
        }
        events
    };
    assert_eq!(
        events_of(&[]),
        [(8, 20), (16, 20), (20, 20), (0, 0), (0, 0), (0, 0)]
    );
    // The last token of an answer is still to run: it is no given one.
    assert_eq!(events_of(&[]), [(0, 0), (0, 0), (0, 0)]);
    assert_eq!(events_of(&[7; 9]), [(8, 9), (9, 9), (0, 0), (0, 0), (0, 0)]);
}
