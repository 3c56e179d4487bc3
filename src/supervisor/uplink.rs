//! The fabric's way out: a QEMU without a guest, kept alive while machines are.
//!
//! No machine waits for it. When it dies it is started again after a pause that grows.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_arch::Arch;
use kiln_netsetup::fabric::Fabric;
use nix::libc;
use nix::sys::signal::Signal;
use tokio::sync::mpsc;

use crate::error::in_one_line;
use crate::folder;
use crate::state::files::{self, SCHEMA};
use crate::state::layout::{ClusterFiles, MachineFiles, Socket};
use crate::state::record::{ClusterRecord, MachineRecord, UplinkRecord};
use crate::supervisor::console::last_line;
use crate::supervisor::launch;
use crate::supervisor::message::Message;
use crate::supervisor::process::{Carriers, Exit, Identity, Launch, Process, spawn};
use crate::supervisor::slot::mend;
use crate::supervisor::watch;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// Between the first machine that runs and the uplink.
const AFTER_START: Duration = Duration::from_millis(200);

/// The uplink of one cluster.
#[derive(Debug)]
pub(super) struct Uplink {
    cluster: ClusterRecord,
    uuid: String,
    files: MachineFiles,
    boot_id: String,
    process: Option<Arc<Process>>,
    generation: u64,
    failures: u32,
    again: Option<Instant>,
    trouble: String,
    looked: bool,
}

impl Uplink {
    pub(super) fn new(cluster: &ClusterRecord, files: &ClusterFiles, boot_id: String) -> Uplink {
        Uplink {
            cluster: cluster.clone(),
            uuid: files.uplink_uuid(),
            files: files.uplink(),
            boot_id,
            process: None,
            generation: 0,
            failures: 0,
            again: None,
            trouble: String::new(),
            looked: false,
        }
    }

    /// What is wrong with it; empty when all is well.
    pub(super) fn trouble(&self) -> String {
        self.trouble.clone()
    }

    /// When it is to be started again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.again
    }

    /// A machine runs, and its guest will want one. Not yet: whoever waits for machines to run
    /// comes first, and no guest boots in so short a time.
    pub(super) fn want(&mut self) {
        if self.process.is_none() {
            self.again.get_or_insert(Instant::now() + AFTER_START);
        }
    }

    /// Sees to it that there is one: that of a former supervisor, or a new one.
    pub(super) fn ensure(
        &mut self,
        fabric: &Arc<Fabric>,
        inbox: &mpsc::Sender<Message>,
        machine: Option<&MachineRecord>,
        identity: Identity,
    ) {
        if self.process.is_some() || self.again.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.again = None;
        let Some(machine) = machine else { return };
        let started = match self.left_over() {
            Some(process) => {
                mend(&process, &self.files);
                Ok(process)
            }
            None => self.start(machine, identity),
        };
        let process = match started {
            Ok(process) => Arc::new(process),
            Err(why) => return self.failed(why),
        };
        self.generation += 1;
        self.process = Some(process.clone());
        match watch::stream(&self.files.socket(Socket::Nic)) {
            Ok(stream) => {
                fabric.attach_uplink(stream);
                self.trouble.clear();
            }
            // Most often it has ended, and its end says why.
            Err(error) => {
                self.trouble = error.to_string();
                if let Err(error) = process.kill() {
                    tracing::warn!(%error, "the uplink is not killed");
                }
            }
        }
        attend(process, self.generation, inbox.clone(), &self.files);
    }

    pub(super) fn mend_sockets(&self) {
        if let Some(process) = &self.process {
            mend(process, &self.files);
        }
    }

    fn failed(&mut self, why: String) {
        let pause = FIRST_PAUSE * 2u32.saturating_pow(self.failures.min(8));
        self.failures += 1;
        self.again = Some(Instant::now() + pause.min(LAST_PAUSE));
        self.trouble = why;
    }

    /// The living one of a former supervisor; looked for once.
    fn left_over(&mut self) -> Option<Process> {
        if std::mem::replace(&mut self.looked, true) {
            return None;
        }
        let record: Option<UplinkRecord> = files::load(&self.files.run()).ok().flatten();
        record
            .filter(|record| record.boot_id == self.boot_id)
            .and_then(|UplinkRecord { process, .. }| {
                Process::adopt(process.pid, process.start_time, &self.uuid).ok()?
            })
            // The former supervisor may have been killed before it could write it down.
            .or_else(|| Carriers::default().find(&self.uuid))
    }

    fn start(&mut self, machine: &MachineRecord, identity: Identity) -> Result<Process, String> {
        let arch: Arch = machine
            .arch
            .parse()
            .map_err(|_| format!("`{}` is no architecture", machine.arch))?;
        let (uplink, handles) = launch::uplink(&self.cluster, arch, &self.uuid, &self.files)
            .map_err(|error| in_one_line(&error))?;
        let command = kiln_arch::render_uplink(&uplink).map_err(|error| in_one_line(&error))?;
        folder::make_private(&self.files.sockets).map_err(|error| in_one_line(&error))?;
        let launch::Opened { fds, .. } =
            launch::open(&handles).map_err(|error| in_one_line(&error))?;
        let stderr = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_APPEND | libc::O_NOFOLLOW)
            .open(self.files.qemu_log())
            .map_err(|error| error.to_string())?;
        let process = spawn(Launch {
            program: machine.qemu.clone(),
            args: command.argv().collect(),
            fds,
            stderr: stderr.into(),
            identity,
        })
        .map_err(|error| in_one_line(&error))?;
        let record = UplinkRecord {
            schema: SCHEMA,
            boot_id: self.boot_id.clone(),
            process: crate::state::record::ProcessRecord {
                pid: process.pid(),
                start_time: process.start_time(),
            },
        };
        if let Err(error) = files::save(&self.files.run(), &record) {
            tracing::error!(error = in_one_line(&error), "the uplink is not recorded");
        }
        Ok(process)
    }

    /// Takes note of its end; `true` when that was not asked for.
    pub(super) fn exited(&mut self, generation: u64, how: &str) -> bool {
        if generation != self.generation || self.process.is_none() {
            return false;
        }
        self.process = None;
        self.failed(format!("the uplink ended: {how}"));
        true
    }

    /// Ends it; nobody needs it any more. It is asked by SIGTERM, which QEMU obeys at once.
    pub(super) fn end(&mut self) {
        self.again = None;
        if let Some(process) = self.process.take()
            && let Err(error) = process.signal(Signal::SIGTERM)
        {
            tracing::debug!(%error, "the uplink is gone already");
        }
    }
}

fn attend(
    process: Arc<Process>,
    generation: u64,
    inbox: mpsc::Sender<Message>,
    files: &MachineFiles,
) {
    let log = files.qemu_log();
    drop(tokio::spawn(async move {
        let exit = process.exited().await;
        let how = match (&exit, last_line(&log)) {
            (Exit::Code(code), None) => format!("status {code}"),
            (Exit::Code(code), Some(line)) => format!("status {code}: {line}"),
            (Exit::Signal(signal), _) => format!("signal {signal}"),
            (Exit::Unknown, _) => "it is gone".to_owned(),
        };
        let message = Message::UplinkExited { generation, how };
        let _ = inbox.send(message).await;
    }));
}
