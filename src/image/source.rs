//! Which file an image's name means: what the vendors' servers say of their releases.
//!
//! The readers in here are pure; what a server sent goes in as bytes. The addresses are the official
//! ones. A mirror stands in for them by [`mirror::Mirrors`], so that what is pinned with one mirror
//! is found with another.

pub mod fedora;
pub mod flatcar;
pub mod mirror;
pub mod resolve;
pub mod rhcos;

use crate::cluster::remote::{Address, SourceError};

/// One file to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// In the vendor's words; empty for a plain address.
    pub release: String,
    pub url: Address,
    /// Where its detached signature lies.
    pub signature: Option<Address>,
    /// Of the file as it is sent; lower-case hexadecimal.
    pub sha256: Option<String>,
    /// Of the file once it is unpacked.
    pub unpacked_sha256: Option<String>,
}

/// Why what a server said of its releases is of no use.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    #[error("it is not the JSON of Fedora CoreOS's releases")]
    Json {
        #[source]
        source: serde_json::Error,
    },
    #[error("it has nothing for {arch}")]
    NoArch { arch: String },
    #[error("it has no QEMU image for {arch}")]
    NoImage { arch: String },
    #[error("it speaks of release {found}, and {want} was asked for")]
    OtherRelease { want: String, found: String },
    #[error("it names an address that is none")]
    Address {
        #[source]
        source: SourceError,
    },
    #[error("it names `{text}` where a release's number belongs")]
    Release { text: String },
    #[error("it names a digest that is none")]
    Digest,
    #[error("it does not say which release this is")]
    NoRelease,
}

/// A SHA-256 digest as 64 hexadecimal digits, in lower case.
pub(super) fn digest(text: &str) -> Result<String, MetadataError> {
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(MetadataError::Digest)
}

/// Something that cannot leave its place in an address or on a terminal.
fn release(text: &str) -> Result<String, MetadataError> {
    match text.parse::<crate::cluster::remote::Word>() {
        Ok(word) => Ok(word.to_string()),
        Err(_) => Err(MetadataError::Release {
            text: text
                .chars()
                .filter(|it| !it.is_control())
                .take(80)
                .collect(),
        }),
    }
}

fn address(text: &str) -> Result<Address, MetadataError> {
    text.parse()
        .map_err(|source| MetadataError::Address { source })
}
