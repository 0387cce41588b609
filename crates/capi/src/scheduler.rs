//! Schedulers.

use std::ffi::c_char;
use std::ptr;
use std::sync::Arc;

use reasoning_rpc_engine::Engine;
use reasoning_rpc_engine::scheduler::{Scheduler, SchedulerOptions};

use crate::answer::adopt;
use crate::args;
use crate::engine::{engine_of, rrpc_engine};
use crate::error::{Failure, rrpc_error};
use crate::generate::{convert as convert_generate, rrpc_generate_options};
use crate::guard::{guard, guard_free};
use crate::handles::{Kind, Table};
use crate::sequence::{rrpc_sequence, shared};
use crate::sized::{self, sized};

/// Writes many answers of one engine at once, on two threads of its own. Shared by any number of threads.
/// A handle: never dereferenced, checked at every call.
pub struct rrpc_scheduler {
    _private: [u8; 0],
}

/// An answer that a scheduler writes, or has written. A handle: never dereferenced, checked at every call.
pub struct rrpc_answer {
    _private: [u8; 0],
}

/// Options of rrpc_scheduler_create, to be filled by rrpc_scheduler_options_init. All are 1 to 65536.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_scheduler_options {
    /// sizeof(rrpc_scheduler_options), set by rrpc_scheduler_options_init.
    pub struct_size: usize,
    /// The most rows of a step, and of admitted answers that do not wait for their readers. Default 32.
    pub max_rows: u32,
    /// The most tokens of a step in which answers generate: they take one each, prompts the rest, and one
    /// at least. A step of prompts alone takes up to the engine's prefill_chunk, if that is more. Default
    /// 64.
    pub step_tokens: u32,
    /// Events of one answer that may wait to be read, beside its last one. Default 64.
    pub queue_events: u32,
    /// Answers that may wait to be admitted. Default 1024.
    pub max_waiting: u32,
}

sized!(rrpc_scheduler_options {
    struct_size,
    max_rows,
    step_tokens,
    queue_events,
    max_waiting
});

/// Figures of a scheduler since it was made. Each is exact; they are not all of one moment. Set struct_size
/// before it is filled.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_scheduler_metrics {
    /// sizeof(rrpc_scheduler_metrics), set by the caller.
    pub struct_size: usize,
    /// Answers that wait to be admitted.
    pub waiting: u64,
    /// Admitted answers that a step is due for.
    pub running: u64,
    /// Admitted answers that wait for their readers.
    pub paused: u64,
    /// Admitted answers whose cache is being compressed, or about to be.
    pub compressing: u64,
    /// Answers submitted, those that were refused not counted.
    pub submitted: u64,
    /// Answers admitted.
    pub admitted: u64,
    /// Answers that ended by themselves.
    pub completed: u64,
    /// Answers that were cancelled.
    pub cancelled: u64,
    /// Answers that ended with an error.
    pub failed: u64,
    /// Steps.
    pub steps: u64,
    /// Rows of all steps together; `rows / steps` is the mean of one.
    pub rows: u64,
    /// Seconds that the admitted answers had waited, together.
    pub waiting_seconds: f64,
}

sized!(rrpc_scheduler_metrics {
    struct_size,
    waiting,
    running,
    paused,
    compressing,
    submitted,
    admitted,
    completed,
    cancelled,
    failed,
    steps,
    rows,
    waiting_seconds,
});

static SCHEDULERS: Table<Scheduler> = Table::new(Kind::Scheduler);

const DEFAULTS: rrpc_scheduler_options = rrpc_scheduler_options {
    struct_size: size_of::<rrpc_scheduler_options>(),
    max_rows: 32,
    step_tokens: 64,
    queue_events: 64,
    max_waiting: 1024,
};

fn scheduler_of(handle: *const rrpc_scheduler) -> Result<Arc<Scheduler>, Failure> {
    SCHEDULERS.get("scheduler", handle.addr())
}

/// Fills `options` with the defaults. `size` is sizeof(rrpc_scheduler_options).
///
/// # Safety
/// `options` is NULL or points to `size` writable bytes.
///
/// Ownership: the struct is the caller's.
/// Threads: any.
/// Errors: NULL_POINTER; INVALID_ARGUMENT for a size that is none.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_scheduler_options_init(
    options: *mut rrpc_scheduler_options,
    size: usize,
) -> *mut rrpc_error {
    // SAFETY: the caller's promise.
    guard(|| unsafe { sized::init("options", options, size, &DEFAULTS) })
}

/// Makes a scheduler. `options` may be NULL for the defaults. Sequences may be stepped beside it, and an
/// engine may have several: their steps take turns.
///
/// # Safety
/// The pointers are NULL or valid, `options` for its struct_size.
///
/// Ownership: the scheduler goes to `*scheduler` (NULL after an error); the caller frees it with
/// rrpc_scheduler_free. It keeps the engine's model alive. `options` is read during the call only.
/// Threads: any. The two threads that it starts inherit the calling thread's signal mask, scheduling policy
/// and affinity.
/// Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for an option; RUNTIME if there can be no thread.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_scheduler_create(
    engine: *const rrpc_engine,
    options: *const rrpc_scheduler_options,
    scheduler: *mut *mut rrpc_scheduler,
) -> *mut rrpc_error {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { args::set("scheduler", scheduler, ptr::null_mut()) }?;
        let engine = Engine::clone(&*engine_of(engine)?);
        let mut given = DEFAULTS;
        if !options.is_null() {
            // SAFETY: the caller's promise.
            given = unsafe { sized::read("options", options, DEFAULTS) }?;
        }
        let options = SchedulerOptions {
            max_rows: given.max_rows as usize,
            step_tokens: given.step_tokens as usize,
            queue_events: given.queue_events as usize,
            max_waiting: given.max_waiting as usize,
        };
        let handle = SCHEDULERS.insert(Scheduler::new(&engine, options)?)?;
        // SAFETY: the caller's promise.
        unsafe { args::set("scheduler", scheduler, ptr::without_provenance_mut(handle)) }
    })
}

/// Frees a scheduler: cancels its answers, those that wait to be admitted included, and returns when its
/// threads have ended, which takes a step and the compressions under way. Answers that were submitted keep
/// their handles: what was written is still to be read, with RRPC_STOP_CANCELLED at its end. NULL and handles
/// that were freed before are accepted.
///
/// Ownership: takes the scheduler's handle.
/// Threads: any; calls on the scheduler that are under way end as if it were still there. From a log
/// callback it does not wait for the thread that made the call.
/// Errors: none.
/// Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn rrpc_scheduler_free(scheduler: *mut rrpc_scheduler) {
    guard_free(|| {
        if let Some(scheduler) = SCHEDULERS.remove(scheduler.addr()) {
            scheduler.shut_down();
        }
    });
}

/// Has an answer to a sequence written: the one that rrpc_generate writes, whatever shares its steps. It
/// waits until the cache of the whole answer can be promised, behind those that came before; nobody
/// overtakes it. `options` may be NULL for the defaults.
///
/// Until the answer has ended, all calls on the sequence give BUSY, but for rrpc_sequence_free, which lets
/// the cache go as soon as the answer has ended: for sequences that are not continued. When
/// RRPC_EVENT_END or an error has been read the sequence is free. A sequence that waits keeps the cache that
/// it has; so does one at rest, and others wait for it.
///
/// # Safety
/// The pointers are NULL or valid, `options` for its struct_size.
///
/// Ownership: the answer goes to `*answer` (NULL after an error); the caller frees it with rrpc_answer_free.
/// The sequence stays the caller's. `options` and what it points to are read during the call only.
/// Threads: any; one call at a time on a sequence. Waits for no step.
/// Errors: NULL_POINTER, INVALID_HANDLE, POISONED; BUSY for a sequence in use, and if max_waiting answers
/// wait; INVALID_ARGUMENT for an option, an empty sequence or one of another engine; TEXT for stop strings
/// without a tokenizer; BUDGET if the cache of the answer is larger than the whole budget. Nothing has
/// changed then.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_scheduler_submit(
    scheduler: *const rrpc_scheduler,
    sequence: *mut rrpc_sequence,
    options: *const rrpc_generate_options,
    answer: *mut *mut rrpc_answer,
) -> *mut rrpc_error {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { args::set("answer", answer, ptr::null_mut()) }?;
        let scheduler = scheduler_of(scheduler)?;
        // SAFETY: the caller's promise.
        let options = unsafe { convert_generate(options) }?;
        let shared = shared(sequence)?;
        let mut locked = shared.lock_to_change()?;
        let submitted = locked.submit(|sequence| scheduler.submit(sequence, &options))?;
        let handle = adopt(submitted)?;
        // SAFETY: the caller's promise.
        unsafe { args::set("answer", answer, handle) }
    })
}

/// Reads the figures of a scheduler.
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
pub unsafe extern "C" fn rrpc_scheduler_get_metrics(
    scheduler: *const rrpc_scheduler,
    metrics: *mut rrpc_scheduler_metrics,
) -> *mut rrpc_error {
    guard(|| {
        let found = scheduler_of(scheduler)?.metrics();
        let value = rrpc_scheduler_metrics {
            struct_size: size_of::<rrpc_scheduler_metrics>(),
            waiting: found.waiting,
            running: found.running,
            paused: found.paused,
            compressing: found.compressing,
            submitted: found.submitted,
            admitted: found.admitted,
            completed: found.completed,
            cancelled: found.cancelled,
            failed: found.failed,
            steps: found.steps,
            rows: found.rows,
            waiting_seconds: found.waiting_time.as_secs_f64(),
        };
        // SAFETY: the caller's promise.
        unsafe { sized::write("metrics", metrics, &value) }
    })
}

/// Copies the figures of a scheduler out as rrpc_engine_metrics_text does those of an engine, which they can
/// follow: their names begin with reasoning_rpc_scheduler_.
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
pub unsafe extern "C" fn rrpc_scheduler_metrics_text(
    scheduler: *const rrpc_scheduler,
    out: *mut c_char,
    capacity: usize,
    count: *mut usize,
) -> *mut rrpc_error {
    guard(|| {
        let text = scheduler_of(scheduler)?.metrics().prometheus();
        // SAFETY: the caller's promise.
        unsafe { args::copy_out(text.as_bytes(), out.cast::<u8>(), capacity, count) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_engines() {
        let engine = SchedulerOptions::default();
        let here = [
            DEFAULTS.max_rows,
            DEFAULTS.step_tokens,
            DEFAULTS.queue_events,
            DEFAULTS.max_waiting,
        ];
        let there = [
            engine.max_rows,
            engine.step_tokens,
            engine.queue_events,
            engine.max_waiting,
        ];
        assert_eq!(here.map(|value| value as usize), there);
    }
}
