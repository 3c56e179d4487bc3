//! Disks that kiln made and somebody removed: what was on them is lost, and nobody is to find that
//! out by an empty one in its place.

use crate::cluster::ROOT_SERIAL;
use crate::plan::{GoneDisk, Inventory, Known};
use crate::state::layout::ClusterFiles;
use crate::state::record::VolumeRecord;

/// The disks of the cluster that were there once and are not.
pub(super) fn disks(files: &ClusterFiles, inventory: &Inventory) -> Vec<GoneDisk> {
    let data = files.disks();
    let listed = inventory.disks.iter().flat_map(|record| &record.disks);
    let made = listed.filter(|disk| disk.is_made).map(|disk| {
        let volume = disk.volume.as_ref();
        let gone = GoneDisk {
            machine: disk.machine.clone(),
            serial: disk.serial.clone(),
            path: volume.map_or_else(
                || data.disk(&disk.machine, &disk.serial),
                VolumeRecord::path,
            ),
        };
        (gone, volume)
    });
    let machines = inventory.machines.iter();
    let roots = machines.filter_map(|(name, known)| {
        let Known::Whole { record, .. } = known else {
            return None;
        };
        let own = files.machine(name);
        // One that is made anew loses its key before its disk: that `up` was killed.
        let is_whole = own.host_key().exists();
        let disk = record.disk.as_ref().filter(|_| is_whole)?;
        let volume = disk.volume.as_ref();
        let gone = GoneDisk {
            machine: name.clone(),
            serial: ROOT_SERIAL.to_owned(),
            path: volume.map_or_else(|| own.disk(), VolumeRecord::path),
        };
        Some((gone, volume))
    });
    // One that cannot be looked at is not known to be gone.
    let is_gone = |(disk, volume): &(GoneDisk, Option<&VolumeRecord>)| match volume {
        None => disk.path.try_exists().is_ok_and(|is_there| !is_there),
        Some(volume) => match &inventory.group {
            Some(Ok(facts)) if facts.group.uuid == volume.group_uuid => !facts.has(volume),
            Some(_) | None => false,
        },
    };
    let gone = made.chain(roots).filter(is_gone);
    gone.map(|(disk, _)| disk).collect()
}
