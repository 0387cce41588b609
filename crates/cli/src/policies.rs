//! Several policies beside each other: a list of names, each with options of its own.

use std::ffi::OsString;

use crate::args::{Given, Group, Opt, Usage, option, usage};
use crate::compression::{self, Choice};

/// The label of the full cache, which the others are compared with.
pub const FULL: &str = "none";

/// The list.
pub const LIST: Opt = option(
    "policies",
    "LIST",
    "names between commas, each with options of its own behind\ncolons: none,rpc,rpc:ratio=8,random:interval=64:window=16.\nIds of a list stand between spaces: \"lightthinker:gists=7 8\"\n[none,rpc,lookahead-merge]",
);

/// The list, for commands that always take one.
pub const GROUP: Group = Group {
    title: "Policies",
    options: &[LIST],
};

/// The options that every policy has which does not say otherwise: those of one policy without its name.
pub const SHARED_GROUP: Group = Group {
    title: "KV cache, of every policy that does not say otherwise",
    options: compression::GROUP.options.split_at(1).1,
};

/// A policy of the list.
pub struct Named {
    /// As it stands in the list.
    pub label: String,
    /// The policy.
    pub choice: Choice,
}

/// Options that stand in each other's place.
const BUDGETS: [&str; 3] = ["ratio", "entries", "bytes"];

/// The list's policies; labels differ.
pub fn parse(given: &Given) -> anyhow::Result<Vec<Named>> {
    let list = given
        .text("policies")?
        .unwrap_or_else(|| "none,rpc,lookahead-merge".into());
    let mut named: Vec<Named> = Vec::new();
    for item in list.split(',').map(str::trim) {
        if named.iter().any(|other| other.label == item) {
            return usage(format!("--policies: expected each once, found {item:?} twice"));
        }
        let own = own_options(given, item)?;
        named.push(Named {
            label: item.to_owned(),
            choice: Choice::parse(&own).map_err(|error| Usage(format!("--policies: {item}: {error}")))?,
        });
    }
    for option in SHARED_GROUP
        .options
        .iter()
        .filter(|option| given.has(option.name))
    {
        let reads = |name: &str| {
            let alone = Given::default().with("policy", name.into());
            compression::check_read(&alone.with(option.name, OsString::new())).is_ok()
        };
        if !list
            .split(',')
            .any(|item| reads(item.trim().split(':').next().unwrap_or_default()))
        {
            return usage(format!(
                "--{}: expected a policy in --policies that reads it, found {list}",
                option.name
            ));
        }
    }
    Ok(named)
}

/// The same, for commands that have no use for a policy that adds tokens to the text, and say why.
pub fn without_thoughts(named: Vec<Named>, why: &str) -> anyhow::Result<Vec<Named>> {
    let check = |Named { label, choice }| {
        let choice = choice
            .without_thoughts(why)
            .map_err(|error| Usage(format!("--policies: {label}: {error}")))?;
        Ok(Named { label, choice })
    };
    named.into_iter().map(check).collect()
}

/// What was given, with the item's name and options in the place of the shared ones.
fn own_options(given: &Given, item: &str) -> anyhow::Result<Given> {
    let mut parts = item.split(':');
    let name = parts.next().unwrap_or_default();
    let mut item_alone = Given::default().with("policy", name.into());
    let mut own = given.without(&["policy"]).with("policy", name.into());
    let mut budget = false;
    for part in parts {
        let options = || SHARED_GROUP.options.iter();
        let found = part
            .split_once('=')
            .and_then(|(name, value)| Some((options().find(|option| option.name == name)?, value)));
        let Some((option, value)) =
            found.filter(|(option, _)| !["cache-dtype", "budget"].contains(&option.name))
        else {
            return usage(format!(
                "--policies: {item}: expected an option of the policy such as ratio=8, found {part:?}"
            ));
        };
        if BUDGETS.contains(&option.name) {
            if !budget {
                own = own.without(&BUDGETS);
            }
            budget = true;
        }
        item_alone = item_alone.with(option.name, OsString::from(value));
        own = own
            .without(&[option.name])
            .with(option.name, OsString::from(value));
    }
    compression::check_read(&item_alone).map_err(|error| Usage(format!("--policies: {item}: {error}")))?;
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_options_are_those_of_one_policy_without_its_name() {
        assert_eq!(compression::GROUP.options[0].name, "policy");
        assert_eq!(SHARED_GROUP.options[0].name, "interval");
    }

    #[test]
    fn own_options_replace_shared_ones() {
        let given = Given::default()
            .with("interval", "64".into())
            .with("ratio", "2".into());
        let own = own_options(&given, "rpc:entries=48:window=7").unwrap();
        let texts = |name| own.texts(name).unwrap();
        assert_eq!(texts("policy"), ["rpc"]);
        assert_eq!(
            (texts("interval"), texts("window")),
            (vec!["64".into()], vec!["7".into()])
        );
        assert_eq!(
            (texts("entries"), texts("ratio")),
            (vec!["48".into()], Vec::<String>::new())
        );
        for item in ["rpc:ratio", "rpc:colour=3", "rpc:budget=3", "rpc:policy=none"] {
            let error = own_options(&given, item).unwrap_err().to_string();
            assert!(error.contains("expected an option of the policy"), "{error}");
        }
    }
}
