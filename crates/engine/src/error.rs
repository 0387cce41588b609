//! What can go wrong, in kinds that a caller can act on.

use std::fmt;

use reasoning_rpc_core::{OptionError, PlanError};

/// The engine's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. The text names what was expected and what was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// An argument or option cannot be used.
    InvalidArgument(String),
    /// The model folder is missing, damaged, edited, or of another version.
    Model(String),
    /// ONNX Runtime is absent, too old, a second one, or it failed.
    Runtime(String),
    /// The chat template cannot be rendered.
    Template(String),
    /// Text cannot be turned into tokens or back.
    Text(String),
    /// The cache would outgrow the budget.
    Budget {
        /// Bytes that are needed on top of what the sequence holds.
        needed: usize,
        /// Those of them that are for the queries that the policy stores, not for entries.
        queries: usize,
        /// Bytes of the budget that are free and promised to nobody.
        available: usize,
    },
    /// The text would outgrow the model's context.
    Context {
        /// Tokens of the text, with the new ones.
        needed: usize,
        /// The model's context in tokens.
        context: usize,
    },
    /// A saved sequence is damaged, of another version, or of another model.
    State(String),
    /// A file cannot be read or written.
    File(String),
    /// There is no room for more at this time.
    Busy(String),
    /// What a caller's callback reported or chose.
    Callback(String),
    /// The sequence was left unusable by an earlier error.
    Poisoned,
    /// A bug of ours: a panic was caught.
    Internal(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidArgument(text) => write!(f, "invalid argument: {text}"),
            Self::Model(text) => write!(f, "model: {text}"),
            Self::Runtime(text) => write!(f, "ONNX Runtime: {text}"),
            Self::Template(text) => write!(f, "chat template: {text}"),
            Self::Text(text) => write!(f, "text: {text}"),
            Self::Budget {
                needed,
                queries: 0,
                available,
            } => write!(
                f,
                "cache budget: {needed} more bytes needed, {available} bytes available"
            ),
            Self::Budget {
                needed,
                queries,
                available,
            } => write!(
                f,
                "cache budget: {needed} more bytes needed, {queries} of them for the queries of an interval that the \
                 policy stores, {available} bytes available"
            ),
            Self::Context { needed, context } => write!(
                f,
                "context: the text needs {needed} tokens, the model's context has {context}"
            ),
            Self::State(text) => write!(f, "saved sequence: {text}"),
            Self::File(text) => write!(f, "file: {text}"),
            Self::Busy(text) => write!(f, "busy: {text}"),
            Self::Callback(text) => write!(f, "callback: {text}"),
            Self::Poisoned => f.write_str("the sequence was left unusable by an earlier error; free it"),
            Self::Internal(text) => write!(f, "internal error: {text}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<OptionError> for Error {
    fn from(error: OptionError) -> Self {
        Self::InvalidArgument(error.0)
    }
}

impl From<PlanError> for Error {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Select(_) => Self::Callback(error.to_string()),
            _ => Self::Internal(error.to_string()),
        }
    }
}

impl From<reasoning_rpc_cpu::Error> for Error {
    fn from(error: reasoning_rpc_cpu::Error) -> Self {
        // The engine prepares every view, so a refusal is a mistake of its own.
        Self::Internal(error.to_string())
    }
}

impl From<ort::Error> for Error {
    fn from(error: ort::Error) -> Self {
        Self::Runtime(error.to_string())
    }
}

/// The text of a caught panic.
pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_string())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_string())
}
