//! Where a prompt comes from, and how it gets into a sequence.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::Context;
use reasoning_rpc_engine::Sequence;
use reasoning_rpc_engine::text::Message;

use crate::args::{Given, Group, option, parse_ids, switch, usage};

/// The options.
pub const GROUP: Group = Group {
    title: "Prompt, exactly one of the first three",
    options: &[
        option(
            "prompt",
            "TEXT",
            "a user's message, put through the model's chat template",
        ),
        option(
            "prompt-file",
            "FILE",
            "the same from a file, byte for byte; - is standard input",
        ),
        option(
            "prompt-ids",
            "IDS",
            "token ids, such as 1,2,3; - reads them from standard input, in\nthe writing of `reasoning-rpc tokenize`",
        ),
        option("system", "TEXT", "a system message before the user's"),
        switch(
            "raw",
            "the prompt as it is, without the template; control tokens in it\nare parsed",
        ),
    ],
};

/// What the answer continues.
#[derive(Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A conversation.
    Chat(Vec<Message>),
    /// Text without a template.
    Raw(String),
    /// Token ids.
    Ids(Vec<u32>),
}

impl Prompt {
    /// The prompt that the options name.
    pub fn parse(given: &Given) -> anyhow::Result<Self> {
        let sources = ["prompt", "prompt-file", "prompt-ids"];
        let found: Vec<String> = sources
            .iter()
            .filter(|name| given.has(name))
            .map(|name| format!("--{name}"))
            .collect();
        if found.len() != 1 {
            return usage(format!(
                "expected one of --prompt, --prompt-file and --prompt-ids, found {}",
                if found.is_empty() {
                    "none".into()
                } else {
                    found.join(" and ")
                }
            ));
        }
        let text_only = ["raw", "system"].into_iter().find(|name| given.has(name));
        if let Some(ids) = given.text("prompt-ids")? {
            if let Some(name) = text_only {
                return usage(format!("--{name}: expected a prompt of text, found --prompt-ids"));
            }
            let ids = match ids.as_str() {
                "-" => read_text(Path::new("-"))?,
                _ => ids,
            };
            return Ok(Self::Ids(parse_ids("--prompt-ids", &ids)?));
        }
        let text = match given.path("prompt-file") {
            Some(path) => read_text(&path)?,
            None => given.text("prompt")?.unwrap_or_default(),
        };
        if text.is_empty() {
            return usage(format!(
                "{}: expected at least one character, found an empty prompt",
                found[0]
            ));
        }
        match (given.has("raw"), given.has("system")) {
            (true, true) => usage("--system: expected without --raw, found both"),
            (true, false) => Ok(Self::Raw(text)),
            (false, _) => Ok(Self::Chat(messages(given.text("system")?, text))),
        }
    }

    /// Appends it to a sequence.
    pub fn append_to(self, sequence: &mut Sequence) -> anyhow::Result<()> {
        match self {
            Self::Ids(ids) => Ok(sequence.append_tokens(&ids)?),
            Self::Raw(text) => Ok(sequence.append_text(&text)?),
            Self::Chat(messages) => Ok(sequence.append_chat(&messages)?),
        }
    }
}

/// A conversation that begins: perhaps a system message, then the user's.
pub fn messages(system: Option<String>, user: String) -> Vec<Message> {
    let system = system.map(|text| Message::new("system", text));
    system.into_iter().chain([Message::new("user", user)]).collect()
}

/// All of a file, or of standard input for `-`. It must be UTF-8.
pub fn read_text(path: &Path) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    let (name, read) = match path.to_str() {
        Some("-") => ("standard input".into(), io::stdin().read_to_end(&mut bytes)),
        _ => (
            path.display().to_string(),
            File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)),
        ),
    };
    read.with_context(|| name.clone())?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        anyhow::anyhow!("{name}: expected UTF-8, found other bytes at {at}")
    })
}
