//! When a sequence is compressed: every P generated tokens, once the first P + R are written.

use std::fmt;

use crate::budget::CacheShape;

/// A compression option that cannot be used, with what was expected and what was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionError(pub String);

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OptionError {}

/// How much a compression keeps of its candidates, in each KV head of each layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// One entry in so many of all intervals so far: what is kept grows with the text, by
    /// `interval / ratio` per interval. Divides the interval.
    Ratio(usize),
    /// So many entries, the window not counted: a layer never holds more generated entries than
    /// `entries + window + interval`. Nothing is compressed before there is more than that to keep.
    Entries(usize),
}

impl Budget {
    /// The [`Entries`](Self::Entries) of a sequence whose generated entries are to take at most
    /// `bytes` at any moment, in whole blocks, the window and an interval of new ones included; if KV heads share their
    /// budgets (`adaptive`), a block less one entry of each head too, so that they fit however they do. The given text's
    /// come on top.
    ///
    /// # Errors
    /// `bytes` has no room for one entry beside `window + interval`.
    pub fn within(
        bytes: usize,
        shape: &CacheShape,
        interval: usize,
        window: usize,
        adaptive: bool,
    ) -> Result<Self, OptionError> {
        let (spare, shared) = match adaptive {
            true => (shape.block_entries.saturating_sub(1), " and adaptive budgets"),
            false => (0, ""),
        };
        let new = interval.saturating_add(window).saturating_add(spare);
        match shape.entries_within(bytes).checked_sub(new) {
            None | Some(0) => Err(OptionError(format!(
                "bytes: expected at least {} (a window of {window} entries, {interval} new ones and one that is \
                 kept, in whole blocks{shared}), found {bytes}",
                shape.bytes(new.saturating_add(1))
            ))),
            Some(entries) => Ok(Self::Entries(entries)),
        }
    }
}

/// The schedule of one sequence, the same for every layer (arXiv 2505.13866, section 3).
///
/// "Generated" counts generated tokens whose K and V were written. A compression runs when that count
/// reaches `n * interval + window`, n = 1, 2, ... It looks at all generated entries but those of the
/// last `window` tokens and keeps what the [`Budget`] says: `n * interval / ratio` of them, or a fixed
/// number; of a fixed number, the first n are left out that would not drop anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    interval: usize,
    window: usize,
    budget: Budget,
}

impl Schedule {
    /// `interval` = P and `window` = R in generated tokens.
    ///
    /// # Errors
    /// A ratio is 0 or does not divide `interval`, entries are none or too many, or `window` is 0 or
    /// not below `interval`.
    pub fn new(interval: usize, window: usize, budget: Budget) -> Result<Self, OptionError> {
        let most = u32::MAX as usize;
        match budget {
            Budget::Ratio(0) => return Err(OptionError("ratio: expected at least 1, found 0".into())),
            Budget::Ratio(ratio) if interval == 0 || !interval.is_multiple_of(ratio) => {
                return Err(OptionError(format!(
                    "interval: expected a positive multiple of the ratio {ratio}, found {interval}"
                )));
            }
            Budget::Entries(entries) if entries == 0 || entries > most => {
                return Err(OptionError(format!(
                    "entries: expected 1 to {most}, found {entries}"
                )));
            }
            _ => {}
        }
        if interval < 2 || interval > most {
            return Err(OptionError(format!(
                "interval: expected 2 to {most}, found {interval}"
            )));
        }
        if window == 0 || window >= interval {
            return Err(OptionError(format!(
                "window: expected 1 to {} (below the interval {interval}), found {window}",
                interval - 1
            )));
        }
        Ok(Self {
            interval,
            window,
            budget,
        })
    }

    /// P, in generated tokens.
    pub fn interval(&self) -> usize {
        self.interval
    }

    /// R, in generated tokens.
    pub fn window(&self) -> usize {
        self.window
    }

    /// What a compression keeps.
    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// Intervals that have elapsed when the first compression runs.
    fn first(&self) -> usize {
        match self.budget {
            Budget::Ratio(_) => 1,
            Budget::Entries(entries) => entries / self.interval + 1,
        }
    }

    /// The generated count at which the next compression runs, after `done` of them.
    pub fn due_at(&self, done: usize) -> usize {
        (self.first().saturating_add(done))
            .saturating_mul(self.interval)
            .saturating_add(self.window)
    }

    /// Entries that the next compression chooses from, after `done` of them.
    pub fn candidates(&self, done: usize) -> usize {
        match done.checked_sub(1) {
            None => self.first() * self.interval,
            Some(last) => self.kept(last) + self.interval,
        }
    }

    /// Entries that the next compression keeps of its candidates, after `done` of them.
    pub fn kept(&self, done: usize) -> usize {
        match self.budget {
            Budget::Ratio(ratio) => (done + 1) * (self.interval / ratio),
            Budget::Entries(entries) => entries,
        }
    }

    /// Compressions done once `generated` tokens are written: for a ratio,
    /// max(0, floor((g - R) / P)).
    pub fn compressions(&self, generated: usize) -> usize {
        (generated.saturating_sub(self.window) / self.interval).saturating_sub(self.first() - 1)
    }

    /// The most generated entries that a layer holds at any moment up to `generated` tokens: exact,
    /// the moment before a compression included.
    pub fn peak_generated(&self, generated: usize) -> usize {
        let Some(last) = self.compressions(generated).checked_sub(1) else {
            return generated;
        };
        let now = self.kept(last) + self.window + generated - self.due_at(last);
        // Candidates do not become fewer from one compression to the next.
        now.max(self.candidates(last) + self.window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_example() {
        // N = 4097 tokens, of which the last is never written: g = 4096.
        let schedule = Schedule::new(1024, 32, Budget::Ratio(4)).unwrap();
        assert_eq!(schedule.compressions(4096), 3);
        // max((n-1)T + R + P, nT + g - nP) = max(512 + 32 + 1024, 768 + 4096 - 3072)
        assert_eq!(schedule.peak_generated(4096), 1792);
    }

    #[test]
    fn a_fixed_number_of_entries_bounds_the_cache() {
        // 2,500 entries fit two whole intervals, which are left alone.
        let schedule = Schedule::new(1024, 32, Budget::Entries(2500)).unwrap();
        assert_eq!(schedule.due_at(0), 3 * 1024 + 32);
        assert_eq!(schedule.candidates(0), 3 * 1024);
        assert_eq!(schedule.peak_generated(3 * 1024 + 31), 3 * 1024 + 31);
        assert_eq!(schedule.candidates(1), 2500 + 1024);
        assert_eq!(schedule.peak_generated(1 << 20), 2500 + 32 + 1024);
    }

    #[test]
    fn bytes_become_the_entries_that_fit() {
        let shape = CacheShape {
            layers: 2,
            kv_heads: 3,
            head_dim: 8,
            element_bytes: 2,
            scale_bytes: 0,
            block_entries: 16,
        };
        let within = |bytes| Budget::within(bytes, &shape, 32, 8, false);
        // 3 blocks of 16 entries in each head: 48 = 40 + 8.
        assert_eq!(within(shape.bytes(48)), Ok(Budget::Entries(8)));
        assert_eq!(within(shape.bytes(49) - 1), Ok(Budget::Entries(8)));
        assert_eq!(within(shape.bytes(49)), Ok(Budget::Entries(24)));
        let refused = within(shape.bytes(48) - 1).unwrap_err().0;
        assert!(
            refused.contains(&format!("at least {}", shape.bytes(48))),
            "{refused}"
        );
        // A block less one entry is left for what a head may get of others'.
        let shared = |bytes| Budget::within(bytes, &shape, 32, 8, true);
        assert_eq!(shared(shape.bytes(64)), Ok(Budget::Entries(64 - 15 - 40)));
        assert!(shared(shape.bytes(64) - 1).unwrap_err().0.contains("adaptive"));
    }

    #[test]
    fn options_that_cannot_work_say_why() {
        let text = |r: Result<Schedule, OptionError>| r.unwrap_err().to_string();
        let new = |interval, window, ratio| text(Schedule::new(interval, window, Budget::Ratio(ratio)));
        assert!(new(10, 2, 4).contains("multiple of the ratio 4, found 10"));
        assert!(new(32, 32, 4).contains("below the interval 32), found 32"));
        assert!(new(32, 0, 4).contains("window"));
        assert!(new(32, 8, 0).contains("ratio"));
        assert!(new(1, 1, 1).contains("interval: expected 2"));
        assert!(text(Schedule::new(32, 8, Budget::Entries(0))).contains("entries: expected 1"));
    }
}
