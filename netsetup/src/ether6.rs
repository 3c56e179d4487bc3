//! IPv6 on the wire, as [`crate::ether`] has IPv4: views of hostile bytes, and the frames that kiln writes.
//!
//! Extension headers are not followed: whoever decides over a packet that has one decides by its being there.

use std::net::Ipv6Addr;

use macaddr::MacAddr6;

use crate::ether::{Checksum, ETHERNET_HEADER, ethernet_header, u16_at};

/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// Length of an IPv6 header, in bytes.
pub const IPV6_HEADER: usize = 40;
/// Next header: a fragment of a larger packet.
pub const FRAGMENT: u8 = 44;
/// Next header: ICMPv6.
pub const ICMPV6: u8 = 58;

/// ICMPv6's types of neighbor discovery (RFC 4861, section 4), and its echo.
pub const ECHO_REQUEST: u8 = 128;
pub const ECHO_REPLY: u8 = 129;
pub const ROUTER_SOLICITATION: u8 = 133;
pub const ROUTER_ADVERTISEMENT: u8 = 134;
pub const NEIGHBOR_SOLICITATION: u8 = 135;
pub const NEIGHBOR_ADVERTISEMENT: u8 = 136;
pub const REDIRECT: u8 = 137;

/// Whether a frame has IPv6 in it, or says so.
pub fn is_ipv6(frame: &[u8]) -> bool {
    u16_at(frame, 12) == Some(IPV6)
}

/// An IPv6 packet, without the padding of its frame.
#[derive(Debug, Clone, Copy)]
pub struct Ipv6<'a> {
    /// From whom.
    pub source: Ipv6Addr,
    /// To whom.
    pub destination: Ipv6Addr,
    /// What the payload is.
    pub next: u8,
    /// Routers that it may still pass: 255 where it passed none.
    pub hops: u8,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Ipv6<'a> {
    /// Reads a packet from the payload of a frame.
    pub fn parse(payload: &'a [u8]) -> Option<Ipv6<'a>> {
        let (header, rest) = payload.split_first_chunk::<IPV6_HEADER>()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let length = usize::from(u16_at(header, 4)?);
        Some(Ipv6 {
            source: ip6_at(header, 8)?,
            destination: ip6_at(header, 24)?,
            next: header[6],
            hops: header[7],
            payload: rest.get(..length)?,
        })
    }

    /// The type of its ICMPv6 message, if it is one.
    pub fn icmp(&self) -> Option<u8> {
        match self.next {
            ICMPV6 => self.payload.first().copied(),
            _ => None,
        }
    }

    /// Whom a neighbor solicitation asks for, or an advertisement tells of. Such a message has not passed a router.
    pub fn target(&self) -> Option<Ipv6Addr> {
        match self.icmp()? {
            NEIGHBOR_SOLICITATION | NEIGHBOR_ADVERTISEMENT if self.hops == 255 => {
                ip6_at(self.payload, 8)
            }
            _ => None,
        }
    }
}

/// From where to where a packet goes that kiln writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path6 {
    /// MAC of the sender.
    pub source_mac: MacAddr6,
    /// Address of the sender.
    pub source: Ipv6Addr,
    /// MAC of the receiver.
    pub destination_mac: MacAddr6,
    /// Address of the receiver.
    pub destination: Ipv6Addr,
}

/// A whole frame with one ICMPv6 message in it, whose bytes 2 and 3 are the checksum's and are filled in here.
pub fn icmp6_frame(path: Path6, message: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(message.len()).ok()?;
    let mut frame = Vec::with_capacity(ETHERNET_HEADER + IPV6_HEADER + message.len());
    frame.extend(ethernet_header(path.destination_mac, path.source_mac, IPV6));
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([ICMPV6, 255]);
    frame.extend(path.source.octets());
    frame.extend(path.destination.octets());
    let start = frame.len();
    frame.extend(message);
    let field = frame.get_mut(start + 2..start + 4)?;
    field.fill(0);
    let mut sum = Checksum::default();
    sum.add(&path.source.octets());
    sum.add(&path.destination.octets());
    sum.add(&u32::from(length).to_be_bytes());
    sum.add(&[0, 0, 0, ICMPV6]);
    sum.add(&frame[start..]);
    let value = sum.finish().to_be_bytes();
    frame[start + 2..start + 4].copy_from_slice(&value);
    Some(frame)
}

/// The address at `at`.
pub fn ip6_at(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    Some(Ipv6Addr::from(*bytes.get(at..)?.first_chunk::<16>()?))
}
