//! The UEFI firmwares that are installed, by QEMU's own descriptors.
//!
//! Packages that bring firmware for QEMU bring a JSON file for each build, which says what it can
//! do, for which boards, and with which template of variables (QEMU, docs/interop/firmware.json).
//! kiln knows no other way to find one, and no path by heart: who has a firmware without a
//! descriptor writes one into `/etc/qemu/firmware`.
//!
//! Of the builds, those in two flash files are used: the code, which all machines share, and the
//! template of the variables, of which each machine has a copy. [`Firmwares::choose`] is pure.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use kiln_arch::Arch;
use serde::Deserialize;

use crate::cluster::DiskFormat;
use crate::error::in_one_line;

/// A descriptor has a kilobyte.
const DESCRIPTOR_LIMIT: u64 = 1024 * 1024;

/// A build of UEFI whose files are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    pub code: FlashFile,
    /// What a machine's own variables begin as.
    pub template: FlashFile,
    targets: Vec<Target>,
    features: Vec<String>,
}

/// A file for a flash chip, absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlashFile {
    pub path: PathBuf,
    pub format: DiskFormat,
}

/// What a machine wants of its UEFI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uefi {
    /// It boots whatever there is.
    Open,
    /// It boots what Microsoft's keys have signed, and guards its variables from the guest.
    Secure,
}

/// What was found in the folders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Firmwares {
    /// The best first.
    pub usable: Vec<Firmware>,
    /// Descriptors that name files which are not there, or cannot be read: which, and why.
    pub faults: Vec<(PathBuf, String)>,
}

impl Firmwares {
    /// Reads the descriptors in these folders, of which the first has the last word.
    pub(super) fn look(folders: &[PathBuf]) -> Firmwares {
        let mut found = Firmwares::default();
        for path in descriptors(folders).into_values() {
            match read(&path) {
                Ok(Some(firmware)) => found.usable.push(firmware),
                Ok(None) => {}
                Err(why) => found.faults.push((path, why)),
            }
        }
        found
    }

    /// The first build that fits a machine on `board`, a versioned name such as `pc-q35-10.0`.
    pub fn choose(&self, arch: Arch, board: &str, uefi: Uefi) -> Option<&Firmware> {
        self.usable
            .iter()
            .find(|firmware| firmware.fits(arch, board, uefi))
    }
}

impl Firmware {
    /// Whether the build runs on the board and does what is wanted of it.
    pub fn fits(&self, arch: Arch, board: &str, uefi: Uefi) -> bool {
        let has = |feature: &str| self.features.iter().any(|it| it == feature);
        let does = match uefi {
            // One that could be secure, and has no keys, boots everything; but one that wants SMM
            // does not start on a board without it.
            Uefi::Open => !has("enrolled-keys") && !has("requires-smm"),
            Uefi::Secure => has("secure-boot") && has("enrolled-keys") && has("requires-smm"),
        };
        does && self.targets.iter().any(|target| {
            target.architecture == arch.name()
                && target.machines.iter().any(|glob| matches(glob, board))
        })
    }
}

impl fmt::Display for Uefi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Uefi::Open => "UEFI",
            Uefi::Secure => "UEFI with secure boot",
        })
    }
}

/// The folders that QEMU's document names, the user's own first.
pub(super) fn folders(config_home: Option<&Path>) -> Vec<PathBuf> {
    let own = config_home.map(|home| home.join("qemu/firmware"));
    let of_host = ["/etc/qemu/firmware", "/usr/share/qemu/firmware"];
    own.into_iter().chain(of_host.map(PathBuf::from)).collect()
}

/// The descriptors by file name, whose order is that of their worth. A name in an earlier folder
/// stands for that in all later ones.
fn descriptors(folders: &[PathBuf]) -> BTreeMap<std::ffi::OsString, PathBuf> {
    let mut found = BTreeMap::new();
    for folder in folders {
        // Most hosts have one of the folders.
        let Ok(entries) = fs::read_dir(folder) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if Path::new(&name).extension().is_some_and(|it| it == "json") {
                found.entry(name).or_insert_with(|| entry.path());
            }
        }
    }
    found
}

/// The firmware that the descriptor at `path` tells of; none where it masks another or tells of
/// one that kiln does not use.
fn read(path: &Path) -> Result<Option<Firmware>, String> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(DESCRIPTOR_LIMIT).read_to_string(&mut text))
        .map_err(|error| in_one_line(&error))?;
    let Some(firmware) = parse(&text).map_err(|error| in_one_line(&error))? else {
        return Ok(None);
    };
    for file in [&firmware.code, &firmware.template] {
        let found = fs::metadata(&file.path).and_then(|found| match found.is_file() {
            true => Ok(()),
            false => Err(io::Error::other("not a regular file")),
        });
        found.map_err(|error| format!("names `{}`: {error}", file.path.display()))?;
    }
    Ok(Some(firmware))
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Descriptor {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<Target>,
    #[serde(default)]
    features: Vec<String>,
}

#[derive(Deserialize)]
#[serde(tag = "device", rename_all = "kebab-case")]
enum Mapping {
    #[serde(rename_all = "kebab-case")]
    Flash {
        #[serde(default)]
        mode: Mode,
        executable: Executable,
        nvram_template: Option<Executable>,
    },
    /// As `-bios` or `-kernel` load it, or by IGVM; or something newer.
    #[serde(other)]
    Other,
}

#[derive(Deserialize, Default, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    #[default]
    Split,
    /// `combined`, `stateless`, or something newer.
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Executable {
    filename: PathBuf,
    format: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Target {
    /// Of the guest, in QEMU's spelling, which is kiln's.
    architecture: String,
    /// Globs.
    machines: Vec<String>,
}

/// What the text of a descriptor says; `None` where it is of no use to kiln.
fn parse(text: &str) -> Result<Option<Firmware>, serde_json::Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let descriptor: Descriptor = serde_json::from_str(text)?;
    let Mapping::Flash {
        mode: Mode::Split,
        executable,
        nvram_template: Some(template),
    } = descriptor.mapping
    else {
        return Ok(None);
    };
    if !descriptor.interface_types.iter().any(|it| it == "uefi") {
        return Ok(None);
    }
    let (Some(code), Some(template)) = (executable.flash(), template.flash()) else {
        return Ok(None);
    };
    Ok(Some(Firmware {
        code,
        template,
        targets: descriptor.targets,
        features: descriptor.features,
    }))
}

impl Executable {
    fn flash(self) -> Option<FlashFile> {
        let format = match self.format.as_str() {
            "raw" => DiskFormat::Raw,
            "qcow2" => DiskFormat::Qcow2,
            _ => return None,
        };
        self.filename.is_absolute().then_some(FlashFile {
            path: self.filename,
            format,
        })
    }
}

/// Whether the glob, of which descriptors use `*` and `?`, is `name`'s.
fn matches(glob: &str, name: &str) -> bool {
    fn walk(glob: &[u8], name: &[u8]) -> bool {
        match (glob.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => (0..=name.len()).any(|skipped| walk(rest, &name[skipped..])),
            (Some((b'?', glob)), Some((_, name))) => walk(glob, name),
            (Some((one, glob)), Some((other, name))) => one == other && walk(glob, name),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }
    walk(glob.as_bytes(), name.as_bytes())
}

#[cfg(test)]
mod tests;
