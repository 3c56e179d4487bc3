//! Captured frames on a connection to a supervisor: a fixed head and the frame, one after the other.

use std::io::{self, Read};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiln_netsetup::pcapng::Direction;

/// Longer frames than any that a supervisor has.
const LONGEST: usize = 1 << 20;
const HEAD: usize = 21;

/// A frame, and how many were lost before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub time: SystemTime,
    pub direction: Direction,
    /// Since the capture began.
    pub dropped: u64,
    pub frame: Vec<u8>,
}

impl Record {
    pub fn to_bytes(&self) -> Vec<u8> {
        let since = self.time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut bytes = Vec::with_capacity(HEAD + self.frame.len());
        bytes.extend(u64::try_from(since.as_nanos()).unwrap_or(0).to_le_bytes());
        bytes.extend(self.dropped.to_le_bytes());
        bytes.push(match self.direction {
            Direction::In => 0,
            Direction::Out => 1,
        });
        let length = u32::try_from(self.frame.len()).unwrap_or(u32::MAX);
        bytes.extend(length.to_le_bytes());
        bytes.extend(&self.frame);
        bytes
    }

    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] at the end, also in the middle of a record.
    pub fn read(from: &mut impl Read) -> io::Result<Record> {
        let mut head = [0; HEAD];
        from.read_exact(&mut head)?;
        let number = |at: usize| {
            let bytes = head.get(at..).and_then(<[u8]>::first_chunk::<8>);
            bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        let length = u32::from_le_bytes([head[17], head[18], head[19], head[20]]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut frame = vec![0; length];
        from.read_exact(&mut frame)?;
        Ok(Record {
            time: UNIX_EPOCH + Duration::from_nanos(number(0)),
            direction: match head[16] {
                0 => Direction::In,
                _ => Direction::Out,
            },
            dropped: number(8),
            frame,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let record = |direction, frame: &[u8]| Record {
            time: UNIX_EPOCH + Duration::new(1_700_000_000, 5),
            direction,
            dropped: 7,
            frame: frame.to_vec(),
        };
        let records = [record(Direction::In, b""), record(Direction::Out, b"frame")];
        let bytes: Vec<u8> = records.iter().flat_map(Record::to_bytes).collect();
        let mut rest = &bytes[..];
        for record in &records {
            assert_eq!(Record::read(&mut rest).unwrap(), *record);
        }
        let end = Record::read(&mut rest).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        let mut torn = &bytes[..bytes.len() - 1];
        Record::read(&mut torn).unwrap();
        assert!(Record::read(&mut torn).is_err());
    }
}
