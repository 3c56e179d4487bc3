//! Netlink messages as bytes: a header, a fixed part, attributes in attributes. Pure.
//!
//! Both users of it ([`super::route`] and [`super::nft`]) need a handful of messages each, which is why kiln writes
//! them itself: no crate has both, and those for one change their interface with every release.

/// Length of `nlmsghdr`, in bytes.
const HEADER: usize = 16;
/// Length of `nlattr`.
const ATTRIBUTE: usize = 4;
/// Set in the type of an attribute that holds others.
const NESTED: u16 = 0x8000;
/// The bits of an attribute's type that are its number.
const NUMBER: u16 = 0x3fff;

/// A message to the kernel in the making. Numbers in it are of the host's byte order unless said otherwise.
#[derive(Debug, Clone)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// A message of a type, with the flags of `nlmsghdr`; its sequence number is given when it is sent.
    pub(super) fn new(kind: u16, flags: u16) -> Message {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Message(bytes)
    }

    /// Sets a flag of `nlmsghdr` besides those that are set.
    pub(super) fn flag(&mut self, flag: u16) {
        for (to, from) in self.0[6..8].iter_mut().zip(flag.to_ne_bytes()) {
            *to |= from;
        }
    }

    /// Appends the family's fixed part.
    pub(super) fn fixed(mut self, bytes: &[u8]) -> Message {
        self.0.extend(bytes);
        self.pad();
        self
    }

    /// Appends an attribute.
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Message {
        self.attribute(kind, value);
        self
    }

    /// Appends an attribute that holds those that `fill` appends.
    pub(super) fn nest(mut self, kind: u16, fill: impl FnOnce(Message) -> Message) -> Message {
        let start = self.0.len();
        self.attribute(kind | NESTED, &[]);
        let mut filled = fill(self);
        let length = u16::try_from(filled.0.len() - start).unwrap_or(u16::MAX);
        filled.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        filled
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(ATTRIBUTE + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// The message with its length and sequence number.
    pub(super) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// A message from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) payload: &'a [u8],
}

/// The messages of one datagram; ends at the first that is not whole.
#[derive(Debug)]
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Received<'a>;

    fn next(&mut self) -> Option<Received<'a>> {
        let length = usize::try_from(u32_at(self.0, 0)?).ok()?;
        let message = self.0.get(..length)?;
        let payload = message.get(HEADER..)?;
        let next = length.next_multiple_of(4).min(self.0.len());
        self.0 = &self.0[next..];
        Some(Received {
            kind: u16_at(message, 4)?,
            flags: u16_at(message, 6)?,
            sequence: u32_at(message, 8)?,
            payload,
        })
    }
}

/// The attributes in `0`, each with its number; ends at the first that is not whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & NUMBER;
        let value = self.0.get(ATTRIBUTE..length)?;
        let next = length.next_multiple_of(4).min(self.0.len());
        self.0 = &self.0[next..];
        Some((kind, value))
    }
}

impl<'a> Attributes<'a> {
    /// The value of the first attribute with this number.
    pub(super) fn find(mut self, number: u16) -> Option<&'a [u8]> {
        self.find_map(|(kind, value)| (kind == number).then_some(value))
    }
}

/// The number of the host's byte order at `at`.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The number of the host's byte order at `at`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let message = Message::new(16, 5)
            .fixed(&[1; 16])
            .with(3, b"eth0\0")
            .nest(18, |inner| {
                inner.with(1, b"veth").nest(2, |inner| inner.with(1, &[7]))
            })
            .finish(9);
        let read: Vec<Received<'_>> = Messages(&message).collect();
        assert_eq!(read.len(), 1);
        assert_eq!((read[0].kind, read[0].flags, read[0].sequence), (16, 5, 9));
        let attributes = Attributes(&read[0].payload[16..]);
        assert_eq!(attributes.find(3), Some(&b"eth0\0"[..]));
        let inner = Attributes(attributes.find(18).unwrap());
        assert_eq!(inner.find(1), Some(&b"veth"[..]));
        assert_eq!(Attributes(inner.find(2).unwrap()).find(1), Some(&[7][..]));
        assert_eq!(attributes.find(4), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for message in Messages(&bytes) {
                for (_, value) in Attributes(message.payload) {
                    Attributes(value).count();
                }
            }
        }

        #[test]
        fn attributes_come_back_in_order(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..9)) {
            let mut message = Message::new(0, 0);
            for value in &values {
                message = message.with(7, value);
            }
            let bytes = message.finish(0);
            let read: Vec<Vec<u8>> = Messages(&bytes)
                .flat_map(|message| Attributes(message.payload))
                .map(|(_, value)| value.to_vec())
                .collect();
            prop_assert_eq!(read, values);
        }
    }
}
