//! The unpacked file: hashed, and written without its zeros.

use std::io::Write;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::FetchError;
use crate::folder::Incoming;
use crate::image::digest;
use crate::image::sparse::Sparse;

/// Hashes what it writes.
#[derive(Debug)]
pub(super) struct Unpacked<'a> {
    path: PathBuf,
    file: Sparse<'a>,
    hasher: Sha256,
}

impl<'a> Unpacked<'a> {
    pub(super) fn new(incoming: &'a mut Incoming) -> Unpacked<'a> {
        Unpacked {
            path: incoming.path().to_owned(),
            file: Sparse::new(&mut incoming.file),
            hasher: Sha256::new(),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        self.hasher.update(bytes);
        self.file
            .write_all(bytes)
            .map_err(|source| FetchError::Write {
                path: self.path.clone(),
                source,
            })
    }

    /// The digest in lower-case hexadecimal, and the length in bytes.
    pub(super) fn finish(self) -> Result<(String, u64), FetchError> {
        let Unpacked { path, file, hasher } = self;
        match file.finish() {
            Ok(length) => Ok((digest::hex(&hasher.finalize()), length)),
            Err(source) => Err(FetchError::Write { path, source }),
        }
    }
}
