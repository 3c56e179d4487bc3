//! A file that is written from its beginning, and whose zeros take no room.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

/// Runs of zeros are looked for in pieces of this size, the largest common block of file systems.
const PIECE: usize = 64 << 10;

/// Writes into a file that is empty; what is only zeros becomes a hole.
#[derive(Debug)]
pub(super) struct Sparse<'a> {
    file: &'a mut File,
    length: u64,
    /// Where the file's own position is.
    at: u64,
}

impl<'a> Sparse<'a> {
    pub(super) fn new(file: &'a mut File) -> Sparse<'a> {
        Sparse {
            file,
            length: 0,
            at: 0,
        }
    }

    /// Gives the file its length, in bytes, which comes back.
    pub(super) fn finish(self) -> io::Result<u64> {
        self.file.set_len(self.length)?;
        Ok(self.length)
    }
}

impl Write for Sparse<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.chunks(PIECE) {
            if piece.iter().any(|byte| *byte != 0) {
                if self.at != self.length {
                    self.file.seek(SeekFrom::Start(self.length))?;
                }
                self.file.write_all(piece)?;
                self.at = self.length + piece.len() as u64;
            }
            self.length += piece.len() as u64;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_file_is_whole_and_its_zeros_take_no_room() {
        let mut file = tempfile::tempfile().unwrap();
        let content = [
            vec![1; 1000],
            vec![0; 8 << 20],
            vec![2; 10],
            vec![0; 1 << 20],
        ]
        .concat();
        let mut sparse = Sparse::new(&mut file);
        for block in content.chunks(1 << 20) {
            sparse.write_all(block).unwrap();
        }
        assert_eq!(sparse.finish().unwrap(), content.len() as u64);
        let mut read = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut read).unwrap();
        assert!(read == content);
        let room = file.metadata().unwrap().blocks() * 512;
        assert!(room < 1 << 20, "it takes {room} bytes");
    }
}
