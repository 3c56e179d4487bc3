//! Links, addresses, routes and neighbors: rtnetlink.
//!
//! The numbers are those of the kernel's `linux/rtnetlink.h`, `if_link.h`, `if_bridge.h` and `neighbour.h`.

pub mod foreign;
pub mod monitor;

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use ipnet::{Ipv4Net, Ipv6Net};
use macaddr::MacAddr6;
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::message::{Attributes, Message, Received, u32_at};
use super::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, Netlink,
    NetlinkError,
};
use crate::link::{Present, Step, Traffic};
use crate::name::IfName;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;

const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const AF_INET6: u16 = 10;
const AF_INET6_FAMILY: u8 = 10;
const IFF_UP: u32 = 1;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_STATS64: u16 = 23;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const IFLA_BRPORT_GUARD: u16 = 5;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IPV4_DEVCONF_FORWARDING: u16 = 1;
const VETH_INFO_PEER: u16 = 1;

const IFA_F_NODAD: u8 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_NOARP: u16 = 0x40;
const NTF_MASTER: u8 = 4;
const NTF_PROXY: u8 = 8;

/// Set and answered.
const DO: u16 = NLM_F_REQUEST | NLM_F_ACK;

/// The links of one network namespace.
#[derive(Debug)]
pub struct Route(Netlink);

/// A way to somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// Where to; a default route is `0.0.0.0/0`.
    pub to: Ipv4Net,
    /// The next hop, taken to be on the link whatever the addresses say.
    pub gateway: Option<Ipv4Addr>,
    /// By which link.
    pub link: IfName,
    /// The sender's address of what this host sends that way.
    pub source: Ipv4Addr,
}

impl Route {
    /// By a socket of `NETLINK_ROUTE` that was made in the namespace.
    ///
    /// # Errors
    /// It is no socket.
    pub fn new(socket: OwnedFd) -> Result<Route, NetlinkError> {
        Netlink::new(socket).map(Route)
    }

    /// The namespace of this process.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn here() -> Result<Route, NetlinkError> {
        Netlink::open(SockProtocol::NetlinkRoute).map(Route)
    }

    /// All links.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn links(&mut self) -> Result<Vec<Present>, NetlinkError> {
        let mut links = Vec::new();
        let message =
            Message::new(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP).fixed(&ifinfo(0, 0, 0, 0));
        self.0.dump(
            || "list links".to_owned(),
            message,
            |answer| links.extend(parse_link(answer)),
        )?;
        Ok(links)
    }

    /// The link called `name`, if there is one.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn link(&mut self, name: &IfName) -> Result<Option<Present>, NetlinkError> {
        self.find(name, parse_link)
    }

    /// What `read` makes of the kernel's answer on the link called `name`; nothing where there is no such link.
    fn find<T>(
        &mut self,
        name: &IfName,
        read: impl Fn(&Received<'_>) -> Option<T>,
    ) -> Result<Option<T>, NetlinkError> {
        let mut found = None;
        let message = Message::new(RTM_GETLINK, DO)
            .fixed(&ifinfo(0, 0, 0, 0))
            .with(IFLA_IFNAME, &name.with_nul());
        let asked = self.0.dump(
            || format!("find link `{name}`"),
            message,
            |answer| found = read(answer),
        );
        match asked {
            Err(error) if error.is(Errno::ENODEV) => Ok(None),
            other => other.map(|()| found),
        }
    }

    /// Does a step.
    ///
    /// # Errors
    /// [`NetlinkError`] says which one.
    pub fn perform(&mut self, step: &Step) -> Result<(), NetlinkError> {
        match step {
            Step::Bridge { name, mac } => self.bridge(name, *mac),
            Step::Silence(name) => self.silence(name),
            Step::Address { name, address } => self.address(name, *address),
            Step::Join { name, bridge } => self.join(name, bridge),
            Step::Address6 { name, address } => self.address6(name, *address),
            Step::Mtu { name, mtu } => self.mtu(name, *mtu),
            Step::Direct { name, mac } => self.direct(name, *mac),
            Step::Up(name) => self.up(name),
        }
    }

    fn bridge(&mut self, name: &IfName, mac: MacAddr6) -> Result<(), NetlinkError> {
        let message = Message::new(RTM_NEWLINK, DO | NLM_F_CREATE | NLM_F_EXCL)
            .fixed(&ifinfo(0, 0, 0, 0))
            .with(IFLA_IFNAME, &name.with_nul())
            .with(IFLA_ADDRESS, mac.as_bytes())
            .nest(IFLA_LINKINFO, |info| {
                info.with(IFLA_INFO_KIND, b"bridge")
                    // Multicast goes to all, as in the fabric: nobody has to ask for it first.
                    .nest(IFLA_INFO_DATA, |data| {
                        data.with(IFLA_BR_MCAST_SNOOPING, &[0])
                    })
            });
        self.0.ask(|| format!("make bridge `{name}`"), message)
    }

    fn silence(&mut self, name: &IfName) -> Result<(), NetlinkError> {
        let index = self.index(name)?;
        let message = Message::new(RTM_SETLINK, DO)
            .fixed(&ifinfo(0, index, 0, 0))
            .nest(IFLA_AF_SPEC, |spec| {
                spec.nest(AF_INET6, |inet6| {
                    inet6.with(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE])
                })
            });
        let asked = self
            .0
            .ask(|| format!("keep IPv6 off link `{name}`"), message);
        match asked {
            // A kernel without IPv6 keeps it off by itself.
            Err(error) if error.is(Errno::EAFNOSUPPORT) => Ok(()),
            other => other,
        }
    }

    fn address(&mut self, name: &IfName, address: Ipv4Net) -> Result<(), NetlinkError> {
        let mut fixed = vec![AF_INET, address.prefix_len(), 0, 0];
        fixed.extend(self.index(name)?.to_ne_bytes());
        let own = address.addr().octets();
        let mut message = Message::new(RTM_NEWADDR, DO | NLM_F_CREATE | NLM_F_REPLACE)
            .fixed(&fixed)
            .with(IFA_LOCAL, &own)
            .with(IFA_ADDRESS, &own);
        if address.prefix_len() < 31 {
            message = message.with(IFA_BROADCAST, &address.broadcast().octets());
        }
        self.0.ask(
            || format!("give link `{name}` the address {address}"),
            message,
        )
    }

    fn address6(&mut self, name: &IfName, address: Ipv6Net) -> Result<(), NetlinkError> {
        let mut fixed = vec![AF_INET6_FAMILY, address.prefix_len(), IFA_F_NODAD, 0];
        fixed.extend(self.index(name)?.to_ne_bytes());
        let message = Message::new(RTM_NEWADDR, DO | NLM_F_CREATE | NLM_F_REPLACE)
            .fixed(&fixed)
            .with(IFA_ADDRESS, &address.addr().octets());
        let asked = self.0.ask(
            || format!("give link `{name}` the address {address}"),
            message,
        );
        match asked {
            // A kernel without IPv6, or one that was told to do without: machines have it among themselves.
            Err(error)
                if [Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP, Errno::EACCES]
                    .iter()
                    .any(|it| error.is(*it)) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    fn join(&mut self, name: &IfName, bridge: &IfName) -> Result<(), NetlinkError> {
        let (index, master) = (self.index(name)?, self.index(bridge)?);
        let message = Message::new(RTM_SETLINK, DO)
            .fixed(&ifinfo(0, index, 0, 0))
            .with(IFLA_MASTER, &master.to_ne_bytes());
        self.0
            .ask(|| format!("make `{name}` a port of `{bridge}`"), message)?;
        let message = Message::new(RTM_SETLINK, DO)
            .fixed(&ifinfo(AF_BRIDGE, index, 0, 0))
            .nest(IFLA_PROTINFO, |port| {
                port.with(IFLA_BRPORT_LEARNING, &[0])
                    .with(IFLA_BRPORT_UNICAST_FLOOD, &[0])
                    .with(IFLA_BRPORT_GUARD, &[1])
            });
        self.0
            .ask(|| format!("keep port `{name}` from learning"), message)
    }

    fn mtu(&mut self, name: &IfName, mtu: u16) -> Result<(), NetlinkError> {
        let index = self.index(name)?;
        let message = Message::new(RTM_SETLINK, DO)
            .fixed(&ifinfo(0, index, 0, 0))
            .with(IFLA_MTU, &u32::from(mtu).to_ne_bytes());
        self.0
            .ask(|| format!("give link `{name}` an MTU of {mtu}"), message)
    }

    fn direct(&mut self, name: &IfName, mac: MacAddr6) -> Result<(), NetlinkError> {
        let index = self.index(name)?;
        // "No ARP" is what a static entry is called; a permanent one would be the bridge's own.
        let message = Message::new(RTM_NEWNEIGH, DO | NLM_F_CREATE | NLM_F_REPLACE)
            .fixed(&neighbor(AF_BRIDGE, index, NUD_NOARP, NTF_MASTER))
            .with(NDA_LLADDR, mac.as_bytes());
        self.0.ask(
            || format!("send frames for {mac} to port `{name}`"),
            message,
        )
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn up(&mut self, name: &IfName) -> Result<(), NetlinkError> {
        let index = self.index(name)?;
        let message = Message::new(RTM_SETLINK, DO).fixed(&ifinfo(0, index, IFF_UP, IFF_UP));
        self.0.ask(|| format!("set link `{name}` up"), message)
    }

    /// Sets a link down.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn down(&mut self, name: &IfName) -> Result<(), NetlinkError> {
        let index = self.index(name)?;
        let message = Message::new(RTM_SETLINK, DO).fixed(&ifinfo(0, index, 0, IFF_UP));
        self.0.ask(|| format!("set link `{name}` down"), message)
    }

    /// Makes a pair of links, `name` and `peer`, of which `peer` is marked with `alias`.
    ///
    /// # Errors
    /// [`NetlinkError`], with `EEXIST` where there is a link of either name.
    pub fn pair(&mut self, name: &IfName, peer: &IfName, alias: &str) -> Result<(), NetlinkError> {
        let message = Message::new(RTM_NEWLINK, DO | NLM_F_CREATE | NLM_F_EXCL)
            .fixed(&ifinfo(0, 0, 0, 0))
            .with(IFLA_IFNAME, &name.with_nul())
            .nest(IFLA_LINKINFO, |info| {
                info.with(IFLA_INFO_KIND, b"veth")
                    .nest(IFLA_INFO_DATA, |data| {
                        data.nest(VETH_INFO_PEER, |other| {
                            other
                                .fixed(&ifinfo(0, 0, 0, 0))
                                .with(IFLA_IFNAME, &peer.with_nul())
                        })
                    })
            });
        self.0.ask(|| format!("make link `{name}`"), message)?;
        let index = self.index(peer)?;
        let message = Message::new(RTM_SETLINK, DO)
            .fixed(&ifinfo(0, index, 0, 0))
            .with(IFLA_IFALIAS, alias.as_bytes());
        self.0.ask(|| format!("mark link `{peer}`"), message)
    }

    /// Moves a link into the network namespace `to`.
    ///
    /// # Errors
    /// [`NetlinkError`], with `EEXIST` where there is a link of that name there.
    pub fn relocate(&mut self, name: &IfName, to: BorrowedFd<'_>) -> Result<(), NetlinkError> {
        let index = self.index(name)?;
        let message = Message::new(RTM_SETLINK, DO)
            .fixed(&ifinfo(0, index, 0, 0))
            .with(IFLA_NET_NS_FD, &to.as_raw_fd().to_ne_bytes());
        self.0
            .ask(|| format!("move link `{name}` to the host"), message)
    }

    /// Removes a link, if it is there; its pair goes with it.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn delete(&mut self, name: &IfName) -> Result<(), NetlinkError> {
        let message = Message::new(RTM_DELLINK, DO)
            .fixed(&ifinfo(0, 0, 0, 0))
            .with(IFLA_IFNAME, &name.with_nul());
        match self.0.ask(|| format!("remove link `{name}`"), message) {
            Err(error) if error.is(Errno::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Has packets that come in by this link routed on, or not.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn forward(&mut self, name: &IfName, on: bool) -> Result<(), NetlinkError> {
        let index = self.index(name)?;
        let message = Message::new(RTM_SETLINK, DO)
            .fixed(&ifinfo(0, index, 0, 0))
            .nest(IFLA_AF_SPEC, |spec| {
                spec.nest(u16::from(AF_INET), |inet| {
                    inet.nest(IFLA_INET_CONF, |conf| {
                        conf.with(IPV4_DEVCONF_FORWARDING, &u32::from(on).to_ne_bytes())
                    })
                })
            });
        self.0
            .ask(|| format!("change whether link `{name}` forwards"), message)
    }

    /// Adds a route, or changes the one that there is.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn route(&mut self, way: &Way) -> Result<(), NetlinkError> {
        let (scope, flags) = match way.gateway {
            Some(_) => (0, RTNH_F_ONLINK),
            None => (253, 0),
        };
        let mut fixed = vec![AF_INET, way.to.prefix_len(), 0, 0];
        fixed.extend([RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST]);
        fixed.extend(flags.to_ne_bytes());
        let mut message = Message::new(RTM_NEWROUTE, DO | NLM_F_CREATE | NLM_F_REPLACE)
            .fixed(&fixed)
            .with(RTA_DST, &way.to.network().octets())
            .with(RTA_OIF, &self.index(&way.link)?.to_ne_bytes())
            .with(RTA_PREFSRC, &way.source.octets());
        if let Some(gateway) = way.gateway {
            message = message.with(RTA_GATEWAY, &gateway.octets());
        }
        self.0.ask(
            || format!("route {} by link `{}`", way.to, way.link),
            message,
        )
    }

    /// Gives link `name` an address of its own.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn host_address(&mut self, name: &IfName, ip: Ipv4Addr) -> Result<(), NetlinkError> {
        self.address(name, Ipv4Net::from(ip))
    }

    /// Has ARP questions for `ip` that come in by link `name` answered here.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn answer_for(&mut self, name: &IfName, ip: Ipv4Addr) -> Result<(), NetlinkError> {
        let index = self.index(name)?;
        let message = Message::new(RTM_NEWNEIGH, DO | NLM_F_CREATE | NLM_F_REPLACE)
            .fixed(&neighbor(AF_INET, index, 0, NTF_PROXY))
            .with(NDA_DST, &ip.octets());
        self.0
            .ask(|| format!("answer for {ip} on link `{name}`"), message)
    }

    /// The numbers of the links that IPv4's default routes go by.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn default_links(&mut self) -> Result<Vec<u32>, NetlinkError> {
        let mut links = Vec::new();
        let mut fixed = [0; 12];
        fixed[0] = AF_INET;
        let message = Message::new(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP).fixed(&fixed);
        self.0.dump(
            || "list routes".to_owned(),
            message,
            |answer| {
                let is_default = answer.kind == RTM_NEWROUTE
                    && answer.payload.get(1) == Some(&0)
                    && answer.payload.get(4) == Some(&RT_TABLE_MAIN);
                let attributes = Attributes(answer.payload.get(12..).unwrap_or_default());
                if is_default && let Some(index) = attributes.find(RTA_OIF) {
                    links.extend(u32_at(index, 0));
                }
            },
        )?;
        links.sort_unstable();
        links.dedup();
        Ok(links)
    }

    fn index(&mut self, name: &IfName) -> Result<u32, NetlinkError> {
        let link = self.link(name)?;
        link.map(|link| link.index)
            .ok_or_else(|| NetlinkError::Refused {
                act: format!("find link `{name}`"),
                source: Errno::ENODEV.into(),
            })
    }
}

fn ifinfo(family: u8, index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut bytes = vec![family, 0, 0, 0];
    for word in [index, flags, change] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

fn neighbor(family: u8, index: u32, state: u16, flags: u8) -> Vec<u8> {
    let mut bytes = vec![family, 0, 0, 0];
    bytes.extend(index.to_ne_bytes());
    bytes.extend(state.to_ne_bytes());
    bytes.extend([flags, 0]);
    bytes
}

fn parse_link(answer: &Received<'_>) -> Option<Present> {
    if answer.kind != RTM_NEWLINK {
        return None;
    }
    let attributes = Attributes(answer.payload.get(16..)?);
    let text = |bytes: &[u8]| {
        Some(
            str::from_utf8(bytes)
                .ok()?
                .trim_end_matches('\0')
                .to_owned(),
        )
    };
    let conf = attributes.find(IFLA_AF_SPEC).and_then(|spec| {
        Attributes(Attributes(spec).find(u16::from(AF_INET))?).find(IFLA_INET_CONF)
    });
    Some(Present {
        index: u32_at(answer.payload, 4)?,
        name: text(attributes.find(IFLA_IFNAME)?)?.parse().ok()?,
        master: attributes
            .find(IFLA_MASTER)
            .and_then(|bytes| u32_at(bytes, 0)),
        up: u32_at(answer.payload, 8)? & IFF_UP != 0,
        alias: attributes.find(IFLA_IFALIAS).and_then(text),
        // The values in the order of their numbers, which count from 1.
        forwards: conf
            .and_then(|conf| u32_at(conf, 0))
            .is_some_and(|on| on != 0),
        traffic: attributes
            .find(IFLA_STATS64)
            .and_then(parse_traffic)
            .unwrap_or_default(),
    })
}

/// The first words of `rtnl_link_stats64`.
fn parse_traffic(bytes: &[u8]) -> Option<Traffic> {
    let word = |index: usize| -> Option<u64> {
        Some(u64::from_ne_bytes(*bytes.get(8 * index..)?.first_chunk()?))
    };
    Some(Traffic {
        received: word(0)?,
        sent: word(1)?,
        received_bytes: word(2)?,
        sent_bytes: word(3)?,
        dropped: word(6)?.saturating_add(word(7)?),
    })
}
