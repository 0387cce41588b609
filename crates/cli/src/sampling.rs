//! Options of sampling. What is not given is as the model's authors recommend.

use std::hash::{BuildHasher, Hasher, RandomState};

use reasoning_rpc_engine::sampling::SamplingOptions;

use crate::args::{Given, Group, option};

/// The options.
pub const GROUP: Group = Group {
    title: "Sampling (defaults: the model's, see `reasoning-rpc inspect`)",
    options: &[
        option("temperature", "T", "0 is greedy"),
        option("top-k", "N", "only the N most probable tokens; 0 is off"),
        option(
            "top-p",
            "P",
            "only the most probable tokens that together reach P; 1 is off",
        ),
        option(
            "min-p",
            "P",
            "only tokens at least P times as probable as the first; 0 is off",
        ),
        option(
            "repetition-penalty",
            "X",
            "of tokens that the text has already; 1 is off",
        ),
        option(
            "seed",
            "N",
            "the same seed draws the same tokens [random; the statistics\nsay which]",
        ),
    ],
};

/// For commands that are greedy unless told; without a seed.
pub const GREEDY_GROUP: Group = Group {
    title: "Sampling (defaults: greedy; the paper's is temperature 0.6, top-p 0.95)",
    options: GROUP.options.split_at(5).0,
};

/// The sampling that the options ask for, given what the model would have.
pub type Choice = Box<dyn FnOnce(SamplingOptions) -> SamplingOptions>;

/// Checks the options before there is a model.
pub fn parse(given: &Given) -> anyhow::Result<Choice> {
    let unit = |value: &f32| (0.0..=1.0).contains(value);
    let temperature = given.number("temperature", "a number, 0 (greedy) or more", |value: &f32| {
        value.is_finite() && *value >= 0.0
    })?;
    let top_k = given.number("top-k", "a whole number, 0 (off) or more", |_| true)?;
    let top_p = given.number("top-p", "a number from 0 to 1 (off)", unit)?;
    let min_p = given.number("min-p", "a number from 0 (off) to 1", unit)?;
    let penalty = given.number(
        "repetition-penalty",
        "a number above 0; 1 is off",
        |value: &f32| value.is_finite() && *value > 0.0,
    )?;
    let seed = given.seed()?.unwrap_or_else(random_seed);
    Ok(Box::new(move |model: SamplingOptions| SamplingOptions {
        temperature: temperature.unwrap_or(model.temperature),
        top_k: top_k.unwrap_or(model.top_k),
        top_p: top_p.unwrap_or(model.top_p),
        min_p: min_p.unwrap_or(model.min_p),
        repetition_penalty: penalty.unwrap_or(model.repetition_penalty),
        seed,
    }))
}

/// As [`parse`], greedy unless the options say otherwise, with seed 0 unless one is given.
pub fn parse_from_greedy(given: &Given) -> anyhow::Result<SamplingOptions> {
    let options = parse(given)?(SamplingOptions::GREEDY);
    Ok(match given.has("seed") {
        true => options,
        false => SamplingOptions { seed: 0, ..options },
    })
}

/// 32 random bits, few enough to type again: the standard library's hash keys come from the system.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish() >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_is_the_last_option() {
        assert_eq!(GROUP.options.last().map(|option| option.name), Some("seed"));
        assert_eq!(GREEDY_GROUP.options.len() + 1, GROUP.options.len());
    }
}
