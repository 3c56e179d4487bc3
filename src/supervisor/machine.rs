//! The life of one machine, as a pure function of what happened and when.
//!
//! ```text
//!                 start                greeted, cont
//!   Stopped ───────────────▶ Starting ───────────────▶ Running ◀──▶ Paused
//!   Crashed ◀── exit ───────────┘ │                       │            │
//!      ▲                          │ stop, kill            │            │
//!      │ died                     ▼                       ▼            ▼
//!      └────────────────────── Stopping: powerdown ─▶ quit ─▶ kill ─▶ exit
//!                                 └──▶ Stopped, Crashed, or Starting again
//! ```
//!
//! It acts on nothing: [`Machine::on`] answers with [`Effect`]s that the
//! dispatcher performs. No wait is without a deadline, and [`Machine::deadline`]
//! names the next one. A `ready` machine is a running one that has reported; a
//! `failed` one runs, but its guest has given up (Ignition failed, an emergency
//! shell), which only its console can tell.

mod asked;
mod seen;
mod verdict;

use std::time::{Duration, Instant};

use crate::state::record::{ReportRecord, StateRecord};

/// How long QEMU may take from exec to its QMP greeting (20 to 45 ms is usual).
pub const GREETING_DEADLINE: Duration = Duration::from_secs(30);
/// How long a QEMU that was found alive may take to answer before it is called unresponsive.
pub const MEETING_DEADLINE: Duration = Duration::from_secs(4);
/// How long QEMU may take to obey `quit` before it is killed.
pub const QUIT_DEADLINE: Duration = Duration::from_secs(2);
/// How long a killed process may take to be gone before kiln says so.
pub const KILL_DEADLINE: Duration = Duration::from_secs(2);
/// The longest grace of a guest that has not come up: nobody in it hears the button.
pub const UNHEARD_GRACE: Duration = Duration::from_secs(5);
/// How long the journal of a failed Ignition is waited for where the console does not say why.
pub const EXPLANATION_DEADLINE: Duration = Duration::from_secs(4);
/// The first pause before a machine is started again by its policy; it doubles.
pub const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// How the reason of a crash ends when the policy will start the machine again.
pub const AGAIN: &str = "; will be started again";
const RESTART_PAUSE_LIMIT: Duration = Duration::from_secs(60);
/// Begins the reason of a machine whose QEMU hung up.
const QMP_ENDED: &str = "QMP ended";
/// More resets than this without coming up are a loop.
const RESET_LIMIT: u32 = 5;

/// When a machine is started again without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    No,
    OnFailure,
    Always,
}

/// How far a booting guest has come, as its console tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// QEMU is being started.
    Start,
    Firmware,
    Kernel,
    /// The stage in Ignition's own word, empty when it did not say.
    Ignition(String),
    Userspace,
    Ready,
}

impl Phase {
    /// Whether it is news to a machine that was last seen in `other`: a later phase, or another
    /// stage of the same one.
    fn is_after(&self, other: &Phase) -> bool {
        self.rank() > other.rank() || (self.rank() == other.rank() && self != other)
    }

    fn rank(&self) -> u8 {
        match self {
            Phase::Start => 0,
            Phase::Firmware => 1,
            Phase::Kernel => 2,
            Phase::Ignition(_) => 3,
            Phase::Userspace => 4,
            Phase::Ready => 5,
        }
    }
}

/// What the run state was when a supervisor met the machine on QMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunStatus {
    /// vCPUs have not started or were stopped by `stop`.
    Paused,
    Running,
    /// The guest powered off; QEMU waits (`-action shutdown=pause`).
    Shutdown,
    /// The guest's kernel panicked; QEMU waits (`-action panic=pause`).
    Panicked,
    /// A write of the guest's failed for want of room on the host.
    IoError,
    /// `internal-error` and its like: QEMU cannot go on.
    Broken,
}

/// All that can happen to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    StartAsked,
    StopAsked {
        grace: Duration,
    },
    KillAsked,
    /// QMP is up on a QEMU that this supervisor started.
    Greeted,
    /// A living QEMU of a former supervisor was taken over.
    Adopted {
        status: RunStatus,
        report: Option<ReportRecord>,
    },
    /// QEMU closed its QMP socket: it is dying, as a rule.
    QmpLost {
        why: String,
    },
    /// QEMU is there and says what is not QMP, or nothing.
    QmpBroken {
        why: String,
    },
    /// The vCPUs run.
    Resumed,
    /// The vCPUs stopped; `status` says why.
    Halted {
        status: RunStatus,
    },
    /// The guest restarted itself or was reset.
    Reset,
    /// The guest agent's or kiln's report came in.
    Reported(ReportRecord),
    /// An address of the machine was seen in use.
    AddressSeen,
    /// The console shows a later phase.
    PhaseSeen(Phase),
    /// The console shows that the guest has given up; `line` proves it.
    GaveUp {
        line: String,
    },
    /// The console shows that Ignition failed, and not why; its journal may tell that yet.
    GaveUpUntold {
        line: String,
    },
    /// The journal of a failed Ignition came in; `line` says why.
    Explained {
        line: String,
    },
    /// The console shows the line of a kernel panic.
    PanicLine {
        line: String,
    },
    /// QMP answered, or did not within its deadline.
    Beat {
        answered: bool,
    },
    /// The process is gone, or could not even be started.
    Exited {
        how: String,
        clean: bool,
    },
    /// A deadline may have passed.
    Tick,
}

/// What is to be done about it, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    Launch,
    /// Let the vCPUs run.
    Continue,
    /// Press the power button.
    Powerdown,
    /// Ask QEMU to end.
    Quit,
    /// SIGKILL through the pidfd.
    Kill,
    /// Drop the sockets and descriptors of a QEMU that is gone.
    Release,
    /// Record and tell: something that a user can see has changed.
    Changed(Change),
}

/// What users are told, a word each in `kiln events`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Starting,
    Running,
    Ready,
    Phase,
    Paused,
    Resumed,
    Reset,
    Stopping,
    Stopped,
    Crashed,
    Failed,
    Unresponsive,
    Responsive,
    Address,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Stopped {
        why: String,
    },
    Crashed {
        why: String,
        again: Option<Instant>,
    },
    Starting {
        deadline: Instant,
    },
    Running,
    Paused {
        why: String,
    },
    Stopping {
        step: Step,
        deadline: Instant,
        then: Then,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Powerdown,
    Quit,
    Kill,
    /// SIGKILL was sent and the process is still there: in the kernel's hands.
    Stuck,
}

/// What a machine becomes once its QEMU is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Then {
    Stopped { why: String },
    Crashed { why: String },
}

/// One machine's life so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    restart: Restart,
    /// Whether its config holds kiln's report; one that cannot report counts as up when it runs.
    reports: bool,
    state: State,
    phase: Phase,
    report: Option<ReportRecord>,
    /// Whether an address of it was seen in use since it booted.
    addressed: bool,
    gave_up: Option<String>,
    /// What the console shows of a failed Ignition, until its journal tells more or this is due.
    untold: Option<(Instant, String)>,
    /// The journal has told.
    explained: bool,
    panic_line: Option<String>,
    responsive: bool,
    came_up: bool,
    resets: u32,
    restarts: u32,
    start_again: bool,
    /// It was found alive, and its QEMU has not answered yet.
    unmet: bool,
    /// Why its QEMU, which was found alive, cannot be spoken to.
    unreachable: Option<String>,
}

impl Machine {
    /// A machine that does not run, and why not (empty: it never did).
    pub fn stopped(restart: Restart, reports: bool, why: String) -> Machine {
        Machine {
            restart,
            reports,
            state: State::Stopped { why },
            phase: Phase::Start,
            report: None,
            addressed: false,
            gave_up: None,
            untold: None,
            explained: false,
            panic_line: None,
            responsive: true,
            came_up: false,
            resets: 0,
            restarts: 0,
            start_again: false,
            unmet: false,
            unreachable: None,
        }
    }

    /// A machine whose QEMU was found dead by a new supervisor.
    pub fn crashed(restart: Restart, reports: bool, why: String) -> Machine {
        Machine {
            state: State::Crashed { why, again: None },
            ..Machine::stopped(restart, reports, String::new())
        }
    }

    /// A machine that a former supervisor was about to start again, the `restarts`th time.
    pub fn crashed_for_now(
        restart: Restart,
        reports: bool,
        why: String,
        restarts: u32,
        now: Instant,
    ) -> Machine {
        let again = match restart {
            Restart::No => None,
            Restart::OnFailure | Restart::Always => {
                Some(now + restart_pause(restarts.saturating_sub(1)))
            }
        };
        Machine {
            state: State::Crashed { why, again },
            restarts,
            ..Machine::stopped(restart, reports, String::new())
        }
    }

    /// A machine whose living QEMU a new supervisor found; [`Event::Adopted`] comes next.
    /// `gave_up` is the verdict that a former one had recorded.
    pub fn adopting(
        restart: Restart,
        reports: bool,
        gave_up: Option<String>,
        now: Instant,
    ) -> Machine {
        Machine {
            gave_up,
            unmet: true,
            state: State::Starting {
                deadline: now + MEETING_DEADLINE,
            },
            ..Machine::stopped(restart, reports, String::new())
        }
    }

    /// Takes the policy of a changed record; the life so far stands.
    pub fn set_policy(&mut self, restart: Restart, reports: bool) {
        self.restart = restart;
        self.reports = reports;
    }

    /// The state as `ps` calls it.
    pub fn state(&self) -> StateRecord {
        match &self.state {
            State::Stopped { .. } => StateRecord::Stopped,
            State::Crashed { .. } => StateRecord::Crashed,
            State::Starting { .. } => StateRecord::Starting,
            State::Stopping { .. } => StateRecord::Stopping,
            State::Running | State::Paused { .. } if !self.responsive => StateRecord::Unresponsive,
            State::Paused { .. } => StateRecord::Paused,
            State::Running if self.gave_up.is_some() => StateRecord::Failed,
            State::Running if self.report.is_some() => StateRecord::Ready,
            State::Running => StateRecord::Running,
        }
    }

    /// Why it is in that state, for people; empty when there is nothing to say.
    pub fn reason(&self) -> String {
        match &self.state {
            State::Stopped { why } | State::Paused { why } => why.clone(),
            State::Crashed { why, again: None } => why.clone(),
            State::Crashed {
                why,
                again: Some(_),
            } => {
                format!("{why}{AGAIN}")
            }
            State::Starting { .. } => String::new(),
            State::Stopping {
                step: Step::Stuck, ..
            } => "the process does not go, even killed".to_owned(),
            State::Stopping {
                then: Then::Crashed { why },
                ..
            } => why.clone(),
            State::Stopping { .. } => String::new(),
            State::Running if !self.responsive => match &self.unreachable {
                Some(why) => format!(
                    "QEMU runs on, and kiln cannot speak to it ({why}); `kiln restart` ends it and starts it anew"
                ),
                None => "QEMU does not answer on QMP".to_owned(),
            },
            State::Running => self.gave_up.clone().unwrap_or_default(),
        }
    }

    /// How often the policy has started it again since it was last up.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    pub fn report(&self) -> Option<&ReportRecord> {
        self.report.as_ref()
    }

    /// Whether there is, or may be, a QEMU process.
    pub fn is_alive(&self) -> bool {
        match self.state {
            State::Stopped { .. } | State::Crashed { .. } => false,
            State::Starting { .. }
            | State::Running
            | State::Paused { .. }
            | State::Stopping { .. } => true,
        }
    }

    /// Whether it will be alive without anyone asking.
    pub fn is_wanted(&self) -> bool {
        match &self.state {
            State::Stopped { .. } => false,
            State::Crashed { again, .. } => again.is_some(),
            State::Stopping { .. } => self.start_again,
            State::Starting { .. } | State::Running | State::Paused { .. } => true,
        }
    }

    /// When [`Event::Tick`] is due next.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Starting { deadline } => Some(*deadline),
            State::Stopping {
                step: Step::Stuck, ..
            } => None,
            State::Stopping { deadline, .. } => Some(*deadline),
            State::Crashed { again, .. } => *again,
            State::Running => self.untold.as_ref().map(|(due, _)| *due),
            State::Stopped { .. } | State::Paused { .. } => None,
        }
    }

    /// What `event` at `now` makes of the machine, and what is to be done.
    pub fn on(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        match event {
            Event::StartAsked => self.start_asked(now),
            Event::StopAsked { grace } => self.stop_asked(now, grace),
            Event::KillAsked => self.kill_asked(now),
            Event::Greeted => self.greeted(),
            Event::Adopted { status, report } => self.adopted(now, status, report),
            Event::QmpLost { why } => self.qmp_lost(now, format!("{QMP_ENDED}: {why}")),
            Event::QmpBroken { why } => self.qmp_lost(now, format!("QMP does not work: {why}")),
            Event::Resumed => self.resumed(),
            Event::Halted { status } => self.halted(now, status),
            Event::Reset => self.reset(),
            Event::Reported(report) => self.reported(report),
            Event::AddressSeen => self.address_seen(),
            Event::PhaseSeen(phase) => self.phase_seen(phase),
            Event::GaveUp { line } => self.guest_gave_up(line),
            Event::GaveUpUntold { line } => self.guest_gave_up_untold(now, line),
            Event::Explained { line } => self.explained(line),
            Event::PanicLine { line } => {
                self.panic_line.get_or_insert(line);
                Vec::new()
            }
            Event::Beat { answered } => self.beat(answered),
            Event::Exited { how, clean } => self.exited(now, how, clean),
            Event::Tick => self.tick(now),
        }
    }
}

/// The pause before a machine is started again that was so often before.
fn restart_pause(restarts: u32) -> Duration {
    (RESTART_PAUSE * 2u32.saturating_pow(restarts.min(10))).min(RESTART_PAUSE_LIMIT)
}

#[cfg(test)]
mod tests;
