//! Views of the few protocols that kiln speaks on the wire, and the frames that it writes itself.
//!
//! A view borrows the frame and holds what was checked: a parser returns `None` on anything too short or
//! inconsistent, and must never panic, since each byte comes from a guest. Checksums of received packets are not
//! verified: the frames come through a unix socket, which loses no bits, and whoever they are forwarded to will look.

use std::net::Ipv4Addr;

use macaddr::MacAddr6;

/// Length of an Ethernet header, in bytes.
pub const ETHERNET_HEADER: usize = 14;
/// Length of an IPv4 header without options, in bytes.
pub const IPV4_HEADER: usize = 20;
/// Length of a UDP header, in bytes.
pub const UDP_HEADER: usize = 8;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;

/// IPv4 protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IPv4 protocol number of TCP.
pub const TCP: u8 = 6;
/// IPv4 protocol number of UDP.
pub const UDP: u8 = 17;

/// An Ethernet II frame.
#[derive(Debug, Clone, Copy)]
pub struct Ethernet<'a> {
    /// To whom.
    pub destination: MacAddr6,
    /// From whom.
    pub source: MacAddr6,
    /// The EtherType, or a length below 1536.
    pub kind: u16,
    /// What follows the header, padding included.
    pub payload: &'a [u8],
}

impl<'a> Ethernet<'a> {
    /// Reads the header of `frame`.
    pub fn parse(frame: &'a [u8]) -> Option<Ethernet<'a>> {
        let (header, payload) = frame.split_first_chunk::<ETHERNET_HEADER>()?;
        Some(Ethernet {
            destination: mac_at(header, 0)?,
            source: mac_at(header, 6)?,
            kind: u16_at(header, 12)?,
            payload,
        })
    }
}

/// An ARP packet for IPv4 over Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// Whether it asks; else it answers.
    pub is_request: bool,
    /// MAC of the sender.
    pub sender_mac: MacAddr6,
    /// Address of the sender; 0.0.0.0 in a probe.
    pub sender_ip: Ipv4Addr,
    /// MAC of the target; zeros in a request.
    pub target_mac: MacAddr6,
    /// Address of the target.
    pub target_ip: Ipv4Addr,
}

impl Arp {
    /// Reads an ARP packet from the payload of a frame.
    pub fn parse(payload: &[u8]) -> Option<Arp> {
        let packet = payload.first_chunk::<28>()?;
        // Hardware type Ethernet, protocol IPv4, lengths 6 and 4; then 1 asks and 2 answers.
        if packet[..6] != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        let is_request = match u16_at(packet, 6)? {
            1 => true,
            2 => false,
            _ => return None,
        };
        Some(Arp {
            is_request,
            sender_mac: mac_at(packet, 8)?,
            sender_ip: ip_at(packet, 14)?,
            target_mac: mac_at(packet, 18)?,
            target_ip: ip_at(packet, 24)?,
        })
    }

    /// The frame by which `mac` answers this request as the owner of its target address.
    pub fn answer(&self, mac: MacAddr6) -> Vec<u8> {
        let mut frame = ethernet_header(self.sender_mac, mac, ARP).to_vec();
        frame.extend([0, 1, 8, 0, 6, 4, 0, 2]);
        frame.extend(mac.as_bytes());
        frame.extend(self.target_ip.octets());
        frame.extend(self.sender_mac.as_bytes());
        frame.extend(self.sender_ip.octets());
        frame
    }
}

/// An IPv4 packet, without the padding of its frame.
#[derive(Debug, Clone, Copy)]
pub struct Ipv4<'a> {
    /// From whom.
    pub source: Ipv4Addr,
    /// To whom.
    pub destination: Ipv4Addr,
    /// The number of the protocol inside.
    pub protocol: u8,
    /// Offset of this fragment in its datagram, in units of eight bytes; 0 also in whole datagrams.
    pub fragment_offset: u16,
    /// Whether fragments follow.
    pub more_fragments: bool,
    /// Header with options.
    pub header: &'a [u8],
    /// What the header announces.
    pub payload: &'a [u8],
}

impl<'a> Ipv4<'a> {
    /// Reads an IPv4 packet from the payload of a frame.
    pub fn parse(payload: &'a [u8]) -> Option<Ipv4<'a>> {
        let fixed = payload.first_chunk::<IPV4_HEADER>()?;
        let header_length = usize::from(fixed[0] & 0x0f) * 4;
        let total = usize::from(u16_at(fixed, 2)?);
        if fixed[0] >> 4 != 4 || header_length < IPV4_HEADER || total < header_length {
            return None;
        }
        let (header, payload) = payload.get(..total)?.split_at(header_length);
        let fragment = u16_at(fixed, 6)?;
        Some(Ipv4 {
            source: ip_at(fixed, 12)?,
            destination: ip_at(fixed, 16)?,
            protocol: fixed[9],
            fragment_offset: fragment & 0x1fff,
            more_fragments: fragment & 0x2000 != 0,
            header,
            payload,
        })
    }

    /// Whether this is a part of a larger datagram.
    pub fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset != 0
    }

    /// Whether the header has options, a source route for one.
    pub fn has_options(&self) -> bool {
        self.header.len() > IPV4_HEADER
    }
}

/// A UDP datagram.
#[derive(Debug, Clone, Copy)]
pub struct Udp<'a> {
    /// Port of the sender.
    pub source: u16,
    /// Port of the receiver.
    pub destination: u16,
    /// The data.
    pub payload: &'a [u8],
}

impl<'a> Udp<'a> {
    /// Reads the datagram inside an unfragmented `packet`.
    pub fn parse(packet: &Ipv4<'a>) -> Option<Udp<'a>> {
        if packet.protocol != UDP || packet.is_fragment() {
            return None;
        }
        let (source, destination) = ports(packet)?;
        let length = usize::from(u16_at(packet.payload, 4)?);
        Some(Udp {
            source,
            destination,
            payload: packet.payload.get(UDP_HEADER..length)?,
        })
    }
}

/// Source and destination port of a packet that starts a UDP datagram or TCP segment, cut short or not.
pub fn ports(packet: &Ipv4<'_>) -> Option<(u16, u16)> {
    if packet.fragment_offset != 0 {
        return None;
    }
    Some((u16_at(packet.payload, 0)?, u16_at(packet.payload, 2)?))
}

/// From where to where a datagram goes that kiln writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// MAC of the sender.
    pub source_mac: MacAddr6,
    /// Address of the sender.
    pub source: Ipv4Addr,
    /// MAC of the receiver.
    pub destination_mac: MacAddr6,
    /// Address of the receiver.
    pub destination: Ipv4Addr,
}

/// A whole frame with one UDP datagram in it. `payload` has to fit a packet (65507 bytes); `None` if not.
pub fn udp_frame(path: Path, source: u16, destination: u16, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let mut frame = ipv4_headers(path, UDP, usize::from(length))?;
    let start = frame.len();
    frame.extend(source.to_be_bytes());
    frame.extend(destination.to_be_bytes());
    frame.extend(length.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);

    let mut sum = Checksum::default();
    sum.add(&path.source.octets());
    sum.add(&path.destination.octets());
    sum.add(&[0, UDP]);
    sum.add(&length.to_be_bytes());
    sum.add(&frame[start..]);
    // Zero on the wire says "no checksum"; the other form of zero stands for it.
    let value = match sum.finish() {
        0 => 0xffff,
        value => value,
    };
    frame[start + 6..start + 8].copy_from_slice(&value.to_be_bytes());
    Some(frame)
}

/// A whole frame with one ICMP message in it, whose bytes 2 and 3 are the checksum's and are filled in here.
pub fn icmp_frame(path: Path, message: &[u8]) -> Option<Vec<u8>> {
    let mut frame = ipv4_headers(path, ICMP, message.len())?;
    let start = frame.len();
    frame.extend(message);
    let field = frame.get_mut(start + 2..start + 4)?;
    field.fill(0);
    let value = checksum(&frame[start..]);
    frame[start + 2..start + 4].copy_from_slice(&value.to_be_bytes());
    Some(frame)
}

/// The 14 bytes at the head of a frame.
pub fn ethernet_header(
    destination: MacAddr6,
    source: MacAddr6,
    kind: u16,
) -> [u8; ETHERNET_HEADER] {
    let mut header = [0; ETHERNET_HEADER];
    header[..6].copy_from_slice(destination.as_bytes());
    header[6..12].copy_from_slice(source.as_bytes());
    header[12..].copy_from_slice(&kind.to_be_bytes());
    header
}

/// The Internet checksum (RFC 1071) of `bytes`.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = Checksum::default();
    sum.add(bytes);
    sum.finish()
}

/// A running Internet checksum over pieces, each but the last of even length.
#[derive(Debug, Default)]
pub(crate) struct Checksum(u64);

impl Checksum {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let (pairs, rest) = bytes.as_chunks::<2>();
        for pair in pairs {
            self.0 += u64::from(u16::from_be_bytes(*pair));
        }
        if let [last] = rest {
            self.0 += u64::from(*last) << 8;
        }
    }

    pub(crate) fn finish(&self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap_or(0)
    }
}

fn ipv4_headers(path: Path, protocol: u8, payload: usize) -> Option<Vec<u8>> {
    let total = u16::try_from(IPV4_HEADER + payload).ok()?;
    let mut frame = Vec::with_capacity(ETHERNET_HEADER + usize::from(total));
    frame.extend(ethernet_header(path.destination_mac, path.source_mac, IPV4));
    frame.extend([0x45, 0]);
    frame.extend(total.to_be_bytes());
    // No identification, since it may not be fragmented; 64 hops; no checksum yet.
    frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend(path.source.octets());
    frame.extend(path.destination.octets());
    let value = checksum(&frame[ETHERNET_HEADER..]);
    frame[ETHERNET_HEADER + 10..ETHERNET_HEADER + 12].copy_from_slice(&value.to_be_bytes());
    Some(frame)
}

/// The big-endian number at `at`.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The address at `at`.
pub fn ip_at(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(*bytes.get(at..)?.first_chunk::<4>()?))
}

/// The MAC at `at`.
pub fn mac_at(bytes: &[u8], at: usize) -> Option<MacAddr6> {
    Some(MacAddr6::from(*bytes.get(at..)?.first_chunk::<6>()?))
}

#[cfg(test)]
mod tests;
