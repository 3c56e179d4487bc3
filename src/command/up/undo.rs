//! What an `up` takes back that did not come to anything.

use std::time::Duration;

use super::Done;
use crate::client::Client;
use crate::command::{Session, down, power};
use crate::error::{Error, Exit};
use crate::stage::Undo;
use crate::state::layout::ClusterFiles;
use crate::state::lock::Lock;
use crate::state::record::StateRecord;
use crate::supervisor::protocol::MachineStatus;

/// Takes back what this `up` made, machines that run included. The cluster's lock is held.
pub(super) fn take_back(
    session: &Session<'_>,
    files: &ClusterFiles,
    undo: &Undo,
) -> Result<(), Error> {
    if undo.is_whole_cluster() {
        return down::take_down(session, files, Some(Duration::ZERO), || {
            undo.remove_disks();
            Ok(())
        });
    }
    if let Some(client) = Client::find(files) {
        power::kill_and_forget(&client, undo.created())?;
    }
    undo.run();
    Ok(())
}

/// Whether the QEMU of a machine that this `up` made never ran.
pub(super) fn never_started(done: &Done) -> bool {
    let created = done.undo.created();
    let never = |machine: &MachineStatus| {
        created.contains(&machine.name)
            && machine.state == StateRecord::Crashed
            && machine.phase == "start"
    };
    let status = done.client.status();
    status.is_ok_and(|status| status.machines.iter().any(never))
}

/// Such machines are of no use to anyone: what this `up` made goes again.
pub(super) fn undo_if_never_started(session: &Session<'_>, done: &Done, error: Error) -> Error {
    if !never_started(done) {
        return error;
    }
    // Whoever works on the cluster by now does not want it taken away.
    let Ok(lock) = Lock::try_take(&done.made.files.lock(), "kiln up") else {
        return error;
    };
    let told = take_back_after(session, done, error);
    if done.undo.is_whole_cluster() && !done.made.files.ledger().exists() {
        lock.remove();
    }
    told
}

/// Takes back what this `up` made, after `error`. The cluster's lock is held.
pub(super) fn take_back_after(session: &Session<'_>, done: &Done, error: Error) -> Error {
    match take_back(session, &done.made.files, &done.undo) {
        Ok(()) => Error {
            exit: Exit::Boot,
            hint: Some(
                "nothing was left behind; `kiln explain MACHINE` shows what QEMU is told"
                    .to_owned(),
            ),
            ..error
        },
        Err(second) => error.cause(format!("and it could not be cleaned up: {second}")),
    }
}
