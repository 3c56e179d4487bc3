//! The network mode that needs no right at all: a switch in this process, over the sockets of QEMU's `-netdev stream`.
//!
//! Each machine's NIC, and the uplink, is one connected unix stream socket, on which a frame is a 32-bit big-endian
//! length and its bytes. One task, the driver, owns the [`Switch`](crate::switch::Switch), all ports and the queues
//! between them; a [`Fabric`] is the handle that talks to it.
//!
//! ```text
//!  attach, set_machines, connect ──▶ ┌──────── driver ────────┐ ──▶ FabricEvent
//!                                    │ port ◀─▶ Switch ◀─▶ port │
//!  FabricStream ◀── TCP at the ────▶ │  ▲ queue, 256 KiB each   │
//!                   gateway          │ uplink ◀─▶ slirp         │ ◀──▶ resolvers (UDP)
//!                                    └──────────────────────────┘
//! ```
//!
//! A machine that does not read loses frames, as at any switch, and nobody waits for it. The module must not start
//! QEMU or know its command line: sockets come in connected. A port may be attached again at any time.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use macaddr::MacAddr6;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::address::{Reservation, Subnet};
use crate::lease::book::Change;
use crate::link::watch::LinkNews;
use crate::settings::Settings;
use crate::switch::SwitchConfig;
use driver::{Command, Driver};

mod copy;
mod driver;
mod port;
pub(crate) mod resolve;
mod stack;
mod stream;
mod wire;

pub use copy::{Copied, Copies, Watchers};
pub use port::Counters;
pub use stream::FabricStream;

/// The least time between two events of one machine's lease.
pub(crate) const LEASE_PAUSE: Duration = Duration::from_secs(1);

/// What a fabric is told at its start.
#[derive(Debug, Clone)]
pub struct FabricConfig {
    /// The cluster's subnet.
    pub subnet: Subnet,
    /// MAC of kiln itself, from [`crate::address::gateway_mac`].
    pub gateway_mac: MacAddr6,
    /// What the machines are told.
    pub settings: Settings,
    /// The machines, attached or not.
    pub machines: Vec<Reservation>,
}

/// What the fabric saw. There are few: each follows from an attach, and leases come once a second at most.
#[derive(Debug)]
pub enum FabricEvent {
    /// A DHCP ACK with its reserved address went out to a machine.
    Lease {
        /// The machine's name.
        machine: String,
        /// The address.
        ip: IpAddr,
        /// The MAC of its NIC.
        mac: MacAddr6,
    },
    /// The first frame since the attach in which a machine used its address, of IPv4 or of IPv6.
    Seen {
        /// The machine's name.
        machine: String,
        /// The address.
        ip: IpAddr,
    },
    /// The addresses of a machine changed, on a network where another one gives them.
    Address {
        /// The machine's name.
        machine: String,
        /// How.
        change: Change,
    },
    /// A wire of the network was plugged in, or out.
    Link(LinkNews),
    /// A machine's socket ended, or was given for a machine that is not of this cluster.
    ///
    /// `InvalidData` says that the stream was out of step. A QEMU whose supervisor was killed while a frame was under
    /// way sends the rest of it first to the next one, so connect and attach once more when QEMU still runs.
    PortClosed {
        /// The machine's name.
        machine: String,
        /// Why; `None` when the other side closed it in good order.
        cause: Option<io::Error>,
    },
    /// The uplink's socket ended.
    UplinkClosed {
        /// Why; `None` when the other side closed it in good order.
        cause: Option<io::Error>,
    },
}

/// What went through the fabric.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FabricCounters {
    /// Each attached machine, by name.
    pub machines: Vec<(String, Counters)>,
    /// The uplink, when it is attached. Frames that it lost count as dropped.
    pub uplink: Option<Counters>,
}

/// The handle of a running fabric. When it is dropped, the fabric closes all its ports and ends.
#[derive(Debug)]
pub struct Fabric {
    commands: mpsc::UnboundedSender<Command>,
    driver: JoinHandle<()>,
}

impl Fabric {
    /// Starts a fabric on the current tokio runtime (which needs I/O and time).
    pub fn start(config: FabricConfig) -> (Fabric, mpsc::UnboundedReceiver<FabricEvent>) {
        let (commands, inbox) = mpsc::unbounded_channel();
        // Unbounded, because events are few (see there) and a lost one would be a wrong state for ever.
        let (events, outbox) = mpsc::unbounded_channel();
        let switch = SwitchConfig {
            subnet: config.subnet,
            gateway_mac: config.gateway_mac,
            settings: config.settings,
        };
        let driver = Driver::new(switch, &config.machines, inbox, events);
        let driver = tokio::spawn(driver.run());
        (Fabric { commands, driver }, outbox)
    }

    /// Makes `machines` the cluster's machines. Ports of those that are gone, or moved, close without an event.
    pub fn set_machines(&self, machines: Vec<Reservation>) {
        self.send(Command::Machines(machines));
    }

    /// Tells the machines other things from now on.
    pub fn set_settings(&self, settings: Settings) {
        self.send(Command::Settings(Box::new(settings)));
    }

    /// Joins the NIC of the machine called `name` by a connected socket. One that was there before is closed.
    pub fn attach(&self, name: &str, stream: UnixStream) {
        let name = name.to_owned();
        self.send(Command::Attach { name, stream });
    }

    /// Joins the uplink by a connected socket. One that was there before is closed.
    pub fn attach_uplink(&self, stream: UnixStream) {
        self.send(Command::AttachUplink(stream));
    }

    /// Opens a TCP connection from the gateway to `port` of the machine with the address `ip`.
    ///
    /// # Errors
    /// `HostUnreachable` when no attached machine has the address, `ConnectionRefused` when it refuses, `TimedOut` at
    /// `deadline`, `ConnectionReset` when the machine goes away meanwhile.
    pub async fn connect(
        &self,
        ip: Ipv4Addr,
        port: u16,
        deadline: Instant,
    ) -> io::Result<FabricStream> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Connect { ip, port, reply });
        let opening = async {
            let mut stream = answer.await.map_err(|_| ended())??;
            stream.established().await?;
            Ok(stream)
        };
        match tokio::time::timeout_at(deadline.into(), opening).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer from {ip} port {port}"),
            )),
        }
    }

    /// What went through each attached port since its attach.
    ///
    /// # Errors
    /// The fabric has ended.
    pub async fn counters(&self) -> io::Result<FabricCounters> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Counters(reply));
        answer.await.map_err(|_| ended())
    }

    /// Copies of all frames of the machine called `name`, from now on, until the receiver is dropped or the machine's port
    /// is closed. What the receiver leaves too long is dropped, and counted.
    ///
    /// # Errors
    /// `NotFound` when no attached machine has the name.
    pub async fn capture(&self, name: &str) -> io::Result<Copies> {
        let (reply, answer) = oneshot::channel();
        let name = name.to_owned();
        self.send(Command::Capture { name, reply });
        answer
            .await
            .map_err(|_| ended())?
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Closes all ports and waits until they are closed.
    pub async fn stop(self) {
        drop(self.commands);
        // An error says that the task panicked, which its panic message has said already.
        let _ = self.driver.await;
    }

    fn send(&self, command: Command) {
        // It fails only when the driver is gone, and whoever waits for an answer then sees that.
        let _ = self.commands.send(command);
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the fabric has ended")
}

#[cfg(test)]
mod tests;
