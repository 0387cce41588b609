//! Problem files: JSON, one object a line, as their authors published them.

use std::collections::HashSet;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::check::Checker;
use crate::check::ifeval::Instruction;
use crate::check::program::Program;
use crate::error::{Error, Result};

/// One problem.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// Its name: `task_id`, `question_id`, `id`, or the number of its line from 1.
    pub id: String,
    /// What the model is asked, or continues.
    pub prompt: String,
    /// How answers are checked.
    pub checker: Checker,
    /// Whether it is a text to continue rather than a question.
    pub completion: bool,
}

/// The problems of one file.
#[derive(Debug, Clone, PartialEq)]
pub struct ProblemSet {
    /// The file's name without its ending.
    pub name: String,
    /// Its problems, in order.
    pub problems: Vec<Problem>,
    /// SHA-256 of the file, in hexadecimal.
    pub digest: String,
}

/// Where a completion of HumanEval ends: the five of Chen et al. (arXiv 2107.03374, section 2.1), and the fence behind
/// which models for chats begin to explain.
pub const COMPLETION_STOPS: [&str; 6] = ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "```"];

impl ProblemSet {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::File`]; [`Error::Problem`] with the line that is none, or that has the name of one before it.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| Error::file(path, error))?;
        let text = std::str::from_utf8(&bytes).map_err(|error| Error::file(path, error))?;
        let (mut problems, mut names) = (Vec::new(), HashSet::new());
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let problem = serde_json::from_str(line)
                .map_err(|error| Error::Problem(error.to_string()))
                .and_then(|value| Problem::parse(&value, index + 1));
            let describe = |error| Error::Problem(format!("{}:{}: {error}", path.display(), index + 1));
            let problem = problem.map_err(describe)?;
            if !names.insert(problem.id.clone()) {
                let id = &problem.id;
                return Err(describe(Error::Problem(format!(
                    "expected a name of its own, found {id:?} again"
                ))));
            }
            problems.push(problem);
        }
        if problems.is_empty() {
            return Err(Error::Problem(format!(
                "{}: expected problems, found none",
                path.display()
            )));
        }
        Ok(Self {
            name: path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            problems,
            digest: hex(&Sha256::digest(&bytes)),
        })
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Problem {
    fn parse(value: &Value, line: usize) -> Result<Self> {
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let Some(prompt) = text("prompt").filter(|prompt| !prompt.is_empty()) else {
            return Err(Error::Problem("prompt: expected a text, found none".into()));
        };
        let id = ["task_id", "question_id", "id"]
            .into_iter()
            .find_map(|name| value.get(name));
        let checker = Self::checker(value, prompt)?;
        Ok(Self {
            id: id.map_or_else(|| line.to_string(), plain),
            prompt: prompt.to_owned(),
            completion: matches!(checker, Checker::Program(Program::Function { .. })),
            checker,
        })
    }

    fn checker(value: &Value, prompt: &str) -> Result<Checker> {
        let missing = |name: &str| Error::Problem(format!("{name}: expected one, found none"));
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let answer = || match value.get("answer") {
            Some(answer @ (Value::String(_) | Value::Number(_))) => Ok(plain(answer)),
            other => Err(Error::Problem(format!(
                "answer: expected a text or a number, found {}",
                other.unwrap_or(&Value::Null)
            ))),
        };
        // The fields that its author gave it say what it is, unless `checker` does.
        let kind = match text("checker") {
            Some(kind) => kind,
            None if value.get("instruction_id_list").is_some() => "ifeval".into(),
            None if value.get("entry_point").is_some() || value.get("tests").is_some() => "program".into(),
            None if value.get("answer").is_some() => "math".into(),
            None => "none".into(),
        };
        Ok(match kind.as_str() {
            "math" => Checker::Math(answer()?),
            "exact" => Checker::Exact(answer()?),
            "none" => Checker::None,
            "ifeval" => {
                let list = |name: &str| {
                    value
                        .get(name)
                        .and_then(Value::as_array)
                        .ok_or_else(|| missing(name))
                };
                let (ids, kwargs) = (list("instruction_id_list")?, list("kwargs")?);
                if ids.len() != kwargs.len() || ids.is_empty() {
                    return Err(Error::Problem(format!(
                        "kwargs: expected one for each of at least one instruction, found {} for {}",
                        kwargs.len(),
                        ids.len()
                    )));
                }
                let parse = |(id, kwargs): (&Value, &Value)| Instruction::parse(&plain(id), kwargs);
                Checker::Instructions(ids.iter().zip(kwargs).map(parse).collect::<Result<_>>()?)
            }
            "program" if value.get("entry_point").is_some() => Checker::Program(Program::Function {
                prompt: prompt.to_owned(),
                entry_point: text("entry_point").ok_or_else(|| missing("entry_point"))?,
                test: text("test").ok_or_else(|| missing("test"))?,
            }),
            "program" => match value.get("tests") {
                Some(Value::Array(tests)) if !tests.is_empty() => {
                    Checker::Program(Program::Streams(tests.iter().map(stream).collect::<Result<_>>()?))
                }
                // Published without its tests: a name and a hash.
                _ => Checker::None,
            },
            _ => {
                return Err(Error::Problem(format!(
                    "checker: expected math, exact, ifeval, program or none, found {kind:?}"
                )));
            }
        })
    }
}

/// An input and its output.
fn stream(test: &Value) -> Result<(String, String)> {
    let field = |name: &str| match test.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        other => Err(Error::Problem(format!(
            "tests: {name}: expected a text, found {}",
            other.unwrap_or(&Value::Null)
        ))),
    };
    Ok((field("input")?, field("output")?))
}

/// A text without its quotation marks, or any other value as it is written.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Problem> {
        Problem::parse(&serde_json::from_str(line).unwrap(), 3)
    }

    #[test]
    fn published_fields_say_what_a_problem_is() {
        // As AIME's, IFEval's, LiveCodeBench's and HumanEval's files have them.
        let aime = parse(r#"{"prompt": "Find $x$.", "answer": 204}"#).unwrap();
        assert_eq!(
            (aime.id.as_str(), &aime.checker),
            ("3", &Checker::Math("204".into()))
        );
        let ifeval = parse(
            r#"{"prompt": "Write.", "instruction_id_list": ["punctuation:no_comma", "detectable_format:title"], "kwargs": [{}, {}]}"#,
        );
        assert!(matches!(ifeval.unwrap().checker, Checker::Instructions(list) if list.len() == 2));
        let hashed =
            r#"{"question_id": "abc365_b", "prompt": "Q", "tests": {"fname": "559.json", "md5": "ec"}}"#;
        let hashed = parse(hashed).unwrap();
        assert_eq!(
            (hashed.id.as_str(), &hashed.checker),
            ("abc365_b", &Checker::None)
        );
        let human = r#"{"task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": "    return 1\n", "test": "def check(f): pass"}"#;
        let human = parse(human).unwrap();
        assert!(human.completion && human.checker.needs_sandbox() && human.id == "HumanEval/0");
        let streams = parse(r#"{"id": 7, "prompt": "Q", "tests": [{"input": "1", "output": "2"}]}"#).unwrap();
        assert_eq!(
            streams.checker,
            Checker::Program(Program::Streams(vec![("1".into(), "2".into())]))
        );
        assert!(!streams.completion && streams.id == "7");
        let exact = parse(r#"{"prompt": "Q", "answer": "yes", "checker": "exact"}"#).unwrap();
        assert_eq!(exact.checker, Checker::Exact("yes".into()));
        assert_eq!(parse(r#"{"prompt": "Q"}"#).unwrap().checker, Checker::None);
    }

    #[test]
    fn what_is_no_problem_says_why() {
        for (line, expected) in [
            (r#"{"answer": 1}"#, "prompt: expected a text"),
            (r#"{"prompt": ""}"#, "prompt: expected a text"),
            (
                r#"{"prompt": "Q", "answer": [1]}"#,
                "answer: expected a text or a number, found [1]",
            ),
            (
                r#"{"prompt": "Q", "checker": "math"}"#,
                "answer: expected a text or a number, found null",
            ),
            (r#"{"prompt": "Q", "checker": "magic"}"#, "found \"magic\""),
            (
                r#"{"prompt": "Q", "instruction_id_list": ["punctuation:no_comma"], "kwargs": []}"#,
                "found 0 for 1",
            ),
            (
                r#"{"prompt": "Q", "instruction_id_list": ["a:b"], "kwargs": [{}]}"#,
                "25 kinds",
            ),
            (r#"{"prompt": "Q", "entry_point": "f"}"#, "test: expected one"),
            (
                r#"{"prompt": "Q", "tests": [{"input": "1"}]}"#,
                "output: expected a text, found null",
            ),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
