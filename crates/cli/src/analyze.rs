//! `reasoning-rpc analyze`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use reasoning_rpc_engine::Engine;
use reasoning_rpc_engine::model::Model;
use reasoning_rpc_eval::analysis::{self, Analysis, Kept, Text};
use reasoning_rpc_eval::entropy::Trace;

use crate::args::{Command, Given, Group, Opt, option, parse_ids, usage};
use crate::output::{self, Progress};
use crate::perplexity::raw_ids;
use crate::policies::{self, Named};
use crate::prompt::read_text;
use crate::{interrupt, model};

/// The command.
pub const COMMAND: Command = Command {
    name: "analyze",
    summary: "Says how much texts repeat themselves, and what policies kept of them.",
    usage: &[
        "--ids FILE [--ids FILE ...] [options]",
        "--trace FILE [options]",
        "--model DIR --text FILE [--policies LIST] [options]",
    ],
    groups: &[
        Group {
            title: "Texts, side by side",
            options: &[
                Opt {
                    many: true,
                    ..option(
                        "text",
                        "FILE",
                        "raw text, UTF-8, in the tokens of --model; repeatable",
                    )
                },
                Opt {
                    many: true,
                    ..option(
                        "ids",
                        "FILE",
                        "token ids, in the writing of `reasoning-rpc tokenize`;\nrepeatable",
                    )
                },
                Opt {
                    many: true,
                    ..option(
                        "trace",
                        "FILE",
                        "what `generate --output json` printed: its tokens, and what its\npolicy kept of them; repeatable",
                    )
                },
                option("max-tokens", "N", "the first N tokens of each [all]"),
            ],
        },
        Group {
            title: "What is kept of texts and ids, read as if --model had written them",
            options: &[
                option(
                    "policies",
                    "LIST",
                    "as in `reasoning-rpc eval`: rpc,random:ratio=8 [none: the model\nis not run]",
                ),
                option(
                    "prompt-tokens",
                    "N",
                    "tokens that are given, and never dropped [64]",
                ),
                option("seed", "N", "of the policy random [0]"),
            ],
        },
        policies::SHARED_GROUP,
        model::GROUP,
        output::PAGE_GROUP,
    ],
    notes: "\
Entropy is that of token n-grams (n = 1, 2, 3), in bits. Redundancy (n = 1, 2, 4) is the share of
n-grams that were there before; of what a policy kept, n-grams are runs of n positions that were all
kept. Both depend on the length of a text: compare texts of one length, with --max-tokens.",
    run,
};

/// A text's name and its tokens.
struct Source {
    name: String,
    tokens: Vec<u32>,
}

fn run(given: &Given) -> anyhow::Result<ExitCode> {
    let json = given.json()?;
    let (texts, ids, traces) = (given.paths("text"), given.paths("ids"), given.paths("trace"));
    if texts.is_empty() && ids.is_empty() && traces.is_empty() {
        return usage("expected --text, --ids or --trace, found none");
    }
    let count = |name, default| -> anyhow::Result<usize> { Ok(given.count(name)?.unwrap_or(default)) };
    let most = count("max-tokens", usize::MAX)?;
    let prompt_tokens = count("prompt-tokens", 64)?;
    let seed = given.seed()?.unwrap_or(0);
    let named = match given.has("policies") {
        true => policies::without_thoughts(
            policies::parse(given)?,
            "what it keeps of a text are not the text's own tokens",
        )?,
        false => Vec::new(),
    };
    if !named.is_empty() && texts.is_empty() && ids.is_empty() {
        return usage("--policies: expected --text or --ids to read, found --trace alone");
    }

    let mut sources = Vec::new();
    if !texts.is_empty() {
        let model = Model::open(&given.model()?, false)?;
        for path in &texts {
            sources.push(Source {
                name: name_of(path),
                tokens: raw_ids(&model, &read_text(path)?)?,
            });
        }
    }
    for path in &ids {
        sources.push(Source {
            name: name_of(path),
            tokens: parse_ids("--ids", &read_text(path)?)?,
        });
    }
    sources.iter_mut().for_each(|source| source.tokens.truncate(most));

    let mut analysis = Analysis {
        texts: sources
            .iter()
            .map(|source| Text::of(&source.name, &source.tokens))
            .collect(),
        kept: Vec::new(),
    };
    for path in &traces {
        let name = name_of(path);
        let mut trace: Trace = serde_json::from_str(&read_text(path)?).with_context(|| {
            format!(
                "{}: expected what `generate --output json` prints",
                path.display()
            )
        })?;
        // The last token was never in a cache, and is part of the text all the same.
        trace.tokens.truncate(most);
        trace
            .compressions
            .retain(|compression| compression.at_token <= trace.tokens.len());
        analysis.texts.push(Text::of(&name, &trace.tokens));
        if !trace.compressions.is_empty() {
            analysis.kept.push(Kept {
                moments: trace.moments().with_context(|| path.display().to_string())?,
                policy: "as traced".into(),
                name,
            });
        }
    }
    if !named.is_empty() && !keep(given, &named, &sources, prompt_tokens, seed, &mut analysis)? {
        return Ok(ExitCode::from(interrupt::EXIT_CODE));
    }
    if let Some(path) = given.path("html") {
        std::fs::write(&path, analysis.html()).with_context(|| path.display().to_string())?;
    }
    output::print(&match json {
        true => serde_json::to_string(&analysis)? + "\n",
        false => analysis.markdown(),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Has the model read every text under every policy. False if Ctrl-C ended it.
fn keep(
    given: &Given,
    named: &[Named],
    sources: &[Source],
    prompt_tokens: usize,
    seed: u64,
    analysis: &mut Analysis,
) -> anyhow::Result<bool> {
    let mut progress = Progress::new();
    progress.show("opening the model");
    let engine = Engine::open(&model::options(given)?)?;
    interrupt::watch();
    for source in sources {
        for Named { label, choice } in named {
            progress.show(&format!("{}: {label}", source.name));
            let policy = choice.of(&engine)?;
            let trace = analysis::read(
                &engine,
                policy,
                &source.tokens,
                prompt_tokens,
                seed,
                &interrupt::asked,
            )
            .with_context(|| source.name.clone())?;
            let Some(trace) = trace else {
                return Ok(false);
            };
            analysis.kept.push(Kept {
                name: source.name.clone(),
                policy: label.clone(),
                moments: trace.moments()?,
            });
        }
    }
    Ok(true)
}

fn name_of(path: &Path) -> String {
    let path = PathBuf::from(path);
    path.file_stem()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}
