//! The engine: model folders, graph runners, the block pool, sequences, sampling and text.
//!
//! ```no_run
//! use std::sync::Arc;
//! use reasoning_rpc_core::{Rpc, RpcOptions};
//! use reasoning_rpc_engine::{Engine, EngineOptions, Event, GenerateOptions, SequenceOptions};
//!
//! # fn main() -> reasoning_rpc_engine::Result<()> {
//! let engine = Engine::open(&EngineOptions::new("models/smollm2-int4"))?;
//! let mut sequence = engine.sequence(SequenceOptions {
//!     policy: Arc::new(Rpc::new(RpcOptions::default())?),
//!     sampling: engine.default_sampling(),
//!     record_kept: false,
//! })?;
//! sequence.append_text("Once upon a time")?;
//! let mut answer = sequence.generate(&GenerateOptions::default())?;
//! let mut text = String::new();
//! while let Some(event) = answer.next_event()? {
//!     if let Event::Token { text: piece, .. } | Event::End { text: piece, .. } = event {
//!         text.push_str(piece);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod cache;
mod compress;
mod engine;
mod error;
mod evict;
mod generate;
mod huge_pages;
mod metrics;
pub mod model;
mod runner;
pub mod runtime;
pub mod sampling;
pub mod scheduler;
mod sequence;
mod state;
#[cfg(test)]
mod tests;
pub mod text;

pub use cache::{CacheType, CacheView};
pub use compress::{Candidates, CompressionRecord};
pub use engine::{Engine, EngineOptions};
pub use error::{Error, Result};
pub use generate::{Answer, Event, GenerateOptions, Generation, StopReason};
pub use metrics::Metrics;
pub use sequence::{Sequence, SequenceOptions, Stats};

pub use reasoning_rpc_core as core;
pub use reasoning_rpc_cpu::Simd;
