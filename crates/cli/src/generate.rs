//! `reasoning-rpc generate`.

use std::process::ExitCode;

use reasoning_rpc_engine::{Engine, Event, GenerateOptions, Sequence, SequenceOptions, StopReason};

use crate::args::{Command, Given, Group, Opt, option, switch, usage};
use crate::output::{self, Progress};
use crate::prompt::{self, Prompt};
use crate::report::{Answer, Stats};
use crate::{compression, interrupt, model, sampling};

/// The command.
pub const COMMAND: Command = Command {
    name: "generate",
    summary: "Answers a prompt.",
    usage: &[
        "--model DIR --prompt TEXT [options]",
        "--model DIR --prompt-file FILE [options]",
        "--model DIR --prompt-ids IDS [options]",
    ],
    groups: &[
        model::GROUP,
        prompt::GROUP,
        compression::GROUP,
        sampling::GROUP,
        Group {
            title: "Answer",
            options: &[
                option("max-tokens", "N", "the most tokens [to the end of the context]"),
                Opt {
                    many: true,
                    ..option(
                        "stop",
                        "TEXT",
                        "ends the answer and is not part of it; repeatable",
                    )
                },
                switch("ignore-eos", "run on past the model's stop tokens, and show them"),
                option("output", "HOW", "text or json [text]"),
            ],
        },
    ],
    notes: "\
Text goes to standard output as it comes, and a line end after it; statistics follow on standard
error. A model without a tokenizer takes --prompt-ids and answers with ids. With --output json one
object goes to standard output at the end: prompt_ids, tokens, text, stop_reason (eos, stop, length,
context, cancelled), compressions and stats. Prefill and decode are the time of the model's steps;
the time of compactions comes on top.

Ctrl-C ends the answer: output and statistics are complete, and the exit code is 130.",
    run,
};

/// Where the answer goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Output {
    Text,
    Json,
}

/// An answer as it grew.
#[derive(Default)]
struct Written {
    tokens: Vec<u32>,
    text: String,
}

fn run(given: &Given) -> anyhow::Result<ExitCode> {
    let choices = [("text", Output::Text), ("json", Output::Json)];
    let output = given.choice("output", &choices)?.unwrap_or(Output::Text);
    let options = model::options(given)?;
    let compression = compression::Choice::alone(given)?;
    let sampling = sampling::parse(given)?;
    let answer = GenerateOptions {
        max_tokens: given.count("max-tokens")?,
        stop: given.texts("stop")?,
        ignore_eos: given.has("ignore-eos"),
    };
    if answer.stop.iter().any(String::is_empty) {
        return usage("--stop: expected at least one character, found none");
    }
    let prompt = Prompt::parse(given)?;

    let mut progress = Progress::new();
    progress.show("opening the model");
    let engine = Engine::open(&options)?;
    let mut sequence = engine.sequence(SequenceOptions {
        policy: compression.of(&engine)?,
        sampling: sampling(engine.default_sampling()),
        record_kept: output == Output::Json,
    })?;
    prompt.append_to(&mut sequence)?;
    let given_tokens = sequence.tokens().len();
    interrupt::watch();
    let ids_only = engine.model().tokenizer().is_err();
    let (written, reason) = write(&mut sequence, &answer, output, ids_only, &mut progress)?;

    let stats = Stats::of(&sequence, engine.simd());
    match output {
        Output::Text => output::note(&stats.lines(written.tokens.len(), reason)),
        Output::Json => {
            let object = Answer {
                prompt_ids: &sequence.tokens()[..given_tokens],
                tokens: &written.tokens,
                text: &written.text,
                stop_reason: reason.name(),
                compressions: sequence.compressions().iter().map(Into::into).collect(),
                stats,
            };
            output::print(&(serde_json::to_string(&object)? + "\n"))?;
        }
    }
    Ok(match reason {
        StopReason::Cancelled => ExitCode::from(interrupt::EXIT_CODE),
        _ => ExitCode::SUCCESS,
    })
}

/// Pulls the answer; text, or ids if there is no text, goes out as it comes.
fn write(
    sequence: &mut Sequence,
    options: &GenerateOptions,
    output: Output,
    ids_only: bool,
    progress: &mut Progress,
) -> anyhow::Result<(Written, StopReason)> {
    let mut written = Written::default();
    progress.show(&format!("prefill 0/{} tokens", sequence.pending()));
    let mut answer = sequence.generate(options)?;
    loop {
        if interrupt::asked() {
            answer.cancel();
        }
        let (piece, end) = match answer.next_event()? {
            Some(Event::Prefill { done, total }) => {
                progress.show(&format!("prefill {done}/{total} tokens"));
                continue;
            }
            Some(Event::Token { id, text, .. }) => {
                written.tokens.push(id);
                match (ids_only, written.tokens.len()) {
                    (false, _) => (text.to_owned(), None),
                    (true, 1) => (id.to_string(), None),
                    (true, _) => (format!(" {id}"), None),
                }
            }
            Some(Event::End { reason, text }) => (text.to_owned(), Some(reason)),
            None => anyhow::bail!("expected an end of the answer, found none"),
        };
        progress.clear();
        match output {
            Output::Json if ids_only => {}
            Output::Json => written.text.push_str(&piece),
            Output::Text if piece.is_empty() => {}
            Output::Text => output::print(&piece)?,
        }
        if let Some(reason) = end {
            if output == Output::Text {
                output::print("\n")?;
            }
            return Ok((written, reason));
        }
    }
}
