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

#[cfg(test)]
mod tests {
    use super::*;

    const RSA: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQDNtPLGU46Wtcuwk1H62Q6BR709hKcRfQjKiR2r60OpM2ohTttP3qy2mJXeuRMpsh51WERI62d5Y7NHqqmhzpClswNrjJH7LFatO03DvEX34KLsPneiQIzbAAl46vDDe3mu/cgbCBv+SW7kItMCIqm3VyjBv6M91cZ0lPgd0kPM9YacBi9OC+dvNoTCPJKXiN/Kwhwumc53yK15vkTawYKirSAFt7aWWcFFGcVyvIOq9D8cysUD8aIfi3a3cExGkfhL/1BGzNgu3cT6ZCEEJqOp+AsDONYIFdVz8/s+wQ/Fs+AevVQV1fzdlp3jvNUnCpw0AX1hzwJfR2vDxsLSsjt1xUSkJySSalaigloJw3HRHIfSybhyKBTnRJjQ1TodRodAfSbuKSg4ZcrcOZwg2Bzr3Yc/rBvp2AqxgC4LCLbup4CsUJrf+3mtAB8ykmVwhFDgjPkI74ypBKOw1a/hPtQ6ffUK+SdIl5uM4FJPtdUoCPYDhpdi2AiOFXYxFv8mN18= a b";
    const ECDSA: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHmlYYC6wm4YABWC1LekY3vIiyf6ChpIq5yoeapl031KBF/KHP+jc6/Vmh8eDT9MuiJ+e8Jk/Gyx4sLkwFt9Tp0= a b";
    const HARDWARE: &str = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAICFo/k5LU8863u66YC9eUO2170QduohPURkQnbLa/dczAAAABHNzaDo= token";

    #[test]
    fn a_pair_survives_its_own_text() {
        let pair = KeyPair::generate("kiln: demo").unwrap();
        assert!(pair.public().starts_with("ssh-ed25519 AAAA"));
        assert!(pair.public().ends_with(" kiln: demo"));
        assert!(
            pair.private()
                .ends_with("-----END OPENSSH PRIVATE KEY-----\n")
        );
        assert_eq!(KeyPair::from_private(pair.private()).unwrap(), pair);
        assert_ne!(KeyPair::generate("kiln: demo").unwrap(), pair);
    }

    #[test]
    fn debug_hides_the_private_half() {
        let pair = KeyPair::generate("x").unwrap();
        let shown = format!("{pair:?}");
        let secret = pair.private().lines().nth(3).unwrap();
        assert!(shown.contains(pair.public()));
        assert!(!shown.contains(secret) && !shown.contains("PRIVATE"));
    }

    #[test]
    fn known_hosts_lines_name_the_key() {
        let pair = KeyPair::generate("a comment").unwrap();
        let blob = pair.public().split(' ').nth(1).unwrap();
        assert_eq!(
            pair.known_hosts_line(&["node-1", "node-1.demo"]),
            format!("node-1,node-1.demo ssh-ed25519 {blob}\n")
        );
    }

    #[test]
    fn every_kind_of_public_key_is_taken() {
        let pair = KeyPair::generate("x").unwrap();
        for line in [RSA, ECDSA, HARDWARE, pair.public()] {
            assert_eq!(check_public(line).unwrap(), line);
        }
    }

    #[test]
    fn what_is_no_public_key_is_refused() {
        for line in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 AAAA",
            "ssh-rsa hunter2 me",
            "command=\"x\" ssh-ed25519",
        ] {
            assert!(check_public(line).is_err(), "{line}");
        }
        assert!(KeyPair::from_private("hunter2").is_err());
    }
}
