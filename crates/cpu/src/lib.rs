//! The CPU's hot loops over a KV cache, on plain slices and views: rotation of queries and keys, append, attention, scoring,
//! compaction and merging. Nothing here knows a model, a runtime, a policy or a thread pool.
//!
//! Every operation takes the instruction set as its first argument ([`Simd`]: portable, AVX2 or AVX-512, chosen at run time) and works
//! on one KV head of one sequence of one layer. The cache is a [`KvPages`] (or [`KvPagesMut`]): pages of entries at arbitrary
//! addresses, a dense tensor being one page. Element types are `f32`, `half::f16` and
//! `half::bf16` ([`Element`]) and, for scoring, compaction and merging, `i8` with scales ([`Stored`]); all arithmetic is in `f32`.
//!
//! Rules that hold for all operations:
//! - Sizes are checked and misuse is an [`Error`] with the numbers that were expected and found; nothing panics, and on an error
//!   nothing has been written.
//! - Results depend on the instruction set and on nothing else: not on what else is in the call, on page size or strides, on where a
//!   chunk begins, or on the thread. Between instruction sets they differ by rounding.
//! - Temporary memory comes from a [`Scratch`], which only grows, so that in steady state nothing is allocated; or from the caller
//!   ([`ScratchOn::over`]), and then nothing ever is.
//! - Every operation may run concurrently with every other one as long as nobody writes what another reads or writes.
//! - No operation needs denormals to be kept or flushed; a caller that wants the speed of flushing sets it for its threads.
#![allow(unsafe_code)] // raw pages, SIMD intrinsics and disjoint outputs written in parallel: each block says why it is sound

mod append;
mod attend;
mod compact;
mod element;
mod error;
mod heads;
mod kernels;
mod merge;
mod moments;
mod pages;
mod product;
mod rope;
mod score;
mod scratch;
mod simd;
mod vector;

pub use append::append;
pub use attend::{
    ATTEND_CHUNK, ATTEND_TOKEN_TILE, Recorded, add_attention, attend, attend_chunks, attend_recorded,
    attend_scratch_bytes, chunk_floats, merge_chunks, recorded_floats,
};
pub use compact::{PositionPagesMut, compact, compact_positions, move_entry};
pub use element::{Element, Stored};
pub use error::Error;
pub use heads::{Heads, HeadsMut};
pub use merge::{Merge, merged_rows, read_key, read_value, write_rows};
pub use moments::add_moments;
pub use pages::{KvPages, KvPagesMut, Layout, MAX_HEAD_DIM, Scales};
pub use product::{
    BLOCK, BlockFormat, Linear, Norm, PANEL_ROWS, QuantizedMatrix, QuantizedTile, RowsMut, TILE_WIDTH,
    multiply, multiply_gated, quantize, tiles_of,
};
pub use rope::{rope_table, rotate};
pub use score::{score, score_scratch_bytes, score_visible};
pub use scratch::{Scratch, ScratchOn};
pub use simd::{SIMD_ENV, Simd, SimdError};
