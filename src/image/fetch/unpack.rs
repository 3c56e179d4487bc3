//! Unpacking on the way: xz, gzip, bzip2 and Zstandard, whole files and nothing after them.
//!
//! A file may consist of several compressed ones, as parallel compressors write it. What comes after
//! the last is an error, and so is an end in the middle of one.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::thread;

use bzip2::bufread::BzDecoder;
use flate2::bufread::GzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::MtStreamBuilder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use crate::cluster::remote::Packing;

/// Bytes that go from thread to thread at once.
const BLOCK: usize = 1 << 20;
/// The files of images are of some GiB; what unpacks to more is no image.
const LARGEST: u64 = 1 << 40;
/// What is packed is hardly larger than what is in it, so that of endless padding and empty files no
/// more is taken than this. Decoders read ahead as far as their memory goes, which is less.
const SLACK: u64 = 1 << 30;
/// `xz -9` needs 65 MiB; beyond this a file is refused.
const XZ_MEMORY: u64 = 1 << 30;
/// For several blocks at once; `xz -9 -T2` needs some 500 MiB.
const XZ_THREADS_MEMORY: u64 = 768 << 20;
/// Zero bytes between two xz files come in fours (the .xz file format, section 2.2).
const XZ_PADDING: [u8; 4] = [0; 4];

/// Why a file cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("its {name} data is damaged or ends too early")]
    Damaged {
        name: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("there is more after the end of its {name} data")]
    Trailing { name: &'static str },
    #[error("it becomes larger than {LARGEST} bytes (1 TiB)")]
    TooLarge,
}

/// Unpacks `input` into `sink`, which says whether it wants more.
pub(super) fn unpack(
    packing: Packing,
    input: &mut dyn BufRead,
    sink: &mut dyn FnMut(Vec<u8>) -> bool,
) -> Result<(), UnpackError> {
    unpack_with(packing, input, SLACK, sink)
}

fn unpack_with(
    packing: Packing,
    input: &mut dyn BufRead,
    slack: u64,
    sink: &mut dyn FnMut(Vec<u8>) -> bool,
) -> Result<(), UnpackError> {
    let done = Cell::new(0);
    let mut input = Input {
        head: Vec::new(),
        rest: input,
        taken: 0,
        done: &done,
        slack,
    };
    let (name, magic): (_, &[u8]) = match packing {
        Packing::None => return copy("", &mut input, &done, sink).map(drop),
        Packing::Xz => ("xz", b"\xfd7zXZ\0"),
        Packing::Gzip => ("gzip", b"\x1f\x8b"),
        Packing::Bzip2 => ("bzip2", b"BZh"),
        Packing::Zstd => ("Zstandard", b"\x28\xb5\x2f\xfd"),
    };
    let damaged = |source| UnpackError::Damaged { name, source };
    loop {
        let wanted = {
            let mut decoder: Box<dyn Read + '_> = match packing {
                Packing::None => Box::new(&mut input),
                Packing::Xz => Box::new(xz(&mut input).map_err(damaged)?),
                Packing::Gzip => Box::new(GzDecoder::new(&mut input)),
                Packing::Bzip2 => Box::new(BzDecoder::new(&mut input)),
                Packing::Zstd => Box::new(zstd(&mut input).map_err(damaged)?),
            };
            copy(name, &mut decoder, &done, sink)?
        };
        if !wanted {
            return Ok(());
        }
        while packing == Packing::Xz && input.starts_with(&XZ_PADDING).map_err(damaged)? {
            input.consume(XZ_PADDING.len());
        }
        if input.starts_with(magic).map_err(damaged)? {
            continue;
        }
        return if input.head.is_empty() {
            Ok(())
        } else {
            Err(UnpackError::Trailing { name })
        };
    }
}

/// Copies in blocks; says whether the sink wants more.
fn copy(
    name: &'static str,
    from: &mut dyn Read,
    done: &Cell<u64>,
    sink: &mut dyn FnMut(Vec<u8>) -> bool,
) -> Result<bool, UnpackError> {
    loop {
        let mut block = Vec::with_capacity(BLOCK);
        from.take(BLOCK as u64)
            .read_to_end(&mut block)
            .map_err(|source| UnpackError::Damaged { name, source })?;
        if block.is_empty() {
            return Ok(true);
        }
        done.set(done.get() + block.len() as u64);
        if done.get() > LARGEST {
            return Err(UnpackError::TooLarge);
        }
        if !sink(block) {
            return Ok(false);
        }
    }
}

/// Several blocks of a file are unpacked at once, where it has them and there is memory.
fn xz<R: BufRead>(input: R) -> io::Result<XzDecoder<R>> {
    let threads = thread::available_parallelism().map_or(1, |count| count.get().min(4));
    let stream = MtStreamBuilder::new()
        .threads(u32::try_from(threads).unwrap_or(1))
        .memlimit_threading(XZ_THREADS_MEMORY)
        .memlimit_stop(XZ_MEMORY)
        .decoder()?;
    Ok(XzDecoder::new_stream(input, stream))
}

fn zstd<R: Read>(input: R) -> io::Result<Checked<R>> {
    StreamingDecoder::new(input)
        .map(Checked)
        .map_err(io::Error::other)
}

/// Its decoder leaves it to others to compare the checksum.
struct Checked<R: Read>(StreamingDecoder<R, FrameDecoder>);

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        let frame = &self.0.decoder;
        if read == 0
            && !buffer.is_empty()
            && let Some(want) = frame.get_checksum_from_data()
            && frame.get_calculated_checksum() != Some(want)
        {
            return Err(io::Error::other("the checksum is wrong"));
        }
        Ok(read)
    }
}

/// A file whose next bytes can be looked at.
struct Input<'a> {
    /// Looked at, and not yet taken.
    head: Vec<u8>,
    rest: &'a mut dyn BufRead,
    /// Bytes taken from the rest.
    taken: u64,
    /// Bytes that came of them.
    done: &'a Cell<u64>,
    slack: u64,
}

impl Input<'_> {
    /// More of the rest, unless far too little came of what was taken.
    fn more(&mut self) -> io::Result<&[u8]> {
        if self.taken > self.done.get() + self.slack {
            return Err(io::Error::other("there is far more of it than is in it"));
        }
        self.rest.fill_buf()
    }

    fn take_of_rest(&mut self, count: usize) {
        self.taken += count as u64;
        self.rest.consume(count);
    }

    fn starts_with(&mut self, magic: &[u8]) -> io::Result<bool> {
        while self.head.len() < magic.len() {
            let missing = magic.len() - self.head.len();
            let bytes = self.more()?;
            if bytes.is_empty() {
                break;
            }
            let head = bytes[..bytes.len().min(missing)].to_vec();
            self.take_of_rest(head.len());
            self.head.extend(head);
        }
        Ok(self.head.starts_with(magic))
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for Input<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.head.is_empty() {
            self.more()
        } else {
            Ok(&self.head)
        }
    }

    fn consume(&mut self, count: usize) {
        if self.head.is_empty() {
            self.take_of_rest(count);
        } else {
            self.head.drain(..count);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// Packs with the tool that everybody uses.
    fn packed(tool: &str, args: &[&str], content: &[u8]) -> Vec<u8> {
        let mut child = Command::new(tool)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("`{tool}` is needed: {error}"));
        let mut stdin = child.stdin.take().unwrap();
        let content = content.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&content).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.status.success());
        output.stdout
    }

    fn unpacked(packing: Packing, bytes: &[u8]) -> Result<Vec<u8>, UnpackError> {
        let mut out = Vec::new();
        // A few bytes at a time, so that every edge is met.
        let mut input = io::BufReader::with_capacity(7, bytes);
        unpack(packing, &mut input, &mut |block| {
            out.extend(block);
            true
        })?;
        Ok(out)
    }

    fn content() -> Vec<u8> {
        (0..300_000_u32)
            .flat_map(|number| (number / 7).to_le_bytes())
            .collect()
    }

    const ALL: [(Packing, &str, &[&str]); 5] = [
        (Packing::Xz, "xz", &["-c"]),
        (Packing::Xz, "xz", &["-c", "-T2", "--block-size=200KiB"]),
        (Packing::Gzip, "gzip", &["-c"]),
        (Packing::Bzip2, "bzip2", &["-c"]),
        (Packing::Zstd, "zstd", &["-c", "-q"]),
    ];

    #[test]
    fn what_the_usual_tools_pack_is_unpacked_also_piece_after_piece() {
        let content = content();
        for (packing, tool, args) in ALL {
            let bytes = packed(tool, args, &content);
            assert!(
                unpacked(packing, &bytes).unwrap() == content,
                "{tool} {args:?}"
            );
            let twice = [bytes.clone(), bytes].concat();
            let want = [content.clone(), content.clone()].concat();
            assert!(
                unpacked(packing, &twice).unwrap() == want,
                "{tool} {args:?} twice"
            );
        }
        assert!(unpacked(Packing::None, &content).unwrap() == content);
    }

    #[test]
    fn what_is_cut_damaged_or_too_long_is_an_error() {
        let content = content();
        for (packing, tool, args) in ALL {
            let bytes = packed(tool, args, &content);
            for end in [0, 3, bytes.len() / 2, bytes.len() - 1] {
                let result = unpacked(packing, &bytes[..end]);
                assert!(
                    matches!(result, Err(UnpackError::Damaged { .. })),
                    "{tool} to {end}"
                );
            }
            let mut damaged = bytes.clone();
            damaged[bytes.len() / 2] ^= 0x10;
            assert!(unpacked(packing, &damaged).is_err(), "{tool}");
            for tail in [&b"x"[..], b"more than a word", &bytes[..3]] {
                let longer = [&bytes, tail].concat();
                assert!(unpacked(packing, &longer).is_err(), "{tool} and {tail:?}");
            }
        }
    }

    #[test]
    fn zeros_between_two_xz_files_come_in_fours() {
        let bytes = packed("xz", &["-c"], b"text");
        let padded = |count| [bytes.clone(), vec![0; count], bytes.clone(), vec![0; 4]].concat();
        assert_eq!(unpacked(Packing::Xz, &padded(8)).unwrap(), b"texttext");
        assert!(matches!(
            unpacked(Packing::Xz, &padded(5)),
            Err(UnpackError::Trailing { .. })
        ));
    }

    #[test]
    fn what_has_no_end_and_nothing_in_it_is_given_up() {
        let packed_text = packed("xz", &["-c"], b"text");
        // A header whose text never ends, and files with nothing in them.
        let gzip = [&b"\x1f\x8b\x08\x08\0\0\0\0\0\x03"[..], &[b'x'; 100]].concat();
        let empty = packed("gzip", &["-c"], b"").repeat(100_000);
        for (packing, mut endless) in [
            (
                Packing::Xz,
                Box::new(packed_text.as_slice().chain(io::repeat(0))) as Box<dyn Read>,
            ),
            (
                Packing::Gzip,
                Box::new(gzip.as_slice().chain(io::repeat(b'x'))),
            ),
            (Packing::Gzip, Box::new(&empty[..])),
        ] {
            let mut input = io::BufReader::new(&mut endless);
            let error = unpack_with(packing, &mut input, 1 << 20, &mut |_| true).unwrap_err();
            assert!(
                matches!(error, UnpackError::Damaged { .. }),
                "{packing:?} {error:?}"
            );
        }
    }

    #[test]
    fn who_wants_no_more_gets_no_more() {
        let bytes = packed("gzip", &["-c"], &content());
        let mut blocks = 0;
        unpack(Packing::Gzip, &mut &bytes[..], &mut |_| {
            blocks += 1;
            false
        })
        .unwrap();
        assert_eq!(blocks, 1);
    }
}
