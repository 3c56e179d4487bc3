//! The journal of a boot on which Ignition failed, out of the port `com.coreos.ignition.journal`.
//!
//! Fedora CoreOS writes it there as `journalctl --output=json` prints it, an object a line, before
//! it opens its emergency shell. Where Ignition logs to the journal alone it is the only witness of
//! the cause. Of an entry only Ignition's stages and errors are looked at, by the console's own
//! [`Scanner`], which leaves out what may be secret.
//!
//! The guest is hostile: a line is held up to `LINE` bytes, a piece is read each `PAUSE`, and a
//! piece yields one verdict at most. A guest that writes faster waits in its own kernel.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;

use crate::supervisor::diagnose::{FindingKind, Scanner};
use crate::supervisor::machine::Event;
use crate::supervisor::watch::{Teller, stream};

/// A longer line is no entry: journald's own limit of a line is 48 KiB, and Ignition says less.
const LINE: usize = 64 * 1024;
/// So much is read at a time, in bytes.
const PIECE: usize = 64 * 1024;
/// Between two pieces: 6 MiB in a second, where an honest journal has one altogether.
const PAUSE: Duration = Duration::from_millis(10);

/// Reads the port for as long as QEMU holds its socket, and tells why Ignition failed.
pub(super) fn watch(teller: Teller, socket: PathBuf) -> JoinHandle<()> {
    tokio::spawn(async move {
        let Ok(mut stream) = stream(&socket) else {
            return;
        };
        let mut journal = Journal::default();
        let mut piece = vec![0; PIECE];
        loop {
            let length = match stream.read(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(length) => length,
            };
            if let Some(line) = journal.feed(&piece[..length])
                && !teller.event(Event::Explained { line }).await
            {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    })
}

/// Entries that come in pieces.
#[derive(Debug, Default)]
pub struct Journal {
    line: Vec<u8>,
    /// The present line is too long; its rest is thrown away.
    skips: bool,
    scanner: Scanner,
}

/// What is looked at of an entry. A field may be an array of bytes, or absent: then it is none.
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "SYSLOG_IDENTIFIER")]
    identifier: String,
    #[serde(rename = "PRIORITY")]
    priority: String,
    #[serde(rename = "MESSAGE")]
    message: String,
}

impl Journal {
    /// Why Ignition failed, if these bytes tell it.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<String> {
        let mut cause = None;
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let ends = piece.ends_with(b"\n");
            if !self.skips && self.line.len() + piece.len() <= LINE {
                self.line.extend_from_slice(piece);
            } else {
                self.skips = true;
                self.line.clear();
            }
            if ends {
                cause = cause.or_else(|| self.read());
                self.line.clear();
                self.skips = false;
            }
        }
        cause
    }

    fn read(&mut self) -> Option<String> {
        let entry: Entry = serde_json::from_slice(&self.line).ok()?;
        if entry.identifier != "ignition" {
            return None;
        }
        // The rest may be the whole config, which Ignition prints when it fails.
        let line = match entry.priority.as_str() {
            "0" | "1" | "2" | "3" => format!("CRITICAL : {}\n", entry.message),
            _ if entry.message.starts_with("Stage: ") => format!("INFO : {}\n", entry.message),
            _ => return None,
        };
        let findings = self.scanner.feed(line.as_bytes());
        let failed = findings
            .into_iter()
            .find(|finding| finding.kind == FindingKind::IgnitionFailed)?;
        // The next boot's journal may tell of another failure.
        self.scanner = Scanner::new();
        Some(failed.line)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(identifier: &str, priority: u8, message: &str) -> String {
        let entry = serde_json::json!({
            "__CURSOR": "s=1;i=2", "SYSLOG_IDENTIFIER": identifier, "PRIORITY": priority.to_string(),
            "MESSAGE": message, "_TRANSPORT": "syslog",
        });
        format!("{entry}\n")
    }

    /// As Debian's Ignition said it on the full guest.
    fn failed() -> String {
        [
            entry("ignition", 6, "Stage: fetch-offline"),
            entry("ignition", 6, "Ignition finished successfully"),
            entry("systemd", 3, "Ignition failed: not Ignition's own word"),
            entry("ignition", 6, "Stage: disks"),
            entry("ignition", 3, "disks: createFilesystems: filesystem at \"/dev/vda3\" is not of the correct type"),
            entry("ignition", 6, "Full config: CRITICAL : {\"password\": \"secret\"}"),
            entry("ignition", 2, "Ignition failed: failed to create filesystems: filesystem is not of the correct type"),
            "{}\n".to_owned(),
        ]
        .concat()
    }

    const CAUSE: &str = "Ignition failed: disks: createFilesystems: filesystem at \"/dev/vda3\" is not of the correct type";

    #[test]
    fn the_first_complaint_of_the_failed_stage_is_the_cause() {
        let mut journal = Journal::default();
        assert_eq!(journal.feed(failed().as_bytes()).as_deref(), Some(CAUSE));
        // A second boot fails again.
        assert_eq!(journal.feed(failed().as_bytes()).as_deref(), Some(CAUSE));
    }

    #[test]
    fn a_line_without_end_is_thrown_away_and_the_next_is_read() {
        let mut journal = Journal::default();
        for _ in 0..64 {
            assert_eq!(journal.feed(&[b'x'; PIECE]), None);
            assert!(journal.line.capacity() <= 2 * LINE);
        }
        assert_eq!(journal.feed(b"\n"), None);
        assert_eq!(journal.feed(failed().as_bytes()).as_deref(), Some(CAUSE));
    }

    #[test]
    fn what_it_says_is_fit_for_a_terminal_and_short() {
        let message = format!("Ignition failed: \u{1b}[2J{}", "long ".repeat(5000));
        let said = Journal::default()
            .feed(entry("ignition", 2, &message).as_bytes())
            .unwrap();
        assert!(!said.contains('\u{1b}'), "{said}");
        assert!(said.chars().count() < 500, "{said}");
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            Journal::default().feed(&bytes);
        }

        #[test]
        fn how_it_is_cut_makes_no_difference(cut in 1_usize..400) {
            let mut journal = Journal::default();
            let text = failed();
            let told: Vec<String> = text.as_bytes().chunks(cut).filter_map(|piece| journal.feed(piece)).collect();
            prop_assert_eq!(told, vec![CAUSE.to_owned()]);
        }
    }
}
