//! The router of a cluster's IPv6 network: what it answers to neighbor discovery (RFC 4861). Pure.
//!
//! It tells machines the prefix, in which each makes its address of its MAC. It is no default router, since no way leads
//! out by IPv6, so programs there do not even try one. What it tells holds for ever and depends on nothing that changes:
//! it is told to whoever asks, and nothing is ever told unasked. Nothing here keeps state or learns from a machine.
//!
//! A machine that tries another address in the prefix (one of random or "stable private" interface identifiers, RFC
//! 7217) is told that it is in use: it could not send from it, so it had better have none.

use std::net::Ipv6Addr;

use macaddr::MacAddr6;

use crate::address6::{Subnet6, link_local};
use crate::ether6::{
    ECHO_REPLY, ECHO_REQUEST, Ipv6, NEIGHBOR_ADVERTISEMENT, NEIGHBOR_SOLICITATION, Path6,
    ROUTER_ADVERTISEMENT, ROUTER_SOLICITATION, icmp6_frame,
};

/// All hosts of a link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The router of one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Router {
    /// The network.
    pub subnet: Subnet6,
    /// MAC of kiln itself.
    pub mac: MacAddr6,
    /// The MTU to announce, where it is not Ethernet's 1500.
    pub mtu: Option<u16>,
}

impl Router {
    /// kiln's own link-local address, which it speaks from.
    pub fn own(&self) -> Ipv6Addr {
        link_local(self.mac)
    }

    /// The frame that answers what the machine with this MAC asks in `packet`: for the prefix, or for an address that it
    /// must not have.
    pub fn answer(&self, machine: MacAddr6, packet: &Ipv6<'_>) -> Option<Vec<u8>> {
        match packet.icmp()? {
            ROUTER_SOLICITATION if packet.hops == 255 => {
                let to = match packet.source.is_unspecified() {
                    true => ALL_NODES,
                    false => packet.source,
                };
                self.send(machine, to, self.own(), &self.advertisement())
            }
            NEIGHBOR_SOLICITATION if packet.source.is_unspecified() => {
                let target = packet.target()?;
                let is_ours =
                    self.subnet.contains(target) && target != self.subnet.machine(machine);
                (is_ours || target == self.own()).then(|| self.have(machine, ALL_NODES, target))?
            }
            _ => None,
        }
    }

    /// As [`Router::answer`], and what a kernel would answer in kiln's own name besides: where kiln is, and pings.
    pub fn answer_all(&self, machine: MacAddr6, packet: &Ipv6<'_>) -> Option<Vec<u8>> {
        let mine = [self.own(), self.subnet.gateway()];
        match packet.icmp()? {
            NEIGHBOR_SOLICITATION if !packet.source.is_unspecified() => {
                let target = packet.target().filter(|target| mine.contains(target))?;
                self.have(machine, packet.source, target)
            }
            ECHO_REQUEST if mine.contains(&packet.destination) => {
                let echo = [&[ECHO_REPLY, 0], packet.payload.get(2..)?].concat();
                self.send(machine, packet.source, packet.destination, &echo)
            }
            _ => self.answer(machine, packet),
        }
    }

    /// "`target` is at kiln's MAC": solicited where somebody asked by an address, and stronger than what is believed.
    fn have(&self, machine: MacAddr6, to: Ipv6Addr, target: Ipv6Addr) -> Option<Vec<u8>> {
        let flags = if to == ALL_NODES { 0x20 } else { 0x60 };
        let mut message = vec![NEIGHBOR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
        message.extend(target.octets());
        message.extend([2, 1]);
        message.extend(self.mac.as_bytes());
        self.send(machine, to, target, &message)
    }

    fn advertisement(&self) -> Vec<u8> {
        // 64 hops; no DHCPv6; a router lifetime of zero: no default router; other times are the hosts' own.
        let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, 0, 0, 0];
        message.extend([0; 8]);
        // The prefix: on this link, for addresses of one's own making, for ever.
        message.extend([3, 4, self.subnet.net().prefix_len(), 0xc0]);
        message.extend([0xff; 8]);
        message.extend([0; 4]);
        message.extend(self.subnet.net().network().octets());
        if let Some(mtu) = self.mtu {
            message.extend([5, 1, 0, 0]);
            message.extend(u32::from(mtu).to_be_bytes());
        }
        message.extend([1, 1]);
        message.extend(self.mac.as_bytes());
        message
    }

    fn send(
        &self,
        machine: MacAddr6,
        to: Ipv6Addr,
        from: Ipv6Addr,
        message: &[u8],
    ) -> Option<Vec<u8>> {
        let path = Path6 {
            source_mac: self.mac,
            source: from,
            // To this machine alone, whatever address it listens on.
            destination_mac: machine,
            destination: to,
        };
        icmp6_frame(path, message)
    }
}

#[cfg(test)]
mod tests;
