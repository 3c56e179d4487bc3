use proptest::prelude::*;

use super::*;

/// A sound version 3 header of a 1 GiB disk, with its tables in the next clusters.
pub(in crate::image) fn sound() -> Vec<u8> {
    let mut bytes = vec![0; 4 << 16];
    bytes[..4].copy_from_slice(&MAGIC);
    put32(&mut bytes, 4, 3);
    put32(&mut bytes, 20, 16);
    put64(&mut bytes, 24, 1 << 30);
    put32(&mut bytes, 36, 2);
    put64(&mut bytes, 40, 3 << 16);
    put64(&mut bytes, 48, 1 << 16);
    put32(&mut bytes, 56, 1);
    put32(&mut bytes, 96, 4);
    put32(&mut bytes, 100, 104);
    bytes
}

pub(in crate::image) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

pub(in crate::image) fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

fn judge(bytes: &[u8]) -> Result<Header, Refused> {
    parse(bytes, bytes.len() as u64)
}

#[track_caller]
fn check(change: impl FnOnce(&mut Vec<u8>), want: &Refused) {
    let mut bytes = sound();
    change(&mut bytes);
    assert_eq!(&judge(&bytes).unwrap_err(), want);
}

#[test]
fn a_sound_header_is_read() {
    assert_eq!(
        judge(&sound()),
        Ok(Header {
            version: 3,
            virtual_size: 1 << 30,
            cluster_bits: 16,
            extended_l2: false,
            l1_size: 2,
            l1_offset: 3 << 16,
        })
    );
}

#[test]
fn other_files_are_never_followed() {
    check(|bytes| put64(bytes, 8, 0x200), &Refused::BackingFile);
    check(|bytes| put32(bytes, 16, 9), &Refused::BackingFile);
    check(|bytes| put64(bytes, 72, 4), &Refused::DataFile);
    let extension = |kind| {
        move |bytes: &mut Vec<u8>| {
            // After one that is unknown and of odd length.
            put32(bytes, 104, 0x6803_f857);
            put32(bytes, 108, 3);
            put32(bytes, 120, kind);
            put32(bytes, 124, 4);
        }
    };
    check(extension(EXTENSION_DATA_FILE), &Refused::DataFile);
    check(extension(EXTENSION_BACKING_FORMAT), &Refused::BackingFile);
    check(extension(EXTENSION_ENCRYPTION), &Refused::Encrypted);
}

#[test]
fn what_is_unknown_is_refused() {
    check(|bytes| bytes[0] = b'q', &Refused::Magic);
    check(|bytes| put32(bytes, 4, 1), &Refused::Version { version: 1 });
    check(|bytes| put32(bytes, 4, 4), &Refused::Version { version: 4 });
    check(
        |bytes| put64(bytes, 72, 0x21),
        &Refused::Features { bits: 0x20 },
    );
    check(
        |bytes| put64(bytes, 72, 1 << 63),
        &Refused::Features { bits: 1 << 63 },
    );
    check(|bytes| put64(bytes, 72, 2), &Refused::Corrupt);
    check(|bytes| put32(bytes, 32, 1), &Refused::Encrypted);
    check(
        |bytes| put64(bytes, 72, 8),
        &Refused::Compression { method: 0 },
    );
    check(
        |bytes| put32(bytes, 96, 7),
        &Refused::RefcountOrder { order: 7 },
    );
}

#[test]
fn sizes_have_bounds() {
    for bits in [0, 8, 22, u32::MAX] {
        check(
            |bytes| put32(bytes, 20, bits),
            &Refused::ClusterBits { bits },
        );
    }
    for length in [0, 103, 105, 106, 65_544, u32::MAX] {
        check(
            |bytes| put32(bytes, 100, length),
            &Refused::HeaderLength { length },
        );
    }
    let petabyte = 1 << 50;
    check(
        |bytes| put64(bytes, 24, petabyte),
        &Refused::TooLarge { size: petabyte },
    );
    check(|bytes| put64(bytes, 24, 0), &Refused::Empty);
    check(|bytes| put64(bytes, 24, (1 << 30) + 1), &Refused::ShortL1);
    check(
        |bytes| put32(bytes, 36, u32::MAX),
        &Refused::HugeTable { table: "L1 table" },
    );
    check(
        |bytes| put32(bytes, 56, u32::MAX),
        &Refused::HugeTable {
            table: "refcount table",
        },
    );
    check(
        |bytes| put32(bytes, 60, u32::MAX),
        &Refused::HugeTable {
            table: "snapshot table",
        },
    );
}

#[test]
fn tables_lie_inside_the_file() {
    for offset in [0, 1, 3 << 15, 4 << 16, u64::MAX - 7, u64::MAX << 16] {
        check(
            |bytes| put64(bytes, 40, offset),
            &Refused::Outside { table: "L1 table" },
        );
        check(
            |bytes| put64(bytes, 48, offset),
            &Refused::Outside {
                table: "refcount table",
            },
        );
    }
    check(
        |bytes| put32(bytes, 60, 1),
        &Refused::Outside {
            table: "snapshot table",
        },
    );
    check(
        |bytes| bytes.truncate((3 << 16) + 15),
        &Refused::Outside { table: "L1 table" },
    );
}

#[test]
fn extensions_that_do_not_end_are_refused() {
    check(
        |bytes| {
            put32(bytes, 104, 1);
            put32(bytes, 108, u32::MAX);
        },
        &Refused::Extensions,
    );
}

#[test]
fn a_header_that_is_cut_short_is_refused() {
    let bytes = sound();
    for length in 4..112 {
        let refused = judge(&bytes[..length]).unwrap_err();
        assert_eq!(
            refused,
            Refused::Short {
                found: length as u64
            }
        );
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), length: u64) {
        let _ = parse(&bytes, length);
        let mut with_magic = MAGIC.to_vec();
        with_magic.extend_from_slice(&bytes);
        let _ = parse(&with_magic, length);
    }

    #[test]
    fn a_header_with_some_bytes_changed_is_refused_or_has_its_tables_inside(
        changes in proptest::collection::vec((0_usize..112, any::<u8>()), 1..6),
        length in 0_u64..(6 << 16),
    ) {
        let mut bytes = sound();
        for (at, value) in changes {
            bytes[at] = value;
        }
        if let Ok(header) = parse(&bytes, length) {
            prop_assert!(header.virtual_size <= LARGEST_DISK);
            prop_assert!(header.l1_offset + u64::from(header.l1_size) * 8 <= length);
        }
    }
}
