//! What `/proc` says of processes: the witness that does not go through kiln.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The processes that there are now. One that has ended and is nobody's to reap is none:
/// not every container has an init that takes in orphans.
fn all() -> Vec<u32> {
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(|pid| is_alive(*pid))
        .collect();
    pids.sort_unstable();
    pids
}

pub(crate) fn is_alive(pid: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
        return false;
    };
    !matches!(
        field(&status, "State").as_bytes().first(),
        None | Some(b'Z' | b'X')
    )
}

/// The processes with `needle` in `/proc/PID/file` (`cmdline` or `environ`).
pub(crate) fn with(file: &str, needle: &str) -> Vec<u32> {
    all()
        .into_iter()
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/{file}")).is_ok_and(|bytes| contains(&bytes, needle))
        })
        .collect()
}

/// The QEMUs with this uuid.
pub(crate) fn with_uuid(uuid: &str) -> Vec<u32> {
    with("cmdline", &format!("\0-uuid\0{uuid}\0"))
}

pub(crate) fn contains(bytes: &[u8], needle: &str) -> bool {
    bytes
        .windows(needle.len())
        .any(|window| window == needle.as_bytes())
}

/// The value of a field of `/proc/PID/status`.
pub(crate) fn status(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    field(&status, name).to_owned()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .unwrap_or_default()
        .trim()
}

/// What a process has open, by number.
pub(crate) fn descriptors(pid: u32) -> BTreeMap<u32, PathBuf> {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            // One that was closed since is none.
            let target = fs::read_link(&path).ok()?;
            Some((path.file_name()?.to_str()?.parse().ok()?, target))
        })
        .collect()
}

/// The network namespaces that a process holds without living in them.
pub(crate) fn namespaces(pid: u32) -> Vec<PathBuf> {
    let held = descriptors(pid).into_values();
    held.filter(|target| target.to_string_lossy().starts_with("net:["))
        .collect()
}

/// Who lives in this namespace, or holds it.
pub(crate) fn holders(space: &Path) -> Vec<u32> {
    let holds = |pid: &u32| {
        let lives = fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|own| own == space);
        let folder = fs::read_dir(format!("/proc/{pid}/fd")).into_iter();
        lives
            || folder
                .flatten()
                .flatten()
                .any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == space))
    };
    all().into_iter().filter(holds).collect()
}

/// The paths of the host's unix sockets, by inode: listeners and what they accepted.
pub(crate) fn unix_sockets() -> BTreeMap<u64, PathBuf> {
    fs::read_to_string("/proc/net/unix")
        .unwrap()
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace().skip(6);
            Some((words.next()?.parse().ok()?, PathBuf::from(words.next()?)))
        })
        .collect()
}

/// Sends a signal to a process that the test has seen to be its own.
pub(crate) fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

/// All files and folders below, with their modes.
pub(crate) fn tree(folder: &Path) -> BTreeMap<PathBuf, fs::Metadata> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            // What vanishes while we look was a temporary file.
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue;
            };
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path, metadata);
        }
    }
    found
}
