//! Kernels and initial RAM disks, kept in the cache by the digest of their content.
//!
//! A machine boots from the copy: a kernel that is rebuilt at its place does not change a machine
//! silently, and a QEMU under another uid is handed a file that cannot go away. Copies are never
//! written to again; a copy appears under its name whole and verified, or not at all.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use super::base::{self, ImageError};
use super::digest;
use crate::folder::{self, FolderError};
use crate::memo::{FileStamp, Memo, path_text};

const TEMPORARY: &str = "incoming-";

/// The store in the cache folder.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
    memo: Memo,
}

/// A file of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interned {
    /// Of the copy, absolute; mode 0444.
    pub path: PathBuf,
    /// Lower-case hexadecimal.
    pub sha256: String,
    /// In bytes.
    pub length: u64,
}

/// Why a file is not kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot use a file for booting")]
    Source {
        #[source]
        source: ImageError,
    },
    #[error("cannot use the store of images")]
    Folder {
        #[source]
        source: FolderError,
    },
    #[error("cannot copy `{}` to `{}`", from.display(), to.display())]
    Copy {
        from: PathBuf,
        to: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` changed while it was copied", path.display())]
    Moving { path: PathBuf },
}

impl Store {
    /// Makes nothing; the folder comes into being with the first file.
    pub fn new(cache: &Path, memo: Memo) -> Store {
        Store {
            folder: cache.join("blobs"),
            memo,
        }
    }

    /// Copies the file into the store, unless its content is there.
    ///
    /// For a file that did not change since the last time this takes three looks at the disk.
    /// Several processes may be at it at once. `progress` hears how many bytes are copied.
    pub fn intern(
        &self,
        path: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Interned, StoreError> {
        let now = SystemTime::now();
        let mut source = base::open(path).map_err(|source| StoreError::Source { source })?;
        let fail = |source| StoreError::Source {
            source: ImageError::Read {
                path: path.to_owned(),
                source,
            },
        };
        let metadata = source.metadata().map_err(fail)?;
        let kind = |error: fn(PathBuf) -> ImageError| StoreError::Source {
            source: error(path.to_owned()),
        };
        if !metadata.is_file() {
            return Err(kind(|path| ImageError::Kind { path }));
        }
        if metadata.len() == 0 {
            return Err(kind(|path| ImageError::Empty { path }));
        }
        let stamp = FileStamp::of(&metadata);
        let subject = format!("copy of {}", path_text(path));
        if let Some(sha256) = self.memo.recall(&subject, &stamp.to_string())
            && let Some(found) = self.find(&sha256, metadata.len())
        {
            return Ok(found);
        }
        let interned = self.copy(path, &mut source, progress)?;
        if FileStamp::of(&source.metadata().map_err(fail)?) != stamp {
            return Err(StoreError::Moving {
                path: path.to_owned(),
            });
        }
        if stamp.is_settled(now) {
            self.memo
                .note(&subject, &stamp.to_string(), &interned.sha256);
        }
        Ok(interned)
    }

    /// The copy with that digest, if it is there and whole.
    fn find(&self, sha256: &str, length: u64) -> Option<Interned> {
        let path = self.folder.join(format!("sha256-{sha256}"));
        let found = fs::symlink_metadata(&path).ok()?;
        (found.is_file() && found.len() == length).then(|| Interned {
            path,
            sha256: sha256.to_owned(),
            length,
        })
    }

    fn copy(
        &self,
        from: &Path,
        source: &mut File,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Interned, StoreError> {
        folder::make_private(&self.folder).map_err(|source| StoreError::Folder { source })?;
        let fail = |source| StoreError::Copy {
            from: from.to_owned(),
            to: self.folder.clone(),
            source,
        };
        self.sweep().map_err(fail)?;
        let mut incoming = Incoming::new(&self.folder).map_err(fail)?;
        let (sha256, length) = digest::copy(source, &mut incoming.file, progress).map_err(fail)?;
        let path = self.folder.join(format!("sha256-{sha256}"));
        incoming.keep_as(&path).map_err(fail)?;
        Ok(Interned {
            path,
            sha256,
            length,
        })
    }

    /// Removes what killed processes left: temporary files that nobody holds the lock of.
    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if !entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(TEMPORARY.as_bytes())
            {
                continue;
            }
            // One that is gone by now, or is being written, is none of ours.
            if let Ok(file) = File::open(entry.path())
                && file.try_lock().is_ok()
            {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }
}

/// A file on its way into the store; it goes away when dropped.
struct Incoming {
    path: PathBuf,
    file: File,
}

impl Incoming {
    fn new(folder: &Path) -> io::Result<Incoming> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("{TEMPORARY}{}-{count}", std::process::id()));
            let file = match folder::create_new(&path) {
                // Left by a process that had our pid; the next sweep has it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                result => result?,
            };
            let incoming = Incoming { path, file };
            // A sweep may have come between making and locking it; then it has another turn.
            if incoming.file.try_lock().is_ok() && incoming.file.metadata()?.nlink() == 1 {
                return Ok(incoming);
            }
        }
    }

    fn keep_as(self, path: &Path) -> io::Result<()> {
        self.file.set_permissions(Permissions::from_mode(0o444))?;
        self.file.sync_all()?;
        fs::rename(&self.path, path)?;
        folder::sync_folder_of(path)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests;
