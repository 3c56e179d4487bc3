//! Who made an image: detached OpenPGP signatures, checked against a keyring.
//!
//! An own reader of as much of OpenPGP (RFC 9580, and RFC 4880 before it) as signed files need:
//! version 4 keys and signatures, RSA and Ed25519, SHA-2. The arithmetic is other crates'. What is
//! not understood counts for nothing, so a key or signature that is read wrongly is no key and no
//! signature, never a good one; a revocation that is not understood revokes.
//!
//! A key is judged as of the time at which it signed: one that has expired since is still good for
//! what it signed before. A revoked key is good for nothing, unless its owner said that it was only
//! replaced or retired.

mod algorithm;
mod certificate;
pub mod keyring;
mod packet;
mod signature;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use algorithm::Hasher;
use certificate::{Refusal, SigningKey};
pub use keyring::{Keyring, KeyringError};
use signature::Signature;

/// A host's clock may be behind by so much.
const CLOCK_SLACK: Duration = Duration::from_secs(24 * 60 * 60);

/// The detached signatures of one file, and its content's hashes as far as they have come.
#[derive(Debug, Clone)]
pub struct Check {
    signatures: Vec<Signature>,
    hashers: Vec<Hasher>,
}

/// Who signed a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// As the key says it; printable.
    pub name: String,
    /// Of the primary key, in capital hexadecimal.
    pub fingerprint: String,
}

/// Why a file's signature is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    #[error("this is no detached OpenPGP signature that can be checked: {why}")]
    Form { why: &'static str },
    #[error("it is signed by key {key}, which is not in the keyring")]
    UnknownKey { key: String },
    #[error("the signature of {name} does not belong to this content")]
    Bad { name: String },
    #[error("it is signed by {name}, whose key {why}")]
    Key { name: String, why: &'static str },
    #[error("it is signed at a time that is yet to come; is this host's clock right?")]
    Future,
    #[error("its signature has expired")]
    Expired,
}

impl Check {
    /// Reads a signature file, armored or not.
    pub fn new(bytes: &[u8]) -> Result<Check, TrustError> {
        let signatures = signature::detached(bytes)?;
        let mut hashers: Vec<Hasher> = Vec::new();
        for signature in &signatures {
            let kind = signature.hash;
            if !hashers.iter().any(|hasher| hasher.kind() == kind) {
                hashers.push(Hasher::new(kind));
            }
        }
        Ok(Check {
            signatures,
            hashers,
        })
    }

    /// The next bytes of the content.
    pub fn update(&mut self, bytes: &[u8]) {
        for hasher in &mut self.hashers {
            hasher.update(bytes);
        }
    }

    /// Who signed the content, all of which has gone in.
    pub fn finish(self, keyring: &Keyring, now: SystemTime) -> Result<Signer, TrustError> {
        let mut worst = TrustError::Form {
            why: "there is no signature in it",
        };
        for signature in &self.signatures {
            let Some(hasher) = self.hashers.iter().find(|it| it.kind() == signature.hash) else {
                continue;
            };
            match judge(signature, hasher.clone(), keyring, now) {
                Ok(signer) => return Ok(signer),
                Err(error) => worst = error,
            }
        }
        Err(worst)
    }
}

fn judge(
    signature: &Signature,
    hasher: Hasher,
    keyring: &Keyring,
    now: SystemTime,
) -> Result<Signer, TrustError> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    if signature.created > (now + CLOCK_SLACK).as_secs() {
        return Err(TrustError::Future);
    }
    if signature.expires().is_some_and(|end| end <= now.as_secs()) {
        return Err(TrustError::Expired);
    }
    let digest = signature.digest(hasher);
    // Whose it is, is a hint that the signature does not protect; so each key that fits is tried.
    let mut fitting: Vec<&SigningKey> = keyring
        .keys()
        .filter(|key| signature.may_be_of(&key.fingerprint))
        .collect();
    fitting.sort_by_key(|key| key.refuses(signature.created).is_some());
    let Some(first) = fitting.first() else {
        return Err(TrustError::UnknownKey {
            key: signature.issuer_text(),
        });
    };
    let bad = TrustError::Bad {
        name: first.user.clone(),
    };
    let key = fitting
        .iter()
        .find(|key| key.public.verifies(signature, &digest))
        .ok_or(bad)?;
    match key.refuses(signature.created) {
        None => Ok(Signer {
            name: key.user.clone(),
            fingerprint: certificate::hex(&key.certificate),
        }),
        Some(why) => Err(TrustError::Key {
            name: key.user.clone(),
            why: match why {
                Refusal::TooOld => "had expired by then",
                Refusal::TooYoung => "was not made by then",
                Refusal::Revoked => "is revoked",
            },
        }),
    }
}

#[cfg(test)]
mod tests;
