//! The tasks that watch one QEMU and tell the loop: its process, its QMP, its report port.
//!
//! Each ends by itself when what it watches ends, and is aborted when the loop lets go of it.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qapi::qmp::{RunState, query_status};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::state::record::ReportRecord;
use crate::supervisor::console::{last_line, sanitize};
use crate::supervisor::machine::{Event, GREETING_DEADLINE, RunStatus};
use crate::supervisor::message::{Message, News};
use crate::supervisor::process::{Exit, Process};
use crate::supervisor::qmp::{Qmp, QmpError, QmpEvent};
use crate::supervisor::tpm::Tpm;

/// Between two questions whether QEMU still answers.
const BEAT: Duration = Duration::from_secs(2);
/// How long an answer may take before the machine is called unresponsive.
const BEAT_DEADLINE: Duration = Duration::from_secs(2);
/// A report is one line of at most this many bytes; what is longer is not one.
const REPORT_LIMIT: u64 = 16 * 1024;
/// More addresses than a real machine has are cut off.
const REPORT_ADDRESSES: usize = 16;

/// A way to tell the loop about one life of one machine.
#[derive(Debug, Clone)]
pub(super) struct Teller {
    pub(super) name: String,
    pub(super) generation: u64,
    pub(super) inbox: mpsc::Sender<Message>,
}

impl Teller {
    /// `false` when the loop is gone.
    pub(super) async fn tell(&self, news: News) -> bool {
        let message = Message::Machine {
            name: self.name.clone(),
            generation: self.generation,
            news,
        };
        self.inbox.send(message).await.is_ok()
    }

    pub(super) async fn event(&self, event: Event) -> bool {
        self.tell(News::Event(event)).await
    }
}

/// Waits for the end of `process`, and of the TPM beside it, and tells it with the last words of
/// its log.
pub(super) fn process(
    teller: Teller,
    process: Arc<Process>,
    log: PathBuf,
    tpm: Option<Tpm>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let (exit, of_tpm) = match tpm {
            Some(tpm) => tpm.watch(&process).await,
            None => (process.exited().await, None),
        };
        let (how, clean) = match &exit {
            Exit::Code(0) => ("status 0".to_owned(), true),
            Exit::Code(code) => (format!("QEMU exited with status {code}"), false),
            Exit::Signal(signal) => (format!("signal {signal}"), false),
            Exit::Unknown => (
                "QEMU was killed or ended; how, its parent alone was told".to_owned(),
                false,
            ),
        };
        let how = match last_line(&log) {
            Some(line) if !clean => format!("{how}: {line}"),
            _ => how,
        };
        let how = match (exit, of_tpm) {
            // It was killed for that.
            (Exit::Signal(_), Some(why)) => why,
            (_, Some(why)) => format!("{how}; {why}"),
            (_, None) => how,
        };
        teller.event(Event::Exited { how, clean }).await;
    })
}

/// Whose QEMU is to be talked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Just started, and told to wait before it runs the vCPUs.
    Started,
    /// Of a former supervisor; it may be in any state.
    Found,
}

/// Connects to QMP, tells how it found QEMU, and then passes on what QEMU says.
pub(super) fn qmp(teller: Teller, socket: PathBuf, origin: Origin) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(error) = speak(&teller, &socket, origin).await {
            teller.event(lost(&error)).await;
        }
    })
}

/// What the end of QMP means for the machine.
pub(super) fn lost(error: &QmpError) -> Event {
    let why = error.to_string();
    if error.is_hangup() {
        Event::QmpLost { why }
    } else {
        Event::QmpBroken { why }
    }
}

async fn speak(teller: &Teller, socket: &std::path::Path, origin: Origin) -> Result<(), QmpError> {
    let read = |source| QmpError::Read {
        source: Arc::new(source),
    };
    let (deadline, (qmp, mut events)) = loop {
        let stream = stream(socket).map_err(read)?;
        let deadline = Instant::now() + GREETING_DEADLINE;
        match (Qmp::connect(stream, deadline.into()).await, origin) {
            // It was stopped, say, and lives: it is asked until it answers or is gone.
            (Err(QmpError::NoGreeting), Origin::Found) => {}
            (connected, Origin::Started | Origin::Found) => break (deadline, connected?),
        }
    };
    let status = match origin {
        Origin::Started => None,
        Origin::Found => {
            let found = qmp.execute(query_status {}, deadline.into()).await?;
            let fresh = matches!(found.status, RunState::prelaunch | RunState::inmigrate);
            (!fresh).then(|| run_status(found.status))
        }
    };
    let greeted = News::Qmp {
        qmp: qmp.clone(),
        status,
    };
    if !teller.tell(greeted).await {
        return Ok(());
    }
    // Not by `interval`: even its first tick, due at once, waits for the timer's next millisecond.
    let mut beat = tokio::time::interval_at((Instant::now() + BEAT).into(), BEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut answered_before = true;
    loop {
        let event = tokio::select! {
            event = events.next() => of_qmp(event?, &qmp).await,
            _ = beat.tick() => {
                let deadline = Instant::now() + BEAT_DEADLINE;
                let answered = match qmp.execute(query_status {}, deadline.into()).await {
                    Ok(_) => true,
                    Err(QmpError::Timeout { .. }) => false,
                    Err(error) => return Err(error),
                };
                let changed = answered != answered_before;
                answered_before = answered;
                changed.then_some(Event::Beat { answered })
            }
        };
        if let Some(event) = event
            && !teller.event(event).await
        {
            return Ok(());
        }
    }
}

/// What a QMP event means for the machine.
async fn of_qmp(event: QmpEvent, qmp: &Qmp) -> Option<Event> {
    match event {
        QmpEvent::Resume => Some(Event::Resumed),
        QmpEvent::Reset { .. } => Some(Event::Reset),
        // STOP comes for many reasons, the status tells which: a shutdown, a panic, a full disk.
        // A loss of events is mended the same way.
        QmpEvent::Stop | QmpEvent::Lost { .. } => {
            let deadline = Instant::now() + BEAT_DEADLINE;
            let found = qmp.execute(query_status {}, deadline.into()).await.ok()?;
            Some(Event::Halted {
                status: run_status(found.status),
            })
        }
        QmpEvent::Shutdown { .. }
        | QmpEvent::Powerdown
        | QmpEvent::GuestPanicked { .. }
        | QmpEvent::BlockIoError(_)
        | QmpEvent::VserportChange { .. }
        | QmpEvent::Unknown { .. } => None,
    }
}

fn run_status(state: RunState) -> RunStatus {
    match state {
        RunState::running => RunStatus::Running,
        RunState::shutdown => RunStatus::Shutdown,
        RunState::guest_panicked => RunStatus::Panicked,
        RunState::io_error => RunStatus::IoError,
        RunState::internal_error | RunState::watchdog => RunStatus::Broken,
        RunState::debug
        | RunState::inmigrate
        | RunState::postmigrate
        | RunState::finish_migrate
        | RunState::paused
        | RunState::prelaunch
        | RunState::restore_vm
        | RunState::save_vm
        | RunState::suspended
        | RunState::colo => RunStatus::Paused,
    }
}

/// Reads reports for as long as QEMU holds the port's socket.
pub(super) fn reports(teller: Teller, socket: PathBuf) -> JoinHandle<()> {
    tokio::spawn(async move {
        let Ok(stream) = stream(&socket) else { return };
        let mut lines = BufReader::with_capacity(1024, stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            let mut limited = (&mut lines).take(REPORT_LIMIT);
            match limited.read_until(b'\n', &mut line).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if let Some(report) = parse_report(&line)
                && !teller.event(Event::Reported(report)).await
            {
                return;
            }
        }
    })
}

/// A connection to one of QEMU's sockets.
pub(super) fn stream(socket: &std::path::Path) -> std::io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// One line of the report protocol (docs/report.md); what is not one is passed over.
pub fn parse_report(line: &[u8]) -> Option<ReportRecord> {
    #[derive(Deserialize)]
    struct Line {
        kiln: u32,
        event: String,
        boot_id: String,
        #[serde(default)]
        hostname: String,
        #[serde(default)]
        addresses: Vec<String>,
    }
    let line: Line = serde_json::from_slice(line).ok()?;
    let cut = |text: &str, limit| sanitize(text.as_bytes()).chars().take(limit).collect();
    (line.kiln == 1 && line.event == "ready").then(|| ReportRecord {
        boot_id: cut(&line.boot_id, 64),
        hostname: cut(&line.hostname, 64),
        addresses: line
            .addresses
            .iter()
            .filter_map(|text| text.parse::<Ipv4Addr>().ok())
            .filter(|ip| !ip.is_link_local() && !ip.is_loopback())
            .take(REPORT_ADDRESSES)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_and_cut_to_what_it_may_say() {
        let line = br#"{"kiln":1,"event":"ready","boot_id":"b\u001b[2J","hostname":"n1","addresses":["10.1.2.3","fe80::1","169.254.1.1","x"],"more":1}"#;
        let report = parse_report(line).unwrap();
        assert!(!report.boot_id.contains('\u{1b}'));
        assert_eq!(report.addresses, [Ipv4Addr::new(10, 1, 2, 3)]);
    }

    #[test]
    fn what_is_no_report_is_passed_over() {
        for line in [
            &b""[..],
            b"\n",
            b"{}",
            b"\xff\xfe",
            br#"{"kiln":2,"event":"ready","boot_id":""}"#,
            br#"{"kiln":1,"event":"other","boot_id":""}"#,
        ] {
            assert_eq!(parse_report(line), None);
        }
    }
}
