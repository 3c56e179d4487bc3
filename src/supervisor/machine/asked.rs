//! What users ask of a machine: start, stop, kill, and the ladder down.

use std::time::{Duration, Instant};

use super::{
    Change, Effect, GREETING_DEADLINE, KILL_DEADLINE, Machine, Phase, QUIT_DEADLINE, State, Step,
    Then, UNHEARD_GRACE,
};

impl Machine {
    pub(super) fn start_asked(&mut self, now: Instant) -> Vec<Effect> {
        match &self.state {
            State::Stopped { .. } => {
                self.restarts = 0;
                self.launch(now)
            }
            State::Crashed { .. } => {
                self.restarts = 0;
                self.launch(now)
            }
            State::Stopping { .. } => {
                self.start_again = true;
                Vec::new()
            }
            State::Starting { .. } | State::Running | State::Paused { .. } => Vec::new(),
        }
    }

    pub(super) fn launch(&mut self, now: Instant) -> Vec<Effect> {
        self.state = State::Starting {
            deadline: now + GREETING_DEADLINE,
        };
        self.forget_boot();
        self.came_up = false;
        self.start_again = false;
        self.responsive = true;
        self.unmet = false;
        self.unreachable = None;
        self.resets = 0;
        vec![Effect::Launch, Effect::Changed(Change::Starting)]
    }

    pub(super) fn forget_boot(&mut self) {
        self.phase = Phase::Start;
        self.report = None;
        self.addressed = false;
        self.gave_up = None;
        self.untold = None;
        self.explained = false;
        self.panic_line = None;
    }

    pub(super) fn stop_asked(&mut self, now: Instant, grace: Duration) -> Vec<Effect> {
        self.start_again = false;
        let then = Then::Stopped { why: String::new() };
        match &self.state {
            State::Stopped { .. } => Vec::new(),
            State::Crashed {
                why,
                again: Some(_),
            } => {
                self.state = State::Crashed {
                    why: why.clone(),
                    again: None,
                };
                vec![Effect::Changed(Change::Stopped)]
            }
            State::Crashed { again: None, .. } => Vec::new(),
            // No vCPU runs that could hear the power button.
            State::Starting { .. } | State::Paused { .. } => self.quit(now, then),
            State::Running if !self.responsive => self.kill(now, then),
            State::Running => {
                // One that cannot report is heard of by its console and the network alone.
                let is_in_firmware = self.phase == Phase::Firmware && !self.addressed;
                let came_up = self.came_up && (self.reports || !is_in_firmware);
                let heard = came_up && self.gave_up.is_none();
                let grace = if heard {
                    grace
                } else {
                    grace.min(UNHEARD_GRACE)
                };
                if grace.is_zero() {
                    return self.quit(now, then);
                }
                self.state = State::Stopping {
                    step: Step::Powerdown,
                    deadline: now + grace,
                    then,
                };
                vec![Effect::Powerdown, Effect::Changed(Change::Stopping)]
            }
            // Asked again: the sooner of the two deadlines holds.
            State::Stopping {
                step: Step::Powerdown,
                deadline,
                then,
            } => {
                let deadline = (*deadline).min(now + grace);
                self.state = State::Stopping {
                    step: Step::Powerdown,
                    deadline,
                    then: then.clone(),
                };
                self.tick(now)
            }
            State::Stopping { .. } => Vec::new(),
        }
    }

    pub(super) fn kill_asked(&mut self, now: Instant) -> Vec<Effect> {
        self.start_again = false;
        let then = Then::Stopped {
            why: "killed".to_owned(),
        };
        match &self.state {
            State::Stopped { .. } => Vec::new(),
            State::Crashed { why, again } => {
                if again.is_none() {
                    return Vec::new();
                }
                self.state = State::Crashed {
                    why: why.clone(),
                    again: None,
                };
                vec![Effect::Changed(Change::Stopped)]
            }
            State::Starting { .. }
            | State::Running
            | State::Paused { .. }
            | State::Stopping { .. } => self.kill(now, then),
        }
    }

    pub(super) fn quit(&mut self, now: Instant, then: Then) -> Vec<Effect> {
        self.state = State::Stopping {
            step: Step::Quit,
            deadline: now + QUIT_DEADLINE,
            then,
        };
        vec![Effect::Quit, Effect::Changed(Change::Stopping)]
    }

    pub(super) fn kill(&mut self, now: Instant, then: Then) -> Vec<Effect> {
        self.state = State::Stopping {
            step: Step::Kill,
            deadline: now + KILL_DEADLINE,
            then,
        };
        vec![Effect::Kill, Effect::Changed(Change::Stopping)]
    }
}
