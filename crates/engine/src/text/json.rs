//! JSON as chat templates expect it from their `tojson`: Python's spacing, no HTML escapes.

use std::io::{self, Write};

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::{CharEscape, Formatter, PrettyFormatter};

/// A writer that refuses to hold more than so many bytes.
pub(super) struct Limited {
    pub(super) bytes: Vec<u8>,
    limit: usize,
}

impl Limited {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            bytes: Vec::new(),
            limit,
        }
    }
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.bytes.len() {
            return Err(io::Error::other(format!(
                "more than {} bytes of output",
                self.limit
            )));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One line, with the separators of Python's `json.dumps`.
struct Line {
    item: String,
    key: String,
}

impl Formatter for Line {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first {
            return Ok(());
        }
        writer.write_all(self.item.as_bytes())
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_array_value(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }

    fn write_char_escape<W: ?Sized + Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        serde_json::ser::CompactFormatter.write_char_escape(writer, escape)
    }
}

/// The filter `tojson`, with `indent` and `separators`. At most `limit` bytes.
pub(super) fn tojson(
    value: &Value,
    indent: Option<usize>,
    named: &Kwargs,
    limit: usize,
) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => named.get::<Option<usize>>("indent")?,
    };
    let separators = named.get::<Option<Vec<String>>>("separators")?;
    let ascii = named.get::<Option<bool>>("ensure_ascii")?;
    named.assert_all_used()?;
    let refused = |why: String| Error::new(ErrorKind::InvalidOperation, format!("tojson: {why}"));
    if ascii == Some(true) {
        return Err(refused("ensure_ascii is not supported".to_string()));
    }
    let mut out = Limited::new(limit);
    let written = match indent {
        Some(indent) if indent > 16 => {
            return Err(refused(format!("indent is {indent}, expected at most 16")));
        }
        Some(indent) => {
            let indent = " ".repeat(indent);
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
        None => {
            let [item, key] = match separators.as_deref() {
                None => [", ", ": "],
                Some([item, key]) => [item.as_str(), key.as_str()],
                Some(_) => return Err(refused("separators are not two strings".to_string())),
            }
            .map(str::to_owned);
            value.serialize(&mut Serializer::with_formatter(&mut out, Line { item, key }))
        }
    };
    written.map_err(|error| refused(error.to_string()))?;
    String::from_utf8(out.bytes)
        .map(Value::from)
        .map_err(|error| refused(error.to_string()))
}
