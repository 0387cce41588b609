//! Work of a node on ONNX Runtime's own threads, without an allocation of ours.

#![allow(unsafe_code)] // OrtApi's loop, and buffers that workers write in disjoint parts

use std::ffi::c_void;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use ort::AsPointer;
use ort::operator::ComputeContext;

use super::tensors::check;
use crate::error::{Error, Result, panic_text};

/// Calls `work` for every unit on ONNX Runtime's threads, this one included. A panic in it becomes an error here: its frames are
/// under ONNX Runtime's.
pub(super) fn parallel<F: Fn(usize) -> Result<()> + Sync>(
    context: &ComputeContext,
    units: usize,
    work: &F,
) -> Result<()> {
    struct Job<'a, F> {
        work: &'a F,
        failure: Mutex<Option<Error>>,
    }

    unsafe extern "C" fn unit<F: Fn(usize) -> Result<()> + Sync>(job: *mut c_void, index: usize) {
        // SAFETY: the job below, which outlives the loop; `work` may be called from any thread.
        let job = unsafe { &*job.cast::<Job<'_, F>>() };
        let result = catch_unwind(AssertUnwindSafe(|| (job.work)(index)))
            .unwrap_or_else(|payload| Err(Error::Internal(panic_text(&*payload))));
        if let Err(error) = result {
            *job.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    }

    let job = Job {
        work,
        failure: Mutex::new(None),
    };
    // SAFETY: the loop has ended when the call returns, so the job outlives it; each unit is called once.
    check(unsafe {
        (ort::api().KernelContext_ParallelFor)(
            context.ptr(),
            unit::<F>,
            units,
            0,
            ptr::from_ref(&job).cast_mut().cast(),
        )
    })?;
    match job.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
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
