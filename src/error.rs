//! The top error: what `main` prints, and the exit code that scripts lean on.
//!
//! Modules have errors of their own, named for the act; a command turns one into
//! an [`Error`] by saying which exit code it means, and what to do next where the
//! user can act. Nothing but `main` prints one.

use std::error::Error as StdError;
use std::fmt;
use std::process::ExitCode;

/// The documented exit codes of kiln.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The command failed for a reason that has no code of its own.
    Failed = 1,
    /// The command line was wrong.
    Usage = 2,
    /// The spec, or a file that it names, is wrong.
    Spec = 3,
    /// This host lacks something.
    Host = 4,
    /// Out of time.
    Timeout = 5,
    /// A machine failed to boot.
    Boot = 6,
    /// There is no such cluster or machine.
    Unknown = 7,
    /// Someone else is at it.
    Busy = 8,
    /// Refused for safety.
    Unsafe = 9,
}

impl Exit {
    /// The word for programs, `error.code` in `--json`.
    pub fn word(self) -> &'static str {
        match self {
            Exit::Failed => "failed",
            Exit::Usage => "usage",
            Exit::Spec => "spec",
            Exit::Host => "host",
            Exit::Timeout => "timeout",
            Exit::Boot => "boot",
            Exit::Unknown => "unknown",
            Exit::Busy => "busy",
            Exit::Unsafe => "unsafe",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command failed: the act, its causes outermost first, and what to do next.
#[derive(Debug)]
pub struct Error {
    pub exit: Exit,
    pub message: String,
    pub causes: Vec<String>,
    pub hint: Option<String>,
}

impl Error {
    /// An error that is its own cause.
    pub fn new(exit: Exit, message: impl Into<String>) -> Error {
        Error {
            exit,
            message: message.into(),
            causes: Vec::new(),
            hint: None,
        }
    }

    /// `source` and its chain of causes, told under `exit`.
    pub fn from_source(exit: Exit, source: &(dyn StdError + 'static)) -> Error {
        Error {
            exit,
            message: source.to_string(),
            causes: chain(source.source()),
            hint: None,
        }
    }

    /// `message`, caused by `source`.
    pub fn because(
        exit: Exit,
        message: impl Into<String>,
        source: &(dyn StdError + 'static),
    ) -> Error {
        Error {
            exit,
            message: message.into(),
            causes: chain(Some(source)),
            hint: None,
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Error {
        self.causes.push(cause.into());
        self
    }
}

fn chain(mut source: Option<&(dyn StdError + 'static)>) -> Vec<String> {
    let mut causes = Vec::new();
    while let Some(error) = source {
        causes.push(error.to_string());
        source = error.source();
    }
    causes
}

/// An error and its causes in one line, for logs and reasons.
pub fn in_one_line(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    for cause in chain(error.source()) {
        text.push_str(": ");
        text.push_str(&cause);
    }
    text
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
