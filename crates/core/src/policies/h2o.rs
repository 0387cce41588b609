//! Heavy hitters (H2O, arXiv 2306.14048): an entry is worth the attention that it has had.

use crate::plan::{LayerPlan, PlanError};
use crate::policies::{PolicyKind, RpcOptions, keep_all_but_worst};
use crate::policy::{Attention, LayerView, Policy, Spec, Trigger};
use crate::rolling::Rolling;
use crate::schedule::Schedule;

/// The policy `h2o`: at every token, once the budget is reached, each KV head drops the entry that has had the
/// least attention, summed over all queries since it was written and the query heads. The more recent half
/// of the budget always stays.
#[derive(Debug, Clone, Copy)]
pub struct H2o(Rolling);

impl H2o {
    /// With a schedule's budget.
    pub fn new(schedule: Schedule) -> Self {
        Self(Rolling::new(schedule, true))
    }
}

impl Policy for H2o {
    fn name(&self) -> &str {
        PolicyKind::H2o.name()
    }

    fn spec(&self) -> Spec {
        Spec {
            trigger: Trigger::EveryToken(self.0),
            attention: Some(Attention::Sum),
            per_kv_head: true,
            ..Spec::default()
        }
    }

    fn peak_generated(&self, generated: usize) -> usize {
        self.0.peak_generated(generated)
    }

    fn plan(&self, view: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError> {
        for (scores, positions) in view.head_scores()?.zip(view.head_positions()?) {
            keep_all_but_worst(plan, scores, positions)?;
        }
        Ok(())
    }

    fn recipe(&self) -> Option<(PolicyKind, RpcOptions)> {
        Some((PolicyKind::H2o, RpcOptions::of(self.0.schedule())))
    }
}
