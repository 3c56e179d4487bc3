//! Machines on a bridge that the host has already: a tap for each, and nothing else.
//!
//! ```text
//!  QEMU ── t-node-9c1f… ──┐
//!  QEMU ── t-node-03aa… ──┼── br0 (the host's) ── eth0 ── whoever gives addresses there
//!                   │     │
//!                   └─ watcher: frames that tell of addresses ──▶ FabricEvent
//! ```
//!
//! The bridge is another's, and stays as it is: no setting of it is changed, its MAC and MTU included, which a bridge
//! takes from its ports. Addresses are another's too; they are learned from what is seen on each tap. Taps go with the
//! QEMU that holds them; what stays on the host is a table of packet rules, and [`remove`] takes that away.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use macaddr::MacAddr6;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::Mode;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::address::Reservation;
use crate::bridge::BridgeError;
use crate::fabric::FabricEvent;
use crate::lease::book::{Book, Entry};
use crate::link::watch::Watch;
use crate::link::{Present, Step};
use crate::name::IfName;
use crate::netlink::NetlinkError;
use crate::netlink::nft::{Family, Rules};
use crate::netlink::route::Route;
use crate::netlink::route::foreign::Link;
use crate::netlink::route::monitor::{Group, Monitor, Word};
use crate::sniff::{self, Sniffer};
use crate::tap;
use watcher::Watcher;

mod rules;
#[cfg(test)]
mod tests;
mod watcher;

/// What the kernel calls a bridge.
const BRIDGE: &str = "bridge";

/// What an attachment is told at its start.
#[derive(Debug, Clone)]
pub struct AttachConfig {
    /// The host's bridge.
    pub bridge: IfName,
    /// The cluster's name, for whoever reads the host's links.
    pub cluster: String,
    /// What marks the taps as this cluster's and names its packet rules: no other cluster has it.
    pub mark: String,
    /// In whose name machines are asked for addresses; from [`crate::address::gateway_mac`].
    pub asker: MacAddr6,
    /// The machines, started or not. Their addresses mean nothing here.
    pub machines: Vec<Reservation>,
}

/// The handle of a cluster's taps. When it is dropped nothing is watched any more.
#[derive(Debug)]
pub struct Attach {
    config: AttachConfig,
    shared: Arc<Mutex<Shared>>,
    events: mpsc::UnboundedSender<FabricEvent>,
    monitor: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    machines: Vec<Reservation>,
    /// Whether the rules in place are those of the machines.
    held: bool,
    watchers: HashMap<String, Watched>,
    /// What was known of a machine's addresses before it was watched.
    known: HashMap<String, Vec<Entry>>,
    /// Leases that were read before that, with their ends.
    written: HashMap<String, HashMap<IpAddr, Option<Instant>>>,
    links: Watch,
}

/// A watcher at work.
#[derive(Debug)]
struct Watched {
    /// The tap's number.
    index: u32,
    task: JoinHandle<()>,
    leases: mpsc::UnboundedSender<(IpAddr, Option<Duration>)>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the bridge called `name` is.
///
/// # Errors
/// [`BridgeError::NoBridge`] and [`BridgeError::OtherKind`] where it cannot be one.
pub fn examine(name: &IfName) -> Result<Link, BridgeError> {
    let found = Route::here()
        .and_then(|mut route| route.describe(name))
        .map_err(BridgeError::Netlink)?;
    match found {
        None => Err(BridgeError::NoBridge { link: name.clone() }),
        Some(link) if link.kind != BRIDGE => Err(BridgeError::OtherKind {
            link: name.clone(),
            kind: link.kind,
        }),
        Some(link) => Ok(link),
    }
}

/// The host's bridges.
///
/// # Errors
/// [`BridgeError::Netlink`].
pub fn bridges() -> Result<Vec<IfName>, BridgeError> {
    let mut route = Route::here().map_err(BridgeError::Netlink)?;
    let mut found = Vec::new();
    for link in route.links().map_err(BridgeError::Netlink)? {
        let described = route.describe(&link.name).map_err(BridgeError::Netlink)?;
        if described.is_some_and(|described| described.kind == BRIDGE) {
            found.push(link.name);
        }
    }
    Ok(found)
}

/// Removes what carries `mark`: packet rules, and taps should there be any. Twice is harmless.
///
/// # Errors
/// [`NetlinkError`].
pub fn remove(mark: &str) -> Result<(), NetlinkError> {
    let mut route = Route::here()?;
    for link in route.links()? {
        if is_marked(&link, mark) {
            route.delete(&link.name)?;
        }
    }
    Rules::here()?.remove(Family::Bridge, mark)
}

fn is_marked(link: &Present, mark: &str) -> bool {
    let rest = link.alias.as_deref().and_then(|it| it.strip_prefix(mark));
    rest.is_some_and(|rest| rest.starts_with(' '))
}

impl Attach {
    /// Begins to watch. Changes nothing before there is a machine. To be called inside a tokio runtime.
    pub fn start(config: AttachConfig, events: mpsc::UnboundedSender<FabricEvent>) -> Attach {
        let shared = Arc::new(Mutex::new(Shared {
            machines: Vec::new(),
            held: false,
            watchers: HashMap::new(),
            known: HashMap::new(),
            written: HashMap::new(),
            links: Watch::new(config.bridge.clone()),
        }));
        let monitor = tokio::spawn(follow(shared.clone(), events.clone()));
        let attach = Attach {
            shared,
            events,
            monitor,
            config,
        };
        attach.name_machines(attach.config.machines.clone());
        attach
    }

    /// Makes `machines` the cluster's machines.
    ///
    /// # Errors
    /// [`BridgeError::Netlink`]; the rules that held before hold on.
    pub fn set_machines(&self, machines: Vec<Reservation>) -> Result<(), BridgeError> {
        if self.lock().machines == machines {
            return Ok(());
        }
        let was_held = self.lock().held;
        self.name_machines(machines);
        match was_held {
            true => self.hold(),
            false => Ok(()),
        }
    }

    fn name_machines(&self, machines: Vec<Reservation>) {
        let tap = |machine: &Reservation| (self.tap_of(&machine.name), machine.name.clone());
        let mut shared = self.lock();
        shared.links.set_ports(machines.iter().map(tap).collect());
        shared
            .watchers
            .retain(|name, _| machines.iter().any(|machine| machine.name == *name));
        shared
            .written
            .retain(|name, _| machines.iter().any(|machine| machine.name == *name));
        shared.machines = machines;
        shared.held = false;
    }

    /// Says what was known of a machine's addresses, before it is watched.
    pub fn recall(&self, name: &str, known: Vec<Entry>) {
        self.lock().known.insert(name.to_owned(), known);
    }

    /// A lease that is written down elsewhere: of the machine with the NIC `mac`, for so long or for ever.
    pub fn read_lease(&self, mac: MacAddr6, ip: IpAddr, time: Option<Duration>) {
        let mut shared = self.lock();
        let machine = shared.machines.iter().find(|machine| machine.mac == mac);
        let Some(name) = machine.map(|machine| machine.name.clone()) else {
            return;
        };
        match shared.watchers.get(&name) {
            // It fails only when the watcher is gone.
            Some(watched) => drop(watched.leases.send((ip, time))),
            // The file is read before it is known which machines live.
            None => {
                let until = time.and_then(|time| Instant::now().checked_add(time));
                shared.written.entry(name).or_default().insert(ip, until);
            }
        }
    }

    /// Makes the tap of the machine called `name`, a port of the bridge. It lives as long as the descriptor is open.
    ///
    /// # Errors
    /// [`BridgeError`], as when the bridge is gone.
    pub fn tap(&self, name: &str) -> Result<OwnedFd, BridgeError> {
        let machine = self.machine(name)?;
        let bridge = examine(&self.config.bridge)?;
        // The rules first: no port is open for a moment without them.
        self.hold()?;
        let tap = self.tap_of(name);
        let mut route = Route::here().map_err(BridgeError::Netlink)?;
        if route.link(&tap).map_err(BridgeError::Netlink)?.is_some() {
            return Err(BridgeError::Foreign { link: tap });
        }
        let failed = |source| BridgeError::Tap {
            tap: tap.clone(),
            source,
        };
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let tun =
            open("/dev/net/tun", flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        tap::make(&tun, &tap).map_err(failed)?;
        let alias = format!("{} {}/{name}", self.config.mark, self.config.cluster);
        route
            .fit(&tap, port_mac(&bridge, machine.mac), bridge.mtu, &alias)
            .map_err(BridgeError::Netlink)?;
        let steps = [
            Step::Silence(tap.clone()),
            Step::Join {
                name: tap.clone(),
                bridge: self.config.bridge.clone(),
            },
            Step::Direct {
                name: tap.clone(),
                mac: machine.mac,
            },
        ];
        for step in &steps {
            route.perform(step).map_err(BridgeError::Netlink)?;
        }
        // Nothing is known of a machine that starts, and nothing of what it says first is missed.
        let mut shared = self.lock();
        shared.known.remove(name);
        shared.written.remove(name);
        drop(shared);
        self.watch(name)?;
        route.up(&tap).map_err(BridgeError::Netlink)?;
        Ok(tun)
    }

    /// Watches the tap of the machine called `name`, which has one already.
    ///
    /// # Errors
    /// [`BridgeError`]; [`BridgeError::Foreign`] where the tap is not this cluster's.
    pub fn watch(&self, name: &str) -> Result<(), BridgeError> {
        let machine = self.machine(name)?;
        let tap = self.tap_of(name);
        let found = Route::here()
            .and_then(|mut route| route.link(&tap))
            .map_err(BridgeError::Netlink)?;
        let link = found.ok_or_else(|| BridgeError::NoBridge { link: tap.clone() })?;
        if !is_marked(&link, &self.config.mark) {
            return Err(BridgeError::Foreign { link: tap });
        }
        self.hold()?;
        let mut shared = self.lock();
        if let Some(watched) = shared.watchers.get(name)
            && watched.index == link.index
            && !watched.task.is_finished()
        {
            return Ok(());
        }
        let sniffer = packet_socket()
            .and_then(|socket| Sniffer::new(socket, link.index))
            .map_err(|source| BridgeError::Tap { tap, source })?;
        let now = Instant::now();
        let known = shared.known.remove(name).unwrap_or_default();
        let (leases, read) = mpsc::unbounded_channel();
        for (ip, until) in shared.written.remove(name).unwrap_or_default() {
            let left = until.map(|until| until.saturating_duration_since(now));
            if left.is_none_or(|left| !left.is_zero()) {
                let _ = leases.send((ip, left));
            }
        }
        let watcher = Watcher {
            machine: machine.name,
            mac: machine.mac,
            asker: self.config.asker,
            index: link.index,
            sniffer,
            book: Book::new(machine.mac, known, now),
            read,
            events: self.events.clone(),
        };
        let watched = Watched {
            index: link.index,
            task: tokio::spawn(watcher.run()),
            leases,
        };
        // One that was there before ends.
        shared.watchers.insert(name.to_owned(), watched);
        Ok(())
    }

    /// A socket that hears all frames of the machine's tap.
    ///
    /// # Errors
    /// It has none.
    pub fn capture(&self, name: &str) -> io::Result<OwnedFd> {
        let found = Route::here()
            .and_then(|mut route| route.link(&self.tap_of(name)))
            .map_err(io::Error::other)?;
        let link = found.ok_or(io::ErrorKind::NotFound)?;
        let socket = packet_socket()?;
        sniff::hear_all(&socket, link.index)?;
        Ok(socket)
    }

    /// The machines that have a tap, with what went through it.
    ///
    /// # Errors
    /// [`BridgeError::Netlink`].
    pub fn ports(&self) -> Result<Vec<(String, Present)>, BridgeError> {
        let links = Route::here()
            .and_then(|mut route| route.links())
            .map_err(BridgeError::Netlink)?;
        let shared = self.lock();
        let port = |machine: &Reservation| {
            let tap = self.tap_of(&machine.name);
            let link = links.iter().find(|link| link.name == tap)?;
            Some((machine.name.clone(), link.clone()))
        };
        Ok(shared.machines.iter().filter_map(port).collect())
    }

    /// Puts the packet rules for the machines in place, where they are not.
    fn hold(&self) -> Result<(), BridgeError> {
        let mut shared = self.lock();
        if shared.held {
            return Ok(());
        }
        let table = rules::table(&self.config.mark, &shared.machines, self.config.asker);
        Rules::here()
            .and_then(|mut rules| rules.replace(&[table]))
            .map_err(BridgeError::Netlink)?;
        shared.held = true;
        Ok(())
    }

    fn machine(&self, name: &str) -> Result<Reservation, BridgeError> {
        let shared = self.lock();
        let machine = shared.machines.iter().find(|machine| machine.name == name);
        machine.cloned().ok_or_else(|| BridgeError::Unknown {
            machine: name.to_owned(),
        })
    }

    fn tap_of(&self, machine: &str) -> IfName {
        IfName::host_tap(&self.config.mark, machine)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }
}

impl Drop for Attach {
    fn drop(&mut self) {
        self.monitor.abort();
        self.lock().watchers.clear();
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The port's own MAC: the bridge's, since a bridge that was given none takes the lowest of its ports'. It may have had no
/// port before. Where it has none at all, a high one.
fn port_mac(bridge: &Link, machine: MacAddr6) -> MacAddr6 {
    bridge.mac.filter(|mac| !mac.is_nil()).unwrap_or_else(|| {
        let mut bytes = machine.into_array();
        bytes[0] = 0xfe;
        MacAddr6::from(bytes)
    })
}

fn packet_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Packet, SockType::Raw, flags, None)?)
}

/// Tells what becomes of the bridge and the taps, until nobody listens.
async fn follow(shared: Arc<Mutex<Shared>>, events: mpsc::UnboundedSender<FabricEvent>) {
    let mut monitor = match Monitor::here(Group::Links) {
        Ok(monitor) => monitor,
        Err(error) => {
            tracing::warn!(%error, "changes of the host's links are not told");
            return;
        }
    };
    // What is there already is no news.
    look(&shared);
    while !events.is_closed() {
        let words = match monitor.next().await {
            Ok(words) => words,
            Err(error) => {
                tracing::warn!(%error, "changes of the host's links are not told any more");
                return;
            }
        };
        let mut news = Vec::new();
        for word in &words {
            match word {
                Word::Missed => news.extend(look(&shared)),
                Word::LinkGone(index) => {
                    let mut shared = lock(&shared);
                    shared.watchers.retain(|_, watched| watched.index != *index);
                    news.extend(shared.links.on(word));
                }
                Word::Link(_) | Word::Route(_) => news.extend(lock(&shared).links.on(word)),
            }
        }
        for news in news {
            let _ = events.send(FabricEvent::Link(news));
        }
    }
}

fn look(shared: &Mutex<Shared>) -> Vec<crate::link::watch::LinkNews> {
    match Route::here().and_then(|mut route| route.links()) {
        Ok(links) => lock(shared).links.look(&links),
        Err(error) => {
            tracing::warn!(%error, "the host's links cannot be listed");
            Vec::new()
        }
    }
}
