//! The domain: a cluster that cannot be wrong by itself.
//!
//! These types are what the rest of kiln thinks in. The file format that they
//! come from is the business of [`crate::spec`]; nothing here reads, writes or
//! knows serde. A value that exists is valid: names are DNS labels, amounts
//! carry their unit, paths are absolute.

pub mod remote;
mod share;
pub mod told;

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};
use kiln_arch::Arch;
use kiln_arch::machine::IgnitionTransport;
use kiln_arch::machine::{DiskBus, Sector};
use kiln_netsetup::address::Fixed;
use kiln_netsetup::name::IfName;

use crate::cluster::remote::RemoteImage;
use crate::cluster::told::Told;
use crate::lvm::name::GroupName;

pub use self::share::{MountPoint, MountPointError, Share};

/// The most machines that a group can have.
pub const COUNT_LIMIT: u16 = 1000;

/// One parsed `kiln.yaml`, its groups already expanded into machines.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    pub name: ClusterName,
    /// The spec file, absolute.
    pub spec: PathBuf,
    /// The folder that relative paths in the spec were resolved against.
    pub folder: PathBuf,
    pub network: Network,
    /// Where the disks are that kiln makes; absent: files in its state folder.
    pub volume_group: Option<GroupName>,
    /// Public keys that may log in besides the cluster's own: one OpenSSH line each.
    pub authorized_keys: Vec<String>,
    /// The groups that `--scale` gave another count than the spec's.
    pub scale: BTreeMap<MachineName, u16>,
    /// The template variables that `--set` said, by paths with dots.
    pub set: BTreeMap<String, serde_json::Value>,
    /// In the order of the spec; names are unique.
    pub machines: Vec<Machine>,
}

/// The domain of a network that names none; ICANN keeps it out of the public tree.
pub const DOMAIN: &str = "internal";

/// How the machines are joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub mode: NetworkMode,
    /// Chosen and kept when absent.
    pub subnet: Option<Ipv4Net>,
    pub ipv6: Ipv6Wish,
    /// Whether a way leads out into the world.
    pub uplink: bool,
    /// The domain that the cluster's own lies in: its names end in `.CLUSTER.DOMAIN`.
    pub domain: String,
    pub told: Told,
    /// The places that the spec names for machines, those that scaling left out included.
    pub fixed: BTreeMap<String, Fixed>,
}

/// What the user said about IPv6; the plan decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv6Wish {
    /// A network that kiln chooses.
    Chosen,
    Off,
    /// This one, a /64 of unique local addresses.
    Fixed(Ipv6Net),
}

/// The network modes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkMode {
    /// The best one that works here, tried by doing.
    Auto,
    /// A switch inside the supervisor.
    Fabric,
    /// The kernel's bridge, in a network namespace of the cluster's own.
    Namespace,
    /// Each machine alone, on QEMU's own user-mode network.
    User,
    /// On a bridge of the host's, where another one gives addresses.
    Attach {
        bridge: IfName,
        /// A lease file of that network's DHCP server.
        leases: Option<PathBuf>,
    },
}

/// One machine as the spec asks for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    pub name: MachineName,
    /// The key under `machines:` that it came from.
    pub group: MachineName,
    /// Its place in the group, from 1.
    pub index: u32,
    /// Line of the group in the spec, from 1: errors about a machine point there.
    pub line: u64,
    pub arch: Arch,
    pub accel: AccelWish,
    pub cpus: NonZeroU16,
    pub memory: Size,
    pub image: Image,
    /// The root overlay grows to this; never shrinks.
    pub disk: Option<Size>,
    /// What the root disk is to the guest.
    pub root_bus: DiskBus,
    /// Beside the root disk, in the order in which the guest sees them; serials are unique.
    pub disks: Vec<DataDisk>,
    /// Folders of the host; no two at one place of the guest.
    pub shares: Vec<Share>,
    pub ignition: Option<IgnitionSource>,
    /// Whether that is no Ignition config, but a user-data for cloud-init.
    pub cloud_init: bool,
    /// Template variables of the spec, as JSON values.
    pub vars: BTreeMap<String, serde_json::Value>,
    pub profile: Profile,
    pub ports: Vec<Port>,
    pub restart: RestartPolicy,
    pub firmware: FirmwareWish,
    /// Whether it has a TPM 2.0.
    pub tpm: bool,
    /// How Ignition gets its config; absent: as the architecture has it.
    pub ignition_transport: Option<IgnitionTransport>,
}

/// What the user said about the firmware; the plan decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirmwareWish {
    /// Whatever boots the image on this architecture.
    Auto,
    Bios,
    Uefi,
    /// UEFI that boots only what its keys have signed.
    UefiSecure,
}

/// What the user said about acceleration; the plan decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccelWish {
    Auto,
    Kvm,
    Tcg,
}

/// What a machine boots from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// A bootable disk image; machines stand on overlays of it.
    Disk(DiskSource),
    /// Direct kernel boot, with an optional disk.
    Kernel {
        kernel: PathBuf,
        initrd: Option<PathBuf>,
        cmdline: String,
        disk: Option<DiskSource>,
    },
}

/// Where a disk image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    Local(DiskImage),
    Remote(RemoteImage),
}

/// A local disk image and what may be believed of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskImage {
    pub path: PathBuf,
    pub format: DiskFormat,
    /// Lower-case hexadecimal digest that the file must have.
    pub sha256: Option<String>,
}

/// Only what the user's spec or file ending says; never guessed from content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskFormat {
    Qcow2,
    Raw,
}

/// A disk beside the root disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDisk {
    pub serial: Serial,
    pub bus: DiskBus,
    pub sector: Sector,
    pub source: DataSource,
}

/// Where a data disk's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataSource {
    /// kiln makes it, empty; it belongs to the machine's name and the serial.
    Made {
        size: Size,
        /// Whether it outlives `down`.
        keep: bool,
    },
    /// A file or block device of the user's, used in place and never removed.
    File {
        path: PathBuf,
        format: DataFormat,
        readonly: bool,
    },
}

/// What a data disk's file is; only what the user's spec or file ending says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataFormat {
    Qcow2,
    Raw,
    /// A block device of the host, raw.
    Device,
}

/// What a guest reads as a disk's serial: 1 to 20 bytes (virtio 1.2, section 5.2.6) of `A-Z`,
/// `a-z`, `0-9`, `.`, `_` and `-`, the first one a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(String);

/// Where the user's Ignition config is, read and known to be UTF-8 at parse time.
///
/// Its text is a secret, so `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct IgnitionSource {
    pub path: PathBuf,
    /// The file's text as read when the spec was loaded.
    pub text: String,
    pub template: bool,
}

/// What is put into a machine besides the user's config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    /// Host name, ssh keys, host keys and the readiness report.
    Basic,
    /// That, and a member of the cluster's etcd.
    Etcd {
        /// How the first members find each other; by kiln's reservations where absent.
        discovery: Option<Discovery>,
    },
    /// That of `basic`, and the user's own templates.
    Own(OwnProfile),
    /// Nothing: the user's config alone. Such a machine never reports.
    None,
}

/// A server of etcd's discovery protocol, version 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// This address gives a new token for as many members as `size` says.
    New(String),
    /// The token's own address.
    At(String),
}

/// A folder of templates, read when the spec was; texts are secrets as [`IgnitionSource`]'s are.
#[derive(Clone, PartialEq, Eq)]
pub struct OwnProfile {
    /// `config.ign.j2`.
    pub config: IgnitionSource,
    /// The other files of the folder by their names, for the config to include.
    pub others: BTreeMap<String, String>,
}

/// When the supervisor starts a machine again by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    No,
    OnFailure,
    Always,
}

/// One published TCP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// 127.0.0.1 unless the spec says otherwise.
    pub bind: Ipv4Addr,
    /// A free one is chosen and kept when absent.
    pub host: Option<NonZeroU16>,
    pub guest: NonZeroU16,
}

/// An amount of memory or disk in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

/// A cluster's name: a DNS label of at most 40 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterName(String);

/// A machine's (or group's) name: a DNS label of at most 63 bytes (RFC 1123).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MachineName(String);

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name cannot be empty")]
    Empty,
    #[error("a name of {length} bytes is too long; at most {limit} are allowed")]
    TooLong { length: usize, limit: usize },
    #[error(
        "`{name}` is not a DNS label: use a-z, 0-9 and `-`, beginning and ending with a letter or digit"
    )]
    Character { name: String },
}

/// Why a text is not a data disk's serial.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SerialError {
    #[error("a serial of {length} bytes is not between 1 and {SERIAL_LIMIT}")]
    Length { length: usize },
    #[error(
        "`{serial}` is not a serial: use letters, digits, `.`, `_` and `-`, beginning with a letter or digit"
    )]
    Character { serial: String },
    #[error("the serial `{serial}` is kiln's own")]
    Reserved { serial: String },
}

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    #[error("`{text}` is not a size: write a number and a unit, such as `512MiB` or `2GiB`")]
    Form { text: String },
    #[error("`{text}` is larger than this computer can count")]
    TooLarge { text: String },
}

const CLUSTER_NAME_LIMIT: usize = 40;
const MACHINE_NAME_LIMIT: usize = 63;
const SERIAL_LIMIT: usize = 20;

/// The serial of the root disk.
pub const ROOT_SERIAL: &str = "root";
/// Besides the root disk's, that of the disk which carries the Ignition config.
const RESERVED_SERIALS: [&str; 2] = [ROOT_SERIAL, "ignition"];

fn parse_label(name: &str, limit: usize) -> Result<String, NameError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.starts_with('-') || name.ends_with('-') || !name.bytes().all(allowed) {
        return Err(NameError::Character {
            name: name.chars().take(80).collect(),
        });
    }
    if name.len() > limit {
        return Err(NameError::TooLong {
            length: name.len(),
            limit,
        });
    }
    Ok(name.to_owned())
}

impl FromStr for ClusterName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<ClusterName, NameError> {
        parse_label(name, CLUSTER_NAME_LIMIT).map(ClusterName)
    }
}

impl FromStr for MachineName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<MachineName, NameError> {
        parse_label(name, MACHINE_NAME_LIMIT).map(MachineName)
    }
}

impl FromStr for Serial {
    type Err = SerialError;

    fn from_str(serial: &str) -> Result<Serial, SerialError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if serial.is_empty() || serial.len() > SERIAL_LIMIT {
            return Err(SerialError::Length {
                length: serial.len(),
            });
        }
        if !serial.as_bytes()[0].is_ascii_alphanumeric() || !serial.bytes().all(allowed) {
            return Err(SerialError::Character {
                serial: serial.to_owned(),
            });
        }
        if RESERVED_SERIALS.contains(&serial) {
            return Err(SerialError::Reserved {
                serial: serial.to_owned(),
            });
        }
        Ok(Serial(serial.to_owned()))
    }
}

impl Serial {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ClusterName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl MachineName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Size {
    pub const fn from_bytes(bytes: u64) -> Size {
        Size(bytes)
    }

    pub const fn from_mib(mib: u32) -> Size {
        Size(mib as u64 * 1024 * 1024)
    }

    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = SizeError;

    /// `NUMBER UNIT` with the unit one of `KiB`, `MiB`, `GiB`, `TiB`.
    fn from_str(text: &str) -> Result<Size, SizeError> {
        let form = || SizeError::Form {
            text: text.chars().take(80).collect(),
        };
        let split = text
            .find(|character: char| !character.is_ascii_digit())
            .ok_or_else(form)?;
        let (number, unit) = text.split_at(split);
        let shift = match unit.trim_start() {
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            _ => return Err(form()),
        };
        if number.is_empty() {
            return Err(form());
        }
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(1 << shift))
            .map(Size)
            .ok_or_else(|| SizeError::TooLarge {
                text: text.to_owned(),
            })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

impl fmt::Debug for IgnitionSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IgnitionSource")
            .field("path", &self.path)
            .field("text", &format_args!("{} bytes", self.text.len()))
            .field("template", &self.template)
            .finish()
    }
}

impl fmt::Debug for OwnProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnProfile")
            .field("config", &self.config)
            .field("others", &self.others.keys())
            .finish()
    }
}

impl DataFormat {
    pub const ALL: [DataFormat; 3] = [DataFormat::Qcow2, DataFormat::Raw, DataFormat::Device];

    pub fn word(self) -> &'static str {
        match self {
            DataFormat::Qcow2 => "qcow2",
            DataFormat::Raw => "raw",
            DataFormat::Device => "device",
        }
    }
}

impl Image {
    /// Its disk, if it has one.
    pub fn disk(&self) -> Option<&DiskSource> {
        match self {
            Image::Disk(disk) => Some(disk),
            Image::Kernel { disk, .. } => disk.as_ref(),
        }
    }
}

impl Machine {
    /// The image that has to be fetched for it, if its disk is not a local one.
    pub fn remote_image(&self) -> Option<&RemoteImage> {
        match self.image.disk() {
            Some(DiskSource::Remote(image)) => Some(image),
            Some(DiskSource::Local(_)) | None => None,
        }
    }
}

impl DiskFormat {
    /// QEMU's name of the block driver.
    pub fn driver(self) -> &'static str {
        match self {
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Raw => "raw",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_alike() {
        for text in ["1KiB", "512MiB", "2GiB", "3TiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_size_without_a_unit_is_refused() {
        for text in ["", "512", "GiB", "5 GB", "1gib", "-1GiB", "1.5GiB"] {
            assert!(
                matches!(text.parse::<Size>(), Err(SizeError::Form { .. })),
                "{text}"
            );
        }
        assert!(matches!(
            "99999999999TiB".parse::<Size>(),
            Err(SizeError::TooLarge { .. })
        ));
    }

    #[test]
    fn serials_are_what_qemu_and_a_file_name_take() {
        for text in ["data", "DATA_1.a-b", "0", "a2345678901234567890"] {
            assert_eq!(text.parse::<Serial>().unwrap().as_str(), text);
        }
        let refused = [
            "",
            "a23456789012345678901",
            "-a",
            ".",
            "..",
            "a/b",
            "a,b",
            "a b",
            "a\n",
            "ä",
            "root",
            "ignition",
        ];
        for text in refused {
            assert!(text.parse::<Serial>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_dns_labels() {
        assert!("web-1".parse::<MachineName>().is_ok());
        for text in ["", "-a", "a-", "A", "a_b", "a.b", "a/b", "ä", "a\n"] {
            assert!(text.parse::<MachineName>().is_err(), "{text}");
        }
        assert!("a".repeat(64).parse::<MachineName>().is_err());
        assert!("a".repeat(41).parse::<ClusterName>().is_err());
    }
}
