//! The switch and gateway of a cluster: a frame on a port, and out comes where it goes.
//!
//! Nothing is learned from traffic. Who has which MAC and address is known from the reservations, so the first frame
//! of a machine is already held to them, and a frame for a machine goes to that machine's port alone:
//!
//! ```text
//! machine ── own MAC, own IPv4? ──┬─ for a machine's MAC ───────▶ To(port)
//!                                 ├─ ARP question ──────────────▶ To(port of whoever is asked for), or Reply for kiln
//!                                 ├─ for kiln: DHCP, DNS, ping ─▶ Reply or Ask;  TCP ▶ Tcp
//!                                 ├─ for an address outside ────▶ Uplink, or Reply (ICMP) for a forbidden one
//!                                 └─ broadcast, multicast ──────▶ Flood, as far as the storm limit lets it
//! uplink  ── IPv4 for a machine ────────────────────────────────▶ To(port);  ARP question ▶ Reply
//! ```
//!
//! An ARP question is not flooded but handed to the one machine that is asked for, which answers itself: so the answer
//! is true (none from a machine that is down), and nobody else is disturbed. IPv6 does not pass. A machine has one
//! address, an IPv4 one, and what IPv6 would add on a link without a router are only ways to pose as another machine
//! (router advertisements, redirects, neighbor discovery that nothing vouches for).
//!
//! The gateway does not count down TTLs: it is the only router between a machine and slirp, so no loop can be made of
//! it, and a machine sees the hops that it would see behind slirp alone.
//!
//! This module must not know sockets, queues or clocks; time comes in as an argument.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Instant;

use macaddr::MacAddr6;

use crate::address::{self, Reservation, Subnet};
use crate::dhcp;
use crate::dns::Zone;
use crate::ether::{self, ARP, Arp, ETHERNET_HEADER, Ethernet, IPV4, Ipv4, Udp};
use crate::settings::Settings;
use bucket::Bucket;

mod bucket;
mod gateway;

pub use gateway::DnsQuery;

/// A machine's port. Numbers are small and used again after a machine is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(usize);

impl PortId {
    pub(crate) fn new(index: usize) -> PortId {
        PortId(index)
    }

    /// The number, fit as an index.
    pub fn index(self) -> usize {
        self.0
    }
}

/// What the switch is for.
#[derive(Debug, Clone)]
pub struct SwitchConfig {
    /// The cluster's subnet.
    pub subnet: Subnet,
    /// MAC of kiln itself.
    pub gateway_mac: MacAddr6,
    /// What the machines are told.
    pub settings: Settings,
}

/// What to do with a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Drop(Refusal),
    /// Send it, perhaps changed in place, to this machine.
    To(PortId),
    /// Send it to every machine but the one that it is from.
    Flood,
    /// Send it, changed in place, to the uplink.
    Uplink,
    /// Send this frame back to where the other came from.
    Reply(Vec<u8>),
    /// Hand the IPv4 packet inside to the gateway's TCP stack.
    Tcp,
    /// Ask a resolver, and answer by [`Switch::dns_reply`].
    Ask(DnsQuery),
}

/// Why a frame goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// Not what its headers say.
    Malformed,
    /// The sender's MAC is not the port's.
    ForeignMac,
    /// The sender's address is not the port's.
    ForeignAddress,
    /// A machine played DHCP server.
    DhcpServer,
    /// A protocol that does not pass: IPv6, VLAN tags, anything but ARP and IPv4.
    Protocol,
    /// A packet that is kept in on purpose.
    Forbidden,
    /// More broadcasts than a machine may send.
    Storm,
    /// Nobody has this address, or nobody there wants this packet.
    Nobody,
}

/// The switch of one cluster.
#[derive(Debug)]
pub struct Switch {
    config: SwitchConfig,
    slots: Vec<Option<Slot>>,
    by_mac: HashMap<MacAddr6, PortId>,
    by_ip: HashMap<Ipv4Addr, PortId>,
    zone: Zone,
    dhcp: dhcp::Server,
}

#[derive(Debug)]
struct Slot {
    machine: Reservation,
    broadcasts: Bucket,
}

impl Switch {
    /// A switch without machines.
    pub fn new(config: SwitchConfig) -> Switch {
        Switch {
            zone: Zone::new(&config.settings, config.subnet, &[]),
            dhcp: dhcp::Server {
                subnet: config.subnet,
                mac: config.gateway_mac,
                settings: config.settings.clone(),
            },
            slots: Vec::new(),
            by_mac: HashMap::new(),
            by_ip: HashMap::new(),
            config,
        }
    }

    /// Makes `machines` the machines of the cluster and returns the ports of those that are gone or have other
    /// addresses now. Whoever stays keeps its port. MACs and addresses must be distinct, as
    /// [`address::reserve`] makes them.
    pub fn set_machines(&mut self, now: Instant, machines: &[Reservation]) -> Vec<PortId> {
        let mut gone = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot
                .as_ref()
                .is_some_and(|slot| !machines.contains(&slot.machine))
            {
                *slot = None;
                gone.push(PortId(index));
            }
        }
        for machine in machines {
            if self.port(&machine.name).is_none() {
                let slot = Some(Slot {
                    machine: machine.clone(),
                    broadcasts: Bucket::new(now),
                });
                match self.slots.iter_mut().find(|slot| slot.is_none()) {
                    Some(free) => *free = slot,
                    None => self.slots.push(slot),
                }
            }
        }
        let ports = || (0..).map(PortId).zip(&self.slots);
        let present = || ports().filter_map(|(port, slot)| Some((port, &slot.as_ref()?.machine)));
        self.by_mac = present()
            .map(|(port, machine)| (machine.mac, port))
            .collect();
        self.by_ip = present()
            .map(|(port, machine)| (machine.ip, port))
            .collect();
        self.zone = Zone::new(&self.config.settings, self.config.subnet, machines);
        gone
    }

    /// Tells the machines other things from now on.
    pub fn set_settings(&mut self, settings: Settings) {
        let machines: Vec<Reservation> = self
            .slots
            .iter()
            .flatten()
            .map(|slot| slot.machine.clone())
            .collect();
        self.zone = Zone::new(&settings, self.config.subnet, &machines);
        self.dhcp.settings = settings.clone();
        self.config.settings = settings;
    }

    /// kiln's own address.
    pub fn gateway(&self) -> Ipv4Addr {
        self.config.subnet.gateway()
    }

    /// What the machines are told.
    pub fn settings(&self) -> &Settings {
        &self.config.settings
    }

    /// The port of the machine called `name`.
    pub fn port(&self, name: &str) -> Option<PortId> {
        let is_it =
            |slot: &Option<Slot>| slot.as_ref().is_some_and(|slot| slot.machine.name == name);
        self.slots.iter().position(is_it).map(PortId)
    }

    /// The port of the machine whose address is `ip`.
    pub fn port_of(&self, ip: Ipv4Addr) -> Option<PortId> {
        self.by_ip.get(&ip).copied()
    }

    /// The machine at `port`.
    pub fn machine(&self, port: PortId) -> Option<&Reservation> {
        Some(&self.slots.get(port.0)?.as_ref()?.machine)
    }

    /// Where `frame` goes, which the machine at `port` sent.
    pub fn from_machine(&mut self, now: Instant, port: PortId, frame: &mut [u8]) -> Verdict {
        self.judge(now, port, frame).unwrap_or_else(Verdict::Drop)
    }

    fn judge(&mut self, now: Instant, port: PortId, frame: &mut [u8]) -> Result<Verdict, Refusal> {
        let ethernet = Ethernet::parse(frame).ok_or(Refusal::Malformed)?;
        let machine = self.machine(port).ok_or(Refusal::Nobody)?;
        if ethernet.source != machine.mac {
            return Err(Refusal::ForeignMac);
        }
        match ethernet.kind {
            ARP => self.arp(machine, &ethernet),
            IPV4 => {
                let packet = Ipv4::parse(ethernet.payload).ok_or(Refusal::Malformed)?;
                self.guard_ipv4(machine, &packet)?;
                if ethernet.destination.is_multicast() {
                    return self.broadcast(now, port, &packet);
                }
                if ethernet.destination != self.config.gateway_mac {
                    let to = self.by_mac.get(&ethernet.destination);
                    return to.copied().map(Verdict::To).ok_or(Refusal::Nobody);
                }
                if packet.destination == self.config.subnet.gateway() {
                    return self.serve(port, &packet);
                }
                let verdict = self.let_out(machine, &packet)?;
                if verdict == Verdict::Uplink {
                    self.readdress(frame, self.uplink_mac());
                }
                Ok(verdict)
            }
            _ => Err(Refusal::Protocol),
        }
    }

    /// Where `frame` goes, which slirp sent.
    pub fn from_uplink(&self, frame: &mut [u8]) -> Verdict {
        let Some(ethernet) = Ethernet::parse(frame) else {
            return Verdict::Drop(Refusal::Malformed);
        };
        match ethernet.kind {
            ARP => match Arp::parse(ethernet.payload) {
                Some(arp) if arp.is_request && self.by_ip.contains_key(&arp.target_ip) => {
                    Verdict::Reply(arp.answer(self.config.gateway_mac))
                }
                Some(_) => Verdict::Drop(Refusal::Nobody),
                None => Verdict::Drop(Refusal::Malformed),
            },
            IPV4 => {
                let Some(packet) = Ipv4::parse(ethernet.payload) else {
                    return Verdict::Drop(Refusal::Malformed);
                };
                // From within the subnet slirp may only say, in its own name, that something cannot be reached.
                let subnet = self.config.subnet;
                let own_error =
                    packet.source == subnet.uplink_host() && packet.protocol == ether::ICMP;
                if subnet.contains(packet.source) && !own_error
                    || !address::is_routed(packet.source)
                {
                    return Verdict::Drop(Refusal::ForeignAddress);
                }
                match self.port_of(packet.destination) {
                    Some(port) => {
                        let mac = self
                            .machine(port)
                            .map_or(MacAddr6::nil(), |machine| machine.mac);
                        self.readdress(frame, mac);
                        Verdict::To(port)
                    }
                    None => Verdict::Drop(Refusal::Nobody),
                }
            }
            _ => Verdict::Drop(Refusal::Protocol),
        }
    }

    /// The Ethernet header of the gateway's frames to the machine at `port`.
    pub fn header_to(&self, port: PortId) -> Option<[u8; ETHERNET_HEADER]> {
        let machine = self.machine(port)?;
        Some(ether::ethernet_header(
            machine.mac,
            self.config.gateway_mac,
            IPV4,
        ))
    }

    fn arp(&self, machine: &Reservation, ethernet: &Ethernet<'_>) -> Result<Verdict, Refusal> {
        let arp = Arp::parse(ethernet.payload).ok_or(Refusal::Malformed)?;
        if arp.sender_mac != machine.mac {
            return Err(Refusal::ForeignMac);
        }
        if arp.sender_ip != machine.ip && !(arp.is_request && arp.sender_ip.is_unspecified()) {
            return Err(Refusal::ForeignAddress);
        }
        if arp.target_ip == self.config.subnet.gateway() {
            return match arp.is_request {
                true => Ok(Verdict::Reply(arp.answer(self.config.gateway_mac))),
                false => Err(Refusal::Nobody),
            };
        }
        // A question about its own address (a probe or an announcement) has nobody to go to.
        match self.port_of(arp.target_ip) {
            Some(to) if arp.target_ip != machine.ip => Ok(Verdict::To(to)),
            _ => Err(Refusal::Nobody),
        }
    }

    /// Whether the machine may say this at all, to whomever.
    fn guard_ipv4(&self, machine: &Reservation, packet: &Ipv4<'_>) -> Result<(), Refusal> {
        let ports = match packet.protocol {
            ether::UDP => ether::ports(packet),
            _ => None,
        };
        if let Some((source, destination)) = ports
            && (source == dhcp::SERVER_PORT || destination == dhcp::CLIENT_PORT)
        {
            return Err(Refusal::DhcpServer);
        }
        let asks_dhcp = matches!(ports, Some((dhcp::CLIENT_PORT, dhcp::SERVER_PORT)));
        match packet.source {
            source if source == machine.ip => Ok(()),
            Ipv4Addr::UNSPECIFIED if asks_dhcp => Ok(()),
            _ => Err(Refusal::ForeignAddress),
        }
    }

    fn broadcast(
        &mut self,
        now: Instant,
        port: PortId,
        packet: &Ipv4<'_>,
    ) -> Result<Verdict, Refusal> {
        if let Some(udp) = Udp::parse(packet)
            && udp.destination == dhcp::SERVER_PORT
        {
            return self.dhcp(port, udp.payload);
        }
        let slot = self.slots.get_mut(port.0).and_then(Option::as_mut);
        match slot.ok_or(Refusal::Nobody)?.broadcasts.take(now) {
            true => Ok(Verdict::Flood),
            false => Err(Refusal::Storm),
        }
    }

    /// The MAC that slirp has for its own host address: 52:55 and the address.
    fn uplink_mac(&self) -> MacAddr6 {
        let [a, b, c, d] = self.config.subnet.uplink_host().octets();
        MacAddr6::new(0x52, 0x55, a, b, c, d)
    }

    /// Makes the gateway the sender of `frame`, as a router does.
    fn readdress(&self, frame: &mut [u8], destination: MacAddr6) {
        if let Some(header) = frame.first_chunk_mut::<ETHERNET_HEADER>() {
            *header = ether::ethernet_header(destination, self.config.gateway_mac, IPV4);
        }
    }
}

#[cfg(test)]
mod tests;
