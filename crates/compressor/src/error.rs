use std::fmt;

/// What the functions of this crate return.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call was refused. Nothing in the host's tensors was written when one of these comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// An option, view, batch, score or plan that cannot be; the text names what was expected and found.
    Argument(String),
    /// Room that the caller gave is not enough: the workspace, or the spare blocks.
    TooSmall {
        /// What was counted.
        what: &'static str,
        /// How many are needed.
        needed: usize,
        /// How many there are.
        found: usize,
    },
    /// Another call is using a recorded window.
    Busy {
        /// Its layer.
        layer: usize,
        /// Its slot.
        slot: usize,
    },
    /// The callback that selects reported a failure.
    Callback(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument(text) | Self::Callback(text) => f.write_str(text),
            Self::TooSmall { what, needed, found } => {
                write!(f, "{what}: expected at least {needed}, found {found}")
            }
            Self::Busy { layer, slot } => write!(
                f,
                "recorded queries of layer {layer}, slot {slot}: another call is using them"
            ),
        }
    }
}

impl std::error::Error for Error {}

impl From<reasoning_rpc_core::OptionError> for Error {
    fn from(error: reasoning_rpc_core::OptionError) -> Self {
        Self::Argument(error.0)
    }
}

impl From<reasoning_rpc_core::PlanError> for Error {
    fn from(error: reasoning_rpc_core::PlanError) -> Self {
        Self::Argument(error.to_string())
    }
}

impl From<reasoning_rpc_cpu::Error> for Error {
    fn from(error: reasoning_rpc_cpu::Error) -> Self {
        Self::Argument(error.to_string())
    }
}

/// `what: expected .., found ..`
pub(crate) fn refuse<T>(
    what: impl fmt::Display,
    expected: impl fmt::Display,
    found: impl fmt::Display,
) -> Result<T> {
    Err(Error::Argument(format!(
        "{what}: expected {expected}, found {found}"
    )))
}
