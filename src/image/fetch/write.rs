//! The unpacked file: hashed, and written without its zeros.

use std::io::{self, Seek, SeekFrom, Write};
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::FetchError;
use crate::folder::Incoming;
use crate::image::digest;

/// Runs of zeros are looked for in pieces of this size, the largest common block of file systems.
const PIECE: usize = 64 << 10;

/// Writes a file from its beginning; what is only zeros becomes a hole.
#[derive(Debug)]
pub(super) struct Sparse<'a> {
    incoming: &'a mut Incoming,
    hasher: Sha256,
    length: u64,
    /// Where the file's own position is.
    at: u64,
}

impl<'a> Sparse<'a> {
    pub(super) fn new(incoming: &'a mut Incoming) -> Sparse<'a> {
        Sparse {
            incoming,
            hasher: Sha256::new(),
            length: 0,
            at: 0,
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        self.hasher.update(bytes);
        for piece in bytes.chunks(PIECE) {
            if piece.iter().any(|byte| *byte != 0) {
                self.put(piece).map_err(|source| self.failed(source))?;
            }
            self.length += piece.len() as u64;
        }
        Ok(())
    }

    fn put(&mut self, piece: &[u8]) -> io::Result<()> {
        let file = &mut self.incoming.file;
        if self.at != self.length {
            file.seek(SeekFrom::Start(self.length))?;
        }
        file.write_all(piece)?;
        self.at = self.length + piece.len() as u64;
        Ok(())
    }

    /// The digest in lower-case hexadecimal, and the length in bytes.
    pub(super) fn finish(self) -> Result<(String, u64), FetchError> {
        self.incoming
            .file
            .set_len(self.length)
            .map_err(|source| self.failed(source))?;
        Ok((digest::hex(&self.hasher.finalize()), self.length))
    }

    fn failed(&self, source: io::Error) -> FetchError {
        FetchError::Write {
            path: PathBuf::from(self.incoming.path()),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_file_is_whole_and_its_zeros_take_no_room() {
        let folder = tempfile::tempdir().unwrap();
        let mut incoming = Incoming::beside(&folder.path().join("x")).unwrap();
        let content = [
            vec![1; 1000],
            vec![0; 8 << 20],
            vec![2; 10],
            vec![0; 1 << 20],
        ]
        .concat();
        let mut file = Sparse::new(&mut incoming);
        for block in content.chunks(1 << 20) {
            file.write(block).unwrap();
        }
        let (digest, length) = file.finish().unwrap();
        assert_eq!(digest, digest::hex(&Sha256::digest(&content)));
        assert_eq!(length, content.len() as u64);
        let mut read = Vec::new();
        incoming.file.rewind().unwrap();
        incoming.file.read_to_end(&mut read).unwrap();
        assert!(read == content);
        let room = incoming.file.metadata().unwrap().blocks() * 512;
        assert!(room < 1 << 20, "it takes {room} bytes");
    }
}
