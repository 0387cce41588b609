//! The compressor: score, select, apply, over memory of the host's.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use reasoning_rpc_compressor::{
    self as library, Batch, Compressor, Dtype, Error, Layer, Plan, Window, Workspace,
};

use crate::args::{self, items};
use crate::compressor_options::{self, rrpc_compressor_options};
use crate::error::{
    Failure, RRPC_ERROR_BUFFER_TOO_SMALL, RRPC_ERROR_BUSY, RRPC_ERROR_CALLBACK, RRPC_ERROR_INVALID_ARGUMENT,
    RRPC_ERROR_OUT_OF_MEMORY, rrpc_error,
};
use crate::guard::{guard, guard_free};
use crate::handles::{Kind, Table};
use crate::kv::{
    self, MOST_SEQUENCES, read_batch, read_layer, read_window, rrpc_kv_batch, rrpc_kv_layer,
    rrpc_query_window,
};
use crate::plan::{MOST_ITEMS, read_plan, rrpc_plan, write_plan};
use crate::sized::{self, sized};

/// Compresses caches that a host owns. Shared by any number of threads. A handle: never dereferenced,
/// checked at every call. It needs no engine, no model and no ONNX Runtime.
pub struct rrpc_compressor {
    _private: [u8; 0],
}

/// What calls with a batch need. Set struct_size before it is filled.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_compressor_sizes {
    /// sizeof(rrpc_compressor_sizes), set by the caller.
    pub struct_size: usize,
    /// Bytes of the workspace, at any address.
    pub workspace_bytes: usize,
    /// Floats of the scores: kv_heads times the sum of the candidates.
    pub score_count: usize,
}

sized!(rrpc_compressor_sizes {
    struct_size,
    workspace_bytes,
    score_count
});

/// What a compressor's handle names.
struct Shared {
    compressor: Compressor,
    /// Of keys and values.
    dtype: Dtype,
    /// Floats of all KV heads' keys of one entry.
    key_floats: usize,
}

static COMPRESSORS: Table<Shared> = Table::new(Kind::Compressor);

fn compressor_of(compressor: *const rrpc_compressor) -> Result<Arc<Shared>, Failure> {
    COMPRESSORS.get("compressor", compressor.addr())
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Argument(_) => RRPC_ERROR_INVALID_ARGUMENT,
            Error::TooSmall { .. } => RRPC_ERROR_BUFFER_TOO_SMALL,
            Error::Busy { .. } => RRPC_ERROR_BUSY,
            Error::Callback(_) => RRPC_ERROR_CALLBACK,
            Error::OutOfMemory => RRPC_ERROR_OUT_OF_MEMORY,
        };
        Self::new(code, error.to_string())
    }
}

fn workspace_at(workspace: *mut c_void, bytes: usize) -> Result<Workspace, Failure> {
    if workspace.is_null() && bytes > 0 {
        return Err(Failure::null("workspace"));
    }
    Ok(Workspace::new(workspace, bytes)?)
}

/// Makes a compressor.
///
/// # Safety
/// The pointers are NULL or valid, `options` for its struct_size.
///
/// Ownership: the compressor goes to `*compressor` (NULL after an error); the caller frees it with
/// rrpc_compressor_free. `options` is read during the call only; its `user_data` has to live as long as
/// the compressor.
/// Threads: any.
/// Errors: NULL_POINTER; INVALID_ARGUMENT for an option, such as `heads` that is no multiple of `kv_heads`
/// or a policy that calls back without a callback; OUT_OF_MEMORY for more recorded queries than there is
/// memory for.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_compressor_create(
    options: *const rrpc_compressor_options,
    compressor: *mut *mut rrpc_compressor,
) -> *mut rrpc_error {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { args::set("compressor", compressor, ptr::null_mut()) }?;
        // SAFETY: the caller's promise.
        let options = unsafe { compressor_options::convert(options) }?;
        let handle = COMPRESSORS.insert(Shared {
            compressor: Compressor::new(&options)?,
            dtype: options.dtype,
            key_floats: options.kv_heads * options.head_dim,
        })?;
        // SAFETY: the caller's promise.
        unsafe { args::set("compressor", compressor, ptr::without_provenance_mut(handle)) }
    })
}

/// Frees a compressor. NULL and handles that were freed before are accepted. Plans and recorded windows
/// that a call is using stay until it ends; plans of ended calls stay valid, in their workspace.
///
/// Ownership: takes the compressor's handle and what it recorded.
/// Threads: any.
/// Errors: none.
/// Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn rrpc_compressor_free(compressor: *mut rrpc_compressor) {
    guard_free(|| drop(COMPRESSORS.remove(compressor.addr())));
}

/// Whether a sequence is to be compressed now: `*due` gets 1 once `generated` is
/// (compressions + 1) * interval + window or more (with `budget_entries`: intervals that would leave less
/// than it to choose from are left out), else 0; always 0 with RRPC_POLICY_NONE.
///
/// `generated` counts the generated tokens whose keys and values were written, dropped ones included;
/// `compressions` the sequence's compressions so far.
///
/// # Safety
/// `due` is NULL or valid.
///
/// Ownership: nothing changes hands.
/// Threads: any.
/// Errors: NULL_POINTER, INVALID_HANDLE.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_compressor_due(
    compressor: *const rrpc_compressor,
    generated: u64,
    compressions: u64,
    due: *mut u32,
) -> *mut rrpc_error {
    guard(|| {
        let is_due = compressor_of(compressor)?.compressor.due(generated, compressions);
        // SAFETY: the caller's promise.
        unsafe { args::set("due", due, u32::from(is_due)) }
    })
}

/// Records the rotated queries of one token of one layer, `[count][heads][head_dim]`, in the rings of
/// `count` slots: the newest `window` (RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE: `interval`) of each
/// slot are kept, as float32.
///
/// `slots` are below the options' recorded_sequences, each once; NULL: 0 to count - 1. `row_stride` and
/// `head_stride` are elements from one slot's queries and from one head to the next, positive; the
/// head_dim elements lie together. `dtype` is RRPC_DTYPE_F32, RRPC_DTYPE_F16 or RRPC_DTYPE_BF16.
///
/// # Safety
/// `slots` is NULL or has `count` items; `queries` is NULL or points to what is described above.
///
/// Ownership: the queries are copied.
/// Threads: any; one call at a time on a slot of a layer, those that read its window included.
/// Errors: NULL_POINTER, INVALID_HANDLE; BUSY if another call is using a slot; INVALID_ARGUMENT for a layer
/// or slot that the options have no ring for, one slot twice, or a stride or dtype that cannot be.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_compressor_record(
    compressor: *const rrpc_compressor,
    layer: u32,
    slots: *const i32,
    count: usize,
    queries: *const c_void,
    row_stride: i64,
    head_stride: i64,
    dtype: u32,
) -> *mut rrpc_error {
    guard(|| {
        let shared = compressor_of(compressor)?;
        let dtype = kv::dtype("dtype", dtype, true)?;
        if queries.is_null() && count > 0 {
            return Err(Failure::null("queries"));
        }
        // SAFETY: the caller's promise.
        unsafe {
            let slots = match slots.is_null() {
                true => None,
                false => Some(items("slots", slots, count, MOST_SEQUENCES)?),
            };
            shared
                .compressor
                .record(layer, slots, count, queries, row_stride, head_stride, dtype)?;
        }
        Ok(())
    })
}

/// Empties the rings of a slot in all layers, for another sequence.
///
/// Ownership: nothing changes hands.
/// Threads: any; not while another call uses the slot.
/// Errors: NULL_POINTER, INVALID_HANDLE; BUSY if another call is using the slot; INVALID_ARGUMENT for a slot
/// that the options have no rings for.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn rrpc_compressor_forget(compressor: *const rrpc_compressor, slot: i32) -> *mut rrpc_error {
    guard(|| Ok(compressor_of(compressor)?.compressor.forget(slot)?))
}

/// How large the workspace and the scores of a batch are. The size of a workspace is enough for every
/// call with this batch, and for batches whose sequences are not more and not longer.
///
/// # Safety
/// `batch` and its arrays are NULL or valid, `sizes` is NULL or valid for its struct_size.
///
/// Ownership: the structs are the caller's.
/// Threads: any.
/// Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for a struct_size that is none or a batch that
/// cannot be.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_compressor_get_sizes(
    compressor: *const rrpc_compressor,
    batch: *const rrpc_kv_batch,
    sizes: *mut rrpc_compressor_sizes,
) -> *mut rrpc_error {
    guard(|| {
        let shared = compressor_of(compressor)?;
        // SAFETY: the caller's promise.
        unsafe {
            let found = shared.compressor.sizes(&read_batch(batch)?)?;
            let value = rrpc_compressor_sizes {
                struct_size: size_of::<rrpc_compressor_sizes>(),
                workspace_bytes: found.workspace_bytes,
                score_count: found.score_count,
            };
            sized::write("sizes", sizes, &value)
        }
    })
}

/// Scores the candidates of every sequence in one layer: products of the window's queries with the
/// candidates' keys, times the scale, softmax over the candidates, summed over the window's tokens, mean
/// over the query heads of each KV head; in float32. Not pooled. Other policies score as their constants say; with
/// RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE scores are the mean attention of the interval's queries,
/// rotated on, without what the histories add.
///
/// `scores` gets, for each sequence, `[kv_heads][candidates]` floats, one sequence after the other. The
/// host may change them before it selects: add them up over ranks that have other heads, say.
///
/// # Safety
/// The pointers are NULL or valid: structs for their struct_size, arrays and tensors as they are described,
/// `scores` for `score_count` floats, `workspace` for `workspace_bytes` bytes. Nothing else writes to them
/// meanwhile.
///
/// Ownership: everything stays the caller's and is used during the call only.
/// Threads: any; each call with its own scores and workspace.
/// Errors: NULL_POINTER, INVALID_HANDLE; BUFFER_TOO_SMALL for the workspace; BUSY if a recorded window is
/// being written; INVALID_ARGUMENT for a layer, batch or window that cannot be, a window that has recorded
/// too few queries, or a score_count that is not the one of rrpc_compressor_get_sizes. Nothing has been
/// written to `scores` then.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_compressor_score(
    compressor: *const rrpc_compressor,
    layer: *const rrpc_kv_layer,
    batch: *const rrpc_kv_batch,
    window: *const rrpc_query_window,
    scores: *mut f32,
    score_count: usize,
    workspace: *mut c_void,
    workspace_bytes: usize,
) -> *mut rrpc_error {
    guard(|| {
        let shared = compressor_of(compressor)?;
        // SAFETY: the caller's promise: structs, arrays and tensors are as they say and nothing else writes
        // to them during the call; `scores` and the workspace are this call's alone.
        unsafe {
            let layer = read_layer(layer, shared.dtype)?;
            let batch = read_batch(batch)?;
            let window = read_window(window, batch.lengths.len())?;
            let scores = args::items_mut("scores", scores, score_count, MOST_ITEMS)?;
            let workspace = workspace_at(workspace, workspace_bytes)?;
            Ok(shared
                .compressor
                .score(&layer, &batch, &window, scores, workspace)?)
        }
    })
}

/// Selects what stays by the scores of one layer. RRPC_POLICY_RPC averages them over the KV heads (with
/// RRPC_AGGREGATION_LAYER), pools them, and keeps the best
/// min(candidates, (compressions + 1) * interval / ratio) of each sequence (or `budget_entries`, if they are
/// set); of equal ones the first. The library's other policies do as their constants say, but for
/// RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE, which look at more than scores: rrpc_compressor_plan.
///
/// `layer` is what a callback is told and errors say. `plan` gets pointers into the workspace, valid until
/// the next rrpc_compressor_select, rrpc_compressor_plan or rrpc_compressor_compress with it.
///
/// # Safety
/// As rrpc_compressor_score; `plan` is NULL or valid for its struct_size.
///
/// Ownership: the structs are the caller's; the plan's arrays lie in the caller's workspace.
/// Threads: any; each call with its own workspace.
/// Errors: NULL_POINTER, INVALID_HANDLE; BUFFER_TOO_SMALL for the workspace, or for too few spare blocks,
/// with the number that is needed; CALLBACK if a callback returned anything but 0; INVALID_ARGUMENT for a
/// policy that looks at more than scores, a batch that cannot be, a score that is not a number, or an answer of a callback that cannot be.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_compressor_select(
    compressor: *const rrpc_compressor,
    layer: u32,
    batch: *const rrpc_kv_batch,
    scores: *const f32,
    score_count: usize,
    workspace: *mut c_void,
    workspace_bytes: usize,
    plan: *mut rrpc_plan,
) -> *mut rrpc_error {
    guard(|| {
        let shared = compressor_of(compressor)?;
        // SAFETY: the caller's promise: structs and arrays are as they say and nothing else writes to them
        // during the call; the workspace is this call's alone.
        unsafe {
            sized::output_size("plan", plan)?;
            let batch = read_batch(batch)?;
            let scores = items("scores", scores, score_count, MOST_ITEMS)?;
            let workspace = workspace_at(workspace, workspace_bytes)?;
            write_plan(plan, &shared.compressor.select(layer, &batch, scores, workspace)?)
        }
    })
}

/// Carries a plan out in one layer: copies shared blocks that are in the way, merges, and moves what stays
/// forward, keys, values, scales and histories. Entries that stay keep their bytes, but for those that others are
/// merged into.
///
/// The plan may be the one of rrpc_compressor_select or rrpc_compressor_plan, that one changed, or one of the
/// host's, with arrays wherever it wants, but not in the part of the workspace that is scratch: a plan of
/// those two lies outside of it. All of it is checked against the batch before anything is
/// written.
///
/// # Safety
/// As rrpc_compressor_score; `plan` is NULL or valid for its struct_size, and its arrays for their counts.
///
/// Ownership: everything stays the caller's and is used during the call only.
/// Threads: any; each call with its own workspace and its own blocks.
/// Errors: NULL_POINTER, INVALID_HANDLE; BUFFER_TOO_SMALL for the workspace or too few spare blocks;
/// INVALID_ARGUMENT for a layer or batch that cannot be, or a plan that does not fit it. Nothing has been
/// moved then.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_compressor_apply(
    compressor: *const rrpc_compressor,
    layer: *const rrpc_kv_layer,
    batch: *const rrpc_kv_batch,
    plan: *const rrpc_plan,
    workspace: *mut c_void,
    workspace_bytes: usize,
) -> *mut rrpc_error {
    guard(|| {
        let shared = compressor_of(compressor)?;
        // SAFETY: the caller's promise: structs, arrays and tensors are as they say and nothing else uses the
        // blocks at work; the workspace is this call's alone, but for the plan that may lie in it, which the
        // compressor keeps apart.
        unsafe {
            let layer = read_layer(layer, shared.dtype)?;
            let batch = read_batch(batch)?;
            let plan = read_plan(plan, &batch, shared.key_floats)?;
            let workspace = workspace_at(workspace, workspace_bytes)?;
            Ok(shared.compressor.apply(&layer, &batch, &plan, workspace)?)
        }
    })
}

/// rrpc_compressor_score and rrpc_compressor_select in one call, for every policy: what a compression would do. Only
/// the workspace is written. `plan` is as rrpc_compressor_select has it.
///
/// # Safety
/// As the two.
///
/// Ownership: the structs are the caller's; the plan's arrays lie in the caller's workspace.
/// Threads: any; each call with its own workspace.
/// Errors: those of the two; INVALID_ARGUMENT for RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE without
/// histories in `layer`, or with one that is not finite.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_compressor_plan(
    compressor: *const rrpc_compressor,
    layer: *const rrpc_kv_layer,
    batch: *const rrpc_kv_batch,
    window: *const rrpc_query_window,
    workspace: *mut c_void,
    workspace_bytes: usize,
    plan: *mut rrpc_plan,
) -> *mut rrpc_error {
    // SAFETY: the caller's promise.
    unsafe {
        planned(
            compressor,
            layer,
            batch,
            window,
            (workspace, workspace_bytes),
            plan,
            Compressor::plan,
        )
    }
}

/// rrpc_compressor_plan and rrpc_compressor_apply in one call. `plan` gets what was done.
///
/// # Safety
/// As the two.
///
/// Ownership: the structs are the caller's; the plan's arrays lie in the caller's workspace.
/// Threads: any; each call with its own workspace and its own blocks.
/// Errors: those of the two. Nothing has been moved then.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_compressor_compress(
    compressor: *const rrpc_compressor,
    layer: *const rrpc_kv_layer,
    batch: *const rrpc_kv_batch,
    window: *const rrpc_query_window,
    workspace: *mut c_void,
    workspace_bytes: usize,
    plan: *mut rrpc_plan,
) -> *mut rrpc_error {
    // SAFETY: the caller's promise.
    unsafe {
        planned(
            compressor,
            layer,
            batch,
            window,
            (workspace, workspace_bytes),
            plan,
            Compressor::compress,
        )
    }
}

/// Runs one of the compressor's functions that make a plan out of everything.
///
/// # Safety
/// As rrpc_compressor_score, and as that function asks.
unsafe fn planned<'w>(
    compressor: *const rrpc_compressor,
    layer: *const rrpc_kv_layer,
    batch: *const rrpc_kv_batch,
    window: *const rrpc_query_window,
    (workspace, workspace_bytes): (*mut c_void, usize),
    plan: *mut rrpc_plan,
    work: unsafe fn(&Compressor, &Layer, &Batch<'_>, &Window<'_>, Workspace) -> library::Result<Plan<'w>>,
) -> *mut rrpc_error {
    guard(|| {
        let shared = compressor_of(compressor)?;
        // SAFETY: the caller's promise.
        unsafe {
            // Before anything moves.
            sized::output_size("plan", plan)?;
            let layer = read_layer(layer, shared.dtype)?;
            let batch = read_batch(batch)?;
            let window = read_window(window, batch.lengths.len())?;
            let workspace = workspace_at(workspace, workspace_bytes)?;
            write_plan(
                plan,
                &work(&shared.compressor, &layer, &batch, &window, workspace)?,
            )
        }
    })
}
