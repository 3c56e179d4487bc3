//! Asks the servers which file a name means.

use kiln_arch::Arch;

use super::{Artifact, MetadataError, address, fedora, flatcar, rhcos};
use crate::cluster::remote::Source;
use crate::image::fetch::http::{Client, HttpError};

/// Why it is not known which file a name means.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("cannot ask which release `{image}` is")]
    Http {
        image: String,
        #[source]
        source: HttpError,
    },
    #[error("there is no `{image}` for {arch}: the server has no `{url}`")]
    Missing {
        image: String,
        arch: Arch,
        url: String,
    },
    #[error("cannot use what the server says of `{image}`, in `{url}`")]
    Metadata {
        image: String,
        url: String,
        #[source]
        source: MetadataError,
    },
    #[error("there is no `{image}`")]
    Arch {
        image: String,
        #[source]
        source: MetadataError,
    },
}

/// The file that `source` means now.
pub fn resolve(source: &Source, arch: Arch, client: &Client) -> Result<Artifact, ResolveError> {
    let asking = Asking {
        image: source.to_string(),
        arch,
        client,
    };
    match source {
        Source::FedoraCoreos { stream, release } => match release {
            None => {
                let url = fedora::stream_address(stream.as_str());
                let bytes = asking.get(&url)?;
                fedora::newest(&bytes, arch).map_err(|source| asking.useless(&url, source))
            }
            Some(release) => {
                let url = fedora::release_address(stream.as_str(), release.as_str());
                let bytes = asking.get(&url)?;
                fedora::of_release(&bytes, release.as_str(), arch)
                    .map_err(|source| asking.useless(&url, source))
            }
        },
        Source::Flatcar { channel, release } => {
            let folder = |release: Option<&str>| {
                flatcar::folder(channel.as_str(), arch, release)
                    .map_err(|source| asking.no_arch(source))
            };
            let release = match release {
                Some(release) => release.to_string(),
                None => {
                    let url = format!("{}/version.txt", folder(None)?);
                    let bytes = asking.get(&url)?;
                    flatcar::version(&bytes).map_err(|source| asking.useless(&url, source))?
                }
            };
            asking.flatcar(&folder(Some(&release))?, &release)
        }
        Source::Rhcos { minor, release } => {
            let release = release.as_ref().map(|release| release.as_str());
            let folder = rhcos::folder(minor.as_str(), arch, release)
                .map_err(|source| asking.no_arch(source))?;
            let url = rhcos::sums_address(&folder);
            let bytes = asking.get(&url)?;
            rhcos::image(&bytes, minor.as_str(), release, arch)
                .map_err(|source| asking.useless(&url, source))
        }
        Source::Address { url, sha256, .. } => Ok(Artifact {
            release: String::new(),
            url: url.clone(),
            signature: None,
            sha256: sha256.clone(),
            unpacked_sha256: None,
        }),
    }
}

struct Asking<'a> {
    image: String,
    arch: Arch,
    client: &'a Client,
}

impl Asking<'_> {
    fn get(&self, url: &str) -> Result<Vec<u8>, ResolveError> {
        self.maybe(url)?.ok_or_else(|| self.missing(url))
    }

    fn maybe(&self, url: &str) -> Result<Option<Vec<u8>>, ResolveError> {
        self.client.small(url).map_err(|source| ResolveError::Http {
            image: self.image.clone(),
            source,
        })
    }

    /// The file of that release whose signature is there; one without, where none has any.
    fn flatcar(&self, folder: &str, release: &str) -> Result<Artifact, ResolveError> {
        let useless = |url: &str, source| self.useless(url, source);
        let artifact = |url: &str, signature: Option<&str>| {
            Ok(Artifact {
                release: release.to_owned(),
                url: address(url).map_err(|source| useless(url, source))?,
                signature: signature
                    .map(address)
                    .transpose()
                    .map_err(|source| useless(url, source))?,
                sha256: None,
                unpacked_sha256: None,
            })
        };
        for url in flatcar::candidates(folder, self.arch) {
            let signature = format!("{url}.sig");
            if self.maybe(&signature)?.is_some() {
                return artifact(&url, Some(&signature));
            }
        }
        for url in flatcar::candidates(folder, self.arch) {
            let there = self.client.has(&url).map_err(|source| ResolveError::Http {
                image: self.image.clone(),
                source,
            })?;
            if there {
                return artifact(&url, None);
            }
        }
        Err(self.missing(folder))
    }

    fn missing(&self, url: &str) -> ResolveError {
        ResolveError::Missing {
            image: self.image.clone(),
            arch: self.arch,
            url: self.client.mirrored(url),
        }
    }

    fn no_arch(&self, source: MetadataError) -> ResolveError {
        ResolveError::Arch {
            image: self.image.clone(),
            source,
        }
    }

    fn useless(&self, url: &str, source: MetadataError) -> ResolveError {
        ResolveError::Metadata {
            image: self.image.clone(),
            url: self.client.mirrored(url),
            source,
        }
    }
}
