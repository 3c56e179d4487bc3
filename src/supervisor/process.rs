//! The processes of a cluster: started, watched, signalled, and found again.
//!
//! A process is held by its pidfd, so that nothing is ever signalled for having
//! the right number. Whoever has only a number from a record must show that it
//! is still the same process: [`Process::adopt`] compares the start time and the
//! machine's UUID on the command line. Nothing here knows what the processes
//! are for, waits for the end of one that is not its child other than by pidfd,
//! or searches by name.

#![expect(unsafe_code, reason = "pidfds have no safe wrappers")]

mod child;
mod proc;
mod stranger;
#[cfg(test)]
mod tests;

use std::cell::OnceCell;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub use self::child::{SpawnError, Step};
use self::proc::Carrier;

/// How to start a QEMU.
#[derive(Debug)]
pub struct Launch {
    /// Absolute; no search path is used.
    pub program: PathBuf,
    /// Without the program itself.
    pub args: Vec<OsString>,
    /// Descriptors, each with its number in the child (3 or more, all
    /// different). The child has these and its standard ones, and no other.
    pub fds: Vec<(OwnedFd, RawFd)>,
    /// Takes standard output and standard error.
    pub stderr: OwnedFd,
    pub identity: Identity,
}

/// A program that a QEMU needs beside it: a child of this process too, with QEMU's identity, in its
/// session and process group.
#[derive(Debug)]
pub struct Companion {
    /// As in [`Launch`], all of them.
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub fds: Vec<(OwnedFd, RawFd)>,
    pub output: OwnedFd,
}

/// Who the child is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    Same,
    /// Another user, with no supplementary group. Asks for root.
    Drop {
        uid: u32,
        gid: u32,
    },
}

/// How to start kiln itself as a supervisor that outlives its caller.
#[derive(Debug)]
pub struct Detached {
    /// Without the program itself.
    pub args: Vec<OsString>,
    /// The whole environment, as `NAME=value`.
    pub environment: Vec<OsString>,
    /// As in [`Launch::fds`].
    pub fds: Vec<(OwnedFd, RawFd)>,
    /// Takes standard output and standard error.
    pub log: File,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// It was not our child (adopted), and this kernel tells its parent alone.
    Unknown,
}

/// Why a process could not be taken over or signalled.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("cannot open a pidfd for process {pid}")]
    Open {
        pid: u32,
        #[source]
        source: io::Error,
    },
    #[error("cannot read about process {pid} in /proc")]
    Read {
        pid: u32,
        #[source]
        source: io::Error,
    },
    #[error("cannot signal process {pid}")]
    Signal {
        pid: u32,
        #[source]
        source: io::Error,
    },
}

/// A process that runs, or that ran and was not looked after yet.
///
/// Keep it until [`Process::exited`] returned: that is what takes the zombie
/// of a child away. Dropping it does not end the process.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    start_time: u64,
    pidfd: AsyncFd<OwnedFd>,
    exit: Mutex<Option<Exit>>,
}

/// Starts a QEMU as a child of this process: in a session of its own, without
/// privileges to gain, without core dumps, with an empty environment, in `/`,
/// with input from nowhere. Returns when it runs the program. Call it inside a
/// tokio runtime.
///
/// # Errors
/// [`SpawnError`] says which step failed; then there is no child.
pub fn spawn(launch: Launch) -> Result<Process, SpawnError> {
    spawn_both(launch, None).map(|(process, _)| process)
}

/// As [`spawn`], under the name `PROGRAM:UUID`, by which [`Process::adopt`] and [`Carriers`] know a
/// program that takes no uuid among its arguments.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_tagged(launch: Launch, uuid: &str) -> Result<Process, SpawnError> {
    let mut name = OsString::from(launch.program.file_name().unwrap_or_default());
    name.push(":");
    name.push(uuid);
    start(launch, Some(name), None).map(|(process, _)| process)
}

/// As [`spawn`], with a companion, which is the second of what comes back.
///
/// # Errors
/// As [`spawn`]; then there is neither of them.
pub fn spawn_both(
    launch: Launch,
    companion: Option<Companion>,
) -> Result<(Process, Option<Process>), SpawnError> {
    start(launch, None, companion)
}

fn start(
    launch: Launch,
    name: Option<OsString>,
    companion: Option<Companion>,
) -> Result<(Process, Option<Process>), SpawnError> {
    let started = child::start(child::Plan {
        program: launch.program,
        name,
        args: launch.args,
        environment: Vec::new(),
        fds: launch.fds,
        output: launch.stderr,
        role: child::Role::Confined(launch.identity),
        companion,
    })?;
    // The numbers are good: they are our children, and nobody else waits for them.
    let held = Process::hold(started.pid, None).and_then(|process| {
        let companion = started.companion.map(|pid| Process::hold(pid, None));
        Ok((process, companion.transpose()?))
    });
    held.map_err(|source| {
        child::abandon(started.pid);
        started.companion.into_iter().for_each(child::abandon);
        SpawnError::Watch { source }
    })
}

/// Starts this very program again as a daemon, also when its file was replaced
/// meanwhile, and gives its pid. It is no child of ours: no zombie can come of
/// it, and who wants to see it end opens a pidfd.
///
/// # Errors
/// [`SpawnError`] says which step failed; then there is no daemon.
pub fn spawn_detached(detached: Detached) -> Result<u32, SpawnError> {
    child::start(child::Plan {
        program: PathBuf::from("/proc/self/exe"),
        name: Some(OsString::from("kiln")),
        args: detached.args,
        environment: detached.environment,
        fds: detached.fds,
        output: detached.log.into(),
        role: child::Role::Daemon,
        companion: None,
    })
    .map(|started| started.pid)
}

/// Starts this program again as the supervisor of `cluster`, with the control socket as its
/// descriptor 3, this process's environment, and its log at the end of `log`.
///
/// # Errors
/// [`SpawnError`], also when the log cannot be opened.
pub fn spawn_supervisor(
    cluster: &str,
    control: OwnedFd,
    log: &std::path::Path,
) -> Result<u32, SpawnError> {
    use std::os::unix::fs::OpenOptionsExt;
    let log = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(log)
        .map_err(|source| SpawnError::Prepare {
            program: log.to_owned(),
            source,
        })?;
    // Passed on unread: it has to find the same folders as we do.
    let environment = std::env::vars_os()
        .map(|(mut name, value)| {
            // It runs in `/`, where a relative folder would be another one.
            let value = match std::path::absolute(&value) {
                Ok(path) if name == "KILN_HOME" => path.into(),
                _ => value,
            };
            name.push("=");
            name.push(value);
            name
        })
        .collect();
    spawn_detached(Detached {
        args: ["supervise", cluster].map(OsString::from).into(),
        environment,
        fds: vec![(control, CONTROL)],
        log,
    })
}

/// Kills the supervisor of `cluster` that has this pid, and returns when it is gone.
///
/// `is_it` has to say, on every call, whether the process of that number is the supervisor (it holds
/// the supervisor's lock). It is asked once the process is held, so that no other can be meant.
///
/// # Errors
/// [`ProcessError::Signal`] when it cannot be killed, or is not gone within `patience`.
pub fn end_supervisor(
    cluster: &str,
    pid: u32,
    is_it: impl Fn() -> bool,
    patience: std::time::Duration,
) -> Result<(), ProcessError> {
    let pidfd = match open_pidfd(pid) {
        Ok(pidfd) => pidfd,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(source) => return Err(ProcessError::Open { pid, source }),
    };
    let supervises = match proc::supervises(pid, cluster) {
        Ok(supervises) => supervises,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(source) => return Err(ProcessError::Read { pid, source }),
    };
    if !supervises || !is_it() {
        return Ok(());
    }
    send(&pidfd, pid, Signal::SIGKILL, 0)?;
    await_end(&pidfd, pid, patience)
}

/// Whether the process is stopped, by a signal or a debugger.
pub fn is_stopped(pid: u32) -> bool {
    proc::state(pid).is_ok_and(|state| matches!(state, 'T' | 't'))
}

/// The number of the control socket in a supervisor.
const CONTROL: RawFd = 3;

/// The listening control socket that [`spawn_supervisor`] handed over. To be called once.
///
/// # Errors
/// There is no listening unix socket with that number.
pub fn inherited_listener() -> io::Result<std::os::unix::net::UnixListener> {
    use nix::sys::socket::{getsockopt, sockopt};
    // SAFETY: nothing in this process opened this number; who is no supervisor has no socket there.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(CONTROL) };
    if !getsockopt(&fd, sockopt::AcceptConn)? {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: it is a socket that we were handed, and this is the only owner made of it.
    let fd = unsafe { OwnedFd::from_raw_fd(CONTROL) };
    nix::fcntl::fcntl(
        &fd,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
    )?;
    Ok(fd.into())
}

/// Whether the process of a record still runs, without holding it: for tables and plans.
pub fn lives(pid: u32, found: u64, uuid: &str) -> bool {
    proc::start_time(pid).is_ok_and(|started| started == found)
        && proc::has_uuid(pid, uuid).unwrap_or(false)
}

/// Kills the processes that carry `uuid`, and waits until they are gone.
///
/// # Errors
/// [`ProcessError::Signal`] when one cannot be killed, or is not gone at `deadline`.
pub fn end_by_uuid(uuid: &str, deadline: std::time::Duration) -> Result<(), ProcessError> {
    let found = proc::carriers().map_err(|source| ProcessError::Read { pid: 0, source })?;
    for Carrier {
        pid, start_time, ..
    } in found.into_iter().filter(|found| found.uuid == uuid)
    {
        let Ok(pidfd) = open_pidfd(pid) else { continue };
        if !lives(pid, start_time, uuid) {
            continue;
        }
        send(&pidfd, pid, Signal::SIGKILL, 0)?;
        await_end(&pidfd, pid, deadline)?;
    }
    Ok(())
}

fn await_end(pidfd: &OwnedFd, pid: u32, patience: std::time::Duration) -> Result<(), ProcessError> {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let millis = u16::try_from(patience.as_millis()).unwrap_or(u16::MAX);
    if poll(&mut fds, PollTimeout::from(millis)).is_ok_and(|ready| ready == 0) {
        return Err(ProcessError::Signal {
            pid,
            source: io::ErrorKind::TimedOut.into(),
        });
    }
    Ok(())
}

/// The processes that carry UUIDs: looked for when first asked after, and once,
/// because every process of the host is looked at.
#[derive(Debug, Default)]
pub struct Carriers(OnceCell<Vec<Carrier>>);

impl Carriers {
    /// Whether a process carries `uuid`, as things were when first asked.
    pub fn has(&self, uuid: &str) -> bool {
        self.all().iter().any(|found| found.uuid == uuid)
    }

    /// The one that carries `uuid`, if any does: for a machine whose record is torn.
    pub fn find(&self, uuid: &str) -> Option<Process> {
        self.all()
            .iter()
            .filter(|found| found.uuid == uuid)
            .find_map(|found| Process::adopt(found.pid, found.start_time, uuid).ok()?)
    }

    fn all(&self) -> &[Carrier] {
        self.0.get_or_init(|| proc::carriers().unwrap_or_default())
    }
}

impl Process {
    /// Takes over a process from a record. `None` when it is gone, or when the
    /// number now belongs to another: the start time differs, or the command
    /// line does not hold `-uuid` and this UUID. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// [`ProcessError`] when the kernel does not let us look.
    pub fn adopt(pid: u32, start_time: u64, uuid: &str) -> Result<Option<Process>, ProcessError> {
        // First the pidfd, then the looks: what they say is then true of the
        // process that the pidfd holds, or the start time gives it away.
        let process = match Process::hold(pid, Some(start_time)) {
            Ok(process) => process,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(source) => return Err(ProcessError::Open { pid, source }),
        };
        match proc::start_time(pid)
            .and_then(|found| Ok(found == start_time && proc::has_uuid(pid, uuid)?))
        {
            Ok(true) => Ok(Some(process)),
            Ok(false) => Ok(None),
            Err(error) if is_gone(&error) => Ok(None),
            Err(source) => Err(ProcessError::Read { pid, source }),
        }
    }

    fn hold(pid: u32, start_time: Option<u64>) -> io::Result<Process> {
        // SAFETY: an `OwnedFd` of our own, which nobody exchanges.
        let pidfd =
            unsafe { AsyncFd::register_with_interest(open_pidfd(pid)?, Interest::READABLE) }?;
        let start_time = match start_time {
            Some(start_time) => start_time,
            None => proc::start_time(pid)?,
        };
        Ok(Process {
            pid,
            start_time,
            pidfd,
            exit: Mutex::new(None),
        })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When it started, in the kernel's ticks since boot (`/proc/PID/stat`,
    /// field 22). With the boot's id and the pid it names a process for ever.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Waits for its end, and takes the zombie away. May be dropped and called
    /// again, by several at once.
    pub async fn exited(&self) -> Exit {
        loop {
            if let Some(exit) = self.look() {
                return exit;
            }
            match self.pidfd.readable().await {
                Ok(mut ready) => {
                    if self.look().is_none() {
                        ready.clear_ready();
                    }
                }
                // The runtime is going away, and whoever waits here with it.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Its end, if it came already.
    fn look(&self) -> Option<Exit> {
        let mut exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if exit.is_none() && self.has_ended() {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
            *exit = match waitid(Id::PIDFd(self.pidfd.get_ref().as_fd()), flags) {
                Ok(WaitStatus::Exited(_, code)) => Some(Exit::Code(code)),
                Ok(WaitStatus::Signaled(_, signal, _)) => Some(Exit::Signal(signal as i32)),
                Ok(_) | Err(Errno::EINTR) => None,
                // Not our child.
                Err(_) => Some(stranger::exit(
                    self.pidfd.get_ref().as_fd(),
                    self.pid,
                    self.start_time,
                )),
            };
        }
        *exit
    }

    /// A pidfd is readable from the process's end on.
    fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.pidfd.get_ref().as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Sends a signal to this process. One that has ended already is no error.
    ///
    /// # Errors
    /// [`ProcessError::Signal`], as when it belongs to another user.
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        self.send(signal, 0)
    }

    /// Kills this process, and what is left of its process group where the
    /// kernel can do that by pidfd (Linux 6.9).
    ///
    /// # Errors
    /// [`ProcessError::Signal`], as when it belongs to another user.
    pub fn kill(&self) -> Result<(), ProcessError> {
        const PROCESS_GROUP: libc::c_uint = 4;
        self.send(Signal::SIGKILL, PROCESS_GROUP)
            .or_else(|_| self.send(Signal::SIGKILL, 0))
    }

    fn send(&self, signal: Signal, flags: libc::c_uint) -> Result<(), ProcessError> {
        send(self.pidfd.get_ref(), self.pid, signal, flags)
    }
}

fn send(
    pidfd: &OwnedFd,
    pid: u32,
    signal: Signal,
    flags: libc::c_uint,
) -> Result<(), ProcessError> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open, and the kernel takes a null `info`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal as libc::c_int,
            info,
            flags,
        )
    };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(ProcessError::Signal {
            pid,
            source: error.into(),
        }),
    }
}

fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| Errno::ESRCH)?;
    // SAFETY: takes two numbers and gives a new descriptor, which nobody else has.
    unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Says of an error from the kernel or from /proc that there is no such process
/// (EINVAL: a number that cannot be one; ENOENT: no such folder in /proc).
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ESRCH | Errno::ENOENT | Errno::EINVAL)
    )
}
