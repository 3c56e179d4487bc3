//! Ctrl-C in a command that changes a cluster: what runs on is said, and what to do.
//!
//! Nothing is undone and nothing is waited for: whatever a command leaves that is killed, the next
//! one goes on from.

use std::thread;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::client::Client;
use crate::command::Session;
use crate::state::layout::ClusterFiles;
use crate::state::record::StateRecord;
use crate::supervisor::protocol::{ClusterStatus, MachineStatus};

/// How long the supervisor may take to say what runs; a second Ctrl-C does not wait for it.
const PATIENCE: Duration = Duration::from_secs(2);
/// As shells have it: 128 and SIGINT.
const EXIT: i32 = 130;

/// From here on Ctrl-C ends this process with an account; `verb` is what does the rest.
pub(super) fn tell(session: &Session<'_>, files: &ClusterFiles, verb: &'static str) {
    let files = files.clone();
    let note = session.report.noter();
    // It lives as long as the process, and nobody waits for it.
    let spawned = thread::Builder::new().spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut interrupts = signal(SignalKind::interrupt())?;
            interrupts.recv().await;
            let asked = tokio::task::spawn_blocking(move || {
                let status = Client::find(&files).and_then(|client| client.status().ok());
                account(files.name(), verb, status.as_ref())
            });
            tokio::select! {
                Ok(text) = asked => note(&text),
                _ = interrupts.recv() => {}
                () = tokio::time::sleep(PATIENCE) => {
                    note("broken off, and the cluster's supervisor does not answer; try `kiln ps`");
                }
            }
            exit()
        })
    });
    if let Err(error) = spawned {
        tracing::debug!(%error, "Ctrl-C will say nothing");
    }
}

#[expect(clippy::exit, reason = "a signal ends the process, wherever it is")]
fn exit() -> std::io::Result<()> {
    std::process::exit(EXIT)
}

/// What there is and what to do about it.
fn account(cluster: &str, verb: &str, status: Option<&ClusterStatus>) -> String {
    let machines = status.map_or(&[][..], |status| &status.machines);
    if machines.is_empty() {
        return format!(
            "broken off before any machine was started; `kiln -c {cluster} down` removes what was made"
        );
    }
    let (down, up): (Vec<&MachineStatus>, Vec<_>) = machines.iter().partition(|machine| {
        matches!(
            machine.state,
            StateRecord::Stopped | StateRecord::Crashed | StateRecord::Damaged
        )
    });
    let list = |machines: &[&MachineStatus]| {
        let told =
            |machine: &&MachineStatus| format!("{} ({})", machine.name, machine.state.word());
        machines.iter().map(told).collect::<Vec<_>>().join(", ")
    };
    let mut told = "broken off".to_owned();
    for (words, machines) in [("what runs, runs on", &up), ("what does not run", &down)] {
        if !machines.is_empty() {
            told.push_str(&format!("; {words}: {}", list(machines)));
        }
    }
    format!("{told}\n`kiln {verb}` does the rest, `kiln -c {cluster} down` takes all of it away")
}
