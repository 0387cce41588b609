//! A model whose tokenizer has no token for some of its logits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // tests

mod text_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reasoning_rpc_core::NoCompression;
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::{Engine, EngineOptions, Event, GenerateOptions, Sequence, SequenceOptions};
use reasoning_rpc_test_support::{json, model};
use sha2::{Digest, Sha256};
use text_support::byte_level_json;

const PROMPT: [u32; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

/// A copy of a model with a tokenizer whose ids are all but `gaps`.
fn with_gaps(name: &str, gaps: &[u32]) -> PathBuf {
    let (from, to) = (
        model(name),
        Path::new(env!("CARGO_TARGET_TMPDIR")).join("vocabulary"),
    );
    fs::create_dir_all(&to).unwrap();
    let mut manifest = json(&from.join("manifest.json"));
    let size = manifest["dimensions"]["vocab_size"].as_u64().unwrap() as u32;
    let files = manifest["files"].as_object_mut().unwrap();
    files.retain(|file, _| file.starts_with("model.onnx"));
    for file in files.keys() {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
    let mut tokenizer = byte_level_json(Vec::new());
    tokenizer["model"]["merges"] = serde_json::json!([]);
    tokenizer["model"]["vocab"] = (0..size)
        .filter(|id| !gaps.contains(id))
        .map(|id| (format!("x{id}"), id.into()))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let text = tokenizer.to_string();
    let digest = Sha256::digest(&text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>();
    files.insert(
        "tokenizer.json".into(),
        serde_json::json!({"size": text.len(), "sha256": digest}),
    );
    fs::write(to.join("tokenizer.json"), text).unwrap();
    fs::write(to.join("manifest.json"), manifest.to_string()).unwrap();
    to
}

fn read(folder: PathBuf) -> (Engine, Sequence) {
    let engine = Engine::open(&EngineOptions::new(folder)).unwrap();
    let options = SequenceOptions {
        policy: Arc::new(NoCompression),
        sampling: SamplingOptions::GREEDY,
        record_kept: false,
    };
    let mut sequence = engine.sequence(options).unwrap();
    sequence.append_tokens(&PROMPT).unwrap();
    (engine, sequence)
}

/// What is no token is never drawn, however high its logit, and the answer goes on.
#[test]
fn gaps_of_a_vocabulary_are_not_drawn() {
    let name = "golden/llama_p48_c8-cached";
    let (engine, mut sequence) = read(model(name));
    engine.step(&mut [&mut sequence]).unwrap();
    let logits = sequence.logits().unwrap().to_vec();
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));

    // The highest id that is one ends the vocabulary: it stays.
    let last = logits.len() as u32 - 1;
    let gaps: Vec<u32> = order.iter().copied().filter(|&id| id != last).take(3).collect();
    let expected = *order.iter().find(|id| !gaps.contains(id)).unwrap();
    let (_engine, mut sequence) = read(with_gaps(name, &gaps));
    let options = GenerateOptions {
        max_tokens: Some(20),
        ..GenerateOptions::default()
    };
    let mut found = Vec::new();
    let mut answer = sequence.generate(&options).unwrap();
    while let Some(event) = answer.next_event().unwrap() {
        if let Event::Token { id, text, .. } = event {
            assert_eq!(text, format!("x{id}"));
            found.push(id);
        }
    }
    assert_eq!(found.len(), 20);
    assert_eq!(found[0], expected);
    assert!(!found.iter().any(|id| gaps.contains(id)), "{found:?}");
}
