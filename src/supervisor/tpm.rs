//! A machine's TPM: swtpm, started beside its QEMU and gone with it.
//!
//! The two are joined by a pair of sockets that nobody else can reach. When QEMU goes, however it
//! goes, swtpm reads the end of its control channel and ends too, with or without a supervisor.
//! The state is a folder that swtpm owns and knows by a descriptor alone.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use tokio::time::timeout;

use crate::state::layout::MachineFiles;
use crate::supervisor::console::last_line;
use crate::supervisor::process::{Companion, Exit, Process};

/// The numbers of swtpm's control channel and of its folder.
const CONTROL: i32 = 3;
const STATE: i32 = 4;

/// How long one of the two may outlive the other.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why there is no TPM.
#[derive(Debug, thiserror::Error)]
#[error("cannot open `{}` for the TPM", path.display())]
pub(super) struct TpmError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The swtpm that is to run beside the QEMU at the other end of `control`.
pub(super) fn companion(
    program: &Path,
    files: &MachineFiles,
    control: OwnedFd,
) -> Result<Companion, TpmError> {
    let open = |path: PathBuf, options: &OpenOptions| {
        options
            .open(&path)
            .map_err(|source| TpmError { path, source })
    };
    let mut folder = File::options();
    folder
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW);
    let mut log = File::options();
    log.append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW);
    let state = open(files.tpm(), &folder)?;
    let log = open(files.tpm_log(), &log)?;
    // What it says from now on is about this start.
    log.set_len(0).map_err(|source| TpmError {
        path: files.tpm_log(),
        source,
    })?;
    let args = [
        "socket".to_owned(),
        "--tpm2".to_owned(),
        "--ctrl".to_owned(),
        format!("type=unixio,clientfd={CONTROL}"),
        "--tpmstate".to_owned(),
        format!("dir=/proc/self/fd/{STATE},mode=0600"),
        "--terminate".to_owned(),
    ];
    Ok(Companion {
        program: program.to_owned(),
        args: args.into_iter().map(OsString::from).collect(),
        fds: vec![(control, CONTROL), (state.into(), STATE)],
        output: log.into(),
    })
}

/// A swtpm that was started beside a QEMU.
#[derive(Debug)]
pub(super) struct Tpm {
    pub(super) process: Process,
    pub(super) log: PathBuf,
}

impl Tpm {
    /// Waits for the end of both, since neither is of use without the other: whichever stays is
    /// killed. With QEMU's exit comes what the TPM had to do with it, if anything.
    pub(super) async fn watch(self, qemu: &Process) -> (Exit, Option<String>) {
        let (exit, ended) = tokio::select! {
            exit = qemu.exited() => (exit, timeout(FAREWELL, self.process.exited()).await.ok()),
            ended = self.process.exited() => match timeout(FAREWELL, qemu.exited()).await {
                Ok(exit) => (exit, Some(ended)),
                Err(_) => {
                    end(qemu);
                    return (qemu.exited().await, Some(self.words(ended)));
                }
            },
        };
        if ended.is_none() {
            end(&self.process);
            self.process.exited().await;
        }
        let why = match (exit, ended) {
            (_, None | Some(Exit::Code(0))) => None,
            // QEMU says that its TPM does not answer, and the TPM says why.
            (Exit::Code(1..), Some(ended)) => Some(self.words(ended)),
            (Exit::Code(_) | Exit::Signal(_) | Exit::Unknown, Some(_)) => None,
        };
        (exit, why)
    }

    fn words(&self, ended: Exit) -> String {
        let how = match ended {
            Exit::Code(code) => format!("status {code}"),
            Exit::Signal(signal) => format!("signal {signal}"),
            Exit::Unknown => "nobody knows how".to_owned(),
        };
        match last_line(&self.log) {
            Some(line) => format!("its TPM ended ({how}): {line}"),
            None => format!("its TPM ended ({how})"),
        }
    }
}

fn end(process: &Process) {
    if let Err(error) = process.kill() {
        tracing::warn!(%error, "not killed");
    }
}
