//! Engines.

use std::ffi::c_char;
use std::ptr;

use reasoning_rpc_engine::model::Flavour;
use reasoning_rpc_engine::{CacheType, Engine, EngineOptions, Simd};

use crate::args::{self, choice, flag};
use crate::compressor_options::{RRPC_DTYPE_BF16, RRPC_DTYPE_I8};
use crate::error::{Failure, rrpc_error};
use crate::fork;
use crate::guard::{guard, guard_free};
use crate::handles::{Kind, Table};
use crate::sized::{self, sized};

/// The element type that suits the model: fp16, or fp32 for a graph of the portable flavour, which
/// takes no other.
pub const RRPC_DTYPE_DEFAULT: u32 = 0;
/// IEEE 754 binary32, 4 bytes.
pub const RRPC_DTYPE_F32: u32 = 1;
/// IEEE 754 binary16, 2 bytes.
pub const RRPC_DTYPE_F16: u32 = 2;

/// A budget that holds one uncompressed text of the model's whole context.
pub const RRPC_BUDGET_DEFAULT: u64 = u64::MAX;
/// One thread for each core that the process may use.
pub const RRPC_THREADS_ONE_PER_CORE: u32 = u32::MAX;

/// A graph whose attention is the library's own operator, over a pool of blocks.
pub const RRPC_FLAVOUR_CACHED: u32 = 1;
/// A graph of stock ONNX Runtime operators, over one contiguous fp32 cache for each sequence.
pub const RRPC_FLAVOUR_PORTABLE: u32 = 2;

/// A loaded model, the pool of its caches and the threads that run it. Shared by any number of
/// sequences and threads. A handle: never dereferenced, checked at every call.
pub struct rrpc_engine {
    _private: [u8; 0],
}

/// Options of rrpc_engine_open, to be filled by rrpc_engine_options_init.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_engine_options {
    /// sizeof(rrpc_engine_options), set by rrpc_engine_options_init.
    pub struct_size: usize,
    /// Path of libonnxruntime.so, NUL-terminated. Default NULL: the file that the environment variable
    /// RRPC_ONNXRUNTIME names (not in a set-user-id program), else libonnxruntime.so beside
    /// libreasoning_rpc.so, else beside the program. A process has one ONNX Runtime.
    pub onnxruntime: *const c_char,
    /// Bytes that the caches of all sequences may take together. Address space only, until it is
    /// used. Rounded down to whole blocks. Default RRPC_BUDGET_DEFAULT.
    pub budget_bytes: u64,
    /// Threads of a step, 1 to 1024. Default RRPC_THREADS_ONE_PER_CORE.
    pub threads: u32,
    /// Element type of the cache: RRPC_DTYPE_DEFAULT, RRPC_DTYPE_F32, RRPC_DTYPE_F16, RRPC_DTYPE_BF16 or
    /// RRPC_DTYPE_I8 (a byte for each element and a float for each key and each value, its scale). A
    /// model of the portable flavour takes RRPC_DTYPE_F32 only. Default RRPC_DTYPE_DEFAULT.
    pub cache_dtype: u32,
    /// Entries (tokens) of one block of the cache, a multiple of 16 up to 65536. Default 64.
    pub block_entries: u32,
    /// The most given tokens of one sequence that one step runs, 1 to 1048576. Default 256.
    pub prefill_chunk: u32,
    /// 1: opening compares the hash of the weights with the manifest's, which reads them all. 0: their
    /// size only. Default 1.
    pub verify_weights: u32,
    /// 0: opening reads quantised weights into huge pages of this process, which its engines of the same model
    /// share. 1: they are read where their file is mapped, in the page cache: engines of all processes share them and
    /// the system takes them back as it needs, but a step with one row is some 20% slower. Default 0.
    pub map_weights: u32,
}

sized!(rrpc_engine_options {
    struct_size,
    onnxruntime,
    budget_bytes,
    threads,
    cache_dtype,
    block_entries,
    prefill_chunk,
    verify_weights,
    map_weights,
});

/// What an engine is and how much of its budget is in use. Set struct_size before it is filled.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_engine_info {
    /// sizeof(rrpc_engine_info), set by the caller.
    pub struct_size: usize,
    /// Name of the instruction set that the library's loops use: "portable", "avx2" or "avx512".
    /// Never freed.
    pub simd: *const c_char,
    /// Parameters of the model.
    pub parameters: u64,
    /// Bytes of cache for each token, over all layers and KV heads, without block rounding.
    pub token_bytes: u64,
    /// Bytes of the budget, in whole blocks.
    pub budget_bytes: u64,
    /// Bytes of the budget that caches hold now.
    pub budget_used_bytes: u64,
    /// Tokens of the context.
    pub context: u32,
    /// Tokens of the vocabulary; ids are below it, and logits have as many elements.
    pub vocab: u32,
    /// Decoder layers.
    pub layers: u32,
    /// Query heads of a layer.
    pub heads: u32,
    /// KV heads of a layer; a divisor of `heads`.
    pub kv_heads: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Elements of a hidden state.
    pub hidden: u32,
    /// RRPC_FLAVOUR_CACHED or RRPC_FLAVOUR_PORTABLE.
    pub flavour: u32,
    /// Element type of the cache, RRPC_DTYPE_F32, RRPC_DTYPE_F16, RRPC_DTYPE_BF16 or RRPC_DTYPE_I8.
    pub cache_dtype: u32,
    /// Entries of one block of the cache.
    pub block_entries: u32,
    /// 1 if the model has a tokenizer; without one it takes token ids only.
    pub has_tokenizer: u32,
    /// 1 if the model has a chat template.
    pub has_chat_template: u32,
}

sized!(rrpc_engine_info {
    struct_size,
    simd,
    parameters,
    token_bytes,
    budget_bytes,
    budget_used_bytes,
    context,
    vocab,
    layers,
    heads,
    kv_heads,
    head_dim,
    hidden,
    flavour,
    cache_dtype,
    block_entries,
    has_tokenizer,
    has_chat_template,
});

pub(crate) static ENGINES: Table<Engine> = Table::new(Kind::Engine);

const DEFAULTS: rrpc_engine_options = rrpc_engine_options {
    struct_size: size_of::<rrpc_engine_options>(),
    onnxruntime: ptr::null(),
    budget_bytes: RRPC_BUDGET_DEFAULT,
    threads: RRPC_THREADS_ONE_PER_CORE,
    cache_dtype: RRPC_DTYPE_DEFAULT,
    block_entries: 64,
    prefill_chunk: 256,
    verify_weights: 1,
    map_weights: 0,
};

/// The engine that a handle names.
pub(crate) fn engine_of(handle: *const rrpc_engine) -> Result<std::sync::Arc<Engine>, Failure> {
    ENGINES.get("engine", handle.addr())
}

/// Fills `options` with the defaults. `size` is sizeof(rrpc_engine_options).
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
pub unsafe extern "C" fn rrpc_engine_options_init(
    options: *mut rrpc_engine_options,
    size: usize,
) -> *mut rrpc_error {
    // SAFETY: the caller's promise.
    guard(|| unsafe { sized::init("options", options, size, &DEFAULTS) })
}

/// Opens a model folder, as the program reasoning-rpc-export writes it.
///
/// `model` is the folder's path, NUL-terminated; `options` may be NULL for the defaults. The weights
/// are read or mapped (`map_weights`). Takes seconds for a large model.
///
/// # Safety
/// The pointers are NULL or valid, `options` for its struct_size.
///
/// Ownership: the engine goes to `*engine` (NULL after an error); the caller frees it with
/// rrpc_engine_free. `model` and `options` are read during the call only.
/// Threads: any; engines may be opened at the same time.
/// Errors: NULL_POINTER; INVALID_ARGUMENT for an option, and for an environment variable RRPC_SIMD that
/// names an instruction set which the CPU lacks; MODEL; RUNTIME if there is no ONNX Runtime;
/// TEXT or TEMPLATE if the model's tokenizer or template cannot be used.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_engine_open(
    model: *const c_char,
    options: *const rrpc_engine_options,
    engine: *mut *mut rrpc_engine,
) -> *mut rrpc_error {
    guard(|| {
        // SAFETY: the caller's promise for all three.
        let options = unsafe {
            args::set("engine", engine, ptr::null_mut())?;
            let model = args::path("model", model)?;
            convert(EngineOptions::new(model), options)?
        };
        fork::watch();
        let handle = ENGINES.insert(Engine::open(&options)?)?;
        // SAFETY: as above.
        unsafe { args::set("engine", engine, ptr::without_provenance_mut(handle)) }
    })
}

/// # Safety
/// `options` is NULL or valid for its struct_size.
unsafe fn convert(
    defaults: EngineOptions,
    options: *const rrpc_engine_options,
) -> Result<EngineOptions, Failure> {
    if options.is_null() {
        return Ok(defaults);
    }
    // SAFETY: the caller's promise.
    let options = unsafe { sized::read("options", options, DEFAULTS) }?;
    Ok(EngineOptions {
        onnxruntime: match options.onnxruntime.is_null() {
            true => None,
            // SAFETY: a NUL-terminated path by the caller's promise.
            false => Some(unsafe { args::path("options.onnxruntime", options.onnxruntime) }?),
        },
        threads: match options.threads {
            RRPC_THREADS_ONE_PER_CORE => 0,
            threads @ 1..=1024 => threads as usize,
            other => {
                return Err(Failure::argument(format!(
                    "options.threads: expected 1 to 1024 or RRPC_THREADS_ONE_PER_CORE, found {other}"
                )));
            }
        },
        cache_type: choice(
            "options.cache_dtype",
            options.cache_dtype,
            &[
                (RRPC_DTYPE_DEFAULT, None),
                (RRPC_DTYPE_F32, Some(CacheType::F32)),
                (RRPC_DTYPE_F16, Some(CacheType::F16)),
                (RRPC_DTYPE_BF16, Some(CacheType::Bf16)),
                (RRPC_DTYPE_I8, Some(CacheType::I8)),
            ],
        )?,
        budget: (options.budget_bytes != RRPC_BUDGET_DEFAULT).then_some(options.budget_bytes as usize),
        block_entries: options.block_entries as usize,
        prefill_chunk: options.prefill_chunk as usize,
        verify_weights: flag("options.verify_weights", options.verify_weights)?,
        map_weights: flag("options.map_weights", options.map_weights)?,
        ..defaults
    })
}

/// The code of a cache's element type.
pub(crate) fn dtype_of(cache_type: CacheType) -> u32 {
    match cache_type {
        CacheType::F32 => RRPC_DTYPE_F32,
        CacheType::F16 => RRPC_DTYPE_F16,
        CacheType::Bf16 => RRPC_DTYPE_BF16,
        CacheType::I8 => RRPC_DTYPE_I8,
    }
}

/// Frees an engine. Its sequences stay usable; the model is unloaded when the last of them is freed.
/// NULL and handles that were freed before are accepted.
///
/// Ownership: takes the engine's handle.
/// Threads: any; calls on the engine that are under way end as if it were still there.
/// Errors: none.
/// Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn rrpc_engine_free(engine: *mut rrpc_engine) {
    guard_free(|| drop(ENGINES.remove(engine.addr())));
}

/// Says what an engine is and how much of its budget is in use.
///
/// # Safety
/// `info` is NULL or valid for its struct_size.
///
/// Ownership: the struct is the caller's; the strings in it are the library's and never freed.
/// Threads: any.
/// Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for a struct_size that is none.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_engine_get_info(
    engine: *const rrpc_engine,
    info: *mut rrpc_engine_info,
) -> *mut rrpc_error {
    guard(|| {
        let engine = engine_of(engine)?;
        let (model, shape) = (engine.model(), engine.cache_shape());
        let d = &model.manifest().dimensions;
        let (budget, used) = engine.budget();
        let value = rrpc_engine_info {
            struct_size: size_of::<rrpc_engine_info>(),
            simd: match engine.simd() {
                Simd::Portable => c"portable",
                Simd::Avx2 => c"avx2",
                Simd::Avx512 => c"avx512",
            }
            .as_ptr(),
            parameters: d.parameters,
            token_bytes: shape.token_bytes() as u64,
            budget_bytes: budget as u64,
            budget_used_bytes: used as u64,
            context: d.max_positions as u32,
            vocab: d.vocab_size as u32,
            layers: d.num_layers as u32,
            heads: d.num_heads as u32,
            kv_heads: d.num_kv_heads as u32,
            head_dim: d.head_dim as u32,
            hidden: d.hidden_size as u32,
            flavour: match model.manifest().flavour {
                Flavour::Cached => RRPC_FLAVOUR_CACHED,
                Flavour::Portable => RRPC_FLAVOUR_PORTABLE,
            },
            cache_dtype: dtype_of(engine.cache_type()),
            block_entries: shape.block_entries as u32,
            has_tokenizer: model.tokenizer().is_ok().into(),
            has_chat_template: model.template().is_ok().into(),
        };
        // SAFETY: the caller's promise.
        unsafe { sized::write("info", info, &value) }
    })
}

/// Gives the memory of cache blocks that no sequence holds back to the operating system, at once: what
/// freed sequences and compressions have left. Without it the memory stays with the engine, for the next
/// sequence. The budget is as it was; pages come anew as blocks are used again, which costs the first
/// writes. `bytes`, if it is not NULL, gets how many bytes were resident there.
///
/// Whole pages only: what a free block shares with one in use on its first and last page stays. Of a
/// huge page that is free in part the system takes the part back when it needs memory. A model of the
/// portable flavour has no blocks, and gives back a cache when its sequence is freed: 0 bytes.
///
/// # Safety
/// `bytes` is NULL or valid.
///
/// Ownership: nothing changes hands.
/// Threads: any. Sequences may be used meanwhile; what takes or frees blocks waits.
/// Errors: NULL_POINTER, INVALID_HANDLE.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_engine_trim(engine: *mut rrpc_engine, bytes: *mut u64) -> *mut rrpc_error {
    guard(|| {
        let found = engine_of(engine)?.trim() as u64;
        if !bytes.is_null() {
            // SAFETY: the caller's promise.
            unsafe { args::set("bytes", bytes, found) }?;
        }
        Ok(())
    })
}

/// Copies the ids of the tokens that end an answer: for programs that step sequences themselves.
///
/// `count` gets their number. `out` may be NULL with a `capacity` of 0, to ask for the number only;
/// otherwise it has room for `capacity` ids.
///
/// # Safety
/// The pointers are NULL or valid, `out` for `capacity` ids.
///
/// Ownership: the buffer is the caller's.
/// Threads: any.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUFFER_TOO_SMALL.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_engine_stop_tokens(
    engine: *const rrpc_engine,
    out: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> *mut rrpc_error {
    guard(|| {
        let engine = engine_of(engine)?;
        let stop = &engine.model().manifest().tokens.stop;
        // SAFETY: the caller's promise.
        unsafe { args::copy_out(stop, out, capacity, count) }
    })
}
