//! Saved sequences.

use std::ffi::{c_char, c_void};
use std::ptr;

use reasoning_rpc_engine::{Engine, Sequence};

use crate::args;
use crate::engine::{engine_of, rrpc_engine};
use crate::error::{Failure, RRPC_ERROR_BUFFER_TOO_SMALL, rrpc_error};
use crate::guard::guard;
use crate::sequence::{SEQUENCES, Shared, rrpc_sequence, with};

/// Copies out all that a sequence is: its text, cache, policy, counters, window queries, sampler, logits
/// and log. Its size is the state of the cache and some kilobytes; a size that was asked for is exact
/// until the sequence changes.
///
/// `count` gets the bytes. `out` may be NULL with a `capacity` of 0, to ask for their number only.
///
/// # Safety
/// The pointers are NULL or valid, `out` for `capacity` bytes.
///
/// Ownership: the buffer is the caller's.
/// Threads: any; one call at a time on a sequence.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED, BUFFER_TOO_SMALL; INVALID_ARGUMENT for RRPC_POLICY_CALLBACK.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_sequence_save(
    sequence: *const rrpc_sequence,
    out: *mut c_void,
    capacity: usize,
    count: *mut usize,
) -> *mut rrpc_error {
    guard(|| {
        with(sequence, |sequence| {
            let size = sequence.saved_size()?;
            // SAFETY: the caller's promise.
            unsafe { args::set("count", count, size) }?;
            if out.is_null() {
                return match capacity {
                    0 => Ok(()),
                    _ => Err(Failure::null("out")),
                };
            }
            if size > capacity {
                return Err(Failure::new(
                    RRPC_ERROR_BUFFER_TOO_SMALL,
                    format!("out: expected room for {size}, found room for {capacity}"),
                ));
            }
            // SAFETY: `size` <= `capacity` bytes are writable by the caller's promise; they are zeroed
            // first, so that the slice is of initialised bytes.
            let mut buffer = unsafe {
                out.cast::<u8>().write_bytes(0, size);
                std::slice::from_raw_parts_mut(out.cast::<u8>(), size)
            };
            Ok(sequence.save(&mut buffer)?)
        })
    })
}

/// Saves a sequence to a file, which rrpc_sequence_restore_file reads. It is written beside the path,
/// flushed to the disk and renamed: a file of that name is whole or as it was.
///
/// # Safety
/// `path` is NULL or NUL-terminated.
///
/// Ownership: `path` is read during the call only.
/// Threads: any; one call at a time on a sequence.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT for an empty path; FILE.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_sequence_save_file(
    sequence: *const rrpc_sequence,
    path: *const c_char,
) -> *mut rrpc_error {
    guard(|| {
        // SAFETY: the caller's promise.
        let path = unsafe { args::path("path", path) }?;
        with(sequence, |sequence| Ok(sequence.save_file(&path)?))
    })
}

/// Makes a sequence out of saved bytes. It continues with exactly the tokens and compressions of the
/// original. The engine has the same model and cache_dtype as the original's; its block_entries, budget
/// and threads may differ. Any bytes may be given: what is not a whole saved sequence is refused.
///
/// # Safety
/// `data` is NULL or has `len` bytes; `sequence` is NULL or valid.
///
/// Ownership: the sequence goes to `*sequence` (NULL after an error); the caller frees it with
/// rrpc_sequence_free. `data` is read during the call only.
/// Threads: any.
/// Errors: NULL_POINTER, INVALID_HANDLE; STATE; BUDGET if the cache does not fit the budget.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_sequence_restore(
    engine: *const rrpc_engine,
    data: *const c_void,
    len: usize,
    sequence: *mut *mut rrpc_sequence,
) -> *mut rrpc_error {
    // SAFETY: the caller's promise.
    guard(|| unsafe {
        restored(engine, sequence, |engine| {
            let bytes = args::items("data", data.cast::<u8>(), len, isize::MAX as usize)?;
            Ok(engine.restore(bytes)?)
        })
    })
}

/// As rrpc_sequence_restore, from a file.
///
/// # Safety
/// `path` is NULL or NUL-terminated; `sequence` is NULL or valid.
///
/// Ownership: the sequence goes to `*sequence` (NULL after an error); the caller frees it with
/// rrpc_sequence_free. `path` is read during the call only.
/// Threads: any.
/// Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for an empty path; FILE; STATE; BUDGET if the
/// cache does not fit the budget.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_sequence_restore_file(
    engine: *const rrpc_engine,
    path: *const c_char,
    sequence: *mut *mut rrpc_sequence,
) -> *mut rrpc_error {
    // SAFETY: the caller's promise.
    guard(|| unsafe {
        restored(engine, sequence, |engine| {
            let path = args::path("path", path)?;
            Ok(engine.restore_file(&path)?)
        })
    })
}

/// # Safety
/// `sequence` is NULL or valid.
unsafe fn restored(
    engine: *const rrpc_engine,
    sequence: *mut *mut rrpc_sequence,
    read: impl FnOnce(&Engine) -> Result<Sequence, Failure>,
) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    unsafe { args::set("sequence", sequence, ptr::null_mut()) }?;
    let engine = Engine::clone(&*engine_of(engine)?);
    let state = read(&engine)?;
    let handle = SEQUENCES.insert(Shared::new(engine, state))?;
    // SAFETY: the caller's promise.
    unsafe { args::set("sequence", sequence, ptr::without_provenance_mut(handle)) }
}
