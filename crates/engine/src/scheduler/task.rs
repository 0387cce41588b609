//! Answers of the engine.

use std::sync::Arc;

use super::inbox::Inbox;
use super::rounds::{Task, emptied};
use crate::cache::SequenceCache;
use crate::engine::EngineShared;
use crate::error::{Error, Result};
use crate::generate::{Answer, Event, GenerateOptions};
use crate::sequence::Sequence;

/// An answer with its sequence.
pub(super) struct EngineTask {
    sequence: Sequence,
    answer: Answer,
    /// Tokens that the answer may take, until it is admitted.
    new_tokens: usize,
    /// Given tokens that were pending before the last step.
    given_before: usize,
}

impl EngineTask {
    /// # Errors
    /// As [`Sequence::generate`], but [`Error::Budget`] only if the answer fits no pool of this size. The
    /// sequence comes back.
    #[allow(clippy::result_large_err)] // the caller's own sequence
    pub(super) fn new(sequence: Sequence, options: &GenerateOptions) -> Result<Self, (Error, Sequence)> {
        let answer = match Answer::prepare(&sequence, options) {
            Ok(answer) => answer,
            Err(error) => return Err((error, sequence)),
        };
        let task = Self {
            new_tokens: answer.new_tokens(&sequence),
            given_before: sequence.pending_given(),
            sequence,
            answer,
        };
        let Some(cache) = task.sequence.cache.as_deref() else {
            return Err((Error::Poisoned, task.sequence));
        };
        let (needed, queries) = cache.needed_bytes(task.peak_entries());
        let available = task.sequence.shared.pool.capacity();
        let refused = Error::Budget {
            needed,
            queries,
            available,
        };
        match needed > available {
            true => Err((refused, task.sequence)),
            false => Ok(task),
        }
    }

    /// The sequence of a task that was not admitted, as it was.
    pub(super) fn into_sequence(self) -> Sequence {
        self.sequence
    }

    fn peak_entries(&self) -> usize {
        self.sequence.peak_entries(self.new_tokens)
    }
}

impl Task for EngineTask {
    type Rest = Sequence;
    type Lists = Vec<&'static mut Sequence>;

    fn admit(&mut self) -> Result<bool> {
        let entries = self.peak_entries();
        let cache = self.sequence.cache_mut()?;
        // Another sequence may take them in between.
        let admitted = cache.fits(entries) && cache.reserve(entries).is_ok();
        if admitted {
            self.sequence.make_room(self.new_tokens);
        }
        Ok(admitted)
    }

    fn refusal(&mut self) -> Error {
        match self.sequence.reserve(self.new_tokens) {
            Err(error) => error,
            Ok(()) => Error::Internal("an answer was refused that fits".into()),
        }
    }

    fn hold_everything<'a>(waiting: impl Iterator<Item = &'a Self>) -> bool {
        SequenceCache::hold_everything(waiting.filter_map(|task| task.sequence.cache.as_deref()))
    }

    fn given(&self) -> usize {
        // Generated tokens that are pending before given ones run first.
        match self.sequence.next_chunk(1).first_generated {
            Some(_) => 0,
            None => self.sequence.pending_given(),
        }
    }

    fn step(tasks: &mut [&mut Self], limits: &[usize], lists: &mut Self::Lists) -> Result<()> {
        let mut sequences = emptied(std::mem::take(lists));
        for task in tasks {
            task.given_before = task.sequence.pending_given();
            sequences.push(&mut task.sequence);
        }
        let Some(first) = sequences.first() else {
            return Ok(());
        };
        let shared: Arc<EngineShared> = Arc::clone(&first.shared);
        let result = shared.advance(&mut sequences, |row| limits[row]);
        *lists = emptied(sequences);
        result
    }

    fn is_due(&self) -> bool {
        self.sequence.is_due()
    }

    fn compress(&mut self) -> Result<()> {
        self.sequence.compress_if_due()
    }

    fn tell(&mut self, inbox: &Inbox<Sequence>) -> Result<bool> {
        if let Some(event) = self.answer.prefilled(&self.sequence, self.given_before) {
            inbox.push(&event);
            self.given_before = self.sequence.pending_given();
        }
        while !self.answer.needs_step(&self.sequence) {
            let Some(event) = self.answer.ready_event(&mut self.sequence)? else {
                return Ok(true);
            };
            inbox.push(&event);
            if matches!(event, Event::End { .. }) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn cancel(&mut self) {
        self.answer.cancel();
    }

    fn spoil(&mut self, error: &Error) {
        if matches!(error, Error::Internal(_)) {
            self.sequence.poisoned = true;
        }
    }

    fn into_rest(self) -> Sequence {
        let Self {
            mut sequence, answer, ..
        } = self;
        answer.finish(&mut sequence);
        sequence
    }
}
