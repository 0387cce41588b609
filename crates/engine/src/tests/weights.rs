//! Quantised weights, read and mapped.

use std::fs;
use std::sync::Arc;

use reasoning_rpc_test_support::model;

use crate::sampling::SamplingOptions;
use crate::{Engine, EngineOptions, SequenceOptions};
use reasoning_rpc_core::NoCompression;

fn logits(engine: &Engine) -> Vec<f32> {
    let options = SequenceOptions {
        policy: Arc::new(NoCompression),
        sampling: SamplingOptions::GREEDY,
        record_kept: false,
    };
    let mut sequence = engine.sequence(options).unwrap();
    sequence.append_tokens(&[1, 2, 3, 4, 5]).unwrap();
    engine.step(&mut [&mut sequence]).unwrap();
    sequence.accept(7).unwrap();
    engine.step(&mut [&mut sequence]).unwrap();
    sequence.logits().unwrap().to_vec()
}

#[test]
fn mapped_weights_give_the_same_bits() {
    let [read, mapped] = [false, true].map(|map_weights| {
        let options = EngineOptions {
            map_weights,
            ..EngineOptions::new(model("smollm2-int4"))
        };
        logits(&Engine::open(&options).unwrap())
    });
    assert_eq!(read, mapped);
}

/// A model folder that is exported anew while an engine has the old one open.
#[test]
fn weights_that_have_changed_are_read_again() {
    let (from, to) = (
        model("smollm2-int4"),
        std::env::temp_dir().join(format!("rrpc-weights-{}", std::process::id())),
    );
    fs::create_dir_all(&to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
    let options = EngineOptions {
        verify_weights: false,
        ..EngineOptions::new(&to)
    };
    let first = Engine::open(&options).unwrap();
    let before = logits(&first);
    let data = to.join("model.onnx.data");
    let mut bytes = fs::read(&data).unwrap();
    // The last bit of every number: none becomes infinite.
    bytes.iter_mut().for_each(|byte| *byte ^= 1);
    // A new file: what is mapped of the old one stays.
    fs::remove_file(&data).unwrap();
    fs::write(&data, &bytes).unwrap();
    let second = Engine::open(&options).unwrap();
    let after = logits(&second);
    assert!(after.iter().all(|logit| logit.is_finite()));
    assert_ne!(before, after);
    // What an engine has read stays what it was.
    assert_eq!(before, logits(&first));
    fs::remove_dir_all(&to).unwrap();
}
