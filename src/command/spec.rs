//! The spec: found, loaded, checked (`validate`) and planned (`plan`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kiln_arch::Arch;
use macaddr::MacAddr6;
use serde::Serialize;

use crate::cli::args::{GroupCount, PlanArgs, VarArgs};
use crate::cluster::{AccelWish, Cluster, Machine, MachineName, NetworkMode};
use crate::command::Session;
use crate::error::{Error, Exit};
use crate::etcd::Membership;
use crate::host::firmware::Firmwares;
use crate::host::kvm::{Ask, KvmState};
use crate::host::namespace;
use crate::ignition::validator::{self, Severity};
use crate::ignition::{self, Facts, Peer};
use crate::inventory::{self, Images};
use crate::keys::KeyPair;
use crate::plan::{self, HostFacts, Inventory, Plan};
use crate::spec::{self, Context, Loaded, Scale};
use crate::state::files;
use crate::state::record::ClusterRecord;
use crate::tool;

/// `ignition-validate` takes some milliseconds.
const VALIDATOR_DEADLINE: Duration = Duration::from_secs(10);

/// The spec file: `-f`, or the nearest `kiln.yaml`.
pub(super) fn find(session: &Session<'_>) -> Result<PathBuf, Error> {
    if let Some(file) = &session.global.file {
        return Ok(file.clone());
    }
    let here = std::env::current_dir()
        .map_err(|error| Error::because(Exit::Failed, "cannot tell the current folder", &error))?;
    spec::find(&here).map_err(|error| {
        Error::from_source(Exit::Spec, &error)
            .hint("`kiln init` writes one; `-f FILE` and `-c CLUSTER` say which one is meant")
    })
}

/// Reads the spec; its warnings are told. `scale` and `vars` are what is said now.
pub(super) fn load(
    session: &Session<'_>,
    scale: &[GroupCount],
    vars: &VarArgs,
) -> Result<Cluster, Error> {
    let loaded = read(session, scale, vars)?;
    for warning in &loaded.warnings {
        session.report.note(&warning.to_string());
    }
    Ok(loaded.cluster)
}

/// As [`load`], and nothing of its warnings is told.
pub(super) fn read(
    session: &Session<'_>,
    scale: &[GroupCount],
    vars: &VarArgs,
) -> Result<Loaded, Error> {
    let path = find(session)?;
    let said = scale
        .iter()
        .map(|scale| (scale.group.clone(), scale.count))
        .collect();
    let remembered = remembered(session, &path)?;
    let set = match &remembered {
        Some(record) => set(session, &record.set, vars)?,
        None => set(session, &spec::Vars::new(), vars)?,
    };
    let counts = remembered.iter().flat_map(|record| &record.scale);
    let counts = counts.filter_map(|(group, count)| Some((group.parse().ok()?, *count)));
    let context = Context {
        host_arch: host_arch(session)?,
        home: session.host.home.as_deref(),
        config: Some(&session.host.folders.config),
        scale: Scale {
            said: &said,
            remembered: &counts.collect(),
        },
        set: &set,
    };
    let mut loaded = spec::load(&path, context)?;
    if let Some(name) = &session.global.alias {
        loaded.cluster.name = name.clone();
    }
    Ok(loaded)
}

/// The record of this spec's cluster, for what an earlier `up` said.
fn remembered(session: &Session<'_>, path: &Path) -> Result<Option<ClusterRecord>, Error> {
    let name = match &session.global.alias {
        Some(name) => name.clone(),
        None => spec::cluster_name(path)?,
    };
    let files = session.roots.cluster(name.as_str());
    // A record that cannot be read, or is another spec's, is told of where it is needed.
    let record = files::load::<ClusterRecord>(&files.record()).ok().flatten();
    let spec = std::fs::canonicalize(path).ok();
    Ok(record.filter(|record| spec.as_ref() == Some(&record.spec)))
}

/// The variables that hold: those of earlier `--set`s, but for what is said now. What is remembered
/// is told by its name alone: it may be a secret.
fn set(session: &Session<'_>, remembered: &spec::Vars, now: &VarArgs) -> Result<spec::Vars, Error> {
    let mut set = remembered.clone();
    for name in &now.unset {
        if set.remove(name).is_none() {
            let message = format!("no earlier `--set` said anything of `{name}`");
            return Err(Error::new(Exit::Usage, message));
        }
    }
    let mut earlier = set.clone();
    for variable in &now.set {
        earlier.remove(&variable.path);
        set.insert(variable.path.clone(), variable.value.clone());
    }
    for path in earlier.keys() {
        session.report.note(&format!(
            "`vars.{path}` is what an earlier `--set` said; `kiln up --unset {path}` goes back"
        ));
    }
    Ok(set)
}

/// The cluster's name by the spec alone, for verbs that work on what was made.
pub(super) fn cluster_name(session: &Session<'_>) -> Result<String, Error> {
    let path = find(session)?;
    Ok(spec::cluster_name(&path)?.to_string())
}

fn host_arch(session: &Session<'_>) -> Result<Arch, Error> {
    session.host.arch.ok_or_else(|| {
        Error::new(
            Exit::Host,
            "this host's own architecture is none that kiln runs guests of",
        )
    })
}

/// What the plan has to know of the host. Test guests are started only when `try_out` says so.
pub(super) fn host_facts(
    session: &mut Session<'_>,
    cluster: &Cluster,
    try_out: bool,
) -> Result<HostFacts, Error> {
    let arch = host_arch(session)?;
    let wants_kvm = cluster
        .machines
        .iter()
        .any(|machine| machine.arch.is_native_on(arch) && machine.accel != AccelWish::Tcg);
    let kvm = match (wants_kvm, try_out) {
        (true, true) => session.host.try_kvm(arch, Ask::Remembered),
        (true, false) => session.host.kvm(arch),
        (false, _) => KvmState::Unknown,
    };
    let is_emulated = |machine: &Machine| {
        machine.accel == AccelWish::Tcg
            || !machine.arch.is_native_on(arch)
            || kvm != KvmState::Works
    };
    if try_out && cluster.machines.iter().any(is_emulated) {
        session.host.time_tcg();
    }
    let wants_virtiofs = cluster
        .machines
        .iter()
        .any(|machine| !machine.shares.is_empty() && machine.arch.is_native_on(arch));
    let mut distribution = session.host.distribution;
    let mut qemu = BTreeMap::new();
    for machine in &cluster.machines {
        if qemu.contains_key(&machine.arch) {
            continue;
        }
        match session.host.qemu(machine.arch) {
            Ok(found) => {
                qemu.insert(machine.arch, found.clone());
            }
            // The plan says which machine misses it.
            Err(crate::host::qemu::QemuError::Missing { .. }) => {
                distribution = session.host.installer();
            }
            Err(error) => return Err(error.clone().into()),
        }
    }
    Ok(HostFacts {
        arch,
        qemu,
        kvm,
        firmwares: match cluster
            .machines
            .iter()
            .any(|machine| machine.arch.has_uefi())
        {
            true => session.host.firmwares().clone(),
            false => Firmwares::default(),
        },
        swtpm: session.host.tools.swtpm.clone(),
        virtiofsd: wants_virtiofs.then(|| session.host.virtiofsd()),
        distribution,
        has_qemu_img: session.host.tools.qemu_img.is_some(),
        namespace: namespace(session, cluster),
        bridge: bridge(session, cluster),
        machine_id: session.host.machine_id.clone(),
        pasta: session.host.tools.pasta.clone(),
        slirp4netns: session.host.tools.slirp4netns.clone(),
        is_root: session.host.is_root(),
        qemu_gid: session.host.kvm_group().filter(|_| session.host.is_root()),
        files: session.roots.cluster(cluster.name.as_str()),
    })
}

/// Whether the mode `namespace` works here; tried where that is still to be chosen.
fn namespace(session: &Session<'_>, cluster: &Cluster) -> Option<Result<(), String>> {
    let files = session.roots.cluster(cluster.name.as_str());
    match cluster.network.mode {
        NetworkMode::Auto | NetworkMode::Namespace if !files.record().exists() => {}
        NetworkMode::Auto
        | NetworkMode::Namespace
        | NetworkMode::Fabric
        | NetworkMode::User
        | NetworkMode::Attach { .. } => return None,
    }
    let tried = namespace::try_out(session.host.uid, session.host.gid);
    Some(tried.map_err(|refusal| refusal.why()))
}

/// Whether machines can be attached to the bridge that the spec names.
fn bridge(session: &Session<'_>, cluster: &Cluster) -> Option<Result<(), String>> {
    match &cluster.network.mode {
        NetworkMode::Attach { bridge, .. } => {
            Some(crate::host::bridge::look(bridge, session.host.is_root()))
        }
        NetworkMode::Auto | NetworkMode::Namespace | NetworkMode::Fabric | NetworkMode::User => {
            None
        }
    }
}

/// Looks at the images, and shows how far their hashing has come.
pub(super) fn images(session: &Session<'_>, cluster: &Cluster) -> Result<Images, Error> {
    let mut told = std::time::Instant::now();
    let mut hashing = |machine: &str, done: u64, all: u64| {
        if told.elapsed() > std::time::Duration::from_secs(1) && all > 0 {
            told = std::time::Instant::now();
            session.report.note(&format!(
                "{machine}: reading its image, {} %",
                done * 100 / all
            ));
        }
    };
    Ok(inventory::images::images(
        cluster,
        &session.host,
        &mut hashing,
    )?)
}

/// Collects what is there besides.
pub(super) fn collect(
    session: &Session<'_>,
    cluster: &Cluster,
    images: Images,
) -> Result<Inventory, Error> {
    Ok(inventory::collect(
        cluster,
        &session.host,
        &session.roots,
        images,
    )?)
}

/// Refuses to work on a cluster of the same name that another folder's spec made, and to hand the
/// disks that are left of one to other machines.
pub(super) fn refuse_other_folder(cluster: &Cluster, inventory: &Inventory) -> Result<(), Error> {
    let name = &cluster.name;
    if let Some(record) = &inventory.cluster
        && record.spec != cluster.spec
    {
        let spec = record.spec.display();
        return Err(Error::new(
            Exit::Unsafe,
            format!("there is a cluster `{name}` already, made from `{spec}`"),
        )
        .hint("give this one another name, or `kiln down` the other from its folder"));
    }
    if let Some(disks) = &inventory.disks
        && disks.spec != cluster.spec
    {
        let spec = disks.spec.display();
        return Err(Error::new(
            Exit::Unsafe,
            format!("there are disks of a cluster `{name}` made from `{spec}`"),
        )
        .hint(format!(
            "give this one another name, or `kiln -c {name} down --remove-disks` if nobody needs them"
        )));
    }
    Ok(())
}

#[derive(Serialize)]
struct Valid {
    cluster: String,
    spec: PathBuf,
    machines: Vec<String>,
}

/// `kiln validate`: the spec, the files that it names, and each machine's Ignition config.
pub(super) fn validate(session: &mut Session<'_>) -> Result<(), Error> {
    let cluster = load(session, &[], &VarArgs::default())?;
    let inventory = collect(session, &cluster, images(session, &cluster)?)?;
    let facts = host_facts(session, &cluster, false)?;
    let plan = plan::plan(
        &cluster,
        &facts,
        &Inventory {
            // Whether the spec is right does not depend on what runs.
            cluster: None,
            machines: BTreeMap::new(),
            taken_ports: std::collections::BTreeSet::new(),
            taken_networks: Vec::new(),
            ..inventory
        },
    );
    match plan {
        Ok(plan) => check_ignition(session, &cluster, &plan)?,
        // A host that lacks something makes the spec no worse.
        Err(error) => {
            let error = Error::from(error);
            if error.exit == Exit::Spec {
                return Err(error);
            }
            session.report.note(&error.message);
        }
    }
    let valid = Valid {
        cluster: cluster.name.to_string(),
        spec: cluster.spec.clone(),
        machines: cluster
            .machines
            .iter()
            .map(|machine| machine.name.to_string())
            .collect(),
    };
    session.report.result(&valid, |_| {
        let count = valid.machines.len();
        let plural = if count == 1 { "" } else { "s" };
        format!(
            "{} is right: cluster {}, {count} machine{plural}\n",
            valid.spec.display(),
            valid.cluster,
        )
    })
}

/// Renders each machine's config with stand-in keys, for what can be wrong in it.
pub(super) fn check_ignition(
    session: &Session<'_>,
    cluster: &Cluster,
    plan: &Plan,
) -> Result<(), Error> {
    let key = KeyPair::generate("kiln validate")
        .map_err(|error| Error::from_source(Exit::Failed, &error))?;
    let peers = crate::stage::peers(plan, cluster);
    let mut judged = BTreeSet::new();
    for machine in &cluster.machines {
        let rendered = rendered(machine, cluster, plan, &peers, &[], &key)?;
        // Those that the command is not about are checked and not talked of.
        if plan
            .steps
            .iter()
            .any(|step| step.name == machine.name.as_str())
        {
            for warning in &rendered.warnings {
                session.report.note(&format!("{}: {warning}", machine.name));
            }
        }
        // Machines of a group mostly have the same text.
        if let Some(child) = rendered.child
            && judged.insert(child.clone())
        {
            second_opinion(session, machine, &child)?;
        }
    }
    Ok(())
}

/// What `ignition-validate` says of a config, where it is installed.
fn second_opinion(session: &Session<'_>, machine: &Machine, config: &str) -> Result<(), Error> {
    let Some(program) = &session.host.tools.ignition_validate else {
        return Ok(());
    };
    let failed = |source: &(dyn std::error::Error + 'static)| {
        Error::because(
            Exit::Failed,
            format!("cannot run `{}`", program.display()),
            source,
        )
    };
    let input = tool::input(config.as_bytes()).map_err(|error| failed(&error))?;
    let mut command = Command::new(program);
    command.arg("-");
    let finished =
        tool::run(command, input.into(), VALIDATOR_DEADLINE).map_err(|error| failed(&error))?;
    let path = machine
        .ignition
        .as_ref()
        .map_or_else(String::new, |source| source.path.display().to_string());
    let report = format!("{}\n{}", finished.stdout, finished.stderr);
    for finding in validator::findings(&report) {
        match finding.severity {
            Severity::Warning => session.report.note(&format!("{path}:{finding}")),
            Severity::Error => {
                return Err(Error::new(Exit::Spec, format!("{path}:{finding}"))
                    .cause("`ignition-validate` refuses it")
                    .hint(format!(
                        "`kiln render {}` shows the whole config",
                        machine.name
                    )));
            }
        }
    }
    Ok(())
}

/// A machine's final config with these keys.
pub(super) fn rendered(
    machine: &Machine,
    cluster: &Cluster,
    plan: &Plan,
    peers: &[Peer],
    authorized_keys: &[String],
    host_key: &KeyPair,
) -> Result<ignition::Rendered, Error> {
    let name = &machine.name;
    let reserved = plan
        .cluster
        .reservations
        .get(name.as_str())
        .ok_or_else(|| unknown(name))?;
    let step = plan.steps.iter().find(|step| step.name == name.as_str());
    let record = step.and_then(|step| step.record.as_ref());
    let facts = Facts {
        shares: record.map_or(&[], |record| &record.shares),
        cluster: &cluster.name,
        domain: &plan.cluster.domain,
        subnet: plan.cluster.own_subnet(),
        gateway: plan.cluster.gateway(),
        ip: plan.cluster.mode.gives_addresses().then_some(reserved.ip),
        ip6: plan.cluster.ip6(&reserved.mac),
        mac: reserved.mac.parse::<MacAddr6>().unwrap_or_default(),
        peers,
        authorized_keys,
        host_key,
        etcd: &Membership::of(
            plan.steps
                .iter()
                .find(|step| step.name == name.as_str())
                .and_then(|step| step.record.as_ref()?.etcd.as_ref()),
            cluster,
            &plan.cluster,
        ),
    };
    ignition::render(machine, &facts).map_err(|source| {
        Error::from(crate::stage::StageError::Ignition {
            machine: name.to_string(),
            source: Box::new(source),
        })
    })
}

/// The machine of that name in the spec.
pub(super) fn machine<'a>(cluster: &'a Cluster, name: &MachineName) -> Result<&'a Machine, Error> {
    crate::stage::machine_of(cluster, name).ok_or_else(|| {
        let names: Vec<&str> = cluster.machines.iter().map(|it| it.name.as_str()).collect();
        unknown(name).hint(format!("it has: {}", names.join(", ")))
    })
}

fn unknown(name: &MachineName) -> Error {
    Error::new(
        Exit::Unknown,
        format!("there is no machine `{name}` in the spec"),
    )
}

/// A plan of the spec as the world is now, without waiting for anything.
pub(super) fn planned(
    session: &mut Session<'_>,
    scale: &[GroupCount],
    vars: &VarArgs,
) -> Result<(Cluster, Plan, Inventory), Error> {
    let cluster = load(session, scale, vars)?;
    let facts = host_facts(session, &cluster, false)?;
    let inventory = collect(session, &cluster, images(session, &cluster)?)?;
    refuse_other_folder(&cluster, &inventory)?;
    let mut plan = plan::plan(&cluster, &facts, &inventory)?;
    plan.choose_members(&cluster, &inventory);
    Ok((cluster, plan, inventory))
}

/// `kiln plan`.
pub(super) fn plan(session: &mut Session<'_>, args: &PlanArgs) -> Result<(), Error> {
    let (cluster, mut plan, inventory) = planned(session, &args.scale, &args.vars)?;
    plan.restrict(&names(&cluster, &args.machines.machines)?);
    plan.check_volumes(&inventory)
        .map_err(plan::PlanError::from)?;
    check_ignition(session, &cluster, &plan)?;
    tell_room(session, &plan, &inventory);
    if !args.replace
        && let Some(gone) = plan.steps.iter().flat_map(|step| &step.gone).next()
    {
        session.report.note(&format!(
            "`kiln up` refuses to make disk `{}` of {} anew; `kiln up --replace` does it",
            gone.serial, gone.machine
        ));
    } else if !args.replace
        && let Some(step) = plan.recreated().next()
    {
        session.report.note(&format!(
            "`kiln up` refuses to make the disk of {} anew; `kiln up --replace` does it",
            step.name
        ));
    }
    show_plan(session, &plan)
}

/// Says what this host may have no room for.
pub(super) fn tell_room(session: &Session<'_>, plan: &Plan, inventory: &Inventory) {
    if let Err(error) = plan.admit(inventory) {
        session.report.note(&format!(
            "{error}: `kiln up` refuses that, but for `--overcommit`"
        ));
    }
    for doubt in plan.doubts(inventory) {
        session.report.note(&doubt);
    }
}

pub(super) fn show_plan(session: &Session<'_>, plan: &Plan) -> Result<(), Error> {
    session.report.result(&plan.view(), |_| plan.to_string())
}

/// The machines that were named, which the spec has to know.
pub(super) fn names(cluster: &Cluster, named: &[MachineName]) -> Result<Vec<String>, Error> {
    for name in named {
        machine(cluster, name)?;
    }
    Ok(named.iter().map(ToString::to_string).collect())
}
