//! Printing: answers on standard output, everything else on standard error.

#![allow(clippy::print_stdout, clippy::print_stderr)] // this is the place

use std::io::{self, IsTerminal, Write};

use anyhow::Context;
pub use reasoning_rpc_eval::plot::human;

use crate::args::{Group, option};

const STDOUT: &str = "standard output";

/// For commands that also write a page.
pub const PAGE_GROUP: Group = Group {
    title: "Output",
    options: &[
        option("html", "FILE", "a page with plots"),
        option("output", "HOW", "text or json [text]"),
    ],
};

/// Writes to standard output at once.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context(STDOUT)
}

/// A line on standard error. Nobody may be listening.
pub fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Whether the reader of standard output went away.
pub fn is_closed(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A line on standard error that is overwritten, if that is a terminal.
pub struct Progress {
    shown: bool,
    terminal: bool,
}

impl Progress {
    /// Shows nothing yet.
    pub fn new() -> Self {
        Self {
            shown: false,
            terminal: io::stderr().is_terminal(),
        }
    }

    /// Shows a text in place of the last one.
    pub fn show(&mut self, text: &str) {
        if self.terminal {
            let mut stderr = io::stderr().lock();
            let _ = write!(stderr, "\r\x1b[K{text}").and_then(|()| stderr.flush());
            self.shown = true;
        }
    }

    /// Leaves an empty line.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let mut stderr = io::stderr().lock();
            let _ = write!(stderr, "\r\x1b[K").and_then(|()| stderr.flush());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
