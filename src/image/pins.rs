//! `kiln.lock`: which release each name in a spec means, so that it means the same tomorrow.
//!
//! It lies beside the spec, for people to read and to keep with it. The addresses in it are the
//! official ones, whatever mirror they were asked of.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kiln_arch::Arch;
use serde::{Deserialize, Serialize};

use super::source::Artifact;
use crate::cluster::remote::Source;
use crate::state::files::{self, SCHEMA, StateError};

const NAME: &str = "kiln.lock";

/// One image of one architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// As the spec says it.
    pub image: String,
    pub arch: String,
    pub release: String,
    pub url: String,
    pub signature: Option<String>,
    /// Of the file as it is sent.
    pub sha256: Option<String>,
    pub unpacked_sha256: Option<String>,
    /// Of the file as it is sent, in bytes.
    pub size: Option<u64>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    schema: u32,
    images: Vec<Pin>,
}

/// The pins of one folder.
#[derive(Debug)]
pub struct Pins {
    path: PathBuf,
    images: Vec<Pin>,
}

/// Why a pin is of no use.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("`{}` names something for `{image}` that is no address or digest", path.display())]
    Nonsense { path: PathBuf, image: String },
    #[error(
        "`{}` has no `sha256` for `{image}`, and nothing else would tell what is sent; remove that entry to have it found anew",
        path.display()
    )]
    NoDigest { path: PathBuf, image: String },
}

impl Pins {
    /// Those beside the spec; none when there is no such file.
    pub fn load(folder: &Path) -> Result<Pins, StateError> {
        let path = folder.join(NAME);
        let content: Content = files::load(&path)?.unwrap_or_default();
        Ok(Pins {
            path,
            images: content.images,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn get(&self, source: &Source, arch: Arch) -> Option<&Pin> {
        let (image, arch) = (source.to_string(), arch.to_string());
        self.images
            .iter()
            .find(|pin| pin.image == image && pin.arch == arch)
    }

    /// Puts the pin in; says whether that changed anything.
    pub fn set(&mut self, pin: Pin) -> bool {
        let same = |other: &&mut Pin| (&other.image, &other.arch) == (&pin.image, &pin.arch);
        match self.images.iter_mut().find(same) {
            Some(old) if *old == pin => return false,
            Some(old) => *old = pin,
            None => self.images.push(pin),
        }
        self.images
            .sort_by(|a, b| (&a.image, &a.arch).cmp(&(&b.image, &b.arch)));
        true
    }

    /// Writes the file: whole or not at all, for everybody to read. The caller keeps others from it.
    pub fn save(&self) -> io::Result<()> {
        let content = Content {
            schema: SCHEMA,
            images: self.images.clone(),
        };
        let new = self.path.with_extension("lock.new");
        let write = || {
            // What a killed kiln left.
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o644)
                .open(&new)?;
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.write_all(&files::text(&content)?)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)
        };
        write().inspect_err(|_| {
            // The first error is the one to tell.
            let _ = fs::remove_file(&new);
        })
    }

    /// The file that a pin of this source names.
    pub fn artifact(&self, pin: &Pin, source: &Source) -> Result<Artifact, PinError> {
        let wrong = || PinError::Nonsense {
            path: self.path.clone(),
            image: pin.image.clone(),
        };
        let digest = |text: &Option<String>| {
            text.as_deref()
                .map(super::source::digest)
                .transpose()
                .map_err(|_| wrong())
        };
        let address = |text: &str| text.parse().map_err(|_| wrong());
        let artifact = Artifact {
            release: pin.release.clone(),
            url: address(&pin.url)?,
            signature: pin.signature.as_deref().map(address).transpose()?,
            sha256: digest(&pin.sha256)?,
            unpacked_sha256: digest(&pin.unpacked_sha256)?,
        };
        let needs_digest = match source {
            Source::Rhcos { .. } => true,
            Source::FedoraCoreos { .. } | Source::Flatcar { .. } | Source::Address { .. } => {
                artifact.url.is_plain()
            }
        };
        if needs_digest && artifact.sha256.is_none() {
            return Err(PinError::NoDigest {
                path: self.path.clone(),
                image: pin.image.clone(),
            });
        }
        Ok(artifact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(image: &str, release: &str) -> Pin {
        Pin {
            image: image.to_owned(),
            arch: "x86_64".to_owned(),
            release: release.to_owned(),
            url: "https://a.example/x".to_owned(),
            signature: None,
            sha256: Some("a".repeat(64)),
            unpacked_sha256: None,
            size: Some(7),
        }
    }

    #[test]
    fn pins_are_kept_in_order_and_for_everybody_to_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut pins = Pins::load(folder.path()).unwrap();
        assert!(pins.set(pin("flatcar:stable", "1")));
        assert!(pins.set(pin("fedora-coreos:stable", "1")));
        assert!(pins.set(pin("flatcar:stable", "2")));
        assert!(!pins.set(pin("flatcar:stable", "2")));
        pins.save().unwrap();
        pins.save().unwrap();
        let mode = fs::metadata(pins.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

        let pins = Pins::load(folder.path()).unwrap();
        let names: Vec<&str> = pins.images.iter().map(|pin| pin.image.as_str()).collect();
        assert_eq!(names, ["fedora-coreos:stable", "flatcar:stable"]);
        let source = Source::named("flatcar:stable").unwrap().unwrap();
        let found = pins.get(&source, Arch::X86_64).unwrap();
        assert_eq!(found.release, "2");
        assert!(pins.get(&source, Arch::Aarch64).is_none());
        assert_eq!(
            pins.artifact(found, &source).unwrap().url.as_str(),
            "https://a.example/x"
        );
    }

    #[test]
    fn a_pin_that_names_nonsense_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let pins = Pins::load(folder.path()).unwrap();
        for (url, sha256) in [("file:///etc/passwd", "a"), ("https://a.example/x", "a")] {
            let pin = Pin {
                url: url.to_owned(),
                sha256: Some(sha256.to_owned()),
                ..pin("flatcar:stable", "1")
            };
            let source = Source::named(&pin.image).unwrap().unwrap();
            let error = pins.artifact(&pin, &source).unwrap_err();
            assert!(matches!(error, PinError::Nonsense { .. }), "{error}");
        }
    }

    #[test]
    fn where_nothing_else_would_tell_a_pin_needs_a_digest() {
        let folder = tempfile::tempdir().unwrap();
        let pins = Pins::load(folder.path()).unwrap();
        let found = |image: &str, url: &str, sha256: Option<String>| {
            let source = Source::named(image).unwrap().unwrap();
            let pin = Pin {
                url: url.to_owned(),
                sha256,
                ..pin(image, "1")
            };
            pins.artifact(&pin, &source)
        };
        let digest = || Some("a".repeat(64));
        for (image, url, is_enough) in [
            ("rhcos:4.19", "https://a.example/x", false),
            ("rhcos:4.19", "http://a.example/x", false),
            ("flatcar:stable", "http://a.example/x", false),
            ("flatcar:stable", "https://a.example/x", true),
        ] {
            found(image, url, digest()).unwrap();
            match found(image, url, None) {
                Ok(_) => assert!(is_enough, "{image} {url}"),
                Err(error) => {
                    assert!(!is_enough, "{image} {url}");
                    assert!(error.to_string().contains("has no `sha256`"), "{error}");
                }
            }
        }
    }
}
