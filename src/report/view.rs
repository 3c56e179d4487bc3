//! What `ps`, `ls`, `ip` and `up` show: one type for programs and people alike.
//!
//! Serialized, these are the `result` of `--json`; the names of their fields are
//! fixed. What is not known (of a damaged machine, of a cluster whose supervisor is
//! away) is `null`, never left out.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::Serialize;

use crate::cluster::{ROOT_SERIAL, Size};
use crate::report::style::{Paint, Style};
use crate::report::table::{Cell, table};
use crate::state::layout::{DisksFiles, MachineFiles};
use crate::state::record::{
    AccelRecord, BusRecord, ClusterRecord, DataSourceRecord, DisksRecord, MachineRecord,
    ModeRecord, PortRecord, SeenRecord, StateRecord, WayOutRecord,
};
use crate::supervisor::protocol::{ClusterStatus, MachineStatus};

/// A cluster and its machines, as `ps` and `up` show them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClusterView {
    pub cluster: String,
    pub spec: PathBuf,
    pub network: NetworkView,
    pub supervisor: SupervisorView,
    pub machines: Vec<MachineView>,
    /// Data disks that no machine has now.
    pub kept_disks: Vec<KeptDiskView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkView {
    pub mode: ModeRecord,
    /// Why this mode and not a better one; empty when the spec named it.
    pub reason: String,
    /// Absent where another one gives addresses.
    pub subnet: Option<Ipv4Net>,
    /// Absent where the cluster has no IPv6.
    pub subnet6: Option<Ipv6Net>,
    pub domain: String,
    /// What is wrong with the way out to the world; empty when all is well.
    pub uplink: String,
    /// What is wrong with it as a whole, a sentence each.
    pub notes: Vec<String>,
    /// Whether there is none on purpose.
    pub isolated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SupervisorView {
    /// Absent while none runs.
    pub pid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MachineView {
    pub name: String,
    pub arch: Option<String>,
    pub accel: Option<AccelRecord>,
    /// Why this accelerator; empty when the spec named it.
    pub accel_reason: String,
    pub state: StateRecord,
    pub reason: String,
    /// How far the boot has come.
    pub phase: String,
    pub ready: bool,
    pub pid: Option<u32>,
    pub mac: Option<String>,
    pub reserved_ip: Option<Ipv4Addr>,
    /// Only what was seen in use.
    pub addresses: Vec<SeenRecord>,
    pub ports: Vec<PortRecord>,
    pub image: Option<String>,
    /// In the order in which the guest sees them; the root disk is the first.
    pub disks: Vec<DiskView>,
    /// In the order in which the guest sees them.
    pub shares: Vec<ShareView>,
    /// RFC 3339.
    pub started_at: Option<String>,
    /// What does not work of it while it runs, a sentence each.
    pub notes: Vec<String>,
    /// Whether kiln's keys are in it, so that `kiln ssh` gets in.
    #[serde(skip)]
    pub ssh: bool,
}

/// One disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskView {
    pub serial: String,
    /// As the guest sees it, in bytes.
    pub size: u64,
    pub path: PathBuf,
    pub bus: BusRecord,
    pub readonly: bool,
    /// Whether it outlives `down`.
    pub keep: bool,
}

/// A folder of the host that a machine mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShareView {
    pub from: PathBuf,
    /// Where the guest mounts it.
    pub to: String,
    pub readonly: bool,
    /// `virtiofs` or `9p`.
    pub by: &'static str,
    /// Why not by virtiofs; empty where it is.
    pub reason: String,
    /// By what the guest mounts it.
    pub tag: String,
}

/// A data disk that kiln made and that no machine has now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeptDiskView {
    pub machine: String,
    pub serial: String,
    /// As a guest sees it, in bytes.
    pub size: u64,
    pub path: PathBuf,
    /// Whether it outlives `down`.
    pub keep: bool,
}

/// One of the clusters that `ls` lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedView {
    pub cluster: String,
    /// What is wrong with its records; empty when they can be read.
    pub damage: String,
    /// Absent, as what follows, when the records cannot be read.
    pub spec: Option<PathBuf>,
    pub mode: Option<ModeRecord>,
    pub subnet: Option<Ipv4Net>,
    pub supervisor: SupervisorView,
    /// How many machines are in each state, by the state's name.
    pub machines: BTreeMap<&'static str, usize>,
    /// Data disks that no machine has now.
    pub kept_disks: Vec<KeptDiskView>,
}

/// What progress says of a machine: its phase while it comes up, else its state and why.
pub fn progress_text(status: &MachineStatus) -> String {
    let MachineStatus {
        state,
        reason,
        phase,
        ..
    } = status;
    if matches!(state, StateRecord::Starting | StateRecord::Running) && !phase.is_empty() {
        return match phase.strip_prefix("ignition") {
            Some(stage) => format!("Ignition{stage}"),
            None => phase.clone(),
        };
    }
    if reason.is_empty() {
        return state.word().to_owned();
    }
    format!("{}: {reason}", state.word())
}

impl NetworkView {
    /// `status` is what the supervisor says.
    pub fn new(record: &ClusterRecord, status: &ClusterStatus) -> NetworkView {
        NetworkView {
            mode: record.mode,
            reason: record.mode_reason.clone(),
            subnet: record.own_subnet(),
            subnet6: record.subnet6,
            domain: record.domain.clone(),
            uplink: status.uplink.clone(),
            notes: status.notes.clone(),
            isolated: record.way_out == WayOutRecord::Nowhere,
        }
    }
}

impl DiskView {
    fn all(record: &MachineRecord, files: &MachineFiles) -> Vec<DiskView> {
        let root = record.disk.iter().map(|disk| DiskView {
            serial: ROOT_SERIAL.to_owned(),
            size: disk.size,
            path: match &disk.volume {
                Some(volume) => volume.path(),
                None => files.disk(),
            },
            bus: disk.bus,
            readonly: false,
            keep: false,
        });
        let data = record.data_disks.iter().map(|disk| {
            let (path, readonly, keep) = match &disk.source {
                DataSourceRecord::Made { keep, volume, .. } => {
                    let path = match volume {
                        Some(volume) => volume.path(),
                        None => files.data_disk(&disk.serial),
                    };
                    (path, false, *keep)
                }
                DataSourceRecord::File { path, readonly, .. } => (path.clone(), *readonly, true),
            };
            DiskView {
                serial: disk.serial.clone(),
                size: disk.size(),
                path,
                bus: disk.bus,
                readonly,
                keep,
            }
        });
        root.chain(data).collect()
    }
}

impl ShareView {
    pub fn all(record: &MachineRecord) -> Vec<ShareView> {
        let shares = record.shares.iter().map(|share| ShareView {
            from: share.from.clone(),
            to: share.to.clone(),
            readonly: share.readonly,
            by: share.word(),
            reason: share.reason.clone(),
            tag: share.tag.clone(),
        });
        shares.collect()
    }
}

impl KeptDiskView {
    /// All of the list.
    pub fn all(record: &DisksRecord, files: &DisksFiles) -> Vec<KeptDiskView> {
        let disks = record.disks.iter().map(|disk| KeptDiskView {
            machine: disk.machine.clone(),
            serial: disk.serial.clone(),
            size: disk.size,
            path: match &disk.volume {
                Some(volume) => volume.path(),
                None => files.disk(&disk.machine, &disk.serial),
            },
            keep: disk.keep,
        });
        disks.collect()
    }
}

impl std::fmt::Display for KeptDiskView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let size = Size::from_bytes(self.size);
        let path = self.path.display();
        write!(f, "`{}` of {} ({size}, {path})", self.serial, self.machine)
    }
}

impl MachineView {
    /// `record` is absent where it cannot be read.
    pub fn new(
        mode: ModeRecord,
        record: Option<&MachineRecord>,
        status: &MachineStatus,
        files: &MachineFiles,
    ) -> MachineView {
        MachineView {
            name: status.name.clone(),
            arch: record.map(|record| record.arch.clone()),
            accel: record.map(|record| record.accel),
            accel_reason: record.map_or_else(String::new, |record| record.accel_reason.clone()),
            state: status.state,
            reason: status.reason.clone(),
            phase: status.phase.clone(),
            ready: status.state == StateRecord::Ready,
            pid: status.pid,
            mac: record.map(|record| record.mac.clone()),
            reserved_ip: record
                .filter(|_| mode.gives_addresses())
                .map(|record| record.ip),
            addresses: status.addresses.clone(),
            ports: record.map_or_else(Vec::new, |record| record.ports.clone()),
            image: record.map(|record| record.image.clone()),
            disks: record.map_or_else(Vec::new, |record| DiskView::all(record, files)),
            shares: record.map_or_else(Vec::new, ShareView::all),
            started_at: status.started_at.clone(),
            notes: status.notes.clone(),
            ssh: record.is_some_and(|record| record.reports),
        }
    }

    /// Each address once, however many sources saw it.
    fn addresses(&self) -> String {
        let mut addresses: Vec<String> = Vec::new();
        for seen in &self.addresses {
            let ip = seen.ip.to_string();
            if !addresses.contains(&ip) {
                addresses.push(ip);
            }
        }
        addresses.join(" ")
    }

    /// The sources of its addresses, in their order.
    fn sources(&self) -> String {
        let mut ips = Vec::new();
        let mut words = Vec::new();
        for seen in &self.addresses {
            if !ips.contains(&seen.ip) {
                ips.push(seen.ip);
                words.push(seen.source.word());
            }
        }
        words.join(" ")
    }

    /// The verb that gets a user into the machine as it is now, if one does.
    fn way_in(&self) -> Option<&'static str> {
        match self.state {
            StateRecord::Starting
            | StateRecord::Running
            | StateRecord::Ready
            | StateRecord::Paused
            | StateRecord::Stopping => Some(if self.ssh { "ssh" } else { "console" }),
            StateRecord::Failed | StateRecord::Unresponsive => Some("console"),
            StateRecord::Stopped | StateRecord::Crashed | StateRecord::Damaged => None,
        }
    }

    fn ports(&self) -> String {
        let ports = self.ports.iter().map(|port| {
            let PortRecord { bind, host, guest } = port;
            format!("{bind}:{host}->{guest}")
        });
        ports.collect::<Vec<_>>().join(" ")
    }

    fn state(&self) -> Cell {
        let paint = match self.state {
            StateRecord::Ready => Paint::Good,
            StateRecord::Stopped => Paint::Faint,
            StateRecord::Starting
            | StateRecord::Running
            | StateRecord::Stopping
            | StateRecord::Paused => Paint::Busy,
            StateRecord::Crashed
            | StateRecord::Failed
            | StateRecord::Unresponsive
            | StateRecord::Damaged => Paint::Bad,
        };
        Cell::painted(paint, self.state.word())
    }
}

impl ClusterView {
    /// `kiln ps`.
    pub fn ps_table(&self, style: Style) -> String {
        let row = |machine: &MachineView| {
            [
                Cell::new(&machine.name),
                machine.state(),
                Cell::new(machine.arch.as_deref().unwrap_or_default()),
                Cell::new(machine.accel.map_or("", accel_word)),
                Cell::new(machine.addresses()),
                Cell::new(machine.ports()),
                Cell::new(&machine.reason),
            ]
        };
        let rows: Vec<_> = self.machines.iter().map(row).collect();
        let headers = [
            "NAME", "STATE", "ARCH", "ACCEL", "ADDRESS", "PORTS", "REASON",
        ];
        table(style, headers, &rows)
    }

    /// What `up` ends with. `kiln` is how to call kiln so that it finds this cluster,
    /// such as `kiln -c demo`.
    pub fn up_table(&self, style: Style, kiln: &str) -> String {
        let row = |machine: &MachineView| {
            let way_in = machine.way_in();
            let enter = way_in.map(|verb| format!("{kiln} {verb} {}", machine.name));
            [
                Cell::new(&machine.name),
                machine.state(),
                Cell::new(machine.addresses()),
                Cell::new(machine.ports()),
                Cell::new(enter.unwrap_or_default()),
            ]
        };
        let rows: Vec<_> = self.machines.iter().map(row).collect();
        table(style, ["NAME", "STATE", "ADDRESS", "PORTS", "ENTER"], &rows)
    }

    /// `kiln ip`.
    pub fn ip_table(&self, style: Style) -> String {
        let row = |machine: &MachineView| {
            let reserved = machine.reserved_ip.map(|ip| ip.to_string());
            [
                Cell::new(&machine.name),
                Cell::new(machine.addresses()),
                Cell::new(machine.sources()),
                Cell::new(reserved.unwrap_or_default()),
            ]
        };
        let rows: Vec<_> = self.machines.iter().map(row).collect();
        table(style, ["NAME", "ADDRESS", "SOURCE", "RESERVED"], &rows)
    }

    /// What is weaker or worse than a user would think, for `ps`.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.weaker();
        notes.extend(self.troubles());
        notes
    }

    /// What is weaker than a user would think, as long as the machines are what they are: told by
    /// the `up` that starts any.
    pub fn weaker(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let NetworkView {
            mode,
            reason,
            isolated,
            ..
        } = &self.network;
        // Nothing is better than `namespace`, so there is nothing to be told of it.
        if *mode == ModeRecord::User {
            notes.push("the network is `user`: machines do not reach each other, and reach what listens on this host's loopback".to_owned());
        }
        if !reason.is_empty() && *mode != ModeRecord::Namespace {
            notes.push(format!("the network is `{}`: {reason}", mode_word(*mode)));
        }
        if *isolated {
            notes.push("the network has no uplink: the machines reach each other only".to_owned());
        }
        // What the spec asks for in so many words is told too: few know what emulation weakens.
        let emulated: Vec<&str> = self.emulated().map(|(name, _)| name).collect();
        if !emulated.is_empty() {
            notes.push(format!(
                "{} emulated (tcg): slow, and outside QEMU's security promise",
                these_are(&emulated)
            ));
        }
        notes
    }

    /// What does not work now.
    pub fn troubles(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let uplink = &self.network.uplink;
        if !uplink.is_empty() {
            notes.push(format!("the way out to the world is not open: {uplink}"));
        }
        notes.extend(self.network.notes.iter().cloned());
        for machine in &self.machines {
            let of = |note| format!("{}: {note}", machine.name);
            notes.extend(machine.notes.iter().map(of));
        }
        for disk in &self.kept_disks {
            let how = if disk.keep { " --remove-disks" } else { "" };
            notes.push(format!(
                "no machine has the disk {disk} any more: it is kept until `kiln down{how}`"
            ));
        }
        notes
    }

    /// Why machines are emulated that need not be by the spec's word: told in `up`.
    pub fn why_emulated(&self) -> Vec<String> {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        for (name, why) in self.emulated().filter(|(_, why)| !why.is_empty()) {
            match groups.iter_mut().find(|(known, _)| *known == why) {
                Some((_, names)) => names.push(name),
                None => groups.push((why, vec![name])),
            }
        }
        let told = |(why, names): (&str, Vec<&str>)| {
            format!("{} not run by KVM: {why}", these_are(&names))
        };
        groups.into_iter().map(told).collect()
    }

    /// Why shares go by 9p: told in `up`.
    pub fn why_slow_shares(&self) -> Vec<String> {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        for machine in &self.machines {
            let mut reasons = machine.shares.iter().map(|share| share.reason.as_str());
            let Some(why) = reasons.find(|why| !why.is_empty()) else {
                continue;
            };
            match groups.iter_mut().find(|(known, _)| *known == why) {
                Some((_, names)) => names.push(&machine.name),
                None => groups.push((why, vec![&machine.name])),
            }
        }
        let told =
            |(why, names): (&str, Vec<&str>)| format!("{}: shares by 9p: {why}", names.join(", "));
        groups.into_iter().map(told).collect()
    }

    /// Names and reasons.
    fn emulated(&self) -> impl Iterator<Item = (&str, &str)> {
        self.machines
            .iter()
            .filter(|machine| machine.accel == Some(AccelRecord::Tcg))
            .map(|machine| (&*machine.name, &*machine.accel_reason))
    }
}

fn these_are(names: &[&str]) -> String {
    let are = if names.len() == 1 { "is" } else { "are" };
    format!("{} {are}", names.join(", "))
}

/// `kiln ls`.
pub fn ls_table(style: Style, clusters: &[ListedView]) -> String {
    let row = |cluster: &ListedView| {
        let spec = match &cluster.spec {
            Some(spec) => spec.to_string_lossy().into_owned(),
            None => format!("damaged: {}", cluster.damage),
        };
        let mut machines: Vec<_> = cluster
            .machines
            .iter()
            .map(|(state, count)| format!("{count} {state}"))
            .collect();
        match cluster.kept_disks.len() {
            0 => {}
            1 => machines.push("1 kept disk".to_owned()),
            count => machines.push(format!("{count} kept disks")),
        }
        [
            Cell::new(&cluster.cluster),
            Cell::new(machines.join(", ")),
            Cell::new(cluster.mode.map_or("", mode_word)),
            Cell::new(
                cluster
                    .subnet
                    .map(|subnet| subnet.to_string())
                    .unwrap_or_default(),
            ),
            Cell::new(spec),
        ]
    };
    let rows: Vec<_> = clusters.iter().map(row).collect();
    table(
        style,
        ["NAME", "MACHINES", "NETWORK", "SUBNET", "SPEC"],
        &rows,
    )
}

fn accel_word(accel: AccelRecord) -> &'static str {
    match accel {
        AccelRecord::Kvm => "kvm",
        AccelRecord::Tcg => "tcg",
    }
}

/// The mode's fixed name.
pub fn mode_word(mode: ModeRecord) -> &'static str {
    match mode {
        ModeRecord::Fabric => "fabric",
        ModeRecord::Namespace => "namespace",
        ModeRecord::Attach => "attach",
        ModeRecord::User => "user",
    }
}

#[cfg(test)]
mod tests;
