//! Brings an image into the cache: which file it is, whether it is here, and else fetched and verified.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kiln_arch::Arch;
use nix::libc;
use sha2::{Digest, Sha256};

use super::base::{self, ImageError};
use super::cache::{Cache, CacheError, ImageRecord, Kept, Need, Verified};
use super::digest;
use super::fetch::http::{Client, HttpError};
use super::fetch::partial::Partial;
use super::fetch::{self, FetchError, Progress, Received, Wanted};
use super::pins::Pin;
use super::source::Artifact;
use super::source::resolve::{self, ResolveError};
use super::trust::keyring::Vendor;
use super::trust::{Check, Keyring, KeyringError, Signer, TrustError};
use crate::cluster::remote::{Packing, RemoteImage, Source};
use crate::folder::Incoming;
use crate::state::files::SCHEMA;

/// A keyring is of some kilobytes.
const KEYRING_LIMIT: u64 = 1 << 20;

/// What pulls images.
#[derive(Debug)]
pub struct Puller<'a> {
    pub cache: &'a Cache,
    pub client: &'a Client,
    /// Where the user's own keyrings are.
    pub keyrings: &'a Path,
}

/// How a pull comes along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Which file it is, with its release.
    Found {
        image: String,
    },
    /// Another kiln downloads the same file; that is waited for.
    Waiting {
        holder: String,
    },
    Progress(Progress),
    /// What was left of a former download was of no use.
    Anew,
    /// There is no signature, and the spec says that there need not be one.
    Unsigned,
}

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("cannot find out what to download")]
    Resolve {
        #[source]
        source: ResolveError,
    },
    #[error("cannot fetch `{image}`")]
    Fetch {
        image: String,
        #[source]
        source: FetchError,
    },
    #[error("cannot fetch the signature of `{image}`")]
    Signature {
        image: String,
        #[source]
        source: HttpError,
    },
    #[error("`{image}` has no signature")]
    Unsigned { image: String },
    #[error("refused `{image}`: its signature does not hold")]
    Trust {
        image: String,
        #[source]
        source: TrustError,
    },
    #[error("cannot use the keyring `{}`", path.display())]
    Keyring {
        path: PathBuf,
        #[source]
        source: KeyringError,
    },
    #[error("cannot read the keyring `{}`", path.display())]
    ReadKeyring {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("refused `{image}`: {what} has the SHA-256 {found}, and it has to be {want}")]
    Digest {
        image: String,
        what: &'static str,
        want: String,
        found: String,
    },
    #[error("refused `{image}`")]
    Image {
        image: String,
        #[source]
        source: ImageError,
    },
    #[error("cannot keep an image")]
    Cache {
        #[source]
        source: CacheError,
    },
    #[error("cannot write below `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl PullError {
    /// Whether what was received is worthless.
    fn spoils(&self) -> bool {
        match self {
            PullError::Fetch { source, .. } => source.spoils(),
            PullError::Trust { .. } | PullError::Digest { .. } | PullError::Image { .. } => true,
            PullError::Resolve { .. }
            | PullError::Signature { .. }
            | PullError::Unsigned { .. }
            | PullError::Keyring { .. }
            | PullError::ReadKeyring { .. }
            | PullError::Cache { .. }
            | PullError::Write { .. } => false,
        }
    }
}

impl Source {
    /// Who signs its images.
    pub fn vendor(&self) -> Option<Vendor> {
        match self {
            Source::FedoraCoreos { .. } => Some(Vendor::Fedora),
            Source::Flatcar { .. } => Some(Vendor::Flatcar),
            Source::Rhcos { .. } | Source::Address { .. } => None,
        }
    }

    /// The same, with its release.
    pub fn at(&self, release: &str) -> String {
        match self {
            Source::FedoraCoreos { stream, .. } => format!("fedora-coreos:{stream}@{release}"),
            Source::Flatcar { channel, .. } => format!("flatcar:{channel}@{release}"),
            Source::Rhcos { .. } => format!("rhcos:{release}"),
            Source::Address { url, .. } => url.to_string(),
        }
    }
}

impl RemoteImage {
    /// What in the cache would do for it.
    pub fn need(&self, artifact: &Artifact) -> Need {
        let verified = match (self.insecure, self.source.vendor()) {
            (false, Some(_)) => Verified::Signature,
            (true, _) | (false, None) => Verified::No,
        };
        Need {
            url: artifact.url.to_string(),
            sha256: artifact.sha256.clone(),
            unpacked_sha256: artifact.unpacked_sha256.clone(),
            verified,
        }
    }
}

/// What `kiln.lock` is to keep of an image that is here.
pub fn pin(image: &RemoteImage, artifact: &Artifact, record: &ImageRecord) -> Pin {
    Pin {
        image: image.source.to_string(),
        arch: record.arch.clone(),
        release: artifact.release.clone(),
        url: artifact.url.to_string(),
        signature: artifact.signature.as_ref().map(ToString::to_string),
        sha256: Some(record.sha256.clone()),
        unpacked_sha256: Some(record.unpacked_sha256.clone()),
        size: Some(record.size),
    }
}

impl Puller<'_> {
    /// Which file the image is now, by its server.
    pub fn resolve(&self, image: &RemoteImage, arch: Arch) -> Result<Artifact, PullError> {
        resolve::resolve(&image.source, arch, self.client)
            .map_err(|source| PullError::Resolve { source })
    }

    /// The image from the cache, or fetched. With `anew` it is fetched in any case.
    pub fn pull(
        &self,
        image: &RemoteImage,
        arch: Arch,
        artifact: &Artifact,
        anew: bool,
        tell: &mut dyn FnMut(Told),
    ) -> Result<Kept, PullError> {
        let cache = |source| PullError::Cache { source };
        let name = image.source.at(&artifact.release);
        tell(Told::Found {
            image: name.clone(),
        });
        let need = image.need(artifact);
        if !anew && let Some(kept) = self.cache.find(&need).map_err(cache)? {
            return Ok(kept);
        }
        self.cache.open().map_err(cache)?;
        let key = digest::hex(&Sha256::digest(artifact.url.as_str())[..16]);
        let lock = self
            .cache
            .lock(&key, self.client.left(), |holder| {
                tell(Told::Waiting {
                    holder: holder.to_owned(),
                });
            })
            .map_err(cache)?;
        let job = Fetching {
            puller: self,
            image,
            arch,
            artifact,
            name,
            key: &key,
            signature: None,
        };
        // Whoever was waited for may have fetched it.
        let found = match anew {
            true => Ok(None),
            false => self.cache.find(&need).map_err(cache),
        };
        let kept = found.and_then(|found| match found {
            Some(kept) => Ok(kept),
            None => job.run(anew, tell),
        });
        lock.remove();
        kept
    }

    fn keyring(&self, vendor: Vendor) -> Result<Keyring, PullError> {
        for ending in ["asc", "gpg"] {
            let path = self.keyrings.join(vendor.file()).with_extension(ending);
            let bytes = match read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(PullError::ReadKeyring { path, source }),
                Ok(bytes) => bytes,
            };
            return Keyring::parse(&bytes).map_err(|source| PullError::Keyring { path, source });
        }
        Keyring::parse(vendor.shipped()).map_err(|source| PullError::Keyring {
            path: PathBuf::from(vendor.file()),
            source,
        })
    }
}

/// One file on its way, under its lock.
struct Fetching<'a> {
    puller: &'a Puller<'a>,
    image: &'a RemoteImage,
    arch: Arch,
    artifact: &'a Artifact,
    name: String,
    key: &'a str,
    signature: Option<(Vec<u8>, Keyring)>,
}

impl Fetching<'_> {
    fn run(mut self, anew: bool, tell: &mut dyn FnMut(Told)) -> Result<Kept, PullError> {
        self.signature = self.signature(tell)?;
        let mut kept = self.fetch(anew, tell);
        if let Err((error, true)) = &kept {
            tracing::info!(%error, "what a former download received was of no use");
            tell(Told::Anew);
            kept = self.fetch(true, tell);
        }
        kept.map_err(|(error, _)| error)
    }

    /// The signature and who may have made it; `None` for an image that has none and needs none.
    fn signature(
        &self,
        tell: &mut dyn FnMut(Told),
    ) -> Result<Option<(Vec<u8>, Keyring)>, PullError> {
        let Some(vendor) = self.image.source.vendor() else {
            return Ok(None);
        };
        let bytes =
            match &self.artifact.signature {
                Some(url) => self.puller.client.small(url.as_str()).map_err(|source| {
                    PullError::Signature {
                        image: self.name.clone(),
                        source,
                    }
                })?,
                None => None,
            };
        match bytes {
            Some(bytes) => Ok(Some((bytes, self.puller.keyring(vendor)?))),
            None if self.image.insecure => {
                tell(Told::Unsigned);
                Ok(None)
            }
            None => Err(PullError::Unsigned {
                image: self.name.clone(),
            }),
        }
    }

    /// An error comes with whether it may be the fault of what a former download left.
    fn fetch(&self, anew: bool, tell: &mut dyn FnMut(Told)) -> Result<Kept, (PullError, bool)> {
        let folder = self.puller.cache.folder();
        let write = |source| {
            let path = folder.to_owned();
            (PullError::Write { path, source }, false)
        };
        let url = self.puller.client.mirrored(self.artifact.url.as_str());
        let check = self.signature.as_ref().map(|(bytes, _)| Check::new(bytes));
        let check = check
            .transpose()
            .map_err(|source| (self.untrusted(source), false))?;
        let mut partial = Partial::open(folder, self.key, &self.name, &url).map_err(write)?;
        if anew {
            partial.restart(None, None).map_err(write)?;
        }
        let left = partial.length() > 0;
        let mut incoming = Incoming::beside(&folder.join("image")).map_err(write)?;
        let wanted = Wanted {
            url,
            packing: Packing::of(&self.artifact.url),
            check,
            has_digest: self.artifact.sha256.is_some() || self.artifact.unpacked_sha256.is_some(),
        };
        let mut progress = |progress| tell(Told::Progress(progress));
        let received = fetch::fetch(
            self.puller.client,
            wanted,
            &mut partial,
            &mut incoming,
            &mut progress,
        );
        let result = received
            .map_err(|source| PullError::Fetch {
                image: self.name.clone(),
                source,
            })
            .and_then(|received| self.keep(incoming, received));
        match result {
            Ok(kept) => {
                partial.discard();
                Ok(kept)
            }
            Err(error) if error.spoils() => {
                partial.discard();
                Err((error, left))
            }
            Err(error) => {
                partial.keep();
                Err((error, false))
            }
        }
    }

    /// Judges what was received, and puts it into the cache.
    fn keep(&self, mut incoming: Incoming, received: Received) -> Result<Kept, PullError> {
        let signer = self.judge(&received)?;
        let shown = Path::new(self.artifact.url.as_str());
        let format = self.image.source.format();
        let virtual_size = base::examine(shown, &mut incoming.file, format).map_err(|source| {
            PullError::Image {
                image: self.name.clone(),
                source,
            }
        })?;
        let verified = match (&signer, &self.artifact.sha256) {
            (Some(_), _) => Verified::Signature,
            (None, Some(_)) => Verified::Digest,
            (None, None) => Verified::No,
        };
        let record = ImageRecord {
            schema: SCHEMA,
            image: self.name.clone(),
            arch: self.arch.to_string(),
            url: self.artifact.url.to_string(),
            sha256: received.sha256,
            size: received.size,
            unpacked_sha256: received.unpacked_sha256,
            format: format.driver().to_owned(),
            length: received.unpacked_size,
            virtual_size,
            verified,
            signer: signer.map(|signer| format!("{} {}", signer.name, signer.fingerprint)),
            fetched_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            file: None,
        };
        self.puller
            .cache
            .keep(incoming, record)
            .map_err(|source| PullError::Cache { source })
    }

    /// Whether digests and signature are right; who signed it.
    fn judge(&self, received: &Received) -> Result<Option<Signer>, PullError> {
        let digests = [
            ("the file", &self.artifact.sha256, &received.sha256),
            (
                "the unpacked file",
                &self.artifact.unpacked_sha256,
                &received.unpacked_sha256,
            ),
        ];
        for (what, want, found) in digests {
            if let Some(want) = want
                && want != found
            {
                return Err(PullError::Digest {
                    image: self.name.clone(),
                    what,
                    want: want.clone(),
                    found: found.clone(),
                });
            }
        }
        let Some((_, keyring)) = &self.signature else {
            return Ok(None);
        };
        let Some(check) = received.check.clone() else {
            return Err(self.untrusted(TrustError::Form {
                why: "it was not checked",
            }));
        };
        check
            .finish(keyring, SystemTime::now())
            .map(Some)
            .map_err(|source| self.untrusted(source))
    }

    fn untrusted(&self, source: TrustError) -> PullError {
        PullError::Trust {
            image: self.name.clone(),
            source,
        }
    }
}

/// A small regular file.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    if !fs::metadata(path)?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    file.take(KEYRING_LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > KEYRING_LIMIT {
        let message = format!("it is larger than {KEYRING_LIMIT} bytes (1 MiB)");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyring_is_read_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keyring");
        let length = usize::try_from(KEYRING_LIMIT).unwrap();
        fs::write(&path, vec![1; length]).unwrap();
        assert_eq!(read(&path).unwrap().len(), length);
        fs::write(&path, vec![1; length + 1]).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("larger than"), "{error}");
    }
}
