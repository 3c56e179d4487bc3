//! The PC of today: PCI Express, SeaBIOS or UEFI.

use crate::board::{Board, BoardFirmware, Bus, ConsoleDevice, Nvme};
use crate::machine::IgnitionTransport;

pub(super) const BOARD: Board = Board {
    program: "qemu-system-x86_64",
    machine: "q35",
    version_prefix: "pc-q35-",
    kvm_cpu: "host",
    tcg_cpu: "max",
    // Without a screen SeaBIOS speaks on the serial port, "No bootable device" included.
    options: &[("graphics", "off")],
    tcg_options: &[],
    tcg_kernel_options: &[],
    bus: Bus::Pci { slots: 30 },
    console: ConsoleDevice::Serial,
    tty: "ttyS0",
    ignition: IgnitionTransport::FwCfg,
    firmware: BoardFirmware::OwnOrUefi,
    panic_device: Some("pvpanic-pci"),
    tpm: Some("tpm-crb"),
    nvme: Nvme::Boots,
    memory_step: 1,
};
