//! What kiln itself says in a bridge's namespace: DHCP on the wire, DNS by UDP; and who it sees there.
//!
//! What comes in has passed the packet rules, so it is from whom it says. A DHCP reply goes out by the machine's own
//! port and disturbs nobody else.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{SockaddrIn, bind};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::BridgeConfig;
use crate::address::{Reservation, Subnet};
use crate::dhcp;
use crate::dns::{self, Code, Outcome, Zone};
use crate::ether::{ARP, Ethernet, IPV4, IPV4_HEADER, Ipv4, UDP_HEADER, Udp};
use crate::ether6::{IPV6, Ipv6};
use crate::fabric::resolve::Resolver;
use crate::fabric::{FabricEvent, LEASE_PAUSE};
use crate::lease::{self, Source};
use crate::link::Present;
use crate::link::watch::Watch;
use crate::name::IfName;
use crate::netlink::route::monitor::{Monitor, Word};
use crate::settings::Settings;
use crate::sniff::Sniffer;
use crate::switch::{DnsQuery, PortId};

/// Longer queries are none.
const QUERY: usize = 2048;
/// What fits a packet on Ethernet.
const ROOM: usize = 1500 - IPV4_HEADER - UDP_HEADER;

/// After an error of the packet socket, until it is read again. It errs once each time that the bridge is set down.
const PAUSE: Duration = Duration::from_millis(100);

/// What the handle tells the service.
#[derive(Debug)]
pub(super) enum Command {
    Machines(Vec<Reservation>),
    Settings(Box<Settings>),
    /// The machine has a new tap, with this number.
    Port {
        machine: String,
        index: u32,
    },
}

/// What the service listens to.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) sniffer: Sniffer,
    pub(super) monitor: Monitor,
    pub(super) names: UdpSocket,
}

/// The state of the task.
#[derive(Debug)]
pub(super) struct Service {
    subnet: Subnet,
    dhcp: dhcp::Server,
    zone: Zone,
    machines: Vec<Reservation>,
    /// The numbers of the machines' taps.
    ports: HashMap<String, u32>,
    /// Addresses that were seen in use since their machine has its tap.
    seen: HashSet<(String, IpAddr)>,
    /// When a machine's lease was told last.
    leased: HashMap<String, Instant>,
    sniffer: Sniffer,
    /// When the packet socket may be read again after an error.
    resume: Instant,
    monitor: Monitor,
    hears_links: bool,
    wires: Watch,
    names: UdpSocket,
    resolver: Resolver,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::UnboundedSender<FabricEvent>,
}

/// A UDP socket of another namespace, bound to an address there.
pub(super) fn listen(socket: OwnedFd, address: SocketAddr) -> io::Result<UdpSocket> {
    if let SocketAddr::V4(address) = address {
        bind(socket.as_raw_fd(), &SockaddrIn::from(address))?;
    }
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}

/// The taps of these machines, and whose they are.
fn taps(machines: &[Reservation]) -> HashMap<IfName, String> {
    let tap = |machine: &Reservation| (IfName::tap(&machine.name), machine.name.clone());
    machines.iter().map(tap).collect()
}

impl Service {
    pub(super) fn new(
        config: &BridgeConfig,
        bridge: &IfName,
        links: &[Present],
        heard: Heard,
        commands: mpsc::UnboundedReceiver<Command>,
        events: mpsc::UnboundedSender<FabricEvent>,
    ) -> Service {
        let Heard {
            sniffer,
            monitor,
            names,
        } = heard;
        let mut wires = Watch::new(bridge.clone());
        wires.set_ports(taps(&config.machines));
        // What is there already is no news.
        wires.look(links);
        let port = |machine: &Reservation| {
            let tap = IfName::tap(&machine.name);
            let link = links.iter().find(|link| link.name == tap)?;
            Some((machine.name.clone(), link.index))
        };
        Service {
            dhcp: dhcp::Server {
                subnet: config.subnet,
                mac: config.gateway_mac,
                settings: config.settings.clone(),
            },
            zone: Zone::new(&config.settings, config.subnet, &config.machines),
            machines: config.machines.clone(),
            ports: config.machines.iter().filter_map(port).collect(),
            seen: HashSet::new(),
            leased: HashMap::new(),
            resolver: Resolver::new(config.settings.resolvers.clone()),
            subnet: config.subnet,
            sniffer,
            resume: Instant::now(),
            monitor,
            hears_links: true,
            wires,
            names,
            commands,
            events,
        }
    }

    /// Runs until the handle is dropped.
    pub(super) async fn run(mut self) {
        let mut query = vec![0; QUERY];
        loop {
            let now = Instant::now();
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                () = tokio::time::sleep_until(self.resume.into()), if self.resume > now => {}
                words = self.monitor.next(), if self.hears_links => match words {
                    Ok(words) => self.of_links(&words),
                    Err(error) => {
                        tracing::warn!(%error, "changes of links are not told any more");
                        self.hears_links = false;
                    }
                },
                frame = self.sniffer.next(), if self.resume <= now => match frame {
                    Ok(frame) => {
                        let frame = frame.to_vec();
                        self.take(&frame);
                    }
                    // As when the bridge is set down: it can be set up again.
                    Err(error) => {
                        tracing::warn!(%error, "DHCP is not heard for now");
                        self.resume = Instant::now() + PAUSE;
                    }
                },
                asked = self.names.recv_from(&mut query) => match asked {
                    Ok((length, from)) => self.asked(&query[..length], from),
                    // Of an answer that could not be delivered.
                    Err(error) => tracing::debug!(%error, "a name server's client is gone"),
                },
                (query, answer) = std::future::poll_fn(|cx| self.resolver.poll_answered(cx)) => {
                    self.answer(answer, (query.machine.ip, query.port).into());
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Machines(machines) => {
                self.zone = Zone::new(&self.dhcp.settings, self.subnet, &machines);
                self.leased
                    .retain(|name, _| machines.iter().any(|machine| machine.name == *name));
                self.ports
                    .retain(|name, _| machines.iter().any(|machine| machine.name == *name));
                self.wires.set_ports(taps(&machines));
                self.machines = machines;
            }
            Command::Settings(settings) => {
                self.zone = Zone::new(&settings, self.subnet, &self.machines);
                self.resolver.ask_others(settings.resolvers.clone());
                self.dhcp.settings = *settings;
            }
            Command::Port { machine, index } => {
                self.seen.retain(|(name, _)| *name != machine);
                self.leased.remove(&machine);
                self.ports.insert(machine, index);
            }
        }
    }

    fn of_links(&mut self, words: &[Word]) {
        // What was missed of so few links is told by the next change.
        for news in words.iter().filter_map(|word| self.wires.on(word)) {
            let _ = self.events.send(FabricEvent::Link(news));
        }
    }

    /// Takes note of a frame, and answers it where it is for a DHCP server.
    fn take(&mut self, frame: &[u8]) {
        let Some(ethernet) = Ethernet::parse(frame) else {
            return;
        };
        let from = self
            .machines
            .iter()
            .find(|machine| machine.mac == ethernet.source);
        let Some(machine) = from.cloned() else { return };
        match ethernet.kind {
            ARP => {
                let told = lease::observe(frame);
                if told.is_some_and(|told| told.ip == machine.ip) {
                    self.note(&machine, machine.ip.into());
                }
            }
            IPV6 => self.solicited(&machine, &ethernet, frame),
            IPV4 => {
                let packet = Ipv4::parse(ethernet.payload);
                let request = packet.as_ref().and_then(Udp::parse);
                if let Some(request) = request
                    && request.destination == dhcp::SERVER_PORT
                {
                    self.lend(&machine, request.payload);
                }
            }
            _ => {}
        }
    }

    /// Neighbor discovery: what only a router answers; the rest is the kernel's, at kiln's own addresses.
    fn solicited(&mut self, machine: &Reservation, ethernet: &Ethernet<'_>, frame: &[u8]) {
        let Some(router) = self.dhcp.settings.router(self.dhcp.mac) else {
            return;
        };
        let own = IpAddr::V6(router.subnet.machine(machine.mac));
        if lease::observe(frame).is_some_and(|told| told.ip == own) {
            self.note(machine, own);
        }
        let answer = Ipv6::parse(ethernet.payload)
            .and_then(|packet| router.answer(machine.mac, &packet))
            .zip(self.ports.get(&machine.name));
        if let Some((answer, port)) = answer
            && let Err(error) = self.sniffer.send(*port, &answer)
        {
            tracing::debug!(machine = machine.name, %error, "an answer to a neighbor is lost");
        }
    }

    /// Reports an address that is in use, once.
    fn note(&mut self, machine: &Reservation, ip: IpAddr) {
        if self.seen.insert((machine.name.clone(), ip)) {
            let machine = machine.name.clone();
            self.report(FabricEvent::Seen { machine, ip });
        }
    }

    fn lend(&mut self, machine: &Reservation, request: &[u8]) {
        let find = |mac| (mac == machine.mac).then_some(machine);
        let Some(reply) = self.dhcp.answer(request, find) else {
            return;
        };
        let Some(port) = self.ports.get(&machine.name) else {
            return;
        };
        if let Err(error) = self.sniffer.send(*port, &reply) {
            tracing::debug!(machine = machine.name, %error, "a DHCP reply is lost");
            return;
        }
        if let Some(event) = lease::observe(&reply)
            && event.source == Source::Lease
            && self
                .leased
                .get(&machine.name)
                .is_none_or(|told| told.elapsed() >= LEASE_PAUSE)
        {
            self.leased.insert(machine.name.clone(), Instant::now());
            self.report(FabricEvent::Lease {
                machine: machine.name.clone(),
                ip: event.ip,
                mac: event.mac,
            });
        }
    }

    fn asked(&mut self, query: &[u8], from: SocketAddr) {
        match self.zone.resolve(query) {
            Outcome::Answer(answer) => self.answer(answer, from),
            Outcome::Forward => self.forward(query, from),
            Outcome::Drop => {}
        }
    }

    fn forward(&mut self, query: &[u8], from: SocketAddr) {
        let asks = |machine: &Reservation| IpAddr::V4(machine.ip) == from.ip();
        let Some(index) = self.machines.iter().position(asks) else {
            return;
        };
        let asked = self.resolver.ask(DnsQuery {
            from: PortId::new(index),
            machine: self.machines[index].clone(),
            port: from.port(),
            message: query.to_vec(),
        });
        if let Err(query) = asked {
            let failure = dns::failure(&query.message, Code::ServFail);
            self.answer(failure, from);
        }
    }

    fn answer(&self, mut answer: Vec<u8>, to: SocketAddr) {
        if answer.len() > ROOM {
            dns::truncate(&mut answer);
        }
        if let Err(error) = self.names.try_send_to(&answer, to) {
            tracing::debug!(%to, %error, "an answer to a query is lost");
        }
    }

    fn report(&self, event: FabricEvent) {
        // Who does not listen does not want to know.
        let _ = self.events.send(event);
    }
}
