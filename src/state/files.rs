//! Files that are old or new, never partial; folders and files that only their owner reads.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use serde::Serialize;
use serde::de::DeserializeOwned;

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
    #[error("cannot create folder `{}`", path.display())]
    CreateFolder {
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
    #[error("`{}` belongs to uid {owner}, not to uid {me}", path.display())]
    Foreign { path: PathBuf, owner: u32, me: u32 },
    #[error("`{}` is in the way: it is not a folder", path.display())]
    NotAFolder { path: PathBuf },
}

/// Replaces `path` by `bytes`: temporary file (0600), fsync, rename, fsync of the folder.
///
/// # Errors
/// What the kernel says; the old file is intact then and no temporary one is left.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = folder.join(name);
    let written = (|| {
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // The first error is the one to tell; a file that was never made is no second one.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Writes `record` as JSON to `path`, whole or not at all.
pub fn save<T: Serialize>(path: &Path, record: &T) -> Result<(), StateError> {
    let mut bytes = serde_json::to_vec_pretty(record).map_err(|source| StateError::Write {
        path: path.to_owned(),
        source: source.into(),
    })?;
    bytes.push(b'\n');
    write_atomic(path, &bytes).map_err(|source| StateError::Write {
        path: path.to_owned(),
        source,
    })
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

/// Makes `path` and what is missing above it, each 0700 whatever the umask,
/// and checks that the last one is a real folder of `uid`.
pub fn private_folder(path: &Path, uid: u32) -> Result<(), StateError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| StateError::CreateFolder {
            path: path.to_owned(),
            source,
        })?;
    let meta = std::fs::symlink_metadata(path).map_err(|source| StateError::Read {
        path: path.to_owned(),
        source,
    })?;
    if !meta.is_dir() {
        return Err(StateError::NotAFolder {
            path: path.to_owned(),
        });
    }
    if meta.uid() != uid {
        return Err(StateError::Foreign {
            path: path.to_owned(),
            owner: meta.uid(),
            me: uid,
        });
    }
    Ok(())
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
    fn a_write_that_fails_leaves_the_old_text_and_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_atomic(&path, b"old").unwrap();
        // A folder in the way of the rename makes the last step fail.
        let blocked = folder.path().join("b.json");
        std::fs::create_dir(&blocked).unwrap();
        assert!(write_atomic(&blocked, b"new").is_err());
        let names: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn a_newer_schema_is_refused_and_garbage_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_atomic(&path, br#"{"schema":2}"#).unwrap();
        assert!(matches!(
            load::<serde_json::Value>(&path),
            Err(StateError::Newer { found: 2, .. })
        ));
        for garbage in [&b""[..], b"{\"schema\":1", b"\0\0\0\0"] {
            write_atomic(&path, garbage).unwrap();
            assert!(matches!(
                load::<serde_json::Value>(&path),
                Err(StateError::Damaged { .. })
            ));
        }
    }
}
