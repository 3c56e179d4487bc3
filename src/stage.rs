//! Doing a plan, up to the hand-over: each stage consumes the one before.
//!
//! ```text
//! Plan ── reserve ─▶ Reserved ── prepare ─▶ Prepared ── (supervisor) ─▶ running machines
//! ```
//! `reserve` begins the ledger and makes names and addresses ours; `prepare` makes
//! keys, disks and Ignition configs. Nothing is chosen here. When a stage fails,
//! what this `up` had made goes by the same way down that `down` takes.

mod disks;
pub mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::cluster::{Cluster, Machine, MachineName, Size};
use crate::error::in_one_line;
use crate::etcd::Membership;
use crate::folder::{self, Batch, BatchError, FolderError, Incoming};
use crate::ignition::{self, Facts, IgnitionError, Peer};
use crate::image::flash::{self, FlashError};
use crate::image::overlay::{self, OverlayError};
use crate::keys::{KeyError, KeyPair};
use crate::lvm::program::Lvm;
use crate::plan::{Action, Plan, Step};
use crate::state;
use crate::state::disks::DisksError;
use crate::state::files::{self, StateError};
use crate::state::layout::{ClusterFiles, MachineFiles, Roots};
use crate::state::ledger::{self, Entry, Ledger};
use crate::state::record::{ClusterRecord, FirmwareRecord, MachineRecord, WayOutRecord};

pub use self::disks::DataDiskError;
use self::volumes::VolumeError;

/// Why a stage could not be done.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error("cannot keep the cluster's state")]
    State(#[from] StateError),
    #[error("cannot make a folder for the cluster")]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Write(#[from] BatchError),
    #[error("cannot read the key `{}`", path.display())]
    ReadKey {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot use the key `{}`", path.display())]
    Key {
        path: PathBuf,
        #[source]
        source: KeyError,
    },
    #[error("cannot make the Ignition config of machine `{machine}`")]
    Ignition {
        machine: String,
        #[source]
        source: Box<IgnitionError>,
    },
    #[error("cannot keep the list of data disks")]
    Disks(#[from] DisksError),
    #[error(transparent)]
    DataDisk(#[from] Box<DataDiskError>),
    #[error(transparent)]
    Volume(#[from] Box<VolumeError>),
    #[error("cannot make the disk of machine `{machine}`")]
    Overlay {
        machine: String,
        #[source]
        source: OverlayError,
    },
    #[error("cannot make the UEFI variables of machine `{machine}`")]
    Flash {
        machine: String,
        #[source]
        source: FlashError,
    },
    #[error("cannot give the folder `{}` to the TPM's user", path.display())]
    Tpm {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// The cluster's names and addresses are ours, and the ledger is begun.
#[derive(Debug)]
pub struct Reserved {
    plan: Plan,
    files: ClusterFiles,
    undo: Undo,
}

/// All that the machines need lies on the disk.
#[derive(Debug)]
pub struct Prepared {
    pub plan: Plan,
    pub undo: Undo,
}

/// What this `up` has made so far, for the case that it fails.
#[derive(Debug, Clone)]
pub struct Undo {
    files: ClusterFiles,
    roots: Roots,
    lvm: Lvm,
    before: Option<ClusterRecord>,
    created: Vec<String>,
    /// Data disks that there were none of before: machine and serial.
    new_disks: BTreeSet<(String, String)>,
}

/// Begins the ledger, makes the folders, and records the cluster.
pub fn reserve(
    plan: Plan,
    before: Option<ClusterRecord>,
    files: &ClusterFiles,
    roots: &Roots,
    lvm: Lvm,
) -> Result<Reserved, StageError> {
    let created: Vec<String> = plan
        .steps
        .iter()
        .filter(|step| step.action == Action::Create)
        .map(|step| step.name.clone())
        .collect();
    let undo = Undo {
        files: files.clone(),
        roots: roots.clone(),
        lvm,
        before,
        created,
        new_disks: plan.new_disks(),
    };
    match begin(&plan, files, &undo) {
        Ok(()) => Ok(Reserved {
            plan,
            files: files.clone(),
            undo,
        }),
        Err(error) => {
            undo.run();
            Err(error)
        }
    }
}

fn begin(plan: &Plan, files: &ClusterFiles, undo: &Undo) -> Result<(), StageError> {
    let mut entries = Vec::new();
    if plan.is_new {
        for path in [files.folder(), files.sockets()] {
            entries.push(Entry::Folder { path });
        }
        if let WayOutRecord::Host { link } = &plan.cluster.way_out {
            entries.push(Entry::HostLink {
                link: link.clone(),
                mark: files.host_mark(),
                subnet: plan.cluster.subnet,
            });
        }
        if let WayOutRecord::Bridge { bridge, .. } = &plan.cluster.way_out {
            entries.push(Entry::Attachment {
                bridge: bridge.clone(),
                mark: files.host_mark(),
            });
        }
    }
    for name in &undo.created {
        let machine = files.machine(name);
        for path in [machine.folder, machine.sockets] {
            entries.push(Entry::Folder { path });
        }
    }
    if !entries.is_empty() {
        Ledger::open(&files.ledger())?.record(&entries)?;
    }
    folder::make_private(&files.folder())?;
    folder::make_private(&files.sockets())?;
    let uplink = files.uplink();
    folder::make_private(&uplink.folder)?;
    folder::make_private(&uplink.sockets)?;
    files::save(&files.record(), &plan.cluster)?;
    // After the record: disks that stand in no cluster's way are not listed for a cluster that
    // there is none of.
    if let Some(disks) = plan.disks_begun() {
        state::disks::save(&files.disks(), &disks)?;
    }
    Ok(())
}

impl Undo {
    /// Takes down what this `up` made; errors are told in the log, the first one matters more.
    pub fn run(&self) {
        let Some(before) = &self.before else {
            self.remove_disks();
            for error in ledger::take_down(&self.files.ledger(), &self.roots, &self.lvm)
                .err()
                .into_iter()
                .flatten()
            {
                tracing::error!(%error, "not cleaned up");
            }
            return;
        };
        for name in &self.created {
            remove_machine(&self.files, name, &self.lvm);
        }
        self.remove_disks();
        // One that the spec has no more may be gone already.
        let mut before = before.clone();
        before
            .machines
            .retain(|name| self.files.machine(name).folder.exists());
        if let Err(error) = files::save(&self.files.record(), &before) {
            tracing::error!(%error, "the cluster's record is not put back");
        }
    }

    /// Removes the data disks that this `up` made and that no machine which is left has. Those
    /// machines are down.
    pub fn remove_disks(&self) {
        // Without a record before, no machine stays.
        let may_stay = !self.is_whole_cluster();
        if let Err(error) =
            self::disks::take_back(&self.files, &self.new_disks, may_stay, &self.lvm)
        {
            tracing::error!(%error, "disks are not removed");
        }
    }

    /// Whether the cluster itself was made by this `up`.
    pub fn is_whole_cluster(&self) -> bool {
        self.before.is_none()
    }

    /// The machines that were made by this `up`.
    pub fn created(&self) -> &[String] {
        &self.created
    }
}

/// Removes a machine's folders and its root disk. A volume that resists stays in the ledger.
pub fn remove_machine(files: &ClusterFiles, name: &str, lvm: &Lvm) {
    if let Err(error) = volumes::remove_root(files, name, lvm) {
        tracing::error!(error = in_one_line(&error), "not removed");
    }
    let machine = files.machine(name);
    for path in [&machine.folder, &machine.sockets] {
        if let Err(error) = files::remove_folder(path) {
            tracing::error!(%error, "not removed");
        }
    }
}

impl Reserved {
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Takes back what was made, when nothing more is to come of it.
    pub fn give_up(self) {
        self.undo.run();
    }

    /// Makes keys, disks and configs for every machine that is to be started.
    ///
    /// `qemu_img` makes the disks; the plan has seen to it that it is there when one is needed.
    pub fn prepare(self, cluster: &Cluster, qemu_img: &Path) -> Result<Prepared, StageError> {
        let Reserved {
            mut plan,
            files,
            undo,
        } = self;
        let prepared = volumes::make(&mut plan, &files, &undo.lvm, qemu_img)
            .map_err(StageError::from)
            .and_then(|()| prepare(&plan, cluster, qemu_img, &files));
        match prepared {
            Ok(()) => Ok(Prepared { plan, undo }),
            Err(error) => {
                undo.run();
                Err(error)
            }
        }
    }
}

fn prepare(
    plan: &Plan,
    cluster: &Cluster,
    qemu_img: &Path,
    files: &ClusterFiles,
) -> Result<(), StageError> {
    let mut batch = Batch::default();
    let login = key_pair(
        &files.private_key(),
        Some(&files.public_key()),
        &format!("kiln {}", cluster.name),
        &mut batch,
    )?;
    let mut authorized_keys = vec![login.public().to_owned()];
    authorized_keys.extend(cluster.authorized_keys.iter().cloned());
    let machines: BTreeMap<&str, &Machine> = cluster
        .machines
        .iter()
        .map(|machine| (machine.name.as_str(), machine))
        .collect();
    let peers = peers(plan, cluster);
    let means = Means {
        qemu_img,
        uid: plan.cluster.qemu_uid,
        gid: plan.cluster.qemu_gid.or(plan.cluster.qemu_uid),
    };
    let mut host_keys = BTreeMap::new();
    for step in &plan.steps {
        let (Some(record), Some(machine)) = (&step.record, machines.get(step.name.as_str())) else {
            continue;
        };
        let own = files.machine(&step.name);
        let host_key = machine_key(step, &own, &mut batch)?;
        let host_key = &*host_keys.entry(step.name.as_str()).or_insert(host_key);
        if !is_made(step.action) {
            // A change that costs nothing, such as another restart policy.
            if !step.why.is_empty() {
                save(&own.record(), record, &mut batch)?;
            }
            continue;
        }
        let facts = Facts {
            cluster: &cluster.name,
            domain: &plan.cluster.domain,
            subnet: plan.cluster.own_subnet(),
            gateway: plan.cluster.gateway(),
            ip: plan.cluster.mode.gives_addresses().then_some(record.ip),
            ip6: plan.cluster.ip6(&record.mac),
            mac: record.mac.parse().unwrap_or_default(),
            peers: &peers,
            authorized_keys: &authorized_keys,
            shares: &record.shares,
            host_key,
            etcd: &Membership::of(record.etcd.as_ref(), cluster, &plan.cluster),
        };
        make_machine(step, record, machine, &facts, &means, &own, &mut batch)?;
        self::disks::make(record, means.qemu_img, &own)?;
    }
    if let Some(disks) = plan.disks_done() {
        state::disks::save(&files.disks(), &disks)?;
    }
    let known_hosts = known_hosts(plan, files, &host_keys)?;
    batch.add(&files.known_hosts(), known_hosts.as_bytes())?;
    batch.keep()?;
    Ok(())
}

/// The host keys of all machines, those that this `up` was not asked for included.
fn known_hosts(
    plan: &Plan,
    files: &ClusterFiles,
    asked_for: &BTreeMap<&str, KeyPair>,
) -> Result<String, StageError> {
    let mut text = String::new();
    for name in &plan.cluster.machines {
        let other = match asked_for.get(name.as_str()) {
            Some(_) => None,
            None => read_key(&files.machine(name).host_key())?,
        };
        if let Some(key) = asked_for.get(name.as_str()).or(other.as_ref()) {
            let domain_name = format!("{name}.{}", plan.cluster.domain);
            text.push_str(&key.known_hosts_line(&[name, &domain_name]));
        }
    }
    Ok(text)
}

/// Whether the action writes a machine's files.
fn is_made(action: Action) -> bool {
    match action {
        Action::Create | Action::Recreate | Action::Restart | Action::Start => true,
        Action::Keep | Action::Change | Action::Remove => false,
    }
}

/// All machines of the spec, as templates see them.
pub fn peers(plan: &Plan, cluster: &Cluster) -> Vec<Peer> {
    cluster
        .machines
        .iter()
        .filter_map(|machine| {
            let reserved = plan.cluster.reservations.get(machine.name.as_str())?;
            Some(Peer {
                name: machine.name.clone(),
                ip: plan.cluster.mode.gives_addresses().then_some(reserved.ip),
                ip6: plan.cluster.ip6(&reserved.mac),
                group: machine.group.clone(),
                index: machine.index,
            })
        })
        .collect()
}

/// The machine's host key: made with the machine, kept with it.
fn machine_key(step: &Step, own: &MachineFiles, batch: &mut Batch) -> Result<KeyPair, StageError> {
    if step.action == Action::Create {
        // What an `up` that was broken off left is of unknown worth.
        files::remove_folder(&own.folder)?;
        folder::make_private(&own.folder)?;
        folder::make_private(&own.sockets)?;
    } else if step.action == Action::Recreate {
        // A new disk is a new machine to ssh's eyes as well.
        for path in [own.host_key(), own.disk(), own.run(), own.uefi_vars()] {
            files::remove_file(&path)?;
        }
        files::remove_folder(&own.tpm())?;
    }
    key_pair(&own.host_key(), None, &step.name, batch)
}

/// By what, and for whom, a machine's files are made.
struct Means<'a> {
    qemu_img: &'a Path,
    /// Who QEMU and its like run as, where that is not kiln's own user.
    uid: Option<u32>,
    gid: Option<u32>,
}

fn make_machine(
    step: &Step,
    record: &MachineRecord,
    machine: &Machine,
    facts: &Facts<'_>,
    means: &Means<'_>,
    own: &MachineFiles,
    batch: &mut Batch,
) -> Result<(), StageError> {
    folder::make_private(&own.sockets)?;
    let rendered = ignition::render(machine, facts).map_err(|source| StageError::Ignition {
        machine: step.name.clone(),
        source: Box::new(source),
    })?;
    batch.add(
        &own.ignition(),
        &in_sectors(
            rendered
                .seed
                .unwrap_or_else(|| rendered.config.into_bytes()),
        ),
    )?;
    if let Some(disk) = record.disk.as_ref().filter(|disk| disk.volume.is_none()) {
        let size = Size::from_bytes(disk.size);
        let made = if own.disk().exists() {
            self::disks::judge(&step.name, &own.disk())?;
            overlay::grow(means.qemu_img, &own.disk(), size)
        } else {
            overlay::create(means.qemu_img, &disk.base, &own.disk(), Some(size)).map(drop)
        };
        made.map_err(|source| StageError::Overlay {
            machine: step.name.clone(),
            source,
        })?;
    }
    if let Some(firmware) = &record.firmware {
        let vars = make_vars(firmware, own).map_err(|source| StageError::Flash {
            machine: step.name.clone(),
            source,
        })?;
        if let Some(vars) = vars {
            // They take the place of the old ones just before the record does that names their
            // firmware: an `up` that fails before leaves both as they were.
            batch.add_written(&own.uefi_vars(), vars)?;
        }
    }
    if record.tpm.is_some() {
        make_tpm_folder(&own.tpm(), means)?;
    }
    save(&own.record(), record, batch)
}

/// The config as it may lie on a disk: JSON does not mind white space at its end.
fn in_sectors(mut bytes: Vec<u8>) -> Vec<u8> {
    const SECTOR: usize = 512;
    bytes.resize(bytes.len().next_multiple_of(SECTOR), b'\n');
    bytes
}

/// New UEFI variables, where the machine has none of this firmware: they are kept for as long as it
/// has the firmware that wrote them.
fn make_vars(
    firmware: &FirmwareRecord,
    own: &MachineFiles,
) -> Result<Option<Incoming>, FlashError> {
    let vars = own.uefi_vars();
    let before = files::load::<MachineRecord>(&own.record()).ok().flatten();
    let kept = before.and_then(|before| before.firmware);
    if vars.exists() && kept.as_ref() == Some(firmware) {
        return Ok(None);
    }
    flash::make_vars(&firmware.template, firmware.vars_format, &vars).map(Some)
}

/// The TPM's state, which its emulator reads and writes by name, and so has to own.
fn make_tpm_folder(path: &Path, means: &Means<'_>) -> Result<(), StageError> {
    if !path.exists() {
        folder::make_private(path)?;
    }
    let give = || {
        let found = path.symlink_metadata()?;
        let is_theirs = means.uid.is_none_or(|uid| uid == found.uid())
            && means.gid.is_none_or(|gid| gid == found.gid());
        // An `up` may have been killed before it gave it away; what holds a state is left alone.
        if is_theirs || !found.is_dir() || path.read_dir()?.next().is_some() {
            return Ok(());
        }
        std::os::unix::fs::lchown(path, means.uid, means.gid)
    };
    give().map_err(|source| StageError::Tpm {
        path: path.to_owned(),
        source,
    })
}

/// The pair whose private key lies at `path`, made there when it does not.
fn key_pair(
    path: &Path,
    public: Option<&Path>,
    comment: &str,
    batch: &mut Batch,
) -> Result<KeyPair, StageError> {
    if let Some(pair) = read_key(path)? {
        return Ok(pair);
    }
    let pair = KeyPair::generate(comment).map_err(|source| StageError::Key {
        path: path.to_owned(),
        source,
    })?;
    batch.add(path, pair.private().as_bytes())?;
    if let Some(public) = public {
        batch.add(public, format!("{}\n", pair.public()).as_bytes())?;
    }
    Ok(pair)
}

fn read_key(path: &Path) -> Result<Option<KeyPair>, StageError> {
    match std::fs::read_to_string(path) {
        Ok(text) => KeyPair::from_private(&text)
            .map(Some)
            .map_err(|source| StageError::Key {
                path: path.to_owned(),
                source,
            }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StageError::ReadKey {
            path: path.to_owned(),
            source,
        }),
    }
}

fn save(path: &Path, record: &MachineRecord, batch: &mut Batch) -> Result<(), StageError> {
    let text = files::text(record).map_err(|source| StateError::Write {
        path: path.to_owned(),
        source,
    })?;
    Ok(batch.add(path, &text)?)
}

/// The machine as the spec has it, for `render` before anything is made.
pub fn machine_of<'a>(cluster: &'a Cluster, name: &MachineName) -> Option<&'a Machine> {
    cluster
        .machines
        .iter()
        .find(|machine| machine.name == *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tpm_folder_that_was_not_given_away_is_given_away_while_it_is_empty() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("tpm");
        folder::make_private(&path).unwrap();
        let ours = path.metadata().unwrap().uid();
        let other = ours + 1001;
        let means = |uid| Means {
            qemu_img: Path::new("qemu-img"),
            uid: Some(uid),
            gid: None,
        };
        make_tpm_folder(&path, &means(ours)).unwrap();
        let state = path.join("state");
        std::fs::write(&state, "").unwrap();
        make_tpm_folder(&path, &means(other)).unwrap();
        assert_eq!(path.metadata().unwrap().uid(), ours);
        std::fs::remove_file(&state).unwrap();
        let given = make_tpm_folder(&path, &means(other));
        if nix::unistd::geteuid().is_root() {
            given.unwrap();
            assert_eq!(path.metadata().unwrap().uid(), other);
        } else {
            // Only root can, and it was tried.
            assert!(matches!(given, Err(StageError::Tpm { .. })), "{given:?}");
        }
    }
}
