//! A DHCP server (RFC 2131) that knows all its machines: a request in, at most one reply out, nothing remembered.
//!
//! Who gets which address is read from the reservations by the client's MAC, so there is no pool to drain and no
//! lease to expire wrongly. Client identifiers are ignored: a guest that was installed anew keeps its address.
//! This module must not hold state or learn anything from a client.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use macaddr::MacAddr6;

use crate::address::{Reservation, Subnet};
use crate::ether::{self, Path, ip_at, mac_at};
use crate::settings::{Route, Settings};

/// Port of a DHCP server.
pub const SERVER_PORT: u16 = 67;
/// Port of a DHCP client.
pub const CLIENT_PORT: u16 = 68;

/// Length of a lease, in seconds: thirty days, because the address is the machine's anyway, and a machine whose
/// supervisor was killed must keep it until the next command.
const LEASE: u32 = 30 * 24 * 3600;

/// Length of a message up to its options: BOOTP's fields and the magic cookie.
const FIXED: usize = 240;
/// What marks BOOTP's vendor field as DHCP options.
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// The least length of a reply; some clients drop shorter ones, as BOOTP let them.
const LEAST: usize = 300;

/// What a cluster's machines are told besides their address.
#[derive(Debug, Clone)]
pub struct Server {
    /// The cluster's subnet; its gateway is the server, the router and the name server.
    pub subnet: Subnet,
    /// MAC of the gateway.
    pub mac: MacAddr6,
    /// What else they are told.
    pub settings: Settings,
}

/// DHCP message types (option 53) that are met or made here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Discover,
    Offer,
    Request,
    Decline,
    Ack,
    Nak,
    Release,
    Inform,
}

/// A DHCP message in the parts that matter here.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    pub(crate) is_reply: bool,
    pub(crate) kind: Kind,
    transaction: &'a [u8],
    flags: &'a [u8],
    pub(crate) client: Ipv4Addr,
    pub(crate) yours: Ipv4Addr,
    relay: Ipv4Addr,
    pub(crate) mac: MacAddr6,
    pub(crate) wanted: Option<Ipv4Addr>,
    pub(crate) server: Option<Ipv4Addr>,
    /// Length of the lease, in seconds; all ones is for ever.
    pub(crate) lease: Option<u32>,
}

impl Server {
    /// Answers the DHCP message in `request` (the data of a UDP datagram) by a whole frame. `find` says which
    /// reservation a MAC has; who has none gets no answer.
    ///
    /// A wrong address is refused by a NAK, so that a client that kept it from another network asks anew at once.
    pub fn answer<'a>(
        &self,
        request: &[u8],
        find: impl FnOnce(MacAddr6) -> Option<&'a Reservation>,
    ) -> Option<Vec<u8>> {
        let request = Message::parse(request)?;
        if request.is_reply || !request.relay.is_unspecified() {
            return None;
        }
        let machine = find(request.mac)?;
        let gateway = self.subnet.gateway();
        let kind = match request.kind {
            Kind::Discover => Kind::Offer,
            Kind::Inform => Kind::Ack,
            Kind::Request if request.server.is_some_and(|server| server != gateway) => return None,
            Kind::Request => match request.wanted.unwrap_or(request.client) {
                wanted if wanted == machine.ip => Kind::Ack,
                Ipv4Addr::UNSPECIFIED => return None,
                _ => Kind::Nak,
            },
            // The address stays the machine's, whatever it says of it; the others are a server's.
            Kind::Decline | Kind::Release | Kind::Offer | Kind::Ack | Kind::Nak => return None,
        };
        let reply = self.reply(kind, &request, machine);
        // RFC 2131, 4.1: to the client's address where it has one, else to all, since it may not yet hear its own.
        let unicast = kind != Kind::Nak && request.client == machine.ip;
        let path = Path {
            source_mac: self.mac,
            source: gateway,
            destination_mac: if unicast {
                machine.mac
            } else {
                MacAddr6::broadcast()
            },
            destination: if unicast {
                machine.ip
            } else {
                Ipv4Addr::BROADCAST
            },
        };
        ether::udp_frame(path, SERVER_PORT, CLIENT_PORT, &reply)
    }

    /// Routes as RFC 3442 writes them. Whoever reads them no longer looks at the router's option, so the default route
    /// is among them.
    fn routes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.settings.routes.is_empty() {
            return bytes;
        }
        let default = Route {
            to: Ipv4Net::default(),
            via: self.subnet.gateway(),
        };
        let default = (!self.settings.isolated).then_some(default);
        for Route { to, via } in self.settings.routes.iter().copied().chain(default) {
            let significant = usize::from(to.prefix_len().div_ceil(8));
            bytes.push(to.prefix_len());
            bytes.extend(&to.network().octets()[..significant]);
            bytes.extend(via.octets());
        }
        bytes
    }

    fn reply(&self, kind: Kind, request: &Message<'_>, machine: &Reservation) -> Vec<u8> {
        let informs = request.kind == Kind::Inform;
        let yours = match kind == Kind::Nak || informs {
            true => Ipv4Addr::UNSPECIFIED,
            false => machine.ip,
        };
        let gateway = self.subnet.gateway().octets();
        let mut reply = vec![2, 1, 6, 0];
        reply.extend(request.transaction);
        reply.extend([0, 0]);
        reply.extend(request.flags);
        reply.extend(
            if kind == Kind::Nak {
                Ipv4Addr::UNSPECIFIED
            } else {
                request.client
            }
            .octets(),
        );
        reply.extend(yours.octets());
        reply.extend([0; 8]);
        reply.extend(machine.mac.as_bytes());
        reply.resize(FIXED - COOKIE.len(), 0);
        reply.extend(COOKIE);

        option(&mut reply, 53, &[kind.number()]);
        option(&mut reply, 54, &gateway);
        if kind != Kind::Nak {
            if !informs {
                option(&mut reply, 51, &LEASE.to_be_bytes());
            }
            option(&mut reply, 1, &self.subnet.mask().octets());
            option(&mut reply, 28, &self.subnet.broadcast().octets());
            // Who has no way out is told of none, so that a program there fails at once.
            if !self.settings.isolated {
                option(&mut reply, 3, &gateway);
            }
            option(&mut reply, 6, &gateway);
            option(&mut reply, 12, machine.name.as_bytes());
            option(&mut reply, 15, self.settings.domain.as_bytes());
            option(&mut reply, 119, &labels(&self.settings.domain));
            option(&mut reply, 121, &self.routes());
            if let Some(mtu) = self.settings.mtu {
                option(&mut reply, 26, &mtu.to_be_bytes());
            }
        }
        reply.push(255);
        let length = reply.len().max(LEAST);
        reply.resize(length, 0);
        reply
    }
}

impl<'a> Message<'a> {
    /// Reads a message; `None` for plain BOOTP and for whatever else is not DHCP over Ethernet.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Message<'a>> {
        let (fixed, mut options) = bytes.split_at_checked(FIXED)?;
        if fixed[1..3] != [1, 6] || fixed[FIXED - 4..] != COOKIE {
            return None;
        }
        let (mut kind, mut wanted, mut server, mut lease) = (None, None, None, None);
        while let [code, rest @ ..] = options {
            match code {
                0 => {
                    options = rest;
                    continue;
                }
                255 => break,
                _ => {}
            }
            let (length, rest) = rest.split_first()?;
            let (value, rest) = rest.split_at_checked(usize::from(*length))?;
            match code {
                50 => wanted = Some(ip_at(value, 0)?),
                51 => lease = Some(u32::from_be_bytes(*value.first_chunk()?)),
                53 => kind = Some(Kind::from_number(*value.first()?)?),
                54 => server = Some(ip_at(value, 0)?),
                _ => {}
            }
            options = rest;
        }
        Some(Message {
            is_reply: match fixed[0] {
                1 => false,
                2 => true,
                _ => return None,
            },
            kind: kind?,
            transaction: &fixed[4..8],
            flags: &fixed[10..12],
            client: ip_at(fixed, 12)?,
            yours: ip_at(fixed, 16)?,
            relay: ip_at(fixed, 24)?,
            mac: mac_at(fixed, 28)?,
            wanted,
            server,
            lease,
        })
    }
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Kind::Discover => 1,
            Kind::Offer => 2,
            Kind::Request => 3,
            Kind::Decline => 4,
            Kind::Ack => 5,
            Kind::Nak => 6,
            Kind::Release => 7,
            Kind::Inform => 8,
        }
    }

    fn from_number(number: u8) -> Option<Kind> {
        Some(match number {
            1 => Kind::Discover,
            2 => Kind::Offer,
            3 => Kind::Request,
            4 => Kind::Decline,
            5 => Kind::Ack,
            6 => Kind::Nak,
            7 => Kind::Release,
            8 => Kind::Inform,
            _ => return None,
        })
    }
}

/// Appends an option, or nothing where its value is empty or longer than the one byte of length can say.
fn option(reply: &mut Vec<u8>, code: u8, value: &[u8]) {
    if let Ok(length @ 1..) = u8::try_from(value.len()) {
        reply.extend([code, length]);
        reply.extend(value);
    }
}

/// A domain as DNS writes it: each label behind its length, and an empty one at the end.
fn labels(domain: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(domain.len() + 2);
    for label in domain.split('.') {
        let Ok(length @ 1..=63) = u8::try_from(label.len()) else {
            return Vec::new();
        };
        bytes.push(length);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests;
