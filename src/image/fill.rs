//! The first content of a block device that a guest gets: a base image by the qemu-img process,
//! zeros behind it.
//!
//! qemu-img is told both formats and is handed the open device, so that it writes to no other one.
//! It follows no header but the base's, which kiln's own parser has judged. A new volume has the
//! bytes of whatever lay there before: a guest that is not trusted must not read them, so every
//! byte that the base does not give is made zero.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::base::{BaseFacts, Changed};
use crate::tool::{self, ToolError};

/// So many bytes are made zero at once: what a slow disk writes in some seconds.
const CHUNK: u64 = 256 << 20;
/// What the slowest disk is taken to write in a second, in bytes.
const SLOWEST: u64 = 4_000_000;

/// Why a device did not get its content.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    #[error("its image cannot be copied")]
    Changed(#[source] Changed),
    #[error("cannot run qemu-img for image `{}`", base.display())]
    Tool {
        base: PathBuf,
        #[source]
        source: ToolError,
    },
    #[error("qemu-img did not copy image `{}`: {said}", base.display())]
    Refused { base: PathBuf, said: String },
    #[error("cannot write to the device")]
    Write {
        #[source]
        source: io::Error,
    },
}

/// Copies `base` to the beginning of `device`, makes the rest zero, and returns when the disk has
/// it. Nobody else may use the device.
///
/// # Errors
/// [`FillError`]; the device's content is then worth nothing.
pub fn copy(qemu_img: &Path, base: &BaseFacts, device: &File) -> Result<(), FillError> {
    let write = |source| FillError::Write { source };
    base.unchanged().map_err(FillError::Changed)?;
    let mut command = Command::new(qemu_img);
    command
        .args(["convert", "-q", "-n", "-t", "writeback"])
        .args(["-f", base.format.driver(), "-O", "raw"])
        // It begins with `/`, so that it is not taken for `json:…` or `nbd:…`.
        .arg(std::path::absolute(&base.path).map_err(write)?)
        .arg("/proc/self/fd/0");
    let deadline = Duration::from_secs(60 + base.virtual_size / SLOWEST);
    let target = Stdio::from(device.try_clone().map_err(write)?);
    let finished = tool::run(command, target, deadline).map_err(|source| FillError::Tool {
        base: base.path.clone(),
        source,
    })?;
    if !finished.status.success() {
        return Err(FillError::Refused {
            base: base.path.clone(),
            said: finished.stderr.trim().to_owned(),
        });
    }
    // It was read by its name.
    base.unchanged().map_err(FillError::Changed)?;
    zero_from(device, base.virtual_size).map_err(write)
}

/// Makes the whole `device` zero, and returns when the disk has it.
///
/// # Errors
/// [`FillError::Write`]
pub fn blank(device: &File) -> Result<(), FillError> {
    zero_from(device, 0).map_err(|source| FillError::Write { source })
}

/// Makes zero what lies behind the first `from` bytes, as after an extension.
///
/// # Errors
/// [`FillError::Write`]
pub fn blank_from(device: &File, from: u64) -> Result<(), FillError> {
    zero_from(device, from).map_err(|source| FillError::Write { source })
}

fn zero_from(mut device: &File, from: u64) -> io::Result<()> {
    let length = device.seek(SeekFrom::End(0))?;
    device.rewind()?;
    let mut at = from;
    while at < length {
        let count = CHUNK.min(length - at);
        zero(device, at, count)?;
        at += count;
    }
    device.sync_all()
}

/// By whatever is cheapest: a device that reads as zero where it was discarded is told that, others
/// are written to by themselves or by the kernel (Linux, block/fops.c, blkdev_fallocate).
fn zero(device: &File, at: u64, count: u64) -> io::Result<()> {
    let (at, count) = (
        i64::try_from(at).map_err(io::Error::other)?,
        i64::try_from(count).map_err(io::Error::other)?,
    );
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(device, punch, at, count) {
        Err(Errno::EOPNOTSUPP) => {}
        done => return Ok(done?),
    }
    Ok(fallocate(
        device,
        FallocateFlags::FALLOC_FL_ZERO_RANGE,
        at,
        count,
    )?)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::cluster::{DiskFormat, DiskImage};
    use crate::image::base;
    use crate::memo::Memo;

    #[test]
    fn what_lay_there_before_is_nowhere_to_be_read() {
        let home = tempfile::tempdir().unwrap();
        let old = vec![b'x'; 3 << 20];
        let read = |path: &Path| {
            let mut bytes = Vec::new();
            File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        };
        let device = home.path().join("device");
        std::fs::write(&device, &old).unwrap();
        let file = File::options()
            .read(true)
            .write(true)
            .open(&device)
            .unwrap();
        blank_from(&file, 1 << 20).unwrap();
        let bytes = read(&device);
        assert_eq!(bytes[..1 << 20], old[..1 << 20]);
        assert!(bytes[1 << 20..].iter().all(|byte| *byte == 0));
        assert_eq!(bytes.len(), old.len());

        std::fs::write(&device, &old).unwrap();
        let file = File::options()
            .read(true)
            .write(true)
            .open(&device)
            .unwrap();
        // A base with a hole in it.
        let path = home.path().join("base.raw");
        let mut content = vec![0; 1 << 20];
        content[..4096].fill(b'b');
        std::fs::write(&path, &content).unwrap();
        let image = DiskImage {
            path,
            format: DiskFormat::Raw,
            sha256: None,
        };
        let memo = Memo::new(home.path().join("memo"));
        let facts = base::check(&image, &memo, &mut |_, _| {}).unwrap();
        let qemu_img = crate::host::qemu::find(&std::env::var_os("PATH").unwrap(), "qemu-img");
        copy(&qemu_img.unwrap(), &facts, &file).unwrap();
        let bytes = read(&device);
        assert_eq!(bytes[..1 << 20], content);
        assert!(bytes[1 << 20..].iter().all(|byte| *byte == 0));

        // One that is written to meanwhile is no base.
        std::fs::write(&image.path, b"other").unwrap();
        assert!(matches!(
            copy(Path::new("/bin/true"), &facts, &file),
            Err(FillError::Changed(_))
        ));
    }
}
