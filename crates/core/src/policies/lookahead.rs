//! Our own rules: an entry is worth what the next interval's queries will give it, as far as this interval's
//! show.

use crate::plan::{LayerPlan, Merge, PlanError};
use crate::policies::{PolicyKind, RpcOptions, keep_best};
use crate::policy::{LayerView, Policy, ScoreRule, Spec, Trigger};
use crate::schedule::Schedule;
use crate::vectors::{dot, normalize};

/// How much of an entry's last score counts in the next.
const HISTORY: f32 = 0.3;
/// The ridge, in mean variances of the queries.
const RIDGE: f64 = 0.1;
/// The most that a key's logits rise by.
const LARGEST_RISE: f64 = 3.0;

/// The policies `lookahead` and `lookahead-merge`.
///
/// The score of an entry is the mean attention that the interval's queries, rotated on to the next interval,
/// give it, and 0.3 times its score at the last compression (0 for new entries). Each KV head keeps its best.
///
/// With merging, each dropped entry then joins the kept one whose key has the largest cosine to its own.
/// An entry i with score s that others join, W their scores and its own in all, gets the mean value of them
/// weighted by scores, a key that raises its expected logit by r = min(3, ln(W / s)), and the score W: with
/// mu and C the mean and second moments of the queries over sqrt(head_dim),
/// u = (C + 0.1 tr(C) / head_dim I)^-1 mu, its key rises by r u / (mu . u).
#[derive(Debug, Clone, Copy)]
pub struct Lookahead {
    schedule: Schedule,
    merges: bool,
}

impl Lookahead {
    /// At the steps of a schedule.
    pub fn new(schedule: Schedule, merges: bool) -> Self {
        Self { schedule, merges }
    }

    fn kind(&self) -> PolicyKind {
        match self.merges {
            false => PolicyKind::Lookahead,
            true => PolicyKind::LookaheadMerge,
        }
    }
}

impl Policy for Lookahead {
    fn name(&self) -> &str {
        self.kind().name()
    }

    fn spec(&self) -> Spec {
        Spec {
            trigger: Trigger::Interval(self.schedule),
            scores: Some(ScoreRule::IntervalAhead),
            per_kv_head: true,
            keys: self.merges,
            queries: self.merges,
            history: true,
            ..Spec::default()
        }
    }

    fn peak_generated(&self, generated: usize) -> usize {
        self.schedule.peak_generated(generated)
    }

    fn plan(&self, view: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError> {
        let keep = self.schedule.kept(view.done);
        let mut keys = view.keys;
        let heads = view.head_scores()?.zip(view.head_history()?);
        for (kv_head, (scores, history)) in heads.enumerate() {
            let mut scores: Vec<f32> = scores
                .iter()
                .zip(history)
                .map(|(score, history)| score + HISTORY * history)
                .collect();
            keep_best(plan, &scores, keep)?;
            if self.merges {
                let own = keys.split_off(..scores.len() * view.head_dim).unwrap_or_default();
                let width = view.queries.len() / view.candidates.len();
                let queries = &view.queries[kv_head * width..][..width];
                merge(plan, kv_head, &mut scores, own, queries, view.head_dim)?;
            }
            plan.push_history(&scores)?;
        }
        Ok(())
    }

    fn recipe(&self) -> Option<(PolicyKind, RpcOptions)> {
        Some((self.kind(), RpcOptions::of(&self.schedule)))
    }
}

/// Merges what the plan's last set dropped. `scores` of kept ones become W.
fn merge(
    plan: &mut LayerPlan<'_>,
    kv_head: usize,
    scores: &mut [f32],
    keys: &[f32],
    queries: &[f32],
    head_dim: usize,
) -> Result<(), PlanError> {
    let count = scores.len();
    if keys.len() != count * head_dim || queries.is_empty() {
        return Err(PlanError::Scores(format!(
            "keys and queries: expected {} floats and some, found {} and {}",
            count * head_dim,
            keys.len(),
            queries.len()
        )));
    }
    let kept = plan.set(plan.sets() - 1).to_vec();
    if kept.is_empty() {
        return plan.push_shifts(&vec![0.0; head_dim], &vec![0.0; count]);
    }
    let joins = joins(&kept, keys, head_dim);
    // Sums in float64, in the candidates' order.
    let mut mass: Vec<f64> = scores.iter().copied().map(f64::from).collect();
    for &(into, from) in &joins {
        mass[into as usize] += f64::from(scores[from as usize]);
    }
    for &(into, from) in &joins {
        let all = mass[into as usize];
        if all > 0.0 {
            plan.push_merge(Merge {
                kv_head: kv_head as u32,
                into,
                from,
                value_weight: (f64::from(scores[from as usize]) / all) as f32,
            })?;
        }
    }
    let (direction, rise) = direction(queries, head_dim);
    let mut shifts = vec![0.0; count];
    for &index in &kept {
        let (own, all) = (f64::from(scores[index as usize]), mass[index as usize]);
        if all > own && rise > 0.0 {
            let wanted = (all / own).ln().min(LARGEST_RISE);
            shifts[index as usize] = (wanted / rise) as f32;
        }
        scores[index as usize] = all as f32;
    }
    plan.push_shifts(&direction, &shifts)
}

/// For each candidate that is not kept, the kept one whose key has the largest cosine to its own, the lower
/// of equals: (kept, dropped), ascending.
fn joins(kept: &[u32], keys: &[f32], head_dim: usize) -> Vec<(u32, u32)> {
    let mut unit = Vec::with_capacity(kept.len() * head_dim);
    for &index in kept {
        let start = unit.len();
        unit.extend_from_slice(&keys[index as usize * head_dim..][..head_dim]);
        normalize(&mut unit[start..]);
    }
    let mut joins = Vec::with_capacity(keys.len() / head_dim - kept.len());
    for (from, key) in (0u32..).zip(keys.chunks_exact(head_dim)) {
        if kept.binary_search(&from).is_ok() {
            continue;
        }
        // The dropped key's length does not change which is largest.
        let (mut into, mut largest) = (kept[0], f32::NEG_INFINITY);
        for (&index, unit) in kept.iter().zip(unit.chunks_exact(head_dim)) {
            let cosine = dot(key, unit);
            if cosine > largest {
                (into, largest) = (index, cosine);
            }
        }
        joins.push((into, from));
    }
    joins.sort_unstable();
    joins
}

/// u = (C + ridge I)^-1 mu of the queries over sqrt(head_dim), and mu . u: what one u in a key adds to the
/// expected logit. 0 if there is no such direction.
fn direction(queries: &[f32], head_dim: usize) -> (Vec<f32>, f64) {
    let count = (queries.len() / head_dim) as f64;
    let scale = 1.0 / (head_dim as f64).sqrt();
    let mut mean = vec![0.0f64; head_dim];
    let mut moments = vec![0.0f64; head_dim * head_dim];
    let mut query = vec![0.0f64; head_dim];
    for row in queries.chunks_exact(head_dim) {
        for (x, &element) in query.iter_mut().zip(row) {
            *x = f64::from(element) * scale;
        }
        for (index, &x) in query.iter().enumerate() {
            mean[index] += x;
            // The lower triangle.
            let row = &mut moments[index * head_dim..][..index + 1];
            row.iter_mut().zip(&query).for_each(|(sum, y)| *sum += x * y);
        }
    }
    mean.iter_mut().for_each(|x| *x /= count);
    moments.iter_mut().for_each(|x| *x /= count);
    let trace: f64 = (0..head_dim).map(|i| moments[i * head_dim + i]).sum();
    for i in 0..head_dim {
        moments[i * head_dim + i] += RIDGE * trace / head_dim as f64;
    }
    let Some(solution) = solve(&mut moments, &mean) else {
        return (vec![0.0; head_dim], 0.0);
    };
    let rise: f64 = mean.iter().zip(&solution).map(|(x, u)| x * u).sum();
    let direction: Vec<f32> = solution.into_iter().map(|u| u as f32).collect();
    match rise.is_normal() && direction.iter().all(|u| u.is_finite()) {
        true => (direction, rise),
        false => (vec![0.0; head_dim], 0.0),
    }
}

/// Solves `matrix x = right` for a symmetric positive definite matrix, of which the lower triangle is given
/// and overwritten (Cholesky).
fn solve(matrix: &mut [f64], right: &[f64]) -> Option<Vec<f64>> {
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
                return None;
            };
        }
    }
    let mut x = right.to_vec();
    for i in 0..n {
        let sum: f64 = (0..i).map(|j| matrix[i * n + j] * x[j]).sum();
        x[i] = (x[i] - sum) / matrix[i * n + i];
    }
    for i in (0..n).rev() {
        let sum: f64 = (i + 1..n).map(|j| matrix[j * n + i] * x[j]).sum();
        x[i] = (x[i] - sum) / matrix[i * n + i];
    }
    Some(x)
}
