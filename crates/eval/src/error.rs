//! What can go wrong.

use std::fmt;
use std::path::Path;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong. The text names what was expected and what was found.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written.
    File(String),
    /// A line of a problem file is not a problem.
    Problem(String),
    /// Programs cannot be run safely here.
    Sandbox(String),
    /// The engine's.
    Engine(reasoning_rpc_engine::Error),
}

impl Error {
    pub(crate) fn file(path: &Path, error: impl fmt::Display) -> Self {
        Self::File(format!("{}: {error}", path.display()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(text) | Self::Problem(text) => f.write_str(text),
            Self::Sandbox(text) => write!(f, "sandbox: {text}"),
            Self::Engine(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<reasoning_rpc_engine::Error> for Error {
    fn from(error: reasoning_rpc_engine::Error) -> Self {
        Self::Engine(error)
    }
}
