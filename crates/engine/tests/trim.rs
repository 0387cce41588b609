//! Memory of blocks that nobody holds goes back to the system when it is asked for, and comes again.

use std::fs;
use std::sync::Arc;

use reasoning_rpc_core::{Budget, NoCompression, Policy, Rpc, RpcOptions};
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::{CacheType, Engine, EngineOptions, Sequence, SequenceOptions};
use reasoning_rpc_test_support::{Random, model, seed};

fn open(name: &str) -> Engine {
    Engine::open(&EngineOptions {
        cache_type: Some(CacheType::F32),
        threads: 1,
        ..EngineOptions::new(model(name))
    })
    .unwrap()
}

fn start(engine: &Engine, policy: Arc<dyn Policy>, prompt: &[u32]) -> Sequence {
    let options = SequenceOptions {
        policy,
        sampling: SamplingOptions::GREEDY,
        record_kept: false,
    };
    let mut sequence = engine.sequence(options).unwrap();
    sequence.append_tokens(prompt).unwrap();
    sequence
}

/// Writes `count` more tokens of each, side by side, so that their blocks lie among each other's.
fn write(engine: &Engine, sequences: &mut [Sequence], count: usize) {
    for _ in 0..count {
        engine
            .step(&mut sequences.iter_mut().collect::<Vec<_>>())
            .unwrap();
        for sequence in &mut *sequences {
            sequence.sample().unwrap();
        }
    }
}

/// Resident bytes of the mapping that the address lies in, as the kernel counts them.
fn resident(address: usize) -> usize {
    let text = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in text.lines() {
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        if let Some((start, end)) = range
            && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
        {
            inside = (start..end).contains(&address);
        } else if let Some(size) = line.strip_prefix("Rss:").filter(|_| inside) {
            return size.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10;
        }
    }
    panic!("no mapping has {address:#x}");
}

#[test]
fn free_blocks_leave_the_process_and_come_back() {
    let mut random = Random::new(seed());
    let name = "golden/llama_p48_c8-cached";
    let prompts: Vec<Vec<u32>> = (0..2)
        .map(|_| (0..50).map(|_| random.below(96) as u32).collect())
        .collect();
    let begin = |engine: &Engine| -> Vec<Sequence> {
        let begin = |prompt: &Vec<u32>| start(engine, Arc::new(NoCompression), prompt);
        prompts.iter().map(begin).collect()
    };
    let undisturbed = open(name);
    let mut expected = begin(&undisturbed);
    write(&undisturbed, &mut expected, 1300);

    let engine = open(name);
    let mut sequences = begin(&engine);
    write(&engine, &mut sequences, 1000);
    let pool = sequences[0].cache_view(0, 0).unwrap().keys as usize;
    // Nothing is free but the rest of a huge page.
    engine.trim();
    assert_eq!(engine.trim(), 0);

    let freed = sequences.pop().map(|other| other.stats().cache_bytes).unwrap();
    let before = resident(pool);
    assert!(before >= 2 * freed, "{before} bytes of two caches of {freed}");
    let given = engine.trim();
    let after = resident(pool);
    println!("{freed} bytes were freed, {given} given back, {before} -> {after} resident");
    assert_eq!(before - after, given);
    // A step's blocks of a sequence lie together, 6 of 8,448 bytes: at most two of 13 pages are shared.
    assert!((freed / 10 * 8..=freed).contains(&given));
    assert_eq!(engine.trim(), 0, "all of it was given back");

    // The other's cache is what it was, and the blocks are as good as new.
    write(&engine, &mut sequences, 300);
    assert_eq!(sequences[0].tokens(), expected[0].tokens());
    let mut again = vec![start(&engine, Arc::new(NoCompression), &prompts[1])];
    write(&engine, &mut again, 1300);
    assert_eq!(again[0].tokens(), expected[1].tokens());

    drop((sequences, again));
    engine.trim();
    assert_eq!(resident(pool), 0);
}

#[test]
fn what_a_compression_frees_goes_back_too() {
    let engine = open("golden/llama_p48_c8-cached");
    let policy = Rpc::new(RpcOptions {
        interval: 960,
        window: 8,
        budget: Budget::Ratio(8),
        ..RpcOptions::default()
    });
    let mut sequence = [start(&engine, Arc::new(policy.unwrap()), &[1, 2, 3])];
    write(&engine, &mut sequence, 960);
    engine.trim();
    let used = engine.budget().1;
    write(&engine, &mut sequence, 20);
    assert_eq!(sequence[0].stats().compressions, 1);
    let freed = used - engine.budget().1;
    let given = engine.trim();
    assert!(given >= freed / 2 && freed > 0, "{given} of {freed}");
    // A portable model's caches are no blocks.
    let portable = open("golden/llama_p48_c8-portable");
    let mut sequence = [start(&portable, Arc::new(NoCompression), &[1, 2, 3])];
    write(&portable, &mut sequence, 40);
    drop(sequence);
    assert_eq!(portable.trim(), 0);
}
