//! `kiln hosts`: the machines' names and addresses, in the form of `/etc/hosts`. It changes no file of the host.

use std::net::IpAddr;

use serde::Serialize;

use crate::cli::args::MachinesArgs;
use crate::command::Session;
use crate::error::Error;

#[derive(Debug, Serialize)]
struct Hosts {
    hosts: Vec<Host>,
}

/// One address, and the names that it has in the cluster, the full one first.
#[derive(Debug, Serialize)]
struct Host {
    ip: IpAddr,
    names: [String; 2],
}

pub(super) fn run(session: &Session<'_>, args: &MachinesArgs) -> Result<(), Error> {
    let made = session.made()?;
    let names = made.select(&args.machines)?;
    let host = |name: &String| {
        let place = made.record.reservations.get(name)?;
        Some(Host {
            ip: place.ip.into(),
            names: [format!("{name}.{}", made.record.domain), name.clone()],
        })
    };
    let hosts = Hosts {
        hosts: names.iter().filter_map(host).collect(),
    };
    session.report.result(&hosts, |_| {
        let line = |host: &Host| format!("{} {}\n", host.ip, host.names.join(" "));
        hosts.hosts.iter().map(line).collect()
    })
}
