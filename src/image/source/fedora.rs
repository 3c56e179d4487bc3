//! Fedora CoreOS: the metadata of a stream, and that of one release.
//!
//! The forms are those of coreos/stream-metadata-go (`stream.go`, `release.go`): a stream says what is
//! newest in it; each release has a file of its own in the folder of its build.

use std::collections::BTreeMap;

use kiln_arch::Arch;
use serde::Deserialize;

use super::{Artifact, MetadataError, address, digest, release};

/// All of Fedora CoreOS's addresses begin so.
pub const SERVER: &str = "https://builds.coreos.fedoraproject.org";

const PLATFORM: &str = "qemu";
const FORMAT: &str = "qcow2.xz";

#[derive(Deserialize)]
struct Stream {
    architectures: BTreeMap<String, StreamArch>,
}

#[derive(Deserialize)]
struct StreamArch {
    artifacts: BTreeMap<String, StreamPlatform>,
}

#[derive(Deserialize)]
struct StreamPlatform {
    release: String,
    formats: BTreeMap<String, Format>,
}

#[derive(Deserialize)]
struct Release {
    release: String,
    architectures: BTreeMap<String, ReleaseArch>,
}

#[derive(Deserialize)]
struct ReleaseArch {
    media: BTreeMap<String, Media>,
}

#[derive(Deserialize)]
struct Media {
    artifacts: BTreeMap<String, Format>,
}

#[derive(Deserialize)]
struct Format {
    disk: Option<File>,
}

#[derive(Deserialize)]
struct File {
    location: String,
    signature: Option<String>,
    sha256: Option<String>,
    #[serde(rename = "uncompressed-sha256")]
    uncompressed_sha256: Option<String>,
}

/// Where a stream's metadata lies.
pub fn stream_address(stream: &str) -> String {
    format!("{SERVER}/streams/{stream}.json")
}

/// Where the metadata of one release lies.
pub fn release_address(stream: &str, release: &str) -> String {
    format!("{SERVER}/prod/streams/{stream}/builds/{release}/release.json")
}

/// The newest image of a stream.
pub fn newest(bytes: &[u8], arch: Arch) -> Result<Artifact, MetadataError> {
    let stream: Stream = json(bytes)?;
    let arch = arch.to_string();
    let mut platform = stream
        .architectures
        .into_iter()
        .find(|(name, _)| *name == arch)
        .ok_or_else(|| MetadataError::NoArch { arch: arch.clone() })?
        .1
        .artifacts
        .remove(PLATFORM)
        .ok_or_else(|| MetadataError::NoImage { arch: arch.clone() })?;
    let format = platform.formats.remove(FORMAT);
    artifact(&platform.release, format, arch)
}

/// The image of one release.
pub fn of_release(bytes: &[u8], want: &str, arch: Arch) -> Result<Artifact, MetadataError> {
    let mut found: Release = json(bytes)?;
    if found.release != want {
        return Err(MetadataError::OtherRelease {
            want: want.to_owned(),
            found: release(&found.release)?,
        });
    }
    let arch = arch.to_string();
    let format = found
        .architectures
        .remove(&arch)
        .ok_or_else(|| MetadataError::NoArch { arch: arch.clone() })?
        .media
        .remove(PLATFORM)
        .and_then(|mut media| media.artifacts.remove(FORMAT));
    artifact(want, format, arch)
}

fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, MetadataError> {
    serde_json::from_slice(bytes).map_err(|source| MetadataError::Json { source })
}

fn artifact(name: &str, format: Option<Format>, arch: String) -> Result<Artifact, MetadataError> {
    let file = format
        .and_then(|format| format.disk)
        .ok_or(MetadataError::NoImage { arch })?;
    Ok(Artifact {
        release: release(name)?,
        url: address(&file.location)?,
        signature: file.signature.as_deref().map(address).transpose()?,
        sha256: file.sha256.as_deref().map(digest).transpose()?,
        unpacked_sha256: file
            .uncompressed_sha256
            .as_deref()
            .map(digest)
            .transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn file() -> serde_json::Value {
        serde_json::json!({"disk": {
            "location": "https://builds.example/x.qcow2.xz",
            "signature": "https://builds.example/x.qcow2.xz.sig",
            "sha256": A.to_uppercase(),
            "uncompressed-sha256": A,
        }})
    }

    fn stream(arch: &str, release: &str) -> Vec<u8> {
        serde_json::json!({"stream": "stable", "architectures": {arch: {"artifacts": {
            "metal": {"release": release, "formats": {"iso": {"disk": {"location": "x"}}}},
            "qemu": {"release": release, "formats": {"qcow2.xz": file()}},
        }, "images": {}}}})
        .to_string()
        .into_bytes()
    }

    #[test]
    fn the_newest_image_of_a_stream_is_found() {
        let found = newest(&stream("aarch64", "44.1.2.3"), Arch::Aarch64).unwrap();
        assert_eq!(found.release, "44.1.2.3");
        assert_eq!(found.url.as_str(), "https://builds.example/x.qcow2.xz");
        assert_eq!(
            found.signature.unwrap().as_str(),
            "https://builds.example/x.qcow2.xz.sig"
        );
        assert_eq!(found.sha256.as_deref(), Some(A));
        assert_eq!(found.unpacked_sha256.as_deref(), Some(A));
        assert!(matches!(
            newest(&stream("aarch64", "1"), Arch::S390x),
            Err(MetadataError::NoArch { .. })
        ));
        assert!(matches!(
            newest(&stream("aarch64", "../../etc"), Arch::Aarch64),
            Err(MetadataError::Release { .. })
        ));
    }

    #[test]
    fn a_release_is_the_one_that_was_asked_for() {
        let bytes = serde_json::json!({"release": "44.1.2.3", "stream": "stable", "architectures":
            {"x86_64": {"commit": "c", "media": {"qemu": {"artifacts": {"qcow2.xz": file()}}}}}})
        .to_string();
        let found = of_release(bytes.as_bytes(), "44.1.2.3", Arch::X86_64).unwrap();
        assert_eq!(found.release, "44.1.2.3");
        assert!(matches!(
            of_release(bytes.as_bytes(), "44.1.2.4", Arch::X86_64),
            Err(MetadataError::OtherRelease { .. })
        ));
    }

    #[test]
    fn garbage_is_an_error() {
        for text in ["", "{}", "[]", "{\"architectures\": {}}"] {
            assert!(newest(text.as_bytes(), Arch::X86_64).is_err(), "{text}");
        }
        let text = String::from_utf8(stream("x86_64", "1")).unwrap();
        for (from, to) in [("https://builds", "file:///etc"), (&A[..40], "zz")] {
            let bytes = text.replace(from, to).into_bytes();
            assert!(newest(&bytes, Arch::X86_64).is_err(), "{to}");
        }
    }
}
