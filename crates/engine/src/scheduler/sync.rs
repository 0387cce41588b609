//! Locks and threads; under shuttle, its own.

#[cfg(feature = "shuttle")]
pub(super) use ::shuttle::{
    sync::{Condvar, Mutex, MutexGuard, mpsc},
    thread,
};
use std::sync::PoisonError;
#[cfg(not(feature = "shuttle"))]
pub(super) use std::{
    sync::{Condvar, Mutex, MutexGuard, mpsc},
    thread,
};

/// A lock whose holders leave its value whole, whatever panics.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
