//! The network: `-netdev`, and the virtio card.

use macaddr::MacAddr6;

use crate::board::Bus;
use crate::device::virtio;
use crate::machine::{ChildFd, Forward, Protocol, Socket, UserNet};
use crate::opt::Opt;

/// `-netdev`.
#[derive(Debug)]
pub(crate) struct Netdev<'a> {
    pub(crate) id: &'a str,
    pub(crate) backend: NetdevBackend<'a>,
}

#[derive(Debug)]
pub(crate) enum NetdevBackend<'a> {
    /// QEMU is the server: it takes one client, and the next when that one is gone.
    Stream(&'a Socket),
    Tap(ChildFd),
    User(&'a UserNet),
    /// A port of QEMU's own hub 0, to which another back end is plugged.
    Hubport(&'a str),
}

impl Netdev<'_> {
    pub(crate) fn opt(&self) -> Opt {
        let id = self.id;
        match self.backend {
            NetdevBackend::Stream(socket) => {
                let opt = Opt::new("stream").key("id", id).key("server", "on");
                match socket {
                    Socket::Listener(fd) => {
                        opt.key("addr.type", "fd").key("addr.str", fd.to_string())
                    }
                    Socket::Path(path) => opt.key("addr.type", "unix").key("addr.path", path),
                }
            }
            NetdevBackend::Tap(fd) => Opt::new("tap").key("id", id).key("fd", fd.to_string()),
            NetdevBackend::User(user) => {
                let opt = Opt::new("user")
                    .key("id", id)
                    .key("net", user.net.trunc().to_string())
                    .key("host", user.host.to_string())
                    .key("dns", user.dns.to_string())
                    .key("ipv6", "off");
                let opt = match user.lease {
                    Some(ip) => opt.key("dhcpstart", ip.to_string()),
                    None => opt,
                };
                user.forwards
                    .iter()
                    .fold(opt, |opt, forward| opt.key("hostfwd", hostfwd(forward)))
            }
            NetdevBackend::Hubport(netdev) => Opt::new("hubport")
                .key("id", id)
                .key("hubid", "0")
                .key("netdev", netdev),
        }
    }
}

fn hostfwd(forward: &Forward) -> String {
    let protocol = match forward.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let Forward { listen, guest, .. } = forward;
    format!(
        "{protocol}:{}:{}-{}:{}",
        listen.ip(),
        listen.port(),
        guest.ip(),
        guest.port()
    )
}

/// `-device virtio-net-*`.
#[derive(Debug)]
pub(crate) struct VirtioNet<'a> {
    pub(crate) bus: Bus,
    pub(crate) id: &'a str,
    pub(crate) netdev: &'a str,
    pub(crate) mac: MacAddr6,
    pub(crate) mtu: Option<u16>,
}

impl VirtioNet<'_> {
    pub(crate) fn opt(&self) -> Opt {
        let opt = virtio("virtio-net", self.bus)
            .key("id", self.id)
            .key("netdev", self.netdev)
            .key("mac", self.mac.to_string().to_ascii_lowercase());
        let opt = match self.mtu {
            // By VIRTIO_NET_F_MTU, which needs no DHCP client that heeds the option of it.
            Some(mtu) => opt.key("host_mtu", mtu.to_string()),
            None => opt,
        };
        match self.bus {
            // No ROM to boot from the network: firmware would spend seconds on it.
            Bus::Pci { .. } => opt.key("romfile", ""),
            Bus::Ccw => opt,
        }
    }
}
