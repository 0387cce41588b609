//! The ONNX Runtime adapter: loading the library, sessions over our own memory, and the
//! operators that run the CPU's loops inside a graph.
//!
//! The only room of the engine, beside the cache's memory, that needs `unsafe`.

mod float_mode;
mod library;
mod linear;
mod operator;
mod record;
mod session;
mod tensors;
mod units;
mod workers;

pub use library::{LIBRARY_VARIABLE, load};
#[cfg(test)]
pub(crate) use operator::Fault;
pub(crate) use operator::{AttentionState, operator_domain};
pub(crate) use session::{Input, Output, Session};
