//! One machine as the loop holds it: its record, its life, and the handles of its QEMU.
//!
//! The life is decided by [`Machine`]; a slot only carries out what the loop asks.

mod launch;
mod look;
mod send;
mod tell;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use kiln_netsetup::bridge::BridgeError;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::in_one_line;
use crate::folder::FolderError;
use crate::state::files;
use crate::state::layout::{MachineFiles, Socket};
use crate::state::record::{
    MachineRecord, PortRecord, ReportRecord, RestartRecord, RunRecord, SeenRecord, StateRecord,
};
use crate::supervisor::beside;
use crate::supervisor::console::ConsoleWatch;
use crate::supervisor::diagnose::Finding;
use crate::supervisor::launch::LaunchError;
use crate::supervisor::machine::{Machine, Restart};
use crate::supervisor::message::Message;
use crate::supervisor::network::Network;
use crate::supervisor::ports;
use crate::supervisor::process::{Carriers, Process, SpawnError};
use crate::supervisor::protocol::NOT_MADE;
use crate::supervisor::qmp::Qmp;
use crate::supervisor::regain;
use crate::supervisor::tpm::TpmError;
use crate::supervisor::watch::Origin;

/// A NIC that is lost this often without a frame in between is given up.
const PLUG_LIMIT: u32 = 5;

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("its record is damaged")]
    Damaged,
    #[error("it cannot be launched")]
    Launch(#[from] LaunchError),
    #[error("its TPM cannot be started")]
    Tpm(#[from] TpmError),
    #[error("QEMU cannot be started")]
    Spawn(#[from] SpawnError),
    #[error("its log `{}` cannot be opened", path.display())]
    Log {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("it has no folder for its sockets")]
    Folder(#[from] FolderError),
    #[error("its ports cannot be published")]
    Ports(#[from] ports::PortError),
    #[error("it cannot be joined to the cluster's network")]
    Network(#[from] BridgeError),
}

/// A machine and the handles of its QEMU, while there is one.
#[derive(Debug)]
pub(super) struct Slot {
    name: String,
    pub(super) files: MachineFiles,
    /// Absent when it cannot be read, and when the machine is not made yet.
    pub(super) record: Option<MachineRecord>,
    /// Why the record cannot be read; absent for a machine that is not made yet.
    damage: Option<String>,
    pub(super) machine: Machine,
    /// Which launch the handles are of.
    pub(super) generation: u64,
    process: Option<Arc<Process>>,
    pub(super) qmp: Option<Qmp>,
    tasks: Vec<JoinHandle<()>>,
    /// The tasks of its published ports.
    published: BTreeMap<PortRecord, JoinHandle<()>>,
    pub(super) seen: Vec<SeenRecord>,
    /// Addresses that it is known to have no more, whatever it reported.
    pub(super) lost: Vec<IpAddr>,
    /// When kiln's own DHCP gave it its address last.
    pub(super) leased: Option<Instant>,
    started_at: Option<String>,
    /// What a former supervisor had recorded, until the adopted QEMU answers.
    kept_report: Option<ReportRecord>,
    /// What does not work of its QEMU, a sentence each.
    pub(super) notes: Vec<String>,
    /// What the console has said before this supervisor was there.
    pub(super) missed: Vec<Finding>,
    found: Option<Process>,
    saved: Option<RunRecord>,
    /// Whether its QEMU was found, and has not answered yet.
    adopting: bool,
    /// How often its NIC was plugged in again since a frame came through.
    pub(super) plugged: u32,
}

impl Slot {
    /// Reads what is known of a machine and looks whether its QEMU lives.
    pub(super) fn load(
        name: &str,
        machine_files: MachineFiles,
        uuid: &str,
        boot_id: &str,
        generation: u64,
        carriers: &Carriers,
    ) -> Slot {
        let (record, damage) = match files::load::<MachineRecord>(&machine_files.record()) {
            Ok(Some(record)) => (Some(record), None),
            Ok(None) => (None, missing(&machine_files)),
            Err(error) => (None, Some(in_one_line(&error))),
        };
        let mut slot = Slot {
            name: name.to_owned(),
            files: machine_files,
            damage,
            machine: Machine::stopped(Restart::No, true, String::new()),
            record,
            generation,
            process: None,
            qmp: None,
            tasks: Vec::new(),
            published: BTreeMap::new(),
            seen: Vec::new(),
            lost: Vec::new(),
            leased: None,
            started_at: None,
            kept_report: None,
            notes: Vec::new(),
            missed: Vec::new(),
            found: None,
            saved: None,
            adopting: false,
            plugged: 0,
        };
        slot.look(uuid, boot_id, carriers);
        slot
    }

    fn policy(&self) -> (Restart, bool) {
        match &self.record {
            None => (Restart::No, true),
            Some(record) => {
                let restart = match record.restart {
                    RestartRecord::No => Restart::No,
                    RestartRecord::OnFailure => Restart::OnFailure,
                    RestartRecord::Always => Restart::Always,
                };
                (restart, record.reports)
            }
        }
    }

    /// Takes the record as it is on the disk now. A machine that is alive takes its policy and its
    /// ports: the rest holds from its next start on. What is wrong with a port becomes a note.
    pub(super) fn reload(&mut self, network: &Arc<Network>) {
        let found = files::load::<MachineRecord>(&self.files.record());
        if self.machine.is_alive() {
            if let (Ok(Some(new)), Some(record)) = (found, &mut self.record) {
                record.restart = new.restart;
                record.ports = new.ports;
                self.publish_or_note(network);
            }
        } else {
            self.record = match found {
                Ok(Some(record)) => Some(record),
                Ok(None) => {
                    self.damage = missing(&self.files);
                    None
                }
                Err(error) => {
                    self.damage = Some(in_one_line(&error));
                    None
                }
            };
        }
        let (restart, reports) = self.policy();
        self.machine.set_policy(restart, reports);
    }

    /// Publishes its ports and notes what is wrong with them, which who has them may mend.
    fn publish_or_note(&mut self, network: &Arc<Network>) {
        const BEGIN: &str = "its ports are not published: ";
        self.notes.retain(|note| !note.starts_with(BEGIN));
        if let Err(error) = self.publish(network) {
            let error = in_one_line(&error);
            tracing::warn!(machine = self.name, error, "ports are not published");
            self.notes
                .push(format!("{BEGIN}{error}; `kiln up` tries again"));
        }
    }

    /// Whether it cannot be started: damaged, or not made yet.
    pub(super) fn is_without_record(&self) -> bool {
        self.record.is_none()
    }

    pub(super) fn state(&self) -> StateRecord {
        match (&self.record, &self.damage) {
            (None, Some(_)) => StateRecord::Damaged,
            (None, None) | (Some(_), _) => self.machine.state(),
        }
    }

    /// Why it is in that state.
    fn reason(&self) -> String {
        match (&self.record, &self.damage) {
            (Some(_), _) => self.machine.reason(),
            (None, Some(why)) => why.clone(),
            (None, None) => NOT_MADE.to_owned(),
        }
    }

    /// Begins to watch the QEMU that [`Slot::load`] found, if any.
    pub(super) fn adopt(
        &mut self,
        inbox: &mpsc::Sender<Message>,
        consoles: &mut ConsoleWatch,
        network: &Arc<Network>,
    ) {
        let Some(process) = self.found.take() else {
            return;
        };
        mend(&process, &self.files);
        // Only what comes from now on: the verdicts of the past are in the record.
        consoles.add_at_end(&self.name, &self.files.console_log());
        self.keep_logs_short(consoles);
        self.publish_or_note(network);
        self.adopting = true;
        network.recall(&self.name, &self.seen);
        let beside = beside::found(&process, &self.files);
        self.attend(process, beside, Origin::Found, inbox, network);
    }

    /// The logs of its programs, beside the machine's console. No machine's name has a slash.
    fn logs(&self) -> [(String, PathBuf); 3] {
        [
            (format!("{}/qemu", self.name), self.files.qemu_log()),
            (format!("{}/tpm", self.name), self.files.tpm_log()),
            (format!("{}/shares", self.name), self.files.share_log()),
        ]
    }

    fn keep_logs_short(&self, consoles: &mut ConsoleWatch) {
        for (name, log) in self.logs() {
            // Not every machine has a TPM, or shares.
            if log.exists() {
                consoles.keep_short(&name, &log);
            }
        }
    }

    pub(super) fn mend_sockets(&self) {
        if let Some(process) = &self.process
            && self.machine.is_alive()
        {
            mend(process, &self.files);
        }
    }

    pub(super) fn is_adopting(&self) -> bool {
        self.adopting && self.machine.is_alive()
    }

    /// Whether its QEMU was started, and did not greet yet.
    pub(super) fn is_beginning(&self) -> bool {
        self.qmp.is_none() && self.machine.state() == StateRecord::Starting
    }

    /// QMP is up on its QEMU.
    pub(super) fn met(&mut self, qmp: Qmp) -> Option<ReportRecord> {
        self.adopting = false;
        self.qmp = Some(qmp);
        self.kept_report.take()
    }

    /// Lets go of a QEMU that is gone.
    pub(super) fn release(&mut self, consoles: &mut ConsoleWatch) {
        self.drop_tasks();
        self.qmp = None;
        self.process = None;
        self.forget_addresses();
        self.notes.clear();
        self.started_at = None;
        consoles.remove(&self.name);
        for (name, _) in self.logs() {
            consoles.remove(&name);
        }
        for socket in Socket::ALL {
            let _ = std::fs::remove_file(self.files.socket(socket));
        }
    }

    fn forget_addresses(&mut self) {
        self.seen.clear();
        self.lost.clear();
        self.leased = None;
    }

    fn drop_tasks(&mut self) {
        let published = std::mem::take(&mut self.published).into_values();
        for task in self.tasks.drain(..).chain(published) {
            task.abort();
        }
    }
}

/// What is wrong with a machine that has no record: nothing, when it was never made.
fn missing(files: &MachineFiles) -> Option<String> {
    let ran = files.run().exists();
    ran.then(|| "its record is missing".to_owned())
}

/// Gives the sockets of a living QEMU their names back; one that has none of them may be gone.
pub(super) fn mend(process: &Process, files: &MachineFiles) {
    if let Err(error) = regain::mend(process.pid(), files) {
        let sockets = files.sockets.display();
        tracing::warn!(%error, "the sockets in {sockets} are not regained");
    }
}
