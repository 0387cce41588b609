//! Random eviction per KV head (Random Attention, arXiv 2609.03430).

use crate::plan::{LayerPlan, PlanError};
use crate::policies::{PolicyKind, RpcOptions};
use crate::policy::{LayerView, Policy, Spec, Trigger};
use crate::schedule::Schedule;

/// The policy `random`: of each KV head so many entries, drawn without replacement, all equally likely.
/// The draws are those of the sequence's seed, the layer, the KV head and the compression's number.
#[derive(Debug, Clone, Copy)]
pub struct Random {
    schedule: Schedule,
}

impl Random {
    /// At the steps of a schedule.
    pub fn new(schedule: Schedule) -> Self {
        Self { schedule }
    }
}

impl Policy for Random {
    fn name(&self) -> &str {
        PolicyKind::Random.name()
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
        for (kv_head, &count) in view.candidates.iter().enumerate() {
            let keep = self.schedule.kept(view.done).min(count);
            let mut draws = Draws::new([view.seed, view.layer as u64, kv_head as u64, view.done as u64]);
            let (all, _) = plan.room(count, 0)?;
            all.iter_mut().zip(0..).for_each(|(slot, index)| *slot = index);
            // Fisher and Yates: the first `keep` of a shuffle.
            for place in 0..keep {
                let other = place + draws.below((count - place) as u64) as usize;
                all.swap(place, other);
            }
            all[..keep].sort_unstable();
            plan.push_room(keep)?;
        }
        Ok(())
    }

    fn recipe(&self) -> Option<(PolicyKind, RpcOptions)> {
        Some((PolicyKind::Random, RpcOptions::of(&self.schedule)))
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014), from a key of several numbers.
struct Draws(u64);

impl Draws {
    fn new(key: [u64; 4]) -> Self {
        let mut draws = Self(0);
        for part in key {
            draws.0 = draws.next() ^ part;
        }
        draws
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform below `bound`, which is at least 1 and below 2^32: the bias of the multiplication is below 2^-32.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}
