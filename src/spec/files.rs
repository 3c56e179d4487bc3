//! The files that a spec names, and the spec itself: opened with care.
//!
//! Only regular files are read, and never more than a cap: a spec that names a
//! device, a pipe or a huge file gets an error at once, not a hang.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::error::{Fault, Place, Problem};
use crate::cluster::Size;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("`{}` does not exist", path.display())]
    Missing { path: PathBuf },
    #[error("`{}` is not a regular file", path.display())]
    NotAFile { path: PathBuf },
    #[error("`{}` is larger than {limit}", path.display())]
    TooLarge { path: PathBuf, limit: Size },
    #[error("`{}` is not UTF-8 text", path.display())]
    NotUtf8 { path: PathBuf },
    #[error("cannot read `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Where the spec's relative paths begin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Folders<'a> {
    /// The spec's own folder, absolute.
    pub(super) spec: &'a Path,
    /// What `~` means.
    pub(super) home: Option<&'a Path>,
    /// The user's settings of kiln.
    pub(super) config: Option<&'a Path>,
}

impl Folders<'_> {
    /// The absolute path that `text` means.
    pub(super) fn resolve(&self, place: Place, key: &str, text: &str) -> Result<PathBuf, Fault> {
        if text.is_empty() {
            return Err(Fault::bad_value(place, key, "a path cannot be empty"));
        }
        if text.chars().any(char::is_control) {
            return Err(Fault::bad_value(
                place,
                key,
                "a path with control characters is refused",
            ));
        }
        let Some(rest) = text.strip_prefix('~') else {
            return Ok(self.spec.join(text.strip_prefix("./").unwrap_or(text)));
        };
        match (rest.strip_prefix('/'), self.home) {
            (Some(rest), Some(home)) => Ok(home.join(rest)),
            (Some(_), None) => Err(Fault::bad_value(
                place,
                key,
                "`~` means nothing here, because HOME is not set",
            )),
            (None, _) => Err(Fault::bad_value(
                place,
                key,
                "only `~/` is understood, not another user's folder",
            )
            .hint("write `./~…` for a file whose name begins with `~`")),
        }
    }
}

/// Opens a regular file for reading; a pipe or a device is refused, not waited for.
pub(super) fn open(path: &Path) -> Result<File, FileError> {
    let read = |source: io::Error| {
        let path = path.to_owned();
        if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&source.kind()) {
            FileError::Missing { path }
        } else {
            FileError::Read { path, source }
        }
    };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(path)
        .map_err(read)?;
    if file.metadata().map_err(read)?.is_file() {
        Ok(file)
    } else {
        Err(FileError::NotAFile {
            path: path.to_owned(),
        })
    }
}

/// A regular file's first bytes, at most `limit` of them.
pub(super) fn head(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    open(path)?
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|source| FileError::Read {
            path: path.to_owned(),
            source,
        })?;
    Ok(bytes)
}

/// A whole text file of at most `limit`.
pub(super) fn text(path: &Path, limit: Size) -> Result<String, FileError> {
    let bytes = head(path, limit.bytes() + 1)?;
    if bytes.len() as u64 > limit.bytes() {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            limit,
        });
    }
    String::from_utf8(bytes).map_err(|_| FileError::NotUtf8 {
        path: path.to_owned(),
    })
}

/// A file error as a fault of the key that names the file.
pub(super) fn fault(place: Place, key: &str) -> impl FnOnce(FileError) -> Fault + use<> {
    let key = key.to_owned();
    move |problem| Fault::new(place, Problem::File { key, problem })
}
