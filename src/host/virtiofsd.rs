//! virtiofsd: where it is, how it is called, and whether it works here, which is tried.
//!
//! It opens what a guest names by that very name, so a guest whose kernel is hostile gets out of the
//! folder unless virtiofsd has shut itself in: only `--sandbox namespace` will do. (QEMU's own 9p server
//! refuses names that are more than names.) That asks for user namespaces, and as root, where kiln
//! shows the folder to a virtiofsd without rights, for mounts of kiln's own.
#![expect(unsafe_code, reason = "what comes between fork and exec")]

use std::ffi::{CStr, OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::qemu;
use crate::detached;
use crate::error::in_one_line;
use crate::folder;
use crate::supervisor::process::{Identity, confined};
use crate::tool;

/// The folder on which a virtiofsd that kiln starts as root finds what it serves: one that every host
/// has, that anybody may enter, and that no program comes from.
pub const PLACE: &CStr = c"/mnt";

/// Where distributions put it, which is not for users to call: Fedora and Debian, Arch.
const FOLDERS: &str = "/usr/libexec:/usr/lib";

/// It takes some 15 ms.
const DEADLINE: Duration = Duration::from_secs(5);

/// Nobody of this host: what is tried as root is tried without any right.
const NOBODY: u32 = 65534;

/// In `path`, or where distributions put it.
pub(super) fn find(path: &OsStr) -> Option<PathBuf> {
    qemu::find(path, "virtiofsd").or_else(|| qemu::find(OsStr::new(FOLDERS), "virtiofsd"))
}

/// The arguments of a virtiofsd that listens on this descriptor and serves this folder.
pub fn arguments(listener: i32, folder: &Path, readonly: bool) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec![
        "--fd".into(),
        listener.to_string().into(),
        "--shared-dir".into(),
        folder.into(),
        "--sandbox".into(),
        "namespace".into(),
        "--log-level".into(),
        "error".into(),
    ];
    if readonly {
        args.push("--readonly".into());
    }
    args
}

/// Tries whether it serves a folder here, shut in as it has to be. Its client goes at once, and it
/// after it.
///
/// # Errors
/// Why not, as a clause.
pub fn try_out(program: &Path, runtime: &Path, root: bool) -> Result<(), String> {
    let shown = program.display();
    let finished = attempt(program, runtime, root).map_err(|error| {
        let error = in_one_line(&*error);
        format!("`{shown}` cannot be tried: {error}")
    })?;
    if finished.status.success() {
        return Ok(());
    }
    let last = finished.stderr.lines().last().unwrap_or_default();
    // Behind the time and the module.
    let said = last.split_once("] ").map_or(last, |(_, said)| said);
    let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
    Err(format!(
        "`{shown}` does not work here ({}): {said}",
        finished.status
    ))
}

fn attempt(
    program: &Path,
    runtime: &Path,
    root: bool,
) -> Result<tool::Finished, Box<dyn std::error::Error>> {
    folder::make_private(runtime)?;
    let home = File::open(runtime)?;
    let listener = deserted_listener(&home)?;
    let mut command = Command::new(program);
    let (shown, mount, identity) = if root {
        // One that nobody has a right to would try nothing.
        let mount = detached::mount(&File::open("/")?, true, None)?;
        let nobody = Identity::Drop {
            uid: NOBODY,
            gid: NOBODY,
        };
        let place = Path::new(OsStr::new(PLACE.to_str()?));
        (place.to_owned(), Some((mount, PLACE)), nobody)
    } else {
        (fs::canonicalize(runtime)?, None, Identity::Same)
    };
    command.args(arguments(0, &shown, true)).env_clear();
    // SAFETY: `confined` makes system calls and nothing else.
    unsafe {
        command.pre_exec(move || confined(identity, mount.as_ref()));
    }
    Ok(tool::run(
        command,
        Stdio::from(OwnedFd::from(listener)),
        DEADLINE,
    )?)
}

/// A listener whose one client has gone already.
fn deserted_listener(folder: &File) -> io::Result<UnixListener> {
    // By the descriptor: a socket's path has to be short.
    let name = format!("try-{}.sock", std::process::id());
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()));
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    let client = UnixStream::connect(&path);
    fs::remove_file(&path)?;
    client.map(|_| listener)
}
