//! A fork()ed child has a copy of the parent's memory and none of its threads: whatever it asked of
//! an engine could wait for ever.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

static IN_CHILD: AtomicBool = AtomicBool::new(false);
static WATCH: Once = Once::new();

/// From now on, children of this process are told apart.
pub(crate) fn watch() {
    extern "C" fn in_child() {
        IN_CHILD.store(true, Ordering::Relaxed);
    }
    WATCH.call_once(|| {
        // SAFETY: the handler only stores to an atomic, which is allowed after a fork, and this
        // library is never unloaded. Without memory for the registration children stay unnoticed.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

/// Whether this process was forked from one that had opened an engine.
pub(crate) fn in_child() -> bool {
    IN_CHILD.load(Ordering::Relaxed)
}
