//! What each token adds to the text, as bytes, worked out once from the tokenizer's decoder.
//!
//! Every decoder that is supported here joins what its tokens give, except at the very beginning of a
//! text. So text is decoded token by token, at a cost that does not grow with the text.

use serde_json::Value;

use crate::error::{Error, Result};

/// What happens at the beginning of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Nothing.
    Plain,
    /// Up to this many leading bytes of this kind are left out.
    Strip(u8, usize),
    /// This character is left out of the first token.
    Drop(char),
}

/// How one token's text becomes bytes.
enum Step {
    ByteLevel,
    ByteFallback,
    Replace(String, String),
}

/// A tokenizer's decoder.
pub(super) struct Decoder {
    steps: Vec<Step>,
    pub(super) start: Start,
    /// The character of each byte in byte-level vocabularies, sorted.
    alphabet: Vec<(char, u8)>,
}

impl Decoder {
    /// From the `decoder` of a tokenizer.json.
    pub(super) fn new(json: &Value) -> Result<Self> {
        let mut flat = Vec::new();
        flatten(json, &mut flat);
        let mut steps = Vec::new();
        let mut start = Start::Plain;
        let mut fused = false;
        let alone = flat.len() == 1;
        for decoder in flat {
            let refused = |why: &str| {
                Err(Error::Model(format!(
                    "tokenizer.json: the decoder {decoder} {why}; expected ByteLevel, Metaspace, or a Sequence of \
                     Replace, ByteFallback, Fuse and Strip"
                )))
            };
            let text = |field: &str| decoder.get(field).and_then(Value::as_str);
            match text("type") {
                Some("ByteLevel") if alone => steps.push(Step::ByteLevel),
                Some("Metaspace") if alone => {
                    let Some(mark) = text("replacement").and_then(|mark| mark.chars().next()) else {
                        return refused("has no replacement");
                    };
                    if text("prepend_scheme") != Some("never") {
                        start = Start::Drop(mark);
                    }
                    steps.push(Step::Replace(mark.to_string(), " ".to_string()));
                }
                Some("Replace") if !fused => {
                    let pattern = decoder.pointer("/pattern/String").and_then(Value::as_str);
                    match (pattern, text("content")) {
                        (Some(pattern), Some(content)) if !pattern.is_empty() => {
                            steps.push(Step::Replace(pattern.to_string(), content.to_string()));
                        }
                        _ => return refused("does not replace a string by a string"),
                    }
                }
                Some("ByteFallback") if !fused => steps.push(Step::ByteFallback),
                Some("Fuse") => fused = true,
                Some("Strip") if fused && start == Start::Plain => {
                    let count = |field: &str| decoder.get(field).and_then(Value::as_u64);
                    match (text("content").map(str::as_bytes), count("start"), count("stop")) {
                        (Some(&[byte]), Some(leading), Some(0)) => {
                            start = Start::Strip(byte, usize::try_from(leading).unwrap_or(usize::MAX));
                        }
                        _ => {
                            return refused("strips something else than one leading ASCII character");
                        }
                    }
                }
                _ => return refused("is not supported here"),
            }
        }
        if steps.is_empty() {
            return Err(Error::Model(format!(
                "tokenizer.json: found the decoder {json}, expected one that says how tokens become text"
            )));
        }
        Ok(Self {
            steps,
            start,
            alphabet: byte_alphabet(),
        })
    }

    /// Appends the bytes of a token that reads `token` in the vocabulary. An added token's text is no
    /// byte-level one: it is found in texts as it stands. (The library decodes it as byte-level where it
    /// can, and so breaks `é`.)
    fn append(&self, token: &str, added: bool, bytes: &mut Vec<u8>) {
        let mut text = std::borrow::Cow::Borrowed(token);
        for step in &self.steps {
            match step {
                Step::ByteLevel if added => {}
                Step::ByteLevel => {
                    let begin = bytes.len();
                    for c in text.chars() {
                        match self.alphabet.binary_search_by_key(&c, |entry| entry.0) {
                            Ok(found) => bytes.push(self.alphabet[found].1),
                            Err(_) => {
                                bytes.truncate(begin);
                                bytes.extend_from_slice(text.as_bytes());
                                return;
                            }
                        }
                    }
                    return;
                }
                Step::ByteFallback => {
                    if let Some(byte) = fallback_byte(&text) {
                        bytes.push(byte);
                        return;
                    }
                }
                Step::Replace(pattern, content) => {
                    if text.contains(pattern) {
                        text = text.replace(pattern, content).into();
                    }
                }
            }
        }
        bytes.extend_from_slice(text.as_bytes());
    }
}

fn flatten<'a>(json: &'a Value, flat: &mut Vec<&'a Value>) {
    match json.get("decoders").and_then(Value::as_array) {
        Some(decoders) => decoders.iter().for_each(|decoder| flatten(decoder, flat)),
        None => flat.push(json),
    }
}

/// The byte of a token such as `<0x0A>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2)
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

/// Byte-level vocabularies write printable bytes as themselves and the others as the characters from
/// U+0100 on.
fn byte_alphabet() -> Vec<(char, u8)> {
    let mut spare = (0x100..).filter_map(char::from_u32);
    let mut alphabet: Vec<(char, u8)> = (0..=255u8)
        .filter_map(|byte| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => Some((char::from(byte), byte)),
            _ => spare.next().map(|c| (c, byte)),
        })
        .collect();
    alphabet.sort_unstable();
    alphabet
}

/// The bytes and the kind of every token.
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where each id's bytes end.
    ends: Vec<u32>,
    kinds: Vec<Kind>,
    gaps: Vec<u32>,
}

/// What an id stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing: a gap in the vocabulary.
    Gap,
    Ordinary,
    /// An added token that is not special.
    Added,
    Special,
}

impl Pieces {
    /// From every id's text and kind, in order.
    pub(super) fn new<'a>(decoder: &Decoder, tokens: impl Iterator<Item = (&'a str, Kind)>) -> Result<Self> {
        let mut pieces = Self {
            bytes: Vec::new(),
            ends: Vec::new(),
            kinds: Vec::new(),
            gaps: Vec::new(),
        };
        for (text, kind) in tokens {
            if kind == Kind::Gap {
                pieces.gaps.push(pieces.len());
            } else {
                decoder.append(text, kind != Kind::Ordinary, &mut pieces.bytes);
            }
            let end = u32::try_from(pieces.bytes.len()).map_err(|_| {
                Error::Model(
                    "tokenizer.json: the tokens' texts exceed 4 GiB; expected a few megabytes".to_string(),
                )
            })?;
            pieces.ends.push(end);
            pieces.kinds.push(kind);
        }
        Ok(pieces)
    }

    /// The ids that are no token.
    pub(super) fn gaps(&self) -> &[u32] {
        &self.gaps
    }

    /// One more than the highest id.
    pub(super) fn len(&self) -> u32 {
        // As many entries as `ends`, which a vocabulary's u32 ids bound.
        self.ends.len() as u32
    }

    /// The bytes and the kind of `id`, unless it is out of range.
    pub(super) fn get(&self, id: u32) -> Option<(&[u8], Kind)> {
        let index = id as usize;
        let end = *self.ends.get(index)? as usize;
        let start = match index {
            0 => 0,
            _ => *self.ends.get(index - 1)? as usize,
        };
        Some((self.bytes.get(start..end)?, *self.kinds.get(index)?))
    }
}
