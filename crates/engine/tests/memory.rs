//! What a running model keeps resident: its file, once however many engines have it open, its cache, and little else.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reasoning_rpc_core::NoCompression;
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::{Engine, EngineOptions, Sequence, SequenceOptions};
use reasoning_rpc_test_support::model;

/// Resident bytes of this process: all, and those that no file backs.
fn resident() -> (usize, usize) {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let fields: HashMap<&str, usize> = text
        .lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            let value = value.trim().strip_suffix(" kB")?.parse::<usize>().ok()?;
            Some((name, value << 10))
        })
        .collect();
    (fields["VmRSS"], fields["RssAnon"])
}

/// A copy of a model that takes token ids alone: a tokenizer has tables that grow with the vocabulary, not with
/// the model (docs/embedding.md), and beside a model as small as this they would hide what is looked for.
fn without_text(name: &str) -> PathBuf {
    let (from, to) = (model(name), Path::new(env!("CARGO_TARGET_TMPDIR")).join(name));
    fs::create_dir_all(&to).unwrap();
    let manifest = fs::read_to_string(from.join("manifest.json")).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let files = manifest["files"].as_object_mut().unwrap();
    files.retain(|file, _| file.starts_with("model.onnx"));
    for file in files.keys() {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
    fs::write(to.join("manifest.json"), manifest.to_string()).unwrap();
    to
}

fn write(engine: &Engine, tokens: usize) -> Sequence {
    let options = SequenceOptions {
        policy: Arc::new(NoCompression),
        sampling: SamplingOptions::GREEDY,
        record_kept: false,
    };
    let mut sequence = engine.sequence(options).unwrap();
    sequence.append_tokens(&[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    engine.step(&mut [&mut sequence]).unwrap();
    for _ in 0..tokens {
        sequence.sample().unwrap();
        engine.step(&mut [&mut sequence]).unwrap();
    }
    sequence
}

#[test]
fn weights_are_resident_once() {
    // ONNX Runtime itself, which every engine of a process shares.
    let tiny = Engine::open(&EngineOptions::new(model("golden/llama_p48_c8-cached"))).unwrap();
    drop(write(&tiny, 50));

    for (name, map_weights) in [
        ("smollm2-int4", false),
        ("smollm2-int4", true),
        ("smollm2-int8", false),
        ("smollm2-int8", true),
    ] {
        let folder = without_text(name);
        let options = EngineOptions {
            map_weights,
            ..EngineOptions::new(&folder)
        };
        let file = fs::metadata(folder.join("model.onnx.data")).unwrap().len() as usize;
        let (before, before_anonymous) = resident();

        let first = Engine::open(&options).unwrap();
        let sequence = write(&first, 200);
        let cache = sequence.stats().cache_bytes;
        let (running, anonymous) = resident();
        let (most, found) = ((file + cache) / 10 * 11, running.saturating_sub(before));
        let own = anonymous.saturating_sub(before_anonymous);
        println!(
            "{name}, mapped {map_weights}: file {file}, cache {cache}, resident {found}, of that anonymous {own}"
        );
        assert!(
            found <= most,
            "{name}: expected at most {most} bytes, found {found}"
        );
        // The weights are there, or nothing was measured, and they are the file's only where that was asked.
        assert!(
            found >= file / 10 * 8,
            "{name}: expected the weights of {file} bytes, found {found}"
        );
        assert_eq!(
            own < cache + file / 10,
            map_weights,
            "{name}: found {own} bytes that are not the file's"
        );

        let second = Engine::open(&options).unwrap();
        let other = write(&second, 200);
        let added = resident().1.saturating_sub(anonymous);
        let most = other.stats().cache_bytes + file / 10;
        println!("{name}: a second engine adds {added} bytes that are not the file's");
        assert!(
            added <= most,
            "{name}: expected at most {most} bytes of a second engine, found {added}"
        );
        // Both read the same numbers, wherever they lie.
        assert_eq!(sequence.logits().unwrap(), other.logits().unwrap());

        // The first one's weights stay for the second, and go with it.
        drop((sequence, first));
        let again = write(&second, 1);
        drop((other, again, second));
        let left = resident().1.saturating_sub(before_anonymous);
        assert!(
            left <= file / 5,
            "{name}: expected the weights to go with the last engine, found {left} bytes"
        );
    }
}
