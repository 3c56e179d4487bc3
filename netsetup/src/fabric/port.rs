//! One socket of the fabric: frames out of a byte stream, and a bounded queue of frames into it.
//!
//! A port holds memory only for what is under way: the start of a frame whose end has not come, and frames that the
//! other side has not yet taken. It must not wait: what does not fit is dropped and counted.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use super::copy::Watchers;
use crate::pcapng::Direction;

/// Length of the number in front of each frame.
const PREFIX: usize = 4;

/// The longest frame that QEMU can send (`NET_BUFSIZE`); a greater length means that the stream is out of step.
pub(super) const LONGEST: usize = 4096 + 65536;

/// Bytes that wait for a machine at most, besides those in the socket's own buffer and the end of the last frame. With
/// a quarter of it, one Linux guest's TCP that sends as fast as it can to another lost every eighth frame.
const QUEUE: usize = 256 * 1024;

/// The memory of a queue that is in use: a full one, and the frame that filled it. Only as much of it is touched as
/// there are frames.
const BUFFER: usize = QUEUE + PREFIX + LONGEST;

/// What went through a port since its attach. Bytes are those of the frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that came from the machine.
    pub frames_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Frames queued for the machine.
    pub frames_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Frames from the machine that the switch did not pass on.
    pub refused: u64,
    /// Frames for the machine that were dropped, because it did not read.
    pub dropped: u64,
}

/// A connected socket.
#[derive(Debug)]
pub(super) struct Port {
    stream: UnixStream,
    /// The start of a frame, length included, that is not yet here in whole.
    partial: Vec<u8>,
    pub(super) queue: Queue,
    pub(super) refused: u64,
    frames_in: u64,
    bytes_in: u64,
}

/// How a port ends: by its peer, or by an error.
pub(super) type End = Option<io::Error>;

impl Port {
    pub(super) fn new(stream: UnixStream) -> Port {
        Port {
            stream,
            partial: Vec::new(),
            queue: Queue::default(),
            refused: 0,
            frames_in: 0,
            bytes_in: 0,
        }
    }

    /// Reads once into `buffer`, behind what was left of the last time, and says how many bytes there are now.
    /// The buffer must hold more than the longest frame.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<Result<usize, End>> {
        let (head, space) = buffer.split_at_mut(self.partial.len());
        let mut space = ReadBuf::new(space);
        match Pin::new(&mut self.stream).poll_read(cx, &mut space) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(Some(error))),
            Poll::Ready(Ok(())) if space.filled().is_empty() => Poll::Ready(Err(None)),
            Poll::Ready(Ok(())) => {
                head.copy_from_slice(&self.partial);
                self.partial.clear();
                Poll::Ready(Ok(head.len() + space.filled().len()))
            }
        }
    }

    /// Takes the first whole frame off `bytes`. Where there is none, keeps what is there for the next read.
    pub(super) fn next_frame<'a>(
        &mut self,
        bytes: &mut &'a mut [u8],
    ) -> Result<Option<&'a mut [u8]>, End> {
        let length = match bytes.first_chunk::<PREFIX>() {
            Some(prefix) => usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX),
            None => 0,
        };
        if length > LONGEST {
            return Err(Some(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a frame of {length} bytes was announced, {LONGEST} is the most"),
            )));
        }
        let all = std::mem::take(bytes);
        if all.len() < PREFIX + length || all.len() < PREFIX {
            self.partial = all.to_vec();
            return Ok(None);
        }
        let (first, rest) = all.split_at_mut(PREFIX + length);
        *bytes = rest;
        self.frames_in += 1;
        self.bytes_in += length as u64;
        Ok(Some(&mut first[PREFIX..]))
    }

    /// Writes as much of the queue as the socket takes, and says whether that was anything.
    pub(super) fn flush(&mut self, cx: &mut Context<'_>, spare: &mut Vec<u8>) -> Result<bool, End> {
        let mut wrote = false;
        while let pending @ [_, ..] = self.queue.pending() {
            match Pin::new(&mut self.stream).poll_write(cx, pending) {
                Poll::Pending => return Ok(wrote),
                Poll::Ready(Err(error)) => return Err(Some(error)),
                Poll::Ready(Ok(count)) => self.queue.sent(count, spare),
            }
            wrote = true;
        }
        Ok(wrote)
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            frames_in: self.frames_in,
            bytes_in: self.bytes_in,
            frames_out: self.queue.frames,
            bytes_out: self.queue.bytes,
            refused: self.refused,
            dropped: self.queue.dropped,
        }
    }
}

/// Frames that wait to be written, each behind its length.
#[derive(Debug, Default)]
pub(super) struct Queue {
    buffer: Vec<u8>,
    /// How much of the buffer is written already.
    written: usize,
    /// Who wants copies of the frames, of those that go the other way too.
    pub(super) watchers: Watchers,
    frames: u64,
    bytes: u64,
    dropped: u64,
}

impl Queue {
    /// Whether one more frame is taken.
    pub(super) fn has_room(&self) -> bool {
        self.buffer.len() - self.written < QUEUE
    }

    /// Queues `frame`, or drops it when there is no room. An emptied queue starts with the `spare` buffer.
    pub(super) fn push(&mut self, frame: &[u8], spare: &mut Vec<u8>) {
        self.push_with(frame, 0, spare, |_| ());
    }

    /// Like [`Queue::push`], with a frame whose `head` is given and whose other `length` bytes are written in place
    /// by `fill`, which is called in any case.
    pub(super) fn push_with<R>(
        &mut self,
        head: &[u8],
        length: usize,
        spare: &mut Vec<u8>,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        if !self.has_room() {
            self.dropped += 1;
            return fill(&mut vec![0; length]);
        }
        if self.buffer.capacity() == 0 {
            self.buffer = std::mem::take(spare);
            self.buffer.reserve_exact(BUFFER);
        }
        let frame = head.len() + length;
        if self.buffer.len() + PREFIX + frame > self.buffer.capacity() {
            self.buffer.drain(..self.written);
            self.written = 0;
        }
        self.frames += 1;
        self.bytes += frame as u64;
        // No frame is longer than LONGEST, which fits.
        let prefix = u32::try_from(frame).unwrap_or(u32::MAX);
        self.buffer.extend(prefix.to_be_bytes());
        self.buffer.extend(head);
        let start = self.buffer.len();
        self.buffer.resize(start + length, 0);
        let filled = fill(&mut self.buffer[start..]);
        let whole = &self.buffer[start - head.len()..];
        self.watchers.copy(Direction::In, whole);
        filled
    }

    /// What waits to be written.
    fn pending(&self) -> &[u8] {
        &self.buffer[self.written..]
    }

    /// Forgets what was written. An empty queue holds no memory: its buffer becomes the spare one of all ports.
    fn sent(&mut self, count: usize, spare: &mut Vec<u8>) {
        self.written += count;
        if self.written == self.buffer.len() {
            self.written = 0;
            self.buffer.clear();
            let buffer = std::mem::take(&mut self.buffer);
            if spare.capacity() < buffer.capacity() {
                *spare = buffer;
            }
        }
    }

    /// Takes all that waits, as a peer that reads would.
    #[cfg(test)]
    pub(super) fn take(&mut self) -> Vec<u8> {
        let bytes = self.pending().to_vec();
        self.sent(bytes.len(), &mut Vec::new());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop, prop_assert, prop_assert_eq, proptest};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_queue_gives_back_whole_frames_in_order_and_stays_small(
            steps in prop::collection::vec((any::<bool>(), 0usize..70_000), 1..60),
        ) {
            let mut queue = Queue::default();
            let (mut taken, mut given) = (Vec::new(), Vec::new());
            let mut spare = Vec::new();
            for (number, (push, length)) in (0u8..).zip(steps) {
                if push {
                    let frame = vec![number; length.min(LONGEST)];
                    if queue.has_room() {
                        taken.extend(u32::try_from(frame.len()).unwrap().to_be_bytes());
                        taken.extend(&frame);
                    }
                    queue.push(&frame, &mut spare);
                } else {
                    let count = length.min(queue.pending().len());
                    given.extend(&queue.pending()[..count]);
                    queue.sent(count, &mut spare);
                }
                prop_assert!(queue.buffer.capacity() <= BUFFER);
            }
            given.extend(queue.take());
            prop_assert!(given == taken);
            prop_assert_eq!(queue.buffer.capacity(), 0);
        }
    }
}
