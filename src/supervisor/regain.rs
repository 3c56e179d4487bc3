//! The names of sockets, for when they are lost: somebody emptied the folder that they lie in, or
//! it went with a session of its user.
//!
//! Who has lost the name of a listening socket cannot connect to it any more. So each QEMU is also
//! handed its own sockets' names as `O_PATH` descriptors: through `/proc/PID/fd/N` they lead to the
//! socket for as long as QEMU lives, and a symlink to that is as good as the name.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::folder;
use crate::state::layout::{MachineFiles, Socket};

/// Puts the names back that QEMU's sockets had, those that are gone.
///
/// # Errors
/// When the folder cannot be made, or QEMU's descriptors cannot be looked at.
pub(super) fn mend(pid: u32, files: &MachineFiles) -> io::Result<()> {
    let lost = Socket::ALL.map(|socket| files.socket(socket));
    let lost: Vec<PathBuf> = lost.into_iter().filter(|path| !path.exists()).collect();
    if lost.is_empty() {
        return Ok(());
    }
    let held = held(pid)?;
    for path in lost {
        let Some((_, way)) = held.iter().find(|(name, _)| path.file_name() == Some(name)) else {
            // A QEMU of a kiln that did not hand them over, or one that has no such socket.
            continue;
        };
        folder::make_private(&files.sockets).map_err(io::Error::other)?;
        // One that leads nowhere, of a QEMU before this one.
        let _ = fs::remove_file(&path);
        symlink(way, &path)?;
    }
    Ok(())
}

/// The file names of the paths that the process holds, and the way to each.
fn held(pid: u32) -> io::Result<Vec<(std::ffi::OsString, PathBuf)>> {
    let mut held = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let way = entry?.path();
        // It may be closed by now.
        let Ok(target) = fs::read_link(&way) else {
            continue;
        };
        if let Some(name) = target.file_name() {
            let name = name.to_string_lossy();
            let name = name.strip_suffix(" (deleted)").unwrap_or(&name);
            held.push((name.into(), way));
        }
    }
    Ok(held)
}

/// Device and inode of what has this name.
pub(super) fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}
