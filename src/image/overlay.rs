//! A machine's own disk: an empty qcow2 image over its base.
//!
//! kiln writes the image itself instead of asking `qemu-img`: it is a header and three small
//! tables, takes no process, and above all opens the base image nowhere. The base's name and
//! format stand in the header for people and for `qemu-img`; kiln's QEMUs are told both outright.

use std::fs;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::base::BaseFacts;
use super::qcow2::{LARGEST_DISK, MAGIC};
use crate::cluster::Size;
use crate::folder::Incoming;

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// A multiple of 8 that covers version 3's fields and the compression method.
const HEADER_LENGTH: u32 = 112;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// What QEMU allows for a backing file's name.
const LONGEST_NAME: usize = 1023;

const REFCOUNT_TABLE: u64 = CLUSTER;
const REFCOUNT_BLOCK: u64 = 2 * CLUSTER;
const L1_TABLE: u64 = 3 * CLUSTER;

/// Why a machine gets no disk.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    #[error("a disk of {want} is smaller than its image `{}` of {least}; a disk never shrinks", base.display())]
    Shrinks {
        base: PathBuf,
        want: Size,
        least: Size,
    },
    #[error("a disk of {want} is larger than 64TiB")]
    TooLarge { want: Size },
    #[error("image `{}` has a path of more than {LONGEST_NAME} bytes", base.display())]
    LongName { base: PathBuf },
    #[error("image `{}` has a path that is not absolute", base.display())]
    Relative { base: PathBuf },
    #[error("cannot write disk `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Makes the disk `path` over `base`, of `size` or as large as the base is.
///
/// The disk's size comes back. The folder has to be ours alone, and the caller alone in it. What stands at `path` already, a
/// symlink too, is an error and left as it is; a failure leaves nothing behind.
pub fn create(base: &BaseFacts, path: &Path, size: Option<Size>) -> Result<Size, OverlayError> {
    let least = Size::from_bytes(base.virtual_size);
    let want = size.unwrap_or(least);
    if want < least {
        return Err(OverlayError::Shrinks {
            base: base.path.clone(),
            want,
            least,
        });
    }
    if want.bytes() > LARGEST_DISK {
        return Err(OverlayError::TooLarge { want });
    }
    let name = base.path.as_os_str().as_bytes();
    if name.len() > LONGEST_NAME {
        return Err(OverlayError::LongName {
            base: base.path.clone(),
        });
    }
    // What begins with `/` cannot be taken for `json:…` or `nbd:…`.
    if !base.path.is_absolute() {
        return Err(OverlayError::Relative {
            base: base.path.clone(),
        });
    }
    let size = Size::from_bytes(want.bytes().next_multiple_of(512));
    write(path, &Layout::new(size.bytes(), name, base.format.driver())).map_err(|source| {
        OverlayError::Write {
            path: path.to_owned(),
            source,
        }
    })?;
    Ok(size)
}

/// The parts of an empty image that are not zeros, and its length.
struct Layout {
    header: Vec<u8>,
    refcounts: Vec<u8>,
    length: u64,
}

impl Layout {
    fn new(size: u64, backing_name: &[u8], backing_format: &str) -> Layout {
        let l1_entries = size.div_ceil(CLUSTER / 8 * CLUSTER);
        // At most 19 clusters with LARGEST_DISK, so one block of refcounts covers them.
        let clusters = 3 + (l1_entries * 8).div_ceil(CLUSTER);
        let refcounts = (0..clusters).flat_map(|_| 1_u16.to_be_bytes()).collect();
        Layout {
            header: header(size, l1_entries, backing_name, backing_format),
            refcounts,
            length: clusters * CLUSTER,
        }
    }
}

fn header(size: u64, l1_entries: u64, backing_name: &[u8], backing_format: &str) -> Vec<u8> {
    let mut extensions = Vec::new();
    extensions.extend(EXTENSION_BACKING_FORMAT.to_be_bytes());
    extensions.extend(length32(backing_format.len()));
    extensions.extend(backing_format.as_bytes());
    extensions.resize(extensions.len().next_multiple_of(8), 0);
    // The end of the extensions: a kind and a length of 0.
    extensions.extend([0; 8]);
    let name_offset = u64::from(HEADER_LENGTH) + extensions.len() as u64;

    let mut header = MAGIC.to_vec();
    header.extend(3_u32.to_be_bytes()); // version
    header.extend(name_offset.to_be_bytes());
    header.extend(length32(backing_name.len()));
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(size.to_be_bytes());
    header.extend(0_u32.to_be_bytes()); // encryption
    header.extend(&l1_entries.to_be_bytes()[4..]);
    header.extend(L1_TABLE.to_be_bytes());
    header.extend(REFCOUNT_TABLE.to_be_bytes());
    header.extend(1_u32.to_be_bytes()); // clusters of the refcount table
    header.extend(0_u32.to_be_bytes()); // snapshots
    header.extend(0_u64.to_be_bytes()); // their table
    header.extend([0; 24]); // features
    header.extend(4_u32.to_be_bytes()); // refcounts of 2^4 bits
    header.extend(HEADER_LENGTH.to_be_bytes());
    header.extend([0; 8]); // compression method and padding
    header.extend(extensions);
    header.extend(backing_name);
    header
}

/// The name and the format are at most 1023 bytes long.
fn length32(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

/// The disk is there whole or not at all.
fn write(path: &Path, layout: &Layout) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut incoming = Incoming::beside(path)?;
    let file = &mut incoming.file;
    file.write_all(&layout.header)?;
    file.seek(SeekFrom::Start(REFCOUNT_TABLE))?;
    file.write_all(&REFCOUNT_BLOCK.to_be_bytes())?;
    file.seek(SeekFrom::Start(REFCOUNT_BLOCK))?;
    file.write_all(&layout.refcounts)?;
    file.set_len(layout.length)?;
    incoming.keep_as(path)
}

#[cfg(test)]
mod tests;
