//! The cluster's network as the loop holds it, whichever mode it is: machines are plugged in, and connections opened.
//!
//! What the modes differ in is decided here and nowhere else in the supervisor, but for the way out
//! ([`crate::supervisor::uplink`]).

mod attach;
pub(super) mod capture;
mod dump;
pub(super) mod helper;
mod leases;
mod user;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kiln_netsetup::address::{self, Reservation, Subnet};
use kiln_netsetup::bridge::{Bridge, BridgeConfig, BridgeError};
use kiln_netsetup::fabric::{Fabric, FabricConfig, FabricEvent};
use kiln_netsetup::link::Present;
use kiln_netsetup::namespace::{Maker, Namespace, NetId};
use kiln_netsetup::settings::Settings;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::error::in_one_line;
use crate::state::files::StateError;
use crate::state::ledger::{self, Entry, Ledger};
use crate::state::record::{ClusterRecord, ModeRecord, SeenRecord, WayOutRecord};
use crate::supervisor::launch::Plug;
use crate::supervisor::network::attach::Attached;
use crate::supervisor::network::user::Alone;
use crate::supervisor::protocol::PortTraffic;
use crate::supervisor::qmp::Qmp;
use crate::supervisor::watch;

/// A connection to a machine.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// The network of one cluster.
#[derive(Debug)]
pub(super) enum Network {
    /// A switch in this process.
    Fabric(Fabric),
    /// The kernel's, in namespaces of the cluster's own.
    Namespace(Box<Namespaced>),
    /// A bridge of the host's, and whoever gives addresses there.
    Attach(Attached),
    /// None: each machine is alone.
    User(Alone),
}

/// A machine that a connection is to be opened to.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) machine: String,
    /// The address that is reserved for it, where addresses are kiln's to give.
    pub(super) ip: Ipv4Addr,
}

/// A bridge that is there from the first machine on.
#[derive(Debug)]
pub(super) struct Namespaced {
    config: Mutex<BridgeConfig>,
    maker: Maker,
    /// Where it is written down which namespace is the cluster's.
    ledger: PathBuf,
    events: mpsc::UnboundedSender<FabricEvent>,
    held: Mutex<Held>,
}

/// What is known of the cluster's namespace.
#[derive(Debug)]
enum Held {
    /// There is none yet.
    Nothing,
    Bridge(Arc<Bridge>),
    /// Machines live in one that cannot be had from them: another one would part them from those to come.
    Lost,
}

impl Network {
    /// The network of a cluster, and what is seen in it.
    pub(super) fn start(
        record: &ClusterRecord,
        subnet: Subnet,
        machines: Vec<Reservation>,
        resolvers: &[SocketAddr],
        maker: Maker,
        ledger: PathBuf,
        mark: String,
    ) -> (Network, mpsc::UnboundedReceiver<FabricEvent>) {
        let gateway_mac = address::gateway_mac(&record.name);
        match record.mode {
            ModeRecord::Fabric => {
                let (fabric, events) = Fabric::start(FabricConfig {
                    subnet,
                    gateway_mac,
                    settings: settings(record, resolvers),
                    machines,
                });
                (Network::Fabric(fabric), events)
            }
            ModeRecord::Namespace => {
                let (events, outbox) = mpsc::unbounded_channel();
                let namespaced = Namespaced {
                    config: Mutex::new(BridgeConfig {
                        subnet,
                        gateway_mac,
                        settings: settings(record, resolvers),
                        machines,
                        // The host's own NAT knows the machines by their addresses.
                        masquerade: !matches!(record.way_out, WayOutRecord::Host { .. }),
                    }),
                    maker,
                    ledger,
                    events,
                    held: Mutex::new(Held::Nothing),
                };
                (Network::Namespace(Box::new(namespaced)), outbox)
            }
            ModeRecord::Attach => {
                let (events, outbox) = mpsc::unbounded_channel();
                let attached = Attached::start(record, mark, gateway_mac, machines, events);
                (Network::Attach(attached), outbox)
            }
            ModeRecord::User => {
                let (events, outbox) = mpsc::unbounded_channel();
                (Network::User(Alone::new(events)), outbox)
            }
        }
    }

    /// Makes these the cluster's machines.
    pub(super) fn set_machines(&self, machines: Vec<Reservation>) -> Result<(), BridgeError> {
        match self {
            Network::Fabric(fabric) => fabric.set_machines(machines),
            Network::Namespace(namespaced) => {
                namespaced.config().machines.clone_from(&machines);
                if let Some(bridge) = namespaced.found() {
                    bridge.set_machines(machines)?;
                }
            }
            Network::Attach(attached) => attached.set_machines(machines)?,
            Network::User(_) => {}
        }
        Ok(())
    }

    /// Tells the machines what the record says now; `resolvers` are the host's.
    pub(super) fn tell(
        &self,
        record: &ClusterRecord,
        resolvers: &[SocketAddr],
    ) -> Result<(), BridgeError> {
        let settings = settings(record, resolvers);
        match self {
            Network::Fabric(fabric) => fabric.set_settings(settings),
            Network::Namespace(namespaced) => {
                namespaced.config().settings.clone_from(&settings);
                if let Some(bridge) = namespaced.found() {
                    bridge.set_settings(settings)?;
                }
            }
            // It is others who tell them.
            Network::Attach(_) | Network::User(_) => {}
        }
        Ok(())
    }

    /// What the QEMU of machine `name` is to be handed.
    pub(super) fn plug(&self, name: &str) -> Result<Plug, BridgeError> {
        match self {
            Network::Fabric(_) | Network::User(_) => Ok(Plug::default()),
            Network::Attach(attached) => attached.plug(name),
            Network::Namespace(namespaced) => {
                let bridge = namespaced.bridge()?;
                Ok(Plug {
                    tap: Some(bridge.tap(name)?),
                    namespaces: bridge.namespace().handles().map_err(BridgeError::Host)?,
                })
            }
        }
    }

    /// Joins the QEMU of machine `name`, whose process is `pid`: in the fabric by its socket, else it is joined, and may
    /// be who knows where the others are.
    pub(super) fn join(&self, name: &str, pid: u32, socket: &Path) {
        match self {
            Network::Fabric(fabric) => match watch::stream(socket) {
                Ok(stream) => fabric.attach(name, stream),
                Err(error) => tracing::warn!(machine = name, %error, "the NIC is not plugged in"),
            },
            Network::Namespace(namespaced) => {
                if let Err(error) = namespaced.take_over(pid) {
                    tracing::warn!(
                        machine = name,
                        error = in_one_line(&error),
                        "the cluster's network is not taken over"
                    );
                }
            }
            Network::Attach(attached) => attached.join(name),
            Network::User(_) => {}
        }
    }

    /// Its QEMU answers on QMP.
    pub(super) fn met(&self, name: &str, qmp: &Qmp) {
        if let Network::User(alone) = self {
            alone.met(name, qmp.clone());
        }
    }

    /// What a former supervisor knew of a machine's addresses, before the machine is joined.
    pub(super) fn recall(&self, name: &str, seen: &[SeenRecord]) {
        if let Network::Attach(attached) = self {
            attached.recall(name, seen);
        }
    }

    /// Where the machine is to be reached from now on, if anywhere.
    pub(super) fn learned(&self, name: &str, ip: Option<Ipv4Addr>) {
        if let Network::Attach(attached) = self {
            attached.learned(name, ip);
        }
    }

    /// No machine is alive any more, so a namespace that was lost is gone.
    pub(super) fn emptied(&self) {
        if let Network::Namespace(namespaced) = self {
            let mut held = namespaced.held();
            if matches!(*held, Held::Lost) {
                *held = Held::Nothing;
            }
        }
    }

    /// What went through each machine's port.
    pub(super) async fn traffic(&self) -> io::Result<Vec<PortTraffic>> {
        match self {
            Network::Fabric(fabric) => {
                let counters = fabric.counters().await?;
                Ok(counters
                    .machines
                    .into_iter()
                    .map(|(machine, counted)| PortTraffic {
                        machine,
                        link: None,
                        sent: counted.frames_in,
                        sent_bytes: counted.bytes_in,
                        received: counted.frames_out,
                        received_bytes: counted.bytes_out,
                        dropped: counted.refused + counted.dropped,
                    })
                    .collect())
            }
            Network::Namespace(namespaced) => match namespaced.found() {
                Some(bridge) => bridge
                    .ports()
                    .map(|ports| ports.into_iter().map(of_link).collect())
                    .map_err(io::Error::other),
                None => Ok(Vec::new()),
            },
            Network::Attach(attached) => attached
                .ports()
                .map(|ports| ports.into_iter().map(of_link).collect())
                .map_err(io::Error::other),
            Network::User(_) => Ok(Vec::new()),
        }
    }

    /// Opens a connection from the gateway, or from the host, to a port of a machine.
    pub(super) async fn connect(
        &self,
        peer: &Peer,
        port: u16,
        deadline: Instant,
    ) -> io::Result<Box<dyn Stream>> {
        let ip = peer.ip;
        match self {
            Network::Fabric(fabric) => Ok(Box::new(fabric.connect(ip, port, deadline).await?)),
            Network::Namespace(namespaced) => {
                let bridge = namespaced.bridge().map_err(io::Error::other)?;
                Ok(Box::new(bridge.connect(ip, port, deadline).await?))
            }
            Network::Attach(attached) => {
                Ok(Box::new(attached.connect(peer, port, deadline).await?))
            }
            Network::User(alone) => Ok(Box::new(alone.connect(peer, port, deadline).await?)),
        }
    }
}

/// What the machines are told; `resolvers` are the host's.
fn settings(record: &ClusterRecord, resolvers: &[SocketAddr]) -> Settings {
    record.told.settings(record, resolvers)
}

/// The host's end of the wire receives what the machine sends.
fn of_link((machine, link): (String, Present)) -> PortTraffic {
    PortTraffic {
        machine,
        link: Some(link.name.to_string()),
        sent: link.traffic.received,
        sent_bytes: link.traffic.received_bytes,
        received: link.traffic.sent,
        received_bytes: link.traffic.sent_bytes,
        dropped: link.traffic.dropped,
    }
}

fn unrecorded(error: StateError) -> BridgeError {
    BridgeError::Record(io::Error::other(error))
}

impl Namespaced {
    /// The bridge, if it is there.
    pub(super) fn found(&self) -> Option<Arc<Bridge>> {
        match &*self.held() {
            Held::Bridge(bridge) => Some(bridge.clone()),
            Held::Nothing | Held::Lost => None,
        }
    }

    /// The bridge, made in a new namespace where there is none.
    pub(super) fn bridge(&self) -> Result<Arc<Bridge>, BridgeError> {
        match &*self.held() {
            Held::Bridge(bridge) => return Ok(bridge.clone()),
            Held::Lost => return Err(BridgeError::Lost),
            Held::Nothing => {}
        }
        let namespace = Namespace::create(self.maker).map_err(BridgeError::Namespace)?;
        let NetId { device, inode } = namespace.id().map_err(BridgeError::Record)?;
        // Before anybody is in it.
        Ledger::open(&self.ledger)
            .and_then(|mut ledger| ledger.record(&[Entry::Namespace { device, inode }]))
            .map_err(unrecorded)?;
        self.start(namespace)
    }

    /// Takes over the namespaces that process `pid` has inherited, where none is known yet.
    fn take_over(&self, pid: u32) -> Result<(), BridgeError> {
        if self.found().is_some() {
            return Ok(());
        }
        let taken = self
            .known()
            .and_then(|known| {
                Namespace::of_process(pid, known, self.maker).map_err(BridgeError::Namespace)
            })
            .and_then(|namespace| namespace.ok_or(BridgeError::Lost))
            .and_then(|namespace| self.start(namespace));
        if taken.is_err() {
            *self.held() = Held::Lost;
        }
        taken.map(drop)
    }

    /// The namespace that was made last.
    fn known(&self) -> Result<NetId, BridgeError> {
        let entries = ledger::read(&self.ledger).map_err(unrecorded)?;
        let made = entries.into_iter().rev().find_map(|entry| match entry {
            Entry::Namespace { device, inode } => Some(NetId { device, inode }),
            Entry::Folder { .. }
            | Entry::HostLink { .. }
            | Entry::Attachment { .. }
            | Entry::Forwarding { .. }
            | Entry::Volume { .. } => None,
        });
        made.ok_or(BridgeError::Lost)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self) -> MutexGuard<'_, BridgeConfig> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, namespace: Namespace) -> Result<Arc<Bridge>, BridgeError> {
        let bridge = Bridge::start(self.config().clone(), namespace, self.events.clone())?;
        let bridge = Arc::new(bridge);
        *self.held() = Held::Bridge(bridge.clone());
        Ok(bridge)
    }
}
