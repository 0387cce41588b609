//! Figures: what a sequence took, and what one would take.

use reasoning_rpc_engine::Error;

use crate::args;
use crate::engine::{engine_of, rrpc_engine};
use crate::error::rrpc_error;
use crate::guard::guard;
use crate::sequence::{rrpc_sequence, with};
use crate::sequence_options::{convert, rrpc_sequence_options};
use crate::sized::{self, sized};

/// Figures of one sequence. Times are wall-clock times of the steps that it took part in. Set
/// struct_size before it is filled.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_sequence_stats {
    /// sizeof(rrpc_sequence_stats), set by the caller.
    pub struct_size: usize,
    /// Given tokens that steps have run.
    pub prefill_tokens: u64,
    /// Generated tokens that steps have run; the last one of an answer is not run.
    pub decode_tokens: u64,
    /// Compressions.
    pub compressions: u64,
    /// Seconds of the steps that ran given tokens.
    pub prefill_seconds: f64,
    /// Seconds of the steps that ran generated tokens, compressions not included.
    pub decode_seconds: f64,
    /// Seconds of the compressions.
    pub compaction_seconds: f64,
    /// Bytes of the cache now, in whole blocks, those shared with forks and those that the budget counts for stored
    /// queries included.
    pub cache_bytes: u64,
    /// The most bytes of the cache at any moment.
    pub cache_peak_bytes: u64,
    /// Bytes that the cache would have now without compression, in whole blocks.
    pub cache_uncompressed_bytes: u64,
}

sized!(rrpc_sequence_stats {
    struct_size,
    prefill_tokens,
    decode_tokens,
    compressions,
    prefill_seconds,
    decode_seconds,
    compaction_seconds,
    cache_bytes,
    cache_peak_bytes,
    cache_uncompressed_bytes,
});

/// Reads the figures of a sequence.
///
/// # Safety
/// `stats` is NULL or valid for its struct_size.
///
/// Ownership: the struct is the caller's.
/// Threads: any; one call at a time on a sequence.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT for a struct_size that is none.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_sequence_get_stats(
    sequence: *const rrpc_sequence,
    stats: *mut rrpc_sequence_stats,
) -> *mut rrpc_error {
    guard(|| {
        with(sequence, |sequence| {
            let figures = sequence.stats();
            let value = rrpc_sequence_stats {
                struct_size: size_of::<rrpc_sequence_stats>(),
                prefill_tokens: figures.prefill_tokens as u64,
                decode_tokens: figures.decode_tokens as u64,
                compressions: figures.compressions as u64,
                prefill_seconds: figures.prefill_time.as_secs_f64(),
                decode_seconds: figures.decode_time.as_secs_f64(),
                compaction_seconds: figures.compaction_time.as_secs_f64(),
                cache_bytes: figures.cache_bytes as u64,
                cache_peak_bytes: figures.cache_peak_bytes as u64,
                cache_uncompressed_bytes: figures.cache_uncompressed_bytes as u64,
            };
            // SAFETY: the caller's promise.
            unsafe { sized::write("stats", stats, &value) }
        })
    })
}

/// The most cache that an answer of `new_tokens` tokens to a text of `prompt_tokens` tokens takes with
/// these options, block rounding included, known before its first token: exact but for RRPC_AGGREGATION_ADAPTIVE, whose
/// KV heads together may take up to a block each less. It is what
/// rrpc_generate asks of the budget. Of RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE the queries that they
/// store are among the bytes.
///
/// `options` may be NULL for the defaults. `entries`, if not NULL, gets the most entries (tokens) that
/// a layer holds at any moment; `bytes`, if not NULL, the most bytes of the cache.
///
/// # Safety
/// The pointers are NULL or valid, `options` for its struct_size.
///
/// Ownership: `options` is read during the call only.
/// Threads: any.
/// Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for an option; CONTEXT if so many tokens
/// outgrow the model's context.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_peak_cache_bytes(
    engine: *const rrpc_engine,
    options: *const rrpc_sequence_options,
    prompt_tokens: u64,
    new_tokens: u64,
    entries: *mut u64,
    bytes: *mut u64,
) -> *mut rrpc_error {
    guard(|| {
        let engine = engine_of(engine)?;
        // SAFETY: the caller's promise.
        let policy = unsafe { convert(&engine, options) }?.0.policy;
        let context = engine.model().manifest().dimensions.max_positions;
        let needed = prompt_tokens.saturating_add(new_tokens) as usize;
        if needed > context {
            return Err(Error::Context { needed, context }.into());
        }
        // The last token is never written to the cache.
        let generated = (new_tokens as usize).saturating_sub(1);
        let shape = engine.cache_shape();
        let peak = policy.promised_entries(prompt_tokens as usize, generated, shape.block_entries);
        // SAFETY: the caller's promise.
        unsafe {
            if !entries.is_null() {
                args::set("entries", entries, peak as u64)?;
            }
            if !bytes.is_null() {
                let all = shape.bytes(peak) + engine.query_bytes(&*policy);
                args::set("bytes", bytes, all as u64)?;
            }
        }
        Ok(())
    })
}
