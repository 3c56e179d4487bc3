//! Folders of the host: `-fsdev` and the two devices by which a guest mounts one.

use std::ffi::OsString;

use crate::board::Bus;
use crate::device::virtio;
use crate::machine::{Access, MiB};
use crate::opt::Opt;

/// `-object memory-backend-memfd`: guest memory that another process can map.
#[derive(Debug)]
pub(crate) struct SharedMemory<'a> {
    pub(crate) id: &'a str,
    pub(crate) size: MiB,
}

impl SharedMemory<'_> {
    pub(crate) fn opt(&self) -> Opt {
        Opt::new("memory-backend-memfd")
            .key("id", self.id)
            .key("size", format!("{}M", self.size.0))
            .key("share", "on")
    }
}

/// `-device vhost-user-fs-*`.
#[derive(Debug)]
pub(crate) struct VhostUserFs<'a> {
    pub(crate) bus: Bus,
    pub(crate) chardev: &'a str,
    pub(crate) tag: &'a str,
}

impl VhostUserFs<'_> {
    pub(crate) fn opt(&self) -> Opt {
        virtio("vhost-user-fs", self.bus)
            .key("chardev", self.chardev)
            .key("tag", self.tag)
    }
}

/// `-fsdev local`.
#[derive(Debug)]
pub(crate) struct Fsdev<'a> {
    pub(crate) id: &'a str,
    pub(crate) path: OsString,
    pub(crate) access: Access,
}

impl Fsdev<'_> {
    pub(crate) fn opt(&self) -> Opt {
        let opt = Opt::new("local")
            .key("id", self.id)
            .key("path", &self.path)
            // Files are what they seem on both sides. Whoever QEMU runs as owns what a guest makes:
            // it may give nothing away, and this model lets a guest's `chown` pass that by.
            .key("security_model", "none")
            // A folder may hold other file systems, whose inode numbers repeat.
            .key("multidevs", "remap");
        match self.access {
            Access::ReadWrite => opt,
            Access::ReadOnly => opt.key("readonly", "on"),
        }
    }
}

/// `-device virtio-9p-*`.
#[derive(Debug)]
pub(crate) struct Virtio9p<'a> {
    pub(crate) bus: Bus,
    pub(crate) fsdev: &'a str,
    pub(crate) tag: &'a str,
}

impl Virtio9p<'_> {
    pub(crate) fn opt(&self) -> Opt {
        virtio("virtio-9p", self.bus)
            .key("fsdev", self.fsdev)
            .key("mount_tag", self.tag)
    }
}
