//! The PC of 1996, which 32-bit kernels know best; SeaBIOS alone.

use crate::board::{Board, BoardFirmware, Bus, ConsoleDevice, Nvme};
use crate::machine::IgnitionTransport;

pub(super) const BOARD: Board = Board {
    program: "qemu-system-i386",
    machine: "pc",
    version_prefix: "pc-i440fx-",
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
    firmware: BoardFirmware::Own,
    panic_device: Some("pvpanic-pci"),
    tpm: Some("tpm-tis"),
    nvme: Nvme::Boots,
    memory_step: 1,
};
