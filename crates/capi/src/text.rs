//! Text and token ids.

use std::ffi::c_char;

use reasoning_rpc_engine::text::{Special, encode_raw};

use crate::args::{self, choice, flag};
use crate::engine::{engine_of, rrpc_engine};
use crate::error::rrpc_error;
use crate::guard::guard;

/// The text as such: what spells a control token in it is ordinary text, and nothing is added.
pub const RRPC_TOKENIZE_PLAIN: u32 = 0;
/// Control tokens in the text are parsed; nothing is added.
pub const RRPC_TOKENIZE_SPECIAL: u32 = 1;
/// As rrpc_sequence_append_text reads the beginning of a sequence: control tokens in the text are
/// parsed, and the beginning-of-text token goes first if the model's tokenizer asks for one.
pub const RRPC_TOKENIZE_PROMPT: u32 = 2;

/// The token ids of a text.
///
/// `text` is UTF-8 of `len` bytes, or NUL-terminated if `len` is RRPC_NUL_TERMINATED; `mode` is one of
/// RRPC_TOKENIZE_. `count` gets the number of ids. `out` may be NULL with a `capacity` of 0, to ask for
/// the number only; otherwise it has room for `capacity` ids.
///
/// # Safety
/// The pointers are NULL or valid, `text` for `len` bytes and `out` for `capacity` ids.
///
/// Ownership: the buffers are the caller's; `text` is read during the call only.
/// Threads: any.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUFFER_TOO_SMALL; INVALID_ARGUMENT if `text` is not UTF-8 or
/// `mode` is unknown; TEXT if the model has no tokenizer.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_tokenize(
    engine: *const rrpc_engine,
    text: *const c_char,
    len: usize,
    mode: u32,
    out: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> *mut rrpc_error {
    guard(|| {
        let engine = engine_of(engine)?;
        // SAFETY: the caller's promise.
        let text = unsafe { args::text("text", text, len) }?;
        let modes = [
            (RRPC_TOKENIZE_PLAIN, Special::Plain),
            (RRPC_TOKENIZE_SPECIAL, Special::Parse),
            (RRPC_TOKENIZE_PROMPT, Special::Parse),
        ];
        let special = choice("mode", mode, &modes)?;
        let tokenizer = engine.model().tokenizer()?;
        let ids = if mode == RRPC_TOKENIZE_PROMPT {
            let tokens = &engine.model().manifest().tokens;
            encode_raw(tokenizer, text, tokens.bos.filter(|_| tokens.add_bos))?
        } else {
            tokenizer.encode(text, special)?
        };
        // SAFETY: the caller's promise.
        unsafe { args::copy_out(&ids, out, capacity, count) }
    })
}

/// The text of token ids, UTF-8. Bytes that are none become U+FFFD.
///
/// `tokens` has `token_count` ids; `skip_special` is 1 to leave out control tokens, or 0 to write them
/// out. `count` gets the number of bytes, without a NUL, and none is written. `out` may be NULL
/// with a `capacity` of 0, to ask for the number only; otherwise it has room for `capacity` bytes.
///
/// # Safety
/// The pointers are NULL or valid, `tokens` for `token_count` ids and `out` for `capacity` bytes.
///
/// Ownership: the buffers are the caller's; `tokens` is read during the call only.
/// Threads: any.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUFFER_TOO_SMALL; INVALID_ARGUMENT if `skip_special` is
/// neither 0 nor 1 or there are more than 16777216 ids; TEXT if an id is no token or the model has no
/// tokenizer.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_detokenize(
    engine: *const rrpc_engine,
    tokens: *const u32,
    token_count: usize,
    skip_special: u32,
    out: *mut c_char,
    capacity: usize,
    count: *mut usize,
) -> *mut rrpc_error {
    guard(|| {
        let engine = engine_of(engine)?;
        // SAFETY: the caller's promise.
        let tokens = unsafe { args::items("tokens", tokens, token_count, 1 << 24) }?;
        let skip_special = flag("skip_special", skip_special)?;
        let text = engine.model().tokenizer()?.decode(tokens, skip_special)?;
        // SAFETY: the caller's promise.
        unsafe { args::copy_out(text.as_bytes(), out.cast(), capacity, count) }
    })
}
