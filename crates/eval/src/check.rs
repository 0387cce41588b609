//! Whether an answer is right.

pub mod ifeval;
mod language;
pub mod math;
pub mod program;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::sandbox::Sandbox;
use ifeval::Instruction;
use program::Program;

/// Goes up when a verdict may change: answers that an earlier one has checked are checked again.
pub const VERSION: u32 = 2;

/// How answers to a problem are checked.
#[derive(Debug, Clone, PartialEq)]
pub enum Checker {
    /// The final answer, as a number or in mathematical writing, is this one: [`math`].
    Math(String),
    /// The whole answer is this text, spaces around it aside.
    Exact(String),
    /// It follows instructions: [`ifeval`].
    Instructions(Vec<Instruction>),
    /// It is a program that passes tests: [`program`].
    Program(Program),
    /// There is nothing to check it with: it is written, and not scored.
    None,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    /// Whether the answer is right; for instructions, whether it follows all of them, strictly. None if there is
    /// nothing to check it with.
    pub passed: Option<bool>,
    /// For instructions: which of them it follows strictly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub strict: Vec<bool>,
    /// For instructions: which of them it follows loosely.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loose: Vec<bool>,
    /// What it found in the answer, or what went wrong.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

impl Checker {
    /// Whether it runs programs.
    pub fn needs_sandbox(&self) -> bool {
        matches!(self, Self::Program(_))
    }

    /// Checks an answer.
    ///
    /// # Errors
    /// A program could not be started; a program that fails is only wrong.
    pub fn check(&self, answer: &str, sandbox: Option<&Sandbox>) -> Result<Score> {
        let passed = |passed: bool, note: &str| Score {
            passed: Some(passed),
            note: note.chars().take(200).collect(),
            ..Score::default()
        };
        Ok(match self {
            Self::Math(expected) => passed(
                math::check(answer, expected),
                math::final_answer(answer).unwrap_or_default(),
            ),
            Self::Exact(expected) => passed(answer.trim() == expected.trim(), ""),
            Self::Instructions(instructions) => {
                let strict: Vec<bool> = instructions.iter().map(|each| each.strict(answer)).collect();
                Score {
                    passed: Some(strict.iter().all(|&follows| follows)),
                    loose: instructions.iter().map(|each| each.loose(answer)).collect(),
                    strict,
                    note: String::new(),
                }
            }
            Self::Program(program) => {
                let (right, note) = program.check(answer, sandbox)?;
                passed(right, &note)
            }
            Self::None => Score::default(),
        })
    }
}
