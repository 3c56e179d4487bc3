//! Why a machine has no command line.

use std::path::PathBuf;

use crate::Arch;
use crate::machine::{ChildFd, MiB};

/// The board cannot do what was asked for, or QEMU cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    #[error("machine `{machine}` has neither a kernel nor a disk to boot from")]
    NothingToBoot { machine: String },
    #[error("{arch} machines have no firmware of their own: boot a kernel, or give UEFI")]
    NoFirmware { arch: Arch },
    #[error("{arch} machines cannot boot by {firmware}")]
    Firmware { arch: Arch, firmware: &'static str },
    #[error("{arch} machines have no TPM")]
    Tpm { arch: Arch },
    #[error("{arch} machines take no Ignition config by fw_cfg, only by virtio-blk")]
    FwCfg { arch: Arch },
    #[error("memory of {arch} machines is a multiple of {step} MiB, which {memory} is not")]
    MemoryStep { arch: Arch, step: u32, memory: MiB },
    #[error("`{version}` is no version of the {arch} board `{board}`")]
    BoardVersion {
        arch: Arch,
        board: &'static str,
        version: String,
    },
    #[error("{count} devices are too many: the {arch} board has room for {room}")]
    TooManyDevices {
        arch: Arch,
        count: usize,
        room: usize,
    },
    #[error("disk serial `{serial}` is longer than the 20 bytes that a guest sees")]
    SerialTooLong { serial: String },
    #[error("{arch} machines have no NVMe disks")]
    Nvme { arch: Arch },
    #[error("the firmware of {arch} machines boots from no NVMe disk")]
    NvmeBoot { arch: Arch },
    #[error("an NVMe disk has a serial, and drive {index} has none")]
    NvmeSerial { index: usize },
    #[error("socket path `{}` is longer than the 107 bytes that the kernel takes", path.display())]
    SocketPathTooLong { path: PathBuf },
    #[error("image path `{}` is not UTF-8, which is all that QEMU takes for one", path.display())]
    PathNotUtf8 { path: PathBuf },
    #[error("value of `{option}` holds the control byte {byte:#04x}, which cannot be passed on")]
    ControlByte { option: &'static str, byte: u8 },
    #[error("descriptor {fd} was promised to two options")]
    DescriptorTwice { fd: ChildFd },
}
