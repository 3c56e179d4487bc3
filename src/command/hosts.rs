//! `kiln hosts`: the machines' names and addresses, in the form of `/etc/hosts`. It changes no file of the host.

use std::net::IpAddr;

use serde::Serialize;

use crate::cli::args::MachinesArgs;
use crate::command::{Session, show};
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
    let host = |name: &String, ip: IpAddr| Host {
        ip,
        names: [format!("{name}.{}", made.record.domain), name.clone()],
    };
    let addresses = show::addresses(session, &made)?;
    let given = names.iter().flat_map(|name| {
        let addresses = addresses.get(name).into_iter().flatten();
        addresses.map(move |ip| host(name, *ip))
    });
    let six = names.iter().filter_map(|name| {
        let place = made.record.reservations.get(name)?;
        Some(host(name, made.record.ip6(&place.mac)?.into()))
    });
    let hosts = Hosts {
        hosts: given.chain(six).collect(),
    };
    session.report.result(&hosts, |_| {
        let line = |host: &Host| format!("{} {}\n", host.ip, host.names.join(" "));
        hosts.hosts.iter().map(line).collect()
    })
}
