//! Red Hat Enterprise Linux CoreOS: folders of a mirror, each with the SHA-256 digests of its files.
//!
//! `…/ARCH/dependencies/rhcos/4.18/4.18.1/`, and `…/4.18/latest/` beside it, hold
//! `rhcos-4.18.1-x86_64-qemu.x86_64.qcow2.gz` and `sha256sum.txt`. There is no signature.

use kiln_arch::Arch;

use super::{Artifact, MetadataError, address, digest, release};

/// All of the mirror's addresses begin so.
pub const SERVER: &str = "https://mirror.openshift.com/pub/openshift-v4";

/// The folder that is the newest release's.
const NEWEST: &str = "latest";

/// The folder of a release, or of the newest one of `minor`.
pub fn folder(minor: &str, arch: Arch, release: Option<&str>) -> Result<String, MetadataError> {
    match arch {
        Arch::X86_64 | Arch::Aarch64 | Arch::S390x | Arch::Ppc64le => Ok(format!(
            "{SERVER}/{arch}/dependencies/rhcos/{minor}/{}",
            release.unwrap_or(NEWEST)
        )),
        Arch::I386 => Err(MetadataError::NoArch {
            arch: arch.to_string(),
        }),
    }
}

/// Where a folder's digests lie.
pub fn sums_address(folder: &str) -> String {
    format!("{folder}/sha256sum.txt")
}

/// The image that the digests of a folder speak of, as it lies in its release's own folder.
pub fn image(
    sums: &[u8],
    minor: &str,
    want: Option<&str>,
    arch: Arch,
) -> Result<Artifact, MetadataError> {
    let text = String::from_utf8_lossy(sums);
    let ending = format!("-{arch}-qemu.{arch}.qcow2.gz");
    let (sum, name, found) = text
        .lines()
        .filter_map(|line| {
            let (sum, name) = line.split_once(char::is_whitespace)?;
            // A star before the name says that the file was read as bytes.
            let name = name.trim_start().trim_start_matches('*');
            let found = name.strip_prefix("rhcos-")?.strip_suffix(&ending)?;
            Some((sum, name, found))
        })
        .next()
        .ok_or_else(|| MetadataError::NoImage {
            arch: arch.to_string(),
        })?;
    let found = release(found)?;
    if let Some(want) = want
        && want != found
    {
        return Err(MetadataError::OtherRelease {
            want: want.to_owned(),
            found,
        });
    }
    let folder = folder(minor, arch, Some(&found))?;
    Ok(Artifact {
        url: address(&format!("{folder}/{name}"))?,
        release: found,
        signature: None,
        sha256: Some(digest(sum)?),
        unpacked_sha256: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[test]
    fn the_image_is_found_in_its_release_s_own_folder() {
        let sums = format!(
            "{}  rhcos-4.18.1-x86_64-metal.x86_64.raw.gz\n{A}  rhcos-4.18.1-x86_64-qemu.x86_64.qcow2.gz\n{A}  rhcos-qemu.x86_64.qcow2.gz\n",
            A.replace('a', "b")
        );
        let found = image(sums.as_bytes(), "4.18", None, Arch::X86_64).unwrap();
        assert_eq!(found.release, "4.18.1");
        assert_eq!(found.sha256.as_deref(), Some(A));
        assert_eq!(
            found.url.as_str(),
            "https://mirror.openshift.com/pub/openshift-v4/x86_64/dependencies/rhcos/4.18/4.18.1/rhcos-4.18.1-x86_64-qemu.x86_64.qcow2.gz"
        );
        let other = image(sums.as_bytes(), "4.18", Some("4.18.2"), Arch::X86_64);
        assert!(matches!(other, Err(MetadataError::OtherRelease { .. })));
        let none = image(sums.as_bytes(), "4.18", None, Arch::S390x);
        assert!(matches!(none, Err(MetadataError::NoImage { .. })));
    }

    #[test]
    fn garbage_is_an_error() {
        for text in [
            "",
            "<html>",
            "abc  rhcos-4.18.1-x86_64-qemu.x86_64.qcow2.gz",
            "abc  rhcos-../../x-x86_64-qemu.x86_64.qcow2.gz",
        ] {
            assert!(
                image(text.as_bytes(), "4.18", None, Arch::X86_64).is_err(),
                "{text}"
            );
        }
    }
}
