//! Flatcar: a server for each channel, a folder for each release, and a signature beside each file.
//!
//! The names are those of Flatcar's documentation ("Running Flatcar Container Linux on QEMU",
//! "Notes for distributors"). Older releases have the image as `.bz2` only, so several names are
//! tried; the one whose signature is there is taken. On arm64 there is only the image for UEFI.

use kiln_arch::Arch;

use super::{MetadataError, release};

/// The server of a channel; `CHANNEL` stands for its name.
pub const SERVER: &str = "https://CHANNEL.release.flatcar-linux.net";

/// The folder that is the newest release's.
const NEWEST: &str = "current";
/// In the order in which they are asked for; the bare file is itself a compressed qcow2 image.
const ENDINGS: [&str; 4] = ["", ".zst", ".gz", ".bz2"];

/// The folder of a release, or of the newest one.
pub fn folder(channel: &str, arch: Arch, release: Option<&str>) -> Result<String, MetadataError> {
    let board = match arch {
        Arch::X86_64 => "amd64-usr",
        Arch::Aarch64 => "arm64-usr",
        Arch::I386 | Arch::S390x | Arch::Ppc64le => {
            return Err(MetadataError::NoArch {
                arch: arch.to_string(),
            });
        }
    };
    let server = SERVER.replace("CHANNEL", channel);
    Ok(format!("{server}/{board}/{}", release.unwrap_or(NEWEST)))
}

/// Where the image of an architecture may lie in that folder, the likeliest first.
pub fn candidates(folder: &str, arch: Arch) -> impl Iterator<Item = String> {
    let name = match arch {
        Arch::Aarch64 => "flatcar_production_qemu_uefi_image.img",
        Arch::X86_64 | Arch::I386 | Arch::S390x | Arch::Ppc64le => {
            "flatcar_production_qemu_image.img"
        }
    };
    let folder = folder.to_owned();
    ENDINGS
        .iter()
        .map(move |ending| format!("{folder}/{name}{ending}"))
}

/// The release that a folder's `version.txt` names: lines `FLATCAR_VERSION=4230.2.3`.
pub fn version(bytes: &[u8]) -> Result<String, MetadataError> {
    let text = String::from_utf8_lossy(bytes);
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("FLATCAR_VERSION="))
        .ok_or(MetadataError::NoRelease)?;
    release(line.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_has_a_folder_and_arm64_its_own_image() {
        let newest = folder("beta", Arch::X86_64, None).unwrap();
        assert_eq!(
            newest,
            "https://beta.release.flatcar-linux.net/amd64-usr/current"
        );
        let folder = folder("lts", Arch::Aarch64, Some("3033.3.18")).unwrap();
        let names: Vec<String> = candidates(&folder, Arch::Aarch64).collect();
        let first = "https://lts.release.flatcar-linux.net/arm64-usr/3033.3.18/flatcar_production_qemu_uefi_image.img";
        assert_eq!(names[0], first);
        assert_eq!(names[3], format!("{first}.bz2"));
        assert!(matches!(
            super::folder("stable", Arch::S390x, None),
            Err(MetadataError::NoArch { .. })
        ));
    }

    #[test]
    fn the_version_is_read_and_garbage_is_refused() {
        let text = "FLATCAR_BUILD=4230\nFLATCAR_VERSION=4230.2.3\nFLATCAR_VERSION_ID=4230.2.3\n";
        assert_eq!(version(text.as_bytes()).unwrap(), "4230.2.3");
        for text in ["", "FLATCAR_VERSION=", "FLATCAR_VERSION=../..", "<html>"] {
            assert!(version(text.as_bytes()).is_err(), "{text}");
        }
    }
}
