//! Block devices: `-blockdev`, and the disks in front of it.

use crate::board::Bus;
use crate::device::virtio;
use crate::machine::{Access, Sector};
use crate::opt::{Object, Opt};

/// `-blockdev`: a node, and the nodes that it stands on.
///
/// The format is always named and the backing file always said, `null` included, so that no
/// image's header is followed.
#[derive(Debug)]
pub(crate) enum Blockdev {
    Raw {
        filename: String,
        access: Access,
    },
    /// The protocol driver `file` takes no device.
    Device {
        filename: String,
        access: Access,
    },
    Qcow2 {
        filename: String,
        access: Access,
        backing: Option<Box<Blockdev>>,
    },
    /// A disk without a byte.
    Empty,
}

impl Blockdev {
    pub(crate) fn named(&self, node_name: &str) -> Object {
        self.describe(Object::new().text("node-name", node_name))
    }

    fn describe(&self, node: Object) -> Object {
        match self {
            Blockdev::Raw { filename, access } => {
                format(node, "raw", protocol("file", filename), *access)
            }
            Blockdev::Device { filename, access } => {
                format(node, "raw", protocol("host_device", filename), *access)
            }
            Blockdev::Qcow2 {
                filename,
                access,
                backing,
            } => {
                let node = format(node, "qcow2", protocol("file", filename), *access);
                match backing {
                    Some(backing) => node.object("backing", backing.describe(Object::new())),
                    None => node.null("backing"),
                }
            }
            Blockdev::Empty => node
                .text("driver", "null-co")
                .number("size", 0)
                .boolean("read-only", true),
        }
    }
}

fn protocol(driver: &str, filename: &str) -> Object {
    Object::new()
        .text("driver", driver)
        .text("filename", filename)
}

fn format(node: Object, driver: &str, file: Object, access: Access) -> Object {
    let node = node.text("driver", driver);
    match access {
        // What the guest discards is given back to the host.
        Access::ReadWrite => node
            .boolean("read-only", false)
            .text("discard", "unmap")
            .object("file", file.text("discard", "unmap")),
        Access::ReadOnly => node.boolean("read-only", true).object("file", file),
    }
}

/// `-device virtio-blk-*`, `nvme` or `scsi-hd`: what the guest has of a [`Blockdev`].
#[derive(Debug)]
pub(crate) struct Disk<'a> {
    pub(crate) driver: DiskDriver,
    pub(crate) id: &'a str,
    pub(crate) drive: &'a str,
    pub(crate) serial: Option<&'a str>,
    pub(crate) bootindex: Option<u32>,
    pub(crate) sector: Sector,
}

/// QEMU's driver of a disk, and where it is plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskDriver {
    VirtioBlk(Bus),
    Nvme,
    /// By its target on the bus of [`VirtioScsi`]: 0 to 255.
    ScsiHd {
        target: usize,
    },
}

impl Disk<'_> {
    pub(crate) fn opt(&self) -> Opt {
        let mut opt = match self.driver {
            DiskDriver::VirtioBlk(bus) => virtio("virtio-blk", bus),
            DiskDriver::Nvme => Opt::new("nvme"),
            DiskDriver::ScsiHd { target } => Opt::new("scsi-hd")
                .key("bus", format!("{SCSI}.0"))
                .key("scsi-id", target.to_string())
                .key("lun", "0"),
        };
        opt = opt.key("id", self.id).key("drive", self.drive);
        opt = match self.driver {
            // The machine pauses on any fault of the host's storage and can be resumed when the
            // fault is gone; the guest never sees an error that is not its disk's.
            DiskDriver::VirtioBlk(_) | DiskDriver::ScsiHd { .. } => {
                opt.key("werror", "stop").key("rerror", "stop")
            }
            // QEMU knows no such thing of an NVMe disk.
            DiskDriver::Nvme => opt,
        };
        if let Some(serial) = self.serial {
            opt = opt.key("serial", serial);
        }
        if let Some(bootindex) = self.bootindex {
            opt = opt.key("bootindex", bootindex.to_string());
        }
        match self.sector {
            Sector::Bytes512 => opt,
            Sector::Bytes4096 => opt
                .key("logical_block_size", "4096")
                .key("physical_block_size", "4096"),
        }
    }
}

/// The id of the machine's SCSI controller.
const SCSI: &str = "scsi";

/// `-device virtio-scsi-*`: the controller of all SCSI disks of a machine.
#[derive(Debug)]
pub(crate) struct VirtioScsi {
    pub(crate) bus: Bus,
}

impl VirtioScsi {
    pub(crate) fn opt(&self) -> Opt {
        virtio("virtio-scsi", self.bus).key("id", SCSI)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_a_protocol_driver_of_its_own() {
        let device = Blockdev::Device {
            filename: "/dev/fdset/3".to_owned(),
            access: Access::ReadWrite,
        };
        assert_eq!(
            device.named("disk1").into_value(),
            r#"{"node-name":"disk1","driver":"raw","read-only":false,"discard":"unmap","file":{"driver":"host_device","filename":"/dev/fdset/3","discard":"unmap"}}"#
        );
    }
}
