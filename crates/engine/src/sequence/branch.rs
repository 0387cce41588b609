//! Forks, rewinds, and what a sampler needs to be put back.

use std::ops::Range;
use std::sync::Arc;

use reasoning_rpc_core::{Attention, Trigger};

use super::{Sequence, position_of_generated};
use crate::cache::CacheView;
use crate::error::{Error, Result};
use crate::sampling::{Sampler, SamplingOptions};

/// The draws behind a text: which tokens took one, and of which seed.
#[derive(Debug, Clone)]
pub(crate) struct DrawLog {
    /// Positions of the tokens that took a draw, ascending.
    drawn: Vec<u32>,
    /// The seed of the draws from a position on, ascending; the first begins at 0.
    seeds: Vec<(u32, u64)>,
}

impl DrawLog {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            drawn: Vec::new(),
            seeds: vec![(0, seed)],
        }
    }

    /// Makes room for so many more draws.
    pub(crate) fn reserve(&mut self, draws: usize) {
        self.drawn.reserve(draws);
    }

    /// The token at `position` took a draw.
    pub(crate) fn record(&mut self, position: usize) {
        self.drawn.push(position as u32);
    }

    /// Draws from `position` on, the end of the text, are those of another seed, from its first.
    fn set_seed(&mut self, position: usize, seed: u64) {
        self.seeds.retain(|&(from, _)| (from as usize) < position);
        self.seeds.push((position as u32, seed));
    }

    /// Forgets what came after the first `tokens` tokens.
    fn truncate(&mut self, tokens: usize) {
        let kept = self.drawn.partition_point(|&at| (at as usize) < tokens);
        self.drawn.truncate(kept);
        self.seeds.retain(|&(from, _)| from as usize <= tokens);
    }

    /// A log with these parts, if they can be those of a text of so many tokens.
    pub(crate) fn of(drawn: Vec<u32>, seeds: Vec<(u32, u64)>, tokens: usize) -> Option<Self> {
        let seeded = seeds.first().is_some_and(|seed| seed.0 == 0)
            && seeds.windows(2).all(|pair| pair[0].0 < pair[1].0)
            && seeds.last().is_some_and(|seed| seed.0 as usize <= tokens);
        let sound = seeded
            && drawn.windows(2).all(|pair| pair[0] < pair[1])
            && drawn.last().is_none_or(|&last| (last as usize) < tokens);
        sound.then_some(Self { drawn, seeds })
    }

    /// The positions of the tokens that took a draw, and the seeds with where each begins.
    pub(crate) fn parts(&self) -> (&[u32], &[(u32, u64)]) {
        (&self.drawn, &self.seeds)
    }

    /// The seed in use and how many draws of it were taken.
    pub(crate) fn state(&self) -> (u64, u64) {
        let (from, seed) = self.seeds.last().copied().unwrap_or_default();
        let before = self.drawn.partition_point(|&at| at < from);
        (seed, (self.drawn.len() - before) as u64)
    }
}

impl Sequence {
    /// A second sequence that goes on as this one would: the same text, options, logits, sampler
    /// state, log and figures, and the same cache, compressions still to come included. Blocks are
    /// shared and copied when one of both writes them; until then they count once in the budget. A
    /// promise ([`reserve`](Self::reserve)) is not inherited.
    ///
    /// # Errors
    /// [`Error::Budget`] if the blocks that both may have to write cannot be promised. Nothing has
    /// changed then.
    pub fn fork(&self) -> Result<Self> {
        self.check_alive()?;
        let settled = match self.compresses() {
            // What was given first is in front, and stays.
            true => match self.given.first() {
                Some(given) if given.start == 0 => given.end as usize,
                _ => 0,
            },
            false => usize::MAX,
        };
        let cache = self.cache.as_deref().ok_or(Error::Poisoned)?.fork(settled)?;
        Ok(Self {
            slot: self.shared.slots.open(),
            chunk: self.chunk.clone(),
            cache: Some(Box::new(cache)),
            logits: self.logits.clone(),
            logits_ready: self.logits_ready,
            poisoned: false,
            stats: self.stats,
            log: self.log.clone(),
            policy: Arc::clone(&self.policy),
            seed: self.seed,
            sampler: self.sampler.clone(),
            draws: self.draws.clone(),
            record_kept: self.record_kept,
            record_scores: self.record_scores,
            tokens: self.tokens.clone(),
            given: self.given.clone(),
            written: self.written,
            generated_written: self.generated_written,
            compressed_at: self.compressed_at,
            thought: self.thought,
            #[cfg(test)]
            hold_evictions: self.hold_evictions,
            shared: Arc::clone(&self.shared),
        })
    }

    /// From now on draws 0, 1, ... of `seed`: a fork with a seed of its own writes another answer.
    ///
    /// # Errors
    /// [`Error::Poisoned`].
    pub fn set_seed(&mut self, seed: u64) -> Result<()> {
        self.check_alive()?;
        self.sampler = self.sampler_at(seed, 0, self.tokens.len())?;
        self.seed = seed;
        self.draws.set_seed(self.tokens.len(), seed);
        Ok(())
    }

    /// Shortens the text to its first `tokens` tokens, of which the last becomes pending: one step
    /// gives its logits again (with h2o, and with lookahead whose queries are not stored, all generated ones do, until
    /// the first entry went). The sampler is put
    /// back too, a [`set_seed`](Self::set_seed) behind the new end included, so that the text that follows is the
    /// one that followed. Ends the promise. Tokens that the policy had follow a token which stays
    /// ([`Policy::follow`](reasoning_rpc_core::Policy::follow)) stay as well.
    /// The figures go on counting: they are of work, and that was done.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], naming the lengths that are possible, if `tokens` is 0, beyond the
    /// text, or so small that a token which the last compression looked back from would be gone or
    /// pending (with those two, once an entry went, any token that was written): what that dropped cannot come back.
    /// Nothing has changed then.
    pub fn rewind(&mut self, tokens: usize) -> Result<()> {
        self.check_alive()?;
        let (earliest, len) = (self.compressed_at + 1, self.tokens.len());
        if tokens < earliest || tokens > len {
            let why = match self.compressed_at {
                0 => "",
                _ => " (the last compression dropped entries before)",
            };
            return Err(Error::InvalidArgument(match earliest > len {
                true => format!("rewind: expected at least {earliest} tokens{why}, found a text of {len}"),
                false => format!("rewind: expected {earliest} to {len} tokens{why}, found {tokens}"),
            }));
        }
        let mut written = self.written.min(tokens - 1);
        let first = match self.policy.spec().attention {
            Some(Attention::Sum) => Some(0),
            Some(Attention::Ahead { .. }) => self.looks_ahead_from(),
            Some(Attention::Newest) | None => None,
        };
        let first = first.filter(|&first| {
            self.compressed_at == 0 && self.keeps_history() && self.generated_written > first
        });
        if let Some(first) = first {
            // What later queries have added to entries is put back by running these generated ones again.
            written = written.min(position_of_generated(&self.given, first) as usize);
        }
        let mut draws = self.draws.clone();
        draws.truncate(tokens);
        let (seed, taken) = draws.state();
        let sampler = self.sampler_at(seed, taken, tokens)?;
        self.cache_mut()?.truncate(written as u32)?;
        if first.is_some() {
            self.cache_mut()?.forget_history();
        }

        (self.seed, self.sampler, self.draws) = (seed, sampler, draws);
        self.tokens.truncate(tokens);
        self.given.retain(|range| (range.start as usize) < tokens);
        if let Some(last) = self.given.last_mut() {
            last.end = last.end.min(tokens as u32);
        }
        let given = |range: &Range<u32>| {
            (range.end as usize)
                .min(written)
                .saturating_sub(range.start as usize)
        };
        self.generated_written = written - self.given.iter().map(given).sum::<usize>();
        self.written = written;
        // The window's queries stay right: the next compression looks at tokens from the last one's
        // window end or later, and no token in its window has been written over by a later one.
        self.logits_ready = false;
        self.restore_following();
        Ok(())
    }

    /// The cache of one KV head, as it lies in memory, without a copy.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such layer or KV head.
    pub fn cache_view(&self, layer: usize, kv_head: usize) -> Result<CacheView<'_>> {
        self.check_alive()?;
        let cache = self.cache.as_deref().ok_or(Error::Poisoned)?;
        let shape = cache.shape();
        for (name, found, count) in [
            ("layer", layer, shape.layers),
            ("KV head", kv_head, shape.kv_heads),
        ] {
            if found >= count {
                return Err(Error::InvalidArgument(format!(
                    "{name}: expected 0 to {}, found {found}",
                    count - 1
                )));
            }
        }
        Ok(cache.view(layer, kv_head))
    }

    /// Whether entries may ever be moved or dropped.
    fn compresses(&self) -> bool {
        match self.policy.spec().trigger {
            Trigger::Never => false,
            Trigger::Interval(schedule) => schedule.due_at(0) <= self.shared.context(),
            Trigger::EveryToken(rolling) => rolling.evictions(self.shared.context()) > 0,
            _ => true,
        }
    }

    /// A sampler that has seen the first `tokens` tokens and taken `draws` draws of `seed`.
    fn sampler_at(&self, seed: u64, draws: u64, tokens: usize) -> Result<Sampler> {
        let options = SamplingOptions {
            seed,
            ..*self.sampler.options()
        };
        let mut sampler = Sampler::resume(options, draws)?;
        sampler.observe_all(&self.tokens[..tokens]);
        Ok(sampler)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_put_back_with_the_seed_they_were_of() {
        let mut draws = DrawLog::new(7);
        // Tokens 3 and 5 are drawn; token 4 is the caller's. Then a seed, thrice at one place.
        draws.record(3);
        draws.record(5);
        for seed in [8, 9, 10] {
            draws.set_seed(6, seed);
        }
        draws.record(6);
        draws.record(8);
        assert_eq!(draws.state(), (10, 2));
        for (tokens, state) in [
            (9, (10, 2)),
            (8, (10, 1)),
            (7, (10, 1)),
            (6, (10, 0)),
            (5, (7, 1)),
            (3, (7, 0)),
        ] {
            draws.truncate(tokens);
            assert_eq!(draws.state(), state, "{tokens} tokens");
        }
        draws.set_seed(0, 11);
        assert_eq!(draws.state(), (11, 0));
    }
}
