//! `kiln up`: read, plan, do, watch.

mod undo;

use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use self::undo::{never_started, take_back, take_back_after, undo_if_never_started};
use crate::cli::args::{MachinesArgs, ReprovisionArgs, UpArgs, VarArgs};
use crate::client::Client;
use crate::cluster::{Cluster, ROOT_SERIAL};
use crate::command::pulling::{self, Fresh};
use crate::command::wait::until_well;
use crate::command::{Made, Session, broken_off, down, etcd, power, rolling, show, spec};
use crate::error::{Error, Exit};
use crate::folder;
use crate::inventory::Images;
use crate::plan::{self, Action, HostFacts, Inventory, Plan, PlanError};
use crate::stage::{self, StageError, Undo, volumes};
use crate::state::layout::ClusterFiles;
use crate::state::lock::Lock;
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

/// What an `up` is to do.
struct Task<'a> {
    /// How long members of etcd are waited for before and after one joins, where the user says.
    timeout: Option<Duration>,
    /// Whether memory that the host may not have is given away.
    overcommit: bool,
    disks: RootDisks,
    cluster: &'a Cluster,
    files: &'a ClusterFiles,
}

/// What came of it.
struct Done {
    made: Made,
    client: Client,
    /// Whether there was nothing to do.
    is_settled: bool,
    /// Whether a machine was started.
    starts: bool,
    /// Whether its machines were waited for already.
    waited: bool,
    undo: Undo,
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
        rolling: args.rolling.clone(),
        scale: Vec::new(),
        vars: VarArgs::default(),
        force_download: false,
        overcommit: args.overcommit,
    };
    work(session, &args, RootDisks::Anew)
}

fn work(session: &mut Session<'_>, args: &UpArgs, disks: RootDisks) -> Result<(), Error> {
    if args.dry_run {
        let (cluster, mut plan, inventory) = spec::planned(session, &args.scale, &args.vars)?;
        plan.restrict(&spec::names(&cluster, &args.machines.machines)?);
        plan.check_volumes(&inventory).map_err(PlanError::from)?;
        spec::tell_room(session, &plan, &inventory);
        return spec::show_plan(session, &plan);
    }
    let cluster = spec::load(session, &args.scale, &args.vars)?;
    let names = spec::names(&cluster, &args.machines.machines)?;
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
    broken_off::tell(session, &files, "up");
    let task = Task {
        timeout: args.waiting.timeout,
        overcommit: args.overcommit,
        disks,
        cluster: &cluster,
        files: &files,
    };
    let done = match args.rolling.rolling {
        None => make(session, &task, &names),
        Some(width) => roll(session, &task, args, &names, width),
    };
    drop(images);
    // The cluster can be worked on by others from here on, while this one waits for its guests.
    if files.ledger().exists() {
        drop(lock);
    } else {
        down::remove_locks(&files, lock)?;
    }
    let done = done?;
    let view = show::view(&done.made, &done.client)?;
    // What the machines are like is told when they begin, and in `ps`.
    if done.starts {
        for note in view
            .weaker()
            .iter()
            .chain(&view.why_emulated())
            .chain(&view.why_slow_shares())
        {
            session.report.note(note);
        }
    }
    for note in &view.troubles() {
        session.report.note(note);
    }
    finish(session, args, begun, &done, &names)
}

/// An `up` in waves: what takes no machine away from its work comes first, all of it, and then the
/// others a few at a time. Each wave is an `up` of its machines alone, planned by what is there then:
/// one that is broken off leaves what any broken-off `up` leaves.
fn roll(
    session: &mut Session<'_>,
    task: &Task<'_>,
    args: &UpArgs,
    names: &[String],
    width: NonZeroU16,
) -> Result<Done, Error> {
    rolling::refuse_no_wait(&args.waiting)?;
    let facts = spec::host_facts(session, task.cluster, true)?;
    let images = spec::images(session, task.cluster)?;
    let (plan, inventory) = decide(session, task, names, &facts, &images)?;
    let interrupts = |step: &&plan::Step| match step.action {
        Action::Restart | Action::Recreate => true,
        Action::Keep | Action::Change | Action::Start | Action::Create | Action::Remove => false,
    };
    let (rolled, others): (Vec<&plan::Step>, Vec<_>) = plan.steps.iter().partition(interrupts);
    let name = |step: &plan::Step| step.name.clone();
    let others: Vec<String> = others.into_iter().map(name).collect();
    let rolled = rolling::idle_first(rolled.into_iter().map(name).collect(), |name| {
        inventory.is_ready(name)
    });
    if rolled.is_empty() {
        return make(session, task, names);
    }
    let well = |session: &Session<'_>, mut done: Done, names: &[String]| {
        let now = Instant::now();
        done.waited = true;
        match until_well(session, &done.client, &done.made, names, &args.waiting, now) {
            Ok(_) => Ok(done),
            Err(error) if never_started(&done) => Err(take_back_after(session, &done, error)),
            Err(error) => Err(error),
        }
    };
    let mut last = None;
    if !others.is_empty() {
        let done = make(session, task, &others)?;
        let stay = |name: &String| done.made.record.machines.contains(name);
        let stay: Vec<String> = others.iter().filter(|name| stay(name)).cloned().collect();
        last = Some(well(session, done, &stay)?);
    }
    let report = session.report;
    let act = |batch: &[String], so_far: &[String]| {
        let done = make(session, task, batch)?;
        last = Some(well(session, done, so_far)?);
        Ok(())
    };
    rolling::roll(report, &rolled, width, act, |left| match task.disks {
        RootDisks::Anew => format!(
            "`kiln reprovision --rolling {width} {}` does the rest",
            left.join(" ")
        ),
        RootDisks::Kept | RootDisks::Replaced => "the same command does the rest".to_owned(),
    })?;
    last.ok_or_else(|| Error::new(Exit::Failed, "nothing was rolled"))
}

/// Plans, makes what is missing, and hands the machines over. The cluster's lock is held.
fn make(session: &mut Session<'_>, task: &Task<'_>, names: &[String]) -> Result<Done, Error> {
    let Task { cluster, files, .. } = *task;
    let facts = spec::host_facts(session, cluster, true)?;
    // What takes time is done before others have to wait for it: reading images, checking configs.
    let images = spec::images(session, cluster)?;
    let (draft, inventory) = decide(session, task, names, &facts, &images)?;
    for doubt in draft.doubts(&inventory) {
        session.report.note(&doubt);
    }
    // A config that is wrong is found before anything is made.
    spec::check_ignition(session, cluster, &draft)?;
    let token = match draft.to_discover(cluster) {
        Some((url, size)) => Some(etcd::discover(session, url, size)?),
        None => None,
    };
    // Held until the cluster is recorded, so that no other `up` takes the same subnet.
    let reservations = Lock::take(&session.roots.reservations_lock(), "kiln up")?;
    let (mut plan, inventory) = decide(session, task, names, &facts, &images)?;
    if let Some(token) = token {
        plan.discovered(&token);
    }
    if plan.cluster.reservations != draft.cluster.reservations {
        // Another cluster was faster: the configs have other addresses in them.
        spec::check_ignition(session, cluster, &plan)?;
    }
    let running = inventory.alive();
    let reserved = stage::reserve(
        plan,
        inventory.cluster,
        files,
        &session.roots,
        session.host.lvm(),
    )?;
    drop(reservations);
    let changed = etcd::leave(session, files, reserved.plan(), &running)
        .and_then(|()| stop_first(session, files, reserved.plan(), &running))
        .and_then(|()| change(session, files, reserved.plan()));
    if let Err(error) = changed {
        reserved.give_up();
        return Err(error);
    }
    let qemu_img = session.host.tools.qemu_img.clone().unwrap_or_default();
    let prepared = reserved.prepare(cluster, &qemu_img)?;
    match start(files, &prepared.plan) {
        Ok(client) => {
            for note in prepared.plan.growth() {
                session.report.note(&note);
            }
            let record = prepared.plan.cluster.clone();
            let files = files.clone();
            let made = Made { files, record };
            etcd::join(
                session,
                &client,
                &made,
                &prepared.plan.joiners,
                task.timeout,
            )?;
            Ok(Done {
                made,
                client,
                is_settled: prepared.plan.is_settled(),
                starts: prepared.plan.starts(),
                waited: false,
                undo: prepared.undo,
            })
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
    task: &Task<'_>,
    names: &[String],
    facts: &HostFacts,
    images: &Images,
) -> Result<(Plan, Inventory), Error> {
    let cluster = task.cluster;
    let inventory = spec::collect(session, cluster, images.clone())?;
    spec::refuse_other_folder(cluster, &inventory)?;
    let mut plan = plan::plan(cluster, facts, &inventory)?;
    plan.restrict(names);
    refuse_missing_images(&plan, &inventory)?;
    match task.disks {
        RootDisks::Kept => refuse_loss(&plan)?,
        RootDisks::Replaced => {}
        RootDisks::Anew => {
            // Who asks for another root disk asks for no other data disk.
            refuse_gone(&plan, |disk| disk.serial != ROOT_SERIAL)?;
            plan.make_anew();
        }
    }
    plan.check_volumes(&inventory).map_err(PlanError::from)?;
    plan.choose_members(cluster, &inventory);
    if !task.overcommit {
        plan.admit(&inventory)?;
    }
    Ok((plan, inventory))
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
    refuse_gone(plan, |_| true)?;
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

/// A disk that somebody removed is not replaced without a word.
fn refuse_gone(plan: &Plan, counts: impl Fn(&plan::GoneDisk) -> bool) -> Result<(), Error> {
    let mut gone = plan.steps.iter().flat_map(|step| &step.gone);
    let Some(gone) = gone.find(|disk| counts(disk)) else {
        return Ok(());
    };
    let message = format!(
        "disk `{}` of {} is gone: somebody removed `{}`",
        gone.serial,
        gone.machine,
        gone.path.display()
    );
    Err(Error::new(Exit::Unsafe, message).hint(
        "put the file back; `kiln up --replace` makes an empty disk in its place, what was on the old one is lost",
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
        stage::remove_machine(files, name, &session.host.lvm());
    }
    Ok(())
}

/// Changes what can be changed while the machines run: their disks grow.
fn change(session: &Session<'_>, files: &ClusterFiles, plan: &Plan) -> Result<(), Error> {
    let mut changing = plan.steps.iter().filter(|it| it.action == Action::Change);
    let Some(first) = changing.next() else {
        return Ok(());
    };
    let client = Client::reach(files)?;
    for step in std::iter::once(first).chain(changing) {
        for disk in &step.grown {
            if let Some(record) = &step.record {
                volumes::grow(record, &disk.serial, disk.size, &session.host.lvm())
                    .map_err(StageError::from)?;
            }
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
        // Those start when they are let in.
        .filter(|step| !plan.joiners.contains(&step.name))
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
    done: &Done,
    names: &[String],
) -> Result<(), Error> {
    let Done { made, client, .. } = done;
    let names = match names.is_empty() {
        true => &made.record.machines,
        false => names,
    };
    let waited = match done.waited {
        true => Ok(None),
        false => until_well(session, client, made, names, &args.waiting, begun),
    };
    let status = waited.map_err(|error| undo_if_never_started(session, done, error))?;
    let view = match status {
        Some(status) => show::view_of(made, &status),
        None => show::view(made, client)?,
    };
    if done.is_settled {
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
