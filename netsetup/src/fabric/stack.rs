//! TCP between the gateway's address and one machine, by smoltcp.
//!
//! Each machine has a stack of its own, so that the stack sends only what the machine's queue has room for, loses
//! nothing there, and no machine can hold up the connections of another. The driver and the streams share it behind a
//! lock that is never held across a wait. It sees IP packets; who has which MAC is the switch's matter.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::time::{Duration as StackDuration, Instant as StackInstant};
use smoltcp::wire::{HardwareAddress, IpCidr};
use tokio::io::ReadBuf;

use super::port::Queue;
use super::resolve::random;
use crate::ether::ETHERNET_HEADER;

/// Bytes under way in each direction of a connection. The memory is touched only as far as a connection fills it.
const BUFFER: usize = 256 * 1024;
/// Connections to one machine at most.
const MOST: usize = 512;
/// Packets that one connection after the other may send before the driver looks at other ports.
const BATCH: usize = 256;
/// First of the ports that connections come from (RFC 6335).
const EPHEMERAL: u16 = 49152;
/// How long a connection that its owner dropped may take to end in good order, as in Linux.
const ORPHAN: Duration = Duration::from_secs(60);
/// How often a silent machine is asked whether it still knows a connection.
const KEEP_ALIVE: StackDuration = StackDuration::from_secs(60);
/// After how much silence a connection is given up: long, since a machine may be paused.
const SILENCE: StackDuration = StackDuration::from_secs(15 * 60);

/// A stack as the driver and the streams hold it.
#[derive(Debug, Clone)]
pub(super) struct Shared(Arc<Mutex<Stack>>);

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Stack> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connections to one machine.
pub(super) struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: BTreeMap<u64, Connection>,
    next: u64,
    gateway: Ipv4Addr,
    machine: Ipv4Addr,
    mtu: usize,
    started: Instant,
    /// Whether there may be something to send or to clean up.
    dirty: bool,
    /// When smoltcp or an orphan wants to be looked at next.
    due: Option<Instant>,
    /// Whether the machine is gone.
    abandoned: bool,
    driver: Waker,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack")
            .field("machine", &self.machine)
            .field("connections", &self.connections.len())
            .finish_non_exhaustive()
    }
}

/// A connection that someone holds, or that has to end.
enum Connection {
    /// In smoltcp, from the moment of connecting.
    Open {
        handle: SocketHandle,
        /// When to give up on it, once its owner has dropped it.
        orphan_until: Option<Instant>,
    },
    /// Over on both sides, with what the owner has not read yet. smoltcp would throw that away after TIME-WAIT.
    Over { unread: VecDeque<u8> },
}

impl Stack {
    /// A stack without connections. `driver` is woken when there is something to send.
    pub(super) fn shared(gateway: Ipv4Addr, machine: Ipv4Addr, mtu: u16, driver: Waker) -> Shared {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = random();
        let mtu = usize::from(mtu);
        let (queue, spare) = (&mut Queue::default(), &mut Vec::new());
        let mut device = Joined {
            packet: None,
            wire: Wire {
                queue,
                spare,
                header: [0; ETHERNET_HEADER],
            },
            mtu,
        };
        let mut interface = Interface::new(config, &mut device, StackInstant::ZERO);
        // With a prefix of 0 every machine is a neighbor, so no route is needed. smoltcp has room for two addresses.
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(gateway.into(), 0));
        });
        Shared(Arc::new(Mutex::new(Stack {
            interface,
            sockets: SocketSet::new(Vec::new()),
            connections: BTreeMap::new(),
            next: 0,
            gateway,
            machine,
            mtu,
            started: Instant::now(),
            dirty: false,
            due: None,
            abandoned: false,
            driver,
        })))
    }

    /// Begins a connection to `port`, and returns its number.
    pub(super) fn connect(&mut self, port: u16) -> io::Result<u64> {
        if self.connections.len() >= MOST {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("there are {MOST} connections to {} already", self.machine),
            ));
        }
        let local = self.free_port();
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        // Whoever writes does so in large pieces, or waits for the answer. And ACKs need no delay to be few: one is
        // made for all the packets that came together.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket.set_timeout(Some(SILENCE));
        let context = self.interface.context();
        socket
            .connect(context, (self.machine, port), (self.gateway, local))
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let connection = Connection::Open {
            handle: self.sockets.add(socket),
            orphan_until: None,
        };
        let number = self.next;
        self.next += 1;
        self.connections.insert(number, connection);
        self.touch();
        Ok(number)
    }

    /// Gives smoltcp the IPv4 `packet`. What it answers at once goes out through `wire`.
    pub(super) fn receive(&mut self, now: Instant, packet: &[u8], wire: Wire<'_>) {
        let time = self.time(now);
        let mut device = Joined {
            packet: Some(packet),
            wire,
            mtu: self.mtu,
        };
        self.interface
            .poll_ingress_single(time, &mut device, &mut self.sockets);
        self.dirty = true;
    }

    /// Sends what there is to send and fits the queue, if anything has changed or a time has come. Says whether to
    /// call again before going to sleep.
    pub(super) fn send(&mut self, now: Instant, wire: Wire<'_>) -> bool {
        if !self.dirty && self.due.is_none_or(|due| due > now) {
            return false;
        }
        let time = self.time(now);
        let mut device = Joined {
            packet: None,
            wire,
            mtu: self.mtu,
        };
        let done = (0..BATCH).any(|_| {
            let sent = self
                .interface
                .poll_egress(time, &mut device, &mut self.sockets);
            sent == PollResult::None
        });
        self.tidy(now);
        // When the queue is full, the socket says when there is room again, and no clock has to.
        let blocked = !device.wire.queue.has_room();
        self.dirty = blocked || !done;
        let stack = match self.dirty {
            true => None,
            false => self.next_poll(now),
        };
        self.due = stack.into_iter().chain(self.next_orphan()).min();
        !done && !blocked
    }

    /// When to call [`Stack::send`] if nothing happens before.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Ends all connections, without a word to the machine, which is gone.
    pub(super) fn abandon(&mut self) {
        self.abandoned = true;
        for (_, socket) in self.sockets.iter_mut() {
            let smoltcp::socket::Socket::Tcp(socket) = socket;
            socket.abort();
        }
    }

    /// Whether the connection is made; an error when it is refused or reset.
    pub(super) fn poll_established(
        &mut self,
        number: u64,
        cx: &Context<'_>,
    ) -> Poll<io::Result<()>> {
        let abandoned = self.abandoned;
        let Some(socket) = self.socket(number) else {
            return Poll::Ready(Ok(()));
        };
        match socket.state() {
            State::SynSent | State::SynReceived | State::Listen => {
                socket.register_recv_waker(cx.waker());
                Poll::Pending
            }
            State::Closed if abandoned => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            State::Closed => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
            State::Established
            | State::CloseWait
            | State::FinWait1
            | State::FinWait2
            | State::Closing
            | State::LastAck
            | State::TimeWait => Poll::Ready(Ok(())),
        }
    }

    /// Reads what has come in; nothing at the end of the stream.
    pub(super) fn poll_read(
        &mut self,
        number: u64,
        cx: &Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(Connection::Over { unread }) = self.connections.get_mut(&number) {
            let count = unread.len().min(buffer.remaining());
            let (front, back) = unread.as_slices();
            let first = count.min(front.len());
            buffer.put_slice(&front[..first]);
            buffer.put_slice(&back[..count - first]);
            unread.drain(..count);
            return Poll::Ready(Ok(()));
        }
        let Some(socket) = self.socket(number) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        match socket.recv_slice(buffer.initialize_unfilled()) {
            Ok(0) if buffer.remaining() > 0 => {
                socket.register_recv_waker(cx.waker());
                Poll::Pending
            }
            Ok(count) => {
                buffer.advance(count);
                self.touch();
                Poll::Ready(Ok(()))
            }
            Err(RecvError::Finished) => Poll::Ready(Ok(())),
            Err(RecvError::InvalidState) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }

    /// Takes as much of `data` as there is room for.
    pub(super) fn poll_write(
        &mut self,
        number: u64,
        cx: &Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(socket) = self.socket(number) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        match socket.send_slice(data) {
            Ok(0) if !data.is_empty() => {
                socket.register_send_waker(cx.waker());
                Poll::Pending
            }
            Ok(count) => {
                self.touch();
                Poll::Ready(Ok(count))
            }
            Err(_) if socket.state() == State::Closed => {
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
            Err(_) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Says that nothing more will be written.
    pub(super) fn shut_down(&mut self, number: u64) {
        if let Some(socket) = self.socket(number) {
            socket.close();
            self.touch();
        }
    }

    /// The owner is gone: what was written is still sent, what comes now is refused.
    pub(super) fn release(&mut self, number: u64) {
        match self.connections.get_mut(&number) {
            Some(Connection::Open { orphan_until, .. }) => {
                *orphan_until = Some(Instant::now() + ORPHAN);
                self.shut_down(number);
            }
            Some(Connection::Over { .. }) | None => {
                self.connections.remove(&number);
            }
        }
    }

    /// Drops what has ended, and ends what nobody reads any more.
    fn tidy(&mut self, now: Instant) {
        let sockets = &mut self.sockets;
        self.connections.retain(|_, connection| {
            let Connection::Open {
                handle,
                orphan_until,
            } = connection
            else {
                return true;
            };
            let (handle, orphan_until) = (*handle, *orphan_until);
            let socket = sockets.get_mut::<Socket<'_>>(handle);
            if let Some(until) = orphan_until {
                if socket.can_recv() || until <= now {
                    socket.abort();
                }
                // Without an endpoint it has nothing to send any more, not even a reset.
                let over = socket.state() == State::TimeWait || socket.remote_endpoint().is_none();
                if over {
                    sockets.remove(handle);
                }
                return !over;
            }
            if socket.state() == State::TimeWait {
                let mut unread = VecDeque::new();
                while let Ok(1..) = socket.recv(|data| {
                    unread.extend(&*data);
                    (data.len(), data.len())
                }) {}
                sockets.remove(handle);
                *connection = Connection::Over { unread };
            }
            true
        });
    }

    /// When smoltcp wants to be called. It must have sent all that it had: asked in between, it panics when a machine
    /// has sent more than the window that it was last told.
    fn next_poll(&mut self, now: Instant) -> Option<Instant> {
        let time = self.time(now);
        let delay = self.interface.poll_delay(time, &self.sockets)?;
        // The runtime's clock ticks in milliseconds, and a stack that always wants to be called at once must not
        // have the processor for itself.
        Some(now + Duration::from(delay).max(Duration::from_millis(1)))
    }

    fn next_orphan(&self) -> Option<Instant> {
        let until = self
            .connections
            .values()
            .filter_map(|connection| match connection {
                Connection::Open { orphan_until, .. } => *orphan_until,
                Connection::Over { .. } => None,
            });
        until.min()
    }

    fn socket(&mut self, number: u64) -> Option<&mut Socket<'static>> {
        match self.connections.get(&number)? {
            Connection::Open { handle, .. } => Some(self.sockets.get_mut(*handle)),
            Connection::Over { .. } => None,
        }
    }

    fn touch(&mut self) {
        self.dirty = true;
        self.driver.wake_by_ref();
    }

    fn time(&self, now: Instant) -> StackInstant {
        let elapsed = now.saturating_duration_since(self.started);
        StackInstant::from_micros(i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX))
    }

    /// A port that no other connection comes from. There are far more ports than connections.
    fn free_port(&self) -> u16 {
        let used: Vec<u16> = self
            .sockets
            .iter()
            .filter_map(|(_, socket)| {
                let smoltcp::socket::Socket::Tcp(socket) = socket;
                Some(socket.local_endpoint()?.port)
            })
            .collect();
        let start = u16::try_from(self.next % u64::from(u16::MAX - EPHEMERAL)).unwrap_or(0);
        let after = (0..u16::MAX - EPHEMERAL)
            .map(|step| EPHEMERAL + (start + step) % (u16::MAX - EPHEMERAL));
        let free = after.into_iter().find(|port| !used.contains(port));
        free.unwrap_or(EPHEMERAL)
    }
}

/// The way out to the machine: its queue, and the header that its frames get.
pub(super) struct Wire<'a> {
    pub(super) queue: &'a mut Queue,
    pub(super) spare: &'a mut Vec<u8>,
    pub(super) header: [u8; ETHERNET_HEADER],
}

impl Wire<'_> {
    fn again(&mut self) -> Wire<'_> {
        Wire {
            queue: self.queue,
            spare: self.spare,
            header: self.header,
        }
    }
}

/// The wire as smoltcp sees it for one call: at most one packet in, and the machine's queue out.
struct Joined<'a> {
    packet: Option<&'a [u8]>,
    wire: Wire<'a>,
    mtu: usize,
}

struct Inbound<'a>(&'a [u8]);

struct Outbound<'a>(Wire<'a>);

impl Device for Joined<'_> {
    type RxToken<'a>
        = Inbound<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Outbound<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: StackInstant) -> Option<(Inbound<'_>, Outbound<'_>)> {
        let packet = self.packet.take()?;
        Some((Inbound(packet), Outbound(self.wire.again())))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Outbound<'_>> {
        match self.wire.queue.has_room() {
            true => Some(Outbound(self.wire.again())),
            false => None,
        }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu)
    }
}

fn capabilities(mtu: usize) -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = mtu;
    // A unix socket changes no bits, so checksums are made for the machine and not looked at here.
    capabilities.checksum.ipv4 = Checksum::Tx;
    capabilities.checksum.tcp = Checksum::Tx;
    capabilities
}

impl RxToken for Inbound<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Outbound<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let Wire {
            queue,
            spare,
            header,
        } = self.0;
        queue.push_with(&header, length, spare, f)
    }
}

#[cfg(test)]
mod tests;
