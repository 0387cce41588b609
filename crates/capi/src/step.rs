//! Token by token, with the caller at the wheel.

use std::ptr;

use reasoning_rpc_engine::Sequence;

use crate::args;
use crate::error::{Failure, rrpc_error};
use crate::guard::guard;
use crate::sequence::{rrpc_sequence, shared, with};

/// Runs one step of the model for `count` sequences of one engine, in any mixture: each advances by the
/// next part of its given text (up to `prefill_chunk` tokens) or by its generated tokens, and is
/// compressed if that is due. Sequences with nothing pending afterwards have logits.
///
/// # Safety
/// `sequences` is NULL or has `count` handles.
///
/// Ownership: the array is read during the call only.
/// Threads: any; one call at a time on a sequence. One step of an engine runs at a time; a second call
/// waits.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT if there is no sequence, one
/// occurs twice, one is of another engine, one has nothing pending, or there are more than 65536;
/// BUDGET if the pool has too few free blocks (rrpc_sequence_reserve promises them). Nothing has
/// advanced then. RUNTIME, INTERNAL; CALLBACK of a sequence's `select`.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_step(sequences: *const *mut rrpc_sequence, count: usize) -> *mut rrpc_error {
    guard(|| {
        // SAFETY: the caller's promise.
        let handles = unsafe { args::items("sequences", sequences, count, 1 << 16) }?;
        let named = |index: usize, failure: Failure| {
            Failure::new(failure.code, format!("sequences[{index}]: {}", failure.message))
        };
        let mut sorted: Vec<usize> = handles.iter().map(|handle| handle.addr()).collect();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1] && pair[0] != 0) {
            return Err(Failure::argument(
                "sequences: expected each once, found one twice",
            ));
        }
        let mut all = Vec::with_capacity(count);
        for (index, &handle) in handles.iter().enumerate() {
            all.push(shared(handle).map_err(|failure| named(index, failure))?);
        }
        let Some(first) = all.first() else {
            return Err(Failure::argument("sequences: expected at least one, found none"));
        };
        let engine = first.engine.clone();
        let mut locked = Vec::with_capacity(count);
        for (index, one) in all.iter().enumerate() {
            locked.push(one.lock_to_change().map_err(|failure| named(index, failure))?);
        }
        let mut sequences: Vec<&mut Sequence> = Vec::with_capacity(count);
        for (index, one) in locked.iter_mut().enumerate() {
            sequences.push(one.sequence().map_err(|failure| named(index, failure))?);
        }
        Ok(engine.step(&mut sequences)?)
    })
}

/// How many tokens of a sequence no step has run yet. While there are any, it has no logits.
///
/// # Safety
/// `pending` is NULL or valid.
///
/// Ownership: nothing changes hands.
/// Threads: any; one call at a time on a sequence.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_sequence_pending(
    sequence: *const rrpc_sequence,
    pending: *mut usize,
) -> *mut rrpc_error {
    guard(|| {
        with(sequence, |sequence| {
            // SAFETY: the caller's promise.
            unsafe { args::set("pending", pending, sequence.pending()) }
        })
    })
}

/// The logits after the last token: `*logits` points to `*count` floats, one for each token of the
/// vocabulary, unnormalised and not touched by the sampling options. NULL and 0 while tokens are
/// pending.
///
/// # Safety
/// The pointers are NULL or valid.
///
/// Ownership: the floats are the sequence's. They are valid until the next call on this sequence with
/// a pointer to it that is not const, and not to be written.
/// Threads: any; one call at a time on a sequence.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_sequence_logits(
    sequence: *const rrpc_sequence,
    logits: *mut *const f32,
    count: *mut usize,
) -> *mut rrpc_error {
    guard(|| {
        with(sequence, |sequence| {
            let found = sequence.logits();
            // SAFETY: the caller's promise.
            unsafe {
                args::set("count", count, found.map_or(0, <[f32]>::len))?;
                args::set("logits", logits, found.map_or(ptr::null(), <[f32]>::as_ptr))
            }
        })
    })
}

/// Draws the next token from the logits by the sequence's sampling options and appends it. `token`, if
/// not NULL, gets its id.
///
/// # Safety
/// `token` is NULL or valid.
///
/// Ownership: nothing changes hands.
/// Threads: any; one call at a time on a sequence.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT if there are no logits after
/// the last token, or they have no number to choose; CONTEXT if the context is full.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_sequence_sample(
    sequence: *mut rrpc_sequence,
    token: *mut u32,
) -> *mut rrpc_error {
    guard(|| {
        let id = with(sequence, |sequence| Ok(sequence.sample()?))?;
        match token.is_null() {
            true => Ok(()),
            // SAFETY: the caller's promise.
            false => unsafe { args::set("token", token, id) },
        }
    })
}

/// Appends a token of the caller's choice in place of a sampled one. It counts as generated: it may be
/// dropped by a compression.
///
/// Ownership: nothing changes hands.
/// Threads: any; one call at a time on a sequence.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT if the id is not in the
/// vocabulary or the sequence is empty; CONTEXT if the context is full.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn rrpc_sequence_accept(sequence: *mut rrpc_sequence, token: u32) -> *mut rrpc_error {
    guard(|| with(sequence, |sequence| Ok(sequence.accept(token)?)))
}

/// Copies the ids of all tokens of a sequence, given and generated, the pending ones included.
///
/// `count` gets their number. `out` may be NULL with a `capacity` of 0, to ask for the number only;
/// otherwise it has room for `capacity` ids.
///
/// # Safety
/// The pointers are NULL or valid, `out` for `capacity` ids.
///
/// Ownership: the buffer is the caller's.
/// Threads: any; one call at a time on a sequence.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED, BUFFER_TOO_SMALL.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_sequence_tokens(
    sequence: *const rrpc_sequence,
    out: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> *mut rrpc_error {
    guard(|| {
        with(sequence, |sequence| {
            // SAFETY: the caller's promise.
            unsafe { args::copy_out(sequence.tokens(), out, capacity, count) }
        })
    })
}
