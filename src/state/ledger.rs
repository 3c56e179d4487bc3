//! What was made, written down before it was made; the way down reads it backwards.
//!
//! One JSON object a line. A torn last line is of something that was never made,
//! because the line is synced before the making begins; it is passed over.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use kiln_netsetup::address::Subnet;
use kiln_netsetup::attach;
use kiln_netsetup::bridge::BridgeError;
use kiln_netsetup::bridge::host::{self, HostLink};
use nix::libc;
use serde::{Deserialize, Serialize};

use crate::lvm::program::Lvm;
use crate::state::files::{self, StateError};
use crate::state::layout::{Roots, is_below};
use crate::state::record::VolumeRecord;

/// One thing that exists, or may, because of kiln.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "made", rename_all = "snake_case")]
pub enum Entry {
    /// A folder of ours with all that is in it.
    Folder { path: PathBuf },
    /// The cluster's network namespace: the only one that is taken over from its machines. It goes with the last of them.
    Namespace { device: u64, inode: u64 },
    /// As root, the cluster's end on the host: a link, the route by it, the host's packet rules.
    HostLink {
        link: String,
        mark: String,
        subnet: Ipv4Net,
    },
    /// As root, taps on a bridge of the host's, which go with their QEMUs, and the packet rules for them.
    Attachment { bridge: String, mark: String },
    /// As root, a link of the host's that routes packets on since kiln said so.
    Forwarding { link: String },
    /// A logical volume that is a machine's root disk; said again when it is made anew and when its
    /// UUID is known, and then the last one counts.
    Volume {
        machine: String,
        volume: VolumeRecord,
    },
}

/// An open ledger.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: File,
}

impl Ledger {
    /// Opens the ledger at `path`, making it when it is not there.
    pub fn open(path: &Path) -> Result<Ledger, StateError> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(|source| StateError::Write {
                path: path.to_owned(),
                source,
            })?;
        Ok(Ledger {
            path: path.to_owned(),
            file,
        })
    }

    /// Writes `entries` down and returns when the disk has them.
    pub fn record(&mut self, entries: &[Entry]) -> Result<(), StateError> {
        let write = |source| StateError::Write {
            path: self.path.clone(),
            source,
        };
        // A leading newline ends the torn line of a predecessor that was killed.
        let mut text = vec![b'\n'];
        for entry in entries {
            serde_json::to_writer(&mut text, entry).map_err(|error| write(error.into()))?;
            text.push(b'\n');
        }
        self.file.write_all(&text).map_err(write)?;
        self.file.sync_data().map_err(write)
    }
}

/// Reads the entries of the ledger at `path`, oldest first; none when there is no ledger.
pub fn read(path: &Path) -> Result<Vec<Entry>, StateError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(StateError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    let mut entries = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(|source| StateError::Read {
            path: path.to_owned(),
            source,
        })?;
        if let Ok(entry) = serde_json::from_slice(&line) {
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// The root disks that are, or were, logical volumes, oldest first: machine and volume, each as it
/// was said last.
///
/// # Errors
/// [`StateError`] when the ledger cannot be read.
pub fn volumes(path: &Path) -> Result<Vec<(String, VolumeRecord)>, StateError> {
    let mut found: Vec<(String, VolumeRecord)> = Vec::new();
    for entry in read(path)? {
        if let Entry::Volume { machine, volume } = entry {
            found.retain(|(_, other)| other.tag != volume.tag);
            found.push((machine, volume));
        }
    }
    Ok(found)
}

/// Takes down what the ledger at `path` names, last first, then the ledger itself.
///
/// Collects errors and goes on, so that one folder that resists does not keep the others.
/// The ledger stays while anything of it does. Running it twice is harmless.
pub fn take_down(path: &Path, roots: &Roots, lvm: &Lvm) -> Result<(), Vec<StateError>> {
    let entries = read(path).map_err(|error| vec![error])?;
    let mut errors = Vec::new();
    for (_, volume) in volumes(path).map_err(|error| vec![error])? {
        errors.extend(remove_volume(&volume, lvm).err());
    }
    for entry in entries.iter().rev() {
        match entry {
            // A ledger that someone edited must not make kiln remove what is not kiln's.
            Entry::Folder { path }
                if is_below(path, &roots.state) || is_below(path, &roots.runtime) =>
            {
                if let Err(error) = files::remove_folder(path) {
                    errors.push(error);
                }
            }
            Entry::Folder { .. } => {}
            Entry::HostLink { link, mark, subnet } => {
                errors.extend(take_down_link(link, mark, *subnet).err());
            }
            Entry::Attachment { bridge, mark } => {
                errors.extend(take_down_attachment(bridge, mark).err());
            }
            Entry::Namespace { .. } | Entry::Forwarding { .. } | Entry::Volume { .. } => {}
        }
    }
    // When the cluster's own link is gone, what is left says whether another cluster needs it.
    for entry in &entries {
        if let Entry::Forwarding { link } = entry {
            errors.extend(stop_forwarding(link).err());
        }
    }
    if errors.is_empty()
        && let Err(error) = files::remove_file(path)
    {
        errors.push(error);
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

/// Removes a volume of kiln's, if it is there.
///
/// # Errors
/// [`StateError::Volume`]
pub fn remove_volume(volume: &VolumeRecord, lvm: &Lvm) -> Result<(), StateError> {
    lvm.remove(volume).map_err(|source| StateError::Volume {
        group: volume.group.clone(),
        name: volume.name.clone(),
        source: Box::new(source),
    })
}

fn take_down_link(link: &str, mark: &str, subnet: Ipv4Net) -> Result<(), StateError> {
    // One that is no name of a link is of nobody's making.
    let (Ok(name), Ok(subnet)) = (link.parse(), Subnet::new(subnet)) else {
        return Ok(());
    };
    let host_link = HostLink {
        name,
        mark: mark.to_owned(),
        subnet,
    };
    host_link.remove().map_err(|source| StateError::Network {
        link: link.to_owned(),
        source: BridgeError::Netlink(source),
    })
}

fn take_down_attachment(bridge: &str, mark: &str) -> Result<(), StateError> {
    attach::remove(mark).map_err(|source| StateError::Network {
        link: bridge.to_owned(),
        source: BridgeError::Netlink(source),
    })
}

fn stop_forwarding(link: &str) -> Result<(), StateError> {
    let Ok(name) = link.parse() else {
        return Ok(());
    };
    host::stop_forwarding(&name).map_err(|source| StateError::Network {
        link: link.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(folder: &Path) -> Roots {
        Roots {
            state: folder.join("state"),
            cache: folder.join("cache"),
            runtime: folder.join("run"),
        }
    }

    #[test]
    fn a_torn_line_is_passed_over_and_the_next_one_stands() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("l");
        std::fs::write(&path, b"{\"made\":\"folder\",\"pa").unwrap();
        let entry = Entry::Folder {
            path: "/x/y".into(),
        };
        Ledger::open(&path)
            .unwrap()
            .record(std::slice::from_ref(&entry))
            .unwrap();
        assert_eq!(read(&path).unwrap(), [entry]);
    }

    #[test]
    fn only_what_lies_below_the_roots_is_taken_down() {
        let folder = tempfile::tempdir().unwrap();
        let roots = roots(folder.path());
        let ours = roots.state.join("clusters/a");
        let foreign = folder.path().join("foreign");
        let dotted = roots.state.join("../foreign");
        std::fs::create_dir_all(&ours).unwrap();
        std::fs::create_dir_all(&foreign).unwrap();
        let path = folder.path().join("l");
        let entries = [ours.clone(), foreign.clone(), dotted].map(|path| Entry::Folder { path });
        Ledger::open(&path).unwrap().record(&entries).unwrap();
        take_down(&path, &roots, &Lvm::new(None, false)).unwrap();
        assert!(!ours.exists());
        assert!(foreign.exists());
        assert!(!path.exists());
        take_down(&path, &roots, &Lvm::new(None, false)).unwrap();
    }
}
