//! An image that lies elsewhere: a stream's by its name, or any by its address.
//!
//! Only what was asked for stands here. Which release that means today, and where its file lies, is
//! found by [`crate::image::source`].

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use kiln_arch::Arch;

use crate::cluster::DiskFormat;

/// An image to be fetched.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RemoteImage {
    pub source: Source,
    /// Taken without a signature, or without a digest, where there is none. One that is there is
    /// checked all the same.
    pub insecure: bool,
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// `fedora-coreos:STREAM[@RELEASE]`
    FedoraCoreos { stream: Word, release: Option<Word> },
    /// `flatcar:CHANNEL[@VERSION]`
    Flatcar {
        channel: Word,
        release: Option<Word>,
    },
    /// `rhcos:4.18` or `rhcos:4.18.1`
    Rhcos { minor: Word, release: Option<Word> },
    /// `https://…` or `http://…`
    Address {
        url: Address,
        /// Of the file as it is sent; lower-case hexadecimal.
        sha256: Option<String>,
        format: DiskFormat,
    },
}

/// A word that is safe in an address: letters, digits, `.`, `_` and `-`, at most 64 of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Word(String);

/// An `http` or `https` address without a user's name or a fragment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(String);

/// How a file is compressed, which its name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    None,
    Xz,
    Gzip,
    Bzip2,
    Zstd,
}

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error(
        "`{text}` is no word for a stream or release: use letters, digits, `.`, `_` and `-`, at most {WORD_LIMIT}"
    )]
    Word { text: String },
    #[error(
        "a stream or release is missing: write `fedora-coreos:stable`, or `flatcar:stable@4230.2.3`"
    )]
    Missing,
    #[error("`{text}` names no release: write `rhcos:4.18` for the newest, or `rhcos:4.18.1`")]
    Rhcos { text: String },
    #[error("`{text}` is no address: write `https://HOST/PATH`, with other characters as `%XX`")]
    Address { text: String },
    #[error(
        "an address with a user's name or password is refused: it would be written to `kiln.lock`"
    )]
    Credentials,
}

const WORD_LIMIT: usize = 64;
const ADDRESS_LIMIT: usize = 2048;

impl Source {
    /// Reads the name of a stream. `None` when it is none, and so probably a path.
    ///
    /// # Errors
    /// [`SourceError`] for a known stream with a wrong rest.
    pub fn named(text: &str) -> Option<Result<Source, SourceError>> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        match name {
            "fedora-coreos" | "fcos" => {
                Some(pair(rest).map(|(stream, release)| Source::FedoraCoreos { stream, release }))
            }
            "flatcar" => {
                Some(pair(rest).map(|(channel, release)| Source::Flatcar { channel, release }))
            }
            "rhcos" => Some(rhcos(rest)),
            _ => None,
        }
    }

    /// Whether the same words always mean the same file.
    pub fn is_fixed(&self) -> bool {
        match self {
            Source::FedoraCoreos { release, .. }
            | Source::Flatcar { release, .. }
            | Source::Rhcos { release, .. } => release.is_some(),
            Source::Address { sha256, .. } => sha256.is_some(),
        }
    }

    /// The architectures that its maker has images for.
    pub fn archs(&self) -> &'static [Arch] {
        match self {
            Source::FedoraCoreos { .. } | Source::Rhcos { .. } => {
                &[Arch::X86_64, Arch::Aarch64, Arch::S390x, Arch::Ppc64le]
            }
            Source::Flatcar { .. } => &[Arch::X86_64, Arch::Aarch64],
            Source::Address { .. } => &Arch::ALL,
        }
    }

    pub fn format(&self) -> DiskFormat {
        match self {
            Source::FedoraCoreos { .. } | Source::Flatcar { .. } | Source::Rhcos { .. } => {
                DiskFormat::Qcow2
            }
            Source::Address { format, .. } => *format,
        }
    }
}

/// `STREAM` or `STREAM@RELEASE`.
fn pair(text: &str) -> Result<(Word, Option<Word>), SourceError> {
    match text.split_once('@') {
        None => Ok((text.parse()?, None)),
        Some((name, release)) => Ok((name.parse()?, Some(release.parse()?))),
    }
}

fn rhcos(text: &str) -> Result<Source, SourceError> {
    let wrong = || SourceError::Rhcos {
        text: text.chars().take(80).collect(),
    };
    let word: Word = text.parse().map_err(|_| wrong())?;
    let mut parts = text.splitn(3, '.');
    let mut number = || {
        parts
            .next()
            .filter(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
            .ok_or_else(wrong)
    };
    let minor = format!("{}.{}", number()?, number()?);
    Ok(Source::Rhcos {
        minor: Word(minor),
        release: parts.next().map(|_| word),
    })
}

impl FromStr for Word {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Word, SourceError> {
        if text.is_empty() {
            return Err(SourceError::Missing);
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let sound = text.len() <= WORD_LIMIT
            && text.bytes().all(allowed)
            && text.as_bytes()[0].is_ascii_alphanumeric()
            && !text.contains("..");
        if sound {
            return Ok(Word(text.to_owned()));
        }
        Err(SourceError::Word {
            text: text.chars().take(80).collect(),
        })
    }
}

impl FromStr for Address {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Address, SourceError> {
        let wrong = || SourceError::Address {
            text: text.chars().take(80).collect(),
        };
        let rest = text
            .strip_prefix("https://")
            .or_else(|| text.strip_prefix("http://"))
            .ok_or_else(wrong)?;
        let (authority, path) = rest.split_once('/').ok_or_else(wrong)?;
        if authority.contains('@') {
            return Err(SourceError::Credentials);
        }
        let host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        let rest = |byte: u8| byte.is_ascii_graphic() && !b"\"#<>\\^`{|}".contains(&byte);
        let sound = !authority.is_empty()
            && authority.bytes().all(host)
            && path.bytes().all(rest)
            && text.len() <= ADDRESS_LIMIT;
        sound.then(|| Address(text.to_owned())).ok_or_else(wrong)
    }
}

impl Word {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Address {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether others on the way could change what is sent.
    pub fn is_plain(&self) -> bool {
        self.0.starts_with("http://")
    }

    /// Up to a question mark.
    pub fn path(&self) -> &str {
        self.0.split('?').next().unwrap_or(&self.0)
    }

    /// The name of the file without the ending that tells its compression.
    pub fn unpacked(&self) -> &Path {
        let path = self.path();
        let bare = Packing::ENDINGS
            .iter()
            .find_map(|(ending, _)| path.strip_suffix(ending))
            .unwrap_or(path);
        Path::new(bare)
    }
}

impl Packing {
    const ENDINGS: [(&str, Packing); 4] = [
        (".xz", Packing::Xz),
        (".gz", Packing::Gzip),
        (".bz2", Packing::Bzip2),
        (".zst", Packing::Zstd),
    ];

    /// Of the file at this address.
    pub fn of(url: &Address) -> Packing {
        Packing::ENDINGS
            .into_iter()
            .find(|(ending, _)| url.path().ends_with(ending))
            .map_or(Packing::None, |(_, packing)| packing)
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for Source {
    /// As a spec may say it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, of, release) = match self {
            Source::FedoraCoreos { stream, release } => ("fedora-coreos", stream, release),
            Source::Flatcar { channel, release } => ("flatcar", channel, release),
            Source::Rhcos {
                minor,
                release: None,
            } => return write!(f, "rhcos:{minor}"),
            Source::Rhcos {
                release: Some(release),
                ..
            } => return write!(f, "rhcos:{release}"),
            Source::Address { url, .. } => return f.write_str(&url.0),
        };
        write!(f, "{name}:{of}")?;
        match release {
            Some(release) => write!(f, "@{release}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_alike() {
        for text in [
            "fedora-coreos:stable",
            "fedora-coreos:next@44.20260101.1.0",
            "flatcar:lts-2024",
            "flatcar:stable@4230.2.3",
            "rhcos:4.18",
            "rhcos:4.18.1",
        ] {
            let source = Source::named(text).unwrap().unwrap();
            assert_eq!(source.to_string(), text);
            let fixed = text.contains('@') || text.ends_with(".1");
            assert_eq!(source.is_fixed(), fixed, "{text}");
        }
        assert_eq!(
            Source::named("fcos:stable").unwrap().unwrap().to_string(),
            "fedora-coreos:stable"
        );
        for text in ["disk.qcow2", "./flatcar.qcow2", "debian:12"] {
            assert!(Source::named(text).is_none(), "{text}");
        }
    }

    #[test]
    fn what_could_leave_its_place_in_an_address_is_refused() {
        for text in [
            "fedora-coreos",
            "fedora-coreos:",
            "fedora-coreos:../x",
            "fedora-coreos:a/b",
            "flatcar:stable@",
            "flatcar:stable@1@2",
            "flatcar:a b",
            "flatcar:.x",
            "rhcos:4",
            "rhcos:4.",
            "rhcos:four.1",
            "rhcos:4.18@1",
            "rhcos:latest",
        ] {
            assert!(matches!(Source::named(text), Some(Err(_))), "{text}");
        }
    }

    #[test]
    fn addresses_have_a_host_and_no_password() {
        let url: Address = "https://a.example:8443/x/disk.qcow2.xz?y=.gz"
            .parse()
            .unwrap();
        assert_eq!(Packing::of(&url), Packing::Xz);
        assert_eq!(
            url.unpacked(),
            Path::new("https://a.example:8443/x/disk.qcow2")
        );
        for text in [
            "https://",
            "https:///x",
            "https://host",
            "ftp://host/x",
            "https://ho st/x",
            "https://host/a b",
            "https://host/x#y",
            "https://host/\u{202e}",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        assert_eq!(
            "https://me:secret@host/x".parse::<Address>(),
            Err(SourceError::Credentials)
        );
    }
}
