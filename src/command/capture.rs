//! `kiln capture`: a machine's frames as pcapng, for Wireshark.
//!
//! Frames wait where they come from, in a bounded place; whoever reads this command's output too slowly loses some, and
//! is told how many. Ctrl-C ends the file in good order.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::SystemTime;

use kiln_netsetup::capture::Tapped;
use kiln_netsetup::pcapng::{self, Direction};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::Serialize;

use crate::cli::args::CaptureArgs;
use crate::client::{Client, Frames};
use crate::command::Session;
use crate::error::{Error, Exit};
use crate::supervisor::capture::Record;

/// What is written at once; so much fits a pipe that is ready to be written to (`PIPE_BUF`).
const PIECE: usize = 4096;
/// What is gathered before it is written.
const GATHER: usize = 64 * 1024;

#[derive(Debug, Serialize)]
struct Captured<'a> {
    machine: &'a str,
    file: &'a Path,
    frames: u64,
    dropped: u64,
}

pub(super) fn run(session: &Session<'_>, args: &CaptureArgs) -> Result<(), Error> {
    let made = session.made()?;
    let name = args.machine.as_str();
    made.known(name)?;
    if args.interface != 0 {
        return Err(Error::new(
            Exit::Unknown,
            format!("machine `{name}` has no interface {}", args.interface),
        )
        .hint("it has one, number 0"));
    }
    let file = args.write.as_deref().filter(|path| *path != Path::new("-"));
    let stdout = io::stdout();
    if file.is_none() && io::IsTerminal::is_terminal(&stdout) {
        return Err(
            Error::new(Exit::Usage, "captured frames are not for a terminal").hint(format!(
                "`kiln capture {name} -w FILE`, or `kiln capture {name} | wireshark -k -i -`"
            )),
        );
    }
    let failed = |error: io::Error| Error::because(Exit::Failed, "the capture failed", &error);
    // Before anything is waited for.
    let signals = Signals::take().map_err(failed)?;
    let frames = Client::look(&made.files)?.capture(name)?;
    let mut source = Source::of(frames).map_err(failed)?;
    let counted = match file {
        Some(path) => {
            let file = File::create(path).map_err(|error| {
                let message = format!("cannot write `{}`", path.display());
                Error::because(Exit::Failed, message, &error)
            })?;
            let out = Out::new(&file, file.as_fd(), &signals);
            capture(&made.record.name, name, &mut source, out)
        }
        None => {
            let out = Out::new(stdout.lock(), stdout.as_fd(), &signals);
            capture(&made.record.name, name, &mut source, out)
        }
    };
    let (frames, dropped) = counted.map_err(failed)?;
    match file {
        Some(file) => {
            let captured = Captured {
                machine: name,
                file,
                frames,
                dropped,
            };
            session.report.result(&captured, |_| {
                format!("{}: {}\n", file.display(), told(frames, dropped))
            })
        }
        None => {
            session.report.note(&told(frames, dropped));
            Ok(())
        }
    }
}

fn told(frames: u64, dropped: u64) -> String {
    match dropped {
        0 => format!("{frames} frames"),
        _ => format!(
            "{frames} frames; {dropped} more were dropped, because they were not taken in time"
        ),
    }
}

/// Writes frames until the machine has none any more, the reader is gone, or a signal comes; how many there were, and
/// how many were lost.
fn capture(
    cluster: &str,
    machine: &str,
    source: &mut Source,
    mut out: Out<'_, impl Write>,
) -> io::Result<(u64, u64)> {
    out.add(&pcapng::head("kiln", &format!("{cluster}/{machine}")))?;
    let mut frames = 0;
    while out.goes_on {
        match source.next() {
            Ok(Some((time, direction, length, frame))) => {
                out.add(&pcapng::packet(time, direction, length, frame))?;
                frames += 1;
            }
            Ok(None) => {
                out.flush()?;
                out.goes_on &= !out.signals.or(source.as_fd(), PollFlags::POLLIN)?;
            }
            // The machine is down, or its supervisor.
            Err(error) if is_end(&error) => break,
            Err(error) => return Err(error),
        }
    }
    let dropped = source.dropped();
    out.goes_on |= !out.reader_gone;
    out.add(&pcapng::tail(SystemTime::now(), frames, dropped))?;
    out.flush()?;
    Ok((frames, dropped))
}

/// The signals that end a capture, taken when it is asked for them and not before.
#[derive(Debug)]
struct Signals(SignalFd);

impl Signals {
    fn take() -> io::Result<Signals> {
        let set: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
            .into_iter()
            .collect();
        set.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Signals(SignalFd::with_flags(&set, flags)?))
    }

    /// Waits until one of them came (`true`) or `fd` is ready; the latter first.
    fn or(&self, fd: BorrowedFd<'_>, events: PollFlags) -> io::Result<bool> {
        let mut fds = [
            PollFd::new(fd, events),
            PollFd::new(self.0.as_fd(), PollFlags::POLLIN),
        ];
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let came = |at: usize| fds[at].revents().is_some_and(|events| !events.is_empty());
        Ok(came(1) && !came(0))
    }

    fn came(&self) -> io::Result<bool> {
        Ok(self.0.read_signal()?.is_some())
    }
}

/// Where the file goes. A signal ends the waiting for a reader that does not read.
struct Out<'a, W> {
    writer: W,
    fd: BorrowedFd<'a>,
    signals: &'a Signals,
    gathered: Vec<u8>,
    goes_on: bool,
    reader_gone: bool,
}

impl<'a, W: Write> Out<'a, W> {
    fn new(writer: W, fd: BorrowedFd<'a>, signals: &'a Signals) -> Out<'a, W> {
        Out {
            writer,
            fd,
            signals,
            gathered: Vec::with_capacity(GATHER),
            goes_on: true,
            reader_gone: false,
        }
    }

    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.gathered.extend(bytes);
        if self.gathered.len() < GATHER {
            return Ok(());
        }
        // Between many frames nobody waits, so a signal is asked for.
        if self.signals.came()? {
            self.goes_on = false;
        }
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        let gathered = std::mem::take(&mut self.gathered);
        for piece in gathered.chunks(PIECE) {
            if self.reader_gone {
                break;
            }
            if self.signals.or(self.fd, PollFlags::POLLOUT)? {
                (self.goes_on, self.reader_gone) = (false, true);
                break;
            }
            match self
                .writer
                .write_all(piece)
                .and_then(|()| self.writer.flush())
            {
                Ok(()) => {}
                // Wireshark was closed, say.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    (self.goes_on, self.reader_gone) = (false, true);
                }
                Err(error) => return Err(error),
            }
        }
        self.gathered = gathered;
        self.gathered.clear();
        Ok(())
    }
}

/// When, which way, of what length, and what of it is there.
type Frame<'a> = (SystemTime, Direction, usize, &'a [u8]);

/// Where the frames come from.
enum Source {
    Tap(Tapped),
    Records {
        stream: BufReader<UnixStream>,
        record: Option<Record>,
        dropped: u64,
    },
}

impl Source {
    fn of(frames: Frames) -> io::Result<Source> {
        Ok(match frames {
            Frames::Tap(socket) => Source::Tap(Tapped::new(socket)?),
            Frames::Records(stream) => Source::Records {
                stream: BufReader::with_capacity(GATHER, stream),
                record: None,
                dropped: 0,
            },
        })
    }

    /// The next frame, if one is there.
    fn next(&mut self) -> io::Result<Option<Frame<'_>>> {
        match self {
            Source::Tap(tapped) => match tapped.take() {
                Ok((direction, length, frame)) => {
                    Ok(Some((SystemTime::now(), direction, length, frame)))
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(error),
            },
            Source::Records {
                stream,
                record,
                dropped,
            } => {
                // A record comes whole or not at all, so only its beginning has to be waited for.
                if stream.buffer().is_empty() && !is_ready(stream.get_ref())? {
                    return Ok(None);
                }
                let record = record.insert(Record::read(stream)?);
                *dropped = record.dropped;
                let length = record.frame.len();
                Ok(Some((record.time, record.direction, length, &record.frame)))
            }
        }
    }

    fn dropped(&mut self) -> u64 {
        match self {
            Source::Tap(tapped) => tapped.dropped().unwrap_or_default(),
            Source::Records { dropped, .. } => *dropped,
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Source::Tap(tapped) => tapped.as_fd(),
            Source::Records { stream, .. } => stream.get_ref().as_fd(),
        }
    }
}

fn is_end(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENETDOWN as i32)
        || matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
        )
}

fn is_ready(stream: &UnixStream) -> io::Result<bool> {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
}
