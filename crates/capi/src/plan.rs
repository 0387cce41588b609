//! Plans of compressions: what stays, moves, is copied and set free.

use std::ptr;

use reasoning_rpc_compressor::{Batch, BlockCopy, Plan};

use crate::args::items;
use crate::compressor_options::rrpc_merge;
use crate::error::Failure;
use crate::kv::MOST_SEQUENCES;
use crate::sized::{self, sized};

/// The most floats or ids of one array.
pub(crate) const MOST_ITEMS: usize = isize::MAX as usize / 8;

/// A block that is copied before a sequence is compressed, because it is shared and in the way of what
/// moves. This struct never grows.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct rrpc_block_copy {
    /// The sequence's index in the batch.
    pub sequence: u32,
    /// Which entry of the sequence's row of the block table becomes `to`.
    pub index: u32,
    /// The shared block.
    pub from: i32,
    /// The spare block that takes its place.
    pub to: i32,
}

/// What a compression of one layer keeps, moves, copies and sets free.
///
/// Made by rrpc_compressor_select or rrpc_compressor_plan, its arrays lie in the workspace of that call. A host may
/// change it, or make one of its own, for rrpc_compressor_apply. Everything but the kept sets, the merges and what
/// becomes of histories and keys follows from them and the batch, and is the same for every layer if the kept counts are.
///
/// After the compression a sequence's cache is its prompt, the kept candidates in their order, and the
/// window; a host sets its length to `new_lengths`, writes the copies to its block table, and drops one
/// reference to each of `freed_blocks`. Positions that a host stores for each entry it moves alike.
///
/// If anything of a sequence is dropped, each of its shared blocks that holds an entry from its
/// prompt_length up to its new length is copied first, whole, with all KV heads, keys, values and scales.
/// Freed are the blocks behind the new length and the `from` of the copies.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_plan {
    /// sizeof(rrpc_plan), set by the caller.
    pub struct_size: usize,
    /// `[sequences]` Entries of each kept set of each sequence.
    pub kept_counts: *const u32,
    /// For each sequence, for each of its sets, its candidates that stay, ascending. Candidate 0 is the
    /// entry behind the prompt.
    pub kept: *const u32,
    /// Items of `kept`: `sets` times the sum of the kept counts.
    pub kept_len: usize,
    /// `[sequences]` Entries of each sequence afterwards.
    pub new_lengths: *const i32,
    /// Blocks to copy, in order of sequence and index.
    pub copies: *const rrpc_block_copy,
    /// Copies; 0 for dense tensors.
    pub copy_count: usize,
    /// Paged: blocks to which a sequence has one reference less afterwards: for each sequence in the order
    /// of its row, the `from` of its copies, then the blocks behind its new length. A block that several
    /// sequences let go occurs so many times.
    pub freed_blocks: *const i32,
    /// Freed blocks; 0 for dense tensors.
    pub freed_count: usize,
    /// Entries that are merged into others, sorted by sequence, kv_head, into, from.
    pub merges: *const rrpc_merge,
    /// Merges.
    pub merge_count: usize,
    /// Sequences of the batch.
    pub sequences: u32,
    /// Kept sets of each sequence: 1 for all KV heads, or one for each.
    pub sets: u32,
    /// RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE: `[kept_len]` what the history of each of `kept`
    /// becomes. NULL for other policies.
    pub history: *const f32,
    /// RRPC_POLICY_LOOKAHEAD_MERGE: `[kept_len]` how much of its direction is added to the key of each of `kept`,
    /// after the merges and before it is rounded; 0 for entries that nothing is merged into. NULL: 0 for all.
    pub key_shifts: *const f32,
    /// `[sequences][kv_heads][head_dim]` The directions; NULL if `key_shifts` is.
    pub key_directions: *const f32,
}

sized!(rrpc_plan {
    struct_size,
    kept_counts,
    kept,
    kept_len,
    new_lengths,
    copies,
    copy_count,
    freed_blocks,
    freed_count,
    merges,
    merge_count,
    sequences,
    sets,
    history,
    key_shifts,
    key_directions,
});

// The library's own struct is what C sees.
const _: () = {
    assert!(size_of::<rrpc_block_copy>() == size_of::<BlockCopy>());
    assert!(align_of::<rrpc_block_copy>() == align_of::<BlockCopy>());
    assert!(std::mem::offset_of!(rrpc_block_copy, from) == std::mem::offset_of!(BlockCopy, from));
    assert!(std::mem::offset_of!(rrpc_block_copy, to) == std::mem::offset_of!(BlockCopy, to));
};

/// What no plan says.
const PLAN: rrpc_plan = rrpc_plan {
    struct_size: size_of::<rrpc_plan>(),
    kept_counts: ptr::null(),
    kept: ptr::null(),
    kept_len: 0,
    new_lengths: ptr::null(),
    copies: ptr::null(),
    copy_count: 0,
    freed_blocks: ptr::null(),
    freed_count: 0,
    merges: ptr::null(),
    merge_count: 0,
    sequences: 0,
    sets: 0,
    history: ptr::null(),
    key_shifts: ptr::null(),
    key_directions: ptr::null(),
};

/// # Safety
/// `to` is NULL or valid for its struct_size.
pub(crate) unsafe fn write_plan(to: *mut rrpc_plan, plan: &Plan<'_>) -> Result<(), Failure> {
    let unless_empty = |floats: &[f32]| match floats {
        [] => ptr::null(),
        _ => floats.as_ptr(),
    };
    let value = rrpc_plan {
        kept_counts: plan.kept_counts.as_ptr(),
        kept: plan.kept.as_ptr(),
        kept_len: plan.kept.len(),
        new_lengths: plan.new_lengths.as_ptr(),
        copies: plan.copies.as_ptr().cast(),
        copy_count: plan.copies.len(),
        freed_blocks: plan.freed_blocks.as_ptr(),
        freed_count: plan.freed_blocks.len(),
        merges: plan.merges.as_ptr().cast(),
        merge_count: plan.merges.len(),
        sequences: plan.kept_counts.len() as u32,
        sets: plan.sets,
        history: unless_empty(plan.history),
        key_shifts: unless_empty(plan.key_shifts),
        key_directions: unless_empty(plan.key_directions),
        ..PLAN
    };
    // SAFETY: the caller's promise.
    unsafe { sized::write("plan", to, &value) }
}

/// # Safety
/// `plan` is NULL or valid for its struct_size, and so are its arrays for their counts, as long as the
/// result is used.
pub(crate) unsafe fn read_plan<'a>(
    plan: *const rrpc_plan,
    batch: &Batch<'_>,
    key_floats: usize,
) -> Result<Plan<'a>, Failure> {
    // SAFETY: the caller's promise.
    let given = unsafe { sized::read("plan", plan, PLAN) }?;
    let count = given.sequences as usize;
    if count != batch.lengths.len() {
        return Err(Failure::argument(format!(
            "plan.sequences: expected the batch's {}, found {count}",
            batch.lengths.len()
        )));
    }
    let directions = match given.key_shifts.is_null() {
        true => 0,
        false => count.saturating_mul(key_floats),
    };
    // SAFETY: the caller's promise; the structs of `copies` and `merges` are the library's, field by field,
    // and every pattern of bits is a valid one.
    unsafe {
        Ok(Plan {
            kept_counts: items("plan.kept_counts", given.kept_counts, count, MOST_SEQUENCES)?,
            kept: items("plan.kept", given.kept, given.kept_len, MOST_ITEMS)?,
            new_lengths: items("plan.new_lengths", given.new_lengths, count, MOST_SEQUENCES)?,
            copies: items(
                "plan.copies",
                given.copies.cast(),
                given.copy_count,
                MOST_ITEMS / 4,
            )?,
            freed_blocks: items(
                "plan.freed_blocks",
                given.freed_blocks,
                given.freed_count,
                MOST_ITEMS,
            )?,
            merges: items(
                "plan.merges",
                given.merges.cast(),
                given.merge_count,
                MOST_ITEMS / 4,
            )?,
            history: floats("plan.history", given.history, given.kept_len)?,
            key_shifts: floats("plan.key_shifts", given.key_shifts, given.kept_len)?,
            key_directions: items(
                "plan.key_directions",
                given.key_directions,
                directions,
                MOST_ITEMS,
            )?,
            sets: given.sets,
        })
    }
}

/// Floats that may be missing.
///
/// # Safety
/// `data` is NULL or points to `count` floats.
unsafe fn floats<'a>(argument: &str, data: *const f32, count: usize) -> Result<&'a [f32], Failure> {
    let count = if data.is_null() { 0 } else { count };
    // SAFETY: the caller's promise.
    unsafe { items(argument, data, count, MOST_ITEMS) }
}
