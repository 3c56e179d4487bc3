//! Every choice, made once: a pure function of the spec, the host and what is already there.
//!
//! The same three inputs give the same plan. After it nothing is decided: the
//! records in a [`Plan`] hold each address, port, path and accelerator, and the
//! stages that follow only do. It reads nothing and asks nobody.

mod choice;
mod difference;
mod disks;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use ipnet::Ipv4Net;
use kiln_arch::Arch;
use kiln_netsetup::address::{self, AddressError, Subnet};

use crate::cluster::{Cluster, Machine, NetworkMode, Size};
use crate::host::distribution::{Distribution, Piece};
use crate::host::firmware::{Firmwares, Uefi};
use crate::host::kvm::KvmState;
use crate::host::qemu::Qemu;
use crate::state::files::SCHEMA;
use crate::state::layout::ClusterFiles;
use crate::state::record::{
    ClusterRecord, DisksRecord, MachineRecord, ReservationRecord, RunRecord, StateRecord,
};

pub use difference::{Difference, Price};
pub use view::{PlanView, StepView};

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
    /// Uids that other clusters' QEMUs run as.
    pub taken_uids: BTreeSet<u32>,
    /// TCP ports that someone listens on or another cluster has.
    pub taken_ports: BTreeSet<u16>,
    /// What each machine's image turned out to be, by machine.
    pub images: BTreeMap<String, ImageFacts>,
    /// The data disks that were made for machines of this cluster's name.
    pub disks: Option<DisksRecord>,
    /// The sizes, in bytes, of the user's own files that are data disks.
    pub data_files: BTreeMap<PathBuf, u64>,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    pub kernel: Option<crate::state::record::KernelRecord>,
    pub disk: Option<crate::state::record::DiskRecord>,
    /// Changes when, and only when, the image's content does.
    pub identity: String,
    /// For tables.
    pub label: String,
    /// What `up` has to download first; the disk is then only known by name.
    pub download: Option<String>,
}

/// All choices for one `up`.
#[derive(Debug, Clone)]
pub struct Plan {
    pub cluster: ClusterRecord,
    /// Whether nothing of this cluster is there yet.
    pub is_new: bool,
    pub steps: Vec<Step>,
    /// The list of data disks as it was found.
    pub disks_before: Option<DisksRecord>,
}

/// What is to become of one machine.
#[derive(Debug, Clone)]
pub struct Step {
    pub name: String,
    pub action: Action,
    /// Why; for a change, what changed.
    pub why: Vec<String>,
    /// What it is to be; absent for [`Action::Remove`].
    pub record: Option<MachineRecord>,
    /// For [`Action::Change`]: the disks that grow.
    pub grown: Vec<Grown>,
}

/// A disk that grows under a machine that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grown {
    pub serial: String,
    /// In bytes.
    pub size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is up and as the spec says.
    Keep,
    /// What changed takes effect while it runs.
    Change,
    /// It is there, and is started.
    Start,
    /// It is stopped and started with its changed record; its disk stays.
    Restart,
    /// Its disk is made anew: what is on it is lost.
    Recreate,
    Create,
    /// The spec has no such machine any more.
    Remove,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("machine `{machine}` needs `{program}`, which is not installed")]
    NoQemu {
        machine: String,
        program: String,
        install: Option<String>,
    },
    #[error("machine `{machine}` has a disk, and `qemu-img`, which makes it, is not installed")]
    NoQemuImg {
        machine: String,
        install: Option<String>,
    },
    #[error(
        "machine `{machine}` needs {uefi} for {arch}, which is not installed{}",
        rejected(faults)
    )]
    NoFirmware {
        machine: String,
        arch: Arch,
        uefi: Uefi,
        /// Descriptors that cannot be used, which may be why: which, and what is wrong.
        faults: Vec<(PathBuf, String)>,
        install: Option<String>,
    },
    #[error("machine `{machine}` asks for a TPM, and `swtpm`, which emulates it, is not installed")]
    NoTpm {
        machine: String,
        install: Option<String>,
    },
    #[error("machine `{machine}` asks for KVM, which does not work here: {why}")]
    NoKvm { machine: String, why: String },
    #[error(
        "machine `{machine}` asks for KVM, but its architecture `{arch}` is not the host's (`{host}`)"
    )]
    ForeignKvm {
        machine: String,
        arch: Arch,
        host: Arch,
    },
    #[error("cannot give the machines addresses")]
    Address(#[source] AddressError),
    #[error(
        "the subnet of cluster `{cluster}` is {kept} and cannot change to {asked} while the cluster exists"
    )]
    SubnetMoved {
        cluster: String,
        kept: Ipv4Net,
        asked: Ipv4Net,
    },
    #[error(
        "the network of cluster `{cluster}` is in mode `{kept}` and cannot change to `{asked}` while the cluster exists"
    )]
    ModeMoved {
        cluster: String,
        kept: String,
        asked: String,
    },
    #[error("cannot attach machines to bridge `{bridge}`: {why}")]
    NoBridge { bridge: String, why: String },
    #[error("`network.mode: namespace` does not work here: {why}")]
    NoNamespace { why: String },
    #[error("subnet {subnet} overlaps {taken}, which is in use on this host")]
    SubnetTaken { subnet: Ipv4Net, taken: Ipv4Net },
    #[error("host port {port} of machine `{machine}` is taken")]
    PortTaken { machine: String, port: u16 },
    #[error("no free uid is left for the QEMUs of cluster `{cluster}`")]
    NoUid { cluster: String },
    #[error("no free host port is left for machine `{machine}`")]
    NoPort { machine: String },
    #[error("the record of cluster `{cluster}` cannot be used: {why}")]
    Record { cluster: String, why: String },
    #[error("machine `{machine}` is damaged: {why}")]
    Damaged { machine: String, why: String },
    #[error(
        "machine `{machine}` asks for a disk of {want}, and it has one of {least}, or its image is as large"
    )]
    DiskShrinks {
        machine: String,
        want: Size,
        least: Size,
    },
    #[error("disk `{serial}` of machine `{machine}` is of {least}, and the spec asks for {want}")]
    DataDiskShrinks {
        machine: String,
        serial: String,
        want: Size,
        least: Size,
    },
    #[error("nothing is known of the image of machine `{machine}`")]
    NoImage { machine: String },
}

/// Makes the plan.
///
/// # Errors
/// [`PlanError`] when the host lacks something, or what is there contradicts the spec.
pub fn plan(cluster: &Cluster, host: &HostFacts, inventory: &Inventory) -> Result<Plan, PlanError> {
    let mut cluster_record = cluster_record(cluster, host, inventory)?;
    let mut ports = choice::Ports::new(inventory);
    let mut steps = Vec::new();
    for machine in &cluster.machines {
        let record = machine_record(machine, &cluster_record, host, inventory, &mut ports)?;
        cluster_record
            .ports
            .extend(record.ports.iter().map(|port| port.host));
        let mut step = step(machine, record, inventory)?;
        if let Some(qemu) = host.qemu.get(&machine.arch) {
            choice::board_that_is_there(&mut step, qemu);
        }
        steps.push(step);
    }
    for (name, known) in &inventory.machines {
        if !cluster
            .machines
            .iter()
            .any(|machine| machine.name.as_str() == name)
        {
            steps.push(removal(name, known, inventory));
        }
    }
    Ok(Plan {
        cluster: cluster_record,
        is_new: inventory.cluster.is_none(),
        steps,
        disks_before: inventory.disks.clone(),
    })
}

fn removal(name: &str, known: &Known, inventory: &Inventory) -> Step {
    let has_root = match known {
        Known::Whole { record, .. } => record.disk.is_some(),
        Known::Damaged { .. } => true,
    };
    let mut why = vec!["the spec has no such machine any more".to_owned()];
    why.extend(disks::on_removal(name, has_root, inventory.disks.as_ref()));
    Step {
        name: name.to_owned(),
        action: Action::Remove,
        why,
        record: None,
        grown: Vec::new(),
    }
}

fn cluster_record(
    cluster: &Cluster,
    host: &HostFacts,
    inventory: &Inventory,
) -> Result<ClusterRecord, PlanError> {
    let name = cluster.name.as_str();
    let subnet = subnet(cluster, inventory)?;
    let mut reservations = inventory
        .cluster
        .as_ref()
        .map_or_else(BTreeMap::new, |record| record.reservations.clone());
    let mut existing = BTreeMap::new();
    for (machine, reserved) in &reservations {
        let mac = reserved.mac.parse().map_err(|_| PlanError::Record {
            cluster: name.to_owned(),
            why: format!("`{}` is no MAC address", reserved.mac),
        })?;
        existing.insert(machine.clone(), (mac, reserved.ip));
    }
    let names = cluster.machines.iter().map(|machine| machine.name.as_str());
    let kept = inventory.cluster.as_ref();
    let (mode, mode_reason) = choice::mode(&cluster.network.mode, kept, host.namespace.as_ref())?;
    let way_out = choice::way_out(mode, &cluster.network.mode, kept, host)?;
    let seed = choice::seed(name, mode, host);
    let reserved = address::reserve(&seed, names, &existing, subnet).map_err(PlanError::Address)?;
    for (machine, (mac, ip)) in reserved {
        let mac = mac.to_string().to_ascii_lowercase();
        reservations.insert(machine, ReservationRecord { mac, ip });
    }
    Ok(ClusterRecord {
        schema: SCHEMA,
        name: name.to_owned(),
        spec: cluster.spec.clone(),
        mode,
        mode_reason,
        way_out,
        subnet: subnet.net(),
        domain: format!("{name}.internal"),
        qemu_uid: match kept {
            Some(record) => record.qemu_uid,
            None if host.is_root => Some(choice::uid(name, &inventory.taken_uids)?),
            None => None,
        },
        qemu_gid: host.qemu_gid,
        machines: cluster
            .machines
            .iter()
            .map(|machine| machine.name.to_string())
            .collect(),
        scale: cluster
            .scale
            .iter()
            .map(|(group, count)| (group.to_string(), *count))
            .collect(),
        ports: BTreeSet::new(),
        reservations,
    })
}

/// The kept subnet, or the asked one, or a free one; in this order.
fn subnet(cluster: &Cluster, inventory: &Inventory) -> Result<Subnet, PlanError> {
    let asked = cluster.network.subnet;
    if let NetworkMode::Attach { .. } = cluster.network.mode {
        return Subnet::new(choice::NO_SUBNET).map_err(PlanError::Address);
    }
    if let Some(record) = &inventory.cluster {
        return match asked {
            Some(asked) if asked.trunc() != record.subnet => Err(PlanError::SubnetMoved {
                cluster: record.name.clone(),
                kept: record.subnet,
                asked,
            }),
            _ => Subnet::new(record.subnet).map_err(PlanError::Address),
        };
    }
    let Some(asked) = asked else {
        return address::choose_subnet(cluster.name.as_str(), &inventory.taken_networks)
            .map_err(PlanError::Address);
    };
    let overlaps =
        |taken: &&Ipv4Net| taken.contains(&asked.network()) || asked.contains(&taken.network());
    match inventory.taken_networks.iter().find(overlaps) {
        Some(taken) => Err(PlanError::SubnetTaken {
            subnet: asked,
            taken: *taken,
        }),
        None => Subnet::new(asked.trunc()).map_err(PlanError::Address),
    }
}

fn machine_record(
    machine: &Machine,
    cluster: &ClusterRecord,
    host: &HostFacts,
    inventory: &Inventory,
    ports: &mut choice::Ports,
) -> Result<MachineRecord, PlanError> {
    let name = machine.name.to_string();
    let old = match inventory.machines.get(&name) {
        Some(Known::Whole { record, .. }) => Some(record.as_ref()),
        Some(Known::Damaged { .. }) | None => None,
    };
    let image = inventory
        .images
        .get(&name)
        .ok_or_else(|| PlanError::NoImage {
            machine: name.clone(),
        })?;
    let reservation = &cluster.reservations[&name];
    let qemu = host
        .qemu
        .get(&machine.arch)
        .ok_or_else(|| PlanError::NoQemu {
            machine: name.clone(),
            program: machine.arch.qemu_program().to_owned(),
            install: host.distribution.install(Piece::Qemu(machine.arch)),
        })?;
    let (accel, accel_reason) = choice::accel(machine, host)?;
    let makes_disk = image.disk.is_some() && old.is_none() || disks::any_new(machine, inventory);
    if makes_disk && !host.has_qemu_img {
        return Err(PlanError::NoQemuImg {
            machine: name,
            install: host.distribution.install(Piece::QemuImg),
        });
    }
    let board = old
        .filter(|old| old.arch == machine.arch.to_string())
        .and_then(|old| old.board.clone())
        .or_else(|| qemu.board.clone());
    Ok(MachineRecord {
        schema: SCHEMA,
        group: machine.group.to_string(),
        index: machine.index,
        arch: machine.arch.to_string(),
        accel,
        accel_reason,
        uuid: host.files.uuid(&name),
        firmware: choice::firmware(machine, image, board.as_deref(), host, old)?,
        tpm: choice::tpm(machine, host)?,
        board,
        qemu: qemu.program.clone(),
        cpus: machine.cpus.get(),
        memory_mib: choice::mebibytes(machine.memory),
        kernel: image.kernel.clone(),
        disk: choice::disk(machine, image, old)?,
        data_disks: disks::choose(machine, inventory)?,
        ignition: true,
        ignition_transport: machine.ignition_transport.map(choice::transport),
        mac: reservation.mac.clone(),
        ip: reservation.ip,
        ports: ports.choose(machine, &host.files.uuid(&name), old)?,
        restart: choice::restart(machine.restart),
        image: image.label.clone(),
        identity: crate::ignition::identity(machine, &image.identity),
        reports: choice::reports(machine.profile),
        name,
    })
}

/// What is wrong with descriptors that might have been what is missing.
fn rejected(faults: &[(PathBuf, String)]) -> String {
    faults
        .iter()
        .map(|(path, why)| format!("; `{}` {why}", path.display()))
        .collect()
}

fn step(
    machine: &Machine,
    record: MachineRecord,
    inventory: &Inventory,
) -> Result<Step, PlanError> {
    let name = machine.name.to_string();
    let mut grown = Vec::new();
    let (action, why) = match inventory.machines.get(&name) {
        None => (Action::Create, Vec::new()),
        Some(Known::Damaged { why }) => {
            return Err(PlanError::Damaged {
                machine: name,
                why: why.clone(),
            });
        }
        Some(Known::Whole {
            record: old, state, ..
        }) => {
            let differences = difference::between(old, &record);
            grown = difference::grown(old, &record);
            let price = differences.iter().map(|difference| difference.price).max();
            let why = differences.iter().map(ToString::to_string).collect();
            match (price, state) {
                (Some(Price::Disk), _) => (Action::Recreate, why),
                (_, StateRecord::Stopped | StateRecord::Crashed) => (Action::Start, why),
                (Some(Price::Restart), _) => (Action::Restart, why),
                (
                    Some(Price::Live),
                    StateRecord::Running | StateRecord::Ready | StateRecord::Paused,
                ) => (Action::Change, why),
                // Its QEMU cannot be asked now.
                (
                    Some(Price::Live),
                    StateRecord::Starting
                    | StateRecord::Stopping
                    | StateRecord::Failed
                    | StateRecord::Unresponsive
                    | StateRecord::Damaged,
                ) => (Action::Restart, why),
                (None | Some(Price::Nothing), StateRecord::Failed) => {
                    (Action::Restart, vec!["its guest has given up".to_owned()])
                }
                (
                    None | Some(Price::Nothing),
                    StateRecord::Starting
                    | StateRecord::Running
                    | StateRecord::Ready
                    | StateRecord::Paused
                    | StateRecord::Stopping
                    | StateRecord::Unresponsive
                    | StateRecord::Damaged,
                ) => (Action::Keep, why),
            }
        }
    };
    let download = inventory
        .images
        .get(&name)
        .and_then(|it| it.download.as_ref());
    Ok(Step {
        why: why.into_iter().chain(download.cloned()).collect(),
        name,
        action,
        record: Some(record),
        grown,
    })
}

impl Plan {
    /// Leaves only the steps of these machines; all of them when none is named.
    ///
    /// The others stay as they are: those that were not made are not made.
    pub fn restrict(&mut self, names: &[String]) {
        if names.is_empty() {
            return;
        }
        for step in &mut self.steps {
            if names.contains(&step.name) {
                continue;
            }
            if step.action == Action::Create {
                self.cluster.machines.retain(|name| *name != step.name);
            } else if step.action == Action::Remove {
                self.cluster.machines.push(step.name.clone());
            }
        }
        self.steps.retain(|step| names.contains(&step.name));
    }

    /// Makes all machines of the plan that exist anew, whatever changed.
    pub fn make_anew(&mut self) {
        for step in &mut self.steps {
            match step.action {
                Action::Keep | Action::Start | Action::Change | Action::Restart => {
                    step.action = Action::Recreate;
                    step.why.push("it is asked for".to_owned());
                }
                Action::Recreate | Action::Create | Action::Remove => {}
            }
        }
    }

    /// Whether doing it would change nothing.
    pub fn is_settled(&self) -> bool {
        !self.is_new
            && self
                .steps
                .iter()
                .all(|step| step.action == Action::Keep && step.why.is_empty())
    }

    /// The machines whose disk would be lost.
    pub fn recreated(&self) -> impl Iterator<Item = &Step> {
        self.steps
            .iter()
            .filter(|step| step.action == Action::Recreate)
    }
}

impl Action {
    pub fn word(self) -> &'static str {
        match self {
            Action::Keep => "keep",
            Action::Change => "change",
            Action::Start => "start",
            Action::Restart => "restart",
            Action::Recreate => "recreate",
            Action::Create => "create",
            Action::Remove => "remove",
        }
    }
}

impl Step {
    /// Whether the machine can report that it is ready.
    pub fn reports(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.reports)
    }
}

impl Inventory {
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
