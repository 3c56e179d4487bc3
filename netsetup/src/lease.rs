//! Which address a machine uses, read off any Ethernet frame: one watcher for every source of frames.
//!
//! A DHCP ACK that goes to a machine and the ARP and IPv4 packets that come from one both tell. This module only
//! reads; whether a frame may be believed is for whoever hands it in (in the fabric the switch has let it pass).

use std::net::Ipv4Addr;

use macaddr::MacAddr6;

use crate::dhcp::{self, Kind, Message};
use crate::ether::{ARP, Arp, Ethernet, IPV4, Ipv4, Udp};

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
    pub ip: Ipv4Addr,
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
        _ => return None,
    };
    let usable =
        !ip.is_unspecified() && !ip.is_link_local() && !ip.is_multicast() && !ip.is_broadcast();
    usable.then_some(LeaseEvent { mac, ip, source })
}

#[cfg(test)]
mod tests;
