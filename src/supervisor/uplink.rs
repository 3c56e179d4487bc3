//! The way out into the world, kept while machines are alive: a process, or as root a link and the host's NAT.
//!
//! No machine waits for it. A process that dies is started again after a pause that grows; one that dies at once, or
//! cannot be started, is followed by the next kind that there is.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use kiln_arch::Arch;
use kiln_netsetup::address::Subnet;
use kiln_netsetup::bridge::UPLINK;
use kiln_netsetup::bridge::host::HostLink;
use nix::libc;
use nix::sys::signal::Signal;
use tokio::sync::mpsc;

use crate::error::in_one_line;
use crate::folder;
use crate::state::files::{self, SCHEMA};
use crate::state::layout::{ClusterFiles, MachineFiles, Socket};
use crate::state::ledger::{self, Entry, Ledger};
use crate::state::record::{ClusterRecord, MachineRecord, UplinkRecord, WayOutRecord};
use crate::supervisor::console::last_line;
use crate::supervisor::launch::{self, Plug};
use crate::supervisor::message::Message;
use crate::supervisor::network::Network;
use crate::supervisor::network::helper::{self, Helper};
use crate::supervisor::process::{Carriers, Exit, Identity, Launch, Process, spawn, spawn_tagged};
use crate::supervisor::slot::mend;
use crate::supervisor::watch;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// Between the first machine that runs and the uplink.
const AFTER_START: Duration = Duration::from_millis(200);
/// One that ends sooner does not work here.
const TRIAL: Duration = Duration::from_secs(3);

/// The uplink of one cluster.
#[derive(Debug)]
pub(super) struct Uplink {
    cluster: ClusterRecord,
    uuid: String,
    own: ClusterFiles,
    files: MachineFiles,
    boot_id: String,
    /// What may be the way out where no root is, and whose turn it is.
    helpers: Vec<Helper>,
    turn: usize,
    started: Option<Instant>,
    /// Whether root's way out stands.
    on_host: bool,
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
            own: files.clone(),
            helpers: match &cluster.way_out {
                WayOutRecord::Helper { pasta, slirp4netns } => {
                    Helper::all(pasta.as_ref(), slirp4netns.as_ref())
                }
                WayOutRecord::Qemu | WayOutRecord::Host { .. } => vec![Helper::Qemu],
                // The machines need none, or are to have none.
                WayOutRecord::Bridge { .. } | WayOutRecord::Own | WayOutRecord::Nowhere => {
                    Vec::new()
                }
            },
            turn: 0,
            started: None,
            on_host: false,
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
        if self.process.is_none() && !self.helpers.is_empty() {
            self.again.get_or_insert(Instant::now() + AFTER_START);
        }
    }

    /// Sees to it that there is one: that of a former supervisor, or a new one.
    pub(super) fn ensure(
        &mut self,
        network: &Network,
        inbox: &mpsc::Sender<Message>,
        machine: Option<&MachineRecord>,
        identity: Identity,
    ) {
        if self.process.is_some()
            || self.helpers.is_empty()
            || self.on_host
            || self.cluster.way_out == WayOutRecord::Nowhere
            || self.again.is_some_and(|at| at > Instant::now())
        {
            return;
        }
        self.again = None;
        if let WayOutRecord::Host { link } = self.cluster.way_out.clone() {
            match self.to_host(network, &link) {
                Ok(()) => {
                    self.on_host = true;
                    self.trouble.clear();
                }
                Err(why) => self.failed(why),
            }
            return;
        }
        let Some(machine) = machine else { return };
        let started = match self.left_over(network) {
            Some(process) => {
                mend(&process, &self.files);
                Ok(process)
            }
            None => self.start(network, machine, identity),
        };
        let process = match started {
            Ok(process) => Arc::new(process),
            Err(why) => {
                self.failed(why);
                return self.give_way();
            }
        };
        self.generation += 1;
        self.process = Some(process.clone());
        self.started = Some(Instant::now());
        match network {
            Network::Fabric(fabric) => match watch::stream(&self.files.socket(Socket::Nic)) {
                Ok(stream) => {
                    fabric.attach_uplink(stream);
                    self.trouble.clear();
                }
                // Most often it has ended, and its end says why.
                Err(error) => {
                    self.trouble = error.to_string();
                    kill(&process);
                }
            },
            Network::Namespace(_) | Network::Attach(_) | Network::User(_) => self.trouble.clear(),
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

    /// The next helper is tried at once, where there is one; the last one again after its pause.
    fn give_way(&mut self) {
        if self.turn + 1 < self.helpers.len() {
            self.turn += 1;
            self.again = Some(Instant::now());
        }
    }

    /// As root: the link to the host. What it changes there is in the ledger first.
    fn to_host(&self, network: &Network, link: &str) -> Result<(), String> {
        let told = |error: &(dyn std::error::Error + 'static)| in_one_line(error);
        let Network::Namespace(namespaced) = network else {
            return Err("the fabric has no link to the host".to_owned());
        };
        let host_link = HostLink {
            name: link.parse().map_err(|error| told(&error))?,
            mark: self.own.host_mark(),
            subnet: Subnet::new(self.cluster.subnet).map_err(|error| told(&error))?,
        };
        let forward = host_link.to_forward().map_err(|error| told(&error))?;
        let known = ledger::read(&self.own.ledger()).map_err(|error| told(&error))?;
        let entries: Vec<Entry> = forward
            .iter()
            .map(|link| Entry::Forwarding {
                link: link.to_string(),
            })
            .filter(|entry| !known.contains(entry))
            .collect();
        if !entries.is_empty() {
            Ledger::open(&self.own.ledger())
                .and_then(|mut ledger| ledger.record(&entries))
                .map_err(|error| told(&error))?;
        }
        let bridge = namespaced.bridge().map_err(|error| told(&error))?;
        host_link
            .make(&bridge, &forward)
            .map_err(|error| told(&error))
    }

    /// The living one of a former supervisor; looked for once.
    fn left_over(&mut self, network: &Network) -> Option<Process> {
        if std::mem::replace(&mut self.looked, true) {
            return None;
        }
        let found = self.find()?;
        if let Network::Namespace(namespaced) = network {
            // One whose link is not there leads out of a namespace that nobody is in any more.
            let links = namespaced.found().map(|bridge| bridge.links());
            let leads_out = links.is_some_and(|links| {
                links.is_ok_and(|links| links.iter().any(|link| link.name.as_str() == UPLINK))
            });
            if !leads_out {
                kill(&found);
                return None;
            }
        }
        Some(found)
    }

    fn find(&self) -> Option<Process> {
        let record: Option<UplinkRecord> = files::load(&self.files.run()).ok().flatten();
        record
            .filter(|record| record.boot_id == self.boot_id)
            .and_then(|UplinkRecord { process, .. }| {
                Process::adopt(process.pid, process.start_time, &self.uuid).ok()?
            })
            // The former supervisor may have been killed before it could write it down.
            .or_else(|| Carriers::default().find(&self.uuid))
    }

    fn start(
        &mut self,
        network: &Network,
        machine: &MachineRecord,
        identity: Identity,
    ) -> Result<Process, String> {
        let helper = self.helpers[self.turn % self.helpers.len()].clone();
        let process = match helper::command(&helper) {
            None => self.start_qemu(network, machine, identity),
            Some((program, args)) => self.start_helper(network, program.to_owned(), args),
        }?;
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

    fn start_helper(
        &self,
        network: &Network,
        program: PathBuf,
        args: Vec<OsString>,
    ) -> Result<Process, String> {
        let Network::Namespace(namespaced) = network else {
            return Err("the fabric has no namespace to lead out of".to_owned());
        };
        let bridge = namespaced.bridge().map_err(|error| in_one_line(&error))?;
        let handles = bridge
            .namespace()
            .handles()
            .map_err(|error| error.to_string())?;
        let launch = Launch {
            program,
            args,
            fds: handles
                .into_iter()
                .zip([helper::NET, helper::USER])
                .collect(),
            stderr: self.log()?,
            identity: Identity::Same,
        };
        spawn_tagged(launch, &self.uuid).map_err(|error| in_one_line(&error))
    }

    fn start_qemu(
        &self,
        network: &Network,
        machine: &MachineRecord,
        identity: Identity,
    ) -> Result<Process, String> {
        let arch: Arch = machine
            .arch
            .parse()
            .map_err(|_| format!("`{}` is no architecture", machine.arch))?;
        let (uplink, handles) = launch::uplink(&self.cluster, arch, &self.uuid, &self.files)
            .map_err(|error| in_one_line(&error))?;
        let command = kiln_arch::render_uplink(&uplink).map_err(|error| in_one_line(&error))?;
        folder::make_private(&self.files.sockets).map_err(|error| in_one_line(&error))?;
        let mut plug = Plug::default();
        if let Network::Namespace(namespaced) = network {
            let bridge = namespaced.bridge().map_err(|error| in_one_line(&error))?;
            let own = Ipv4Net::new_assert(helper::OWN, helper::WIRE.prefix_len());
            let tap = bridge.uplink(own, helper::HOST);
            plug.tap = Some(tap.map_err(|error| in_one_line(&error))?);
        }
        let launch::Opened { fds, .. } = launch::open(&handles, plug, &self.files, identity)
            .map_err(|error| in_one_line(&error))?;
        spawn(Launch {
            program: machine.qemu.clone(),
            args: command.argv().collect(),
            fds,
            stderr: self.log()?,
            identity,
        })
        .map_err(|error| in_one_line(&error))
    }

    /// What it says goes there; what its predecessor said is not of interest any more.
    fn log(&self) -> Result<OwnedFd, String> {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_APPEND | libc::O_NOFOLLOW)
            .open(self.files.qemu_log())
            .map(OwnedFd::from)
            .map_err(|error| error.to_string())
    }

    /// Takes note of its end; `true` when that was not asked for.
    pub(super) fn exited(&mut self, generation: u64, how: &str) -> bool {
        if generation != self.generation || self.process.is_none() {
            return false;
        }
        self.process = None;
        let helper = self.helpers[self.turn % self.helpers.len()].name();
        self.failed(format!("{helper} ended: {how}"));
        let soon = self
            .started
            .is_some_and(|started| started.elapsed() < TRIAL);
        if soon {
            self.give_way();
        }
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

fn kill(process: &Process) {
    if let Err(error) = process.kill() {
        tracing::warn!(%error, "the uplink is not killed");
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
