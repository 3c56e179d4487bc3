//! Keys and what their owners say of them: what each may sign, and from when to when.
//!
//! A revocation counts wherever there is one. Whoever puts a keyring together may leave a key out as
//! well, so one that is not understood, or of another key that may revoke this one, is believed; only
//! what it says in the key's favour has to be proven.

use sha1::{Digest, Sha1};

use super::algorithm::{Hasher, PublicKey};
use super::packet::{Cursor, Malformed, Packet};
use super::signature::{SIGNATURE, Signature};

/// Packets (RFC 9580, section 5).
const SECRET_KEY: u8 = 5;
const PRIMARY_KEY: u8 = 6;
const SECRET_SUBKEY: u8 = 7;
const USER: u8 = 13;
const SUBKEY: u8 = 14;
const USER_ATTRIBUTE: u8 = 17;
/// What signatures say (RFC 9580, section 5.2.1).
const CERTIFIES_USER: std::ops::RangeInclusive<u8> = 0x10..=0x13;
const BINDS_SUBKEY: u8 = 0x18;
const BINDS_PRIMARY: u8 = 0x19;
const OF_THE_KEY: u8 = 0x1f;
const REVOKES_KEY: u8 = 0x20;
const REVOKES_SUBKEY: u8 = 0x28;
const REVOKES_USER: u8 = 0x30;
/// The key may sign data (RFC 9580, section 5.2.3.29).
const MAY_SIGN: u8 = 2;
/// Replaced, and retired (RFC 9580, section 5.2.3.31): what was signed before stays good.
const SOFT_REASONS: [u8; 2] = [1, 3];

/// A key that may sign files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SigningKey {
    pub(super) public: PublicKey,
    pub(super) fingerprint: [u8; 20],
    /// The fingerprint of the primary key that it belongs to.
    pub(super) certificate: [u8; 20],
    /// Whose it is; printable.
    pub(super) user: String,
    /// Its own time, and the primary key's.
    spans: [Span; 2],
}

/// Why a key is not good for a signature of some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    TooOld,
    TooYoung,
    Revoked,
}

/// In seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    from: u64,
    until: Option<u64>,
    revoked_from: Option<u64>,
}

/// A key packet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    public: PublicKey,
    created: u64,
    fingerprint: [u8; 20],
    /// As it goes into hashes.
    hashed: Vec<u8>,
}

/// A part of a certificate with the signatures that follow it.
struct Part<'a> {
    packet: Packet<'a>,
    signatures: Vec<Signature>,
    /// What revokes something, understood or not.
    revocations: Vec<Revocation>,
}

struct Revocation {
    kind: u8,
    signature: Option<Signature>,
}

/// Reads certificates one after the other. What is not understood in one of them is passed over;
/// a secret key is `None`, because it does not belong into a keyring.
pub(super) fn signing_keys(bytes: &[u8]) -> Result<Option<Vec<SigningKey>>, Malformed> {
    let mut certificates: Vec<Vec<Part<'_>>> = Vec::new();
    for packet in Cursor(bytes).packets() {
        let packet = packet?;
        match packet.tag {
            SECRET_KEY | SECRET_SUBKEY => return Ok(None),
            PRIMARY_KEY => certificates.push(vec![Part::new(packet)]),
            USER | SUBKEY | USER_ATTRIBUTE => {
                certificates
                    .last_mut()
                    .ok_or(Malformed)?
                    .push(Part::new(packet));
            }
            SIGNATURE => {
                let parts = certificates.last_mut().ok_or(Malformed)?;
                parts
                    .last_mut()
                    .ok_or(Malformed)?
                    .take_signature(packet.body);
            }
            // Padding, markers, trust that a program noted: nothing that a key says.
            _ => {}
        }
    }
    Ok(Some(
        certificates.iter().flat_map(|parts| of(parts)).collect(),
    ))
}

/// The signing keys of one certificate, which begins with its primary key.
fn of(parts: &[Part<'_>]) -> Vec<SigningKey> {
    let Some((first, rest)) = parts.split_first() else {
        return Vec::new();
    };
    let Some(primary) = Key::parse(first.packet.body) else {
        return Vec::new();
    };
    let on_key: Vec<&Signature> = first
        .signatures
        .iter()
        .filter(|it| it.kind == OF_THE_KEY && primary.made(it, &[]))
        .collect();
    let is_revoked = |part: &Part<'_>| {
        // Others may take back only what they said themselves.
        part.revocations(REVOKES_USER)
            .any(|it| it.is_none_or(|it| it.may_be_of(&primary.fingerprint)))
    };
    let users = || {
        rest.iter()
            .filter(|part| part.packet.tag == USER && !is_revoked(part))
    };
    let on_users: Vec<(&Packet<'_>, &Signature)> = users()
        .flat_map(|part| part.signatures.iter().map(move |it| (&part.packet, it)))
        .filter(|(user, it)| {
            CERTIFIES_USER.contains(&it.kind) && primary.made(it, &hashed_user(user))
        })
        .collect();
    // The newest word of the owner holds, whether on the key or on a user.
    let newest = on_key
        .into_iter()
        .chain(on_users.iter().map(|(_, it)| *it))
        .max_by_key(|it| it.created);
    let Some(newest) = newest else {
        return Vec::new();
    };
    let name = on_users.iter().max_by_key(|(_, it)| it.created);
    let user = match name {
        Some((user, _)) => printable(user.body),
        None => hex(&primary.fingerprint),
    };
    // Wherever it stands: programs append what revokes a key.
    let revocations = parts.iter().flat_map(|part| part.revocations(REVOKES_KEY));
    let revoked_from = revoked_from(revocations, |it| primary.made(it, &[]));
    let span = Span::new(&primary, newest, revoked_from);
    let signing = |key: Key, spans| SigningKey {
        public: key.public,
        fingerprint: key.fingerprint,
        certificate: primary.fingerprint,
        user: user.clone(),
        spans,
    };
    let mut keys = Vec::new();
    if newest.key_flags.is_none_or(|flags| flags & MAY_SIGN != 0) {
        keys.push(signing(primary.clone(), [span, span]));
    }
    for part in rest.iter().filter(|part| part.packet.tag == SUBKEY) {
        let Some(key) = Key::parse(part.packet.body) else {
            continue;
        };
        if let Some(own) = subkey_span(&primary, &key, part) {
            keys.push(signing(key, [own, span]));
        }
    }
    keys
}

/// The time of a subkey that may sign, as the newest binding says it. It has to say itself that it
/// belongs to the primary key: else anyone could claim it.
fn subkey_span(primary: &Key, key: &Key, part: &Part<'_>) -> Option<Span> {
    let by_primary = |it: &Signature| primary.made(it, &key.hashed);
    let binding = part
        .signatures
        .iter()
        .filter(|it| it.kind == BINDS_SUBKEY && by_primary(it))
        .max_by_key(|it| it.created)?;
    if binding.key_flags.unwrap_or(0) & MAY_SIGN == 0 {
        return None;
    }
    let back = Signature::parse(binding.embedded.as_deref()?)?;
    let own = back.kind == BINDS_PRIMARY && key.verifies(&back, &[&primary.hashed, &key.hashed]);
    let revoked_from = revoked_from(part.revocations(REVOKES_SUBKEY), by_primary);
    own.then(|| Span::new(key, binding, revoked_from))
}

/// From when on these revoke; a reason that spares what was signed before has to be the owner's.
fn revoked_from<'a>(
    revocations: impl Iterator<Item = Option<&'a Signature>>,
    is_owners: impl Fn(&Signature) -> bool,
) -> Option<u64> {
    revocations
        .map(|it| {
            it.filter(|it| it.reason.is_some_and(|it| SOFT_REASONS.contains(&it)))
                .filter(|it| is_owners(it))
                .map_or(0, |it| it.created)
        })
        .min()
}

impl Key {
    /// A version 4 key of a kind that is known.
    fn parse(body: &[u8]) -> Option<Key> {
        let mut rest = Cursor(body);
        if rest.u8().ok()? != 4 {
            return None;
        }
        let created = u64::from(rest.u32().ok()?);
        let algorithm = rest.u8().ok()?;
        let public = PublicKey::parse(algorithm, &mut rest).ok()??;
        let length = u16::try_from(body.len()).ok()?;
        let hashed = [&[0x99][..], &length.to_be_bytes(), body].concat();
        Some(Key {
            public,
            created,
            fingerprint: Sha1::digest(&hashed).into(),
            hashed,
        })
    }

    /// Whether this key said it, of itself and of `other`.
    fn made(&self, signature: &Signature, other: &[u8]) -> bool {
        self.verifies(signature, &[&self.hashed, other])
    }

    fn verifies(&self, signature: &Signature, content: &[&[u8]]) -> bool {
        if !signature.may_be_of(&self.fingerprint) {
            return false;
        }
        let mut hasher = Hasher::new(signature.hash);
        for part in content {
            hasher.update(part);
        }
        self.public.verifies(signature, &signature.digest(hasher))
    }
}

impl Span {
    /// The newest word on a key ends by itself, or says when the key does.
    fn new(key: &Key, newest: &Signature, revoked_from: Option<u64>) -> Span {
        let lifetime = newest.key_lifetime;
        let key_ends = lifetime.map(|seconds| key.created + u64::from(seconds));
        Span {
            from: key.created,
            until: key_ends.into_iter().chain(newest.expires()).min(),
            revoked_from,
        }
    }
}

impl SigningKey {
    /// Why it is not good for what was signed at that time; `None` when it is.
    pub(super) fn refuses(&self, time: u64) -> Option<Refusal> {
        let refuses = |span: &Span| {
            if span.revoked_from.is_some_and(|from| time >= from) {
                Some(Refusal::Revoked)
            } else if time < span.from {
                Some(Refusal::TooYoung)
            } else if span.until.is_some_and(|until| time >= until) {
                Some(Refusal::TooOld)
            } else {
                None
            }
        };
        self.spans.iter().find_map(refuses)
    }
}

impl<'a> Part<'a> {
    fn new(packet: Packet<'a>) -> Part<'a> {
        Part {
            packet,
            signatures: Vec::new(),
            revocations: Vec::new(),
        }
    }

    /// A signature that is not understood counts for nothing, unless it revokes.
    fn take_signature(&mut self, body: &[u8]) {
        let signature = Signature::parse(body);
        match (Signature::kind_of(body), signature) {
            (Some(kind @ (REVOKES_KEY | REVOKES_SUBKEY | REVOKES_USER)), signature) => {
                self.revocations.push(Revocation { kind, signature });
            }
            (_, Some(signature)) => self.signatures.push(signature),
            (_, None) => {}
        }
    }

    fn revocations(&self, kind: u8) -> impl Iterator<Item = Option<&Signature>> {
        self.revocations
            .iter()
            .filter(move |it| it.kind == kind)
            .map(|it| it.signature.as_ref())
    }
}

fn hashed_user(user: &Packet<'_>) -> Vec<u8> {
    // A packet is never longer than its length's four bytes can say.
    let length = u32::try_from(user.body.len()).unwrap_or(u32::MAX);
    [&[0xb4][..], &length.to_be_bytes(), user.body].concat()
}

fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .chars()
        .filter(|letter| !letter.is_control())
        .take(120)
        .collect()
}

/// In capital hexadecimal, as fingerprints are written.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::trust::packet::dearmor;

    #[test]
    fn a_word_on_a_key_ends_by_itself() {
        let bytes = dearmor(include_bytes!("tests/plain.asc")).unwrap();
        let first = Cursor(&bytes).packets().next().unwrap().unwrap();
        let key = Key::parse(first.body).unwrap();
        let until = |more: &[u8]| {
            let created = u32::try_from(key.created + 100).unwrap().to_be_bytes();
            let area = [&[5, 2][..], &created, more].concat();
            let length = u8::try_from(area.len()).unwrap();
            let body = [&[4, 0x18, 1, 8, 0, length][..], &area, &[0; 4]].concat();
            let span = Span::new(&key, &Signature::parse(&body).unwrap(), None);
            span.until.map(|until| until - key.created)
        };
        assert_eq!(until(&[]), None);
        assert_eq!(until(&[5, 3, 0, 0, 0, 7]), Some(107));
        assert_eq!(until(&[5, 9, 0, 0, 0, 50, 5, 3, 0, 0, 0, 7]), Some(50));
        assert_eq!(until(&[5, 9, 0, 0, 1, 0, 5, 3, 0, 0, 0, 7]), Some(107));
    }
}
