//! The data disks of a plan: what each machine gets, and what becomes of the list of them.

use std::collections::BTreeSet;

use super::volumes::{self, Owner, VolumeFault};
use super::{Action, GoneDisk, HostFacts, Inventory, Plan, PlanError};
use crate::cluster::{DataSource, Machine, ROOT_SERIAL, Size};
use crate::state::files::SCHEMA;
use crate::state::record::{
    ClusterRecord, DataDiskRecord, DataSourceRecord, DisksRecord, MachineRecord, MadeDiskRecord,
    VolumeRecord,
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
                        line: machine.line,
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
            bus: disk.bus.into(),
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

/// The disks of the machine that it had and that are no longer there.
pub(super) fn gone(record: &MachineRecord, inventory: &Inventory) -> Vec<GoneDisk> {
    let has = |serial: &str| {
        serial == ROOT_SERIAL && record.disk.is_some()
            || record.data_disks.iter().any(|disk| {
                disk.serial == serial && matches!(disk.source, DataSourceRecord::Made { .. })
            })
    };
    let gone = inventory.gone.iter();
    gone.filter(|disk| disk.machine == record.name && has(&disk.serial))
        .cloned()
        .collect()
}

/// What `action` becomes when disks are made anew because they are gone: a new root disk is a
/// new machine, and a machine that runs is started with another data disk.
pub(super) fn made_anew(
    gone: &[GoneDisk],
    action: Action,
    mut why: Vec<String>,
) -> (Action, Vec<String>) {
    if gone.is_empty() {
        return (action, why);
    }
    for GoneDisk { serial, path, .. } in gone {
        why.push(format!(
            "its disk `{serial}` is gone, with what was on it: `{}`",
            path.display()
        ));
    }
    let has_root = gone.iter().any(|disk| disk.serial == ROOT_SERIAL);
    let action = match action {
        Action::Keep | Action::Change | Action::Restart | Action::Start if has_root => {
            Action::Recreate
        }
        Action::Keep | Action::Change => Action::Restart,
        Action::Create | Action::Recreate | Action::Restart | Action::Start | Action::Remove => {
            action
        }
    };
    (action, why)
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
    /// as they were.
    pub fn disks_begun(&self) -> Option<DisksRecord> {
        self.disks(|disk, wanted| disk.keep = wanted.keep)
    }

    /// The list when all is done.
    pub fn disks_done(&self) -> Option<DisksRecord> {
        self.disks(|disk, wanted| {
            *disk = MadeDiskRecord {
                is_made: true,
                ..wanted
            };
        })
    }

    fn disks(&self, becomes: impl Fn(&mut MadeDiskRecord, MadeDiskRecord)) -> Option<DisksRecord> {
        let mut record = self.disks_before.clone().unwrap_or_else(|| DisksRecord {
            schema: SCHEMA,
            spec: self.cluster.spec.clone(),
            disks: Vec::new(),
        });
        for wanted in self.made() {
            let same = |disk: &MadeDiskRecord| {
                disk.machine == wanted.machine && disk.serial == wanted.serial
            };
            let index = record.disks.iter().position(same).unwrap_or_else(|| {
                record.disks.push(wanted.clone());
                record.disks.len() - 1
            });
            becomes(&mut record.disks[index], wanted);
        }
        (!record.disks.is_empty()).then_some(record)
    }

    /// Which disks of which machines are larger when this plan is done, in words.
    pub fn growth(&self) -> Vec<String> {
        let steps = self.steps.iter().filter(|step| match step.action {
            Action::Change | Action::Start | Action::Restart => true,
            Action::Keep | Action::Recreate | Action::Create | Action::Remove => false,
        });
        let grown = steps.flat_map(|step| step.grown.iter().map(|disk| (&step.name, disk)));
        grown
            .map(|(machine, disk)| {
                let size = Size::from_bytes(disk.size);
                format!("disk `{}` of {machine} has grown to {size}", disk.serial)
            })
            .collect()
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
                        is_made: false,
                    }),
                    DataSourceRecord::File { .. } => None,
                })
        })
    }
}
