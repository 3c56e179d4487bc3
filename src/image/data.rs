//! A machine's disks: opened for QEMU, and its header judged anew each time.
//!
//! A guest writes to them, and a user may bring them from anywhere, so what a header says is
//! hostile input at every start. The very descriptor that was judged is the one that QEMU gets.
//! A raw file has no header: what a guest wrote at its beginning is never looked at.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::libc;

use super::base::{self, ImageError};
use super::qcow2::{self, HEADER_LIMIT, Header, LARGEST_DISK, Refused};
use crate::cluster::DataFormat;

/// Opens the file or block device `path`, for writing too unless `readonly`, and gives with it
/// the disk's size in bytes, as the guest sees it. A block device that is written to is had alone
/// for as long as the file is open, by whatever process.
///
/// # Errors
/// [`ImageError`]: it is not there, or no such file, or its header is not to be followed.
pub fn open(path: &Path, format: DataFormat, readonly: bool) -> Result<(File, u64), ImageError> {
    let read = |source| ImageError::Read {
        path: path.to_owned(),
        source,
    };
    // The kernel gives a block device that is mounted, or that something else lies on, to nobody
    // who asks for it alone, nor mounts it then (open(2)). It means nothing for a file.
    let alone = if readonly { 0 } else { libc::O_EXCL };
    let file = base::open_with(path, OpenOptions::new().read(true).write(!readonly), alone)?;
    let metadata = file.metadata().map_err(read)?;
    match (format, metadata.file_type().is_block_device()) {
        (DataFormat::Device, true) | (DataFormat::Qcow2 | DataFormat::Raw, false) => {}
        (DataFormat::Device, false) => {
            return Err(ImageError::NotDevice {
                path: path.to_owned(),
            });
        }
        (DataFormat::Qcow2 | DataFormat::Raw, true) => {
            return Err(ImageError::Device {
                path: path.to_owned(),
            });
        }
    }
    let length = base::length(&file, &metadata).map_err(read)?;
    if length == 0 {
        return Err(ImageError::Empty {
            path: path.to_owned(),
        });
    }
    let size = match format {
        DataFormat::Raw | DataFormat::Device => length,
        DataFormat::Qcow2 => header(path, &file, length, qcow2::parse)?.virtual_size,
    };
    if size > LARGEST_DISK {
        return Err(ImageError::TooLarge {
            path: path.to_owned(),
            size,
        });
    }
    Ok((file, size))
}

/// Opens a machine's root disk, an overlay that kiln made, for writing too.
///
/// # Errors
/// [`ImageError`]: it is not there, or its header is no longer to be followed.
pub fn open_overlay(path: &Path) -> Result<File, ImageError> {
    let file = base::open_with(path, OpenOptions::new().read(true).write(true), 0)?;
    let length = file
        .metadata()
        .map_err(|source| ImageError::Read {
            path: path.to_owned(),
            source,
        })?
        .len();
    header(path, &file, length, qcow2::parse_overlay)?;
    Ok(file)
}

fn header(
    path: &Path,
    mut file: &File,
    length: u64,
    parse: impl FnOnce(&[u8], u64) -> Result<Header, Refused>,
) -> Result<Header, ImageError> {
    let mut bytes = Vec::new();
    file.take(HEADER_LIMIT)
        .read_to_end(&mut bytes)
        .and_then(|_| file.rewind())
        .map_err(|source| ImageError::Read {
            path: path.to_owned(),
            source,
        })?;
    parse(&bytes, length).map_err(|source| ImageError::Refused {
        path: path.to_owned(),
        source,
    })
}

/// A format by its word.
pub(crate) mod format_name {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::cluster::DataFormat;

    pub(crate) fn serialize<S: Serializer>(
        format: &DataFormat,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(format.word())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<DataFormat, D::Error> {
        let word = String::deserialize(deserializer)?;
        DataFormat::ALL
            .into_iter()
            .find(|format| format.word() == word)
            .ok_or_else(|| D::Error::custom("not a data disk's format"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::PathBuf;

    use super::*;
    use crate::image::qcow2::tests::{put64, sound};

    fn written(home: &tempfile::TempDir, bytes: &[u8]) -> PathBuf {
        let path = home.path().join("disk");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn a_header_that_leads_elsewhere_is_refused_at_every_start() {
        let home = tempfile::tempdir().unwrap();
        let mut bytes = sound();
        let path = written(&home, &bytes);
        open(&path, DataFormat::Qcow2, false).unwrap();
        // The feature bit of a data file.
        put64(&mut bytes, 72, 1 << 2);
        let path = written(&home, &bytes);
        let error = open(&path, DataFormat::Qcow2, true).unwrap_err();
        assert!(
            matches!(
                error,
                ImageError::Refused {
                    source: Refused::DataFile,
                    ..
                }
            ),
            "{error:?}"
        );
    }

    #[test]
    fn what_a_guest_wrote_into_a_raw_disk_means_nothing() {
        let home = tempfile::tempdir().unwrap();
        let bytes = sound();
        let path = written(&home, &bytes);
        let (_, size) = open(&path, DataFormat::Raw, false).unwrap();
        assert_eq!(size, bytes.len() as u64);
    }

    #[test]
    fn a_disk_that_is_only_read_cannot_be_written_to() {
        let home = tempfile::tempdir().unwrap();
        let path = written(&home, b"x");
        let (mut file, _) = open(&path, DataFormat::Raw, true).unwrap();
        assert!(file.write_all(b"y").is_err());
        let (mut file, _) = open(&path, DataFormat::Raw, false).unwrap();
        file.write_all(b"y").unwrap();
    }

    #[test]
    fn what_is_no_disk_is_not_opened() {
        let home = tempfile::tempdir().unwrap();
        let path = written(&home, b"");
        let open = |path| open(path, DataFormat::Raw, false).unwrap_err();
        assert!(matches!(open(&path), ImageError::Empty { .. }));
        assert!(matches!(open(home.path()), ImageError::Kind { .. }));
        std::fs::write(&path, b"x").unwrap();
        assert!(matches!(
            super::open(&path, DataFormat::Device, false).unwrap_err(),
            ImageError::NotDevice { .. }
        ));
        assert!(matches!(
            open(Path::new("/dev/null")),
            ImageError::Kind { .. }
        ));
    }
}
