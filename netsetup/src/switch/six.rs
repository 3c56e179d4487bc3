//! IPv6 in the switch: what a machine may send, and where it goes.
//!
//! A machine talks to others from the one address that it makes of its MAC. From link-local addresses, which kiln
//! cannot know beforehand, it may only find its neighbors and the router. So nobody can pose as a router, or as another
//! machine. Packets with extension headers go nowhere (but fragments), for what is behind them is hidden.

use std::net::Ipv6Addr;
use std::time::Instant;

use super::{PortId, Refusal, Switch, Verdict};
use crate::address6::link_local;
use crate::ether::{self, Ethernet, TCP, UDP};
use crate::ether6::{
    FRAGMENT, ICMPV6, Ipv6, NEIGHBOR_ADVERTISEMENT, NEIGHBOR_SOLICITATION, REDIRECT,
    ROUTER_ADVERTISEMENT, ROUTER_SOLICITATION,
};

/// What may stand behind the header: besides these nothing passes.
pub(crate) const PAYLOADS: [u8; 6] = [TCP, UDP, ICMPV6, FRAGMENT, 50, 132];
/// Ports of DHCPv6's servers and clients.
pub(crate) const DHCP6_SERVER: u16 = 547;
pub(crate) const DHCP6_CLIENT: u16 = 546;

impl Switch {
    /// The port of the machine whose IPv6 address is `ip`.
    fn port_of6(&self, ip: Ipv6Addr) -> Option<PortId> {
        self.by_ip6.get(&ip).copied()
    }

    pub(super) fn judge6(
        &mut self,
        now: Instant,
        port: PortId,
        ethernet: &Ethernet<'_>,
    ) -> Result<Verdict, Refusal> {
        let router = self.router().ok_or(Refusal::Protocol)?;
        let packet = Ipv6::parse(ethernet.payload).ok_or(Refusal::Malformed)?;
        let machine = self.machine(port).ok_or(Refusal::Nobody)?;
        let (mac, own) = (machine.mac, router.subnet.machine(machine.mac));
        guard(&packet, [own, link_local(mac)], router.own())?;
        if let Some(reply) = router.answer_all(mac, &packet) {
            return Ok(Verdict::Reply(reply));
        }
        if let Some(target) = packet.target()
            && packet.icmp() == Some(NEIGHBOR_SOLICITATION)
        {
            // As with ARP: to the one that is asked for, and a question about one's own address to nobody.
            let to = self.port_of6(target).filter(|to| *to != port);
            return to.map(Verdict::To).ok_or(Refusal::Nobody);
        }
        if !ethernet.destination.is_multicast() {
            let to = self.by_mac.get(&ethernet.destination);
            return to.copied().map(Verdict::To).ok_or(Refusal::Nobody);
        }
        if packet.source != own || packet.icmp() == Some(NEIGHBOR_ADVERTISEMENT) {
            return Err(Refusal::Nobody);
        }
        let slot = self.slots.get_mut(port.0).and_then(Option::as_mut);
        match slot.ok_or(Refusal::Nobody)?.broadcasts.take(now) {
            true => Ok(Verdict::Flood),
            false => Err(Refusal::Storm),
        }
    }
}

/// Whether a machine that makes these addresses of its MAC, its own one and that of the link, may say this at all, to
/// whomever; `router` is kiln's link-local address.
fn guard(packet: &Ipv6<'_>, made: [Ipv6Addr; 2], router: Ipv6Addr) -> Result<(), Refusal> {
    let [own, _] = made;
    let kind = packet.icmp();
    if kind == Some(NEIGHBOR_ADVERTISEMENT) {
        // Of another's address it could have that one give it up (RFC 4862, 5.4.4).
        let told = packet.target().ok_or(Refusal::Malformed)?;
        if !made.contains(&told) {
            return Err(Refusal::ForeignAddress);
        }
    }
    let finds = matches!(
        kind,
        Some(ROUTER_SOLICITATION | NEIGHBOR_SOLICITATION | NEIGHBOR_ADVERTISEMENT)
    );
    match packet.source {
        source if source == own => {
            if !PAYLOADS.contains(&packet.next) {
                return Err(Refusal::Protocol);
            }
            if matches!(kind, Some(ROUTER_ADVERTISEMENT | REDIRECT)) {
                return Err(Refusal::Router);
            }
            let ports = || {
                Some((
                    ether::u16_at(packet.payload, 0)?,
                    ether::u16_at(packet.payload, 2)?,
                ))
            };
            if packet.next == UDP
                && let Some((from, to)) = ports()
                && (from == DHCP6_SERVER || to == DHCP6_CLIENT)
            {
                return Err(Refusal::DhcpServer);
            }
            Ok(())
        }
        source if source == router => Err(Refusal::ForeignAddress),
        source if source.is_unicast_link_local() && finds => Ok(()),
        source if source.is_unspecified() && finds => Ok(()),
        source if source.is_unicast_link_local() && kind == Some(ROUTER_ADVERTISEMENT) => {
            Err(Refusal::Router)
        }
        source if source.is_unicast_link_local() => Err(Refusal::Forbidden),
        _ => Err(Refusal::ForeignAddress),
    }
}

#[cfg(test)]
mod tests;
