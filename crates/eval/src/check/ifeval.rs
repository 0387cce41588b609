//! The 25 kinds of verifiable instructions of IFEval, written from their descriptions in Zhou et al.,
//! "Instruction-Following Evaluation for Large Language Models", arXiv 2311.07911, table 1 and section 2.
//!
//! Where a description leaves room, what the authors' own checker takes is taken, as far as that can be said without
//! its tokenizers: a word is a run of letters, digits and underscores; a keyword is found in any
//! case and, unless it is a forbidden one, inside of words too; sentences are counted by [`prose::sentences`];
//! a language by [`language::detect`], and a text that says too little to tell is let pass.

mod prose;

use serde_json::Value;

use super::language;
use crate::error::{Error, Result};

/// One instruction.
#[derive(Debug, Clone, PartialEq)]
pub struct Instruction(Kind);

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Existence(Vec<String>),
    Frequency(String, Relation),
    Forbidden(Vec<String>),
    LetterFrequency(char, Relation),
    Language(String),
    Paragraphs(usize),
    Words(Relation),
    Sentences(Relation),
    NthParagraph {
        paragraphs: usize,
        nth: usize,
        first_word: String,
    },
    Postscript(String),
    Placeholders(usize),
    Bullets(usize),
    Title,
    Choice,
    Highlights(usize),
    Sections(String, usize),
    Json,
    RepeatPrompt(String),
    TwoResponses,
    Capital,
    Lowercase,
    CapitalWords(Relation),
    End(String),
    Quotation,
    NoComma,
}

/// How many: at least so many, or fewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    AtLeast(usize),
    LessThan(usize),
}

impl Relation {
    fn holds(self, count: usize) -> bool {
        match self {
            Self::AtLeast(least) => count >= least,
            Self::LessThan(bound) => count < bound,
        }
    }
}

impl Instruction {
    /// An instruction by its published name, such as `length_constraints:number_words`, with its `kwargs`.
    ///
    /// # Errors
    /// [`Error::Problem`] for a name that is not one of the 25, or an argument that is missing.
    pub fn parse(id: &str, kwargs: &Value) -> Result<Self> {
        let wrong = |name: &str, expected: &str| {
            Error::Problem(format!(
                "{id}: {name}: expected {expected}, found {}",
                kwargs.get(name).unwrap_or(&Value::Null)
            ))
        };
        let text = |name: &str| {
            let value = kwargs.get(name).and_then(Value::as_str);
            value.map(str::to_owned).ok_or_else(|| wrong(name, "a text"))
        };
        let texts = |name: &str| {
            let values = kwargs.get(name).and_then(Value::as_array);
            let values =
                values.and_then(|values| values.iter().map(|v| v.as_str().map(str::to_owned)).collect());
            values.ok_or_else(|| wrong(name, "a list of texts"))
        };
        let count = |name: &str| {
            let value = kwargs.get(name).and_then(Value::as_f64);
            value
                .filter(|value| (0.0..1e9).contains(value) && value.fract() == 0.0)
                .map(|value| value as usize)
                .ok_or_else(|| wrong(name, "a whole number"))
        };
        let relation = |relation: &str, name: &str| {
            let count = count(name)?;
            match text(relation)?.as_str() {
                "at least" => Ok(Relation::AtLeast(count)),
                "less than" => Ok(Relation::LessThan(count)),
                _ => Err(wrong(relation, "\"at least\" or \"less than\"")),
            }
        };
        Ok(Self(match id {
            "keywords:existence" => Kind::Existence(texts("keywords")?),
            "keywords:frequency" => Kind::Frequency(text("keyword")?, relation("relation", "frequency")?),
            "keywords:forbidden_words" => Kind::Forbidden(texts("forbidden_words")?),
            "keywords:letter_frequency" => {
                let letter = text("letter")?.to_lowercase();
                match letter.chars().next() {
                    Some(c) if letter.chars().count() == 1 => {
                        Kind::LetterFrequency(c, relation("let_relation", "let_frequency")?)
                    }
                    _ => return Err(wrong("letter", "one letter")),
                }
            }
            "language:response_language" => {
                let code = text("language")?;
                if !language::is_known(&code) {
                    return Err(wrong(
                        "language",
                        "the code of a language that can be told apart here",
                    ));
                }
                Kind::Language(code)
            }
            "length_constraints:number_paragraphs" => Kind::Paragraphs(count("num_paragraphs")?),
            "length_constraints:number_words" => Kind::Words(relation("relation", "num_words")?),
            "length_constraints:number_sentences" => Kind::Sentences(relation("relation", "num_sentences")?),
            "length_constraints:nth_paragraph_first_word" => Kind::NthParagraph {
                paragraphs: count("num_paragraphs")?,
                nth: count("nth_paragraph")?,
                first_word: text("first_word")?.to_lowercase(),
            },
            "detectable_content:postscript" => Kind::Postscript(text("postscript_marker")?),
            "detectable_content:number_placeholders" => Kind::Placeholders(count("num_placeholders")?),
            "detectable_format:number_bullet_lists" => Kind::Bullets(count("num_bullets")?),
            "detectable_format:title" => Kind::Title,
            "detectable_format:constrained_response" => Kind::Choice,
            "detectable_format:number_highlighted_sections" => Kind::Highlights(count("num_highlights")?),
            "detectable_format:multiple_sections" => {
                Kind::Sections(text("section_spliter")?, count("num_sections")?)
            }
            "detectable_format:json_format" => Kind::Json,
            "combination:repeat_prompt" => Kind::RepeatPrompt(text("prompt_to_repeat")?),
            "combination:two_responses" => Kind::TwoResponses,
            "change_case:english_capital" => Kind::Capital,
            "change_case:english_lowercase" => Kind::Lowercase,
            "change_case:capital_word_frequency" => {
                Kind::CapitalWords(relation("capital_relation", "capital_frequency")?)
            }
            "startend:end_checker" => Kind::End(text("end_phrase")?),
            "startend:quotation" => Kind::Quotation,
            "punctuation:no_comma" => Kind::NoComma,
            _ => {
                return Err(Error::Problem(format!(
                    "instruction: expected one of IFEval's 25 kinds, found {id:?}"
                )));
            }
        }))
    }

    /// Whether an answer follows it, word for word. An empty one never does.
    pub fn strict(&self, answer: &str) -> bool {
        !answer.trim().is_empty() && self.follows(answer)
    }

    /// Whether it would without what often surrounds an answer: its first line, its last line, both, and with
    /// every asterisk gone or not.
    pub fn loose(&self, answer: &str) -> bool {
        let lines: Vec<&str> = answer.split('\n').collect();
        let n = lines.len();
        let part = |from: usize, to: usize| lines.get(from..to).unwrap_or(&[]).join("\n").trim().to_owned();
        let parts = [
            answer.to_owned(),
            part(1, n),
            part(0, n - 1),
            part(1, n.saturating_sub(1).max(1)),
        ];
        parts
            .iter()
            .any(|part| self.strict(part) || self.strict(&part.replace('*', "")))
    }

    fn follows(&self, answer: &str) -> bool {
        let trimmed = answer.trim();
        match &self.0 {
            Kind::Existence(keywords) => {
                let lower = answer.to_lowercase();
                keywords
                    .iter()
                    .all(|keyword| lower.contains(&keyword.to_lowercase()))
            }
            Kind::Frequency(keyword, relation) => {
                relation.holds(answer.to_lowercase().matches(&keyword.to_lowercase()).count())
            }
            Kind::Forbidden(words) => {
                let lower = answer.to_lowercase();
                !words
                    .iter()
                    .any(|word| prose::contains_word(&lower, &word.to_lowercase()))
            }
            Kind::LetterFrequency(letter, relation) => {
                relation.holds(answer.to_lowercase().chars().filter(|c| c == letter).count())
            }
            Kind::Language(code) => language::detect(answer).is_none_or(|found| found == code),
            Kind::Paragraphs(count) => prose::between(answer, "***") == Some(*count),
            Kind::Words(relation) => relation.holds(prose::words(answer).count()),
            Kind::Sentences(relation) => relation.holds(prose::sentences(answer)),
            Kind::NthParagraph {
                paragraphs,
                nth,
                first_word,
            } => {
                let parts = || answer.split("\n\n");
                let found = parts().filter(|part| !part.trim().is_empty()).count();
                let first = nth
                    .checked_sub(1)
                    .and_then(|index| parts().nth(index))
                    .and_then(|part| part.split_whitespace().next());
                found == *paragraphs
                    && first.is_some_and(|word| {
                        let word = word.trim_start_matches('\'').trim_start_matches('"');
                        let end = word.find(['.', ',', '?', '!', '\'', '"']);
                        word[..end.unwrap_or(word.len())].to_lowercase() == *first_word
                    })
            }
            Kind::Postscript(marker) => prose::has_postscript(answer, marker),
            Kind::Placeholders(count) => prose::enclosed(answer, "[", "]") >= *count,
            Kind::Bullets(count) => answer.lines().filter(|line| prose::is_bullet(line)).count() == *count,
            Kind::Title => answer.lines().any(prose::has_title),
            Kind::Choice => ["My answer is yes.", "My answer is no.", "My answer is maybe."]
                .iter()
                .any(|choice| answer.contains(choice)),
            Kind::Highlights(count) => answer.lines().map(prose::highlights).sum::<usize>() >= *count,
            Kind::Sections(word, count) => prose::sections(answer, word) >= *count,
            Kind::Json => serde_json::from_str::<Value>(prose::without_fence(trimmed)).is_ok(),
            Kind::RepeatPrompt(prompt) => trimmed.to_lowercase().starts_with(&prompt.trim().to_lowercase()),
            Kind::TwoResponses => {
                let parts: Vec<&str> = trimmed.split("******").map(str::trim).collect();
                let ends = parts.len().saturating_sub(1);
                // Nothing before the first or behind the last is no response; nothing between two is a broken one.
                let inner = parts
                    .iter()
                    .enumerate()
                    .filter(|(index, _)| *index > 0 && *index < ends);
                let whole = inner.clone().all(|(_, part)| !part.is_empty());
                let responses: Vec<&&str> = parts.iter().filter(|part| !part.is_empty()).collect();
                whole && responses.len() == 2 && responses[0] != responses[1]
            }
            Kind::Capital => {
                prose::is_cased(answer) && !answer.chars().any(char::is_lowercase) && is_english(answer)
            }
            Kind::Lowercase => {
                prose::is_cased(answer) && !answer.chars().any(char::is_uppercase) && is_english(answer)
            }
            Kind::CapitalWords(relation) => relation.holds(prose::capital_words(answer)),
            Kind::End(phrase) => {
                let end = trimmed.trim_matches('"').to_lowercase();
                end.ends_with(&phrase.trim().to_lowercase())
            }
            Kind::Quotation => trimmed.len() > 1 && trimmed.starts_with('"') && trimmed.ends_with('"'),
            Kind::NoComma => !answer.contains(','),
        }
    }
}

fn is_english(text: &str) -> bool {
    language::detect(text).is_none_or(|found| found == "en")
}

#[cfg(test)]
mod tests;
