//! Facts that were dear to find, kept in the cache folder: a digest, a version, a verdict.
//!
//! A fact belongs to a subject ("sha256 of this path") and holds while the subject's state
//! ("device, inode, length, times") is the one that it was found in. Any of it may be lost at any
//! time; nothing here is a source of truth, and what cannot be read is not known.

use std::fmt;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::folder;
use crate::state::lock::Lock;

/// File times move in steps of at most this: the coarsest kernel tick is 10 ms.
const COARSEST_TICK: Duration = Duration::from_millis(20);

/// Remembered facts; one small file for each subject.
#[derive(Debug, Clone)]
pub struct Memo {
    folder: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    subject: String,
    state: String,
    fact: String,
}

/// What changes when a file is replaced or written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    device: u64,
    inode: u64,
    length: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// Of the inode: no program can set it back.
    changed: (i64, i64),
}

impl Memo {
    /// Reads and makes nothing; the folder comes into being with the first fact.
    pub fn new(folder: PathBuf) -> Memo {
        Memo { folder }
    }

    /// The fact that was noted of this subject in this very state.
    pub fn recall(&self, subject: &str, state: &str) -> Option<String> {
        // One that another user could have put there would be no fact.
        let bytes = folder::read_own(&self.file(subject)).ok()?;
        let entry: Entry = serde_json::from_slice(&bytes).ok()?;
        (entry.subject == subject && entry.state == state).then_some(entry.fact)
    }

    /// Keeps the fact. When that fails, it is only found anew the next time; that is said in
    /// kiln's own log.
    pub fn note(&self, subject: &str, state: &str, fact: &str) {
        if let Err(error) = self.try_note(subject, state, fact) {
            tracing::debug!(%subject, %error, "a fact is not kept");
        }
    }

    /// Has others wait who want to find out the same, so that one of them does the work. `None` when
    /// whoever is at it has not done it within `patience`: then it is done twice.
    pub fn alone(&self, subject: &str, patience: Duration) -> Option<Lock> {
        folder::make_private(&self.folder).ok()?;
        let path = self.file(subject).with_extension("lock");
        Lock::take_within(&path, "finding out about a file", patience).ok()
    }

    fn try_note(&self, subject: &str, state: &str, fact: &str) -> io::Result<()> {
        let entry = Entry {
            subject: subject.to_owned(),
            state: state.to_owned(),
            fact: fact.to_owned(),
        };
        folder::make_private(&self.folder).map_err(io::Error::other)?;
        folder::write_whole(&self.file(subject), &serde_json::to_vec(&entry)?)
    }

    fn file(&self, subject: &str) -> PathBuf {
        let digest = Sha256::digest(subject.as_bytes());
        let name: String = digest[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.folder.join(name)
    }
}

impl FileStamp {
    pub fn of(metadata: &Metadata) -> FileStamp {
        FileStamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether a later write is sure to give another stamp.
    ///
    /// A file that was written in the same tick of the kernel's clock may be written again without
    /// its times moving. `now` is the time before the content was read.
    pub fn is_settled(&self, now: SystemTime) -> bool {
        let (seconds, nanoseconds) = self.changed;
        let changed = u64::try_from(seconds)
            .ok()
            .zip(u32::try_from(nanoseconds).ok())
            .and_then(|(seconds, nanoseconds)| {
                UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds))
            });
        changed.is_some_and(|changed| {
            now.duration_since(changed)
                .is_ok_and(|age| age > COARSEST_TICK)
        })
    }
}

impl fmt::Display for FileStamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FileStamp {
            device,
            inode,
            length,
            modified,
            changed,
        } = self;
        write!(
            f,
            "device {device} inode {inode} length {length} modified {}.{:09} changed {}.{:09}",
            modified.0, modified.1, changed.0, changed.1
        )
    }
}

/// A path as text in which no two paths are alike, not even those that are no UTF-8.
pub fn path_text(path: &Path) -> String {
    format!("{path:?}")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::tempdir;

    use super::*;

    #[test]
    fn a_fact_is_recalled_in_its_state_alone() {
        let home = tempdir().unwrap();
        let memo = Memo::new(home.path().join("facts"));
        assert_eq!(memo.recall("a", "1"), None);
        memo.note("a", "1", "fact");
        assert_eq!(memo.recall("a", "1").as_deref(), Some("fact"));
        assert_eq!(memo.recall("a", "2"), None);
        assert_eq!(memo.recall("b", "1"), None);
        memo.note("a", "2", "newer");
        assert_eq!(memo.recall("a", "1"), None);
        assert_eq!(fs::read_dir(&memo.folder).unwrap().count(), 1);
    }

    #[test]
    fn garbage_and_a_folder_that_cannot_be_made_are_no_facts() {
        let home = tempdir().unwrap();
        let memo = Memo::new(home.path().to_owned());
        memo.note("a", "1", "fact");
        for garbage in ["", "{", "{\"subject\":\"a\"}", "[]"] {
            fs::write(memo.file("a"), garbage).unwrap();
            assert_eq!(memo.recall("a", "1"), None);
        }
        let nowhere = Memo::new(PathBuf::from("/proc/nonexistent"));
        nowhere.note("a", "1", "fact");
        assert_eq!(nowhere.recall("a", "1"), None);
    }

    #[test]
    fn a_file_is_settled_when_its_times_are_old_enough() {
        let home = tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "x").unwrap();
        let stamp = FileStamp::of(&fs::metadata(&file).unwrap());
        let now = SystemTime::now();
        assert!(!stamp.is_settled(now - Duration::from_secs(1)));
        assert!(stamp.is_settled(now + Duration::from_secs(1)));
    }

    #[test]
    fn a_write_of_the_same_length_gives_another_stamp_once_settled() {
        let home = tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "x").unwrap();
        let before = FileStamp::of(&fs::metadata(&file).unwrap());
        while !before.is_settled(SystemTime::now()) {
            std::hint::spin_loop();
        }
        fs::write(&file, "y").unwrap();
        assert_ne!(before, FileStamp::of(&fs::metadata(&file).unwrap()));
    }
}
