//! What differs between architectures: one [`Board`] for each, a table and not a trait.
//!
//! Facts are from booting the five under QEMU 10.0.2 with TCG; what was only read is marked so.

mod aarch64;
mod i386;
mod ppc64le;
mod s390x;
mod x86_64;

use crate::Arch;
use crate::machine::IgnitionTransport;

/// The board of one architecture, as QEMU builds it.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) program: &'static str,
    /// The alias for the newest version.
    pub(crate) machine: &'static str,
    /// How versioned names begin.
    pub(crate) version_prefix: &'static str,
    pub(crate) kvm_cpu: &'static str,
    pub(crate) tcg_cpu: &'static str,
    /// Board options that every machine has.
    pub(crate) options: &'static [(&'static str, &'static str)],
    /// Board options that are only right under TCG.
    pub(crate) tcg_options: &'static [(&'static str, &'static str)],
    /// Board options that are only right under TCG for a kernel that QEMU loads.
    pub(crate) tcg_kernel_options: &'static [(&'static str, &'static str)],
    pub(crate) bus: Bus,
    pub(crate) console: ConsoleDevice,
    /// What Linux calls that console.
    pub(crate) tty: &'static str,
    pub(crate) ignition: IgnitionTransport,
    pub(crate) firmware: BoardFirmware,
    /// The device by which a guest's kernel says that it panicked; absent where the board itself
    /// tells.
    pub(crate) panic_device: Option<&'static str>,
    /// The device behind which a TPM 2.0 sits; absent where QEMU has none for the board.
    pub(crate) tpm: Option<&'static str>,
    /// What becomes of NVMe disks.
    pub(crate) nvme: Nvme,
    /// Memory comes in steps of this many MiB.
    pub(crate) memory_step: u32,
}

/// What virtio devices are plugged into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bus {
    /// The root bus, with that many slots left free by the board itself.
    Pci { slots: usize },
    /// The channel subsystem of s390, which has room for 65536.
    Ccw,
}

impl Bus {
    /// The end of the names of virtio devices on this bus.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Bus::Pci { .. } => "pci",
            Bus::Ccw => "ccw",
        }
    }
}

/// How the console is plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConsoleDevice {
    /// A serial port that is soldered on: `-serial`.
    Serial,
    /// A device of this name.
    Device(&'static str),
}

/// Whether the board has NVMe disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nvme {
    /// It has none.
    Absent,
    /// Its firmware has no driver for them; a kernel has.
    Data,
    /// They can be booted from.
    Boots,
}

/// Which firmware the board takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BoardFirmware {
    /// Its own, or UEFI, with or without secure boot.
    OwnOrUefi,
    /// Nothing but UEFI; without it only a kernel boots.
    UefiOnly,
    /// Its own alone.
    Own,
}

impl Arch {
    pub(crate) fn board(self) -> &'static Board {
        match self {
            Arch::I386 => &i386::BOARD,
            Arch::X86_64 => &x86_64::BOARD,
            Arch::Aarch64 => &aarch64::BOARD,
            Arch::S390x => &s390x::BOARD,
            Arch::Ppc64le => &ppc64le::BOARD,
        }
    }
}
