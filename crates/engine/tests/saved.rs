//! Saved sequences go on as their originals; bytes that are not one are refused.

use std::sync::Arc;

use reasoning_rpc_core::{Aggregation, Budget, LightThinker, NoCompression, Policy, Rpc, RpcOptions};
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::{CacheType, Engine, EngineOptions, Error, Sequence, SequenceOptions};
use reasoning_rpc_test_support::{Random, model, seed};
use sha2::{Digest, Sha256};

fn engine(name: &str, cache: CacheType, block_entries: usize) -> Engine {
    Engine::open(&EngineOptions {
        cache_type: Some(cache),
        block_entries,
        threads: 1,
        ..EngineOptions::new(model(name))
    })
    .unwrap()
}

fn rpc(aggregation: Aggregation) -> Arc<dyn Policy> {
    let options = RpcOptions {
        interval: 24,
        window: 5,
        budget: Budget::Ratio(4),
        aggregation: Some(aggregation),
        ..RpcOptions::default()
    };
    Arc::new(Rpc::new(options).unwrap())
}

/// One token in eight ends a thought.
fn thoughts(random: &mut Random) -> Arc<dyn Policy> {
    let delimiters = (0..12).map(|_| 4 + random.below(92) as u32).collect();
    let resume = (random.below(2) == 0).then_some(3);
    Arc::new(LightThinker::new(delimiters, vec![1, 2], resume).unwrap())
}

const SAMPLED: SamplingOptions = SamplingOptions {
    temperature: 0.9,
    top_k: 40,
    top_p: 0.95,
    min_p: 0.0,
    repetition_penalty: 1.1,
    seed: 7,
};

fn start(engine: &Engine, policy: Arc<dyn Policy>, prompt: &[u32]) -> Sequence {
    let options = SequenceOptions {
        policy,
        sampling: SAMPLED,
        record_kept: true,
    };
    let mut sequence = engine.sequence(options).unwrap();
    sequence.append_tokens(prompt).unwrap();
    sequence
}

fn write(engine: &Engine, sequence: &mut Sequence, count: usize) {
    for _ in 0..count {
        while sequence.pending() > 0 {
            engine.step(&mut [&mut *sequence]).unwrap();
        }
        sequence.sample().unwrap();
    }
}

fn save(sequence: &Sequence) -> Vec<u8> {
    let mut bytes = Vec::new();
    sequence.save(&mut bytes).unwrap();
    assert_eq!(bytes.len(), sequence.saved_size().unwrap());
    bytes
}

fn prompt(random: &mut Random, len: usize) -> Vec<u32> {
    (0..len).map(|_| random.below(96) as u32).collect()
}

#[test]
fn a_restored_sequence_goes_on_as_the_original() {
    let mut random = Random::new(seed());
    for (name, cache) in [
        ("golden/qwen2_p32-cached", CacheType::F32),
        ("golden/qwen2_p32-cached", CacheType::F16),
        ("golden/qwen2_p32-cached", CacheType::Bf16),
        ("golden/qwen2_p32-cached", CacheType::I8),
        ("golden/qwen2_p32-portable", CacheType::F32),
    ] {
        let (first, second) = (engine(name, cache, 16), engine(name, cache, 48));
        let mut policies = vec![
            Arc::new(NoCompression) as _,
            rpc(Aggregation::Layer),
            rpc(Aggregation::KvHead),
            Arc::new(
                Rpc::new(RpcOptions {
                    interval: 24,
                    window: 5,
                    budget: Budget::Entries(30),
                    ..RpcOptions::default()
                })
                .unwrap(),
            ),
            thoughts(&mut random),
        ];
        if !name.contains("portable") {
            policies.push(rpc(Aggregation::Adaptive));
        }
        for policy in policies {
            let text = prompt(&mut random, 40);
            let mut original = start(&first, policy, &text[..25]);
            let count = random.below(110);
            write(&first, &mut original, count);
            // Two out of three with pending tokens or a second turn.
            match random.below(3) {
                0 => original.append_tokens(&text[25..]).unwrap(),
                1 => {
                    while original.pending() > 0 {
                        first.step(&mut [&mut original]).unwrap();
                    }
                }
                _ => {}
            }
            let bytes = save(&original);
            let mut restored = second.restore(&bytes).unwrap();
            assert_eq!(restored.logits(), original.logits());
            write(&first, &mut original, 60);
            write(&second, &mut restored, 60);
            original.append_tokens(&text[..7]).unwrap();
            restored.append_tokens(&text[..7]).unwrap();
            write(&first, &mut original, 30);
            write(&second, &mut restored, 30);
            assert_eq!(
                restored.tokens(),
                original.tokens(),
                "{name} {cache:?} after {count}"
            );
            assert_eq!(restored.compressions(), original.compressions());
            assert_eq!(restored.stats().decode_tokens, original.stats().decode_tokens);
            assert!(restored.stats().cache_uncompressed_bytes > 0);
        }
    }
}

fn rehashed(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.len().checked_sub(32) {
        let hash = Sha256::digest(&bytes[..end]);
        bytes[end..].copy_from_slice(&hash);
    }
    bytes
}

/// Numbers that no step writes are refused where they lie last: in the positions' neighbours.
#[test]
fn scales_that_no_step_writes_are_refused() {
    let mut random = Random::new(seed());
    let engine = engine("golden/qwen2_p32-cached", CacheType::I8, 16);
    let mut original = start(&engine, Arc::new(NoCompression), &prompt(&mut random, 9));
    write(&engine, &mut original, 1);
    let bytes = save(&original);
    // The last KV head's last scale of a value: before 9 positions and the hash.
    let scale = bytes.len() - 32 - 9 * 4 - 4;
    let element = scale - (2 * 9 - 1) * 4 - 1;
    let with = |at: usize, new: &[u8]| {
        let mut changed = bytes.clone();
        changed[at..at + new.len()].copy_from_slice(new);
        engine.restore(&rehashed(changed))
    };
    for wrong in [f32::NAN, f32::INFINITY, -1.0] {
        let error = with(scale, &wrong.to_le_bytes()).err().unwrap();
        assert!(
            matches!(&error, Error::State(text) if text.contains("keys and values")),
            "{error}"
        );
    }
    assert!(with(element, &[0x80]).is_err());
    assert!(with(element, &[0x81]).is_ok());
    assert!(with(scale, &2.5f32.to_le_bytes()).is_ok());
}

/// Whatever is accepted saves to bytes that are accepted again and goes on for some tokens.
#[test]
fn damaged_bytes_are_refused_or_another_valid_sequence() {
    let mut random = Random::new(seed());
    for cache in [CacheType::F16, CacheType::Bf16, CacheType::I8] {
        damage(&mut random, cache);
    }
}

fn damage(random: &mut Random, cache: CacheType) {
    let engine = engine("golden/qwen2_p32-cached", cache, 16);
    let mut originals = Vec::new();
    for (policy, count) in [
        (Arc::new(NoCompression) as _, 3),
        (rpc(Aggregation::Layer), 60),
        (rpc(Aggregation::KvHead), 40),
        (rpc(Aggregation::Adaptive), 60),
        (thoughts(random), 50),
    ] {
        let text = prompt(random, 6);
        let mut original = start(&engine, policy, &text);
        write(&engine, &mut original, count);
        originals.push(save(&original));
    }
    let mut accepted = 0;
    for round in 0..8_000 {
        let mut bytes = originals[round % originals.len()].clone();
        let header = 16 + u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
        // Half of the changes where sizes and options are.
        let end = if random.below(2) == 0 {
            header + 80
        } else {
            bytes.len()
        };
        match random.below(5) {
            0 => bytes.truncate(random.below(end)),
            1 => {
                let at = random.below(end);
                bytes.insert(at, random.bits() as u8);
            }
            2 => {
                bytes.remove(random.below(end));
            }
            3 => {
                let at = random.below(end);
                bytes[at] = b'0' + random.below(10) as u8;
            }
            _ => {
                for _ in 0..1 + random.below(4) {
                    let at = random.below(end);
                    bytes[at] ^= 1 << random.below(8);
                }
            }
        }
        if bytes == originals[round % originals.len()] {
            continue;
        }
        match engine.restore(&bytes) {
            Err(Error::State(_)) => {}
            other => panic!("expected a refusal, found {:?}", other.err()),
        }
        match engine.restore(&rehashed(bytes)) {
            Err(Error::State(_)) => {}
            Err(other) => panic!("expected Error::State, found {other}"),
            Ok(mut sequence) => {
                accepted += 1;
                let again = engine.restore(&save(&sequence)).unwrap();
                assert_eq!(again.tokens(), sequence.tokens());
                if accepted % 50 == 0 && sequence.room() > 30 && !sequence.tokens().is_empty() {
                    // Keys that are no numbers poison their sequence; nothing may panic.
                    while sequence.pending() > 0 && engine.step(&mut [&mut sequence]).is_ok() {}
                    let _ = sequence.sample();
                }
            }
        }
    }
    assert!(accepted > 0, "changes of keys and values are not told apart");
    assert_eq!(engine.budget().1, 0, "refused sequences leave no blocks behind");
}

#[test]
fn what_does_not_fit_is_told() {
    let mut random = Random::new(seed());
    let name = "golden/qwen2_p32-cached";
    let first = engine(name, CacheType::F16, 16);
    let mut original = start(&first, rpc(Aggregation::Layer), &prompt(&mut random, 50));
    write(&first, &mut original, 3);
    let bytes = save(&original);
    let refused = |engine: &Engine| engine.restore(&bytes).err().unwrap().to_string();
    assert!(refused(&engine(name, CacheType::F32, 16)).contains("cache type: expected fp32, found fp16"));
    assert!(refused(&engine(name, CacheType::Bf16, 16)).contains("cache type: expected bf16, found fp16"));
    assert!(
        refused(&engine("golden/llama_p48_c8-cached", CacheType::F16, 16)).contains("model: expected llama")
    );
    let small = Engine::open(&EngineOptions {
        budget: Some(4096),
        block_entries: 16,
        ..EngineOptions::new(model(name))
    })
    .unwrap();
    assert!(matches!(small.restore(&bytes), Err(Error::Budget { .. })));

    let folder = std::env::temp_dir().join(format!("rrpc-saved-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join("a.state");
    original.save_file(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(first.restore_file(&path).unwrap().tokens(), original.tokens());
    assert_eq!(
        std::fs::read_dir(&folder).unwrap().count(),
        1,
        "no temporary file stays"
    );
    let missing = first.restore_file(&folder.join("none")).err().unwrap();
    assert!(matches!(&missing, Error::File(text) if text.contains("none")));
    // Another file is refused for its beginning, however long it is.
    let long = folder.join("long");
    std::fs::File::create(&long).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(first.restore_file(&long), Err(Error::State(_))));
    assert!(matches!(
        original.save_file(&folder.join("no/where")),
        Err(Error::File(_))
    ));
    std::fs::remove_dir_all(&folder).unwrap();
}
