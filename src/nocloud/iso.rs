//! The smallest ISO 9660 file system (ECMA-119) that Linux reads: one folder, a few files.
//!
//! Without Rock Ridge's extension Linux shows `USER-DATA.;1` as `user-data`. Nothing is dated.

/// Of ISO 9660, in bytes.
const SECTOR: usize = 2048;
/// After what belongs to a boot loader.
const DESCRIPTOR: usize = 16;
const TERMINATOR: usize = 17;
const PATHS_LITTLE: usize = 18;
const PATHS_BIG: usize = 19;
const ROOT: usize = 20;
const FILES: usize = 21;
/// The length of a path table that has the root alone.
const PATHS_LENGTH: u32 = 10;
/// 1970-01-01 00:00:00, universal time.
const DATE: [u8; 7] = [70, 1, 1, 0, 0, 0, 0];
const FOLDER: u8 = 2;
/// Before the name in an entry of a folder.
const ENTRY: usize = 33;

/// A disk with this label and these files, at most some dozen, in the order of their names.
pub(super) fn image(label: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut root = entry(&[0], ROOT, SECTOR, FOLDER);
    root.extend(entry(&[1], ROOT, SECTOR, FOLDER));
    let mut contents = Vec::new();
    for (name, content) in files {
        let sector = FILES + contents.len() / SECTOR;
        root.extend(entry(name.as_bytes(), sector, content.len(), 0));
        contents.extend_from_slice(content);
        contents.resize(contents.len().next_multiple_of(SECTOR), 0);
    }
    let sectors = FILES + contents.len() / SECTOR;
    let mut disk = vec![0; FILES * SECTOR];
    put(&mut disk, DESCRIPTOR, &descriptor(label, sectors));
    put(&mut disk, TERMINATOR, b"\xffCD001\x01");
    put(
        &mut disk,
        PATHS_LITTLE,
        &paths(number(ROOT).to_le_bytes(), [1, 0]),
    );
    put(
        &mut disk,
        PATHS_BIG,
        &paths(number(ROOT).to_be_bytes(), [0, 1]),
    );
    put(&mut disk, ROOT, &root);
    disk.extend(contents);
    disk
}

/// A file of such a disk.
pub(super) fn file<'a>(disk: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut rest = disk.get(ROOT * SECTOR..FILES * SECTOR)?;
    disk.get(DESCRIPTOR * SECTOR..)?
        .starts_with(b"\x01CD001")
        .then_some(())?;
    loop {
        let length = usize::from(*rest.first()?);
        let entry = rest.get(..length).filter(|entry| entry.len() > ENTRY)?;
        let word = |at: usize| {
            let bytes: [u8; 4] = entry.get(at..at + 4)?.try_into().ok()?;
            usize::try_from(u32::from_le_bytes(bytes)).ok()
        };
        if entry.get(ENTRY..ENTRY + usize::from(entry[32])) == Some(name.as_bytes()) {
            let begin = word(2)?.checked_mul(SECTOR)?;
            return disk.get(begin..begin.checked_add(word(10)?)?);
        }
        rest = &rest[length..];
    }
}

fn put(disk: &mut [u8], sector: usize, bytes: &[u8]) {
    let begin = sector * SECTOR;
    disk[begin..begin + bytes.len()].copy_from_slice(bytes);
}

/// What is here is far below the limit: a seed is at most some MiB.
fn number(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// In both orders of bytes, one after the other.
fn both32(value: usize) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&number(value).to_le_bytes());
    bytes[4..].copy_from_slice(&number(value).to_be_bytes());
    bytes
}

fn both16(value: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (value.to_le_bytes(), value.to_be_bytes());
    [a, b, c, d]
}

/// ECMA-119, 9.1.
fn entry(name: &[u8], sector: usize, length: usize, flags: u8) -> Vec<u8> {
    let mut entry = vec![0, 0];
    entry.extend(both32(sector));
    entry.extend(both32(length));
    entry.extend(DATE);
    entry.extend([flags, 0, 0]);
    entry.extend(both16(1));
    entry.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    entry.extend_from_slice(name);
    entry.resize(entry.len().next_multiple_of(2), 0);
    entry[0] = u8::try_from(entry.len()).unwrap_or(u8::MAX);
    entry
}

/// ECMA-119, 9.4: the root, which is its own parent.
fn paths(root: [u8; 4], parent: [u8; 2]) -> Vec<u8> {
    let mut table = vec![1, 0];
    table.extend(root);
    table.extend(parent);
    table.extend([0, 0]);
    table
}

/// ECMA-119, 8.4.
fn descriptor(label: &str, sectors: usize) -> Vec<u8> {
    let mut bytes = b"\x01CD001\x01\0".to_vec();
    let spaced = |text: &str, length: usize| format!("{text:<length$}").into_bytes();
    bytes.extend(spaced("", 32));
    bytes.extend(spaced(label, 32));
    bytes.extend([0; 8]);
    bytes.extend(both32(sectors));
    bytes.extend([0; 32]);
    bytes.extend(both16(1));
    bytes.extend(both16(1));
    bytes.extend(both16(2048));
    bytes.extend(PATHS_LENGTH.to_le_bytes());
    bytes.extend(PATHS_LENGTH.to_be_bytes());
    bytes.extend(number(PATHS_LITTLE).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(number(PATHS_BIG).to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(entry(&[0], ROOT, SECTOR, FOLDER));
    bytes.extend(spaced("", 128 * 4 + 37 * 3));
    for _ in 0..4 {
        bytes.extend(b"0000000000000000\0");
    }
    bytes.extend([1, 0]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_where_the_standard_has_them() {
        let disk = image("CIDATA", &[("USER-DATA.;1", b"hello")]);
        let descriptor = &disk[DESCRIPTOR * SECTOR..];
        assert_eq!(&descriptor[40..46], b"CIDATA");
        assert_eq!(descriptor[80..84], 22u32.to_le_bytes());
        assert_eq!(descriptor[132..136], PATHS_LENGTH.to_le_bytes());
        assert_eq!(descriptor[156], 34);
        assert_eq!(descriptor[813], b'0');
        assert_eq!(descriptor[881], 1);
        assert_eq!(disk.len(), 22 * SECTOR);
        assert_eq!(file(&disk, "USER-DATA.;1"), Some(&b"hello"[..]));
        assert_eq!(file(&disk, "META-DATA.;1"), None);
    }
}
