//! `kiln down`: one way down, without flags, harmless when run twice.

use std::time::Duration;

use serde::Serialize;

use crate::cli::args::DownArgs;
use crate::client::Client;
use crate::command::{Made, Session, power};
use crate::error::{Error, Exit};
use crate::report::view::KeptDiskView;
use crate::state::disks;
use crate::state::files::{self, StateError};
use crate::state::layout::{ClusterFiles, DisksFiles};
use crate::state::ledger;
use crate::state::lock::Lock;
use crate::state::record::{ClusterRecord, MadeDiskRecord};
use crate::supervisor::machine::KILL_DEADLINE;
use crate::supervisor::process;

/// What becomes of the data disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Those go that were made for this cluster, but for `keep: true`.
    BySpec,
    KeepAll,
    RemoveAll,
}

impl Fate {
    fn of(args: &DownArgs) -> Fate {
        match (args.keep_disks, args.remove_disks) {
            (true, _) => Fate::KeepAll,
            (false, true) => Fate::RemoveAll,
            (false, false) => Fate::BySpec,
        }
    }

    fn goes(self, disk: &MadeDiskRecord) -> bool {
        match self {
            Fate::BySpec => !disk.keep,
            Fate::KeepAll => false,
            Fate::RemoveAll => true,
        }
    }
}

pub(super) fn run(session: &Session<'_>, args: &DownArgs) -> Result<(), Error> {
    let name = session.cluster_name()?;
    let files = session.roots.cluster(&name);
    let fate = Fate::of(args);
    if !files.ledger().exists() {
        return without_cluster(session, &files, fate);
    }
    let lock = Lock::try_take(&files.lock(), "kiln down")?;
    match files::load::<ClusterRecord>(&files.record()) {
        Ok(Some(record)) => session.refuse_foreign(&record)?,
        // What it names may be more than this kiln knows how to remove.
        Err(error) if error.is_newer() => return session.record(&files).map(drop),
        Ok(None) | Err(_) => {}
    }
    // Before anything is stopped.
    if fate == Fate::RemoveAll
        && let Err(error) = disks::load(&files.disks())
    {
        refuse_unlisted(&files.disks(), &error)?;
    }
    let mut kept = Vec::new();
    take_down(session, &files, args.timeout, || {
        kept = take_disks(session, &files, fate)?;
        Ok(())
    })?;
    lock.remove();
    let outcome = match kept.is_empty() {
        true => "all of it is gone",
        false => "gone, but for the disks that are kept",
    };
    told(session, &name, outcome, &kept)
}

/// There is no such cluster; disks of a former one may be there.
fn without_cluster(session: &Session<'_>, files: &ClusterFiles, fate: Fate) -> Result<(), Error> {
    let name = files.name();
    let has_disks = files.disks().folder.exists();
    if session.global.cluster.is_some() && !has_disks {
        return Err(
            Error::new(Exit::Unknown, format!("there is no cluster `{name}`"))
                .hint("`kiln ls` lists the clusters"),
        );
    }
    let mut kept = Vec::new();
    if has_disks || files.lock().exists() {
        let lock = match Lock::try_take(&files.lock(), "kiln down") {
            Ok(lock) => lock,
            // An `up` is at its first step.
            Err(error) if has_disks => return Err(error.into()),
            Err(_) => return told(session, name, "nothing is there", &kept),
        };
        // They were kept by a former `down`: only a word of their own removes them.
        let fate = match fate {
            Fate::RemoveAll => Fate::RemoveAll,
            Fate::BySpec | Fate::KeepAll => Fate::KeepAll,
        };
        kept = take_disks(session, files, fate)?;
        // Also what an `up` that was broken off at its first step left.
        remove_locks(files, lock)?;
    }
    let outcome = match fate {
        Fate::RemoveAll if has_disks => "all of it is gone",
        Fate::RemoveAll | Fate::BySpec | Fate::KeepAll => "nothing is there",
    };
    told(session, name, outcome, &kept)
}

/// Whose the disks are, and which of them are kiln's, only the list says, and it cannot be read.
fn refuse_unlisted(disks: &DisksFiles, error: &StateError) -> Result<(), Error> {
    let told = if error.is_newer() {
        Error::from_source(Exit::Failed, error)
            .hint("use the kiln that made the disks, or a later one")
    } else if disks::has_files(disks)? {
        Error::from_source(Exit::Unsafe, error).hint(format!(
            "nobody knows whose disks lie in `{folder}`: look at them, remove the folder by hand if they may go, then run `kiln down` again",
            folder = disks.folder.display(),
        ))
    } else {
        return Ok(());
    };
    Err(told)
}

/// Removes the data disks that go; those that stay come back, marked to stay.
fn take_disks(
    session: &Session<'_>,
    files: &ClusterFiles,
    fate: Fate,
) -> Result<Vec<KeptDiskView>, Error> {
    let disks = files.disks();
    let record = match disks::load(&disks) {
        Ok(Some(record)) => record,
        Ok(None) => {
            disks::sweep(&disks)?;
            return Ok(Vec::new());
        }
        Err(error) if fate == Fate::RemoveAll => {
            refuse_unlisted(&disks, &error)?;
            files::remove_folder(&disks.folder)?;
            return Ok(Vec::new());
        }
        // Nothing is removed of which it is not known whether it is to be kept.
        Err(error) => {
            session.report.note(&format!(
                "{error}; the data disks in `{}` stay",
                disks.folder.display()
            ));
            return Ok(Vec::new());
        }
    };
    session.refuse_foreign_spec(files.name(), &record.spec)?;
    // One that an `up` was killed before it made it is no disk.
    let lvm = session.host.lvm();
    let is_there = |disk: &MadeDiskRecord| match &disk.volume {
        None => disks.disk(&disk.machine, &disk.serial).exists(),
        Some(volume) => match lvm.find(volume) {
            Ok(found) => found.is_some_and(|volume| volume.is_finished()),
            // What cannot be looked at may be there.
            Err(_) => true,
        },
    };
    let mut left = disks::remove(&disks, record, &lvm, |disk| {
        fate.goes(disk) || !is_there(disk)
    })?;
    if !left.disks.is_empty() {
        for disk in &mut left.disks {
            disk.keep = true;
        }
        files::save(&disks.record(), &left)?;
    }
    Ok(KeptDiskView::all(&left, &disks))
}

/// Removes a throw-away cluster with all its disks; `grace` is what its guests get to shut down.
pub(super) fn throw_away(
    session: &Session<'_>,
    files: &ClusterFiles,
    grace: Option<Duration>,
) -> Result<(), Error> {
    let lock = Lock::take(&files.lock(), "kiln run")?;
    if files.ledger().exists() {
        take_down(session, files, grace, || {
            take_disks(session, files, Fate::RemoveAll).map(drop)
        })?;
    }
    remove_locks(files, lock)
}

/// Removes the locks of a cluster of which nothing else is left.
pub(super) fn remove_locks(files: &ClusterFiles, lock: Lock) -> Result<(), Error> {
    Lock::take(&files.spawn_lock(), "kiln down")?.remove();
    lock.remove();
    Ok(())
}

#[derive(Serialize)]
struct Outcome<'a> {
    cluster: &'a str,
    outcome: &'a str,
    /// Data disks that are still there.
    kept_disks: &'a [KeptDiskView],
}

fn told(
    session: &Session<'_>,
    name: &str,
    outcome: &str,
    kept: &[KeptDiskView],
) -> Result<(), Error> {
    let value = Outcome {
        cluster: name,
        outcome,
        kept_disks: kept,
    };
    session.report.result(&value, |_| {
        let mut text = format!("cluster {name}: {outcome}\n");
        for disk in kept {
            text.push_str(&format!("kept: {disk}\n"));
        }
        text
    })?;
    if !kept.is_empty() {
        session.report.note(&format!(
            "`kiln up` attaches kept disks again; `kiln -c {name} down --remove-disks` removes them"
        ));
    }
    Ok(())
}

/// Stops what runs, sees to the `disks`, and removes what the ledger names. The caller holds the cluster's lock.
pub(super) fn take_down(
    session: &Session<'_>,
    files: &ClusterFiles,
    grace: Option<Duration>,
    disks: impl FnOnce() -> Result<(), Error>,
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
    disks()?;
    ledger::take_down(&files.ledger(), &session.roots, &session.host.lvm()).map_err(|errors| {
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
