//! A token bucket: how many broadcasts a machine may still send.

use std::time::{Duration, Instant};

/// Broadcasts that a machine may send at once after a silence.
const BURST: u32 = 200;
/// Time for which one more broadcast is allowed: a thousand in a second.
const INTERVAL: Duration = Duration::from_millis(1);

/// Holds up to [`BURST`] tokens and gains one each [`INTERVAL`].
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: u32,
    /// Up to when gained tokens are counted in.
    counted: Instant,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn new(now: Instant) -> Bucket {
        Bucket {
            tokens: BURST,
            counted: now,
        }
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.counted);
        let gained = u32::try_from(elapsed.as_millis() / INTERVAL.as_millis()).unwrap_or(u32::MAX);
        if gained >= BURST - self.tokens {
            self.tokens = BURST;
            self.counted = now;
        } else {
            self.tokens += gained;
            self.counted += INTERVAL * gained;
        }
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_one_for_each_interval() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let passed = (0..BURST * 2).filter(|_| bucket.take(start)).count();
        assert_eq!(passed, BURST as usize);
        assert!(!bucket.take(start + INTERVAL / 2));
        assert!(bucket.take(start + INTERVAL));
        assert!(!bucket.take(start + INTERVAL));
        let later = start + Duration::from_secs(60);
        let passed = (0..BURST * 2).filter(|_| bucket.take(later)).count();
        assert_eq!(passed, BURST as usize);
    }

    #[test]
    fn a_clock_that_stands_or_goes_back_gives_nothing() {
        let start = Instant::now() + Duration::from_secs(5);
        let mut bucket = Bucket::new(start);
        while bucket.take(start) {}
        assert!(!bucket.take(start - Duration::from_secs(1)));
    }
}
