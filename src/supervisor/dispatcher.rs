//! The loop: takes in what happened, asks the machines what that means, and does it.
//!
//! All state of the supervisor is here, and only this loop touches it. Tasks watch
//! sockets, processes and the network, and send `Message`s. The machine's life is
//! decided in [`crate::supervisor::machine`]; this module performs its effects.

mod addresses;
mod later;
mod requests;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use kiln_netsetup::address::{Reservation, Subnet};
use kiln_netsetup::fabric::FabricEvent;
use kiln_netsetup::namespace::Maker;
use tokio::sync::mpsc;

use self::later::{Later, can_be_asked_again};
use crate::error::in_one_line;
use crate::state::files::{self, StateError};
use crate::state::layout::ClusterFiles;
use crate::state::record::{ClusterRecord, SeenRecord, SourceRecord};
use crate::supervisor::console::{ConsoleEvent, ConsoleWatch};
use crate::supervisor::control;
use crate::supervisor::diagnose::{Finding, FindingKind};
use crate::supervisor::door::Door;
use crate::supervisor::machine::{Change, Effect, Event, Phase};
use crate::supervisor::message::{Message, News, Reply};
use crate::supervisor::network::Network;
use crate::supervisor::process::{Carriers, Identity};
use crate::supervisor::protocol::{Answer, Notice, Request};
use crate::supervisor::routes::{self, Overlap};
use crate::supervisor::slot::Slot;
use crate::supervisor::uplink::Uplink;

/// Messages that may wait for the loop; a task that finds no room waits itself.
const INBOX: usize = 256;
/// How long a found QEMU may take to answer before commands are served without it.
const ADOPTION_DEADLINE: Duration = Duration::from_secs(1);
/// Between an error on the control socket and the next try.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Notices that may wait for a watcher; one that is slower is let go.
pub(super) const WATCHER: usize = 1024;

/// What a supervisor is started with.
#[derive(Debug)]
pub struct Config {
    pub files: ClusterFiles,
    /// The boot id of the host.
    pub boot_id: String,
    /// Who is asked for names that are not the cluster's.
    pub resolvers: Vec<std::net::SocketAddr>,
    /// Who makes the cluster's network namespace, where it has one.
    pub maker: Maker,
    /// The control socket, already listening.
    pub control: std::os::unix::net::UnixListener,
    /// The only uid besides root that may ask for anything.
    pub uid: u32,
}

/// Why a supervisor could not begin, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error("cannot read the cluster's record")]
    State(#[source] StateError),
    #[error("there is no record of the cluster at `{}`", path.display())]
    NoRecord { path: std::path::PathBuf },
    #[error("the cluster's record names the subnet {subnet}, which cannot be one")]
    Subnet { subnet: ipnet::Ipv4Net },
    #[error("cannot use the control socket")]
    Control(#[source] io::Error),
    #[error("cannot watch the consoles")]
    Console(#[source] io::Error),
    #[error("cannot watch for signals")]
    Signals(#[source] io::Error),
}

/// The supervisor of one cluster.
#[derive(Debug)]
pub(super) struct Dispatcher {
    files: ClusterFiles,
    boot_id: String,
    record: ClusterRecord,
    slots: BTreeMap<String, Slot>,
    inbox: mpsc::Sender<Message>,
    network: Arc<Network>,
    /// The host's.
    resolvers: Vec<std::net::SocketAddr>,
    consoles: ConsoleWatch,
    uplink: Uplink,
    watchers: Vec<mpsc::Sender<Reply>>,
    /// Routes of the host that overlap the cluster's subnet.
    overlaps: Vec<Overlap>,
    later: Later,
    /// Requests that came while it is still being found out what lives.
    waiting: Vec<(Request, mpsc::Sender<Reply>)>,
    /// Until when they wait at most.
    adopting_until: Instant,
    /// After an error on the control socket, when it is tried again.
    accept_after: Option<Instant>,
    generation: u64,
    ending: bool,
}

/// Runs the supervisor of a cluster until it is told to end.
pub async fn run(config: Config) -> Result<(), SupervisorError> {
    let (inbox, mut messages) = mpsc::channel(INBOX);
    let (sockets, control) = (config.files.sockets(), config.files.control());
    let mut door = Door::new(config.control, sockets, control).map_err(SupervisorError::Control)?;
    let record = load_cluster(&config.files)?;
    let subnet = Subnet::new(record.subnet).map_err(|_| SupervisorError::Subnet {
        subnet: record.subnet,
    })?;
    let (network, mut network_events) = Network::start(
        &record,
        subnet,
        reservations(&record),
        &config.resolvers,
        config.maker,
        config.files.ledger(),
        config.files.host_mark(),
    );
    let mut dispatcher = Dispatcher {
        uplink: Uplink::new(&record, &config.files, config.boot_id.clone()),
        files: config.files,
        boot_id: config.boot_id,
        record,
        slots: BTreeMap::new(),
        inbox: inbox.clone(),
        network: Arc::new(network),
        resolvers: config.resolvers,
        consoles: ConsoleWatch::new().map_err(SupervisorError::Console)?,
        watchers: Vec::new(),
        overlaps: Vec::new(),
        later: Later::default(),
        waiting: Vec::new(),
        adopting_until: Instant::now() + ADOPTION_DEADLINE,
        accept_after: None,
        generation: 0,
        ending: false,
    };
    for (name, log) in [
        ("/supervisor", dispatcher.files.supervisor_log()),
        ("/uplink", dispatcher.files.uplink().qemu_log()),
    ] {
        dispatcher.consoles.keep_short(name, &log);
    }
    routes::watch(&dispatcher.record, inbox.clone());
    dispatcher.adopt_all();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .map_err(SupervisorError::Signals)?;
    while !dispatcher.ending {
        dispatcher.serve_waiting();
        let deadline = dispatcher.deadline();
        tokio::select! {
            Some(message) = messages.recv() => dispatcher.take(message),
            Some(event) = network_events.recv() => dispatcher.of_network(event),
            event = dispatcher.consoles.next() => dispatcher.of_console(event),
            () = door.disturbed() => {
                if let Err(error) = door.mend() {
                    tracing::error!(error = in_one_line(&error), "the control socket is lost");
                }
                dispatcher.mend_sockets();
            }
            accepted = door.accept(), if dispatcher.accept_after.is_none() => match accepted {
                Ok(stream) => control::serve(stream, config.uid, inbox.clone(), dispatcher.network.clone()),
                // Out of descriptors, most likely: whoever asks waits until some are free.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the control socket");
                    dispatcher.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
                }
            },
            () = tokio::time::sleep_until(deadline.into()) => dispatcher.tick(),
            // The machines live on; the next command's supervisor adopts them.
            _ = terminate.recv() => break,
        }
    }
    dispatcher.write_all();
    Ok(())
}

fn load_cluster(files: &ClusterFiles) -> Result<ClusterRecord, SupervisorError> {
    files::load(&files.record())
        .map_err(SupervisorError::State)?
        .ok_or_else(|| SupervisorError::NoRecord {
            path: files.record(),
        })
}

fn reservations(record: &ClusterRecord) -> Vec<Reservation> {
    record
        .machines
        .iter()
        .filter_map(|name| {
            let reserved = record.reservations.get(name)?;
            Some(Reservation {
                name: name.clone(),
                mac: reserved.mac.parse().ok()?,
                ip: reserved.ip,
            })
        })
        .collect()
}

impl Dispatcher {
    /// Finds what a former supervisor left: living QEMUs, and what became of the others.
    fn adopt_all(&mut self) {
        let carriers = Carriers::default();
        for name in self.record.machines.clone() {
            self.adopt(&name, &carriers);
        }
        // An `up` that was killed may have struck a machine off the record and not ended it.
        for name in files::names_in(&self.files.machines()) {
            if !self.slots.contains_key(&name) && carriers.find(&self.files.uuid(&name)).is_some() {
                self.adopt(&name, &carriers);
            }
        }
        if self.any_alive() {
            self.ensure_uplink();
        }
    }

    fn adopt(&mut self, name: &str, carriers: &Carriers) {
        let files = self.files.machine(name);
        self.generation += 1;
        let generation = self.generation;
        let mut slot = Slot::load(
            name,
            files,
            &self.files.uuid(name),
            &self.boot_id,
            generation,
            carriers,
        );
        slot.adopt(&self.inbox, &mut self.consoles, &self.network);
        let findings = std::mem::take(&mut slot.missed);
        self.slots.insert(name.to_owned(), slot);
        self.of_console(ConsoleEvent {
            machine: name.to_owned(),
            findings,
        });
        self.reach(name);
        // What was found is on the disk in some form, or in /proc.
        self.write_soon(name);
        self.announce(name, Change::Address);
        for note in self.slots[name].notes.clone() {
            self.tell("note", Some(name), note);
        }
    }

    /// Gives the sockets of what lives their names back, where those are lost.
    fn mend_sockets(&self) {
        for slot in self.slots.values() {
            slot.mend_sockets();
        }
        self.uplink.mend_sockets();
    }

    fn identity(&self) -> Identity {
        match self.record.qemu_uid {
            Some(uid) => Identity::Drop {
                uid,
                gid: self.record.qemu_gid.unwrap_or(uid),
            },
            None => Identity::Same,
        }
    }

    fn any_alive(&self) -> bool {
        self.slots.values().any(|slot| slot.machine.is_alive())
    }

    fn ensure_uplink(&mut self) {
        let identity = self.identity();
        // The uplink runs in the QEMU program of any of the machines.
        let machine = self.slots.values().find_map(|slot| slot.record.as_ref());
        self.uplink
            .ensure(&self.network, &self.inbox, machine, identity);
    }

    /// Whether what a former supervisor left still has to say how it is.
    fn is_adopting(&self) -> bool {
        Instant::now() < self.adopting_until && self.slots.values().any(Slot::is_adopting)
    }

    fn serve_waiting(&mut self) {
        if self.waiting.is_empty() || self.is_adopting() {
            return;
        }
        for (request, replies) in std::mem::take(&mut self.waiting) {
            self.asked(request, replies);
        }
    }

    fn deadline(&self) -> Instant {
        // With nothing due the loop still turns now and then; it costs nothing.
        const IDLE: Duration = Duration::from_secs(3600);
        self.slots
            .values()
            .filter_map(|slot| slot.machine.deadline())
            .chain(self.uplink.deadline())
            .chain(self.later.deadline())
            .chain(self.accept_after)
            .chain((!self.waiting.is_empty()).then_some(self.adopting_until))
            .min()
            .unwrap_or_else(|| Instant::now() + IDLE)
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.accept_after = self.accept_after.filter(|at| *at > now);
        let due: Vec<String> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.machine.deadline().is_some_and(|at| at <= now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            self.feed(&name, Event::Tick);
        }
        self.do_later(now);
        if self.uplink.deadline().is_some_and(|at| at <= now) {
            self.ensure_uplink();
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Machine {
                name,
                generation,
                news,
            } => {
                let current = self
                    .slots
                    .get(&name)
                    .is_some_and(|slot| slot.generation == generation);
                if current {
                    self.news(&name, news);
                }
            }
            Message::Asked { request, replies } if self.is_adopting() => {
                self.waiting.push((request, replies));
            }
            Message::Asked { request, replies } => self.asked(request, replies),
            Message::Routes(overlaps) => self.of_routes(overlaps),
            Message::UplinkExited { generation, how } => {
                if self.uplink.exited(generation, &how) {
                    self.tell("uplink", None, how);
                }
            }
        }
    }

    fn news(&mut self, name: &str, news: News) {
        match news {
            News::Event(event) => self.feed(name, event),
            News::Qmp { qmp, status } => {
                let Some(slot) = self.slots.get_mut(name) else {
                    return;
                };
                self.network.met(name, &qmp);
                let report = slot.met(qmp);
                let event = match status {
                    None => Event::Greeted,
                    Some(status) => Event::Adopted { status, report },
                };
                self.feed(name, event);
            }
        }
    }

    fn of_network(&mut self, event: FabricEvent) {
        match event {
            FabricEvent::Lease { machine, ip, .. } => self.leased(&machine, ip),
            FabricEvent::Seen { machine, ip } => self.seen(&machine, ip, SourceRecord::Frames),
            FabricEvent::Address { machine, change } => self.of_address(&machine, change),
            FabricEvent::Link(news) => self.of_link(&news),
            FabricEvent::PortClosed { machine, cause } => {
                tracing::debug!(machine, ?cause, "port closed");
                if let Some(slot) = self.slots.get_mut(&machine) {
                    slot.plug_in_again(&self.network);
                }
            }
            FabricEvent::UplinkClosed { cause } => tracing::debug!(?cause, "uplink closed"),
        }
    }

    fn seen(&mut self, name: &str, ip: IpAddr, source: SourceRecord) {
        let Some(slot) = self.slots.get_mut(name) else {
            return;
        };
        match slot.seen.iter_mut().find(|seen| seen.ip == ip) {
            Some(seen) if seen.source <= source => return,
            Some(seen) => seen.source = source,
            None => {
                slot.seen.push(SeenRecord {
                    ip,
                    source,
                    expires: None,
                });
                // IPv4 first.
                slot.seen.sort_by_key(|seen| seen.ip.is_ipv6());
            }
        }
        slot.plugged = 0;
        self.feed(name, Event::AddressSeen);
    }

    fn of_console(&mut self, event: ConsoleEvent) {
        let ConsoleEvent { machine, findings } = event;
        for Finding { kind, line } in findings {
            let event = match kind {
                FindingKind::Firmware => Event::PhaseSeen(Phase::Firmware),
                FindingKind::Kernel => Event::PhaseSeen(Phase::Kernel),
                FindingKind::Ignition { stage } => Event::PhaseSeen(Phase::Ignition(stage)),
                FindingKind::Userspace => Event::PhaseSeen(Phase::Userspace),
                FindingKind::KernelPanic => Event::PanicLine { line },
                FindingKind::IgnitionUnitFailed => Event::GaveUpUntold { line },
                FindingKind::IgnitionFailed | FindingKind::Emergency | FindingKind::NoBoot => {
                    Event::GaveUp { line }
                }
            };
            self.feed(&machine, event);
        }
    }

    /// What the console said last, before its end is judged: QMP is faster than a serial port.
    fn catch_up(&mut self, name: &str) {
        let findings = self.consoles.catch_up(name);
        self.of_console(ConsoleEvent {
            machine: name.to_owned(),
            findings,
        });
    }

    /// Tells a machine what happened and does what it answers.
    fn feed(&mut self, name: &str, event: Event) {
        if matches!(event, Event::Halted { .. } | Event::Exited { .. }) {
            self.catch_up(name);
        }
        let Some(slot) = self.slots.get_mut(name) else {
            return;
        };
        let effects = slot.machine.on(Instant::now(), event);
        for effect in effects {
            self.perform(name, &effect);
        }
        self.let_run();
    }

    fn perform(&mut self, name: &str, effect: &Effect) {
        let Some(slot) = self.slots.get_mut(name) else {
            return;
        };
        match effect {
            Effect::Launch => self.launch(name),
            Effect::Continue => self.hold(name),
            Effect::Powerdown => slot.send_powerdown(),
            Effect::Quit => slot.send_quit(),
            Effect::Kill => slot.kill(),
            Effect::Release => {
                slot.release(&mut self.consoles);
                if !self.any_alive() {
                    self.uplink.end();
                    self.network.emptied();
                }
            }
            Effect::Changed(change) => {
                if *change == Change::Reset {
                    self.consoles.restarted(name);
                }
                if *change == Change::Running {
                    self.uplink.want();
                }
                self.changed(name, *change);
            }
        }
    }

    fn launch(&mut self, name: &str) {
        self.generation += 1;
        let generation = self.generation;
        let identity = self.identity();
        let Some(slot) = self.slots.get_mut(name) else {
            return;
        };
        let launched = slot.launch(
            &self.record,
            generation,
            identity,
            &self.inbox,
            &mut self.consoles,
            &self.network,
        );
        if let Err(error) = launched {
            let how = in_one_line(&error);
            // Not now: the machine is told of its end after it has told of its start.
            let message = Message::Machine {
                name: name.to_owned(),
                generation,
                news: News::Event(Event::Exited { how, clean: false }),
            };
            let inbox = self.inbox.clone();
            tokio::spawn(async move { inbox.send(message).await });
        }
    }

    /// Records the machine as it is now and tells the watchers.
    fn changed(&mut self, name: &str, change: Change) {
        if can_be_asked_again(change) {
            self.write_soon(name);
        } else {
            self.write(name);
        }
        if matches!(
            change,
            Change::Address | Change::Ready | Change::Stopped | Change::Crashed
        ) {
            self.reach(name);
        }
        self.announce(name, change);
    }

    fn announce(&mut self, name: &str, change: Change) {
        let Some(slot) = self.slots.get(name) else {
            return;
        };
        let detail = match change {
            Change::Phase => phase_text(slot.machine.phase()),
            Change::Address => slot
                .seen
                .iter()
                .map(|seen| seen.ip.to_string())
                .collect::<Vec<_>>()
                .join(" "),
            Change::Starting
            | Change::Running
            | Change::Ready
            | Change::Paused
            | Change::Resumed
            | Change::Reset
            | Change::Stopping
            | Change::Stopped
            | Change::Crashed
            | Change::Failed
            | Change::Unresponsive
            | Change::Responsive => slot.machine.reason(),
        };
        self.tell(word(change), Some(name), detail);
    }

    fn tell(&mut self, event: &str, machine: Option<&str>, detail: String) {
        if self.watchers.is_empty() {
            return;
        }
        let status = machine.and_then(|name| Some(self.slots.get(name)?.status()));
        let notice = Notice {
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            event: event.to_owned(),
            machine: machine.map(str::to_owned),
            detail,
            status,
        };
        self.watchers.retain(|watcher| {
            watcher
                .try_send(Reply::Line(Answer::Notice(Box::new(notice.clone()))))
                .is_ok()
        });
    }
}

pub(super) fn phase_text(phase: &Phase) -> String {
    match phase {
        Phase::Start => "start".to_owned(),
        Phase::Firmware => "firmware".to_owned(),
        Phase::Kernel => "kernel".to_owned(),
        Phase::Ignition(stage) if stage.is_empty() => "ignition".to_owned(),
        Phase::Ignition(stage) => format!("ignition: {stage}"),
        Phase::Userspace => "userspace".to_owned(),
        Phase::Ready => "ready".to_owned(),
    }
}

fn word(change: Change) -> &'static str {
    match change {
        Change::Starting => "starting",
        Change::Running => "running",
        Change::Ready => "ready",
        Change::Phase => "phase",
        Change::Paused => "paused",
        Change::Resumed => "resumed",
        Change::Reset => "reset",
        Change::Stopping => "stopping",
        Change::Stopped => "stopped",
        Change::Crashed => "crashed",
        Change::Failed => "failed",
        Change::Unresponsive => "unresponsive",
        Change::Responsive => "responsive",
        Change::Address => "address",
    }
}
