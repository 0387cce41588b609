//! A session whose inputs and outputs are views of our own buffers: nothing is copied in or out.

#![allow(unsafe_code)] // OrtApi::Run over borrowed memory

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

use ort::AsPointer;
use ort::operator::OperatorDomain;
use ort::sys::{self, ONNXTensorElementDataType as ElementType};

use super::float_mode::FloatMode;
use crate::error::{Error, Result};
use crate::model::Weights;

/// A named input: a borrowed, contiguous tensor.
pub(crate) enum Input<'a> {
    I64(&'a [i64]),
    I32(&'a [i32]),
    /// One buffer may be an input and an output of the same run, so it comes as a pointer.
    F32(NonNull<f32>, usize),
}

/// A named output: borrowed, contiguous memory that the run fills.
pub(crate) struct Output {
    pub data: NonNull<f32>,
    pub len: usize,
}

impl Output {
    pub(crate) fn new(buffer: &mut [f32]) -> Self {
        Self {
            data: NonNull::from(&mut *buffer).cast(),
            len: buffer.len(),
        }
    }
}

/// A loaded graph. One driver at a time: [`run`](Self::run) takes it exclusively.
pub(crate) struct Session {
    session: ort::session::Session,
    memory: MemoryInfo,
    buffers: Buffers,
    /// Initialisers that the session reads, until it is gone: fields are dropped in their order.
    _initialisers: Vec<Value>,
    _weights: Option<Arc<Weights>>,
}

/// What a run hands over, inputs before outputs: reused, and empty between runs.
#[derive(Default)]
struct Buffers {
    names: Vec<*const c_char>,
    values: Vec<Value>,
}

// SAFETY: nothing is in it between runs, and a run has the session exclusively.
unsafe impl Send for Buffers {}

impl Session {
    /// Loads a graph file. `threads` = 0 leaves the number to ONNX Runtime. Initialisers that are among `weights` are read
    /// there, the others from their file.
    pub(crate) fn open(
        environment: &ort::environment::Environment,
        graph: &Path,
        threads: usize,
        operators: Option<Arc<OperatorDomain>>,
        weights: Option<Arc<Weights>>,
    ) -> Result<Self> {
        let describe = |error: ort::Error<_>| Error::Runtime(error.to_string());
        let mut builder = ort::session::Session::builder(environment)?
            .with_intra_threads(threads)
            .map_err(describe)?
            // Real keys and values have denormals, and each costs a hundred cycles.
            .with_flush_to_zero()
            .map_err(describe)?;
        if let Some(operators) = operators {
            builder = builder.with_operators(operators).map_err(describe)?;
        }
        let memory = MemoryInfo::new()?;
        let mut initialisers = Vec::new();
        for (name, shape, data) in weights.iter().flat_map(|weights| weights.tensors()) {
            let value = Value::new(
                &memory,
                data.cast(),
                shape,
                ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
            )?;
            let name = CString::new(name)
                .map_err(|_| Error::Model(format!("initialiser {name:?}: expected a name without NUL")))?;
            // SAFETY: the name is copied; the value, which ONNX Runtime only reads, and the memory behind it outlive the session.
            let status =
                unsafe { (ort::api().AddInitializer)(builder.ptr_mut(), name.as_ptr(), value.0.as_ptr()) };
            // SAFETY: the status comes from the call above and is consumed once.
            unsafe { ort::Error::result_from_status(status) }?;
            initialisers.push(value);
        }
        // The first sessions of a process register the operator's domain with ONNX Runtime, which looks
        // and adds without a lock between: of two at a time one would fail.
        static OPENING: Mutex<()> = Mutex::new(());
        let one_at_a_time = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
        let mode = FloatMode::kept();
        let session = builder.commit_from_file(graph);
        drop((mode, one_at_a_time));
        let session = session.map_err(|error| Error::Model(format!("{}: {error}", graph.display())))?;
        Ok(Self {
            session,
            memory,
            buffers: Buffers::default(),
            _initialisers: initialisers,
            _weights: weights,
        })
    }

    /// Runs the graph. `inputs` and `outputs`: name, shape, memory. The memory of an output may be
    /// that of an input where the operator that writes it allows so. Allocates nothing of ours once it is warm.
    pub(crate) fn run(
        &mut self,
        inputs: &[(&CStr, &[i64], Input<'_>)],
        outputs: &[(&CStr, &[i64], Output)],
    ) -> Result<()> {
        let mut buffers = std::mem::take(&mut self.buffers);
        let result = self.run_with(inputs, outputs, &mut buffers);
        buffers.names.clear();
        buffers.values.clear();
        self.buffers = buffers;
        result
    }

    fn run_with(
        &self,
        inputs: &[(&CStr, &[i64], Input<'_>)],
        outputs: &[(&CStr, &[i64], Output)],
        Buffers { names, values }: &mut Buffers,
    ) -> Result<()> {
        for (name, shape, input) in inputs {
            names.push(name.as_ptr());
            values.push(match input {
                Input::I64(data) => {
                    let data = NonNull::from(*data).cast();
                    Value::new(
                        &self.memory,
                        data,
                        shape,
                        ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
                    )
                }
                Input::I32(data) => {
                    let data = NonNull::from(*data).cast();
                    Value::new(
                        &self.memory,
                        data,
                        shape,
                        ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
                    )
                }
                Input::F32(data, len) => {
                    check_len(name, shape, *len)?;
                    Value::new(
                        &self.memory,
                        data.cast(),
                        shape,
                        ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                    )
                }
            }?);
            if let Input::I64(data) = input {
                check_len(name, shape, data.len())?;
            }
            if let Input::I32(data) = input {
                check_len(name, shape, data.len())?;
            }
        }
        for (name, shape, output) in outputs {
            check_len(name, shape, output.len)?;
            names.push(name.as_ptr());
            values.push(Value::new(
                &self.memory,
                output.data.cast(),
                shape,
                ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
            )?);
        }
        let _mode = FloatMode::flushing();
        let (input_names, output_names) = names.split_at(inputs.len());
        let (input_values, output_values) = values.split_at_mut(inputs.len());
        // SAFETY: names and values live until Run returns, one of each per input and output; every
        // value covers memory of the length that its shape says (check_len), which the caller
        // keeps borrowed; outputs are given, so Run allocates none. A Value is a pointer to an OrtValue.
        let status = unsafe {
            (ort::api().Run)(
                self.session.ptr().cast_mut(),
                ptr::null(),
                input_names.as_ptr(),
                input_values.as_ptr().cast(),
                input_values.len(),
                output_names.as_ptr(),
                output_names.len(),
                output_values.as_mut_ptr().cast(),
            )
        };
        // SAFETY: the status comes from the call above and is consumed once.
        unsafe { ort::Error::result_from_status(status) }?;
        Ok(())
    }
}

fn check_len(name: &CStr, shape: &[i64], len: usize) -> Result<()> {
    let expected: i64 = shape.iter().product();
    if usize::try_from(expected) != Ok(len) {
        return Err(Error::Internal(format!(
            "tensor {name:?}: expected {expected} elements for shape {shape:?}, found {len}"
        )));
    }
    Ok(())
}

/// A tensor over borrowed memory; released with the handle.
#[repr(transparent)]
struct Value(NonNull<sys::OrtValue>);

// SAFETY: an OrtValue is bound to no thread, and the handle owns it.
unsafe impl Send for Value {}

impl Value {
    fn new(memory: &MemoryInfo, data: NonNull<c_void>, shape: &[i64], element: ElementType) -> Result<Self> {
        let size = match element {
            ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 => 8,
            ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 => 1,
            _ => 4,
        };
        let elements: i64 = shape.iter().product();
        let mut value = ptr::null_mut();
        // SAFETY: memory and shape are live; ONNX Runtime only records the data pointer here.
        let status = unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                memory.0.as_ptr(),
                data.as_ptr(),
                elements as usize * size,
                shape.as_ptr(),
                shape.len(),
                element,
                &mut value,
            )
        };
        // SAFETY: the status comes from the call above and is consumed once.
        unsafe { ort::Error::result_from_status(status) }?;
        NonNull::new(value)
            .map(Self)
            .ok_or_else(|| Error::Runtime("no tensor was created".into()))
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: created by CreateTensorWithDataAsOrtValue and released once.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}

struct MemoryInfo(NonNull<sys::OrtMemoryInfo>);

impl MemoryInfo {
    fn new() -> Result<Self> {
        let mut info = ptr::null_mut();
        // SAFETY: writes one pointer.
        let status = unsafe {
            (ort::api().CreateCpuMemoryInfo)(
                sys::OrtAllocatorType::OrtDeviceAllocator,
                sys::OrtMemType::OrtMemTypeDefault,
                &mut info,
            )
        };
        // SAFETY: the status comes from the call above and is consumed once.
        unsafe { ort::Error::result_from_status(status) }?;
        NonNull::new(info)
            .map(Self)
            .ok_or_else(|| Error::Runtime("no memory description was created".into()))
    }
}

impl Drop for MemoryInfo {
    fn drop(&mut self) {
        // SAFETY: created by CreateCpuMemoryInfo and released once.
        unsafe { (ort::api().ReleaseMemoryInfo)(self.0.as_ptr()) }
    }
}

// SAFETY: an OrtMemoryInfo is immutable after its creation and bound to no thread.
unsafe impl Send for MemoryInfo {}
