//! `kiln inventory` and `kiln ssh-config`: the cluster in the words of Ansible and ssh.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use crate::cli::args::{InventoryArgs, MachinesArgs};
use crate::command::login::{self, Login};
use crate::command::{Made, Session, show};
use crate::error::Error;
use crate::state::record::MachineRecord;

/// A section for each machine that kiln's keys are in.
pub(super) fn ssh_config(session: &Session<'_>, args: &MachinesArgs) -> Result<(), Error> {
    let made = session.made()?;
    let names = made.select(&args.machines)?;
    session
        .report
        .write(&ssh_config_text(session, &made, &names)?)
}

/// The sections of those of the machines that kiln's keys are in.
pub(super) fn ssh_config_text(
    session: &Session<'_>,
    made: &Made,
    names: &[String],
) -> Result<Vec<u8>, Error> {
    let mut text = format!(
        "# The machines of kiln's cluster {}, for ssh's Include.\n",
        made.record.name
    )
    .into_bytes();
    for name in reachable(made, names)? {
        let names = format!("{name} {name}.{}", made.record.domain);
        text.push(b'\n');
        text.extend(Login::to(session, made, &name)?.section(&names));
    }
    Ok(text)
}

/// Those of the machines that have kiln's keys.
fn reachable(made: &Made, names: &[String]) -> Result<Vec<String>, Error> {
    let mut reachable = Vec::new();
    for name in names {
        if made.machine(name)?.reports {
            reachable.push(name.clone());
        }
    }
    Ok(reachable)
}

/// What Ansible's script inventories print for `--list` (its developer guide, "Developing dynamic
/// inventory").
#[derive(Debug, Serialize)]
struct Listing {
    _meta: Meta,
    all: All,
    #[serde(flatten)]
    groups: BTreeMap<String, Hosts>,
}

#[derive(Debug, Serialize)]
struct Meta {
    hostvars: BTreeMap<String, HostVariables>,
}

#[derive(Debug, Serialize)]
struct All {
    children: Vec<String>,
    hosts: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Hosts {
    hosts: Vec<String>,
}

#[derive(Debug, Serialize)]
struct HostVariables {
    ansible_host: String,
    ansible_user: &'static str,
    ansible_ssh_common_args: String,
    kiln_cluster: String,
    kiln_group: String,
    kiln_index: u32,
    kiln_arch: String,
    /// Absent while none is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    kiln_ip: Option<IpAddr>,
    kiln_mac: String,
}

/// `--list` is what is printed without a flag, `--host NAME` one machine's variables.
pub(super) fn inventory(session: &Session<'_>, args: &InventoryArgs) -> Result<(), Error> {
    let made = session.made()?;
    let addresses = show::addresses(session, &made)?;
    if let Some(name) = &args.host {
        let record = made.machine(name.as_str())?;
        let variables = variables(session, &made, &record, &addresses)?;
        return print(session, &variables);
    }
    let mut hostvars = BTreeMap::new();
    let mut groups: BTreeMap<String, Hosts> = BTreeMap::new();
    let mut alone = Vec::new();
    let names = reachable(&made, &made.record.machines)?;
    for name in &names {
        let record = made.machine(name)?;
        hostvars.insert(
            name.clone(),
            variables(session, &made, &record, &addresses)?,
        );
        // A machine that is its own group needs none; Ansible warns of a group named as a host.
        if names.contains(&record.group) {
            alone.push(name.clone());
            continue;
        }
        groups
            .entry(group_name(&record.group))
            .or_insert_with(|| Hosts { hosts: Vec::new() })
            .hosts
            .push(name.clone());
    }
    let listing = Listing {
        _meta: Meta { hostvars },
        all: All {
            children: groups.keys().cloned().collect(),
            hosts: alone,
        },
        groups,
    };
    print(session, &listing)
}

/// Ansible's group names are variable names: it warns of a `-`.
fn group_name(group: &str) -> String {
    group.replace('-', "_")
}

fn variables(
    session: &Session<'_>,
    made: &Made,
    record: &MachineRecord,
    addresses: &BTreeMap<String, Vec<IpAddr>>,
) -> Result<HostVariables, Error> {
    Ok(HostVariables {
        ansible_host: record.name.clone(),
        ansible_user: login::USER,
        ansible_ssh_common_args: Login::to(session, made, &record.name)?.shell_words()?,
        kiln_cluster: made.record.name.clone(),
        kiln_group: record.group.clone(),
        kiln_index: record.index,
        kiln_arch: record.arch.clone(),
        kiln_ip: addresses
            .get(&record.name)
            .and_then(|it| it.first().copied()),
        kiln_mac: record.mac.clone(),
    })
}

/// Ansible wants its own form even where nobody asked for JSON.
fn print(session: &Session<'_>, value: &impl Serialize) -> Result<(), Error> {
    session.report.result(value, |_| {
        // What was made of texts and numbers always has a form in JSON.
        let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
        text.push('\n');
        text
    })
}
