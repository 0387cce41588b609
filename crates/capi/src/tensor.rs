//! Tensors of other libraries, handed over as DLPack.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::args::{self, choice, flag};
use crate::compressor_options::{RRPC_DEVICE_CPU, RRPC_DTYPE_BF16, RRPC_DTYPE_I8};
use crate::engine::{RRPC_DTYPE_F16, RRPC_DTYPE_F32};
use crate::error::{Failure, rrpc_error};
use crate::guard::{guard, guard_free};
use crate::handles::{Kind, Table};
use crate::kv::{rrpc_kv_layer, rrpc_query_window};
use crate::sized::{self, sized};

/// `[sequence or block][head][entry][head_dim]`
pub const RRPC_LAYOUT_HEAD_MAJOR: u32 = 0;
/// `[sequence or block][entry][head][head_dim]`
pub const RRPC_LAYOUT_TOKEN_MAJOR: u32 = 1;

/// The most dimensions of a tensor.
const DIMENSIONS: usize = 8;

/// A tensor of another library. A handle: never dereferenced, checked at every call.
pub struct rrpc_tensor {
    _private: [u8; 0],
}

/// What a tensor is. Set struct_size before it is filled.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_tensor_info {
    /// sizeof(rrpc_tensor_info), set by the caller.
    pub struct_size: usize,
    /// Its first element: DLPack's byte_offset is counted in. It lives as long as the tensor.
    pub data: *mut c_void,
    /// The size of each dimension; 0 behind the last one.
    pub shape: [i64; 8],
    /// Elements from one index of each dimension to the next; 0 behind the last one.
    pub strides: [i64; 8],
    /// Dimensions, up to 8.
    pub dimensions: u32,
    /// RRPC_DTYPE_F32, RRPC_DTYPE_F16, RRPC_DTYPE_BF16 or RRPC_DTYPE_I8 (bytes without their scales).
    pub dtype: u32,
    /// RRPC_DEVICE_CPU.
    pub device: u32,
    /// Which of the devices of that kind.
    pub device_index: u32,
    /// 1: its producer forbids writing to it.
    pub read_only: u32,
    /// 0.
    pub reserved: u32,
}

sized!(rrpc_tensor_info {
    struct_size,
    data,
    shape,
    strides,
    dimensions,
    dtype,
    device,
    device_index,
    read_only,
    reserved,
});

// DLPack 1.x, as its header has it.
#[repr(C)]
#[derive(Clone, Copy)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

type Deleter = Option<unsafe extern "C" fn(managed: *mut c_void)>;

#[repr(C)]
#[derive(Clone, Copy)]
struct DlManagedTensor {
    tensor: DlTensor,
    manager_ctx: *mut c_void,
    deleter: Deleter,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct DlManagedTensorVersioned {
    major: u32,
    minor: u32,
    manager_ctx: *mut c_void,
    deleter: Deleter,
    flags: u64,
    tensor: DlTensor,
}

const _: () = assert!(size_of::<DlTensor>() == 48);
const _: () = assert!(size_of::<DlManagedTensor>() == 64);
const _: () = assert!(size_of::<DlManagedTensorVersioned>() == 80);

const DL_MAJOR: u32 = 1;
const DL_READ_ONLY: u64 = 1;
/// Main memory: plain, and pinned for CUDA or ROCm.
const DL_HOST_MEMORY: [i32; 3] = [1, 3, 11];
const DL_INT: u8 = 0;
const DL_FLOAT: u8 = 2;
const DL_BFLOAT: u8 = 4;

/// A tensor taken over: what it is, and what has to be called when it is let go.
struct Tensor {
    info: rrpc_tensor_info,
    managed: *mut c_void,
    deleter: Deleter,
    /// Set once the tensor has a handle: until then it is the caller's.
    taken: AtomicBool,
}

// SAFETY: `info` is never changed, and its data are not touched here. The deleter is called once, in
// whichever thread lets go last, which the documentation of rrpc_tensor_from_dlpack asks of it.
unsafe impl Send for Tensor {}
// SAFETY: as above.
unsafe impl Sync for Tensor {}

impl Drop for Tensor {
    fn drop(&mut self) {
        if let Some(deleter) = self.deleter
            && *self.taken.get_mut()
        {
            // SAFETY: the producer's deleter on what it handed over, which is ours and let go once.
            unsafe { deleter(self.managed) };
        }
    }
}

static TENSORS: Table<Tensor> = Table::new(Kind::Tensor);

fn tensor_of(argument: &str, tensor: *const rrpc_tensor) -> Result<Arc<Tensor>, Failure> {
    TENSORS.get(argument, tensor.addr())
}

/// Takes over a tensor of another library, given as DLPack: a DLManagedTensor if `versioned` is 0, a
/// DLManagedTensorVersioned of major version 1 if it is 1. No data are copied. It has to lie in main
/// memory (kDLCPU, kDLCUDAHost or kDLROCMHost), with up to 8 dimensions, and to be float32, float16,
/// bfloat16 or int8. Strides of NULL are those of a compact row-major tensor.
///
/// # Safety
/// `managed` is NULL or a managed tensor of that kind; `tensor` is NULL or valid.
///
/// Ownership: after success `managed` is the library's, and its deleter runs once, when the tensor is
/// freed; a deleter of NULL is accepted. After an error it is still the caller's and its deleter has not
/// run. The tensor goes to `*tensor` (NULL after an error); the caller frees it with rrpc_tensor_free.
/// Threads: any. The deleter runs in the thread that frees the tensor, or in one that was using it then.
/// Errors: NULL_POINTER; INVALID_ARGUMENT for a tensor that is not as said above.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_tensor_from_dlpack(
    managed: *mut c_void,
    versioned: u32,
    tensor: *mut *mut rrpc_tensor,
) -> *mut rrpc_error {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { args::set("tensor", tensor, ptr::null_mut()) }?;
        let versioned = flag("versioned", versioned)?;
        if managed.is_null() {
            return Err(Failure::null("managed"));
        }
        // SAFETY: the caller's promise.
        let (info, deleter) = unsafe {
            if versioned {
                read_versioned(managed.cast())
            } else {
                let found = managed.cast::<DlManagedTensor>().read_unaligned();
                describe(&found.tensor, false).map(|info| (info, found.deleter))
            }
        }?;
        let handle = TENSORS.insert(Tensor {
            info,
            managed,
            deleter,
            taken: AtomicBool::new(false),
        })?;
        TENSORS
            .get("tensor", handle)?
            .taken
            .store(true, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { args::set("tensor", tensor, ptr::without_provenance_mut(handle)) }
    })
}

/// # Safety
/// `managed` points to a DLManagedTensorVersioned, of any version.
unsafe fn read_versioned(
    managed: *const DlManagedTensorVersioned,
) -> Result<(rrpc_tensor_info, Deleter), Failure> {
    // Only the version lies in the same place in every version.
    // SAFETY: the caller's promise; no alignment is needed.
    let [major, minor] = unsafe { managed.cast::<[u32; 2]>().read_unaligned() };
    if major != DL_MAJOR {
        return Err(Failure::argument(format!(
            "managed: expected DLPack {DL_MAJOR}.x, found {major}.{minor}"
        )));
    }
    // SAFETY: the caller's promise, and the version is one whose layout this is.
    unsafe {
        let found = managed.read_unaligned();
        let info = describe(&found.tensor, found.flags & DL_READ_ONLY != 0)?;
        Ok((info, found.deleter))
    }
}

/// # Safety
/// The tensor's shape, and its strides unless they are NULL, have `ndim` items.
unsafe fn describe(tensor: &DlTensor, read_only: bool) -> Result<rrpc_tensor_info, Failure> {
    if !DL_HOST_MEMORY.contains(&tensor.device_type) {
        return Err(Failure::argument(format!(
            "managed: expected a tensor in main memory (device type 1, 3 or 11), found device type {}",
            tensor.device_type
        )));
    }
    let (dtype, size) = match (tensor.code, tensor.bits, tensor.lanes) {
        (DL_FLOAT, 32, 1) => (RRPC_DTYPE_F32, 4u64),
        (DL_FLOAT, 16, 1) => (RRPC_DTYPE_F16, 2),
        (DL_BFLOAT, 16, 1) => (RRPC_DTYPE_BF16, 2),
        (DL_INT, 8, 1) => (RRPC_DTYPE_I8, 1),
        (code, bits, lanes) => {
            return Err(Failure::argument(format!(
                "managed: expected float32, float16, bfloat16 or int8, found type code {code} of {bits} bits and {lanes} lanes"
            )));
        }
    };
    let dimensions = usize::try_from(tensor.ndim).unwrap_or(usize::MAX);
    if dimensions > DIMENSIONS {
        return Err(Failure::argument(format!(
            "managed: expected 0 to {DIMENSIONS} dimensions, found {}",
            tensor.ndim
        )));
    }
    if dimensions > 0 && tensor.shape.is_null() {
        return Err(Failure::null("managed.shape"));
    }
    let too_large =
        || Failure::argument("managed: expected a tensor of less than 2^63 bytes, found a larger one");
    let mut info = rrpc_tensor_info {
        struct_size: size_of::<rrpc_tensor_info>(),
        data: ptr::null_mut(),
        shape: [0; DIMENSIONS],
        strides: [0; DIMENSIONS],
        dimensions: dimensions as u32,
        dtype,
        device: RRPC_DEVICE_CPU,
        device_index: 0,
        read_only: read_only.into(),
        reserved: 0,
    };
    let mut compact = 1i64;
    // Bytes from the first element to the end of the last, were all strides positive.
    let mut span = size as i64;
    let mut empty = false;
    for index in (0..dimensions).rev() {
        // SAFETY: below `ndim`; no alignment is needed.
        let count = unsafe { tensor.shape.add(index).read_unaligned() };
        if count < 0 {
            return Err(Failure::argument(format!(
                "managed.shape[{index}]: expected 0 or more, found {count}"
            )));
        }
        let stride = match tensor.strides.is_null() {
            true => compact,
            // SAFETY: below `ndim`; no alignment is needed.
            false => unsafe { tensor.strides.add(index).read_unaligned() },
        };
        info.shape[index] = count;
        info.strides[index] = stride;
        empty |= count == 0;
        compact = compact.checked_mul(count.max(1)).ok_or_else(too_large)?;
        span = (count - 1)
            .max(0)
            .checked_mul(stride.checked_abs().ok_or_else(too_large)?)
            .and_then(|elements| elements.checked_mul(size as i64))
            .and_then(|bytes| bytes.checked_add(span))
            .ok_or_else(too_large)?;
    }
    if tensor.data.is_null() && !empty {
        return Err(Failure::null("managed.data"));
    }
    let address = tensor.data.addr() as u64;
    if address
        .checked_add(tensor.byte_offset)
        .and_then(|first| first.checked_add(span as u64))
        .is_none()
    {
        return Err(Failure::argument(format!(
            "managed.byte_offset: expected one inside of memory, found {}",
            tensor.byte_offset
        )));
    }
    info.data = tensor.data.wrapping_byte_add(tensor.byte_offset as usize);
    Ok(info)
}

/// Frees a tensor and runs its deleter. NULL and handles that were freed before are accepted.
///
/// Ownership: takes the tensor's handle. Pointers into it are no longer valid, those in a rrpc_kv_layer
/// or rrpc_query_window included.
/// Threads: any. If a call is using the tensor, the deleter runs when that call ends, in its thread.
/// Errors: none.
/// Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn rrpc_tensor_free(tensor: *mut rrpc_tensor) {
    guard_free(|| drop(TENSORS.remove(tensor.addr())));
}

/// Says what a tensor is.
///
/// # Safety
/// `info` is NULL or valid for its struct_size.
///
/// Ownership: the struct is the caller's; `data` points into the tensor.
/// Threads: any.
/// Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for a struct_size that is none.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_tensor_get_info(
    tensor: *const rrpc_tensor,
    info: *mut rrpc_tensor_info,
) -> *mut rrpc_error {
    guard(|| {
        let tensor = tensor_of("tensor", tensor)?;
        // SAFETY: the caller's promise.
        unsafe { sized::write("info", info, &tensor.info) }
    })
}

/// A tensor of four dimensions with its elements of a head side by side: shape and strides as
/// `[row or block, head, entry]`.
fn four_dimensions(
    argument: &str,
    info: &rrpc_tensor_info,
    token_major: bool,
) -> Result<([i64; 3], [i64; 3]), Failure> {
    if info.dimensions != 4 {
        return Err(Failure::argument(format!(
            "{argument}: expected 4 dimensions, found {}",
            info.dimensions
        )));
    }
    let shape = &info.shape[..4];
    if shape.contains(&0) {
        return Err(Failure::argument(format!(
            "{argument}: expected a tensor with elements, found the shape {shape:?}"
        )));
    }
    if info.strides[3] != 1 && info.shape[3] > 1 {
        return Err(Failure::argument(format!(
            "{argument}: expected the elements of a head side by side (last stride 1), found stride {}",
            info.strides[3]
        )));
    }
    let (head, entry) = if token_major { (2, 1) } else { (1, 2) };
    let order = [0, head, entry];
    let sizes = order.map(|index| info.shape[index]);
    let mut strides = order.map(|index| info.strides[index]);
    // The stride of a dimension of one says nothing, and some libraries write 1: a step over everything
    // is one that overlaps with nothing.
    let end: i64 = (0..3)
        .map(|index| (sizes[index] - 1).saturating_mul(strides[index]))
        .fold(info.shape[3], i64::saturating_add);
    for (stride, &size) in strides.iter_mut().zip(&sizes) {
        if size == 1 {
            *stride = end;
        } else if *stride < 1 {
            return Err(Failure::argument(format!(
                "{argument}: expected positive strides, found {:?}",
                &info.strides[..4]
            )));
        }
    }
    Ok((sizes, strides))
}

fn token_major(layout: u32) -> Result<bool, Failure> {
    choice(
        "layout",
        layout,
        &[(RRPC_LAYOUT_HEAD_MAJOR, false), (RRPC_LAYOUT_TOKEN_MAJOR, true)],
    )
}

/// Fills keys, values, key_strides and value_strides of `layer` from two tensors of one type and shape,
/// of four dimensions in the order that `layout` names, one of RRPC_LAYOUT_. The other fields stay as they
/// are; struct_size is set before. Blocks, entries, heads and head_dim of the tensors have to be at least
/// those of the batch and the compressor that the layer is used with.
///
/// # Safety
/// `layer` is NULL or valid for its struct_size.
///
/// Ownership: the tensors have to live as long as the layer is used.
/// Threads: any.
/// Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for a struct_size that is none, tensors of other
/// dimensions, of two types or shapes, that may not be written, or whose last stride is not 1.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_kv_layer_from_tensors(
    keys: *const rrpc_tensor,
    values: *const rrpc_tensor,
    layout: u32,
    layer: *mut rrpc_kv_layer,
) -> *mut rrpc_error {
    guard(|| {
        let (keys, values) = (tensor_of("keys", keys)?, tensor_of("values", values)?);
        let (keys, values) = (&keys.info, &values.info);
        let token_major = token_major(layout)?;
        // SAFETY: the caller's promise.
        let mut filled = unsafe { sized::read("layer", layer, crate::kv::LAYER) }?;
        let (key_shape, key_strides) = four_dimensions("keys", keys, token_major)?;
        let (value_shape, value_strides) = four_dimensions("values", values, token_major)?;
        if (key_shape, keys.shape[3], keys.dtype) != (value_shape, values.shape[3], values.dtype) {
            return Err(Failure::argument(format!(
                "values: expected the shape {:?} and dtype {} of the keys, found {:?} and {}",
                &keys.shape[..4],
                keys.dtype,
                &values.shape[..4],
                values.dtype
            )));
        }
        for (argument, info) in [("keys", keys), ("values", values)] {
            if info.read_only != 0 {
                return Err(Failure::argument(format!(
                    "{argument}: expected a tensor that may be written, found one that is read-only"
                )));
            }
        }
        filled.keys = keys.data;
        filled.values = values.data;
        filled.key_strides = key_strides;
        filled.value_strides = value_strides;
        // SAFETY: the caller's promise.
        unsafe { sized::write("layer", layer, &filled) }
    })
}

/// Fills queries, strides, ring_tokens and dtype of `window` from a tensor of four dimensions: its rows,
/// and then tokens and query heads in the order that `layout` names, one of RRPC_LAYOUT_ (entries are the
/// ring's tokens). The other fields stay as they are; struct_size is set before.
///
/// # Safety
/// `window` is NULL or valid for its struct_size.
///
/// Ownership: the tensor has to live as long as the window is used.
/// Threads: any.
/// Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for a struct_size that is none, a tensor of other
/// dimensions, of bytes, or whose last stride is not 1.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_query_window_from_tensor(
    queries: *const rrpc_tensor,
    layout: u32,
    window: *mut rrpc_query_window,
) -> *mut rrpc_error {
    guard(|| {
        let queries = tensor_of("queries", queries)?;
        let token_major = token_major(layout)?;
        // SAFETY: the caller's promise.
        let mut filled = unsafe { sized::read("window", window, crate::kv::WINDOW) }?;
        let ([_, _, tokens], [row, head, token]) = four_dimensions("queries", &queries.info, token_major)?;
        if queries.info.dtype == RRPC_DTYPE_I8 {
            return Err(Failure::argument(
                "queries: expected float32, float16 or bfloat16, found int8",
            ));
        }
        filled.queries = queries.info.data;
        filled.strides = [row, token, head];
        filled.ring_tokens = u32::try_from(tokens).map_err(|_| {
            Failure::argument(format!("queries: expected less than 2^32 tokens, found {tokens}"))
        })?;
        filled.dtype = queries.info.dtype;
        // SAFETY: the caller's promise.
        unsafe { sized::write("window", window, &filled) }
    })
}
