//! `kiln net`: how the machines are joined, and what went through each one's port.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use kiln_netsetup::address::Subnet;
use serde::Serialize;

use crate::client::Client;
use crate::command::{Made, Session};
use crate::error::Error;
use crate::report::style::Style;
use crate::report::table::{Cell, table};
use crate::report::view::{NetworkView, mode_word};
use crate::state::record::WayOutRecord;
use crate::supervisor::protocol::PortTraffic;

#[derive(Debug, Serialize)]
struct Net<'a> {
    cluster: &'a str,
    network: NetworkView,
    gateway: Option<Ipv4Addr>,
    way_out: &'a WayOutRecord,
    ports: Vec<PortView>,
}

/// A machine's place in the network; what went through is `null` while the machine is not plugged in.
#[derive(Debug, Serialize)]
struct PortView {
    machine: String,
    mac: String,
    ip: Ipv4Addr,
    traffic: Option<PortTraffic>,
}

pub(super) fn run(session: &Session<'_>) -> Result<(), Error> {
    let made = session.made()?;
    let client = Client::reach(&made.files)?;
    let (status, traffic) = (client.status()?, client.traffic()?);
    let net = Net {
        cluster: &made.record.name,
        network: NetworkView::new(&made.record, &status.uplink),
        gateway: Subnet::new(made.record.subnet)
            .ok()
            .map(|subnet| subnet.gateway()),
        way_out: &made.record.way_out,
        ports: ports(&made, traffic),
    };
    session.report.result(&net, |style| text(&net, style))
}

fn ports(made: &Made, traffic: Vec<PortTraffic>) -> Vec<PortView> {
    let mut traffic: BTreeMap<String, PortTraffic> = traffic
        .into_iter()
        .map(|port| (port.machine.clone(), port))
        .collect();
    let view = |name: &String| {
        let reserved = made.record.reservations.get(name)?;
        Some(PortView {
            machine: name.clone(),
            mac: reserved.mac.clone(),
            ip: reserved.ip,
            traffic: traffic.remove(name),
        })
    };
    made.record.machines.iter().filter_map(view).collect()
}

fn text(net: &Net<'_>, style: Style) -> String {
    let NetworkView { mode, subnet, .. } = &net.network;
    let mut text = format!("cluster {}: {} {subnet}", net.cluster, mode_word(*mode));
    if let Some(gateway) = net.gateway {
        text.push_str(&format!(", gateway {gateway}"));
    }
    if net.network.isolated {
        text.push_str(", no uplink");
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
                Cell::new(port.ip.to_string()),
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
