//! `disks:` of a group: what its machines have beside the root disk.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use kiln_arch::Arch;
use kiln_arch::machine::{DiskBus, Sector};

use super::document::{Node, Value};
use super::error::{Fault, Place};
use super::fields::{self, Fields, Keys};
use super::files::{self, Folders};
use super::group::{DISK_LEAST, DISK_MOST, PlacedMachine};
use super::image;
use crate::cluster::{
    DataDisk, DataFormat, DataSource, DiskFormat, DiskImage, DiskSource, Image, Serial, Size,
};

const KEYS: Keys = Keys {
    known: &[
        "size", "serial", "keep", "bus", "sector", "file", "format", "readonly",
    ],
    not_built: &[],
};

/// Data disks of a machine at most: the smallest board has 30 slots for all its devices.
const COUNT_LIMIT: usize = 16;

/// A root disk as the spec has it: `20GiB`, or a map.
#[derive(Debug)]
pub(super) struct RootDisk {
    pub(super) size: Option<Size>,
    pub(super) bus: DiskBus,
}

impl Default for RootDisk {
    fn default() -> RootDisk {
        RootDisk {
            size: None,
            bus: DiskBus::Virtio,
        }
    }
}

/// Reads `disk:` of a group whose machines boot from `image`.
pub(super) fn root(
    node: Node,
    key: &str,
    owner: &str,
    arch: Arch,
    image: &Image,
) -> Result<RootDisk, Fault> {
    if image.disk().is_none() {
        let why = "the image has no disk that could grow";
        return Err(Fault::bad_value(node.place, key, why));
    }
    let size = |node: &Node, key: &str| fields::size(node, key, DISK_LEAST, DISK_MOST);
    if !matches!(node.value, Value::Map(_)) {
        return Ok(RootDisk {
            size: Some(size(&node, key)?),
            ..RootDisk::default()
        });
    }
    let keys = Keys {
        known: &["size", "bus"],
        not_built: &[],
    };
    let mut fields = Fields::new(node, format!("the root disk of {owner}"), keys)?;
    let size = fields.take_as("size", |node, key| size(&node, key))?;
    let bus = fields.take_as("bus", |node, key| {
        let place = node.place;
        let bus = bus(node, key, arch)?;
        let by_firmware = matches!(image, Image::Disk(_));
        if bus == DiskBus::Nvme && by_firmware && !arch.boots_nvme() {
            let why = format!("the firmware of {arch} machines boots from no NVMe disk");
            return Err(Fault::bad_value(place, key, why).hint("write `virtio` or `scsi`"));
        }
        Ok(bus)
    })?;
    Ok(RootDisk {
        size,
        bus: bus.unwrap_or(DiskBus::Virtio),
    })
}

fn bus(node: Node, key: &str, arch: Arch) -> Result<DiskBus, Fault> {
    let place = node.place;
    let buses = [DiskBus::Virtio, DiskBus::Nvme, DiskBus::Scsi];
    let bus = fields::choice(node, key, &buses.map(|bus| (bus.name(), bus)), &[])?;
    if bus == DiskBus::Nvme && !arch.has_nvme() {
        let why = format!("{arch} machines have no NVMe disks");
        return Err(Fault::bad_value(place, key, why).hint("write `virtio` or `scsi`"));
    }
    Ok(bus)
}

/// Reads `disks:` of a group of `machines` machines, and looks whether its files are there.
pub(super) fn disks(
    node: Node,
    key: &str,
    owner: &str,
    arch: Arch,
    machines: usize,
    folders: Folders<'_>,
) -> Result<Vec<DataDisk>, Fault> {
    let place = node.place;
    let nodes = fields::list(node, key)?;
    if nodes.len() > COUNT_LIMIT {
        return Err(Fault::bad_value(
            place,
            key,
            format!(
                "{} disks are too many; at most {COUNT_LIMIT} are allowed",
                nodes.len()
            ),
        ));
    }
    let mut disks: Vec<DataDisk> = Vec::new();
    for (index, node) in (1..).zip(nodes) {
        let place = node.place;
        let disk = disk(node, index, owner, arch, folders)?;
        if disks.iter().any(|other| other.serial == disk.serial) {
            return Err(Fault::bad_value(
                place,
                "serial",
                format!("a second disk is called `{}`", disk.serial),
            ));
        }
        if let DataSource::File {
            path,
            readonly: false,
            ..
        } = &disk.source
            && machines > 1
        {
            return Err(Fault::bad_value(
                place,
                "file",
                format!(
                    "the {machines} machines of {owner} cannot all write to `{}`",
                    path.display()
                ),
            )
            .hint("say `readonly: true`, or give each machine its own group and file"));
        }
        disks.push(disk);
    }
    Ok(disks)
}

fn disk(
    node: Node,
    index: u16,
    owner: &str,
    arch: Arch,
    folders: Folders<'_>,
) -> Result<DataDisk, Fault> {
    let place = node.place;
    let mut fields = Fields::new(node, format!("disk {index} of {owner}"), KEYS)?;
    let serial = match fields.take("serial") {
        Some(node) => serial(node.place, &fields::text(node, "serial")?)?,
        None => serial(place, &format!("data{index}"))?,
    };
    let boolean = |node: Node, key: &str| Ok((node.place, fields::boolean(&node, key)?));
    let keep = fields.take_as("keep", boolean)?;
    let readonly = fields.take_as("readonly", boolean)?;
    let format = fields.take_as("format", |node, key| {
        let words = [("qcow2", DiskFormat::Qcow2), ("raw", DiskFormat::Raw)];
        let place = node.place;
        Ok((place, fields::choice(node, key, &words, &[])?))
    })?;
    let size = fields.take_as("size", |node, key| {
        let place = node.place;
        Ok((place, fields::size(&node, key, DISK_LEAST, DISK_MOST)?))
    })?;
    let bus = fields.take_as("bus", |node, key| bus(node, key, arch))?;
    let sector = fields
        .take_as("sector", |node, key| {
            let words = [("512", Sector::Bytes512), ("4096", Sector::Bytes4096)];
            fields::choice(node, key, &words, &[])
        })?
        .unwrap_or(Sector::Bytes512);
    if let Some((place, size)) = size
        && sector == Sector::Bytes4096
        && !size.bytes().is_multiple_of(4096)
    {
        return Err(Fault::bad_value(
            place,
            "size",
            format!("{size} is not a whole number of sectors of 4096 bytes"),
        ));
    }
    let source = match (fields.take("file"), size) {
        (None, None) => {
            return Err(fields
                .missing("size")
                .hint("a disk has a `size`, or is a `file` that exists"));
        }
        (Some(_), Some((place, _))) => {
            return Err(Fault::bad_value(
                place,
                "size",
                "a disk that is a `file` is as large as the file",
            ));
        }
        (None, Some((_, size))) => {
            let of_file = [
                ("readonly", readonly.map(|(place, _)| place)),
                ("format", format.map(|(place, _)| place)),
            ];
            if let Some((key, place)) = of_file
                .into_iter()
                .find_map(|(key, place)| Some((key, place?)))
            {
                return Err(Fault::bad_value(
                    place,
                    key,
                    "it means something only beside `file`",
                ));
            }
            DataSource::Made {
                size,
                keep: keep.is_some_and(|(_, keep)| keep),
            }
        }
        (Some(node), None) => {
            if let Some((place, _)) = keep {
                return Err(Fault::bad_value(
                    place,
                    "keep",
                    "a `file` of yours is never removed",
                ));
            }
            let (path, format) = file(node, format.map(|(_, format)| format), folders)?;
            DataSource::File {
                path,
                format,
                readonly: readonly.is_some_and(|(_, readonly)| readonly),
            }
        }
    };
    Ok(DataDisk {
        serial,
        bus: bus.unwrap_or(DiskBus::Virtio),
        sector,
        source,
    })
}

fn serial(place: Place, text: &str) -> Result<Serial, Fault> {
    text.parse()
        .map_err(|error| Fault::bad_value(place, "serial", error))
}

/// An existing file or block device, and its format.
fn file(
    node: Node,
    format: Option<DiskFormat>,
    folders: Folders<'_>,
) -> Result<(PathBuf, DataFormat), Fault> {
    let place = node.place;
    let path = folders.resolve(place, "file", &fields::text(node, "file")?)?;
    let is_device = fs::metadata(&path).is_ok_and(|found| found.file_type().is_block_device());
    if !is_device {
        files::open(&path).map_err(files::fault(place, "file"))?;
        let format = match image::known_format(place, "file", &path, format)? {
            DiskFormat::Qcow2 => DataFormat::Qcow2,
            DiskFormat::Raw => DataFormat::Raw,
        };
        return Ok((path, format));
    }
    if format != Some(DiskFormat::Raw) {
        return Err(Fault::bad_value(
            place,
            "file",
            format!("`{}` is a block device", path.display()),
        )
        .hint("say `format: raw` beside it, if the machine may have all of it"));
    }
    Ok((path, DataFormat::Device))
}

/// Refuses a file that one machine writes to and another one has as well, as a disk or below it.
pub(super) fn refuse_shared_files(machines: &[PlacedMachine]) -> Result<(), Fault> {
    let mut written: BTreeMap<PathBuf, &PlacedMachine> = BTreeMap::new();
    for placed in machines {
        for (path, readonly) in files(placed) {
            if !readonly && let Some(other) = written.insert(path.clone(), placed) {
                return Err(shared(&path, other, placed));
            }
        }
    }
    for placed in machines {
        let base = base(&placed.machine.image).map(|image| real(&image.path));
        let read = files(placed).filter_map(|(path, readonly)| readonly.then_some(path));
        for path in base.into_iter().chain(read) {
            if let Some(other) = written.get(&path) {
                return Err(shared(&path, other, placed));
            }
        }
    }
    Ok(())
}

fn shared(path: &Path, writer: &PlacedMachine, other: &PlacedMachine) -> Fault {
    Fault::bad_value(
        writer.place,
        "disks",
        format!(
            "machine `{}` writes to `{}`, which machine `{}` has as well",
            writer.machine.name,
            path.display(),
            other.machine.name
        ),
    )
}

/// The user's files among a machine's disks, and whether each is only read.
fn files(placed: &PlacedMachine) -> impl Iterator<Item = (PathBuf, bool)> {
    let disks = placed.machine.disks.iter();
    disks.filter_map(|disk| match &disk.source {
        DataSource::Made { .. } => None,
        DataSource::File { path, readonly, .. } => Some((real(path), *readonly)),
    })
}

fn base(image: &Image) -> Option<&DiskImage> {
    match image.disk()? {
        DiskSource::Local(disk) => Some(disk),
        DiskSource::Remote(_) => None,
    }
}

/// One name for all the links that lead to a file.
fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}
