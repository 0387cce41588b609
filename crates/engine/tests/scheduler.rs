//! Many answers through a scheduler: each is the one that its sequence writes alone.

use std::sync::Arc;
use std::time::Duration;

use reasoning_rpc_core::{Aggregation, Budget, NoCompression, Policy, Rpc, RpcOptions};
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::scheduler::{Next, ScheduledAnswer, Scheduler, SchedulerOptions};
use reasoning_rpc_engine::{
    CacheType, Engine, EngineOptions, Event, GenerateOptions, Sequence, SequenceOptions, StopReason,
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

struct Request {
    prompt: Vec<u32>,
    options: SequenceOptions,
    generate: GenerateOptions,
    /// The second turn's text.
    more: Vec<u32>,
    /// Milliseconds until it is submitted, and between two reads.
    delays: (u64, u64),
}

impl Request {
    fn random(random: &mut Random, index: usize, vocab: usize) -> Self {
        let mut tokens = |most: usize| -> Vec<u32> {
            let count = 1 + random.below(most);
            (0..count).map(|_| random.below(vocab) as u32).collect()
        };
        let (prompt, more) = (tokens(150), tokens(20));
        Self {
            prompt,
            more,
            options: SequenceOptions {
                policy: match index % 4 {
                    0 => Arc::new(NoCompression),
                    1 => rpc(24, 5, 4, Aggregation::Layer),
                    2 => rpc(40, 8, 2, Aggregation::KvHead),
                    _ => rpc(16 + 8 * random.below(3), 4, 8, Aggregation::Layer),
                },
                sampling: SamplingOptions {
                    temperature: if index.is_multiple_of(2) { 0.0 } else { 0.8 },
                    seed: random.bits(),
                    ..SamplingOptions::GREEDY
                },
                record_kept: true,
            },
            generate: GenerateOptions {
                max_tokens: Some(20 + random.below(70)),
                ignore_eos: random.below(2) == 0,
                ..GenerateOptions::default()
            },
            delays: (random.below(40) as u64, if random.below(4) == 0 { 2 } else { 0 }),
        }
    }

    fn begin(&self, engine: &Engine) -> Sequence {
        let mut sequence = engine.sequence(self.options.clone()).unwrap();
        sequence.append_tokens(&self.prompt).unwrap();
        sequence
    }
}

/// Tokens, text, how it ended.
type Told = (Vec<u32>, String, Option<StopReason>);

fn add(told: &mut Told, event: &Event<'_>) -> bool {
    match *event {
        Event::Prefill { .. } => {}
        Event::Token { id, text, .. } => {
            told.0.push(id);
            told.1.push_str(text);
        }
        Event::End { reason, text } => {
            told.1.push_str(text);
            told.2 = Some(reason);
        }
    }
    told.2.is_none()
}

fn alone(engine: &Engine, request: &Request) -> (Vec<Told>, Sequence) {
    let mut sequence = request.begin(engine);
    let mut turns = Vec::new();
    for turn in 0..2 {
        if turn > 0 {
            sequence.append_tokens(&request.more).unwrap();
        }
        let mut told = Told::default();
        let mut answer = sequence.generate(&request.generate).unwrap();
        while let Some(event) = answer.next_event().unwrap() {
            add(&mut told, &event);
        }
        drop(answer);
        turns.push(told);
    }
    (turns, sequence)
}

fn read(answer: &ScheduledAnswer, delay: u64) -> Told {
    let (mut told, mut text) = (Told::default(), String::new());
    loop {
        match answer.next(&mut text, Some(Duration::from_secs(120))).unwrap() {
            Next::Event(event) if add(&mut told, &event) => {}
            Next::Event(_) => return told,
            next => panic!("no event: {next:?}"),
        }
        if delay > 0 {
            std::thread::sleep(Duration::from_millis(delay));
        }
    }
}

fn scheduled(scheduler: &Scheduler, request: &Request) -> (Vec<Told>, Sequence) {
    let mut sequence = request.begin(scheduler.engine());
    let mut turns = Vec::new();
    std::thread::sleep(Duration::from_millis(request.delays.0));
    for turn in 0..2 {
        if turn > 0 {
            sequence.append_tokens(&request.more).unwrap();
        }
        let answer = scheduler.submit(sequence, &request.generate).unwrap();
        turns.push(read(&answer, request.delays.1));
        sequence = answer.take_sequence().unwrap();
    }
    (turns, sequence)
}

fn mixed_arrivals(name: &str, vocab: usize, cache: CacheType, requests: usize) {
    let mut random = Random::new(seed());
    let engine = Engine::open(&EngineOptions {
        cache_type: Some(cache),
        prefill_chunk: 37,
        ..EngineOptions::new(model(name))
    })
    .unwrap();
    let requests: Vec<Request> = (0..requests)
        .map(|index| Request::random(&mut random, index, vocab))
        .collect();
    let options = SchedulerOptions {
        max_rows: 1 + random.below(8),
        step_tokens: 1 + random.below(30),
        queue_events: 1 + random.below(5),
        ..SchedulerOptions::default()
    };
    let scheduler = Scheduler::new(&engine, options).unwrap();
    let found: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = requests
            .iter()
            .map(|request| scope.spawn(|| scheduled(&scheduler, request)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (index, ((turns, sequence), request)) in found.iter().zip(&requests).enumerate() {
        let (expected, other) = alone(&engine, request);
        assert_eq!(*turns, expected, "request {index} of {name}");
        assert_eq!(sequence.tokens(), other.tokens(), "request {index} of {name}");
        assert_eq!(
            sequence.compressions(),
            other.compressions(),
            "request {index} of {name}"
        );
    }
    let figures = scheduler.metrics();
    assert_eq!(figures.completed, 2 * requests.len() as u64);
    eprintln!(
        "{name}: {options:?}, {} steps of {:.2} rows",
        figures.steps,
        figures.rows as f64 / figures.steps as f64
    );
    drop(found);
    let figures = engine.metrics();
    assert_eq!((figures.budget_used_bytes, figures.budget_promised_bytes), (0, 0));
}

#[test]
fn each_answer_is_the_one_that_its_sequence_writes_alone() {
    for _ in 0..3 {
        mixed_arrivals("golden/qwen2_p32-cached", 96, CacheType::F32, 12);
    }
    mixed_arrivals("golden/llama_p48_c8-cached", 96, CacheType::F16, 12);
    mixed_arrivals("golden/qwen2_p32-portable", 96, CacheType::F32, 6);
    mixed_arrivals("smollm2-int8", 49152, CacheType::F16, 6);
}
