//! `ports:`, in Docker's spelling, and the clashes between machines.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;

use super::document::{Node, Value};
use super::error::{Fault, Place, Problem};
use super::fields;
use super::group::PlacedMachine;
use crate::cluster::{Machine, Port};

const FORMS: &str = "write \":80\" (a free host port), \"8080:80\" or \"127.0.0.1:8080:80\"";

/// A published port and where the spec says so.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlacedPort {
    pub(super) place: Place,
    pub(super) port: Port,
}

pub(super) fn ports(node: Node, key: &str) -> Result<Vec<PlacedPort>, Fault> {
    let mut ports: Vec<PlacedPort> = Vec::new();
    for node in fields::list(node, key)? {
        let placed = port(node, key)?;
        if ports.iter().any(|other| other.port == placed.port) {
            return Err(Fault::bad_value(
                placed.place,
                key,
                "this port stands in the list a second time",
            ));
        }
        ports.push(placed);
    }
    Ok(ports)
}

fn port(node: Node, key: &str) -> Result<PlacedPort, Fault> {
    let place = node.place;
    let text = match node.value {
        Value::Number(number) => {
            return Err(
                Fault::bad_value(place, key, format!("`{number}` says too little")).hint(FORMS),
            );
        }
        Value::Text(_) => fields::text(node, key)?,
        Value::Nothing | Value::Bool(_) | Value::List(_) | Value::Map(_) => {
            return Err(fields::wrong_type(&node, key, "a list of texts").hint(FORMS));
        }
    };
    let shown: String = text.chars().take(80).collect();
    let wrong = |why: &str| Fault::bad_value(place, key, format!("`{shown}`: {why}")).hint(FORMS);
    let ports = match text.split_once('/') {
        None | Some((_, "tcp")) => text.trim_end_matches("/tcp"),
        Some((_, "udp" | "sctp")) => {
            return Err(Fault::not_built(place, "publishing anything but TCP")
                .hint("leave out the `/…` for TCP"));
        }
        Some(_) => return Err(wrong("after the `/` only `tcp` is known")),
    };
    if ports.contains('[') {
        return Err(Fault::not_built(place, "publishing on IPv6 addresses").hint(FORMS));
    }
    let number = |text: &str| {
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong("a port is a number from 1 to 65535"));
        }
        text.parse::<NonZeroU16>()
            .map_err(|_| wrong("a port is a number from 1 to 65535"))
    };
    let host_port = |text: &str| match text {
        "" => Ok(None),
        text => number(text).map(Some),
    };
    let port = match ports.split(':').collect::<Vec<_>>()[..] {
        [host, guest] => Port {
            bind: Ipv4Addr::LOCALHOST,
            host: host_port(host)?,
            guest: number(guest)?,
        },
        [bind, host, guest] => Port {
            bind: bind_address(bind).ok_or_else(|| {
                wrong("the address to listen on is not an IPv4 address of a host")
            })?,
            host: host_port(host)?,
            guest: number(guest)?,
        },
        [_] => return Err(wrong("this says too little")),
        _ => return Err(wrong("this has too many parts")),
    };
    Ok(PlacedPort { place, port })
}

fn bind_address(text: &str) -> Option<Ipv4Addr> {
    let address: Ipv4Addr = text.parse().ok()?;
    (!address.is_multicast() && !address.is_broadcast()).then_some(address)
}

/// Refuses two machines that would listen on one host port.
pub(super) fn refuse_clashes(machines: &[PlacedMachine]) -> Result<(), Fault> {
    let mut taken: BTreeMap<NonZeroU16, Vec<(Ipv4Addr, &Machine)>> = BTreeMap::new();
    for PlacedMachine { machine, ports, .. } in machines {
        for PlacedPort { place, port } in ports {
            let Some(host) = port.host else { continue };
            let others = taken.entry(host).or_default();
            if let Some((_, other)) = others.iter().find(|(bind, _)| overlap(*bind, port.bind)) {
                return Err(Fault::new(
                    *place,
                    Problem::PortClash {
                        port: host.get(),
                        machine: machine.name.to_string(),
                        other: other.name.to_string(),
                        line: other.line,
                    },
                ));
            }
            others.push((port.bind, machine));
        }
    }
    Ok(())
}

fn overlap(one: Ipv4Addr, other: Ipv4Addr) -> bool {
    one == other || one.is_unspecified() || other.is_unspecified()
}
