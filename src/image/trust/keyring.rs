//! The keys that images are checked with: those that kiln comes with, or the user's in their place.

use super::certificate::{self, SigningKey};
use super::packet::{Malformed, dearmor};

/// Keys that may sign images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keyring {
    keys: Vec<SigningKey>,
}

/// Whose images a keyring is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    Fedora,
    Flatcar,
}

/// Why a file is no keyring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    #[error("it is not OpenPGP's form")]
    Form,
    #[error("there is a secret key in it; a keyring has public ones")]
    Secret,
    #[error("there is no key in it that may sign and that kiln can use")]
    Empty,
}

impl Keyring {
    /// Reads a keyring, armored or not.
    pub fn parse(bytes: &[u8]) -> Result<Keyring, KeyringError> {
        let bytes = dearmor(bytes).map_err(|Malformed| KeyringError::Form)?;
        let keys = certificate::signing_keys(&bytes)
            .map_err(|Malformed| KeyringError::Form)?
            .ok_or(KeyringError::Secret)?;
        if keys.is_empty() {
            return Err(KeyringError::Empty);
        }
        Ok(Keyring { keys })
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &SigningKey> {
        self.keys.iter()
    }
}

impl Vendor {
    /// The name of the user's own keyring, without `.asc` or `.gpg`.
    pub fn file(self) -> &'static str {
        match self {
            Vendor::Fedora => "fedora-coreos",
            Vendor::Flatcar => "flatcar",
        }
    }

    /// The keyring that kiln comes with; `keyrings/README.md` says where it is from.
    pub fn shipped(self) -> &'static [u8] {
        match self {
            Vendor::Fedora => include_bytes!("keyrings/fedora-coreos.asc"),
            Vendor::Flatcar => include_bytes!("keyrings/flatcar.asc"),
        }
    }
}
