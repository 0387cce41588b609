//! Finished answers, in a file that only grows: one JSON object a line, so that a run that was broken off goes on.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::check::Score;
use crate::error::{Error, Result};

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// SHA-256 of all that decides the answer: model, policy, sampling, prompt and limits.
    pub key: String,
    /// The model's name.
    pub model: String,
    /// The policy's label.
    pub policy: String,
    /// The problem set's name.
    pub set: String,
    /// The problem's name.
    pub problem: String,
    /// Which of the samples.
    pub sample: usize,
    /// The seed of its draws.
    pub seed: u64,
    /// The answer.
    pub text: String,
    /// `eos`, `stop`, `length` or `context`.
    pub stop_reason: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer, the one that ended it included.
    pub tokens: usize,
    /// Of those, the ones that steps have run.
    pub decode_tokens: usize,
    /// Seconds of the steps that did so, beside other answers.
    pub decode_seconds: f64,
    /// Seconds of its compressions.
    pub compaction_seconds: f64,
    /// Compressions.
    pub compressions: usize,
    /// The most bytes that its cache had.
    pub cache_peak_bytes: usize,
    /// The most that it could have had, had it used all tokens that it might.
    pub cache_bound_bytes: usize,
    /// The instructions that it was computed with: others round otherwise, and may write another answer.
    #[serde(default)]
    pub simd: String,
    /// What checked it: the version of the checkers and, of programs, their limits.
    #[serde(default)]
    pub checked_by: String,
    /// What the check found.
    pub score: Score,
}

/// The file. May be used from any thread; two programs never write one file.
pub struct Answers {
    path: PathBuf,
    file: Mutex<File>,
    found: HashMap<String, Record>,
}

impl Answers {
    /// Opens or makes the file. A last line that was not written whole is cut off.
    ///
    /// # Errors
    /// [`Error::File`]: it cannot be read or written, another program has it open, or another line is not an answer.
    pub fn open(path: &Path) -> Result<Self> {
        let describe = |error: std::io::Error| Error::file(path, error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(describe)?;
        file.try_lock().map_err(|_| {
            Error::file(
                path,
                "expected to be alone, found another program that writes answers",
            )
        })?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(describe)?;
        let whole = bytes
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        let mut found = HashMap::new();
        for (index, line) in bytes[..whole].split(|&byte| byte == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let record: Record = serde_json::from_slice(line).map_err(|error| {
                Error::file(path, format!("line {}: expected an answer: {error}", index + 1))
            })?;
            found.insert(record.key.clone(), record);
        }
        file.set_len(whole as u64).map_err(describe)?;
        file.seek(SeekFrom::End(0)).map_err(describe)?;
        Ok(Self {
            path: path.to_owned(),
            file: Mutex::new(file),
            found,
        })
    }

    /// An answer that was there when the file was opened.
    pub fn get(&self, key: &str) -> Option<&Record> {
        self.found.get(key)
    }

    /// Adds an answer: it is in the system's hands when this returns.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn add(&self, record: &Record) -> Result<()> {
        let line = serde_json::to_string(record).map_err(|error| Error::file(&self.path, error))? + "\n";
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line.as_bytes())
            .map_err(|error| Error::file(&self.path, error))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(key: &str) -> Record {
        Record {
            key: key.into(),
            model: "m".into(),
            policy: "none".into(),
            set: "s".into(),
            problem: "1".into(),
            sample: 0,
            seed: 0,
            text: "a\n\"b\"".into(),
            stop_reason: "eos".into(),
            prompt_tokens: 3,
            tokens: 10,
            decode_tokens: 9,
            decode_seconds: 0.5,
            compaction_seconds: 0.0,
            compressions: 0,
            cache_peak_bytes: 100,
            cache_bound_bytes: 200,
            simd: "avx2".into(),
            checked_by: "2".into(),
            score: Score {
                passed: Some(true),
                ..Score::default()
            },
        }
    }

    #[test]
    fn a_file_that_was_broken_off_goes_on() {
        let path = std::env::temp_dir().join(format!("rrpc-answers-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let answers = Answers::open(&path).unwrap();
        answers.add(&record("a")).unwrap();
        answers.add(&record("b")).unwrap();
        assert!(
            Answers::open(&path)
                .err()
                .unwrap()
                .to_string()
                .contains("another program")
        );
        drop(answers);
        let whole = std::fs::read(&path).unwrap();
        for torn in [whole.len() - 1, whole.len() - 30, whole.len() / 2 + 1] {
            std::fs::write(&path, &whole[..torn]).unwrap();
            let answers = Answers::open(&path).unwrap();
            assert_eq!(answers.get("a"), Some(&record("a")));
            assert_eq!(answers.get("b"), None);
            answers.add(&record("b")).unwrap();
            drop(answers);
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
        std::fs::write(&path, [b"{}\n", &whole[..]].concat()).unwrap();
        let error = Answers::open(&path).err().unwrap().to_string();
        assert!(error.contains("line 1: expected an answer"), "{error}");
        std::fs::remove_file(&path).unwrap();
    }
}
