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
    let host = |name: &String, ip: IpAddr| Host {
        ip,
        names: [format!("{name}.{}", made.record.domain), name.clone()],
    };
    let places = || {
        names
            .iter()
            .filter_map(|name| Some((name, made.record.reservations.get(name)?)))
    };
    let six = places().filter_map(|(name, place)| Some((name, made.record.ip6(&place.mac)?)));
    let hosts = Hosts {
        hosts: places()
            .map(|(name, place)| host(name, place.ip.into()))
            .chain(six.map(|(name, ip)| host(name, ip.into())))
            .collect(),
    };
    session.report.result(&hosts, |_| {
        let line = |host: &Host| format!("{} {}\n", host.ip, host.names.join(" "));
        hosts.hosts.iter().map(line).collect()
    })
}
