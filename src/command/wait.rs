//! Waiting for machines, by what the supervisor tells: no polling, one deadline.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::cli::args::{DEFAULT_TIMEOUT, Goal, Reach, WaitArgs, Waiting};
use crate::client::{Client, News};
use crate::command::{Made, Session, etcd};
use crate::error::{Error, Exit};
use crate::report::progress::Step;
use crate::report::view::progress_text;
use crate::state::record::{AccelRecord, MachineRecord, StateRecord};
use crate::supervisor::console::last_line;
use crate::supervisor::machine::AGAIN;
use crate::supervisor::protocol::{ClusterStatus, MachineStatus};

/// Live lines show the seconds, so they are drawn anew once in a second.
const TICK: Duration = Duration::from_secs(1);

/// How a machine came out of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Pending,
    Reached,
    /// It will not get there.
    Lost,
}

/// `kiln wait`.
pub(super) fn run(session: &Session<'_>, args: &WaitArgs) -> Result<(), Error> {
    let made = session.made()?;
    let names = made.select(&args.machines.machines)?;
    let client = Client::look(&made.files)?;
    let timeout = args
        .timeout
        .unwrap_or_else(|| default_timeout(session, &made, &names));
    let status = until(
        session,
        &client,
        &made,
        &names,
        args.goal,
        session.begun,
        timeout,
    )?;
    let view = super::show::view_of(&made, &status);
    session.report.result(&view, |style| view.ps_table(style))
}

/// Five minutes, or more where a guest is emulated.
pub(super) fn default_timeout(session: &Session<'_>, made: &Made, names: &[String]) -> Duration {
    for_the_slowest(session, made, names, DEFAULT_TIMEOUT)
}

/// A default deadline, stretched for the slowest guest of these.
pub(super) fn for_the_slowest(
    session: &Session<'_>,
    made: &Made,
    names: &[String],
    deadline: Duration,
) -> Duration {
    let records = names.iter().filter_map(|name| made.machine(name).ok());
    let of = |record: MachineRecord| match (record.accel, record.arch.parse()) {
        (AccelRecord::Tcg, Ok(arch)) => session.host.stretched(deadline, arch),
        _ => deadline,
    };
    records.map(of).max().unwrap_or(deadline)
}

/// Waits until machines that were started do their work, as far as `waiting` says, for as long as
/// it says from `since` on. Gives the cluster as it is then, where there was anything to wait for.
///
/// Whoever rolls takes the next machines only after this. What a profile knows about the health of
/// its machines belongs here, after their own word.
///
/// # Errors
/// As [`until`].
pub(super) fn until_well(
    session: &Session<'_>,
    client: &Client,
    made: &Made,
    names: &[String],
    waiting: &Waiting,
    since: Instant,
) -> Result<Option<ClusterStatus>, Error> {
    let Some(goal) = goal(waiting.wait) else {
        return Ok(None);
    };
    // A machine without kiln's fragment never reports; it is up when it runs.
    let reports = |name: &&String| made.machine(name).is_ok_and(|record| record.reports);
    let (reporting, silent): (Vec<&String>, Vec<&String>) = names.iter().partition(reports);
    let silent_goal = match goal {
        Goal::Ready => Goal::Running,
        Goal::Running | Goal::Address | Goal::Stopped => goal,
    };
    let timeout = waiting
        .timeout
        .unwrap_or_else(|| default_timeout(session, made, names));
    let mut status = None;
    for (names, goal) in [(reporting, goal), (silent, silent_goal)] {
        if names.is_empty() {
            continue;
        }
        let names: Vec<String> = names.into_iter().cloned().collect();
        status = Some(until(session, client, made, &names, goal, since, timeout)?);
    }
    if goal == Goal::Ready {
        etcd::until_healthy(session, client, made, names, since + timeout)?;
    }
    Ok(status)
}

fn goal(reach: Reach) -> Option<Goal> {
    match reach {
        Reach::None => None,
        Reach::Running => Some(Goal::Running),
        Reach::Address => Some(Goal::Address),
        Reach::Ready => Some(Goal::Ready),
    }
}

/// Waits until every one of `names` has reached `goal`, showing how they come along, and for
/// `timeout` from `since` on at the longest. Gives the
/// cluster as it is then.
///
/// # Errors
/// [`Exit::Boot`] when one cannot reach it any more, with the line that proves it;
/// [`Exit::Timeout`] at the deadline, with how far each came.
pub(super) fn until(
    session: &Session<'_>,
    client: &Client,
    made: &Made,
    names: &[String],
    goal: Goal,
    since: Instant,
    timeout: Duration,
) -> Result<ClusterStatus, Error> {
    let begun = Instant::now();
    let deadline = since + timeout;
    let mut progress = session
        .report
        .progress(begun, names.iter().map(String::as_str));
    let mut cluster: Option<ClusterStatus> = None;
    let mut machines: BTreeMap<String, MachineStatus> = BTreeMap::new();
    let mut watch = client.watch()?;
    loop {
        let now = Instant::now();
        match watch.next(deadline.min(now + TICK))? {
            News::Status(status) => {
                for machine in &status.machines {
                    machines.insert(machine.name.clone(), machine.clone());
                }
                cluster = Some(status);
            }
            News::Notice(notice) => {
                if let Some(status) = notice.status {
                    machines.insert(status.name.clone(), status);
                }
            }
            News::Nothing => {}
        }
        let now = Instant::now();
        let mut outcomes = Vec::with_capacity(names.len());
        for name in names {
            let Some(status) = machines.get(name) else {
                outcomes.push(Outcome::Pending);
                continue;
            };
            let outcome = outcome(made, status, goal);
            let step = match outcome {
                Outcome::Pending => Step::Going,
                Outcome::Reached => Step::Done,
                Outcome::Lost => Step::Failed,
            };
            progress.update(now, name, &progress_text(status), step);
            outcomes.push(outcome);
        }
        progress.tick(now);
        let pending = outcomes.contains(&Outcome::Pending);
        if pending && now < deadline {
            continue;
        }
        progress.clear();
        // The time may have been over before anything was heard.
        if machines.is_empty()
            && let Ok(status) = client.status()
        {
            machines.extend(
                status
                    .machines
                    .into_iter()
                    .map(|machine| (machine.name.clone(), machine)),
            );
        }
        let of = |wanted: Outcome| -> Vec<&MachineStatus> {
            names
                .iter()
                .zip(&outcomes)
                .filter(|(_, outcome)| **outcome == wanted)
                .filter_map(|(name, _)| machines.get(name))
                .collect()
        };
        let lost = of(Outcome::Lost);
        if !lost.is_empty() {
            return Err(boot_error(made, &lost));
        }
        if pending {
            return Err(timeout_error(made, &of(Outcome::Pending), goal, timeout));
        }
        let Some(mut cluster) = cluster else {
            return Ok(client.status()?);
        };
        for machine in &mut cluster.machines {
            if let Some(latest) = machines.remove(&machine.name) {
                *machine = latest;
            }
        }
        return Ok(cluster);
    }
}

fn outcome(made: &Made, status: &MachineStatus, goal: Goal) -> Outcome {
    let address = || {
        if !made.record.mode.gives_addresses() {
            return !status.addresses.is_empty();
        }
        made.record
            .reservations
            .get(&status.name)
            .is_some_and(|reserved| status.has_address(reserved.ip))
    };
    match (goal, status.state) {
        (Goal::Stopped, StateRecord::Stopped | StateRecord::Crashed) => Outcome::Reached,
        // A damaged one may still have its QEMU.
        (Goal::Stopped, StateRecord::Damaged) if status.pid.is_none() => Outcome::Reached,
        (Goal::Stopped, _) => Outcome::Pending,
        (_, StateRecord::Failed | StateRecord::Damaged | StateRecord::Stopped) => Outcome::Lost,
        // The policy may start it again; the reason says so.
        (_, StateRecord::Crashed) if status.reason.ends_with(AGAIN) => Outcome::Pending,
        (_, StateRecord::Crashed) => Outcome::Lost,
        (Goal::Running | Goal::Address | Goal::Ready, StateRecord::Ready) => Outcome::Reached,
        (Goal::Running, StateRecord::Running | StateRecord::Paused) => Outcome::Reached,
        (Goal::Address, StateRecord::Running) if address() => Outcome::Reached,
        (
            Goal::Running | Goal::Address | Goal::Ready,
            StateRecord::Starting
            | StateRecord::Running
            | StateRecord::Paused
            | StateRecord::Stopping
            | StateRecord::Unresponsive,
        ) => Outcome::Pending,
    }
}

fn boot_error(made: &Made, lost: &[&MachineStatus]) -> Error {
    let names: Vec<&str> = lost.iter().map(|status| status.name.as_str()).collect();
    let plural = if lost.len() == 1 {
        "machine"
    } else {
        "machines"
    };
    let mut error = Error::new(
        Exit::Boot,
        format!("{plural} {} did not come up", names.join(", ")),
    );
    for status in lost {
        error = error.cause(format!(
            "{} is {}: {}",
            status.name,
            status.state.word(),
            if status.reason.is_empty() {
                "it ended"
            } else {
                &status.reason
            }
        ));
    }
    let name = &made.record.name;
    error.hint(format!(
        "`kiln -c {name} logs {first}` shows its console, `kiln -c {name} logs {first} --qemu` what QEMU said",
        first = names[0]
    ))
}

fn timeout_error(made: &Made, pending: &[&MachineStatus], goal: Goal, timeout: Duration) -> Error {
    let goal_word = match goal {
        Goal::Running => "running",
        Goal::Address => "in use of its address",
        Goal::Ready => "ready",
        Goal::Stopped => "stopped",
    };
    let mut error = Error::new(
        Exit::Timeout,
        format!(
            "not every machine was {goal_word} within {}",
            humantime::format_duration(timeout)
        ),
    );
    for status in pending {
        let files = made.files.machine(&status.name);
        let mut cause = format!(
            "{} is {}, and came as far as: {}",
            status.name,
            status.state.word(),
            status.phase
        );
        if let Some(line) = last_line(&files.console_log()) {
            cause.push_str(&format!("; its console ends with: {line}"));
        }
        error = error.cause(cause);
    }
    let hint = match pending.first() {
        Some(status) => format!(
            "the machines run on; `kiln -c {0} logs {1} -f` shows what it does, `kiln -c {0} wait --timeout 10m` waits longer",
            made.record.name, status.name
        ),
        None => format!("`kiln -c {} ps` shows the machines", made.record.name),
    };
    error.hint(hint)
}
