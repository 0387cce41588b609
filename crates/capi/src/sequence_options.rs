//! What a sequence is made of: a policy, and how tokens are drawn.

use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, OnceLock};

use reasoning_rpc_engine::core::{
    LightThinker, NoCompression, Policy, PolicyKind, Pooling, Queries, RpcOptions, Similarity, Softmax,
};
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::{Engine, Error, SequenceOptions};

use crate::args::{self, choice, flag};
use crate::engine::{engine_of, rrpc_engine};
use crate::error::{Failure, rrpc_error};
use crate::guard::guard;
use crate::policy::*;
use crate::select::{Select, UserData, rrpc_release_callback, rrpc_sequence_select_callback};
use crate::sized::{self, sized};

/// Of [`rrpc_sequence_options::history`].
const OWN_HISTORY: f32 = -1.0;

/// Options of rrpc_sequence_create, to be filled by rrpc_sequence_options_init.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_sequence_options {
    /// sizeof(rrpc_sequence_options), set by rrpc_sequence_options_init.
    pub struct_size: usize,
    /// How the cache is compressed, one of RRPC_POLICY_. All but RRPC_POLICY_NONE and
    /// RRPC_POLICY_LIGHTTHINKER read the next three fields and the budgets at the end; `pooling` and `kernel` are read for
    /// RRPC_POLICY_RPC only. Default RRPC_POLICY_LOOKAHEAD_MERGE; RRPC_POLICY_RPC for a model of the portable flavour.
    pub policy: u32,
    /// Generated tokens between two compressions (P), a multiple of `ratio`. Default 4096.
    pub interval: u32,
    /// The newest generated tokens, which score the others and always stay (R): 1 or more, less than
    /// `interval`. Default 32.
    pub window: u32,
    /// One of so many entries stays (c), 1 or more. Not read if `budget_entries` or `budget_bytes` is
    /// set. Default 4.
    pub ratio: u32,
    /// One of RRPC_AGGREGATION_. Default RRPC_AGGREGATION_OWN.
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
    /// per entry. Read for RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE too. Default -1: the policy's own, 0 of
    /// RRPC_POLICY_RPC, 0.6 of those two.
    pub history: f32,
    /// Weight w of the redundancy of keys, as RRPC_POLICY_R_KV has it, 0 to 1: (1 - w) times the pooled scores
    /// less w times it, both normalised to a maximum of 1. Default 0.
    pub redundancy: f32,
    /// RRPC_POLICY_LOOKAHEAD and RRPC_POLICY_LOOKAHEAD_MERGE: one of RRPC_QUERIES_. Default RRPC_QUERIES_AUTO.
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
    /// RRPC_POLICY_CALLBACK: what selects. Default NULL.
    pub select: rrpc_sequence_select_callback,
    /// Passed to `select`; must live as long as the sequence, its forks and, if a scheduler has them, their answers:
    /// `release` says when. Default NULL.
    pub user_data: *mut c_void,
    /// Called once for a sequence that was created, with `user_data`, when the sequence, its forks and their answers have
    /// gone and the last call on them has ended. NULL: nothing is. Default NULL.
    pub release: rrpc_release_callback,
    /// RRPC_POLICY_LOOKAHEAD_MERGE: one of RRPC_SIMILARITY_. Default RRPC_SIMILARITY_LOGITS.
    pub similarity: u32,
    /// 0.
    pub reserved4: u32,
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
    select,
    user_data,
    release,
    similarity,
    reserved4,
});

fn default_policy(engine: &Engine) -> u32 {
    let kind = engine.model().manifest().flavour.default_policy();
    let known = POLICIES.iter().find(|(_, known)| *known == kind);
    known.map_or(RRPC_POLICY_RPC, |(number, _)| *number)
}

fn defaults(engine: &Engine) -> rrpc_sequence_options {
    let rpc = RpcOptions::default();
    let sampling = engine.default_sampling();
    rrpc_sequence_options {
        struct_size: size_of::<rrpc_sequence_options>(),
        policy: default_policy(engine),
        interval: rpc.interval as u32,
        window: rpc.window as u32,
        ratio: DEFAULT_RATIO,
        aggregation: RRPC_AGGREGATION_OWN,
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
        queries: RRPC_QUERIES_AUTO,
        reserved2: 0,
        softmax: RRPC_SOFTMAX_CANDIDATES,
        value_norms: 0,
        history: OWN_HISTORY,
        redundancy: rpc.redundancy,
        delimiters: ptr::null(),
        num_delimiters: 0,
        gists: ptr::null(),
        num_gists: 0,
        resume: RRPC_NO_TOKEN,
        reserved3: 0,
        select: None,
        user_data: ptr::null_mut(),
        release: None,
        similarity: RRPC_SIMILARITY_LOGITS,
        reserved4: 0,
    }
}

/// The caller's options, or the defaults for NULL, and what their callback is passed: whoever makes a sequence of them takes it.
///
/// # Safety
/// `options` is NULL or valid for its struct_size, and so are the lists that it names.
pub(crate) unsafe fn convert(
    engine: &Engine,
    options: *const rrpc_sequence_options,
) -> Result<(SequenceOptions, Option<Arc<UserData>>), Failure> {
    let mut given = defaults(engine);
    if !options.is_null() {
        // SAFETY: the caller's promise.
        given = unsafe { sized::read("options", options, given) }?;
    }
    args::zero("options.reserved", given.reserved)?;
    args::zero("options.reserved2", given.reserved2)?;
    args::zero("options.reserved3", given.reserved3)?;
    args::zero("options.reserved4", given.reserved4)?;
    let mut policies = POLICIES.map(|(number, kind)| (number, Some(kind))).to_vec();
    policies.extend([RRPC_POLICY_LIGHTTHINKER, RRPC_POLICY_CALLBACK].map(|number| (number, None)));
    let mut data = None;
    let policy: Arc<dyn Policy> = match choice("options.policy", given.policy, &policies)? {
        None if given.policy == RRPC_POLICY_CALLBACK => {
            let select = select(engine, &given)?;
            data = Some(select.data.clone());
            Arc::new(select)
        }
        // SAFETY: the caller's promise.
        None => Arc::new(unsafe { light_thinker(&given) }?),
        Some(PolicyKind::None) => Arc::new(NoCompression),
        Some(kind) => kind
            .build(rpc_options(engine, kind, &given)?)
            .map_err(Error::from)?,
    };
    let options = SequenceOptions {
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
    };
    Ok((options, data))
}

fn select(engine: &Engine, given: &rrpc_sequence_options) -> Result<Select, Failure> {
    // What does not fit one KV head may be another's.
    let adaptive = rrpc_sequence_options {
        aggregation: RRPC_AGGREGATION_ADAPTIVE,
        ..*given
    };
    let options = rpc_options(engine, PolicyKind::Rpc, &adaptive)?;
    Ok(Select {
        schedule: options.schedule().map_err(Error::from)?,
        softmax: options.softmax,
        select: given.select.ok_or_else(|| Failure::null("options.select"))?,
        data: Arc::new(UserData {
            pointer: given.user_data,
            release: given.release,
            taken: OnceLock::new(),
        }),
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
    if given.budget_entries > 0 && given.budget_bytes > 0 {
        return Err(Failure::argument(format!(
            "options: expected one of budget_entries and budget_bytes, found {} and {}",
            given.budget_entries, given.budget_bytes
        )));
    }
    let recipe = Recipe {
        interval: given.interval,
        window: given.window,
        ratio: given.ratio,
        entries: given.budget_entries,
        aggregation: given.aggregation,
        pooling: given.pooling,
        kernel: given.kernel,
    };
    let mut options = recipe.options(&[
        (RRPC_POOLING_AVERAGE, Pooling::Average),
        (RRPC_POOLING_MAX, Pooling::Max),
        (RRPC_POOLING_NONE, Pooling::None),
    ])?;
    if given.budget_bytes > 0 {
        let bytes = usize::try_from(given.budget_bytes).unwrap_or(usize::MAX);
        options.budget = kind
            .budget_within(bytes, engine.cache_shape(), &options)
            .map_err(Error::from)?;
    }
    options.softmax = choice(
        "options.softmax",
        given.softmax,
        &[
            (RRPC_SOFTMAX_CANDIDATES, Softmax::Candidates),
            (RRPC_SOFTMAX_ALL, Softmax::All),
        ],
    )?;
    options.queries = choice(
        "options.queries",
        given.queries,
        &[
            (RRPC_QUERIES_STORED, Queries::Stored),
            (RRPC_QUERIES_ONLINE, Queries::Online),
            (RRPC_QUERIES_AUTO, Queries::Auto),
        ],
    )?;
    options.similarity = choice(
        "options.similarity",
        given.similarity,
        &[
            (RRPC_SIMILARITY_LOGITS, Similarity::Logits),
            (RRPC_SIMILARITY_COSINE, Similarity::Cosine),
        ],
    )?;
    options.history = (given.history != OWN_HISTORY).then_some(given.history);
    options.value_norms = flag("options.value_norms", given.value_norms)?;
    options.redundancy = given.redundancy;
    Ok(options)
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
