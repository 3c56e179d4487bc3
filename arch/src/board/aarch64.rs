//! Arm's virtual board. It has no firmware of its own.

use crate::board::{Board, BoardFirmware, Bus, ConsoleDevice, Nvme};
use crate::machine::IgnitionTransport;

pub(super) const BOARD: Board = Board {
    program: "qemu-system-aarch64",
    machine: "virt",
    version_prefix: "virt-",
    kvm_cpu: "host",
    tcg_cpu: "cortex-a72",
    options: &[],
    tcg_options: &[],
    tcg_kernel_options: &[],
    bus: Bus::Pci { slots: 31 },
    console: ConsoleDevice::Serial,
    tty: "ttyAMA0",
    ignition: IgnitionTransport::FwCfg,
    firmware: BoardFirmware::UefiOnly,
    panic_device: Some("pvpanic-pci"),
    tpm: Some("tpm-tis-device"),
    nvme: Nvme::Boots,
    memory_step: 1,
};
