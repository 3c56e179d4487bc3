//! `kiln hosts`: the machines' names and addresses, in the form of `/etc/hosts`. It changes no file of the host.

use std::net::IpAddr;

use serde::Serialize;

use crate::cli::args::MachinesArgs;
use crate::client::Client;
use crate::command::{Made, Session};
use crate::error::Error;
use crate::supervisor::protocol::ClusterStatus;

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
    let mut found = match made.record.mode.gives_addresses() {
        true => reserved(&made, &names),
        // Others give addresses there, so those count that the machines have now.
        false => learned(&Client::look(&made.files)?.status()?, &names),
    };
    // IPv4 first.
    found.sort_by_key(|(_, ip)| ip.is_ipv6());
    let host = |(name, ip): (String, IpAddr)| Host {
        ip,
        names: [format!("{name}.{}", made.record.domain), name],
    };
    let hosts = Hosts {
        hosts: found.into_iter().map(host).collect(),
    };
    session.report.result(&hosts, |_| {
        let line = |host: &Host| format!("{} {}\n", host.ip, host.names.join(" "));
        hosts.hosts.iter().map(line).collect()
    })
}

fn reserved(made: &Made, names: &[String]) -> Vec<(String, IpAddr)> {
    let mut found = Vec::new();
    for name in names {
        if let Some(place) = made.record.reservations.get(name) {
            let six = made.record.ip6(&place.mac).map(IpAddr::V6);
            let all = [IpAddr::V4(place.ip)].into_iter().chain(six);
            found.extend(all.map(|ip| (name.clone(), ip)));
        }
    }
    found
}

fn learned(status: &ClusterStatus, names: &[String]) -> Vec<(String, IpAddr)> {
    let mut found = Vec::new();
    for name in names {
        let of = status.machines.iter().filter(|it| it.name == *name);
        let seen = of.flat_map(|machine| &machine.addresses);
        found.extend(seen.map(|seen| (name.clone(), seen.ip)));
    }
    found
}
