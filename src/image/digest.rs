//! SHA-256 of files, as lower-case hexadecimal text.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

/// Large enough that reading costs nothing beside hashing.
const BLOCK: usize = 1 << 20;

/// Reads to the end, hands each block to `sink`, and gives the digest and the length in bytes.
///
/// `progress` hears how many bytes are done.
pub(super) fn copy(
    source: &mut impl Read,
    sink: &mut impl Write,
    progress: &mut dyn FnMut(u64),
) -> io::Result<(String, u64)> {
    let mut hasher = Sha256::new();
    let mut block = vec![0; BLOCK];
    let mut done = 0;
    loop {
        let read = match source.read(&mut block) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&block[..read]);
        sink.write_all(&block[..read])?;
        done += read as u64;
        progress(done);
    }
    Ok((hex(&hasher.finalize()), done))
}

/// Lower-case hexadecimal.
pub(super) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_sha_256_and_the_copy_is_whole() {
        let mut sink = Vec::new();
        let mut heard = 0;
        let (digest, length) = copy(&mut &b"abc"[..], &mut sink, &mut |done| heard = done).unwrap();
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            digest,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!((sink.as_slice(), length, heard), (&b"abc"[..], 3, 3));
    }
}
