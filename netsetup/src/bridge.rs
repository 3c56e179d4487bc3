//! The network mode that stands on the kernel: a bridge in a namespace of the cluster's own, a tap for each machine.
//!
//! ```text
//!                 ┌───────────── the cluster's namespace ─────────────┐
//!  QEMU ── tap ───┤ t-node-1 ┐                                        │
//!  QEMU ── tap ───┤ t-node-2 ┼── br0, the gateway's address ── up0 ───┼── the world: root's veth, or a helper's tap
//!                 │          │    ▲ DHCP, DNS ▲ connections           │
//!                 └──────────┼────┼───────────┼──────────────────────-┘
//!                            └────┴───────────┴── sockets, worked from here
//! ```
//!
//! Frames between machines never come through this process, and go on when it dies. What it does is serve DHCP and DNS,
//! see addresses come into use, make taps and open connections to machines; whoever starts it again in the same
//! namespace takes all that up. Its events are the fabric's. It must not start a process that stays.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ipnet::{Ipv4Net, Ipv6Net};
use macaddr::MacAddr6;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::address::{Reservation, Subnet};
use crate::dns;
use crate::fabric::FabricEvent;
use crate::link::{self, Port, Present, Step, Wanted};
use crate::name::{IfName, IfNameError};
use crate::namespace::{Inside, Maker, Namespace, NamespaceError};
use crate::nat;
use crate::nd::Router;
use crate::netlink::NetlinkError;
use crate::netlink::nft::Rules;
use crate::netlink::route::monitor::{Group, Monitor};
use crate::netlink::route::{Route, Way};
use crate::settings::Settings;
use crate::sniff::{self, Sniffer};
use crate::tap;
use service::{Command, Heard, Service};

pub mod host;
mod service;
#[cfg(test)]
mod tests;

/// The bridge's name; nothing else is in the namespace that could have it.
const BRIDGE: &str = "br0";
/// The name of the link to the world, whoever makes it.
pub const UPLINK: &str = "up0";
/// The name of the tables of packet rules.
const TABLE: &str = "kiln";
/// The MTU where nothing else is said.
const ETHERNET_MTU: u16 = 1500;
/// Sockets and descriptors that are opened inside in one go, since each going costs a process.
const STOCK: usize = 8;

/// What a bridge is told at its start.
#[derive(Debug, Clone)]
pub struct BridgeConfig {
    /// The cluster's subnet.
    pub subnet: Subnet,
    /// MAC of kiln itself, from [`crate::address::gateway_mac`].
    pub gateway_mac: MacAddr6,
    /// What the machines are told.
    pub settings: Settings,
    /// The machines, started or not.
    pub machines: Vec<Reservation>,
    /// Whether packets leave under the uplink's own address: so where a helper is the way out, which knows no other.
    pub masquerade: bool,
}

/// Why there is no bridge, or why something was not done in it.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// No way into the namespace.
    #[error("cannot work in the cluster's network namespace")]
    Namespace(#[source] NamespaceError),
    /// The kernel would not.
    #[error("cannot set up the cluster's network")]
    Netlink(#[source] NetlinkError),
    /// DHCP or DNS cannot be served.
    #[error("cannot serve {what} in the cluster's network")]
    Serve {
        /// Which of them.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No tap could be made.
    #[error("cannot make tap `{tap}`")]
    Tap {
        /// Its name.
        tap: IfName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The machine is not of this cluster.
    #[error("there is no machine `{machine}` in the cluster's network")]
    Unknown {
        /// Its name.
        machine: String,
    },
    /// A name of kiln's own is none.
    #[error("cannot name a link of the cluster's network")]
    Name(#[source] IfNameError),
    /// What is on the host is in the way.
    #[error("link `{link}` of the host is not this cluster's")]
    Foreign {
        /// The link.
        link: IfName,
    },
    /// What machines are to be attached to is not there.
    #[error("there is no link `{link}` on this host")]
    NoBridge {
        /// Its name.
        link: IfName,
    },
    /// It is something else.
    #[error("link `{link}` of the host is no bridge{}", told(kind))]
    OtherKind {
        /// Its name.
        link: IfName,
        /// What it is, as the kernel calls it; empty where that has no name for it.
        kind: String,
    },
    /// Machines live in a namespace that cannot be found any more.
    #[error("the cluster's network namespace is lost; `kiln restart` all of its machines")]
    Lost,
    /// Which namespace is the cluster's could not be written down, or is not to be read any more.
    #[error("cannot keep in mind which network namespace is the cluster's")]
    Record(#[source] io::Error),
    /// The host's namespace cannot be had.
    #[error("cannot reach the host's network")]
    Host(#[source] io::Error),
}

fn told(kind: &str) -> String {
    match kind {
        "" => String::new(),
        kind => format!(" (it is a `{kind}`)"),
    }
}

/// The handle of a running bridge. When it is dropped, DHCP and DNS end; the links stay with the namespace.
#[derive(Debug)]
pub struct Bridge {
    namespace: Namespace,
    config: BridgeConfig,
    state: Mutex<State>,
    commands: mpsc::UnboundedSender<Command>,
    service: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    route: Route,
    rules: Rules,
    machines: Vec<Reservation>,
    mtu: Option<u16>,
    /// Opened inside and not used yet.
    tuns: Vec<OwnedFd>,
    sockets: Vec<OwnedFd>,
}

impl Bridge {
    /// Sets up what is missing in `namespace` and serves it, on the current tokio runtime. In a new namespace that is
    /// all; in one that was found again it is what its last owner was killed at.
    ///
    /// # Errors
    /// [`BridgeError`]; the namespace is as good as before.
    pub fn start(
        config: BridgeConfig,
        namespace: Namespace,
        events: mpsc::UnboundedSender<FabricEvent>,
    ) -> Result<Bridge, BridgeError> {
        let wanted = [
            Inside::Route,
            Inside::Netfilter,
            Inside::Packet,
            Inside::Udp,
            Inside::Route,
        ];
        let opened = namespace.open(&wanted).map_err(BridgeError::Namespace)?;
        let [route, rules, packet, names, monitor] = <[OwnedFd; 5]>::try_from(opened)
            .map_err(|_| BridgeError::Namespace(NamespaceError::Died))?;
        let mut state = State::new(route, rules, &config)?;
        // The rules first: no port is open for a moment without them.
        state.hold(&config)?;
        let links = state.set_up(&config)?;
        let bridge = links.iter().find(|link| link.name.as_str() == BRIDGE);
        let index = bridge.map_or(0, |bridge| bridge.index);
        let sniffer = Sniffer::new(packet, index).map_err(|source| BridgeError::Serve {
            what: "DHCP",
            source,
        })?;
        let names = service::listen(names, (config.subnet.gateway(), dns::PORT).into()).map_err(
            |source| BridgeError::Serve {
                what: "DNS",
                source,
            },
        )?;
        let monitor = Monitor::new(monitor, Group::Links).map_err(|source| BridgeError::Serve {
            what: "news of links",
            source,
        })?;
        let (commands, inbox) = mpsc::unbounded_channel();
        let bridge = name(BRIDGE)?;
        let heard = Heard {
            sniffer,
            monitor,
            names,
        };
        let service = Service::new(&config, &bridge, &links, heard, inbox, events);
        Ok(Bridge {
            namespace,
            config,
            state: Mutex::new(state),
            commands,
            service: tokio::spawn(service.run()),
        })
    }

    /// The cluster's namespaces.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Makes `machines` the cluster's machines.
    ///
    /// # Errors
    /// [`BridgeError::Netlink`]; the rules that held before hold on, so a new machine would not be heard.
    pub fn set_machines(&self, machines: Vec<Reservation>) -> Result<(), BridgeError> {
        let mut state = self.lock();
        if state.machines == machines {
            return Ok(());
        }
        let before = std::mem::replace(&mut state.machines, machines.clone());
        if let Err(error) = state.hold(&self.config) {
            // They are not told, so that they can be again.
            state.machines = before;
            return Err(error);
        }
        drop(state);
        self.tell(Command::Machines(machines));
        Ok(())
    }

    /// Tells the machines other things from now on. Another MTU is that of ports to come.
    ///
    /// # Errors
    /// [`BridgeError::Netlink`]; nothing has changed then.
    pub fn set_settings(&self, settings: Settings) -> Result<(), BridgeError> {
        let mut state = self.lock();
        if state.mtu != settings.mtu {
            let step = Step::Mtu {
                name: name(BRIDGE)?,
                mtu: settings.mtu.unwrap_or(ETHERNET_MTU),
            };
            state.route.perform(&step).map_err(BridgeError::Netlink)?;
            state.mtu = settings.mtu;
        }
        drop(state);
        self.tell(Command::Settings(Box::new(settings)));
        Ok(())
    }

    /// Makes the tap of the machine called `name`, joined to the bridge. It lives as long as the descriptor is open.
    ///
    /// # Errors
    /// [`BridgeError`], as when the machine has a tap already.
    pub fn tap(&self, name: &str) -> Result<OwnedFd, BridgeError> {
        let mut state = self.lock();
        let machine = state.machines.iter().find(|machine| machine.name == name);
        let machine = machine.cloned().ok_or_else(|| BridgeError::Unknown {
            machine: name.to_owned(),
        })?;
        let tun = self.tun(&mut state)?;
        let tap = IfName::tap(name);
        tap::make(&tun, &tap).map_err(|source| BridgeError::Tap {
            tap: tap.clone(),
            source,
        })?;
        if let Some(link) = state.join(&self.config, &machine)? {
            self.tell(Command::Port {
                machine: machine.name,
                index: link.index,
            });
        }
        Ok(tun)
    }

    /// Makes the link to the world as a tap, for a user-mode network that takes `host` for its own address and lets
    /// `own` out. It lives as long as the descriptor is open.
    ///
    /// # Errors
    /// [`BridgeError`], as when there is one.
    pub fn uplink(&self, own: Ipv4Net, host: Ipv4Addr) -> Result<OwnedFd, BridgeError> {
        let mut state = self.lock();
        let tun = self.tun(&mut state)?;
        let tap = name(UPLINK)?;
        tap::make(&tun, &tap).map_err(|source| BridgeError::Tap {
            tap: tap.clone(),
            source,
        })?;
        let steps = [
            Step::Silence(tap.clone()),
            Step::Address {
                name: tap.clone(),
                address: own,
            },
            Step::Up(tap.clone()),
        ];
        for step in &steps {
            state.route.perform(step).map_err(BridgeError::Netlink)?;
        }
        let out = Way {
            to: Ipv4Net::default(),
            gateway: Some(host),
            link: tap,
            source: own.addr(),
        };
        state.route.route(&out).map_err(BridgeError::Netlink)?;
        Ok(tun)
    }

    /// Opens a TCP connection from the gateway to `port` of the machine with the address `ip`.
    ///
    /// # Errors
    /// As any connection; `TimedOut` at `deadline`.
    pub async fn connect(
        &self,
        ip: Ipv4Addr,
        port: u16,
        deadline: Instant,
    ) -> io::Result<TcpStream> {
        let socket = self.socket().map_err(io::Error::other)?;
        let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
        let connecting = socket.connect((ip, port).into());
        match tokio::time::timeout_at(deadline.into(), connecting).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer from {ip} port {port}"),
            )),
        }
    }

    /// A socket that hears all frames of the machine's tap.
    ///
    /// # Errors
    /// It has none.
    pub fn capture(&self, name: &str) -> io::Result<OwnedFd> {
        let links = self.links().map_err(io::Error::other)?;
        let tap = IfName::tap(name);
        let link = links.iter().find(|link| link.name == tap);
        let link = link.ok_or(io::ErrorKind::NotFound)?;
        let socket = self
            .namespace
            .open_one(Inside::Packet)
            .map_err(io::Error::other)?;
        sniff::hear_all(&socket, link.index)?;
        Ok(socket)
    }

    /// The links inside, with what went through them.
    ///
    /// # Errors
    /// [`BridgeError::Netlink`].
    pub fn links(&self) -> Result<Vec<Present>, BridgeError> {
        self.lock().route.links().map_err(BridgeError::Netlink)
    }

    /// The machines that have a tap, with what went through it.
    ///
    /// # Errors
    /// [`BridgeError::Netlink`].
    pub fn ports(&self) -> Result<Vec<(String, Present)>, BridgeError> {
        let links = self.links()?;
        let state = self.lock();
        let port = |machine: &Reservation| {
            let tap = IfName::tap(&machine.name);
            let link = links.iter().find(|link| link.name == tap)?;
            Some((machine.name.clone(), link.clone()))
        };
        Ok(state.machines.iter().filter_map(port).collect())
    }

    /// A fresh `/dev/net/tun` of the namespace.
    fn tun(&self, state: &mut State) -> Result<OwnedFd, BridgeError> {
        if state.tuns.is_empty() {
            // As many as there are machines to start, most often.
            let count = state.machines.len().clamp(1, STOCK);
            state.tuns = self.open(Inside::Tun, count)?;
        }
        let tun = state.tuns.pop();
        tun.ok_or(BridgeError::Namespace(NamespaceError::Died))
    }

    fn socket(&self) -> Result<OwnedFd, BridgeError> {
        let mut state = self.lock();
        if state.sockets.is_empty() {
            state.sockets = self.open(Inside::Tcp, STOCK)?;
        }
        let socket = state.sockets.pop();
        socket.ok_or(BridgeError::Namespace(NamespaceError::Died))
    }

    fn open(&self, what: Inside, count: usize) -> Result<Vec<OwnedFd>, BridgeError> {
        self.namespace
            .open(&vec![what; count])
            .map_err(BridgeError::Namespace)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, command: Command) {
        // It fails only when the service is gone, and then there is nobody to tell.
        let _ = self.commands.send(command);
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.service.abort();
    }
}

impl State {
    fn new(route: OwnedFd, rules: OwnedFd, config: &BridgeConfig) -> Result<State, BridgeError> {
        Ok(State {
            route: Route::new(route).map_err(BridgeError::Netlink)?,
            rules: Rules::new(rules).map_err(BridgeError::Netlink)?,
            machines: config.machines.clone(),
            mtu: config.settings.mtu,
            tuns: Vec::new(),
            sockets: Vec::new(),
        })
    }

    /// Puts the packet rules for the machines in place.
    fn hold(&mut self, config: &BridgeConfig) -> Result<(), BridgeError> {
        let (bridge, uplink) = (name(BRIDGE)?, name(UPLINK)?);
        let tables = nat::inside(
            TABLE,
            config.subnet,
            config.settings.router(config.gateway_mac),
            &self.machines,
            &bridge,
            &uplink,
            config.masquerade,
        );
        self.rules.replace(&tables).map_err(BridgeError::Netlink)
    }

    /// Makes a machine's new tap a port of the bridge. Looks at no other link, of which there may be many.
    fn join(
        &mut self,
        config: &BridgeConfig,
        machine: &Reservation,
    ) -> Result<Option<Present>, BridgeError> {
        let wanted = wanted(config, self.mtu, std::slice::from_ref(machine))?;
        let tap = IfName::tap(&machine.name);
        let mut present = Vec::new();
        for name in [&wanted.bridge, &tap] {
            present.extend(self.route.link(name).map_err(BridgeError::Netlink)?);
        }
        for step in &link::steps(&wanted, &present) {
            self.route.perform(step).map_err(BridgeError::Netlink)?;
        }
        Ok(present.into_iter().find(|link| link.name == tap))
    }

    /// Makes the links as they are to be, and says which there are then.
    fn set_up(&mut self, config: &BridgeConfig) -> Result<Vec<Present>, BridgeError> {
        let wanted = wanted(config, self.mtu, &self.machines)?;
        let present = self.route.links().map_err(BridgeError::Netlink)?;
        let steps = link::steps(&wanted, &present);
        if steps.is_empty() {
            return Ok(present);
        }
        for step in &steps {
            self.route.perform(step).map_err(BridgeError::Netlink)?;
        }
        self.route.links().map_err(BridgeError::Netlink)
    }
}

fn wanted(
    config: &BridgeConfig,
    mtu: Option<u16>,
    machines: &[Reservation],
) -> Result<Wanted, BridgeError> {
    let gateway = config.subnet.gateway();
    let port = |machine: &Reservation| Port {
        tap: IfName::tap(&machine.name),
        mac: machine.mac,
    };
    Ok(Wanted {
        bridge: name(BRIDGE)?,
        mac: config.gateway_mac,
        address: Ipv4Net::new_assert(gateway, config.subnet.net().prefix_len()),
        six: config
            .settings
            .router(config.gateway_mac)
            .map(|router| six_of(&router)),
        ports: machines.iter().map(port).collect(),
        mtu,
    })
}

/// kiln's own addresses: the one that machines know, and the one that it speaks to them from.
fn six_of(router: &Router) -> [Ipv6Net; 2] {
    [router.subnet.gateway(), router.own()].map(|ip| Ipv6Net::new_assert(ip, 64))
}

/// Finds out whether this mode works here, by doing it: a namespace with a bridge, its rules and a tap, which is gone
/// again when this returns. Takes some milliseconds.
///
/// # Errors
/// [`BridgeError`] says at what it failed.
pub fn try_out(maker: Maker, config: &BridgeConfig) -> Result<(), BridgeError> {
    let namespace = Namespace::create(maker).map_err(BridgeError::Namespace)?;
    let wanted = [
        Inside::Route,
        Inside::Netfilter,
        Inside::Tun,
        Inside::Packet,
    ];
    let opened = namespace.open(&wanted).map_err(BridgeError::Namespace)?;
    let [route, rules, tun, _packet] = <[OwnedFd; 4]>::try_from(opened)
        .map_err(|_| BridgeError::Namespace(NamespaceError::Died))?;
    let mut state = State::new(route, rules, config)?;
    state.hold(config)?;
    let tap = name(UPLINK)?;
    tap::make(&tun, &tap).map_err(|source| BridgeError::Tap { tap, source })?;
    state.set_up(config).map(drop)
}

fn name(text: &str) -> Result<IfName, BridgeError> {
    text.parse().map_err(BridgeError::Name)
}
