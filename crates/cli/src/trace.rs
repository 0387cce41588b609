//! `reasoning-rpc trace`.

mod page;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use reasoning_rpc_engine::core::Trigger;
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::text::{TextStream, Tokenizer};
use reasoning_rpc_engine::{
    CompressionRecord, Engine, Event, GenerateOptions, Sequence, SequenceOptions, StopReason,
};
use reasoning_rpc_eval::analysis;
use serde::Serialize;

use crate::args::{Command, Given, Group, option, switch, usage};
use crate::output::{self, Progress};
use crate::perplexity::{self, Source};
use crate::prompt::{self, Prompt};
use crate::{compression, interrupt, model, sampling};

/// The command.
pub const COMMAND: Command = Command {
    name: "trace",
    summary: "Shows what each compression kept of a text: a page for a browser, or data.",
    usage: &[
        "--model DIR --prompt TEXT --html FILE [options]",
        "--model DIR --text FILE --html FILE [options]",
    ],
    groups: &[
        model::GROUP,
        Group {
            title: "A prompt that the model answers, exactly one of the first three",
            options: prompt::GROUP.options,
        },
        Group {
            title: "Or a text that is read as if the model had written it, one of the first two",
            options: &[perplexity::TEXT, perplexity::IDS, perplexity::PROMPT_TOKENS],
        },
        Group {
            title: "Length",
            options: &[
                option(
                    "max-tokens",
                    "N",
                    "the most tokens of the answer, or of the text, its prompt\nincluded [to the end of the context]",
                ),
                switch("ignore-eos", "an answer runs on past the model's stop tokens"),
            ],
        },
        compression::GROUP,
        Group {
            title: "Sampling, for answers (defaults: the model's, see `reasoning-rpc inspect`)",
            options: sampling::GROUP.options,
        },
        Group {
            title: "Output, at least one",
            options: &[
                option("html", "FILE", "writes the page to FILE"),
                option("output", "HOW", "json: the trace as data on standard output"),
            ],
        },
    ],
    notes: "\
The page is one file that loads nothing: the text, coloured by what survived, with a slider over the
compressions and a choice of layer and KV head. #compression=2&layer=1&head=0&colour=score behind
its address opens it so.

With --output json one object goes to standard output: model; policy; layers; kv_heads;
prompt_tokens; tokens, all ids; pieces, the text that each token completes, put together the text;
and compressions, as `generate` has them, in order of time, then layer, each with
  kept          positions in the text that stay, one list for the layer or for each KV head
  window_start  the first position of the window; tokens from there on, and the prompt, stay
  candidates    for each KV head the positions that could be dropped
  scores        for each KV head one for each candidate, as the policy was shown them, before it
                pools or averages; empty for a policy that looks at none
Scores in the page are rounded to a byte, on a logarithmic scale.

With --text or --ids, --seed [0] is for the policy random alone. Policies that drop an entry at
every token (h2o, tova) have no compressions to show.",
    run,
};

/// A text and what its compressions did.
struct Trace<'a> {
    model: String,
    policy: &'a str,
    layers: usize,
    kv_heads: usize,
    /// Tokens that were given: the first ones, and only those.
    prompt_tokens: usize,
    tokens: &'a [u32],
    /// What each token adds to the text.
    pieces: Vec<String>,
    rounds: Vec<Round<'a>>,
}

/// One compression.
struct Round<'a> {
    /// Generated tokens written when it ran.
    at_token: usize,
    /// The first text position of the window.
    window_start: usize,
    layers: &'a [CompressionRecord],
}

/// What is traced.
enum Start {
    Answer(Prompt, GenerateOptions),
    Text(Source, usize),
}

fn run(given: &Given) -> anyhow::Result<ExitCode> {
    let json = given.choice("output", &[("json", ())])?.is_some();
    let html = given.path("html");
    if html.is_none() && !json {
        return usage("expected --html FILE or --output json, found neither");
    }
    let options = model::options(given)?;
    let compression = compression::Choice::alone(given)?.without_thoughts(
        "thoughts go whole, in all layers and KV heads, so that there is no choice to show",
    )?;
    let sampling = sampling::parse(given)?;
    let max_tokens = given.count("max-tokens")?;
    let start = parse_start(given, max_tokens)?;
    if let Some(path) = &html {
        // Not after a long answer.
        let mut file = fs::OpenOptions::new();
        let opened = file.create(true).append(true).open(path);
        opened.with_context(|| path.display().to_string())?;
    }

    let mut progress = Progress::new();
    progress.show("opening the model");
    let engine = Engine::open(&options)?;
    let policy = compression.of(&engine)?;
    let window = match policy.spec().trigger {
        Trigger::Never => 0,
        Trigger::Interval(schedule) => schedule.window(),
        _ => {
            return usage(format!(
                "--policy: expected one that compresses once in an interval, found {:?}",
                policy.name()
            ));
        }
    };
    let sampling = match (&start, given.has("seed")) {
        (Start::Text(..), false) => SamplingOptions::GREEDY,
        _ => sampling(engine.default_sampling()),
    };
    let mut sequence = engine.sequence(SequenceOptions {
        policy: policy.clone(),
        sampling,
        record_kept: true,
    })?;
    sequence.record_scores(true);
    interrupt::watch();
    let (prompt_tokens, reason) = match start {
        Start::Answer(prompt, answer) => {
            prompt.append_to(&mut sequence)?;
            let prompt_tokens = sequence.tokens().len();
            (prompt_tokens, Some(write(&mut sequence, &answer, &mut progress)?))
        }
        Start::Text(source, prompt_tokens) => {
            let ids = perplexity::ids(source, &engine, prompt_tokens, max_tokens)?;
            read(&engine, &mut sequence, &ids, prompt_tokens, &mut progress)?;
            (prompt_tokens, None)
        }
    };
    progress.clear();

    let shape = engine.cache_shape();
    let folder = fs::canonicalize(&options.model).unwrap_or_else(|_| options.model.clone());
    let trace = Trace {
        model: folder
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into()),
        policy: policy.name(),
        layers: shape.layers,
        kv_heads: shape.kv_heads,
        prompt_tokens,
        tokens: sequence.tokens(),
        pieces: pieces(engine.model().tokenizer().ok(), sequence.tokens()),
        rounds: rounds(&sequence, shape.layers, prompt_tokens, window),
    };
    if let Some(path) = &html {
        write_page(path, &trace)?;
    }
    if json {
        output::print(&(serde_json::to_string(&trace.data())? + "\n"))?;
    }
    Ok(match reason {
        Some(StopReason::Cancelled) => ExitCode::from(interrupt::EXIT_CODE),
        _ => ExitCode::SUCCESS,
    })
}

fn parse_start(given: &Given, max_tokens: Option<usize>) -> anyhow::Result<Start> {
    let has = |names: &[&'static str]| names.iter().copied().find(|name| given.has(name));
    let Some(text) = has(&["text", "ids"]) else {
        if has(&["prompt", "prompt-file", "prompt-ids"]).is_none() {
            return usage("expected a prompt or a text, such as --prompt TEXT or --text FILE, found neither");
        }
        if given.has("prompt-tokens") {
            return usage("--prompt-tokens: expected with --text or --ids, found without");
        }
        let options = GenerateOptions {
            max_tokens,
            ignore_eos: given.has("ignore-eos"),
            ..GenerateOptions::default()
        };
        return Ok(Start::Answer(Prompt::parse(given)?, options));
    };
    let of_answers = prompt::GROUP.options.iter().chain(sampling::GROUP.options);
    let of_answers = of_answers.map(|option| option.name).chain(["ignore-eos"]);
    for name in of_answers.filter(|name| *name != "seed") {
        if given.has(name) {
            return usage(format!(
                "--{name}: expected with a prompt that is answered, found --{text}"
            ));
        }
    }
    Ok(Start::Text(
        Source::parse(given)?,
        perplexity::prompt_tokens(given)?,
    ))
}

/// Lets the model answer.
fn write(
    sequence: &mut Sequence,
    options: &GenerateOptions,
    progress: &mut Progress,
) -> anyhow::Result<StopReason> {
    let mut answer = sequence.generate(options)?;
    let mut written = 0;
    loop {
        if interrupt::asked() {
            answer.cancel();
        }
        match answer.next_event()? {
            Some(Event::Prefill { done, total }) => progress.show(&format!("prefill {done}/{total} tokens")),
            Some(Event::Token { .. }) => {
                written += 1;
                progress.show(&format!("{written} tokens"));
            }
            Some(Event::End { reason, .. }) => return Ok(reason),
            None => anyhow::bail!("expected an end of the answer, found none"),
        }
    }
}

/// Runs a text, all but its last token: that, if the model writes, is not run either.
fn read(
    engine: &Engine,
    sequence: &mut Sequence,
    ids: &[u32],
    prompt_tokens: usize,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let mut reached = 0;
    let ended = analysis::read_into(engine, sequence, ids, prompt_tokens, &mut |done| {
        reached = done;
        progress.show(&format!("{done}/{} tokens", ids.len()));
        !interrupt::asked()
    })?;
    if !ended {
        anyhow::bail!("interrupted after {reached} tokens");
    }
    Ok(sequence.accept(ids[ids.len() - 1])?)
}

/// The text that each token completes; put together, the text, control tokens included. A token that ends
/// within a character adds nothing, the one that completes the character all of it. Without a tokenizer ids
/// stand for themselves.
fn pieces(tokenizer: Option<&Tokenizer>, ids: &[u32]) -> Vec<String> {
    let Some(tokenizer) = tokenizer else {
        return ids.iter().map(|id| format!("{id} ")).collect();
    };
    let mut stream = TextStream::with_special(true);
    let mut pieces: Vec<String> = ids
        .iter()
        .map(|&id| match stream.push(tokenizer, id) {
            Ok(text) => text.to_owned(),
            // The model's vocabulary may have more ids than the tokenizer.
            Err(_) => format!("[{id}]"),
        })
        .collect();
    if let Some(last) = pieces.last_mut() {
        last.push_str(stream.finish());
    }
    pieces
}

fn rounds(sequence: &Sequence, layers: usize, prompt_tokens: usize, window: usize) -> Vec<Round<'_>> {
    let log = sequence.compressions().chunks_exact(layers);
    log.filter_map(|layers| {
        let at_token = layers.first()?.at_token;
        Some(Round {
            at_token,
            window_start: prompt_tokens + at_token - window,
            layers,
        })
    })
    .collect()
}

fn write_page(path: &Path, trace: &Trace<'_>) -> anyhow::Result<()> {
    let page = page::html(trace)?;
    fs::write(path, page).with_context(|| path.display().to_string())
}

/// A trace as data, with compressions as `--output json` has them, or as the page's script reads them.
#[derive(Serialize)]
struct Data<'a, C> {
    model: &'a str,
    policy: &'a str,
    layers: usize,
    kv_heads: usize,
    prompt_tokens: usize,
    tokens: &'a [u32],
    pieces: &'a [String],
    compressions: Vec<C>,
}

/// One compression of one layer.
#[derive(Serialize)]
struct Compression<'a> {
    at_token: usize,
    layer: usize,
    len_before: usize,
    len_after: usize,
    kept: &'a [Vec<u32>],
    window_start: usize,
    candidates: Vec<&'a [u32]>,
    scores: Vec<&'a [f32]>,
}

impl Trace<'_> {
    fn with<C>(&self, compressions: Vec<C>) -> Data<'_, C> {
        Data {
            model: &self.model,
            policy: self.policy,
            layers: self.layers,
            kv_heads: self.kv_heads,
            prompt_tokens: self.prompt_tokens,
            tokens: self.tokens,
            pieces: &self.pieces,
            compressions,
        }
    }

    /// What `--output json` prints.
    fn data(&self) -> Data<'_, Compression<'_>> {
        let records = self.rounds.iter().flat_map(|round| {
            round.layers.iter().map(|record| Compression {
                at_token: record.at_token,
                layer: record.layer,
                len_before: record.len_before,
                len_after: record.len_after,
                kept: &record.kept,
                window_start: round.window_start,
                candidates: record.candidates.iter().map(|head| &head.positions[..]).collect(),
                scores: record.candidates.iter().map(|head| &head.scores[..]).collect(),
            })
        });
        self.with(records.collect())
    }
}
