//! A [`Machine`] becomes a [`QemuCommand`], section by section.
//!
//! The order is part of the outcome: devices get their slots in the order in which they are
//! given, and a guest names its network cards by their slots. So what is always there comes first,
//! then the cards, then the disks, and last the shares, of which a user adds and removes most.

mod character;
mod network;
mod share;
mod storage;

pub(crate) use character::{monitor, take_socket};
pub use storage::drive_node;

use crate::Unsupported;
use crate::board::{Board, BoardFirmware, Bus};
use crate::command::{QemuCommand, Reason};
use crate::device::virtio;
use crate::machine::{Accel, Firmware, Machine, Run, Sandbox};
use crate::opt::Opt;

pub(crate) fn machine(machine: &Machine) -> Result<QemuCommand, Unsupported> {
    let mut render = Render {
        machine,
        board: machine.arch.board(),
        command: QemuCommand::new(machine.arch.qemu_program()),
        devices: 0,
    };
    begin(
        &mut render.command,
        &machine.cluster,
        &machine.name,
        machine.uuid.as_deref(),
        machine.sandbox,
    )?;
    render.fate()?;
    render.board()?;
    render.monitors()?;
    render.console()?;
    render.tpm()?;
    render.ports()?;
    render.always()?;
    render.nics()?;
    render.kernel()?;
    render.drives()?;
    render.ignition()?;
    render.shares()?;
    render.room()?;
    Ok(render.command)
}

/// What every QEMU of kiln begins with.
pub(crate) fn begin(
    command: &mut QemuCommand,
    cluster: &str,
    name: &str,
    uuid: Option<&str>,
    sandbox: Sandbox,
) -> Result<(), Unsupported> {
    command.flag(
        "-no-user-config",
        Reason::Kiln("the host's QEMU settings change nothing"),
    );
    command.flag(
        "-nodefaults",
        Reason::Kiln("the guest has the devices named here and no other"),
    );
    command.push(
        "-name",
        Opt::keyed("guest", format!("{cluster}/{name}"))
            .key("debug-threads", "on")
            .into_value(),
        Reason::Spec("machines"),
    )?;
    if let Some(uuid) = uuid {
        command.push(
            "-uuid",
            uuid,
            Reason::Kiln("by this word a process is known to be this machine's"),
        )?;
    }
    match sandbox {
        Sandbox::Full => command.push(
            "-sandbox",
            Opt::new("on")
                .key("obsolete", "deny")
                .key("elevateprivileges", "deny")
                .key("spawn", "deny")
                .key("resourcecontrol", "deny")
                .into_value(),
            Reason::Kiln("a guest that broke out can start nothing and gain nothing"),
        )?,
        Sandbox::Absent => {}
    }
    command.push("-display", "none", Reason::Kiln("no window on the host"))
}

/// The state of one rendering.
struct Render<'a> {
    machine: &'a Machine,
    board: &'static Board,
    command: QemuCommand,
    /// How many slots of the bus are taken.
    devices: usize,
}

impl Render<'_> {
    fn arch_reason(&self, why: &'static str) -> Reason {
        Reason::Arch(self.machine.arch, why)
    }

    /// Appends a device that takes a slot of the board's bus.
    fn device(&mut self, opt: Opt, why: Reason) -> Result<(), Unsupported> {
        self.devices += 1;
        self.command.push("-device", opt.into_value(), why)
    }

    /// How the machine begins and ends.
    fn fate(&mut self) -> Result<(), Unsupported> {
        match self.machine.run {
            Run::Alone => Ok(()),
            Run::Supervised => {
                self.command.flag(
                    "-S",
                    Reason::Kiln("the guest runs when its network and sockets are joined"),
                );
                self.command.push(
                    "-action",
                    Opt::keyed("shutdown", "pause")
                        .key("panic", "pause")
                        .into_value(),
                    Reason::Kiln("QEMU stays to tell how the guest ended"),
                )
            }
        }
    }

    fn board(&mut self) -> Result<(), Unsupported> {
        let Machine {
            arch,
            accel,
            memory,
            cpus,
            ..
        } = self.machine;
        let (board, why) = match &self.machine.board_version {
            Some(version) if !version.starts_with(self.board.version_prefix) => {
                return Err(Unsupported::BoardVersion {
                    arch: *arch,
                    board: self.board.machine,
                    version: version.clone(),
                });
            }
            Some(version) => (
                version.as_str(),
                Reason::Kiln("the board that the machine was made with, kept in state"),
            ),
            None => (self.board.machine, self.arch_reason("its board")),
        };
        // The guest's memory holds its secrets.
        let mut opt = Opt::new(board).key("dump-guest-core", "off");
        for (key, value) in self.board.options {
            opt = opt.key(key, value);
        }
        if *accel == Accel::Tcg {
            let for_kernels = match (&self.machine.kernel, self.machine.tpm) {
                (Some(_), None) => self.board.tcg_kernel_options,
                // On some boards a TPM is only of use when their own firmware has started it.
                (_, _) => &[],
            };
            for (key, value) in self.board.tcg_options.iter().chain(for_kernels) {
                opt = opt.key(key, value);
            }
        }
        match &self.machine.firmware {
            Firmware::Board => {}
            Firmware::Uefi(_) => opt = opt.key("pflash0", "uefi-code").key("pflash1", "uefi-vars"),
            Firmware::UefiSecure(_) => {
                opt = opt
                    .key("smm", "on")
                    .key("pflash0", "uefi-code")
                    .key("pflash1", "uefi-vars");
            }
        }
        if self.shares_memory() {
            opt = opt.key("memory-backend", share::SHARED_MEMORY);
        }
        self.command.push("-machine", opt.into_value(), why)?;

        let (cpu, why) = match accel {
            Accel::Kvm => (self.board.kvm_cpu, "the host's own processor, under KVM"),
            Accel::Tcg => (self.board.tcg_cpu, "the processor that TCG emulates best"),
        };
        self.command.push(
            "-accel",
            accel.to_string(),
            Reason::Host("what `accel` asks for, as far as it works here"),
        )?;
        self.command.push("-cpu", cpu, self.arch_reason(why))?;
        self.command
            .push("-smp", cpus.to_string(), Reason::Spec("cpus"))?;

        let step = self.board.memory_step;
        if !memory.0.get().is_multiple_of(step) {
            return Err(Unsupported::MemoryStep {
                arch: *arch,
                step,
                memory: *memory,
            });
        }
        self.command
            .push("-m", format!("{}M", memory.0), Reason::Spec("memory"))?;
        self.shared_memory()?;
        self.firmware()
    }

    fn firmware(&mut self) -> Result<(), Unsupported> {
        let arch = self.machine.arch;
        let refused = |firmware| Err(Unsupported::Firmware { arch, firmware });
        match (&self.machine.firmware, self.board.firmware) {
            (Firmware::Board, BoardFirmware::UefiOnly) if self.machine.kernel.is_none() => {
                Err(Unsupported::NoFirmware { arch })
            }
            (Firmware::Board, _) => Ok(()),
            (Firmware::Uefi(_), BoardFirmware::Own) => refused("UEFI"),
            (Firmware::UefiSecure(_), BoardFirmware::Own | BoardFirmware::UefiOnly) => {
                refused("UEFI with secure boot")
            }
            (Firmware::Uefi(flash), BoardFirmware::OwnOrUefi | BoardFirmware::UefiOnly) => {
                self.pflash(flash)
            }
            (Firmware::UefiSecure(flash), BoardFirmware::OwnOrUefi) => {
                self.command.push(
                    "-global",
                    "driver=cfi.pflash01,property=secure,value=on",
                    self.arch_reason("only the firmware may write its variables"),
                )?;
                self.pflash(flash)
            }
        }
    }

    /// Devices that every guest has.
    fn always(&mut self) -> Result<(), Unsupported> {
        self.device(
            virtio("virtio-rng", self.board.bus),
            Reason::Kiln("keys are made at first boot, which wants randomness at once"),
        )?;
        match self.board.panic_device {
            Some(name) => self.device(
                Opt::new(name),
                self.arch_reason("its way to say that the kernel panicked"),
            ),
            None => Ok(()),
        }
    }

    /// Whether the bus has a slot for every device.
    fn room(&self) -> Result<(), Unsupported> {
        match self.board.bus {
            Bus::Pci { slots } if self.devices > slots => Err(Unsupported::TooManyDevices {
                arch: self.machine.arch,
                count: self.devices,
                room: slots,
            }),
            Bus::Pci { .. } | Bus::Ccw => Ok(()),
        }
    }
}
