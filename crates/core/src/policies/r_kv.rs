//! R-KV (arXiv 2505.24133): importance against the redundancy of keys.

use crate::plan::{LayerPlan, PlanError};
use crate::policies::{PolicyKind, RpcOptions, keep_best};
use crate::policy::{LayerView, Policy, ScoreRule, Spec, Trigger};
use crate::pooling::Pooling;
use crate::schedule::Schedule;
use crate::vectors::{dot, normalize};

/// Weight of the importance; the redundancy has the rest.
const IMPORTANCE: f32 = 0.1;
/// Cosines above it are of near copies.
const SIMILAR: f32 = 0.5;
/// Width of the pooling.
const KERNEL: usize = 7;

/// The policy `r-kv`: 0.1 times the attention that the window's queries give an entry (pooled with the
/// maximum) less 0.9 times its redundancy, the softmax of its key's mean cosine to the other candidates'
/// keys, both normalised to a maximum of 1. For each candidate, the most recent one that is a near copy of
/// it (cosine above 0.5) is exempt: that cosine counts as 0. Each KV head keeps its best.
#[derive(Debug, Clone, Copy)]
pub struct RKv {
    schedule: Schedule,
}

impl RKv {
    /// At the steps of a schedule.
    pub fn new(schedule: Schedule) -> Self {
        Self { schedule }
    }
}

impl Policy for RKv {
    fn name(&self) -> &str {
        PolicyKind::RKv.name()
    }

    fn spec(&self) -> Spec {
        Spec {
            trigger: Trigger::Interval(self.schedule),
            scores: Some(ScoreRule::WindowOverAll),
            per_kv_head: true,
            keys: true,
            ..Spec::default()
        }
    }

    fn peak_generated(&self, generated: usize) -> usize {
        self.schedule.peak_generated(generated)
    }

    fn plan(&self, view: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError> {
        for (head, keys) in view.head_scores()?.zip(view.head_keys()?) {
            let mut scores = vec![0.0; head.len()];
            Pooling::Max.apply(head, KERNEL, &mut scores);
            let largest = scores.iter().copied().fold(0.0, f32::max);
            for (score, redundancy) in scores.iter_mut().zip(redundancy(keys, view.head_dim)) {
                let importance = if largest > 0.0 { *score / largest } else { 0.0 };
                *score = IMPORTANCE * importance - (1.0 - IMPORTANCE) * redundancy;
            }
            keep_best(plan, &scores, self.schedule.kept(view.done))?;
        }
        Ok(())
    }

    fn recipe(&self) -> Option<(PolicyKind, RpcOptions)> {
        Some((PolicyKind::RKv, RpcOptions::of(&self.schedule)))
    }
}

/// The softmax of the keys' mean cosines, normalised to a maximum of 1.
pub(super) fn redundancy(keys: &[f32], head_dim: usize) -> Vec<f32> {
    let mut similarity = similarity(keys, head_dim);
    let most = similarity.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    similarity.iter_mut().for_each(|x| *x = (*x - most).exp());
    similarity
}

/// Of each key the mean cosine over all keys, its own and exempt ones counted as 0. Not a product of all with
/// all: the sum over all others is that with the sum of all, and exempt pairs are found from the most recent
/// entry backwards.
fn similarity(keys: &[f32], head_dim: usize) -> Vec<f32> {
    let mut unit = keys.to_vec();
    let mut sum = vec![0.0f64; head_dim];
    for key in unit.chunks_exact_mut(head_dim) {
        normalize(key);
        for (sum, x) in sum.iter_mut().zip(&*key) {
            *sum += f64::from(*x);
        }
    }
    let key = |index: usize| &unit[index * head_dim..][..head_dim];
    let count = unit.len() / head_dim.max(1);
    let mut totals: Vec<f64> = (0..count)
        .map(|index| {
            let with_all = key(index).iter().zip(&sum).map(|(x, sum)| f64::from(*x) * sum);
            with_all.sum::<f64>() - f64::from(dot(key(index), key(index)))
        })
        .collect();
    for of in 0..count {
        let recent = (0..count)
            .rev()
            .filter(|&other| other != of)
            .map(|other| (other, dot(key(of), key(other))))
            .find(|&(_, cosine)| cosine > SIMILAR);
        if let Some((other, cosine)) = recent {
            totals[other] -= f64::from(cosine);
        }
    }
    totals
        .into_iter()
        .map(|total| (total / count as f64) as f32)
        .collect()
}
