//! Machines on a bridge of the host's: plugged in here, and reached by the addresses that were learned.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Instant, SystemTime};

use kiln_netsetup::address::Reservation;
use kiln_netsetup::attach::{Attach, AttachConfig};
use kiln_netsetup::bridge::BridgeError;
use kiln_netsetup::fabric::FabricEvent;
use kiln_netsetup::lease::Source;
use kiln_netsetup::lease::book::Entry;
use kiln_netsetup::link::Present;
use macaddr::MacAddr6;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::{Peer, leases};
use crate::error::in_one_line;
use crate::state::record::{ClusterRecord, SeenRecord, SourceRecord, WayOutRecord};
use crate::supervisor::launch::Plug;

/// The cluster's taps, and where its machines are to be reached.
#[derive(Debug)]
pub(in crate::supervisor) struct Attached {
    /// Absent where the record names no bridge that could be one.
    attach: Option<Arc<Attach>>,
    learned: Mutex<HashMap<String, Ipv4Addr>>,
}

impl Attached {
    pub(super) fn start(
        record: &ClusterRecord,
        mark: String,
        asker: MacAddr6,
        machines: Vec<Reservation>,
        events: mpsc::UnboundedSender<FabricEvent>,
    ) -> Attached {
        let bridge = record.bridge().and_then(|bridge| bridge.parse().ok());
        let config = |bridge| AttachConfig {
            bridge,
            cluster: record.name.clone(),
            mark,
            asker,
            machines,
        };
        let attach = bridge.map(|bridge| Arc::new(Attach::start(config(bridge), events)));
        if let (Some(attach), WayOutRecord::Bridge { leases, .. }) = (&attach, &record.way_out)
            && let Some(path) = leases
        {
            drop(tokio::spawn(read_leases(
                path.clone(),
                Arc::downgrade(attach),
            )));
        }
        Attached {
            attach,
            learned: Mutex::new(HashMap::new()),
        }
    }

    pub(super) fn set_machines(&self, machines: Vec<Reservation>) -> Result<(), BridgeError> {
        self.attach()?.set_machines(machines)
    }

    pub(super) fn plug(&self, name: &str) -> Result<Plug, BridgeError> {
        Ok(Plug {
            tap: Some(self.attach()?.tap(name)?),
            namespaces: Vec::new(),
        })
    }

    /// Watches the tap of a machine that has one.
    pub(super) fn join(&self, name: &str) {
        if let Err(error) = self.attach().and_then(|attach| attach.watch(name)) {
            let error = in_one_line(&error);
            tracing::warn!(machine = name, error, "its addresses are not learned");
        }
    }

    pub(super) fn recall(&self, name: &str, seen: &[SeenRecord]) {
        let (now, clock) = (Instant::now(), SystemTime::now());
        let entry = |seen: &SeenRecord| {
            let source = match seen.source {
                SourceRecord::Lease => Source::Lease,
                SourceRecord::Frames => Source::Frames,
                SourceRecord::Agent | SourceRecord::Report => return None,
            };
            let until = seen.expires.as_deref().and_then(|text| {
                let at = humantime::parse_rfc3339(text).ok()?;
                // One that was over meanwhile is told to be.
                now.checked_add(at.duration_since(clock).unwrap_or_default())
            });
            Some(Entry::known(seen.ip, source, until, now))
        };
        if let Ok(attach) = self.attach() {
            attach.recall(name, seen.iter().filter_map(entry).collect());
        }
    }

    pub(super) fn learned(&self, name: &str, ip: Option<Ipv4Addr>) {
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        match ip {
            Some(ip) => learned.insert(name.to_owned(), ip),
            None => learned.remove(name),
        };
    }

    pub(super) fn ports(&self) -> Result<Vec<(String, Present)>, BridgeError> {
        self.attach()?.ports()
    }

    /// From the host itself, which has to have a way to the bridge's network.
    pub(super) async fn connect(
        &self,
        peer: &Peer,
        port: u16,
        deadline: Instant,
    ) -> io::Result<TcpStream> {
        let ip = {
            let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
            learned.get(&peer.machine).copied()
        };
        let ip = ip.ok_or_else(|| {
            let why = "no address of it was seen in use yet";
            io::Error::new(io::ErrorKind::HostUnreachable, why)
        })?;
        let connecting = TcpStream::connect((ip, port));
        match tokio::time::timeout_at(deadline.into(), connecting).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer from {ip} port {port}"),
            )),
        }
    }

    pub(in crate::supervisor) fn attach(&self) -> Result<&Attach, BridgeError> {
        self.attach
            .as_deref()
            .ok_or_else(|| BridgeError::Record(io::Error::other("the record names no bridge")))
    }
}

/// Hands on what the lease file says, for as long as anyone wants it.
async fn read_leases(path: PathBuf, attach: Weak<Attach>) {
    let followed = leases::follow(&path, |lease| {
        let Some(attach) = attach.upgrade() else {
            return false;
        };
        if let Some(time) = lease.left(SystemTime::now()) {
            attach.read_lease(lease.mac, lease.ip, time);
        }
        true
    });
    if let Err(error) = followed.await {
        let path = path.display();
        tracing::warn!(%error, "the lease file {path} is not read");
    }
}
