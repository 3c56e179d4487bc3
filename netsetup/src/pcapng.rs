//! Captured frames as a file for Wireshark: pcapng (draft-ietf-opsawg-pcapng), in the four blocks that it takes. Pure.
//!
//! Numbers are little-endian on every host, times are in nanoseconds. A file that was cut off at any place can be read
//! up to there.

use std::time::{SystemTime, UNIX_EPOCH};

/// `LINKTYPE_ETHERNET`.
const ETHERNET: u16 = 1;
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;

/// Options of the blocks.
const END: u16 = 0;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;

/// Which way a frame went, as the machine sees it: in came to it, out it sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the machine.
    In,
    /// From the machine.
    Out,
}

/// What a capture begins with: who wrote it, and the one interface that it is of.
pub fn head(program: &str, interface: &str) -> Vec<u8> {
    let mut section = Vec::new();
    section.extend(0x1a2b_3c4d_u32.to_le_bytes());
    // Version 1.0, of a length that is not known.
    section.extend([1, 0, 0, 0]);
    section.extend([0xff; 8]);
    option(&mut section, SHB_USERAPPL, program.as_bytes());
    option(&mut section, END, &[]);
    let mut bytes = block(SECTION, &section);

    let mut description = Vec::new();
    description.extend(ETHERNET.to_le_bytes());
    description.extend([0; 2]);
    // No frame is cut by a rule.
    description.extend([0; 4]);
    option(&mut description, IF_NAME, interface.as_bytes());
    option(&mut description, IF_TSRESOL, &[9]);
    option(&mut description, END, &[]);
    bytes.extend(block(INTERFACE, &description));
    bytes
}

/// One frame of `length` bytes, of which `frame` are there.
pub fn packet(time: SystemTime, direction: Direction, length: usize, frame: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(40 + frame.len());
    body.extend([0; 4]);
    body.extend(stamp(time));
    for count in [frame.len(), length] {
        body.extend(u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    }
    body.extend(frame);
    pad(&mut body);
    let flags: u32 = match direction {
        Direction::In => 1,
        Direction::Out => 2,
    };
    option(&mut body, EPB_FLAGS, &flags.to_le_bytes());
    option(&mut body, END, &[]);
    block(PACKET, &body)
}

/// What a capture ends with: how many frames there were, and how many of them were lost on the way to it.
pub fn tail(time: SystemTime, received: u64, dropped: u64) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(stamp(time));
    option(&mut body, ISB_IFRECV, &received.to_le_bytes());
    option(&mut body, ISB_IFDROP, &dropped.to_le_bytes());
    option(&mut body, END, &[]);
    block(STATISTICS, &body)
}

/// The time's upper and lower half.
fn stamp(time: SystemTime) -> [u8; 8] {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let nanoseconds = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
    let [low, high] = [nanoseconds & 0xffff_ffff, nanoseconds >> 32]
        .map(|half| u32::try_from(half).unwrap_or(0).to_le_bytes());
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&high);
    bytes[4..].copy_from_slice(&low);
    bytes
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    body.extend(code.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(&value[..usize::from(length)]);
    pad(body);
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(12 + body.len())
        .unwrap_or(u32::MAX)
        .to_le_bytes();
    [&kind.to_le_bytes()[..], &length, body, &length].concat()
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::{Expect, expect};
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::*;

    /// Sixteen bytes a line.
    #[track_caller]
    fn check(bytes: &[u8], want: &Expect) {
        let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect();
        let lines: Vec<String> = bytes.chunks(16).map(line).collect();
        want.assert_eq(&lines.join("\n"));
    }

    fn time() -> SystemTime {
        UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789)
    }

    #[test]
    fn a_file_begins_with_its_section_and_interface() {
        check(
            &head("kiln", "demo/node-1"),
            &expect![[r#"
            0a0d0d0a280000004d3c2b1a01000000
            ffffffffffffffff040004006b696c6e
            00000000280000000100000030000000
            010000000000000002000b0064656d6f
            2f6e6f64652d31000900010009000000
            0000000030000000"#]],
        );
    }

    #[test]
    fn a_frame_has_its_time_and_direction() {
        check(
            &packet(time(), Direction::Out, 5, &[1, 2, 3, 4, 5]),
            &expect![[r#"
                060000003400000000000000fe9c9717
                15cd853d050000000500000001020304
                05000000020004000200000000000000
                34000000"#]],
        );
    }

    #[test]
    fn a_file_ends_with_its_counts() {
        check(
            &tail(time(), 7, 2),
            &expect![[r#"
            050000003400000000000000fe9c9717
            15cd853d040008000700000000000000
            05000800020000000000000000000000
            34000000"#]],
        );
    }

    proptest! {
        #[test]
        fn blocks_are_found_by_their_lengths_from_both_ends(frame in prop::collection::vec(any::<u8>(), 0..100)) {
            let file = [head("kiln", "i"), packet(time(), Direction::In, frame.len(), &frame), tail(time(), 1, 0)].concat();
            let word = |at: usize| u32::from_le_bytes(*file[at..].first_chunk().unwrap());
            let (mut at, mut kinds) = (0, Vec::new());
            while at < file.len() {
                let length = usize::try_from(word(at + 4)).unwrap();
                prop_assert_eq!(length % 4, 0);
                prop_assert_eq!(word(at + length - 4), word(at + 4));
                kinds.push(word(at));
                at += length;
            }
            prop_assert_eq!(kinds, [SECTION, INTERFACE, PACKET, STATISTICS]);
        }
    }
}
