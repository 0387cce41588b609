//! Logging: one callback for the process, silence without it. Panics, which are bugs, come this way too.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_void};
use std::panic::PanicHookInfo;
use std::sync::{Once, PoisonError, RwLock};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::args::choice;
use crate::error::{Failure, RRPC_ERROR_BUSY, rrpc_error};
use crate::fork;
use crate::guard::guard;

/// Nothing.
pub const RRPC_LOG_OFF: u32 = 0;
/// What went wrong inside of the library, panics included.
pub const RRPC_LOG_ERROR: u32 = 1;
/// What was refused for want of budget.
pub const RRPC_LOG_WARNING: u32 = 2;
/// Engines that were opened.
pub const RRPC_LOG_INFO: u32 = 3;
/// Compressions; engines that were closed.
pub const RRPC_LOG_DEBUG: u32 = 4;

/// Gets each message, on the thread that it came up on, which may be one of the library's: UTF-8 of
/// `message_len` bytes, NUL-terminated, without a line end, valid during the call. `level` is one of
/// RRPC_LOG_. Several threads may call it at the same time.
///
/// It may call the library, but for rrpc_set_log; what those calls would log is left out. It must
/// return: no exception and no longjmp may leave it.
pub type rrpc_log_callback = Option<
    unsafe extern "C" fn(level: u32, message: *const c_char, message_len: usize, user_data: *mut c_void),
>;

#[derive(Clone, Copy)]
struct Sink {
    callback: unsafe extern "C" fn(u32, *const c_char, usize, *mut c_void),
    user_data: *mut c_void,
}

// SAFETY: the caller of rrpc_set_log promises a callback that any thread may call with its user data.
unsafe impl Send for Sink {}
// SAFETY: as above.
unsafe impl Sync for Sink {}

/// Held for reading while a callback runs, so that exchanging it waits for that.
static SINK: RwLock<Option<Sink>> = RwLock::new(None);

thread_local! {
    /// This thread is in the callback.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Other crates' messages are not documented.
        metadata.level() <= log::max_level() && metadata.target().starts_with("reasoning_rpc")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) && !INSIDE.get() && !fork::in_child() {
            let level = match record.level() {
                Level::Error => RRPC_LOG_ERROR,
                Level::Warn => RRPC_LOG_WARNING,
                Level::Info => RRPC_LOG_INFO,
                Level::Debug | Level::Trace => RRPC_LOG_DEBUG,
            };
            send(level, &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

fn send(level: u32, message: &str) {
    let one_line: String = message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    // Control characters, NUL among them, were replaced.
    let Ok(text) = CString::new(one_line) else {
        return;
    };
    let sink = SINK.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(sink) = *sink {
        INSIDE.set(true);
        // SAFETY: the promise of rrpc_set_log's caller; the text lives during the call.
        unsafe { (sink.callback)(level, text.as_ptr(), text.as_bytes().len(), sink.user_data) };
        INSIDE.set(false);
    }
}

/// From now on panics of this shared library are messages and nothing is printed. Its standard library
/// is its own, so that no host's panics are concerned; a Rust program that links the crate keeps its hook.
pub(crate) fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if in_shared_library() {
            std::panic::set_hook(Box::new(report));
        }
    });
}

fn report(info: &PanicHookInfo<'_>) {
    log::error!(target: "reasoning_rpc", "internal error: {info}");
}

fn in_shared_library() -> bool {
    let mut found = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr fills `found` if it returns non-zero; its file name is NULL or a string that lives as
    // long as the object is loaded.
    unsafe {
        libc::dladdr(report as *const c_void, found.as_mut_ptr()) != 0
            && !found.assume_init().dli_fname.is_null()
            && std::ffi::CStr::from_ptr(found.assume_init().dli_fname)
                .to_bytes()
                .windows(3)
                .any(|part| part == b".so")
    }
}

/// Sends messages up to `level`, one of RRPC_LOG_, to `callback`, for the whole process, in place of what
/// was set before. RRPC_LOG_OFF or a NULL callback: silence, which is how a process begins. The library
/// itself never prints; ONNX Runtime's messages are turned off.
///
/// # Safety
/// The callback may be called from any thread, with `user_data`, until it is exchanged.
///
/// Ownership: `callback` and `user_data` have to live until this is called again; when that returns, no
/// call of the old callback is running and none comes.
/// Threads: any. From inside of a log callback it is BUSY.
/// Errors: BUSY; INVALID_ARGUMENT for an unknown level.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_set_log(
    level: u32,
    callback: rrpc_log_callback,
    user_data: *mut c_void,
) -> *mut rrpc_error {
    guard(|| {
        let filter = choice(
            "level",
            level,
            &[
                (RRPC_LOG_OFF, LevelFilter::Off),
                (RRPC_LOG_ERROR, LevelFilter::Error),
                (RRPC_LOG_WARNING, LevelFilter::Warn),
                (RRPC_LOG_INFO, LevelFilter::Info),
                (RRPC_LOG_DEBUG, LevelFilter::Debug),
            ],
        )?;
        if INSIDE.get() {
            return Err(Failure::new(
                RRPC_ERROR_BUSY,
                "rrpc_set_log: expected a call from outside of the log callback, found one from inside",
            ));
        }
        let sink = callback
            .filter(|_| filter != LevelFilter::Off)
            .map(|callback| Sink { callback, user_data });
        let mut current = SINK.write().unwrap_or_else(PoisonError::into_inner);
        // Fails if it is there already.
        let _ = log::set_logger(&Logger);
        log::set_max_level(if sink.is_some() { filter } else { LevelFilter::Off });
        *current = sink;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{RRPC_ERROR_INTERNAL, rrpc_error_code, rrpc_error_free};

    unsafe extern "C" fn print(level: u32, message: *const c_char, len: usize, user_data: *mut c_void) {
        // SAFETY: what a log callback gets.
        let text = unsafe { std::ffi::CStr::from_ptr(message) }.to_str().unwrap();
        assert_eq!((text.len(), user_data.addr()), (len, 7));
        println!("level {level}: {text}");
    }

    /// The child: a panic inside of a function of the C ABI, with the hook that the shared library has.
    #[test]
    fn a_panic_in_a_child_process() {
        if std::env::var_os("RRPC_TEST_PANIC").is_none() {
            return; // what is tested is tested by the next one, which starts this one
        }
        std::panic::set_hook(Box::new(report));
        // SAFETY: `print` may be called from anywhere.
        let error = unsafe { rrpc_set_log(RRPC_LOG_ERROR, Some(print), std::ptr::without_provenance_mut(7)) };
        assert!(error.is_null());
        let error = guard(|| panic!("on\npurpose"));
        // SAFETY: `guard` returned the error.
        unsafe {
            assert_eq!(rrpc_error_code(error), RRPC_ERROR_INTERNAL);
            rrpc_error_free(error);
        }
    }

    #[test]
    fn a_panic_is_a_message_and_not_printed() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "log::tests::a_panic_in_a_child_process", "--nocapture"])
            .env("RRPC_TEST_PANIC", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("level 1: internal error: panicked at"), "{text}");
        assert!(text.contains("log.rs") && text.contains("on purpose"), "{text}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    }
}
