//! `kiln console`: the machine's serial console on this terminal. Ctrl-] leaves it.

use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{self, SetArg, Termios};

use crate::cli::args::ConsoleArgs;
use crate::command::Session;
use crate::error::{Error, Exit};
use crate::state::layout::Socket;
use crate::state::lock::Lock;

/// Ctrl-], as telnet and virsh have it.
const ESCAPE: u8 = 0x1d;
/// After the end of stdin, a console that says nothing for so long, in milliseconds, has answered.
const QUIET: u8 = 200;
/// One that goes on and on is heard for so long after the end of stdin.
const LAST_WORDS: Duration = Duration::from_secs(5);

pub(super) fn run(session: &Session<'_>, args: &ConsoleArgs) -> Result<(), Error> {
    let made = session.made()?;
    let name = args.machine.as_str();
    made.known(name)?;
    let files = made.files.machine(name);
    // QEMU serves one at a time, and would leave a second one without a word.
    let lock = files.console_lock();
    let lock = Lock::try_take(&lock, "kiln console").map_err(|error| {
        Error::from(error).hint(format!(
            "a console has room for one; `kiln logs -f {name}` shows what it says"
        ))
    })?;
    let socket = files.socket(Socket::Console);
    let stream = UnixStream::connect(&socket).map_err(|error| {
        Error::because(
            Exit::Failed,
            format!("cannot reach the console of machine `{name}`"),
            &error,
        )
        .hint("is it running? `kiln ps` tells; `kiln logs` shows what its console said")
    })?;
    session
        .report
        .note(&format!("console of {name}; Ctrl-] leaves it"));
    let raw = RawTerminal::enter()
        .map_err(|error| Error::because(Exit::Failed, "cannot set up the terminal", &error))?;
    let ended = join(&stream);
    drop(raw);
    lock.remove();
    ended.map_err(|error| {
        Error::because(
            Exit::Failed,
            format!("the console of `{name}` broke off"),
            &error,
        )
    })
}

/// Copies both ways until the console ends, the escape is typed, or stdin has ended and the console
/// is quiet after it.
fn join(mut stream: &UnixStream) -> std::io::Result<()> {
    let mut stdin = std::io::stdin().lock();
    let mut stdout = std::io::stdout().lock();
    let mut buffer = [0; 4096];
    let mut stdin_ended: Option<Instant> = None;
    loop {
        let mut fds = vec![PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        let input = std::io::stdin();
        let patience = match stdin_ended {
            None => {
                fds.push(PollFd::new(input.as_fd(), PollFlags::POLLIN));
                PollTimeout::NONE
            }
            Some(ended) if ended.elapsed() > LAST_WORDS => return Ok(()),
            Some(_) => PollTimeout::from(QUIET),
        };
        match poll(&mut fds, patience) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let ready = |fd: Option<&PollFd<'_>>| {
            fd.and_then(PollFd::revents)
                .is_some_and(|events| !events.is_empty())
        };
        let (console, keyboard) = (ready(fds.first()), ready(fds.get(1)));
        if console {
            let read = stream.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            stdout.write_all(&buffer[..read])?;
            stdout.flush()?;
        }
        if keyboard {
            // Through the lock's buffer nothing may stay unread, or poll would not tell of it.
            let read = stdin.read(&mut buffer)?;
            let typed = &buffer[..read];
            if let Some(end) = typed.iter().position(|byte| *byte == ESCAPE) {
                return stream.write_all(&typed[..end]);
            }
            if read == 0 {
                stdin_ended = Some(Instant::now());
            }
            stream.write_all(typed)?;
        }
    }
}

/// The terminal in raw mode; as it was when this goes.
struct RawTerminal {
    before: Option<Termios>,
}

impl RawTerminal {
    fn enter() -> nix::Result<RawTerminal> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(RawTerminal { before: None });
        }
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
        Ok(RawTerminal {
            before: Some(before),
        })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // There is nobody to tell; the user's shell resets a terminal too.
            let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, before);
        }
    }
}
