//! What was received of a file so far, kept in the cache as it was sent.
//!
//! Two files: the bytes, and a record that says what they are of. Whoever opens one holds the lock of
//! that download. Bytes whose record is gone or of another address are of no use and are dropped.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::folder;
use crate::state::files::{self, SCHEMA};

/// How the names of the bytes begin; the record's has `.json` after it.
pub const PREFIX: &str = "partial-";

/// What the bytes are of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartialRecord {
    pub schema: u32,
    /// For people.
    pub image: String,
    pub url: String,
    /// The server's word for this very file.
    pub validator: Option<String>,
    /// Of the whole file, in bytes.
    pub total: Option<u64>,
}

/// A download that can be gone on with.
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    file: File,
    length: u64,
    record: PartialRecord,
}

impl Partial {
    /// Opens what there is of this download in the folder, or begins it.
    pub fn open(folder: &Path, key: &str, image: &str, url: &str) -> io::Result<Partial> {
        let path = folder.join(format!("{PREFIX}{key}"));
        let known: Option<PartialRecord> = files::load(&record_path(&path)).ok().flatten();
        let file = folder::open_own(&path)?;
        let fresh = PartialRecord {
            schema: SCHEMA,
            image: image.to_owned(),
            url: url.to_owned(),
            validator: None,
            total: None,
        };
        let mut partial = Partial {
            length: file.metadata()?.len(),
            record: known
                .clone()
                .filter(|known| known.url == url)
                .unwrap_or(fresh),
            path,
            file,
        };
        if known.is_none_or(|known| known.url != url) {
            partial.restart(None, None)?;
        }
        Ok(partial)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes received.
    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn validator(&self) -> Option<&str> {
        self.record.validator.as_deref()
    }

    pub fn total(&self) -> Option<u64> {
        self.record.total
    }

    /// Whether nothing is missing, by the server's word.
    pub fn is_whole(&self) -> bool {
        self.length > 0 && self.record.total == Some(self.length)
    }

    /// Begins anew with what the server says of the file.
    pub fn restart(&mut self, validator: Option<String>, total: Option<u64>) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.length = 0;
        self.record.validator = validator;
        self.record.total = total;
        folder::write_whole(&record_path(&self.path), &files::text(&self.record)?)
    }

    /// Reads the bytes from the beginning; the next ones go after them.
    pub fn replay(&mut self, mut sink: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
        self.file.rewind()?;
        let mut left = self.length;
        let mut block = vec![0; 1 << 20];
        while left > 0 {
            let most = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = self.file.read(&mut block[..most])?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= read as u64;
            if !sink(&block[..read]) {
                break;
            }
        }
        self.file.seek(SeekFrom::Start(self.length))?;
        Ok(())
    }

    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Removes it: the file is whole and kept elsewhere, or worthless.
    pub fn discard(self) {
        remove(&self.path);
    }

    /// Keeps it for the next time, unless it is empty.
    pub fn keep(self) {
        if self.length == 0 {
            self.discard();
        }
    }
}

/// Removes a partial file and its record, by the path of the bytes.
pub fn remove(path: &Path) {
    for path in [path, &record_path(path)] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "not removed");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// What the partial file's bytes are of.
pub fn record_of(path: &Path) -> Option<PartialRecord> {
    files::load(&record_path(path)).ok().flatten()
}

fn record_path(path: &Path) -> PathBuf {
    // The name has no ending of its own.
    path.with_extension("json")
}
