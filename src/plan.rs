//! Every choice, made once: a pure function of the spec, the host and what is already there.
//!
//! The same three inputs give the same plan. After it nothing is decided: the
//! records in a [`Plan`] hold each address, port, path and accelerator, and the
//! stages that follow only do. It reads nothing and asks nobody.

mod admission;
mod choice;
mod cluster;
mod difference;
mod disks;
mod error;
mod facts;
mod view;
mod volumes;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::cluster::{Cluster, Machine};
use crate::host::distribution::Piece;
use crate::state::files::SCHEMA;
use crate::state::record::{
    ClusterRecord, DisksRecord, MachineRecord, ReservationRecord, StateRecord,
};

pub use difference::{Difference, Price};
pub use error::PlanError;
pub use facts::{HostFacts, ImageFacts, Inventory, Known};
pub use view::{PlanView, StepView};
pub use volumes::{GroupFacts, GroupRefusal, VolumeFault};

/// All choices for one `up`.
#[derive(Debug, Clone)]
pub struct Plan {
    pub cluster: ClusterRecord,
    /// Whether nothing of this cluster is there yet.
    pub is_new: bool,
    /// What changes of what the machines are told of their network, while they run.
    pub network: Vec<&'static str>,
    /// The places of machines as they were.
    places_before: BTreeMap<String, ReservationRecord>,
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
    /// The disks that it has and that grow.
    pub grown: Vec<Grown>,
    /// The disks that it had, which this makes anew, empty.
    pub gone: Vec<GoneDisk>,
}

/// A disk that kiln made and somebody removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoneDisk {
    pub machine: String,
    pub serial: String,
    /// Where it was.
    pub path: PathBuf,
}

/// A disk that is to be larger.
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

/// Makes the plan.
///
/// # Errors
/// [`PlanError`] when the host lacks something, or what is there contradicts the spec.
pub fn plan(cluster: &Cluster, host: &HostFacts, inventory: &Inventory) -> Result<Plan, PlanError> {
    let mut cluster_record = cluster::record(cluster, host, inventory)?;
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
    let network = cluster::changes(inventory.cluster.as_ref(), &cluster_record);
    Ok(Plan {
        cluster: cluster_record,
        is_new: inventory.cluster.is_none(),
        network,
        places_before: inventory
            .cluster
            .as_ref()
            .map_or_else(BTreeMap::new, |record| record.reservations.clone()),
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
        gone: Vec::new(),
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
        disk: choice::disk(machine, image, old, inventory, cluster, host)?,
        data_disks: disks::choose(machine, inventory, cluster, host)?,
        ignition: true,
        ignition_transport: machine.ignition_transport.map(choice::transport),
        mac: reservation.mac.clone(),
        ip: reservation.ip,
        mtu: cluster.told.mtu,
        ports: ports.choose(machine, &host.files.uuid(&name), old)?,
        restart: choice::restart(machine.restart),
        image: image.label.clone(),
        identity: crate::ignition::identity(machine, &image.identity),
        reports: choice::reports(machine.profile),
        name,
    })
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
                // A stop was broken off: nobody waits for its end, and it comes.
                (None | Some(Price::Nothing), StateRecord::Stopping) => {
                    (Action::Restart, vec!["it is stopping".to_owned()])
                }
                (
                    None | Some(Price::Nothing),
                    StateRecord::Starting
                    | StateRecord::Running
                    | StateRecord::Ready
                    | StateRecord::Paused
                    | StateRecord::Unresponsive
                    | StateRecord::Damaged,
                ) => (Action::Keep, why),
            }
        }
    };
    let gone = disks::gone(&record, inventory);
    let (action, why) = disks::made_anew(&gone, action, why);
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
        gone,
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
            // One that runs on has its place until its turn comes.
            if let Some(place) = self.places_before.get(&step.name) {
                let places = &mut self.cluster.reservations;
                places.insert(step.name.clone(), place.clone());
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
            && self.network.is_empty()
            && self
                .steps
                .iter()
                .all(|step| step.action == Action::Keep && step.why.is_empty())
    }

    /// Whether a machine is to be started.
    pub fn starts(&self) -> bool {
        self.steps.iter().any(|step| match step.action {
            Action::Create | Action::Recreate | Action::Restart | Action::Start => true,
            Action::Keep | Action::Change | Action::Remove => false,
        })
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
