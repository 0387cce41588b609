//! What a caller describes its memory with, and what it gets back.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::Arc;

use reasoning_rpc_core::RpcOptions;

use crate::error::Result;

/// A number format of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    F16,
    /// bfloat16, 2 bytes.
    Bf16,
    /// 1 byte, with a float32 scale for each entry and KV head. Keys and values only.
    I8,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::I8 => 1,
        }
    }
}

/// What selects.
#[derive(Clone)]
pub enum Selection {
    /// Nothing is dropped, and no compression is ever due.
    None,
    /// Reasoning Path Compression.
    Rpc,
    /// SnapKV, at the steps of the schedule: the window's attention over all entries, one set for each KV
    /// head.
    SnapKv,
    /// The first 4 candidates and the most recent ones; needs no scores.
    Streaming,
    /// Drawn by the seed, the layer, the KV head and the number of compressions; needs no scores.
    Random {
        /// The same for all sequences.
        seed: u64,
    },
    /// [`Lookahead`](reasoning_rpc_core::policies::Lookahead): the attention of the last interval's queries, rotated
    /// on by an interval, and a share of each entry's last score ([`Layer::history`]); one set for each KV head.
    /// It looks at more than scores: [`Compressor::plan`](crate::Compressor::plan) in place of `select`.
    Lookahead {
        /// Whether dropped entries are merged into kept ones.
        merges: bool,
        /// How queries and keys are rotated.
        rotary: Rotary,
    },
    /// The caller's.
    Callback(Arc<dyn Select>),
}

/// How queries and keys are rotated by their positions (rotary embedding): the first `2 * inv_freq.len()` elements
/// of a head, pair i by `position * inv_freq[i]` radians.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Of each pair, finite.
    pub inv_freq: Vec<f32>,
    /// Which elements are a pair.
    pub style: RotaryStyle,
}

/// Which elements of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryStyle {
    /// i and i + n/2 of the n rotated ones (GPT-NeoX, Llama in Hugging Face layout).
    HalfSplit,
    /// 2 i and 2 i + 1 (GPT-J).
    Interleaved,
}

/// A selection of the caller's.
pub trait Select: Send + Sync {
    /// Chooses what one sequence keeps in one layer. Called for each sequence that has candidates; what
    /// it answers is checked.
    ///
    /// # Errors
    /// What it says; the call ends with [`Error::Callback`](crate::Error::Callback), nothing moved.
    fn select(&self, request: &mut Request<'_>) -> std::result::Result<(), String>;
}

/// What a [`Select`] is shown of one sequence and layer, and where it answers.
#[derive(Debug)]
pub struct Request<'a> {
    /// The layer.
    pub layer: u32,
    /// The sequence's index in the batch.
    pub sequence: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Candidates, at least 1.
    pub candidates: u32,
    /// Compressions of the sequence before this one.
    pub compressions: u32,
    /// `[kv_heads][candidates]`, not pooled, no NaN.
    pub scores: &'a [f32],
    /// Out: room for `kv_heads * candidates`; `sets` sets of `kept_count` each, one after the other,
    /// ascending.
    pub kept: &'a mut [u32],
    /// Out: room for the options' `max_merges`.
    pub merges: &'a mut [Merge],
    /// Out: 1 or `kv_heads`, the same for all sequences of a batch. 1 before the call.
    pub sets: u32,
    /// Out: entries of each set. 0 before the call.
    pub kept_count: u32,
    /// Out: how many of `merges` count. 0 before the call.
    pub merge_count: u32,
}

/// What a compressor is made of.
#[derive(Clone)]
pub struct Options {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Elements of a key: a multiple of 8 up to 256.
    pub head_dim: usize,
    /// Of keys and values.
    pub dtype: Dtype,
    /// What products of queries and keys are multiplied by; `None`: `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// What selects.
    pub selection: Selection,
    /// The schedule (for all selections) and how [`Selection::Rpc`] chooses.
    pub rpc: RpcOptions,
    /// The most merges of one sequence in one layer, of all its KV heads; not looked at by a selection of the
    /// library that merges.
    pub max_merges: usize,
    /// Layers that windows are recorded of.
    pub recorded_layers: usize,
    /// Slots that windows are recorded of.
    pub recorded_sequences: usize,
}

/// Where one tensor lies. Strides in elements: from one sequence (dense) or block (paged) to the next, one
/// KV head to the next, one entry to the next. The `head_dim` elements of an entry lie together; scales are
/// one float each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tensor {
    /// Row or block 0, KV head 0, entry 0.
    pub data: *mut c_void,
    /// Not negative.
    pub strides: [i64; 3],
}

/// One layer's keys and values.
#[derive(Debug, Clone, Copy)]
pub struct Layer {
    /// Its index: which recorded windows are read, what a [`Select`] is told.
    pub layer: u32,
    /// Keys.
    pub keys: Tensor,
    /// Values.
    pub values: Tensor,
    /// Float32 scales of keys and of values: there for [`Dtype::I8`] only.
    pub scales: Option<[Tensor; 2]>,
    /// [`Selection::Lookahead`]: a float32 for each entry and KV head, which goes with the entry as its key does. 0
    /// for an entry that is new; compressions set it for those that stay, and leave 0 where entries were.
    pub history: Option<Tensor>,
}

/// A block table: row r begins at `ids + r * stride`.
#[derive(Debug, Clone, Copy)]
pub struct BlockTable {
    /// The first row's first id.
    pub ids: *const i32,
    /// Ids from one row to the next.
    pub stride: i64,
}

/// The sequences to compress, the same for every layer.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Valid entries of each sequence.
    pub lengths: &'a [i32],
    /// Leading entries of each that are never dropped.
    pub prompt_lengths: &'a [i32],
    /// Compressions of each before this one.
    pub compressions: &'a [i32],
    /// The row of each in the tensors (dense) or in the block table (paged); `None`: 0, 1, 2, ...
    pub rows: Option<&'a [i32]>,
    /// `None`: dense.
    pub block_table: Option<BlockTable>,
    /// Blocks that are never written.
    pub shared_blocks: &'a [i32],
    /// Free blocks: copy k goes to `spare_blocks[k]`.
    pub spare_blocks: &'a [i32],
    /// Rows of the tensors (dense) or of the block table (paged).
    pub row_count: u32,
    /// Paged: entries of a block. Dense: entries that each row has room for.
    pub block_entries: u32,
    /// Paged: blocks of the tensors. Dense: 0.
    pub block_count: u32,
}

/// The rotated queries of the newest `window` tokens of each sequence; [`Selection::Lookahead`]: of the newest
/// `interval` tokens.
#[derive(Debug, Clone, Copy)]
pub enum Window<'a> {
    /// What [`Compressor::record`](crate::Compressor::record) kept.
    Recorded {
        /// The slot of each sequence; `None`: its row.
        slots: Option<&'a [i32]>,
    },
    /// A ring of the host's.
    Ring {
        /// Row 0, place 0, query head 0.
        queries: *const c_void,
        /// Elements from one row, place, query head to the next.
        strides: [i64; 3],
        /// The place of the oldest of those tokens of each sequence; `None`: 0.
        oldest: Option<&'a [i32]>,
        /// Places, at least as many as those tokens.
        ring_tokens: u32,
        /// F32, F16 or Bf16.
        dtype: Dtype,
    },
}

/// An entry that goes into another: `key(into) = (1 - sum of key_weight) key(into) + sum of key_weight key(from)`,
/// values alike, in float32, rounded once. Indices are of candidates.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Merge {
    /// The sequence's index in the batch.
    pub sequence: u32,
    /// The KV head.
    pub kv_head: u32,
    /// The candidate that is dropped.
    pub from: u32,
    /// The candidate that is kept.
    pub into: u32,
    /// Finite.
    pub key_weight: f32,
    /// Finite.
    pub value_weight: f32,
}

/// A shared block in the way of what moves: entry `index` of the sequence's row of the block table becomes `to`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockCopy {
    /// The sequence's index in the batch.
    pub sequence: u32,
    /// Which entry of its row.
    pub index: u32,
    /// The shared block.
    pub from: i32,
    /// The spare block.
    pub to: i32,
}

/// What a compression of one layer keeps, copies and sets free.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan<'a> {
    /// `[sequences]` Entries of each kept set.
    pub kept_counts: &'a [u32],
    /// Per sequence, per set: candidates, ascending. Candidate 0 is entry `prompt_length`.
    pub kept: &'a [u32],
    /// `[sequences]` Lengths afterwards.
    pub new_lengths: &'a [i32],
    /// Ascending by sequence and index.
    pub copies: &'a [BlockCopy],
    /// Per sequence, in the order of its table: the `from` of its copies, then the blocks behind its new length.
    pub freed_blocks: &'a [i32],
    /// Ascending by sequence, kv_head, into, from.
    pub merges: &'a [Merge],
    /// [`Selection::Lookahead`]: what the history of each of `kept` becomes. Finite. Empty for the others.
    pub history: &'a [f32],
    /// [`Selection::Lookahead`] that merges: by how much of the direction the key of each of `kept` is shifted,
    /// 0 for those that nothing is merged into. Finite. Empty: none is.
    pub key_shifts: &'a [f32],
    /// `[sequences][kv_heads][head_dim]` The directions. Finite. Empty if there are no shifts.
    pub key_directions: &'a [f32],
    /// Kept sets of each sequence: 1 or `kv_heads`.
    pub sets: u32,
}

/// What calls with a batch need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of the workspace, at any address. Enough for all batches of the same block and table sizes
    /// whose sequences are not more and not longer.
    pub workspace_bytes: usize,
    /// Floats of the scores, exactly.
    pub score_count: usize,
}

/// Memory for the work of one call at a time. [`Plan`]s lie at its beginning, scratch at its end.
#[derive(Debug, Clone, Copy)]
pub struct Workspace {
    pub(crate) address: *mut MaybeUninit<u8>,
    pub(crate) bytes: usize,
}

impl Workspace {
    /// `bytes` bytes at `address`, aligned or not.
    ///
    /// # Errors
    /// `address` is null with `bytes` above 0, or they are more than a slice can have.
    pub fn new(address: *mut c_void, bytes: usize) -> Result<Self> {
        if (address.is_null() && bytes > 0) || bytes > isize::MAX as usize {
            return crate::error::refuse(
                "workspace",
                "an address and a size",
                format!("{bytes} bytes at {address:?}"),
            );
        }
        Ok(Self {
            address: address.cast(),
            bytes,
        })
    }
}
