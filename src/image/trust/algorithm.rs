//! The algorithms that are taken: SHA-2, RSA from 2048 bits on, and Ed25519.
//!
//! An RSA signature is checked by making the whole padded number that it has to be, and comparing:
//! there is no padding to be parsed, and so none to be parsed wrongly.

use ed25519_dalek::VerifyingKey;
use num_bigint::BigUint;
use sha2::{Digest, Sha256, Sha384, Sha512};

use super::packet::{Cursor, Malformed};
use super::signature::Signature;

/// RFC 9580, section 9.1.
const RSA: u8 = 1;
const RSA_SIGN_ONLY: u8 = 3;
const EDDSA_LEGACY: u8 = 22;
/// The curve Ed25519, as an object identifier (RFC 9580, section 9.2).
const ED25519: [u8; 9] = [0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01];
/// A modulus of so many bytes, from 2048 to 16384 bits.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=2048;
/// Larger exponents would only cost time; 65537 has three bytes.
const EXPONENT_BYTES: usize = 8;

/// A hash by its number in OpenPGP (RFC 9580, section 9.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

#[derive(Debug, Clone)]
pub(super) enum Hasher {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

/// A key that can check signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PublicKey {
    Rsa {
        modulus: BigUint,
        /// Of the modulus, in bytes.
        length: usize,
        exponent: BigUint,
    },
    Ed25519(Box<VerifyingKey>),
}

impl Hash {
    /// `None` for those that are too weak or unknown.
    pub(super) fn from_number(number: u8) -> Option<Hash> {
        match number {
            8 => Some(Hash::Sha256),
            9 => Some(Hash::Sha384),
            10 => Some(Hash::Sha512),
            _ => None,
        }
    }

    /// What stands before the digest in an RSA signature: its algorithm in ASN.1 (RFC 8017, 9.2).
    fn prefix(self) -> [u8; 19] {
        let (last, length) = match self {
            Hash::Sha256 => (1, 32),
            Hash::Sha384 => (2, 48),
            Hash::Sha512 => (3, 64),
        };
        [
            0x30,
            17 + length,
            0x30,
            0x0d,
            0x06,
            0x09,
            0x60,
            0x86,
            0x48,
            0x01,
            0x65,
            0x03,
            0x04,
            0x02,
            last,
            0x05,
            0x00,
            0x04,
            length,
        ]
    }
}

impl Hasher {
    pub(super) fn new(hash: Hash) -> Hasher {
        match hash {
            Hash::Sha256 => Hasher::Sha256(Sha256::new()),
            Hash::Sha384 => Hasher::Sha384(Sha384::new()),
            Hash::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }

    pub(super) fn kind(&self) -> Hash {
        match self {
            Hasher::Sha256(_) => Hash::Sha256,
            Hasher::Sha384(_) => Hash::Sha384,
            Hasher::Sha512(_) => Hash::Sha512,
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha384(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(super) fn finish(self) -> Vec<u8> {
        match self {
            Hasher::Sha256(hasher) => hasher.finalize().to_vec(),
            Hasher::Sha384(hasher) => hasher.finalize().to_vec(),
            Hasher::Sha512(hasher) => hasher.finalize().to_vec(),
        }
    }
}

impl PublicKey {
    /// Reads what follows the algorithm's number in a key. `None` for a key of another kind.
    pub(super) fn parse(number: u8, rest: &mut Cursor<'_>) -> Result<Option<PublicKey>, Malformed> {
        match number {
            RSA | RSA_SIGN_ONLY => {
                let modulus = rest.number()?;
                let exponent = rest.number()?;
                let sound = MODULUS.contains(&modulus.len())
                    && exponent.len() <= EXPONENT_BYTES
                    && exponent.last().is_some_and(|last| last & 1 == 1)
                    && exponent != [1]
                    && modulus.last().is_some_and(|last| last & 1 == 1);
                Ok(sound.then(|| PublicKey::Rsa {
                    length: modulus.len(),
                    modulus: BigUint::from_bytes_be(modulus),
                    exponent: BigUint::from_bytes_be(exponent),
                }))
            }
            EDDSA_LEGACY => {
                let length = usize::from(rest.u8()?);
                if rest.take(length)? != ED25519 {
                    return Ok(None);
                }
                let Some((0x40, point)) = rest.number()?.split_first() else {
                    return Ok(None);
                };
                Ok(<&[u8; 32]>::try_from(point)
                    .ok()
                    .and_then(|point| VerifyingKey::from_bytes(point).ok())
                    .map(|key| PublicKey::Ed25519(Box::new(key))))
            }
            _ => Ok(None),
        }
    }

    /// Whether the signature of this digest was made with this key.
    pub(super) fn verifies(&self, signature: &Signature, digest: &[u8]) -> bool {
        match (self, signature.key_algorithm, signature.values.as_slice()) {
            (
                PublicKey::Rsa {
                    modulus,
                    length,
                    exponent,
                },
                RSA | RSA_SIGN_ONLY,
                [value],
            ) => {
                let value = BigUint::from_bytes_be(value);
                value < *modulus
                    && value.modpow(exponent, modulus)
                        == BigUint::from_bytes_be(&padded(signature.hash, digest, *length))
            }
            (PublicKey::Ed25519(key), EDDSA_LEGACY, [r, s]) => {
                let mut bytes = [0; 64];
                if r.len() > 32 || s.len() > 32 {
                    return false;
                }
                bytes[32 - r.len()..32].copy_from_slice(r);
                bytes[64 - s.len()..].copy_from_slice(s);
                let signature = ed25519_dalek::Signature::from_bytes(&bytes);
                key.verify_strict(digest, &signature).is_ok()
            }
            _ => false,
        }
    }
}

/// `00 01 FF … FF 00 ALGORITHM DIGEST`, as long as the modulus (RFC 8017, EMSA-PKCS1-v1_5).
fn padded(hash: Hash, digest: &[u8], length: usize) -> Vec<u8> {
    let tail = [&[0][..], &hash.prefix(), digest].concat();
    let mut bytes = vec![0xff; length - tail.len()];
    bytes[..2].copy_from_slice(&[0, 1]);
    bytes.extend(tail);
    bytes
}
