//! A guest that has given up, and why.
//!
//! The console proves that, and as a rule says why. Where systemd keeps Ignition's messages in
//! its journal, the console shows no more than that a stage failed; the journal follows on a port
//! of its own, which is waited for a little. It mends the reason even when it comes late.
//! A machine that has reported may print what it likes: that proves nothing.

use std::time::Instant;

use super::{Change, EXPLANATION_DEADLINE, Effect, Machine, State};

impl Machine {
    pub(super) fn guest_gave_up(&mut self, line: String) -> Vec<Effect> {
        // What follows a failed Ignition, such as an emergency shell, says less than it.
        if self.untold.is_some() || self.gave_up.is_some() {
            return Vec::new();
        }
        self.give_up(line)
    }

    pub(super) fn guest_gave_up_untold(&mut self, now: Instant, line: String) -> Vec<Effect> {
        if self.may_give_up() && self.untold.is_none() && self.gave_up.is_none() {
            self.untold = Some((now + EXPLANATION_DEADLINE, line));
        }
        Vec::new()
    }

    pub(super) fn explained(&mut self, line: String) -> Vec<Effect> {
        if self.explained {
            return Vec::new();
        }
        let effects = self.give_up(line);
        self.explained = !effects.is_empty();
        effects
    }

    /// The journal did not come in time: what the console shows has to do.
    pub(super) fn verdict_due(&mut self, now: Instant) -> Vec<Effect> {
        match self.untold.take() {
            Some((due, line)) if due <= now => self.give_up(line),
            other => {
                self.untold = other;
                Vec::new()
            }
        }
    }

    fn give_up(&mut self, line: String) -> Vec<Effect> {
        if !self.may_give_up() {
            return Vec::new();
        }
        self.untold = None;
        self.gave_up = Some(line);
        vec![Effect::Changed(Change::Failed)]
    }

    fn may_give_up(&self) -> bool {
        match self.state {
            State::Running | State::Starting { .. } => self.report.is_none(),
            State::Paused { .. }
            | State::Stopped { .. }
            | State::Crashed { .. }
            | State::Stopping { .. } => false,
        }
    }
}
