//! `address` and `mac` of machines: places that a user names instead of letting kiln choose.
//!
//! A group of one machine has them as plain text, a larger one as a map by machine. What depends on more than the spec
//! (whom kiln gave an address before, other clusters) is the plan's to refuse.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use kiln_netsetup::address::{Fixed, Subnet, mac_text};
use macaddr::MacAddr6;

use super::document::{Node, Value};
use super::error::{Fault, Place};
use super::fields::{self, Fields};
use crate::cluster::{MachineName, Network, NetworkMode};

/// One named place, and where the spec names it.
#[derive(Debug)]
pub(super) struct PlacedFixed {
    place: Place,
    machine: String,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Address(Ipv4Addr),
    Mac(MacAddr6),
}

type Read = fn(Node, &str) -> Result<What, Fault>;

/// What a group names; `is_known` tells its machines from other texts.
pub(super) fn fixed(
    fields: &mut Fields,
    group: &MachineName,
    is_known: &dyn Fn(&str) -> bool,
) -> Result<Vec<PlacedFixed>, Fault> {
    let mut all = Vec::new();
    for (key, read) in [("address", address as Read), ("mac", mac)] {
        let Some(node) = fields.take(key) else {
            continue;
        };
        if matches!(node.value, Value::Map(_)) {
            for (name, node) in fields::map(node, key)? {
                if !is_known(&name.text) {
                    let shown: String = name.text.chars().take(80).collect();
                    let why = format!("group `{group}` has no machine `{shown}`");
                    return Err(Fault::bad_value(name.place, key, why));
                }
                all.push(PlacedFixed {
                    place: node.place,
                    machine: name.text,
                    what: read(node, key)?,
                });
            }
            continue;
        }
        let place = node.place;
        let what = read(node, key)?;
        if !is_known(group.as_str()) {
            let why =
                format!("group `{group}` has machines by number or name, and this is for one");
            return Err(
                Fault::bad_value(place, key, why).hint(format!("write `{key}: {{MACHINE: …}}`"))
            );
        }
        all.push(PlacedFixed {
            place,
            machine: group.to_string(),
            what,
        });
    }
    Ok(all)
}

fn address(node: Node, key: &str) -> Result<What, Fault> {
    let place = node.place;
    let text = fields::text(node, key)?;
    let shown: String = text.chars().take(80).collect();
    let ip = text.parse().map_err(|_| {
        let why = format!("`{shown}` is not an IPv4 address such as `10.80.1.20`");
        Fault::bad_value(place, key, why)
    })?;
    Ok(What::Address(ip))
}

/// Six octets with colons, as everybody writes them; unicast (IEEE 802, the lowest bit of the first).
fn mac(node: Node, key: &str) -> Result<What, Fault> {
    let place = node.place;
    let text = fields::text(node, key)?;
    let shown: String = text.chars().take(80).collect();
    let wrong = |why: &str| Fault::bad_value(place, key, format!("`{shown}` {why}"));
    let is_form = text.len() == 17 && text.split(':').count() == 6;
    let mac: MacAddr6 = text
        .parse()
        .ok()
        .filter(|_| is_form)
        .ok_or_else(|| wrong("is not a MAC such as `52:54:00:12:34:56`"))?;
    if mac.is_multicast() || mac.is_nil() {
        return Err(
            wrong("is no machine's: it is for many, or for none").hint("make its first octet `52`")
        );
    }
    Ok(What::Mac(mac))
}

/// All named places of a spec, of which no two may be the same and each address one of the network's subnet.
pub(super) fn settle(
    all: Vec<PlacedFixed>,
    network: &Network,
) -> Result<BTreeMap<String, Fixed>, Fault> {
    let mut settled: BTreeMap<String, Fixed> = BTreeMap::new();
    let mut taken: Vec<(What, String)> = Vec::new();
    for PlacedFixed {
        place,
        machine,
        what,
    } in all
    {
        let fixed = settled.entry(machine.clone()).or_default();
        let (key, text) = match what {
            What::Address(ip) => {
                fixed.ip = Some(ip);
                ("address", ip.to_string())
            }
            What::Mac(mac) => {
                fixed.mac = Some(mac);
                ("mac", mac_text(mac))
            }
        };
        if let Some((_, other)) = taken.iter().find(|(known, _)| *known == what) {
            let why = format!("machine `{other}` has `{text}` too");
            return Err(Fault::bad_value(place, key, why));
        }
        taken.push((what, machine));
        if let What::Address(ip) = what {
            within(place, ip, network)?;
        }
    }
    Ok(settled)
}

fn within(place: Place, ip: Ipv4Addr, network: &Network) -> Result<(), Fault> {
    let wrong = |why: String| Fault::bad_value(place, "address", why);
    if matches!(network.mode, NetworkMode::Attach { .. }) {
        let why = "whoever owns the bridge gives the addresses there".to_owned();
        return Err(wrong(why).hint("name a `mac`, and the address for it where they are given"));
    }
    let Some(net) = network.subnet else {
        let why = format!("`{ip}` needs a `network.subnet` that it lies in");
        return Err(wrong(why).hint("else kiln chooses one"));
    };
    // One that is none is refused by the plan, with its reason.
    let Ok(subnet) = Subnet::new(net) else {
        return Ok(());
    };
    if !subnet.contains(ip) {
        return Err(wrong(format!("`{ip}` is not in `network.subnet` {net}")));
    }
    if !subnet.is_for_machines(ip) {
        let why = format!("`{ip}` is not one that a machine of {net} can have");
        return Err(wrong(why).hint(format!(
            "{}, the two after it, the first and the last are kiln's and the network's own",
            subnet.gateway()
        )));
    }
    Ok(())
}
