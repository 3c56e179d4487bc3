//! The records as they lie on the disk: serde types, apart from the domain's.
//!
//! `cluster.json` and `machine.json` hold the plan's choices and are written by
//! commands under the cluster's lock; `run.json` holds what became of a machine
//! and is written by the supervisor alone. A field may be added with a default;
//! any other change raises [`crate::state::files::SCHEMA`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::{Ipv4Net, Ipv6Net};
use kiln_arch::machine::{DiskBus, Sector};
use kiln_netsetup::address::Subnet;
use kiln_netsetup::address6::Subnet6;
use serde::{Deserialize, Serialize};

use crate::cluster::{DataFormat, DiskFormat, ROOT_SERIAL};
use crate::image::BaseFacts;
use crate::image::base::format_name;
use crate::report::view::mode_word;
use crate::state::told::ToldRecord;

/// The choices that hold for a whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    pub schema: u32,
    pub name: String,
    /// The spec file that this cluster is of; another folder's is refused.
    pub spec: PathBuf,
    pub mode: ModeRecord,
    /// Why this mode and not another, in words for people.
    pub mode_reason: String,
    /// How the machines get out; the fabric knows one way only.
    #[serde(default)]
    pub way_out: WayOutRecord,
    pub subnet: Ipv4Net,
    /// The IPv6 network, where there is one: chosen with the cluster, and kept.
    #[serde(default)]
    pub subnet6: Option<Ipv6Net>,
    /// The DNS domain below which the machines' names resolve.
    pub domain: String,
    /// What else they are told of their network.
    #[serde(default)]
    pub told: ToldRecord,
    /// As root, the uid and gid that the cluster's QEMUs run as; else kiln's own.
    pub qemu_uid: Option<u32>,
    /// As root, the group beside that uid, where KVM asks for one; else the uid's own number.
    #[serde(default)]
    pub qemu_gid: Option<u32>,
    /// Names in the order of the spec.
    pub machines: Vec<String>,
    /// The groups that `up --scale` gave another count than the spec's.
    #[serde(default)]
    pub scale: BTreeMap<String, u16>,
    /// The template variables that `--set` said, by paths with dots.
    #[serde(default)]
    pub set: BTreeMap<String, serde_json::Value>,
    /// The host ports of all machines: recorded with the cluster, before there is any machine, so
    /// that no other cluster takes them.
    #[serde(default)]
    pub ports: BTreeSet<u16>,
    /// Every address ever given to a name of this cluster: scaling never moves one.
    pub reservations: BTreeMap<String, ReservationRecord>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModeRecord {
    Fabric,
    Namespace,
    /// On a bridge of the host's, where another one gives addresses.
    Attach,
    /// Each machine alone, on QEMU's own user-mode network.
    User,
}

impl ModeRecord {
    /// Whether addresses are kiln's to give, and so are known before a machine boots.
    pub fn gives_addresses(self) -> bool {
        match self {
            ModeRecord::Fabric | ModeRecord::Namespace | ModeRecord::User => true,
            ModeRecord::Attach => false,
        }
    }
}

impl ClusterRecord {
    /// The cluster's subnet, where it has one of its own. The field holds a number in any case.
    pub fn own_subnet(&self) -> Option<Ipv4Net> {
        self.mode.gives_addresses().then_some(self.subnet)
    }

    /// Where the machines send what is not for each other, where kiln has told them.
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        let subnet = Subnet::new(self.own_subnet()?).ok()?;
        Some(match self.mode {
            ModeRecord::User => subnet.uplink_host(),
            ModeRecord::Fabric | ModeRecord::Namespace | ModeRecord::Attach => subnet.gateway(),
        })
    }

    /// The bridge of the host's that its machines are on, if they are.
    pub fn bridge(&self) -> Option<&str> {
        match &self.way_out {
            WayOutRecord::Bridge { bridge, .. } => Some(bridge),
            WayOutRecord::Qemu
            | WayOutRecord::Helper { .. }
            | WayOutRecord::Host { .. }
            | WayOutRecord::Nowhere
            | WayOutRecord::Own => None,
        }
    }

    /// The mode in words: with the bridge, where there is one.
    pub fn mode_text(&self) -> String {
        let word = mode_word(self.mode);
        self.bridge()
            .map_or_else(|| word.to_owned(), |bridge| format!("{word} {bridge}"))
    }
}

/// How machines get out into the world.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum WayOutRecord {
    /// A QEMU without a guest, on QEMU's own user-mode network.
    #[default]
    Qemu,
    /// These programs, where they are installed, the first that works; else as above.
    Helper {
        pasta: Option<PathBuf>,
        slirp4netns: Option<PathBuf>,
    },
    /// As root: a pair of links, of which this is the host's, and the host's own NAT.
    Host { link: String },
    /// They are on a bridge of the host's already.
    Bridge {
        bridge: String,
        /// A lease file of that network's DHCP server, a further source of addresses.
        #[serde(default)]
        leases: Option<PathBuf>,
    },
    /// Each has a way of its own.
    Own,
    /// Not at all: the spec says so.
    Nowhere,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservationRecord {
    pub mac: String,
    pub ip: Ipv4Addr,
}

/// The choices for one machine: all that is needed to start it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    pub schema: u32,
    pub name: String,
    pub group: String,
    pub index: u32,
    pub arch: String,
    pub accel: AccelRecord,
    /// Why this accelerator, in words for people; empty when the spec named it.
    pub accel_reason: String,
    /// In QEMU's argv: how a process is known to be this machine.
    pub uuid: String,
    /// The versioned board, so that a later QEMU does not change the machine.
    pub board: Option<String>,
    pub qemu: PathBuf,
    pub cpus: u16,
    pub memory_mib: u32,
    /// UEFI; absent: what the board has of its own.
    #[serde(default)]
    pub firmware: Option<FirmwareRecord>,
    /// The program that emulates its TPM, where it has one.
    #[serde(default)]
    pub tpm: Option<PathBuf>,
    pub kernel: Option<KernelRecord>,
    pub disk: Option<DiskRecord>,
    /// In the order in which the guest sees them, after the root disk.
    #[serde(default)]
    pub data_disks: Vec<DataDiskRecord>,
    /// Folders of the host, in the order in which the guest sees them.
    #[serde(default)]
    pub shares: Vec<ShareRecord>,
    /// Whether `config.ign` is handed to the guest.
    pub ignition: bool,
    /// How, where it is not as the architecture has it.
    #[serde(default)]
    pub ignition_transport: Option<TransportRecord>,
    pub mac: String,
    pub ip: Ipv4Addr,
    /// Of its NIC, where it is not Ethernet's.
    #[serde(default)]
    pub mtu: Option<u16>,
    pub ports: Vec<PortRecord>,
    pub restart: RestartRecord,
    /// What the image is called in tables.
    pub image: String,
    /// Of the user's Ignition source, vars and image: the disk belongs to it.
    pub identity: String,
    /// Whether kiln's fragment (and with it the report) is in the config.
    pub reports: bool,
    /// How it came into the cluster's etcd, where it has a member of that.
    #[serde(default)]
    pub etcd: Option<EtcdRecord>,
}

/// A member of etcd: chosen when its data begins, and kept as long as that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdRecord {
    /// No other etcd's members have it.
    pub token: String,
    /// Whether it came to an etcd that was there.
    pub joins: bool,
    /// The names of all members as it begins, itself included.
    pub members: Vec<String>,
    /// Whether some member is emulated: all have the same time-outs.
    pub slow: bool,
    /// Where the members find each other instead.
    #[serde(default)]
    pub discovery: Option<String>,
    /// Whether it was seen to work after it had joined.
    #[serde(default)]
    pub joined: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccelRecord {
    Kvm,
    Tcg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartRecord {
    No,
    OnFailure,
    Always,
}

/// A build of UEFI and the machine's copy of its variables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirmwareRecord {
    pub kind: FirmwareKind,
    /// The host's, shared and read-only.
    pub code: PathBuf,
    #[serde(with = "format_name")]
    pub code_format: DiskFormat,
    /// What the variables began as; they have its format.
    pub template: PathBuf,
    #[serde(with = "format_name")]
    pub vars_format: DiskFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirmwareKind {
    Uefi,
    UefiSecure,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransportRecord {
    #[serde(rename = "fw_cfg")]
    FwCfg,
    VirtioBlk,
}

/// Direct kernel boot; both files lie in the cache, by digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRecord {
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    pub cmdline: String,
}

/// The root disk: an overlay of ours over a base that nobody may change, or a volume that began as
/// a copy of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    pub base: BaseFacts,
    /// As the guest sees it, in bytes.
    pub size: u64,
    #[serde(default)]
    pub bus: BusRecord,
    /// Where it is a logical volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeRecord>,
}

/// A logical volume of kiln's, known by its tag: no other one has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// The volume group's name when the plan was made; its UUID is what counts.
    pub group: String,
    pub group_uuid: String,
    /// What the volume is called when it is made.
    pub name: String,
    pub tag: String,
    /// What is known of it since it was made.
    #[serde(default)]
    pub made: Option<MadeVolumeRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeVolumeRecord {
    pub uuid: String,
    /// Its node.
    pub path: PathBuf,
}

/// One data disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataDiskRecord {
    /// What the guest reads; one of a kind in the machine.
    pub serial: String,
    #[serde(default)]
    pub bus: BusRecord,
    #[serde(default)]
    pub sector: SectorRecord,
    #[serde(flatten)]
    pub source: DataSourceRecord,
}

/// What a disk is to the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BusRecord {
    #[default]
    Virtio,
    Nvme,
    Scsi,
}

/// A disk's sectors, by their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SectorRecord {
    #[default]
    #[serde(rename = "512")]
    Bytes512,
    #[serde(rename = "4096")]
    Bytes4096,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum DataSourceRecord {
    /// A disk of kiln's, listed in the cluster's [`DisksRecord`]: a qcow2 file, or a volume.
    Made {
        /// In bytes.
        size: u64,
        /// Whether it outlives `down`.
        keep: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volume: Option<Box<VolumeRecord>>,
    },
    /// A file or block device of the user's.
    File {
        path: PathBuf,
        #[serde(with = "crate::image::data::format_name")]
        format: DataFormat,
        readonly: bool,
        /// As the guest sees it, in bytes, when the plan was made.
        size: u64,
    },
}

/// A folder of the host that the machine mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareRecord {
    pub from: PathBuf,
    /// Where the guest mounts it.
    pub to: String,
    /// By what the guest mounts it.
    pub tag: String,
    pub readonly: bool,
    pub by: ShareByRecord,
    /// Why not by virtiofs, in words for people; empty where it is.
    #[serde(default)]
    pub reason: String,
}

/// Who answers the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShareByRecord {
    /// This virtiofsd, beside QEMU.
    Virtiofs { program: PathBuf },
    /// QEMU itself.
    #[serde(rename = "9p")]
    NineP,
}

/// Every data disk that kiln made for machines of a cluster's name and that still exists, or may:
/// written before a disk is made and after it is removed. It outlives the cluster for as long as
/// it names a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisksRecord {
    pub schema: u32,
    /// The spec whose machines wrote to them; another folder's cluster does not get them.
    pub spec: PathBuf,
    /// By machine and serial.
    pub disks: Vec<MadeDiskRecord>,
}

/// A data disk that kiln made: it belongs to this machine's name and this serial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeDiskRecord {
    pub machine: String,
    pub serial: String,
    /// In bytes.
    pub size: u64,
    /// Whether it outlives `down`: the spec said so, or a former `down` was told to keep it.
    pub keep: bool,
    /// Where it is a logical volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeRecord>,
    /// Whether it was there once: one that is not there any more was then removed by somebody,
    /// and else an `up` ended before it made it.
    #[serde(default = "yes")]
    pub is_made: bool,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortRecord {
    pub bind: Ipv4Addr,
    pub host: u16,
    pub guest: u16,
}

/// What became of a machine: enough to adopt it, or to say how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    pub schema: u32,
    /// The host's boot that all below is of.
    pub boot_id: String,
    /// The QEMU, while there is one.
    pub process: Option<ProcessRecord>,
    pub state: StateRecord,
    pub reason: String,
    /// The last report of this guest boot.
    pub report: Option<ReportRecord>,
    /// Whether the reserved address was seen in use, and how.
    pub seen: Vec<SeenRecord>,
    /// Addresses that it is known to have no more, whatever it reported.
    #[serde(default)]
    pub lost: Vec<IpAddr>,
    /// RFC 3339, when QEMU was started.
    pub started_at: Option<String>,
    /// How long the console's log was: what came later is news to the next supervisor.
    #[serde(default)]
    pub console: Option<u64>,
    /// How often the policy has started it again since it was last up.
    #[serde(default)]
    pub restarts: u32,
}

/// The uplink's process, while there is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkRecord {
    pub schema: u32,
    pub boot_id: String,
    pub process: ProcessRecord,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`.
    pub start_time: u64,
}

/// The states of `ps`; fixed names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateRecord {
    Stopped,
    Starting,
    Running,
    Ready,
    Paused,
    Stopping,
    Crashed,
    Failed,
    Unresponsive,
    Damaged,
}

impl BusRecord {
    pub fn name(self) -> &'static str {
        DiskBus::from(self).name()
    }
}

impl From<DiskBus> for BusRecord {
    fn from(bus: DiskBus) -> BusRecord {
        match bus {
            DiskBus::Virtio => BusRecord::Virtio,
            DiskBus::Nvme => BusRecord::Nvme,
            DiskBus::Scsi => BusRecord::Scsi,
        }
    }
}

impl From<BusRecord> for DiskBus {
    fn from(bus: BusRecord) -> DiskBus {
        match bus {
            BusRecord::Virtio => DiskBus::Virtio,
            BusRecord::Nvme => DiskBus::Nvme,
            BusRecord::Scsi => DiskBus::Scsi,
        }
    }
}

impl ClusterRecord {
    /// The IPv6 address of the machine with this MAC, where the cluster has such a network.
    pub fn ip6(&self, mac: &str) -> Option<Ipv6Addr> {
        let subnet = Subnet6::new(self.subnet6?).ok()?;
        Some(subnet.machine(mac.parse().ok()?))
    }
}

impl From<Sector> for SectorRecord {
    fn from(sector: Sector) -> SectorRecord {
        match sector {
            Sector::Bytes512 => SectorRecord::Bytes512,
            Sector::Bytes4096 => SectorRecord::Bytes4096,
        }
    }
}

impl From<SectorRecord> for Sector {
    fn from(sector: SectorRecord) -> Sector {
        match sector {
            SectorRecord::Bytes512 => Sector::Bytes512,
            SectorRecord::Bytes4096 => Sector::Bytes4096,
        }
    }
}

impl DataDiskRecord {
    /// As the guest sees it, in bytes.
    pub fn size(&self) -> u64 {
        match &self.source {
            DataSourceRecord::Made { size, .. } | DataSourceRecord::File { size, .. } => *size,
        }
    }
}

impl MachineRecord {
    /// Those of its disks that are logical volumes, by serial.
    pub fn volumes(&self) -> impl Iterator<Item = (&str, &VolumeRecord)> {
        let root = self.disk.iter().filter_map(|disk| disk.volume.as_ref());
        let data = self
            .data_disks
            .iter()
            .filter_map(|disk| match &disk.source {
                DataSourceRecord::Made { volume, .. } => {
                    Some((disk.serial.as_str(), volume.as_deref()?))
                }
                DataSourceRecord::File { .. } => None,
            });
        root.map(|volume| (ROOT_SERIAL, volume)).chain(data)
    }
}

impl VolumeRecord {
    /// Its node; before it is made, where the host commonly has it.
    pub fn path(&self) -> PathBuf {
        match &self.made {
            Some(made) => made.path.clone(),
            None => Path::new("/dev").join(&self.group).join(&self.name),
        }
    }
}

impl DisksRecord {
    pub fn find(&self, machine: &str, serial: &str) -> Option<&MadeDiskRecord> {
        self.disks
            .iter()
            .find(|disk| disk.machine == machine && disk.serial == serial)
    }
}

impl StateRecord {
    /// The state's fixed name.
    pub fn word(self) -> &'static str {
        match self {
            StateRecord::Stopped => "stopped",
            StateRecord::Starting => "starting",
            StateRecord::Running => "running",
            StateRecord::Ready => "ready",
            StateRecord::Paused => "paused",
            StateRecord::Stopping => "stopping",
            StateRecord::Crashed => "crashed",
            StateRecord::Failed => "failed",
            StateRecord::Unresponsive => "unresponsive",
            StateRecord::Damaged => "damaged",
        }
    }
}

/// What a guest said of itself on the report port. Hostile input, cut to size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportRecord {
    pub boot_id: String,
    pub hostname: String,
    pub addresses: Vec<Ipv4Addr>,
}

/// An address that was seen in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenRecord {
    pub ip: IpAddr,
    pub source: SourceRecord,
    /// RFC 3339, when its lease is over; absent where it has no end, or none that is known.
    #[serde(default)]
    pub expires: Option<String>,
}

impl SeenRecord {
    /// Where a machine with these addresses is to be reached: its newest lease, else the newest address of its frames,
    /// else what it reported. The newest comes last.
    pub fn newest(seen: &[SeenRecord]) -> Option<Ipv4Addr> {
        let of = |source: SourceRecord| {
            seen.iter().rev().find_map(|seen| match seen.ip {
                IpAddr::V4(ip) if seen.source == source => Some(ip),
                IpAddr::V4(_) | IpAddr::V6(_) => None,
            })
        };
        of(SourceRecord::Lease)
            .or_else(|| of(SourceRecord::Frames))
            .or_else(|| of(SourceRecord::Report))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceRecord {
    Lease,
    Frames,
    Agent,
    Report,
}

impl SourceRecord {
    /// The source's fixed name.
    pub fn word(self) -> &'static str {
        match self {
            SourceRecord::Lease => "lease",
            SourceRecord::Frames => "frames",
            SourceRecord::Agent => "agent",
            SourceRecord::Report => "report",
        }
    }
}
