//! OpenPGP's outermost form: packets, numbers of many digits, and the armor around them.
//!
//! What comes in is hostile. Nothing is copied but what armor hides.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// Why bytes are no packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// One packet: what it is (RFC 9580, section 5) and what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    pub(super) tag: u8,
    pub(super) body: &'a [u8],
}

/// A place in some bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a>(pub(super) &'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// A number of many digits, without zeros before it.
    pub(super) fn number(&mut self) -> Result<&'a [u8], Malformed> {
        let bits = usize::from(self.u16()?);
        let bytes = self.take(bits.div_ceil(8))?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Ok(&bytes[zeros..])
    }

    /// The rest, as packets. Lengths that are told piecewise are refused: keys and signatures never
    /// have them.
    pub(super) fn packets(mut self) -> impl Iterator<Item = Result<Packet<'a>, Malformed>> {
        std::iter::from_fn(move || {
            if self.0.is_empty() {
                return None;
            }
            let packet = self.packet();
            if packet.is_err() {
                self.0 = &[];
            }
            Some(packet)
        })
    }

    fn packet(&mut self) -> Result<Packet<'a>, Malformed> {
        let head = self.u8()?;
        if head & 0x80 == 0 {
            return Err(Malformed);
        }
        let (tag, length) = if head & 0x40 == 0 {
            let length = match head & 3 {
                0 => u32::from(self.u8()?),
                1 => u32::from(self.u16()?),
                2 => self.u32()?,
                _ => return Err(Malformed),
            };
            (head >> 2 & 0x0f, length)
        } else {
            (head & 0x3f, self.length()?)
        };
        let length = usize::try_from(length).map_err(|_| Malformed)?;
        Ok(Packet {
            tag,
            body: self.take(length)?,
        })
    }

    /// A length in one, two or five bytes, as packets and subpackets have it.
    pub(super) fn length(&mut self) -> Result<u32, Malformed> {
        match self.u8()? {
            first @ 0..192 => Ok(u32::from(first)),
            first @ 192..224 => Ok(((u32::from(first) - 192) << 8) + u32::from(self.u8()?) + 192),
            255 => self.u32(),
            224..255 => Err(Malformed),
        }
    }
}

/// The bytes inside all armors of a file, or the file itself when it has none.
pub(super) fn dearmor(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    let begins = bytes.iter().position(|byte| !byte.is_ascii_whitespace());
    if !begins.is_some_and(|at| bytes[at..].starts_with(b"-----BEGIN PGP ")) {
        return Ok(bytes.to_vec());
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed)?;
    let mut inside = Vec::new();
    let mut lines = text.lines().map(str::trim_end);
    while lines.any(|line| line.starts_with("-----BEGIN PGP ")) {
        // Headers, then an empty line.
        if !lines.any(str::is_empty) {
            return Err(Malformed);
        }
        let mut letters = String::new();
        loop {
            let line = lines.next().ok_or(Malformed)?;
            if line.starts_with("-----END PGP ") {
                break;
            }
            // A line of `=` and four letters is a checksum, which guards nothing.
            if !line.starts_with('=') {
                letters.push_str(line);
            }
        }
        inside.extend(BASE64_STANDARD.decode(letters).map_err(|_| Malformed)?);
    }
    Ok(inside)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn packets_have_old_and_new_heads() {
        let bytes = [
            0x88, 1, 7, 0x99, 0, 2, 8, 9, 0xc2, 0, 0xcd, 255, 0, 0, 0, 1, 5,
        ];
        let found: Vec<_> = Cursor(&bytes)
            .packets()
            .map(|packet| packet.map(|it| (it.tag, it.body.to_vec())))
            .collect();
        let want = [
            Ok((2, vec![7])),
            Ok((6, vec![8, 9])),
            Ok((2, vec![])),
            Ok((13, vec![5])),
        ];
        assert_eq!(found, want);
    }

    #[test]
    fn what_is_cut_or_piecewise_is_refused() {
        for bytes in [
            &[0x88][..],
            &[0x88, 5, 1],
            &[0x8b, 1],
            &[0xc2, 224, 1],
            &[0x00],
        ] {
            let found: Vec<_> = Cursor(bytes).packets().collect();
            assert_eq!(found, [Err(Malformed)], "{bytes:?}");
        }
    }

    #[test]
    fn armor_is_taken_off_and_a_file_may_have_several() {
        let armor = "-----BEGIN PGP SIGNATURE-----\nVersion: x\n\nAQID\n=abcd\n-----END PGP SIGNATURE-----\n";
        assert_eq!(dearmor(armor.as_bytes()), Ok(vec![1, 2, 3]));
        assert_eq!(
            dearmor(format!("\n{armor}\ntext\n{armor}").as_bytes()),
            Ok(vec![1, 2, 3, 1, 2, 3])
        );
        assert_eq!(dearmor(&[0x88, 0]), Ok(vec![0x88, 0]));
        for wrong in [
            &armor[..60],
            "-----BEGIN PGP X-----\nAQID\n-----END PGP X-----",
        ] {
            assert_eq!(dearmor(wrong.as_bytes()), Err(Malformed));
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes: Vec<u8>) {
            let _ = dearmor(&bytes);
            for packet in Cursor(&bytes).packets().flatten() {
                let _ = Cursor(packet.body).number();
            }
        }
    }
}
