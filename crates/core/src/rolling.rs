//! When a sequence gives up an entry at every token: once its budget is reached.

use crate::schedule::{Budget, Schedule};

/// How many generated entries of a layer stay behind every generated token; the others go one by one.
///
/// With [`Budget::Entries`] that many stay, and interval and window are not read. With [`Budget::Ratio`] as
/// many stay, the one that the next step writes included, as a [`Schedule`] with the same options holds at
/// its peak: both methods take the same bytes for the same text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rolling {
    schedule: Schedule,
    recent_half: bool,
}

impl Rolling {
    /// With `recent_half` the more recent half of what stays, rounded down, are no candidates.
    pub fn new(schedule: Schedule, recent_half: bool) -> Self {
        Self {
            schedule,
            recent_half,
        }
    }

    /// The options' schedule.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Entries that stay once `generated` tokens are written.
    pub fn held(&self, generated: usize) -> usize {
        generated.min(match self.schedule.budget() {
            Budget::Entries(entries) => entries,
            Budget::Ratio(_) => self.schedule.peak_generated(generated + 1) - 1,
        })
    }

    /// Of those, how many of the most recent are no candidates.
    pub fn window(&self, generated: usize) -> usize {
        match self.recent_half {
            true => self.held(generated) / 2,
            false => 0,
        }
    }

    /// Entries that went until `generated` tokens were written: at most one at each token.
    pub fn evictions(&self, generated: usize) -> usize {
        generated - self.held(generated)
    }

    /// The most entries that a layer holds at any moment until `generated` tokens are written.
    pub fn peak_generated(&self, generated: usize) -> usize {
        match self.schedule.budget() {
            Budget::Entries(entries) => generated.min(entries + 1),
            Budget::Ratio(_) => self.schedule.peak_generated(generated),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Token by token.
    #[test]
    fn one_entry_goes_at_a_token_and_the_peak_is_exact() {
        for (interval, window, budget) in [
            (24, 6, Budget::Ratio(4)),
            (24, 6, Budget::Ratio(1)),
            (10, 9, Budget::Ratio(5)),
            (24, 6, Budget::Entries(1)),
            (24, 6, Budget::Entries(57)),
        ] {
            let schedule = Schedule::new(interval, window, budget).unwrap();
            let rolling = Rolling::new(schedule, true);
            let (mut len, mut peak) = (0, 0);
            for generated in 1..300 {
                len += 1;
                peak = peak.max(len);
                assert_eq!(rolling.peak_generated(generated), peak);
                let held = rolling.held(generated);
                assert!(held == len || held + 1 == len, "{held} of {len}");
                // What was recent has not been dropped.
                assert!(rolling.window(generated) <= rolling.window(generated - 1) + 1);
                len = held;
                assert_eq!(rolling.evictions(generated), generated - len);
                match budget {
                    Budget::Entries(entries) => assert_eq!(len, entries.min(generated)),
                    Budget::Ratio(_) => assert_eq!(peak, schedule.peak_generated(generated)),
                }
            }
        }
    }
}
