//! `start`, `stop`, `restart`, `kill`, `pause`, `resume`: all machines, or those that are named.

use std::time::Duration;

use crate::cli::args::{
    DEFAULT_GRACE, Goal, MachinesArgs, RestartArgs, StartArgs, StopArgs, Waiting,
};
use crate::client::Client;
use crate::command::wait::{default_timeout, goal, until};
use crate::command::{Made, Session, show};
use crate::error::Error;
use crate::host::timing::stretched_for_tcg;
use crate::state::layout::ClusterFiles;
use crate::state::lock::Lock;
use crate::state::record::AccelRecord;
use crate::supervisor::machine::{KILL_DEADLINE, QUIT_DEADLINE};
use crate::supervisor::protocol::{ClusterStatus, Request};

/// What the ladder may take after its grace, and the words about it.
const LADDER: Duration = Duration::from_secs(QUIT_DEADLINE.as_secs() + KILL_DEADLINE.as_secs() + 1);

pub(super) fn start(session: &Session<'_>, args: &StartArgs) -> Result<(), Error> {
    let made = session.made()?;
    let names = made.select(&args.machines.machines)?;
    let lock = Lock::try_take(&made.files.lock(), "kiln start")?;
    let client = Client::reach(&made.files)?;
    client.ask(&Request::Start {
        machines: names.clone(),
    })?;
    drop(lock);
    let status = wait(session, &client, &made, &names, &args.waiting)?;
    tell(session, &made, &status)
}

pub(super) fn stop(session: &Session<'_>, args: &StopArgs) -> Result<(), Error> {
    let made = session.made()?;
    let names = made.select(&args.machines.machines)?;
    let client = Client::reach(&made.files)?;
    let status = stop_and_wait(session, &client, &made, &names, args.timeout)?;
    tell(session, &made, &status)
}

pub(super) fn restart(session: &Session<'_>, args: &RestartArgs) -> Result<(), Error> {
    let made = session.made()?;
    let names = made.select(&args.machines.machines)?;
    let lock = Lock::try_take(&made.files.lock(), "kiln restart")?;
    let client = Client::reach(&made.files)?;
    stop_and_wait(session, &client, &made, &names, args.grace)?;
    client.ask(&Request::Start {
        machines: names.clone(),
    })?;
    drop(lock);
    let status = wait(session, &client, &made, &names, &args.waiting)?;
    tell(session, &made, &status)
}

pub(super) fn kill(session: &Session<'_>, args: &MachinesArgs) -> Result<(), Error> {
    let made = session.made()?;
    let names = made.select(&args.machines)?;
    let client = Client::reach(&made.files)?;
    client.ask(&Request::Kill {
        machines: names.clone(),
    })?;
    let status = until(session, &client, &made, &names, Goal::Stopped, LADDER)?;
    tell(session, &made, &status)
}

pub(super) fn pause(session: &Session<'_>, args: &MachinesArgs) -> Result<(), Error> {
    let made = session.made()?;
    let machines = made.select(&args.machines)?;
    let client = Client::reach(&made.files)?;
    client.ask(&Request::Pause { machines })?;
    tell(session, &made, &client.status()?)
}

pub(super) fn resume(session: &Session<'_>, args: &MachinesArgs) -> Result<(), Error> {
    let made = session.made()?;
    let machines = made.select(&args.machines)?;
    let client = Client::reach(&made.files)?;
    client.ask(&Request::Resume { machines })?;
    tell(session, &made, &client.status()?)
}

/// Powerdown, deadline, quit, kill; returns when all are gone.
pub(super) fn stop_and_wait(
    session: &Session<'_>,
    client: &Client,
    made: &Made,
    names: &[String],
    grace: Option<Duration>,
) -> Result<ClusterStatus, Error> {
    let grace = grace.unwrap_or_else(|| default_grace(made, names));
    client.ask(&Request::Stop {
        machines: names.to_vec(),
        grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
    })?;
    until(session, client, made, names, Goal::Stopped, grace + LADDER)
}

/// Ends machines at once and makes the supervisor forget them, those of them that it knows.
pub(super) fn kill_and_forget(
    client: &Client,
    files: &ClusterFiles,
    names: &[String],
) -> Result<(), Error> {
    let mut known = client.status()?.machines;
    known.retain(|machine| names.contains(&machine.name));
    let names: Vec<String> = known.into_iter().map(|machine| machine.name).collect();
    client.ask(&Request::Kill {
        machines: names.clone(),
    })?;
    let deadline = std::time::Instant::now() + LADDER;
    let mut watch = client.watch()?;
    loop {
        let status = client.status()?;
        let alive = status
            .machines
            .iter()
            .any(|machine| names.contains(&machine.name) && machine.pid.is_some());
        if !alive {
            break;
        }
        if std::time::Instant::now() > deadline {
            return Err(Error::new(
                crate::error::Exit::Timeout,
                format!("machines of cluster `{}` do not go", files.name()),
            ));
        }
        watch.next(deadline)?;
    }
    client.ask(&Request::Forget { machines: names })?;
    Ok(())
}

fn default_grace(made: &Made, names: &[String]) -> Duration {
    let emulated = names.iter().any(|name| {
        made.machine(name)
            .is_ok_and(|record| record.accel == AccelRecord::Tcg)
    });
    if emulated {
        stretched_for_tcg(DEFAULT_GRACE)
    } else {
        DEFAULT_GRACE
    }
}

fn wait(
    session: &Session<'_>,
    client: &Client,
    made: &Made,
    names: &[String],
    waiting: &Waiting,
) -> Result<ClusterStatus, Error> {
    let Some(goal) = goal(waiting.wait) else {
        return Ok(client.status()?);
    };
    let timeout = waiting
        .timeout
        .unwrap_or_else(|| default_timeout(made, names));
    until(session, client, made, names, goal, timeout)
}

fn tell(session: &Session<'_>, made: &Made, status: &ClusterStatus) -> Result<(), Error> {
    let view = show::view_of(made, status);
    session.report.result(&view, |style| view.ps_table(style))
}
