//! Finding added tokens (control tokens and user-defined ones) in text, as the `tokenizers` crate does,
//! with one rule on top: in a rendered chat, a control token that touches a guarded place is ordinary
//! text.

use std::ops::Range;
use std::sync::LazyLock;

use tokenizers::tokenizer::normalizer::Range as Referential;
use tokenizers::utils::SysRegex;
use tokenizers::{NormalizedString, Token};

/// Which added tokens count.
#[derive(Clone, Copy)]
pub(super) enum Mode<'a> {
    /// All of them.
    Parse,
    /// Those that are not control tokens.
    Plain,
    /// All, but no control token whose span `(start, end]` holds one of these sorted byte positions.
    Rendered(&'a [usize]),
}

/// An added token as tokenizer.json describes it.
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    /// Marked special, or written like a control token: see [`looks_like_control`].
    pub(super) control: bool,
    pub(super) single_word: bool,
    pub(super) lstrip: bool,
    pub(super) rstrip: bool,
}

/// Some models leave control tokens unmarked, DeepSeek's turn markers among them. What is written
/// `<|...|>`, with ASCII or full-width bars, is never meant as a user's text.
pub(super) fn looks_like_control(content: &str) -> bool {
    content.chars().count() > 4
        && [("<|", "|>"), ("<｜", "｜>")]
            .iter()
            .any(|(open, close)| content.starts_with(open) && content.ends_with(close))
}

/// A set of strings, searched from a given place for the longest that stands there.
#[derive(Default)]
pub(super) struct Trie {
    nodes: Vec<Node>,
}

#[derive(Default)]
struct Node {
    /// Sorted by byte.
    children: Vec<(u8, u32)>,
    /// The string that ends here.
    pattern: Option<u32>,
}

impl Trie {
    /// Strings are known by their place in the list. Of equal strings the first counts; empty ones match
    /// nothing.
    pub(super) fn new<'a>(patterns: impl Iterator<Item = &'a str>) -> Self {
        let mut nodes = vec![Node::default()];
        for (index, pattern) in patterns.enumerate() {
            if pattern.is_empty() {
                continue;
            }
            let mut at = 0;
            for &byte in pattern.as_bytes() {
                let next = nodes.len();
                let children = &mut nodes[at].children;
                at = match children.binary_search_by_key(&byte, |child| child.0) {
                    Ok(found) => children[found].1 as usize,
                    Err(place) => {
                        children.insert(place, (byte, next as u32));
                        nodes.push(Node::default());
                        next
                    }
                };
            }
            nodes[at].pattern.get_or_insert(index as u32);
        }
        Self { nodes }
    }

    /// Follows `text` from its first byte; `visit` hears the length of every prefix that some string
    /// shares, whether the string goes on after it, and which string ends there. It returns false to
    /// stop.
    pub(super) fn walk(&self, text: &[u8], mut visit: impl FnMut(usize, bool, Option<usize>) -> bool) {
        let mut at = 0;
        for (length, byte) in (1..).zip(text) {
            let children = &self.nodes[at].children;
            let Ok(found) = children.binary_search_by_key(byte, |child| child.0) else {
                return;
            };
            at = children[found].1 as usize;
            let node = &self.nodes[at];
            if !visit(
                length,
                !node.children.is_empty(),
                node.pattern.map(|p| p as usize),
            ) {
                return;
            }
        }
    }

    /// Whether some string begins with this byte.
    pub(super) fn begins(&self, byte: u8) -> bool {
        self.nodes[0]
            .children
            .binary_search_by_key(&byte, |child| child.0)
            .is_ok()
    }
}

/// Finds added tokens: those matched in the text itself, or those matched in normalised text.
pub(super) struct Matcher {
    trie: Trie,
    tokens: Vec<AddedToken>,
    normalized: bool,
}

type Pieces = Vec<(NormalizedString, Option<Vec<Token>>)>;

impl Matcher {
    /// Each token with the text to look for.
    pub(super) fn new(patterns: Vec<(AddedToken, String)>, normalized: bool) -> Self {
        let trie = Trie::new(patterns.iter().map(|(_, pattern)| pattern.as_str()));
        let tokens = patterns.into_iter().map(|(token, _)| token).collect();
        Self {
            trie,
            tokens,
            normalized,
        }
    }

    /// Cuts `sentence` at the added tokens in it.
    pub(super) fn split(&self, sentence: NormalizedString, mode: Mode<'_>) -> tokenizers::Result<Pieces> {
        let found = self.find(sentence.get(), |token, span| match mode {
            Mode::Parse => true,
            Mode::Plain => !token.control,
            Mode::Rendered(guarded) => !token.control || self.intact(&sentence, token, span, guarded),
        });
        if found.is_empty() {
            return Ok(vec![(sentence, None)]);
        }
        let cut = |span: Range<usize>| {
            sentence
                .slice(Referential::Normalized(span.clone()))
                .ok_or_else(|| format!("no text at bytes {span:?} of {}", sentence.get().len()))
        };
        let mut pieces = Pieces::with_capacity(2 * found.len() + 1);
        let mut done = 0;
        for (token, span) in found {
            if done < span.start {
                pieces.push((cut(done..span.start)?, None));
            }
            done = span.end;
            let piece = cut(span)?;
            let value = piece.get().to_owned();
            let length = value.len();
            pieces.push((piece, Some(vec![Token::new(token.id, value, (0, length))])));
        }
        if done < sentence.get().len() {
            pieces.push((cut(done..sentence.get().len())?, None));
        }
        Ok(pieces)
    }

    /// Whether a control token of a rendered chat was written by the template alone.
    fn intact(
        &self,
        sentence: &NormalizedString,
        token: &AddedToken,
        span: Range<usize>,
        guarded: &[usize],
    ) -> bool {
        let Some(origin) = sentence.convert_offsets(Referential::Normalized(span)) else {
            return false;
        };
        // Normalisation may have made a control token's text out of another text.
        if self.normalized {
            let literal = sentence.get_original().get(origin.clone());
            if literal.map(str::trim) != Some(token.content.trim()) {
                return false;
            }
        }
        let shift = sentence.offsets_original().0;
        let next = guarded.partition_point(|&place| place <= shift + origin.start);
        guarded.get(next).is_none_or(|&place| place > shift + origin.end)
    }

    /// The tokens in `text`, leftmost first, the longest of those that begin at one place, with the
    /// spaces that they take along.
    fn find(
        &self,
        text: &str,
        accept: impl Fn(&AddedToken, Range<usize>) -> bool,
    ) -> Vec<(&AddedToken, Range<usize>)> {
        let bytes = text.as_bytes();
        let mut found = Vec::new();
        let mut done = 0;
        let mut at = 0;
        while at < bytes.len() {
            let mut best = None;
            if self.trie.begins(bytes[at]) {
                self.trie.walk(&bytes[at..], |length, _, pattern| {
                    if let Some(token) = pattern.and_then(|index| self.tokens.get(index))
                        && accept(token, at..at + length)
                    {
                        best = Some((token, length));
                    }
                    true
                });
            }
            let Some((token, length)) = best else {
                at += 1;
                continue;
            };
            let (mut start, mut end) = (at, at + length);
            at = end;
            if token.single_word && (text[..start].ends_with(is_word) || text[end..].starts_with(is_word)) {
                continue;
            }
            if token.lstrip {
                start = text[..start].trim_end().len().max(done);
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
                at = end;
            }
            found.push((token, start..end));
            done = end;
        }
        found
    }
}

/// What regular expressions call `\w`: marks such as accents are letters, too.
fn is_word(c: char) -> bool {
    static WORD: LazyLock<Option<SysRegex>> = LazyLock::new(|| SysRegex::new(r"\w").ok());
    if c.is_ascii() {
        return c.is_ascii_alphanumeric() || c == '_';
    }
    match &*WORD {
        Some(word) => word.find_iter(c.encode_utf8(&mut [0; 4])).next().is_some(),
        None => c.is_alphanumeric(),
    }
}
