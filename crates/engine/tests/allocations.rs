//! A step of decoding allocates nothing of ours, on any thread, once it is warm: neither the graph's run, nor the
//! cache, nor the sampler, nor an answer's events. ONNX Runtime's own allocator is not counted: its arena is warm, too.

#![allow(unsafe_code)] // an allocator

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use reasoning_rpc_core::{Budget, NoCompression, Policy, PolicyKind, Rpc, RpcOptions};
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::scheduler::{Next, Scheduler, SchedulerOptions};
use reasoning_rpc_engine::{
    CacheType, Engine, EngineOptions, Event, GenerateOptions, Sequence, SequenceOptions,
};
use reasoning_rpc_test_support::{Random, model, seed};

static COUNTS: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, which counts while it is told to: requests for memory, of all threads.
struct Counting;

fn note() {
    if COUNTS.load(SeqCst) {
        COUNT.fetch_add(1, SeqCst);
    }
}

// SAFETY: it is the system's, and counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: the caller's contract.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    COUNT.store(0, SeqCst);
    COUNTS.store(true, SeqCst);
    work();
    COUNTS.store(false, SeqCst);
    COUNT.load(SeqCst)
}

fn rpc(interval: usize) -> Arc<dyn Policy> {
    let options = RpcOptions {
        interval,
        window: 8,
        budget: Budget::Ratio(4),
        ..RpcOptions::default()
    };
    Arc::new(Rpc::new(options).unwrap())
}

fn lookahead() -> Arc<dyn Policy> {
    let options = RpcOptions {
        interval: 96,
        window: 8,
        ..RpcOptions::default()
    };
    PolicyKind::Lookahead.build(options).unwrap()
}

fn begin(engine: &Engine, policy: Arc<dyn Policy>, sampling: SamplingOptions, prompt: &[u32]) -> Sequence {
    let mut sequence = engine
        .sequence(SequenceOptions {
            policy,
            sampling,
            record_kept: false,
        })
        .unwrap();
    sequence.append_tokens(prompt).unwrap();
    sequence.reserve(400).unwrap();
    while sequence.pending() > 0 {
        engine.step(&mut [&mut sequence]).unwrap();
    }
    sequence
}

/// Four sequences in one step: full and compressed, greedy and sampled, short and longer than a chunk of attention.
/// The 80 steps that count cross ends of blocks, but no compression: 96 + 8 and 192 + 8 tokens are when those are.
fn steady(name: &str, vocab: usize, cache: CacheType) {
    let mut random = Random::new(seed());
    let engine = Engine::open(&EngineOptions {
        cache_type: Some(cache),
        threads: 2,
        ..EngineOptions::new(model(name))
    })
    .unwrap();
    let sampled = SamplingOptions {
        temperature: 0.8,
        top_p: 0.95,
        top_k: 40,
        seed: random.bits(),
        ..SamplingOptions::GREEDY
    };
    let all = SamplingOptions {
        temperature: 1.0,
        seed: random.bits(),
        ..SamplingOptions::GREEDY
    };
    let mut prompt = |len: usize| -> Vec<u32> { (0..len).map(|_| random.below(vocab) as u32).collect() };
    let mut a = begin(&engine, rpc(96), SamplingOptions::GREEDY, &prompt(20));
    let mut b = begin(&engine, Arc::new(NoCompression), sampled, &prompt(1600));
    let mut c = begin(&engine, rpc(96), all, &prompt(33));
    let mut d = begin(&engine, lookahead(), SamplingOptions::GREEDY, &prompt(7));
    let mut steps = |count: usize| {
        for _ in 0..count {
            for sequence in [&mut a, &mut b, &mut c, &mut d] {
                sequence.sample().unwrap();
            }
            engine.step(&mut [&mut a, &mut b, &mut c, &mut d]).unwrap();
        }
    };
    // Through the first compression.
    steps(115);
    let found = allocations(|| steps(80));
    assert_eq!(
        found, 0,
        "{name} {cache:?}: allocations in 80 steps of 4 sequences"
    );
    assert_eq!((a.stats().compressions, d.stats().compressions), (1, 1));
}

/// A sequence with a prompt of `len` tokens, and how it is answered.
fn to_answer(engine: &Engine, len: u32) -> (Sequence, GenerateOptions) {
    let mut sequence = engine
        .sequence(SequenceOptions {
            policy: rpc(96),
            sampling: SamplingOptions::GREEDY,
            record_kept: false,
        })
        .unwrap();
    sequence.append_tokens(&(1..=len).collect::<Vec<u32>>()).unwrap();
    let options = GenerateOptions {
        max_tokens: Some(100),
        ignore_eos: true,
        ..GenerateOptions::default()
    };
    (sequence, options)
}

/// An answer, event by event, with its text.
fn answer(name: &str) {
    let engine = Engine::open(&EngineOptions {
        threads: 2,
        ..EngineOptions::new(model(name))
    })
    .unwrap();
    let (mut sequence, options) = to_answer(&engine, 5);
    let mut generation = sequence.generate(&options).unwrap();
    let mut tokens = |count: usize| {
        let mut bytes = 0;
        for _ in 0..count {
            match generation.next_event().unwrap().unwrap() {
                Event::Token { text, .. } => bytes += text.len(),
                Event::Prefill { .. } => {}
                Event::End { .. } => panic!("an end"),
            }
        }
        bytes
    };
    tokens(30);
    let mut bytes = 0;
    let found = allocations(|| bytes = tokens(60));
    assert_eq!(found, 0, "{name}: allocations in 60 tokens of an answer");
    assert!(bytes > 0, "no text was written");
}

/// Answers of a scheduler, whose threads and reader are counted, too.
fn scheduled(name: &str) {
    let engine = Engine::open(&EngineOptions {
        threads: 2,
        budget: Some(64 << 20),
        ..EngineOptions::new(model(name))
    })
    .unwrap();
    let scheduler = Scheduler::new(&engine, SchedulerOptions::default()).unwrap();
    let answers: Vec<_> = [5u32, 60, 7]
        .map(|len| {
            let (sequence, options) = to_answer(&engine, len);
            scheduler.submit(sequence, &options).unwrap()
        })
        .into();
    let mut text = String::with_capacity(256);
    let mut tokens = |count: usize| {
        for _ in 0..count {
            for answer in &answers {
                while !matches!(
                    answer.next(&mut text, None).unwrap(),
                    Next::Event(Event::Token { .. })
                ) {}
            }
        }
    };
    tokens(30);
    let found = allocations(|| tokens(50));
    assert_eq!(
        found, 0,
        "{name}: allocations in 50 tokens of three scheduled answers"
    );
}

/// One test, so that nothing else runs while it counts.
#[test]
fn a_step_allocates_nothing() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(7)))), 1);
    let elsewhere = allocations(|| {
        std::thread::spawn(|| drop(std::hint::black_box(vec![1u8; 100])))
            .join()
            .unwrap();
    });
    assert!(elsewhere > 1, "another thread's is counted");

    steady("golden/qwen2_p32-cached", 96, CacheType::F32);
    steady("golden/llama_p48_c8-cached", 96, CacheType::I8);
    steady("smollm2-int4", 49152, CacheType::F16);
    answer("smollm2-int4");
    scheduled("smollm2-int4");
}
