//! Memory after many answers. The only test of its process: others would be seen in its figures.

use std::sync::Arc;

use reasoning_rpc_core::{Rpc, RpcOptions};
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::{Engine, EngineOptions, GenerateOptions, SequenceOptions};
use reasoning_rpc_test_support::model;

/// Resident anonymous memory in bytes: what was allocated, without the pages of program files that
/// become resident when code first runs.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    let kibibytes = line.split_whitespace().nth(1).unwrap();
    kibibytes.parse::<usize>().unwrap() * 1024
}

#[test]
fn a_thousand_answers_leak_nothing() {
    let engine = Engine::open(&EngineOptions::new(model("golden/qwen2_p32-cached"))).unwrap();
    let policy = RpcOptions {
        interval: 64,
        window: 16,
        ..RpcOptions::default()
    };
    let sequence = SequenceOptions {
        policy: Arc::new(Rpc::new(policy).unwrap()),
        sampling: SamplingOptions::GREEDY,
        record_kept: true,
    };
    let options = GenerateOptions {
        max_tokens: Some(300),
        ..GenerateOptions::default()
    };
    let mut after_hundred = 0;
    for index in 1..=1000 {
        let mut sequence = engine.sequence(sequence.clone()).unwrap();
        sequence.append_tokens(&[5; 12]).unwrap();
        let mut answer = sequence.generate(&options).unwrap();
        while answer.next_event().unwrap().is_some() {}
        drop(answer);
        assert_eq!(sequence.stats().compressions, 4);
        if index == 100 {
            after_hundred = resident();
        }
    }
    let grown = resident() as i64 - after_hundred as i64;
    eprintln!("resident memory after 1000 answers: {grown:+} bytes since the 100th");
    assert!(grown <= 1 << 20, "grew by {grown} bytes");
    assert_eq!(engine.budget().1, 0);
}
