//! Options of the cache and its compression, and the exact peak that follows from them.

use std::sync::Arc;

use reasoning_rpc_engine::core::{
    Aggregation, Budget, CacheShape, LightThinker, Policy, PolicyKind, Pooling, Queries, Rpc, RpcOptions,
    Similarity, Softmax,
};
use reasoning_rpc_engine::model::Flavour;
use reasoning_rpc_engine::{CacheType, Engine};

use crate::args::{Given, Group, Opt, Usage, option, parse_ids, usage};

const POLICY: Opt = option(
    "policy",
    "NAME",
    "what is kept: none (everything), rpc, snapkv, streaming, random,\nr-kv, lookahead, lookahead-merge, h2o or tova [lookahead-merge; rpc\nfor a model of the portable flavour]. All but none\nread the options down to --bytes; rpc alone those down to --kernel.\nh2o and tova drop an entry at every token: they keep --entries, or\nwith --ratio as many as rpc holds at its peak. lightthinker, for\nmodels trained for it, reads --delimiters, --gists and --resume",
);
const INTERVAL: Opt = option("interval", "P", "a compression every P generated tokens [4096]");
const WINDOW: Opt = option(
    "window",
    "R",
    "the newest R tokens score the past and always stay [32]",
);
const RATIO: Opt = option("ratio", "C", "one entry in C is kept; divides P [4]");
const ENTRIES: Opt = option(
    "entries",
    "N",
    "in place of --ratio: N entries stay, however long the text is, the\nwindow not counted; the cache never holds more than N + R + P\ngenerated ones",
);
const BYTES: Opt = option(
    "bytes",
    "BYTES",
    "in place of --ratio: as many --entries as keep all generated ones,\nwindow and P new ones included, within BYTES",
);
const AGGREGATION: Opt = option(
    "aggregation",
    "HOW",
    "layer or kv_head: one kept set per layer or per KV head; adaptive:\none per KV head, longer where scores are higher, which snapkv and\nthose that look ahead read too [layer of rpc, kv_head of snapkv,\nadaptive of those that look ahead]",
);
const QUERIES: Opt = option(
    "queries",
    "HOW",
    "of lookahead and lookahead-merge, stored or online: store the\nqueries of P tokens, which are of the budget, or ask each while\nit attends, which takes no memory but some time and accuracy\n[auto: stored up to P = 256]",
);
const DELIMITERS: Opt = option(
    "delimiters",
    "IDS",
    "of lightthinker: token ids between commas that end a thought",
);
const GISTS: Opt = option(
    "gists",
    "IDS",
    "of lightthinker: token ids that are put behind a thought and stay\nin its place. They count as tokens of the answer",
);
const RESUME: Opt = option(
    "resume",
    "ID",
    "of lightthinker: a token behind the gists, which no longer sees\nthe thought [none]",
);
const CACHE_DTYPE: Opt = option(
    "cache-dtype",
    "TYPE",
    "fp32, fp16, bf16 or int8 [fp16; fp32 for a model of the portable\nflavour, which takes no other]",
);

/// For commands that compress.
pub const GROUP: Group = Group {
    title: "KV cache",
    options: &[
        POLICY,
        INTERVAL,
        WINDOW,
        RATIO,
        ENTRIES,
        BYTES,
        AGGREGATION,
        option(
            "softmax",
            "HOW",
            "candidates or all: what a query's attention is shared out\namong [candidates]",
        ),
        option(
            "history",
            "D",
            "adds D times an entry's score at the compression before, 0 to\n1 [0; 0.6 of those that look ahead]",
        ),
        option(
            "value-norms",
            "HOW",
            "no or yes: scores times the values' sums of magnitudes [no]",
        ),
        option(
            "redundancy",
            "W",
            "subtracts W times how much an entry's key resembles others, as\nr-kv does, from 1 - W times its score, 0 to 1 [0]",
        ),
        option("pooling", "HOW", "avg, max or none of neighbouring scores [avg]"),
        option("kernel", "N", "width of the pooling, odd [7]"),
        QUERIES,
        option(
            "similarity",
            "HOW",
            "of lookahead-merge, which kept key a dropped one is merged into:\nlogits, the one that the interval's queries see the least\ndifference to, or cosine [logits]",
        ),
        DELIMITERS,
        GISTS,
        RESUME,
        CACHE_DTYPE,
        option(
            "budget",
            "BYTES",
            "the most bytes of the cache; an answer whose exact peak is\nlarger is refused. K, M, G, T or KiB ... are powers of 1024, KB\n... of 1000 [what the whole context takes uncompressed]",
        ),
    ],
};

/// For commands that only count.
pub const SIZE_GROUP: Group = Group {
    title: "KV cache",
    options: &[
        POLICY,
        INTERVAL,
        WINDOW,
        RATIO,
        ENTRIES,
        BYTES,
        AGGREGATION,
        QUERIES,
        CACHE_DTYPE,
    ],
};

/// The name of the policy that adds tokens to the text.
pub const LIGHT_THINKER: &str = "lightthinker";

/// The policies that read an option which not all do: a value for another one would mean nothing. What says when is compressed
/// and how much stays is left alone, so that `none` can stand in a policy's place.
const READ_BY: [(&str, &[PolicyKind]); 9] = [
    (
        "aggregation",
        &[
            PolicyKind::Rpc,
            PolicyKind::SnapKv,
            PolicyKind::Lookahead,
            PolicyKind::LookaheadMerge,
        ],
    ),
    (
        "history",
        &[PolicyKind::Rpc, PolicyKind::Lookahead, PolicyKind::LookaheadMerge],
    ),
    ("queries", &[PolicyKind::Lookahead, PolicyKind::LookaheadMerge]),
    ("similarity", &[PolicyKind::LookaheadMerge]),
    ("softmax", &[PolicyKind::Rpc]),
    ("value-norms", &[PolicyKind::Rpc]),
    ("redundancy", &[PolicyKind::Rpc]),
    ("pooling", &[PolicyKind::Rpc]),
    ("kernel", &[PolicyKind::Rpc]),
];

/// The options of lightthinker alone.
const THOUGHTS: [&str; 3] = ["delimiters", "gists", "resume"];

/// Refuses options that the policy, which was given with them, does not read.
pub fn check_read(given: &Given) -> anyhow::Result<()> {
    let name = given.text("policy")?;
    let of_thoughts = name.as_deref() == Some(LIGHT_THINKER);
    let kind = match name.as_deref() {
        None => Some(Flavour::Cached.default_policy()),
        Some(name) => PolicyKind::from_name(name),
    };
    let found = name.as_deref().unwrap_or("no --policy");
    let refuse = |option: &str, readers: &str| {
        usage(format!(
            "--{option}: expected with --policy {readers}, found {found}"
        ))
    };
    if !of_thoughts && let Some(option) = THOUGHTS.into_iter().find(|option| given.has(option)) {
        return refuse(option, LIGHT_THINKER);
    }
    for (option, kinds) in READ_BY.iter().filter(|(option, _)| given.has(option)) {
        // Another name is refused where policies are.
        let unread = of_thoughts || kind.is_some_and(|kind| !kinds.contains(&kind));
        if unread {
            let readers: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
            return refuse(option, &readers.join(" or "));
        }
    }
    Ok(())
}

/// The policy that the options name, checked as far as it goes without the model.
pub struct Choice {
    /// None: the default of the model's flavour.
    kind: Option<PolicyKind>,
    options: RpcOptions,
    /// In place of the options' budget.
    bytes: Option<usize>,
    /// In place of `kind`.
    thoughts: Option<LightThinker>,
}

impl Choice {
    /// Of a command that has one policy, whose options are all for it.
    pub fn alone(given: &Given) -> anyhow::Result<Self> {
        check_read(given)?;
        Self::parse(given)
    }

    /// The options' values.
    pub fn parse(given: &Given) -> anyhow::Result<Self> {
        let defaults = RpcOptions::default();
        let count = |name, default| -> anyhow::Result<usize> {
            Ok(given.number(name, "a whole number", |_| true)?.unwrap_or(default))
        };
        let share = |name| given.number(name, "0 to 1", |share: &f32| (0.0..=1.0).contains(share));
        let budgets = ["ratio", "entries", "bytes"];
        let named: Vec<&str> = budgets.into_iter().filter(|name| given.has(name)).collect();
        if named.len() > 1 {
            return usage(format!(
                "expected one of --ratio, --entries and --bytes, found --{}",
                named.join(" and --")
            ));
        }
        let budget = match named.first() {
            Some(&"ratio") => Budget::Ratio(count("ratio", 0)?),
            Some(&"entries") => Budget::Entries(count("entries", 0)?),
            _ => defaults.budget,
        };
        let mut kinds = PolicyKind::ALL.map(|kind| (kind.name(), Some(kind))).to_vec();
        kinds.push((LIGHT_THINKER, None));
        let kind = given.choice("policy", &kinds)?;
        let options = RpcOptions {
            interval: count("interval", defaults.interval)?,
            window: count("window", defaults.window)?,
            budget,
            kernel: count("kernel", defaults.kernel)?,
            aggregation: given.choice("aggregation", &Aggregation::ALL.map(|one| (one.name(), one)))?,
            pooling: given
                .choice(
                    "pooling",
                    &[
                        ("avg", Pooling::Average),
                        ("max", Pooling::Max),
                        ("none", Pooling::None),
                    ],
                )?
                .unwrap_or(defaults.pooling),
            softmax: given
                .choice(
                    "softmax",
                    &[("candidates", Softmax::Candidates), ("all", Softmax::All)],
                )?
                .unwrap_or(defaults.softmax),
            history: share("history")?,
            value_norms: given
                .choice("value-norms", &[("no", false), ("yes", true)])?
                .unwrap_or(defaults.value_norms),
            redundancy: share("redundancy")?.unwrap_or(defaults.redundancy),
            queries: given
                .choice(
                    "queries",
                    &[
                        ("auto", Queries::Auto),
                        ("stored", Queries::Stored),
                        ("online", Queries::Online),
                    ],
                )?
                .unwrap_or(defaults.queries),
            similarity: given
                .choice("similarity", &Similarity::ALL.map(|one| (one.name(), one)))?
                .unwrap_or(defaults.similarity),
        };
        let bytes = given.bytes("bytes")?;
        let checked = match bytes {
            // How many entries they are is the model's to say.
            Some(_) => RpcOptions {
                budget: Budget::Entries(1),
                ..options
            },
            None => options,
        };
        Rpc::new(checked).map_err(|error| Usage(error.0))?;
        Ok(Self {
            thoughts: match kind {
                Some(None) => Some(thoughts(given)?),
                _ => None,
            },
            kind: kind.flatten(),
            options,
            bytes,
        })
    }

    /// For commands that have no use for one that adds tokens to the text, and say why.
    pub fn without_thoughts(self, why: &str) -> anyhow::Result<Self> {
        match self.thoughts {
            None => Ok(self),
            Some(_) => usage(format!(
                "--policy: expected one that adds no tokens to the text, found \"lightthinker\": {why}"
            )),
        }
    }

    fn kind(&self, flavour: Flavour) -> PolicyKind {
        self.kind.unwrap_or_else(|| flavour.default_policy())
    }

    /// The options, with the budget that they come to for a model's cache.
    pub fn options(&self, flavour: Flavour, shape: &CacheShape) -> anyhow::Result<RpcOptions> {
        let mut options = self.options;
        if let Some(bytes) = self.bytes {
            options.budget = self
                .kind(flavour)
                .budget_within(bytes, shape, &options)
                .map_err(|error| Usage(format!("--{}", error.0)))?;
        }
        Ok(options)
    }

    /// The policy of a list, which has a name, and its options, in words.
    pub fn describe(&self) -> String {
        let RpcOptions { interval, window, .. } = self.options;
        let budget = match (self.bytes, self.options.budget) {
            (Some(bytes), _) => format!("{bytes} bytes"),
            (None, Budget::Ratio(ratio)) => format!("ratio {ratio}"),
            (None, Budget::Entries(entries)) => format!("{entries} entries"),
        };
        if let Some(thoughts) = &self.thoughts {
            return thoughts.describe();
        }
        let kind = self.kind.unwrap_or(PolicyKind::None);
        if kind == PolicyKind::None {
            return "the full cache".into();
        }
        let mut text = format!("{}, interval {interval}, window {window}, {budget}", kind.name());
        let looks_ahead = matches!(kind, PolicyKind::Lookahead | PolicyKind::LookaheadMerge);
        if let Some(aggregation) = self
            .options
            .aggregation
            .filter(|_| looks_ahead || [PolicyKind::Rpc, PolicyKind::SnapKv].contains(&kind))
        {
            text += &format!(", {} aggregation", aggregation.name());
        }
        match self.options.queries {
            Queries::Stored if looks_ahead => text += ", stored queries",
            Queries::Online if looks_ahead => text += ", online queries",
            _ => {}
        }
        if kind == PolicyKind::LookaheadMerge && self.options.similarity != Similarity::default() {
            text += &format!(", similarity by {}", self.options.similarity.name());
        }
        if kind == PolicyKind::Rpc {
            let (options, defaults) = (&self.options, RpcOptions::default());
            let others = [
                (
                    options.pooling != defaults.pooling,
                    format!("{:?} pooling", options.pooling),
                ),
                (
                    options.kernel != defaults.kernel,
                    format!("kernel {}", options.kernel),
                ),
                (
                    options.softmax != defaults.softmax,
                    "softmax over all entries".into(),
                ),
                (
                    options.history != defaults.history,
                    format!("history {}", options.history.unwrap_or_default()),
                ),
                (options.value_norms, "value norms".into()),
                (
                    options.redundancy != defaults.redundancy,
                    format!("redundancy {}", options.redundancy),
                ),
            ];
            for (_, other) in others.iter().filter(|(differs, _)| *differs) {
                text += ", ";
                text += other;
            }
        }
        text
    }

    /// The policy, for an engine's model.
    pub fn of(&self, engine: &Engine) -> anyhow::Result<Arc<dyn Policy>> {
        self.policy(engine.model().manifest().flavour, engine.cache_shape())
    }

    /// The policy, for a model's cache.
    pub fn policy(&self, flavour: Flavour, shape: &CacheShape) -> anyhow::Result<Arc<dyn Policy>> {
        if let Some(thoughts) = &self.thoughts {
            return Ok(Arc::new(thoughts.clone()));
        }
        let options = self.options(flavour, shape)?;
        Ok(self
            .kind(flavour)
            .build(options)
            .map_err(|error| Usage(error.0))?)
    }
}

/// The options of lightthinker.
fn thoughts(given: &Given) -> anyhow::Result<LightThinker> {
    let ids = |name: &str| match given.text(name)? {
        Some(list) => parse_ids(&format!("--{name}"), &list),
        None => usage(format!(
            "--policy lightthinker: expected --{name} IDS, found none"
        )),
    };
    let resume = given.number("resume", "a token id", |_| true)?;
    Ok(LightThinker::new(ids("delimiters")?, ids("gists")?, resume).map_err(|error| Usage(error.0))?)
}

/// The element type of the cache, if one was named.
pub fn cache_type(given: &Given) -> anyhow::Result<Option<CacheType>> {
    let types = [CacheType::F32, CacheType::F16, CacheType::Bf16, CacheType::I8];
    given.choice(
        "cache-dtype",
        &types.map(|cache_type| (cache_type.name(), cache_type)),
    )
}

/// The element type that the engine takes when none is named.
pub fn default_cache_type(flavour: Flavour) -> CacheType {
    match flavour {
        Flavour::Cached => CacheType::default(),
        Flavour::Portable => CacheType::F32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_the_real_defaults() {
        let defaults = RpcOptions::default();
        let Budget::Ratio(ratio) = defaults.budget else {
            panic!("a ratio, found {:?}", defaults.budget);
        };
        let named = [
            ("interval", defaults.interval.to_string()),
            ("window", defaults.window.to_string()),
            ("ratio", ratio.to_string()),
            ("kernel", defaults.kernel.to_string()),
        ];
        for (name, value) in named {
            let option = GROUP.options.iter().find(|option| option.name == name);
            assert!(
                option.is_some_and(|option| option.help.contains(&format!("[{value}]"))),
                "{name}"
            );
        }
    }
}
