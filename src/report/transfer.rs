//! How a download comes along, in words: how much, how fast, how long still.
//!
//! Pure: the caller says what happened and when.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::report::text::elapsed;

/// The rate is that of the last so long.
const WINDOW: Duration = Duration::from_secs(8);

/// One download.
#[derive(Debug, Default)]
pub struct Transfer {
    /// Bytes that were here at a time.
    seen: VecDeque<(Instant, u64)>,
}

impl Transfer {
    /// `now` so many bytes are here, of so many in all.
    pub fn text(&mut self, now: Instant, done: u64, total: Option<u64>) -> String {
        self.seen.push_back((now, done));
        // Two are kept in any case: between lines of a log more time passes.
        while self.seen.len() > 2
            && let Some((first, _)) = self.seen.front()
            && now.duration_since(*first) > WINDOW
        {
            self.seen.pop_front();
        }
        let mut text = match total {
            Some(total) => format!("{} of {}", mebibytes(done), size(total)),
            None => size(done),
        };
        let Some((since, before)) = self.seen.front() else {
            return text;
        };
        let millis = now.duration_since(*since).as_millis();
        let came = u128::from(done.saturating_sub(*before));
        if millis < 500 || came == 0 {
            return text;
        }
        let rate = u64::try_from(came * 1000 / millis)
            .unwrap_or(u64::MAX)
            .max(1);
        text.push_str(&format!(", {}/s", size(rate)));
        if let Some(left) = total
            .and_then(|total| total.checked_sub(done))
            .filter(|it| *it > 0)
        {
            text.push_str(&format!(
                ", {} left",
                elapsed(Duration::from_secs(left.div_ceil(rate)))
            ));
        }
        text
    }
}

/// `12.3 MiB`, `4 KiB`.
pub fn size(bytes: u64) -> String {
    if bytes < 1 << 20 {
        return format!("{} KiB", bytes.div_ceil(1 << 10));
    }
    format!("{} MiB", mebibytes(bytes))
}

fn mebibytes(bytes: u64) -> String {
    let tenths = (bytes * 10) >> 20;
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn rate_and_time_left_are_those_of_the_last_seconds() {
        let mut transfer = Transfer::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(transfer.text(start, 0, Some(100 * MIB)), "0.0 of 100.0 MiB");
        assert_eq!(
            transfer.text(at(1), 10 * MIB, Some(100 * MIB)),
            "10.0 of 100.0 MiB, 10.0 MiB/s, 9.0 s left"
        );
        assert_eq!(
            transfer.text(at(20), 10 * MIB, Some(100 * MIB)),
            "10.0 of 100.0 MiB"
        );
        assert_eq!(
            transfer.text(at(21), 11 * MIB, Some(100 * MIB)),
            "11.0 of 100.0 MiB, 1.0 MiB/s, 1m29s left"
        );
        assert_eq!(
            transfer.text(at(22), 11 * MIB + 5, None).split(',').next(),
            Some("11.0 MiB")
        );
    }
}
