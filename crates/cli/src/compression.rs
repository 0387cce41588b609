//! Options of the cache and its compression, and the exact peak that follows from them.

use std::sync::Arc;

use reasoning_rpc_engine::CacheType;
use reasoning_rpc_engine::core::{Aggregation, NoCompression, Policy, Pooling, Rpc, RpcOptions};
use reasoning_rpc_engine::model::Flavour;

use crate::args::{Given, Group, Opt, Usage, option};

const INTERVAL: Opt = option("interval", "P", "a compression every P generated tokens [4096]");
const WINDOW: Opt = option(
    "window",
    "R",
    "the newest R tokens score the past and always stay [32]",
);
const RATIO: Opt = option("ratio", "C", "one entry in C is kept; divides P [4]");
const CACHE_DTYPE: Opt = option(
    "cache-dtype",
    "TYPE",
    "fp32 or fp16 [fp16; fp32 for a model of the portable flavour,\nwhich takes no other]",
);

/// For commands that compress.
pub const GROUP: Group = Group {
    title: "KV cache",
    options: &[
        option(
            "policy",
            "NAME",
            "none or rpc [rpc]; none ignores the options down to --kernel",
        ),
        INTERVAL,
        WINDOW,
        RATIO,
        option(
            "aggregation",
            "HOW",
            "layer or kv_head: one kept set per layer or per KV head [layer]",
        ),
        option("pooling", "HOW", "avg or max of neighbouring scores [avg]"),
        option("kernel", "N", "width of the pooling, odd [7]"),
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
    options: &[INTERVAL, WINDOW, RATIO, CACHE_DTYPE],
};

/// The options of the policy `rpc`, checked.
pub fn rpc(given: &Given) -> anyhow::Result<Rpc> {
    let defaults = RpcOptions::default();
    let count = |name, default| -> anyhow::Result<usize> {
        Ok(given.number(name, "a whole number", |_| true)?.unwrap_or(default))
    };
    let options = RpcOptions {
        interval: count("interval", defaults.interval)?,
        window: count("window", defaults.window)?,
        ratio: count("ratio", defaults.ratio)?,
        kernel: count("kernel", defaults.kernel)?,
        aggregation: given
            .choice(
                "aggregation",
                &[("layer", Aggregation::Layer), ("kv_head", Aggregation::KvHead)],
            )?
            .unwrap_or(defaults.aggregation),
        pooling: given
            .choice("pooling", &[("avg", Pooling::Average), ("max", Pooling::Max)])?
            .unwrap_or(defaults.pooling),
    };
    Ok(Rpc::new(options).map_err(|error| Usage(error.0))?)
}

/// The policy.
pub fn policy(given: &Given) -> anyhow::Result<Arc<dyn Policy>> {
    let rpc = rpc(given)?;
    Ok(match given.choice("policy", &[("none", false), ("rpc", true)])? {
        Some(false) => Arc::new(NoCompression),
        _ => Arc::new(rpc),
    })
}

/// The element type of the cache, if one was named.
pub fn cache_type(given: &Given) -> anyhow::Result<Option<CacheType>> {
    given.choice(
        "cache-dtype",
        &[("fp32", CacheType::F32), ("fp16", CacheType::F16)],
    )
}

/// The element type that the engine takes when none is named.
pub fn default_cache_type(flavour: Flavour) -> CacheType {
    match flavour {
        Flavour::Cached => CacheType::default(),
        Flavour::Portable => CacheType::F32,
    }
}

/// The name that options and outputs use.
pub fn cache_type_name(cache_type: CacheType) -> &'static str {
    match cache_type {
        CacheType::F32 => "fp32",
        CacheType::F16 => "fp16",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_the_real_defaults() {
        let defaults = RpcOptions::default();
        let named = [
            ("interval", defaults.interval.to_string()),
            ("window", defaults.window.to_string()),
            ("ratio", defaults.ratio.to_string()),
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
