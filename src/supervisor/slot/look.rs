//! What became of a machine while no supervisor watched it.

use std::time::Instant;

use super::Slot;
use crate::state::files;
use crate::state::record::{RunRecord, StateRecord};
use crate::supervisor::console;
use crate::supervisor::machine::{AGAIN, Machine};
use crate::supervisor::process::{Carriers, Process};

impl Slot {
    pub(super) fn look(&mut self, uuid: &str, boot_id: &str, carriers: &Carriers) {
        let (restart, reports) = self.policy();
        // A torn run record is as none: the process is then found by its uuid.
        let run = files::load::<RunRecord>(&self.files.run()).ok().flatten();
        let this_boot = run.as_ref().is_none_or(|run| run.boot_id == boot_id);
        let recorded = run.as_ref().filter(|_| this_boot);
        // The record may be of the boot before: the supervisor was killed before it wrote anew.
        self.found = recorded
            .and_then(|run| run.process.as_ref())
            .and_then(|process| Process::adopt(process.pid, process.start_time, uuid).ok()?)
            .or_else(|| carriers.find(uuid));
        let rebooted = self.found.is_some() && recorded.is_some_and(|run| self.catch_up(run));
        self.machine = match (&run, &self.found) {
            (_, Some(_)) => {
                let gave_up = recorded
                    .filter(|run| run.state == StateRecord::Failed && !rebooted)
                    .map(|run| run.reason.clone());
                Machine::adopting(restart, reports, gave_up, Instant::now())
            }
            (None, None) => Machine::stopped(restart, reports, String::new()),
            (Some(_), None) if !this_boot => {
                Machine::stopped(restart, reports, "host rebooted".to_owned())
            }
            (Some(run), None) => match run.state {
                StateRecord::Stopped => Machine::stopped(restart, reports, run.reason.clone()),
                StateRecord::Crashed => match run.reason.strip_suffix(AGAIN) {
                    Some(why) => {
                        let (why, now) = (why.to_owned(), Instant::now());
                        Machine::crashed_for_now(restart, reports, why, run.restarts, now)
                    }
                    None => Machine::crashed(restart, reports, run.reason.clone()),
                },
                StateRecord::Stopping => Machine::stopped(restart, reports, String::new()),
                StateRecord::Starting
                | StateRecord::Running
                | StateRecord::Ready
                | StateRecord::Paused
                | StateRecord::Failed
                | StateRecord::Unresponsive
                | StateRecord::Damaged => Machine::crashed(
                    restart,
                    reports,
                    "QEMU ended while no supervisor watched it".to_owned(),
                ),
            },
        };
        if let (Some(run), Some(_)) = (run.filter(|_| this_boot), &self.found) {
            self.seen = run.seen;
            self.lost = run.lost;
            self.started_at = run.started_at;
            self.kept_report = run.report.filter(|_| !rebooted);
        }
    }

    /// Reads what the console has said while no supervisor read it; whether the guest has begun
    /// anew since the record. QEMU tells that to nobody later.
    fn catch_up(&mut self, run: &RunRecord) -> bool {
        let Some(offset) = run.console else {
            return false;
        };
        let missed = console::missed(&self.files.console_log(), offset).unwrap_or_default();
        // The console of a guest that was up proves nothing, unless it has begun anew.
        if missed.begins_anew || run.report.is_none() {
            self.missed = missed.findings;
        }
        missed.begins_anew
    }
}
