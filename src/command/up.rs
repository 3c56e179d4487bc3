//! `kiln up`: read, plan, do, watch.

use std::time::{Duration, Instant};

use crate::cli::args::{Goal, MachinesArgs, ReprovisionArgs, UpArgs};
use crate::client::Client;
use crate::cluster::Cluster;
use crate::command::pulling::{self, Fresh};
use crate::command::wait::{default_timeout, goal, until};
use crate::command::{Made, Session, down, power, show, spec};
use crate::error::{Error, Exit};
use crate::folder;
use crate::inventory::Images;
use crate::plan::{self, Action, HostFacts, Inventory, Plan};
use crate::stage::{self, Prepared, Undo};
use crate::state::layout::ClusterFiles;
use crate::state::lock::Lock;
use crate::state::record::StateRecord;
use crate::supervisor::protocol::Request;

/// What is to become of root disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RootDisks {
    /// None is lost.
    Kept,
    /// `--replace`: made anew where what changed needs it.
    Replaced,
    /// `reprovision`: made anew in any case.
    Anew,
}

pub(super) fn run(session: &mut Session<'_>, args: &UpArgs) -> Result<(), Error> {
    let disks = match args.replace {
        true => RootDisks::Replaced,
        false => RootDisks::Kept,
    };
    work(session, args, disks)
}

/// `kiln reprovision`: an `up` of these machines, with new root disks.
pub(super) fn reprovision(session: &mut Session<'_>, args: &ReprovisionArgs) -> Result<(), Error> {
    let made = session.made()?;
    for name in &args.machines {
        made.known(name.as_str())?;
    }
    let args = UpArgs {
        machines: MachinesArgs {
            machines: args.machines.clone(),
        },
        waiting: args.waiting.clone(),
        dry_run: false,
        replace: true,
        scale: Vec::new(),
        force_download: false,
    };
    work(session, &args, RootDisks::Anew)
}

fn work(session: &mut Session<'_>, args: &UpArgs, disks: RootDisks) -> Result<(), Error> {
    let cluster = spec::load(session, &args.scale)?;
    let names = spec::names(&cluster, &args.machines.machines)?;
    if args.dry_run {
        let (_, mut plan) = spec::planned(session, &args.scale)?;
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
    let made = make(session, disks, &cluster, &names, &files);
    drop(images);
    // The cluster can be worked on by others from here on, while this one waits for its guests.
    if files.ledger().exists() {
        drop(lock);
    } else {
        down::remove_locks(&files, lock)?;
    }
    let (made, client, prepared) = made?;
    let view = show::view(&made, &client)?;
    let why = view
        .why_emulated()
        .into_iter()
        .chain(view.why_slow_shares());
    for note in view.notes().into_iter().chain(why) {
        session.report.note(&note);
    }
    finish(session, args, begun, &made, &client, &prepared)
}

/// Plans, makes what is missing, and hands the machines over. The cluster's lock is held.
fn make(
    session: &mut Session<'_>,
    disks: RootDisks,
    cluster: &Cluster,
    names: &[String],
    files: &ClusterFiles,
) -> Result<(Made, Client, Prepared), Error> {
    let facts = spec::host_facts(session, cluster, true)?;
    // What takes time is done before others have to wait for it: reading images, checking configs.
    let images = spec::images(session, cluster)?;
    let draft = decide(session, disks, cluster, names, &facts, &images)?.0;
    // A config that is wrong is found before anything is made.
    spec::check_ignition(session, cluster, &draft)?;
    // Held until the cluster is recorded, so that no other `up` takes the same subnet.
    let reservations = Lock::take(&session.roots.reservations_lock(), "kiln up")?;
    let (plan, inventory) = decide(session, disks, cluster, names, &facts, &images)?;
    if plan.cluster.reservations != draft.cluster.reservations {
        // Another cluster was faster: the configs have other addresses in them.
        spec::check_ignition(session, cluster, &plan)?;
    }
    let running = inventory.alive();
    let reserved = stage::reserve(plan, inventory.cluster, files, &session.roots)?;
    drop(reservations);
    let changed = stop_first(session, files, reserved.plan(), &running)
        .and_then(|()| change(files, reserved.plan()));
    if let Err(error) = changed {
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

/// Plans by what is there now.
fn decide(
    session: &Session<'_>,
    disks: RootDisks,
    cluster: &Cluster,
    names: &[String],
    facts: &HostFacts,
    images: &Images,
) -> Result<(Plan, Inventory), Error> {
    let inventory = spec::collect(session, cluster, images.clone())?;
    spec::refuse_other_folder(cluster, &inventory)?;
    let mut plan = plan::plan(cluster, facts, &inventory)?;
    plan.restrict(names);
    refuse_missing_images(&plan, &inventory)?;
    match disks {
        RootDisks::Kept => refuse_loss(&plan)?,
        RootDisks::Replaced => {}
        RootDisks::Anew => plan.make_anew(),
    }
    Ok((plan, inventory))
}

/// Takes back what this `up` made, machines that run included. The cluster's lock is held.
fn take_back(session: &Session<'_>, files: &ClusterFiles, undo: &Undo) -> Result<(), Error> {
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
fn refuse_loss(plan: &Plan) -> Result<(), Error> {
    let lost: Vec<&plan::Step> = plan.recreated().collect();
    let Some(first) = lost.first() else {
        return Ok(());
    };
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

/// Changes what can be changed while the machines run: their disks grow.
fn change(files: &ClusterFiles, plan: &Plan) -> Result<(), Error> {
    let mut changing = plan.steps.iter().filter(|it| it.action == Action::Change);
    let Some(first) = changing.next() else {
        return Ok(());
    };
    let client = Client::reach(files)?;
    for step in std::iter::once(first).chain(changing) {
        for disk in &step.grown {
            client.ask(&Request::Grow {
                machine: step.name.clone(),
                serial: disk.serial.clone(),
                size: disk.size.next_multiple_of(512),
            })?;
        }
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
            Action::Keep | Action::Change | Action::Remove => false,
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
            .unwrap_or_else(|| default_timeout(session, made, &names));
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
