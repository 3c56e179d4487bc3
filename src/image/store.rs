//! Kernels and initial RAM disks, kept in the cache by the digest of their content.
//!
//! A machine boots from the copy: a kernel that is rebuilt at its place does not change a machine
//! silently, and a QEMU under another uid is handed a file that cannot go away. Copies are never
//! written to again; a copy appears under its name whole and verified, or not at all.
//!
//! Whoever is about to use a copy holds a shared lock on it until a machine's record names it, as in
//! [`super::cache`].

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use nix::libc;
use nix::unistd::geteuid;

use super::base::{self, ImageError};
use super::digest;
use crate::folder::{self, FolderError, Incoming};
use crate::memo::{FileStamp, Memo, path_text};
use crate::state::lock::Lock;

/// The store in the cache folder.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
    memo: Memo,
}

/// A file of the store.
#[derive(Debug, Clone)]
pub struct Interned {
    /// Of the copy, absolute; mode 0444.
    pub path: PathBuf,
    /// Lower-case hexadecimal.
    pub sha256: String,
    /// In bytes.
    pub length: u64,
    /// With a shared lock: the copy stays as long as this is held.
    pub held: Arc<File>,
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
    #[error("cannot clean up `{}`", path.display())]
    Prune {
        path: PathBuf,
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
        let ours = found.is_file() && found.uid() == geteuid().as_raw();
        if !ours || found.len() != length {
            return None;
        }
        Some(Interned {
            held: hold(&path)?,
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
        let mut incoming = Incoming::beside(&self.folder.join("blob")).map_err(fail)?;
        let (sha256, length) = digest::copy(source, &mut incoming.file, progress).map_err(fail)?;
        let path = self.folder.join(format!("sha256-{sha256}"));
        incoming
            .file
            .set_permissions(Permissions::from_mode(0o444))
            .and_then(|()| incoming.file.sync_all())
            .map_err(fail)?;
        // Of several who copy it at once, one gives it its name: what others hold is not replaced.
        let naming = Lock::take(&self.folder.join("naming.lock"), "copying a kernel")
            .map_err(|error| fail(io::Error::other(error)))?;
        let found = match self.find(&sha256, length) {
            None => incoming.keep_as(&path).map(|()| self.find(&sha256, length)),
            found => Ok(found),
        };
        naming.remove();
        found
            .map_err(fail)?
            .ok_or_else(|| fail(io::ErrorKind::NotFound.into()))
    }

    /// Removes the copies that no command holds and of which `is_needed` does not say, after they
    /// are locked, that a machine boots them; says which went and how many bytes that frees.
    ///
    /// # Errors
    /// Of the first one that resists.
    pub fn prune(
        &self,
        mut is_needed: impl FnMut(&Path) -> bool,
    ) -> Result<Vec<(String, u64)>, StoreError> {
        let failed = |source| StoreError::Prune {
            path: self.folder.clone(),
            source,
        };
        let mut gone = Vec::new();
        if !self.folder.exists() {
            return Ok(gone);
        }
        folder::sweep(&self.folder).map_err(failed)?;
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if !name.starts_with("sha256-") || !entry.file_type().map_err(failed)?.is_file() {
                continue;
            }
            let file = open(&path).map_err(failed)?;
            match file.try_lock() {
                Ok(()) if is_needed(&path) => {}
                Ok(()) => {
                    let room = file.metadata().map_err(failed)?.blocks() * 512;
                    fs::remove_file(&path).map_err(failed)?;
                    gone.push((name, room));
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
        Ok(gone)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

/// Locks the copy at `path`, unless it is going or gone.
fn hold(path: &Path) -> Option<Arc<File>> {
    let file = open(path).ok()?;
    file.try_lock_shared().ok()?;
    let (found, named) = (file.metadata().ok()?, fs::symlink_metadata(path).ok()?);
    let is_there = (found.dev(), found.ino()) == (named.dev(), named.ino());
    is_there.then(|| Arc::new(file))
}

#[cfg(test)]
mod tests;
