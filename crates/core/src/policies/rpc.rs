//! Reasoning Path Compression (arXiv 2505.13866): every P tokens, the queries of the last R score
//! the generated past, neighbouring scores are pooled, and the best (n+1) P/c entries stay.

use crate::plan::{LayerPlan, PlanError};
use crate::policies::r_kv::redundancy;
use crate::policies::{PolicyKind, adaptive_counts, check_share, keep_best, mean};
use crate::policy::{LayerView, Policy, ScoreRule, Spec, Trigger};
use crate::pooling::{Pooling, check_kernel};
use crate::schedule::{Budget, OptionError, Schedule};
use crate::selection::top_k;

/// Over which heads scores are averaged, and so how many kept sets a layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregation {
    /// Mean over all heads: one kept set per layer. The published default ("all").
    Layer,
    /// Mean over the query heads of each KV head: one kept set per KV head ("group").
    KvHead,
    /// As [`KvHead`](Self::KvHead), but the KV heads of a layer share their budgets: four fifths of them go to where the
    /// layer's best entries are, a fifth to all alike (Ada-KV, arXiv 2407.11550).
    Adaptive,
}

impl Aggregation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Layer, Self::KvHead, Self::Adaptive];

    /// The name that users select it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::KvHead => "kv_head",
            Self::Adaptive => "adaptive",
        }
    }

    /// The one that a name selects.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// Of a policy that has one kept set per KV head anyway.
    pub(crate) fn of_heads(adaptive: bool) -> Self {
        match adaptive {
            true => Self::Adaptive,
            false => Self::KvHead,
        }
    }
}

/// What the softmax of a query runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Softmax {
    /// The candidates alone, as published.
    #[default]
    Candidates,
    /// All entries that the query sees.
    All,
}

/// Which queries [`Lookahead`](crate::policies::Lookahead) has of an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Queries {
    /// [`Stored`](Self::Stored) if the interval has at most 256 tokens, [`Online`](Self::Online) beyond.
    #[default]
    Auto,
    /// All of them, stored: each is asked about all entries when the interval ends.
    Stored,
    /// None is stored: each is asked while its token attends, about the entries that it sees, and what it answers is
    /// added up. An entry misses the queries before it.
    Online,
}

/// Which kept key a dropped one is the most similar to, of a KV head, where entries are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Similarity {
    /// The one whose logits differ from the dropped one's by the least variance over the interval's queries:
    /// `x^T (S + 0.1 tr(S) / head_dim I) x` of the difference x of the keys, S the covariance of the queries over
    /// sqrt(head_dim). A difference that is the same for all queries does not count: scores tell of it.
    #[default]
    Logits,
    /// The one with the largest cosine.
    Cosine,
}

impl Similarity {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Logits, Self::Cosine];

    /// The name that users select it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Logits => "logits",
            Self::Cosine => "cosine",
        }
    }
}

/// Options of [`Rpc`]; the default is the paper's setting for accuracy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RpcOptions {
    /// P: a compression every so many generated tokens.
    pub interval: usize,
    /// R: the newest tokens, whose queries score the past and which always stay.
    pub window: usize,
    /// How much is kept. The paper's c is [`Budget::Ratio`].
    pub budget: Budget,
    /// Of [`Rpc`], `snapkv` and those that look ahead; the latter two have one kept set per KV head in any case, and read
    /// [`Aggregation::Layer`] as [`Aggregation::KvHead`]. None: the policy's own, [`Aggregation::Layer`] of [`Rpc`],
    /// [`Aggregation::KvHead`] of `snapkv`, [`Aggregation::Adaptive`] of those that look ahead.
    pub aggregation: Option<Aggregation>,
    /// How neighbouring scores are pooled.
    pub pooling: Pooling,
    /// Width of the pooling, odd.
    pub kernel: usize,
    /// What the softmax of the scores runs over.
    pub softmax: Softmax,
    /// How much of an entry's score at the compression before is added to its new one: 0, none, to 1. What is
    /// added up is per KV head, before norms, mean and pooling. None: the policy's own, 0 of [`Rpc`], 0.6 of those that
    /// look ahead.
    pub history: Option<f32>,
    /// Whether scores are multiplied by the sum of the magnitudes of the entry's value (VATP, arXiv 2406.12335).
    pub value_norms: bool,
    /// Weight w of the redundancy r of keys as in R-KV (arXiv 2505.24133), 0, none, to 1: pooled scores s become
    /// (1 - w) s / max s - w r / max r; for one set per layer with the mean of r over the KV heads.
    pub redundancy: f32,
    /// Of the policies that look ahead.
    pub queries: Queries,
    /// Of `lookahead-merge`.
    pub similarity: Similarity,
}

impl Default for RpcOptions {
    fn default() -> Self {
        Self {
            interval: 4096,
            window: 32,
            budget: Budget::Ratio(4),
            aggregation: None,
            pooling: Pooling::Average,
            kernel: 7,
            softmax: Softmax::Candidates,
            history: None,
            value_norms: false,
            redundancy: 0.0,
            queries: Queries::Auto,
            similarity: Similarity::Logits,
        }
    }
}

impl RpcOptions {
    /// The defaults with the schedule's values.
    pub fn of(schedule: &Schedule) -> Self {
        Self {
            interval: schedule.interval(),
            window: schedule.window(),
            budget: schedule.budget(),
            ..Self::default()
        }
    }

    /// When they compress, and how much is kept.
    ///
    /// # Errors
    /// See [`Schedule::new`].
    pub fn schedule(&self) -> Result<Schedule, OptionError> {
        Schedule::new(self.interval, self.window, self.budget)
    }
}

/// The policy `rpc`.
#[derive(Debug, Clone, Copy)]
pub struct Rpc {
    schedule: Schedule,
    aggregation: Aggregation,
    options: RpcOptions,
}

impl Rpc {
    /// Checks the options.
    ///
    /// # Errors
    /// See [`Schedule::new`] and [`check_kernel`]; `history` or `redundancy` is not 0 to 1.
    pub fn new(options: RpcOptions) -> Result<Self, OptionError> {
        check_kernel(options.kernel)?;
        check_share("history", options.history.unwrap_or(0.0))?;
        check_share("redundancy", options.redundancy)?;
        let aggregation = options.aggregation.unwrap_or(Aggregation::Layer);
        Ok(Self {
            schedule: options.schedule()?,
            aggregation,
            options: RpcOptions {
                aggregation: Some(aggregation),
                ..options
            },
        })
    }

    fn history(&self) -> f32 {
        self.options.history.unwrap_or(0.0)
    }

    /// The options that it was made with, its own aggregation filled in.
    pub fn options(&self) -> RpcOptions {
        self.options
    }

    /// The schedule that it follows.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// With what goes beyond the paper.
    fn plan_weighted(&self, view: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError> {
        let aggregation = self.aggregation;
        let RpcOptions {
            pooling,
            kernel,
            value_norms,
            redundancy: penalty,
            ..
        } = self.options;
        let history = self.history();
        let mut heads: Vec<Vec<f32>> = view.head_scores()?.map(<[f32]>::to_vec).collect();
        if history > 0.0 {
            for (scores, before) in heads.iter_mut().zip(view.head_history()?) {
                scores
                    .iter_mut()
                    .zip(before)
                    .for_each(|(score, before)| *score += history * before);
                plan.push_history(scores)?;
            }
        }
        if value_norms {
            for (scores, norms) in heads.iter_mut().zip(view.head_value_norms()?) {
                scores
                    .iter_mut()
                    .zip(norms)
                    .for_each(|(score, norm)| *score *= norm);
            }
        }
        let mut redundancies = Vec::new();
        if penalty > 0.0 {
            redundancies.extend(view.head_keys()?.map(|keys| redundancy(keys, view.head_dim)));
        }
        if aggregation == Aggregation::Layer {
            heads = vec![mean(heads.iter().map(Vec::as_slice))?];
            if penalty > 0.0 {
                redundancies = vec![mean(redundancies.iter().map(Vec::as_slice))?];
            }
        }
        for (index, scores) in heads.iter_mut().enumerate() {
            let mut pooled = vec![0.0; scores.len()];
            pooling.apply(scores, kernel, &mut pooled);
            if let Some(redundancy) = redundancies.get(index) {
                let most = |of: &[f32]| of.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
                let (most_score, most_redundancy) = (most(&pooled), most(redundancy));
                for (score, redundancy) in pooled.iter_mut().zip(redundancy) {
                    *score = (1.0 - penalty) * *score / most_score - penalty * redundancy / most_redundancy;
                }
            }
            *scores = pooled;
        }
        let keep = self.schedule.kept(view.done);
        let counts = match aggregation {
            Aggregation::Adaptive => adaptive_counts(&heads, keep),
            _ => vec![keep; heads.len()],
        };
        for (scores, count) in heads.iter().zip(counts) {
            keep_best(plan, scores, count)?;
        }
        Ok(())
    }
}

impl Policy for Rpc {
    fn name(&self) -> &str {
        PolicyKind::Rpc.name()
    }

    fn spec(&self) -> Spec {
        Spec {
            trigger: Trigger::Interval(self.schedule),
            scores: Some(match self.options.softmax {
                Softmax::Candidates => ScoreRule::WindowOverCandidates,
                Softmax::All => ScoreRule::WindowOverAll,
            }),
            per_kv_head: self.aggregation != Aggregation::Layer,
            adaptive: self.aggregation == Aggregation::Adaptive,
            history: self.history() > 0.0,
            value_norms: self.options.value_norms,
            keys: self.options.redundancy > 0.0,
            ..Spec::default()
        }
    }

    fn peak_generated(&self, generated: usize) -> usize {
        self.schedule.peak_generated(generated)
    }

    fn plan(&self, view: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError> {
        let keep = self.schedule.kept(view.done);
        let spec = self.spec();
        if spec.history || spec.value_norms || spec.keys || spec.adaptive {
            return self.plan_weighted(view, plan);
        }
        match self.aggregation {
            Aggregation::Layer => {
                let count = view.candidates.first().copied().unwrap_or(0);
                let heads = view.head_scores()?;
                let (best, scratch) = plan.room(count, LayerPlan::scratch_floats(count, 0))?;
                let (mean, pooled) = scratch.split_at_mut(count);
                mean.fill(0.0);
                for head in heads {
                    if head.len() != count {
                        return Err(PlanError::UnequalHeads {
                            expected: count,
                            found: head.len(),
                        });
                    }
                    for (sum, score) in mean.iter_mut().zip(head) {
                        *sum += score;
                    }
                }
                // Every KV head has equally many query heads, so the mean of the heads' means is
                // the mean over all query heads.
                let heads = view.candidates.len() as f32;
                mean.iter_mut().for_each(|sum| *sum /= heads);
                self.options.pooling.apply(mean, self.options.kernel, pooled);
                let kept = top_k(pooled, keep, best);
                plan.push_room(kept)?;
            }
            Aggregation::KvHead | Aggregation::Adaptive => {
                for head in view.head_scores()? {
                    let (best, pooled) = plan.room(head.len(), head.len())?;
                    self.options.pooling.apply(head, self.options.kernel, pooled);
                    let kept = top_k(pooled, keep, best);
                    plan.push_room(kept)?;
                }
            }
        }
        Ok(())
    }

    fn recipe(&self) -> Option<(PolicyKind, RpcOptions)> {
        Some((PolicyKind::Rpc, self.options()))
    }
}
