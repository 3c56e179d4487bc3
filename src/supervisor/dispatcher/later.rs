//! What the loop does a little later than it could: records that lose nothing by it, and the first
//! step of vCPUs while other machines still start. Nothing waits here without an end.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::Dispatcher;
use crate::supervisor::machine::Change;

/// How long a record may wait that says nothing which could not be found out again.
const WRITE: Duration = Duration::from_millis(100);
/// How long guests wait at most for other machines' QEMUs.
const HOLD: Duration = Duration::from_secs(1);

/// What is put off, and until when.
#[derive(Debug, Default)]
pub(super) struct Later {
    /// Machines that are not on the disk yet as they are now.
    unwritten: BTreeSet<String>,
    write_at: Option<Instant>,
    /// Machines whose vCPUs may run as soon as no QEMU is beginning any more.
    held: BTreeSet<String>,
    hold_until: Option<Instant>,
}

impl Later {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.write_at.into_iter().chain(self.hold_until).min()
    }
}

/// Whether a later supervisor learns of the change without a record: a living QEMU is found by its
/// UUID, and says how it is. Such a change may be told before it is on the disk.
pub(super) fn can_be_asked_again(change: Change) -> bool {
    match change {
        Change::Starting
        | Change::Running
        | Change::Phase
        | Change::Paused
        | Change::Resumed
        | Change::Unresponsive
        | Change::Responsive => true,
        Change::Ready
        | Change::Address
        | Change::Reset
        | Change::Stopping
        | Change::Stopped
        | Change::Crashed
        | Change::Failed => false,
    }
}

impl Dispatcher {
    pub(super) fn do_later(&mut self, now: Instant) {
        if self.later.write_at.is_some_and(|at| at <= now) {
            self.write_all();
        }
        self.let_run();
    }

    /// Has the machine written before long: whoever waits for it comes first, and one that starts
    /// mostly runs by then.
    pub(super) fn write_soon(&mut self, name: &str) {
        self.later.unwritten.insert(name.to_owned());
        let at = Instant::now() + WRITE;
        self.later.write_at.get_or_insert(at);
    }

    pub(super) fn write_all(&mut self) {
        self.later.write_at = None;
        for name in std::mem::take(&mut self.later.unwritten) {
            self.write(&name);
        }
    }

    pub(super) fn write(&mut self, name: &str) {
        self.later.unwritten.remove(name);
        if let Some(slot) = self.slots.get_mut(name) {
            slot.persist(&self.boot_id);
        }
    }

    /// Has the machine's vCPUs run when no other machine is beginning.
    ///
    /// Where many start at once, the guests that are first would take the processors from the
    /// QEMUs that are not there yet, and none would be ready the sooner.
    pub(super) fn hold(&mut self, name: &str) {
        self.later.held.insert(name.to_owned());
        let until = Instant::now() + HOLD;
        self.later.hold_until.get_or_insert(until);
    }

    /// Lets the vCPUs run that are held, if it is time.
    pub(super) fn let_run(&mut self) {
        let Some(until) = self.later.hold_until else {
            return;
        };
        if Instant::now() < until && self.slots.values().any(|slot| slot.is_beginning()) {
            return;
        }
        self.later.hold_until = None;
        for name in std::mem::take(&mut self.later.held) {
            if let Some(slot) = self.slots.get(&name) {
                slot.send_continue(&self.inbox);
            }
        }
    }
}
