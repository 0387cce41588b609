//! Where a host's caches lie: layers of keys and values, batches of sequences, windows of queries.

use std::ffi::c_void;
use std::ptr;

use reasoning_rpc_compressor::{Batch, BlockTable, Dtype, Layer, Tensor, Window};

use crate::args::{self, choice, items};
use crate::compressor_options::{RRPC_DTYPE_BF16, RRPC_DTYPE_I8};
use crate::engine::{RRPC_DTYPE_F16, RRPC_DTYPE_F32};
use crate::error::Failure;
use crate::sized::{self, sized};

/// The most sequences of a batch.
pub(crate) const MOST_SEQUENCES: usize = 1 << 16;
/// The most blocks that a list names.
const MOST_BLOCKS: usize = i32::MAX as usize;

/// The keys and values of one layer. Strides are counted in elements of the tensor (scale strides in
/// floats) and go from one sequence (dense) or block (paged) to the next, from one KV head to the next,
/// and from one entry to the next: head-major and token-major pages differ in them only. The head_dim
/// elements of an entry lie together. Strides are not negative; entries that overlap are refused.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_kv_layer {
    /// sizeof(rrpc_kv_layer), set by the caller.
    pub struct_size: usize,
    /// Keys, rotated, of the compressor's dtype and aligned to it: row or block 0, KV head 0, entry 0.
    pub keys: *mut c_void,
    /// Values, likewise.
    pub values: *mut c_void,
    /// RRPC_DTYPE_I8: the scale of each key of each KV head. NULL for the other types.
    pub key_scales: *mut f32,
    /// Likewise, of each value.
    pub value_scales: *mut f32,
    /// Elements from one sequence or block, KV head, entry of the keys to the next.
    pub key_strides: [i64; 3],
    /// Likewise, of the values.
    pub value_strides: [i64; 3],
    /// Likewise, of the keys' scales, in floats. Read for RRPC_DTYPE_I8 only.
    pub key_scale_strides: [i64; 3],
    /// Likewise, of the values' scales.
    pub value_scale_strides: [i64; 3],
    /// The layer: which recorded windows are read, what a callback is told, what errors say.
    pub layer: u32,
    /// 0.
    pub reserved: u32,
    /// RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE, not read for others: a float for each entry of each
    /// KV head, the policy's, which belongs to the entry as its key does and is moved and copied with it. The host
    /// sets it to 0 for every entry of a row or block that it takes into use; from then on compressions write it: for
    /// candidates that stay, and 0 where entries were.
    pub history: *mut f32,
    /// Floats from one sequence or block, KV head, entry of the history to the next.
    pub history_strides: [i64; 3],
}

sized!(rrpc_kv_layer {
    struct_size,
    keys,
    values,
    key_scales,
    value_scales,
    key_strides,
    value_strides,
    key_scale_strides,
    value_scale_strides,
    layer,
    reserved,
    history,
    history_strides,
});

/// The sequences to compress, the same for every layer. Arrays are read during the call only, and must
/// not be changed meanwhile.
///
/// A sequence's entries are its prompt (`prompt_lengths`), then the candidates, then the window:
/// candidates = max(0, length - prompt_length - window). The prompt and the window always stay.
///
/// Blocks of a sequence that a compression may write must be its own: such a block occurs once in the
/// batch, or is named in `shared_blocks`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_kv_batch {
    /// sizeof(rrpc_kv_batch), set by the caller.
    pub struct_size: usize,
    /// `[sequences]` Valid entries of each sequence, those of the newest token included.
    pub lengths: *const i32,
    /// `[sequences]` Leading entries of each that are never dropped.
    pub prompt_lengths: *const i32,
    /// `[sequences]` Compressions of each before this one.
    pub compressions: *const i32,
    /// `[sequences]` The row of each in the tensors (dense) or in the block table (paged). NULL: 0, 1,
    /// 2, and so on. Dense rows occur once each.
    pub rows: *const i32,
    /// Paged: ids of blocks, below `block_count`. Row r begins at block_table + r * block_table_stride
    /// and has at least as many ids as its sequence's length takes; what lies behind is not read. NULL:
    /// dense.
    pub block_table: *const i32,
    /// Ids from one row of the block table to the next.
    pub block_table_stride: i64,
    /// `[shared_count]` Blocks that others read too (prefix caches, forks), which are never written. NULL
    /// if there are none.
    pub shared_blocks: *const i32,
    /// Shared blocks.
    pub shared_count: usize,
    /// `[spare_count]` Free blocks that shared ones may be copied to: copy k goes to spare_blocks[k]. NULL
    /// if there are none.
    pub spare_blocks: *const i32,
    /// Spare blocks.
    pub spare_count: usize,
    /// The stream to work on. NULL on the CPU.
    pub stream: *mut c_void,
    /// Sequences of the batch, up to 65536. With none nothing is done.
    pub sequences: u32,
    /// Rows of the tensors (dense) or of the block table (paged).
    pub row_count: u32,
    /// Paged: entries of one block. Dense: entries that each row has room for.
    pub block_entries: u32,
    /// Paged: blocks of the tensors. Dense: 0.
    pub block_count: u32,
}

sized!(rrpc_kv_batch {
    struct_size,
    lengths,
    prompt_lengths,
    compressions,
    rows,
    block_table,
    block_table_stride,
    shared_blocks,
    shared_count,
    spare_blocks,
    spare_count,
    stream,
    sequences,
    row_count,
    block_entries,
    block_count,
});

/// The rotated queries that score the candidates: those of each sequence's newest `window` tokens, with
/// RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE of its newest `interval` tokens. A ring of the host's, or
/// what rrpc_compressor_record kept.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_query_window {
    /// sizeof(rrpc_query_window), set by the caller.
    pub struct_size: usize,
    /// The ring: row 0, token 0, query head 0; aligned to its type. NULL: the recorded queries of this
    /// layer; the next two fields are not read then.
    pub queries: *const c_void,
    /// Elements from one row, token, query head to the next. Rows are those of the batch's `rows`; the
    /// head_dim elements of a query lie together. Not negative.
    pub strides: [i64; 3],
    /// `[sequences]` The place in the ring, below `ring_tokens`, of the oldest of those tokens; the next
    /// ones follow, and place 0 follows the last. NULL: 0.
    pub oldest: *const i32,
    /// `[sequences]` Recorded queries: the slot of each sequence. NULL: its row.
    pub slots: *const i32,
    /// Tokens that each row of the ring has room for, at least as many as those that score.
    pub ring_tokens: u32,
    /// Type of the queries: RRPC_DTYPE_F32, RRPC_DTYPE_F16 or RRPC_DTYPE_BF16.
    pub dtype: u32,
}

sized!(rrpc_query_window {
    struct_size,
    queries,
    strides,
    oldest,
    slots,
    ring_tokens,
    dtype,
});

/// What a layer that says nothing says.
pub(crate) const LAYER: rrpc_kv_layer = rrpc_kv_layer {
    struct_size: size_of::<rrpc_kv_layer>(),
    keys: ptr::null_mut(),
    values: ptr::null_mut(),
    key_scales: ptr::null_mut(),
    value_scales: ptr::null_mut(),
    key_strides: [0; 3],
    value_strides: [0; 3],
    key_scale_strides: [0; 3],
    value_scale_strides: [0; 3],
    layer: 0,
    reserved: 0,
    history: ptr::null_mut(),
    history_strides: [0; 3],
};

/// Likewise, a batch.
pub(crate) const BATCH: rrpc_kv_batch = rrpc_kv_batch {
    struct_size: size_of::<rrpc_kv_batch>(),
    lengths: ptr::null(),
    prompt_lengths: ptr::null(),
    compressions: ptr::null(),
    rows: ptr::null(),
    block_table: ptr::null(),
    block_table_stride: 0,
    shared_blocks: ptr::null(),
    shared_count: 0,
    spare_blocks: ptr::null(),
    spare_count: 0,
    stream: ptr::null_mut(),
    sequences: 0,
    row_count: 0,
    block_entries: 0,
    block_count: 0,
};

/// Likewise, a window.
pub(crate) const WINDOW: rrpc_query_window = rrpc_query_window {
    struct_size: size_of::<rrpc_query_window>(),
    queries: ptr::null(),
    strides: [0; 3],
    oldest: ptr::null(),
    slots: ptr::null(),
    ring_tokens: 0,
    dtype: 0,
};

/// A type of keys, values or queries.
pub(crate) fn dtype(argument: &str, value: u32, of_queries: bool) -> Result<Dtype, Failure> {
    let types = [
        (RRPC_DTYPE_F32, Dtype::F32),
        (RRPC_DTYPE_F16, Dtype::F16),
        (RRPC_DTYPE_BF16, Dtype::Bf16),
        (RRPC_DTYPE_I8, Dtype::I8),
    ];
    choice(argument, value, &types[..types.len() - usize::from(of_queries)])
}

fn null_unless(argument: &str, is_null: bool) -> Result<(), Failure> {
    match is_null {
        true => Ok(()),
        false => Err(Failure::argument(format!(
            "{argument}: expected NULL, found a pointer"
        ))),
    }
}

fn not_null(argument: &str, pointer: *const c_void) -> Result<(), Failure> {
    match pointer.is_null() {
        false => Ok(()),
        true => Err(Failure::null(argument)),
    }
}

/// An array that may be missing.
///
/// # Safety
/// `data` is NULL or points to `count` items.
unsafe fn optional<'a, T>(argument: &str, data: *const T, count: usize) -> Result<Option<&'a [T]>, Failure> {
    if data.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    unsafe { items(argument, data, count, MOST_SEQUENCES) }.map(Some)
}

/// # Safety
/// `layer` is NULL or valid for its struct_size.
pub(crate) unsafe fn read_layer(layer: *const rrpc_kv_layer, dtype: Dtype) -> Result<Layer, Failure> {
    // SAFETY: the caller's promise.
    let given = unsafe { sized::read("layer", layer, LAYER) }?;
    args::zero("layer.reserved", given.reserved)?;
    not_null("layer.keys", given.keys)?;
    not_null("layer.values", given.values)?;
    let scales = if dtype == Dtype::I8 {
        not_null("layer.key_scales", given.key_scales.cast())?;
        not_null("layer.value_scales", given.value_scales.cast())?;
        Some([
            Tensor {
                data: given.key_scales.cast(),
                strides: given.key_scale_strides,
            },
            Tensor {
                data: given.value_scales.cast(),
                strides: given.value_scale_strides,
            },
        ])
    } else {
        null_unless("layer.key_scales", given.key_scales.is_null())?;
        null_unless("layer.value_scales", given.value_scales.is_null())?;
        None
    };
    Ok(Layer {
        layer: given.layer,
        keys: Tensor {
            data: given.keys,
            strides: given.key_strides,
        },
        values: Tensor {
            data: given.values,
            strides: given.value_strides,
        },
        scales,
        history: (!given.history.is_null()).then_some(Tensor {
            data: given.history.cast(),
            strides: given.history_strides,
        }),
    })
}

/// # Safety
/// `batch` is NULL or valid for its struct_size, and so are its arrays for their counts, as long as the
/// result is used.
pub(crate) unsafe fn read_batch<'a>(batch: *const rrpc_kv_batch) -> Result<Batch<'a>, Failure> {
    // SAFETY: the caller's promise.
    let given = unsafe { sized::read("batch", batch, BATCH) }?;
    null_unless("batch.stream", given.stream.is_null())?;
    let count = given.sequences as usize;
    let block_table = if given.block_table.is_null() {
        None
    } else {
        if !given.block_table.is_aligned() {
            return Err(Failure::argument(format!(
                "batch.block_table: expected an address that is a multiple of 4, found {:#x}",
                given.block_table.addr()
            )));
        }
        Some(BlockTable {
            ids: given.block_table,
            stride: given.block_table_stride,
        })
    };
    // SAFETY: the caller's promise: each array has as many items as its struct says.
    unsafe {
        Ok(Batch {
            lengths: items("batch.lengths", given.lengths, count, MOST_SEQUENCES)?,
            prompt_lengths: items(
                "batch.prompt_lengths",
                given.prompt_lengths,
                count,
                MOST_SEQUENCES,
            )?,
            compressions: items("batch.compressions", given.compressions, count, MOST_SEQUENCES)?,
            rows: optional("batch.rows", given.rows, count)?,
            block_table,
            shared_blocks: items(
                "batch.shared_blocks",
                given.shared_blocks,
                given.shared_count,
                MOST_BLOCKS,
            )?,
            spare_blocks: items(
                "batch.spare_blocks",
                given.spare_blocks,
                given.spare_count,
                MOST_BLOCKS,
            )?,
            row_count: given.row_count,
            block_entries: given.block_entries,
            block_count: given.block_count,
        })
    }
}

/// # Safety
/// `window` is NULL or valid for its struct_size, and its arrays have `sequences` items as long as the
/// result is used.
pub(crate) unsafe fn read_window<'a>(
    window: *const rrpc_query_window,
    sequences: usize,
) -> Result<Window<'a>, Failure> {
    // SAFETY: the caller's promise.
    let given = unsafe { sized::read("window", window, WINDOW) }?;
    // SAFETY: the caller's promise.
    unsafe {
        if given.queries.is_null() {
            let slots = optional("window.slots", given.slots, sequences)?;
            return Ok(Window::Recorded { slots });
        }
        Ok(Window::Ring {
            queries: given.queries,
            strides: given.strides,
            oldest: optional("window.oldest", given.oldest, sequences)?,
            ring_tokens: given.ring_tokens,
            dtype: dtype("window.dtype", given.dtype, true)?,
        })
    }
}
