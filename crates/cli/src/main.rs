//! The program `reasoning-rpc`: writes with a model whose KV cache is compressed on the way, says
//! what that costs on a text and on tasks and what was kept of a text, turns text into tokens and back, and says
//! what a model and its cache take.
//!
//! Exit codes: 0; 1 for what went wrong while working; 2 for a command line that cannot be used;
//! 130 for an answer that Ctrl-C ended (its output is complete).

mod analyze;
mod args;
mod compression;
mod eval;
mod generate;
mod inspect;
mod interrupt;
mod model;
mod output;
mod perplexity;
mod policies;
mod prompt;
mod reading;
mod report;
mod sampling;
mod sweep;
mod tokenize;
mod trace;

use std::process::ExitCode;

use args::{Command, Parsed, Usage};

const COMMANDS: [&Command; 8] = [
    &generate::COMMAND,
    &perplexity::COMMAND,
    &eval::COMMAND,
    &analyze::COMMAND,
    &sweep::COMMAND,
    &tokenize::COMMAND,
    &inspect::COMMAND,
    &trace::COMMAND,
];

fn main() -> ExitCode {
    let error = match run() {
        Ok(code) => return code,
        Err(error) => error,
    };
    if output::is_closed(&error) {
        // Whoever read our output has seen enough.
        return ExitCode::SUCCESS;
    }
    // One line, whatever a library's message looks like.
    let text = format!("{error:#}");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    output::note(&format!("reasoning-rpc: error: {text}"));
    ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
}

fn run() -> anyhow::Result<ExitCode> {
    match args::parse(std::env::args_os(), &COMMANDS)? {
        Parsed::Print(text) => {
            output::print(&text)?;
            Ok(ExitCode::SUCCESS)
        }
        Parsed::Run(command, given) => (command.run)(&given).map_err(|error| command.explain(error)),
    }
}
