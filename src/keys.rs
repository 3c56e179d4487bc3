//! ssh keys: made, read and written in OpenSSH's formats.
//!
//! Private keys are secrets: they are never part of an error or of `Debug`.
//! Nothing here touches a file.

use std::fmt;

use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, LineEnding, PrivateKey, PublicKey};

/// An Ed25519 key pair, for logging in or for being recognized as a host.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPair {
    private: String,
    public: String,
}

/// Why there is no usable key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("cannot make an ssh key")]
    Generate(#[source] ssh_key::Error),
    #[error("this is not an OpenSSH private key without a passphrase")]
    Private(#[source] ssh_key::Error),
    #[error("this is not an OpenSSH public key (`ssh-ed25519 AAAA… comment`)")]
    Public(#[source] ssh_key::Error),
}

impl KeyPair {
    /// A new pair; the randomness is the kernel's.
    ///
    /// # Errors
    /// [`KeyError::Generate`] for a comment that cannot stand in a key file.
    pub fn generate(comment: &str) -> Result<KeyPair, KeyError> {
        let mut key =
            PrivateKey::random(&mut OsRng, Algorithm::Ed25519).map_err(KeyError::Generate)?;
        key.set_comment(comment);
        KeyPair::encode(&key).map_err(KeyError::Generate)
    }

    /// A pair from the text that [`KeyPair::private`] gave.
    ///
    /// # Errors
    /// [`KeyError::Private`] for any other text.
    pub fn from_private(text: &str) -> Result<KeyPair, KeyError> {
        let key = PrivateKey::from_openssh(text).map_err(KeyError::Private)?;
        KeyPair::encode(&key).map_err(KeyError::Private)
    }

    fn encode(key: &PrivateKey) -> Result<KeyPair, ssh_key::Error> {
        Ok(KeyPair {
            private: key.to_openssh(LineEnding::LF)?.as_str().to_owned(),
            public: key.public_key().to_openssh()?,
        })
    }

    /// The private key file's text, ending in a newline. A secret.
    pub fn private(&self) -> &str {
        &self.private
    }

    /// The public key's line, without a newline.
    pub fn public(&self) -> &str {
        &self.public
    }

    /// A line for `known_hosts`: whoever answers to one of these names has this key.
    ///
    /// `names` are host names or aliases (`HostKeyAlias`), free of spaces and commas.
    pub fn known_hosts_line(&self, names: &[&str]) -> String {
        let mut words = self.public.split(' ');
        let algorithm = words.next().unwrap_or_default();
        let key = words.next().unwrap_or_default();
        format!("{} {algorithm} {key}\n", names.join(","))
    }
}

/// Hides the private half.
impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

/// The line of a public key, as `authorized_keys` takes it.
///
/// # Errors
/// [`KeyError::Public`] for what is no public key of a kind that OpenSSH knows.
pub fn check_public(line: &str) -> Result<String, KeyError> {
    PublicKey::from_openssh(line)
        .and_then(|key| key.to_openssh())
        .map_err(KeyError::Public)
}
