//! What kiln itself answers at the gateway's address, and what it lets out of the cluster.

use super::{PortId, Refusal, Switch, Verdict};
use crate::address::{self, Reservation};
use crate::dhcp;
use crate::dns::{self, Outcome};
use crate::ether::{self, IPV4_HEADER, Ipv4, Path, Udp};

/// ICMP codes of "destination unreachable" (RFC 1812, 5.2.7.1).
const PORT_UNREACHABLE: u8 = 3;
const PROHIBITED: u8 = 13;

/// A machine's question to a name server, and the way back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsQuery {
    /// The port of who asks.
    pub from: PortId,
    /// Who asks: by the time of the answer, the port may be another's.
    pub machine: Reservation,
    /// The UDP port that it asks from.
    pub port: u16,
    /// The query as it came.
    pub message: Vec<u8>,
}

impl Switch {
    /// The frame that brings `answer` to whoever asked `query`; `None` when that machine is gone or the answer is
    /// larger than a packet.
    pub fn dns_reply(&self, query: &DnsQuery, answer: &[u8]) -> Option<Vec<u8>> {
        let machine = self.machine(query.from)?;
        if *machine != query.machine {
            return None;
        }
        ether::udp_frame(self.path_to(machine), dns::PORT, query.port, answer)
    }

    /// Answers a packet for the gateway's own address.
    pub(super) fn serve(&self, port: PortId, packet: &Ipv4<'_>) -> Result<Verdict, Refusal> {
        if packet.is_fragment() {
            return Err(Refusal::Nobody);
        }
        let machine = self.machine(port).ok_or(Refusal::Nobody)?;
        match packet.protocol {
            ether::TCP => Ok(Verdict::Tcp),
            ether::ICMP => self.ping(machine, packet),
            ether::UDP => {
                let udp = Udp::parse(packet).ok_or(Refusal::Malformed)?;
                match udp.destination {
                    dhcp::SERVER_PORT => self.dhcp(port, udp.payload),
                    dns::PORT => self.dns(port, machine, &udp),
                    _ => self.unreachable(machine, packet, PORT_UNREACHABLE),
                }
            }
            _ => Err(Refusal::Nobody),
        }
    }

    pub(super) fn dhcp(&self, port: PortId, request: &[u8]) -> Result<Verdict, Refusal> {
        let machine = self.machine(port).ok_or(Refusal::Nobody)?;
        let find = |mac| (mac == machine.mac).then_some(machine);
        let reply = self.dhcp.answer(request, find);
        reply.map(Verdict::Reply).ok_or(Refusal::Nobody)
    }

    fn dns(&self, from: PortId, machine: &Reservation, udp: &Udp<'_>) -> Result<Verdict, Refusal> {
        match self.zone.resolve(udp.payload) {
            Outcome::Answer(answer) => {
                let path = self.path_to(machine);
                let reply = ether::udp_frame(path, dns::PORT, udp.source, &answer);
                reply.map(Verdict::Reply).ok_or(Refusal::Nobody)
            }
            Outcome::Forward => Ok(Verdict::Ask(DnsQuery {
                from,
                machine: machine.clone(),
                port: udp.source,
                message: udp.payload.to_vec(),
            })),
            Outcome::Drop => Err(Refusal::Malformed),
        }
    }

    fn ping(&self, machine: &Reservation, packet: &Ipv4<'_>) -> Result<Verdict, Refusal> {
        // Type 8 asks for an echo, type 0 is one; the rest of the message comes back as it is.
        let [8, 0, rest @ ..] = packet.payload else {
            return Err(Refusal::Nobody);
        };
        let echo = [&[0, 0], rest].concat();
        let reply = ether::icmp_frame(self.path_to(machine), &echo);
        reply.map(Verdict::Reply).ok_or(Refusal::Malformed)
    }

    /// Whether a packet may go out through slirp; if not, what its sender is told.
    ///
    /// Slirp takes any address of its subnet for the host's loopback and hands 0/8 and 127/8 to the host's kernel as
    /// they are, so a guest must not name one of them. Options go nowhere either, since a source route would name the
    /// real destination.
    pub(super) fn let_out(
        &self,
        machine: &Reservation,
        packet: &Ipv4<'_>,
    ) -> Result<Verdict, Refusal> {
        let destination = packet.destination;
        if packet.source != machine.ip {
            return Err(Refusal::ForeignAddress);
        }
        if packet.has_options() {
            return Err(Refusal::Forbidden);
        }
        let inside = self.config.subnet.contains(destination);
        if inside || self.config.settings.isolated || !address::is_routed(destination) {
            return self.unreachable(machine, packet, PROHIBITED);
        }
        Ok(Verdict::Uplink)
    }

    /// Tells a machine that its packet goes nowhere, so that its program fails at once and not at a timeout. Those who
    /// look for a cloud's metadata service at 169.254.169.254 are the usual case.
    fn unreachable(
        &self,
        machine: &Reservation,
        packet: &Ipv4<'_>,
        code: u8,
    ) -> Result<Verdict, Refusal> {
        // RFC 1122, 3.2.2: never about an ICMP message, a later fragment, or a packet for many.
        if packet.protocol == ether::ICMP
            || packet.fragment_offset != 0
            || packet.destination.is_multicast()
            || packet.destination.is_broadcast()
            || packet.destination == self.config.subnet.broadcast()
        {
            return Err(Refusal::Forbidden);
        }
        let mut message = vec![3, code, 0, 0, 0, 0, 0, 0];
        message.extend(packet.header.iter().take(IPV4_HEADER));
        message.extend(packet.payload.iter().take(8));
        let reply = ether::icmp_frame(self.path_to(machine), &message);
        reply.map(Verdict::Reply).ok_or(Refusal::Forbidden)
    }

    fn path_to(&self, machine: &Reservation) -> Path {
        Path {
            source_mac: self.config.gateway_mac,
            source: self.config.subnet.gateway(),
            destination_mac: machine.mac,
            destination: machine.ip,
        }
    }
}
