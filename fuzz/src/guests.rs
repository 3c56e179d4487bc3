//! What a guest, or a QEMU that a guest has taken over, says to the supervisor.

use std::time::Duration;

use kiln::supervisor::console::{complete, sanitize};
use kiln::supervisor::diagnose::Scanner;
use kiln::supervisor::journal::Journal;
use kiln::supervisor::qmp::Qmp;
use kiln::supervisor::watch::parse_report;
use qapi::qmp::query_status;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use crate::fabric::RUNTIME;
use crate::switch::pieces;

/// Fit for a terminal, and no longer than a line on it may be.
fn check(line: &str) {
    assert!(
        !line.chars().any(|character| character.is_control()),
        "{line:?}"
    );
    assert!(line.len() < 4096, "{} bytes", line.len());
}

pub fn qmp(bytes: &[u8]) {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let (ours, mut theirs) = tokio::io::duplex(1 << 20);
            let deadline = Instant::now() + Duration::from_secs(2);
            let (greets, bytes) = match bytes.split_first() {
                Some((first, rest)) => (first & 1 == 0, rest),
                None => return,
            };
            if greets {
                let greeting =
                    b"{\"QMP\":{\"version\":{},\"capabilities\":[]}}\n{\"return\":{},\"id\":1}\n";
                theirs.write_all(greeting).await.unwrap();
            }
            let speaking = async {
                for (_, piece) in pieces(bytes) {
                    if theirs.write_all(piece).await.is_err() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                drop(theirs);
            };
            let hearing = async {
                let Ok((qmp, mut events)) = Qmp::connect(ours, deadline).await else {
                    return;
                };
                let _ = qmp.execute(query_status {}, deadline).await;
                while events.next().await.is_ok() {}
            };
            tokio::join!(speaking, hearing);
        });
    });
}

pub fn report(bytes: &[u8]) {
    if let Some(report) = parse_report(bytes) {
        check(&report.boot_id);
        check(&report.hostname);
    }
}

pub fn journal(bytes: &[u8]) {
    let mut journal = Journal::default();
    for (_, piece) in pieces(bytes) {
        if let Some(line) = journal.feed(piece) {
            check(&line);
        }
    }
}

pub fn console(bytes: &[u8]) {
    let mut scanner = Scanner::new();
    for (choice, piece) in pieces(bytes) {
        for finding in scanner.feed(piece) {
            check(&finding.line);
        }
        if choice == 0 {
            scanner.restarted();
        }
    }
    let whole = complete(bytes);
    assert!(whole <= bytes.len());
    let shown = sanitize(bytes);
    assert!(!shown.contains('\u{1b}'));
}
