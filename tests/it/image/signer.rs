//! A key of the test's own, and detached signatures by it: as little of OpenPGP as that takes.

use ed25519_dalek::{Signer as _, SigningKey};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// 2020-01-01.
const CREATED: u32 = 1_577_836_800;
const ED25519: [u8; 9] = [0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01];

#[derive(Debug)]
pub(crate) struct Signer {
    key: SigningKey,
    name: String,
    /// The body of the key's packet.
    body: Vec<u8>,
}

impl Signer {
    /// The same name and number give the same key.
    pub(crate) fn new(name: &str, number: u8) -> Signer {
        let key = SigningKey::from_bytes(&[number; 32]);
        let point = [&[0x40][..], key.verifying_key().as_bytes()].concat();
        let body = [
            &[4][..],
            &CREATED.to_be_bytes(),
            &[22, 9],
            &ED25519,
            &number_of(&point),
        ]
        .concat();
        Signer {
            key,
            name: name.to_owned(),
            body,
        }
    }

    /// The key with its owner's name, for a keyring.
    pub(crate) fn certificate(&self) -> Vec<u8> {
        let user = self.name.as_bytes();
        let length = u32::try_from(user.len()).unwrap().to_be_bytes();
        let content = [&self.hashed(), &[0xb4][..], &length, user].concat();
        // It certifies and signs.
        let by_itself = self.signature(0x13, &[2, 27, 0x03], &content);
        [packet(6, &self.body), packet(13, user), by_itself].concat()
    }

    /// Of a file's content.
    pub(crate) fn sign(&self, content: &[u8]) -> Vec<u8> {
        self.signature(0, &[], content)
    }

    fn signature(&self, kind: u8, more: &[u8], content: &[u8]) -> Vec<u8> {
        let fingerprint = Sha1::digest(self.hashed());
        let hashed = [
            &[5, 2][..],
            &(CREATED + 3600).to_be_bytes(),
            &[22, 33, 4],
            &fingerprint,
            more,
        ]
        .concat();
        let length = u16::try_from(hashed.len()).unwrap().to_be_bytes();
        let head = [&[4, kind, 22, 8][..], &length, &hashed].concat();
        let end = u32::try_from(head.len()).unwrap().to_be_bytes();
        let digest = Sha256::new()
            .chain_update(content)
            .chain_update(&head)
            .chain_update([4, 0xff])
            .chain_update(end)
            .finalize();
        let signature = self.key.sign(&digest).to_bytes();
        let issuer = [&[0, 10, 9, 16][..], &fingerprint[12..]].concat();
        let numbers = [number_of(&signature[..32]), number_of(&signature[32..])].concat();
        packet(2, &[&head, &issuer, &digest[..2], &numbers].concat())
    }

    /// As the key goes into hashes.
    fn hashed(&self) -> Vec<u8> {
        let length = u16::try_from(self.body.len()).unwrap().to_be_bytes();
        [&[0x99][..], &length, &self.body].concat()
    }
}

fn packet(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[0xc0 | tag, 255][..], &length, body].concat()
}

fn number_of(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let bytes = &bytes[zeros..];
    let bits = bytes.len() * 8 - bytes[0].leading_zeros() as usize;
    let bits = u16::try_from(bits).unwrap().to_be_bytes();
    [&bits[..], bytes].concat()
}
