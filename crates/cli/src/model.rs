//! The model that a command runs.

use std::path::{Path, PathBuf};

use reasoning_rpc_engine::{Engine, EngineOptions};

use crate::args::{Given, Group, Opt, option, switch};
use crate::compression;

const MODEL: Opt = option(
    "model",
    "DIR",
    "the model folder, as reasoning-rpc-export writes it",
);
const NO_VERIFY: Opt = switch(
    "no-verify",
    "do not compare the hash of the weights with the manifest's",
);
const MAP_WEIGHTS: Opt = switch(
    "map-weights",
    "read quantised weights where their file is mapped, not from memory\nof this process's own: slower, and shared with other processes",
);
const ONNXRUNTIME: Opt = option(
    "onnxruntime",
    "FILE",
    "libonnxruntime.so [the variable RRPC_ONNXRUNTIME, else beside\nthis program or in ../lib]",
);
const THREADS: Opt = option("threads", "N", "threads of a step; 0: one per core [0]");

/// The options.
pub const GROUP: Group = Group {
    title: "Model",
    options: &[MODEL, NO_VERIFY, MAP_WEIGHTS, ONNXRUNTIME, THREADS],
};

/// For commands that run several models.
pub const MANY_GROUP: Group = Group {
    title: "Models",
    options: &[
        Opt {
            many: true,
            help: "a model folder, as reasoning-rpc-export writes it; repeatable",
            ..MODEL
        },
        NO_VERIFY,
        MAP_WEIGHTS,
        ONNXRUNTIME,
        THREADS,
    ],
};

/// The model folders, at least one.
pub fn folders(given: &Given) -> anyhow::Result<Vec<PathBuf>> {
    given.model()?;
    Ok(given.paths("model"))
}

/// How the engine is opened.
pub fn options(given: &Given) -> anyhow::Result<EngineOptions> {
    options_of(given, &given.model()?)
}

/// How the engine of one of several models is opened.
pub fn options_of(given: &Given, folder: &Path) -> anyhow::Result<EngineOptions> {
    Ok(EngineOptions {
        onnxruntime: given.path("onnxruntime"),
        threads: given
            .number("threads", "a whole number up to 1024", |count| *count <= 1024)?
            .unwrap_or(0),
        cache_type: compression::cache_type(given)?,
        budget: given.bytes("budget")?,
        verify_weights: !given.has("no-verify"),
        map_weights: given.has("map-weights"),
        ..EngineOptions::new(folder)
    })
}

/// An engine for so many sequences at once: if no budget was named, what the whole context of each of them takes
/// uncompressed.
pub fn open(options: &EngineOptions, sequences: usize) -> anyhow::Result<Engine> {
    let engine = Engine::open(options)?;
    if options.budget.is_some() || sequences == 1 {
        return Ok(engine);
    }
    let budget = engine.budget().0.saturating_mul(sequences);
    drop(engine);
    Ok(Engine::open(&EngineOptions {
        budget: Some(budget),
        verify_weights: false,
        ..options.clone()
    })?)
}
