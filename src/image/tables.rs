//! The tables of a qcow2 image, walked to see whether the file still holds all that they name.
//!
//! A download that stopped half-way most often has sound tables at its beginning; QEMU starts on
//! it, and the guest meets zeros or errors an hour later. Entries are only compared with the
//! file's length here; their data is not read.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::qcow2::{Header, Refused};

/// Bits 9 to 55 of an entry.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros, whatever its offset.
const ZEROS: u64 = 1;

/// At most so much is read; that is 1 TiB of allocated data with clusters of 64 KiB. What lies
/// behind is left to QEMU, which meets damage there as an I/O error.
const MOST_READ: u64 = 128 << 20;

/// A judgement, or the error that kept from reading.
#[derive(Debug)]
pub(super) enum Trouble {
    Refused(Refused),
    Read(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        Trouble::Read(error)
    }
}

/// Walks the active tables of the image in `file`, which is `file_length` bytes long.
pub(super) fn walk(file: &File, header: &Header, file_length: u64) -> Result<(), Trouble> {
    let cluster = header.cluster_size();
    let l1_table = read(file, header.l1_offset, u64::from(header.l1_size) * 8)?;
    let mut seen = HashSet::new();
    let mut budget = MOST_READ;
    for entry in numbers(&l1_table, 8) {
        let offset = entry & OFFSET;
        if offset == 0 || !seen.insert(offset) {
            continue;
        }
        if !offset.is_multiple_of(cluster) || offset + cluster > file_length {
            return Err(cut_off("L2 table", offset, file_length));
        }
        budget = match budget.checked_sub(cluster) {
            Some(rest) => rest,
            None => return Ok(()),
        };
        let l2_table = read(file, offset, cluster)?;
        for entry in numbers(&l2_table, header.l2_entry_size()) {
            check_cluster(entry, header, file_length)?;
        }
    }
    Ok(())
}

/// The last cluster may be shorter than the others, so only its beginning has to be there.
fn check_cluster(entry: u64, header: &Header, file_length: u64) -> Result<(), Trouble> {
    let offset = if entry & COMPRESSED != 0 {
        entry & ((1 << (62 - (header.cluster_bits - 8))) - 1)
    } else if entry & ZEROS != 0 && !header.extended_l2 {
        0
    } else {
        entry & OFFSET
    };
    if offset >= file_length {
        return Err(cut_off("cluster", offset, file_length));
    }
    Ok(())
}

fn cut_off(what: &'static str, offset: u64, file_length: u64) -> Trouble {
    Trouble::Refused(Refused::CutOff {
        what,
        offset,
        file_length,
    })
}

fn read(file: &File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(length).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// The first number of each entry of `size` bytes.
fn numbers(table: &[u8], size: u64) -> impl Iterator<Item = u64> + '_ {
    let step = if size == 16 { 2 } else { 1 };
    table
        .as_chunks::<8>()
        .0
        .iter()
        .step_by(step)
        .map(|bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::image::qcow2::parse;
    use crate::image::qcow2::tests::{put32, put64, sound};

    fn judge(bytes: &[u8]) -> Result<(), Trouble> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let header = parse(bytes, bytes.len() as u64).unwrap();
        walk(&file, &header, bytes.len() as u64)
    }

    /// The L1 table's first entry leads to an L2 table in the last cluster.
    fn with_l2_entry(entry: u64) -> Vec<u8> {
        let mut bytes = sound();
        bytes.resize(6 << 16, 0);
        put64(&mut bytes, 3 << 16, (4 << 16) | 1 << 63);
        put64(&mut bytes, 4 << 16, entry);
        bytes
    }

    #[test]
    fn clusters_inside_the_file_are_fine() {
        assert!(judge(&sound()).is_ok());
        let end = 6 << 16;
        for entry in [
            0,
            5 << 16,
            (5 << 16) | 1 << 63,
            end | ZEROS,
            COMPRESSED | (end - 1),
        ] {
            assert!(judge(&with_l2_entry(entry)).is_ok(), "{entry:#x}");
        }
    }

    #[test]
    fn clusters_and_tables_behind_the_end_are_a_cut_off_image() {
        let end = 6 << 16;
        for entry in [end, OFFSET, COMPRESSED | end] {
            assert!(
                matches!(
                    judge(&with_l2_entry(entry)),
                    Err(Trouble::Refused(Refused::CutOff {
                        what: "cluster",
                        ..
                    }))
                ),
                "{entry:#x}"
            );
        }
        for offset in [4 << 16, 512, OFFSET] {
            let mut bytes = sound();
            put64(&mut bytes, (3 << 16) + 8, offset);
            assert!(
                matches!(
                    judge(&bytes),
                    Err(Trouble::Refused(Refused::CutOff {
                        what: "L2 table",
                        ..
                    }))
                ),
                "{offset:#x}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_tables_make_the_walk_panic(
            l1_entries: [u64; 2],
            l2_entry: u64,
            in_use: bool,
            extended in 0_u64..2,
        ) {
            let mut bytes = with_l2_entry(l2_entry);
            put64(&mut bytes, 72, extended << 4);
            if !in_use {
                put64(&mut bytes, 3 << 16, l1_entries[0]);
            }
            put64(&mut bytes, (3 << 16) + 8, l1_entries[1]);
            put32(&mut bytes, 36, 4);
            let _ = judge(&bytes);
        }
    }
}
