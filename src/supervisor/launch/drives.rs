//! A machine's disks as QEMU is told them, and their handles.

use std::fs::File;
use std::path::PathBuf;

use kiln_arch::drive_node;
use kiln_arch::machine::{Access, Drive, Image, Sector, Source};

use super::{Handle, LaunchError};
use crate::cluster::{DataFormat, DiskFormat, ROOT_SERIAL};
use crate::image::data;
use crate::lvm::node;
use crate::state::layout::MachineFiles;
use crate::state::record::{
    DataDiskRecord, DataSourceRecord, DiskRecord, MachineRecord, VolumeRecord,
};

fn base(disk: &DiskRecord, source: Source) -> Image {
    match disk.base.format {
        DiskFormat::Raw => Image::Raw(source),
        DiskFormat::Qcow2 => Image::Qcow2 {
            source,
            backing: None,
        },
    }
}

/// A handle by its path, for a QEMU that opens it by itself.
pub(super) fn by_path(handle: Handle) -> Source {
    Source::Path(match handle {
        Handle::Volume(volume) => volume.path(),
        Handle::Listener(path)
        | Handle::Read(path)
        | Handle::ReadWrite(path)
        | Handle::Overlay(path)
        | Handle::Append(path)
        | Handle::Sealed(path)
        | Handle::Disk { path, .. } => path,
        // `share::alone` has its own.
        Handle::Tpm | Handle::Tap | Handle::Share(_) => PathBuf::new(),
    })
}

/// The root disk, whose bytes come from what `source` makes of each handle.
pub(super) fn root_drive(
    disk: &DiskRecord,
    files: &MachineFiles,
    mut source: impl FnMut(Handle) -> Source,
) -> Drive {
    let image = match &disk.volume {
        Some(volume) => Image::Device(source(Handle::Volume(volume.clone()))),
        None => Image::Qcow2 {
            source: source(Handle::Overlay(files.disk())),
            backing: Some(Box::new(base(
                disk,
                source(Handle::Read(disk.base.path.clone())),
            ))),
        },
    };
    Drive {
        image,
        access: Access::ReadWrite,
        serial: Some(ROOT_SERIAL.to_owned()),
        bus: disk.bus.into(),
        sector: Sector::Bytes512,
    }
}

/// A data disk, in the same way.
pub(super) fn data_drive(
    disk: &DataDiskRecord,
    files: &MachineFiles,
    source: impl FnOnce(Handle) -> Source,
) -> Drive {
    let (handle, format, readonly) = match &disk.source {
        DataSourceRecord::Made {
            volume: Some(volume),
            ..
        } => (
            Handle::Volume((**volume).clone()),
            DataFormat::Device,
            false,
        ),
        DataSourceRecord::Made { volume: None, .. } => {
            let format = DataFormat::Qcow2;
            let path = files.data_disk(&disk.serial);
            let readonly = false;
            (
                Handle::Disk {
                    path,
                    format,
                    readonly,
                },
                format,
                readonly,
            )
        }
        DataSourceRecord::File {
            path,
            format,
            readonly,
            ..
        } => (
            Handle::Disk {
                path: path.clone(),
                format: *format,
                readonly: *readonly,
            },
            *format,
            *readonly,
        ),
    };
    let source = source(handle);
    Drive {
        image: match format {
            DataFormat::Raw => Image::Raw(source),
            DataFormat::Device => Image::Device(source),
            DataFormat::Qcow2 => Image::Qcow2 {
                source,
                backing: None,
            },
        },
        access: if readonly {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        },
        serial: Some(disk.serial.clone()),
        bus: disk.bus.into(),
        sector: disk.sector.into(),
    }
}

/// QEMU's name of the block node of a machine's disk, as [`super::supervised`] has them.
pub fn node_name(record: &MachineRecord, serial: &str) -> Option<String> {
    let root = record.disk.iter().map(|_| ROOT_SERIAL);
    let data = record.data_disks.iter().map(|disk| disk.serial.as_str());
    let index = root.chain(data).position(|other| other == serial)?;
    Some(drive_node(index))
}

/// Opens a volume's node, which has to be that volume's still.
pub(super) fn open_volume(volume: &VolumeRecord) -> Result<File, LaunchError> {
    let path = volume.path();
    let (file, _) = data::open(&path, DataFormat::Device, false).map_err(|source| {
        let path = path.clone();
        LaunchError::Disk { path, source }
    })?;
    let uuid = volume.made.as_ref().map_or("", |made| &made.uuid);
    match node::is_volume(&file, &volume.group_uuid, uuid) {
        Ok(true) => Ok(file),
        Ok(false) => Err(LaunchError::NotVolume {
            volume: Box::new(volume.clone()),
        }),
        Err(source) => Err(LaunchError::Open { path, source }),
    }
}
