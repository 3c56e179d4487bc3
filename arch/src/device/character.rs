//! Character devices: `-chardev`, and the virtio-serial port.

use std::ffi::OsString;

use crate::machine::{ChildFd, Socket};
use crate::opt::Opt;

/// `-chardev`.
#[derive(Debug)]
pub(crate) struct Chardev<'a> {
    pub(crate) id: &'a str,
    pub(crate) backend: ChardevBackend<'a>,
    pub(crate) logfile: Option<OsString>,
}

#[derive(Debug)]
pub(crate) enum ChardevBackend<'a> {
    /// QEMU is the server, and waits for no client.
    Socket(&'a Socket),
    /// QEMU is the client, of a server that it is joined to already.
    Connected(ChildFd),
    Stdio,
}

impl Chardev<'_> {
    pub(crate) fn opt(&self) -> Opt {
        let opt = match self.backend {
            ChardevBackend::Socket(socket) => {
                let opt = Opt::new("socket").key("id", self.id);
                match socket {
                    Socket::Listener(fd) => opt.key("fd", fd.to_string()),
                    Socket::Path(path) => opt.key("path", path),
                }
                .key("server", "on")
                .key("wait", "off")
            }
            ChardevBackend::Connected(fd) => Opt::new("socket")
                .key("id", self.id)
                .key("fd", fd.to_string()),
            // Ctrl-C ends QEMU, as whoever runs one by hand expects.
            ChardevBackend::Stdio => Opt::new("stdio").key("id", self.id),
        };
        match &self.logfile {
            Some(path) => opt.key("logfile", path).key("logappend", "on"),
            None => opt,
        }
    }
}

/// `-device virtserialport`.
#[derive(Debug)]
pub(crate) struct VirtSerialPort<'a> {
    pub(crate) chardev: &'a str,
    pub(crate) name: &'a str,
}

impl VirtSerialPort<'_> {
    pub(crate) fn opt(&self) -> Opt {
        Opt::new("virtserialport")
            .key("chardev", self.chardev)
            .key("name", self.name)
    }
}
