//! The command's side of the control socket: find the supervisor, or start one, and ask it.
//!
//! Plain blocking sockets with deadlines: a command waits for one thing at a time.
//!
//! A supervisor that lives and does not answer (it was stopped, say) is known by the lock that it
//! holds. Who only looks leaves it alone and says so; who has to change something ends it, and the
//! next one adopts the machines, as after any death of a supervisor.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use kiln_netsetup::capture::receive_byte;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::folder::{self, FolderError};
use crate::state::layout::ClusterFiles;
use crate::state::lock::{Lock, LockError};
use crate::supervisor::launch::{self, LaunchError};
use crate::supervisor::process::{self, ProcessError, SpawnError};
use crate::supervisor::protocol::{
    Answer, ClusterStatus, LINE_LIMIT, Notice, PortTraffic, Request,
};

/// How long a living supervisor may take to answer; it answers in milliseconds.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// After so long without an answer it is looked at whether it can answer at all.
const DOUBT: Duration = Duration::from_secs(2);
/// How long those who only want to see something wait for an answer.
const GLANCE: Duration = Duration::from_millis(2500);
/// How long a supervisor that lost its socket takes to bind another, as a rule.
const REBINDING: Duration = Duration::from_millis(250);
/// How long a supervisor that dies may take to be gone, and one that lost its socket at the longest.
const DYING: Duration = Duration::from_secs(3);
/// How many supervisors may die one after the other under someone who watches, and say nothing.
const FRUITLESS: u32 = 3;

/// Why the supervisor could not be asked, or said no.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("there is no cluster `{cluster}` any more")]
    NoCluster { cluster: String },
    #[error("cannot look for the supervisor of cluster `{cluster}`")]
    Lock {
        cluster: String,
        #[source]
        source: LockError,
    },
    #[error("cannot reach the supervisor of cluster `{cluster}`")]
    Connect {
        cluster: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot make the folder for the sockets of cluster `{cluster}`")]
    Folder {
        cluster: String,
        #[source]
        source: FolderError,
    },
    #[error("cannot listen for the supervisor of cluster `{cluster}`")]
    Listen {
        cluster: String,
        #[source]
        source: LaunchError,
    },
    #[error("cannot start the supervisor of cluster `{cluster}`")]
    Spawn {
        cluster: String,
        #[source]
        source: SpawnError,
    },
    #[error("the supervisor of cluster `{cluster}`{} does not answer: {how}", pid_text(*pid))]
    Hung {
        cluster: String,
        /// Absent where it cannot be seen from here.
        pid: Option<u32>,
        how: &'static str,
    },
    #[error("cannot end the supervisor of cluster `{cluster}`, pid {pid}, which does not answer")]
    Stuck {
        cluster: String,
        pid: u32,
        #[source]
        source: ProcessError,
    },
    #[error("the supervisor of cluster `{cluster}` does not answer")]
    Silent {
        cluster: String,
        #[source]
        source: io::Error,
    },
    #[error("the supervisor of cluster `{cluster}` went away; its log: {log}")]
    Gone { cluster: String, log: String },
    #[error("the supervisor of cluster `{cluster}` said what this kiln does not understand")]
    Nonsense {
        cluster: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{why}")]
    Refused { why: String },
}

impl ClientError {
    /// Whether nobody is at the other end, or not any more.
    fn is_hangup(&self) -> bool {
        match self {
            ClientError::Connect { .. } | ClientError::Gone { .. } => true,
            ClientError::Silent { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            ),
            ClientError::Lock { .. }
            | ClientError::NoCluster { .. }
            | ClientError::Folder { .. }
            | ClientError::Listen { .. }
            | ClientError::Spawn { .. }
            | ClientError::Hung { .. }
            | ClientError::Stuck { .. }
            | ClientError::Nonsense { .. }
            | ClientError::Refused { .. } => false,
        }
    }

    /// Whether one lives that does not answer.
    pub fn is_hung(&self) -> bool {
        matches!(self, ClientError::Hung { .. })
    }
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

/// A supervisor that can be asked.
#[derive(Debug, Clone)]
pub struct Client {
    files: ClusterFiles,
    patience: Duration,
}

/// What becomes of a supervisor that lives and does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unanswering {
    Leave,
    /// It is killed, and another one takes its place.
    Replace,
}

/// What comes over a watching connection.
#[derive(Debug)]
pub enum News {
    Status(ClusterStatus),
    Notice(Box<Notice>),
    /// Nothing came before the deadline.
    Nothing,
}

/// Where a machine's frames come from.
#[derive(Debug)]
pub enum Frames {
    /// A packet socket of its tap.
    Tap(OwnedFd),
    /// A stream of [`crate::supervisor::capture::Record`]s.
    Records(UnixStream),
}

/// Every change, for as long as anyone wants to know: when a supervisor dies, the next one goes on.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    lines: Lines,
    /// How many supervisors died since one said something.
    fruitless: u32,
}

/// What comes over one connection.
#[derive(Debug)]
struct Lines {
    cluster: String,
    lines: BufReader<UnixStream>,
    line: Vec<u8>,
    log: String,
}

impl Client {
    /// The cluster's supervisor; one is started where none lives or none answers, and adopts the
    /// machines.
    ///
    /// # Errors
    /// [`ClientError::NoCluster`] when a `down` has removed the cluster meanwhile.
    pub fn reach(files: &ClusterFiles) -> Result<Client, ClientError> {
        Client::of(files, ANSWER_DEADLINE).met(Unanswering::Replace)
    }

    /// The same for those who change nothing: one that does not answer soon is left alone.
    ///
    /// # Errors
    /// [`ClientError::Hung`] too.
    pub fn look(files: &ClusterFiles) -> Result<Client, ClientError> {
        Client::of(files, GLANCE).met(Unanswering::Leave)
    }

    /// The cluster's supervisor if one lives.
    pub fn find(files: &ClusterFiles) -> Option<Client> {
        let client = Client::of(files, GLANCE);
        client.connect().ok().map(|_| client)
    }

    fn of(files: &ClusterFiles, patience: Duration) -> Client {
        Client {
            files: files.clone(),
            patience,
        }
    }

    fn met(self, unanswering: Unanswering) -> Result<Client, ClientError> {
        let hung = match self.status() {
            Ok(_) => return Ok(self),
            // One that was killed takes connections until the kernel is done with it.
            Err(error) if error.is_hangup() => None,
            Err(ClientError::Hung { pid: Some(pid), .. })
                if unanswering == Unanswering::Replace =>
            {
                Some(pid)
            }
            Err(error) => return Err(error),
        };
        let cluster = || self.files.name().to_owned();
        let who = "starting the supervisor";
        let lock =
            Lock::take(&self.files.spawn_lock(), who).map_err(|source| ClientError::Lock {
                cluster: cluster(),
                source,
            })?;
        if !self.files.record().exists() {
            lock.remove();
            return Err(ClientError::NoCluster { cluster: cluster() });
        }
        match hung {
            Some(pid) if Lock::holder(&self.files.supervisor_lock()) == Some(pid) => {
                self.bury(pid)?;
            }
            // Another command had the lock before us, and may have seen to it.
            _ => match self.status() {
                Ok(_) => return Ok(self),
                Err(error) if error.is_hangup() => {}
                Err(error) => return Err(error),
            },
        }
        for patience in [REBINDING, DYING] {
            match Lock::take_within(&self.files.supervisor_lock(), who, patience) {
                Ok(lock) => {
                    drop(lock);
                    self.spawn()?;
                    return Ok(self);
                }
                Err(LockError::Held { .. }) => {}
                Err(source) => {
                    return Err(ClientError::Lock {
                        cluster: cluster(),
                        source,
                    });
                }
            }
            // It lives, and its socket was lost; by now it may have bound another.
            match self.status() {
                Ok(_) => return Ok(self),
                Err(error) if error.is_hangup() => {}
                Err(error) => return Err(error),
            }
        }
        let holder = Lock::holder(&self.files.supervisor_lock());
        let (Unanswering::Replace, Some(pid)) = (unanswering, holder) else {
            return Err(self.hung("its control socket is gone"));
        };
        self.bury(pid)?;
        self.spawn()?;
        Ok(self)
    }

    /// Starts a supervisor. The spawn lock is held.
    fn spawn(&self) -> Result<(), ClientError> {
        let cluster = || self.files.name().to_owned();
        // It may have been lost, as at a reboot of the host.
        folder::make_private(&self.files.sockets()).map_err(|source| ClientError::Folder {
            cluster: cluster(),
            source,
        })?;
        let listener =
            launch::listen(&self.files.control()).map_err(|source| ClientError::Listen {
                cluster: cluster(),
                source,
            })?;
        let log = self.files.supervisor_log();
        process::spawn_supervisor(self.files.name(), listener.into(), &log).map_err(|source| {
            ClientError::Spawn {
                cluster: cluster(),
                source,
            }
        })?;
        Ok(())
    }

    /// Ends whatever supervisor the cluster has, one that does not answer too. The spawn lock is
    /// held.
    pub fn end_any(files: &ClusterFiles) -> Result<(), ClientError> {
        let lock = files.supervisor_lock();
        if !lock.exists() {
            return Ok(());
        }
        match Lock::take_within(&lock, "ending the supervisor", DYING) {
            Ok(_) => Ok(()),
            Err(LockError::Held { .. }) => match Lock::holder(&lock) {
                Some(pid) => Client::of(files, GLANCE).bury(pid),
                None => Ok(()),
            },
            Err(source) => Err(ClientError::Lock {
                cluster: files.name().to_owned(),
                source,
            }),
        }
    }

    /// Kills the supervisor that has this pid, and returns when it is gone.
    fn bury(&self, pid: u32) -> Result<(), ClientError> {
        let lock = self.files.supervisor_lock();
        tracing::warn!("the supervisor, pid {pid}, does not answer; it is ended");
        process::end_supervisor(
            self.files.name(),
            pid,
            || Lock::holder(&lock) == Some(pid),
            DYING,
        )
        .map_err(|source| ClientError::Stuck {
            cluster: self.files.name().to_owned(),
            pid,
            source,
        })
    }

    fn connect(&self) -> Result<UnixStream, ClientError> {
        connect_within(&self.files.control(), self.patience).map_err(|source| {
            // So many wait for it already that the kernel takes no more.
            if source.kind() == io::ErrorKind::WouldBlock {
                return self.unanswering();
            }
            ClientError::Connect {
                cluster: self.files.name().to_owned(),
                source,
            }
        })
    }

    fn send(&self, request: &Request) -> Result<UnixStream, ClientError> {
        let mut stream = self.connect()?;
        let silent = |source| ClientError::Silent {
            cluster: self.files.name().to_owned(),
            source,
        };
        stream
            .set_write_timeout(Some(self.patience))
            .map_err(silent)?;
        stream
            .set_read_timeout(Some(self.patience))
            .map_err(silent)?;
        let mut line = serde_json::to_vec(request).map_err(|error| silent(error.into()))?;
        line.push(b'\n');
        stream.write_all(&line).map_err(silent)?;
        Ok(stream)
    }

    /// The one answer to a request that has one.
    fn answer(&self, request: &Request) -> Result<Answer, ClientError> {
        let mut lines = self.watching(self.send(request)?);
        let doubt = DOUBT.min(self.patience);
        if let Some(answer) = lines.answer(doubt)? {
            return Ok(answer);
        }
        // One that is stopped needs no more patience; one that is slow gets all of it.
        if !self.is_stopped()
            && let Some(answer) = lines.answer(self.patience.saturating_sub(doubt))?
        {
            return Ok(answer);
        }
        Err(self.unanswering())
    }

    fn is_stopped(&self) -> bool {
        Lock::holder(&self.files.supervisor_lock()).is_some_and(process::is_stopped)
    }

    fn unanswering(&self) -> ClientError {
        self.hung(if self.is_stopped() {
            "it is stopped, as by SIGSTOP"
        } else {
            "it lives, and says nothing"
        })
    }

    fn hung(&self, how: &'static str) -> ClientError {
        ClientError::Hung {
            cluster: self.files.name().to_owned(),
            pid: Lock::holder(&self.files.supervisor_lock()),
            how,
        }
    }

    fn watching(&self, stream: UnixStream) -> Lines {
        Lines {
            cluster: self.files.name().to_owned(),
            lines: BufReader::new(stream),
            line: Vec::new(),
            log: self.files.supervisor_log().display().to_string(),
        }
    }

    /// Asks for something that is done or refused at once.
    pub fn ask(&self, request: &Request) -> Result<(), ClientError> {
        match self.answer(request)? {
            Answer::Refused { why } => Err(ClientError::Refused { why }),
            Answer::Done
            | Answer::Handed
            | Answer::Status(_)
            | Answer::Notice(_)
            | Answer::Traffic { .. } => Ok(()),
        }
    }

    pub fn status(&self) -> Result<ClusterStatus, ClientError> {
        match self.answer(&Request::Status)? {
            Answer::Status(status) => Ok(status),
            Answer::Refused { why } => Err(ClientError::Refused { why }),
            Answer::Done | Answer::Handed | Answer::Notice(_) | Answer::Traffic { .. } => {
                Err(self.unanswering())
            }
        }
    }

    /// What went through the machines' ports.
    pub fn traffic(&self) -> Result<Vec<PortTraffic>, ClientError> {
        match self.answer(&Request::Traffic)? {
            Answer::Traffic { ports } => Ok(ports),
            Answer::Refused { why } => Err(ClientError::Refused { why }),
            Answer::Done | Answer::Handed | Answer::Notice(_) | Answer::Status(_) => {
                Err(self.unanswering())
            }
        }
    }

    /// The state of all machines, then every change.
    pub fn watch(&self) -> Result<Watch, ClientError> {
        Ok(Watch {
            client: self.clone(),
            lines: self.watching(self.send(&Request::Watch)?),
            fruitless: 0,
        })
    }

    /// A stream to a port of a machine.
    pub fn stream(&self, machine: &str, port: u16) -> Result<UnixStream, ClientError> {
        let request = Request::Connect {
            machine: machine.to_owned(),
            port,
        };
        self.become_stream(&request).map(|(stream, _)| stream)
    }

    /// The frames of a machine: a packet socket of its tap, or a stream of records.
    pub fn capture(&self, machine: &str) -> Result<Frames, ClientError> {
        let request = Request::Capture {
            machine: machine.to_owned(),
        };
        Ok(match self.become_stream(&request)? {
            (_, Some(socket)) => Frames::Tap(socket),
            (stream, None) => Frames::Records(stream),
        })
    }

    /// Asks for what becomes a stream, or comes with a descriptor.
    fn become_stream(
        &self,
        request: &Request,
    ) -> Result<(UnixStream, Option<OwnedFd>), ClientError> {
        let stream = self.send(request)?;
        let silent = |source| ClientError::Silent {
            cluster: self.files.name().to_owned(),
            source,
        };
        // The guest may take its time; the supervisor gives up first.
        stream
            .set_read_timeout(Some(ANSWER_DEADLINE * 2))
            .map_err(silent)?;
        // Byte by byte: what follows the line belongs to the stream.
        let mut line = Vec::new();
        let mut handed = None;
        while line.len() < LINE_LIMIT {
            match receive_byte(&stream, &mut handed).map_err(silent)? {
                None => return Err(self.gone()),
                Some(b'\n') => break,
                Some(byte) => line.push(byte),
            }
        }
        match self.parse(&line)? {
            Answer::Done => {
                stream.set_read_timeout(None).map_err(silent)?;
                stream.set_write_timeout(None).map_err(silent)?;
                Ok((stream, None))
            }
            Answer::Handed if handed.is_some() => Ok((stream, handed)),
            Answer::Refused { why } => Err(ClientError::Refused { why }),
            Answer::Handed | Answer::Status(_) | Answer::Notice(_) | Answer::Traffic { .. } => {
                Err(self.unanswering())
            }
        }
    }

    /// Ends the supervisor and waits until it is gone: it says so by closing the connection.
    pub fn end(&self) -> Result<(), ClientError> {
        match self.answer(&Request::Shutdown) {
            Err(ClientError::Gone { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(Answer::Refused { why }) => Err(ClientError::Refused { why }),
            Ok(
                Answer::Done
                | Answer::Handed
                | Answer::Status(_)
                | Answer::Notice(_)
                | Answer::Traffic { .. },
            ) => Err(self.unanswering()),
        }
    }

    fn parse(&self, line: &[u8]) -> Result<Answer, ClientError> {
        serde_json::from_slice(line).map_err(|source| ClientError::Nonsense {
            cluster: self.files.name().to_owned(),
            source,
        })
    }

    fn gone(&self) -> ClientError {
        ClientError::Gone {
            cluster: self.files.name().to_owned(),
            log: self.files.supervisor_log().display().to_string(),
        }
    }
}

/// Connects, or fails with [`io::ErrorKind::WouldBlock`] when nobody has taken the connection in
/// time: the kernel's queue of a supervisor that is stopped is full some day.
fn connect_within(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let fd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let patience = TimeVal::milliseconds(i64::try_from(patience.as_millis()).unwrap_or(i64::MAX));
    setsockopt(&fd, sockopt::SendTimeout, &patience)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd.into())
}

impl Watch {
    /// The next news, or [`News::Nothing`] at `deadline`.
    ///
    /// When the supervisor dies, the next one is asked, which begins with the state of all machines.
    pub fn next(&mut self, deadline: Instant) -> Result<News, ClientError> {
        loop {
            match self.lines.next(deadline) {
                Err(error) if error.is_hangup() && self.fruitless < FRUITLESS => {
                    self.fruitless += 1;
                    let again = Client::reach(&self.client.files)?;
                    self.lines = again.watching(again.send(&Request::Watch)?);
                }
                news => {
                    self.fruitless = 0;
                    return news;
                }
            }
        }
    }
}

impl Lines {
    fn next(&mut self, deadline: Instant) -> Result<News, ClientError> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.answer(left)? {
            None => Ok(News::Nothing),
            Some(Answer::Status(status)) => Ok(News::Status(status)),
            Some(Answer::Notice(notice)) => Ok(News::Notice(notice)),
            Some(Answer::Refused { why }) => Err(ClientError::Refused { why }),
            Some(Answer::Done | Answer::Handed | Answer::Traffic { .. }) => Ok(News::Nothing),
        }
    }

    /// The next line; `None` when `patience` ends before it does.
    fn answer(&mut self, patience: Duration) -> Result<Option<Answer>, ClientError> {
        let silent = |source| ClientError::Silent {
            cluster: self.cluster.clone(),
            source,
        };
        // Zero would mean to wait for ever.
        let patience = patience.max(Duration::from_millis(1));
        self.lines
            .get_ref()
            .set_read_timeout(Some(patience))
            .map_err(silent)?;
        loop {
            match self.lines.read_until(b'\n', &mut self.line) {
                Ok(_) if self.line.ends_with(b"\n") => break,
                Ok(0) => {
                    return Err(ClientError::Gone {
                        cluster: self.cluster.clone(),
                        log: self.log.clone(),
                    });
                }
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    return Ok(None);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(silent(source)),
            }
        }
        let line = std::mem::take(&mut self.line);
        serde_json::from_slice(&line)
            .map(Some)
            .map_err(|source| ClientError::Nonsense {
                cluster: self.cluster.clone(),
                source,
            })
    }
}
