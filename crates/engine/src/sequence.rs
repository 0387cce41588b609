//! One text: its tokens, its cache, its policy, its sampler. Everything is per sequence.

mod branch;
mod step;
mod thought;

pub(crate) use branch::DrawLog;
pub(crate) use step::{Chunk, position_of_generated};
use thought::Thought;
pub(crate) use thought::{Gone, Text};

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use reasoning_rpc_core::{Policy, ScoreRule};

use crate::cache::SequenceCache;
use crate::compress::CompressionRecord;
use crate::engine::EngineShared;
use crate::error::{Error, Result};
use crate::model::Flavour;
use crate::sampling::{Sampler, SamplingOptions};
use crate::text::{Message, encode_chat, encode_raw};

/// Options of a sequence.
#[derive(Clone)]
pub struct SequenceOptions {
    /// What is kept of its cache.
    pub policy: Arc<dyn Policy>,
    /// How tokens are drawn.
    pub sampling: SamplingOptions,
    /// Whether the log of compressions names the kept positions (it then grows with the text).
    pub record_kept: bool,
}

/// Figures of one sequence. Times are wall-clock times of the steps that it took part in. A fork
/// begins with its original's; a rewind takes nothing back but the bytes of the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Given tokens whose K and V were written.
    pub prefill_tokens: usize,
    /// Time of the steps that did so.
    pub prefill_time: Duration,
    /// Generated tokens whose K and V were written.
    pub decode_tokens: usize,
    /// Time of the steps that did so, compactions not included.
    pub decode_time: Duration,
    /// Compressions so far; single entries that went, where one goes at every token.
    pub compressions: usize,
    /// Time spent scoring, selecting and moving.
    pub compaction_time: Duration,
    /// Bytes of the cache now, in whole blocks, those shared with forks and those that the budget counts for stored
    /// queries included.
    pub cache_bytes: usize,
    /// The most bytes at any moment.
    pub cache_peak_bytes: usize,
    /// Bytes that the same text takes without compression, in whole blocks.
    pub cache_uncompressed_bytes: usize,
}

/// A text under generation. Used by one thread at a time; it may move between threads.
pub struct Sequence {
    pub(crate) shared: Arc<EngineShared>,
    pub(crate) slot: i64,
    /// What the step under way runs of it, or the last one ran.
    pub(crate) chunk: Chunk,
    /// Absent only while a step runs.
    pub(crate) cache: Option<Box<SequenceCache>>,
    pub(crate) logits: Vec<f32>,
    /// `logits` are those after the last token.
    pub(crate) logits_ready: bool,
    pub(crate) poisoned: bool,
    pub(crate) stats: Stats,
    pub(crate) log: Vec<CompressionRecord>,
    pub(crate) policy: Arc<dyn Policy>,
    pub(crate) sampler: Sampler,
    pub(crate) seed: u64,
    pub(crate) draws: branch::DrawLog,
    pub(crate) record_kept: bool,
    pub(crate) record_scores: bool,
    pub(crate) tokens: Vec<u32>,
    /// Positions given by the caller, ascending and apart; all others are generated.
    pub(crate) given: Vec<Range<u32>>,
    /// Tokens whose K and V were written.
    pub(crate) written: usize,
    pub(crate) generated_written: usize,
    /// Tokens written when the last compression ran; 0 before the first.
    pub(crate) compressed_at: usize,
    /// For a policy that drops thoughts.
    thought: Thought,
    /// Evictions wait, for a test to look at what goes.
    #[cfg(test)]
    pub(crate) hold_evictions: bool,
}

impl Sequence {
    pub(crate) fn new(shared: Arc<EngineShared>, options: SequenceOptions) -> Result<Self> {
        let sampler = Sampler::new(options.sampling)?;
        let spec = options.policy.spec();
        if (spec.scores == Some(ScoreRule::IntervalAhead) || spec.attention.is_some())
            && shared.model.manifest().flavour == Flavour::Portable
        {
            return Err(Error::InvalidArgument(format!(
                "policy {:?}: expected a model of the cached flavour, whose rotation and attention are known \
                 here, found the portable one",
                options.policy.name()
            )));
        }
        if spec.adaptive && shared.model.manifest().flavour == Flavour::Portable {
            return Err(Error::InvalidArgument(format!(
                "policy {:?} with budgets that KV heads share: expected a model of the cached flavour, whose KV heads may \
                 differ in length, found the portable one",
                options.policy.name()
            )));
        }
        thought::check(&*options.policy, shared.model.manifest().dimensions.vocab_size)?;
        let cache = shared.new_cache(shared.kept(&*options.policy));
        Ok(Self {
            slot: shared.slots.open(),
            chunk: Chunk::default(),
            cache: Some(Box::new(cache)),
            logits: Vec::new(),
            logits_ready: false,
            poisoned: false,
            stats: Stats::default(),
            log: Vec::new(),
            policy: options.policy,
            seed: options.sampling.seed,
            draws: branch::DrawLog::new(options.sampling.seed),
            sampler,
            record_kept: options.record_kept,
            record_scores: false,
            tokens: Vec::new(),
            given: Vec::new(),
            written: 0,
            generated_written: 0,
            compressed_at: 0,
            thought: Thought::default(),
            #[cfg(test)]
            hold_evictions: false,
            shared,
        })
    }

    /// All tokens of the text, given and generated, the ones not run yet included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens that the next steps have to run.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.written
    }

    /// Those of them that were given.
    pub(crate) fn pending_given(&self) -> usize {
        let left =
            |range: &Range<u32>| (range.end as usize).saturating_sub(self.written.max(range.start as usize));
        self.given.iter().map(left).sum()
    }

    /// The seed that its tokens are drawn with.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Tokens that the context still has room for.
    pub fn room(&self) -> usize {
        self.shared.context() - self.tokens.len()
    }

    /// What its compressions did, in order of time, then layer. A policy that drops an entry at every token leaves
    /// no record of each.
    pub fn compressions(&self) -> &[CompressionRecord] {
        &self.log
    }

    /// Whether the log of the compressions to come says what could have been dropped, and with what scores
    /// ([`CompressionRecord::candidates`]). At first it does not. Each compression then takes 8 bytes of heap
    /// for each candidate of each layer and KV head (4 where the policy looks at no scores). A fork goes on as
    /// its original; a saved sequence takes neither the candidates of its log along nor this wish.
    pub fn record_scores(&mut self, record: bool) {
        self.record_scores = record;
    }

    /// The logits after the last token, `[vocab]`, once the steps have run all tokens.
    pub fn logits(&self) -> Option<&[f32]> {
        self.logits_ready.then_some(&self.logits[..])
    }

    /// Figures so far.
    pub fn stats(&self) -> Stats {
        let mut stats = self.stats;
        if let Some(cache) = &self.cache {
            stats.cache_bytes = cache.bytes();
            stats.cache_peak_bytes = cache.peak_bytes();
            stats.cache_uncompressed_bytes = cache.shape().bytes(self.written);
        }
        stats
    }

    /// Appends text of the caller's: it is protected from compression.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if an id is not in the vocabulary, [`Error::Context`] if the text
    /// would outgrow the context. Nothing is appended then.
    pub fn append_tokens(&mut self, ids: &[u32]) -> Result<()> {
        self.check_alive()?;
        self.check_ids(ids)?;
        let start = self.tokens.len() as u32;
        let end = start + ids.len() as u32;
        match self.given.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ if ids.is_empty() => {}
            _ => self.given.push(start..end),
        }
        self.push(ids);
        Ok(())
    }

    /// Appends raw text of the caller's. Control tokens in it are parsed; a text that starts the
    /// sequence gets the beginning-of-text token if the model's tokenizer asks for one.
    ///
    /// # Errors
    /// As [`append_tokens`](Self::append_tokens), or [`Error::Text`] without a tokenizer.
    pub fn append_text(&mut self, text: &str) -> Result<()> {
        let model = &self.shared.model;
        let tokens = &model.manifest().tokens;
        let bos = tokens.bos.filter(|_| tokens.add_bos && self.tokens.is_empty());
        let ids = encode_raw(model.tokenizer()?, text, bos)?;
        self.append_tokens(&ids)
    }

    /// Appends messages through the model's chat template, with the opening of the answer. Control
    /// tokens are parsed in the template's text, never in a message's content.
    ///
    /// # Errors
    /// As [`append_tokens`](Self::append_tokens); [`Error::Text`] or [`Error::Template`] if the
    /// model has no tokenizer or template, or the template fails.
    pub fn append_chat(&mut self, messages: &[Message]) -> Result<()> {
        let model = &self.shared.model;
        let ids = encode_chat(model.tokenizer()?, model.template()?, messages, true)?;
        self.append_tokens(&ids)
    }

    /// Appends a token as generated: one of the caller's choice in place of a sampled one. Behind it, as behind a
    /// sampled one, come the tokens that the policy has follow it ([`Policy::follow`]), if the context has room for
    /// them.
    ///
    /// # Errors
    /// As [`append_tokens`](Self::append_tokens), or [`Error::InvalidArgument`] if there is no text
    /// to continue.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        self.check_alive()?;
        if self.tokens.is_empty() {
            return Err(Error::InvalidArgument(
                "accept: expected a prompt to continue, found an empty sequence".into(),
            ));
        }
        self.check_ids(&[token])?;
        self.push(&[token]);
        self.push_following(token);
        Ok(())
    }

    /// Draws the next token from the logits and appends it, and what the policy has follow it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are no logits after the last token yet,
    /// [`Error::Context`] if the context is full.
    pub fn sample(&mut self) -> Result<u32> {
        self.check_alive()?;
        if !self.logits_ready {
            return Err(Error::InvalidArgument(format!(
                "sample: expected logits after the last token, found {} tokens that no step has run",
                self.pending()
            )));
        }
        if self.room() == 0 {
            return Err(Error::Context {
                needed: self.tokens.len() + 1,
                context: self.shared.context(),
            });
        }
        // A graph may have more logits than the tokenizer has tokens: the rest is padding.
        let (tokens, gaps) = match self.shared.model.tokenizer() {
            Ok(tokenizer) => (tokenizer.vocab_size(), tokenizer.gaps()),
            Err(_) => (u32::MAX, &[][..]),
        };
        let known = self.logits.len().min(tokens as usize);
        for &gap in gaps {
            // So may be what lies between.
            if let Some(logit) = self.logits.get_mut(gap as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let before = self.sampler.draws();
        let token = self.sampler.sample(&self.logits[..known])?;
        if self.sampler.draws() > before {
            self.draws.record(self.tokens.len());
        }
        self.push(&[token]);
        self.push_following(token);
        Ok(token)
    }

    /// Promises this sequence the cache that it needs, the queries that its policy stores included, until `new_tokens` more tokens are generated
    /// (the last of which is never written): exact, compressions counted. A later promise replaces
    /// this one; 0 with nothing pending gives back what is not in use.
    ///
    /// # Errors
    /// [`Error::Budget`] if the budget cannot hold it beside what other sequences were promised.
    pub fn reserve(&mut self, new_tokens: usize) -> Result<()> {
        self.check_alive()?;
        let entries = self.peak_entries(new_tokens);
        let reserved = self.cache_mut()?.reserve(entries);
        reserved.inspect_err(|error| log::warn!("an answer was refused: {error}"))?;
        self.make_room(new_tokens);
        Ok(())
    }

    /// Takes the memory that grows by a token now, so that the steps of an answer allocate nothing.
    pub(crate) fn make_room(&mut self, new_tokens: usize) {
        let new_tokens = new_tokens.min(self.room());
        self.tokens.reserve(new_tokens);
        if self.sampler.options().temperature > 0.0 {
            self.draws.reserve(new_tokens);
        }
    }

    /// The entries of a KV head that are promised until `new_tokens` more tokens are generated.
    pub(crate) fn peak_entries(&self, new_tokens: usize) -> usize {
        if new_tokens == 0 && self.pending() == 0 {
            return 0;
        }
        let given: usize = self.given.iter().map(Range::len).sum();
        let generated = self.tokens.len() - given + new_tokens.saturating_sub(1);
        self.policy
            .promised_entries(given, generated, self.shared.shape.block_entries)
    }

    fn push(&mut self, ids: &[u32]) {
        if !ids.is_empty() {
            self.logits_ready = false;
        }
        for &id in ids {
            self.sampler.observe(id);
        }
        self.tokens.extend_from_slice(ids);
    }

    fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.shared.model.manifest().dimensions.vocab_size;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::InvalidArgument(format!(
                "token id: expected 0 to {}, found {id}",
                vocab - 1
            )));
        }
        if ids.len() > self.room() {
            return Err(Error::Context {
                needed: self.tokens.len() + ids.len(),
                context: self.shared.context(),
            });
        }
        Ok(())
    }

    pub(crate) fn check_alive(&self) -> Result<()> {
        match self.poisoned {
            true => Err(Error::Poisoned),
            false => Ok(()),
        }
    }

    pub(crate) fn cache_mut(&mut self) -> Result<&mut SequenceCache> {
        self.cache.as_deref_mut().ok_or(Error::Poisoned)
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.shared.slots.close(self.slot);
    }
}
