//! What happens to a machine unasked: QEMU's word, the console's, the report, the clock.

use std::time::Instant;

use super::{
    Change, Effect, GREETING_DEADLINE, Machine, Phase, QMP_ENDED, RESET_LIMIT, Restart, RunStatus,
    State, Step, Then, restart_pause,
};
use crate::state::record::ReportRecord;

impl Machine {
    pub(super) fn greeted(&mut self) -> Vec<Effect> {
        match self.state {
            State::Starting { .. } => {
                self.unmet = false;
                vec![Effect::Continue]
            }
            State::Running if self.unmet => {
                self.unmet = false;
                self.unreachable = None;
                self.responsive = true;
                vec![Effect::Continue, Effect::Changed(Change::Responsive)]
            }
            State::Stopped { .. }
            | State::Crashed { .. }
            | State::Running
            | State::Paused { .. }
            | State::Stopping { .. } => Vec::new(),
        }
    }

    pub(super) fn adopted(
        &mut self,
        now: Instant,
        status: RunStatus,
        report: Option<ReportRecord>,
    ) -> Vec<Effect> {
        match self.state {
            State::Starting { .. } => {}
            State::Running if self.unmet => {}
            State::Stopped { .. }
            | State::Crashed { .. }
            | State::Running
            | State::Paused { .. }
            | State::Stopping { .. } => return Vec::new(),
        }
        self.unmet = false;
        self.unreachable = None;
        self.responsive = true;
        // Nobody knows how far it had come: a machine that was up is treated as one that is.
        self.came_up = true;
        // A guest that waited for someone to report to may have been heard before QMP was.
        let report = self.report.take().or(report);
        self.phase = match (&report, &self.phase) {
            (Some(_), _) => Phase::Ready,
            (None, Phase::Start) => Phase::Userspace,
            // As its console has told meanwhile.
            (None, phase) => phase.clone(),
        };
        self.report = report;
        self.state = State::Running;
        match status {
            RunStatus::Running => vec![Effect::Changed(Change::Running)],
            RunStatus::Paused
            | RunStatus::Shutdown
            | RunStatus::Panicked
            | RunStatus::IoError
            | RunStatus::Broken => self.halted(now, status),
        }
    }

    pub(super) fn qmp_lost(&mut self, now: Instant, why: String) -> Vec<Effect> {
        match &self.state {
            // One that was found is of use to its guest even so, and only its user may end it.
            State::Starting { .. } | State::Running if self.unmet => {
                self.state = State::Running;
                self.came_up = true;
                self.responsive = false;
                self.unreachable = Some(why);
                vec![Effect::Changed(Change::Unresponsive)]
            }
            // A QEMU that cannot be spoken to cannot be managed; its end follows as `Exited`
            // when it was dying anyway, and then has the better words.
            State::Starting { .. } | State::Running | State::Paused { .. } => {
                self.kill(now, Then::Crashed { why })
            }
            State::Stopping {
                step: Step::Powerdown,
                then,
                ..
            } => {
                let then = then.clone();
                self.kill(now, then)
            }
            State::Stopped { .. } | State::Crashed { .. } | State::Stopping { .. } => Vec::new(),
        }
    }

    pub(super) fn resumed(&mut self) -> Vec<Effect> {
        match self.state {
            State::Starting { .. } => {
                self.state = State::Running;
                self.came_up = !self.reports;
                vec![Effect::Changed(Change::Running)]
            }
            State::Paused { .. } => {
                self.state = State::Running;
                vec![Effect::Changed(Change::Resumed)]
            }
            State::Stopped { .. }
            | State::Crashed { .. }
            | State::Running
            | State::Stopping { .. } => Vec::new(),
        }
    }

    pub(super) fn halted(&mut self, now: Instant, status: RunStatus) -> Vec<Effect> {
        match &self.state {
            State::Running | State::Paused { .. } => {}
            State::Stopping {
                step: Step::Powerdown,
                then,
                ..
            } => {
                // The guest obeyed; nothing is left to wait for.
                let then = then.clone();
                return match status {
                    RunStatus::Shutdown | RunStatus::Panicked | RunStatus::Broken => {
                        self.quit(now, then)
                    }
                    RunStatus::Paused | RunStatus::Running | RunStatus::IoError => Vec::new(),
                };
            }
            // The event that said so was lost among others.
            State::Starting { .. } if status == RunStatus::Running => return self.resumed(),
            State::Stopped { .. }
            | State::Crashed { .. }
            | State::Starting { .. }
            | State::Stopping { .. } => return Vec::new(),
        }
        match status {
            RunStatus::Running => self.resumed(),
            RunStatus::Paused => self.pause("paused"),
            RunStatus::IoError => self.pause("host disk full"),
            RunStatus::Shutdown => {
                self.start_again = self.restart == Restart::Always;
                self.quit(
                    now,
                    Then::Stopped {
                        why: "powered off by the guest".to_owned(),
                    },
                )
            }
            RunStatus::Panicked => {
                let why = match &self.panic_line {
                    Some(line) => format!("the guest's kernel panicked: {line}"),
                    None => "the guest's kernel panicked".to_owned(),
                };
                self.quit(now, Then::Crashed { why })
            }
            RunStatus::Broken => self.quit(
                now,
                Then::Crashed {
                    why: "QEMU cannot go on (internal error)".to_owned(),
                },
            ),
        }
    }

    pub(super) fn pause(&mut self, why: &str) -> Vec<Effect> {
        let why = why.to_owned();
        if self.state == (State::Paused { why: why.clone() }) {
            return Vec::new();
        }
        self.state = State::Paused { why };
        vec![Effect::Changed(Change::Paused)]
    }

    pub(super) fn reset(&mut self) -> Vec<Effect> {
        match self.state {
            State::Running | State::Paused { .. } => {
                self.resets = if self.report.is_some() {
                    0
                } else {
                    self.resets + 1
                };
                self.forget_boot();
                let mut effects = vec![Effect::Changed(Change::Reset)];
                if self.resets > RESET_LIMIT {
                    let line = format!("the guest resets itself in a loop ({} times)", self.resets);
                    effects.extend(self.guest_gave_up(line));
                }
                effects
            }
            State::Stopped { .. }
            | State::Crashed { .. }
            | State::Starting { .. }
            | State::Stopping { .. } => Vec::new(),
        }
    }

    pub(super) fn reported(&mut self, report: ReportRecord) -> Vec<Effect> {
        match self.state {
            State::Starting { .. } | State::Running | State::Paused { .. } => {
                self.report = Some(report);
                self.phase = Phase::Ready;
                self.came_up = true;
                self.restarts = 0;
                self.gave_up = None;
                self.untold = None;
                vec![Effect::Changed(Change::Ready)]
            }
            State::Stopped { .. } | State::Crashed { .. } | State::Stopping { .. } => Vec::new(),
        }
    }

    pub(super) fn address_seen(&mut self) -> Vec<Effect> {
        self.addressed = true;
        match self.state {
            State::Starting { .. } | State::Running | State::Paused { .. } => {
                vec![Effect::Changed(Change::Address)]
            }
            State::Stopped { .. } | State::Crashed { .. } | State::Stopping { .. } => Vec::new(),
        }
    }

    pub(super) fn phase_seen(&mut self, phase: Phase) -> Vec<Effect> {
        match self.state {
            State::Starting { .. } | State::Running if phase.is_after(&self.phase) => {
                self.phase = phase;
                vec![Effect::Changed(Change::Phase)]
            }
            State::Starting { .. }
            | State::Running
            | State::Paused { .. }
            | State::Stopped { .. }
            | State::Crashed { .. }
            | State::Stopping { .. } => Vec::new(),
        }
    }

    pub(super) fn beat(&mut self, answered: bool) -> Vec<Effect> {
        match self.state {
            State::Running | State::Paused { .. } if self.responsive != answered => {
                self.responsive = answered;
                vec![Effect::Changed(if answered {
                    Change::Responsive
                } else {
                    Change::Unresponsive
                })]
            }
            State::Running
            | State::Paused { .. }
            | State::Stopped { .. }
            | State::Crashed { .. }
            | State::Starting { .. }
            | State::Stopping { .. } => Vec::new(),
        }
    }

    pub(super) fn exited(&mut self, now: Instant, how: String, clean: bool) -> Vec<Effect> {
        match &self.state {
            State::Stopped { .. } | State::Crashed { .. } => Vec::new(),
            State::Starting { .. } | State::Running | State::Paused { .. } => {
                let why = if clean {
                    format!("QEMU ended by itself ({how})")
                } else {
                    how
                };
                self.died(now, why)
            }
            State::Stopping {
                then: Then::Crashed { why },
                ..
            } => {
                // A process that died while we spoke to it says more than our broken line.
                let why = if clean || !why.starts_with(QMP_ENDED) {
                    why.clone()
                } else {
                    how
                };
                self.died(now, why)
            }
            State::Stopping {
                then: Then::Stopped { why },
                ..
            } => {
                self.state = State::Stopped { why: why.clone() };
                self.forget_boot();
                let mut effects = vec![Effect::Release, Effect::Changed(Change::Stopped)];
                if self.start_again {
                    effects.extend(self.launch(now));
                }
                effects
            }
        }
    }

    /// The QEMU is gone and nobody wanted that.
    pub(super) fn died(&mut self, now: Instant, why: String) -> Vec<Effect> {
        let wanted = match self.restart {
            Restart::No => false,
            // One that never came up is not helped by trying again; its user is.
            Restart::OnFailure | Restart::Always => self.came_up,
        };
        let mut effects = vec![Effect::Release];
        if self.start_again {
            effects.extend(self.launch(now));
            return effects;
        }
        let again = wanted.then(|| {
            let pause = restart_pause(self.restarts);
            self.restarts += 1;
            now + pause
        });
        self.state = State::Crashed { why, again };
        effects.push(Effect::Changed(Change::Crashed));
        effects
    }

    pub(super) fn tick(&mut self, now: Instant) -> Vec<Effect> {
        match &self.state {
            // It lives, and may come to itself: only its user may end it.
            State::Starting { deadline } if *deadline <= now && self.unmet => {
                self.state = State::Running;
                self.came_up = true;
                self.responsive = false;
                vec![Effect::Changed(Change::Unresponsive)]
            }
            State::Starting { deadline } if *deadline <= now => self.kill(
                now,
                Then::Crashed {
                    why: format!(
                        "QEMU did not greet on QMP within {} s",
                        GREETING_DEADLINE.as_secs()
                    ),
                },
            ),
            State::Stopping {
                step,
                deadline,
                then,
            } if *deadline <= now => {
                let then = then.clone();
                match step {
                    Step::Powerdown => self.quit(now, then),
                    Step::Quit => self.kill(now, then),
                    Step::Kill => {
                        self.state = State::Stopping {
                            step: Step::Stuck,
                            deadline: now,
                            then,
                        };
                        vec![Effect::Changed(Change::Stopping)]
                    }
                    Step::Stuck => Vec::new(),
                }
            }
            State::Crashed {
                again: Some(again), ..
            } if *again <= now => {
                let restarts = self.restarts;
                let effects = self.launch(now);
                self.restarts = restarts;
                effects
            }
            State::Running => self.verdict_due(now),
            State::Starting { .. }
            | State::Stopping { .. }
            | State::Crashed { .. }
            | State::Stopped { .. }
            | State::Paused { .. } => Vec::new(),
        }
    }
}
