//! What the machines' images are, as far as that can be told without asking a server.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{Hashing, Images, InventoryError};
use crate::cluster::remote::{RemoteImage, Source};
use crate::cluster::{Cluster, DiskImage, DiskSource, Image, Machine};
use crate::host::Host;
use crate::image;
use crate::image::base::BaseFacts;
use crate::image::cache::{Cache, Kept, Verified};
use crate::image::pins::{Pin, PinError, Pins};
use crate::image::source::Artifact;
use crate::image::store::Store;
use crate::plan::ImageFacts;
use crate::state::record::{BusRecord, DiskRecord, KernelRecord};

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
        let mut held = Vec::new();
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
                let (kept, ram_disk) =
                    (intern(kernel)?, initrd.as_deref().map(intern).transpose()?);
                held.push(kept.held);
                held.extend(ram_disk.iter().map(|it| Arc::clone(&it.held)));
                let record = KernelRecord {
                    kernel: kept.path,
                    initrd: ram_disk.map(|it| it.path),
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
            bus: BusRecord::default(),
            base: disk.base,
            volume: None,
        });
        Ok(ImageFacts {
            identity: known.unwrap_or_else(|| image_identity(kernel.as_ref(), disk.as_ref())),
            kernel,
            disk,
            label: label.unwrap_or_default(),
            held,
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
        (source, Some(pin)) => pins.artifact(pin, source).map(Some),
        (_, None) => Ok(None),
    }
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
