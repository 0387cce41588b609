//! Sequences: one text each, with its cache, its policy and its sampler.

use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use reasoning_rpc_engine::core::{
    Aggregation, Budget, LightThinker, NoCompression, Policy, PolicyKind, Pooling, Queries, RpcOptions,
    Softmax,
};
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::scheduler::{Refused, ScheduledAnswer};
use reasoning_rpc_engine::text::Message;
use reasoning_rpc_engine::{Engine, Error, Sequence, SequenceOptions};

use std::ffi::c_char;

use crate::args::{self, choice, flag};
use crate::engine::{engine_of, rrpc_engine};
use crate::error::{Failure, RRPC_ERROR_BUSY, RRPC_ERROR_POISONED, rrpc_error};
use crate::generate::Pull;
use crate::guard::{guard, guard_free};
use crate::handles::{Kind, Table};
use crate::sized::{self, sized};

/// In the place of a text's length: the text ends at its NUL.
pub const RRPC_NUL_TERMINATED: usize = usize::MAX;

/// The cache is left whole.
pub const RRPC_POLICY_NONE: u32 = 0;
/// Reasoning path compression: after every `interval` generated tokens, the queries of the newest
/// `window` score the generated ones before them, and the best stay: one in `ratio` of all intervals
/// so far. Text given by the caller is never dropped.
pub const RRPC_POLICY_RPC: u32 = 1;

/// SnapKV at the steps of RPC: the attention of the newest `window` over all entries that they see, averaged
/// over 7 neighbours. This and the five up to
/// RRPC_POLICY_LOOKAHEAD_MERGE keep one set for each KV head and read `interval`, `window` and
/// the budget.
pub const RRPC_POLICY_SNAPKV: u32 = 3;
/// The first 4 generated entries and the most recent ones.
pub const RRPC_POLICY_STREAMING: u32 = 4;
/// Entries drawn at random, by `seed`.
pub const RRPC_POLICY_RANDOM: u32 = 5;
/// R-KV: attention against the redundancy of keys.
pub const RRPC_POLICY_R_KV: u32 = 6;
/// The attention of the last `interval` tokens' queries, rotated on to where the next ones will ask from. Not
/// with models of the portable flavour. It remembers interval * heads * head_dim floats per layer, which the budget
/// counts in whole blocks (with the default `interval` they may be more than the default budget: 256 is what it was
/// measured with), or, with RRPC_QUERIES_ONLINE as `queries`, none.
pub const RRPC_POLICY_LOOKAHEAD: u32 = 7;
/// The same, and what is dropped is merged into what is kept.
pub const RRPC_POLICY_LOOKAHEAD_MERGE: u32 = 8;

/// H2O: at every token, once the budget is reached, each KV head drops the entry that has had the least attention
/// of all queries since it was written; the more recent half of the budget always stays. This and the next keep
/// `budget_entries`, whatever `interval` and `window` are; with `ratio` as many as RRPC_POLICY_RPC holds at its
/// peak. Not with models of the portable flavour. Entries in a cache's view are not in order of position then,
/// single entries that went count as compressions, and leave no record.
pub const RRPC_POLICY_H2O: u32 = 9;
/// TOVA: the same, but each layer drops the entry that the newest query gives the least attention.
pub const RRPC_POLICY_TOVA: u32 = 10;

/// LightThinker, for a model that was trained for it: when a token is drawn or accepted that is one of `delimiters`,
/// the ids of `gists` and then `resume` are put behind it, as if generated; the text has them
/// (rrpc_sequence_tokens), answers do not show them and count them in max_tokens. Once the gists are written, the
/// entries of the thought go: all generated since the ones before, the delimiter's included. Positions stay true
/// indices in the text. Where thoughts end is not known before, so the peak is that of RRPC_POLICY_NONE. After
/// a delimiter rrpc_engine_step has more than one token to run before there are logits. A text is not saved with it.
pub const RRPC_POLICY_LIGHTTHINKER: u32 = 11;
/// In the place of `resume`: none.
pub const RRPC_NO_TOKEN: u32 = u32::MAX;

/// Policies of the library and their constants; RRPC_POLICY_CALLBACK is 2.
pub(crate) const POLICIES: [(u32, PolicyKind); 10] = [
    (RRPC_POLICY_NONE, PolicyKind::None),
    (RRPC_POLICY_RPC, PolicyKind::Rpc),
    (RRPC_POLICY_SNAPKV, PolicyKind::SnapKv),
    (RRPC_POLICY_STREAMING, PolicyKind::Streaming),
    (RRPC_POLICY_RANDOM, PolicyKind::Random),
    (RRPC_POLICY_R_KV, PolicyKind::RKv),
    (RRPC_POLICY_LOOKAHEAD, PolicyKind::Lookahead),
    (RRPC_POLICY_LOOKAHEAD_MERGE, PolicyKind::LookaheadMerge),
    (RRPC_POLICY_H2O, PolicyKind::H2o),
    (RRPC_POLICY_TOVA, PolicyKind::Tova),
];

/// c of the paper.
pub(crate) const DEFAULT_RATIO: u32 = 4;

/// Scores are averaged over all heads of a layer: one kept set for the layer.
pub const RRPC_AGGREGATION_LAYER: u32 = 0;
/// Scores are averaged over the query heads of each KV head: one kept set for each.
pub const RRPC_AGGREGATION_KV_HEAD: u32 = 1;

/// Neighbouring scores are averaged.
pub const RRPC_POOLING_AVERAGE: u32 = 0;
/// The highest of neighbouring scores counts.
pub const RRPC_POOLING_MAX: u32 = 1;
/// Scores stay as they are. Not for compressors, whose `kernel` 1 is the same.
pub const RRPC_POOLING_NONE: u32 = 2;

/// A query's attention is shared out among the entries that may be dropped, as published.
pub const RRPC_SOFTMAX_CANDIDATES: u32 = 0;
/// A query's attention is shared out among all entries that it sees.
pub const RRPC_SOFTMAX_ALL: u32 = 1;

/// All queries of an interval are stored, interval * heads * head_dim floats per layer and of the budget, and each is
/// asked about all entries when the interval ends.
pub const RRPC_QUERIES_STORED: u32 = 0;
/// No queries are stored: every second one is asked while its token attends, about the entries that it sees, which it reads
/// anyway. An entry misses the queries before it, which costs some accuracy, and steps take longer; two floats are kept per entry,
/// and for a merge head_dim * (head_dim + 1) floats per KV head and layer and the queries of 64 tokens. Until the first
/// compression a rewind runs tokens again; after it, tokens that were run cannot be taken back.
pub const RRPC_QUERIES_ONLINE: u32 = 1;

/// A text under generation: tokens, cache, compression policy and sampler. Used by one call at a time.
/// A handle: never dereferenced, checked at every call.
pub struct rrpc_sequence {
    _private: [u8; 0],
}

/// Options of rrpc_sequence_create, to be filled by rrpc_sequence_options_init.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_sequence_options {
    /// sizeof(rrpc_sequence_options), set by rrpc_sequence_options_init.
    pub struct_size: usize,
    /// How the cache is compressed, one of RRPC_POLICY_ but RRPC_POLICY_CALLBACK. All but RRPC_POLICY_NONE and
    /// RRPC_POLICY_LIGHTTHINKER read the next three fields and the budgets at the end; `aggregation`, `pooling` and `kernel` are read
    /// for RRPC_POLICY_RPC only. Default RRPC_POLICY_RPC.
    pub policy: u32,
    /// Generated tokens between two compressions (P), a multiple of `ratio`. Default 4096.
    pub interval: u32,
    /// The newest generated tokens, which score the others and always stay (R): 1 or more, less than
    /// `interval`. Default 32.
    pub window: u32,
    /// One of so many entries stays (c), 1 or more. Not read if `budget_entries` or `budget_bytes` is
    /// set. Default 4.
    pub ratio: u32,
    /// One of RRPC_AGGREGATION_. Default RRPC_AGGREGATION_LAYER.
    pub aggregation: u32,
    /// One of RRPC_POOLING_. Default RRPC_POOLING_AVERAGE.
    pub pooling: u32,
    /// Width of the pooling, in scores: odd, 1 (none) to 65535. Default 7.
    pub kernel: u32,
    /// 1: the log of compressions names the kept positions, and so grows with the text. Default 0.
    pub record_kept: u32,
    /// Divides the logits; 0 is greedy: the highest logit, and of equal ones the lowest id. The
    /// defaults of this and the next four fields are those of the model's authors; if they give none,
    /// temperature 0.6, top_p 0.95 and the rest off.
    pub temperature: f32,
    /// Only the most probable tokens that together reach this probability, 0 to 1; 1 is off.
    pub top_p: f32,
    /// Only tokens at least this times as probable as the most probable one, 0 to 1; 0 is off.
    pub min_p: f32,
    /// Divides the positive and multiplies the negative logits of tokens that the text has; above 0; 1
    /// is off.
    pub repetition_penalty: f32,
    /// Only so many of the most probable tokens; 0 is off.
    pub top_k: u32,
    /// 0.
    pub reserved: u32,
    /// The same seed gives the same text. Default 0.
    pub seed: u64,
    /// In place of `ratio`: so many entries stay in each KV head of each layer, the window not counted.
    /// No layer ever holds more generated entries than budget_entries + window + interval, however long
    /// the text gets. 0: not set, which is the default.
    pub budget_entries: u64,
    /// In place of `ratio`: the most bytes that the generated entries take at any moment, in whole
    /// blocks, the window and an interval of new ones included. Given text comes on top. It sets
    /// `budget_entries`, to what fits. 0: not set, which is the default.
    pub budget_bytes: u64,
    /// One of RRPC_SOFTMAX_. This and the next three are read for RRPC_POLICY_RPC only. Default
    /// RRPC_SOFTMAX_CANDIDATES.
    pub softmax: u32,
    /// 1: an entry's score is multiplied by the sum of the magnitudes of its value. Default 0.
    pub value_norms: u32,
    /// So much of an entry's score at the compression before is added to the new one, 0 to 1. It takes a float
    /// per entry. Default 0.
    pub history: f32,
    /// Weight w of the redundancy of keys, as RRPC_POLICY_R_KV has it, 0 to 1: (1 - w) times the pooled scores
    /// less w times it, both normalised to a maximum of 1. Default 0.
    pub redundancy: f32,
    /// RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE: one of RRPC_QUERIES_. Default RRPC_QUERIES_STORED.
    pub queries: u32,
    /// 0.
    pub reserved2: u32,
    /// Token ids that end a thought, `num_delimiters` of them, 1 to 4096; copied. This and the next four are read for
    /// RRPC_POLICY_LIGHTTHINKER only. Default NULL.
    pub delimiters: *const u32,
    /// Default 0.
    pub num_delimiters: usize,
    /// Token ids that take a thought's place, `num_gists` of them, 1 to 4096, none of `delimiters`; copied. Default
    /// NULL.
    pub gists: *const u32,
    /// Default 0.
    pub num_gists: usize,
    /// A token id behind the gists, which sees them and not the thought, and stays; no delimiter. Default
    /// RRPC_NO_TOKEN.
    pub resume: u32,
    /// 0.
    pub reserved3: u32,
}

sized!(rrpc_sequence_options {
    struct_size,
    policy,
    interval,
    window,
    ratio,
    aggregation,
    pooling,
    kernel,
    record_kept,
    temperature,
    top_p,
    min_p,
    repetition_penalty,
    top_k,
    reserved,
    seed,
    budget_entries,
    budget_bytes,
    softmax,
    value_norms,
    history,
    redundancy,
    queries,
    reserved2,
    delimiters,
    num_delimiters,
    gists,
    num_gists,
    resume,
    reserved3,
});

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

fn defaults(engine: &Engine) -> rrpc_sequence_options {
    let rpc = RpcOptions::default();
    let sampling = engine.default_sampling();
    rrpc_sequence_options {
        struct_size: size_of::<rrpc_sequence_options>(),
        policy: RRPC_POLICY_RPC,
        interval: rpc.interval as u32,
        window: rpc.window as u32,
        ratio: DEFAULT_RATIO,
        aggregation: RRPC_AGGREGATION_LAYER,
        pooling: RRPC_POOLING_AVERAGE,
        kernel: rpc.kernel as u32,
        record_kept: 0,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        top_k: sampling.top_k,
        reserved: 0,
        seed: sampling.seed,
        budget_entries: 0,
        budget_bytes: 0,
        queries: RRPC_QUERIES_STORED,
        reserved2: 0,
        softmax: RRPC_SOFTMAX_CANDIDATES,
        value_norms: 0,
        history: rpc.history,
        redundancy: rpc.redundancy,
        delimiters: ptr::null(),
        num_delimiters: 0,
        gists: ptr::null(),
        num_gists: 0,
        resume: RRPC_NO_TOKEN,
        reserved3: 0,
    }
}

/// The caller's options, or the defaults for NULL.
///
/// # Safety
/// `options` is NULL or valid for its struct_size, and so are the lists that it names.
pub(crate) unsafe fn convert(
    engine: &Engine,
    options: *const rrpc_sequence_options,
) -> Result<SequenceOptions, Failure> {
    let mut given = defaults(engine);
    if !options.is_null() {
        // SAFETY: the caller's promise.
        given = unsafe { sized::read("options", options, given) }?;
    }
    args::zero("options.reserved", given.reserved)?;
    args::zero("options.reserved2", given.reserved2)?;
    args::zero("options.reserved3", given.reserved3)?;
    let mut policies = POLICIES.map(|(number, kind)| (number, Some(kind))).to_vec();
    policies.push((RRPC_POLICY_LIGHTTHINKER, None));
    let policy: Arc<dyn Policy> = match choice("options.policy", given.policy, &policies)? {
        // SAFETY: the caller's promise.
        None => Arc::new(unsafe { light_thinker(&given) }?),
        Some(PolicyKind::None) => Arc::new(NoCompression),
        Some(kind) => kind
            .build(rpc_options(engine, kind, &given)?)
            .map_err(Error::from)?,
    };
    Ok(SequenceOptions {
        policy,
        sampling: SamplingOptions {
            temperature: given.temperature,
            top_k: given.top_k,
            top_p: given.top_p,
            min_p: given.min_p,
            repetition_penalty: given.repetition_penalty,
            seed: given.seed,
        },
        record_kept: flag("options.record_kept", given.record_kept)?,
    })
}

/// # Safety
/// The lists of ids are NULL or valid for their lengths.
unsafe fn light_thinker(given: &rrpc_sequence_options) -> Result<LightThinker, Failure> {
    const MOST: usize = 4096;
    // SAFETY: the caller's promise.
    let delimiters =
        unsafe { args::items("options.delimiters", given.delimiters, given.num_delimiters, MOST) }?;
    // SAFETY: the caller's promise.
    let gists = unsafe { args::items("options.gists", given.gists, given.num_gists, MOST) }?;
    let resume = (given.resume != RRPC_NO_TOKEN).then_some(given.resume);
    Ok(LightThinker::new(delimiters.to_vec(), gists.to_vec(), resume).map_err(Error::from)?)
}

fn rpc_options(
    engine: &Engine,
    kind: PolicyKind,
    given: &rrpc_sequence_options,
) -> Result<RpcOptions, Failure> {
    let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let budget = match (given.budget_entries, given.budget_bytes) {
        (0, 0) => Budget::Ratio(given.ratio as usize),
        (entries, 0) => Budget::Entries(size(entries)),
        (0, bytes) => {
            let (interval, window) = (given.interval as usize, given.window as usize);
            kind.budget_within(size(bytes), engine.cache_shape(), interval, window)
                .map_err(Error::from)?
        }
        (entries, bytes) => {
            return Err(Failure::argument(format!(
                "options: expected one of budget_entries and budget_bytes, found {entries} and {bytes}"
            )));
        }
    };
    Ok(RpcOptions {
        interval: given.interval as usize,
        window: given.window as usize,
        budget,
        aggregation: choice(
            "options.aggregation",
            given.aggregation,
            &[
                (RRPC_AGGREGATION_LAYER, Aggregation::Layer),
                (RRPC_AGGREGATION_KV_HEAD, Aggregation::KvHead),
            ],
        )?,
        pooling: choice(
            "options.pooling",
            given.pooling,
            &[
                (RRPC_POOLING_AVERAGE, Pooling::Average),
                (RRPC_POOLING_MAX, Pooling::Max),
                (RRPC_POOLING_NONE, Pooling::None),
            ],
        )?,
        kernel: given.kernel as usize,
        softmax: choice(
            "options.softmax",
            given.softmax,
            &[
                (RRPC_SOFTMAX_CANDIDATES, Softmax::Candidates),
                (RRPC_SOFTMAX_ALL, Softmax::All),
            ],
        )?,
        history: given.history,
        value_norms: flag("options.value_norms", given.value_norms)?,
        redundancy: given.redundancy,
        queries: choice(
            "options.queries",
            given.queries,
            &[
                (RRPC_QUERIES_STORED, Queries::Stored),
                (RRPC_QUERIES_ONLINE, Queries::Online),
            ],
        )?,
    })
}

/// Fills `options` with the defaults for sequences of `engine`: its sampling defaults are the model's.
/// `size` is sizeof(rrpc_sequence_options).
///
/// # Safety
/// `options` is NULL or points to `size` writable bytes.
///
/// Ownership: the struct is the caller's.
/// Threads: any.
/// Errors: NULL_POINTER, INVALID_HANDLE; INVALID_ARGUMENT for a size that is none.
/// Since: 0.1
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn rrpc_sequence_options_init(
    engine: *const rrpc_engine,
    options: *mut rrpc_sequence_options,
    size: usize,
) -> *mut rrpc_error {
    guard(|| {
        let engine = engine_of(engine)?;
        // SAFETY: the caller's promise.
        unsafe { sized::init("options", options, size, &defaults(&engine)) }
    })
}

/// Makes an empty sequence. `options` may be NULL for the defaults.
///
/// # Safety
/// The pointers are NULL or valid, `options` for its struct_size.
///
/// Ownership: the sequence goes to `*sequence` (NULL after an error); the caller frees it with
/// rrpc_sequence_free. It keeps the engine's model alive. `options` is read during the call only.
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
        let options = unsafe { convert(&engine, options) }?;
        let handle = adopt(engine.sequence(options)?, engine)?;
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
            let options = unsafe { convert(&engine, ptr::null()) }.unwrap();
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
