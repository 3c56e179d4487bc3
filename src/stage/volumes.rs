//! Disks that are logical volumes: made, filled, grown, and taken back.
//!
//! A volume is named in ledger or list before it is made, and carries a tag until it has its
//! content, so that one which a killed `up` left is known and made anew. A guest never reads what
//! lay there before.

use std::path::Path;

use crate::cluster::ROOT_SERIAL;
use crate::image::BaseFacts;
use crate::image::fill::{self, FillError};
use crate::lvm::name;
use crate::lvm::node::{self, Hold, NodeError};
use crate::lvm::program::{Lvm, LvmError};
use crate::lvm::report::Volume;
use crate::plan::{Action, Plan};
use crate::state;
use crate::state::disks::{self, DisksError};
use crate::state::files::StateError;
use crate::state::layout::ClusterFiles;
use crate::state::ledger::{self, Entry, Ledger};
use crate::state::record::{DataSourceRecord, MachineRecord, MadeVolumeRecord, VolumeRecord};

/// Why a disk cannot be a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("cannot make disk `{serial}` of machine `{machine}` a logical volume")]
    Disk {
        machine: String,
        serial: String,
        #[source]
        source: DiskError,
    },
    #[error("cannot remove the old root disk of machine `{machine}`")]
    Old {
        machine: String,
        #[source]
        source: StateError,
    },
    #[error("cannot use the cluster's state")]
    State(#[source] StateError),
}

/// What went wrong with one volume.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error(transparent)]
    Lvm(#[from] LvmError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Fill(#[from] FillError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    List(#[from] DisksError),
    #[error("its volume is not there")]
    Gone,
    #[error("its volume has not got its content")]
    Unfinished,
}

/// Makes the volumes of all machines that are to be started, and grows those that are too small.
/// What became of them goes into the plan's records. Nobody uses them.
pub(super) fn make(
    plan: &mut Plan,
    files: &ClusterFiles,
    lvm: &Lvm,
    qemu_img: &Path,
) -> Result<(), Box<VolumeError>> {
    // All of the old ones first: the plan counts on their room.
    for step in &plan.steps {
        if matches!(step.action, Action::Create | Action::Recreate) {
            // A machine that has no key is being made anew, and nobody has removed its disk.
            state::files::remove_file(&files.machine(&step.name).host_key())
                .map_err(VolumeError::State)?;
            remove_root(files, &step.name, lvm)?;
        }
    }
    for step in &mut plan.steps {
        let Some(record) = step.record.as_mut().filter(|_| super::is_made(step.action)) else {
            continue;
        };
        make_root(record, files, lvm, qemu_img).map_err(|source| VolumeError::Disk {
            machine: step.name.clone(),
            serial: ROOT_SERIAL.to_owned(),
            source,
        })?;
        for disk in &mut record.data_disks {
            if let DataSourceRecord::Made {
                size,
                volume: Some(volume),
                ..
            } = &mut disk.source
            {
                let log = |volume: &VolumeRecord| {
                    disks::note_volume(&files.disks(), &step.name, &disk.serial, volume)?;
                    Ok(())
                };
                ensure(lvm, volume, *size, &Content::Blank, log).map_err(|source| {
                    VolumeError::Disk {
                        machine: step.name.clone(),
                        serial: disk.serial.clone(),
                        source,
                    }
                })?;
            }
        }
    }
    Ok(())
}

fn make_root(
    record: &mut MachineRecord,
    files: &ClusterFiles,
    lvm: &Lvm,
    qemu_img: &Path,
) -> Result<(), DiskError> {
    let Some(disk) = &mut record.disk else {
        return Ok(());
    };
    let Some(volume) = &mut disk.volume else {
        return Ok(());
    };
    let content = Content::Copy {
        qemu_img,
        base: &disk.base,
    };
    let machine = &record.name;
    ensure(lvm, volume, disk.size, &content, |volume| {
        Ledger::open(&files.ledger())?.record(&[Entry::Volume {
            machine: machine.clone(),
            volume: volume.clone(),
        }])?;
        Ok(())
    })
}

/// What a new volume begins with.
enum Content<'a> {
    Copy {
        qemu_img: &'a Path,
        base: &'a BaseFacts,
    },
    Blank,
}

/// The volume as large as `size` bytes at least, made with its `content` where there is none.
/// `log` writes down what is about to be made, and what was.
fn ensure(
    lvm: &Lvm,
    record: &mut VolumeRecord,
    size: u64,
    content: &Content<'_>,
    log: impl Fn(&VolumeRecord) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    if let Some(volume) = lvm.find(record)? {
        if volume.is_finished() {
            let volume = settle(lvm, record, volume, size)?;
            record.made = Some(made(&volume));
            return Ok(());
        }
        lvm.remove(record)?;
    }
    record.made = None;
    log(record)?;
    let volume = lvm.create(record, size)?;
    record.made = Some(made(&volume));
    log(record)?;
    let device = node::open(&volume, Hold::Alone)?;
    match content {
        Content::Copy { qemu_img, base } => fill::copy(qemu_img, base, &device)?,
        Content::Blank => fill::blank(&device)?,
    }
    drop(device);
    Ok(lvm.untag(&volume, name::UNFINISHED)?)
}

fn made(volume: &Volume) -> MadeVolumeRecord {
    MadeVolumeRecord {
        uuid: volume.uuid.clone(),
        path: volume.path.clone(),
    }
}

/// Makes a finished volume active and at least as large as `size` bytes, with zeros in what is new;
/// a machine may have it meanwhile.
fn settle(
    lvm: &Lvm,
    record: &VolumeRecord,
    volume: Volume,
    size: u64,
) -> Result<Volume, DiskError> {
    let again = || lvm.find(record)?.ok_or(DiskError::Gone);
    let mut volume = volume;
    if volume.device().is_none() {
        lvm.activate(&volume)?;
        volume = again()?;
    }
    // A former `lvextend` was killed with its kiln.
    if volume.is_suspended() {
        lvm.refresh(&volume)?;
        volume = again()?;
    }
    if volume.size < size {
        if volume.zero_from().is_none() {
            lvm.tag(&volume, &name::zero_from(volume.size))?;
        }
        lvm.extend(&volume, size)?;
        volume = again()?;
    }
    // Also of an `up` that was killed.
    if let Some(from) = volume.zero_from() {
        fill::blank_from(&node::open(&volume, Hold::Shared)?, from)?;
        lvm.untag(&volume, &name::zero_from(from))?;
    }
    Ok(volume)
}

/// Makes the volume that is this disk of a machine as large as `size` bytes, while the machine has
/// it. A disk that is a file is left alone.
///
/// # Errors
/// [`VolumeError`]
pub fn grow(
    record: &MachineRecord,
    serial: &str,
    size: u64,
    lvm: &Lvm,
) -> Result<(), Box<VolumeError>> {
    each(record, lvm, |other| (other == serial).then_some(size))
}

/// Makes the machine's volumes active, as after a boot of the host, before it is started.
///
/// # Errors
/// [`VolumeError`], also where one is not there or was never finished.
pub fn activate(record: &MachineRecord, lvm: &Lvm) -> Result<(), Box<VolumeError>> {
    each(record, lvm, |_| Some(0))
}

/// Settles those of the machine's volumes that `size` gives a size for.
fn each(
    record: &MachineRecord,
    lvm: &Lvm,
    size: impl Fn(&str) -> Option<u64>,
) -> Result<(), Box<VolumeError>> {
    for (serial, volume) in record.volumes() {
        let Some(size) = size(serial) else {
            continue;
        };
        let settled = lvm.find(volume).map_err(DiskError::from).and_then(|found| {
            let found = found.ok_or(DiskError::Gone)?;
            if !found.is_finished() {
                return Err(DiskError::Unfinished);
            }
            settle(lvm, volume, found, size)
        });
        settled.map_err(|source| VolumeError::Disk {
            machine: record.name.clone(),
            serial: serial.to_owned(),
            source,
        })?;
    }
    Ok(())
}

/// Removes all volumes that are, or were, the machine's root disk.
pub(super) fn remove_root(
    files: &ClusterFiles,
    machine: &str,
    lvm: &Lvm,
) -> Result<(), Box<VolumeError>> {
    let volumes = ledger::volumes(&files.ledger()).map_err(VolumeError::State)?;
    for (owner, volume) in &volumes {
        if owner == machine {
            ledger::remove_volume(volume, lvm).map_err(|source| VolumeError::Old {
                machine: machine.to_owned(),
                source,
            })?;
        }
    }
    Ok(())
}
