//! What changed between a machine's record and what the spec asks now, and what that costs.

use std::fmt;

use super::Grown;
use crate::cluster::{ROOT_SERIAL, Size};
use crate::state::record::{
    BusRecord, DataDiskRecord, DataSourceRecord, DiskRecord, FirmwareKind, FirmwareRecord,
    KernelRecord, MachineRecord, SectorRecord, TransportRecord,
};

/// One thing that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub what: String,
    pub from: String,
    pub to: String,
    pub price: Price,
}

/// What it takes to make the change true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Price {
    /// It is only written down.
    Nothing,
    /// It is changed while the machine runs.
    Live,
    Restart,
    /// The disk is made anew.
    Disk,
}

/// What changed from `old` to `new`. Every field is either compared or named as free of cost.
pub(super) fn between(old: &MachineRecord, new: &MachineRecord) -> Vec<Difference> {
    // Taken apart, so that a new field does not compile until it has an answer here.
    let MachineRecord {
        schema: _,
        name: _,
        group: _,
        index: _,
        arch,
        accel,
        accel_reason: _,
        uuid: _,
        board: _,
        qemu: _,
        cpus,
        memory_mib,
        firmware,
        tpm,
        kernel,
        disk,
        data_disks,
        ignition: _,
        ignition_transport,
        mac,
        ip,
        mtu,
        ports,
        restart,
        image,
        identity,
        reports,
    } = old;
    let has_disk = disk.is_some();
    let mut found = Found(Vec::new());
    let disk_price = if has_disk {
        Price::Disk
    } else {
        Price::Restart
    };
    found.add("arch", arch, &new.arch, Price::Disk);
    found.add(
        "accel",
        &format!("{accel:?}").to_lowercase(),
        &format!("{:?}", new.accel).to_lowercase(),
        Price::Restart,
    );
    found.add(
        "cpus",
        &cpus.to_string(),
        &new.cpus.to_string(),
        Price::Restart,
    );
    found.add(
        "memory",
        &format!("{memory_mib}MiB"),
        &format!("{}MiB", new.memory_mib),
        Price::Restart,
    );
    found.add(
        "disk",
        &disk.as_ref().map_or(String::new(), disk_text),
        &new.disk.as_ref().map_or(String::new(), disk_text),
        // Where only the size differs the disk grows.
        match (disk, &new.disk) {
            (Some(disk), Some(new)) if disk.base == new.base && group_of(disk) == group_of(new) => {
                growth(disk.bus)
            }
            (None | Some(_), None | Some(_)) => Price::Disk,
        },
    );
    if let (Some(old), Some(new)) = (disk, &new.disk) {
        let what = "bus of the root disk";
        found.add(what, old.bus.name(), new.bus.name(), Price::Restart);
    }
    found.data_disks(data_disks, &new.data_disks);
    found.add(
        "kernel",
        &kernel.as_ref().map_or(String::new(), kernel_text),
        &new.kernel.as_ref().map_or(String::new(), kernel_text),
        Price::Restart,
    );
    found.add(
        "firmware",
        &firmware.as_ref().map_or(String::new(), firmware_text),
        &match (firmware, &new.firmware) {
            (_, None) => String::new(),
            (Some(old), Some(new)) if old != new => {
                format!("{}, with new UEFI variables", firmware_text(new))
            }
            (_, Some(new)) => firmware_text(new),
        },
        Price::Restart,
    );
    // Another program for the same TPM is no change to the machine.
    found.add(
        "tpm",
        if tpm.is_some() { "swtpm" } else { "" },
        if new.tpm.is_some() { "swtpm" } else { "" },
        Price::Restart,
    );
    found.add(
        "ignition transport",
        transport_text(*ignition_transport),
        transport_text(new.ignition_transport),
        Price::Restart,
    );
    found.add("MAC", mac, &new.mac, Price::Restart);
    found.add(
        "address",
        &ip.to_string(),
        &new.ip.to_string(),
        Price::Restart,
    );
    let mtu_text = |mtu: Option<u16>| mtu.map_or_else(String::new, |mtu| mtu.to_string());
    found.add("MTU", &mtu_text(*mtu), &mtu_text(new.mtu), Price::Restart);
    found.add("image", image, &new.image, disk_price);
    found.add(
        "ports",
        &ports_text(ports),
        &ports_text(&new.ports),
        Price::Live,
    );
    found.add(
        "restart policy",
        &format!("{restart:?}"),
        &format!("{:?}", new.restart),
        Price::Nothing,
    );
    found.add(
        "profile",
        if *reports { "basic" } else { "none" },
        if new.reports { "basic" } else { "none" },
        disk_price,
    );
    // Said last, and only when no plainer word was said: the hash also holds the image.
    let says_it = |difference: &Difference| {
        ["arch", "disk", "kernel", "image", "profile"].contains(&difference.what.as_str())
            && difference.price == disk_price
    };
    if identity != &new.identity && !found.0.iter().any(says_it) {
        found.0.push(Difference {
            what: "ignition config, vars or image".to_owned(),
            from: String::new(),
            to: String::new(),
            price: disk_price,
        });
    }
    found.0
}

/// The disks that are larger in `new`, by serial.
pub(super) fn grown(old: &MachineRecord, new: &MachineRecord) -> Vec<Grown> {
    let mut grown = Vec::new();
    if let (Some(old), Some(new)) = (&old.disk, &new.disk)
        && old.size < new.size
    {
        grown.push(Grown {
            serial: ROOT_SERIAL.to_owned(),
            size: new.size,
        });
    }
    for disk in &new.data_disks {
        let DataSourceRecord::Made { size, .. } = disk.source else {
            continue;
        };
        let old = old.data_disks.iter().find(|old| old.serial == disk.serial);
        if old.is_some_and(|old| old.size() < size) {
            grown.push(Grown {
                serial: disk.serial.clone(),
                size,
            });
        }
    }
    grown
}

struct Found(Vec<Difference>);

impl Found {
    /// Data disks are compared by serial; their order is what the guest sees as well.
    fn data_disks(&mut self, old: &[DataDiskRecord], new: &[DataDiskRecord]) {
        for disk in old {
            let what = format!("disk `{}`", disk.serial);
            let from = source_text(disk);
            match new.iter().find(|new| new.serial == disk.serial) {
                None => self.add(&what, &from, "detached, and kept", Price::Restart),
                Some(new) => self.data_disk(&what, disk, new),
            }
        }
        for disk in new {
            if !old.iter().any(|old| old.serial == disk.serial) {
                let what = format!("disk `{}`", disk.serial);
                self.add(&what, "", &source_text(disk), Price::Restart);
            }
        }
        let order = |disks: &[DataDiskRecord], others: &[DataDiskRecord]| {
            let common = disks
                .iter()
                .filter(|disk| others.iter().any(|other| other.serial == disk.serial));
            let serials: Vec<&str> = common.map(|disk| disk.serial.as_str()).collect();
            serials.join(" ")
        };
        self.add(
            "order of disks",
            &order(old, new),
            &order(new, old),
            Price::Restart,
        );
    }

    fn data_disk(&mut self, what: &str, old: &DataDiskRecord, new: &DataDiskRecord) {
        let keeps = match (&old.source, &new.source) {
            (
                DataSourceRecord::Made { keep: old, .. },
                DataSourceRecord::Made { keep: new, .. },
            ) => Some((old.to_string(), new.to_string())),
            _ => None,
        };
        let price = match keeps {
            Some(_) => growth(old.bus),
            None => Price::Restart,
        };
        self.add(what, &source_text(old), &source_text(new), price);
        self.add(
            &format!("{what}, bus"),
            old.bus.name(),
            new.bus.name(),
            Price::Restart,
        );
        self.add(
            &format!("{what}, sector"),
            sector_text(old.sector),
            sector_text(new.sector),
            Price::Restart,
        );
        if let Some((old, new)) = keeps {
            self.add(&format!("{what}, keep"), &old, &new, Price::Nothing);
        }
    }

    fn add(&mut self, what: &str, from: &str, to: &str, price: Price) {
        if from != to {
            self.0.push(Difference {
                what: what.to_owned(),
                from: from.to_owned(),
                to: to.to_owned(),
                price,
            });
        }
    }
}

/// What it takes until the guest sees that a disk has grown.
fn growth(bus: BusRecord) -> Price {
    match bus {
        BusRecord::Virtio | BusRecord::Scsi => Price::Live,
        // QEMU tells the guest of no other size of a namespace.
        BusRecord::Nvme => Price::Restart,
    }
}

fn disk_text(disk: &DiskRecord) -> String {
    let size = Size::from_bytes(disk.size);
    let base = disk.base.path.display();
    match &disk.volume {
        None => format!("{size} on {base}"),
        Some(volume) => format!("{size} of {base} in volume group {}", volume.group),
    }
}

/// What counts of where a root disk is.
fn group_of(disk: &DiskRecord) -> Option<&str> {
    Some(disk.volume.as_ref()?.group_uuid.as_str())
}

fn sector_text(sector: SectorRecord) -> &'static str {
    match sector {
        SectorRecord::Bytes512 => "512",
        SectorRecord::Bytes4096 => "4096",
    }
}

fn source_text(disk: &DataDiskRecord) -> String {
    match &disk.source {
        DataSourceRecord::Made { size, .. } => Size::from_bytes(*size).to_string(),
        DataSourceRecord::File {
            path,
            format,
            readonly,
            size: _,
        } => {
            let readonly = if *readonly { ", read-only" } else { "" };
            format!("{} ({}{readonly})", path.display(), format.word())
        }
    }
}

fn firmware_text(firmware: &FirmwareRecord) -> String {
    let kind = match firmware.kind {
        FirmwareKind::Uefi => "UEFI",
        FirmwareKind::UefiSecure => "UEFI with secure boot",
    };
    format!("{kind} of {}", firmware.code.display())
}

fn transport_text(transport: Option<TransportRecord>) -> &'static str {
    match transport {
        None => "the architecture's own",
        Some(TransportRecord::FwCfg) => "fw_cfg",
        Some(TransportRecord::VirtioBlk) => "virtio-blk",
    }
}

fn kernel_text(kernel: &KernelRecord) -> String {
    let initrd = kernel
        .initrd
        .as_deref()
        .map_or(String::new(), |path| format!(" {}", path.display()));
    format!("{}{initrd} {}", kernel.kernel.display(), kernel.cmdline)
}

fn ports_text(ports: &[crate::state::record::PortRecord]) -> String {
    let texts: Vec<String> = ports
        .iter()
        .map(|port| format!("{}:{}:{}", port.bind, port.host, port.guest))
        .collect();
    texts.join(" ")
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.from.as_str(), self.to.as_str()) {
            ("", "") => write!(f, "{} changed", self.what)?,
            ("", to) => write!(f, "{}: {to} is new", self.what)?,
            (from, "") => write!(f, "{}: {from} goes", self.what)?,
            (from, to) => write!(f, "{}: {from} -> {to}", self.what)?,
        }
        match self.price {
            Price::Nothing => Ok(()),
            Price::Live => f.write_str(" (while it runs)"),
            Price::Restart => f.write_str(" (needs a restart)"),
            Price::Disk => f.write_str(" (needs a new disk)"),
        }
    }
}
