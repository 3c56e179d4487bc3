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
    take_down(session, &files, args.timeout)?;
    lock.remove();
    told(session, &name, "all of it is gone")
}

/// Removes the locks of a cluster of which nothing else is left.
pub(super) fn remove_locks(files: &ClusterFiles, lock: Lock) -> Result<(), Error> {
    Lock::take(&files.spawn_lock(), "kiln down")?.remove();
    lock.remove();
    Ok(())
}

fn told(session: &Session<'_>, name: &str, outcome: &str) -> Result<(), Error> {
    let value = serde_json::json!({ "cluster": name, "outcome": outcome });
    session
        .report
        .result(&value, |_| format!("cluster {name}: {outcome}\n"))
}

/// Stops what runs and removes what the ledger names. The caller holds the cluster's lock.
pub(super) fn take_down(
    session: &Session<'_>,
    files: &ClusterFiles,
    grace: Option<Duration>,
) -> Result<(), Error> {
    let client = match session.record(files) {
        Ok(Some(record)) => {
            let made = Made {
                files: files.clone(),
                record,
            };
            stop_all(session, &made, grace)?
        }
        // It has no record, or a torn one; a supervisor may hold its machines all the same.
        Ok(None) | Err(_) => kill_all(files)?,
    };
    // No other command may start a supervisor for what is being removed.
    let spawning = Lock::take(&files.spawn_lock(), "kiln down")?;
    if let Some(client) = client {
        client.end()?;
    }
    Client::end_any(files)?;
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
    spawning.remove();
    Ok(())
}

fn describe(error: &StateError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Stops all machines, and gives the supervisor that then has nothing to do.
fn stop_all(
    session: &Session<'_>,
    made: &Made,
    grace: Option<Duration>,
) -> Result<Option<Client>, Error> {
    let client = match Client::reach(&made.files) {
        Ok(client) => client,
        Err(error) => {
            tracing::warn!(%error, "no supervisor; its machines are ended without being asked");
            return Ok(None);
        }
    };
    let Some(names) = names(&client) else {
        return Ok(None);
    };
    power::stop_and_wait(session, &client, made, &names, grace)?;
    Ok(Some(client))
}

/// Ends all machines of a supervisor that lives, and gives it.
fn kill_all(files: &ClusterFiles) -> Result<Option<Client>, Error> {
    let Some(client) = Client::find(files) else {
        return Ok(None);
    };
    let Some(names) = names(&client) else {
        return Ok(None);
    };
    power::kill_and_forget(&client, &names)?;
    Ok(Some(client))
}

fn names(client: &Client) -> Option<Vec<String>> {
    match client.status() {
        Ok(status) => Some(
            status
                .machines
                .into_iter()
                .map(|machine| machine.name)
                .collect(),
        ),
        Err(error) => {
            tracing::warn!(%error, "the supervisor does not answer");
            None
        }
    }
}

/// Kills what still runs with a uuid of this cluster: QEMUs of torn records, the uplink.
fn end_strays(cluster: &ClusterFiles) -> Result<(), Error> {
    let machines = files::names_in(&cluster.machines());
    let machines = machines.iter().map(|name| cluster.uuid(name));
    for uuid in machines.chain([cluster.uplink_uuid()]) {
        process::end_by_uuid(&uuid, KILL_DEADLINE)
            .map_err(|error| Error::from_source(Exit::Failed, &error))?;
    }
    Ok(())
}
