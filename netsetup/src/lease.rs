//! Which address a machine uses, read off any Ethernet frame: one watcher for every source of frames.
//!
//! A DHCP ACK that goes to a machine and the ARP and IPv4 packets that come from one both tell. This module only
//! reads; whether a frame may be believed is for whoever hands it in (in the fabric the switch has let it pass).

use std::net::IpAddr;

use macaddr::MacAddr6;

use crate::dhcp::{self, Kind, Message};
use crate::ether::{ARP, Arp, Ethernet, IPV4, Ipv4, Udp};
use crate::ether6::{IPV6, Ipv6, NEIGHBOR_SOLICITATION};

/// Where an address was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// A DHCP server acknowledged it.
    Lease,
    /// The machine sent a frame with it.
    Frames,
}

/// An address seen in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseEvent {
    /// By whom.
    pub mac: MacAddr6,
    /// The address.
    pub ip: IpAddr,
    /// How it is known.
    pub source: Source,
}

/// What `frame` says about an address in use. Link-local addresses and probes (no sender address) say nothing.
pub fn observe(frame: &[u8]) -> Option<LeaseEvent> {
    let ethernet = Ethernet::parse(frame)?;
    let (mac, ip, source) = match ethernet.kind {
        ARP => {
            let arp = Arp::parse(ethernet.payload)?;
            (arp.sender_mac, arp.sender_ip, Source::Frames)
        }
        IPV4 => {
            let packet = Ipv4::parse(ethernet.payload)?;
            match Udp::parse(&packet) {
                Some(udp) if udp.source == dhcp::SERVER_PORT => {
                    let message = Message::parse(udp.payload)?;
                    if !message.is_reply || message.kind != Kind::Ack {
                        return None;
                    }
                    (message.mac, message.yours, Source::Lease)
                }
                _ => (ethernet.source, packet.source, Source::Frames),
            }
        }
        IPV6 => return observe6(&ethernet),
        _ => return None,
    };
    let usable =
        !ip.is_unspecified() && !ip.is_link_local() && !ip.is_multicast() && !ip.is_broadcast();
    let ip = ip.into();
    usable.then_some(LeaseEvent { mac, ip, source })
}

/// Whoever asks whether an address is free has it a second later, if nobody says no; and says nothing in its name for
/// long, if nobody speaks to it.
fn observe6(ethernet: &Ethernet<'_>) -> Option<LeaseEvent> {
    let packet = Ipv6::parse(ethernet.payload)?;
    let ip = match packet.source.is_unspecified() {
        true if packet.icmp() == Some(NEIGHBOR_SOLICITATION) => packet.target()?,
        true | false => packet.source,
    };
    let usable = !ip.is_unspecified() && !ip.is_unicast_link_local() && !ip.is_multicast();
    usable.then_some(LeaseEvent {
        mac: ethernet.source,
        ip: ip.into(),
        source: Source::Frames,
    })
}

#[cfg(test)]
mod tests;
