//! The consoles of all machines: what they say is read as it comes, and their
//! logs are kept short.
//!
//! QEMU itself appends to a machine's log, so nothing is lost while there is no
//! supervisor. This module watches the logs by one inotify instance, feeds what
//! is new to a [`Scanner`] each, and moves a log that reached [`LOG_CAP`] to
//! `FILE.1`, in place of the one before. QEMU has the file open for appending,
//! so that it goes on at the beginning of the emptied one.
//!
//! A guest may print as fast as it can: one wake reads one piece of one log,
//! the machines take turns, and wakes are `PAUSE` apart, for a serial port is
//! logged byte by byte.

mod sanitize;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::net::unix::pipe::Receiver;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

pub use self::sanitize::{complete, sanitize};
use crate::folder;
use crate::supervisor::diagnose::{Finding, FindingKind, Scanner};

/// A log that is as long as this, in bytes, is moved aside. Two of them, the copy
/// that is being made, and QEMU's own log stay below 32 MiB. While no supervisor
/// lives nobody cuts a log: that is the first act of the next one.
pub const LOG_CAP: u64 = 8 * 1024 * 1024;
/// The same for the logs of the programs themselves, which say little as a rule: QEMU's stderr, and
/// the supervisor's own.
const SMALL_CAP: u64 = 1024 * 1024;
/// Between two looks at the logs.
const PAUSE: Duration = Duration::from_millis(50);
/// So much is read at a time, in bytes.
const PIECE: usize = 64 * 1024;
/// So many pieces are read at once to catch up.
const CATCH_UP: usize = 16;

/// Of a log's last line, so many characters are told.
const LAST_LINE: usize = 200;

/// The last line of a log that says something, printable.
pub fn last_line(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(4096)))
        .ok()?;
    let mut bytes = Vec::new();
    file.take(4096).read_to_end(&mut bytes).ok()?;
    // It begins anywhere, in the middle of a line or of an escape sequence too.
    let cut = length > bytes.len() as u64;
    let whole = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let text = sanitize(&bytes[if cut { whole } else { 0 }..]);
    let line = text.lines().rfind(|line| !line.trim().is_empty())?;
    Some(line.trim().chars().take(LAST_LINE).collect())
}

/// What a console has said while nobody read it.
#[derive(Debug, Default)]
pub struct Missed {
    pub findings: Vec<Finding>,
    /// Whether a firmware or a kernel has begun in it.
    pub begins_anew: bool,
}

/// How a kernel begins, whatever time it is by its clock.
const KERNEL_BANNER: &[u8] = b"Linux version ";

/// What a log shows behind its first `offset` bytes, of which someone has known: at most the last
/// [`LOG_CAP`]. All of it when it is shorter, for then it was cut meanwhile.
pub fn missed(log: &Path, offset: u64) -> io::Result<Missed> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(log)?;
    let length = file.metadata()?.len();
    let offset = if length < offset { 0 } else { offset };
    let start = offset.max(length.saturating_sub(LOG_CAP));
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(LOG_CAP).read_to_end(&mut bytes)?;
    let findings = Scanner::new().feed(&bytes);
    let begins_anew = bytes
        .windows(KERNEL_BANNER.len())
        .any(|text| text == KERNEL_BANNER)
        || findings
            .iter()
            .any(|finding| finding.kind == FindingKind::Firmware);
    Ok(Missed {
        findings,
        begins_anew,
    })
}

/// What one machine's console showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleEvent {
    pub machine: String,
    /// At least one.
    pub findings: Vec<Finding>,
}

/// Watches the console logs of all machines.
#[derive(Debug)]
pub struct ConsoleWatch {
    inotify: Inotify,
    /// The same inotify instance, for reading.
    changes: Receiver,
    consoles: HashMap<String, Console>,
    /// Consoles with something to read, each once.
    turns: VecDeque<String>,
    next_look: Instant,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Console {
    file: File,
    path: PathBuf,
    watch: WatchDescriptor,
    /// How far it was read.
    offset: u64,
    /// As long as this, in bytes, it is moved aside.
    cap: u64,
    /// None of a log that is kept short and not read.
    scanner: Option<Scanner>,
}

impl ConsoleWatch {
    /// Watches nothing yet. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no inotify instance (there is a limit for each user).
    pub fn new() -> io::Result<ConsoleWatch> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let same: OwnedFd = inotify.as_fd().try_clone_to_owned()?;
        Ok(ConsoleWatch {
            // Nothing of it is special to pipes, and it knows no other type of
            // descriptor without unsafe code.
            changes: Receiver::from_owned_fd_unchecked(same)?,
            inotify,
            consoles: HashMap::new(),
            turns: VecDeque::new(),
            next_look: Instant::now(),
            buffer: Vec::new(),
        })
    }

    /// Begins to read a machine's log at its present end; what is there already
    /// is of former boots. A log that cannot be watched is only warned of: the
    /// machine runs without verdicts.
    pub fn add_at_end(&mut self, machine: &str, log: &Path) {
        self.remove(machine);
        if let Err(error) = self.add(machine, log, LOG_CAP, Some(Scanner::new())) {
            warn!(machine, %error, log = %log.display(), "cannot watch the console");
        }
    }

    /// Keeps another log short, which nobody reads here. It has to be written for appending. It is
    /// let go of by its own name, which is no machine's.
    pub fn keep_short(&mut self, name: &str, log: &Path) {
        self.remove(name);
        if let Err(error) = self.add(name, log, SMALL_CAP, None) {
            warn!(%error, log = %log.display(), "cannot keep the log short");
        }
    }

    fn add(
        &mut self,
        machine: &str,
        log: &Path,
        cap: u64,
        scanner: Option<Scanner>,
    ) -> io::Result<()> {
        let file = folder::open_own(log)?;
        let watch = self.inotify.add_watch(
            log,
            AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_DONT_FOLLOW,
        )?;
        let console = Console {
            offset: file.metadata()?.len(),
            file,
            path: log.to_owned(),
            watch,
            cap,
            scanner,
        };
        self.consoles.insert(machine.to_owned(), console);
        // It may have grown past the cap while nobody watched.
        self.turns.push_back(machine.to_owned());
        Ok(())
    }

    /// Lets go of a machine's log.
    pub fn remove(&mut self, machine: &str) {
        if let Some(console) = self.consoles.remove(machine) {
            // Fails when the file itself was removed, and the watch with it.
            let _ = self.inotify.rm_watch(console.watch);
        }
        self.turns.retain(|turn| turn != machine);
    }

    /// Told that a machine begins a new boot (QEMU's RESET event): its phases
    /// and verdicts are then found anew.
    pub fn restarted(&mut self, machine: &str) {
        let console = self.consoles.get_mut(machine);
        if let Some(scanner) = console.and_then(|console| console.scanner.as_mut()) {
            scanner.restarted();
        }
    }

    /// What a console shows up to now, without waiting: when QEMU's word of a
    /// panic or an end is here, the guest's own words may not have been read yet.
    pub fn catch_up(&mut self, machine: &str) -> Vec<Finding> {
        let mut findings = Vec::new();
        for _ in 0..CATCH_UP {
            if !self.consoles.get(machine).is_some_and(Console::has_news) {
                break;
            }
            findings.extend(self.look(machine).unwrap_or_default());
        }
        findings
    }

    /// Waits until a console shows something. May be dropped and called again;
    /// loses nothing.
    pub async fn next(&mut self) -> ConsoleEvent {
        loop {
            if let Some(machine) = self.turns.pop_front() {
                if let Some(findings) = self.look(&machine)
                    && !findings.is_empty()
                {
                    return ConsoleEvent { machine, findings };
                }
                tokio::task::yield_now().await;
                continue;
            }
            sleep_until(self.next_look).await;
            if let Err(error) = self.changes.readable().await {
                warn!(%error, "cannot watch the consoles any more");
                std::future::pending::<()>().await;
            }
            self.take_changes();
            self.next_look = Instant::now() + PAUSE;
        }
    }

    /// Gives a turn to each console that has changed.
    fn take_changes(&mut self) {
        let mut events = [0; 4096];
        while let Ok(length) = self.changes.try_read(&mut events) {
            if length == 0 {
                return;
            }
            // Which ones changed is not read from the events: after an overflow
            // they do not say, and asking for a length costs little.
            for (machine, console) in &self.consoles {
                if console.has_news() && !self.turns.contains(machine) {
                    self.turns.push_back(machine.clone());
                }
            }
        }
    }

    /// Reads the next piece of a log, and gives it another turn if that was not all.
    fn look(&mut self, machine: &str) -> Option<Vec<Finding>> {
        let console = self.consoles.get_mut(machine)?;
        self.buffer.resize(PIECE, 0);
        let Some(mut scanner) = console.scanner.take() else {
            console.offset = console.length();
            if let Err(error) = console.shorten() {
                warn!(%error, log = %console.path.display(), "the log is not kept");
            }
            return None;
        };
        let piece = console.read(&mut self.buffer).and_then(|length| {
            let findings = scanner.feed(&self.buffer[..length]);
            console.shorten()?;
            Ok(findings)
        });
        console.scanner = Some(scanner);
        match piece {
            Ok(findings) => {
                if console.has_news() && !self.turns.iter().any(|turn| turn == machine) {
                    self.turns.push_back(machine.to_owned());
                }
                Some(findings)
            }
            Err(error) => {
                warn!(machine, %error, log = %console.path.display(), "cannot read the console");
                None
            }
        }
    }
}

impl Console {
    fn length(&self) -> u64 {
        self.file
            .metadata()
            .map_or(self.offset, |metadata| metadata.len())
    }

    fn has_news(&self) -> bool {
        let length = self.length();
        length != self.offset || length >= self.cap
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.length() < self.offset {
            // Somebody emptied it.
            self.offset = 0;
        }
        self.file.seek(SeekFrom::Start(self.offset))?;
        let length = self.file.read(buffer)?;
        self.offset += length as u64;
        Ok(length)
    }

    /// Moves a log that is too long aside: as much of its end as its cap allows. Where that fails (a
    /// full disk) it is emptied all the same.
    fn shorten(&mut self) -> io::Result<()> {
        let length = self.length();
        // Read first what can be read, unless the guest is faster than that.
        if length < self.cap || (self.offset < length && length < self.cap + self.cap / 4) {
            return Ok(());
        }
        let copied = self.copy_tail(length);
        self.file.set_len(0)?;
        self.offset = 0;
        copied
    }

    fn copy_tail(&mut self, length: u64) -> io::Result<()> {
        let old = beside(&self.path, ".1");
        let new = beside(&self.path, ".1.new");
        let copy = || -> io::Result<()> {
            let mut copy = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&new)?;
            let mut log = &self.file;
            log.seek(SeekFrom::Start(length.saturating_sub(self.cap)))?;
            io::copy(&mut log.take(self.cap), &mut copy)?;
            fs::rename(&new, &old)
        };
        copy().inspect_err(|_| drop(fs::remove_file(&new)))
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}
