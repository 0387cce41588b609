//! Compresses KV caches that lie in a host's memory: dense tensors, or blocks with a block table. It needs
//! no engine, model or runtime; only what to keep ([`reasoning_rpc_core`]) and the CPU's loops.
//!
//! A compression of one layer is [`score`](Compressor::score), [`select`](Compressor::select),
//! [`apply`](Compressor::apply), for a batch of sequences; [`plan`](Compressor::plan) is the first two at once, and
//! [`compress`](Compressor::compress) the three. Results for a sequence do not depend on what else is in the batch, on strides or on blocks.
//!
//! Rules:
//! - Everything that can be checked is, before the host's tensors are written: after an [`Error`] they are
//!   as they were.
//! - These calls allocate nothing and wait for nothing (the text of an error is allocated); memory to
//!   work in is the caller's ([`Workspace`], [`Compressor::sizes`]).
//! - Any number of calls may run at once on one compressor, each with its own workspace and its own blocks.
#![allow(unsafe_code)] // a host's tensors are raw memory: each block says why it is sound

mod ahead;
mod apply;
mod batch;
mod compressor;
mod draft;
mod error;
mod plan;
mod rings;
mod score;
mod select;
mod tensors;
mod types;
mod workspace;

pub use compressor::Compressor;
pub use error::{Error, Result};
pub use types::{
    Batch, BlockCopy, BlockTable, Dtype, Layer, Merge, Options, Plan, Request, Rotary, RotaryStyle, Select,
    Selection, Sizes, Tensor, Window, Workspace,
};
