//! `reasoning-rpc inspect`.

use std::fmt::Write;
use std::process::ExitCode;

use reasoning_rpc_engine::core::{Budget, CacheShape, NoCompression, Policy, RpcOptions, Trigger};
use reasoning_rpc_engine::model::{Flavour, Manifest, Model};
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::{CacheType, EngineOptions};
use serde::Serialize;

use crate::args::{Command, Given, Group, option, usage};
use crate::compression;
use crate::output::{self, human};

const PROMPT_TOKENS: usize = 128;
const MAX_TOKENS: usize = 4096;

/// The command.
pub const COMMAND: Command = Command {
    name: "inspect",
    summary: "Says what a model is and what its cache takes, before anything is run.",
    usage: &["--model DIR [options]"],
    groups: &[
        Group {
            title: "Options",
            options: &[
                option("model", "DIR", "the model folder"),
                option("prompt-tokens", "N", "tokens of the prompt [128]"),
                option(
                    "max-tokens",
                    "N",
                    "tokens of the answer [4096, or what the context has room for]",
                ),
                option("output", "HOW", "text or json [text]"),
            ],
        },
        compression::SIZE_GROUP,
    ],
    notes: "\
The peak is the most that the cache holds at any moment until the answer has its last token, the
moment before each compression and the rounding to whole blocks included. It is exact but for
adaptive aggregation, whose KV heads may take up to a block each less. Entries are those of
each KV head of each layer. An answer that stops early needs no more. The peak, and the budget,
count the queries of an interval that lookahead and lookahead-merge store, in whole blocks; what
else a policy remembers beside the cache (a window's queries, scores of the past) is outside of
both.",
    run,
};

#[derive(Serialize)]
struct Inspection<'a> {
    architecture: &'a str,
    flavour: &'static str,
    weights: &'a str,
    parameters: u64,
    file_bytes: u64,
    num_layers: usize,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    hidden_size: usize,
    vocab_size: usize,
    context: usize,
    tokenizer: bool,
    chat_template: bool,
    stop_tokens: &'a [u32],
    default_sampling: Sampling,
    cache: Cache,
    answer: Planned,
}

#[derive(Serialize)]
struct Sampling {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
}

#[derive(Serialize)]
struct Cache {
    dtype: &'static str,
    /// Keys and values alone.
    kv_bytes_per_token: usize,
    /// With the original position of every entry.
    bytes_per_token: usize,
    block_entries: usize,
    block_bytes: usize,
    /// What the cache grows by once in `block_entries` tokens.
    growth_bytes: usize,
}

#[derive(Serialize)]
struct Planned {
    prompt_tokens: usize,
    max_tokens: usize,
    policy: String,
    interval: usize,
    window: usize,
    ratio: Option<usize>,
    entries: Option<usize>,
    compressions: usize,
    /// Recorded queries, and their moments, that neither the peak nor the budget counts.
    query_bytes: usize,
    /// Stored queries of an interval, in whole blocks: of the peak and of the budget.
    stored_query_bytes: usize,
    /// The policy's floats, beside the cache and not of the budget.
    history_bytes: usize,
    peak_compressed: Peak,
    peak_uncompressed: Peak,
}

#[derive(Serialize)]
struct Peak {
    entries: usize,
    bytes: usize,
}

fn run(given: &Given) -> anyhow::Result<ExitCode> {
    let json = given.json()?;
    let folder = given.model()?;
    let (prompt_tokens, max_tokens) = (given.count("prompt-tokens")?, given.count("max-tokens")?);
    if given.text("policy")?.as_deref() == Some(compression::LIGHT_THINKER) {
        return usage(
            "--policy: expected one with a peak that is known before, found \"lightthinker\": it holds what an answer \
             without compression would, --policy none",
        );
    }
    let compression = compression::Choice::alone(given)?;
    let cache_type = compression::cache_type(given)?;

    let block_entries = EngineOptions::new(&folder).block_entries;
    let model = Model::open(&folder, false)?;
    let manifest = model.manifest();
    let d = &manifest.dimensions;
    let cache_type = match (manifest.flavour, cache_type) {
        (Flavour::Portable, Some(other)) if other != CacheType::F32 => {
            anyhow::bail!(
                "--cache-dtype: expected fp32 for a model of the portable flavour, found {}",
                other.name()
            )
        }
        (flavour, chosen) => chosen.unwrap_or_else(|| compression::default_cache_type(flavour)),
    };
    let shape = CacheShape {
        layers: d.num_layers,
        kv_heads: d.num_kv_heads,
        head_dim: d.head_dim,
        element_bytes: cache_type.bytes(),
        scale_bytes: cache_type.scale_bytes(),
        block_entries,
    };
    let sampling = SamplingOptions::from_generation(&manifest.generation)?;
    let inspection = Inspection {
        architecture: &manifest.architecture,
        flavour: match manifest.flavour {
            Flavour::Cached => "cached",
            Flavour::Portable => "portable",
        },
        weights: &manifest.weights,
        parameters: d.parameters,
        file_bytes: manifest.total_bytes(),
        num_layers: d.num_layers,
        num_heads: d.num_heads,
        num_kv_heads: d.num_kv_heads,
        head_dim: d.head_dim,
        hidden_size: d.hidden_size,
        vocab_size: d.vocab_size,
        context: d.max_positions,
        tokenizer: model.tokenizer().is_ok(),
        chat_template: model.template().is_ok(),
        stop_tokens: &manifest.tokens.stop,
        default_sampling: Sampling {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
        },
        cache: Cache {
            dtype: cache_type.name(),
            kv_bytes_per_token: shape.layers * shape.kv_heads * 2 * shape.vector_bytes(),
            bytes_per_token: shape.token_bytes(),
            block_entries,
            block_bytes: shape.block_bytes(),
            growth_bytes: shape.bytes(1),
        },
        answer: plan(
            manifest,
            &shape,
            &*compression.policy(manifest.flavour, &shape)?,
            &compression.options(manifest.flavour, &shape)?,
            prompt_tokens,
            max_tokens,
        )?,
    };
    let text = if json {
        serde_json::to_string(&inspection)? + "\n"
    } else {
        inspection.text()
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// What an answer of so many tokens will hold.
fn plan(
    manifest: &Manifest,
    shape: &CacheShape,
    policy: &dyn Policy,
    options: &RpcOptions,
    prompt_tokens: Option<usize>,
    max_tokens: Option<usize>,
) -> anyhow::Result<Planned> {
    let context = manifest.dimensions.max_positions;
    let prompt_tokens = prompt_tokens.unwrap_or_else(|| PROMPT_TOKENS.min(context - 1).max(1));
    let room = context.saturating_sub(prompt_tokens);
    let max_tokens = max_tokens.unwrap_or_else(|| MAX_TOKENS.min(room).max(1));
    if max_tokens > room {
        return usage(format!(
            "--prompt-tokens and --max-tokens: expected at most {context} together, the model's context, found {prompt_tokens} and {max_tokens}"
        ));
    }
    // The last token is never written to the cache.
    let written = max_tokens - 1;
    let peak = |policy: &dyn Policy, beside| {
        let entries = policy.promised_entries(prompt_tokens, written, shape.block_entries);
        Peak {
            entries,
            bytes: shape.bytes(entries) + beside,
        }
    };
    let spec = policy.spec();
    // A sequence that no compression is ever due for remembers nothing for one.
    let (compressions, remembers) = match spec.trigger {
        Trigger::Interval(schedule) => (schedule.compressions(written), schedule.due_at(0) <= context),
        Trigger::EveryToken(rolling) => (rolling.evictions(written), rolling.evictions(context) > 0),
        _ => (0, false),
    };
    let d = &manifest.dimensions;
    // What a policy remembers is counted or not as a whole.
    let counted = match remembers {
        true => spec.counted_queries(),
        false => 0,
    };
    let stored_query_bytes = shape.query_blocks(counted, d.num_heads) * shape.block_bytes();
    let peak_compressed = peak(policy, stored_query_bytes);
    let history = match (remembers, spec.history, spec.attention) {
        (false, ..) | (_, false, None) => 0,
        // The sums before and behind a step.
        (.., Some(_)) => 2 * size_of::<f32>(),
        (.., None) => size_of::<f32>(),
    };
    let (ratio, entries) = match options.budget {
        Budget::Ratio(ratio) => (Some(ratio), None),
        Budget::Entries(entries) => (None, Some(entries)),
    };
    Ok(Planned {
        prompt_tokens,
        max_tokens,
        policy: policy.name().into(),
        interval: options.interval,
        window: options.window,
        ratio,
        entries,
        compressions,
        query_bytes: usize::from(remembers)
            * d.num_layers
            * ((spec.window_queries() - counted) * d.num_heads * d.head_dim
                + spec.moment_floats(d.head_dim) * d.num_kv_heads)
            * size_of::<f32>(),
        stored_query_bytes,
        history_bytes: shape.layers * shape.kv_heads * peak_compressed.entries * history,
        peak_compressed,
        peak_uncompressed: peak(&NoCompression, 0),
    })
}

impl Inspection<'_> {
    fn text(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<18}{value}");
        };
        let yes = |there| if there { "yes" } else { "no" };
        row(
            "architecture",
            format!("{}, {} graph", self.architecture, self.flavour),
        );
        row(
            "parameters",
            format!(
                "{}; weights {}, files {}",
                self.parameters,
                self.weights,
                human(self.file_bytes)
            ),
        );
        row("layers", self.num_layers.to_string());
        row(
            "heads",
            format!(
                "{} query, {} KV, {} elements each",
                self.num_heads, self.num_kv_heads, self.head_dim
            ),
        );
        row("hidden size", self.hidden_size.to_string());
        row("vocabulary", format!("{} tokens", self.vocab_size));
        row("context", format!("{} tokens", self.context));
        row("tokenizer", yes(self.tokenizer).into());
        row("chat template", yes(self.chat_template).into());
        let stops: Vec<String> = self.stop_tokens.iter().map(u32::to_string).collect();
        row(
            "stop tokens",
            if stops.is_empty() {
                "none".into()
            } else {
                stops.join(", ")
            },
        );
        let s = &self.default_sampling;
        row(
            "default sampling",
            match s.temperature {
                0.0 => format!("greedy, repetition penalty {}", s.repetition_penalty),
                temperature => format!(
                    "temperature {temperature}, top-k {}, top-p {}, min-p {}, repetition penalty {}",
                    s.top_k, s.top_p, s.min_p, s.repetition_penalty
                ),
            },
        );
        let c = &self.cache;
        row(
            "cache per token",
            format!(
                "{} bytes in {}; {} with the entries' positions",
                c.kv_bytes_per_token, c.dtype, c.bytes_per_token
            ),
        );
        row(
            "cache blocks",
            format!(
                "{} entries, {} bytes; the cache grows by {} bytes every {} tokens",
                c.block_entries, c.block_bytes, c.growth_bytes, c.block_entries
            ),
        );
        let a = &self.answer;
        let _ = writeln!(
            text,
            "\npeak cache of {} prompt tokens and {} generated ones",
            a.prompt_tokens, a.max_tokens
        );
        let peak = |peak: &Peak| {
            format!(
                "{} entries, {} bytes ({})",
                peak.entries,
                peak.bytes,
                human(peak.bytes as u64)
            )
        };
        let _ = writeln!(text, "  uncompressed    {}", peak(&a.peak_uncompressed));
        let _ = writeln!(
            text,
            "  {:<16}{}; P {}, R {}, {}, {} compressions",
            a.policy,
            peak(&a.peak_compressed),
            a.interval,
            a.window,
            match (a.ratio, a.entries) {
                (Some(ratio), _) => format!("c {ratio}"),
                (None, entries) => format!("{} entries", entries.unwrap_or(0)),
            },
            a.compressions
        );
        if a.stored_query_bytes > 0 {
            let queries = human(a.stored_query_bytes as u64);
            let _ = writeln!(text, "  of it           {queries} of stored queries");
        }
        let _ = writeln!(
            text,
            "  beside it       {} of recorded queries, {} of scores",
            human(a.query_bytes as u64),
            human(a.history_bytes as u64)
        );
        text
    }
}
