//! A machine's QEMU is started, or found, and watched.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::SystemTime;

use nix::libc;
use tokio::sync::mpsc;

use super::{PLUG_LIMIT, Slot, StartError};
use crate::folder;
use crate::state::layout::Socket;
use crate::state::record::{ClusterRecord, PortRecord};
use crate::supervisor::beside::{self, Beside};
use crate::supervisor::console::ConsoleWatch;
use crate::supervisor::journal;
use crate::supervisor::launch::{self, LaunchError};
use crate::supervisor::message::Message;
use crate::supervisor::network::{Network, Peer};
use crate::supervisor::ports;
use crate::supervisor::process::{Identity, Launch, Process};
use crate::supervisor::share;
use crate::supervisor::tpm;
use crate::supervisor::watch::{self, Origin, Teller};

impl Slot {
    /// Starts a QEMU for the record and begins to watch it.
    pub(in crate::supervisor) fn launch(
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
        // A volume has all of its base.
        if let Some(disk) = record.disk.as_ref().filter(|disk| disk.volume.is_none()) {
            disk.base.unchanged().map_err(LaunchError::BaseChanged)?;
        }
        let (machine, handles) = launch::supervised(cluster, record, &self.files)?;
        let command = kiln_arch::render(&machine).map_err(LaunchError::Unsupported)?;
        folder::make_private(&self.files.sockets)?;
        let plug = network.plug(&self.name)?;
        share::clear_log(&self.files);
        let launch::Opened {
            fds,
            tpm,
            mut beside,
        } = launch::open(&handles, plug, &self.files, identity)?;
        if let (Some(program), Some(control)) = (&record.tpm, tpm) {
            beside.push(tpm::wanted(program, &self.files, control)?);
        }
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
        let (process, beside) = match beside::spawn(launch, beside) {
            Ok(spawned) => spawned,
            Err(error) => {
                self.drop_tasks();
                return Err(error.into());
            }
        };
        self.started_at = Some(humantime::format_rfc3339_seconds(SystemTime::now()).to_string());
        consoles.add_at_end(&self.name, &self.files.console_log());
        self.keep_logs_short(consoles);
        self.attend(process, beside, Origin::Started, inbox, network);
        Ok(())
    }

    /// Publishes what of the record's ports is not published, and no other ones any more.
    pub(super) fn publish(&mut self, network: &Arc<Network>) -> Result<(), ports::PortError> {
        let Some(record) = &self.record else {
            return Ok(());
        };
        self.published.retain(|port, task| {
            let stays = record.ports.contains(port);
            if !stays {
                task.abort();
            }
            stays
        });
        let missing = record.ports.iter();
        let missing = missing.filter(|port| !self.published.contains_key(port));
        let missing: Vec<PortRecord> = missing.cloned().collect();
        let peer = Peer {
            machine: self.name.clone(),
            ip: record.ip,
        };
        let tasks = ports::publish(&missing, &peer, network)?;
        self.published.extend(missing.into_iter().zip(tasks));
        Ok(())
    }

    /// Watches a living QEMU: process, QMP, report port; and plugs its NIC in.
    pub(super) fn attend(
        &mut self,
        process: Process,
        beside: Vec<Beside>,
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
        drop(watch::process(
            teller,
            process,
            self.files.qemu_log(),
            beside,
        ));
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
    pub(in crate::supervisor) fn plug_in_again(&mut self, network: &Arc<Network>) {
        if self.machine.is_alive() && self.process.is_some() && self.plugged < PLUG_LIMIT {
            self.plugged += 1;
            self.plug_in(network);
        }
    }
}
