//! Which address a machine uses, read off any Ethernet frame: one watcher for every source of frames.
//!
//! A DHCP server's word to a machine and the DHCP, ARP, IPv4 and neighbor discovery packets that come from one all tell.
//! This module only reads; whether a frame may be believed is for whoever hands it in (in the fabric the switch has let
//! it pass). What follows from it for the machine's addresses is for its [`book`].

pub mod book;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use macaddr::MacAddr6;

use crate::dhcp::{self, Kind, Message};
use crate::ether::{ARP, Arp, Ethernet, IPV4, Ipv4, Udp};
use crate::ether6::{IPV6, Ipv6, NEIGHBOR_ADVERTISEMENT, NEIGHBOR_SOLICITATION};

/// A lease that does not end.
const FOREVER: u32 = u32::MAX;

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

/// What one frame tells about a machine's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sighting {
    /// A DHCP server acknowledged it to the machine.
    Leased {
        /// To whom.
        mac: MacAddr6,
        /// The address.
        ip: Ipv4Addr,
        /// For how long; absent: for ever.
        time: Option<Duration>,
        /// Who did.
        server: Option<Ipv4Addr>,
    },
    /// A DHCP server refused the machine the address that it has or wants.
    Refused {
        /// Whom.
        mac: MacAddr6,
    },
    /// The machine gave its lease back, or would not have it.
    GivenUp {
        /// Who did.
        mac: MacAddr6,
        /// The address.
        ip: Ipv4Addr,
        /// Whether it found another one using it.
        declined: bool,
    },
    /// The machine sent a frame with the address as its own.
    Used {
        /// Who did.
        mac: MacAddr6,
        /// The address.
        ip: IpAddr,
    },
}

/// What `frame` says about an address in use. Link-local addresses and probes (no sender address) say nothing.
pub fn observe(frame: &[u8]) -> Option<LeaseEvent> {
    match sight(frame)? {
        Sighting::Leased { mac, ip, .. } => Some(LeaseEvent {
            mac,
            ip: ip.into(),
            source: Source::Lease,
        }),
        Sighting::Used { mac, ip } => Some(LeaseEvent {
            mac,
            ip,
            source: Source::Frames,
        }),
        Sighting::Refused { .. } | Sighting::GivenUp { .. } => None,
    }
}

/// All that `frame` tells about addresses, in use or not any more.
///
/// A solicitation of IPv6 without a sender is how a machine begins to use an address (RFC 4862): it tells too.
pub fn sight(frame: &[u8]) -> Option<Sighting> {
    let ethernet = Ethernet::parse(frame)?;
    let mac = ethernet.source;
    match ethernet.kind {
        ARP => {
            let arp = Arp::parse(ethernet.payload)?;
            used(arp.sender_mac, arp.sender_ip)
        }
        IPV4 => {
            let packet = Ipv4::parse(ethernet.payload)?;
            match Udp::parse(&packet) {
                Some(udp) if udp.source == dhcp::SERVER_PORT => of_server(udp.payload),
                Some(udp) if udp.destination == dhcp::SERVER_PORT => {
                    of_client(udp.payload).or_else(|| used(mac, packet.source))
                }
                _ => used(mac, packet.source),
            }
        }
        IPV6 => {
            let ip = IpAddr::V6(told6(ethernet.payload).filter(|ip| is_usable6(*ip))?);
            Some(Sighting::Used { mac, ip })
        }
        _ => None,
    }
}

fn of_server(payload: &[u8]) -> Option<Sighting> {
    let message = Message::parse(payload).filter(|message| message.is_reply)?;
    let (mac, ip) = (message.mac, message.yours);
    match message.kind {
        Kind::Ack if is_usable(ip) => Some(Sighting::Leased {
            mac,
            ip,
            time: message
                .lease
                .filter(|seconds| *seconds != FOREVER)
                .map(|seconds| Duration::from_secs(seconds.into())),
            server: message.server,
        }),
        Kind::Nak => Some(Sighting::Refused { mac }),
        Kind::Ack
        | Kind::Discover
        | Kind::Offer
        | Kind::Request
        | Kind::Decline
        | Kind::Release
        | Kind::Inform => None,
    }
}

fn of_client(payload: &[u8]) -> Option<Sighting> {
    let message = Message::parse(payload).filter(|message| !message.is_reply)?;
    let given_up = |ip, declined| Sighting::GivenUp {
        mac: message.mac,
        ip,
        declined,
    };
    match message.kind {
        Kind::Release => Some(given_up(message.client, false)),
        Kind::Decline => Some(given_up(message.wanted?, true)),
        Kind::Discover | Kind::Offer | Kind::Request | Kind::Ack | Kind::Nak | Kind::Inform => None,
    }
}

fn used(mac: MacAddr6, ip: Ipv4Addr) -> Option<Sighting> {
    is_usable(ip).then_some(Sighting::Used { mac, ip: ip.into() })
}

fn is_usable(ip: Ipv4Addr) -> bool {
    !ip.is_unspecified()
        && !ip.is_loopback()
        && !ip.is_link_local()
        && !ip.is_multicast()
        && !ip.is_broadcast()
}

fn is_usable6(ip: Ipv6Addr) -> bool {
    !ip.is_unspecified()
        && !ip.is_loopback()
        && !ip.is_multicast()
        && !ip.is_unicast_link_local()
        && ip.to_ipv4_mapped().is_none()
}

/// What a packet of IPv6 tells: neighbor discovery its own subject, all else its sender. A solicitation without a sender
/// is how a machine begins to use an address (RFC 4862), and what a router has passed on is no neighbor's (RFC 4861, 7.1).
fn told6(packet: &[u8]) -> Option<Ipv6Addr> {
    let packet = Ipv6::parse(packet)?;
    match packet.icmp() {
        Some(NEIGHBOR_ADVERTISEMENT) => packet.target(),
        Some(NEIGHBOR_SOLICITATION) if packet.source.is_unspecified() => packet.target(),
        Some(NEIGHBOR_SOLICITATION) if packet.target().is_none() => None,
        Some(_) | None => Some(packet.source),
    }
}

/// The frame that asks the machine whether it has `ip`, in nobody's name (RFC 5227): it answers, and learns nothing.
pub fn question(asker: MacAddr6, machine: MacAddr6, ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = crate::ether::ethernet_header(machine, asker, ARP).to_vec();
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(asker.as_bytes());
    frame.extend([0; 4]);
    frame.extend([0; 6]);
    frame.extend(ip.octets());
    frame
}

#[cfg(test)]
mod tests;
