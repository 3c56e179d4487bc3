//! The data disks of a plan: what each machine gets, and what becomes of the list of them.

use std::collections::BTreeSet;

use super::volumes::{self, Owner, VolumeFault};
use super::{HostFacts, Inventory, Plan, PlanError};
use crate::cluster::{DataSource, Machine, Size};
use crate::state::files::SCHEMA;
use crate::state::record::{
    ClusterRecord, DataDiskRecord, DataSourceRecord, DisksRecord, MadeDiskRecord, VolumeRecord,
};

/// The machine's data disks. One that was made before, for a machine of this name, is the same
/// disk: it grows and never shrinks.
pub(super) fn choose(
    machine: &Machine,
    inventory: &Inventory,
    cluster: &ClusterRecord,
    host: &HostFacts,
) -> Result<Vec<DataDiskRecord>, PlanError> {
    let name = machine.name.as_str();
    let uuid = host.files.uuid(name);
    let mut chosen = Vec::new();
    for disk in &machine.disks {
        let serial = disk.serial.as_str();
        let source = match &disk.source {
            DataSource::Made { size, keep } => {
                let made = inventory
                    .disks
                    .as_ref()
                    .and_then(|made| made.find(name, serial));
                let owner = Owner::new(cluster, &uuid, machine, serial);
                let (want, volume) = place(*size, made, inventory, &owner)?;
                if let Some(made) = made
                    && want < made.size
                {
                    return Err(PlanError::DataDiskShrinks {
                        machine: name.to_owned(),
                        serial: serial.to_owned(),
                        want: *size,
                        least: Size::from_bytes(made.size),
                    });
                }
                DataSourceRecord::Made {
                    size: want,
                    keep: *keep,
                    volume: volume.map(Box::new),
                }
            }
            DataSource::File {
                path,
                format,
                readonly,
            } => DataSourceRecord::File {
                size: inventory.data_files.get(path).copied().unwrap_or_default(),
                path: path.clone(),
                format: *format,
                readonly: *readonly,
            },
        };
        chosen.push(DataDiskRecord {
            serial: serial.to_owned(),
            sector: disk.sector.into(),
            source,
        });
    }
    Ok(chosen)
}

/// How large the disk has to be, in bytes, and the volume that it is, if it is one. A disk stays
/// where it was made, whatever the spec says of new ones.
fn place(
    size: Size,
    made: Option<&MadeDiskRecord>,
    inventory: &Inventory,
    owner: &Owner<'_>,
) -> Result<(u64, Option<VolumeRecord>), PlanError> {
    let asked = size.bytes();
    let volume = match made {
        None => match volumes::group(inventory)? {
            None => return Ok((asked, None)),
            Some(group) => {
                let volume = volumes::new(group, owner)?;
                return Ok((group.rounded(asked), Some(volume)));
            }
        },
        Some(made) => match &made.volume {
            None => return Ok((asked, None)),
            Some(volume) => volume,
        },
    };
    let made = made.map_or(0, |made| made.size);
    match volumes::group(inventory)? {
        Some(group) if group.group.uuid == volume.group_uuid => {
            Ok((group.rounded(asked), Some(volume.clone())))
        }
        // Only its group says what it may have been rounded to.
        Some(_) | None if asked <= made => Ok((made, Some(volume.clone()))),
        Some(_) | None => Err(VolumeFault::Elsewhere {
            group: volume.group.clone(),
            machine: owner.machine.to_owned(),
            serial: owner.serial.to_owned(),
            size: Size::from_bytes(made),
        }
        .into()),
    }
}

/// Whether a disk has to be made for the machine.
pub(super) fn any_new(machine: &Machine, inventory: &Inventory) -> bool {
    let made = |serial| {
        let disks = inventory.disks.as_ref()?;
        disks.find(machine.name.as_str(), serial)
    };
    machine.disks.iter().any(|disk| {
        matches!(disk.source, DataSource::Made { .. }) && made(disk.serial.as_str()).is_none()
    })
}

/// What a machine that leaves the spec loses and keeps, in words.
pub(super) fn on_removal(name: &str, has_root: bool, disks: Option<&DisksRecord>) -> Vec<String> {
    let mut told = Vec::new();
    if has_root {
        told.push("what is on its root disk is lost".to_owned());
    }
    for disk in disks.iter().flat_map(|record| &record.disks) {
        if disk.machine == name {
            let fate = if disk.keep {
                ""
            } else {
                "; `kiln down` removes it"
            };
            told.push(format!(
                "its disk `{}` ({}) is kept{fate}",
                disk.serial,
                Size::from_bytes(disk.size)
            ));
        }
    }
    told
}

impl Plan {
    /// The list as it has to be before a disk is made: the new ones are in it, and the others are
    /// as large as they were.
    pub fn disks_begun(&self) -> Option<DisksRecord> {
        self.disks(|before, _| before)
    }

    /// The list when all is done.
    pub fn disks_done(&self) -> Option<DisksRecord> {
        self.disks(|_, after| after)
    }

    fn disks(&self, size: impl Fn(u64, u64) -> u64) -> Option<DisksRecord> {
        let mut record = self.disks_before.clone().unwrap_or_else(|| DisksRecord {
            schema: SCHEMA,
            spec: self.cluster.spec.clone(),
            disks: Vec::new(),
        });
        for wanted in self.made() {
            let same = |disk: &&mut MadeDiskRecord| {
                disk.machine == wanted.machine && disk.serial == wanted.serial
            };
            match record.disks.iter_mut().find(same) {
                Some(disk) => {
                    disk.size = size(disk.size, wanted.size);
                    disk.keep = wanted.keep;
                    disk.volume = wanted.volume;
                }
                None => record.disks.push(wanted),
            }
        }
        (!record.disks.is_empty()).then_some(record)
    }

    /// The disks that are made for this plan: machine and serial.
    pub fn new_disks(&self) -> BTreeSet<(String, String)> {
        let before = self.disks_before.as_ref();
        self.made()
            .filter(|disk| {
                before.is_none_or(|before| before.find(&disk.machine, &disk.serial).is_none())
            })
            .map(|disk| (disk.machine, disk.serial))
            .collect()
    }

    /// All data disks of kiln's that the machines of the plan are to have.
    fn made(&self) -> impl Iterator<Item = MadeDiskRecord> {
        let records = self.steps.iter().filter_map(|step| step.record.as_ref());
        records.flat_map(|record| {
            record
                .data_disks
                .iter()
                .filter_map(|disk| match &disk.source {
                    DataSourceRecord::Made { size, keep, volume } => Some(MadeDiskRecord {
                        machine: record.name.clone(),
                        serial: disk.serial.clone(),
                        size: *size,
                        keep: *keep,
                        volume: volume.as_deref().cloned(),
                    }),
                    DataSourceRecord::File { .. } => None,
                })
        })
    }
}
