//! Disks that kiln made and somebody removed: what was on them is lost, and nobody is to find that
//! out by an empty one in its place.

use crate::cluster::ROOT_SERIAL;
use crate::plan::{GoneDisk, Inventory, Known};
use crate::state::layout::ClusterFiles;

/// The disks of the cluster that were there once and are not.
pub(super) fn disks(files: &ClusterFiles, inventory: &Inventory) -> Vec<GoneDisk> {
    let data = files.disks();
    let listed = inventory.disks.iter().flat_map(|record| &record.disks);
    let made = listed.filter(|disk| disk.is_made).map(|disk| GoneDisk {
        machine: disk.machine.clone(),
        serial: disk.serial.clone(),
        path: data.disk(&disk.machine, &disk.serial),
    });
    let machines = inventory.machines.iter();
    let roots = machines.filter_map(|(name, known)| {
        let Known::Whole { record, .. } = known else {
            return None;
        };
        let own = files.machine(name);
        // One that is made anew loses its key before its disk: that `up` was killed.
        let is_whole = own.host_key().exists();
        (record.disk.is_some() && is_whole).then(|| GoneDisk {
            machine: name.clone(),
            serial: ROOT_SERIAL.to_owned(),
            path: own.disk(),
        })
    });
    // One that cannot be looked at is not known to be gone.
    let is_gone = |disk: &GoneDisk| disk.path.try_exists().is_ok_and(|is_there| !is_there);
    made.chain(roots).filter(is_gone).collect()
}
