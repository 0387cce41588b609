//! Marks in message contents that keep control tokens from arising there.
//!
//! A template may do anything with a content before it writes it: strip it, split it, cut it. So the places to guard
//! are marked inside the content itself, by a noncharacter that no text of the conversation holds, and found again in
//! what the template wrote. A mark always follows a character of the content; hence a control token whose span holds a
//! mark, or ends at one, took a character from a content, and one that the template wrote by itself never does.

use super::added::Trie;
use crate::error::{Error, Result};

/// The texts of a tokenizer's control tokens.
pub(super) struct Controls {
    trie: Trie,
    texts: Vec<String>,
    /// Every proper suffix of a control token's text, sorted.
    suffixes: Vec<String>,
    longest: usize,
}

impl Controls {
    pub(super) fn new<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        let texts: Vec<String> = texts.map(str::to_owned).collect();
        let mut suffixes: Vec<String> = texts
            .iter()
            .flat_map(|text| text.char_indices().skip(1).map(|(at, _)| text[at..].to_owned()))
            .collect();
        suffixes.sort_unstable();
        suffixes.dedup();
        Self {
            trie: Trie::new(texts.iter().map(String::as_str)),
            longest: texts.iter().map(String::len).max().unwrap_or(0),
            texts,
            suffixes,
        }
    }

    /// The noncharacter to mark with: one that `holds` finds in none of the conversation's texts.
    pub(super) fn mark(&self, holds: impl Fn(char) -> bool) -> Result<char> {
        ('\u{FDD0}'..='\u{FDEF}')
            .find(|&mark| !holds(mark) && !self.texts.iter().any(|text| text.contains(mark)))
            .ok_or_else(|| {
                Error::Text(
                    "the messages use all 32 noncharacters U+FDD0 to U+FDEF; expected one that is free to mark with"
                        .to_string(),
                )
            })
    }

    /// A message's content, marked inside every control token's text, inside what could be a control token's end or
    /// beginning at its borders, and where it could be the middle of one.
    pub(super) fn guard_content(&self, content: &str, mark: char) -> String {
        let trimmed = content.trim();
        let start = content.len() - content.trim_start().len();
        let mut places = self.occurrences(content, Some(start + trimmed.len()));
        for (at, text) in [(0, content), (start, trimmed)] {
            if self.ends_some(text) || self.lies_in_some(text) {
                places.extend(text.chars().next().map(|first| at + first.len_utf8()));
            }
        }
        insert(content, places, mark)
    }

    /// Another text of the caller's, marked inside every control token's text only: the template may compare it.
    pub(super) fn guard_variable(&self, text: &str, mark: char) -> String {
        insert(text, self.occurrences(text, None), mark)
    }

    /// The byte after the first character of each control token's text in `text`; with `trimmed_end`, also of each
    /// beginning of one that is cut off there or at the text's end.
    fn occurrences(&self, text: &str, trimmed_end: Option<usize>) -> Vec<usize> {
        let mut places = Vec::new();
        for (at, first) in text.char_indices() {
            let mut found = false;
            self.trie
                .walk(&text.as_bytes()[at..], |length, goes_on, pattern| {
                    let end = at + length;
                    let cut = trimmed_end.is_some_and(|trimmed| end == trimmed || end == text.len());
                    found = pattern.is_some() || (cut && goes_on);
                    !found
                });
            if found {
                places.push(at + first.len_utf8());
            }
        }
        places
    }

    /// Whether `text` begins with the end of some control token.
    fn ends_some(&self, text: &str) -> bool {
        text.char_indices()
            .map(|(at, c)| at + c.len_utf8())
            .take_while(|&end| end <= self.longest)
            .any(|end| {
                self.suffixes
                    .binary_search_by(|suffix| suffix.as_str().cmp(&text[..end]))
                    .is_ok()
            })
    }

    /// Whether the whole of `text` occurs inside some control token.
    fn lies_in_some(&self, text: &str) -> bool {
        !text.is_empty()
            && text.len() <= self.longest
            && self.texts.iter().any(|control| control.contains(text))
    }
}

fn insert(text: &str, mut places: Vec<usize>, mark: char) -> String {
    places.sort_unstable();
    places.dedup();
    let mut marked = String::with_capacity(text.len() + places.len() * mark.len_utf8());
    let mut done = 0;
    for place in places {
        marked.push_str(&text[done..place]);
        marked.push(mark);
        done = place;
    }
    marked.push_str(&text[done..]);
    marked
}

/// Takes the marks out again: the text without them, and the byte positions where they stood.
pub(super) fn take_marks(text: String, mark: char) -> (String, Vec<usize>) {
    if !text.contains(mark) {
        return (text, Vec::new());
    }
    let mut clean = String::with_capacity(text.len());
    let mut places = Vec::new();
    for part in text.split(mark) {
        clean.push_str(part);
        places.push(clean.len());
    }
    places.pop();
    (clean, places)
}
