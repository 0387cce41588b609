//! The C ABI of the engine: `libreasoning_rpc.so` and `include/reasoning_rpc.h`.
//!
//! No logic lives here: arguments are converted and checked, handles looked up, errors handed out,
//! panics caught. The documentation of every item below is what C programmers read: the header is
//! generated from it, one section per module, in the order of `tests/header.rs`.
//!
//! Every function runs inside `guard::guard`; handles are looked up in `handles`; structs that
//! grow with the ABI are read and written by `sized` only.

#![allow(unsafe_code)] // what C hands over is raw memory
#![allow(non_camel_case_types)] // these are the names that C sees
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod answer;
mod args;
mod cache;
mod compression;
mod compressor;
mod compressor_options;
mod engine;
mod error;
mod fork;
mod generate;
mod guard;
mod handles;
mod kv;
mod log;
mod metrics;
mod plan;
mod policy;
mod scheduler;
mod select;
mod sequence;
mod sequence_options;
mod sized;
mod state;
mod stats;
mod step;
mod tensor;
mod text;
mod version;

pub use answer::*;
pub use cache::*;
pub use compression::*;
pub use compressor::*;
pub use compressor_options::*;
pub use engine::*;
pub use error::*;
pub use generate::*;
pub use kv::*;
pub use log::*;
pub use metrics::*;
pub use plan::*;
pub use policy::*;
pub use scheduler::*;
pub use sequence::*;
pub use sequence_options::*;
pub use state::*;
pub use stats::*;
pub use step::*;
pub use tensor::*;
pub use text::*;
pub use version::*;

const _: () = assert!(size_of::<usize>() == 8, "handles and lengths are 64 bits wide");
