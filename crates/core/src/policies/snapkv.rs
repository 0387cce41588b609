//! SnapKV (arXiv 2404.14469), at the steps of a decode's schedule.

use crate::plan::{LayerPlan, PlanError};
use crate::policies::{PolicyKind, RpcOptions};
use crate::policy::{LayerView, Policy, ScoreRule, Spec, Trigger};
use crate::pooling::Pooling;
use crate::schedule::Schedule;
use crate::selection::top_k;

/// Width of the pooling.
const KERNEL: usize = 7;

/// The policy `snapkv`: the attention that the window's queries give each entry, over all entries that
/// they see; neighbouring scores are averaged, and each KV head keeps its best.
#[derive(Debug, Clone, Copy)]
pub struct SnapKv {
    schedule: Schedule,
}

impl SnapKv {
    /// At the steps of a schedule.
    pub fn new(schedule: Schedule) -> Self {
        Self { schedule }
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
            ..Spec::default()
        }
    }

    fn peak_generated(&self, generated: usize) -> usize {
        self.schedule.peak_generated(generated)
    }

    fn plan(&self, view: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError> {
        for head in view.head_scores()? {
            let (best, pooled) = plan.room(head.len(), head.len())?;
            Pooling::Average.apply(head, KERNEL, pooled);
            let kept = top_k(pooled, self.schedule.kept(view.done), best);
            plan.push_room(kept)?;
        }
        Ok(())
    }

    fn recipe(&self) -> Option<(PolicyKind, RpcOptions)> {
        Some((PolicyKind::SnapKv, RpcOptions::of(&self.schedule)))
    }
}
