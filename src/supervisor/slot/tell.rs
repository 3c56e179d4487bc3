//! A machine as others see it: the run record on the disk, and the status for commands.

use std::net::IpAddr;

use super::Slot;
use crate::error::in_one_line;
use crate::state::files::{self, SCHEMA};
use crate::state::record::{ProcessRecord, RunRecord, SeenRecord, SourceRecord};
use crate::supervisor::dispatcher::phase_text;
use crate::supervisor::protocol::MachineStatus;

impl Slot {
    /// Writes the run record when it differs from the one on the disk.
    pub(in crate::supervisor) fn persist(&mut self, boot_id: &str) {
        // One that has not answered yet is as its former supervisor recorded it.
        if self.is_without_record() || self.is_adopting() {
            return;
        }
        let mut run = RunRecord {
            schema: SCHEMA,
            boot_id: boot_id.to_owned(),
            process: self.process.as_ref().map(|process| ProcessRecord {
                pid: process.pid(),
                start_time: process.start_time(),
            }),
            state: self.machine.state(),
            reason: self.machine.reason(),
            report: self.machine.report().cloned(),
            seen: self.seen.clone(),
            lost: self.lost.clone(),
            started_at: self.started_at.clone(),
            console: self.saved.as_ref().and_then(|saved| saved.console),
            restarts: self.machine.restarts(),
        };
        if self.saved.as_ref() == Some(&run) {
            return;
        }
        let log = std::fs::symlink_metadata(self.files.console_log());
        run.console = log.ok().map(|log| log.len());
        match files::save(&self.files.run(), &run) {
            Ok(()) => self.saved = Some(run),
            Err(error) => {
                tracing::error!(
                    machine = self.name,
                    error = in_one_line(&error),
                    "not recorded"
                );
            }
        }
    }

    pub(in crate::supervisor) fn status(&self) -> MachineStatus {
        let mut addresses = self.seen.clone();
        for ip in self
            .machine
            .report()
            .map_or(&[][..], |report| &report.addresses)
        {
            let ip = IpAddr::from(*ip);
            if !addresses.iter().any(|seen| seen.ip == ip) && !self.lost.contains(&ip) {
                addresses.push(SeenRecord {
                    ip,
                    source: SourceRecord::Report,
                    expires: None,
                });
            }
        }
        addresses.sort_by_key(|seen| seen.ip.is_ipv6());
        MachineStatus {
            name: self.name.clone(),
            state: self.state(),
            reason: self.reason(),
            phase: phase_text(self.machine.phase()),
            pid: self.process.as_ref().map(|process| process.pid()),
            addresses,
            report: self.machine.report().cloned(),
            started_at: self.started_at.clone(),
            notes: self.notes.clone(),
        }
    }
}
