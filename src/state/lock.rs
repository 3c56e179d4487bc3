//! Advisory file locks: one command changes a cluster at a time, one supervisor manages it.
//!
//! The lock goes with its descriptor, so a killed holder leaves nothing to clean.
//! The file's text says who holds it; it is for people and never believed.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::stat::{major, minor};

use crate::folder;

/// How long a lock is waited for whose holders do a short thing.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{holder} is at it")]
    Held { holder: String },
    #[error("cannot lock `{}`", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Lock {
    /// Takes the lock at `path` at once or says who has it; `who` is what others will read.
    pub fn try_take(path: &Path, who: &str) -> Result<Lock, LockError> {
        let mut file = open(path)?;
        match file.try_lock() {
            // Its last holder removed the file while we opened it: the name is another's now.
            Ok(()) if !is_at(&file, path) => return Lock::try_take(path, who),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Best effort: the text may be half written by its new holder.
                let _ = (&mut file).take(200).read_to_string(&mut holder);
                let text = holder.trim();
                // The text may be of a former holder; the kernel knows the present one.
                let holder = match holder_of(&file) {
                    Some(pid) if text.starts_with(&format!("pid {pid}:")) => text.to_owned(),
                    Some(pid) => running(pid),
                    None => text.to_owned(),
                };
                return Err(LockError::Held {
                    holder: match holder.as_str() {
                        "" => "another kiln".to_owned(),
                        text => format!("another kiln ({text})"),
                    },
                });
            }
            Err(TryLockError::Error(source)) => {
                return Err(LockError::Open {
                    path: path.to_owned(),
                    source,
                });
            }
        }
        let mut lock = Lock {
            path: path.to_owned(),
            file,
        };
        lock.sign(who);
        Ok(lock)
    }

    /// Takes the lock at `path`, waiting [`PATIENCE`] for its holder.
    ///
    /// Only for locks whose holders do a short thing (choose a subnet, start a supervisor).
    pub fn take(path: &Path, who: &str) -> Result<Lock, LockError> {
        Lock::take_within(path, who, PATIENCE)
    }

    /// Takes the lock at `path` as soon as its holder lets go of it.
    ///
    /// # Errors
    /// [`LockError::Held`] after `patience`, with whoever has it then.
    pub fn take_within(path: &Path, who: &str, patience: Duration) -> Result<Lock, LockError> {
        match Lock::try_take(path, who) {
            Err(LockError::Held { .. }) => {}
            taken => return taken,
        }
        let (sender, receiver) = mpsc::channel();
        let own = path.to_owned();
        // The kernel has no deadline for this wait. Whoever gets no lock ends soon, and the thread
        // with it; what the thread may get before that, it drops.
        std::thread::spawn(move || sender.send(wait(&own)));
        match receiver.recv_timeout(patience) {
            Ok(Ok(mut lock)) => {
                lock.sign(who);
                Ok(lock)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Lock::try_take(path, who),
        }
    }

    /// The process that holds the lock at `path`, by the kernel's word; `None` when nobody does,
    /// or one that cannot be seen from here (another container's).
    pub fn holder(path: &Path) -> Option<u32> {
        holder_of(&File::open(path).ok()?)
    }

    /// Writes who has the lock; best effort, for it is for people alone.
    fn sign(&mut self, who: &str) {
        let text = format!("pid {}: {who}\n", std::process::id());
        let _ = self.file.set_len(0);
        let _ = self.file.rewind();
        let _ = self.file.write_all(text.as_bytes());
    }

    /// Removes the file and lets go: nothing of what it guarded is left.
    pub fn remove(self) {
        // Whoever waits for it notices that its file is no longer the one with this name. A file
        // that stays is empty and in nobody's way.
        if is_at(&self.file, &self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Waits for the lock, however long that takes.
fn wait(path: &Path) -> Result<Lock, LockError> {
    loop {
        let file = open(path)?;
        file.lock().map_err(|source| LockError::Open {
            path: path.to_owned(),
            source,
        })?;
        if is_at(&file, path) {
            return Ok(Lock {
                path: path.to_owned(),
                file,
            });
        }
    }
}

/// The pid of the file's holder, by proc_locks(5): `1: FLOCK  ADVISORY  WRITE PID MA:MI:INODE 0 EOF`.
/// Those that wait for it stand below, with an arrow before FLOCK.
fn holder_of(file: &File) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let (device, inode) = (metadata.dev(), metadata.ino());
    let own = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    let inode = inode.to_string();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let holders: Vec<(u32, &str)> = locks
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            if fields.next()? != "FLOCK" {
                return None;
            }
            let pid = fields.nth(2)?.parse().ok().filter(|pid| *pid != 0)?;
            Some((pid, fields.next()?))
        })
        .collect();
    // Some file systems (btrfs) show other devices to stat(2) than here.
    let exact = holders.iter().find(|(_, file)| *file == own);
    let found = exact.or_else(|| {
        holders
            .iter()
            .find(|(_, file)| file.rsplit(':').next() == Some(&inode))
    });
    found.map(|(pid, _)| *pid)
}

/// The pid and command line of a holder.
fn running(pid: u32) -> String {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = command
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| word.rsplit(|byte| *byte == b'/').next().unwrap_or(word))
        .map(String::from_utf8_lossy)
        .collect();
    let words: String = words
        .join(" ")
        .chars()
        .filter(|letter| !letter.is_control())
        .take(200)
        .collect();
    format!("pid {pid}: {words}")
}

/// Whether the open file is the one that has this name.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

fn open(path: &Path) -> Result<File, LockError> {
    folder::open_own(path).map_err(|source| LockError::Open {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_is_told_who_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = Lock::try_take(&path, "kiln up").unwrap();
        let error = Lock::try_take(&path, "kiln down").unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "another kiln (pid {}: kiln up) is at it",
                std::process::id()
            )
        );
        // Before it has written its name it is known by its pid, whatever another left there.
        for text in ["", "pid 1: kiln up\n"] {
            std::fs::write(&path, text).unwrap();
            let error = Lock::try_take(&path, "kiln down").unwrap_err().to_string();
            let pid = format!("another kiln (pid {}: ", std::process::id());
            assert!(error.starts_with(&pid), "{error}");
        }
        drop(held);
        Lock::try_take(&path, "kiln down").unwrap();
    }

    #[test]
    fn a_holder_on_the_way_out_is_waited_for_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = Lock::try_take(&path, "first").unwrap();
        let short = Duration::from_millis(10);
        assert!(matches!(
            Lock::take_within(&path, "second", short),
            Err(LockError::Held { .. })
        ));
        let waiter = {
            let path = path.clone();
            std::thread::spawn(move || Lock::take_within(&path, "third", Duration::from_secs(10)))
        };
        drop(held);
        waiter.join().unwrap().unwrap();
    }

    #[test]
    fn a_lock_whose_file_was_removed_is_taken_on_the_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Lock::take(&path, "x").unwrap();
        let waiter = {
            let path = path.clone();
            std::thread::spawn(move || Lock::take(&path, "x").unwrap())
        };
        first.remove();
        let held = waiter.join().unwrap();
        assert!(is_at(&held.file, &path));
        assert!(Lock::try_take(&path, "x").is_err());
    }
}
