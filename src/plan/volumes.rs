//! The logical volumes of a plan: which disk is which volume, and whether the group has room.

use crate::cluster::{Machine, Size};
use crate::lvm::name;
use crate::lvm::program;
use crate::lvm::report::{Group, Volume};
use crate::plan::{Action, Inventory, Plan, Step};
use crate::state::record::{ClusterRecord, DataSourceRecord, VolumeRecord};

/// The volume group of the spec, as a plan has to know it.
#[derive(Debug, Clone)]
pub struct GroupFacts {
    pub group: Group,
    /// All that are in it, of whatever origin.
    pub volumes: Vec<Volume>,
    /// Random: goes into the tags of new volumes.
    pub token: String,
}

/// Why the group cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot put disks into volume group `{group}`: {why}")]
pub struct GroupRefusal {
    pub group: String,
    pub why: String,
    /// The command that installs what is missing.
    pub install: Option<String>,
}

/// Why the disks cannot be volumes as the spec asks.
#[derive(Debug, thiserror::Error)]
pub enum VolumeFault {
    #[error(transparent)]
    Group(GroupRefusal),
    #[error(
        "volume group `{group}` has {free} free, and the disks that are to be made or to grow take {need}"
    )]
    Full {
        group: String,
        need: Size,
        free: Size,
    },
    #[error("volume group `{group}` has a volume `{name}`, which is not this cluster's")]
    Taken { group: String, name: String },
    #[error("it is not clear which volume of group `{group}` is kiln's")]
    Unclear {
        group: String,
        #[source]
        source: program::LvmError,
    },
    #[error(
        "a volume for disk `{serial}` of machine `{machine}` would have too long a name for volume group `{group}`"
    )]
    LongName {
        group: String,
        machine: String,
        serial: String,
    },
    #[error(
        "disk `{serial}` of machine `{machine}` is a volume of {size} in group `{group}`, which is not the spec's, and so it does not grow"
    )]
    Elsewhere {
        group: String,
        machine: String,
        serial: String,
        size: Size,
    },
}

impl GroupFacts {
    /// Whether a volume with this one's tag is there, whatever else is known of it.
    pub fn has(&self, record: &VolumeRecord) -> bool {
        let mut volumes = self.volumes.iter();
        volumes.any(|volume| volume.has_tag(&record.tag))
    }

    /// So many bytes in whole extents, still in bytes.
    pub(super) fn rounded(&self, bytes: u64) -> u64 {
        bytes
            .checked_next_multiple_of(self.group.extent)
            .unwrap_or(bytes)
    }

    fn extents(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.group.extent)
    }

    fn find(&self, record: &VolumeRecord) -> Result<Option<Volume>, VolumeFault> {
        program::ours(record, self.volumes.clone()).map_err(|source| VolumeFault::Unclear {
            group: self.group.name.clone(),
            source,
        })
    }
}

/// The spec's group; `None` where the spec has none.
pub(super) fn group(inventory: &Inventory) -> Result<Option<&GroupFacts>, VolumeFault> {
    match &inventory.group {
        None => Ok(None),
        Some(Ok(facts)) => Ok(Some(facts)),
        Some(Err(refusal)) => Err(VolumeFault::Group(refusal.clone())),
    }
}

/// The volume of a machine's root disk: the one that was made or begun before, or a new one.
pub(super) fn root(
    facts: &GroupFacts,
    inventory: &Inventory,
    owner: &Owner<'_>,
) -> Result<VolumeRecord, VolumeFault> {
    let known = inventory
        .root_volumes
        .iter()
        .rev()
        .find(|(machine, volume)| {
            machine == owner.machine && volume.group_uuid == facts.group.uuid
        });
    match known {
        Some((_, volume)) => Ok(volume.clone()),
        None => new(facts, owner),
    }
}

/// Whose a volume is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner<'a> {
    pub(super) cluster: &'a str,
    /// The machine's, which no other cluster has.
    pub(super) uuid: &'a str,
    pub(super) machine: &'a str,
    pub(super) serial: &'a str,
}

impl<'a> Owner<'a> {
    pub(super) fn new(
        cluster: &'a ClusterRecord,
        uuid: &'a str,
        machine: &'a Machine,
        serial: &'a str,
    ) -> Owner<'a> {
        Owner {
            cluster: &cluster.name,
            uuid,
            machine: machine.name.as_str(),
            serial,
        }
    }
}

/// A volume that there is none of yet.
pub(super) fn new(facts: &GroupFacts, owner: &Owner<'_>) -> Result<VolumeRecord, VolumeFault> {
    let group = &facts.group.name;
    let Owner {
        cluster,
        uuid,
        machine,
        serial,
    } = *owner;
    let name =
        name::volume(group, cluster, machine, serial).ok_or_else(|| VolumeFault::LongName {
            group: group.clone(),
            machine: machine.to_owned(),
            serial: serial.to_owned(),
        })?;
    Ok(VolumeRecord {
        group: group.clone(),
        group_uuid: facts.group.uuid.clone(),
        name,
        tag: name::tag(uuid, machine, serial, &facts.token),
        made: None,
    })
}

impl Plan {
    /// Whether the spec's group has room for all that the plan makes and grows, and the names are
    /// free. What the plan removes counts as free.
    ///
    /// # Errors
    /// [`VolumeFault`] with the numbers.
    pub fn check_volumes(&self, inventory: &Inventory) -> Result<(), VolumeFault> {
        let Some(facts) = group(inventory)? else {
            return Ok(());
        };
        let mut need = 0;
        let mut gone: Vec<Volume> = Vec::new();
        let mut made: Vec<&VolumeRecord> = Vec::new();
        for step in &self.steps {
            let anew = match step.action {
                Action::Create | Action::Recreate | Action::Remove => true,
                Action::Keep | Action::Change | Action::Start | Action::Restart => false,
            };
            if anew {
                for (machine, volume) in &inventory.root_volumes {
                    if *machine == step.name {
                        gone.extend(facts.find(volume)?);
                    }
                }
            }
            if step.action == Action::Keep {
                continue;
            }
            for (volume, size, is_root) in volumes(step) {
                if volume.group_uuid != facts.group.uuid {
                    continue;
                }
                let extents = facts.extents(size);
                match facts.find(volume)? {
                    Some(found) if found.is_finished() && !(anew && is_root) => {
                        need += extents.saturating_sub(facts.extents(found.size));
                    }
                    found => {
                        need += extents;
                        made.push(volume);
                        gone.extend(found);
                    }
                }
            }
        }
        gone.sort_by(|a, b| a.uuid.cmp(&b.uuid));
        gone.dedup();
        let is_taken = |volume: &&&VolumeRecord| {
            let mut stay = facts.volumes.iter().filter(|other| !gone.contains(other));
            stay.any(|other| other.name == volume.name)
        };
        if let Some(volume) = made.iter().find(is_taken) {
            return Err(VolumeFault::Taken {
                group: facts.group.name.clone(),
                name: volume.name.clone(),
            });
        }
        let freed: u64 = gone.iter().map(|volume| facts.extents(volume.size)).sum();
        let free = facts.group.free + freed;
        if need > free {
            let size = |extents: u64| Size::from_bytes(extents.saturating_mul(facts.group.extent));
            return Err(VolumeFault::Full {
                group: facts.group.name.clone(),
                need: size(need),
                free: size(free),
            });
        }
        Ok(())
    }
}

/// The volumes that the machine is to have, with their sizes in bytes, and whether it is the root
/// disk's.
fn volumes(step: &Step) -> impl Iterator<Item = (&VolumeRecord, u64, bool)> {
    let record = step.record.iter();
    record.flat_map(|record| {
        let root = record
            .disk
            .iter()
            .filter_map(|disk| Some((disk.volume.as_ref()?, disk.size, true)));
        let data = record
            .data_disks
            .iter()
            .filter_map(|disk| match &disk.source {
                DataSourceRecord::Made { size, volume, .. } => {
                    Some((volume.as_deref()?, *size, false))
                }
                DataSourceRecord::File { .. } => None,
            });
        root.chain(data)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(free: u64, volumes: &str) -> GroupFacts {
        let text = format!(r#"{{"report": [{{"lv": [{volumes}]}}]}}"#);
        GroupFacts {
            group: Group {
                uuid: "g".to_owned(),
                name: "vg0".to_owned(),
                extent: 4 << 20,
                free,
            },
            volumes: crate::lvm::report::volumes(&text).unwrap(),
            token: "t".to_owned(),
        }
    }

    #[test]
    fn sizes_are_whole_extents() {
        let facts = facts(1, "");
        let mib = |count: u64| count << 20;
        for (asked, want) in [(1, mib(4)), (mib(4), mib(4)), (mib(4) + 1, mib(8))] {
            assert_eq!(facts.rounded(asked), want);
        }
        assert_eq!(facts.rounded(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_root_volume_that_was_begun_is_gone_on_with_and_another_group_is_another_volume() {
        let facts = facts(1, "");
        let owner = Owner {
            cluster: "demo",
            uuid: "u",
            machine: "node-1",
            serial: "root",
        };
        let new = new(&facts, &owner).unwrap();
        assert_eq!(new.name, "kiln.demo.node-1.root");
        assert_eq!(new.tag, "kiln/u/node-1/root/t");
        let begun = VolumeRecord {
            tag: "kiln/u/node-1/root/earlier".to_owned(),
            ..new.clone()
        };
        let elsewhere = VolumeRecord {
            group_uuid: "h".to_owned(),
            tag: "kiln/u/node-1/root/elsewhere".to_owned(),
            ..new.clone()
        };
        let chosen = |volumes: &[(&str, &VolumeRecord)]| {
            let known = volumes
                .iter()
                .map(|(name, it)| ((*name).to_owned(), (*it).clone()));
            let inventory = Inventory {
                root_volumes: known.collect(),
                ..Inventory::default()
            };
            root(&facts, &inventory, &owner).unwrap()
        };
        assert_eq!(chosen(&[]), new);
        assert_eq!(chosen(&[("node-1", &begun), ("node-1", &elsewhere)]), begun);
        assert_eq!(chosen(&[("node-2", &begun), ("node-1", &elsewhere)]), new);
    }

    #[test]
    fn a_name_that_is_too_long_is_refused() {
        let owner = Owner {
            cluster: &"c".repeat(40),
            uuid: "u",
            machine: &"m".repeat(63),
            serial: &"s".repeat(20),
        };
        let refused = new(&facts(1, ""), &owner).unwrap_err();
        assert!(matches!(refused, VolumeFault::LongName { .. }), "{refused}");
    }
}
