//! `kiln net`: how the machines are joined, and what went through each one's port.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use crate::client::Client;
use crate::command::{Made, Session};
use crate::error::Error;
use crate::report::style::Style;
use crate::report::table::{Cell, table};
use crate::report::view::NetworkView;
use crate::state::record::{SeenRecord, WayOutRecord};
use crate::supervisor::protocol::{ClusterStatus, PortTraffic};

#[derive(Debug, Serialize)]
struct Net<'a> {
    cluster: &'a str,
    network: NetworkView,
    #[serde(skip)]
    mode: String,
    gateway: Option<Ipv4Addr>,
    way_out: &'a WayOutRecord,
    ports: Vec<PortView>,
}

/// A machine's place in the network; what went through is `null` while the machine is not plugged in.
#[derive(Debug, Serialize)]
struct PortView {
    machine: String,
    mac: String,
    /// Absent where another one gives addresses.
    ip: Option<Ipv4Addr>,
    ip6: Option<Ipv6Addr>,
    addresses: Vec<SeenRecord>,
    traffic: Option<PortTraffic>,
}

pub(super) fn run(session: &Session<'_>) -> Result<(), Error> {
    let made = session.made()?;
    let client = Client::reach(&made.files)?;
    let (status, traffic) = (client.status()?, client.traffic()?);
    let net = Net {
        cluster: &made.record.name,
        network: NetworkView::new(&made.record, &status),
        gateway: made.record.gateway(),
        mode: made.record.mode_text(),
        way_out: &made.record.way_out,
        ports: ports(&made, &status, traffic),
    };
    for note in &net.network.notes {
        session.report.note(note);
    }
    session.report.result(&net, |style| text(&net, style))
}

fn ports(made: &Made, status: &ClusterStatus, traffic: Vec<PortTraffic>) -> Vec<PortView> {
    let mut traffic: BTreeMap<String, PortTraffic> = traffic
        .into_iter()
        .map(|port| (port.machine.clone(), port))
        .collect();
    let view = |name: &String| {
        let reserved = made.record.reservations.get(name)?;
        Some(PortView {
            machine: name.clone(),
            mac: reserved.mac.clone(),
            addresses: status
                .machines
                .iter()
                .find(|machine| machine.name == *name)
                .map_or_else(Vec::new, |machine| machine.addresses.clone()),
            ip: made.record.mode.gives_addresses().then_some(reserved.ip),
            ip6: made.record.ip6(&reserved.mac),
            traffic: traffic.remove(name),
        })
    };
    made.record.machines.iter().filter_map(view).collect()
}

impl PortView {
    /// The one that it is to have, or those that it has.
    fn address(&self) -> String {
        let seen = self.addresses.iter().map(|seen| seen.ip.to_string());
        match self.ip {
            Some(ip) => ip.to_string(),
            None => seen.collect::<Vec<_>>().join(" "),
        }
    }
}

fn text(net: &Net<'_>, style: Style) -> String {
    let mut text = format!("cluster {}: {}", net.cluster, net.mode);
    if let Some(subnet) = net.network.subnet {
        text.push_str(&format!(" {subnet}"));
    }
    if let Some(gateway) = net.gateway {
        text.push_str(&format!(", gateway {gateway}"));
    }
    if net.network.isolated {
        text.push_str(", no uplink");
    }
    if let Some(subnet) = net.network.subnet6 {
        text.push_str(&format!(", IPv6 {subnet} (inside only)"));
    }
    text.push_str("\n\n");
    let rows: Vec<[Cell; 6]> = net
        .ports
        .iter()
        .map(|port| {
            let traffic = port.traffic.as_ref();
            let told = |word: &dyn Fn(&PortTraffic) -> String| {
                Cell::new(traffic.map(word).unwrap_or_default())
            };
            [
                Cell::new(&port.machine),
                Cell::new(port.address()),
                Cell::new(&port.mac),
                told(&|it| it.link.clone().unwrap_or_default()),
                told(&|it| format!("{} frames, {} bytes", it.sent, it.sent_bytes)),
                told(&|it| format!("{} frames, {} bytes", it.received, it.received_bytes)),
            ]
        })
        .collect();
    let headers = ["NAME", "ADDRESS", "MAC", "LINK", "SENT", "RECEIVED"];
    text.push_str(&table(style, headers, &rows));
    text
}
