//! `start`, `stop`, `restart`, `kill`, `pause`, `resume`: all machines, or those that are named.

use std::time::{Duration, Instant};

use crate::cli::args::{
    DEFAULT_GRACE, Goal, MachinesArgs, RestartArgs, StartArgs, StopArgs, Waiting,
};
use crate::client::Client;
use crate::command::wait::{for_the_slowest, until, until_well};
use crate::command::{Made, Session, broken_off, rolling, show};
use crate::error::{Error, Exit};
use crate::stage::{StageError, volumes};
use crate::state::lock::Lock;
use crate::state::record::StateRecord;
use crate::supervisor::machine::{KILL_DEADLINE, QUIT_DEADLINE};
use crate::supervisor::protocol::{ClusterStatus, MachineStatus, Request};

/// What the ladder may take after its grace, and the words about it.
const LADDER: Duration = Duration::from_secs(QUIT_DEADLINE.as_secs() + KILL_DEADLINE.as_secs() + 1);

pub(super) fn start(session: &Session<'_>, args: &StartArgs) -> Result<(), Error> {
    let made = session.made()?;
    let names = made.select(&args.machines.machines)?;
    let lock = Lock::try_take(&made.files.lock(), "kiln start")?;
    broken_off::tell(session, &made.files, "start");
    let client = Client::reach(&made.files)?;
    let stopped = client.status()?.machines.into_iter();
    let stopped = stopped.filter(|machine| machine.pid.is_none());
    let stopped = stopped.map(|machine| machine.name);
    let stopped: Vec<String> = stopped.filter(|name| names.contains(name)).collect();
    check_boards(session, &made, &stopped)?;
    activate_volumes(session, &made, &stopped)?;
    client.ask(&Request::Start {
        machines: names.clone(),
    })?;
    drop(lock);
    let status = wait(session, &client, &made, &names, &args.waiting)?;
    tell(session, &made, &status)
}

/// Whether the QEMU that each machine was made with is there and still has the machine's board: it
/// may have been exchanged for another under the same name.
fn check_boards(session: &Session<'_>, made: &Made, names: &[String]) -> Result<(), Error> {
    for name in names {
        // A record that cannot be read is the supervisor's to tell of.
        let Ok(record) = made.machine(name) else {
            continue;
        };
        let Ok(arch) = record.arch.parse() else {
            continue;
        };
        let qemu = session.host.qemu_at(arch, &record.qemu).map_err(|error| {
            Error::from(error).hint("`kiln up` takes the QEMU that is installed now")
        })?;
        if let Some(board) = record.board
            && !qemu.boards.contains(&board)
        {
            return Err(Error::new(
                Exit::Host,
                format!(
                    "machine `{name}` has the board `{board}`, and `{}` is QEMU {}, which has no such board",
                    qemu.program.display(),
                    qemu.version
                ),
            )
            .hint(
                "install a QEMU that has it, such as the one that the machine was made with; \
                 `kiln up --replace` makes the machine anew",
            ));
        }
    }
    Ok(())
}

/// Logical volumes are not active when the host has booted, unless it says otherwise.
fn activate_volumes(session: &Session<'_>, made: &Made, names: &[String]) -> Result<(), Error> {
    for name in names {
        if let Ok(record) = made.machine(name) {
            volumes::activate(&record, &session.host.lvm()).map_err(StageError::from)?;
        }
    }
    Ok(())
}

pub(super) fn stop(session: &Session<'_>, args: &StopArgs) -> Result<(), Error> {
    let made = session.made()?;
    let names = made.select(&args.machines.machines)?;
    let client = Client::reach(&made.files)?;
    broken_off::tell(session, &made.files, "stop");
    let status = stop_and_wait(session, &client, &made, &names, args.timeout)?;
    tell(session, &made, &status)
}

pub(super) fn restart(session: &Session<'_>, args: &RestartArgs) -> Result<(), Error> {
    let made = session.made()?;
    let names = made.select(&args.machines.machines)?;
    check_boards(session, &made, &names)?;
    let lock = Lock::try_take(&made.files.lock(), "kiln restart")?;
    broken_off::tell(session, &made.files, "up");
    let client = Client::reach(&made.files)?;
    let again = |names: &[String]| {
        stop_and_wait(session, &client, &made, names, args.grace)?;
        activate_volumes(session, &made, names)?;
        client.ask(&Request::Start {
            machines: names.to_vec(),
        })?;
        Ok::<_, Error>(())
    };
    let status = match args.rolling.rolling {
        None => {
            again(&names)?;
            drop(lock);
            wait(session, &client, &made, &names, &args.waiting)?
        }
        // Nobody else is to take machines away meanwhile.
        Some(width) => {
            rolling::refuse_no_wait(&args.waiting)?;
            // Those that do not do their work now are missed the least.
            let status = client.status()?;
            let names = rolling::idle_first(names.clone(), |name| {
                let mut machines = status.machines.iter();
                machines.any(|it| it.name == name && it.state == StateRecord::Ready)
            });
            let act = |batch: &[String], so_far: &[String]| {
                again(batch)?;
                let now = Instant::now();
                until_well(session, &client, &made, so_far, &args.waiting, now).map(drop)
            };
            rolling::roll(session.report, &names, width, act, |left| {
                format!(
                    "`kiln restart --rolling {width} {}` does the rest",
                    left.join(" ")
                )
            })?;
            client.status()?
        }
    };
    tell(session, &made, &status)
}

pub(super) fn kill(session: &Session<'_>, args: &MachinesArgs) -> Result<(), Error> {
    let made = session.made()?;
    let names = made.select(&args.machines)?;
    let client = Client::reach(&made.files)?;
    client.ask(&Request::Kill {
        machines: names.clone(),
    })?;
    let status = until(
        session,
        &client,
        &made,
        &names,
        Goal::Stopped,
        Instant::now(),
        LADDER,
    )?;
    tell(session, &made, &status)
}

pub(super) fn pause(session: &Session<'_>, args: &MachinesArgs) -> Result<(), Error> {
    let made = session.made()?;
    let machines = made.select(&args.machines)?;
    let client = Client::reach(&made.files)?;
    client.ask(&Request::Pause {
        machines: machines.clone(),
    })?;
    let paused = |machine: &MachineStatus| machine.state == StateRecord::Paused;
    let status = settled(&client, &machines, "paused", paused)?;
    tell(session, &made, &status)
}

pub(super) fn resume(session: &Session<'_>, args: &MachinesArgs) -> Result<(), Error> {
    let made = session.made()?;
    let machines = made.select(&args.machines)?;
    let client = Client::reach(&made.files)?;
    client.ask(&Request::Resume {
        machines: machines.clone(),
    })?;
    let goes_on = |machine: &MachineStatus| machine.state != StateRecord::Paused;
    let status = settled(&client, &machines, "going on", goes_on)?;
    tell(session, &made, &status)
}

/// Waits until each of `names` is as it `should` be: QEMU does what it is told soon, not at once.
fn settled(
    client: &Client,
    names: &[String],
    goal: &str,
    should: impl Fn(&MachineStatus) -> bool,
) -> Result<ClusterStatus, Error> {
    let deadline = Instant::now() + LADDER;
    let mut watch = client.watch()?;
    loop {
        let status = client.status()?;
        let other = status
            .machines
            .iter()
            .find(|machine| names.contains(&machine.name) && !should(machine));
        let Some(other) = other else {
            return Ok(status);
        };
        if Instant::now() >= deadline {
            return Err(Error::new(
                Exit::Timeout,
                format!(
                    "machine `{}` is {}, and not {goal}",
                    other.name,
                    other.state.word()
                ),
            )
            .hint("`kiln ps` says how the machines are"));
        }
        watch.next(deadline)?;
    }
}

/// Powerdown, deadline, quit, kill; returns when all are gone.
pub(super) fn stop_and_wait(
    session: &Session<'_>,
    client: &Client,
    made: &Made,
    names: &[String],
    grace: Option<Duration>,
) -> Result<ClusterStatus, Error> {
    let grace = grace.unwrap_or_else(|| for_the_slowest(session, made, names, DEFAULT_GRACE));
    client.ask(&Request::Stop {
        machines: names.to_vec(),
        grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
    })?;
    until(
        session,
        client,
        made,
        names,
        Goal::Stopped,
        Instant::now(),
        grace + LADDER,
    )
}

/// Ends machines at once and makes the supervisor forget them, those of them that it knows.
pub(super) fn kill_and_forget(client: &Client, names: &[String]) -> Result<(), Error> {
    let mut known = client.status()?.machines;
    known.retain(|machine| names.contains(&machine.name));
    let names: Vec<String> = known.into_iter().map(|machine| machine.name).collect();
    client.ask(&Request::Kill {
        machines: names.clone(),
    })?;
    settled(client, &names, "gone", |machine| machine.pid.is_none())?;
    client.ask(&Request::Forget { machines: names })?;
    Ok(())
}

/// Waits as far as `waiting` says; the cluster as it is then.
fn wait(
    session: &Session<'_>,
    client: &Client,
    made: &Made,
    names: &[String],
    waiting: &Waiting,
) -> Result<ClusterStatus, Error> {
    match until_well(session, client, made, names, waiting, session.begun)? {
        Some(status) => Ok(status),
        None => Ok(client.status()?),
    }
}

fn tell(session: &Session<'_>, made: &Made, status: &ClusterStatus) -> Result<(), Error> {
    let view = show::view_of(made, status);
    session.report.result(&view, |style| view.ps_table(style))
}
