//! A machine's TPM: swtpm, started beside its QEMU and gone with it (see `beside.rs`).
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

use nix::libc;

use crate::state::layout::MachineFiles;
use crate::supervisor::beside::Wanted;
use crate::supervisor::process::Companion;

/// The numbers of swtpm's control channel and of its folder.
const CONTROL: i32 = 3;
const STATE: i32 = 4;

/// Why there is no TPM.
#[derive(Debug, thiserror::Error)]
#[error("cannot open `{}` for the TPM", path.display())]
pub(super) struct TpmError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The swtpm that is to run beside the QEMU at the other end of `control`.
pub(super) fn wanted(
    program: &Path,
    files: &MachineFiles,
    control: OwnedFd,
) -> Result<Wanted, TpmError> {
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
    let companion = Companion {
        program: program.to_owned(),
        args: args.into_iter().map(OsString::from).collect(),
        fds: vec![(control, CONTROL), (state.into(), STATE)],
        output: log.into(),
        umask: 0o077,
        mount: None,
    };
    Ok(Wanted {
        what: "its TPM".to_owned(),
        log: files.tpm_log(),
        companion,
    })
}
