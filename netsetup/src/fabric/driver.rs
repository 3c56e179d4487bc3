//! The one task of a fabric: it owns the switch, all ports and their queues, and moves the frames.
//!
//! It is one future that looks at every socket when it is woken, in place of a task for each: a batch of frames goes
//! from the socket that it was read from to the queues, and from these to the sockets by one write each, with no
//! channel between. The read buffer is shared by all ports. It must not wait for any of them.

use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use std::{io, mem};

use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Sleep;

use super::copy::Copies;
use super::port::{End, LONGEST, Port};
use super::resolve::Resolver;
use super::stack::{Shared, Stack};
use super::stream::FabricStream;
use super::wire::Wire;
use super::{FabricCounters, FabricEvent, LEASE_PAUSE};
use crate::address::Reservation;
use crate::dns::{self, Code};
use crate::ether::{ETHERNET_HEADER, IPV4_HEADER, UDP_HEADER};
use crate::ether6;
use crate::lease::{self, Source};
use crate::link::watch::{How, LinkNews};
use crate::pcapng::Direction;
use crate::settings::Settings;
use crate::switch::{DnsQuery, PortId, Refusal, Switch, SwitchConfig, Verdict};

/// The MTU where nothing else is said.
const ETHERNET_MTU: u16 = 1500;
/// The least that is taken for one: what every host has to receive (RFC 791).
const LEAST_MTU: u16 = 576;
/// Bytes that are read at once: room for the longest frame, or for some forty of the usual ones.
const BUFFER: usize = LONGEST + 4;
/// Rounds over all ports before other tasks have their turn.
const ROUNDS: usize = 4;

/// What the handle asks for.
#[derive(Debug)]
pub(super) enum Command {
    Machines(Vec<Reservation>),
    Settings(Box<Settings>),
    Attach {
        name: String,
        stream: UnixStream,
    },
    AttachUplink(UnixStream),
    Connect {
        ip: Ipv4Addr,
        port: u16,
        reply: oneshot::Sender<io::Result<FabricStream>>,
    },
    Counters(oneshot::Sender<FabricCounters>),
    Capture {
        name: String,
        reply: oneshot::Sender<Option<Copies>>,
    },
}

/// The state of the task.
#[derive(Debug)]
pub(super) struct Driver {
    switch: Switch,
    links: Vec<Option<Link>>,
    uplink: Option<Port>,
    resolver: Resolver,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::UnboundedSender<FabricEvent>,
    buffer: Vec<u8>,
    /// A buffer that an emptied queue has left for the next one.
    spare: Vec<u8>,
    timer: Pin<Box<Sleep>>,
    now: Instant,
}

/// An attached machine.
#[derive(Debug)]
struct Link {
    port: Port,
    /// Made with the first connection, or the first segment to the gateway.
    stack: Option<Shared>,
    seen: bool,
    /// Of IPv6; so from the start where there is none.
    seen6: bool,
    leased: Option<Instant>,
}

impl Driver {
    pub(super) fn new(
        config: SwitchConfig,
        machines: &[Reservation],
        commands: mpsc::UnboundedReceiver<Command>,
        events: mpsc::UnboundedSender<FabricEvent>,
    ) -> Driver {
        let now = Instant::now();
        let resolver = Resolver::new(config.settings.resolvers.clone());
        let mut switch = Switch::new(config);
        switch.set_machines(now, machines);
        Driver {
            switch,
            links: Vec::new(),
            uplink: None,
            resolver,
            commands,
            events,
            buffer: vec![0; BUFFER],
            spare: Vec::new(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            now,
        }
    }

    /// Runs until the handle is dropped.
    pub(super) async fn run(mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..ROUNDS {
            self.now = Instant::now();
            let mut busy = false;
            while let Poll::Ready(command) = self.commands.poll_recv(cx) {
                match command {
                    Some(command) => self.obey(command, cx),
                    None => {
                        (0..self.links.len()).for_each(|index| self.unlink(index));
                        return Poll::Ready(());
                    }
                }
            }
            for index in 0..self.links.len() {
                busy |= self.read_machine(index, cx);
            }
            busy |= self.read_uplink(cx);
            while let Some((query, answer)) = self.resolver.poll_answer(cx) {
                self.relay(&query, answer, cx);
            }
            busy |= self.send(cx);
            if !busy && !self.set_timer(cx) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn obey(&mut self, command: Command, cx: &mut Context<'_>) {
        match command {
            Command::Machines(machines) => {
                for port in self.switch.set_machines(self.now, &machines) {
                    self.unlink(port.index());
                }
            }
            Command::Settings(settings) => {
                self.resolver.ask_others(settings.resolvers.clone());
                self.switch.set_settings(*settings);
            }
            Command::Attach { name, stream } => match self.switch.port(&name) {
                Some(port) => self.link(port, stream),
                None => self.report(FabricEvent::PortClosed {
                    machine: name,
                    cause: Some(io::ErrorKind::NotFound.into()),
                }),
            },
            Command::AttachUplink(stream) => self.uplink = Some(Port::new(stream)),
            Command::Connect { ip, port, reply } => {
                // Whoever no longer waits for the stream drops it, which ends the connection.
                let _ = reply.send(self.connect(ip, port, cx));
            }
            Command::Counters(reply) => {
                let _ = reply.send(self.counters());
            }
            Command::Capture { name, reply } => {
                let port = self.switch.port(&name);
                let link = port.and_then(|port| self.links.get_mut(port.index())?.as_mut());
                let _ = reply.send(link.map(|link| link.port.queue.watchers.add()));
            }
        }
    }

    fn link(&mut self, port: PortId, stream: UnixStream) {
        self.unlink(port.index());
        if self.links.len() <= port.index() {
            self.links.resize_with(port.index() + 1, || None);
        }
        self.links[port.index()] = Some(Link {
            port: Port::new(stream),
            stack: None,
            seen: false,
            seen6: self.switch.ip6(port).is_none(),
            leased: None,
        });
        self.plugged(port, How::Up);
    }

    fn plugged(&self, port: PortId, how: How) {
        if let Some(machine) = self.switch.machine(port) {
            self.report(FabricEvent::Link(LinkNews {
                machine: Some(machine.name.clone()),
                link: None,
                how,
            }));
        }
    }

    fn unlink(&mut self, index: usize) {
        let link = self.links.get_mut(index).and_then(Option::take);
        if let Some(stack) = link.and_then(|link| link.stack) {
            stack.lock().abandon();
        }
    }

    fn connect(
        &mut self,
        ip: Ipv4Addr,
        port: u16,
        cx: &mut Context<'_>,
    ) -> io::Result<FabricStream> {
        let port_id = self.switch.port_of(ip);
        let Some(link) = port_id.and_then(|id| self.links.get_mut(id.index())?.as_mut()) else {
            return Err(io::ErrorKind::HostUnreachable.into());
        };
        let stack = link
            .stack
            .get_or_insert_with(|| stack(&self.switch, ip, cx));
        FabricStream::open(stack.clone(), port)
    }

    fn counters(&self) -> FabricCounters {
        let links = self.links.iter().enumerate();
        let named = links.filter_map(|(index, link)| {
            let machine = self.switch.machine(PortId::new(index))?;
            Some((machine.name.clone(), link.as_ref()?.port.counters()))
        });
        FabricCounters {
            machines: named.collect(),
            uplink: self.uplink.as_ref().map(Port::counters),
        }
    }

    /// Reads from a machine once. Says whether there was anything.
    fn read_machine(&mut self, index: usize, cx: &mut Context<'_>) -> bool {
        let Some(Some(link)) = self.links.get_mut(index) else {
            return false;
        };
        let Poll::Ready(read) = link.port.poll_read(cx, &mut self.buffer) else {
            return false;
        };
        let mut buffer = mem::take(&mut self.buffer);
        let end = read.and_then(|length| self.take_frames(index, &mut buffer[..length], cx));
        self.buffer = buffer;
        if let Err(cause) = end {
            self.close(index, cause);
        }
        self.flush(cx);
        true
    }

    fn take_frames(
        &mut self,
        index: usize,
        bytes: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Result<(), End> {
        let mut rest = bytes;
        while let Some(Some(link)) = self.links.get_mut(index)
            && let Some(frame) = link.port.next_frame(&mut rest)?
        {
            self.pass(PortId::new(index), frame, cx);
        }
        Ok(())
    }

    fn pass(&mut self, from: PortId, frame: &mut [u8], cx: &mut Context<'_>) {
        if let Some(Some(link)) = self.links.get_mut(from.index()) {
            // As it left the machine, whatever becomes of it.
            link.port.queue.watchers.copy(Direction::Out, frame);
        }
        let verdict = self.switch.from_machine(self.now, from, frame);
        let Some(Some(link)) = self.links.get_mut(from.index()) else {
            return;
        };
        // What has nobody to go to is the machine's own word all the same.
        let mut is_true = true;
        if let Verdict::Drop(refusal) = verdict {
            link.port.refused += 1;
            is_true = refusal == Refusal::Nobody;
            tracing::trace!(port = from.index(), ?refusal, "frame dropped");
        }
        if is_true
            && (!link.seen || !link.seen6 && ether6::is_ipv6(frame))
            && let Some(event) = lease::observe(frame)
            && let Some(machine) = self.switch.machine(from)
        {
            let seen = match event.ip {
                IpAddr::V4(ip) if ip == machine.ip => &mut link.seen,
                IpAddr::V6(ip) if Some(ip) == self.switch.ip6(from) => &mut link.seen6,
                // Another one's is not said.
                IpAddr::V4(_) | IpAddr::V6(_) => &mut true,
            };
            if !mem::replace(seen, true) {
                let (machine, ip) = (machine.name.clone(), event.ip);
                self.report(FabricEvent::Seen { machine, ip });
            }
        }
        match verdict {
            Verdict::Drop(_) => {}
            Verdict::To(to) => self.queue(to.index(), frame, cx),
            Verdict::Flood => {
                for index in 0..self.links.len() {
                    if index != from.index() {
                        self.queue(index, frame, cx);
                    }
                }
            }
            Verdict::Uplink => {
                if let Some(uplink) = &mut self.uplink {
                    if !uplink.queue.has_room() {
                        // As in `queue`.
                        let _ = uplink.flush(cx, &mut self.spare);
                    }
                    uplink.queue.push(frame, &mut self.spare);
                }
            }
            Verdict::Reply(reply) => {
                self.queue(from.index(), &reply, cx);
                self.note_lease(from, &reply);
            }
            Verdict::Tcp => self.receive(from, &frame[ETHERNET_HEADER..], cx),
            Verdict::Ask(query) => self.ask(query, cx),
        }
    }

    fn read_uplink(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(uplink) = &mut self.uplink else {
            return false;
        };
        let Poll::Ready(read) = uplink.poll_read(cx, &mut self.buffer) else {
            return false;
        };
        let mut buffer = mem::take(&mut self.buffer);
        let end = read.and_then(|length| self.take_uplink_frames(&mut buffer[..length], cx));
        self.buffer = buffer;
        if let Err(cause) = end {
            self.close_uplink(cause);
        }
        self.flush(cx);
        true
    }

    fn take_uplink_frames(&mut self, bytes: &mut [u8], cx: &mut Context<'_>) -> Result<(), End> {
        let mut rest = bytes;
        while let Some(uplink) = &mut self.uplink
            && let Some(frame) = uplink.next_frame(&mut rest)?
        {
            match self.switch.from_uplink(frame) {
                Verdict::To(port) => self.queue(port.index(), frame, cx),
                Verdict::Reply(reply) => uplink.queue.push(&reply, &mut self.spare),
                Verdict::Drop(_)
                | Verdict::Flood
                | Verdict::Uplink
                | Verdict::Tcp
                | Verdict::Ask(_) => uplink.refused += 1,
            }
        }
        Ok(())
    }

    /// Queues a frame for a machine, if it is attached. A full queue is first written out as far as it can be.
    fn queue(&mut self, index: usize, frame: &[u8], cx: &mut Context<'_>) {
        if let Some(Some(link)) = self.links.get_mut(index) {
            if !link.port.queue.has_room() {
                // An error comes again when all queues are written out, and is dealt with there.
                let _ = link.port.flush(cx, &mut self.spare);
            }
            link.port.queue.push(frame, &mut self.spare);
        }
    }

    /// Reports the ACK that `reply` may be.
    fn note_lease(&mut self, to: PortId, reply: &[u8]) {
        let (Some(Some(link)), Some(event)) =
            (self.links.get_mut(to.index()), lease::observe(reply))
        else {
            return;
        };
        let recent = |time: Instant| self.now.saturating_duration_since(time) < LEASE_PAUSE;
        if event.source != Source::Lease || link.leased.is_some_and(recent) {
            return;
        }
        link.leased = Some(self.now);
        if let Some(machine) = self.switch.machine(to) {
            let machine = machine.name.clone();
            let (ip, mac) = (event.ip, event.mac);
            self.report(FabricEvent::Lease { machine, ip, mac });
        }
    }

    /// Gives a segment for the gateway to the machine's stack.
    fn receive(&mut self, from: PortId, packet: &[u8], cx: &mut Context<'_>) {
        let Some(header) = self.switch.header_to(from) else {
            return;
        };
        let machine = self.switch.machine(from);
        let (Some(Some(link)), Some(machine)) = (self.links.get_mut(from.index()), machine) else {
            return;
        };
        let stack = link
            .stack
            .get_or_insert_with(|| stack(&self.switch, machine.ip, cx));
        let wire = Wire {
            queue: &mut link.port.queue,
            spare: &mut self.spare,
            header,
        };
        stack.lock().receive(self.now, packet, wire);
    }

    fn ask(&mut self, query: DnsQuery, cx: &mut Context<'_>) {
        if let Err(query) = self.resolver.ask(query) {
            let failure = dns::failure(&query.message, Code::ServFail);
            self.relay(&query, failure, cx);
        }
    }

    fn relay(&mut self, query: &DnsQuery, mut answer: Vec<u8>, cx: &mut Context<'_>) {
        let room = usize::from(mtu(self.switch.settings())) - IPV4_HEADER - UDP_HEADER;
        if answer.len() > room {
            dns::truncate(&mut answer);
        }
        if let Some(frame) = self.switch.dns_reply(query, &answer) {
            self.queue(query.from.index(), &frame, cx);
        }
    }

    /// Lets the stacks send, and writes all queues out. Says whether anything went.
    fn send(&mut self, cx: &mut Context<'_>) -> bool {
        let mut busy = false;
        for (index, link) in self.links.iter_mut().enumerate() {
            if let Some(link) = link
                && let Some(stack) = &link.stack
                && let Some(header) = self.switch.header_to(PortId::new(index))
            {
                let wire = Wire {
                    queue: &mut link.port.queue,
                    spare: &mut self.spare,
                    header,
                };
                busy |= stack.lock().send(self.now, wire);
            }
        }
        busy | self.flush(cx)
    }

    fn flush(&mut self, cx: &mut Context<'_>) -> bool {
        let mut wrote = false;
        for index in 0..self.links.len() {
            if let Some(Some(link)) = self.links.get_mut(index) {
                match link.port.flush(cx, &mut self.spare) {
                    Ok(some) => wrote |= some,
                    Err(cause) => self.close(index, cause),
                }
            }
        }
        if let Some(uplink) = &mut self.uplink {
            match uplink.flush(cx, &mut self.spare) {
                Ok(some) => wrote |= some,
                Err(cause) => self.close_uplink(cause),
            }
        }
        wrote
    }

    fn close(&mut self, index: usize, cause: End) {
        self.unlink(index);
        if let Some(machine) = self.switch.machine(PortId::new(index)) {
            let machine = machine.name.clone();
            self.plugged(PortId::new(index), How::Gone);
            self.report(FabricEvent::PortClosed { machine, cause });
        }
    }

    fn close_uplink(&mut self, cause: End) {
        self.uplink = None;
        self.report(FabricEvent::UplinkClosed { cause });
    }

    /// Sets the timer to what is due first, and says whether that is now.
    fn set_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let stacks = self
            .links
            .iter()
            .flatten()
            .filter_map(|link| link.stack.as_ref());
        let Some(due) = stacks.filter_map(|stack| stack.lock().due()).min() else {
            return false;
        };
        let due = tokio::time::Instant::from_std(due);
        if self.timer.deadline() != due {
            self.timer.as_mut().reset(due);
        }
        self.timer.as_mut().poll(cx).is_ready()
    }

    fn report(&self, event: FabricEvent) {
        // Who does not listen does not want to know.
        let _ = self.events.send(event);
    }
}

fn stack(switch: &Switch, machine: Ipv4Addr, cx: &mut Context<'_>) -> Shared {
    let (gateway, driver) = (switch.gateway(), cx.waker().clone());
    Stack::shared(gateway, machine, mtu(switch.settings()), driver)
}

fn mtu(settings: &Settings) -> u16 {
    settings.mtu.unwrap_or(ETHERNET_MTU).max(LEAST_MTU)
}
