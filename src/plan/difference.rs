//! What changed between a machine's record and what the spec asks now, and what that costs.

use std::fmt;

use crate::state::record::{
    DiskRecord, FirmwareKind, FirmwareRecord, KernelRecord, MachineRecord, TransportRecord,
};

/// One thing that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub what: &'static str,
    pub from: String,
    pub to: String,
    pub price: Price,
}

/// What it takes to make the change true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Price {
    /// It is only written down.
    Nothing,
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
        ignition: _,
        ignition_transport,
        mac: _,
        ip: _,
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
        // Where only the size differs the disk grows, while nobody uses it.
        match (disk, &new.disk) {
            (Some(disk), Some(new)) if disk.base == new.base => Price::Restart,
            (None | Some(_), None | Some(_)) => Price::Disk,
        },
    );
    found.add(
        "kernel",
        &kernel.as_ref().map_or(String::new(), kernel_text),
        &new.kernel.as_ref().map_or(String::new(), kernel_text),
        Price::Restart,
    );
    found.add(
        "firmware",
        &firmware.as_ref().map_or(String::new(), firmware_text),
        &new.firmware.as_ref().map_or(String::new(), firmware_text),
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
    found.add("image", image, &new.image, disk_price);
    found.add(
        "ports",
        &ports_text(ports),
        &ports_text(&new.ports),
        Price::Restart,
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
    if identity != &new.identity
        && !found
            .0
            .iter()
            .any(|difference| difference.price == disk_price)
    {
        found.0.push(Difference {
            what: "ignition config, vars or image",
            from: String::new(),
            to: String::new(),
            price: disk_price,
        });
    }
    found.0
}

struct Found(Vec<Difference>);

impl Found {
    fn add(&mut self, what: &'static str, from: &str, to: &str, price: Price) {
        if from != to {
            self.0.push(Difference {
                what,
                from: from.to_owned(),
                to: to.to_owned(),
                price,
            });
        }
    }
}

fn disk_text(disk: &DiskRecord) -> String {
    format!("{} on {}", disk.size, disk.base.path.display())
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
            Price::Restart => f.write_str(" (needs a restart)"),
            Price::Disk => f.write_str(" (needs a new disk)"),
        }
    }
}
