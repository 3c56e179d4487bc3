//! What the machine boots and keeps its data on: kernel, flash, disks, the Ignition config.

use std::ffi::OsString;
use std::path::Path;

use crate::Unsupported;
use crate::board::Nvme;
use crate::command::Reason;
use crate::device::{Blockdev, Disk, DiskDriver, FwCfg, VirtioScsi, reopened};
use crate::machine::{
    Access, DiskBus, Drive, Format, Ignition, IgnitionTransport, Image, Kernel, Pflash, Sector,
    Source,
};
use crate::render::Render;

/// QEMU's name of the block node of the `index`th of [`crate::machine::Machine::drives`].
pub fn drive_node(index: usize) -> String {
    format!("disk{index}")
}

/// The longest serial of a virtio disk.
const SERIAL_MAX: usize = 20;

impl Render<'_> {
    pub(super) fn pflash(&mut self, flash: &Pflash) -> Result<(), Unsupported> {
        let why = Reason::Spec("firmware");
        for (name, source, format, access) in [
            (
                "uefi-code",
                &flash.code,
                flash.code_format,
                Access::ReadOnly,
            ),
            (
                "uefi-vars",
                &flash.vars,
                flash.vars_format,
                Access::ReadWrite,
            ),
        ] {
            let filename = self.image_file(source)?;
            let node = match format {
                Format::Raw => Blockdev::Raw { filename, access },
                Format::Qcow2 => Blockdev::Qcow2 {
                    filename,
                    access,
                    backing: None,
                },
            };
            self.blockdev(name, &node, why)?;
        }
        Ok(())
    }

    pub(super) fn kernel(&mut self) -> Result<(), Unsupported> {
        let why = Reason::Spec("image");
        let Some(kernel) = &self.machine.kernel else {
            return match self.machine.drives.first() {
                Some(_) => Ok(()),
                None => Err(Unsupported::NothingToBoot {
                    machine: self.machine.name.clone(),
                }),
            };
        };
        let Kernel {
            image,
            initrd,
            cmdline,
        } = kernel;
        let image = self.reopened(image)?;
        self.command.push("-kernel", image, why)?;
        if let Some(initrd) = initrd {
            let initrd = self.reopened(initrd)?;
            self.command.push("-initrd", initrd, why)?;
        }
        if !cmdline.is_empty() {
            self.command.push("-append", cmdline, why)?;
        }
        Ok(())
    }

    pub(super) fn drives(&mut self) -> Result<(), Unsupported> {
        let mut scsi_disks = 0;
        for (index, drive) in self.machine.drives.iter().enumerate() {
            let driver = match drive.bus {
                DiskBus::Virtio => DiskDriver::VirtioBlk(self.board.bus),
                DiskBus::Nvme => self.nvme(index, drive)?,
                DiskBus::Scsi => {
                    if scsi_disks == 0 {
                        let controller = VirtioScsi {
                            bus: self.board.bus,
                        };
                        self.device(controller.opt(), Reason::Spec("disks"))?;
                    }
                    scsi_disks += 1;
                    DiskDriver::ScsiHd {
                        target: scsi_disks - 1,
                    }
                }
            };
            self.drive(index, drive, driver)?;
        }
        Ok(())
    }

    fn nvme(&self, index: usize, drive: &Drive) -> Result<DiskDriver, Unsupported> {
        let arch = self.machine.arch;
        if self.board.nvme == Nvme::Absent {
            return Err(Unsupported::Nvme { arch });
        }
        if drive.serial.is_none() {
            return Err(Unsupported::NvmeSerial { index });
        }
        let boots = index == 0 && self.machine.kernel.is_none();
        if boots && self.board.nvme != Nvme::Boots {
            return Err(Unsupported::NvmeBoot { arch });
        }
        Ok(DiskDriver::Nvme)
    }

    fn drive(
        &mut self,
        index: usize,
        drive: &Drive,
        driver: DiskDriver,
    ) -> Result<(), Unsupported> {
        let serial = drive.serial.as_deref();
        if let Some(serial) = serial.filter(|serial| serial.len() > SERIAL_MAX) {
            return Err(Unsupported::SerialTooLong {
                serial: serial.to_owned(),
            });
        }
        let node = self.image(&drive.image, drive.access)?;
        let is_root = index == 0 && (serial == Some("root") || self.machine.kernel.is_none());
        let why = Reason::Spec(if is_root { "image" } else { "disks" });
        let name = drive_node(index);
        self.blockdev(&name, &node, why)?;
        let boots = index == 0 && self.machine.kernel.is_none();
        let front = Disk {
            driver,
            id: &format!("{}-{name}", drive.bus.name()),
            drive: &name,
            serial,
            bootindex: boots.then_some(1),
            sector: drive.sector,
        };
        match driver {
            DiskDriver::VirtioBlk(_) | DiskDriver::Nvme => self.device(front.opt(), why),
            // It is plugged into its controller, which has the slot.
            DiskDriver::ScsiHd { .. } => {
                self.command.push("-device", front.opt().into_value(), why)
            }
        }
    }

    pub(super) fn ignition(&mut self) -> Result<(), Unsupported> {
        let own = self.board.ignition;
        match &self.machine.ignition {
            Ignition::None => self.no_ignition(own),
            Ignition::Config(source) => self.ignition_by(own, source),
            Ignition::ConfigBy(transport, source) => self.ignition_by(*transport, source),
        }
    }

    fn no_ignition(&mut self, own: IgnitionTransport) -> Result<(), Unsupported> {
        match own {
            IgnitionTransport::FwCfg => Ok(()),
            IgnitionTransport::VirtioBlk => self.ignition_disk(
                &Blockdev::Empty,
                self.arch_reason("Ignition waits five minutes for a disk that is not there"),
            ),
        }
    }

    fn ignition_by(
        &mut self,
        transport: IgnitionTransport,
        config: &Source,
    ) -> Result<(), Unsupported> {
        let why = Reason::Spec("ignition");
        let file = self.reopened(config)?;
        match (transport, self.board.ignition) {
            (IgnitionTransport::FwCfg, IgnitionTransport::VirtioBlk) => Err(Unsupported::FwCfg {
                arch: self.machine.arch,
            }),
            (IgnitionTransport::FwCfg, IgnitionTransport::FwCfg) => {
                let item = FwCfg {
                    name: "opt/com.coreos/config",
                    file: &file,
                };
                self.command.push("-fw_cfg", item.opt().into_value(), why)
            }
            (IgnitionTransport::VirtioBlk, _) => {
                let config = Blockdev::Raw {
                    filename: utf8(Path::new(&file))?,
                    access: Access::ReadOnly,
                };
                self.ignition_disk(&config, why)
            }
        }
    }

    fn ignition_disk(&mut self, node: &Blockdev, why: Reason) -> Result<(), Unsupported> {
        self.blockdev("ignition", node, why)?;
        let front = Disk {
            driver: DiskDriver::VirtioBlk(self.board.bus),
            id: "virtio-ignition",
            drive: "ignition",
            serial: Some("ignition"),
            bootindex: None,
            sector: Sector::Bytes512,
        };
        self.device(front.opt(), why)
    }

    fn blockdev(&mut self, name: &str, node: &Blockdev, why: Reason) -> Result<(), Unsupported> {
        self.command
            .push("-blockdev", node.named(name).into_value(), why)
    }

    fn image(&mut self, image: &Image, access: Access) -> Result<Blockdev, Unsupported> {
        match image {
            Image::Raw(source) => Ok(Blockdev::Raw {
                filename: self.image_file(source)?,
                access,
            }),
            Image::Device(source) => Ok(Blockdev::Device {
                filename: self.image_file(source)?,
                access,
            }),
            Image::Qcow2 { source, backing } => Ok(Blockdev::Qcow2 {
                filename: self.image_file(source)?,
                access,
                backing: match backing {
                    Some(backing) => Some(Box::new(self.image(backing, Access::ReadOnly)?)),
                    None => None,
                },
            }),
        }
    }

    /// The name under which QEMU gets the very descriptor, with its mode and its locks.
    fn image_file(&mut self, source: &Source) -> Result<String, Unsupported> {
        match source {
            Source::Path(path) => utf8(path),
            Source::Fd(fd) => self.command.add_fd(*fd),
        }
    }

    /// The name under which QEMU opens a file anew.
    fn reopened(&mut self, source: &Source) -> Result<OsString, Unsupported> {
        if let Source::Fd(fd) = source {
            self.command.inherit(*fd)?;
        }
        Ok(reopened(source))
    }
}

fn utf8(path: &Path) -> Result<String, Unsupported> {
    match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(Unsupported::PathNotUtf8 {
            path: path.to_owned(),
        }),
    }
}
