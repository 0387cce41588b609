//! Figures of an engine, for dashboards.

use std::ffi::c_char;

use crate::args;
use crate::engine::{engine_of, rrpc_engine};
use crate::error::rrpc_error;
use crate::guard::guard;
use crate::sized::{self, sized};

/// Figures of an engine since it was opened, over all of its sequences. Each is exact; they are not all
/// of one moment while steps run. Set struct_size before it is filled.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_metrics {
    /// sizeof(rrpc_metrics), set by the caller.
    pub struct_size: usize,
    /// Sequences that exist now.
    pub sequences_alive: u64,
    /// Sequences made so far.
    pub sequences_created: u64,
    /// Steps that the model has run.
    pub steps: u64,
    /// Given tokens run.
    pub prefill_tokens: u64,
    /// Generated tokens run.
    pub decode_tokens: u64,
    /// Compressions of a sequence, all layers at once.
    pub compressions: u64,
    /// Cache entries (one token of one KV head of one layer) that compressions dropped.
    pub entries_dropped: u64,
    /// Requests for cache that did not fit the budget.
    pub budget_refusals: u64,
    /// Steps that failed in the model.
    pub failed_steps: u64,
    /// Seconds of the steps, compressions not included.
    pub step_seconds: f64,
    /// Seconds of the compressions.
    pub compaction_seconds: f64,
    /// Bytes of the budget, in whole blocks.
    pub budget_bytes: u64,
    /// Bytes of it that caches hold now.
    pub budget_used_bytes: u64,
    /// Bytes of it that are promised to sequences and not held yet.
    pub budget_promised_bytes: u64,
    /// The most bytes that caches held at any moment.
    pub budget_peak_bytes: u64,
    /// Of step_seconds, those inside attention nodes: rotation, appending, attending. 0 in portable graphs.
    pub attention_seconds: f64,
    /// Of step_seconds, those inside products with quantised matrices, their norms, gates and residuals, and
    /// the lookup of their rows. 0 where ONNX Runtime multiplies.
    pub product_seconds: f64,
}

sized!(rrpc_metrics {
    struct_size,
    sequences_alive,
    sequences_created,
    steps,
    prefill_tokens,
    decode_tokens,
    compressions,
    entries_dropped,
    budget_refusals,
    failed_steps,
    step_seconds,
    compaction_seconds,
    budget_bytes,
    budget_used_bytes,
    budget_promised_bytes,
    budget_peak_bytes,
    attention_seconds,
    product_seconds,
});

/// Reads the figures of an engine.
///
/// # Safety
/// `metrics` is NULL or valid for its struct_size.
///
/// Ownership: the struct is the caller's.
/// Threads: any; waits for no step.
/// Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for a struct_size that is none.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_engine_get_metrics(
    engine: *const rrpc_engine,
    metrics: *mut rrpc_metrics,
) -> *mut rrpc_error {
    guard(|| {
        let found = engine_of(engine)?.metrics();
        let value = rrpc_metrics {
            struct_size: size_of::<rrpc_metrics>(),
            sequences_alive: found.sequences_alive,
            sequences_created: found.sequences_created,
            steps: found.steps,
            prefill_tokens: found.prefill_tokens,
            decode_tokens: found.decode_tokens,
            compressions: found.compressions,
            entries_dropped: found.entries_dropped,
            budget_refusals: found.budget_refusals,
            failed_steps: found.failed_steps,
            step_seconds: found.step_time.as_secs_f64(),
            compaction_seconds: found.compaction_time.as_secs_f64(),
            budget_bytes: found.budget_bytes,
            budget_used_bytes: found.budget_used_bytes,
            budget_promised_bytes: found.budget_promised_bytes,
            budget_peak_bytes: found.budget_peak_bytes,
            attention_seconds: found.attention_time.as_secs_f64(),
            product_seconds: found.product_time.as_secs_f64(),
        };
        // SAFETY: the caller's promise.
        unsafe { sized::write("metrics", metrics, &value) }
    })
}

/// Copies the figures of an engine out in the text format of Prometheus, version 0.0.4, with HELP and
/// TYPE lines: UTF-8, not NUL-terminated. Names begin with reasoning_rpc_.
///
/// `count` gets the bytes. `out` may be NULL with a `capacity` of 0, to ask for their number only; it can
/// grow by some bytes until the text is copied.
///
/// # Safety
/// The pointers are NULL or valid, `out` for `capacity` bytes.
///
/// Ownership: the buffer is the caller's.
/// Threads: any; waits for no step.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUFFER_TOO_SMALL.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_engine_metrics_text(
    engine: *const rrpc_engine,
    out: *mut c_char,
    capacity: usize,
    count: *mut usize,
) -> *mut rrpc_error {
    guard(|| {
        let text = engine_of(engine)?.metrics().prometheus();
        // SAFETY: the caller's promise.
        unsafe { args::copy_out(text.as_bytes(), out.cast::<u8>(), capacity, count) }
    })
}
