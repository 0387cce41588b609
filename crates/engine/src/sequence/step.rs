//! What the next step runs of a text, and what comes behind a step: its tokens counted, the cache compressed.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use reasoning_rpc_core::{Attention, Rolling, Spec, Trigger};
use reasoning_rpc_cpu::ATTEND_TOKEN_TILE;

use super::Sequence;
use crate::cache::SequenceCache;
use crate::compress::Moment;
use crate::error::{Error, Result, panic_text};

/// Tokens of one step.
#[derive(Clone, Default)]
pub(crate) struct Chunk {
    /// Positions.
    pub tokens: Range<usize>,
    /// For generated ones: how many were written before them.
    pub first_generated: Option<usize>,
    /// Whether nothing is left behind them, so that logits are wanted.
    pub last: bool,
    /// What attention entries get in this step that they keep.
    pub attention: Option<Attention>,
}

impl Sequence {
    /// The tokens that the next step runs: as many of one kind, given or generated, as a chunk
    /// holds, and not beyond the next compression. Empty if nothing is pending.
    pub(crate) fn next_chunk(&self, limit: usize) -> Chunk {
        let start = self.written;
        let given_here = self.given.iter().find(|range| range.end as usize > start);
        let (generated, mut end) = match given_here {
            Some(range) if range.start as usize <= start => (false, range.end as usize),
            Some(range) => (true, range.start as usize),
            None => (true, self.tokens.len()),
        };
        end = end.min(start + limit);
        if generated && let Some(due) = self.due_at() {
            end = end.min(start + due.saturating_sub(self.generated_written));
        }
        if generated && let Some(gists) = self.thought.end {
            end = end.min(gists);
        }
        let spec = self.policy.spec();
        let mut attention = None;
        if self.keeps_history() && spec.attention.is_some() && (generated || self.generated_written > 0) {
            attention = spec.attention;
            match self.looks_ahead_from() {
                // Not yet, or not by a query that was given.
                Some(_) if !generated => attention = None,
                Some(from) if self.generated_written < from => {
                    attention = None;
                    end = end.min(start + from - self.generated_written);
                }
                _ => end = end.min(start + ATTEND_TOKEN_TILE),
            }
            if generated && let Trigger::EveryToken(rolling) = spec.trigger {
                let done = self.stats.compressions;
                let is_due = |&count: &usize| rolling.evictions(self.generated_written + count) > done;
                let due = (1..end - start).find(is_due);
                end = due.map_or(end, |count| start + count);
                // The newest query is asked about when something goes.
                attention = attention.filter(|of| *of == Attention::Sum || is_due(&(end - start)));
            }
        }
        Chunk {
            tokens: start..end,
            first_generated: generated.then_some(self.generated_written),
            last: end == self.tokens.len(),
            attention,
        }
    }

    /// The first generated token of the interval whose queries are added up as they attend.
    pub(super) fn looks_ahead_from(&self) -> Option<usize> {
        match self.policy.spec().attention {
            Some(Attention::Ahead { interval }) => Some(self.due_at()?.saturating_sub(interval)),
            _ => None,
        }
    }

    /// Adds the queries of the generated tokens from `before` on to the moments, if the policy wants those: all that
    /// are written (`all`), or whole turns of them, counted from the first.
    fn add_moments(&mut self, before: usize, all: bool) -> Result<()> {
        let (Some(from), true) = (self.looks_ahead_from(), self.policy.spec().moments) else {
            return Ok(());
        };
        let Some(Attention::Ahead { interval }) = self.policy.spec().attention else {
            return Ok(());
        };
        let turn = |generated: usize| {
            let count = generated.saturating_sub(from);
            from + count - count % Spec::MOMENT_TOKENS
        };
        let end = if all {
            self.generated_written
        } else {
            turn(self.generated_written)
        };
        let range = turn(before)..end;
        if range.is_empty() || !self.keeps_history() {
            return Ok(());
        }
        let heads = self.shared.model.manifest().dimensions.num_heads;
        let shared = Arc::clone(&self.shared);
        shared.add_moments(self.cache_mut()?, range, heads, interval)
    }

    /// Counts the chunk, whose keys and values were written.
    pub(crate) fn commit(&mut self, time: Duration) -> Result<()> {
        let chunk = self.chunk.clone();
        let positions = chunk.tokens.start as u32..chunk.tokens.end as u32;
        self.cache_mut()?.commit(positions);
        self.written = chunk.tokens.end;
        let adds_up = match self.policy.spec().attention {
            Some(Attention::Sum) => chunk.attention.is_some(),
            Some(Attention::Ahead { .. }) => true,
            Some(Attention::Newest) | None => false,
        };
        if self.stats.compressions > 0 && adds_up {
            // What its queries have added to the past cannot be taken back.
            self.compressed_at = self.written;
        }
        if chunk.first_generated.is_some() {
            let before = self.generated_written;
            self.generated_written += chunk.tokens.len();
            self.add_moments(before, false)?;
            self.stats.decode_tokens += chunk.tokens.len();
            self.stats.decode_time += time;
        } else {
            self.stats.prefill_tokens += chunk.tokens.len();
            self.stats.prefill_time += time;
        }
        Ok(())
    }

    fn due_at(&self) -> Option<usize> {
        match self.policy.spec().trigger {
            Trigger::Interval(schedule) => Some(schedule.due_at(self.stats.compressions)),
            _ => None,
        }
    }

    /// Whether a compression is to run before the next step.
    pub(crate) fn is_due(&self) -> bool {
        self.due_at() == Some(self.generated_written) || self.thought.end == Some(self.written)
    }

    /// Compresses the cache if that is due. A failure, a panic included, poisons the sequence: its layers
    /// may differ in length then.
    pub(crate) fn compress_if_due(&mut self) -> Result<()> {
        if !self.is_due() {
            return Ok(());
        }
        catch_unwind(AssertUnwindSafe(|| self.compress()))
            .unwrap_or_else(|payload| Err(Error::Internal(panic_text(&*payload))))
            .inspect_err(|error| {
                log::error!("a compression failed, and poisoned its sequence: {error}");
                self.poisoned = true;
            })
    }

    /// Whether its cache keeps a float of the policy's for each entry.
    pub(super) fn keeps_history(&self) -> bool {
        self.cache.as_deref().is_some_and(SequenceCache::has_history)
    }

    /// Drops the entry that is to go behind the step that was committed, if one is. A failure, a panic included,
    /// poisons the sequence; the step is done.
    pub(crate) fn evict_if_due(&mut self) {
        let Trigger::EveryToken(rolling) = self.policy.spec().trigger else {
            return;
        };
        if rolling.evictions(self.generated_written) <= self.stats.compressions {
            return;
        }
        #[cfg(test)]
        if self.hold_evictions {
            return;
        }
        let evicted = catch_unwind(AssertUnwindSafe(|| self.evict(&rolling)));
        let result = evicted.unwrap_or_else(|payload| Err(Error::Internal(panic_text(&*payload))));
        if let Err(error) = result {
            log::error!("an eviction failed, and poisoned its sequence: {error}");
            self.poisoned = true;
        }
    }

    fn evict(&mut self, rolling: &Rolling) -> Result<()> {
        let start = std::time::Instant::now();
        let policy = Arc::clone(&self.policy);
        let recent = self.generated_written - rolling.window(self.generated_written);
        let moment = Moment {
            policy: &*policy,
            done: self.stats.compressions,
            generated: self.generated_written,
            given: &self.given,
            window_start: position_of_generated(&self.given, recent),
            num_heads: self.shared.model.manifest().dimensions.num_heads,
            seed: self.seed,
            record_kept: false,
            record_scores: false,
        };
        let cache = self.cache.as_deref_mut().ok_or(Error::Poisoned)?;
        self.shared.evict(cache, &moment)?;
        self.stats.compressions += 1;
        self.compressed_at = self.written;
        self.stats.compaction_time += start.elapsed();
        Ok(())
    }

    fn compress(&mut self) -> Result<()> {
        let start = std::time::Instant::now();
        self.add_moments(self.generated_written, true)?;
        let policy = Arc::clone(&self.policy);
        let (stays, window_start) = match policy.spec().trigger {
            Trigger::Interval(schedule) => {
                let newest = self.generated_written - schedule.window();
                (None, position_of_generated(&self.given, newest))
            }
            Trigger::Thought { gists } => (Some(self.stays()), (self.written - gists) as u32),
            _ => return Ok(()),
        };
        let moment = Moment {
            policy: &*policy,
            done: self.stats.compressions,
            generated: self.generated_written,
            given: stays.as_deref().unwrap_or(&self.given),
            window_start,
            num_heads: self.shared.model.manifest().dimensions.num_heads,
            seed: self.seed,
            record_kept: self.record_kept,
            record_scores: self.record_scores,
        };
        let cache = self.cache.as_deref_mut().ok_or(Error::Poisoned)?;
        self.shared.compress(cache, &moment, &mut self.log)?;
        self.stats.compressions += 1;
        self.compressed_at = self.written;
        self.stats.compaction_time += start.elapsed();
        self.begin_thought();
        if let Some(record) = self.log.last() {
            log::debug!(
                "compression {} at {} generated tokens: {} -> {} entries",
                self.stats.compressions,
                record.at_token,
                record.len_before,
                record.len_after
            );
        }
        Ok(())
    }
}

/// The text position of the generated token with `index` generated ones before it.
pub(crate) fn position_of_generated(given: &[Range<u32>], index: usize) -> u32 {
    let mut position = index as u32;
    for range in given {
        if range.start > position {
            break;
        }
        position += range.end - range.start;
    }
    position
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_positions_skip_what_was_given() {
        let given = [0..3u32, 5..6, 8..10];
        let all: Vec<u32> = (0..6).map(|i| position_of_generated(&given, i)).collect();
        assert_eq!(all, [3, 4, 6, 7, 10, 11]);
        assert_eq!(position_of_generated(&[], 4), 4);
    }
}
