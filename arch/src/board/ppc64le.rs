//! IBM POWER as a guest of its hypervisor, with SLOF. It tells of panics by itself.

use crate::board::{Board, BoardFirmware, Bus, ConsoleDevice};
use crate::machine::IgnitionTransport;

pub(super) const BOARD: Board = Board {
    program: "qemu-system-ppc64",
    machine: "pseries",
    version_prefix: "pseries-",
    kvm_cpu: "host",
    tcg_cpu: "power9",
    options: &[],
    // What TCG lacks: with the first three on it does not start, and warns of the last.
    tcg_options: &[
        ("cap-cfpc", "broken"),
        ("cap-sbbc", "broken"),
        ("cap-ibs", "broken"),
        ("cap-ccf-assist", "off"),
    ],
    bus: Bus::Pci { slots: 32 },
    console: ConsoleDevice::Device("spapr-vty"),
    tty: "hvc0",
    ignition: IgnitionTransport::VirtioBlk,
    firmware: BoardFirmware::Own,
    panic_device: None,
    tpm: Some("tpm-spapr"),
    memory_step: 256,
};
