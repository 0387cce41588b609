//! Writing: prefill, then sample, stream and step until something stops it. Pulled, one event at a
//! time; between two events nothing runs.

use crate::error::{Error, Result};
use crate::sequence::Sequence;
use crate::text::{StopStrings, TextStream};

/// Options of one answer.
#[derive(Debug, Clone, Default)]
pub struct GenerateOptions {
    /// The most tokens, those that the policy has follow others included; if absent, to the end of the context.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Stop tokens do not end the answer: they are run like any other and shown in the text.
    pub ignore_eos: bool,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// A stop token.
    Eos,
    /// A stop string.
    Stop,
    /// The most tokens were generated.
    Length,
    /// The context is full.
    Context,
    /// The caller cancelled.
    Cancelled,
}

impl StopReason {
    /// The name that outputs use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Context => "context",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A chunk of the given text was run.
    Prefill {
        /// Given tokens run.
        done: usize,
        /// Given tokens to run.
        total: usize,
    },
    /// A token was generated.
    Token {
        /// Its id.
        id: u32,
        /// The text that became complete with it: whole characters, and nothing that may still
        /// become a stop string. May be empty.
        text: &'a str,
        /// It is one of the model's stop tokens (and was passed over, or ends the answer).
        end_of_text: bool,
    },
    /// The answer is complete.
    End {
        /// Why.
        reason: StopReason,
        /// Text that was held back until now.
        text: &'a str,
    },
}

/// An answer in the making, with its sequence.
pub struct Generation<'a> {
    sequence: &'a mut Sequence,
    answer: Answer,
}

/// An answer in the making, apart from its sequence: for callers that keep both. Every call names
/// the sequence that it was begun with, to which nothing else is done meanwhile.
pub struct Answer {
    limit: usize,
    generated: usize,
    ignore_eos: bool,
    /// Given tokens to run before the first one is drawn.
    prefill: usize,
    /// Absent if the model has no tokenizer: then there is no text.
    stream: Option<TextStream>,
    stops: StopStrings,
    piece: String,
    reason: Option<StopReason>,
    ended: bool,
}

impl Sequence {
    /// Begins an answer: promises itself the cache of the whole of it, exactly.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no text to continue or a stop string is empty,
    /// [`Error::Text`] for stop strings without a tokenizer, [`Error::Budget`] if the answer's peak
    /// does not fit the budget.
    pub fn generate(&mut self, options: &GenerateOptions) -> Result<Generation<'_>> {
        let answer = Answer::begin(self, options)?;
        Ok(Generation {
            sequence: self,
            answer,
        })
    }
}

impl Generation<'_> {
    /// The next event; `None` after [`Event::End`].
    ///
    /// # Errors
    /// What [`Engine::step`](crate::Engine::step) or the sampler reports; the answer cannot go on.
    pub fn next_event(&mut self) -> Result<Option<Event<'_>>> {
        self.answer.next_event(self.sequence)
    }

    /// Ends the answer before its next token. The sequence stays usable.
    pub fn cancel(&mut self) {
        self.answer.cancel();
    }

    /// The sequence.
    pub fn sequence(&self) -> &Sequence {
        self.sequence
    }
}

impl Answer {
    /// Begins an answer, as [`Sequence::generate`] does. [`finish`](Self::finish) ends it.
    ///
    /// # Errors
    /// As [`Sequence::generate`].
    pub fn begin(sequence: &mut Sequence, options: &GenerateOptions) -> Result<Self> {
        let answer = Self::prepare(sequence, options)?;
        sequence.reserve(answer.new_tokens(sequence))?;
        Ok(answer)
    }

    /// As [`begin`](Self::begin), but the promise is still to be made: of [`new_tokens`](Self::new_tokens).
    pub(crate) fn prepare(sequence: &Sequence, options: &GenerateOptions) -> Result<Self> {
        sequence.check_alive()?;
        if sequence.tokens().is_empty() {
            return Err(Error::InvalidArgument(
                "prompt: expected at least one token, found none".into(),
            ));
        }
        let tokenizer = sequence.shared.model.tokenizer();
        if !options.stop.is_empty() {
            tokenizer.as_ref().map_err(Clone::clone)?;
        }
        let given = sequence.given.last().map_or(0, |last| last.end as usize);
        let new_stream = match sequence.tokens().len() > given {
            // It goes on with an answer that ended before.
            true => TextStream::continuing,
            false => TextStream::with_special,
        };
        let stream = tokenizer.ok().map(|_| new_stream(options.ignore_eos));
        let stops = StopStrings::new(&options.stop)?;
        Ok(Self {
            prefill: sequence.pending_given(),
            // Without a limit of its own the answer ends with the context.
            limit: options.max_tokens.unwrap_or(usize::MAX),
            generated: 0,
            ignore_eos: options.ignore_eos,
            stream,
            stops,
            piece: String::with_capacity(128),
            reason: None,
            ended: false,
        })
    }

    /// The tokens that an answer which has not begun may take.
    pub(crate) fn new_tokens(&self, sequence: &Sequence) -> usize {
        self.limit.min(sequence.room()).max(1)
    }

    /// The next event; `None` after [`Event::End`].
    ///
    /// # Errors
    /// What [`Engine::step`](crate::Engine::step) or the sampler reports; the answer cannot go on.
    pub fn next_event(&mut self, sequence: &mut Sequence) -> Result<Option<Event<'_>>> {
        while self.needs_step(sequence) {
            let before = sequence.pending_given();
            let shared = std::sync::Arc::clone(&sequence.shared);
            shared.step(&mut [&mut *sequence])?;
            if let Some(event) = self.prefilled(sequence, before) {
                return Ok(Some(event));
            }
        }
        self.ready_event(sequence)
    }

    /// Whether a step has to run before the next event.
    pub(crate) fn needs_step(&mut self, sequence: &Sequence) -> bool {
        if self.reason.is_none() {
            if self.generated >= self.limit {
                self.reason = Some(StopReason::Length);
            } else if sequence.room() == 0 {
                // Before the step: the last token of a context is never run.
                self.reason = Some(StopReason::Context);
            }
        }
        self.reason.is_none() && sequence.logits().is_none()
    }

    /// The event of a step before which `before` given tokens were pending.
    pub(crate) fn prefilled(&self, sequence: &Sequence, before: usize) -> Option<Event<'static>> {
        let left = sequence.pending_given();
        (left < before).then(|| Event::Prefill {
            done: self.prefill - left,
            total: self.prefill,
        })
    }

    /// The next event, if it needs no step.
    pub(crate) fn ready_event(&mut self, sequence: &mut Sequence) -> Result<Option<Event<'_>>> {
        match self.reason {
            _ if self.ended => Ok(None),
            Some(reason) => self.end(reason).map(Some),
            None => self.next_token(sequence).map(Some),
        }
    }

    /// Ends the answer before its next token. The sequence stays usable.
    pub fn cancel(&mut self) {
        self.reason.get_or_insert(StopReason::Cancelled);
    }

    /// Gives back the rest of the promise. The sequence stays usable, whether the answer has ended or not.
    pub fn finish(self, sequence: &mut Sequence) {
        give_back(sequence);
    }

    fn next_token(&mut self, sequence: &mut Sequence) -> Result<Event<'_>> {
        let before = sequence.tokens().len();
        let id = sequence.sample()?;
        self.generated += sequence.tokens().len() - before;
        let end_of_text = sequence.shared.model.manifest().tokens.stop.contains(&id);
        self.piece.clear();
        if end_of_text && !self.ignore_eos {
            self.reason = Some(StopReason::Eos);
        } else if let Some(stream) = &mut self.stream {
            let text = stream.push(sequence.shared.model.tokenizer()?, id)?;
            if self.stops.push(text, &mut self.piece).is_some() {
                self.reason = Some(StopReason::Stop);
            }
        }
        Ok(Event::Token {
            id,
            text: &self.piece,
            end_of_text,
        })
    }

    fn end(&mut self, reason: StopReason) -> Result<Event<'_>> {
        self.ended = true;
        self.piece.clear();
        if reason != StopReason::Stop {
            if let Some(stream) = &mut self.stream {
                // A stop string can still become complete with what was held back.
                let _ = self.stops.push(stream.finish(), &mut self.piece);
            }
            self.stops.finish(&mut self.piece);
        }
        Ok(Event::End {
            reason,
            text: &self.piece,
        })
    }
}

impl Drop for Generation<'_> {
    fn drop(&mut self) {
        give_back(self.sequence);
    }
}

/// The rest of a promise; giving back cannot fail, and a poisoned sequence is freed whole.
fn give_back(sequence: &mut Sequence) {
    if let Ok(cache) = sequence.cache_mut() {
        let _ = cache.reserve(0);
    }
}
