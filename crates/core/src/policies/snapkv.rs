//! SnapKV (arXiv 2404.14469), at the steps of a decode's schedule.

use crate::plan::{LayerPlan, PlanError};
use crate::policies::{Aggregation, PolicyKind, RpcOptions, adaptive_counts, keep_best};
use crate::policy::{LayerView, Policy, ScoreRule, Spec, Trigger};
use crate::pooling::Pooling;
use crate::schedule::Schedule;
use crate::selection::top_k;

/// Width of the pooling.
const KERNEL: usize = 7;

/// The policy `snapkv`: the attention that the window's queries give each entry, over all entries that
/// they see; neighbouring scores are averaged, and each KV head keeps its best. With [`Aggregation::Adaptive`] it is
/// Ada-SnapKV.
#[derive(Debug, Clone, Copy)]
pub struct SnapKv {
    schedule: Schedule,
    adaptive: bool,
}

impl SnapKv {
    /// At the steps of a schedule; adaptive or, as any other aggregation and none, with as many entries for each KV head.
    pub fn new(schedule: Schedule, aggregation: Option<Aggregation>) -> Self {
        Self {
            schedule,
            adaptive: aggregation == Some(Aggregation::Adaptive),
        }
    }
}

impl Policy for SnapKv {
    fn name(&self) -> &str {
        PolicyKind::SnapKv.name()
    }

    fn spec(&self) -> Spec {
        Spec {
            trigger: Trigger::Interval(self.schedule),
            scores: Some(ScoreRule::WindowOverAll),
            per_kv_head: true,
            adaptive: self.adaptive,
            ..Spec::default()
        }
    }

    fn peak_generated(&self, generated: usize) -> usize {
        self.schedule.peak_generated(generated)
    }

    fn plan(&self, view: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError> {
        let keep = self.schedule.kept(view.done);
        if self.adaptive {
            let pooled = view.head_scores()?.map(|head| {
                let mut pooled = vec![0.0; head.len()];
                Pooling::Average.apply(head, KERNEL, &mut pooled);
                pooled
            });
            let pooled: Vec<Vec<f32>> = pooled.collect();
            let counts = adaptive_counts(&pooled, keep).into_iter();
            return pooled
                .iter()
                .zip(counts)
                .try_for_each(|(scores, count)| keep_best(plan, scores, count));
        }
        for head in view.head_scores()? {
            let (best, pooled) = plan.room(head.len(), head.len())?;
            Pooling::Average.apply(head, KERNEL, pooled);
            let kept = top_k(pooled, keep, best);
            plan.push_room(kept)?;
        }
        Ok(())
    }

    fn recipe(&self) -> Option<(PolicyKind, RpcOptions)> {
        let options = RpcOptions {
            aggregation: Some(Aggregation::of_heads(self.adaptive)),
            ..RpcOptions::of(&self.schedule)
        };
        Some((PolicyKind::SnapKv, options))
    }
}
