//! The model that a command runs.

use reasoning_rpc_engine::EngineOptions;

use crate::args::{Given, Group, option, switch};
use crate::compression;

/// The options.
pub const GROUP: Group = Group {
    title: "Model",
    options: &[
        option(
            "model",
            "DIR",
            "the model folder, as reasoning-rpc-export writes it",
        ),
        switch(
            "no-verify",
            "do not compare the hash of the weights with the manifest's",
        ),
        option(
            "onnxruntime",
            "FILE",
            "libonnxruntime.so [the variable RRPC_ONNXRUNTIME, else beside\nthis program or in ../lib]",
        ),
        option("threads", "N", "threads of a step; 0: one per core [0]"),
    ],
};

/// How the engine is opened.
pub fn options(given: &Given) -> anyhow::Result<EngineOptions> {
    Ok(EngineOptions {
        onnxruntime: given.path("onnxruntime"),
        threads: given
            .number("threads", "a whole number up to 1024", |count| *count <= 1024)?
            .unwrap_or(0),
        cache_type: compression::cache_type(given)?,
        budget: given.bytes("budget")?,
        verify_weights: !given.has("no-verify"),
        ..EngineOptions::new(given.model()?)
    })
}
