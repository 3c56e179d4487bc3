//! `kiln down`: one way down, without flags, harmless when run twice.

use std::time::Duration;

use crate::cli::args::DownArgs;
use crate::client::Client;
use crate::command::{Made, Session, power};
use crate::error::{Error, Exit};
use crate::state::files::{self, StateError};
use crate::state::layout::ClusterFiles;
use crate::state::ledger;
use crate::state::lock::Lock;
use crate::state::record::ClusterRecord;
use crate::supervisor::machine::KILL_DEADLINE;
use crate::supervisor::process;

pub(super) fn run(session: &Session<'_>, args: &DownArgs) -> Result<(), Error> {
    let name = session.cluster_name()?;
    let files = session.roots.cluster(&name);
    if !files.ledger().exists() {
        if session.global.cluster.is_some() {
            return Err(
                Error::new(Exit::Unknown, format!("there is no cluster `{name}`"))
                    .hint("`kiln ls` lists the clusters"),
            );
        }
        // An `up` that was broken off at its first step.
        if files.lock().exists()
            && let Ok(lock) = Lock::try_take(&files.lock(), "kiln down")
        {
            remove_locks(&files, lock)?;
        }
        return told(session, &name, "nothing is there");
    }
    let lock = Lock::try_take(&files.lock(), "kiln down")?;
    match files::load::<ClusterRecord>(&files.record()) {
        Ok(Some(record)) => session.refuse_foreign(&record)?,
        // What it names may be more than this kiln knows how to remove.
        Err(error) if error.is_newer() => return session.record(&files).map(drop),
        Ok(None) | Err(_) => {}
    }
    take_down(session, &files, args.timeout, lock)?;
    told(session, &name, "all of it is gone")
}

fn told(session: &Session<'_>, name: &str, outcome: &str) -> Result<(), Error> {
    let value = serde_json::json!({ "cluster": name, "outcome": outcome });
    session
        .report
        .result(&value, |_| format!("cluster {name}: {outcome}\n"))
}

/// Stops what runs and removes what the ledger names; `lock` is the cluster's, and goes last.
pub(super) fn take_down(
    session: &Session<'_>,
    files: &ClusterFiles,
    grace: Option<Duration>,
    lock: Lock,
) -> Result<(), Error> {
    match session.record(files) {
        Ok(Some(record)) => {
            let made = Made {
                files: files.clone(),
                record,
            };
            stop_all(session, &made, grace)?;
        }
        // No supervisor can be started for a torn record, but one may have read it when it was
        // whole. Without one, QEMUs are found by their uuid.
        Ok(None) | Err(_) => {
            if let Some(client) = Client::find(files) {
                end_all(&client, files)?;
            }
        }
    }
    end_strays(files)?;
    ledger::take_down(&files.ledger(), &session.roots).map_err(|errors| {
        let mut error = Error::new(
            Exit::Failed,
            format!("cluster `{}` is not wholly removed", files.name()),
        );
        for cause in &errors {
            error = error.cause(describe(cause));
        }
        error.hint("remove what is in the way, then run `kiln down` again")
    })?;
    remove_locks(files, lock)
}

/// Removes the locks of a cluster of which nothing is left.
pub(super) fn remove_locks(files: &ClusterFiles, lock: Lock) -> Result<(), Error> {
    Lock::take(&files.spawn_lock())?.remove();
    lock.remove();
    Ok(())
}

fn describe(error: &StateError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn stop_all(session: &Session<'_>, made: &Made, grace: Option<Duration>) -> Result<(), Error> {
    let client = match Client::reach(&made.files) {
        Ok(client) => client,
        Err(error) => {
            tracing::warn!(%error, "no supervisor; its machines are ended without being asked");
            return Ok(());
        }
    };
    let names: Vec<String> = match client.status() {
        Ok(status) => status
            .machines
            .into_iter()
            .map(|machine| machine.name)
            .collect(),
        Err(error) => {
            tracing::warn!(%error, "the supervisor does not answer");
            return Ok(());
        }
    };
    power::stop_and_wait(session, &client, made, &names, grace)?;
    client.end()?;
    Ok(())
}

fn end_all(client: &Client, files: &ClusterFiles) -> Result<(), Error> {
    let machines = client.status()?.machines;
    let names: Vec<String> = machines.into_iter().map(|machine| machine.name).collect();
    power::kill_and_forget(client, files.name(), &names)?;
    client.end()?;
    Ok(())
}

/// Kills what still runs with a uuid of this cluster: QEMUs of torn records, the uplink.
fn end_strays(files: &ClusterFiles) -> Result<(), Error> {
    let mut uuids = vec![files.uplink_uuid()];
    if let Ok(machines) = std::fs::read_dir(files.machines()) {
        uuids.extend(
            machines
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .map(|name| files.uuid(&name)),
        );
    }
    for uuid in uuids {
        process::end_by_uuid(&uuid, KILL_DEADLINE)
            .map_err(|error| Error::from_source(Exit::Failed, &error))?;
    }
    Ok(())
}
