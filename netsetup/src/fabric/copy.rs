//! Copies of frames for whoever captures them: bounded, and never waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::pcapng::Direction;

/// Frames that wait for a receiver, at most.
const FRAMES: usize = 4096;
/// Their bytes, at most.
const BYTES: u64 = 4 * 1024 * 1024;

/// A frame that went through a port.
#[derive(Debug)]
pub struct Copied {
    /// When.
    pub time: SystemTime,
    /// Which way.
    pub direction: Direction,
    /// All of it.
    pub frame: Vec<u8>,
}

/// The receiving end.
#[derive(Debug)]
pub struct Copies {
    frames: mpsc::Receiver<Copied>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Bytes that wait.
    waiting: AtomicU64,
    dropped: AtomicU64,
}

impl Copies {
    /// The next one; `None` when there will be no more.
    pub async fn next(&mut self) -> Option<Copied> {
        let copied = self.frames.recv().await?;
        let length = copied.frame.len() as u64;
        self.counts.waiting.fetch_sub(length, Ordering::Relaxed);
        Some(copied)
    }

    /// How many frames were dropped because they were not received in time.
    pub fn dropped(&self) -> u64 {
        self.counts.dropped.load(Ordering::Relaxed)
    }
}

/// Those who want copies of one port's frames; mostly there is nobody.
#[derive(Debug, Default)]
pub struct Watchers(Vec<(mpsc::Sender<Copied>, Arc<Counts>)>);

impl Watchers {
    /// One more.
    pub fn add(&mut self) -> Copies {
        let (sender, frames) = mpsc::channel(FRAMES);
        let counts = Arc::new(Counts::default());
        self.0.push((sender, counts.clone()));
        Copies { frames, counts }
    }

    /// Whether nobody is left.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|(sender, _)| sender.is_closed())
    }

    /// Comes back when nobody is left.
    pub async fn gone(&self) {
        for (sender, _) in &self.0 {
            sender.closed().await;
        }
    }

    /// Gives each a copy of a frame.
    pub fn copy(&mut self, direction: Direction, frame: &[u8]) {
        if self.0.is_empty() {
            return;
        }
        let time = SystemTime::now();
        let length = frame.len() as u64;
        self.0.retain(|(sender, counts)| {
            if counts.waiting.load(Ordering::Relaxed) + length > BYTES {
                counts.dropped.fetch_add(1, Ordering::Relaxed);
                return !sender.is_closed();
            }
            counts.waiting.fetch_add(length, Ordering::Relaxed);
            let frame = frame.to_vec();
            match sender.try_send(Copied {
                time,
                direction,
                frame,
            }) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    counts.waiting.fetch_sub(length, Ordering::Relaxed);
                    counts.dropped.fetch_add(1, Ordering::Relaxed);
                    true
                }
                Err(TrySendError::Closed(_)) => false,
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_does_not_receive_loses_frames_and_is_told_how_many() {
        let mut watchers = Watchers::default();
        let mut copies = watchers.add();
        let frame = vec![7; 64 * 1024];
        for _ in 0..100 {
            watchers.copy(Direction::In, &frame);
        }
        // No more than the bytes that may wait were kept.
        assert_eq!(copies.dropped(), 36);
        for _ in 0..64 {
            assert_eq!(copies.next().await.unwrap().frame.len(), frame.len());
        }
        for _ in 0..FRAMES + 5 {
            watchers.copy(Direction::Out, &[1]);
        }
        assert_eq!(copies.dropped(), 41);
        drop(copies);
        watchers.gone().await;
        watchers.copy(Direction::Out, &[1]);
        assert!(watchers.0.is_empty());
    }
}
