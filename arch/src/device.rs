//! QEMU's options as structs, one for each, in QEMU's own names; back and front ends apart.
//!
//! They only say what they hold: what belongs in them is decided in [`render`](crate::render).

mod block;
mod character;
mod network;

pub(crate) use block::{Blockdev, Disk, DiskDriver, VirtioScsi};
pub(crate) use character::{Chardev, ChardevBackend, VirtSerialPort};
pub(crate) use network::{Netdev, NetdevBackend, VirtioNet};

use std::ffi::{OsStr, OsString};

use crate::board::Bus;
use crate::machine::{ChildFd, Source};
use crate::opt::Opt;

/// `-add-fd`: lets `/dev/fdset/N` be opened, which gives the descriptor itself.
#[derive(Debug)]
pub(crate) struct AddFd {
    pub(crate) fd: ChildFd,
}

impl AddFd {
    /// The set has the descriptor's own number.
    pub(crate) fn opt(&self) -> Opt {
        Opt::keyed("fd", self.fd.to_string()).key("set", self.fd.to_string())
    }

    pub(crate) fn path(&self) -> String {
        format!("/dev/fdset/{}", self.fd)
    }
}

/// The name under which QEMU opens a file anew.
pub(crate) fn reopened(source: &Source) -> OsString {
    match source {
        Source::Path(path) => path.clone().into(),
        Source::Fd(fd) => format!("/proc/self/fd/{fd}").into(),
    }
}

/// `-fw_cfg`.
#[derive(Debug)]
pub(crate) struct FwCfg<'a> {
    pub(crate) name: &'static str,
    pub(crate) file: &'a OsStr,
}

impl FwCfg<'_> {
    pub(crate) fn opt(&self) -> Opt {
        Opt::keyed("name", self.name).key("file", self.file)
    }
}

/// A virtio device by its bare name, such as `virtio-rng`, on the board's bus.
pub(crate) fn virtio(name: &str, bus: Bus) -> Opt {
    Opt::new(format!("{name}-{}", bus.suffix()))
}
