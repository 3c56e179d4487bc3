//! A machine becomes a QEMU command line.
//!
//! The crate is pure: it reads no file, no environment and no clock, and starts nothing, so the
//! same [`Machine`] gives the same bytes on every host. What differs between architectures is a
//! table, `board.rs`, and one file for each; every table compiles everywhere.
//!
//! To read it, begin with [`machine`] (what goes in), then [`command`] (what comes out).
#![forbid(unsafe_code)]

pub mod command;
pub mod machine;

mod board;
mod device;
mod opt;
mod render;
mod unsupported;
mod uplink;

use std::fmt;
use std::str::FromStr;

use board::{BoardFirmware, Nvme};
use command::QemuCommand;
use machine::{IgnitionTransport, Machine, Uplink};

pub use render::drive_node;
pub use unsupported::Unsupported;

/// What a guest's processor is.
///
/// The set is closed. `ppc64` is the same board as `ppc64le`: the byte order is the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    I386,
    X86_64,
    Aarch64,
    S390x,
    Ppc64le,
}

impl Arch {
    /// Every architecture, in the order that lists are printed in.
    pub const ALL: [Arch; 5] = [
        Arch::I386,
        Arch::X86_64,
        Arch::Aarch64,
        Arch::S390x,
        Arch::Ppc64le,
    ];

    /// The name in CoreOS's spelling, as stream metadata has it.
    pub fn name(self) -> &'static str {
        match self {
            Arch::I386 => "i386",
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
            Arch::S390x => "s390x",
            Arch::Ppc64le => "ppc64le",
        }
    }

    /// The QEMU program that runs guests of this architecture, without a folder.
    pub fn qemu_program(self) -> &'static str {
        self.board().program
    }

    /// What a Linux guest calls the console that kiln reads: the `X` of `console=X`.
    pub fn console_tty(self) -> &'static str {
        self.board().tty
    }

    /// A machine's memory is a multiple of this many MiB.
    pub fn memory_step(self) -> u32 {
        self.board().memory_step
    }

    /// Whether a processor of `host` runs guests of this architecture itself, under KVM.
    pub fn is_native_on(self, host: Arch) -> bool {
        self == host || (self, host) == (Arch::I386, Arch::X86_64)
    }

    /// The `-machine` alias that stands for the newest version of the board.
    ///
    /// `query-machines` says which versioned name it stands for; that name is kept in state and
    /// given back as [`Machine::board_version`], so that a newer QEMU does not change the guest's
    /// hardware.
    pub fn board_alias(self) -> &'static str {
        self.board().machine
    }

    /// Whether the board has a BIOS of its own that boots disks: SeaBIOS.
    pub fn has_bios(self) -> bool {
        matches!(self, Arch::I386 | Arch::X86_64)
    }

    /// Whether the board takes UEFI.
    pub fn has_uefi(self) -> bool {
        match self.board().firmware {
            BoardFirmware::OwnOrUefi | BoardFirmware::UefiOnly => true,
            BoardFirmware::Own => false,
        }
    }

    /// Whether the board can keep a guest from the variables that say what may boot.
    pub fn has_secure_boot(self) -> bool {
        self.board().firmware == BoardFirmware::OwnOrUefi
    }

    /// Whether without UEFI nothing but a kernel boots.
    pub fn needs_uefi(self) -> bool {
        self.board().firmware == BoardFirmware::UefiOnly
    }

    /// Whether the board can have NVMe disks.
    pub fn has_nvme(self) -> bool {
        self.board().nvme != Nvme::Absent
    }

    /// Whether what starts the machine can boot from an NVMe disk.
    pub fn boots_nvme(self) -> bool {
        self.board().nvme == Nvme::Boots
    }

    /// Whether the board can have a TPM.
    pub fn has_tpm(self) -> bool {
        self.board().tpm.is_some()
    }

    /// Whether Ignition finds its config by fw_cfg, unless told otherwise; else on a disk, the
    /// only way that the board has.
    pub fn has_fw_cfg(self) -> bool {
        self.board().ignition == IgnitionTransport::FwCfg
    }

    /// What QEMU `major.minor` as its authors release it calls its newest board.
    ///
    /// A distribution that renames its boards (RHEL) has no such name.
    pub fn board_of(self, major: u16, minor: u16) -> String {
        format!("{}{major}.{minor}", self.board().version_prefix)
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The name is of no architecture that kiln knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown architecture `{name}`; known are i386, x86_64, aarch64, s390x and ppc64le")]
pub struct UnknownArch {
    name: String,
}

impl FromStr for Arch {
    type Err = UnknownArch;

    /// Takes CoreOS's names, and those of Debian, Go and the kernel for the same things.
    fn from_str(name: &str) -> Result<Arch, UnknownArch> {
        match name {
            "i386" | "i486" | "i586" | "i686" | "x86" | "386" => Ok(Arch::I386),
            "x86_64" | "x86-64" | "amd64" => Ok(Arch::X86_64),
            "aarch64" | "arm64" => Ok(Arch::Aarch64),
            "s390x" => Ok(Arch::S390x),
            "ppc64le" | "ppc64el" | "ppc64" | "powerpc64le" | "powerpc64" => Ok(Arch::Ppc64le),
            _ => Err(UnknownArch {
                name: name.to_owned(),
            }),
        }
    }
}

/// Makes the QEMU command line of one machine.
///
/// # Errors
/// [`Unsupported`] when the board cannot do what the machine asks for, or when a value cannot be
/// said to QEMU at all.
pub fn render(machine: &Machine) -> Result<QemuCommand, Unsupported> {
    render::machine(machine)
}

/// Makes the command line of the fabric's way out: a QEMU without a guest that joins its
/// user-mode network to a port of the switch.
///
/// # Errors
/// [`Unsupported`] when a value cannot be said to QEMU.
pub fn render_uplink(uplink: &Uplink) -> Result<QemuCommand, Unsupported> {
    uplink::command(uplink)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_to_its_own_arch() {
        for arch in Arch::ALL {
            assert_eq!(arch.to_string().parse(), Ok(arch));
        }
    }

    #[test]
    fn aliases_of_other_worlds_are_taken() {
        for (alias, arch) in [
            ("amd64", Arch::X86_64),
            ("x86-64", Arch::X86_64),
            ("arm64", Arch::Aarch64),
            ("ppc64", Arch::Ppc64le),
            ("ppc64el", Arch::Ppc64le),
            ("i686", Arch::I386),
        ] {
            assert_eq!(alias.parse(), Ok(arch), "{alias}");
        }
    }

    #[test]
    fn a_64_bit_pc_runs_32_bit_guests_and_not_the_other_way() {
        for arch in Arch::ALL {
            assert!(arch.is_native_on(arch));
        }
        assert!(Arch::I386.is_native_on(Arch::X86_64));
        assert!(!Arch::X86_64.is_native_on(Arch::I386));
        assert!(!Arch::S390x.is_native_on(Arch::X86_64));
    }

    #[test]
    fn an_unknown_name_is_told_what_is_known() {
        let error = "riscv64".parse::<Arch>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown architecture `riscv64`; known are i386, x86_64, aarch64, s390x and ppc64le"
        );
    }
}
