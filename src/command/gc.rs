//! `kiln gc`: removes what broken-off commands left, and nothing that a record knows.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::client::Client;
use crate::command::{Session, down, power};
use crate::error::{Error, Exit};
use crate::folder;
use crate::inventory;
use crate::lvm::program::Lvm;
use crate::stage;
use crate::state::files;
use crate::state::layout::{ClusterFiles, RUN_ENDING};
use crate::state::ledger;
use crate::state::lock::Lock;
use crate::state::record::{ClusterRecord, MachineRecord};
use crate::supervisor::machine::KILL_DEADLINE;
use crate::supervisor::process;

#[derive(Debug, Default, Serialize)]
struct Collected {
    /// Clusters that were begun and never recorded, and those of a `kiln run` that was killed.
    clusters: Vec<String>,
    /// Folders of machines that no record names.
    folders: Vec<PathBuf>,
    /// Clusters that another kiln is at; they were left alone.
    busy: Vec<String>,
}

/// Clusters of which there is a lock and nothing else: an `up` was killed at its first step.
fn begun(session: &Session<'_>) -> Vec<String> {
    files::names_in(&session.roots.clusters())
        .iter()
        .filter_map(|name| name.strip_suffix(".lock"))
        .filter(|name| !session.roots.cluster(name).ledger().exists())
        .map(str::to_owned)
        .collect()
}

/// Throw-away clusters whose `kiln run` was killed.
fn throw_away(session: &Session<'_>, collected: &mut Collected) -> Result<(), Error> {
    let ending = format!(".{RUN_ENDING}");
    for name in files::names_in(&session.roots.clusters())
        .iter()
        .filter_map(|name| name.strip_suffix(&ending))
    {
        let files = session.roots.cluster(name);
        let Ok(mine) = Lock::try_take(&files.run_lock(), "kiln gc") else {
            // In use; nothing of it is anybody else's to remove.
            continue;
        };
        match down::throw_away(session, &files, Some(Duration::ZERO)) {
            Ok(()) => {
                mine.remove();
                collected.clusters.push(name.to_owned());
            }
            // Its `up` may live on for a while.
            Err(error) if error.exit == Exit::Busy => collected.busy.push(name.to_owned()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Ends a machine that no record names, should it run, and removes what is left of it.
fn end(files: &ClusterFiles, name: &str, lvm: &Lvm) -> Result<(), Error> {
    if let Some(client) = Client::find(files) {
        power::kill_and_forget(&client, &[name.to_owned()])?;
    }
    process::end_by_uuid(&files.uuid(name), KILL_DEADLINE)
        .map_err(|error| Error::from_source(Exit::Failed, &error))?;
    stage::remove_machine(files, name, lvm);
    Ok(())
}

pub(super) fn run(session: &Session<'_>) -> Result<(), Error> {
    let mut collected = Collected::default();
    let lvm = session.host.lvm();
    throw_away(session, &mut collected)?;
    for name in inventory::cluster_names(&session.roots) {
        let files = session.roots.cluster(&name);
        let Ok(lock) = Lock::try_take(&files.lock(), "kiln gc") else {
            collected.busy.push(name);
            continue;
        };
        match files::load::<ClusterRecord>(&files.record()) {
            // A ledger without a record: an `up` was killed before it had anything to run.
            Ok(None) => {
                // Disks are made after the record: those that are there were kept.
                down::take_down(session, &files, None, || Ok(()))?;
                lock.remove();
                collected.clusters.push(name);
                continue;
            }
            Ok(Some(record)) => {
                let mut names = files::names_in(&files.machines());
                // A volume is made before the machine's folder is.
                names.extend(ledger::volumes(&files.ledger())?.into_iter().map(|it| it.0));
                names.sort();
                names.dedup();
                for name in names {
                    let own = files.machine(&name);
                    // One that was begun and not finished is made again by `up`.
                    let unfinished =
                        matches!(files::load::<MachineRecord>(&own.record()), Ok(None));
                    if unfinished || !record.machines.contains(&name) {
                        let is_there = own.folder.exists();
                        end(&files, &name, &lvm)?;
                        if is_there {
                            collected.folders.push(own.folder);
                        }
                    }
                }
            }
            // Damaged: it may be of use to its user, who takes it down when it is not.
            Err(_) => {}
        }
        drop(lock);
    }
    for name in begun(session) {
        let files = session.roots.cluster(&name);
        if let Ok(lock) = Lock::try_take(&files.lock(), "kiln gc")
            && !files.ledger().exists()
        {
            down::remove_locks(&files, lock)?;
        }
    }
    let images = session.roots.cache.join("images");
    if images.exists() {
        folder::sweep(&images).map_err(|error| {
            let message = format!("cannot clean up `{}`", images.display());
            Error::because(Exit::Failed, message, &error)
        })?;
    }
    session.report.result(&collected, |_| {
        let mut text = String::new();
        for name in &collected.clusters {
            text.push_str(&format!(
                "removed cluster {name}, which nobody wants any more\n"
            ));
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
