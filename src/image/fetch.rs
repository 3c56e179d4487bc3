//! From a server to the cache: received, resumed, unpacked and hashed on the way.
//!
//! ```text
//! server ─▶ receive ──────────────▶ unpack ─────────▶ write
//!           SHA-256, signature      xz, gzip, …       SHA-256, into a file without a name
//!           └▶ partial file
//! ```
//! Three threads, with little memory between them. What is received is also kept as it came, so that
//! a download that was cut goes on where it ended. The unpacked file gets its name in the cache only
//! when digest, signature and header have been found good; this module itself names nothing.

pub mod http;
pub mod partial;
mod receive;
mod unpack;
mod write;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel, sync_channel};
use std::thread;
use std::time::Duration;

use crate::cluster::remote::Packing;
use crate::folder::Incoming;
use crate::image::trust;
use http::{Client, HttpError};
use partial::Partial;
use receive::{Chunks, Ended, Job};
pub use unpack::UnpackError;
use write::Unpacked;

/// Blocks that wait between two threads.
const BLOCKS: usize = 8;
/// How often the caller hears of the progress while nothing else happens.
const TICK: Duration = Duration::from_millis(200);

/// Why a file was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("cannot ask the server")]
    Http {
        #[source]
        source: HttpError,
    },
    #[error("the server has no `{url}`")]
    Missing { url: String },
    #[error("the download of `{url}` ended at {at} bytes{}, {}", of(.total), times(*tries))]
    Cut {
        url: String,
        at: u64,
        total: Option<u64>,
        tries: u32,
        #[source]
        source: io::Error,
    },
    #[error(
        "the connection was lost after {at} bytes of `{url}`, and nothing tells whether the rest is of the same file"
    )]
    Unknown {
        url: String,
        at: u64,
        #[source]
        source: io::Error,
    },
    #[error("`{url}` became another file on the server while it was downloaded")]
    Changed { url: String },
    #[error("the server says that `{url}` is of {told} bytes, and it is of {sent}")]
    Length { url: String, told: u64, sent: u64 },
    #[error("cannot write `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{url}` cannot be unpacked")]
    Unpack {
        url: String,
        #[source]
        source: UnpackError,
    },
    #[error("a part of kiln that fetches has failed")]
    Thread,
}

fn times(tries: u32) -> String {
    match tries {
        1 => "and there is no time left".to_owned(),
        _ => format!("{tries} times in a row"),
    }
}

fn of(total: &Option<u64>) -> String {
    total.map_or(String::new(), |total| format!(" of {total}"))
}

impl FetchError {
    /// Whether what was received is worthless, so that nothing can go on from it.
    pub fn spoils(&self) -> bool {
        match self {
            FetchError::Changed { .. }
            | FetchError::Unknown { .. }
            | FetchError::Length { .. }
            | FetchError::Unpack { .. }
            | FetchError::Missing { .. } => true,
            FetchError::Http { .. }
            | FetchError::Cut { .. }
            | FetchError::Write { .. }
            | FetchError::Thread => false,
        }
    }
}

/// How a download comes along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Bytes received, with those of former times, and in all where the server has said it.
    Bytes { done: u64, total: Option<u64> },
    /// It goes on where a former download ended.
    Resumed { at: u64 },
    /// The connection was lost; it is tried again.
    Retry { why: String },
}

/// What is to be received.
#[derive(Debug)]
pub struct Wanted {
    /// Where it is asked for: a mirror's address, perhaps.
    pub url: String,
    pub packing: Packing,
    pub check: Option<trust::Check>,
    /// Whether the caller knows a digest of it, by which it will be judged.
    pub has_digest: bool,
}

/// What came of it, besides the file.
#[derive(Debug)]
pub struct Received {
    /// Of what was sent, as lower-case hexadecimal.
    pub sha256: String,
    /// Of what was sent, in bytes.
    pub size: u64,
    /// The signature's check, all content gone in.
    pub check: Option<trust::Check>,
    pub unpacked_sha256: String,
    /// In bytes.
    pub unpacked_size: u64,
    /// Whether a former download was gone on with.
    pub resumed: bool,
}

/// Numbers that one thread writes and another shows.
#[derive(Debug, Default)]
struct Meter {
    done: AtomicU64,
    /// 0 while it is not known.
    total: AtomicU64,
}

impl Meter {
    fn progress(&self) -> Progress {
        let total = self.total.load(Ordering::Relaxed);
        Progress::Bytes {
            done: self.done.load(Ordering::Relaxed),
            total: (total > 0).then_some(total),
        }
    }
}

/// Receives a file into `into`, unpacked.
///
/// When this fails, `partial` holds what was received; whether that is of use, [`FetchError::spoils`]
/// tells.
pub fn fetch(
    client: &Client,
    wanted: Wanted,
    partial: &mut Partial,
    into: &mut Incoming,
    progress: &mut dyn FnMut(Progress),
) -> Result<Received, FetchError> {
    let url = wanted.url.clone();
    let meter = Meter::default();
    let (block_sender, blocks) = sync_channel(BLOCKS);
    let (unpacked_sender, unpacked) = sync_channel::<Vec<u8>>(BLOCKS);
    let (tell, told) = channel();
    // Dropped when the rest has ended: whoever waits to try again need not.
    let (going, stop) = channel::<()>();
    let mut file = Unpacked::new(into);
    thread::scope(|scope| {
        let job = Job {
            client,
            url: &wanted.url,
            is_judged: wanted.has_digest || wanted.check.is_some(),
            check: wanted.check,
            partial,
            meter: &meter,
            tell,
            stop,
        };
        let receiver = scope.spawn(move || receive::run(job, &block_sender));
        let unpacker = scope.spawn(move || {
            let mut sink = |block| unpacked_sender.send(block).is_ok();
            unpack::unpack(wanted.packing, &mut Chunks::new(blocks), &mut sink)
        });
        let written = write_all(&mut file, &unpacked, &told, &meter, progress);
        // Where writing failed, this ends the two others.
        drop(unpacked);
        drop(going);
        let unpacked = unpacker.join().map_err(|_| FetchError::Thread)?;
        let received = receiver.join().map_err(|_| FetchError::Thread)?;
        written?;
        // The first in the row of three that failed is why the others did.
        let received = match received {
            Err(Ended::Failed(error)) => return Err(error),
            Err(Ended::Stopped) => None,
            Ok(received) => Some(received),
        };
        unpacked.map_err(|source| FetchError::Unpack { url, source })?;
        let received = received.ok_or(FetchError::Thread)?;
        let (unpacked_sha256, unpacked_size) = file.finish()?;
        Ok(Received {
            sha256: received.sha256,
            size: received.size,
            check: received.check,
            resumed: received.resumed,
            unpacked_sha256,
            unpacked_size,
        })
    })
}

/// Writes what comes until nothing more does, and tells how it goes.
fn write_all(
    file: &mut Unpacked<'_>,
    unpacked: &Receiver<Vec<u8>>,
    told: &Receiver<Progress>,
    meter: &Meter,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), FetchError> {
    loop {
        let block = unpacked.recv_timeout(TICK);
        told.try_iter().for_each(&mut *progress);
        progress(meter.progress());
        match block {
            Ok(block) => file.write(&block)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}
