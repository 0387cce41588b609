//! Reasoning Path Compression (arXiv 2505.13866): every P tokens, the queries of the last R score
//! the generated past, neighbouring scores are pooled, and the best (n+1) P/c entries stay.

use crate::plan::{LayerPlan, PlanError};
use crate::policy::{LayerView, Policy, ScoreRule, Spec, Trigger};
use crate::pooling::{Pooling, check_kernel};
use crate::schedule::{Budget, OptionError, Schedule};
use crate::selection::top_k;

/// Over which heads scores are averaged, and so how many kept sets a layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Aggregation {
    /// Mean over all heads: one kept set per layer. The published default ("all").
    #[default]
    Layer,
    /// Mean over the query heads of each KV head: one kept set per KV head ("group").
    KvHead,
}

/// Options of [`Rpc`]; the default is the paper's setting for accuracy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RpcOptions {
    /// P: a compression every so many generated tokens.
    pub interval: usize,
    /// R: the newest tokens, whose queries score the past and which always stay.
    pub window: usize,
    /// How much is kept. The paper's c is [`Budget::Ratio`].
    pub budget: Budget,
    /// One kept set per layer or per KV head.
    pub aggregation: Aggregation,
    /// How neighbouring scores are pooled.
    pub pooling: Pooling,
    /// Width of the pooling, odd.
    pub kernel: usize,
}

impl Default for RpcOptions {
    fn default() -> Self {
        Self {
            interval: 4096,
            window: 32,
            budget: Budget::Ratio(4),
            aggregation: Aggregation::Layer,
            pooling: Pooling::Average,
            kernel: 7,
        }
    }
}

/// The policy `rpc`.
#[derive(Debug, Clone, Copy)]
pub struct Rpc {
    schedule: Schedule,
    aggregation: Aggregation,
    pooling: Pooling,
    kernel: usize,
}

impl Rpc {
    /// Checks the options.
    ///
    /// # Errors
    /// See [`Schedule::new`] and [`check_kernel`].
    pub fn new(options: RpcOptions) -> Result<Self, OptionError> {
        check_kernel(options.kernel)?;
        Ok(Self {
            schedule: Schedule::new(options.interval, options.window, options.budget)?,
            aggregation: options.aggregation,
            pooling: options.pooling,
            kernel: options.kernel,
        })
    }

    /// The options that it was made with.
    pub fn options(&self) -> RpcOptions {
        RpcOptions {
            interval: self.schedule.interval(),
            window: self.schedule.window(),
            budget: self.schedule.budget(),
            aggregation: self.aggregation,
            pooling: self.pooling,
            kernel: self.kernel,
        }
    }

    /// The schedule that it follows.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }
}

impl Policy for Rpc {
    fn name(&self) -> &str {
        "rpc"
    }

    fn spec(&self) -> Spec {
        Spec {
            trigger: Trigger::Interval(self.schedule),
            scores: Some(ScoreRule::WindowOverCandidates),
        }
    }

    fn peak_generated(&self, generated: usize) -> usize {
        self.schedule.peak_generated(generated)
    }

    fn plan(&self, view: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError> {
        let keep = self.schedule.kept(view.done);
        match self.aggregation {
            Aggregation::Layer => {
                let count = view.candidates.first().copied().unwrap_or(0);
                let heads = view.head_scores()?;
                let (best, scratch) = plan.room(count, LayerPlan::scratch_floats(count))?;
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
                self.pooling.apply(mean, self.kernel, pooled);
                let kept = top_k(pooled, keep, best);
                plan.push_room(kept)?;
            }
            Aggregation::KvHead => {
                for head in view.head_scores()? {
                    let (best, pooled) = plan.room(head.len(), head.len())?;
                    self.pooling.apply(head, self.kernel, pooled);
                    let kept = top_k(pooled, keep, best);
                    plan.push_room(kept)?;
                }
            }
        }
        Ok(())
    }
}
