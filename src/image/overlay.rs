//! A machine's own disks: the root disk, an empty qcow2 image over its base, and data disks over
//! nothing, made by the qemu-img process.
//!
//! qemu-img is told both formats and is kept from opening the base (`-u`), so no header is
//! followed. The base's name stands in the overlay for people; kiln's QEMUs are told the whole
//! chain outright.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::base::BaseFacts;
use super::qcow2::LARGEST_DISK;
use crate::cluster::Size;
use crate::folder;
use crate::tool::{self, ToolError};

/// What QEMU allows for a backing file's name.
const LONGEST_NAME: usize = 1023;
/// A qcow2 header up to its virtual size, bytes 24 to 31 (QEMU, docs/interop/qcow2.rst).
const HEADER_WITH_SIZE: usize = 32;
/// qemu-img writes four clusters; it takes 20 ms.
const DEADLINE: Duration = Duration::from_secs(60);

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
    #[error("cannot run qemu-img for disk `{}`", path.display())]
    Tool {
        path: PathBuf,
        #[source]
        source: ToolError,
    },
    #[error("qemu-img did not make disk `{}`: {said}", path.display())]
    Refused { path: PathBuf, said: String },
}

/// Makes the disk `path` over `base`, of `size` or as large as the base is.
///
/// The disk's size comes back. The folder has to be ours alone, and the caller alone in it. What
/// stands at `path` already, a symlink too, is an error and left as it is; a failure leaves
/// nothing behind.
pub fn create(
    qemu_img: &Path,
    base: &BaseFacts,
    path: &Path,
    size: Option<Size>,
) -> Result<Size, OverlayError> {
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
    place(qemu_img, Some(base), path, want)
}

/// Makes the empty disk `path` of `want`, as [`create`] does.
pub fn blank(qemu_img: &Path, path: &Path, want: Size) -> Result<(), OverlayError> {
    if want.bytes() > LARGEST_DISK {
        return Err(OverlayError::TooLarge { want });
    }
    place(qemu_img, None, path, want).map(drop)
}

fn place(
    qemu_img: &Path,
    base: Option<&BaseFacts>,
    path: &Path,
    want: Size,
) -> Result<Size, OverlayError> {
    let size = Size::from_bytes(want.bytes().next_multiple_of(512));
    if fs::symlink_metadata(path).is_ok() {
        return Err(OverlayError::Write {
            path: path.to_owned(),
            source: io::ErrorKind::AlreadyExists.into(),
        });
    }
    let temporary = path.with_extension("new");
    let made = make(qemu_img, base, &temporary, path, size);
    if made.is_err() {
        // It may not exist; the first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    made.map(|()| size)
}

/// Makes the disk `path` at least as large as `size`, if it is not. Nobody may use it meanwhile.
///
/// # Errors
/// [`OverlayError`]; the disk is then as it was.
pub fn grow(qemu_img: &Path, path: &Path, size: Size) -> Result<(), OverlayError> {
    let write = |source| OverlayError::Write {
        path: path.to_owned(),
        source,
    };
    let mut header = [0; HEADER_WITH_SIZE];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut header))
        .map_err(write)?;
    let [.., a, b, c, d, e, f, g, h] = header;
    let now = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    let size = size.bytes().next_multiple_of(512);
    if size <= now {
        return Ok(());
    }
    // The whole chain is told, so that not even our own header is followed to the base.
    let image = serde_json::json!({
        "driver": "qcow2",
        "file": {"driver": "file", "filename": path},
        "backing": null,
    });
    let mut command = Command::new(qemu_img);
    command
        .args(["resize", "-q"])
        .arg(format!("json:{image}"))
        .arg(size.to_string());
    run(command, path)?;
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(write)
}

/// Runs qemu-img for the disk `path`.
fn run(command: Command, path: &Path) -> Result<(), OverlayError> {
    let finished =
        tool::run(command, Stdio::null(), DEADLINE).map_err(|source| OverlayError::Tool {
            path: path.to_owned(),
            source,
        })?;
    if finished.status.success() {
        return Ok(());
    }
    Err(OverlayError::Refused {
        path: path.to_owned(),
        said: finished.stderr.trim().to_owned(),
    })
}

/// Makes the image beside its place, and puts it there when it is on the disk.
fn make(
    qemu_img: &Path,
    base: Option<&BaseFacts>,
    temporary: &Path,
    path: &Path,
    size: Size,
) -> Result<(), OverlayError> {
    let write = |source| OverlayError::Write {
        path: path.to_owned(),
        source,
    };
    // What a killed `up` left.
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(write(error)),
        Ok(()) | Err(_) => {}
    }
    // Made first by us, for us alone: qemu-img keeps the mode.
    drop(folder::create_new(temporary).map_err(write)?);
    let mut command = Command::new(qemu_img);
    command.args(["create", "-q", "-f", "qcow2"]);
    if let Some(base) = base {
        command
            .args(["-u", "-F", base.format.driver()])
            .args([OsStr::new("-b"), base.path.as_os_str()]);
    }
    command.arg(temporary).arg(size.bytes().to_string());
    run(command, path)?;
    File::open(temporary)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(temporary, path))
        .and_then(|()| folder::sync_folder_of(path))
        .map_err(write)
}

#[cfg(test)]
mod tests;
