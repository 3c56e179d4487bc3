//! A base image: checked before machines stand on it, and looked at again before each start.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::libc;
use serde::{Deserialize, Serialize};

use super::qcow2::{self, HEADER_LIMIT, LARGEST_DISK, MAGIC, Refused};
use super::{digest, tables};
use crate::cluster::{DiskFormat, DiskImage};
use crate::memo::{FileStamp, Memo, path_text};

const SECTOR: u64 = 512;
/// Bytes in a second.
const SLOW_HASHING: u64 = 50_000_000;

/// What was true of a base image when its machines were made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseFacts {
    /// As the user named it, absolute; symlinks are not resolved.
    pub path: PathBuf,
    #[serde(with = "format_name")]
    pub format: DiskFormat,
    /// Of the file, in bytes.
    pub length: u64,
    /// Absent for a block device, whose node is made anew at each boot.
    pub file: Option<FileFacts>,
    /// The disk's size as the guest sees it, in bytes; a multiple of 512.
    pub virtual_size: u64,
    /// Verified, where the spec gave one.
    pub sha256: Option<String>,
}

/// What changes when a file is replaced or written to, and survives a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    pub inode: u64,
    /// Seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
}

/// Why a base image is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("cannot open image `{}`", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("image `{}` is neither a file nor a block device", path.display())]
    Kind { path: PathBuf },
    #[error("`{}` is a block device", path.display())]
    Device { path: PathBuf },
    #[error("`{}` is not a block device", path.display())]
    NotDevice { path: PathBuf },
    #[error("`{}` is in use: it is mounted, or another program has it", path.display())]
    InUse { path: PathBuf },
    #[error("cannot read image `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("image `{}` is empty", path.display())]
    Empty { path: PathBuf },
    #[error("image `{}` is of {size} bytes; at most {LARGEST_DISK} (64 TiB) are allowed", path.display())]
    TooLarge { path: PathBuf, size: u64 },
    #[error("refused to use `{}` as qcow2", path.display())]
    Refused {
        path: PathBuf,
        #[source]
        source: Refused,
    },
    #[error("`{}` is a qcow2 image, and the spec says that it is raw", path.display())]
    NotRaw { path: PathBuf },
    #[error("image `{}` has the SHA-256 {found}, and the spec says {want}", path.display())]
    Sha256 {
        path: PathBuf,
        want: String,
        found: String,
    },
    #[error("image `{}` is being written to", path.display())]
    Moving { path: PathBuf },
}

/// What sort of failure an [`ImageError`] is; `main` makes an exit code of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The spec names what is not there or not an image.
    Spec,
    /// The image is hostile or damaged.
    Safety,
    /// The host failed.
    Host,
}

/// How a base image differs from what its machines were made on.
#[derive(Debug, thiserror::Error)]
pub enum Changed {
    #[error("base image `{}` cannot be looked at any more", path.display())]
    Gone {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("base image `{}` was of {was} bytes and is of {now}", path.display())]
    Length { path: PathBuf, was: u64, now: u64 },
    #[error("base image `{}` was replaced or written to", path.display())]
    Content { path: PathBuf },
}

impl ImageError {
    pub fn fault(&self) -> Fault {
        match self {
            ImageError::Open { .. }
            | ImageError::Kind { .. }
            | ImageError::Device { .. }
            | ImageError::NotDevice { .. }
            | ImageError::Empty { .. } => Fault::Spec,
            ImageError::TooLarge { .. }
            | ImageError::InUse { .. }
            | ImageError::Refused { .. }
            | ImageError::NotRaw { .. }
            | ImageError::Sha256 { .. } => Fault::Safety,
            ImageError::Read { .. } | ImageError::Moving { .. } => Fault::Host,
        }
    }
}

/// Checks a local image: what it is, its header and tables, its digest where one is given.
///
/// A digest of an unchanged file is remembered, so that a second check takes no time. `progress`
/// hears how many bytes of how many are hashed.
pub fn check(
    image: &DiskImage,
    memo: &Memo,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<BaseFacts, ImageError> {
    let path = &image.path;
    let fail = |source| ImageError::Read {
        path: path.clone(),
        source,
    };
    let now = SystemTime::now();
    let mut file = open(path)?;
    let metadata = file.metadata().map_err(fail)?;
    let length = length(&file, &metadata).map_err(fail)?;
    if length == 0 {
        return Err(ImageError::Empty { path: path.clone() });
    }
    let virtual_size = examine_content(path, &mut file, length, image.format)?;
    let stamp = FileStamp::of(&metadata);
    if let Some(want) = &image.sha256 {
        let found = match recall_digest(path, &metadata, memo) {
            Some(found) => found,
            None => {
                // Of many who want it at once, one reads it.
                let _alone = memo.alone(&digest_subject(path), hashing_time(length));
                match recall_digest(path, &metadata, memo) {
                    Some(found) => found,
                    None => {
                        let found = hash(&mut file, length, progress).map_err(fail)?;
                        if stamp.is_settled(now) && metadata.is_file() {
                            memo.note(&digest_subject(path), &stamp.to_string(), &found);
                        }
                        found
                    }
                }
            }
        };
        if found != *want {
            return Err(ImageError::Sha256 {
                path: path.clone(),
                want: want.clone(),
                found,
            });
        }
    }
    if FileStamp::of(&file.metadata().map_err(fail)?) != stamp {
        return Err(ImageError::Moving { path: path.clone() });
    }
    Ok(BaseFacts {
        path: path.clone(),
        format: image.format,
        length,
        file: FileFacts::of(&metadata),
        virtual_size,
        sha256: image.sha256.clone(),
    })
}

/// Looks at an image that is not at its place yet: the disk's size in bytes comes back. Errors call
/// it `name`.
pub(super) fn examine(name: &Path, file: &mut File, format: DiskFormat) -> Result<u64, ImageError> {
    let fail = |source| ImageError::Read {
        path: name.to_owned(),
        source,
    };
    file.rewind().map_err(fail)?;
    let length = file.metadata().map_err(fail)?.len();
    if length == 0 {
        return Err(ImageError::Empty {
            path: name.to_owned(),
        });
    }
    examine_content(name, file, length, format)
}

fn examine_content(
    path: &Path,
    file: &mut File,
    length: u64,
    format: DiskFormat,
) -> Result<u64, ImageError> {
    match format {
        DiskFormat::Qcow2 => check_qcow2(path, file, length),
        DiskFormat::Raw => check_raw(path, file, length),
    }
}

impl BaseFacts {
    /// Whether the image is still the one that was checked; costs one look at the file.
    pub fn unchanged(&self) -> Result<(), Changed> {
        let path = || self.path.clone();
        let gone = |source| Changed::Gone {
            path: path(),
            source,
        };
        let metadata = fs::metadata(&self.path).map_err(gone)?;
        let facts = FileFacts::of(&metadata);
        if facts.is_some() != self.file.is_some() {
            return Err(Changed::Content { path: path() });
        }
        let now = match facts {
            Some(_) => metadata.len(),
            None => File::open(&self.path)
                .and_then(|file| length(&file, &metadata))
                .map_err(gone)?,
        };
        if now != self.length {
            let was = self.length;
            return Err(Changed::Length {
                path: path(),
                was,
                now,
            });
        }
        if facts != self.file {
            return Err(Changed::Content { path: path() });
        }
        Ok(())
    }
}

impl FileFacts {
    pub(super) fn of(metadata: &Metadata) -> Option<FileFacts> {
        metadata.is_file().then(|| FileFacts {
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// Opens a file or block device for reading. Nothing else is ever opened: a FIFO would wait, and
/// opening some devices does something.
pub(super) fn open(path: &Path) -> Result<File, ImageError> {
    open_with(path, OpenOptions::new().read(true), 0)
}

/// As [`open`], with these `options` and `flags`.
pub(super) fn open_with(
    path: &Path,
    options: &mut OpenOptions,
    flags: libc::c_int,
) -> Result<File, ImageError> {
    let fail = |source: io::Error| {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::ResourceBusy {
            ImageError::InUse { path }
        } else {
            ImageError::Open { path, source }
        }
    };
    let kind = |metadata: &Metadata| {
        if metadata.is_file() || metadata.file_type().is_block_device() {
            Ok(())
        } else {
            Err(ImageError::Kind {
                path: path.to_owned(),
            })
        }
    };
    kind(&fs::metadata(path).map_err(fail)?)?;
    let file = options
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | flags)
        .open(path)
        .map_err(fail)?;
    // It may have become another thing meanwhile.
    kind(&file.metadata().map_err(fail)?)?;
    Ok(file)
}

pub(super) fn length(mut file: &File, metadata: &Metadata) -> io::Result<u64> {
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    let length = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    Ok(length)
}

/// The disk's size, when header and tables are sound.
fn check_qcow2(path: &Path, file: &File, length: u64) -> Result<u64, ImageError> {
    let read = |source| ImageError::Read {
        path: path.to_owned(),
        source,
    };
    let refused = |source| ImageError::Refused {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    file.take(HEADER_LIMIT)
        .read_to_end(&mut bytes)
        .map_err(read)?;
    let header = qcow2::parse(&bytes, length).map_err(refused)?;
    tables::walk(file, &header, length).map_err(|trouble| match trouble {
        tables::Trouble::Refused(source) => refused(source),
        tables::Trouble::Read(source) => read(source),
    })?;
    Ok(header.virtual_size.next_multiple_of(SECTOR))
}

/// The disk's size. Content is looked at for one thing only: an image that is plainly something
/// else would not boot, and the user is told so.
fn check_raw(path: &Path, file: &mut File, length: u64) -> Result<u64, ImageError> {
    let mut magic = Vec::new();
    file.take(MAGIC.len() as u64)
        .read_to_end(&mut magic)
        .map_err(|source| ImageError::Read {
            path: path.to_owned(),
            source,
        })?;
    if magic == MAGIC {
        return Err(ImageError::NotRaw {
            path: path.to_owned(),
        });
    }
    if length > LARGEST_DISK {
        return Err(ImageError::TooLarge {
            path: path.to_owned(),
            size: length,
        });
    }
    Ok(length.next_multiple_of(SECTOR))
}

fn digest_subject(path: &Path) -> String {
    format!("sha256 of {}", path_text(path))
}

fn recall_digest(path: &Path, metadata: &Metadata, memo: &Memo) -> Option<String> {
    let stamp = FileStamp::of(metadata);
    memo.recall(&digest_subject(path), &stamp.to_string())
}

/// As long as a slow host may take to hash so many bytes.
fn hashing_time(length: u64) -> Duration {
    Duration::from_secs(10 + length / SLOW_HASHING)
}

fn hash(file: &mut File, length: u64, progress: &mut dyn FnMut(u64, u64)) -> io::Result<String> {
    file.rewind()?;
    let heard = &mut |done| progress(done, length);
    let (digest, _) = digest::copy(file, &mut io::sink(), heard)?;
    Ok(digest)
}

/// A format by QEMU's name of its driver.
pub(crate) mod format_name {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::cluster::DiskFormat;

    pub(crate) fn serialize<S: Serializer>(
        format: &DiskFormat,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(format.driver())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<DiskFormat, D::Error> {
        let name = String::deserialize(deserializer)?;
        [DiskFormat::Qcow2, DiskFormat::Raw]
            .into_iter()
            .find(|format| format.driver() == name)
            .ok_or_else(|| D::Error::custom("not a disk format"))
    }
}

#[cfg(test)]
mod tests;
