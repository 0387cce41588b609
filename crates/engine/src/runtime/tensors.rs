//! What an operator's node sees of ONNX Runtime, without an allocation of ours: its tensors, and a loop on its threads.

#![allow(unsafe_code)] // OrtApi's kernel context

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use ort::AsPointer;
use ort::operator::ComputeContext;
use ort::sys::{self, ONNXTensorElementDataType as ElementType};

use crate::error::{Error, Result, panic_text};

/// A number format of a node's tensors.
pub(super) trait Number: Copy {
    const ELEMENT: ElementType;
}

impl Number for f32 {
    const ELEMENT: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

impl Number for i32 {
    const ELEMENT: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
}

impl Number for i64 {
    const ELEMENT: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
}

/// The elements of input `index`.
pub(super) fn input<'a, T: Number>(context: &'a ComputeContext, index: usize) -> Result<&'a [T]> {
    let mut value: *const sys::OrtValue = ptr::null();
    // SAFETY: the context is live; writes one pointer.
    check(unsafe { (ort::api().KernelContext_GetInput)(context.ptr(), index, &mut value) })?;
    if value.is_null() {
        return Err(Error::Model(format!(
            "input {index}: expected a tensor, found none"
        )));
    }
    let len = elements::<T>(value)?;
    let mut data: *const c_void = ptr::null();
    // SAFETY: a live tensor; writes one pointer.
    check(unsafe { (ort::api().GetTensorData)(value, &mut data) })?;
    if len == 0 {
        return Ok(&[]);
    }
    // SAFETY: a tensor of `len` elements of this type, which lives as long as the node computes and which
    // nobody writes meanwhile.
    Ok(unsafe { std::slice::from_raw_parts(data.cast(), len) })
}

/// The elements of output 0, which gets this shape.
pub(super) fn output<'a>(context: &'a ComputeContext, shape: &[i64]) -> Result<&'a mut [f32]> {
    let mut value: *mut sys::OrtValue = ptr::null_mut();
    let context: *const sys::OrtKernelContext = context.ptr();
    // SAFETY: the context is live, the shape is read during the call; writes one pointer.
    check(unsafe {
        (ort::api().KernelContext_GetOutput)(context.cast_mut(), 0, shape.as_ptr(), shape.len(), &mut value)
    })?;
    if value.is_null() {
        return Err(Error::Model("output: expected a tensor, found none".into()));
    }
    let len = elements::<f32>(value)?;
    let mut data: *mut c_void = ptr::null_mut();
    // SAFETY: a live tensor; writes one pointer.
    check(unsafe { (ort::api().GetTensorMutableData)(value, &mut data) })?;
    if len == 0 {
        return Ok(&mut []);
    }
    // SAFETY: a tensor of `len` elements of this type that only this node, which asks once, accesses.
    Ok(unsafe { std::slice::from_raw_parts_mut(data.cast(), len) })
}

fn elements<T: Number>(value: *const sys::OrtValue) -> Result<usize> {
    let mut element = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    let (mut shape, mut dimensions): (*const i64, usize) = (ptr::null(), 0);
    // SAFETY: a live tensor; writes what the three pointers name.
    check(unsafe {
        (ort::api().GetTensorElementTypeAndShapeDataReference)(
            value,
            &mut element,
            &mut shape,
            &mut dimensions,
        )
    })?;
    if element != T::ELEMENT {
        return Err(Error::Model(format!(
            "tensor: expected elements of {:?}, found {element:?}",
            T::ELEMENT
        )));
    }
    let shape = match dimensions {
        0 => &[],
        // SAFETY: the shape's numbers live as long as the tensor.
        _ => unsafe { std::slice::from_raw_parts(shape, dimensions) },
    };
    usize::try_from(shape.iter().product::<i64>())
        .map_err(|_| Error::Model(format!("tensor: expected a shape, found {shape:?}")))
}

fn check(status: sys::OrtStatusPtr) -> Result<()> {
    // SAFETY: the status comes from a call of the API and is consumed once.
    Ok(unsafe { ort::Error::result_from_status(status) }?)
}

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
