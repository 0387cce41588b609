//! Our own rules: an entry is worth what the next interval's queries will give it, as far as this interval's
//! show.

use crate::plan::{LayerPlan, PlanError};
use crate::policies::merge::{Asked, Head};
use crate::policies::{
    Aggregation, PolicyKind, Queries, RpcOptions, Similarity, adaptive_counts, check_share, keep_best,
};
use crate::policy::{Attention, LayerView, Policy, ScoreRule, Spec, Trigger};
use crate::schedule::{OptionError, Schedule};

/// How much of an entry's last score counts in the next: of 0.3, 0.6 and 0.9 the best on the text that it was chosen on
/// (docs/accuracy.md).
const HISTORY: f32 = 0.6;
/// Tokens of an interval up to which its queries are stored, unless options say: asked online, an entry
/// of a short one is seen by few; stored, those of a long one take memory as a cache of several times as many entries.
const LONGEST_STORED: usize = 256;

/// The policies `lookahead` and `lookahead-merge`.
///
/// The score of an entry is the mean attention that the interval's queries, rotated on to the next interval,
/// give it, and 0.6 times its score at the last compression (0 for new entries). Each KV head keeps its best, as many as
/// its scores say or, with another aggregation than [`Aggregation::Adaptive`], as the others.
///
/// With merging, each dropped entry then joins the kept one whose key is the most similar to its own ([`Similarity`]).
/// An entry i with score s that others join, W their scores and its own in all, gets the mean value of them
/// weighted by scores, a key that raises its expected logit by r = min(3, ln(W / s)), and the score W: with
/// mu and C the mean and second moments of the queries over sqrt(head_dim),
/// u = (C + 0.1 tr(C) / head_dim I)^-1 mu, its key rises by r u / (mu . u).
///
/// With [`Queries::Online`] the mean attention is what [`Attention::Ahead`] adds up, over the queries that saw the entry.
#[derive(Debug, Clone, Copy)]
pub struct Lookahead {
    schedule: Schedule,
    merges: bool,
    online: bool,
    adaptive: bool,
    history: f32,
    similarity: Similarity,
}

impl Lookahead {
    /// At the steps of a schedule, with the queries, the aggregation and the history of `options`.
    ///
    /// # Errors
    /// The history is not 0 to 1.
    pub fn new(schedule: Schedule, merges: bool, options: &RpcOptions) -> Result<Self, OptionError> {
        let history = options.history.unwrap_or(HISTORY);
        check_share("history", history)?;
        Ok(Self {
            schedule,
            merges,
            online: match options.queries {
                Queries::Auto => schedule.interval() > LONGEST_STORED,
                queries => queries == Queries::Online,
            },
            adaptive: Self::is_adaptive(options),
            history,
            similarity: options.similarity,
        })
    }

    /// Whether it would be with these options.
    pub(super) fn is_adaptive(options: &RpcOptions) -> bool {
        options.aggregation.unwrap_or(Aggregation::Adaptive) == Aggregation::Adaptive
    }

    /// What attention is added up online.
    fn attention(&self) -> Attention {
        Attention::Ahead {
            interval: self.schedule.interval(),
        }
    }

    fn kind(&self) -> PolicyKind {
        match self.merges {
            false => PolicyKind::Lookahead,
            true => PolicyKind::LookaheadMerge,
        }
    }

    /// Makes scores of the mean attention to a KV head's candidates and of their history, which it takes.
    fn add_history(&self, scores: &mut [f32], history: &mut &[f32]) -> Result<(), PlanError> {
        // What is added up online began with the share of the last score. The newest entries were seen by their own
        // and later queries only: the mean is over these.
        if self.online {
            let (interval, window) = (self.schedule.interval(), self.schedule.window());
            for (score, seen) in scores.iter_mut().rev().zip(window + 1..interval) {
                *score *= interval as f32 / seen as f32;
            }
            return Ok(());
        }
        let own = history.split_off(..scores.len()).unwrap_or_default();
        if own.len() != scores.len() {
            return Err(PlanError::Scores(format!(
                "history: expected one for each of {} candidates, found {}",
                scores.len(),
                own.len()
            )));
        }
        for (score, history) in scores.iter_mut().zip(own) {
            *score += self.history * history;
        }
        Ok(())
    }
}

impl Policy for Lookahead {
    fn name(&self) -> &str {
        self.kind().name()
    }

    fn spec(&self) -> Spec {
        Spec {
            trigger: Trigger::Interval(self.schedule),
            per_kv_head: true,
            adaptive: self.adaptive,
            keys: self.merges,
            merges: self.merges,
            ..match self.online {
                false => Spec {
                    scores: Some(ScoreRule::IntervalAhead),
                    queries: self.merges,
                    history: true,
                    ..Spec::default()
                },
                true => Spec {
                    attention: Some(self.attention()),
                    moments: self.merges,
                    ..Spec::default()
                },
            }
        }
    }

    fn peak_generated(&self, generated: usize) -> usize {
        self.schedule.peak_generated(generated)
    }

    fn plan(&self, view: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError> {
        let keep = self.schedule.kept(view.done);
        let mut counts = vec![];
        if self.adaptive {
            let mut history = view.history;
            let heads = view.head_scores()?.map(|attention| {
                let mut scores = attention.to_vec();
                self.add_history(&mut scores, &mut history).map(|()| scores)
            });
            counts = adaptive_counts(&heads.collect::<Result<Vec<_>, _>>()?, keep);
        }
        let (mut keys, mut history) = (view.keys, view.history);
        for (kv_head, attention) in view.head_scores()?.enumerate() {
            let count = attention.len();
            let merged_dim = if self.merges { view.head_dim } else { 0 };
            let (scratch, moments) = plan.take_scratch(count, merged_dim)?;
            let (scores, rest) = scratch.split_at_mut(count);
            scores.copy_from_slice(attention);
            self.add_history(scores, &mut history)?;
            let keep = counts.get(kv_head).copied().unwrap_or(keep);
            keep_best(plan, scores, keep)?;
            if self.merges {
                let asked = if self.online { view.moments } else { view.queries };
                let width = asked.len() / view.candidates.len();
                let asked = &asked[kv_head * width..][..width];
                let head = Head {
                    kv_head: kv_head as u32,
                    keys: keys.split_off(..count * view.head_dim).unwrap_or_default(),
                    queries: match self.online {
                        true => Asked::Moments(asked),
                        false => Asked::Queries(asked),
                    },
                    head_dim: view.head_dim,
                    similarity: self.similarity,
                };
                head.merge(plan, scores, rest, moments)?;
            }
            if self.online {
                scores.iter_mut().for_each(|score| *score *= self.history);
            }
            plan.push_history(scores)?;
            plan.put_scratch((scratch, moments));
        }
        Ok(())
    }

    fn recipe(&self) -> Option<(PolicyKind, RpcOptions)> {
        let options = RpcOptions {
            queries: match self.online {
                true => Queries::Online,
                false => Queries::Stored,
            },
            history: Some(self.history),
            similarity: self.similarity,
            aggregation: Some(Aggregation::of_heads(self.adaptive)),
            ..RpcOptions::of(&self.schedule)
        };
        Some((self.kind(), options))
    }
}
