//! Attention sinks and a sliding window (StreamingLLM, arXiv 2309.17453).

use crate::plan::{LayerPlan, PlanError};
use crate::policies::{PolicyKind, RpcOptions};
use crate::policy::{LayerView, Policy, Spec, Trigger};
use crate::schedule::Schedule;

/// Entries at the beginning that always stay.
const SINKS: usize = 4;

/// The policy `streaming`: the first 4 generated entries and the most recent ones.
#[derive(Debug, Clone, Copy)]
pub struct Streaming {
    schedule: Schedule,
}

impl Streaming {
    /// At the steps of a schedule.
    pub fn new(schedule: Schedule) -> Self {
        Self { schedule }
    }
}

impl Policy for Streaming {
    fn name(&self) -> &str {
        PolicyKind::Streaming.name()
    }

    fn spec(&self) -> Spec {
        Spec {
            trigger: Trigger::Interval(self.schedule),
            per_kv_head: true,
            ..Spec::default()
        }
    }

    fn peak_generated(&self, generated: usize) -> usize {
        self.schedule.peak_generated(generated)
    }

    fn plan(&self, view: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError> {
        for &count in view.candidates {
            let keep = self.schedule.kept(view.done).min(count);
            let sinks = SINKS.min(keep);
            let recent = count - (keep - sinks);
            let (kept, _) = plan.room(keep, 0)?;
            let indices = (0..sinks as u32).chain(recent as u32..count as u32);
            kept.iter_mut()
                .zip(indices)
                .for_each(|(slot, index)| *slot = index);
            plan.push_room(keep)?;
        }
        Ok(())
    }

    fn recipe(&self) -> Option<(PolicyKind, RpcOptions)> {
        Some((PolicyKind::Streaming, RpcOptions::of(&self.schedule)))
    }
}
