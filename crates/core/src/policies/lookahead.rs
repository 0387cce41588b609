//! Our own rules: an entry is worth what the next interval's queries will give it, as far as this interval's
//! show.

use crate::plan::{LayerPlan, Merge, PlanError};
use crate::policies::{
    Aggregation, PolicyKind, Queries, RpcOptions, adaptive_counts, check_share, keep_best,
};
use crate::policy::{Attention, LayerView, Policy, ScoreRule, Spec, Trigger};
use crate::schedule::{OptionError, Schedule};
use crate::vectors::dot;

/// How much of an entry's last score counts in the next: of 0.3, 0.6 and 0.9 the best on the text that it was chosen on
/// (docs/accuracy.md).
const HISTORY: f32 = 0.6;
/// Tokens of an interval up to which its queries are stored, unless options say: asked online, an entry
/// of a short one is seen by few; stored, those of a long one take memory as a cache of several times as many entries.
const LONGEST_STORED: usize = 256;
/// The ridge, in mean variances of the queries.
const RIDGE: f64 = 0.1;
/// The most that a key's logits rise by.
const LARGEST_RISE: f64 = 3.0;

/// The policies `lookahead` and `lookahead-merge`.
///
/// The score of an entry is the mean attention that the interval's queries, rotated on to the next interval,
/// give it, and 0.6 times its score at the last compression (0 for new entries). Each KV head keeps its best, as many as
/// its scores say or, with another aggregation than [`Aggregation::Adaptive`], as the others.
///
/// With merging, each dropped entry then joins the kept one whose key has the largest cosine to its own.
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
            let moments = if self.merges { view.head_dim } else { 0 };
            let (scratch, moments) = plan.take_scratch(count, moments)?;
            let (scores, norms) = scratch.split_at_mut(count);
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
                };
                head.merge(plan, scores, &mut norms[..count], moments)?;
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
            aggregation: Some(Aggregation::of_heads(self.adaptive)),
            ..RpcOptions::of(&self.schedule)
        };
        Some((self.kind(), options))
    }
}

/// A KV head whose dropped candidates are merged.
struct Head<'a> {
    kv_head: u32,
    keys: &'a [f32],
    queries: Asked<'a>,
    head_dim: usize,
}

/// What there is of the queries.
#[derive(Clone, Copy)]
enum Asked<'a> {
    Queries(&'a [f32]),
    /// As [`LayerView::moments`].
    Moments(&'a [f32]),
}

impl Head<'_> {
    /// Merges what the plan's last set dropped. `scores` of kept ones become W; `norms` has room for as many.
    fn merge(
        &self,
        plan: &mut LayerPlan<'_>,
        scores: &mut [f32],
        norms: &mut [f32],
        moments: &mut [f64],
    ) -> Result<(), PlanError> {
        let (count, head_dim) = (scores.len(), self.head_dim);
        let (queries, expected) = match self.queries {
            Asked::Queries(queries) => (queries.len(), head_dim),
            Asked::Moments(moments) => (moments.len(), head_dim * (head_dim + 1)),
        };
        if self.keys.len() != count * head_dim || queries < expected {
            return Err(PlanError::Scores(format!(
                "keys and queries: expected {} floats and at least {expected}, found {} and {queries}",
                count * head_dim,
                self.keys.len(),
            )));
        }
        let first = plan.merge_count();
        self.join(plan, scores, norms)?;
        let (direction, rise) = self.direction(moments);
        // No norms are needed any more.
        let shifts = norms;
        shifts.fill(0.0);
        // Sums in float64, in the candidates' order. What joins an entry is dropped, and keeps its score.
        let joined = plan.merges_from(first);
        let (mut at, mut used) = (0, 0);
        while at < joined.len() {
            let into = joined[at].into;
            let end = at + joined[at..].partition_point(|merge| merge.into == into);
            let own = f64::from(scores[into as usize]);
            let others = joined[at..end].iter();
            let all = others.fold(own, |sum, merge| sum + f64::from(scores[merge.from as usize]));
            if all > 0.0 {
                for from in at..end {
                    joined[used] = joined[from];
                    let score = f64::from(scores[joined[from].from as usize]);
                    joined[used].value_weight = (score / all) as f32;
                    used += 1;
                }
            }
            if all > own && rise > 0.0 {
                let wanted = (all / own).ln().min(LARGEST_RISE);
                shifts[into as usize] = (wanted / rise) as f32;
            }
            scores[into as usize] = all as f32;
            at = end;
        }
        plan.keep_merges(first + used);
        plan.push_shifts(direction, shifts)
    }

    /// Adds a merge, without a weight, of each candidate that the plan's last set dropped into the kept one whose
    /// key has the largest cosine to its own, the lower of equals.
    fn join(&self, plan: &mut LayerPlan<'_>, scores: &[f32], norms: &mut [f32]) -> Result<(), PlanError> {
        let first = plan.merge_count();
        for (norm, key) in norms.iter_mut().zip(self.keys.chunks_exact(self.head_dim)) {
            let square: f64 = key.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
            // The reciprocal; of zeros, 0.
            *norm = if square > 0.0 {
                (1.0 / square.sqrt()) as f32
            } else {
                0.0
            };
        }
        let last = plan.sets() - 1;
        if plan.set(last).is_empty() {
            return Ok(());
        }
        for (from, key) in (0..scores.len() as u32).zip(self.keys.chunks_exact(self.head_dim)) {
            let kept = plan.set(last);
            if kept.binary_search(&from).is_ok() {
                continue;
            }
            // The dropped key's length does not change which is largest.
            let (mut into, mut largest) = (kept[0], f32::NEG_INFINITY);
            for &index in kept {
                let other = &self.keys[index as usize * self.head_dim..][..self.head_dim];
                let cosine = dot(key, other) * norms[index as usize];
                if cosine > largest {
                    (into, largest) = (index, cosine);
                }
            }
            plan.push_merge(Merge {
                kv_head: self.kv_head,
                into,
                from,
                value_weight: 0.0,
            })?;
        }
        plan.merges_from(first)
            .sort_unstable_by_key(|merge| (merge.into, merge.from));
        Ok(())
    }

    /// u = (C + ridge I)^-1 mu of the queries over sqrt(head_dim), and mu . u: what one u in a key adds to the
    /// expected logit. 0 if there is no such direction.
    fn direction<'s>(&self, scratch: &'s mut [f64]) -> (&'s [f64], f64) {
        let n = self.head_dim;
        let (moments, rest) = scratch.split_at_mut(n * n);
        let (mean, rest) = rest.split_at_mut(n);
        let solution = &mut rest[..n];
        let scale = 1.0 / (n as f64).sqrt();
        match self.queries {
            Asked::Queries(queries) => {
                moments.fill(0.0);
                mean.fill(0.0);
                for row in queries.chunks_exact(n) {
                    let query = &mut *solution;
                    for (x, &element) in query.iter_mut().zip(row) {
                        *x = f64::from(element) * scale;
                    }
                    for (index, &x) in query.iter().enumerate() {
                        mean[index] += x;
                        // The lower triangle.
                        let row = &mut moments[index * n..][..index + 1];
                        row.iter_mut().zip(&*query).for_each(|(sum, y)| *sum += x * y);
                    }
                }
                let count = (queries.len() / n) as f64;
                mean.iter_mut().for_each(|x| *x /= count);
                moments.iter_mut().for_each(|x| *x /= count);
            }
            Asked::Moments(given) => {
                let (first, second) = given.split_at(n);
                let means = mean.iter_mut().zip(first);
                means.for_each(|(x, &y)| *x = f64::from(y) * scale);
                let products = moments.iter_mut().zip(second);
                products.for_each(|(x, &y)| *x = f64::from(y) * scale * scale);
            }
        }
        let trace: f64 = (0..n).map(|i| moments[i * n + i]).sum();
        for i in 0..n {
            moments[i * n + i] += RIDGE * trace / n as f64;
        }
        solution.copy_from_slice(mean);
        let solved = solve(moments, solution);
        let rise: f64 = mean.iter().zip(&*solution).map(|(x, u)| x * u).sum();
        if !solved || !rise.is_normal() || !solution.iter().all(|&u| (u as f32).is_finite()) {
            solution.fill(0.0);
            return (solution, 0.0);
        }
        (solution, rise)
    }
}

/// Solves `matrix x = right` for a symmetric positive definite matrix, of which the lower triangle is given
/// and overwritten (Cholesky); `x` takes the place of `right`. False if it is not such a matrix.
fn solve(matrix: &mut [f64], right: &mut [f64]) -> bool {
    let n = right.len();
    for i in 0..n {
        for j in 0..=i {
            let (head, tail) = matrix.split_at(i * n);
            let row_j = if j == i {
                &tail[..j]
            } else {
                &head[j * n..j * n + j]
            };
            let sum: f64 = tail[..j].iter().zip(row_j).map(|(x, y)| x * y).sum();
            let rest = tail[j] - sum;
            matrix[i * n + j] = if j < i {
                rest / matrix[j * n + j]
            } else if rest > 0.0 {
                rest.sqrt()
            } else {
                return false;
            };
        }
    }
    for i in 0..n {
        let sum: f64 = (0..i).map(|j| matrix[i * n + j] * right[j]).sum();
        right[i] = (right[i] - sum) / matrix[i * n + i];
    }
    for i in (0..n).rev() {
        let sum: f64 = (i + 1..n).map(|j| matrix[j * n + i] * right[j]).sum();
        right[i] = (right[i] - sum) / matrix[i * n + i];
    }
    true
}
