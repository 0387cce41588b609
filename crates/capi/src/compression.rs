//! What compressions did.

use crate::args;
use crate::error::{Failure, rrpc_error};
use crate::guard::guard;
use crate::sequence::{rrpc_sequence, with};
use crate::sized::{self, sized};

use reasoning_rpc_engine::{CompressionRecord, Sequence};

/// What one compression did to one layer. Set struct_size before it is filled.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_compression {
    /// sizeof(rrpc_compression), set by the caller.
    pub struct_size: usize,
    /// Generated tokens whose keys and values were in the cache when it ran, or had been dropped.
    pub at_token: u64,
    /// Entries (tokens) of the layer before; of its longest KV head, if they differ.
    pub len_before: u64,
    /// Entries of the layer after.
    pub len_after: u64,
    /// The layer, from 0.
    pub layer: u32,
    /// Kept sets: 1 for the layer, or one for each KV head; 0 unless the sequence records them.
    pub kept_sets: u32,
}

sized!(rrpc_compression {
    struct_size,
    at_token,
    len_before,
    len_after,
    layer,
    kept_sets
});

fn record(sequence: &Sequence, index: usize) -> Result<&CompressionRecord, Failure> {
    let log = sequence.compressions();
    log.get(index)
        .ok_or_else(|| Failure::argument(format!("index: expected less than {}, found {index}", log.len())))
}

/// How many entries the log of compressions has: one for each compression and layer, in order of time,
/// then layer.
///
/// # Safety
/// `count` is NULL or valid.
///
/// Ownership: nothing changes hands.
/// Threads: any; one call at a time on a sequence.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_sequence_compression_count(
    sequence: *const rrpc_sequence,
    count: *mut usize,
) -> *mut rrpc_error {
    guard(|| {
        with(sequence, |sequence| {
            // SAFETY: the caller's promise.
            unsafe { args::set("count", count, sequence.compressions().len()) }
        })
    })
}

/// Reads entry `index` of the log of compressions.
///
/// # Safety
/// `compression` is NULL or valid for its struct_size.
///
/// Ownership: the struct is the caller's.
/// Threads: any; one call at a time on a sequence.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT for an index beyond the log or
/// a struct_size that is none.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_sequence_get_compression(
    sequence: *const rrpc_sequence,
    index: usize,
    compression: *mut rrpc_compression,
) -> *mut rrpc_error {
    guard(|| {
        with(sequence, |sequence| {
            let record = record(sequence, index)?;
            let value = rrpc_compression {
                struct_size: size_of::<rrpc_compression>(),
                at_token: record.at_token as u64,
                len_before: record.len_before as u64,
                len_after: record.len_after as u64,
                layer: record.layer as u32,
                kept_sets: record.kept.len() as u32,
            };
            // SAFETY: the caller's promise.
            unsafe { sized::write("compression", compression, &value) }
        })
    })
}

/// Copies the kept set `set` of entry `index` of the log: the original text positions of the kept
/// candidates, counted from 0 with the given text, ascending. Given text and the window always stay and
/// are not listed.
///
/// `count` gets their number. `out` may be NULL with a `capacity` of 0, to ask for the number only;
/// otherwise it has room for `capacity` positions.
///
/// # Safety
/// The pointers are NULL or valid, `out` for `capacity` positions.
///
/// Ownership: the buffer is the caller's.
/// Threads: any; one call at a time on a sequence.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED, BUFFER_TOO_SMALL; INVALID_ARGUMENT for an index
/// beyond the log or a set beyond its `kept_sets`.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_sequence_compression_kept(
    sequence: *const rrpc_sequence,
    index: usize,
    set: usize,
    out: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> *mut rrpc_error {
    guard(|| {
        with(sequence, |sequence| {
            let kept = &record(sequence, index)?.kept;
            let Some(kept) = kept.get(set) else {
                return Err(Failure::argument(format!(
                    "set: expected less than {} (record_kept lists them), found {set}",
                    kept.len()
                )));
            };
            // SAFETY: the caller's promise.
            unsafe { args::copy_out(kept, out, capacity, count) }
        })
    })
}
