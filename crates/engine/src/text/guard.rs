//! Marks in message contents that keep control tokens from arising there.
//!
//! A template may do anything with a content before it writes it: strip it, split it, take words out of
//! it. So the places to guard are marked inside the content itself, by a noncharacter that no text of the
//! conversation holds, and found again in what the template wrote. A mark always follows a character of
//! the content; hence a control token whose span holds a mark, or ends at one, took a character from a
//! content, and one that the template wrote by itself never does.
//!
//! Marked is, after its first character, each control token's text; each lone first character such as
//! `<`, because what follows may be taken out or changed until it reads like a control token; and what
//! could continue a control token, or be continued to one, across the content's borders. Of a control token that begins
//! with a letter, the first letter is marked only where all of its characters follow, with others in between: a template
//! that looks for words finds most of them, and none that takes words out makes a control token of the rest. Tags that the
//! template itself mentions, such as `</think>`, stay unmarked, for the template may look for them.

use std::collections::HashSet;

use super::added::Trie;
use crate::error::{Error, Result};

/// A tag is not longer than this many bytes.
const LONGEST_TAG: usize = 64;

/// What the suffixes of all control tokens may take: they grow with the square of a token's length.
const MOST_SUFFIX_BYTES: usize = 64 << 20;

/// The texts of a tokenizer's control tokens.
pub(super) struct Controls {
    trie: Trie,
    texts: Vec<String>,
    /// Every proper suffix of a control token's text.
    suffixes: HashSet<String>,
    longest: usize,
}

/// The tags that a template's source mentions: `<...>` and `[...]`.
#[derive(Clone, Debug)]
pub(super) struct Tags(HashSet<String>);

impl Tags {
    pub(super) fn new(source: &str) -> Self {
        let places = source.char_indices().map(|(at, _)| at);
        Self(
            places
                .filter_map(|at| tag(&source[at..]))
                .map(str::to_owned)
                .collect(),
        )
    }
}

/// The tag that `text` begins with.
fn tag(text: &str) -> Option<&str> {
    let close = match text.as_bytes().first()? {
        b'<' => b'>',
        b'[' => b']',
        _ => return None,
    };
    let end = text.bytes().take(LONGEST_TAG).position(|byte| byte == close)?;
    text.get(..=end)
}

impl Controls {
    /// # Errors
    /// [`Error::Model`] when the texts' suffixes take more than [`MOST_SUFFIX_BYTES`].
    pub(super) fn new<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Self> {
        let texts: Vec<String> = texts.map(str::to_owned).collect();
        let bytes = |text: &String| text.len().saturating_mul(text.len()) / 2;
        if texts.iter().map(bytes).fold(0, usize::saturating_add) > MOST_SUFFIX_BYTES {
            return Err(Error::Model(format!(
                "tokenizer.json: control tokens: expected a few of some dozens of bytes, found {}, the longest of {} bytes",
                texts.len(),
                texts.iter().map(String::len).max().unwrap_or(0)
            )));
        }
        let suffixes = |text: &String| -> Vec<String> {
            let places = text.char_indices().skip(1);
            places.map(|(at, _)| text[at..].to_owned()).collect()
        };
        Ok(Self {
            trie: Trie::new(texts.iter().map(String::as_str)),
            suffixes: texts.iter().flat_map(suffixes).collect(),
            longest: texts.iter().map(String::len).max().unwrap_or(0),
            texts,
        })
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

    /// A message's content with its marks, for a template that mentions these tags.
    pub(super) fn guard_content(&self, content: &str, tags: &Tags, mark: char) -> String {
        let trimmed = content.trim();
        let start = content.len() - content.trim_start().len();
        let ends = [start + trimmed.len(), content.len()];
        let hidden = self.last_hidden(content);
        let mut places: Vec<usize> = content
            .char_indices()
            .filter(|&(at, first)| {
                let text = &content[at..];
                let (whole, begun, cut) = self.beginning(text, ends.map(|end| end.wrapping_sub(at)));
                let lone = match first.is_alphanumeric() {
                    true => hidden.iter().any(|&(letter, last)| letter == first && at <= last),
                    false => !tag(text).is_some_and(|tag| tags.0.contains(tag)),
                };
                whole || cut || begun && lone
            })
            .map(|(at, first)| at + first.len_utf8())
            .collect();
        for (at, text) in [(0, content), (start, trimmed)] {
            if self.ends_some(text) || self.lies_in_some(text) {
                places.extend(text.chars().next().map(|first| at + first.len_utf8()));
            }
        }
        insert(content, places, mark)
    }

    /// Of each control token that begins with a letter: that letter, and the last place in `content` from where on all of
    /// its characters follow, with others in between. None if there is no such place.
    fn last_hidden(&self, content: &str) -> Vec<(char, usize)> {
        let last = |text: &String| {
            let first = text.chars().next().filter(|first| first.is_alphanumeric())?;
            let mut characters = text.chars().rev();
            let place =
                characters.try_fold(content.len(), |end, character| content[..end].rfind(character))?;
            Some((first, place))
        };
        self.texts.iter().filter_map(last).collect()
    }

    /// Another text of the caller's, marked inside every control token's text only: the template may
    /// compare it.
    pub(super) fn guard_variable(&self, text: &str, mark: char) -> String {
        let places = text.char_indices();
        let places = places.filter(|(at, _)| self.beginning(&text[*at..], [0, 0]).0);
        let places = places.map(|(at, first)| at + first.len_utf8()).collect();
        insert(text, places, mark)
    }

    /// Whether `text` begins with a control token's text, with the first byte of one, and with a part of
    /// one that reaches to one of these ends.
    fn beginning(&self, text: &str, ends: [usize; 2]) -> (bool, bool, bool) {
        let (mut whole, mut begun, mut cut) = (false, false, false);
        self.trie.walk(text.as_bytes(), |length, goes_on, pattern| {
            whole |= pattern.is_some();
            begun = true;
            cut |= goes_on && ends.contains(&length);
            true
        });
        (whole, begun, cut)
    }

    /// Whether `text` begins with the end of some control token.
    fn ends_some(&self, text: &str) -> bool {
        text.char_indices()
            .map(|(at, c)| at + c.len_utf8())
            .take_while(|&end| end <= self.longest)
            .any(|end| self.suffixes.contains(&text[..end]))
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
