//! QEMU's monitor: commands with ids and deadlines, events as they come.
//!
//! The types are those of the `qapi` crate; the transport is our own, because
//! that crate's ends the connection on an event that it does not know. One task
//! for each connection reads, writes and keeps the books; [`Qmp`] and
//! [`EventStream`] talk to it by messages:
//!
//! ```text
//!  Qmp::execute ──request──▶ task ──bytes──▶ QEMU
//!       ▲                     │ ◀──lines───
//!       └──────reply line─────┤
//!                             └──events──▶ EventStream::next
//! ```
//!
//! The task always reads, for QEMU's memory grows with each reply that nobody
//! takes. So a peer that floods events cannot be slowed down: the queue keeps
//! the newest [`QUEUE_EVENTS`] events (at most [`QUEUE_BYTES`] of JSON),
//! gives up unknown ones before known ones, and says how many are missing by
//! [`QmpEvent::Lost`]; the owner then asks `query-status`.
//!
//! A command that nobody waits for any more is not sent. No more than
//! [`OUTSTANDING`] commands are left unanswered, so that a stopped QEMU does not
//! wake up to a heap of old heartbeats.
//!
//! The peer is hostile input: what it says ends the connection with a
//! [`QmpError`] that names what was wrong, and never costs more memory than one
//! line of [`MAX_LINE`] bytes and the queue. This module decides nothing about
//! machines. Descriptors (`getfd`) are not passed yet; they would go beside the
//! bytes of a request.

mod event;
mod line;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use qapi::ErrorClass;
use qapi::qmp::{QmpCommand, qmp_capabilities};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use self::event::Queue;
pub use self::event::{BlockIoError, QmpEvent};
use self::line::{LineReader, excerpt, text};

/// The longest line that is taken, in bytes. The longest that QEMU 10 sends is
/// the reply to `query-qmp-schema`, 236 kB.
pub const MAX_LINE: usize = 1024 * 1024;
/// Events that wait for the owner, at most.
pub const QUEUE_EVENTS: usize = 64;
/// Bytes of JSON of the events that wait for the owner, at most.
pub const QUEUE_BYTES: usize = 16 * 1024;
/// Commands without an answer, at most; further ones wait.
pub const OUTSTANDING: usize = 32;

/// Why QMP did not work. All but [`QmpError::Refused`], [`QmpError::Timeout`],
/// [`QmpError::Reply`] and [`QmpError::Encode`] end the connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QmpError {
    /// The peer accepted and said nothing, as a stopped QEMU does, or one that
    /// already serves another client.
    #[error("QEMU did not greet on its QMP socket in time")]
    NoGreeting,
    #[error("QEMU did not answer `{command}` in time")]
    Timeout { command: &'static str },
    /// QEMU understood and said no.
    #[error("QEMU refused `{command}`: {description}")]
    Refused {
        command: &'static str,
        class: ErrorClass,
        description: String,
    },
    #[error("the peer of the QMP socket greeted with `{line}`, which is not QMP")]
    NotQmp { line: String },
    #[error("QEMU closed the QMP connection")]
    Closed,
    #[error("QEMU closed the QMP connection in the middle of a line: `{line}`")]
    HalfLine { line: String },
    #[error("QEMU sent a QMP line of more than {MAX_LINE} bytes")]
    LineTooLong,
    #[error("QEMU sent a QMP line that is not UTF-8: `{line}`")]
    NotUtf8 { line: String },
    #[error("QEMU sent a QMP line that is not JSON: `{line}`")]
    NotJson {
        line: String,
        #[source]
        source: Arc<serde_json::Error>,
    },
    #[error("QEMU sent a QMP line that is neither a reply nor an event: `{line}`")]
    NotAMessage { line: String },
    #[error("QEMU answered `{command}` with what the command does not promise: `{line}`")]
    Reply {
        command: &'static str,
        line: String,
        #[source]
        source: Arc<serde_json::Error>,
    },
    #[error("cannot put `{command}` into JSON")]
    Encode {
        command: &'static str,
        #[source]
        source: Arc<serde_json::Error>,
    },
    #[error("cannot read from the QMP socket")]
    Read {
        #[source]
        source: Arc<io::Error>,
    },
    #[error("cannot write to the QMP socket")]
    Write {
        #[source]
        source: Arc<io::Error>,
    },
}

/// A connection to one QEMU. Clones share it; it ends with the last of them.
#[derive(Debug, Clone)]
pub struct Qmp {
    requests: mpsc::Sender<Request>,
    next_id: Arc<AtomicU64>,
    /// Never sent on: the task sees when the last of the clones is gone, also
    /// while it takes no requests.
    _wanted: Arc<oneshot::Sender<Infallible>>,
    ended: Arc<OnceLock<QmpError>>,
}

/// The events of one connection, in order.
#[derive(Debug)]
pub struct EventStream {
    events: mpsc::Receiver<QmpEvent>,
    ended: Arc<OnceLock<QmpError>>,
}

impl QmpError {
    /// Whether the peer hung up, as a dying QEMU does.
    pub fn is_hangup(&self) -> bool {
        match self {
            QmpError::Closed
            | QmpError::HalfLine { .. }
            | QmpError::Read { .. }
            | QmpError::Write { .. } => true,
            QmpError::NoGreeting
            | QmpError::Timeout { .. }
            | QmpError::Refused { .. }
            | QmpError::NotQmp { .. }
            | QmpError::LineTooLong
            | QmpError::NotUtf8 { .. }
            | QmpError::NotJson { .. }
            | QmpError::NotAMessage { .. }
            | QmpError::Reply { .. }
            | QmpError::Encode { .. } => false,
        }
    }
}

impl Qmp {
    /// Takes the greeting, negotiates the capabilities (none) and begins to
    /// listen. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// [`QmpError::NoGreeting`] at the deadline, and whatever can be wrong with
    /// the peer.
    pub async fn connect<S>(stream: S, deadline: Instant) -> Result<(Qmp, EventStream), QmpError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, writer) = tokio::io::split(stream);
        let mut lines = LineReader::new(reader);
        let greeting = match timeout_at(deadline, lines.next_line()).await {
            Ok(line) => line?,
            Err(_) => return Err(QmpError::NoGreeting),
        };
        let greeted = serde_json::from_str::<Greeting>(text(&greeting)?).is_ok_and(|it| it.qmp);
        if !greeted {
            return Err(QmpError::NotQmp {
                line: excerpt(&greeting),
            });
        }
        drop(greeting);

        let ended = Arc::new(OnceLock::new());
        let (requests, to_do) = mpsc::channel(4);
        let (to_owner, events) = mpsc::channel(1);
        let (wanted, unwanted) = oneshot::channel();
        let task = Task {
            lines,
            writer,
            outgoing: VecDeque::new(),
            waiting: HashMap::new(),
            queue: Queue::default(),
            requests: to_do,
            events: to_owner,
            unwanted,
        };
        tokio::spawn(task.run(ended.clone()));
        let qmp = Qmp {
            requests,
            next_id: Arc::new(AtomicU64::new(1)),
            _wanted: Arc::new(wanted),
            ended: ended.clone(),
        };
        qmp.execute(qmp_capabilities { enable: None }, deadline)
            .await?;
        Ok((qmp, EventStream { events, ended }))
    }

    /// Runs one command and gives its answer. Several may be under way. A
    /// dropped future leaves the connection whole: a command that was not sent
    /// yet never is, the answer to one that was is thrown away.
    ///
    /// # Errors
    /// [`QmpError::Refused`] when QEMU says no, [`QmpError::Timeout`] at the
    /// deadline (QEMU may then still carry the command out), else the reason
    /// why the connection ended.
    pub async fn execute<C: QmpCommand>(
        &self,
        command: C,
        deadline: Instant,
    ) -> Result<C::Ok, QmpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut bytes =
            serde_json::to_vec(&qapi::Execute::with_id(command, id)).map_err(|error| {
                QmpError::Encode {
                    command: C::NAME,
                    source: Arc::new(error),
                }
            })?;
        bytes.push(b'\n');
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            self.requests
                .send(Request { id, bytes, reply })
                .await
                .ok()?;
            answer.await.ok()
        };
        match timeout_at(deadline, exchange).await {
            Err(_) => Err(QmpError::Timeout { command: C::NAME }),
            Ok(None) => Err(end_reason(&self.ended)),
            Ok(Some(answer)) => decode::<C>(&answer?),
        }
    }
}

impl EventStream {
    /// Waits for the next event. May be dropped and called again; loses none.
    ///
    /// # Errors
    /// The reason why the connection ended, after all events that came before,
    /// and the same again on each further call.
    pub async fn next(&mut self) -> Result<QmpEvent, QmpError> {
        self.events
            .recv()
            .await
            .ok_or_else(|| end_reason(&self.ended))
    }
}

fn end_reason(ended: &OnceLock<QmpError>) -> QmpError {
    ended.get().cloned().unwrap_or(QmpError::Closed)
}

fn decode<C: QmpCommand>(line: &[u8]) -> Result<C::Ok, QmpError> {
    let reply = serde_json::from_slice::<Reply<C::Ok>>(line).map_err(|error| QmpError::Reply {
        command: C::NAME,
        line: excerpt(line),
        source: Arc::new(error),
    })?;
    match (reply.value, reply.error) {
        (_, Some(refusal)) => Err(QmpError::Refused {
            command: C::NAME,
            class: serde_json::from_value(refusal.class.into()).unwrap_or(ErrorClass::GenericError),
            description: excerpt(refusal.desc.as_bytes()),
        }),
        (Some(value), None) => Ok(value),
        (None, None) => Err(QmpError::NotAMessage {
            line: excerpt(line),
        }),
    }
}

/// A command on its way: the line to send, and who waits for the line that
/// answers it.
#[derive(Debug)]
struct Request {
    id: u64,
    bytes: Vec<u8>,
    reply: Answer,
}

type Answer = oneshot::Sender<Result<Vec<u8>, QmpError>>;

/// Owns the socket and serves it until it ends or nobody wants it any more.
struct Task<S> {
    lines: LineReader<ReadHalf<S>>,
    writer: WriteHalf<S>,
    /// What is left of the request that is being written.
    outgoing: VecDeque<u8>,
    waiting: HashMap<u64, Answer>,
    queue: Queue,
    requests: mpsc::Receiver<Request>,
    events: mpsc::Sender<QmpEvent>,
    unwanted: oneshot::Receiver<Infallible>,
}

impl<S: AsyncRead + AsyncWrite> Task<S> {
    async fn run(mut self, ended: Arc<OnceLock<QmpError>>) {
        let Err(reason) = self.serve().await else {
            return;
        };
        debug!(%reason, "QMP connection ended");
        if ended.set(reason.clone()).is_err() {
            return;
        }
        for (_, answer) in self.waiting.drain() {
            drop(answer.send(Err(reason.clone())));
        }
        // The owner still gets the events that came before the end.
        while !self.queue.is_empty() {
            tokio::select! {
                _ = &mut self.unwanted => return,
                Some(request) = self.requests.recv() => {
                    drop(request.reply.send(Err(reason.clone())));
                }
                place = self.events.reserve() => match (place, self.queue.pop()) {
                    (Ok(place), Some(event)) => place.send(event),
                    _ => return,
                },
            }
        }
    }

    /// Returns `Ok` when the last [`Qmp`] is gone, else why the peer cannot be
    /// served any more.
    async fn serve(&mut self) -> Result<(), QmpError> {
        let mut listened_to = true;
        // A peer that died may have left events behind: read on to the end.
        let mut unwritable = None;
        loop {
            let Task {
                lines,
                writer,
                outgoing,
                waiting,
                queue,
                requests,
                events,
                unwanted,
            } = self;
            tokio::select! {
                _ = &mut *unwanted => return Ok(()),
                line = lines.next_line() => {
                    let line = line?;
                    sort_out(line, waiting, listened_to.then_some(queue))?;
                }
                written = writer.write(outgoing.as_slices().0), if !outgoing.is_empty() => {
                    match written {
                        Ok(count) if count > 0 => drop(outgoing.drain(..count)),
                        Ok(_) => unwritable = Some(QmpError::Closed),
                        Err(error) => unwritable = Some(QmpError::Write { source: Arc::new(error) }),
                    }
                    if unwritable.is_some() {
                        outgoing.clear();
                    }
                }
                Some(request) = requests.recv(), if outgoing.is_empty() && waiting.len() < OUTSTANDING => {
                    if let Some(error) = &unwritable {
                        drop(request.reply.send(Err(QmpError::clone(error))));
                    } else if !request.reply.is_closed() {
                        *outgoing = request.bytes.into();
                        waiting.insert(request.id, request.reply);
                    }
                }
                place = events.reserve(), if listened_to && !queue.is_empty() => {
                    match (place, queue.pop()) {
                        (Ok(place), Some(event)) => place.send(event),
                        _ => listened_to = false,
                    }
                }
            }
        }
    }
}

/// An answer goes to who asked, an event to the queue if there is one.
fn sort_out(
    line: Vec<u8>,
    waiting: &mut HashMap<u64, Answer>,
    queue: Option<&mut Queue>,
) -> Result<(), QmpError> {
    let head: Head = serde_json::from_str(text(&line)?).map_err(|error| QmpError::NotJson {
        line: excerpt(&line),
        source: Arc::new(error),
    })?;
    if head.event {
        if let Some(queue) = queue {
            queue.push(&line);
        }
    } else if head.value || head.error {
        match head.id {
            Some(Id::Ours(id)) => {
                if let Some(answer) = waiting.remove(&id) {
                    drop(answer.send(Ok(line)));
                }
            }
            Some(Id::Foreign(_)) | None => debug!(line = excerpt(&line), "QMP reply to nobody"),
        }
    } else {
        return Err(QmpError::NotAMessage {
            line: excerpt(&line),
        });
    }
    Ok(())
}

#[derive(Deserialize)]
struct Greeting {
    #[serde(rename = "QMP", default, deserialize_with = "is_there")]
    qmp: bool,
}

/// What a line is, read without building what it holds.
#[derive(Deserialize)]
struct Head {
    #[serde(default, deserialize_with = "is_there")]
    event: bool,
    #[serde(rename = "return", default, deserialize_with = "is_there")]
    value: bool,
    #[serde(default, deserialize_with = "is_there")]
    error: bool,
    id: Option<Id>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Ours(u64),
    Foreign(IgnoredAny),
}

#[derive(Deserialize)]
struct Reply<T> {
    #[serde(rename = "return")]
    value: Option<T>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

fn is_there<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(value).map(|_| true)
}
