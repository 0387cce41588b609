//! `reasoning-rpc sweep`.

use std::process::ExitCode;

use anyhow::Context;
use reasoning_rpc_eval::sweep::{self, Figure, Sweep};

use crate::args::{Command, Given, Group, option, parse_ids, usage};
use crate::output::{self, Progress};
use crate::policies::{self, Named};
use crate::{interrupt, model};

/// The command.
pub const COMMAND: Command = Command {
    name: "sweep",
    summary: "Measures speed and memory against the length of the answer, under several policies.",
    usage: &["--model DIR [options]"],
    groups: &[
        model::GROUP,
        Group {
            title: "Answers",
            options: &[
                option(
                    "lengths",
                    "LIST",
                    "tokens of an answer at which figures are read [doubling from\n128 to 4096, as far as the context goes]",
                ),
                option("prompt-tokens", "N", "tokens of the prompt [128]"),
                option("batch", "N", "answers that are written together [1]"),
                option(
                    "rounds",
                    "N",
                    "how often each policy is measured, in turns; the median is\nshown [1]",
                ),
                option("seed", "N", "of the prompts, and of the policy random [0]"),
            ],
        },
        policies::GROUP,
        policies::SHARED_GROUP,
        output::PAGE_GROUP,
    ],
    notes: "\
Answers are greedy and never end before the longest length. Speed is that of all answers together,
compressions included and the prompt not. The budget is what --budget says, or what the whole
context of every answer takes uncompressed; a length whose caches do not fit is left out, and said.
Run it on a machine that does nothing else.",
    run,
};

fn run(given: &Given) -> anyhow::Result<ExitCode> {
    let json = given.json()?;
    let options = model::options(given)?;
    let named = policies::without_thoughts(
        policies::parse(given)?,
        "its cost depends on where thoughts end, and answers to random prompts have none",
    )?;
    let count = |name, default| -> anyhow::Result<usize> { Ok(given.count(name)?.unwrap_or(default)) };
    let (batch, prompt_tokens, rounds) = (
        count("batch", 1)?,
        count("prompt-tokens", 128)?,
        count("rounds", 1)?,
    );
    let lengths = match given.text("lengths")? {
        Some(list) => {
            let lengths = parse_ids("--lengths", &list)?;
            Some(
                lengths
                    .into_iter()
                    .map(|length| length as usize)
                    .collect::<Vec<_>>(),
            )
        }
        None => None,
    };
    if lengths
        .as_ref()
        .is_some_and(|lengths| lengths[0] == 0 || !lengths.is_sorted_by(|a, b| a < b))
    {
        return usage("--lengths: expected whole numbers that ascend, such as 256,512,1024");
    }

    let mut progress = Progress::new();
    progress.show("opening the model");
    let engine = model::open(&options, batch)?;
    let room = engine
        .model()
        .manifest()
        .dimensions
        .max_positions
        .saturating_sub(prompt_tokens);
    let defaults = || {
        (7..=12)
            .map(|power| 1 << power)
            .filter(|&length| length <= room)
            .collect()
    };
    let sweep = Sweep {
        lengths: lengths.unwrap_or_else(defaults),
        prompt_tokens,
        batch,
        seed: given.seed()?.unwrap_or(0),
    };
    sweep::check(&sweep)?;
    interrupt::watch();
    let mut measured: Vec<Vec<sweep::Curve>> = named.iter().map(|_| Vec::new()).collect();
    for round in 1..=rounds {
        for (Named { label, choice }, curves) in named.iter().zip(&mut measured) {
            let policy = choice.of(&engine)?;
            let longest = sweep.lengths.last().copied().unwrap_or(0);
            let mut watch = |written: usize| {
                progress.show(&format!(
                    "round {round}/{rounds}, {label}: {written}/{longest} tokens"
                ));
                !interrupt::asked()
            };
            match sweep.measure(&engine, label, &policy, &mut watch)? {
                Some(curve) => curves.push(curve),
                None => {
                    progress.clear();
                    return Ok(ExitCode::from(interrupt::EXIT_CODE));
                }
            }
        }
    }
    progress.clear();

    let mut setup = vec![
        ("model".to_owned(), options.model.display().to_string()),
        (
            "machine".to_owned(),
            format!(
                "{} cores, {}",
                std::thread::available_parallelism().map_or(1, usize::from),
                engine.simd().name()
            ),
        ),
        (
            "threads".to_owned(),
            if options.threads == 0 {
                "one per core".into()
            } else {
                options.threads.to_string()
            },
        ),
        ("prompt".to_owned(), format!("{prompt_tokens} tokens")),
        ("answers together".to_owned(), batch.to_string()),
        (
            "rounds".to_owned(),
            format!("{rounds}, in turns, the median of each figure"),
        ),
        ("cache".to_owned(), engine.cache_type().name().to_owned()),
    ];
    for Named { label, choice } in &named {
        setup.push((format!("policy {label}"), choice.describe()));
    }
    let figure = Figure {
        version: env!("CARGO_PKG_VERSION"),
        setup,
        curves: measured
            .iter()
            .filter_map(|curves| sweep::median(curves))
            .collect(),
    };
    if let Some(path) = given.path("html") {
        std::fs::write(&path, figure.html()).with_context(|| path.display().to_string())?;
    }
    output::print(&match json {
        true => serde_json::to_string(&figure)? + "\n",
        false => figure.markdown(),
    })?;
    Ok(ExitCode::SUCCESS)
}
