//! Forks, rewinds, and a look into the cache.

use std::ffi::c_void;
use std::ptr;

use crate::args;
use crate::engine::dtype_of;
use crate::error::rrpc_error;
use crate::guard::guard;
use crate::sequence::{adopt, rrpc_sequence, shared, with};
use crate::sized::{self, sized};

/// The cache of one KV head of one layer, as it lies in memory: `length` entries of a key, a value and
/// a position in the text, in blocks. Entry e is in block b = block_table[e / block_entries] at place
/// p = e % block_entries. Set struct_size before it is filled.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_cache_view {
    /// sizeof(rrpc_cache_view), set by the caller.
    pub struct_size: usize,
    /// Keys, rotated for their positions: `head_dim` elements of `dtype` at
    /// keys + b * block_stride + p * entry_stride bytes. NULL if there is no entry.
    pub keys: *const c_void,
    /// Values: `head_dim` elements of `dtype` at values + b * block_stride + p * entry_stride bytes.
    /// NULL if there is no entry.
    pub values: *const c_void,
    /// Positions in the text, from 0 with the given text counted: a uint32_t at
    /// (const char *)positions + b * block_stride + p * 4 bytes. They ascend with e, unless the
    /// policy is RRPC_POLICY_H2O or RRPC_POLICY_TOVA: then the last entry takes the place of one that goes.
    /// NULL if there is no entry.
    pub positions: *const u32,
    /// The blocks of the entries, in order: `block_count` of them. Sequences that share a block have the
    /// same number here. NULL if there is no entry.
    pub block_table: *const u32,
    /// Blocks in `block_table`: `length` / `block_entries`, rounded up.
    pub block_count: u64,
    /// Entries.
    pub length: u64,
    /// Bytes from one block to the next, of keys, values, positions and scales alike.
    pub block_stride: u64,
    /// Bytes from one key (value) of a block to the next.
    pub entry_stride: u64,
    /// Entries that a block has room for. A model of the portable flavour has one block, of number 0,
    /// with room for as many entries as the cache has taken memory for.
    pub block_entries: u32,
    /// Elements of a key, and of a value.
    pub head_dim: u32,
    /// Their type: RRPC_DTYPE_F32, RRPC_DTYPE_F16, RRPC_DTYPE_BF16 or RRPC_DTYPE_I8.
    pub dtype: u32,
    /// 0.
    pub reserved: u32,
    /// For RRPC_DTYPE_I8, what the elements of a key are multiplied with: a float at
    /// (const char *)key_scales + b * block_stride + p * 4 bytes. NULL for the other types, and if there
    /// is no entry.
    pub key_scales: *const f32,
    /// The same for values.
    pub value_scales: *const f32,
}

sized!(rrpc_cache_view {
    struct_size,
    keys,
    values,
    positions,
    block_table,
    block_count,
    length,
    block_stride,
    entry_stride,
    block_entries,
    head_dim,
    dtype,
    reserved,
    key_scales,
    value_scales,
});

/// Makes a second sequence that goes on exactly as `sequence` would: the same text, options, cache,
/// logits, sampler state, log of compressions and figures. Compressions still to come are the same,
/// too. From then on the two know nothing of each other. A promise (rrpc_sequence_reserve) is not
/// inherited.
///
/// Blocks of the cache are shared and copied when one of the two is about to write them, by appending
/// to one that is not full or by a compression; until then they count once in the budget. The blocks
/// that both may have to write (those that are not full, and with compression all that are not full of
/// the text given first) are promised a copy at once, so that neither fails for the other's sake. A
/// model of the portable flavour has no blocks to share: its cache is copied.
///
/// # Safety
/// `fork` is NULL or valid.
///
/// Ownership: the fork goes to `*fork` (NULL after an error); the caller frees it with
/// rrpc_sequence_free, before or after `sequence`. It keeps the engine's model alive.
/// Threads: any; one call at a time on a sequence.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; BUDGET if the copies cannot be promised. Nothing
/// has changed then. OUT_OF_MEMORY if there are too many sequences.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_sequence_fork(
    sequence: *const rrpc_sequence,
    fork: *mut *mut rrpc_sequence,
) -> *mut rrpc_error {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { args::set("fork", fork, ptr::null_mut()) }?;
        let shared = shared(sequence)?;
        let copy = shared.lock()?.sequence()?.fork()?;
        let handle = adopt(copy, shared.engine.clone())?;
        // SAFETY: the caller's promise.
        unsafe { args::set("fork", fork, handle) }
    })
}

/// Sets the seed of the tokens drawn from now on: the next one takes its first draw. For forks that are
/// to write different answers. Without effect on greedy sampling.
///
/// Ownership: nothing changes hands.
/// Threads: any; one call at a time on a sequence.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn rrpc_sequence_set_seed(sequence: *mut rrpc_sequence, seed: u64) -> *mut rrpc_error {
    guard(|| with(sequence, |sequence| Ok(sequence.set_seed(seed)?)))
}

/// Shortens the text to its first `tokens` tokens, given and generated counted. The last one becomes
/// pending, so that one rrpc_step gives its logits again. The sampler is put back to where it was, a
/// rrpc_sequence_set_seed behind the new end included: left to itself, the sequence writes the text that
/// it wrote. A promise (rrpc_sequence_reserve) ends. The figures of rrpc_sequence_get_stats go on
/// counting the work done.
///
/// What a compression dropped cannot come back, so a rewind ends no further back than one token behind
/// the last compression. RRPC_POLICY_H2O and RRPC_QUERIES_ONLINE add up attention, which cannot be taken back either: before its first
/// entry went, all generated tokens become pending; later, none that was written can.
///
/// Ownership: nothing changes hands. Pointers to the sequence's logits and cache are no longer valid.
/// Threads: any; one call at a time on a sequence.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT, naming the possible lengths, if
/// `tokens` is 0, more than the text has, or before the last compression. Nothing has changed then.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn rrpc_sequence_rewind(sequence: *mut rrpc_sequence, tokens: usize) -> *mut rrpc_error {
    guard(|| with(sequence, |sequence| Ok(sequence.rewind(tokens)?)))
}

/// The cache of KV head `kv_head` of layer `layer`, both counted from 0, without a copy: what the steps
/// have run and the compressions have left.
///
/// # Safety
/// `view` is NULL or valid for its struct_size.
///
/// Ownership: the struct is the caller's; what it points to is the sequence's. The pointers are valid
/// until the next call with a pointer to this sequence that is not const, and not to be written. Only
/// the entries are to be read: the rest of a block, and other blocks, may belong to others.
/// Threads: any; one call at a time on a sequence. The pointers may be read from any thread.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT if there is no such layer or KV
/// head, or for a struct_size that is none.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_sequence_cache_view(
    sequence: *const rrpc_sequence,
    layer: u32,
    kv_head: u32,
    view: *mut rrpc_cache_view,
) -> *mut rrpc_error {
    guard(|| {
        with(sequence, |sequence| {
            let found = sequence.cache_view(layer as usize, kv_head as usize)?;
            let value = rrpc_cache_view {
                struct_size: size_of::<rrpc_cache_view>(),
                keys: found.keys.cast(),
                values: found.values.cast(),
                positions: found.positions,
                block_table: match found.blocks {
                    [] => ptr::null(),
                    blocks => blocks.as_ptr(),
                },
                block_count: found.blocks.len() as u64,
                length: found.len as u64,
                block_stride: found.block_stride as u64,
                entry_stride: found.entry_stride as u64,
                block_entries: found.block_entries as u32,
                head_dim: found.head_dim as u32,
                dtype: dtype_of(found.cache_type),
                reserved: 0,
                key_scales: found.key_scales,
                value_scales: found.value_scales,
            };
            // SAFETY: the caller's promise.
            unsafe { sized::write("view", view, &value) }
        })
    })
}
