//! Errors as C sees them.

use std::alloc::{self, Layout};
use std::borrow::Cow;
use std::ffi::c_char;
use std::ptr;

use reasoning_rpc_engine::Error;

/// No error: what rrpc_error_code says of NULL.
pub const RRPC_OK: i32 = 0;
/// An argument or option cannot be used; the message names it, what was expected and what was found.
pub const RRPC_ERROR_INVALID_ARGUMENT: i32 = 1;
/// A pointer that is needed is NULL.
pub const RRPC_ERROR_NULL_POINTER: i32 = 2;
/// A handle was freed, is of another kind, or was never one.
pub const RRPC_ERROR_INVALID_HANDLE: i32 = 3;
/// Another call is using the sequence, or this one was made from its callback; an answer is under way; or
/// a scheduler's queue is full.
pub const RRPC_ERROR_BUSY: i32 = 4;
/// A buffer is too small; how much is needed was written to the count, or the message says it.
pub const RRPC_ERROR_BUFFER_TOO_SMALL: i32 = 5;
/// The model folder is missing, damaged, edited, or of another version.
pub const RRPC_ERROR_MODEL: i32 = 6;
/// ONNX Runtime is absent, too old, a second one in this process, or it failed.
pub const RRPC_ERROR_RUNTIME: i32 = 7;
/// The model has no chat template, or it cannot be rendered.
pub const RRPC_ERROR_TEMPLATE: i32 = 8;
/// Text cannot be turned into tokens or back; the model may have no tokenizer.
pub const RRPC_ERROR_TEXT: i32 = 9;
/// The cache would outgrow the engine's budget.
pub const RRPC_ERROR_BUDGET: i32 = 10;
/// The text would outgrow the model's context.
pub const RRPC_ERROR_CONTEXT: i32 = 11;
/// An earlier internal error left the sequence unusable: free it. The engine is well.
pub const RRPC_ERROR_POISONED: i32 = 12;
/// This process was forked from one that had opened an engine.
pub const RRPC_ERROR_FORKED: i32 = 13;
/// Memory ran out, or too many handles are alive.
pub const RRPC_ERROR_OUT_OF_MEMORY: i32 = 14;
/// A bug in the library. The sequences involved are poisoned.
pub const RRPC_ERROR_INTERNAL: i32 = 15;
/// A saved sequence is damaged, of another version, or of another model.
pub const RRPC_ERROR_STATE: i32 = 16;
/// A file cannot be read or written.
pub const RRPC_ERROR_FILE: i32 = 17;
/// A callback of the caller's reported a failure.
pub const RRPC_ERROR_CALLBACK: i32 = 18;

/// What went wrong: a code to act on and a message to read.
pub struct rrpc_error {
    code: i32,
    /// Ends with a NUL; `message_len` bytes with it.
    message: *const u8,
    message_len: usize,
}

// SAFETY: an error is never changed after it was made.
unsafe impl Sync for rrpc_error {}

/// Handed out when there is no memory for an error; never freed.
static OUT_OF_MEMORY: rrpc_error = rrpc_error {
    code: RRPC_ERROR_OUT_OF_MEMORY,
    message: c"out of memory".as_ptr().cast(),
    message_len: 14,
};

/// The error's code, one of the RRPC_ERROR_ constants; RRPC_OK for NULL.
///
/// # Safety
/// The error was not freed.
///
/// Ownership: the error stays the caller's.
/// Threads: any; not while another thread frees this error.
/// Errors: none.
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rrpc_error_code(error: *const rrpc_error) -> i32 {
    // SAFETY: the caller's promise; NULL was looked for.
    unsafe { error.as_ref() }.map_or(RRPC_OK, |error| error.code)
}

/// The error's message in English, UTF-8, NUL-terminated, without a line end; "no error" for NULL.
///
/// # Safety
/// The error was not freed.
///
/// Ownership: the string is the error's and lives as long.
/// Threads: any; not while another thread frees this error.
/// Errors: none.
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rrpc_error_message(error: *const rrpc_error) -> *const c_char {
    // SAFETY: the caller's promise; NULL was looked for.
    unsafe { error.as_ref() }.map_or(c"no error".as_ptr(), |error| error.message.cast())
}

/// Frees an error. NULL is accepted.
///
/// # Safety
/// The error was not freed before.
///
/// Ownership: takes the error; it and its message are gone.
/// Threads: any; one thread per error.
/// Errors: none.
/// Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rrpc_error_free(error: *mut rrpc_error) {
    if error.is_null() || ptr::eq(error, &raw const OUT_OF_MEMORY) {
        return;
    }
    // SAFETY: a non-NULL error that is not the static one was allocated by `Failure::into_raw` with
    // these layouts, and is freed once by the caller's promise.
    unsafe {
        let message = Layout::array::<u8>((*error).message_len).unwrap_or(Layout::new::<u8>());
        alloc::dealloc((*error).message.cast_mut(), message);
        alloc::dealloc(error.cast(), Layout::new::<rrpc_error>());
    }
}

/// An error on its way to the caller.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: i32,
    pub(crate) message: Cow<'static, str>,
}

impl Failure {
    pub(crate) fn new(code: i32, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    pub(crate) fn argument(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(RRPC_ERROR_INVALID_ARGUMENT, message)
    }

    pub(crate) fn null(argument: &str) -> Self {
        Self::new(
            RRPC_ERROR_NULL_POINTER,
            format!("{argument}: expected a pointer, found NULL"),
        )
    }

    pub(crate) fn out_of_memory() -> Self {
        Self::new(RRPC_ERROR_OUT_OF_MEMORY, "out of memory")
    }

    /// The error object that the caller frees, or the static one if there is no memory for it.
    pub(crate) fn into_raw(self) -> *mut rrpc_error {
        let no_memory = (&raw const OUT_OF_MEMORY).cast_mut();
        // A NUL would end the message early.
        let bytes = self
            .message
            .bytes()
            .map(|byte| if byte == 0 { b' ' } else { byte });
        let message_len = self.message.len() + 1;
        let Ok(layout) = Layout::array::<u8>(message_len) else {
            return no_memory;
        };
        // SAFETY: the layouts are not empty. The copy fills `message_len` bytes of an allocation of
        // that size, and the struct is written whole.
        unsafe {
            let message = alloc::alloc(layout);
            if message.is_null() {
                return no_memory;
            }
            for (index, byte) in bytes.chain([0]).enumerate() {
                message.add(index).write(byte);
            }
            let error = alloc::alloc(Layout::new::<rrpc_error>()).cast::<rrpc_error>();
            if error.is_null() {
                alloc::dealloc(message, layout);
                return no_memory;
            }
            error.write(rrpc_error {
                code: self.code,
                message,
                message_len,
            });
            error
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::InvalidArgument(_) => RRPC_ERROR_INVALID_ARGUMENT,
            Error::Model(_) => RRPC_ERROR_MODEL,
            Error::Runtime(_) => RRPC_ERROR_RUNTIME,
            Error::Template(_) => RRPC_ERROR_TEMPLATE,
            Error::Text(_) => RRPC_ERROR_TEXT,
            Error::Budget { .. } => RRPC_ERROR_BUDGET,
            Error::Context { .. } => RRPC_ERROR_CONTEXT,
            Error::State(_) => RRPC_ERROR_STATE,
            Error::File(_) => RRPC_ERROR_FILE,
            Error::Busy(_) => RRPC_ERROR_BUSY,
            Error::Callback(_) => RRPC_ERROR_CALLBACK,
            Error::Poisoned => RRPC_ERROR_POISONED,
            // Internal, and kinds that this library does not know yet.
            _ => RRPC_ERROR_INTERNAL,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    #[test]
    fn every_kind_of_the_engine_has_a_code_of_its_own() {
        let text = String::new;
        let kinds = [
            (Error::InvalidArgument(text()), RRPC_ERROR_INVALID_ARGUMENT),
            (Error::Model(text()), RRPC_ERROR_MODEL),
            (Error::Runtime(text()), RRPC_ERROR_RUNTIME),
            (Error::Template(text()), RRPC_ERROR_TEMPLATE),
            (Error::Text(text()), RRPC_ERROR_TEXT),
            (
                Error::Budget {
                    needed: 2,
                    queries: 0,
                    available: 1,
                },
                RRPC_ERROR_BUDGET,
            ),
            (
                Error::Context {
                    needed: 2,
                    context: 1,
                },
                RRPC_ERROR_CONTEXT,
            ),
            (Error::State(text()), RRPC_ERROR_STATE),
            (Error::File(text()), RRPC_ERROR_FILE),
            (Error::Busy(text()), RRPC_ERROR_BUSY),
            (Error::Callback(text()), RRPC_ERROR_CALLBACK),
            (Error::Poisoned, RRPC_ERROR_POISONED),
            (Error::Internal(text()), RRPC_ERROR_INTERNAL),
        ];
        for (error, code) in kinds {
            assert_eq!(Failure::from(error.clone()).code, code, "{error:?}");
        }
    }

    #[test]
    fn messages_end_at_their_end() {
        let error = Failure::argument("a\0b").into_raw();
        // SAFETY: the error was just made and is freed once.
        unsafe {
            assert_eq!(rrpc_error_code(error), RRPC_ERROR_INVALID_ARGUMENT);
            assert_eq!(CStr::from_ptr(rrpc_error_message(error)), c"a b");
            rrpc_error_free(error);
        }
    }

    #[test]
    fn null_and_the_static_error_are_accepted_everywhere() {
        let fixed = (&raw const OUT_OF_MEMORY).cast_mut();
        // SAFETY: NULL and the static error may be passed any number of times.
        unsafe {
            assert_eq!(rrpc_error_code(ptr::null()), RRPC_OK);
            assert_eq!(CStr::from_ptr(rrpc_error_message(ptr::null())), c"no error");
            rrpc_error_free(ptr::null_mut());
            assert_eq!(rrpc_error_code(fixed), RRPC_ERROR_OUT_OF_MEMORY);
            assert_eq!(CStr::from_ptr(rrpc_error_message(fixed)), c"out of memory");
            assert_eq!(
                CStr::from_ptr(rrpc_error_message(fixed)).count_bytes() + 1,
                OUT_OF_MEMORY.message_len
            );
            rrpc_error_free(fixed);
            rrpc_error_free(fixed);
        }
    }
}
