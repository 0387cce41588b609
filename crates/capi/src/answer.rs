//! Answers of schedulers, to be read.

use std::ptr;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;

use reasoning_rpc_engine::Event;
use reasoning_rpc_engine::scheduler::{Next, ScheduledAnswer};

use crate::args;
use crate::error::{Failure, RRPC_ERROR_BUSY, rrpc_error};
use crate::generate::{describe, rrpc_event};
use crate::guard::{guard, guard_free};
use crate::handles::{Kind, Table};
use crate::scheduler::rrpc_answer;
use crate::sized;

/// Nothing came in time: no event, but what rrpc_answer_next tells then. Its fields are 0.
pub const RRPC_EVENT_NONE: u32 = 0;

/// In the place of a timeout: as long as it takes.
pub const RRPC_WAIT_FOREVER: u32 = u32::MAX;

/// What an answer's handle names.
struct Shared {
    answer: Arc<ScheduledAnswer>,
    reader: Mutex<Reader>,
}

/// The last event's text, without and with a NUL.
#[derive(Default)]
struct Reader {
    text: String,
    told: Vec<u8>,
}

static ANSWERS: Table<Shared> = Table::new(Kind::Answer);

/// Gives an answer a handle. Without one it is cancelled.
pub(crate) fn adopt(answer: Arc<ScheduledAnswer>) -> Result<*mut rrpc_answer, Failure> {
    let shared = Shared {
        answer: Arc::clone(&answer),
        reader: Mutex::default(),
    };
    let handle = ANSWERS.insert(shared).inspect_err(|_| answer.cancel())?;
    Ok(ptr::without_provenance_mut(handle))
}

fn shared(answer: *const rrpc_answer) -> Result<Arc<Shared>, Failure> {
    ANSWERS.get("answer", answer.addr())
}

/// The next event of an answer. Waits for it, up to `timeout_ms` milliseconds: 0 does not wait,
/// RRPC_WAIT_FOREVER waits as long as it takes. If none comes in time the event's kind is RRPC_EVENT_NONE.
///
/// RRPC_EVENT_END is the last one. An answer whose reader lets queue_events of them wait is not continued
/// until it has read; others go on. RRPC_EVENT_PREFILL events that were not read give way to newer ones.
///
/// # Safety
/// `event` is NULL or valid for its struct_size.
///
/// Ownership: the struct is the caller's; its text is the answer's and valid until the next
/// rrpc_answer_next or rrpc_answer_free on it.
/// Threads: any; one at a time reads an answer.
/// Errors: NULL_POINTER, INVALID_HANDLE; BUSY if another call reads; INVALID_ARGUMENT for a struct_size that
/// is none, and behind RRPC_EVENT_END. Why the answer has failed, behind the events before that: BUDGET if it
/// waits for cache that only answers behind it have; RUNTIME, INTERNAL.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_answer_next(
    answer: *const rrpc_answer,
    timeout_ms: u32,
    event: *mut rrpc_event,
) -> *mut rrpc_error {
    guard(|| {
        // SAFETY: the caller's promise. Checked here, so that no event is lost over it.
        unsafe { sized::output_size("event", event) }?;
        let shared = shared(answer)?;
        let mut reader = match shared.reader.try_lock() {
            Ok(reader) => reader,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::new(
                    RRPC_ERROR_BUSY,
                    "answer: expected one that is not being read, found one that another call reads",
                ));
            }
        };
        let Reader { text, told } = &mut *reader;
        let timeout = match timeout_ms {
            RRPC_WAIT_FOREVER => None,
            _ => Some(Duration::from_millis(timeout_ms.into())),
        };
        let event_of_c = match shared.answer.next(text, timeout)? {
            Next::Event(found) => {
                let (Event::Token { text, .. } | Event::End { text, .. }) = found else {
                    let prefill = describe(&found, "", told);
                    // SAFETY: the caller's promise.
                    return unsafe { sized::write("event", event, &prefill) };
                };
                describe(&found, text, told)
            }
            Next::Pending => rrpc_event {
                kind: RRPC_EVENT_NONE,
                ..describe(&Event::Prefill { done: 0, total: 0 }, "", told)
            },
            Next::Ended => {
                return Err(Failure::argument(
                    "answer: expected one that has not ended, found one whose last event was read",
                ));
            }
        };
        // SAFETY: the caller's promise.
        unsafe { sized::write("event", event, &event_of_c) }
    })
}

/// Ends an answer before its next token, wherever it is: waiting, at work, or full of events that were not
/// read. Those can still be; RRPC_EVENT_END is the last one as ever. Does nothing to an answer that has
/// ended.
///
/// Ownership: nothing changes hands.
/// Threads: any, also while another reads it; waits for nothing.
/// Errors: NULL_POINTER, INVALID_HANDLE.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn rrpc_answer_cancel(answer: *const rrpc_answer) -> *mut rrpc_error {
    guard(|| {
        shared(answer)?.answer.cancel();
        Ok(())
    })
}

/// A file descriptor for poll, epoll and the like: it is readable while rrpc_answer_next has an event or an
/// error to tell that was not told yet, so that level-triggered waiting is right, and edge-triggered if all
/// is read each time. It is an eventfd, opened by the first call for an answer.
///
/// # Safety
/// `fd` is NULL or valid.
///
/// Ownership: the descriptor is the answer's, and closed by rrpc_answer_free: take it out of an epoll set
/// before. It is only to be waited for: not to be read, written or closed.
/// Threads: any.
/// Errors: NULL_POINTER, INVALID_HANDLE; FILE if the process can open no more.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_answer_fd(answer: *const rrpc_answer, fd: *mut i32) -> *mut rrpc_error {
    guard(|| {
        // SAFETY: the caller's promise. Checked here, so that none is opened in vain.
        unsafe { args::set("fd", fd, -1) }?;
        let found = shared(answer)?.answer.event_fd()?;
        // SAFETY: the caller's promise.
        unsafe { args::set("fd", fd, found) }
    })
}

/// Frees an answer. One that has not ended is cancelled: its sequence is BUSY until its step has ended, and
/// then as any other. NULL and handles that were freed before are accepted.
///
/// Ownership: takes the answer's handle. The text of its last event and its descriptor are no longer valid.
/// Threads: any; waits for nothing. A call that reads the answer in another thread ends as if it were still
/// there: soon, as it is cancelled.
/// Errors: none.
/// Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn rrpc_answer_free(answer: *mut rrpc_answer) {
    guard_free(|| {
        if let Some(shared) = ANSWERS.remove(answer.addr()) {
            shared.answer.cancel();
        }
    });
}
