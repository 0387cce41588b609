//! Work of a node on ONNX Runtime's own threads.

#![allow(unsafe_code)] // buffers that workers write in disjoint parts

use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use ort::operator::ComputeContext;

use crate::error::{Error, Result, panic_text};

/// Runs `work` for every unit, on ONNX Runtime's own threads if there are several. A panic in a worker
/// becomes an error here: its frames are under ONNX Runtime's.
pub(super) fn parallel(
    context: &ComputeContext,
    units: usize,
    work: impl Fn(usize) -> Result<()> + Send + Sync,
) -> Result<()> {
    if units <= 1 {
        return (0..units).try_for_each(work);
    }
    let failure = Mutex::new(None);
    context.par_for(units, 0, |unit| {
        let result = catch_unwind(AssertUnwindSafe(|| work(unit)))
            .unwrap_or_else(|payload| Err(Error::Internal(panic_text(&*payload))));
        if let Err(error) = result {
            *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    })?;
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// A buffer that workers write in disjoint parts.
pub(super) struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    _buffer: PhantomData<&'a mut [T]>,
}

impl<'a, T> Parts<'a, T> {
    pub(super) fn new(buffer: &'a mut [T]) -> Self {
        Self {
            start: buffer.as_mut_ptr(),
            len: buffer.len(),
            _buffer: PhantomData,
        }
    }

    /// # Safety
    /// No other part that is in use overlaps this one.
    #[allow(clippy::mut_from_ref)] // that is the point: parts are disjoint
    pub(super) unsafe fn part(&self, first: usize, len: usize) -> &'a mut [T] {
        // SAFETY: `address` checks the range; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.address(first, len), len) }
    }

    /// The address of element `first`, which `len` elements of the buffer begin at.
    pub(super) fn address(&self, first: usize, len: usize) -> *mut T {
        assert!(first + len <= self.len, "a part inside the buffer");
        self.start.wrapping_add(first)
    }
}

// SAFETY: parts are handed out through `unsafe` functions whose callers keep them disjoint.
unsafe impl<T: Send> Sync for Parts<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Parts<'_, T> {}
