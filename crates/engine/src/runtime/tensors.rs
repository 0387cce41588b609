//! The tensors of an operator's node, without an allocation of ours.

#![allow(unsafe_code)] // OrtApi's kernel context

use std::ffi::c_void;
use std::ptr;

use ort::AsPointer;
use ort::operator::ComputeContext;
use ort::sys::{self, ONNXTensorElementDataType as ElementType};

use crate::error::{Error, Result};

/// A number format of a node's tensors.
pub(super) trait Number: Copy {
    const ELEMENT: ElementType;
}

impl Number for f32 {
    const ELEMENT: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

impl Number for u8 {
    const ELEMENT: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
}

impl Number for i32 {
    const ELEMENT: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
}

impl Number for i64 {
    const ELEMENT: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
}

/// The elements of input `index`.
pub(super) fn input<T: Number>(context: &ComputeContext, index: usize) -> Result<&[T]> {
    optional_input(context, index)?
        .ok_or_else(|| Error::Model(format!("input {index}: expected a tensor, found none")))
}

/// The elements of input `index`, if the node has it.
pub(super) fn optional_input<T: Number>(context: &ComputeContext, index: usize) -> Result<Option<&[T]>> {
    let mut count = 0;
    // SAFETY: the context is live; writes one number.
    check(unsafe { (ort::api().KernelContext_GetInputCount)(context.ptr(), &mut count) })?;
    if index >= count {
        return Ok(None);
    }
    let mut value: *const sys::OrtValue = ptr::null();
    // SAFETY: the context is live; writes one pointer.
    check(unsafe { (ort::api().KernelContext_GetInput)(context.ptr(), index, &mut value) })?;
    if value.is_null() {
        return Ok(None);
    }
    let len = elements::<T>(value)?;
    let mut data: *const c_void = ptr::null();
    // SAFETY: a live tensor; writes one pointer.
    check(unsafe { (ort::api().GetTensorData)(value, &mut data) })?;
    if len == 0 {
        return Ok(Some(&[]));
    }
    // SAFETY: a tensor of `len` elements of this type, which lives as long as the node computes and which
    // nobody writes meanwhile.
    Ok(Some(unsafe { std::slice::from_raw_parts(data.cast(), len) }))
}

/// The elements of output `index`, which gets this shape.
///
/// # Safety
/// Asked for once.
#[allow(clippy::mut_from_ref)] // the context hands each output out once
pub(super) unsafe fn output<'a>(
    context: &'a ComputeContext,
    index: usize,
    shape: &[i64],
) -> Result<&'a mut [f32]> {
    let mut value: *mut sys::OrtValue = ptr::null_mut();
    let context: *const sys::OrtKernelContext = context.ptr();
    // SAFETY: the context is live, the shape is read during the call; writes one pointer.
    check(unsafe {
        (ort::api().KernelContext_GetOutput)(
            context.cast_mut(),
            index,
            shape.as_ptr(),
            shape.len(),
            &mut value,
        )
    })?;
    if value.is_null() {
        return Err(Error::Model(format!(
            "output {index}: expected a tensor, found none"
        )));
    }
    let len = elements::<f32>(value)?;
    let mut data: *mut c_void = ptr::null_mut();
    // SAFETY: a live tensor; writes one pointer.
    check(unsafe { (ort::api().GetTensorMutableData)(value, &mut data) })?;
    if len == 0 {
        return Ok(&mut []);
    }
    // SAFETY: a tensor of `len` elements of this type that only this node accesses, and asks for once.
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

pub(super) fn check(status: sys::OrtStatusPtr) -> Result<()> {
    // SAFETY: the status comes from a call of the API and is consumed once.
    Ok(unsafe { ort::Error::result_from_status(status) }?)
}
