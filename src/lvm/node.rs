//! A volume's device node: opened, and known to be the volume's.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

use super::report::Volume;

/// Why a volume's node cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("volume `{volume}` is not active")]
    Inactive { volume: String },
    #[error("cannot open `{}`, the node of volume `{volume}`", path.display())]
    Open {
        volume: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` is another device than volume `{volume}`", path.display())]
    Other { volume: String, path: PathBuf },
}

/// With whom a node is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// With nobody, for as long as the file is open.
    Alone,
    /// With the QEMU that may have it.
    Shared,
}

/// Opens the node for reading and writing.
///
/// # Errors
/// [`NodeError`], also where the name leads to another device than lvm2 says.
pub fn open(volume: &Volume, hold: Hold) -> Result<File, NodeError> {
    let name = || volume.name.clone();
    let device = volume
        .device()
        .ok_or_else(|| NodeError::Inactive { volume: name() })?;
    let path = || volume.path.clone();
    let flags = match hold {
        Hold::Alone => libc::O_EXCL,
        Hold::Shared => 0,
    };
    let look = || {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&volume.path)?;
        let metadata = file.metadata()?;
        Ok((file, metadata))
    };
    let (file, metadata) = look().map_err(|source| NodeError::Open {
        volume: name(),
        path: path(),
        source,
    })?;
    if !metadata.file_type().is_block_device() || metadata.rdev() != device {
        return Err(NodeError::Other {
            volume: name(),
            path: path(),
        });
    }
    Ok(file)
}

/// Whether an open node may be the volume's: device-mapper has the UUIDs of lvm2's volumes
/// (`LVM-`, the group's and the volume's without hyphens), and so tells if it is another's.
pub fn is_volume(file: &File, group_uuid: &str, uuid: &str) -> io::Result<bool> {
    is_volume_by(Path::new("/sys/dev/block"), file, group_uuid, uuid)
}

fn is_volume_by(devices: &Path, file: &File, group_uuid: &str, uuid: &str) -> io::Result<bool> {
    let device = file.metadata()?.rdev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let told = devices.join(format!("{major}:{minor}/dm/uuid"));
    match fs::read_to_string(told) {
        Ok(told) => {
            let want = format!("LVM-{group_uuid}{uuid}").replace('-', "");
            Ok(told.trim().replace('-', "") == want)
        }
        // It is not device-mapper's: only root puts nodes there, and lvm2 has named it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_volume_under_the_same_name_is_found_out() {
        let home = tempfile::tempdir().unwrap();
        // As if it had the number of this character device.
        let file = File::open("/dev/null").unwrap();
        let is_ours = || is_volume_by(home.path(), &file, "aaa-bbb", "ccc-ddd").unwrap();
        assert!(is_ours());
        let told = home.path().join("1:3/dm/uuid");
        fs::create_dir_all(told.parent().unwrap()).unwrap();
        fs::write(&told, "LVM-aaabbbcccddd\n").unwrap();
        assert!(is_ours());
        for other in ["LVM-aaabbbcccdde\n", "CRYPT-x\n", "\n"] {
            fs::write(&told, other).unwrap();
            assert!(!is_ours(), "{other}");
        }
    }
}
