//! Text to token ids and back.

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::Deserialize;
use tokenizers::{
    Model, ModelWrapper, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};

use super::added::{AddedToken, Matcher, Mode, looks_like_control};
use super::decoder::{Decoder, Kind, Pieces, Start};
use super::guard::Controls;
use super::stream::TextStream;
use super::template::Rendered;
use crate::error::{Error, Result, panic_text};

/// Ids above this are not a vocabulary's: the largest have about 300,000.
const MAX_VOCABULARY: usize = 1 << 22;

/// What the text of a control token means when it occurs in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// The control token.
    Parse,
    /// Ordinary text. User-defined tokens that are not control tokens are still found.
    Plain,
}

/// A model's tokenizer, from its tokenizer.json. Cloning shares it.
///
/// *Special* tokens are those that tokenizer.json marks so; decoding leaves them out on request.
/// *Control* tokens are those, and also unmarked added tokens that are written `<|...|>` (with ASCII or
/// full-width bars) as some models' turn markers are: [`Special::Plain`] and message contents never give
/// one.
///
/// Encoding adds nothing of its own: post-processor, truncation and padding of tokenizer.json are not
/// applied.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    hub: tokenizers::Tokenizer,
    /// Added tokens that are matched in the text itself, then those matched in normalised text.
    added: [Matcher; 2],
    controls: Controls,
    pieces: Pieces,
    start: Start,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// From the bytes of a tokenizer.json.
    ///
    /// Refused are decoders other than ByteLevel, Metaspace and the usual sequence of Replace,
    /// ByteFallback, Fuse and Strip; merges with dropout, which would make encoding random; and ids that
    /// are used twice or out of all range.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        guarded("reading tokenizer.json", || Self::load(bytes), Error::Model)
    }

    fn load(bytes: &[u8]) -> Result<Self> {
        let hub = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| Error::Model(format!("tokenizer.json: {error}")))?;
        if let ModelWrapper::BPE(bpe) = hub.get_model()
            && bpe.dropout.is_some_and(|dropout| dropout != 0.0)
        {
            return Err(Error::Model(format!(
                "tokenizer.json: dropout is {:?}, expected none",
                bpe.dropout
            )));
        }
        check_added_ids(bytes, &hub)?;
        let decoder = serde_json::to_value(hub.get_decoder())
            .map_err(|error| Error::Model(format!("tokenizer.json: decoder: {error}")))?;
        let decoder = Decoder::new(&decoder)?;

        let vocabulary = hub.get_model().get_vocab();
        let added = hub.get_added_vocabulary();
        let texts = texts_by_id(
            &vocabulary,
            added
                .get_added_tokens_decoder()
                .iter()
                .map(|(id, token)| (*id, token.content.as_str())),
        )?;
        let is_added = |id| added.get_added_tokens_decoder().contains_key(&id);
        let kinds = (0..).zip(&texts).map(|(id, text)| match *text {
            None => ("", Kind::Gap),
            Some(text) if added.is_special_token(text) => (text, Kind::Special),
            Some(text) if is_added(id) => (text, Kind::Added),
            Some(text) => (text, Kind::Ordinary),
        });
        let pieces = Pieces::new(&decoder, kinds)?;

        let mut raw = Vec::new();
        let mut normalized = Vec::new();
        let mut sorted: Vec<_> = added.get_added_tokens_decoder().iter().collect();
        sorted.sort_unstable_by_key(|(id, token)| (!token.special, **id));
        for (&id, token) in sorted {
            let entry = AddedToken {
                id,
                content: token.content.clone(),
                control: token.special || looks_like_control(&token.content),
                single_word: token.single_word,
                lstrip: token.lstrip,
                rstrip: token.rstrip,
            };
            if token.normalized {
                let mut pattern = tokenizers::NormalizedString::from(token.content.as_str());
                if let Some(normalizer) = hub.get_normalizer() {
                    normalizer
                        .normalize(&mut pattern)
                        .map_err(|error| Error::Model(format!("tokenizer.json: normalizer: {error}")))?;
                }
                normalized.push((entry, pattern.get().to_owned()));
            } else {
                raw.push((entry, token.content.clone()));
            }
        }
        let controls = raw.iter().chain(&normalized).map(|(token, _)| token);
        let controls = Controls::new(
            controls
                .filter(|token| token.control)
                .map(|token| token.content.as_str()),
        )?;
        Ok(Self(Arc::new(Inner {
            added: [Matcher::new(raw, false), Matcher::new(normalized, true)],
            controls,
            pieces,
            start: decoder.start,
            hub,
        })))
    }

    /// The ids of `text`, nothing added before or after.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        self.run(
            text,
            match special {
                Special::Parse => Mode::Parse,
                Special::Plain => Mode::Plain,
            },
        )
    }

    /// The ids of a rendered chat: control tokens where the template wrote them, never inside a message's
    /// content.
    pub fn encode_rendered(&self, rendered: &Rendered) -> Result<Vec<u32>> {
        self.run(rendered.text(), Mode::Rendered(rendered.guarded()))
    }

    fn run(&self, text: &str, mode: Mode<'_>) -> Result<Vec<u32>> {
        let work = || {
            let Inner { hub, added, .. } = &*self.0;
            let mut pieces = PreTokenizedString::from(text);
            pieces.split(|_, sentence| added[0].split(sentence, mode))?;
            pieces.split(|_, mut sentence| {
                if let Some(normalizer) = hub.get_normalizer() {
                    normalizer.normalize(&mut sentence)?;
                }
                added[1].split(sentence, mode)
            })?;
            if let Some(pre_tokenizer) = hub.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            pieces.tokenize(|sentence| hub.get_model().tokenize(sentence.get()))?;
            Ok(pieces
                .get_splits(OffsetReferential::Normalized, OffsetType::None)
                .into_iter()
                .flat_map(|(_, _, tokens)| tokens.iter().flatten().map(|token| token.id))
                .collect())
        };
        guarded(
            "encoding",
            || work().map_err(|error: tokenizers::Error| Error::Text(format!("encoding: {error}"))),
            Error::Text,
        )
    }

    /// The text of `ids`. Bytes that are no UTF-8 become U+FFFD, one for each longest beginning of a
    /// character.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let mut stream = TextStream::with_special(!skip_special);
        let mut text = String::new();
        for &id in ids {
            text.push_str(stream.push(self, id)?);
        }
        text.push_str(stream.finish());
        Ok(text)
    }

    /// A token's text as the vocabulary writes it: `Ġthe` rather than ` the` in a byte-level one.
    pub fn token_text(&self, id: u32) -> Result<String> {
        self.piece(id)?;
        let added = self.0.hub.get_added_vocabulary();
        added
            .simple_id_to_token(id)
            .or_else(|| self.0.hub.get_model().id_to_token(id))
            .ok_or_else(|| self.no_token(id))
    }

    /// The bytes that a token adds to the text, unless it is the text's first.
    pub fn token_bytes(&self, id: u32) -> Result<&[u8]> {
        Ok(self.piece(id)?.0)
    }

    /// The id of the token that the vocabulary writes so.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.0.hub.token_to_id(text)
    }

    /// Whether tokenizer.json marks the token special. An id that is no token is not.
    pub fn is_special(&self, id: u32) -> bool {
        matches!(self.piece(id), Ok((_, Kind::Special)))
    }

    /// One more than the highest id. A model may have more logits than that: see the model's own vocabulary.
    pub fn vocab_size(&self) -> u32 {
        self.0.pieces.len()
    }

    /// The ids below [`vocab_size`](Self::vocab_size) that are no token; in most vocabularies there are none.
    pub(crate) fn gaps(&self) -> &[u32] {
        self.0.pieces.gaps()
    }

    pub(super) fn piece(&self, id: u32) -> Result<(&[u8], Kind)> {
        match self.0.pieces.get(id) {
            Some((bytes, kind)) if kind != Kind::Gap => Ok((bytes, kind)),
            _ => Err(self.no_token(id)),
        }
    }

    pub(super) fn start(&self) -> Start {
        self.0.start
    }

    pub(super) fn controls(&self) -> &Controls {
        &self.0.controls
    }

    fn no_token(&self, id: u32) -> Error {
        Error::Text(format!(
            "no token has the id {id}; the vocabulary has {} ids",
            self.vocab_size()
        ))
    }
}

/// Runs `work` so that a panic inside the libraries it calls, on a tokenizer.json made for that, is an error.
fn guarded<T>(
    doing: &str,
    work: impl FnOnce() -> Result<T>,
    kind: impl FnOnce(String) -> Error,
) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let text = panic_text(payload.as_ref());
        Err(kind(format!(
            "{doing} failed inside the tokenizers library: {text}"
        )))
    })
}

/// The library gives an added token the vocabulary's id, or the next free one, whatever id the file says.
fn check_added_ids(bytes: &[u8], hub: &tokenizers::Tokenizer) -> Result<()> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Listed>,
    }
    #[derive(Deserialize)]
    struct Listed {
        id: u32,
        content: String,
    }
    let file: File = serde_json::from_slice(bytes)
        .map_err(|error| Error::Model(format!("tokenizer.json: added_tokens: {error}")))?;
    for token in file.added_tokens {
        let found = hub.token_to_id(&token.content);
        if found != Some(token.id) && !token.content.is_empty() {
            return Err(Error::Model(format!(
                "tokenizer.json: the added token {:?} says id {}, its place in the vocabulary gives {found:?}",
                token.content, token.id
            )));
        }
    }
    Ok(())
}

/// Every id's text, with gaps.
fn texts_by_id<'a>(
    vocabulary: &'a HashMap<String, u32>,
    added: impl Iterator<Item = (u32, &'a str)>,
) -> Result<Vec<Option<&'a str>>> {
    let mut texts: Vec<Option<&str>> = Vec::new();
    let ordinary = vocabulary.iter().map(|(text, id)| (*id, text.as_str(), false));
    for (id, text, is_added) in ordinary.chain(added.map(|(id, text)| (id, text, true))) {
        let index = id as usize;
        if index >= MAX_VOCABULARY {
            return Err(Error::Model(format!(
                "tokenizer.json: token {text:?} has the id {id}, expected less than {MAX_VOCABULARY}"
            )));
        }
        if index >= texts.len() {
            texts.resize(index + 1, None);
        }
        if let Some(other) = texts[index].filter(|other| !is_added && *other != text) {
            return Err(Error::Model(format!(
                "tokenizer.json: tokens {other:?} and {text:?} share the id {id}"
            )));
        }
        texts[index] = Some(text);
    }
    Ok(texts)
}
