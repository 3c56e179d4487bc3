//! What is already there, collected once: records, living machines, other clusters, ports, images.
//!
//! With [`crate::host`], the only reader of the world before a plan is made. It writes
//! nothing but the cache's remembered facts.

mod gone;
pub mod images;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::cluster::{Cluster, DataSource};
use crate::host::Host;
use crate::host::room::{self, Room};
use crate::image::cache::CacheError;
use crate::image::pins::PinError;
use crate::image::store::StoreError;
use crate::image::{self, ImageError};
use crate::plan::{ImageFacts, Inventory, Known};
use crate::state::disks;
use crate::state::files::{self, StateError};
use crate::state::layout::{ClusterFiles, Roots};
use crate::state::ledger;
use crate::state::record::{
    ClusterRecord, DataSourceRecord, MachineRecord, ProcessRecord, RunRecord, StateRecord,
};
use crate::supervisor::process::{self, Carriers};

/// Why the world could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    #[error("cannot use the record of cluster `{cluster}`")]
    Cluster {
        cluster: String,
        #[source]
        source: StateError,
    },
    #[error("cannot use the list of data disks of cluster `{cluster}`")]
    Disks {
        cluster: String,
        #[source]
        source: StateError,
    },
    #[error("cannot use disk `{serial}` of machine `{machine}`")]
    DataFile {
        machine: String,
        serial: String,
        #[source]
        source: ImageError,
    },
    #[error("cannot use the image of machine `{machine}`")]
    Image {
        machine: String,
        #[source]
        source: ImageError,
    },
    #[error("cannot use the kernel of machine `{machine}`")]
    Kernel {
        machine: String,
        #[source]
        source: StoreError,
    },
    #[error("cannot use the pinned releases")]
    Pins {
        #[source]
        source: StateError,
    },
    #[error("cannot use a pinned release")]
    Pin {
        #[source]
        source: PinError,
    },
    #[error("cannot use the cached image of machine `{machine}`")]
    Cache {
        machine: String,
        #[source]
        source: CacheError,
    },
}

/// Tells how far the hashing of an image has come: machine, bytes done, bytes in all.
pub type Hashing<'a> = &'a mut dyn FnMut(&str, u64, u64);

/// What each machine's image turned out to be, by machine.
pub type Images = BTreeMap<String, ImageFacts>;

/// Collects what a plan for `cluster` has to know besides its `images`. Takes milliseconds.
pub fn collect(
    cluster: &Cluster,
    host: &Host,
    roots: &Roots,
    images: Images,
) -> Result<Inventory, InventoryError> {
    let name = cluster.name.as_str();
    let ours = roots.cluster(name);
    let record: Option<ClusterRecord> =
        files::load(&ours.record()).map_err(|source| InventoryError::Cluster {
            cluster: name.to_owned(),
            source,
        })?;
    let mut inventory = Inventory {
        taken_networks: host.routes.clone(),
        room: Room::look(&roots.clusters()),
        taken_networks6: host.routes6.clone(),
        // Only who wants a port asks: the kernel looks through all its connections for it.
        taken_ports: if cluster.machines.iter().any(|it| !it.ports.is_empty()) {
            listening_ports()
        } else {
            BTreeSet::new()
        },
        ..Inventory::default()
    };
    for other in cluster_names(roots) {
        if other == name {
            continue;
        }
        let files = roots.cluster(&other);
        // A damaged neighbour keeps nobody from making a cluster.
        let Ok(Some(record)) = files::load::<ClusterRecord>(&files.record()) else {
            continue;
        };
        inventory.taken_networks.extend(record.own_subnet());
        inventory.taken_networks6.extend(record.subnet6);
        inventory.taken_ports.extend(record.ports);
        inventory.taken_uids.extend(record.qemu_uid);
        let macs = record.reservations.into_values().map(|place| place.mac);
        let theirs = macs.map(|mac| (mac, other.clone()));
        inventory.taken_macs.extend(theirs);
    }
    if let Some(record) = &record {
        // Also those that an `up` had struck off the record when it was killed, and not yet ended.
        let made = files::names_in(&ours.machines());
        let carriers = Carriers::default();
        for machine in made.iter().chain(&record.machines) {
            if let Some(known) = known(&ours, machine, &host.boot_id, &carriers) {
                inventory.memory_held += held(&known);
                inventory.machines.insert(machine.clone(), known);
            }
        }
    }
    inventory.cluster = record;
    inventory.images = images;
    inventory.disks = disks::load(&ours.disks()).map_err(|source| InventoryError::Disks {
        cluster: name.to_owned(),
        source,
    })?;
    inventory.group = volumes::look(cluster, host);
    inventory.gone = gone::disks(&ours, &inventory);
    inventory.data_files = data_files(cluster, &inventory)?;
    if inventory.group.is_some() {
        inventory.root_volumes =
            ledger::volumes(&ours.ledger()).map_err(|source| InventoryError::Cluster {
                cluster: name.to_owned(),
                source,
            })?;
    }
    Ok(inventory)
}

/// What the machine's QEMU uses now, in bytes. What is not known is as none.
fn held(known: &Known) -> u64 {
    match known {
        Known::Whole { run, state, .. } if *state != StateRecord::Stopped => {
            let process = run.as_ref().and_then(|run| run.process.as_ref());
            process.and_then(|it| room::held_by(it.pid)).unwrap_or(0)
        }
        Known::Whole { .. } | Known::Damaged { .. } => 0,
    }
}

/// The user's own data disks, each looked at as it is before each start.
fn data_files(
    cluster: &Cluster,
    inventory: &Inventory,
) -> Result<BTreeMap<PathBuf, u64>, InventoryError> {
    let alive = inventory.alive();
    let is_ours = |wanted: &PathBuf| {
        inventory.machines.iter().any(|(name, known)| match known {
            Known::Whole { record, .. } => {
                alive.contains(name)
                    && record.data_disks.iter().any(|disk| match &disk.source {
                        DataSourceRecord::File { path, .. } => path == wanted,
                        DataSourceRecord::Made { .. } => false,
                    })
            }
            Known::Damaged { .. } => false,
        })
    };
    let mut sizes = BTreeMap::new();
    for machine in &cluster.machines {
        for disk in &machine.disks {
            let DataSource::File {
                path,
                format,
                readonly,
            } = &disk.source
            else {
                continue;
            };
            let opened = match image::data::open(path, *format, *readonly) {
                // A machine of this very cluster has the device.
                Err(ImageError::InUse { .. }) if is_ours(path) => {
                    image::data::open(path, *format, true)
                }
                opened => opened,
            };
            let (_, size) = opened.map_err(|source| InventoryError::DataFile {
                machine: machine.name.to_string(),
                serial: disk.serial.to_string(),
                source,
            })?;
            sizes.insert(path.clone(), size);
        }
    }
    Ok(sizes)
}

/// The names of all clusters that have a ledger: those that anything was made for.
pub fn cluster_names(roots: &Roots) -> Vec<String> {
    files::names_in(&roots.clusters())
        .iter()
        .filter_map(|name| Some(name.strip_suffix(".ledger")?.to_owned()))
        .collect()
}

/// What the files say of a machine, and whether its QEMU lives. `None` when it has no record: an
/// `up` was broken off before it had made the machine.
///
/// A QEMU that no record names lives all the same: its supervisor was killed before it wrote, or has
/// not written yet. It is found by its uuid.
pub fn known(
    files: &ClusterFiles,
    name: &str,
    boot_id: &str,
    carriers: &Carriers,
) -> Option<Known> {
    let machine = files.machine(name);
    let record = match files::load::<MachineRecord>(&machine.record()) {
        Ok(Some(record)) => record,
        Ok(None) => return None,
        Err(error) => {
            return Some(Known::Damaged {
                why: error.to_string(),
            });
        }
    };
    let run = files::load::<RunRecord>(&machine.run()).ok().flatten();
    let lives =
        |process: &ProcessRecord| process::lives(process.pid, process.start_time, &record.uuid);
    let recorded = run.as_ref().filter(|run| run.boot_id == boot_id);
    let state = match recorded.map(|run| (run, &run.process)) {
        Some((run, Some(process))) if lives(process) => run.state,
        _ if carriers.has(&record.uuid) => StateRecord::Running,
        Some((_, Some(_))) => StateRecord::Crashed,
        Some((run, None)) => run.state,
        None => StateRecord::Stopped,
    };
    Some(Known::Whole {
        record: Box::new(record),
        run: run.map(Box::new),
        state,
    })
}

/// The images and kernels that machines of any cluster stand on, and the machines whose records cannot be read.
pub fn standing_on(roots: &Roots) -> (BTreeMap<PathBuf, Vec<String>>, Vec<String>) {
    let mut users: BTreeMap<_, Vec<String>> = BTreeMap::new();
    let mut damaged = Vec::new();
    for cluster in cluster_names(roots) {
        let files = roots.cluster(&cluster);
        for machine in files::names_in(&files.machines()) {
            let name = format!("{cluster}/{machine}");
            match files::load::<MachineRecord>(&files.machine(&machine).record()) {
                Ok(Some(record)) => {
                    // Also that of a volume, which has a copy of it: the next `up` looks at it.
                    let base = record.disk.map(|disk| disk.base.path);
                    let kernel = record.kernel.map(|it| (it.kernel, it.initrd));
                    let (kernel, initrd) = kernel.unzip();
                    for path in base.into_iter().chain(kernel).chain(initrd.flatten()) {
                        users.entry(path).or_default().push(name.clone());
                    }
                }
                // Begun and not finished: whoever makes it holds its image.
                Ok(None) => {}
                Err(_) => damaged.push(name),
            }
        }
    }
    (users, damaged)
}

/// TCP ports that something on this host listens on, from `/proc/net/tcp` and `tcp6`.
fn listening_ports() -> BTreeSet<u16> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .flat_map(|text| parse_listening(&text))
        .collect()
}

/// The local ports of the lines in state `0A` (TCP_LISTEN, include/net/tcp_states.h).
fn parse_listening(text: &str) -> Vec<u16> {
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (_, port) = fields.next()?.rsplit_once(':')?;
            let state = fields.nth(1)?;
            (state == "0A").then(|| u16::from_str_radix(port, 16).ok())?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listeners_take_a_port() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue\n\
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000\n\
             1: 0100007F:0050 0100007F:C350 01 00000000:00000000 00:00000000\n\
             2: garbage\n";
        assert_eq!(parse_listening(text), [8080]);
    }
}
