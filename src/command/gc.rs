//! `kiln gc`: removes what broken-off commands left, and nothing that a record knows.

use std::path::PathBuf;

use serde::Serialize;

use crate::command::{Session, down};
use crate::error::Error;
use crate::inventory;
use crate::state::files;
use crate::state::lock::Lock;
use crate::state::record::{ClusterRecord, MachineRecord};

#[derive(Debug, Default, Serialize)]
struct Collected {
    /// Clusters that were begun and never recorded.
    clusters: Vec<String>,
    /// Folders of machines that no record names.
    folders: Vec<PathBuf>,
    /// Clusters that another kiln is at; they were left alone.
    busy: Vec<String>,
}

pub(super) fn run(session: &Session<'_>) -> Result<(), Error> {
    let mut collected = Collected::default();
    for name in inventory::cluster_names(&session.roots) {
        let files = session.roots.cluster(&name);
        let Ok(lock) = Lock::try_take(&files.lock(), "kiln gc") else {
            collected.busy.push(name);
            continue;
        };
        match files::load::<ClusterRecord>(&files.record()) {
            // A ledger without a record: an `up` was killed before it had anything to run.
            Ok(None) => {
                down::take_down(session, &files, None, lock)?;
                collected.clusters.push(name);
                continue;
            }
            Ok(Some(record)) => {
                let machines = files.folder().join("machines");
                for entry in std::fs::read_dir(&machines).into_iter().flatten().flatten() {
                    let known = entry
                        .file_name()
                        .to_str()
                        .is_some_and(|name| record.machines.iter().any(|known| known == name));
                    if !known {
                        files::remove_folder(&entry.path())?;
                        collected.folders.push(entry.path());
                    }
                }
                // One that was begun and not finished: `up` makes it again.
                for machine in &record.machines {
                    let own = files.machine(machine);
                    if matches!(files::load::<MachineRecord>(&own.record()), Ok(None)) {
                        files::remove_folder(&own.folder)?;
                        collected.folders.push(own.folder);
                    }
                }
            }
            // Damaged: it may be of use to its user, who takes it down when it is not.
            Err(_) => {}
        }
        drop(lock);
    }
    session.report.result(&collected, |_| {
        let mut text = String::new();
        for name in &collected.clusters {
            text.push_str(&format!("removed what was begun of cluster {name}\n"));
        }
        for folder in &collected.folders {
            text.push_str(&format!("removed {}\n", folder.display()));
        }
        for name in &collected.busy {
            text.push_str(&format!(
                "left cluster {name} alone: another kiln is at it\n"
            ));
        }
        if text.is_empty() {
            text.push_str("nothing to remove\n");
        }
        text
    })
}
