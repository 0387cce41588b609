//! Text in and out: tokens, chat templates, streamed text and stop strings.
//!
//! A message's content never becomes a control token, whatever it says: see [`Rendered`].

mod added;
mod clock;
mod decoder;
mod guard;
mod json;
mod stop;
mod stream;
mod template;
mod tokenizer;

pub use stop::StopStrings;
pub use stream::TextStream;
pub use template::{ChatOptions, ChatTemplate, Message, Rendered};
pub use tokenizer::{Special, Tokenizer};

use crate::error::{Error, Result};

/// The tokens of a conversation: `messages` in the words of `template`, with no further variables.
///
/// The template writes the beginning-of-text token if the model wants one; none is added here.
pub fn encode_chat(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
    add_generation_prompt: bool,
) -> Result<Vec<u32>> {
    let options = ChatOptions {
        add_generation_prompt,
        ..ChatOptions::default()
    };
    tokenizer.encode_rendered(&template.render(tokenizer, messages, &options)?)
}

/// The tokens of a raw prompt: control tokens in the text are parsed, and `bos` goes first unless it is
/// there already.
pub fn encode_raw(tokenizer: &Tokenizer, text: &str, bos: Option<u32>) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode(text, Special::Parse)?;
    if let Some(bos) = bos {
        if bos >= tokenizer.vocab_size() {
            return Err(Error::InvalidArgument(format!(
                "the beginning-of-text token is {bos}, the vocabulary has {} ids",
                tokenizer.vocab_size()
            )));
        }
        if ids.first() != Some(&bos) {
            ids.insert(0, bos);
        }
    }
    Ok(ids)
}
