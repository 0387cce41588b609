//! Strings that end the text.

use crate::error::{Error, Result};

/// Holds text back while it could still become a stop string, and cuts the text off at the first one.
///
/// The stop string that is complete first counts; of several that are complete at the same character, the
/// longest. So the outcome does not depend on how the text was cut into pieces.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<Stop>,
    /// Text that could still become a stop string.
    held: String,
    matched: Option<usize>,
}

#[derive(Clone, Debug)]
struct Stop {
    bytes: Vec<u8>,
    /// For each length of a beginning, the longest shorter beginning that it ends with.
    shorter: Vec<usize>,
    /// How much of the string the text ends with.
    length: usize,
}

impl Stop {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes().to_vec();
        let mut shorter = vec![0; bytes.len() + 1];
        let mut length = 0;
        for end in 1..bytes.len() {
            while length > 0 && bytes[length] != bytes[end] {
                length = shorter[length];
            }
            length += usize::from(bytes[length] == bytes[end]);
            shorter[end + 1] = length;
        }
        Self {
            bytes,
            shorter,
            length: 0,
        }
    }

    /// Takes the text's next byte; true if the string is complete.
    fn advance(&mut self, byte: u8) -> bool {
        while self.length > 0 && self.bytes.get(self.length) != Some(&byte) {
            self.length = self.shorter[self.length];
        }
        self.length += usize::from(self.bytes.get(self.length) == Some(&byte));
        self.length == self.bytes.len()
    }
}

impl StopStrings {
    /// Any number of stop strings, none of them empty.
    pub fn new<S: AsRef<str>>(stops: impl IntoIterator<Item = S>) -> Result<Self> {
        let stops: Vec<Stop> = stops.into_iter().map(|stop| Stop::new(stop.as_ref())).collect();
        if let Some(empty) = stops.iter().position(|stop| stop.bytes.is_empty()) {
            return Err(Error::InvalidArgument(format!(
                "stop string {empty} of {} is empty, expected at least one character",
                stops.len()
            )));
        }
        Ok(Self {
            stops,
            held: String::new(),
            matched: None,
        })
    }

    /// Takes more text and appends to `out` what can no longer become a stop string. With a stop string
    /// complete, its index; `out` then holds all text before it, and whatever comes after is dropped.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<usize> {
        if self.matched.is_some() {
            return self.matched;
        }
        let before = self.held.len();
        self.held.push_str(text);
        for at in before..self.held.len() {
            let byte = self.held.as_bytes()[at];
            let mut complete: Option<(usize, usize)> = None;
            for (index, stop) in self.stops.iter_mut().enumerate() {
                if stop.advance(byte) && complete.is_none_or(|(_, length)| stop.bytes.len() > length) {
                    complete = Some((index, stop.bytes.len()));
                }
            }
            if let Some((index, length)) = complete {
                out.push_str(&self.held[..at + 1 - length]);
                self.held.clear();
                self.matched = Some(index);
                return self.matched;
            }
        }
        let keep = self.stops.iter().map(|stop| stop.length).max().unwrap_or(0);
        let release = self.held.len() - keep;
        out.push_str(&self.held[..release]);
        self.held.drain(..release);
        None
    }

    /// The end of the text: what was held back became no stop string. The next text begins anew.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
        self.matched = None;
        for stop in &mut self.stops {
            stop.length = 0;
        }
    }
}
