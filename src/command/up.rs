//! `kiln up`: read, plan, do, watch.

use std::time::{Duration, Instant};

use crate::cli::args::{Goal, UpArgs};
use crate::client::Client;
use crate::cluster::Cluster;
use crate::command::pulling::{self, Fresh};
use crate::command::wait::{default_timeout, goal, until};
use crate::command::{Made, Session, down, power, show, spec};
use crate::error::{Error, Exit};
use crate::folder;
use crate::plan::{self, Action, Plan};
use crate::stage::{self, Prepared, Undo};
use crate::state::layout::ClusterFiles;
use crate::state::lock::Lock;
use crate::state::record::StateRecord;
use crate::supervisor::protocol::Request;

pub(super) fn run(session: &mut Session<'_>, args: &UpArgs) -> Result<(), Error> {
    let cluster = spec::load(session)?;
    let names = spec::names(&cluster, &args.machines.machines)?;
    if args.dry_run {
        let (_, mut plan) = spec::planned(session)?;
        plan.restrict(&names);
        return spec::show_plan(session, &plan);
    }
    let fresh = if args.force_download {
        Fresh::Download
    } else {
        Fresh::No
    };
    // Before the cluster is locked: others may look at it and take it down while this downloads. The
    // images are held until the machines' records name them.
    let deadline = args.waiting.timeout.map(|timeout| session.begun + timeout);
    let images = pulling::of_spec(session, &cluster, &names, fresh, deadline)?;
    // Who named no time did not think of downloads.
    let begun = match args.waiting.timeout {
        Some(_) => session.begun,
        None => Instant::now(),
    };
    let files = session.roots.cluster(cluster.name.as_str());
    folder::make_private(&session.roots.clusters())
        .map_err(|error| Error::from_source(Exit::Failed, &error))?;
    let lock = Lock::try_take(&files.lock(), "kiln up")?;
    let made = make(session, args, &cluster, &names, &files);
    drop(images);
    // The cluster can be worked on by others from here on, while this one waits for its guests.
    if files.ledger().exists() {
        drop(lock);
    } else {
        down::remove_locks(&files, lock)?;
    }
    let (made, client, prepared) = made?;
    for note in show::view(&made, &client)?.notes() {
        session.report.note(&note);
    }
    finish(session, args, begun, &made, &client, &prepared)
}

/// Plans, makes what is missing, and hands the machines over. The cluster's lock is held.
fn make(
    session: &mut Session<'_>,
    args: &UpArgs,
    cluster: &Cluster,
    names: &[String],
    files: &ClusterFiles,
) -> Result<(Made, Client, Prepared), Error> {
    let facts = spec::host_facts(session, cluster, true)?;
    // Held until the cluster is recorded, so that no other `up` takes the same subnet.
    let reservations = Lock::take(&session.roots.reservations_lock())?;
    let inventory = spec::collect(session, cluster)?;
    spec::refuse_other_folder(cluster, inventory.cluster.as_ref())?;
    let mut plan = plan::plan(cluster, &facts, &inventory)?;
    plan.restrict(names);
    refuse_missing_images(&plan, &inventory)?;
    refuse_loss(&plan, args.replace)?;
    // A config that is wrong is found before anything is made.
    spec::check_ignition(session, cluster, &plan)?;
    let running = inventory.alive();
    let reserved = stage::reserve(plan, inventory.cluster, files, &session.roots)?;
    drop(reservations);
    if let Err(error) = stop_first(session, files, reserved.plan(), &running) {
        reserved.give_up();
        return Err(error);
    }
    let qemu_img = session.host.tools.qemu_img.clone().unwrap_or_default();
    let prepared = reserved.prepare(cluster, &qemu_img)?;
    match start(files, &prepared.plan) {
        Ok(client) => {
            let record = prepared.plan.cluster.clone();
            let files = files.clone();
            Ok((Made { files, record }, client, prepared))
        }
        // The supervisor may have started some of them before it failed.
        Err(error) => match take_back(session, files, &prepared.undo) {
            Ok(()) => Err(error),
            Err(second) => Err(error.cause(format!("and it could not be cleaned up: {second}"))),
        },
    }
}

/// Takes back what this `up` made, machines that run included. The cluster's lock is held.
fn take_back(session: &Session<'_>, files: &ClusterFiles, undo: &Undo) -> Result<(), Error> {
    if undo.is_whole_cluster() {
        return super::down::take_down(session, files, Some(Duration::ZERO));
    }
    if let Some(client) = Client::find(files) {
        power::kill_and_forget(&client, undo.created())?;
    }
    undo.run();
    Ok(())
}

/// What was fetched before the plan was made may be gone again, with the whole cache.
fn refuse_missing_images(plan: &Plan, inventory: &plan::Inventory) -> Result<(), Error> {
    let missing = plan
        .steps
        .iter()
        .filter(|step| step.record.is_some())
        .filter_map(|step| inventory.images.get(&step.name))
        .find(|image| image.download.is_some());
    match missing {
        None => Ok(()),
        Some(image) => Err(Error::new(
            Exit::Failed,
            format!("the image `{}` has gone from the cache", image.label),
        )
        .hint("the same command fetches it again")),
    }
}

/// A disk is made anew only when the user said so.
fn refuse_loss(plan: &Plan, replace: bool) -> Result<(), Error> {
    let lost: Vec<&plan::Step> = plan.recreated().collect();
    let Some(first) = lost.first() else {
        return Ok(());
    };
    if replace {
        return Ok(());
    }
    let names: Vec<&str> = lost.iter().map(|step| step.name.as_str()).collect();
    let mut error = Error::new(
        Exit::Unsafe,
        format!("the disk of {} would be lost", names.join(", ")),
    );
    for why in &first.why {
        error = error.cause(format!("{}: {why}", first.name));
    }
    Err(error.hint(
        "Ignition runs once for each disk: `kiln up --replace` makes new disks, what is on the old ones is lost",
    ))
}

/// Stops what is to be changed or removed, and removes the latter.
fn stop_first(
    session: &Session<'_>,
    files: &ClusterFiles,
    plan: &Plan,
    running: &[String],
) -> Result<(), Error> {
    let with = |wanted: &[Action]| -> Vec<String> {
        plan.steps
            .iter()
            .filter(|step| wanted.contains(&step.action))
            .map(|step| step.name.clone())
            .collect()
    };
    let going: Vec<String> = with(&[Action::Restart, Action::Recreate, Action::Remove])
        .into_iter()
        .filter(|name| running.contains(name))
        .collect();
    let removed = with(&[Action::Remove]);
    if going.is_empty() && removed.is_empty() {
        return Ok(());
    }
    let client = Client::reach(files)?;
    let made = Made {
        files: files.clone(),
        record: plan.cluster.clone(),
    };
    if !going.is_empty() {
        power::stop_and_wait(session, &client, &made, &going, None)?;
    }
    client.ask(&Request::Forget {
        machines: removed.clone(),
    })?;
    for name in &removed {
        stage::remove_machine(&files.machine(name));
    }
    Ok(())
}

/// Hands the machines over to the supervisor.
fn start(files: &ClusterFiles, plan: &Plan) -> Result<Client, Error> {
    let machines = plan
        .steps
        .iter()
        .filter(|step| match step.action {
            Action::Create | Action::Recreate | Action::Restart | Action::Start => true,
            Action::Keep | Action::Remove => false,
        })
        .map(|step| step.name.clone())
        .collect();
    let client = Client::reach(files)?;
    client.ask(&Request::Start { machines })?;
    Ok(client)
}

fn finish(
    session: &Session<'_>,
    args: &UpArgs,
    begun: Instant,
    made: &Made,
    client: &Client,
    prepared: &Prepared,
) -> Result<(), Error> {
    let plan = &prepared.plan;
    let names: Vec<String> = plan
        .steps
        .iter()
        .filter(|step| step.record.is_some())
        .map(|step| step.name.clone())
        .collect();
    let mut status = None;
    if let Some(goal) = goal(args.waiting.wait) {
        // A machine without kiln's fragment never reports; it is up when it runs.
        let (silent, reporting): (Vec<String>, Vec<String>) =
            names.iter().cloned().partition(|name| {
                plan.steps
                    .iter()
                    .any(|step| step.name == *name && !step.reports())
            });
        let timeout = args
            .waiting
            .timeout
            .unwrap_or_else(|| default_timeout(made, &names));
        let silent_goal = match goal {
            Goal::Ready => Goal::Running,
            Goal::Running | Goal::Address | Goal::Stopped => goal,
        };
        for (names, goal) in [(reporting, goal), (silent, silent_goal)] {
            if names.is_empty() {
                continue;
            }
            match until(session, client, made, &names, goal, begun, timeout) {
                Ok(now) => status = Some(now),
                Err(error) => {
                    return Err(undo_if_never_started(
                        session,
                        made,
                        client,
                        &prepared.undo,
                        error,
                    ));
                }
            }
        }
    }
    let view = match status {
        Some(status) => show::view_of(made, &status),
        None => show::view(made, client)?,
    };
    if plan.is_settled() {
        session
            .report
            .note("nothing to do: all machines are as the spec says");
    }
    let kiln = match &session.global.file {
        Some(file) => format!("kiln -f {}", file.display()),
        None if session.global.cluster.is_some() => format!("kiln -c {}", made.record.name),
        None => "kiln".to_owned(),
    };
    session
        .report
        .result(&view, |style| view.up_table(style, &kiln))
}

/// Machines whose QEMU never ran are of no use to anyone: what this `up` made goes again.
fn undo_if_never_started(
    session: &Session<'_>,
    made: &Made,
    client: &Client,
    undo: &Undo,
    error: Error,
) -> Error {
    let Ok(status) = client.status() else {
        return error;
    };
    let never = |name: &String| {
        status.machines.iter().any(|machine| {
            machine.name == *name
                && machine.state == StateRecord::Crashed
                && machine.phase == "start"
        })
    };
    if undo.created().is_empty() || !undo.created().iter().any(never) {
        return error;
    }
    // Whoever works on the cluster by now does not want it taken away.
    let Ok(lock) = Lock::try_take(&made.files.lock(), "kiln up") else {
        return error;
    };
    let undone = take_back(session, &made.files, undo);
    if undo.is_whole_cluster() && undone.is_ok() {
        lock.remove();
    } else {
        drop(lock);
    }
    match undone {
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
