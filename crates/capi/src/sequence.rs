//! Sequences: one text each, with its cache, its policy and its sampler.

use std::ffi::c_char;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use reasoning_rpc_engine::scheduler::{Refused, ScheduledAnswer};
use reasoning_rpc_engine::text::Message;
use reasoning_rpc_engine::{Engine, Error, Sequence};

use crate::args;
use crate::engine::{engine_of, rrpc_engine};
use crate::error::{Failure, RRPC_ERROR_BUSY, RRPC_ERROR_POISONED, rrpc_error};
use crate::generate::Pull;
use crate::guard::{guard, guard_free};
use crate::handles::{Kind, Table};
use crate::sequence_options::{convert, rrpc_sequence_options};

/// In the place of a text's length: the text ends at its NUL.
pub const RRPC_NUL_TERMINATED: usize = usize::MAX;

/// A text under generation: tokens, cache, compression policy and sampler. Used by one call at a time.
/// A handle: never dereferenced, checked at every call.
pub struct rrpc_sequence {
    _private: [u8; 0],
}

/// A text inside a struct or an array. This struct never grows.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_text {
    /// UTF-8; may be NULL if `len` is 0.
    pub data: *const c_char,
    /// Bytes, or RRPC_NUL_TERMINATED.
    pub len: usize,
}

/// One message of a conversation. This struct never grows.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_message {
    /// "system", "user", "assistant", "tool" or "developer".
    pub role: rrpc_text,
    /// What was said. Ordinary text: what spells a control token in it does not become one.
    pub content: rrpc_text,
}

/// What a sequence's handle names.
pub(crate) struct Shared {
    pub(crate) engine: Engine,
    /// A panic under this lock poisons it, and so the sequence.
    place: Mutex<Place>,
    /// The answer under way. Locked by holders of the sequence's lock only.
    pub(crate) pull: Mutex<Pull>,
}

/// Where a sequence is.
pub(crate) enum Place {
    Here(Box<Sequence>),
    /// With a scheduler, until this answer has ended.
    Scheduled(Arc<ScheduledAnswer>),
    /// A scheduler had it and was lost.
    Lost,
}

/// A sequence's place, for one call alone.
pub(crate) struct Locked<'a>(MutexGuard<'a, Place>);

impl Locked<'_> {
    /// The sequence, unless a scheduler has it.
    pub(crate) fn sequence(&mut self) -> Result<&mut Sequence, Failure> {
        match &mut *self.0 {
            Place::Here(sequence) => Ok(sequence),
            Place::Scheduled(_) => Err(Failure::new(
                RRPC_ERROR_BUSY,
                "sequence: expected one that is not in use, found one that a scheduler has: rrpc_answer_next \
                 tells its answer's end, rrpc_answer_cancel brings it about",
            )),
            Place::Lost => Err(Failure::new(RRPC_ERROR_POISONED, Error::Poisoned.to_string())),
        }
    }

    /// Hands the sequence to a scheduler: `submit` takes it, or gives it back with an error.
    pub(crate) fn submit(
        &mut self,
        submit: impl FnOnce(Sequence) -> Result<ScheduledAnswer, Refused>,
    ) -> Result<Arc<ScheduledAnswer>, Failure> {
        self.sequence()?;
        let Place::Here(sequence) = std::mem::replace(&mut *self.0, Place::Lost) else {
            return Err(Failure::new(RRPC_ERROR_POISONED, Error::Poisoned.to_string()));
        };
        match submit(*sequence) {
            Ok(answer) => {
                let answer = Arc::new(answer);
                *self.0 = Place::Scheduled(Arc::clone(&answer));
                Ok(answer)
            }
            Err(Refused { error, sequence }) => {
                *self.0 = Place::Here(sequence);
                Err(error.into())
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Ok(Place::Scheduled(answer)) = self.place.get_mut() {
            answer.free_sequence();
        }
    }
}

pub(crate) static SEQUENCES: Table<Shared> = Table::new(Kind::Sequence);

impl Shared {
    pub(crate) fn new(engine: Engine, sequence: Sequence) -> Self {
        Self {
            engine,
            place: Mutex::new(Place::Here(Box::new(sequence))),
            pull: Mutex::default(),
        }
    }

    /// The sequence, for this call alone, which changes it: not while an answer is under way.
    pub(crate) fn lock_to_change(&self) -> Result<Locked<'_>, Failure> {
        let locked = self.lock()?;
        match self.pull.lock() {
            Ok(pull) if pull.answer.is_none() => Ok(locked),
            Ok(_) => Err(Failure::new(
                RRPC_ERROR_BUSY,
                "sequence: expected one that is not in use, found one with an answer under way: \
                 rrpc_generate_stop ends it",
            )),
            Err(_) => Err(Failure::new(RRPC_ERROR_POISONED, Error::Poisoned.to_string())),
        }
    }

    /// The answer under way, for holders of the sequence's lock.
    pub(crate) fn pull(&self) -> Result<MutexGuard<'_, Pull>, Failure> {
        let poisoned = |_| Failure::new(RRPC_ERROR_POISONED, Error::Poisoned.to_string());
        self.pull.lock().map_err(poisoned)
    }

    /// The sequence, for this call alone.
    pub(crate) fn lock(&self) -> Result<Locked<'_>, Failure> {
        let mut place = self.place.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Failure::new(
                RRPC_ERROR_BUSY,
                "sequence: expected one that is not in use, found one that another call is using",
            ),
            TryLockError::Poisoned(_) => Failure::new(RRPC_ERROR_POISONED, Error::Poisoned.to_string()),
        })?;
        if let Place::Scheduled(answer) = &*place {
            let ended = answer.has_ended();
            if let Some(sequence) = answer.take_sequence() {
                *place = Place::Here(Box::new(sequence));
            } else if ended {
                *place = Place::Lost;
            }
        }
        Ok(Locked(place))
    }
}

/// What a handle names.
pub(crate) fn shared(sequence: *const rrpc_sequence) -> Result<Arc<Shared>, Failure> {
    SEQUENCES.get("sequence", sequence.addr())
}

/// A pointer of the caller's: one that is not const asks for a sequence that may be changed.
pub(crate) trait Access {
    fn open(shared: &Shared) -> Result<Locked<'_>, Failure>;
    fn to_const(self) -> *const rrpc_sequence;
}

impl Access for *const rrpc_sequence {
    fn open(shared: &Shared) -> Result<Locked<'_>, Failure> {
        shared.lock()
    }

    fn to_const(self) -> *const rrpc_sequence {
        self
    }
}

impl Access for *mut rrpc_sequence {
    fn open(shared: &Shared) -> Result<Locked<'_>, Failure> {
        shared.lock_to_change()
    }

    fn to_const(self) -> *const rrpc_sequence {
        self
    }
}

/// Runs `body` on the sequence that a handle names, for this call alone.
pub(crate) fn with<P: Access, T>(
    sequence: P,
    body: impl FnOnce(&mut Sequence) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let shared = shared(sequence.to_const())?;
    let mut locked = P::open(&shared)?;
    body(locked.sequence()?)
}

/// Gives a sequence of `engine` a handle.
pub(crate) fn adopt(sequence: Sequence, engine: Engine) -> Result<*mut rrpc_sequence, Failure> {
    let handle = SEQUENCES.insert(Shared::new(engine, sequence))?;
    Ok(ptr::without_provenance_mut(handle))
}

/// Makes an empty sequence. `options` may be NULL for the defaults.
///
/// # Safety
/// The pointers are NULL or valid, `options` for its struct_size.
///
/// Ownership: the sequence goes to `*sequence` (NULL after an error); the caller frees it with
/// rrpc_sequence_free. It keeps the engine's model alive. `options` is read during the call only, but for the
/// `user_data` of a callback, which stays in use (`release`) unless there is an error.
/// Threads: any.
/// Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for an option, such as an `interval` that is
/// no multiple of `ratio` or a `window` that is not below `interval`.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_sequence_create(
    engine: *const rrpc_engine,
    options: *const rrpc_sequence_options,
    sequence: *mut *mut rrpc_sequence,
) -> *mut rrpc_error {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { args::set("sequence", sequence, ptr::null_mut()) }?;
        let engine = Engine::clone(&*engine_of(engine)?);
        // SAFETY: the caller's promise.
        let (options, data) = unsafe { convert(&engine, options) }?;
        let handle = adopt(engine.sequence(options)?, engine)?;
        if let Some(data) = data {
            let _ = data.taken.set(());
        }
        // SAFETY: the caller's promise.
        unsafe { args::set("sequence", sequence, handle) }
    })
}

/// Frees a sequence and its cache. NULL and handles that were freed before are accepted.
///
/// Ownership: takes the sequence's handle. Pointers to its logits are no longer valid.
/// Threads: any. A call on the sequence that is under way in another thread, or that this one is made
/// from, ends as if it were still there; then the memory is freed. So does an answer of a scheduler.
/// Errors: none.
/// Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn rrpc_sequence_free(sequence: *mut rrpc_sequence) {
    guard_free(|| drop(SEQUENCES.remove(sequence.addr())));
}

/// Appends raw text. Control tokens in it are parsed. Text that begins the sequence gets the
/// beginning-of-text token if the model's tokenizer asks for one. Given text is protected: compression
/// never drops any of it, whenever it is appended.
///
/// `text` is UTF-8 of `len` bytes, or NUL-terminated if `len` is RRPC_NUL_TERMINATED.
///
/// # Safety
/// `text` is NULL or valid for `len`.
///
/// Ownership: `text` is read during the call only.
/// Threads: any; one call at a time on a sequence.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT if `text` is not UTF-8; TEXT
/// if the model has no tokenizer; CONTEXT if the text outgrows the context. Nothing is appended then.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_sequence_append_text(
    sequence: *mut rrpc_sequence,
    text: *const c_char,
    len: usize,
) -> *mut rrpc_error {
    guard(|| {
        with(sequence, |sequence| {
            // SAFETY: the caller's promise.
            let text = unsafe { args::text("text", text, len) }?;
            Ok(sequence.append_text(text)?)
        })
    })
}

/// Appends messages in the words of the model's chat template, up to where the assistant's answer
/// begins. Control tokens are parsed in the template's text, never in a message's content.
///
/// # Safety
/// `messages` is NULL or has `count` messages, whose texts are valid.
///
/// Ownership: `messages` and what it points to are read during the call only.
/// Threads: any; one call at a time on a sequence.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT if a text is not UTF-8 or
/// there are more than 65536 messages; TEMPLATE if the model has no chat template, or it refuses the
/// messages; TEXT if the model has no tokenizer; CONTEXT if the text outgrows the context. Nothing is
/// appended then.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_sequence_append_chat(
    sequence: *mut rrpc_sequence,
    messages: *const rrpc_message,
    count: usize,
) -> *mut rrpc_error {
    guard(|| {
        with(sequence, |sequence| {
            // SAFETY: the caller's promise.
            let messages = unsafe { args::items("messages", messages, count, 1 << 16) }?;
            let messages: Result<Vec<Message>, Failure> = messages
                .iter()
                .enumerate()
                .map(|(index, message)| {
                    let text = |part: &str, text: &rrpc_text| {
                        // SAFETY: the caller's promise.
                        let text =
                            unsafe { args::text(&format!("messages[{index}].{part}"), text.data, text.len) };
                        args::owned(text?)
                    };
                    Ok(Message::new(
                        text("role", &message.role)?,
                        text("content", &message.content)?,
                    ))
                })
                .collect();
            Ok(sequence.append_chat(&messages?)?)
        })
    })
}

/// Appends `count` token ids as given text: protected from compression.
///
/// # Safety
/// `tokens` is NULL or has `count` ids.
///
/// Ownership: `tokens` is read during the call only.
/// Threads: any; one call at a time on a sequence.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; INVALID_ARGUMENT if an id is not in the
/// vocabulary; CONTEXT if the text outgrows the context. Nothing is appended then.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_sequence_append_tokens(
    sequence: *mut rrpc_sequence,
    tokens: *const u32,
    count: usize,
) -> *mut rrpc_error {
    guard(|| {
        with(sequence, |sequence| {
            if count > sequence.room() {
                // Not read: so large a count may be a mistake.
                let context = sequence.tokens().len() + sequence.room();
                let needed = sequence.tokens().len().saturating_add(count);
                return Err(Error::Context { needed, context }.into());
            }
            // SAFETY: the caller's promise.
            let tokens = unsafe { args::items("tokens", tokens, count, count) }?;
            Ok(sequence.append_tokens(tokens)?)
        })
    })
}

/// Promises the sequence the cache that it needs until `new_tokens` more tokens are generated, to the
/// byte and with its compressions counted, so that no step on the way fails for want of budget. A
/// later promise replaces this one; 0 with nothing pending gives back what is not in use. Not
/// needed before rrpc_generate, which does it.
///
/// Ownership: nothing changes hands.
/// Threads: any; one call at a time on a sequence.
/// Errors: NULL_POINTER, INVALID_HANDLE, BUSY, POISONED; BUDGET if the budget cannot hold it beside
/// what other sequences were promised; CONTEXT if the text would outgrow the context. The earlier
/// promise stands then.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn rrpc_sequence_reserve(sequence: *mut rrpc_sequence, new_tokens: usize) -> *mut rrpc_error {
    guard(|| {
        with(sequence, |sequence| {
            if new_tokens > sequence.room() {
                let context = sequence.tokens().len() + sequence.room();
                let needed = sequence.tokens().len().saturating_add(new_tokens);
                return Err(Error::Context { needed, context }.into());
            }
            Ok(sequence.reserve(new_tokens)?)
        })
    })
}

#[cfg(test)]
mod tests {
    use reasoning_rpc_engine::EngineOptions;
    use reasoning_rpc_test_support::model;

    use super::*;
    use crate::error::{RRPC_ERROR_INTERNAL, RRPC_OK, rrpc_error_code, rrpc_error_free};

    fn code_of(error: *mut rrpc_error) -> i32 {
        // SAFETY: the error was just returned and is freed once.
        unsafe {
            let code = rrpc_error_code(error);
            rrpc_error_free(error);
            code
        }
    }

    #[test]
    fn a_panic_poisons_its_sequence_alone() {
        let engine = Engine::open(&EngineOptions::new(model("golden/qwen2_p32-cached"))).unwrap();
        let new = || {
            // SAFETY: NULL options are the defaults.
            let (options, _) = unsafe { convert(&engine, ptr::null()) }.unwrap();
            let sequence = engine.sequence(options).unwrap();
            let handle = SEQUENCES.insert(Shared::new(engine.clone(), sequence)).unwrap();
            ptr::without_provenance_mut(handle)
        };
        let (hurt, well): (*mut rrpc_sequence, *mut rrpc_sequence) = (new(), new());
        let append = |sequence| {
            // SAFETY: the array has one id.
            code_of(unsafe { rrpc_sequence_append_tokens(sequence, &raw const ID, 1) })
        };
        static ID: u32 = 1;
        assert_eq!(append(hurt), RRPC_OK);
        let panicking = guard(|| with(hurt, |_| -> Result<(), Failure> { panic!("on purpose") }));
        assert_eq!(code_of(panicking), RRPC_ERROR_INTERNAL);
        assert_eq!(append(hurt), RRPC_ERROR_POISONED);
        assert_eq!(append(well), RRPC_OK);
        rrpc_sequence_free(hurt);
        assert_eq!(append(hurt), crate::error::RRPC_ERROR_INVALID_HANDLE);
        rrpc_sequence_free(well);
    }
}
