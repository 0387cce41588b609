//! What a compressor is made of: shapes, a policy, and where its memory lies.

use std::ffi::{c_char, c_void};
use std::ptr;
use std::sync::Arc;

use reasoning_rpc_compressor::{Merge, Options, Request, Rotary, RotaryStyle, Select, Selection};
use reasoning_rpc_engine::core::{PolicyKind, Pooling, RpcOptions};

use crate::args::{self, choice, items};
use crate::error::{Failure, rrpc_error};
use crate::guard::guard;
use crate::kv::dtype;
use crate::policy::*;
use crate::sequence::RRPC_NUL_TERMINATED;
use crate::sized::{self, sized};

/// As many pairs as any head has.
const MOST_FREQUENCIES: usize = 128;

/// The host's memory: tensors, workspaces and everything else lie in main memory.
pub const RRPC_DEVICE_CPU: u32 = 0;

/// bfloat16, 2 bytes: the range of binary32, 8 bits of precision.
pub const RRPC_DTYPE_BF16: u32 = 3;
/// Signed bytes with one float scale for each entry and KV head: number = byte * scale. Keys and values
/// only. An engine's cache rounds each key and each value to 1/127 of its largest magnitude.
pub const RRPC_DTYPE_I8: u32 = 4;

/// The scale of attention: 1 / sqrt(head_dim).
pub const RRPC_SCALE_DEFAULT: f32 = -1.0;

/// The elements i and i + rotary_dim / 2 of a head are rotated together: GPT-NeoX, and Llama in Hugging Face layout.
pub const RRPC_ROPE_HALF_SPLIT: u32 = 0;
/// The elements 2 i and 2 i + 1: GPT-J.
pub const RRPC_ROPE_INTERLEAVED: u32 = 1;

/// One dropped entry that is merged into a kept one. This struct never grows.
///
/// All merges into one entry make, in float32 and rounded once to the tensor's type,
/// key(into) = (1 - sum of key_weight) * key(into) + sum of key_weight * key(from); values alike, with
/// value_weight. Entries are as they were before the compression. RRPC_DTYPE_I8: the entry gets a new
/// scale too, its largest magnitude / 127; entries without merges keep their bytes and scales.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct rrpc_merge {
    /// The sequence's index in the batch.
    pub sequence: u32,
    /// The KV head whose entries are merged.
    pub kv_head: u32,
    /// The candidate that is dropped: 0 is the entry after the prompt.
    pub from: u32,
    /// The candidate that is kept and takes it in.
    pub into: u32,
    /// Finite.
    pub key_weight: f32,
    /// Finite.
    pub value_weight: f32,
}

/// What a callback that selects is shown of one sequence and layer, and where it answers.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_select_request {
    /// The size of what the library passes; fields at and behind it are not there.
    pub struct_size: usize,
    /// The candidates' scores, `[kv_heads][candidates]`: what rrpc_compressor_score wrote and the host
    /// may have changed; not pooled.
    pub scores: *const f32,
    /// Out: room for kv_heads * candidates indices of candidates. `sets` sets of `kept_count` each, one
    /// after the other; within a set ascending, each once.
    pub kept: *mut u32,
    /// Out: room for `max_merges` of the compressor's options. Their `sequence` is this one; sorted by
    /// kv_head, into, from, none twice.
    pub merges: *mut rrpc_merge,
    /// The layer.
    pub layer: u32,
    /// The sequence's index in the batch.
    pub sequence: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Candidates: entries behind the prompt and before the window. At least 1.
    pub candidates: u32,
    /// Compressions of the sequence before this one.
    pub compressions: u32,
    /// Out: 1, one set for all KV heads, or kv_heads, one set for each; the same for all sequences of the
    /// batch. 1 before the call.
    pub sets: u32,
    /// Out: entries of each set, up to `candidates`. 0 before the call.
    pub kept_count: u32,
    /// Out: merges. 0 before the call.
    pub merge_count: u32,
}

/// Selects what stays of one sequence in one layer. Called by rrpc_compressor_select and
/// rrpc_compressor_compress, in the thread that called them, for each sequence of the batch that has
/// candidates. Returns 0 to go on; anything else ends the call with CALLBACK, and nothing has been moved.
///
/// The request and its arrays are the library's and valid during the call. What it answers is checked.
/// It may call the library, also with this compressor, but not with the workspace or the blocks at
/// work. It must return: no exception and no longjmp may leave it.
pub type rrpc_select_callback =
    Option<unsafe extern "C-unwind" fn(request: *mut rrpc_select_request, user_data: *mut c_void) -> i32>;

/// Options of rrpc_compressor_create, to be filled by rrpc_compressor_options_init.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_compressor_options {
    /// sizeof(rrpc_compressor_options), set by rrpc_compressor_options_init.
    pub struct_size: usize,
    /// Where tensors lie and the work is done. RRPC_DEVICE_CPU, which is the default.
    pub device: u32,
    /// Which of the devices of that kind. 0, which is the default.
    pub device_index: u32,
    /// Query heads, a multiple of `kv_heads`. Must be set: the default 0 is refused.
    pub heads: u32,
    /// KV heads. Must be set.
    pub kv_heads: u32,
    /// Elements of one head's key, value or query: a multiple of 8 up to 256. Must be set.
    pub head_dim: u32,
    /// Type of keys and values: RRPC_DTYPE_F32, RRPC_DTYPE_F16, RRPC_DTYPE_BF16 or RRPC_DTYPE_I8. Default
    /// RRPC_DTYPE_F16.
    pub dtype: u32,
    /// What products of queries and keys are multiplied by before the softmax: above 0 and finite. Default
    /// RRPC_SCALE_DEFAULT.
    pub scale: f32,
    /// RRPC_POLICY_RPC, RRPC_POLICY_SNAPKV, RRPC_POLICY_STREAMING, RRPC_POLICY_RANDOM (these two are not
    /// scored: scores are 0 and queries are not read), RRPC_POLICY_LOOKAHEAD, RRPC_POLICY_LOOKAHEAD_MERGE (with
    /// queries of a whole interval, `inv_freq`, and the layers' histories) or RRPC_POLICY_CALLBACK;
    /// RRPC_POLICY_NONE is never due and keeps everything. The others of the library work inside attention or need
    /// more than keys, values and queries. The next six
    /// fields are those of rrpc_sequence_options, with the same defaults but for `aggregation`; only RRPC_POLICY_RPC reads
    /// `aggregation`, `pooling` and `kernel`. Default RRPC_POLICY_RPC.
    pub policy: u32,
    /// Generated tokens between two compressions (P), a multiple of `ratio`. Default 4096.
    pub interval: u32,
    /// The newest entries, which score the others and always stay (R): 1 or more, less than
    /// `interval`. Default 32.
    pub window: u32,
    /// One of so many entries stays (c), 1 or more. Default 4.
    pub ratio: u32,
    /// One of RRPC_AGGREGATION_. Default RRPC_AGGREGATION_LAYER.
    pub aggregation: u32,
    /// One of RRPC_POOLING_. Default RRPC_POOLING_AVERAGE.
    pub pooling: u32,
    /// Width of the pooling, in scores: odd, 1 (none) to 65535. Default 7.
    pub kernel: u32,
    /// The most merges of one sequence that a callback or a plan may ask for; RRPC_POLICY_LOOKAHEAD_MERGE has room
    /// for all that it may need. Default 0.
    pub max_merges: u32,
    /// Layers that rrpc_compressor_record keeps windows of. Default 0.
    pub recorded_layers: u32,
    /// Slots that rrpc_compressor_record keeps windows of. It takes
    /// recorded_layers * recorded_sequences * window * heads * head_dim floats; with RRPC_POLICY_LOOKAHEAD and
    /// RRPC_POLICY_LOOKAHEAD_MERGE, `interval` in place of `window`. Default 0.
    pub recorded_sequences: u32,
    /// 0.
    pub reserved: u32,
    /// RRPC_POLICY_CALLBACK: what selects. Default NULL.
    pub select: rrpc_select_callback,
    /// Passed to `select`; must live as long as the compressor. Default NULL.
    pub user_data: *mut c_void,
    /// In place of `ratio`: so many entries stay in each KV head of each layer, the window not counted.
    /// Compressions that would drop nothing are not due. 0: not set, which is the default.
    pub budget_entries: u64,
    /// RRPC_POLICY_RANDOM: draws are those of the seed, the layer, the KV head and the number of
    /// compressions, the same for all sequences. Default 0.
    pub seed: u64,
    /// RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE, not read for others: how queries and keys are rotated,
    /// `[rotary_dim / 2]` radians per position of each pair of elements (RoPE: base^(-2 i / rotary_dim), with what
    /// the model's scaling makes of it). Copied. Default NULL, which is refused for the two.
    pub inv_freq: *const f32,
    /// The leading elements of a head that are rotated: even, up to head_dim. 0: head_dim, which is the default.
    pub rotary_dim: u32,
    /// One of RRPC_ROPE_. Default RRPC_ROPE_HALF_SPLIT.
    pub rope_style: u32,
}

sized!(rrpc_compressor_options {
    struct_size,
    device,
    device_index,
    heads,
    kv_heads,
    head_dim,
    dtype,
    scale,
    policy,
    interval,
    window,
    ratio,
    aggregation,
    pooling,
    kernel,
    max_merges,
    recorded_layers,
    recorded_sequences,
    reserved,
    select,
    user_data,
    budget_entries,
    seed,
    inv_freq,
    rotary_dim,
    rope_style,
});

fn defaults() -> rrpc_compressor_options {
    let rpc = RpcOptions::default();
    rrpc_compressor_options {
        struct_size: size_of::<rrpc_compressor_options>(),
        device: RRPC_DEVICE_CPU,
        device_index: 0,
        heads: 0,
        kv_heads: 0,
        head_dim: 0,
        dtype: crate::engine::RRPC_DTYPE_F16,
        scale: RRPC_SCALE_DEFAULT,
        policy: RRPC_POLICY_RPC,
        interval: rpc.interval as u32,
        window: rpc.window as u32,
        ratio: DEFAULT_RATIO,
        aggregation: RRPC_AGGREGATION_LAYER,
        pooling: RRPC_POOLING_AVERAGE,
        kernel: rpc.kernel as u32,
        max_merges: 0,
        recorded_layers: 0,
        recorded_sequences: 0,
        reserved: 0,
        select: None,
        user_data: ptr::null_mut(),
        budget_entries: 0,
        seed: 0,
        inv_freq: ptr::null(),
        rotary_dim: 0,
        rope_style: RRPC_ROPE_HALF_SPLIT,
    }
}

/// A callback as a policy.
struct Callback {
    select: unsafe extern "C-unwind" fn(*mut rrpc_select_request, *mut c_void) -> i32,
    user_data: *mut c_void,
}

// SAFETY: the function and its data are the host's, which calls from several threads only if they may be
// used so: the documentation of rrpc_select_callback says in which thread it is called.
unsafe impl Send for Callback {}
// SAFETY: as above.
unsafe impl Sync for Callback {}

impl Select for Callback {
    fn select(&self, request: &mut Request<'_>) -> Result<(), String> {
        let mut seen = rrpc_select_request {
            struct_size: size_of::<rrpc_select_request>(),
            scores: request.scores.as_ptr(),
            kept: request.kept.as_mut_ptr(),
            merges: request.merges.as_mut_ptr().cast(),
            layer: request.layer,
            sequence: request.sequence,
            kv_heads: request.kv_heads,
            candidates: request.candidates,
            compressions: request.compressions,
            sets: request.sets,
            kept_count: request.kept_count,
            merge_count: request.merge_count,
        };
        // SAFETY: the host's function, on a struct and arrays that live during the call; the arrays have
        // room for what the struct's documentation says, and every pattern of bits is a valid number.
        let found = unsafe { (self.select)(&raw mut seen, self.user_data) };
        if found != 0 {
            return Err(format!("select: expected 0, found {found} from the callback"));
        }
        request.sets = seen.sets;
        request.kept_count = seen.kept_count;
        request.merge_count = seen.merge_count;
        Ok(())
    }
}

// The library's own structs are what C sees.
const _: () = {
    assert!(size_of::<rrpc_merge>() == size_of::<Merge>() && align_of::<rrpc_merge>() == align_of::<Merge>());
    assert!(std::mem::offset_of!(rrpc_merge, into) == std::mem::offset_of!(Merge, into));
    assert!(std::mem::offset_of!(rrpc_merge, value_weight) == std::mem::offset_of!(Merge, value_weight));
};

/// # Safety
/// `inv_freq` is NULL or has as many floats as `rotary_dim` says.
unsafe fn rotary(given: &rrpc_compressor_options) -> Result<Rotary, Failure> {
    let dim = match given.rotary_dim {
        0 => given.head_dim,
        dim if dim % 2 == 0 && dim <= given.head_dim => dim,
        dim => {
            return Err(Failure::argument(format!(
                "options.rotary_dim: expected an even number up to head_dim {}, found {dim}",
                given.head_dim
            )));
        }
    };
    let count = dim as usize / 2;
    // SAFETY: the caller's promise.
    let inv_freq = unsafe { items("options.inv_freq", given.inv_freq, count, MOST_FREQUENCIES) }?;
    Ok(Rotary {
        inv_freq: inv_freq.to_vec(),
        style: choice(
            "options.rope_style",
            given.rope_style,
            &[
                (RRPC_ROPE_HALF_SPLIT, RotaryStyle::HalfSplit),
                (RRPC_ROPE_INTERLEAVED, RotaryStyle::Interleaved),
            ],
        )?,
    })
}

/// # Safety
/// `options` is NULL or valid for its struct_size, and so is its `inv_freq` for what its text says.
pub(crate) unsafe fn convert(options: *const rrpc_compressor_options) -> Result<Options, Failure> {
    // SAFETY: the caller's promise.
    let given = unsafe { sized::read("options", options, defaults()) }?;
    choice("options.device", given.device, &[(RRPC_DEVICE_CPU, ())])?;
    args::zero("options.device_index", given.device_index)?;
    args::zero("options.reserved", given.reserved)?;
    let selection = match given.policy {
        RRPC_POLICY_NONE => Selection::None,
        RRPC_POLICY_RPC => Selection::Rpc,
        RRPC_POLICY_SNAPKV => Selection::SnapKv,
        RRPC_POLICY_STREAMING => Selection::Streaming,
        RRPC_POLICY_RANDOM => Selection::Random { seed: given.seed },
        RRPC_POLICY_LOOKAHEAD | RRPC_POLICY_LOOKAHEAD_MERGE => Selection::Lookahead {
            merges: given.policy == RRPC_POLICY_LOOKAHEAD_MERGE,
            // SAFETY: the caller's promise.
            rotary: unsafe { rotary(&given) }?,
        },
        RRPC_POLICY_CALLBACK => Selection::Callback(Arc::new(Callback {
            select: given.select.ok_or_else(|| Failure::null("options.select"))?,
            user_data: given.user_data,
        })),
        other => {
            return Err(Failure::argument(format!(
                "options.policy: expected one of 0, 1, 2, 3, 4, 5, 7, 8, found {other}"
            )));
        }
    };
    Ok(Options {
        heads: given.heads as usize,
        kv_heads: given.kv_heads as usize,
        head_dim: given.head_dim as usize,
        dtype: dtype("options.dtype", given.dtype, false)?,
        // The exact number is the name of the default.
        scale: (given.scale != RRPC_SCALE_DEFAULT).then_some(given.scale),
        selection,
        rpc: recipe(&given)?,
        max_merges: given.max_merges as usize,
        recorded_layers: given.recorded_layers as usize,
        recorded_sequences: given.recorded_sequences as usize,
    })
}

fn recipe(given: &rrpc_compressor_options) -> Result<RpcOptions, Failure> {
    let recipe = Recipe {
        interval: given.interval,
        window: given.window,
        ratio: given.ratio,
        entries: given.budget_entries,
        aggregation: given.aggregation,
        pooling: given.pooling,
        kernel: given.kernel,
    };
    recipe.options(&[
        (RRPC_POOLING_AVERAGE, Pooling::Average),
        (RRPC_POOLING_MAX, Pooling::Max),
    ])
}

/// The policy that a name selects: "none", "rpc", "snapkv", "streaming", "random", "r-kv", "lookahead",
/// "lookahead-merge", "h2o", "tova", "lightthinker", or "callback". `name` is NUL-terminated.
///
/// # Safety
/// `name` is NULL or NUL-terminated; `policy` is NULL or valid.
///
/// Ownership: nothing changes hands.
/// Threads: any.
/// Errors: NULL_POINTER; INVALID_ARGUMENT for another name.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_policy_from_name(name: *const c_char, policy: *mut u32) -> *mut rrpc_error {
    guard(|| {
        // SAFETY: the caller's promise.
        let name = unsafe { args::text("name", name, RRPC_NUL_TERMINATED) }?;
        let of_the_library = PolicyKind::from_name(name)
            .and_then(|kind| POLICIES.iter().find(|(_, other)| *other == kind))
            .map(|(number, _)| *number);
        let found = match of_the_library {
            Some(found) => found,
            None if name == "lightthinker" => RRPC_POLICY_LIGHTTHINKER,
            None if name == "callback" => RRPC_POLICY_CALLBACK,
            None => {
                let names = PolicyKind::ALL.map(PolicyKind::name).join(", ");
                return Err(Failure::argument(format!(
                    "name: expected one of {names}, lightthinker, callback, found {name:?}"
                )));
            }
        };
        // SAFETY: the caller's promise.
        unsafe { args::set("policy", policy, found) }
    })
}

/// Fills `options` with the defaults. `size` is sizeof(rrpc_compressor_options). `heads`, `kv_heads` and
/// `head_dim` are 0 then, and have to be set.
///
/// # Safety
/// `options` is NULL or points to `size` writable bytes.
///
/// Ownership: the struct is the caller's.
/// Threads: any.
/// Errors: NULL_POINTER; INVALID_ARGUMENT for a size that is none.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_compressor_options_init(
    options: *mut rrpc_compressor_options,
    size: usize,
) -> *mut rrpc_error {
    // SAFETY: the caller's promise.
    guard(|| unsafe { sized::init("options", options, size, &defaults()) })
}
