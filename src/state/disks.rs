//! The data disks that kiln made for a cluster: which there are, and how they go.
//!
//! `disks.json` names a disk before the disk exists and until it is gone, and outlives the
//! cluster. Only what it names is ever removed here; a file that it does not name stays, and with
//! it the folder. The caller holds the cluster's lock.

use std::io;
use std::path::{Path, PathBuf};

use crate::cluster::{MachineName, Serial};
use crate::folder::{self, FolderError};
use crate::lvm::program::Lvm;
use crate::state::files::{self, StateError};
use crate::state::layout::{DISKS_ENDING, DisksFiles, Roots};
use crate::state::ledger;
use crate::state::record::{DisksRecord, MadeDiskRecord, VolumeRecord};

/// Why the list of disks cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum DisksError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("cannot make the folder for data disks")]
    Folder(#[from] FolderError),
}

/// The disks that there are; `None` when there is none.
///
/// # Errors
/// [`StateError`] when the list cannot be read.
pub fn load(files: &DisksFiles) -> Result<Option<DisksRecord>, StateError> {
    let mut record: Option<DisksRecord> = files::load(&files.record())?;
    if let Some(record) = &mut record {
        // A list that someone edited must not lead kiln to what is not kiln's.
        record.disks.retain(|disk| {
            disk.machine.parse::<MachineName>().is_ok() && disk.serial.parse::<Serial>().is_ok()
        });
    }
    Ok(record)
}

/// Puts `record` in the place of the list, and makes the folders that its disks lie in.
///
/// # Errors
/// [`DisksError`]; the list is then the old one.
pub fn save(files: &DisksFiles, record: &DisksRecord) -> Result<(), DisksError> {
    folder::make_private(&files.folder)?;
    files::save(&files.record(), record)?;
    for disk in &record.disks {
        folder::make_private(&files.machine(&disk.machine))?;
        if let Some(volume) = &disk.volume {
            // Tells a person, and keeps the folder, should the list be lost.
            files::save(&files.volume(&disk.machine, &disk.serial), volume)?;
        }
    }
    Ok(())
}

/// Writes down the volume that a listed disk is to be, or was made.
///
/// # Errors
/// [`DisksError`]; the list is then the old one.
pub fn note_volume(
    files: &DisksFiles,
    machine: &str,
    serial: &str,
    volume: &VolumeRecord,
) -> Result<(), DisksError> {
    let Some(mut record) = load(files)? else {
        return Ok(());
    };
    for disk in &mut record.disks {
        if disk.machine == machine && disk.serial == serial {
            disk.volume = Some(volume.clone());
        }
    }
    save(files, &record)
}

/// Removes the disks of `record` that `goes` says so of, and leaves the list of the others;
/// without any, neither list nor folder is left.
///
/// # Errors
/// [`StateError`] for the first one that resists; those before it are gone, and running it again
/// goes on.
pub fn remove(
    files: &DisksFiles,
    record: DisksRecord,
    lvm: &Lvm,
    goes: impl Fn(&MadeDiskRecord) -> bool,
) -> Result<DisksRecord, StateError> {
    let (mut gone, stay): (Vec<_>, Vec<_>) = record.disks.into_iter().partition(goes);
    if !gone.is_empty() {
        // Who is killed now has removed them, and not somebody else.
        gone.iter_mut().for_each(|disk| disk.is_made = false);
        let all = gone.iter().chain(&stay).cloned().collect();
        let begun = DisksRecord {
            schema: record.schema,
            spec: record.spec.clone(),
            disks: all,
        };
        files::save(&files.record(), &begun)?;
    }
    for disk in &gone {
        if let Some(volume) = &disk.volume {
            ledger::remove_volume(volume, lvm)?;
            files::remove_file(&files.volume(&disk.machine, &disk.serial))?;
        }
        files::remove_file(&files.disk(&disk.machine, &disk.serial))?;
        // What a killed qemu-img left.
        files::remove_file(&files.incoming(&disk.machine, &disk.serial))?;
    }
    for disk in &gone {
        if !stay.iter().any(|other| other.machine == disk.machine) {
            remove_if_empty(files.machine(&disk.machine))?;
        }
    }
    let record = DisksRecord {
        disks: stay,
        ..record
    };
    if record.disks.is_empty() {
        files::remove_file(&files.record())?;
        remove_if_empty(files.folder.clone())?;
    } else {
        files::save(&files.record(), &record)?;
    }
    Ok(record)
}

/// Removes the folder of a cluster that has no list: an `up` was killed before it wrote one.
///
/// # Errors
/// [`StateError`] when it resists. What lies in it, of whatever origin, stays.
pub fn sweep(files: &DisksFiles) -> Result<(), StateError> {
    if files.folder.is_dir() {
        let path = files.folder.clone();
        folder::sweep(&path).map_err(|source| StateError::Remove { path, source })?;
        remove_if_empty(files.folder.clone())?;
    }
    Ok(())
}

/// Whether there is any file beside the list.
///
/// # Errors
/// [`StateError`] when a folder cannot be looked into.
pub fn has_files(files: &DisksFiles) -> Result<bool, StateError> {
    let list = files.record();
    let look = |path: &Path| -> io::Result<bool> {
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            let is_folder = entry.file_type()?.is_dir();
            let has = if is_folder {
                std::fs::read_dir(entry.path())?.next().is_some()
            } else {
                entry.path() != list
            };
            if has {
                return Ok(true);
            }
        }
        Ok(false)
    };
    look(&files.folder).map_err(|source| StateError::Read {
        path: files.folder.clone(),
        source,
    })
}

fn remove_if_empty(path: PathBuf) -> Result<(), StateError> {
    match std::fs::remove_dir(&path) {
        Err(error)
            if ![io::ErrorKind::NotFound, io::ErrorKind::DirectoryNotEmpty]
                .contains(&error.kind()) =>
        {
            Err(StateError::Remove {
                path,
                source: error,
            })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The names of all clusters that have a folder of data disks.
pub fn cluster_names(roots: &Roots) -> Vec<String> {
    let ending = format!(".{DISKS_ENDING}");
    files::names_in(&roots.clusters())
        .iter()
        .filter_map(|name| Some(name.strip_suffix(&ending)?.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::files::SCHEMA;

    fn disk(machine: &str, serial: &str, keep: bool) -> MadeDiskRecord {
        MadeDiskRecord {
            machine: machine.to_owned(),
            serial: serial.to_owned(),
            size: 1 << 20,
            keep,
            volume: None,
            is_made: true,
        }
    }

    #[test]
    fn only_listed_disks_go_and_an_empty_list_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let files = DisksFiles {
            folder: home.path().join("demo.disks"),
        };
        let record = DisksRecord {
            schema: SCHEMA,
            spec: "/a/kiln.yaml".into(),
            disks: vec![
                disk("a", "data", false),
                disk("a", "logs", true),
                disk("b", "data", false),
            ],
        };
        save(&files, &record).unwrap();
        for disk in &record.disks {
            std::fs::write(files.disk(&disk.machine, &disk.serial), "x").unwrap();
        }
        let lvm = Lvm::new(None, false);
        let kept = remove(&files, record, &lvm, |disk| !disk.keep).unwrap();
        assert_eq!(kept.disks, [disk("a", "logs", true)]);
        assert_eq!(load(&files).unwrap().unwrap(), kept);
        assert_eq!(files::names_in(&files.folder), ["a", "disks.json"]);
        assert_eq!(files::names_in(&files.machine("a")), ["logs.qcow2"]);
        let none = remove(&files, kept, &lvm, |_| true).unwrap();
        assert_eq!(none.disks, []);
        assert!(!files.folder.exists());
    }

    #[test]
    fn a_file_that_is_not_listed_stays() {
        let home = tempfile::tempdir().unwrap();
        let files = DisksFiles {
            folder: home.path().join("demo.disks"),
        };
        let record = DisksRecord {
            schema: SCHEMA,
            spec: "/a/kiln.yaml".into(),
            disks: vec![disk("a", "data", false)],
        };
        save(&files, &record).unwrap();
        let foreign = files.machine("a").join("mine");
        std::fs::write(&foreign, "x").unwrap();
        remove(&files, record, &Lvm::new(None, false), |_| true).unwrap();
        sweep(&files).unwrap();
        assert!(foreign.exists());
    }
}
