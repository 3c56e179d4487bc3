//! IBM POWER as a guest of its hypervisor, with SLOF. It tells of panics by itself.

use crate::board::{Board, BoardFirmware, Bus, ConsoleDevice, Nvme};
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
    // SLOF is interpreted Forth: emulated, it takes 4 of the 10 seconds of a small guest's boot,
    // and slows the kernel's first steps, only to jump to a kernel that lies in memory already.
    // QEMU's own Virtual Open Firmware is made for this and nothing else: it cannot boot a disk.
    // Its `x-` says experimental, so a machine under KVM, where SLOF costs nothing, is spared it.
    tcg_kernel_options: &[("x-vof", "on")],
    bus: Bus::Pci { slots: 32 },
    console: ConsoleDevice::Device("spapr-vty"),
    tty: "hvc0",
    ignition: IgnitionTransport::VirtioBlk,
    firmware: BoardFirmware::Own,
    panic_device: None,
    tpm: Some("tpm-spapr"),
    nvme: Nvme::Data,
    memory_step: 256,
};
