//! Records on the disk: JSON that is old or new, never partial, and says its schema.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use kiln_netsetup::bridge::BridgeError;
use nix::libc;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::folder;
use crate::lvm::program::LvmError;

/// The layout of kiln's own files; a record with a higher number is refused, never rewritten.
pub const SCHEMA: u32 = 1;

/// A record is small; anything larger is not one of ours.
const RECORD_LIMIT: u64 = 4 * 1024 * 1024;

/// Why a state file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot write `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot remove `{}`", path.display())]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` is damaged: it is not the JSON that kiln wrote", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("`{}` was written by a newer kiln (schema {found}; this one knows {SCHEMA})", path.display())]
    Newer { path: PathBuf, found: u64 },
    #[error("cannot put link `{link}` of the host back to what it was")]
    Network {
        link: String,
        #[source]
        source: BridgeError,
    },
    #[error("cannot remove volume `{name}` of group `{group}`")]
    Volume {
        group: String,
        name: String,
        #[source]
        source: Box<LvmError>,
    },
    #[error("`{}` is in the way: it is not a folder", path.display())]
    NotAFolder { path: PathBuf },
}

impl StateError {
    /// Whether the file is whole, and only this kiln is too old for it.
    pub fn is_newer(&self) -> bool {
        matches!(self, StateError::Newer { .. })
    }
}

/// Writes `record` as JSON to `path`, whole or not at all.
pub fn save<T: Serialize>(path: &Path, record: &T) -> Result<(), StateError> {
    text(record)
        .and_then(|text| folder::write_whole(path, &text))
        .map_err(|source| StateError::Write {
            path: path.to_owned(),
            source,
        })
}

/// What [`save`] writes.
pub fn text<T: Serialize>(record: &T) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(record)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Reads the record at `path`; `None` when there is no such file.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    let read = |source| StateError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
    {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(read(source)),
    };
    let mut bytes = Vec::new();
    file.take(RECORD_LIMIT)
        .read_to_end(&mut bytes)
        .map_err(read)?;
    let damaged = |source| StateError::Damaged {
        path: path.to_owned(),
        source,
    };
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(damaged)?;
    if let Some(found) = value.get("schema").and_then(serde_json::Value::as_u64)
        && found > u64::from(SCHEMA)
    {
        return Err(StateError::Newer {
            path: path.to_owned(),
            found,
        });
    }
    serde_json::from_value(value).map(Some).map_err(damaged)
}

/// The names of what lies in the folder; none when it cannot be read.
pub fn names_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Removes a folder and all in it, following no link; one that is not there is fine.
pub fn remove_folder(path: &Path) -> Result<(), StateError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(StateError::Remove {
            path: path.to_owned(),
            source,
        }),
        Ok(()) => Ok(()),
    }
}

/// Removes a file; one that is not there is fine.
pub fn remove_file(path: &Path) -> Result<(), StateError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(StateError::Remove {
            path: path.to_owned(),
            source,
        }),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_schema_is_refused_and_garbage_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        folder::write_whole(&path, br#"{"schema":2}"#).unwrap();
        assert!(matches!(
            load::<serde_json::Value>(&path),
            Err(StateError::Newer { found: 2, .. })
        ));
        for garbage in [&b""[..], b"{\"schema\":1", b"\0\0\0\0"] {
            folder::write_whole(&path, garbage).unwrap();
            assert!(matches!(
                load::<serde_json::Value>(&path),
                Err(StateError::Damaged { .. })
            ));
        }
    }
}
