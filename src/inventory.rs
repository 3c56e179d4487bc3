//! What is already there, collected once: records, living machines, other clusters, ports, images.
//!
//! With [`crate::host`], the only reader of the world before a plan is made. It writes
//! nothing but the cache's remembered facts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::cluster::remote::RemoteImage;
use crate::cluster::{Cluster, DataSource, DiskImage, DiskSource, Image, Machine};
use crate::host::Host;
use crate::image::base::BaseFacts;
use crate::image::cache::{Cache, CacheError, Kept, Verified};
use crate::image::pins::{Pin, PinError, Pins};
use crate::image::source::Artifact;
use crate::image::store::{Store, StoreError};
use crate::image::{self, ImageError};
use crate::plan::{ImageFacts, Inventory, Known};
use crate::state::disks;
use crate::state::files::{self, StateError};
use crate::state::layout::{ClusterFiles, Roots};
use crate::state::record::{
    ClusterRecord, DiskRecord, KernelRecord, MachineRecord, RunRecord, StateRecord,
};
use crate::supervisor::process;

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
        inventory.taken_networks.push(record.subnet);
        inventory.taken_ports.extend(record.ports);
        inventory.taken_uids.extend(record.qemu_uid);
    }
    if let Some(record) = &record {
        // Also those that an `up` had struck off the record when it was killed, and not yet ended.
        let made = files::names_in(&ours.machines());
        for machine in made.iter().chain(&record.machines) {
            if let Some(known) = known(&ours, machine, &host.boot_id) {
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
    inventory.data_files = data_files(cluster)?;
    Ok(inventory)
}

/// The user's own data disks, each looked at as it is before each start.
fn data_files(cluster: &Cluster) -> Result<BTreeMap<PathBuf, u64>, InventoryError> {
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
            let (_, size) = image::data::open(path, *format, *readonly).map_err(|source| {
                InventoryError::DataFile {
                    machine: machine.name.to_string(),
                    serial: disk.serial.to_string(),
                    source,
                }
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
pub fn known(files: &ClusterFiles, name: &str, boot_id: &str) -> Option<Known> {
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
    let state = match &run {
        None => StateRecord::Stopped,
        Some(run) if run.boot_id != boot_id => StateRecord::Stopped,
        Some(run) => match &run.process {
            Some(process) if process::lives(process.pid, process.start_time, &record.uuid) => {
                run.state
            }
            Some(_) => StateRecord::Crashed,
            None => run.state,
        },
    };
    Some(Known::Whole {
        record: Box::new(record),
        run: run.map(Box::new),
        state,
    })
}

/// What images are looked at with.
struct Looking<'a> {
    host: &'a Host,
    store: Store,
    cache: Cache,
    pins: Pins,
}

/// A disk image as it was found.
struct Disk {
    base: BaseFacts,
    label: String,
    /// For an image that is known by its digest wherever it lies.
    identity: Option<String>,
    download: Option<String>,
}

/// Looks at the images of all machines: their headers, their digests where the spec gives one. Takes
/// as long as it takes to read them, once.
pub fn images(
    cluster: &Cluster,
    host: &Host,
    hashing: Hashing<'_>,
) -> Result<Images, InventoryError> {
    let looking = Looking {
        host,
        store: Store::new(&host.folders.cache, host.memo.clone()),
        cache: Cache::new(&host.folders.cache),
        pins: Pins::load(&cluster.folder).map_err(|source| InventoryError::Pins { source })?,
    };
    let mut images = BTreeMap::new();
    let mut seen: Vec<(&Machine, ImageFacts)> = Vec::new();
    for machine in &cluster.machines {
        // A name means another file for each architecture.
        let same =
            |it: &&(&Machine, ImageFacts)| it.0.image == machine.image && it.0.arch == machine.arch;
        let facts = match seen.iter().find(same) {
            Some((_, facts)) => facts.clone(),
            None => {
                let facts = looking.image(machine, hashing)?;
                seen.push((machine, facts.clone()));
                facts
            }
        };
        images.insert(machine.name.to_string(), facts);
    }
    Ok(images)
}

impl Looking<'_> {
    fn image(&self, machine: &Machine, hashing: Hashing<'_>) -> Result<ImageFacts, InventoryError> {
        let name = machine.name.as_str();
        let disk = match machine.image.disk() {
            None => None,
            Some(DiskSource::Local(disk)) => Some(self.local(name, disk, hashing)?),
            Some(DiskSource::Remote(image)) => Some(self.remote(machine, image)?),
        };
        let kernel = match &machine.image {
            Image::Disk(_) => None,
            Image::Kernel {
                kernel,
                initrd,
                cmdline,
                ..
            } => {
                let intern = |path: &Path| {
                    self.store
                        .intern(path, &mut |_| {})
                        .map_err(|source| InventoryError::Kernel {
                            machine: name.to_owned(),
                            source,
                        })
                };
                let record = KernelRecord {
                    kernel: intern(kernel)?.path,
                    initrd: initrd.as_deref().map(intern).transpose()?.map(|it| it.path),
                    cmdline: cmdline.clone(),
                };
                Some((record, file_name(kernel)))
            }
        };
        let (kernel, kernel_label) = kernel.unzip();
        let label = kernel_label.or_else(|| disk.as_ref().map(|disk| disk.label.clone()));
        let download = disk.as_ref().and_then(|disk| disk.download.clone());
        let known = disk.as_ref().and_then(|disk| disk.identity.clone());
        let disk = disk.map(|disk| DiskRecord {
            size: disk.base.virtual_size,
            base: disk.base,
        });
        Ok(ImageFacts {
            identity: known.unwrap_or_else(|| image_identity(kernel.as_ref(), disk.as_ref())),
            kernel,
            disk,
            label: label.unwrap_or_default(),
            download,
        })
    }

    fn local(
        &self,
        machine: &str,
        disk: &DiskImage,
        hashing: Hashing<'_>,
    ) -> Result<Disk, InventoryError> {
        let mut heard = |done, all| hashing(machine, done, all);
        let base = self.check(machine, disk, &mut heard)?;
        Ok(Disk {
            base,
            label: file_name(&disk.path),
            identity: None,
            download: None,
        })
    }

    /// An image that comes from a server: as it lies in the cache, or as far as it is known without
    /// asking anybody.
    fn remote(&self, machine: &Machine, image: &RemoteImage) -> Result<Disk, InventoryError> {
        let name = machine.name.as_str();
        let pin = self.pins.get(&image.source, machine.arch);
        let artifact =
            known_file(&self.pins, pin, image).map_err(|source| InventoryError::Pin { source })?;
        let kept =
            match &artifact {
                None => None,
                Some(artifact) => self.cache.find(&image.need(artifact)).map_err(|source| {
                    InventoryError::Cache {
                        machine: name.to_owned(),
                        source,
                    }
                })?,
            };
        let Some(Kept { record, path, .. }) = &kept else {
            return Ok(self.to_be_fetched(image, pin));
        };
        let local = DiskImage {
            path: path.clone(),
            format: record.format(),
            sha256: None,
        };
        let base = self.check(name, &local, &mut |_, _| {})?;
        Ok(Disk {
            base: BaseFacts {
                sha256: Some(record.unpacked_sha256.clone()),
                ..base
            },
            label: match record.verified {
                Verified::No => format!("{} (not verified)", record.image),
                Verified::Digest | Verified::Signature => record.image.clone(),
            },
            identity: Some(format!("{} {}", record.format, record.unpacked_sha256)),
            download: None,
        })
    }

    fn to_be_fetched(&self, image: &RemoteImage, pin: Option<&Pin>) -> Disk {
        let label = match pin {
            Some(pin) => image.source.at(&pin.release),
            None => image.source.to_string(),
        };
        let size = pin.and_then(|pin| pin.size);
        let size = size.map_or(String::new(), |size| {
            format!(" ({} MiB)", size.div_ceil(1 << 20))
        });
        let digest = pin.and_then(|pin| pin.unpacked_sha256.clone());
        Disk {
            base: BaseFacts {
                path: self.cache.folder().join("to-be-fetched"),
                format: image.source.format(),
                length: 0,
                file: None,
                virtual_size: 0,
                sha256: digest,
            },
            download: Some(format!("will download {label}{size}")),
            identity: Some(format!("to be fetched: {label}")),
            label,
        }
    }

    fn check(
        &self,
        machine: &str,
        disk: &DiskImage,
        heard: &mut dyn FnMut(u64, u64),
    ) -> Result<BaseFacts, InventoryError> {
        image::base::check(disk, &self.host.memo, heard).map_err(|source| InventoryError::Image {
            machine: machine.to_owned(),
            source,
        })
    }
}

/// The file that an image means, where that is known without asking its server.
pub fn known_file(
    pins: &Pins,
    pin: Option<&Pin>,
    image: &RemoteImage,
) -> Result<Option<Artifact>, PinError> {
    use crate::cluster::remote::Source;
    match (&image.source, pin) {
        (
            Source::Address {
                url,
                sha256: Some(sha256),
                ..
            },
            _,
        ) => Ok(Some(Artifact {
            release: String::new(),
            url: url.clone(),
            signature: None,
            sha256: Some(sha256.clone()),
            unpacked_sha256: None,
        })),
        (_, Some(pin)) => pins.artifact(pin).map(Some),
        (_, None) => Ok(None),
    }
}

/// The images that machines of any cluster stand on, and the machines whose records cannot be read.
pub fn standing_on(roots: &Roots) -> (BTreeMap<std::path::PathBuf, Vec<String>>, Vec<String>) {
    let mut users: BTreeMap<_, Vec<String>> = BTreeMap::new();
    let mut damaged = Vec::new();
    for cluster in cluster_names(roots) {
        let files = roots.cluster(&cluster);
        for machine in files::names_in(&files.machines()) {
            let name = format!("{cluster}/{machine}");
            match files::load::<MachineRecord>(&files.machine(&machine).record()) {
                Ok(Some(record)) => {
                    if let Some(disk) = record.disk {
                        users.entry(disk.base.path).or_default().push(name);
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

/// A disk belongs to its base; a kernel beside it may change like any other program.
fn image_identity(kernel: Option<&KernelRecord>, disk: Option<&DiskRecord>) -> String {
    let text = match (disk, kernel) {
        (Some(disk), _) => serde_json::to_string(&disk.base),
        (None, kernel) => serde_json::to_string(&kernel),
    };
    let digest = Sha256::digest(text.unwrap_or_default());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
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
