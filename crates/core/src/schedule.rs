//! When a sequence is compressed: every P generated tokens, once the first P + R are written.

use std::fmt;

/// A compression option that cannot be used, with what was expected and what was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionError(pub String);

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OptionError {}

/// The schedule of one sequence, the same for every layer (arXiv 2505.13866, section 3).
///
/// "Generated" counts generated tokens whose K and V were written. The n-th compression (n from 1)
/// runs when that count reaches `n * interval + window`. It looks at all generated entries but
/// those of the last `window` tokens and keeps `n * interval / ratio` of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    interval: usize,
    window: usize,
    ratio: usize,
}

impl Schedule {
    /// `interval` = P and `window` = R in generated tokens, `ratio` = c.
    ///
    /// # Errors
    /// `ratio` is 0 or does not divide `interval`, or `window` is 0 or not below `interval`.
    pub fn new(interval: usize, window: usize, ratio: usize) -> Result<Self, OptionError> {
        if ratio == 0 {
            return Err(OptionError("ratio: expected at least 1, found 0".into()));
        }
        if interval == 0 || !interval.is_multiple_of(ratio) {
            return Err(OptionError(format!(
                "interval: expected a positive multiple of the ratio {ratio}, found {interval}"
            )));
        }
        if interval > u32::MAX as usize {
            return Err(OptionError(format!(
                "interval: expected at most {}, found {interval}",
                u32::MAX
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
            ratio,
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

    /// c.
    pub fn ratio(&self) -> usize {
        self.ratio
    }

    /// T = P / c: entries kept per elapsed interval.
    pub fn kept_per_interval(&self) -> usize {
        self.interval / self.ratio
    }

    /// The generated count at which the next compression runs, after `done` of them.
    pub fn due_at(&self, done: usize) -> usize {
        (done + 1)
            .saturating_mul(self.interval)
            .saturating_add(self.window)
    }

    /// Entries that the next compression chooses from, after `done` of them.
    pub fn candidates(&self, done: usize) -> usize {
        done * self.kept_per_interval() + self.interval
    }

    /// Entries that the next compression keeps of its candidates, after `done` of them.
    pub fn kept(&self, done: usize) -> usize {
        (done + 1) * self.kept_per_interval()
    }

    /// Compressions done once `generated` tokens are written: max(0, floor((g - R) / P)).
    pub fn compressions(&self, generated: usize) -> usize {
        generated.saturating_sub(self.window) / self.interval
    }

    /// The most generated entries that a layer holds at any moment up to `generated` tokens: exact,
    /// the moment before a compression included.
    pub fn peak_generated(&self, generated: usize) -> usize {
        let n = self.compressions(generated);
        let now = n * self.kept_per_interval() + generated - n * self.interval;
        if n == 0 {
            return now;
        }
        let before_last = (n - 1) * self.kept_per_interval() + self.window + self.interval;
        before_last.max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_example() {
        // N = 4097 tokens, of which the last is never written: g = 4096.
        let schedule = Schedule::new(1024, 32, 4).unwrap();
        assert_eq!(schedule.compressions(4096), 3);
        // max((n-1)T + R + P, nT + g - nP) = max(512 + 32 + 1024, 768 + 4096 - 3072)
        assert_eq!(schedule.peak_generated(4096), 1792);
    }

    #[test]
    fn options_that_cannot_work_say_why() {
        let text = |r: Result<Schedule, OptionError>| r.unwrap_err().to_string();
        assert!(text(Schedule::new(10, 2, 4)).contains("multiple of the ratio 4, found 10"));
        assert!(text(Schedule::new(32, 32, 4)).contains("below the interval 32), found 32"));
        assert!(text(Schedule::new(32, 0, 4)).contains("window"));
        assert!(text(Schedule::new(32, 8, 0)).contains("ratio"));
    }
}
