//! Choosing the next token from logits.
//!
//! The steps and their order are Hugging Face's: repetition penalty, temperature, top-k, top-p, min-p,
//! draw. What is added here is that a choice replays on every machine: probabilities are computed by
//! plain arithmetic in a fixed order, in float64 for the tokens kept, and the draws are a fixed stream of
//! bits. Only the sum over the whole vocabulary, which top-p and plain temperature need, is computed in
//! float32, to about six digits.

mod exp;
mod options;
mod select;

pub use options::{GenerationDefaults, SamplingOptions};
pub use select::Candidate;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::error::Result;
use select::{Logits, Scratch};

/// Chooses tokens for one sequence. A clone goes on as the original would.
///
/// Draw number `n` (from 0) is made from words `2n` and `2n + 1` of the ChaCha8 stream whose key is the
/// seed, as 8 bytes little-endian, then 24 zero bytes, with stream number 0: the upper 53 bits of that
/// little-endian 64-bit number, over 2^53. Each sampled token takes one draw, each greedy one none. With
/// the tokens observed, the seed and the number of draws are all the state there is: [`Sampler::resume`].
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    rng: ChaCha8Rng,
    draws: u64,
    /// The ids observed, sorted, each once. Kept only if there is a repetition penalty.
    seen: Vec<u32>,
    scratch: Scratch,
}

impl Sampler {
    /// A sampler that has drawn and observed nothing yet.
    pub fn new(options: SamplingOptions) -> Result<Self> {
        Self::resume(options, 0)
    }

    /// A sampler that has made `draws` draws before. Tokens are to be observed anew.
    pub fn resume(options: SamplingOptions, draws: u64) -> Result<Self> {
        options.validate()?;
        let mut key = [0; 32];
        key[..8].copy_from_slice(&options.seed.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_word_pos(2 * u128::from(draws));
        Ok(Self {
            options,
            rng,
            draws,
            seen: Vec::new(),
            scratch: Scratch::default(),
        })
    }

    /// The options that the sampler was made with.
    pub fn options(&self) -> &SamplingOptions {
        &self.options
    }

    /// How many draws have been made.
    pub fn draws(&self) -> u64 {
        self.draws
    }

    /// Takes note of a token of the text, prompt or answer, for the repetition penalty.
    /// [`Sampler::sample`] does not: its caller says which token the text goes on with.
    pub fn observe(&mut self, id: u32) {
        if self.options.repetition_penalty != 1.0
            && let Err(place) = self.seen.binary_search(&id)
        {
            self.seen.insert(place, id);
        }
    }

    /// Takes note of many tokens at once, such as a prompt's.
    pub fn observe_all(&mut self, ids: &[u32]) {
        if self.options.repetition_penalty != 1.0 {
            self.seen.extend_from_slice(ids);
            self.seen.sort_unstable();
            self.seen.dedup();
        }
    }

    /// The next token. Greedy if the temperature is 0: the highest logit, and of equal ones the lowest id.
    ///
    /// A logit of minus infinity rules its token out. An error are: no logits, NaN or plus infinity among
    /// them (after the penalty, too), and none above minus infinity.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        let logits = Logits::new(logits, self.options.repetition_penalty, &self.seen);
        let best = logits.best()?;
        if self.options.temperature == 0.0 {
            return Ok(best.id);
        }
        let total = self.scratch.keep(&logits, &self.options, best);
        let unit = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        self.draws += 1;
        Ok(self.scratch.choose(&logits, unit * total))
    }

    /// What [`Sampler::sample`] would choose among: every token kept, with its probability, the most
    /// probable first and of equally probable ones the lowest id. Draws nothing. Greedy sampling keeps
    /// one token.
    pub fn candidates(&mut self, logits: &[f32]) -> Result<Vec<Candidate>> {
        let logits = Logits::new(logits, self.options.repetition_penalty, &self.seen);
        let best = logits.best()?;
        if self.options.temperature == 0.0 {
            return Ok(vec![best]);
        }
        self.scratch.keep(&logits, &self.options, best);
        Ok(self.scratch.all(&logits))
    }
}
