//! The policy that drops nothing.

use crate::plan::{LayerPlan, PlanError};
use crate::policies::{PolicyKind, RpcOptions};
use crate::policy::{LayerView, Policy, Spec, Trigger};

/// Keeps everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCompression;

impl Policy for NoCompression {
    fn name(&self) -> &str {
        PolicyKind::None.name()
    }

    fn spec(&self) -> Spec {
        Spec {
            trigger: Trigger::Never,
            ..Spec::default()
        }
    }

    fn peak_generated(&self, generated: usize) -> usize {
        generated
    }

    fn plan(&self, view: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError> {
        for &count in view.candidates {
            let (all, _) = plan.room(count, 0)?;
            all.iter_mut().zip(0..).for_each(|(slot, index)| *slot = index);
            plan.push_room(count)?;
        }
        Ok(())
    }

    fn recipe(&self) -> Option<(PolicyKind, RpcOptions)> {
        Some((PolicyKind::None, RpcOptions::default()))
    }
}
