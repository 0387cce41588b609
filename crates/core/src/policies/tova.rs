//! Token omission via attention (TOVA, arXiv 2401.06104): an entry is worth what the newest query gives it.

use crate::plan::{LayerPlan, PlanError};
use crate::policies::{PolicyKind, RpcOptions, keep_all_but_worst, mean};
use crate::policy::{Attention, LayerView, Policy, Spec, Trigger};
use crate::rolling::Rolling;
use crate::schedule::Schedule;

/// The policy `tova`: at every token, once the budget is reached, a layer drops the entry that the newest
/// query gives the least attention, averaged over all of the layer's heads.
#[derive(Debug, Clone, Copy)]
pub struct Tova(Rolling);

impl Tova {
    /// With a schedule's budget.
    pub fn new(schedule: Schedule) -> Self {
        Self(Rolling::new(schedule, false))
    }
}

impl Policy for Tova {
    fn name(&self) -> &str {
        PolicyKind::Tova.name()
    }

    fn spec(&self) -> Spec {
        Spec {
            trigger: Trigger::EveryToken(self.0),
            attention: Some(Attention::Newest),
            ..Spec::default()
        }
    }

    fn peak_generated(&self, generated: usize) -> usize {
        self.0.peak_generated(generated)
    }

    fn plan(&self, view: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError> {
        let scores = mean(view.head_scores()?)?;
        let positions = view.head_positions()?.next().unwrap_or_default();
        keep_all_but_worst(plan, &scores, positions)
    }

    fn recipe(&self) -> Option<(PolicyKind, RpcOptions)> {
        Some((PolicyKind::Tova, RpcOptions::of(self.0.schedule())))
    }
}
