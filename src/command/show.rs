//! `ps`, `ls`, `inspect` and `ip`: what there is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use crate::cli::args::{InspectArgs, IpArgs};
use crate::client::{Client, ClientError};
use crate::command::{Made, Session};
use crate::error::{Error, Exit};
use crate::inventory::{self};
use crate::plan::Known;
use crate::report::view::{
    ClusterView, KeptDiskView, ListedView, MachineView, NetworkView, SupervisorView, ls_table,
};
use crate::state::disks;
use crate::state::files;
use crate::state::layout::ClusterFiles;
use crate::state::record::{ClusterRecord, MachineRecord, SeenRecord, StateRecord};
use crate::supervisor::process::Carriers;
use crate::supervisor::protocol::{ClusterStatus, MachineStatus, NOT_MADE};

/// The cluster as it is now, by its supervisor.
pub(super) fn view(made: &Made, client: &Client) -> Result<ClusterView, Error> {
    Ok(view_of(made, &client.status()?))
}

/// The cluster as `status` has it.
pub(super) fn view_of(made: &Made, status: &ClusterStatus) -> ClusterView {
    let machines = status
        .machines
        .iter()
        .map(|machine| {
            let record = made.machine(&machine.name).ok();
            let files = made.files.machine(&machine.name);
            MachineView::new(made.record.mode, record.as_ref(), machine, &files)
        })
        .collect();
    ClusterView {
        cluster: made.record.name.clone(),
        spec: made.record.spec.clone(),
        network: NetworkView::new(&made.record, status),
        supervisor: SupervisorView {
            pid: Some(status.pid),
        },
        machines,
        kept_disks: kept_disks(&made.files),
    }
}

/// The cluster as it is now; as its records have it where its supervisor lives and does not answer,
/// which is told.
fn seen(session: &Session<'_>, made: &Made) -> Result<ClusterView, Error> {
    match Client::look(&made.files).and_then(|client| client.status()) {
        Ok(status) => Ok(view_of(made, &status)),
        Err(error) => {
            let ClientError::Hung { pid, .. } = error else {
                return Err(error.into());
            };
            let told = Error::from(error);
            session.report.note(&format!(
                "{}; so this is what the records say",
                told.message
            ));
            if let Some(hint) = told.hint {
                session.report.note(&hint);
            }
            Ok(recorded(session, made, pid))
        }
    }
}

/// Each machine's addresses: the one that kiln gives it, or those that were seen in use where it is
/// another one who gives them.
pub(super) fn addresses(
    session: &Session<'_>,
    made: &Made,
) -> Result<BTreeMap<String, Vec<IpAddr>>, Error> {
    if made.record.mode.gives_addresses() {
        let reserved = made.record.reservations.iter();
        let given = reserved.map(|(name, place)| (name.clone(), vec![place.ip.into()]));
        return Ok(given.collect());
    }
    let machines = seen(session, made)?.machines.into_iter();
    let learned = machines.map(|machine| {
        let used = machine.addresses.iter().map(|address| address.ip);
        (machine.name, used.collect())
    });
    Ok(learned.collect())
}

/// The cluster as its records have it.
fn recorded(session: &Session<'_>, made: &Made, pid: Option<u32>) -> ClusterView {
    let carriers = Carriers::default();
    let of = |name: &String| {
        let known = inventory::known(&made.files, name, &session.host.boot_id, &carriers);
        let (state, reason, run) = match known {
            Some(Known::Whole { run, state, .. }) => {
                let reason = run.as_ref().filter(|run| run.state == state);
                let reason = reason.map_or_else(String::new, |run| run.reason.clone());
                (state, reason, run)
            }
            Some(Known::Damaged { why }) => (StateRecord::Damaged, why, None),
            None => (StateRecord::Stopped, NOT_MADE.to_owned(), None),
        };
        let lives = !matches!(state, StateRecord::Stopped | StateRecord::Crashed);
        let run = run.filter(|_| lives);
        MachineStatus {
            name: name.clone(),
            state,
            reason,
            phase: String::new(),
            pid: run.as_ref().and_then(|run| Some(run.process.as_ref()?.pid)),
            addresses: run.as_ref().map_or_else(Vec::new, |run| run.seen.clone()),
            report: run.as_ref().and_then(|run| run.report.clone()),
            started_at: run.and_then(|run| run.started_at),
            notes: Vec::new(),
        }
    };
    let machines = made.record.machines.iter().map(of).collect();
    let status = ClusterStatus {
        pid: 0,
        uplink: String::new(),
        notes: Vec::new(),
        machines,
    };
    ClusterView {
        supervisor: SupervisorView { pid },
        ..view_of(made, &status)
    }
}

/// The data disks that no machine has now: those of machines that are gone, or detached. None
/// where the list cannot be read; `up` and `down` say so.
fn kept_disks(files: &ClusterFiles) -> Vec<KeptDiskView> {
    let disks = files.disks();
    let Ok(Some(record)) = disks::load(&disks) else {
        return Vec::new();
    };
    let has = |disk: &KeptDiskView| {
        let record = files::load::<MachineRecord>(&files.machine(&disk.machine).record());
        record.is_ok_and(|record| {
            record.is_some_and(|record| {
                let mut serials = record.data_disks.iter().map(|disk| &disk.serial);
                serials.any(|serial| *serial == disk.serial)
            })
        })
    };
    let mut record = record;
    // One that an `up` was killed before it made it is no disk.
    record.disks.retain(|disk| match &disk.volume {
        Some(volume) => volume.made.is_some(),
        None => disks.disk(&disk.machine, &disk.serial).exists(),
    });
    let mut kept = KeptDiskView::all(&record, &disks);
    kept.retain(|disk| !has(disk));
    kept
}

pub(super) fn ps(session: &Session<'_>) -> Result<(), Error> {
    let made = session.made()?;
    let view = seen(session, &made)?;
    for note in view.notes() {
        session.report.note(&note);
    }
    session.report.result(&view, |style| view.ps_table(style))
}

pub(super) fn ls(session: &Session<'_>) -> Result<(), Error> {
    let mut names = inventory::cluster_names(&session.roots);
    names.extend(disks::cluster_names(&session.roots));
    names.sort();
    names.dedup();
    let clusters: Vec<ListedView> = names.iter().map(|name| listed(session, name)).collect();
    session.report.result(
        &Clusters {
            clusters: &clusters,
        },
        |style| ls_table(style, &clusters),
    )
}

#[derive(Serialize)]
struct Clusters<'a> {
    clusters: &'a [ListedView],
}

fn listed(session: &Session<'_>, name: &str) -> ListedView {
    let files = session.roots.cluster(name);
    if !files.ledger().exists() {
        return left(&files);
    }
    let client = Client::find(&files);
    let status = client.and_then(|client| client.status().ok());
    let supervisor = SupervisorView {
        pid: status.as_ref().map(|status| status.pid),
    };
    let record = match files::load::<ClusterRecord>(&files.record()) {
        Ok(Some(record)) => record,
        other => {
            let damage = match other {
                Err(error) => error.to_string(),
                Ok(_) => "its record is missing".to_owned(),
            };
            return ListedView {
                cluster: name.to_owned(),
                damage,
                spec: None,
                mode: None,
                subnet: None,
                supervisor,
                machines: BTreeMap::new(),
                kept_disks: kept_disks(&files),
            };
        }
    };
    let mut machines = BTreeMap::new();
    let carriers = Carriers::default();
    for machine in &record.machines {
        let told = status
            .iter()
            .flat_map(|status| &status.machines)
            .find(|status| status.name == *machine);
        let state = match told {
            Some(status) => status.state,
            None => match inventory::known(&files, machine, &session.host.boot_id, &carriers) {
                Some(Known::Whole { state, .. }) => state,
                Some(Known::Damaged { .. }) => StateRecord::Damaged,
                None => StateRecord::Stopped,
            },
        };
        *machines.entry(state.word()).or_insert(0) += 1;
    }
    ListedView {
        cluster: name.to_owned(),
        damage: String::new(),
        spec: Some(record.spec.clone()),
        mode: Some(record.mode),
        subnet: record.own_subnet(),
        supervisor,
        machines,
        kept_disks: kept_disks(&files),
    }
}

/// A cluster that is down, and left disks.
fn left(files: &ClusterFiles) -> ListedView {
    let (spec, damage) = match disks::load(&files.disks()) {
        Ok(record) => (record.map(|record| record.spec), String::new()),
        Err(error) => (None, error.to_string()),
    };
    ListedView {
        cluster: files.name().to_owned(),
        damage,
        spec,
        mode: None,
        subnet: None,
        supervisor: SupervisorView { pid: None },
        machines: BTreeMap::new(),
        kept_disks: kept_disks(files),
    }
}

#[derive(Serialize)]
struct Inspected {
    cluster: ClusterRecord,
    supervisor: SupervisorView,
    machines: Vec<InspectedMachine>,
    kept_disks: Vec<KeptDiskView>,
}

#[derive(Serialize)]
struct InspectedMachine {
    #[serde(flatten)]
    view: MachineView,
    record: Option<MachineRecord>,
    folder: std::path::PathBuf,
    sockets: std::path::PathBuf,
}

pub(super) fn inspect(session: &Session<'_>, args: &InspectArgs) -> Result<(), Error> {
    let made = session.made()?;
    if let Some(name) = &args.machine {
        made.known(name.as_str())?;
    }
    let view = seen(session, &made)?;
    let machines = view
        .machines
        .into_iter()
        .filter(|machine| {
            args.machine
                .as_ref()
                .is_none_or(|name| name.as_str() == machine.name)
        })
        .map(|view| {
            let files = made.files.machine(&view.name);
            InspectedMachine {
                record: made.machine(&view.name).ok(),
                folder: files.folder,
                sockets: files.sockets,
                view,
            }
        })
        .collect();
    let mut cluster = made.record.clone();
    // What `--set` said may be secrets: it is for configs alone.
    for value in cluster.set.values_mut() {
        *value = serde_json::Value::Null;
    }
    let inspected = Inspected {
        cluster,
        supervisor: view.supervisor,
        machines,
        kept_disks: view.kept_disks,
    };
    let text = serde_json::to_string_pretty(&inspected).map_err(|error| {
        Error::because(Exit::Failed, "cannot put the cluster into JSON", &error)
    })?;
    session.report.result(&inspected, |_| text + "\n")
}

#[derive(Serialize)]
struct Addresses<'a> {
    machines: &'a [MachineView],
}

pub(super) fn ip(session: &Session<'_>, args: &IpArgs) -> Result<(), Error> {
    let made = session.made()?;
    if let Some(name) = &args.machine {
        made.known(name.as_str())?;
    }
    let mut view = seen(session, &made)?;
    let Some(name) = &args.machine else {
        return session.report.result(
            &Addresses {
                machines: &view.machines,
            },
            |style| view.ip_table(style),
        );
    };
    view.machines
        .retain(|machine| machine.name == name.as_str());
    let reserved = made.record.reservations.get(name.as_str());
    let reserved = reserved.filter(|_| made.record.mode.gives_addresses());
    let learned = || {
        let seen = &view.machines.first()?.addresses;
        // As `kiln ssh` has it; one that has no IPv4 is reached by nothing, and yet has an address.
        let newest = SeenRecord::newest(seen).map(IpAddr::V4);
        Some(newest.or_else(|| Some(seen.first()?.ip))?.to_string())
    };
    let told = match reserved {
        Some(reserved) => Some(reserved.ip.to_string()),
        None => learned(),
    };
    // To a program an empty list says it, to a script an exit code.
    if told.is_none() && !session.global.json {
        return Err(Error::new(
            Exit::Failed,
            format!("no address of machine `{name}` was seen in use"),
        )
        .hint(format!("`kiln wait {name} --for address` waits for it")));
    }
    session.report.result(
        &Addresses {
            machines: &view.machines,
        },
        |_| format!("{}\n", told.unwrap_or_default()),
    )
}
