//! `kiln logs`: the console's log, QEMU's, or the supervisor's; made safe for a terminal.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::cli::args::LogsArgs;
use crate::command::Session;
use crate::error::{Error, Exit};
use crate::supervisor::console::{complete, sanitize};

/// At most this much is looked through for the last lines.
const TAIL_LIMIT: u64 = 4 * 1024 * 1024;
const CHUNK: usize = 64 * 1024;

pub(super) fn run(session: &Session<'_>, args: &LogsArgs) -> Result<(), Error> {
    let made = session.made()?;
    let path = if args.supervisor {
        made.files.supervisor_log()
    } else {
        let name = match (&args.machine, made.record.machines.as_slice()) {
            (Some(name), _) => name.to_string(),
            (None, [only]) => only.clone(),
            (None, _) => {
                return Err(
                    Error::new(Exit::Usage, "whose log? the cluster has several machines")
                        .hint(format!("one of: {}", made.record.machines.join(", "))),
                );
            }
        };
        made.known(&name)?;
        let files = made.files.machine(&name);
        if args.qemu {
            files.qemu_log()
        } else {
            files.console_log()
        }
    };
    let failed = |error: std::io::Error| {
        Error::because(
            Exit::Failed,
            format!("cannot read `{}`", path.display()),
            &error,
        )
    };
    // What the log's cap moved aside comes first: all of it, or what the newer one lacks of the tail.
    let lacking = match args.tail {
        None => None,
        Some(lines) => Some(lines - count_lines(&path, lines).map_err(failed)?),
    };
    if lacking != Some(0) {
        let mut older = Follower::open(&aside(&path), lacking).map_err(failed)?;
        while let Some(text) = older.next_text().map_err(failed)? {
            session.report.print(&text)?;
        }
        session.report.print(&older.rest())?;
    }
    let mut follower = Follower::open(&path, args.tail).map_err(failed)?;
    loop {
        while let Some(text) = follower.next_text().map_err(failed)? {
            session.report.print(&text)?;
        }
        if !args.follow || session.report.reader_gone() {
            return session.report.print(&follower.rest());
        }
        follower.wait().map_err(failed)?;
    }
}

/// Where a log that reached its cap is moved to.
fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// A log that is read while it grows, is cut short, or is replaced.
struct Follower {
    path: PathBuf,
    file: Option<File>,
    inode: u64,
    notify: Inotify,
    /// A line that has not ended yet.
    partial: Vec<u8>,
}

impl Follower {
    fn open(path: &Path, tail: Option<u64>) -> std::io::Result<Follower> {
        let notify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        notify.add_watch(
            folder,
            AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO,
        )?;
        let mut follower = Follower {
            path: path.to_owned(),
            file: None,
            inode: 0,
            notify,
            partial: Vec::new(),
        };
        follower.reopen()?;
        if let (Some(lines), Some(file)) = (tail, &mut follower.file) {
            let start = tail_start(file, lines)?;
            file.seek(SeekFrom::Start(start))?;
        }
        Ok(follower)
    }

    fn reopen(&mut self) -> std::io::Result<()> {
        match File::open(&self.path) {
            Ok(file) => {
                self.inode = file.metadata()?.ino();
                self.file = Some(file);
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The next whole lines, or `None` at the end of what there is.
    fn next_text(&mut self) -> std::io::Result<Option<String>> {
        let Some(file) = &mut self.file else {
            self.reopen()?;
            if self.file.is_none() {
                return Ok(None);
            }
            return self.next_text();
        };
        // Cut short by the log's cap: what is new begins at the start.
        if file.metadata()?.len() < file.stream_position()? {
            file.seek(SeekFrom::Start(0))?;
        }
        let mut chunk = vec![0; CHUNK];
        let read = file.read(&mut chunk)?;
        if read == 0 {
            let replaced =
                std::fs::metadata(&self.path).is_ok_and(|found| found.ino() != self.inode);
            if !replaced {
                return Ok(None);
            }
            self.reopen()?;
            return self.next_text();
        }
        self.partial.extend_from_slice(&chunk[..read]);
        let end = self
            .partial
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        // A line without end is cut, so that it cannot fill the memory.
        let end = if end == 0 && self.partial.len() > CHUNK {
            complete(&self.partial)
        } else {
            end
        };
        let whole: Vec<u8> = self.partial.drain(..end).collect();
        Ok(Some(sanitize(&whole)))
    }

    /// What stands after the last line break.
    fn rest(&mut self) -> String {
        match std::mem::take(&mut self.partial) {
            rest if rest.is_empty() => String::new(),
            rest => sanitize(&rest) + "\n",
        }
    }

    /// Waits until something in the log's folder changes, however long that takes: a log has
    /// no end, and the user ends the following with Ctrl-C.
    fn wait(&mut self) -> std::io::Result<()> {
        use std::os::fd::AsFd;
        let mut fds = [PollFd::new(self.notify.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        match self.notify.read_events() {
            Ok(_) | Err(nix::errno::Errno::EAGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// How many lines the log has, up to `enough`.
fn count_lines(path: &Path, enough: u64) -> std::io::Result<u64> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(TAIL_LIMIT).read_to_end(&mut bytes)?;
    let lines = bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
    Ok(lines.min(enough))
}

/// Where the last `lines` lines begin.
fn tail_start(file: &mut File, lines: u64) -> std::io::Result<u64> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(TAIL_LIMIT);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(TAIL_LIMIT).read_to_end(&mut bytes)?;
    let end = bytes.strip_suffix(b"\n").map_or(bytes.len(), <[u8]>::len);
    if lines == 0 {
        return Ok(length);
    }
    let mut left = lines;
    for (at, byte) in bytes[..end].iter().enumerate().rev() {
        if *byte == b'\n' {
            left -= 1;
            if left == 0 {
                return Ok(from + at as u64 + 1);
            }
        }
    }
    Ok(from)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_last_lines_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut file = File::create_new(&path).unwrap();
        file.write_all(b"one\ntwo\nthree\n").unwrap();
        for (lines, want) in [
            (0, ""),
            (1, "three\n"),
            (2, "two\nthree\n"),
            (9, "one\ntwo\nthree\n"),
        ] {
            let mut follower = Follower::open(&path, Some(lines)).unwrap();
            let text = follower.next_text().unwrap().unwrap_or_default();
            assert_eq!(text, want, "{lines}");
        }
    }

    #[test]
    fn a_line_without_end_is_parted_where_no_sequence_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let asked = b"\x1b[6n#";
        std::fs::write(&path, asked.repeat(CHUNK)).unwrap();
        let mut follower = Follower::open(&path, None).unwrap();
        let mut told = String::new();
        while let Some(text) = follower.next_text().unwrap() {
            told.push_str(&text);
        }
        told.push_str(&follower.rest());
        assert_eq!(told, "#".repeat(CHUNK) + "\n");
    }

    #[test]
    fn a_log_that_is_cut_short_is_read_from_its_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, b"a long first line\n").unwrap();
        let mut follower = Follower::open(&path, None).unwrap();
        assert!(follower.next_text().unwrap().is_some());
        std::fs::write(&path, b"new\n").unwrap();
        assert_eq!(follower.next_text().unwrap().unwrap(), "new\n");
    }
}
