//! Signatures: of files, and those by which keys speak of each other.

use super::algorithm::{Hash, Hasher};
use super::packet::{Cursor, Malformed, dearmor};
use super::{TrustError, certificate};

/// The packet's number (RFC 9580, section 5).
pub(super) const SIGNATURE: u8 = 2;
/// Of a file's bytes (RFC 9580, section 5.2.1).
const OF_A_FILE: u8 = 0;

/// A version 4 signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signature {
    /// What it says (RFC 9580, section 5.2.1).
    pub(super) kind: u8,
    pub(super) key_algorithm: u8,
    pub(super) hash: Hash,
    /// In seconds since 1970.
    pub(super) created: u64,
    /// The numbers that it consists of.
    pub(super) values: Vec<Vec<u8>>,
    lifetime: Option<u32>,
    /// How many seconds after its making the key ends that this speaks of.
    pub(super) key_lifetime: Option<u32>,
    pub(super) key_flags: Option<u8>,
    /// Why a key is revoked.
    pub(super) reason: Option<u8>,
    /// A signature by the key that this one binds.
    pub(super) embedded: Option<Vec<u8>>,
    issuer: Option<Vec<u8>>,
    issuer_fingerprint: Option<Vec<u8>>,
    /// What is hashed after the content.
    trailer: Vec<u8>,
}

/// Why a packet is no signature that can be checked.
enum Unusable {
    Version,
    Hash,
    Critical,
    Form,
}

impl From<Malformed> for Unusable {
    fn from(_: Malformed) -> Unusable {
        Unusable::Form
    }
}

/// The signatures of a file, of which there is at least one.
pub(super) fn detached(bytes: &[u8]) -> Result<Vec<Signature>, TrustError> {
    let form = |why| TrustError::Form { why };
    let bytes = dearmor(bytes).map_err(|Malformed| form("its armor is broken"))?;
    let mut found = Vec::new();
    let mut why = "there is no signature in it";
    for packet in Cursor(&bytes).packets() {
        let packet = packet.map_err(|Malformed| form("it is garbled"))?;
        if packet.tag != SIGNATURE {
            return Err(form("there is something else in it"));
        }
        match Signature::read(packet.body) {
            Ok(signature) if signature.kind == OF_A_FILE => found.push(signature),
            Ok(_) => why = "it is the signature of something else than a file",
            Err(Unusable::Version) => why = "it is of a version that kiln does not know",
            Err(Unusable::Hash) => why = "it stands on a hash that is too weak or unknown",
            Err(Unusable::Critical) => why = "it has a condition that kiln does not know",
            Err(Unusable::Form) => why = "it is garbled",
        }
    }
    if found.is_empty() {
        return Err(form(why));
    }
    Ok(found)
}

impl Signature {
    /// `None` for one that is not understood, which then counts for nothing.
    pub(super) fn parse(body: &[u8]) -> Option<Signature> {
        Signature::read(body).ok()
    }

    /// What a signature says that is perhaps not understood otherwise.
    pub(super) fn kind_of(body: &[u8]) -> Option<u8> {
        // Version 3 has the length of what is hashed before it (RFC 9580, section 5.2.2).
        let at = if body.first() == Some(&3) { 2 } else { 1 };
        body.get(at).copied()
    }

    fn read(body: &[u8]) -> Result<Signature, Unusable> {
        let mut rest = Cursor(body);
        if rest.u8()? != 4 {
            return Err(Unusable::Version);
        }
        let kind = rest.u8()?;
        let key_algorithm = rest.u8()?;
        let hash = Hash::from_number(rest.u8()?).ok_or(Unusable::Hash)?;
        let length = usize::from(rest.u16()?);
        let hashed = rest.take(length)?;
        let mut trailer = body[..6 + length].to_vec();
        let end = u32::try_from(trailer.len()).map_err(|_| Unusable::Form)?;
        trailer.extend([4, 0xff]);
        trailer.extend(end.to_be_bytes());
        let length = usize::from(rest.u16()?);
        let unhashed = rest.take(length)?;
        // The first two bytes of the digest, for those who want to know early.
        rest.take(2)?;
        let mut values = Vec::new();
        while !rest.0.is_empty() {
            values.push(rest.number()?.to_vec());
        }
        let mut signature = Signature {
            kind,
            key_algorithm,
            hash,
            created: 0,
            values,
            lifetime: None,
            key_lifetime: None,
            key_flags: None,
            reason: None,
            embedded: None,
            issuer: None,
            issuer_fingerprint: None,
            trailer,
        };
        signature.subpackets(hashed, true)?;
        signature.subpackets(unhashed, false)?;
        if signature.created == 0 {
            return Err(Unusable::Form);
        }
        Ok(signature)
    }

    /// Of what is not hashed only hints are taken, and what proves itself.
    fn subpackets(&mut self, area: &[u8], hashed: bool) -> Result<(), Unusable> {
        let mut rest = Cursor(area);
        while !rest.0.is_empty() {
            let length = usize::try_from(rest.length()?).map_err(|_| Unusable::Form)?;
            let mut body = Cursor(rest.take(length)?);
            let kind = body.u8()?;
            // The numbers are those of RFC 9580, section 5.2.3.7.
            match (kind & 0x7f, hashed) {
                (16, _) => self.issuer = Some(body.0.to_vec()),
                (33, _) => self.issuer_fingerprint = body.0.get(1..).map(<[u8]>::to_vec),
                (32, _) => self.embedded = Some(body.0.to_vec()),
                (2, true) => self.created = u64::from(body.u32()?),
                (3, true) => self.lifetime = Some(body.u32()?).filter(|it| *it != 0),
                (9, true) => self.key_lifetime = Some(body.u32()?).filter(|it| *it != 0),
                (27, true) => self.key_flags = Some(body.0.first().copied().unwrap_or(0)),
                (29, true) => self.reason = Some(body.u8()?),
                // Preferences, servers, policies: they change nothing in what a signature proves.
                (4 | 7 | 11 | 21..=26 | 28 | 30 | 34 | 39, _) => {}
                (_, true) if kind & 0x80 != 0 => return Err(Unusable::Critical),
                (_, _) => {}
            }
        }
        Ok(())
    }

    /// When it ends by itself, in seconds since 1970.
    pub(super) fn expires(&self) -> Option<u64> {
        Some(self.created + u64::from(self.lifetime?))
    }

    /// The digest that was signed; the content has gone into `hasher`.
    pub(super) fn digest(&self, mut hasher: Hasher) -> Vec<u8> {
        hasher.update(&self.trailer);
        hasher.finish()
    }

    /// Whether it does not name another key than the one with this fingerprint.
    pub(super) fn may_be_of(&self, fingerprint: &[u8; 20]) -> bool {
        let whole = self.issuer_fingerprint.as_deref();
        let short = self.issuer.as_deref();
        whole.is_none_or(|it| it == fingerprint) && short.is_none_or(|it| it == &fingerprint[12..])
    }

    /// The key that it names.
    pub(super) fn issuer_text(&self) -> String {
        match self.issuer_fingerprint.as_ref().or(self.issuer.as_ref()) {
            Some(issuer) => certificate::hex(issuer),
            None => "without a name".to_owned(),
        }
    }
}
