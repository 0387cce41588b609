//! `reasoning-rpc tokenize`.

use std::path::Path;
use std::process::ExitCode;

use reasoning_rpc_engine::model::Model;
use reasoning_rpc_engine::text::{encode_chat, encode_raw};

use crate::args::{Command, Given, Group, option, parse_ids, switch, usage};
use crate::output;
use crate::prompt::{messages, read_text};

/// The command.
pub const COMMAND: Command = Command {
    name: "tokenize",
    summary: "Turns text into token ids, or ids into text.",
    usage: &["--model DIR [--text TEXT] [--chat]", "--model DIR --ids IDS"],
    groups: &[Group {
        title: "Options",
        options: &[
            option("model", "DIR", "the model folder"),
            option("text", "TEXT", "the text [standard input]"),
            switch(
                "chat",
                "put the text through the chat template, as a user's message",
            ),
            option(
                "system",
                "TEXT",
                "with --chat: a system message before the user's",
            ),
            switch(
                "no-bos",
                "no beginning-of-text token, even if raw prompts of the model\nstart with one",
            ),
            option(
                "ids",
                "IDS",
                "token ids, such as 1,2,3, to turn into text; - reads them from\nstandard input",
            ),
        ],
    }],
    notes: "\
The ids are those that `reasoning-rpc generate` runs: of a raw prompt, or with --chat of a
conversation. They are printed as one line, a JSON array. Control tokens in raw text are parsed;
those in ids are shown in the text.",
    run,
};

fn run(given: &Given) -> anyhow::Result<ExitCode> {
    let folder = given.model()?;
    for (name, other) in [
        ("ids", "text"),
        ("ids", "chat"),
        ("ids", "no-bos"),
        ("chat", "no-bos"),
    ] {
        if given.has(name) && given.has(other) {
            return usage(format!("--{name}: expected without --{other}, found both"));
        }
    }
    if given.has("system") && !given.has("chat") {
        return usage("--system: expected with --chat, found without");
    }
    let ids = match given.text("ids")? {
        Some(ids) if ids == "-" => Some(parse_ids("--ids", &read_text(Path::new("-"))?)?),
        Some(ids) => Some(parse_ids("--ids", &ids)?),
        None => None,
    };

    let model = Model::open(&folder, false)?;
    let tokenizer = model.tokenizer()?;
    let line = match ids {
        Some(ids) => tokenizer.decode(&ids, false)?,
        None => {
            let text = match given.text("text")? {
                Some(text) => text,
                None => read_text(Path::new("-"))?,
            };
            let ids = if given.has("chat") {
                let messages = messages(given.text("system")?, text);
                encode_chat(tokenizer, model.template()?, &messages, true)?
            } else {
                let tokens = &model.manifest().tokens;
                let bos = tokens.bos.filter(|_| tokens.add_bos && !given.has("no-bos"));
                encode_raw(tokenizer, &text, bos)?
            };
            serde_json::to_string(&ids)?
        }
    };
    output::print(&(line + "\n"))?;
    Ok(ExitCode::SUCCESS)
}
