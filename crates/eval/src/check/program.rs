//! Programs that an answer holds, against tests: HumanEval's functions (Chen et al., arXiv 2107.03374), or what a
//! program prints for an input.

use std::hash::{BuildHasher, RandomState};

use crate::error::{Error, Result};
use crate::sandbox::{Ended, Sandbox};

/// Tests of a program.
#[derive(Debug, Clone, PartialEq)]
pub enum Program {
    /// A function that completes a prompt, and a test that defines `check(candidate)`.
    Function {
        /// Imports, signature and docstring.
        prompt: String,
        /// The function's name.
        entry_point: String,
        /// The test.
        test: String,
    },
    /// Inputs and the outputs that they must give, compared line by line without trailing spaces.
    Streams(Vec<(String, String)>),
}

impl Program {
    /// Whether the answer passes all tests, and what failed first.
    pub(super) fn check(&self, answer: &str, sandbox: Option<&Sandbox>) -> Result<(bool, String)> {
        let Some(sandbox) = sandbox else {
            return Err(Error::Sandbox("expected one for programs, found none".into()));
        };
        match self {
            Self::Function {
                prompt,
                entry_point,
                test,
            } => {
                // A program that ends by itself, with success, has not passed: the last line must be printed.
                let mark = format!("passed {:016x}", RandomState::new().hash_one(prompt));
                let code = function(prompt, entry_point, answer);
                let program = format!("{code}\n\n{test}\n\ncheck({entry_point})\nprint()\nprint({mark:?})\n");
                let ended = sandbox.run(&program, "")?;
                let passed = ended.code == Some(0) && ended.stdout.lines().last() == Some(mark.as_str());
                Ok((passed, if passed { String::new() } else { reason(&ended) }))
            }
            Self::Streams(tests) => {
                let code = last_code_block(answer).unwrap_or(answer);
                for (index, (input, expected)) in tests.iter().enumerate() {
                    let ended = sandbox.run(code, input)?;
                    if ended.code != Some(0) || !same_output(&ended.stdout, expected) {
                        return Ok((false, format!("test {}: {}", index + 1, reason(&ended))));
                    }
                }
                Ok((true, String::new()))
            }
        }
    }
}

fn reason(ended: &Ended) -> String {
    match (ended.timed_out, ended.code, ended.error.as_str()) {
        (true, ..) => "timed out".into(),
        (_, None, "") => "killed".into(),
        (_, Some(0), "") => "wrong output".into(),
        (_, Some(code), "") => format!("exit code {code}"),
        (.., error) => error.into(),
    }
}

/// The whole function: of an answer in chat the block of code, which may or may not repeat the prompt; of a raw
/// completion the prompt with what continues it.
fn function(prompt: &str, entry_point: &str, answer: &str) -> String {
    let definition = format!("def {entry_point}(");
    let blocks: Vec<&str> = code_blocks(answer).collect();
    let whole = blocks.iter().copied().find(|block| block.contains(&definition));
    match whole.or(blocks.first().copied()) {
        Some(code) if code.contains(&definition) => {
            // Imports and helpers of the prompt, without the function itself.
            let before = prompt.rfind(&definition).map_or("", |at| &prompt[..at]);
            format!("{before}\n{code}")
        }
        Some(code) => format!("{prompt}{code}"),
        // A function that is written out whole takes the place of the prompt's.
        None => format!("{prompt}{answer}"),
    }
}

/// The insides of markdown fences; one that is not closed runs to the end.
fn code_blocks(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let start = rest.find("```")? + 3;
        let inside = &rest[start..];
        let line = inside.find('\n')?;
        let inside = &inside[line + 1..];
        let end = inside.find("```").unwrap_or(inside.len());
        rest = inside.get(end + 3..).unwrap_or("");
        Some(&inside[..end])
    })
}

fn last_code_block(text: &str) -> Option<&str> {
    code_blocks(text).last()
}

fn same_output(found: &str, expected: &str) -> bool {
    let lines = |text: &str| -> Vec<String> {
        text.trim_end()
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect()
    };
    lines(found) == lines(expected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Limits;

    const PROMPT: &str = "from typing import List\n\n\ndef total(numbers: List[int]) -> int:\n    \"\"\" The sum.\n    \"\"\"\n";
    const TEST: &str =
        "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n";

    #[test]
    fn functions() {
        let sandbox = Sandbox::new(Limits::default()).unwrap();
        let program = Program::Function {
            prompt: PROMPT.into(),
            entry_point: "total".into(),
            test: TEST.into(),
        };
        let whole = "def total(numbers: List[int]) -> int:\n    return sum(numbers)\n";
        for (answer, right) in [
            ("    return sum(numbers)\n", true),
            ("    return sum(numbers)", true),
            (&format!("Here it is:\n```python\n{whole}```\nIt sums."), true),
            (&format!("```\n{PROMPT}    return sum(numbers)\n```"), true),
            ("```python\n    return sum(numbers)\n```", true),
            (&format!("```python\n{whole}"), true),
            ("    return 3\n", false),
            ("    return None\n", false),
            ("    this is no Python\n", false),
            ("", false),
            // Success that is none.
            ("    import sys; sys.exit(0)\n", false),
            ("    import os; os._exit(0)\n", false),
            ("    pass\nexit(0)\n", false),
        ] {
            let (found, note) = program.check(answer, Some(&sandbox)).unwrap();
            assert_eq!(found, right, "{answer}: {note}");
            assert_eq!(note.is_empty(), right, "{answer}: {note}");
        }
        assert!(program.check("", None).is_err());
    }

    #[test]
    fn streams() {
        let sandbox = Sandbox::new(Limits::default()).unwrap();
        let tests = [("1 2\n", "3\n"), ("5 6", "11")];
        let program = Program::Streams(tests.map(|(a, b)| (a.into(), b.into())).to_vec());
        let check = |answer: &str| program.check(answer, Some(&sandbox)).unwrap();
        assert!(check("First\n```python\nprint(1)\n```\nbetter\n```python\nprint(sum(map(int, input().split())), '')\n```").0);
        let (right, note) = check("print(3)");
        assert!(!right && note == "test 2: wrong output", "{note}");
        assert!(check("print(1/0)").1.contains("ZeroDivisionError"));
    }
}
