//! IBM Z: channel devices, and a console of the service processor. It tells of panics by itself.

use crate::board::{Board, BoardFirmware, Bus, ConsoleDevice, Nvme};
use crate::machine::IgnitionTransport;

pub(super) const BOARD: Board = Board {
    program: "qemu-system-s390x",
    machine: "s390-ccw-virtio",
    version_prefix: "s390-ccw-virtio-",
    kvm_cpu: "host",
    tcg_cpu: "max",
    options: &[],
    tcg_options: &[],
    tcg_kernel_options: &[],
    bus: Bus::Ccw,
    console: ConsoleDevice::Device("sclpconsole"),
    tty: "ttysclp0",
    ignition: IgnitionTransport::VirtioBlk,
    firmware: BoardFirmware::Own,
    panic_device: None,
    tpm: None,
    nvme: Nvme::Absent,
    memory_step: 1,
};
