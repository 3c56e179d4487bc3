//! The steps between fork and exec, and what is said when one of them fails.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("an argument of `{program}` contains a NUL byte")]
    Nul { program: PathBuf },
    /// A number below 3, or given twice.
    #[error("descriptor number {number} cannot be given to `{program}`")]
    Number { program: PathBuf, number: RawFd },
    #[error("cannot prepare the start of `{program}`")]
    Prepare {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot {step} for `{program}`")]
    Child {
        program: PathBuf,
        step: Step,
        #[source]
        source: io::Error,
    },
    #[error("the new process died before it could run `{program}`")]
    Died { program: PathBuf },
    #[error("cannot watch the new process")]
    Watch {
        #[source]
        source: io::Error,
    },
}

/// A step between fork and exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Step {
    Fork = 1,
    Session,
    Descriptors,
    Directory,
    Limits,
    Identity,
    Privileges,
    Execute,
    Mount,
}

impl Step {
    pub(super) const ALL: [Step; 9] = [
        Step::Fork,
        Step::Session,
        Step::Descriptors,
        Step::Directory,
        Step::Limits,
        Step::Identity,
        Step::Privileges,
        Step::Execute,
        Step::Mount,
    ];
}

impl std::fmt::Display for Step {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Step::Fork => "fork",
            Step::Session => "begin a session",
            Step::Descriptors => "hand over the descriptors",
            Step::Directory => "change the directory to /",
            Step::Limits => "forbid core dumps",
            Step::Identity => "become the machine's own user",
            Step::Privileges => "give up all privileges",
            Step::Execute => "execute the program",
            Step::Mount => "mount its folder",
        })
    }
}
