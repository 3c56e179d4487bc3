//! The end of a download that speaks with the server: receives, keeps, hashes, and begins again.

use std::io::{self, BufRead, Read};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::http::{Answer, Client, File, HttpError};
use super::partial::Partial;
use super::{FetchError, Meter, Progress};
use crate::error::in_one_line;
use crate::image::{digest, trust};

/// Bytes that go from thread to thread at once.
const BLOCK: usize = 256 << 10;
/// So often in a row a connection may be lost.
const TRIES: u32 = 5;
/// Who receives so much between two losses begins to count anew.
const HEADWAY: u64 = 16 << 20;
/// Before the first new try; each further one waits twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// What is to be received, and by what means.
#[derive(Debug)]
pub(super) struct Job<'a> {
    pub(super) client: &'a Client,
    pub(super) url: &'a str,
    pub(super) check: Option<trust::Check>,
    /// Whether a digest or signature will tell what was put together of two files.
    pub(super) is_judged: bool,
    pub(super) partial: &'a mut Partial,
    pub(super) meter: &'a Meter,
    pub(super) tell: Sender<Progress>,
    /// Ends when nobody wants the rest.
    pub(super) stop: Receiver<()>,
}

/// What was received.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) sha256: String,
    pub(super) size: u64,
    pub(super) check: Option<trust::Check>,
    pub(super) resumed: bool,
}

/// Why there is no more.
#[derive(Debug)]
pub(super) enum Ended {
    /// Nobody wants it.
    Stopped,
    Failed(FetchError),
}

struct Receiving<'a> {
    job: Job<'a>,
    hasher: Sha256,
    out: &'a SyncSender<Vec<u8>>,
}

/// Receives all of it, over as many connections as that takes.
pub(super) fn run(job: Job<'_>, out: &SyncSender<Vec<u8>>) -> Result<Raw, Ended> {
    let mut receiving = Receiving {
        job,
        hasher: Sha256::new(),
        out,
    };
    let resumed = receiving.receive()?;
    Ok(Raw {
        sha256: digest::hex(&receiving.hasher.finalize()),
        size: receiving.job.partial.length(),
        check: receiving.job.check,
        resumed,
    })
}

impl Receiving<'_> {
    /// Whether a former download was gone on with.
    fn receive(&mut self) -> Result<bool, Ended> {
        let mut first = true;
        let mut resumed = false;
        let mut lost = 0;
        if self.is_blind() {
            self.job
                .partial
                .restart(None, None)
                .map_err(|source| Ended::Failed(self.unwritten(source)))?;
        }
        loop {
            let before = self.job.partial.length();
            let outcome = if self.job.partial.is_whole() {
                if first {
                    resumed = true;
                    self.replay()?;
                }
                Ok(())
            } else {
                self.connect(&mut first, &mut resumed)
            };
            let why = match outcome {
                Ok(()) => return Ok(resumed),
                Err(Loss::Ended(ended)) => return Err(ended),
                // A server that was never reached.
                Err(Loss::Http(source)) if lost + 1 >= TRIES && before == 0 => {
                    return Err(Ended::Failed(FetchError::Http { source }));
                }
                Err(Loss::Http(source)) => io::Error::other(source),
                Err(Loss::Cut(source)) => source,
            };
            if self.job.partial.length() >= before + HEADWAY {
                lost = 0;
            }
            if self.is_blind() {
                return Err(Ended::Failed(FetchError::Unknown {
                    url: self.job.url.to_owned(),
                    at: self.job.partial.length(),
                    source: why,
                }));
            }
            lost += 1;
            let is_over = self.job.client.left().is_some_and(|left| left.is_zero());
            if lost >= TRIES || is_over {
                return Err(Ended::Failed(FetchError::Cut {
                    url: self.job.url.to_owned(),
                    at: self.job.partial.length(),
                    total: self.job.partial.total(),
                    tries: lost,
                    source: why,
                }));
            }
            // Where nobody listens any more, that is seen below.
            let _ = self.job.tell.send(Progress::Retry {
                why: in_one_line(&why),
            });
            let pause = FIRST_PAUSE * 2_u32.pow(lost - 1);
            let pause = self.job.client.left().map_or(pause, |left| left.min(pause));
            if self.job.stop.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return Err(Ended::Stopped);
            }
        }
    }

    /// Whether nothing could tell that what comes now is of another file than what is here.
    fn is_blind(&self) -> bool {
        let Job {
            is_judged, partial, ..
        } = &self.job;
        !is_judged && partial.length() > 0 && partial.validator().is_none()
    }

    /// One connection, to its end.
    fn connect(&mut self, first: &mut bool, resumed: &mut bool) -> Result<(), Loss> {
        let Job { client, url, .. } = self.job;
        let at = self.job.partial.length();
        let validator = self.job.partial.validator().map(str::to_owned);
        let answer = match client.open(url, at, validator.as_deref()) {
            Err(source) if source.is_passing() => return Err(Loss::Http(source)),
            Err(source) => return Err(failed(FetchError::Http { source })),
            Ok(answer) => answer,
        };
        let again = std::mem::replace(first, false);
        let told = self.job.partial.total();
        let has_total = |file: &File| told.is_none() || file.total.is_none() || told == file.total;
        match answer {
            Answer::Missing => Err(failed(FetchError::Missing {
                url: url.to_owned(),
            })),
            Answer::Rest(file) if has_total(&file) => {
                if again {
                    *resumed = true;
                    // Where nobody listens any more, that is seen below.
                    let _ = self.job.tell.send(Progress::Resumed { at });
                    self.replay()?;
                }
                self.body(file, 0)
            }
            Answer::Whole(file) if again => {
                self.write(|partial| partial.restart(file.validator.clone(), file.total))?;
                self.body(file, 0)
            }
            // A server that knows no ranges sends all of it again.
            Answer::Whole(file) if file.validator == validator && has_total(&file) => {
                self.body(file, at)
            }
            Answer::NoRest => match self.job.partial.total() {
                Some(told) if told != at => Err(failed(FetchError::Length {
                    url: url.to_owned(),
                    told,
                    sent: at,
                })),
                _ if again => {
                    *resumed = true;
                    Ok(self.replay()?)
                }
                _ => Ok(()),
            },
            Answer::Whole(_) | Answer::Rest(_) => Err(failed(FetchError::Changed {
                url: url.to_owned(),
            })),
        }
    }

    /// Receives a body, of which the first `known` bytes are here already.
    fn body(&mut self, mut file: File, mut known: u64) -> Result<(), Loss> {
        let total = self.job.partial.total().or(file.total);
        self.job
            .meter
            .total
            .store(total.unwrap_or(0), Ordering::Relaxed);
        loop {
            let mut block = vec![0; BLOCK];
            let read = fill(&mut file.body, &mut block);
            let (count, end) = match &read {
                Ok(count) => (*count, *count < BLOCK),
                Err((count, _)) => (*count, true),
            };
            block.truncate(count);
            let skipped = block
                .len()
                .min(usize::try_from(known).unwrap_or(usize::MAX));
            known -= skipped as u64;
            block.drain(..skipped);
            if !block.is_empty() {
                self.write(|partial| partial.append(&block))?;
                self.pass_on(block)?;
            }
            if let Err((_, error)) = read {
                return Err(Loss::Cut(error));
            }
            if end {
                return match total {
                    Some(total) if self.job.partial.length() < total => {
                        Err(Loss::Cut(io::ErrorKind::UnexpectedEof.into()))
                    }
                    _ => Ok(()),
                };
            }
        }
    }

    /// What former downloads received goes the same way as what comes now.
    fn replay(&mut self) -> Result<(), Ended> {
        self.job
            .meter
            .total
            .store(self.job.partial.total().unwrap_or(0), Ordering::Relaxed);
        let Receiving { job, hasher, out } = self;
        let mut wanted = true;
        let done = job.partial.replay(|bytes| {
            hasher.update(bytes);
            if let Some(check) = &mut job.check {
                check.update(bytes);
            }
            job.meter
                .done
                .fetch_add(bytes.len() as u64, Ordering::Relaxed);
            wanted = out.send(bytes.to_vec()).is_ok();
            wanted
        });
        let path = job.partial.path().to_owned();
        done.map_err(|source| Ended::Failed(FetchError::Write { path, source }))?;
        if wanted { Ok(()) } else { Err(Ended::Stopped) }
    }

    fn pass_on(&mut self, block: Vec<u8>) -> Result<(), Ended> {
        self.hasher.update(&block);
        if let Some(check) = &mut self.job.check {
            check.update(&block);
        }
        self.job
            .meter
            .done
            .fetch_add(block.len() as u64, Ordering::Relaxed);
        self.out.send(block).map_err(|_| Ended::Stopped)
    }

    fn write(&mut self, act: impl FnOnce(&mut Partial) -> io::Result<()>) -> Result<(), Loss> {
        act(self.job.partial).map_err(|source| failed(self.unwritten(source)))
    }

    fn unwritten(&self, source: io::Error) -> FetchError {
        FetchError::Write {
            path: self.job.partial.path().to_owned(),
            source,
        }
    }
}

/// Why a connection gave no more.
enum Loss {
    /// For good.
    Ended(Ended),
    Http(HttpError),
    Cut(io::Error),
}

impl From<Ended> for Loss {
    fn from(ended: Ended) -> Loss {
        Loss::Ended(ended)
    }
}

fn failed(error: FetchError) -> Loss {
    Loss::Ended(Ended::Failed(error))
}

/// Reads until the block is full or nothing more comes; with an error, says how much came before it.
fn fill(body: &mut impl Read, block: &mut [u8]) -> Result<usize, (usize, io::Error)> {
    let mut count = 0;
    while count < block.len() {
        match body.read(&mut block[count..]) {
            Ok(0) => break,
            Ok(read) => count += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((count, error)),
        }
    }
    Ok(count)
}

/// The blocks that come over a channel, as one file.
#[derive(Debug)]
pub(super) struct Chunks {
    blocks: Receiver<Vec<u8>>,
    block: Vec<u8>,
    at: usize,
}

impl Chunks {
    pub(super) fn new(blocks: Receiver<Vec<u8>>) -> Chunks {
        Chunks {
            blocks,
            block: Vec::new(),
            at: 0,
        }
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.block.len() {
            let Ok(block) = self.blocks.recv() else {
                return Ok(&[]);
            };
            self.block = block;
            self.at = 0;
        }
        Ok(&self.block[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}
