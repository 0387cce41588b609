//! Sampling options and where their defaults come from.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How the next token is chosen. Each step is off at the value that its field names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingOptions {
    /// Divides the logits; 0 is greedy, whatever the other fields but the penalty say.
    pub temperature: f32,
    /// Only the `top_k` most probable tokens, and those as probable as the last of them; 0 is off.
    pub top_k: u32,
    /// Only the most probable tokens that together just reach this probability, at least one; 1 is off.
    /// Of equally probable tokens the lowest ids go first.
    pub top_p: f32,
    /// Only tokens at least this times as probable as the most probable one; 0 is off.
    pub min_p: f32,
    /// Divides the positive logits, and multiplies the negative ones, of tokens that were observed; 1 is off.
    pub repetition_penalty: f32,
    /// Chooses the random numbers. The same seed gives the same choices.
    pub seed: u64,
}

impl SamplingOptions {
    /// Greedy: the most probable token, no penalty.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        seed: 0,
    };

    /// The defaults that come with a model, with the seed 0.
    ///
    /// - `do_sample: false` is greedy, with the repetition penalty that is given.
    /// - Nothing given at all: temperature 0.6 and top-p 0.95, the usual advice for models that reason.
    /// - Otherwise what is given, and for the rest what Hugging Face takes: temperature 1, top-p 1, no
    ///   min-p, no penalty. But a missing top-k is off (Hugging Face silently takes 50), and a missing
    ///   `do_sample` samples.
    pub fn from_generation(given: &GenerationDefaults) -> Result<Self> {
        let nothing = *given == GenerationDefaults::default();
        let or = |value: Option<f32>, unset: f32, otherwise: f32| {
            value.unwrap_or(if nothing { unset } else { otherwise })
        };
        let mut options = Self {
            temperature: or(given.temperature, 0.6, 1.0),
            top_k: given.top_k.unwrap_or(0),
            top_p: or(given.top_p, 0.95, 1.0),
            min_p: given.min_p.unwrap_or(0.0),
            repetition_penalty: given.repetition_penalty.unwrap_or(1.0),
            seed: 0,
        };
        if given.do_sample == Some(false) {
            options = Self {
                repetition_penalty: options.repetition_penalty,
                ..Self::GREEDY
            };
        }
        options.validate()?;
        Ok(options)
    }

    /// Refuses values that are not finite or out of range.
    pub fn validate(&self) -> Result<()> {
        let check = |field: &str, value: f32, good: bool, expected: &str| {
            if good && value.is_finite() {
                return Ok(());
            }
            Err(Error::InvalidArgument(format!(
                "{field} is {value}, expected {expected}"
            )))
        };
        let (temperature, penalty) = (self.temperature, self.repetition_penalty);
        check(
            "temperature",
            temperature,
            temperature >= 0.0,
            "a finite number, 0 (greedy) or more",
        )?;
        check(
            "top_p",
            self.top_p,
            (0.0..=1.0).contains(&self.top_p),
            "0 to 1 (off)",
        )?;
        check(
            "min_p",
            self.min_p,
            (0.0..=1.0).contains(&self.min_p),
            "0 (off) to 1",
        )?;
        check(
            "repetition_penalty",
            penalty,
            penalty > 0.0,
            "a finite number above 0; 1 is off",
        )
    }
}

/// The generation section of a model's manifest, with the names of Hugging Face's generation_config.json.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GenerationDefaults {
    /// See [`SamplingOptions::temperature`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// See [`SamplingOptions::top_k`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// See [`SamplingOptions::top_p`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// See [`SamplingOptions::min_p`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// See [`SamplingOptions::repetition_penalty`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// False: greedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub do_sample: Option<bool>,
}
