//! What ends the program early, by its exit code.

use std::fmt;

/// A failure with its one line for standard error.
#[derive(Debug)]
pub enum Error {
    /// Exit code 2: what was asked for, or the input, makes no sense.
    Usage(String),
    /// Exit code 3: no adapter of this machine can do it.
    NoAdapter(String),
    /// Exit code 1: it was tried, and it failed.
    Failed(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::Usage(message.to_string())
    }

    pub fn failed(message: impl fmt::Display) -> Self {
        Self::Failed(message.to_string())
    }

    pub fn not_yet(what: impl fmt::Display) -> Self {
        Self::Usage(format!("{what} is not yet supported"))
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::NoAdapter(_) => 3,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Usage(message) | Self::NoAdapter(message) | Self::Failed(message)) = self;
        // messages of compilers and drivers come in several lines
        f.write_str(&message.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

impl From<gatefold::Error> for Error {
    fn from(error: gatefold::Error) -> Self {
        use gatefold::Error as E;
        let message = error.to_string();
        match error {
            E::Shape { .. } | E::Operand { .. } | E::Buffer { .. } | E::Aliased { .. } => {
                Self::Usage(message)
            }
            E::NoAdapter { .. } | E::Feature { .. } => Self::NoAdapter(message),
            _ => Self::Failed(message),
        }
    }
}
