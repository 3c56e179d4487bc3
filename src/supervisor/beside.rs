//! The programs beside a QEMU, each of which its machine needs: the TPM's, and those that serve its
//! shares.
//!
//! They are in QEMU's process group, and each reads the end of its socket when QEMU goes, however it
//! goes. Where one of them ends before, the machine has crashed. How they are started is not the
//! business of this module.

use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::timeout;

use crate::state::layout::MachineFiles;
use crate::supervisor::console::last_line;
use crate::supervisor::process::{Companion, Exit, Launch, Process, SpawnError, spawn_all};

/// How long one of them may outlive QEMU, or QEMU one of them.
const FAREWELL: Duration = Duration::from_secs(2);

/// A program that is to be started beside a QEMU.
#[derive(Debug)]
pub struct Wanted {
    /// What it is to the machine: "its TPM".
    pub(super) what: String,
    /// Where its last words will stand.
    pub(super) log: PathBuf,
    pub(super) companion: Companion,
}

/// A program that was started beside a QEMU, or found there.
#[derive(Debug)]
pub(super) struct Beside {
    what: String,
    process: Process,
    log: PathBuf,
}

/// Starts a QEMU and all that it wants beside it, or none of them.
pub(super) fn spawn(
    qemu: Launch,
    wanted: Vec<Wanted>,
) -> Result<(Process, Vec<Beside>), SpawnError> {
    let mut companions = Vec::new();
    let mut told = Vec::new();
    for other in wanted {
        companions.push(other.companion);
        told.push((other.what, other.log));
    }
    let (qemu, others) = spawn_all(qemu, companions)?;
    let others = told.into_iter().zip(others);
    let beside = others.map(|((what, log), process)| Beside { what, process, log });
    Ok((qemu, beside.collect()))
}

/// Those beside a QEMU that a former supervisor had started.
pub(super) fn found(qemu: &Process, files: &MachineFiles) -> Vec<Beside> {
    let others = qemu.group().into_iter();
    let known = others.filter_map(|(process, words)| {
        // Which may be started by a script, or by a loader.
        let runs = |name: &str| words.iter().any(|word| Path::new(word).ends_with(name));
        let (what, log) = if runs("swtpm") {
            ("its TPM", files.tpm_log())
        } else if runs("virtiofsd") {
            ("what serves its shares", files.share_log())
        } else {
            return None;
        };
        Some(Beside {
            what: what.to_owned(),
            process,
            log,
        })
    });
    known.collect()
}

/// Waits for the end of all, since none is of use without the others: whichever stays is killed.
/// With QEMU's exit comes what the others had to do with it, if anything.
pub(super) async fn watch(qemu: &Process, beside: Vec<Beside>) -> (Exit, Option<String>) {
    let mut why = None;
    let exit = tokio::select! {
        // Where both have ended, it is the other's end that tells more.
        biased;
        (index, ended) = first(&beside) => {
            let words = beside[index].words(ended);
            match timeout(FAREWELL, qemu.exited()).await {
                Ok(exit) => {
                    if says_nothing_itself(exit) && ended != Exit::Code(0) {
                        why = Some(words);
                    }
                    exit
                }
                Err(_) => {
                    end(qemu);
                    why = Some(words);
                    qemu.exited().await
                }
            }
        }
        exit = qemu.exited() => exit,
    };
    for other in &beside {
        match timeout(FAREWELL, other.process.exited()).await {
            Ok(ended) => {
                if why.is_none() && says_nothing_itself(exit) && is_fault(ended) {
                    why = Some(other.words(ended));
                }
            }
            Err(_) => {
                end(&other.process);
                other.process.exited().await;
            }
        }
    }
    (exit, why)
}

/// Whether QEMU gave up: it says that one of them does not answer, and that one says why.
fn says_nothing_itself(exit: Exit) -> bool {
    matches!(exit, Exit::Code(1..))
}

fn is_fault(ended: Exit) -> bool {
    match ended {
        Exit::Code(code) => code != 0,
        Exit::Signal(_) => true,
        // It is no child of ours.
        Exit::Unknown => false,
    }
}

/// The first of them to end; never, where there is none.
async fn first(beside: &[Beside]) -> (usize, Exit) {
    let mut ends: Vec<_> = beside
        .iter()
        .map(|other| Box::pin(other.process.exited()))
        .collect();
    poll_fn(|context| {
        for (index, end) in ends.iter_mut().enumerate() {
            if let Poll::Ready(exit) = pin!(end).poll(context) {
                return Poll::Ready((index, exit));
            }
        }
        Poll::Pending
    })
    .await
}

impl Beside {
    fn words(&self, ended: Exit) -> String {
        let how = match ended {
            Exit::Code(code) => format!("status {code}"),
            Exit::Signal(signal) => format!("signal {signal}"),
            Exit::Unknown => "nobody knows how".to_owned(),
        };
        let what = &self.what;
        match last_line(&self.log) {
            Some(line) => format!("{what} ended ({how}): {line}"),
            None => format!("{what} ended ({how})"),
        }
    }
}

fn end(process: &Process) {
    if let Err(error) = process.kill() {
        tracing::warn!(%error, "not killed");
    }
}
