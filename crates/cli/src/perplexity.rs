//! `reasoning-rpc perplexity`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use reasoning_rpc_engine::core::NoCompression;
use reasoning_rpc_engine::model::Model;
use reasoning_rpc_engine::text::encode_raw;
use reasoning_rpc_engine::{Engine, EngineOptions};
use serde::Serialize;

use crate::args::{Command, Given, Group, Opt, option, parse_ids, usage};
use crate::compression::{self, Choice};
use crate::output::{self, Progress, human};
use crate::policies::{self, Named};
use crate::prompt::read_text;
use crate::reading::{CHUNK, Predictions, Reader, read_together};
use crate::{interrupt, model};

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
            title: "Several policies",
            options: &[Opt {
                help: "in place of --policy: names between commas, each with options\nof its own behind colons, those above where it has none:\nrpc,rpc:ratio=8,random:interval=64:window=16",
                ..policies::LIST
            }],
        },
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

With --policies each policy reads the text, and the whole cache of --against none is run once for
all. The object's field policies then lists them: policy, nll, mean, compressions, cache_peak_bytes
and, if asked for, kl and mean_kl.

lightthinker puts its gists behind the text's delimiters as behind the model's: they are read, not
predicted, and the tokens after them are predicted from what sums the thought up.

The perplexity is e to the power of the mean.",
    run,
};

/// What is printed.
#[derive(Serialize)]
struct Report {
    prompt_tokens: usize,
    max_tokens: usize,
    #[serde(flatten)]
    whole: Option<Whole>,
    #[serde(flatten)]
    found: Found,
}

/// One policy's figures stand beside the others; those of a list are a field.
#[derive(Serialize)]
#[serde(untagged)]
enum Found {
    One(Figures),
    Many { policies: Vec<Listed> },
}

#[derive(Serialize)]
struct Listed {
    policy: String,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Serialize)]
struct Figures {
    nll: Vec<f64>,
    mean: f64,
    compressions: usize,
    cache_peak_bytes: usize,
    #[serde(flatten)]
    against: Option<Against>,
}

/// The whole cache.
#[derive(Serialize)]
struct Whole {
    full_nll: Vec<f64>,
    full_mean: f64,
}

/// Against the whole cache.
#[derive(Serialize)]
struct Against {
    kl: Vec<f64>,
    mean_kl: f64,
}

fn run(given: &Given) -> anyhow::Result<ExitCode> {
    let json = given.json()?;
    let against = given.choice("against", &[("none", ())])?.is_some();
    let listed = given.has("policies");
    if listed && given.has("policy") {
        return usage("expected one of --policy and --policies, found both");
    }
    let named = match listed {
        true => policies::parse(given)?,
        false => vec![Named {
            label: given.text("policy")?.unwrap_or_default(),
            choice: Choice::alone(given)?,
        }],
    };
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
    let engine = model::open(&options, named.len() + usize::from(against))?;
    let ids = ids(source, &engine, prompt_tokens, max_tokens)?;
    let reader = |policy| Reader::new(&engine, policy, &ids, prompt_tokens, seed);
    let mut readers = Vec::new();
    for Named { choice, .. } in &named {
        readers.push(reader(choice.of(&engine)?)?);
    }
    let mut whole = match against {
        true => Some(reader(Arc::new(NoCompression))?),
        false => None,
    };
    interrupt::watch();
    let mut full = Predictions::default();
    let mut compressed = vec![Predictions::default(); readers.len().max(1)];
    let mut more = true;
    while more {
        if let Some(whole) = &mut whole {
            whole.read(&engine, &ids, &mut full)?;
            full.fill_probabilities();
        }
        let (mut rolling, others): (Vec<_>, Vec<_>) = readers.iter_mut().partition(|reader| reader.rolling);
        for reader in others {
            more = reader.read(&engine, &ids, &mut compressed[0])?;
            if more && against {
                reader.kl.extend(full.divergences(&compressed[0]));
            }
        }
        if !rolling.is_empty() {
            more = read_together(&mut rolling, &engine, &ids, &mut compressed)?;
            for (reader, predictions) in rolling.into_iter().zip(&compressed).filter(|_| more && against) {
                reader.kl.extend(full.divergences(predictions));
            }
        }
        let done = readers.first().map_or(0, |reader| reader.done);
        if interrupt::asked() {
            anyhow::bail!("interrupted after {done} tokens");
        }
        progress.show(&format!("{done}/{} tokens", ids.len()));
    }
    progress.clear();

    let mut figures = Vec::new();
    for reader in readers {
        let stats = reader.sequence.stats();
        figures.push(Figures {
            mean: mean(&reader.nll),
            nll: reader.nll,
            compressions: stats.compressions,
            cache_peak_bytes: stats.cache_peak_bytes,
            against: against.then(|| Against {
                mean_kl: mean(&reader.kl),
                kl: reader.kl,
            }),
        });
    }
    let found = match (listed, figures.pop()) {
        (false, Some(one)) => Found::One(one),
        (_, last) => {
            let labels = named.into_iter().map(|named| named.label);
            let figures = labels.zip(figures.into_iter().chain(last));
            Found::Many {
                policies: figures
                    .map(|(policy, figures)| Listed { policy, figures })
                    .collect(),
            }
        }
    };
    let report = Report {
        prompt_tokens,
        max_tokens: ids.len(),
        whole: whole.map(|whole| Whole {
            full_mean: mean(&whole.nll),
            full_nll: whole.nll,
        }),
        found,
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

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

impl Report {
    fn text(&self) -> String {
        let figures: Vec<(&str, &Figures)> = match &self.found {
            Found::One(figures) => vec![("", figures)],
            Found::Many { policies } => {
                let listed = policies.iter();
                listed.map(|one| (one.policy.as_str(), &one.figures)).collect()
            }
        };
        let predicted = self.max_tokens - self.prompt_tokens;
        let mut lines = vec![format!(
            "tokens       {predicted} predicted, behind a prompt of {}",
            self.prompt_tokens
        )];
        if let Some(whole) = &self.whole {
            lines.push(format!(
                "whole cache  {:.4} (perplexity {:.3})",
                whole.full_mean,
                whole.full_mean.exp()
            ));
        }
        for (policy, figures) in figures {
            if !policy.is_empty() {
                lines.push(format!("\n{policy}"));
            }
            lines.push(format!(
                "nll          {:.4} (perplexity {:.3})",
                figures.mean,
                figures.mean.exp()
            ));
            if let (Some(whole), Some(against)) = (&self.whole, &figures.against) {
                lines.push(format!(
                    "apart        {:+.4} from the whole cache, KL {:.4}",
                    figures.mean - whole.full_mean,
                    against.mean_kl
                ));
            }
            lines.push(format!(
                "cache        {} compressions, {} at the peak",
                figures.compressions,
                human(figures.cache_peak_bytes as u64)
            ));
        }
        lines.join("\n") + "\n"
    }
}
