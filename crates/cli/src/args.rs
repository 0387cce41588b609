//! The command line: each command is a table of options, which is parsed by and printed as help.

use std::ffi::OsString;
use std::fmt::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use lexopt::Arg;

/// One command.
pub struct Command {
    /// What selects it.
    pub name: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Its usage, one line each, without the program and the command.
    pub usage: &'static [&'static str],
    /// Its options under their headings.
    pub groups: &'static [Group],
    /// What else there is to say.
    pub notes: &'static str,
    /// Runs it.
    pub run: fn(&Given) -> anyhow::Result<ExitCode>,
}

/// Options under one heading.
pub struct Group {
    /// The heading.
    pub title: &'static str,
    /// The options.
    pub options: &'static [Opt],
}

/// One option.
pub struct Opt {
    /// Its name, without the dashes.
    pub name: &'static str,
    /// What its value is called; empty for a switch.
    pub value: &'static str,
    /// What it does; further lines are indented.
    pub help: &'static str,
    /// Whether it may be given more than once.
    pub many: bool,
}

/// An option with a value.
pub const fn option(name: &'static str, value: &'static str, help: &'static str) -> Opt {
    Opt {
        name,
        value,
        help,
        many: false,
    }
}

/// An option without a value.
pub const fn switch(name: &'static str, help: &'static str) -> Opt {
    option(name, "", help)
}

/// A command line that cannot be used: what was expected and what was found.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A [`Usage`] as the error of a function.
pub fn usage<T>(text: impl Into<String>) -> anyhow::Result<T> {
    Err(Usage(text.into()).into())
}

/// What the command line asks for.
pub enum Parsed {
    /// To print a text.
    Print(String),
    /// To run a command.
    Run(&'static Command, Given),
}

/// The options that were given.
#[derive(Debug, Default)]
pub struct Given(Vec<(&'static str, OsString)>);

/// Parses a command line, the program's name first.
pub fn parse(
    line: impl IntoIterator<Item = OsString>,
    commands: &[&'static Command],
) -> anyhow::Result<Parsed> {
    let mut parser = lexopt::Parser::from_iter(line);
    let found = match parser.next().map_err(unusable)? {
        Some(Arg::Long("help") | Arg::Short('h')) => return Ok(Parsed::Print(overview(commands))),
        Some(Arg::Long("version") | Arg::Short('V')) => {
            let version = concat!("reasoning-rpc ", env!("CARGO_PKG_VERSION"), "\n");
            return Ok(Parsed::Print(version.into()));
        }
        Some(Arg::Value(name)) => {
            if let Some(command) = commands.iter().find(|command| name == command.name) {
                return parse_command(&mut parser, command);
            }
            format!("{name:?}")
        }
        Some(Arg::Long(name)) => format!("--{name}"),
        Some(Arg::Short(name)) => format!("-{name}"),
        None => "nothing".into(),
    };
    let names: Vec<&str> = commands.iter().map(|command| command.name).collect();
    usage(format!(
        "expected a command ({}), found {found}; see `reasoning-rpc --help`",
        names.join(", ")
    ))
}

fn parse_command(parser: &mut lexopt::Parser, command: &'static Command) -> anyhow::Result<Parsed> {
    let given = parse_options(parser, command).map_err(|error| command.explain(error))?;
    Ok(match given {
        Some(given) => Parsed::Run(command, given),
        None => Parsed::Print(help(command)),
    })
}

impl Command {
    /// Names the help in an error of the command line.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        match error.downcast::<Usage>() {
            Ok(Usage(text)) => Usage(format!("{text}; see `reasoning-rpc {} --help`", self.name)).into(),
            Err(other) => other,
        }
    }
}

/// The options of a command; nothing if its help is wanted.
fn parse_options(parser: &mut lexopt::Parser, command: &Command) -> anyhow::Result<Option<Given>> {
    let mut given = Given::default();
    while let Some(arg) = parser.next().map_err(unusable)? {
        let name = match arg {
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            Arg::Long(name) => name,
            Arg::Short(name) => {
                return usage(format!("expected an option of {}, found -{name}", command.name));
            }
            Arg::Value(value) => {
                return usage(format!("expected an option of {}, found {value:?}", command.name));
            }
        };
        let mut options = command.groups.iter().flat_map(|group| group.options);
        let Some(option) = options.find(|option| option.name == name) else {
            return usage(format!("expected an option of {}, found --{name}", command.name));
        };
        if !option.many && given.has(option.name) {
            return usage(format!("--{name}: expected once, found twice"));
        }
        let value = match option.value {
            "" => OsString::new(),
            value => parser
                .value()
                .map_err(|_| Usage(format!("--{}: expected {value}, found nothing", option.name)))?,
        };
        given.0.push((option.name, value));
    }
    Ok(Some(given))
}

fn unusable(error: lexopt::Error) -> Usage {
    Usage(match error {
        lexopt::Error::UnexpectedValue { option, value } => {
            format!("{option}: expected no value, found {value:?}")
        }
        other => other.to_string(),
    })
}

impl Given {
    /// Whether an option was given.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(found, _)| *found == name)
    }

    /// All values of an option.
    pub fn texts(&self, name: &str) -> anyhow::Result<Vec<String>> {
        let values = self.0.iter().filter(|(found, _)| *found == name);
        values
            .map(|(_, value)| match value.to_str() {
                Some(text) => Ok(text.to_owned()),
                None => usage(format!("--{name}: expected UTF-8, found {value:?}")),
            })
            .collect()
    }

    /// The value of an option.
    pub fn text(&self, name: &str) -> anyhow::Result<Option<String>> {
        Ok(self.texts(name)?.pop())
    }

    /// The value of an option that is a path.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        let mut values = self.0.iter().filter(|(found, _)| *found == name);
        values.next().map(|(_, value)| PathBuf::from(value))
    }

    /// All values of an option that is a path.
    pub fn paths(&self, name: &str) -> Vec<PathBuf> {
        let values = self.0.iter().filter(|(found, _)| *found == name);
        values.map(|(_, value)| PathBuf::from(value)).collect()
    }

    /// Without the options of these names.
    pub fn without(&self, names: &[&str]) -> Self {
        let others = self.0.iter().filter(|(found, _)| !names.contains(found));
        Self(others.cloned().collect())
    }

    /// With another option.
    pub fn with(mut self, name: &'static str, value: OsString) -> Self {
        self.0.push((name, value));
        self
    }

    /// The model folder.
    pub fn model(&self) -> anyhow::Result<PathBuf> {
        match self.path("model") {
            Some(path) => Ok(path),
            None => usage("expected --model DIR, found none"),
        }
    }

    /// The value of an option that is a number, if it is one that `accepts`; `expected` describes
    /// those.
    pub fn number<T: FromStr>(
        &self,
        name: &str,
        expected: &str,
        accepts: impl Fn(&T) -> bool,
    ) -> anyhow::Result<Option<T>> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match text.parse().ok().filter(accepts) {
            Some(number) => Ok(Some(number)),
            None => usage(format!("--{name}: expected {expected}, found {text:?}")),
        }
    }

    /// The value of an option that counts.
    pub fn count(&self, name: &str) -> anyhow::Result<Option<usize>> {
        self.number(name, "a whole number, 1 or more", |count| *count > 0)
    }

    /// The option `--seed`.
    pub fn seed(&self) -> anyhow::Result<Option<u64>> {
        self.number("seed", "a whole number below 2^64", |_| true)
    }

    /// Whether `--output` says json, and not text.
    pub fn json(&self) -> anyhow::Result<bool> {
        let json = self.choice("output", &[("text", false), ("json", true)])?;
        Ok(json.unwrap_or(false))
    }

    /// The value of an option that is one of a few words.
    pub fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> anyhow::Result<Option<T>> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match choices.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
                usage(format!(
                    "--{name}: expected {}, found {text:?}",
                    words.join(" or ")
                ))
            }
        }
    }

    /// The value of an option that is a number of bytes: an integer, or one with a unit.
    pub fn bytes(&self, name: &str) -> anyhow::Result<Option<usize>> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match parse_bytes(&text) {
            Some(bytes) => Ok(Some(bytes)),
            None => usage(format!(
                "--{name}: expected bytes, such as 1073741824, 512M or 2GiB, found {text:?}"
            )),
        }
    }
}

/// Units as in GNU's tools: K and KiB are 1024, KB is 1000.
fn parse_bytes(text: &str) -> Option<usize> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.to_ascii_uppercase();
    let (base, power) = match unit.as_str() {
        "" | "B" => (1, 1),
        _ => {
            let power = "KMGT".find(unit.chars().next()?)? + 1;
            match unit.get(1..)? {
                "" | "IB" => (1024usize, power),
                "B" => (1000, power),
                _ => return None,
            }
        }
    };
    let number: usize = number.parse().ok()?;
    number.checked_mul(base.checked_pow(u32::try_from(power).ok()?)?)
}

/// Token ids between commas or spaces, in brackets or not.
pub fn parse_ids(name: &str, text: &str) -> anyhow::Result<Vec<u32>> {
    let inner = text.trim();
    let inner = inner
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(inner);
    if inner.trim().is_empty() {
        return usage(format!("{name}: expected token ids such as 1,2,3, found none"));
    }
    inner
        .split(',')
        .flat_map(|part| match part.trim() {
            // Two commas in a row.
            "" => vec![""],
            part => part.split_whitespace().collect(),
        })
        .map(|id| match id.parse() {
            Ok(id) => Ok(id),
            Err(_) => usage(format!("{name}: expected token ids such as 1,2,3, found {id:?}")),
        })
        .collect()
}

/// The help of the program.
fn overview(commands: &[&Command]) -> String {
    let mut text = String::from(
        "Decodes long reasoning with a KV cache that is compressed on the way (Reasoning Path\n\
         Compression), on models that reasoning-rpc-export wrote.\n\n\
         Usage: reasoning-rpc COMMAND [options]\n\nCommands:\n",
    );
    for command in commands {
        let _ = writeln!(text, "  {:<12}{}", command.name, command.summary);
    }
    text.push_str(
        "\nOptions:\n  -h, --help     this text; after a command, its options\n  \
           -V, --version  the version\n\n\
         Exit codes: 0; 1 an error while working; 2 a command line that cannot be used; 130 an answer\n\
         that Ctrl-C ended.\n",
    );
    text
}

/// The help of a command.
pub fn help(command: &Command) -> String {
    let mut text = format!("{}\n\n", command.summary);
    for (index, line) in command.usage.iter().enumerate() {
        let lead = if index == 0 { "Usage:" } else { "      " };
        let _ = writeln!(text, "{lead} reasoning-rpc {} {line}", command.name);
    }
    for group in command.groups {
        let _ = writeln!(text, "\n{}:", group.title);
        for option in group.options {
            let head = match option.value {
                "" => format!("--{}", option.name),
                value => format!("--{} {value}", option.name),
            };
            let mut lead = format!("  {head:<26}");
            if lead.len() > 28 {
                let _ = writeln!(text, "{}", lead.trim_end());
                lead = " ".repeat(28);
            }
            for line in option.help.lines() {
                let _ = writeln!(text, "{lead}{line}");
                lead = " ".repeat(28);
            }
        }
    }
    text.push_str("\nOther:\n  -h, --help                this text\n");
    if !command.notes.is_empty() {
        let _ = writeln!(text, "\n{}", command.notes);
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn byte_units() {
        let sizes = [
            ("0", 0),
            ("7b", 7),
            ("3K", 3072),
            ("2kb", 2000),
            ("1MiB", 1 << 20),
            ("5g", 5 << 30),
            ("1TB", 1_000_000_000_000),
        ];
        for (text, bytes) in sizes {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "K", "-1", "1.5G", "1Q", "1KiBB", "99999999999T", "1 K", "1é"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn ids_in_every_writing() {
        for text in ["1,2,3", " [1, 2,3] ", "1 2 3\n"] {
            assert_eq!(parse_ids("--ids", text).unwrap(), [1, 2, 3], "{text}");
        }
        for (text, found) in [
            ("", "none"),
            ("[]", "none"),
            ("1,,2", "\"\""),
            ("1,x", "\"x\""),
            ("-1", "\"-1\""),
            ("4294967296", "4294967296"),
        ] {
            let error = parse_ids("--ids", text).unwrap_err();
            assert!(
                error.is::<Usage>() && error.to_string().contains(found),
                "{text}: {error}"
            );
        }
    }
}
