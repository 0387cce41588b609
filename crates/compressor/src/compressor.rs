//! The compressor itself: its options, its sizes, and the three steps at once.

use std::sync::Arc;

use reasoning_rpc_core::{Aggregation, Policy, PolicyKind, Queries, Schedule, ScoreRule};
use reasoning_rpc_cpu::Simd;

use crate::ahead::Ahead;
use crate::batch::Batched;
use crate::error::{Error, Result, refuse};
use crate::rings::Rings;
use crate::types::{Batch, Dtype, Layer, Options, Plan, Selection, Sizes, Window, Workspace};
use crate::workspace::{Carver, Needs, Region, divide};

/// Heads that a compressor takes at most.
const MAX_HEADS: usize = 65_536;

/// Compresses caches of one shape with one selection.
pub struct Compressor {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) dtype: Dtype,
    pub(crate) scale: f32,
    pub(crate) selection: Selection,
    /// What selects, unless the caller does.
    pub(crate) policy: Arc<dyn Policy>,
    /// How candidates are scored; not at all, if absent.
    pub(crate) scores: Option<ScoreRule>,
    pub(crate) seed: u64,
    /// How queries are rotated on, for a policy that looks ahead.
    pub(crate) ahead: Option<Ahead>,
    /// Tokens whose queries score.
    pub(crate) query_tokens: usize,
    max_merges: usize,
    pub(crate) simd: Simd,
    pub(crate) rings: Rings,
    schedule: Schedule,
}

impl Compressor {
    /// Checks the options and makes the rings.
    ///
    /// # Errors
    /// An option cannot be, or the rings do not fit in memory.
    pub fn new(options: &Options) -> Result<Self> {
        let (heads, kv_heads, head_dim) = (options.heads, options.kv_heads, options.head_dim);
        if kv_heads == 0 || kv_heads > MAX_HEADS {
            return refuse("kv_heads", format_args!("1 to {MAX_HEADS}"), kv_heads);
        }
        if heads == 0 || heads > MAX_HEADS || !heads.is_multiple_of(kv_heads) {
            let expected = format_args!("a multiple of kv_heads ({kv_heads}) up to {MAX_HEADS}");
            return refuse("heads", expected, heads);
        }
        if head_dim == 0 || head_dim > reasoning_rpc_cpu::MAX_HEAD_DIM || !head_dim.is_multiple_of(8) {
            let most = reasoning_rpc_cpu::MAX_HEAD_DIM;
            return refuse(
                "head_dim",
                format_args!("a multiple of 8 from 8 to {most}"),
                head_dim,
            );
        }
        let scale = options.scale.unwrap_or(1.0 / (head_dim as f32).sqrt());
        if !scale.is_finite() || scale <= 0.0 {
            return refuse("scale", "a finite number above 0", scale);
        }
        let mut rpc = options.rpc;
        // Nothing is there to be asked while a token attends.
        rpc.queries = Queries::Stored;
        if !matches!(options.selection, Selection::Rpc) {
            // Not looked at.
            rpc.kernel = 1;
        }
        if rpc.aggregation == Some(Aggregation::Adaptive) {
            return refuse(
                "aggregation",
                "layer or kv_head, with as many entries in each KV head",
                Aggregation::Adaptive.name(),
            );
        }
        if matches!(options.selection, Selection::Lookahead { .. }) {
            rpc.aggregation = Some(Aggregation::KvHead);
        }
        let schedule = rpc.schedule()?;
        let (kind, seed) = match options.selection {
            Selection::None | Selection::Rpc | Selection::Callback(_) => (PolicyKind::Rpc, 0),
            Selection::SnapKv => (PolicyKind::SnapKv, 0),
            Selection::Streaming => (PolicyKind::Streaming, 0),
            Selection::Random { seed } => (PolicyKind::Random, seed),
            Selection::Lookahead { merges: false, .. } => (PolicyKind::Lookahead, 0),
            Selection::Lookahead { merges: true, .. } => (PolicyKind::LookaheadMerge, 0),
        };
        let policy = kind.build(rpc)?;
        let ahead = match &options.selection {
            Selection::Lookahead { rotary, .. } => Some(Ahead::new(rotary, schedule.interval(), head_dim)?),
            _ => None,
        };
        let query_tokens = match ahead {
            Some(_) => schedule.interval(),
            None => schedule.window(),
        };
        let spec = policy.spec();
        if ahead.is_none()
            && (spec.history || spec.keys || spec.value_norms || spec.queries || spec.attention.is_some())
        {
            return refuse(
                "selection",
                "one that needs keys, values and the window's queries of one compression alone",
                policy.name(),
            );
        }
        let simd = Simd::from_env().map_err(|error| Error::Argument(error.to_string()))?;
        let floats = query_tokens.checked_mul(heads * head_dim);
        Ok(Self {
            heads,
            kv_heads,
            head_dim,
            dtype: options.dtype,
            scale,
            selection: options.selection.clone(),
            scores: policy.spec().scores,
            policy,
            seed,
            ahead,
            query_tokens,
            max_merges: options.max_merges,
            simd,
            rings: Rings::new(options.recorded_layers, options.recorded_sequences, floats)?,
            schedule,
        })
    }

    /// Whether a sequence of which `generated` generated entries were written, dropped ones included, and
    /// that was compressed `compressions` times is to be compressed now.
    pub fn due(&self, generated: u64, compressions: u64) -> bool {
        let done = usize::try_from(compressions).unwrap_or(usize::MAX);
        !matches!(self.selection, Selection::None) && generated >= self.schedule.due_at(done) as u64
    }

    /// What calls with a batch need. Reads no block table.
    ///
    /// # Errors
    /// The batch cannot be, or no memory is large enough.
    pub fn sizes(&self, batch: &Batch<'_>) -> Result<Sizes> {
        let batch = Batched::new(batch, self.window())?;
        let sizes = Sizes {
            workspace_bytes: Needs::of(self, &batch).bytes(),
            score_count: batch.score_count(self.kv_heads),
        };
        if sizes.workspace_bytes > isize::MAX as usize {
            return refuse("batch", "sizes within the address space", "larger ones");
        }
        Ok(sizes)
    }

    /// [`score`](Self::score) and [`select`](Self::select) in one, for every selection: writes nothing but the plan.
    ///
    /// # Errors
    /// Those of the two; [`Selection::Lookahead`] without histories in the layer, or with one that is not finite.
    ///
    /// # Safety
    /// Those of the two.
    pub unsafe fn plan<'w>(
        &self,
        layer: &Layer,
        batch: &Batch<'_>,
        window: &Window<'_>,
        workspace: Workspace,
    ) -> Result<Plan<'w>> {
        let batch = Batched::new(batch, self.window())?;
        let needs = Needs::of(self, &batch);
        // SAFETY: the caller's contract.
        unsafe {
            let (region, mut scratch) = divide(workspace, &needs)?;
            self.plan_in(layer, &batch, window, region, &mut scratch)
        }
    }

    /// # Safety
    /// As [`plan`](Self::plan).
    unsafe fn plan_in<'w>(
        &self,
        layer: &Layer,
        batch: &Batched<'_>,
        window: &Window<'_>,
        region: Region,
        scratch: &mut Carver<'_>,
    ) -> Result<Plan<'w>> {
        // SAFETY: the caller's contract.
        unsafe {
            if let Some(ahead) = &self.ahead {
                return self.plan_ahead(ahead, layer, batch, window, region, scratch);
            }
            let scores = scratch.filled(batch.score_count(self.kv_heads), 0.0)?;
            self.score_in(layer, batch, window, scores, &mut scratch.stage())?;
            self.select_in(layer.layer, batch, scores, region, &mut scratch.stage())
        }
    }

    /// [`plan`](Self::plan) and [`apply`](Self::apply) in one; returns what was done.
    ///
    /// # Errors
    /// Those of the two; nothing was written then.
    ///
    /// # Safety
    /// Those of the two.
    pub unsafe fn compress<'w>(
        &self,
        layer: &Layer,
        batch: &Batch<'_>,
        window: &Window<'_>,
        workspace: Workspace,
    ) -> Result<Plan<'w>> {
        let batch = Batched::new(batch, self.window())?;
        let needs = Needs::of(self, &batch);
        // SAFETY: the caller's contract.
        let (region, mut scratch) = unsafe { divide(workspace, &needs)? };
        // SAFETY: the caller's contract.
        unsafe {
            let plan = self.plan_in(layer, &batch, window, region, &mut scratch.stage())?;
            self.apply_in(layer, &batch, &plan, &mut scratch.stage())?;
            Ok(plan)
        }
    }

    /// R.
    pub(crate) fn window(&self) -> usize {
        self.schedule.window()
    }

    pub(crate) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Queries that score the candidates of one KV head.
    pub(crate) fn query_count(&self) -> usize {
        self.group().saturating_mul(self.query_tokens)
    }

    /// Whether a float is kept for each entry.
    pub(crate) fn keeps_history(&self) -> bool {
        self.ahead.is_some()
    }

    /// Whether plans of its own merge.
    pub(crate) fn merges(&self) -> bool {
        matches!(self.selection, Selection::Lookahead { merges: true, .. })
    }

    /// The most merges of a sequence with so many candidates.
    pub(crate) fn most_merges(&self, candidates: usize) -> usize {
        match self.merges() {
            true => candidates.saturating_mul(self.kv_heads),
            false => self.max_merges,
        }
    }

    /// The most entries of one KV head that others are merged into.
    pub(crate) fn most_merged(&self, candidates: usize) -> usize {
        self.most_merges(candidates).min(candidates)
    }
}
