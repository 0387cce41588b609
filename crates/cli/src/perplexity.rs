//! `reasoning-rpc perplexity`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use reasoning_rpc_engine::core::{NoCompression, Policy};
use reasoning_rpc_engine::model::Model;
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::text::encode_raw;
use reasoning_rpc_engine::{Engine, EngineOptions, Sequence, SequenceOptions};
use serde::Serialize;

use crate::args::{Command, Given, Group, Opt, option, parse_ids, usage};
use crate::output::{self, Progress, human};
use crate::prompt::read_text;
use crate::{compression, interrupt, model};

/// Tokens of a step: their logits, `vocab` floats each, are in memory at once.
const CHUNK: usize = 128;
const DEFAULT_PROMPT_TOKENS: usize = 64;

/// The text, if it is text.
pub const TEXT: Opt = option(
    "text",
    "FILE",
    "raw text, UTF-8; - is standard input. Control tokens in it are\nparsed",
);
/// The text, if it is ids.
pub const IDS: Opt = option(
    "ids",
    "FILE",
    "its token ids, in the writing of `reasoning-rpc tokenize`: a\nJSON array, or numbers between commas or spaces",
);
/// How much of the text is a prompt.
pub const PROMPT_TOKENS: Opt = option(
    "prompt-tokens",
    "N",
    "tokens of the text that are given, and never dropped [64]",
);

/// The command.
pub const COMMAND: Command = Command {
    name: "perplexity",
    summary: "Reads a text as if the model had written it, its cache compressed on the way.",
    usage: &[
        "--model DIR --text FILE [options]",
        "--model DIR --ids FILE [options]",
    ],
    groups: &[
        model::GROUP,
        Group {
            title: "Text, one of the first two",
            options: &[
                TEXT,
                IDS,
                PROMPT_TOKENS,
                option(
                    "max-tokens",
                    "N",
                    "tokens of the text in all, the prompt included [all, up to\nthe end of the context]",
                ),
            ],
        },
        compression::GROUP,
        Group {
            title: "Draws of the policy random",
            options: &[option("seed", "N", "the same seed draws the same entries [0]")],
        },
        Group {
            title: "Output",
            options: &[
                option(
                    "against",
                    "POLICY",
                    "none: runs the text with the whole cache beside it, and adds\nKL(whole || compressed) of each prediction",
                ),
                option("output", "HOW", "text or json [text]"),
            ],
        },
    ],
    notes: "\
Each token behind the prompt is predicted from what the cache holds of those before it, and a
compression runs just where it would if the model had written the text. With --output json one
object goes to standard output: nll, the negative natural logarithm of each of these tokens'
probability, in order; mean, of nll; compressions, how many there were; prompt_tokens; max_tokens;
cache_peak_bytes. --against none adds full_nll, full_mean, kl (nats, one per token) and mean_kl.

The perplexity is e to the power of the mean.",
    run,
};

#[derive(Serialize)]
struct Report {
    nll: Vec<f64>,
    mean: f64,
    compressions: usize,
    prompt_tokens: usize,
    max_tokens: usize,
    cache_peak_bytes: usize,
    #[serde(flatten)]
    against: Option<Against>,
}

#[derive(Serialize)]
struct Against {
    full_nll: Vec<f64>,
    full_mean: f64,
    kl: Vec<f64>,
    mean_kl: f64,
}

fn run(given: &Given) -> anyhow::Result<ExitCode> {
    let json = given.json()?;
    let against = given.choice("against", &[("none", ())])?.is_some();
    let compression = compression::Choice::parse(given)?.without_thoughts()?;
    let prompt_tokens = prompt_tokens(given)?;
    let max_tokens = given.count("max-tokens")?;
    let seed = given.seed()?.unwrap_or(0);
    let source = Source::parse(given)?;
    let options = EngineOptions {
        prefill_chunk: CHUNK,
        ..model::options(given)?
    };

    let mut progress = Progress::new();
    progress.show("opening the model");
    let engine = Engine::open(&options)?;
    let ids = ids(source, &engine, prompt_tokens, max_tokens)?;
    let vocab = engine.model().manifest().dimensions.vocab_size;
    let mut compressed = Reader::new(
        &engine,
        compression.policy(engine.cache_shape())?,
        &ids,
        prompt_tokens,
        seed,
    )?;
    let mut full = match against {
        true => Some(Reader::new(
            &engine,
            Arc::new(NoCompression),
            &ids,
            prompt_tokens,
            seed,
        )?),
        false => None,
    };
    interrupt::watch();
    let mut kl = Vec::new();
    while compressed.read(&engine, &ids)? {
        if let Some(full) = &mut full {
            full.read(&engine, &ids)?;
            let rows = full
                .logits
                .chunks_exact(vocab)
                .zip(compressed.logits.chunks_exact(vocab));
            kl.extend(rows.map(|(full, compressed)| divergence(full, compressed)));
        }
        if interrupt::asked() {
            anyhow::bail!("interrupted after {} tokens", compressed.done);
        }
        progress.show(&format!("{}/{} tokens", compressed.done, ids.len()));
    }
    progress.clear();

    let stats = compressed.sequence.stats();
    let report = Report {
        mean: mean(&compressed.nll),
        nll: compressed.nll,
        compressions: stats.compressions,
        prompt_tokens,
        max_tokens: ids.len(),
        cache_peak_bytes: stats.cache_peak_bytes,
        against: full.map(|full| Against {
            full_mean: mean(&full.nll),
            full_nll: full.nll,
            mean_kl: mean(&kl),
            kl,
        }),
    };
    output::print(&match json {
        true => serde_json::to_string(&report)? + "\n",
        false => report.text(),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The option `--prompt-tokens`.
pub fn prompt_tokens(given: &Given) -> anyhow::Result<usize> {
    Ok(given.count("prompt-tokens")?.unwrap_or(DEFAULT_PROMPT_TOKENS))
}

/// The tokens of a text, more than the prompt's and as many as the context holds.
pub fn ids(
    source: Source,
    engine: &Engine,
    prompt_tokens: usize,
    max_tokens: Option<usize>,
) -> anyhow::Result<Vec<u32>> {
    let dimensions = &engine.model().manifest().dimensions;
    let mut ids = source.ids(engine)?;
    ids.truncate(max_tokens.unwrap_or(dimensions.max_positions));
    if ids.len() <= prompt_tokens {
        anyhow::bail!(
            "expected more tokens than --prompt-tokens {prompt_tokens}, found {} (--max-tokens and the context counted)",
            ids.len()
        );
    }
    let vocab = dimensions.vocab_size;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
        anyhow::bail!("token id: expected 0 to {}, found {id}", vocab - 1);
    }
    Ok(ids)
}

/// The tokens of a raw text, behind the one that begins every text if the model has one.
pub fn raw_ids(model: &Model, text: &str) -> anyhow::Result<Vec<u32>> {
    let tokens = &model.manifest().tokens;
    let bos = tokens.bos.filter(|_| tokens.add_bos);
    Ok(encode_raw(model.tokenizer()?, text, bos)?)
}

/// Where the tokens come from.
pub enum Source {
    /// A raw text.
    Text(String),
    /// Its ids.
    Ids(Vec<u32>),
}

impl Source {
    /// The one that the options name.
    pub fn parse(given: &Given) -> anyhow::Result<Self> {
        match (given.path("text"), given.path("ids")) {
            (Some(path), None) => Ok(Self::Text(read_text(&path)?)),
            (None, Some(path)) => Ok(Self::Ids(parse_ids("--ids", &read_text(Path::new(&path))?)?)),
            (None, None) => usage("expected --text or --ids, found neither"),
            _ => usage("expected one of --text and --ids, found both"),
        }
    }

    fn ids(self, engine: &Engine) -> anyhow::Result<Vec<u32>> {
        match self {
            Self::Ids(ids) => Ok(ids),
            Self::Text(text) => raw_ids(engine.model(), &text),
        }
    }
}

/// A sequence that reads the text.
struct Reader {
    sequence: Sequence,
    /// Tokens of the text that were run.
    done: usize,
    prompt_tokens: usize,
    /// After each token of the last piece that predicts one.
    logits: Vec<f32>,
    step: Vec<f32>,
    nll: Vec<f64>,
}

impl Reader {
    fn new(
        engine: &Engine,
        policy: Arc<dyn Policy>,
        ids: &[u32],
        prompt_tokens: usize,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let mut sequence = engine.sequence(SequenceOptions {
            policy,
            sampling: SamplingOptions {
                seed,
                ..SamplingOptions::GREEDY
            },
            record_kept: false,
        })?;
        sequence.append_tokens(&ids[..prompt_tokens])?;
        sequence.reserve(ids.len() - prompt_tokens)?;
        Ok(Self {
            sequence,
            done: 0,
            prompt_tokens,
            logits: Vec::new(),
            step: Vec::new(),
            nll: Vec::new(),
        })
    }

    /// Runs the prompt, or the next tokens behind it. False at the end: the last token predicts nothing.
    fn read(&mut self, engine: &Engine, ids: &[u32]) -> anyhow::Result<bool> {
        let vocab = engine.model().manifest().dimensions.vocab_size;
        let end = (self.done + CHUNK).min(ids.len() - 1);
        let end = match self.done {
            0 => self.prompt_tokens,
            done if done >= end => return Ok(false),
            done => {
                for &id in &ids[done..end] {
                    self.sequence.accept(id)?;
                }
                end
            }
        };
        self.logits.clear();
        while self.sequence.pending() > 0 {
            let positions = engine.step_with_logits(&mut self.sequence, &mut self.step)?;
            for (position, row) in positions.zip(self.step.chunks_exact(vocab)) {
                // The prompt's last token predicts the first behind it.
                if position + 1 >= self.prompt_tokens {
                    self.nll.push(-log_probability(row, ids[position + 1]));
                    self.logits.extend_from_slice(row);
                }
            }
        }
        self.done = end;
        Ok(true)
    }
}

/// The logarithm of the sum of the exponentials.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits
        .iter()
        .map(|&logit| (f64::from(logit) - largest).exp())
        .sum();
    largest + sum.ln()
}

fn log_probability(logits: &[f32], id: u32) -> f64 {
    f64::from(logits[id as usize]) - log_sum_exp(logits)
}

/// KL(full || other) of two distributions over the vocabulary, in nats.
fn divergence(full: &[f32], other: &[f32]) -> f64 {
    let (full_sum, other_sum) = (log_sum_exp(full), log_sum_exp(other));
    let terms = full.iter().zip(other).map(|(&full, &other)| {
        let log_p = f64::from(full) - full_sum;
        log_p.exp() * (log_p - (f64::from(other) - other_sum))
    });
    terms.sum()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

impl Report {
    fn text(&self) -> String {
        let mut lines = vec![
            format!(
                "tokens       {} predicted, behind a prompt of {}",
                self.nll.len(),
                self.prompt_tokens
            ),
            format!(
                "nll          {:.4} (perplexity {:.3})",
                self.mean,
                self.mean.exp()
            ),
        ];
        if let Some(against) = &self.against {
            lines.push(format!(
                "whole cache  {:.4} (perplexity {:.3}); difference {:+.4}, KL {:.4}",
                against.full_mean,
                against.full_mean.exp(),
                self.mean - against.full_mean,
                against.mean_kl
            ));
        }
        lines.push(format!(
            "cache        {} compressions, {} at the peak",
            self.compressions,
            human(self.cache_peak_bytes as u64)
        ));
        lines.join("\n") + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_divergence_is_none_of_equals_and_known_of_two() {
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-7, "{a} {b}");
        near(divergence(&[1.0, -2.0, 80.0], &[11.0, 8.0, 90.0]), 0.0);
        // p = (1/2, 1/2), q = (1/4, 3/4).
        let (p, q) = ([7.0, 7.0], [0.0, 3.0f32.ln()]);
        near(divergence(&p, &q), 0.5 * 2.0f64.ln() + 0.5 * (2.0f64 / 3.0).ln());
        near(log_probability(&q, 1), 0.75f64.ln());
    }
}
