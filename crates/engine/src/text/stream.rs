//! Text out of tokens as they come.

use super::decoder::{Kind, Start};
use super::tokenizer::Tokenizer;
use crate::error::Result;

/// Turns tokens into text one by one. A character is released when its last byte is there; bytes that
/// cannot become one are released as U+FFFD as soon as that is certain, so at most three bytes are ever
/// held back.
///
/// What `push` returned, put together, and then `finish`, is what [`Tokenizer::decode`] gives for all the
/// tokens. The cost of a token depends on the token's length alone.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    with_special: bool,
    /// Tokens that were not skipped have come.
    started: bool,
    /// Leading bytes left out so far.
    stripped: usize,
    /// Something else than a leading byte to leave out has come.
    stripping_done: bool,
    /// The beginning of a character, then the bytes of the token at work.
    bytes: Vec<u8>,
    text: String,
}

impl TextStream {
    /// A stream that leaves special tokens out of the text.
    pub fn new() -> Self {
        Self::default()
    }

    /// A stream that writes special tokens out if `with_special`.
    pub fn with_special(with_special: bool) -> Self {
        Self {
            with_special,
            // Longer than all but odd tokens, so that none makes them grow.
            bytes: Vec::with_capacity(128),
            text: String::with_capacity(128),
            ..Self::default()
        }
    }

    /// A stream of tokens that follow others: a leading space that the tokenizer leaves out of a text's beginning stays.
    pub fn continuing(with_special: bool) -> Self {
        Self {
            started: true,
            stripping_done: true,
            ..Self::with_special(with_special)
        }
    }

    /// The text that `id` completes, often a word, sometimes nothing. After an error the stream is as it
    /// was before.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<&str> {
        self.text.clear();
        let (bytes, kind) = tokenizer.piece(id)?;
        if kind == Kind::Special && !self.with_special {
            return Ok("");
        }
        match tokenizer.start() {
            Start::Plain => self.bytes.extend_from_slice(bytes),
            Start::Strip(byte, count) => {
                let leading = bytes.iter().take_while(|found| **found == byte).count();
                let room = count.saturating_sub(self.stripped);
                let left_out = if self.stripping_done { 0 } else { leading.min(room) };
                self.stripped += left_out;
                self.stripping_done |= left_out < bytes.len();
                self.bytes.extend_from_slice(&bytes[left_out..]);
            }
            Start::Drop(c) if !self.started => {
                let text = tokenizer.token_text(id)?;
                self.bytes.extend_from_slice(text.replace(c, "").as_bytes());
            }
            Start::Drop(_) => self.bytes.extend_from_slice(bytes),
        }
        self.started = true;
        self.release();
        Ok(&self.text)
    }

    /// The end: what is held back was no whole character and becomes U+FFFD. The stream then begins anew.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !self.bytes.is_empty() {
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        self.bytes.clear();
        self.started = false;
        self.stripped = 0;
        self.stripping_done = false;
        &self.text
    }

    /// Moves whole characters, and U+FFFD for what can no longer become one, from the bytes to the text.
    fn release(&mut self) {
        let mut done = 0;
        while let Some(rest) = self.bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let error = match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.text.push_str(text);
                    done = self.bytes.len();
                    break;
                }
                Err(error) => error,
            };
            let (valid, broken) = rest.split_at(error.valid_up_to());
            if let Ok(text) = std::str::from_utf8(valid) {
                self.text.push_str(text);
            }
            done += valid.len();
            let Some(length) = error.error_len() else {
                break;
            };
            self.text.push(char::REPLACEMENT_CHARACTER);
            done += length.min(broken.len());
        }
        self.bytes.drain(..done);
    }
}
