//! Whatever speaks over a character device: monitors, console, ports.

use crate::Unsupported;
use crate::board::ConsoleDevice;
use crate::command::{QemuCommand, Reason};
use crate::device::{Chardev, ChardevBackend, VirtSerialPort, virtio};
use crate::machine::{ConsoleBackend, PortName, Socket, Source};
use crate::opt::Opt;
use crate::render::Render;

/// The longest path that fits into a unix socket's address.
const SOCKET_PATH_MAX: usize = 107;

/// Appends a QMP monitor on a socket.
pub(crate) fn monitor(
    command: &mut QemuCommand,
    id: &str,
    socket: &Socket,
    why: Reason,
) -> Result<(), Unsupported> {
    chardev(command, id, ChardevBackend::Socket(socket), None, why)?;
    command.push(
        "-mon",
        Opt::keyed("chardev", id)
            .key("mode", "control")
            .into_value(),
        why,
    )
}

/// Notes the socket's descriptor, or checks its path.
pub(crate) fn take_socket(command: &mut QemuCommand, socket: &Socket) -> Result<(), Unsupported> {
    match socket {
        Socket::Listener(fd) => command.inherit(*fd),
        Socket::Path(path) if path.as_os_str().len() > SOCKET_PATH_MAX => {
            Err(Unsupported::SocketPathTooLong { path: path.clone() })
        }
        Socket::Path(_) => Ok(()),
    }
}

pub(super) fn chardev(
    command: &mut QemuCommand,
    id: &str,
    backend: ChardevBackend<'_>,
    log: Option<&Source>,
    why: Reason,
) -> Result<(), Unsupported> {
    match backend {
        ChardevBackend::Socket(socket) => take_socket(command, socket)?,
        ChardevBackend::Connected(fd) => command.inherit(fd)?,
        ChardevBackend::Stdio => {}
    }
    let logfile = match log {
        Some(Source::Path(path)) => Some(path.clone().into()),
        Some(Source::Fd(fd)) => Some(command.add_fd(*fd)?.into()),
        None => None,
    };
    let chardev = Chardev {
        id,
        backend,
        logfile,
    };
    command.push("-chardev", chardev.opt().into_value(), why)
}

impl Render<'_> {
    pub(super) fn monitors(&mut self) -> Result<(), Unsupported> {
        for (index, socket) in self.machine.monitors.iter().enumerate() {
            monitor(
                &mut self.command,
                &format!("qmp{index}"),
                socket,
                Reason::Kiln("QMP, by which the machine is watched and steered"),
            )?;
        }
        Ok(())
    }

    pub(super) fn console(&mut self) -> Result<(), Unsupported> {
        let console = &self.machine.console;
        let backend = match &console.backend {
            ConsoleBackend::Socket(socket) => ChardevBackend::Socket(socket),
            ConsoleBackend::Stdio => ChardevBackend::Stdio,
        };
        chardev(
            &mut self.command,
            "console",
            backend,
            console.log.as_ref(),
            Reason::Kiln("the console, for `kiln console` and `kiln logs`"),
        )?;
        let why = self.arch_reason("its console");
        match self.board.console {
            ConsoleDevice::Serial => self.command.push("-serial", "chardev:console", why),
            ConsoleDevice::Device(name) => self.command.push(
                "-device",
                Opt::new(name).key("chardev", "console").into_value(),
                why,
            ),
        }
    }

    pub(super) fn tpm(&mut self) -> Result<(), Unsupported> {
        let Some(fd) = self.machine.tpm else {
            return Ok(());
        };
        let arch = self.machine.arch;
        let device = self.board.tpm.ok_or(Unsupported::Tpm { arch })?;
        let why = Reason::Spec("tpm");
        chardev(
            &mut self.command,
            "tpm",
            ChardevBackend::Connected(fd),
            None,
            why,
        )?;
        self.command.push(
            "-tpmdev",
            Opt::new("emulator")
                .key("id", "tpm0")
                .key("chardev", "tpm")
                .into_value(),
            why,
        )?;
        self.command.push(
            "-device",
            Opt::new(device).key("tpmdev", "tpm0").into_value(),
            self.arch_reason("where its TPM sits"),
        )
    }

    pub(super) fn ports(&mut self) -> Result<(), Unsupported> {
        if self.machine.ports.is_empty() {
            return Ok(());
        }
        self.device(
            virtio("virtio-serial", self.board.bus),
            Reason::Kiln("carries the ports below"),
        )?;
        for (index, port) in self.machine.ports.iter().enumerate() {
            let id = format!("port{index}");
            let why = purpose(port.name);
            chardev(
                &mut self.command,
                &id,
                ChardevBackend::Socket(&port.socket),
                None,
                why,
            )?;
            let port = VirtSerialPort {
                chardev: &id,
                name: port.name.as_str(),
            };
            self.command.push("-device", port.opt().into_value(), why)?;
        }
        Ok(())
    }
}

fn purpose(port: PortName) -> Reason {
    Reason::Kiln(match port {
        PortName::Report => "the guest says here that it is ready",
        PortName::GuestAgent => "QEMU's guest agent, where the guest has one",
        PortName::IgnitionJournal => "Fedora CoreOS says here why Ignition failed",
    })
}
