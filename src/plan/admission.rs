//! Whether this host has room for what a plan would run.

use super::{Action, Inventory, Known, Plan, PlanError};
use crate::cluster::Size;
use crate::state::record::{DataSourceRecord, MachineRecord};

impl Plan {
    /// Refuses a plan whose machines want more memory than the host has left. What runs already
    /// counts in full: a guest may come to use all that it has.
    ///
    /// # Errors
    /// [`PlanError::NoMemory`].
    pub fn admit(&self, inventory: &Inventory) -> Result<(), PlanError> {
        let Some(left) = inventory.room.memory.filter(|_| self.starts()) else {
            return Ok(());
        };
        let planned = self.steps.iter().filter_map(|step| step.record.as_ref());
        let alive = inventory.alive();
        let others = inventory
            .machines
            .iter()
            .filter(|(name, _)| alive.contains(name))
            .filter(|(name, _)| !self.steps.iter().any(|step| step.name == **name))
            .filter_map(|(_, known)| match known {
                Known::Whole { record, .. } => Some(record.as_ref()),
                Known::Damaged { .. } => None,
            });
        let wanted: u64 = planned.chain(others).map(memory).sum();
        let held = inventory.memory_held;
        if wanted.saturating_sub(held) <= left {
            return Ok(());
        }
        Err(PlanError::NoMemory {
            wanted: in_mebibytes(wanted),
            held: in_mebibytes(held),
            left: in_mebibytes(left),
        })
    }

    /// What may turn out to be too much, and is not refused.
    pub fn doubts(&self, inventory: &Inventory) -> Vec<String> {
        let mut doubts = Vec::new();
        let made = |action| match action {
            Action::Create | Action::Recreate | Action::Restart | Action::Start => true,
            Action::Keep | Action::Change | Action::Remove => false,
        };
        let mut disks = 0;
        for step in self.steps.iter().filter(|step| made(step.action)) {
            let Some(record) = &step.record else { continue };
            if let Some(processors) = inventory.room.processors
                && usize::from(record.cpus) > processors
            {
                doubts.push(format!(
                    "{} has {} cpus, and this host {processors}: it will be slow",
                    step.name, record.cpus
                ));
            }
            if matches!(step.action, Action::Create | Action::Recreate) {
                disks += record.disk.as_ref().map_or(0, |disk| disk.size);
            }
        }
        for (machine, serial) in self.new_disks() {
            let of = |step: &&super::Step| step.name == machine;
            let record = self.steps.iter().find(of).and_then(|it| it.record.as_ref());
            let disk = record.and_then(|it| it.data_disks.iter().find(|it| it.serial == serial));
            if let Some(DataSourceRecord::Made { size, .. }) = disk.map(|disk| &disk.source) {
                disks += size;
            }
        }
        if let Some(left) = inventory.room.disk
            && disks > left
        {
            doubts.push(format!(
                "the new disks may come to hold {}, and there is room for {}: they take it as they are written to",
                in_mebibytes(disks),
                in_mebibytes(left)
            ));
        }
        doubts
    }
}

fn memory(record: &MachineRecord) -> u64 {
    u64::from(record.memory_mib) << 20
}

/// Rounded down, as people read it.
fn in_mebibytes(bytes: u64) -> Size {
    Size::from_bytes(bytes >> 20 << 20)
}
