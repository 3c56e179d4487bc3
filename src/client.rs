//! The command's side of the control socket: find the supervisor, or start one, and ask it.
//!
//! Plain blocking sockets with deadlines: a command waits for one thing at a time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::folder::{self, FolderError};
use crate::state::layout::ClusterFiles;
use crate::state::lock::{Lock, LockError};
use crate::supervisor::launch::{self, LaunchError};
use crate::supervisor::process::{self, SpawnError};
use crate::supervisor::protocol::{Answer, ClusterStatus, LINE_LIMIT, Notice, Request};

/// How long a living supervisor may take to answer; it answers in milliseconds.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

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
            | ClientError::Nonsense { .. }
            | ClientError::Refused { .. } => false,
        }
    }
}

/// A supervisor that can be asked.
#[derive(Debug, Clone)]
pub struct Client {
    files: ClusterFiles,
}

/// What comes over a watching connection.
#[derive(Debug)]
pub enum News {
    Status(ClusterStatus),
    Notice(Box<Notice>),
    /// Nothing came before the deadline.
    Nothing,
}

/// A connection that tells every change.
#[derive(Debug)]
pub struct Watch {
    cluster: String,
    lines: BufReader<UnixStream>,
    line: Vec<u8>,
    log: String,
}

impl Client {
    /// The cluster's supervisor; one is started where none lives, and adopts the machines.
    ///
    /// # Errors
    /// [`ClientError::NoCluster`] when a `down` has removed the cluster meanwhile.
    pub fn reach(files: &ClusterFiles) -> Result<Client, ClientError> {
        let client = Client {
            files: files.clone(),
        };
        let cluster = || files.name().to_owned();
        let lock = Lock::take(&files.spawn_lock()).map_err(|source| ClientError::Lock {
            cluster: cluster(),
            source,
        })?;
        if !files.record().exists() {
            lock.remove();
            return Err(ClientError::NoCluster { cluster: cluster() });
        }
        match client.status() {
            // One that was killed takes connections until the kernel is done with it.
            Err(error) if error.is_hangup() => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(client),
        }
        // After a reboot of the host the folder for sockets is gone.
        folder::make_private(&files.sockets()).map_err(|source| ClientError::Folder {
            cluster: cluster(),
            source,
        })?;
        let listener = launch::listen(&files.control()).map_err(|source| ClientError::Listen {
            cluster: cluster(),
            source,
        })?;
        process::spawn_supervisor(files.name(), listener.into(), &files.supervisor_log()).map_err(
            |source| ClientError::Spawn {
                cluster: cluster(),
                source,
            },
        )?;
        Ok(client)
    }

    /// The cluster's supervisor if one lives.
    pub fn find(files: &ClusterFiles) -> Option<Client> {
        let client = Client {
            files: files.clone(),
        };
        client.connect().ok().map(|_| client)
    }

    fn connect(&self) -> Result<UnixStream, ClientError> {
        UnixStream::connect(self.files.control()).map_err(|source| ClientError::Connect {
            cluster: self.files.name().to_owned(),
            source,
        })
    }

    fn send(&self, request: &Request) -> Result<UnixStream, ClientError> {
        let mut stream = self.connect()?;
        let silent = |source| ClientError::Silent {
            cluster: self.files.name().to_owned(),
            source,
        };
        stream
            .set_write_timeout(Some(ANSWER_DEADLINE))
            .map_err(silent)?;
        stream
            .set_read_timeout(Some(ANSWER_DEADLINE))
            .map_err(silent)?;
        let mut line = serde_json::to_vec(request).map_err(|error| silent(error.into()))?;
        line.push(b'\n');
        stream.write_all(&line).map_err(silent)?;
        Ok(stream)
    }

    fn watching(&self, stream: UnixStream) -> Watch {
        Watch {
            cluster: self.files.name().to_owned(),
            lines: BufReader::new(stream),
            line: Vec::new(),
            log: self.files.supervisor_log().display().to_string(),
        }
    }

    /// Asks for something that is done or refused at once.
    pub fn ask(&self, request: &Request) -> Result<(), ClientError> {
        match self.watching(self.send(request)?).answer(ANSWER_DEADLINE)? {
            Some(Answer::Refused { why }) => Err(ClientError::Refused { why }),
            Some(Answer::Done | Answer::Status(_) | Answer::Notice(_)) => Ok(()),
            None => Err(self.silent()),
        }
    }

    pub fn status(&self) -> Result<ClusterStatus, ClientError> {
        let stream = self.send(&Request::Status)?;
        match self.watching(stream).answer(ANSWER_DEADLINE)? {
            Some(Answer::Status(status)) => Ok(status),
            Some(Answer::Refused { why }) => Err(ClientError::Refused { why }),
            Some(Answer::Done | Answer::Notice(_)) | None => Err(self.silent()),
        }
    }

    /// The state of all machines, then every change.
    pub fn watch(&self) -> Result<Watch, ClientError> {
        Ok(self.watching(self.send(&Request::Watch)?))
    }

    /// A stream to a port of a machine.
    pub fn stream(&self, machine: &str, port: u16) -> Result<UnixStream, ClientError> {
        let mut stream = self.send(&Request::Connect {
            machine: machine.to_owned(),
            port,
        })?;
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
        let mut byte = [0];
        while line.len() < LINE_LIMIT {
            match stream.read(&mut byte).map_err(silent)? {
                0 => return Err(self.gone()),
                _ if byte[0] == b'\n' => break,
                _ => line.push(byte[0]),
            }
        }
        match self.parse(&line)? {
            Answer::Done => {
                stream.set_read_timeout(None).map_err(silent)?;
                stream.set_write_timeout(None).map_err(silent)?;
                Ok(stream)
            }
            Answer::Refused { why } => Err(ClientError::Refused { why }),
            Answer::Status(_) | Answer::Notice(_) => Err(self.silent()),
        }
    }

    /// Ends the supervisor and waits until it is gone: it says so by closing the connection.
    pub fn end(&self) -> Result<(), ClientError> {
        let stream = self.send(&Request::Shutdown)?;
        match self.watching(stream).answer(ANSWER_DEADLINE) {
            Err(ClientError::Gone { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(Some(Answer::Refused { why })) => Err(ClientError::Refused { why }),
            Ok(Some(Answer::Done | Answer::Status(_) | Answer::Notice(_)) | None) => {
                Err(self.silent())
            }
        }
    }

    fn parse(&self, line: &[u8]) -> Result<Answer, ClientError> {
        serde_json::from_slice(line).map_err(|source| ClientError::Nonsense {
            cluster: self.files.name().to_owned(),
            source,
        })
    }

    fn silent(&self) -> ClientError {
        ClientError::Silent {
            cluster: self.files.name().to_owned(),
            source: io::ErrorKind::TimedOut.into(),
        }
    }

    fn gone(&self) -> ClientError {
        ClientError::Gone {
            cluster: self.files.name().to_owned(),
            log: self.files.supervisor_log().display().to_string(),
        }
    }
}

impl Watch {
    /// The next news, or [`News::Nothing`] at `deadline`.
    pub fn next(&mut self, deadline: Instant) -> Result<News, ClientError> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.answer(left)? {
            None => Ok(News::Nothing),
            Some(Answer::Status(status)) => Ok(News::Status(status)),
            Some(Answer::Notice(notice)) => Ok(News::Notice(notice)),
            Some(Answer::Refused { why }) => Err(ClientError::Refused { why }),
            Some(Answer::Done) => Ok(News::Nothing),
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
