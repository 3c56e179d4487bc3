//! A machine's shares: the folder as its server gets it, and the virtiofsd beside QEMU.
//!
//! Whoever serves a folder to a guest, QEMU or virtiofsd, runs as the cluster's own user and has no
//! capability. As root, kiln hands over the folder as a mount of its own in which that user stands for
//! the folder's owner: he does there what the owner could, and nowhere else. What is read-only is so
//! in that mount. Where the kernel has no such mounts, and for ordinary users, the folder is as it is.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use kiln_arch::machine::{Access, ChildFd, Share, ShareServer, Source};
use nix::libc;
use nix::unistd::{getegid, geteuid};

use crate::detached::{self, User};
use crate::host::virtiofsd;
use crate::state::layout::MachineFiles;
use crate::state::record::{ShareByRecord, ShareRecord};
use crate::supervisor::beside::Wanted;
use crate::supervisor::launch;
use crate::supervisor::process::{Companion, Identity};

/// The number of virtiofsd's listening socket.
const LISTENER: i32 = 3;

/// Why a share cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    #[error("cannot open the folder `{}`", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the user {uid} that serves `{}` may not {act} there, and the kernel does not lend him its owner's rights",
        path.display()
    )]
    NoRight {
        path: PathBuf,
        uid: u32,
        act: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot mount `{}` for virtiofsd", path.display())]
    Mount {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot make a socket for the share `{to}`")]
    Socket {
        to: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot open the log `{}`", path.display())]
    Log {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The shares as QEMU is told of them, each with the descriptor that `add` promises for it.
pub(super) fn served(
    shares: &[ShareRecord],
    mut add: impl FnMut(&ShareRecord) -> ChildFd,
) -> Vec<Share> {
    let served = shares.iter().map(|share| Share {
        tag: share.tag.clone(),
        server: match share.by {
            ShareByRecord::Virtiofs { .. } => ShareServer::Virtiofs(add(share)),
            ShareByRecord::NineP => ShareServer::Qemu {
                folder: Source::Fd(add(share)),
                access: access(share),
            },
        },
    });
    served.collect()
}

/// Those that QEMU serves by itself, for a person who starts it in a shell.
pub(super) fn alone(shares: &[ShareRecord]) -> Vec<Share> {
    let own = shares
        .iter()
        .filter(|share| share.by == ShareByRecord::NineP);
    let alone = own.map(|share| Share {
        tag: share.tag.clone(),
        server: ShareServer::Qemu {
            folder: Source::Path(share.from.clone()),
            access: access(share),
        },
    });
    alone.collect()
}

fn access(share: &ShareRecord) -> Access {
    if share.readonly {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    }
}

/// What QEMU is handed for a share, and who serves it where QEMU does not.
pub(super) fn open(
    share: &ShareRecord,
    files: &MachineFiles,
    identity: Identity,
) -> Result<(OwnedFd, Option<Wanted>), ShareError> {
    match &share.by {
        ShareByRecord::NineP => Ok((folder(share, identity)?, None)),
        ShareByRecord::Virtiofs { program } => {
            let (companion, socket) = companion(program, share, files, identity)?;
            let server = Wanted {
                what: format!("what serves its share `{}`", share.to),
                log: files.share_log(),
                companion,
            };
            Ok((socket, Some(server)))
        }
    }
}

/// The share's folder, for a QEMU that serves it itself.
fn folder(share: &ShareRecord, identity: Identity) -> Result<OwnedFd, ShareError> {
    match identity {
        Identity::Same => at(&share.from).map(OwnedFd::from),
        Identity::Drop { uid, gid } => lent(share, User { uid, gid }, |folder| Ok(folder.into())),
    }
}

/// The virtiofsd that is to serve the share, and the socket that QEMU speaks with it on.
fn companion(
    program: &Path,
    share: &ShareRecord,
    files: &MachineFiles,
    identity: Identity,
) -> Result<(Companion, OwnedFd), ShareError> {
    let (ours, listener) = pair(files).map_err(|source| ShareError::Socket {
        to: share.to.clone(),
        source,
    })?;
    let (shown, mount, user) = match identity {
        Identity::Same => {
            let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
            (share.from.clone(), None, User { uid, gid })
        }
        Identity::Drop { uid, gid } => {
            let user = User { uid, gid };
            let plainly = |folder: File| detached::mount(&folder, share.readonly, None);
            let mount = lent(share, user, plainly)?;
            let place = virtiofsd::PLACE;
            let shown = OsStr::from_bytes(place.to_bytes()).into();
            (shown, Some((mount, place)), user)
        }
    };
    let mut args = virtiofsd::arguments(LISTENER, &shown, share.readonly);
    for (option, id) in [("--translate-uid", user.uid), ("--translate-gid", user.gid)] {
        // Whatever a guest makes is the server's: it may give nothing away.
        args.push(option.into());
        args.push(format!("squash-guest:0:{id}:{}", u32::MAX).into());
    }
    let companion = Companion {
        program: program.to_owned(),
        args,
        fds: vec![(listener.into(), LISTENER)],
        output: log(files)?,
        // The guest says the modes of what it makes.
        umask: 0,
        mount,
    };
    Ok((companion, ours.into()))
}

/// What virtiofsd says from now on is about this start.
pub(super) fn clear_log(files: &MachineFiles) {
    // One that is not there is clear.
    let _ = fs::remove_file(files.share_log());
}

/// The folder as its owner's for the user; where the kernel has no such mount, what `plainly` makes of
/// it, if the user's own rights will do.
fn lent(
    share: &ShareRecord,
    user: User,
    plainly: impl FnOnce(File) -> io::Result<OwnedFd>,
) -> Result<OwnedFd, ShareError> {
    let path = || share.from.clone();
    let folder = at(&share.from)?;
    let source = match detached::mount(&folder, share.readonly, Some(user)) {
        Ok(mount) => return Ok(mount),
        Err(source) => source,
    };
    let found = folder.metadata().map_err(|source| ShareError::Open {
        path: path(),
        source,
    })?;
    match lacks(&found, user, share.readonly) {
        None => plainly(folder).map_err(|source| ShareError::Mount {
            path: path(),
            source,
        }),
        Some(act) => Err(ShareError::NoRight {
            path: path(),
            uid: user.uid,
            act,
            source,
        }),
    }
}

/// What a user may not do in a folder, of what a share is for.
fn lacks(found: &Metadata, user: User, readonly: bool) -> Option<&'static str> {
    let rights = if found.uid() == user.uid {
        found.mode() >> 6
    } else if found.gid() == user.gid {
        found.mode() >> 3
    } else {
        found.mode()
    };
    if rights & 0o5 != 0o5 {
        Some("read")
    } else if rights & 0o2 == 0 && !readonly {
        Some("write")
    } else {
        None
    }
}

fn at(path: &Path) -> Result<File, ShareError> {
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY);
    options.open(path).map_err(|source| ShareError::Open {
        path: path.to_owned(),
        source,
    })
}

/// A connected socket and the listener at its other end, which nobody else can find.
fn pair(files: &MachineFiles) -> io::Result<(UnixStream, UnixListener)> {
    let path = files.share_socket();
    let listener = launch::listen(&path).map_err(io::Error::other)?;
    let connected = UnixStream::connect(&path);
    fs::remove_file(&path)?;
    Ok((connected?, listener))
}

fn log(files: &MachineFiles) -> Result<OwnedFd, ShareError> {
    let path = files.share_log();
    let mut options = File::options();
    options
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW);
    match options.open(&path) {
        Ok(log) => Ok(log.into()),
        Err(source) => Err(ShareError::Log { path, source }),
    }
}
