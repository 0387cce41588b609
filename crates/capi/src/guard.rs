//! What stands around the body of every function: no panic leaves it, no forked child enters it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Failure, RRPC_ERROR_FORKED, RRPC_ERROR_INTERNAL, rrpc_error};
use crate::fork;

/// Runs the body of a function that can fail.
///
/// A panic becomes an error. What it left half done is behind a lock that is poisoned by it
/// ([`crate::handles`]), so asserting unwind safety is sound.
pub(crate) fn guard(body: impl FnOnce() -> Result<(), Failure>) -> *mut rrpc_error {
    crate::log::silence_panics();
    let result = if fork::in_child() {
        Err(Failure::new(
            RRPC_ERROR_FORKED,
            "this process was forked from one that uses the library: start the child with exec, or \
             open engines after the fork only",
        ))
    } else {
        catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| Err(panicked(payload)))
    };
    match result {
        Ok(()) => std::ptr::null_mut(),
        Err(failure) => failure.into_raw(),
    }
}

/// Runs the body of a function that frees. A forked child frees nothing: the threads that it would
/// have to wait for are the parent's.
pub(crate) fn guard_free(body: impl FnOnce()) {
    if fork::in_child() {
        return;
    }
    crate::log::silence_panics();
    if let Err(payload) = catch_unwind(AssertUnwindSafe(body)) {
        std::mem::forget(payload); // dropping it could panic again
    }
}

fn panicked(payload: Box<dyn Any + Send>) -> Failure {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a text");
    let failure = Failure::new(RRPC_ERROR_INTERNAL, format!("internal error: {text}"));
    std::mem::forget(payload); // dropping it could panic again
    failure
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{rrpc_error_code, rrpc_error_free, rrpc_error_message};

    #[test]
    fn a_panic_becomes_an_error() {
        let error = guard(|| panic!("on purpose"));
        // SAFETY: `guard` returned the error, which is freed once, at the end.
        unsafe {
            assert_eq!(rrpc_error_code(error), RRPC_ERROR_INTERNAL);
            let message = std::ffi::CStr::from_ptr(rrpc_error_message(error));
            assert_eq!(message.to_str().unwrap(), "internal error: on purpose");
            rrpc_error_free(error);
        }
        assert!(guard(|| Ok(())).is_null());
        guard_free(|| panic!("on purpose"));
    }
}
