//! Sampling options, their defaults, and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // tests

use reasoning_rpc_engine::Error;
use reasoning_rpc_engine::sampling::{GenerationDefaults, Sampler, SamplingOptions};

fn from(json: &str) -> Result<SamplingOptions, Error> {
    let given: GenerationDefaults = serde_json::from_str(json).unwrap();
    SamplingOptions::from_generation(&given)
}

#[test]
fn defaults_come_from_the_model() {
    let reasoning = SamplingOptions {
        temperature: 0.6,
        top_p: 0.95,
        ..SamplingOptions::GREEDY
    };
    let sampled = SamplingOptions {
        temperature: 1.0,
        ..SamplingOptions::GREEDY
    };
    for (json, expected) in [
        ("{}", reasoning),
        (
            r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.95}"#,
            reasoning,
        ),
        (
            r#"{"do_sample": false, "temperature": 0.7, "top_k": 20}"#,
            SamplingOptions::GREEDY,
        ),
        (r#"{"do_sample": true}"#, sampled),
        (r#"{"top_k": 20}"#, SamplingOptions { top_k: 20, ..sampled }),
        (
            r#"{"top_p": 0.8}"#,
            SamplingOptions {
                top_p: 0.8,
                ..sampled
            },
        ),
        (r#"{"temperature": 0.0}"#, SamplingOptions::GREEDY),
        (
            r#"{"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.05}"#,
            SamplingOptions {
                temperature: 0.7,
                top_k: 20,
                top_p: 0.8,
                min_p: 0.1,
                repetition_penalty: 1.05,
                seed: 0,
            },
        ),
        (
            r#"{"do_sample": false, "repetition_penalty": 1.1, "other": 1}"#,
            SamplingOptions {
                repetition_penalty: 1.1,
                ..SamplingOptions::GREEDY
            },
        ),
    ] {
        assert_eq!(from(json).unwrap(), expected, "{json}");
    }
    assert!(matches!(
        from(r#"{"top_p": 1.5}"#),
        Err(Error::InvalidArgument(_))
    ));
}

#[test]
fn values_out_of_range_are_named() {
    let greedy = SamplingOptions::GREEDY;
    for (options, field, value) in [
        (
            SamplingOptions {
                temperature: -0.5,
                ..greedy
            },
            "temperature",
            "-0.5",
        ),
        (
            SamplingOptions {
                temperature: f32::NAN,
                ..greedy
            },
            "temperature",
            "NaN",
        ),
        (
            SamplingOptions {
                temperature: f32::INFINITY,
                ..greedy
            },
            "temperature",
            "inf",
        ),
        (SamplingOptions { top_p: 1.5, ..greedy }, "top_p", "1.5"),
        (
            SamplingOptions {
                top_p: -0.5,
                ..greedy
            },
            "top_p",
            "-0.5",
        ),
        (
            SamplingOptions {
                min_p: f32::NAN,
                ..greedy
            },
            "min_p",
            "NaN",
        ),
        (SamplingOptions { min_p: 2.0, ..greedy }, "min_p", "2"),
        (
            SamplingOptions {
                repetition_penalty: 0.0,
                ..greedy
            },
            "repetition_penalty",
            "0",
        ),
        (
            SamplingOptions {
                repetition_penalty: f32::INFINITY,
                ..greedy
            },
            "repetition_penalty",
            "inf",
        ),
    ] {
        let Err(Error::InvalidArgument(text)) = Sampler::new(options) else {
            panic!("{options:?} is taken");
        };
        assert!(text.starts_with(&format!("{field} is {value},")), "{text}");
    }
    for options in [
        greedy,
        SamplingOptions {
            temperature: 2.0,
            top_k: u32::MAX,
            top_p: 0.0,
            min_p: 1.0,
            ..greedy
        },
    ] {
        options.validate().unwrap();
    }
}
