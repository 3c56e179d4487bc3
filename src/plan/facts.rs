//! What a plan is made of besides the spec: the host, and what is already there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use kiln_arch::Arch;

use super::{GoneDisk, GroupFacts, GroupRefusal};
use crate::host::distribution::Distribution;
use crate::host::firmware::Firmwares;
use crate::host::kvm::KvmState;
use crate::host::qemu::Qemu;
use crate::host::room::Room;
use crate::state::layout::ClusterFiles;
use crate::state::record::{
    ClusterRecord, DiskRecord, DisksRecord, KernelRecord, MachineRecord, RunRecord, StateRecord,
    VolumeRecord,
};

/// What a plan must know of the host.
#[derive(Debug, Clone)]
pub struct HostFacts {
    pub arch: Arch,
    /// The emulators that are installed.
    pub qemu: BTreeMap<Arch, Qemu>,
    /// For guests of the host's own architecture.
    pub kvm: KvmState,
    /// The UEFI firmwares that are installed; empty where no machine can want one.
    pub firmwares: Firmwares,
    /// The emulator of TPMs, where it is installed.
    pub swtpm: Option<PathBuf>,
    /// The virtiofsd that works here, or why none does; absent where no machine can want it.
    pub virtiofsd: Option<Result<PathBuf, String>>,
    /// Whose commands install what is missing.
    pub distribution: Distribution,
    /// Whether qemu-img is installed, which makes the machines' disks.
    pub has_qemu_img: bool,
    /// Whether kiln is root, and so has to give the QEMUs another uid.
    pub is_root: bool,
    /// The group that KVM asks for.
    pub qemu_gid: Option<u32>,
    /// Whether machines can be joined by the kernel, or why not; absent where nobody asks.
    pub namespace: Option<Result<(), String>>,
    /// Whether machines can be attached to the bridge that the spec names, or why not; absent where it names none.
    pub bridge: Option<Result<(), String>>,
    /// What tells this host from others on a network that it shares with them.
    pub machine_id: String,
    /// The programs that lead out of a network namespace without root.
    pub pasta: Option<PathBuf>,
    pub slirp4netns: Option<PathBuf>,
    /// The cluster's files; QEMU's uuids come from where they lie.
    pub files: ClusterFiles,
}

/// What is already there.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    pub cluster: Option<ClusterRecord>,
    pub machines: BTreeMap<String, Known>,
    /// Networks that a new subnet must not overlap: the host's routes, other clusters.
    pub taken_networks: Vec<Ipv4Net>,
    /// The same of IPv6.
    pub taken_networks6: Vec<Ipv6Net>,
    /// Uids that other clusters' QEMUs run as.
    pub taken_uids: BTreeSet<u32>,
    /// MACs of other clusters' machines, in lower case, and whose they are.
    pub taken_macs: BTreeMap<String, String>,
    /// TCP ports that someone listens on or another cluster has.
    pub taken_ports: BTreeSet<u16>,
    /// What each machine's image turned out to be, by machine.
    pub images: BTreeMap<String, ImageFacts>,
    /// The data disks that were made for machines of this cluster's name.
    pub disks: Option<DisksRecord>,
    /// The disks that kiln made and that are no longer there.
    pub gone: Vec<GoneDisk>,
    /// What the host has left.
    pub room: Room,
    /// What the QEMUs of this cluster use of their memory now, in bytes.
    pub memory_held: u64,
    /// The sizes, in bytes, of the user's own files that are data disks.
    pub data_files: BTreeMap<PathBuf, u64>,
    /// The volume group that the spec names.
    pub group: Option<Result<GroupFacts, GroupRefusal>>,
    /// The root disks that the ledger knows as volumes, each with its machine.
    pub root_volumes: Vec<(String, VolumeRecord)>,
}

/// A machine that was made before.
#[derive(Debug, Clone)]
pub enum Known {
    Whole {
        record: Box<MachineRecord>,
        run: Option<Box<RunRecord>>,
        /// Its state as far as the inventory can tell.
        state: StateRecord,
    },
    /// Its record cannot be read.
    Damaged { why: String },
}

/// What an image is, as far as choices depend on it.
#[derive(Debug, Clone)]
pub struct ImageFacts {
    pub kernel: Option<KernelRecord>,
    pub disk: Option<DiskRecord>,
    /// Changes when, and only when, the image's content does.
    pub identity: String,
    /// For tables.
    pub label: String,
    /// What `up` has to download first; the disk is then only known by name.
    pub download: Option<String>,
    /// Copies of kernels, which stay as long as these are held.
    pub held: Vec<Arc<File>>,
}

impl Inventory {
    /// Whether the machine has reported and runs.
    pub fn is_ready(&self, name: &str) -> bool {
        matches!(
            self.machines.get(name),
            Some(Known::Whole { state, .. }) if *state == StateRecord::Ready
        )
    }

    /// The machines whose QEMU lives.
    pub fn alive(&self) -> Vec<String> {
        self.machines
            .iter()
            .filter(|(_, known)| match known {
                Known::Whole { state, .. } => match state {
                    StateRecord::Stopped | StateRecord::Crashed => false,
                    StateRecord::Starting
                    | StateRecord::Running
                    | StateRecord::Ready
                    | StateRecord::Paused
                    | StateRecord::Stopping
                    | StateRecord::Failed
                    | StateRecord::Unresponsive
                    | StateRecord::Damaged => true,
                },
                Known::Damaged { .. } => true,
            })
            .map(|(name, _)| name.clone())
            .collect()
    }
}
