//! A conversation in the words that a model was trained on.

use std::thread;

use minijinja::value::{Kwargs, Rest};
use minijinja::{Environment, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::{Deserialize, Serialize};
use serde_json::Map;

use super::guard::{Controls, Tags, take_marks};
use super::json::Limited;
use super::tokenizer::Tokenizer;
use super::{clock, json};
use crate::error::{Error, Result, panic_text};

/// The largest template, in bytes: three times the largest known.
const MAX_SOURCE: usize = 64 << 10;
/// The longest rendering, in bytes.
const MAX_OUTPUT: usize = 64 << 20;
/// Steps of the template's machine: so many, and so many for each message, up to a limit. Known templates
/// need about a hundred for a message; a million steps of the usual kind take about a tenth of a second.
const FUEL: u64 = 100_000;
const FUEL_PER_MESSAGE: u64 = 1_000;
const MOST_FUEL: u64 = 1_000_000;
/// Calls and includes within each other.
const MAX_DEPTH: usize = 100;
/// Values nested as deeply as the fuel allows, a level for every four steps, are walked and freed by
/// recursion, at up to 700 bytes a level. Only what is used of the stack takes memory.
const STACK: usize = 256 << 20;
/// The widest padding that a format string may ask for has this many digits.
const MAX_WIDTH_DIGITS: usize = 4;

const ROLES: [&str; 5] = ["system", "user", "assistant", "tool", "developer"];

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool` or `developer`.
    pub role: String,
    /// What was said. Ordinary text throughout.
    pub content: String,
}

impl Message {
    /// A message from its role and content; the role is checked when it is rendered.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// What a template is told besides the messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatOptions {
    /// Whether the text ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Further variables, such as `enable_thinking` or `tools`. The text of a control token in them is
    /// ordinary text, as in a message's content. The names that every template has (`messages` and so on)
    /// are refused.
    pub variables: Map<String, serde_json::Value>,
}

/// A conversation as text, and the places in it that are guarded: no control token may reach over one. So
/// the control tokens in the text are those that the template wrote, never those that a message's content
/// spells.
///
/// A template may strip, split, shorten and re-join a content, and take words out of it. Only one that puts
/// together a control token from letters of its own would make one of a content. While it runs, a guarded
/// place takes up one more character, which a template sees that counts a content's characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    text: String,
    guarded: Vec<usize>,
}

impl Rendered {
    /// The text. Encoding it as such would parse control tokens in contents; encode the `Rendered` instead.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Byte positions that no control token's span `(start, end]` may hold.
    pub(super) fn guarded(&self) -> &[usize] {
        &self.guarded
    }
}

/// A model's chat template: Jinja, as Hugging Face runs it (`trim_blocks`, `lstrip_blocks`, the methods
/// of Python's strings and dictionaries, `raise_exception`, `strftime_now` in UTC, `tojson`).
///
/// It is code from a model folder, so its steps, its depth and its output are limited, and it reaches
/// nothing outside. Not limited is the memory that it uses on the way there: a template made for it can
/// exhaust that.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    tags: Tags,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl ChatTemplate {
    /// From the template's source and the texts of the tokens that it may name.
    pub fn new(source: &str, bos_token: Option<&str>, eos_token: Option<&str>) -> Result<Self> {
        if source.len() > MAX_SOURCE {
            return Err(Error::Template(format!(
                "the source has {} bytes, expected at most {MAX_SOURCE}",
                source.len()
            )));
        }
        let template = Self {
            source: without_generation_tags(source),
            tags: Tags::new(source),
            bos_token: bos_token.map(str::to_owned),
            eos_token: eos_token.map(str::to_owned),
        };
        on_large_stack(|| {
            environment(0)
                .template_from_str(&template.source)
                .map(|_| ())
                .map_err(failed)
        })?;
        Ok(template)
    }

    /// Writes the conversation out. `tokenizer` says which texts are control tokens.
    pub fn render(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        options: &ChatOptions,
    ) -> Result<Rendered> {
        if let Some(message) = messages
            .iter()
            .find(|message| !ROLES.contains(&message.role.as_str()))
        {
            return Err(Error::InvalidArgument(format!(
                "a message's role is {:?}, expected one of {}",
                message.role,
                ROLES.join(", ")
            )));
        }
        let controls = tokenizer.controls();
        let mark = controls.mark(|mark| {
            self.source.contains(mark)
                || messages.iter().any(|message| message.content.contains(mark))
                || options
                    .variables
                    .iter()
                    .any(|(name, value)| name.contains(mark) || holds(value, mark))
        })?;
        let text = on_large_stack(|| {
            let context = self.context(controls, messages, options, mark)?;
            let environment = environment(messages.len());
            let template = environment.template_from_str(&self.source).map_err(failed)?;
            let mut out = Limited::new(MAX_OUTPUT);
            template.render_captured_to(context, &mut out).map_err(failed)?;
            String::from_utf8(out.bytes).map_err(|error| Error::Template(error.to_string()))
        })?;
        let (text, guarded) = take_marks(text, mark);
        Ok(Rendered { text, guarded })
    }

    fn context(
        &self,
        controls: &Controls,
        messages: &[Message],
        options: &ChatOptions,
        mark: char,
    ) -> Result<Value> {
        let messages: Vec<Message> = messages
            .iter()
            .map(|message| {
                Message::new(
                    &message.role,
                    controls.guard_content(&message.content, &self.tags, mark),
                )
            })
            .collect();
        let text = |token: &Option<String>| token.as_deref().map_or(Value::UNDEFINED, Value::from);
        let mut context = vec![
            ("messages", Value::from_serialize(&messages)),
            (
                "add_generation_prompt",
                Value::from(options.add_generation_prompt),
            ),
            ("bos_token", text(&self.bos_token)),
            ("eos_token", text(&self.eos_token)),
        ];
        if let Some((name, _)) = context
            .iter()
            .find(|(name, _)| options.variables.contains_key(*name))
        {
            return Err(Error::InvalidArgument(format!(
                "the template variable {name} is set by the engine"
            )));
        }
        // Hugging Face always passes these two.
        for name in ["tools", "documents"] {
            if !options.variables.contains_key(name) {
                context.push((name, Value::from(())));
            }
        }
        for (name, value) in &options.variables {
            context.push((name, Value::from_serialize(guard_json(controls, value, mark))));
        }
        Ok(context.into_iter().collect())
    }
}

fn holds(value: &serde_json::Value, mark: char) -> bool {
    match value {
        serde_json::Value::String(text) => text.contains(mark),
        serde_json::Value::Array(values) => values.iter().any(|value| holds(value, mark)),
        serde_json::Value::Object(map) => map
            .iter()
            .any(|(name, value)| name.contains(mark) || holds(value, mark)),
        _ => false,
    }
}

fn guard_json(controls: &Controls, value: &serde_json::Value, mark: char) -> serde_json::Value {
    match value {
        serde_json::Value::String(text) => controls.guard_variable(text, mark).into(),
        serde_json::Value::Array(values) => values
            .iter()
            .map(|value| guard_json(controls, value, mark))
            .collect(),
        serde_json::Value::Object(map) => map
            .iter()
            .map(|(name, value)| {
                (
                    controls.guard_variable(name, mark),
                    guard_json(controls, value, mark),
                )
            })
            .collect(),
        other => other.clone(),
    }
}

/// `{% generation %}` marks the assistant's words for training; here it only groups them.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open);
        text.push_str(before);
        let length = tag.find("%}").map_or(tag.len(), |close| close + 2);
        let inside = tag.get(2..length.saturating_sub(2)).unwrap_or_default();
        let name = inside.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']);
        let instead = match name.trim() {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => {
                text.push_str("{%");
                rest = &tag[2..];
                continue;
            }
        };
        text.push_str(&tag[..length].replace(name.trim(), instead));
        rest = &tag[length..];
    }
    text + rest
}

fn environment<'source>(messages: usize) -> Environment<'source> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    let fuel = FUEL_PER_MESSAGE
        .saturating_mul(messages as u64)
        .saturating_add(FUEL);
    environment.set_fuel(Some(fuel.min(MOST_FUEL)));
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(method);
    environment.add_function(
        "raise_exception",
        |text: &str| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(
                ErrorKind::InvalidOperation,
                format!("the template refuses: {text}"),
            ))
        },
    );
    environment.add_function("strftime_now", |format: &str| {
        clock::strftime(format, clock::now()).ok_or_else(|| {
            minijinja::Error::new(
                ErrorKind::InvalidOperation,
                format!("strftime_now cannot write {format:?}"),
            )
        })
    });
    environment.add_filter("tojson", |value: &Value, indent: Option<usize>, named: Kwargs| {
        json::tojson(value, indent, &named, MAX_OUTPUT)
    });
    // These allocate as much as their arguments say.
    environment.add_filter("format", |state: &State, text: &Value, values: Rest<Value>| {
        check_width(text)?;
        minijinja::filters::format(state, text, values)
    });
    environment.remove_filter("batch");
    environment.remove_filter("slice");
    environment.remove_filter("indent");
    environment
}

/// Python's methods of strings, lists and dictionaries.
fn method(state: &State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, minijinja::Error> {
    if name == "format" {
        check_width(value)?;
    }
    unknown_method_callback(state, value, name, arguments)
}

fn check_width(format: &Value) -> Result<(), minijinja::Error> {
    let mut digits = 0;
    for c in format.as_str().unwrap_or_default().chars() {
        digits = if c.is_ascii_digit() { digits + 1 } else { 0 };
        if digits > MAX_WIDTH_DIGITS {
            return Err(minijinja::Error::new(
                ErrorKind::InvalidOperation,
                format!("a format string holds a number of more than {MAX_WIDTH_DIGITS} digits"),
            ));
        }
    }
    Ok(())
}

fn failed(error: minijinja::Error) -> Error {
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "it takes too many steps: ".to_string(),
        _ => String::new(),
    };
    // A writer's refusal is the cause of an error that says little.
    let cause = std::error::Error::source(&error).map_or(String::new(), |cause| format!(" ({cause})"));
    Error::Template(format!("{what}{error}{cause}"))
}

/// Runs `work` on a thread of its own whose stack holds the deepest recursion that a template can bring
/// about.
fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("rrpc-template".to_string())
            .stack_size(STACK)
            .spawn_scoped(scope, work)
            .map_err(|error| Error::Template(format!("no thread with a stack of {STACK} bytes: {error}")))?;
        thread.join().unwrap_or_else(|payload| {
            let text = panic_text(payload.as_ref());
            Err(Error::Template(format!(
                "rendering failed inside the template library: {text}"
            )))
        })
    })
}
