//! Ctrl-C: the first one asks the answer to end, the second one ends the program as ever.

#![allow(unsafe_code)] // sigaction

use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code of what Ctrl-C ended, as shells have it.
pub const EXIT_CODE: u8 = 130;

static ASKED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_interrupt(_: libc::c_int) {
    ASKED.store(true, Ordering::Relaxed);
}

/// From now on the next Ctrl-C is only noted, unless the program was started with it ignored (as
/// shells start programs in the background).
pub fn watch() {
    // SAFETY: both structs are plain C data for which zeros are valid values, and both outlive the
    // calls; the handler does nothing but store to an atomic, which is safe in a signal.
    unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGINT, std::ptr::null(), &mut before) != 0
            || before.sa_sigaction == libc::SIG_IGN
        {
            return;
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int) = on_interrupt;
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART | libc::SA_RESETHAND;
        libc::sigaction(libc::SIGINT, &action, std::ptr::null_mut());
    }
}

/// Whether Ctrl-C came.
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}
