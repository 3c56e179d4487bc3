//! A machine's data disks: made, grown, and taken back.

use std::collections::BTreeSet;
use std::path::Path;

use crate::cluster::{DataFormat, ROOT_SERIAL, Size};
use crate::image::ImageError;
use crate::image::data;
use crate::image::overlay::{self, OverlayError};
use crate::lvm::program::Lvm;
use crate::state::disks;
use crate::state::files::{self, StateError};
use crate::state::layout::{ClusterFiles, MachineFiles};
use crate::state::record::{DataSourceRecord, MachineRecord};

/// Why a machine does not get a data disk.
#[derive(Debug, thiserror::Error)]
pub enum DataDiskError {
    #[error("cannot make disk `{serial}` of machine `{machine}`")]
    Make {
        machine: String,
        serial: String,
        #[source]
        source: OverlayError,
    },
    #[error("disk `{serial}` of machine `{machine}` is not as kiln made it")]
    Judge {
        machine: String,
        serial: String,
        #[source]
        source: ImageError,
    },
}

/// Makes the machine's data disks that are not there, and grows those that are too small. They
/// stand in the cluster's list already, and nobody uses them.
pub(super) fn make(
    record: &MachineRecord,
    qemu_img: &Path,
    own: &MachineFiles,
) -> Result<(), Box<DataDiskError>> {
    for disk in &record.data_disks {
        let DataSourceRecord::Made {
            size, volume: None, ..
        } = disk.source
        else {
            continue;
        };
        let path = own.data_disk(&disk.serial);
        let size = Size::from_bytes(size);
        let made = if path.exists() {
            // A guest has had it: qemu-img sees no header that was not judged.
            data::open(&path, DataFormat::Qcow2, true).map_err(|source| DataDiskError::Judge {
                machine: record.name.clone(),
                serial: disk.serial.clone(),
                source,
            })?;
            overlay::grow(qemu_img, &path, size)
        } else {
            overlay::blank(qemu_img, &path, size)
        };
        made.map_err(|source| DataDiskError::Make {
            machine: record.name.clone(),
            serial: disk.serial.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Looks at a root disk that a guest has had, before qemu-img does.
pub(super) fn judge(machine: &str, path: &Path) -> Result<(), Box<DataDiskError>> {
    match data::open_overlay(path) {
        Ok(_) => Ok(()),
        Err(source) => Err(Box::new(DataDiskError::Judge {
            machine: machine.to_owned(),
            serial: ROOT_SERIAL.to_owned(),
            source,
        })),
    }
}

/// Removes those of the `new` disks (machine and serial) that no machine has, or all of them
/// where no machine `may_stay`.
pub(super) fn take_back(
    files: &ClusterFiles,
    new: &BTreeSet<(String, String)>,
    may_stay: bool,
    lvm: &Lvm,
) -> Result<(), StateError> {
    let own = files.disks();
    let Some(record) = disks::load(&own)? else {
        return disks::sweep(&own);
    };
    let has = |machine: &str, serial: &str| {
        if !may_stay {
            return false;
        }
        match files::load::<MachineRecord>(&files.machine(machine).record()) {
            Ok(Some(record)) => record.data_disks.iter().any(|disk| disk.serial == serial),
            Ok(None) => false,
            // What cannot be read may name it.
            Err(_) => true,
        }
    };
    disks::remove(&own, record, lvm, |disk| {
        let key = (disk.machine.clone(), disk.serial.clone());
        new.contains(&key) && !has(&disk.machine, &disk.serial)
    })
    .map(drop)
}
