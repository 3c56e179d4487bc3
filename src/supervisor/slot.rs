//! One machine as the loop holds it: its record, its life, and the handles of its QEMU.
//!
//! The life is decided by [`Machine`]; a slot only carries out what the loop asks.

use std::fs::OpenOptions;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use kiln_netsetup::bridge::BridgeError;
use nix::libc;
use qapi::qmp;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::in_one_line;
use crate::folder::{self, FolderError};
use crate::state::files::{self, SCHEMA};
use crate::state::layout::{MachineFiles, Socket};
use crate::state::record::{
    ClusterRecord, MachineRecord, ProcessRecord, ReportRecord, RestartRecord, RunRecord,
    SeenRecord, StateRecord,
};
use crate::supervisor::console::{self, ConsoleWatch};
use crate::supervisor::diagnose::Finding;
use crate::supervisor::dispatcher::phase_text;
use crate::supervisor::journal;
use crate::supervisor::launch::{self, LaunchError};
use crate::supervisor::machine::{AGAIN, Machine, Restart};
use crate::supervisor::message::{Message, News, Reply};
use crate::supervisor::network::{Network, Peer};
use crate::supervisor::ports;
use crate::supervisor::process::{Carriers, Identity, Launch, Process, SpawnError, spawn_both};
use crate::supervisor::protocol::{Answer, MachineStatus};
use crate::supervisor::qmp::Qmp;
use crate::supervisor::regain;
use crate::supervisor::tpm::{self, Tpm, TpmError};
use crate::supervisor::watch::{self, Origin, Teller};

/// How long QEMU may take to answer a command of ours.
const COMMAND_DEADLINE: Duration = Duration::from_secs(5);

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
    /// Absent when it cannot be read: the machine is damaged.
    pub(super) record: Option<MachineRecord>,
    damage: String,
    pub(super) machine: Machine,
    /// Which launch the handles are of.
    pub(super) generation: u64,
    process: Option<Arc<Process>>,
    pub(super) qmp: Option<Qmp>,
    tasks: Vec<JoinHandle<()>>,
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
            Ok(Some(record)) => (Some(record), String::new()),
            Ok(None) => (None, "its record is missing".to_owned()),
            Err(error) => (None, in_one_line(&error)),
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

    fn look(&mut self, uuid: &str, boot_id: &str, carriers: &Carriers) {
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

    /// Takes the record as it is on the disk now. A machine that is alive takes only its policy:
    /// the rest holds from its next start on.
    pub(super) fn reload(&mut self) {
        let found = files::load::<MachineRecord>(&self.files.record());
        if self.machine.is_alive() {
            if let (Ok(Some(new)), Some(record)) = (found, &mut self.record) {
                record.restart = new.restart;
            }
        } else {
            self.record = match found {
                Ok(Some(record)) => Some(record),
                Ok(None) => {
                    self.damage = "its record is missing".to_owned();
                    None
                }
                Err(error) => {
                    self.damage = in_one_line(&error);
                    None
                }
            };
        }
        let (restart, reports) = self.policy();
        self.machine.set_policy(restart, reports);
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.record.is_none()
    }

    pub(super) fn state(&self) -> StateRecord {
        if self.is_damaged() {
            StateRecord::Damaged
        } else {
            self.machine.state()
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
        if let Err(error) = self.publish(network) {
            let error = in_one_line(&error);
            tracing::warn!(machine = self.name, error, "ports are not published");
            self.notes.push(format!(
                "its ports are not published: {error}; `kiln restart` tries again"
            ));
        }
        self.adopting = true;
        network.recall(&self.name, &self.seen);
        // Its TPM, if it has one, is no child of ours; it ends with its QEMU.
        self.attend(process, None, Origin::Found, inbox, network);
    }

    /// The logs of its programs, beside the machine's console. No machine's name has a slash.
    fn logs(&self) -> [(String, PathBuf); 2] {
        [
            (format!("{}/qemu", self.name), self.files.qemu_log()),
            (format!("{}/tpm", self.name), self.files.tpm_log()),
        ]
    }

    fn keep_logs_short(&self, consoles: &mut ConsoleWatch) {
        for (name, log) in self.logs() {
            // Not every machine has a TPM.
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

    /// Starts a QEMU for the record and begins to watch it.
    pub(super) fn launch(
        &mut self,
        cluster: &ClusterRecord,
        generation: u64,
        identity: Identity,
        inbox: &mpsc::Sender<Message>,
        consoles: &mut ConsoleWatch,
        network: &Arc<Network>,
    ) -> Result<(), StartError> {
        self.generation = generation;
        self.forget_addresses();
        let record = self.record.as_ref().ok_or(StartError::Damaged)?;
        if let Some(disk) = &record.disk {
            disk.base.unchanged().map_err(LaunchError::BaseChanged)?;
        }
        let (machine, handles) = launch::supervised(cluster, record, &self.files)?;
        let command = kiln_arch::render(&machine).map_err(LaunchError::Unsupported)?;
        folder::make_private(&self.files.sockets)?;
        let plug = network.plug(&self.name)?;
        let launch::Opened { fds, tpm } = launch::open(&handles, plug)?;
        let companion = match (&record.tpm, tpm) {
            (Some(program), Some(control)) => Some(tpm::companion(program, &self.files, control)?),
            (None, _) | (_, None) => None,
        };
        let log_path = self.files.qemu_log();
        let stderr = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_APPEND | libc::O_NOFOLLOW)
            .open(&log_path)
            .map_err(|source| StartError::Log {
                path: log_path,
                source,
            })?;
        let program = record.qemu.clone();
        self.publish(network)?;
        let launch = Launch {
            program,
            args: command.argv().collect(),
            fds,
            stderr: stderr.into(),
            identity,
        };
        let (process, companion) = match spawn_both(launch, companion) {
            Ok(spawned) => spawned,
            Err(error) => {
                self.drop_tasks();
                return Err(error.into());
            }
        };
        self.started_at = Some(humantime::format_rfc3339_seconds(SystemTime::now()).to_string());
        consoles.add_at_end(&self.name, &self.files.console_log());
        self.keep_logs_short(consoles);
        let tpm = companion.map(|process| Tpm {
            process,
            log: self.files.tpm_log(),
        });
        self.attend(process, tpm, Origin::Started, inbox, network);
        Ok(())
    }

    fn publish(&mut self, network: &Arc<Network>) -> Result<(), ports::PortError> {
        let Some(record) = &self.record else {
            return Ok(());
        };
        let peer = Peer {
            machine: self.name.clone(),
            ip: record.ip,
        };
        let published = ports::publish(&record.ports, &peer, network)?;
        self.tasks.extend(published);
        Ok(())
    }

    /// Watches a living QEMU: process, QMP, report port; and plugs its NIC in.
    fn attend(
        &mut self,
        process: Process,
        tpm: Option<Tpm>,
        origin: Origin,
        inbox: &mpsc::Sender<Message>,
        network: &Arc<Network>,
    ) {
        let teller = Teller {
            name: self.name.clone(),
            generation: self.generation,
            inbox: inbox.clone(),
        };
        let process = Arc::new(process);
        self.process = Some(process.clone());
        self.tasks.push(watch::qmp(
            teller.clone(),
            self.files.socket(Socket::Qmp),
            origin,
        ));
        self.tasks.push(watch::reports(
            teller.clone(),
            self.files.socket(Socket::Report),
        ));
        self.tasks.push(journal::watch(
            teller.clone(),
            self.files.socket(Socket::Journal),
        ));
        // Not in `tasks`: it has to outlive them, to reap the process.
        drop(watch::process(teller, process, self.files.qemu_log(), tpm));
        self.plugged = 0;
        self.plug_in(network);
    }

    fn plug_in(&self, network: &Arc<Network>) {
        if let Some(process) = &self.process {
            network.join(&self.name, process.pid(), &self.files.socket(Socket::Nic));
        }
    }

    /// The switch lost the NIC of a QEMU that lives: a former supervisor was killed in the middle
    /// of a frame, whose rest came first. It is in step from the next connection on.
    pub(super) fn plug_in_again(&mut self, network: &Arc<Network>) {
        if self.machine.is_alive() && self.process.is_some() && self.plugged < PLUG_LIMIT {
            self.plugged += 1;
            self.plug_in(network);
        }
    }

    pub(super) fn send_continue(&self, inbox: &mpsc::Sender<Message>) {
        let Some(qmp) = self.qmp.clone() else { return };
        let teller = Teller {
            name: self.name.clone(),
            generation: self.generation,
            inbox: inbox.clone(),
        };
        tokio::spawn(async move {
            let deadline = Instant::now() + COMMAND_DEADLINE;
            if let Err(error) = qmp.execute(qmp::cont {}, deadline.into()).await {
                teller.tell(News::Event(watch::lost(&error))).await;
            }
        });
    }

    pub(super) fn send_powerdown(&self) {
        self.send(qmp::system_powerdown {});
    }

    pub(super) fn send_stop(&self) {
        self.send(qmp::stop {});
    }

    pub(super) fn send_resume(&self) {
        self.send(qmp::cont {});
    }

    /// Has QEMU make a disk larger, and answers with what came of it.
    pub(super) fn send_grow(&self, serial: &str, size: u64, replies: mpsc::Sender<Reply>) {
        let refused = |why: String| Reply::Line(Answer::Refused { why });
        let node = self
            .record
            .as_ref()
            .and_then(|record| launch::node_name(record, serial));
        let (Some(qmp), Some(node), Ok(size)) = (self.qmp.clone(), node, i64::try_from(size))
        else {
            let name = &self.name;
            let why = format!("machine `{name}` has no disk `{serial}` that could grow now");
            let _ = replies.try_send(refused(why));
            return;
        };
        let what = format!("disk `{serial}` of machine `{}`", self.name);
        tokio::spawn(async move {
            let deadline = Instant::now() + COMMAND_DEADLINE;
            let resize = qmp::block_resize {
                device: None,
                node_name: Some(node),
                size,
            };
            let answer = match qmp.execute(resize, deadline.into()).await {
                Ok(_) => Reply::Line(Answer::Done),
                Err(error) => refused(format!("{what} did not grow: {}", in_one_line(&error))),
            };
            let _ = replies.try_send(answer);
        });
    }

    /// Asks QEMU to end; one that cannot be asked yet is killed.
    pub(super) fn send_quit(&self) {
        if self.qmp.is_some() {
            self.send(qmp::quit {});
        } else {
            self.kill();
        }
    }

    /// Sends a command whose outcome shows in events; the ladder's deadlines see to the rest.
    fn send<C>(&self, command: C)
    where
        C: qapi::qmp::QmpCommand + Send + 'static,
        C::Ok: Send,
    {
        let Some(qmp) = self.qmp.clone() else { return };
        let machine = self.name.clone();
        tokio::spawn(async move {
            let deadline = Instant::now() + COMMAND_DEADLINE;
            if let Err(error) = qmp.execute(command, deadline.into()).await {
                tracing::debug!(machine, %error, "QEMU did not do as asked");
            }
        });
    }

    pub(super) fn kill(&self) {
        if let Some(process) = &self.process
            && let Err(error) = process.kill()
        {
            tracing::debug!(machine = self.name, %error, "no process to kill");
        }
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
        for task in self.tasks.drain(..) {
            task.abort();
        }
    }

    /// Writes the run record when it differs from the one on the disk.
    pub(super) fn persist(&mut self, boot_id: &str) {
        // One that has not answered yet is as its former supervisor recorded it.
        if self.is_damaged() || self.is_adopting() {
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

    pub(super) fn status(&self) -> MachineStatus {
        let mut addresses = self.seen.clone();
        for ip in self
            .machine
            .report()
            .map_or(&[][..], |report| &report.addresses)
        {
            let ip = IpAddr::V4(*ip);
            if !addresses.iter().any(|seen| seen.ip == ip) && !self.lost.contains(&ip) {
                addresses.push(SeenRecord {
                    ip,
                    source: crate::state::record::SourceRecord::Report,
                    expires: None,
                });
            }
        }
        MachineStatus {
            name: self.name.clone(),
            state: self.state(),
            reason: if self.is_damaged() {
                self.damage.clone()
            } else {
                self.machine.reason()
            },
            phase: phase_text(self.machine.phase()),
            pid: self.process.as_ref().map(|process| process.pid()),
            addresses,
            report: self.machine.report().cloned(),
            started_at: self.started_at.clone(),
            notes: self.notes.clone(),
        }
    }
}

/// Gives the sockets of a living QEMU their names back; one that has none of them may be gone.
pub(super) fn mend(process: &Process, files: &MachineFiles) {
    if let Err(error) = regain::mend(process.pid(), files) {
        let sockets = files.sockets.display();
        tracing::warn!(%error, "the sockets in {sockets} are not regained");
    }
}
