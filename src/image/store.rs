//! Kernels and initial RAM disks, kept in the cache by the digest of their content.
//!
//! A machine boots from the copy: a kernel that is rebuilt at its place does not change a machine
//! silently, and a QEMU under another uid is handed a file that cannot go away. Copies are never
//! written to again; a copy appears under its name whole and verified, or not at all.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::unistd::geteuid;

use super::base::{self, ImageError};
use super::digest;
use crate::folder::{self, FolderError, Incoming};
use crate::memo::{FileStamp, Memo, path_text};

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
        let ours = found.is_file() && found.uid() == geteuid().as_raw();
        (ours && found.len() == length).then(|| Interned {
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
            .and_then(|()| incoming.keep_as(&path))
            .map_err(fail)?;
        Ok(Interned {
            path,
            sha256,
            length,
        })
    }
}

#[cfg(test)]
mod tests;
