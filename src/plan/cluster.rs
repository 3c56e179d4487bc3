//! What is chosen for the cluster as a whole: its subnet, addresses, mode and uid.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{Ipv4Net, Ipv6Net};
use kiln_netsetup::address::{self, Subnet};
use kiln_netsetup::address6::choose_subnet6;

use super::{HostFacts, Inventory, PlanError, choice};
use crate::cluster::{Cluster, Ipv6Wish, NetworkMode};
use crate::state::files::SCHEMA;
use crate::state::record::{ClusterRecord, ModeRecord, ReservationRecord};
use crate::state::told::ToldRecord;

pub(super) fn record(
    cluster: &Cluster,
    host: &HostFacts,
    inventory: &Inventory,
) -> Result<ClusterRecord, PlanError> {
    let name = cluster.name.as_str();
    let subnet = subnet(cluster, inventory)?;
    let mut reservations = inventory
        .cluster
        .as_ref()
        .map_or_else(BTreeMap::new, |record| record.reservations.clone());
    let mut existing = BTreeMap::new();
    for (machine, reserved) in &reservations {
        let mac = reserved.mac.parse().map_err(|_| PlanError::Record {
            cluster: name.to_owned(),
            why: format!("`{}` is no MAC address", reserved.mac),
        })?;
        existing.insert(machine.clone(), (mac, reserved.ip));
    }
    let kept = inventory.cluster.as_ref();
    let (mode, mode_reason) = choice::mode(&cluster.network.mode, kept, host.namespace.as_ref())?;
    let seed = choice::seed(name, mode, host);
    let names = cluster.machines.iter().map(|machine| machine.name.as_str());
    let fixed = &cluster.network.fixed;
    let reserved =
        address::reserve(&seed, names, fixed, &existing, subnet).map_err(PlanError::Address)?;
    for (machine, (mac, ip)) in reserved {
        let mac = address::mac_text(mac);
        if let Some(other) = inventory.taken_macs.get(&mac) {
            return Err(PlanError::MacTaken {
                machine,
                mac,
                other: other.clone(),
            });
        }
        reservations.insert(machine, ReservationRecord { mac, ip });
    }
    Ok(ClusterRecord {
        schema: SCHEMA,
        name: name.to_owned(),
        spec: cluster.spec.clone(),
        mode,
        mode_reason,
        way_out: choice::way_out(&cluster.network, mode, kept, host)?,
        subnet: subnet.net(),
        subnet6: match mode {
            ModeRecord::Fabric | ModeRecord::Namespace => subnet6(cluster, inventory)?,
            ModeRecord::User | ModeRecord::Attach => None,
        },
        domain: choice::domain(cluster, kept)?,
        told: ToldRecord::from(&cluster.network.told),
        qemu_uid: match kept {
            Some(record) => record.qemu_uid,
            None if host.is_root => Some(choice::uid(name, &inventory.taken_uids)?),
            None => None,
        },
        qemu_gid: host.qemu_gid,
        machines: cluster
            .machines
            .iter()
            .map(|machine| machine.name.to_string())
            .collect(),
        set: cluster.set.clone(),
        scale: cluster
            .scale
            .iter()
            .map(|(group, count)| (group.to_string(), *count))
            .collect(),
        ports: BTreeSet::new(),
        reservations,
    })
}

/// The kept IPv6 network or none, or the asked one, or a free one; in this order.
fn subnet6(cluster: &Cluster, inventory: &Inventory) -> Result<Option<Ipv6Net>, PlanError> {
    let text = |net: Option<Ipv6Net>| {
        net.map_or_else(
            || "no IPv6".to_owned(),
            |net| format!("the IPv6 network {net}"),
        )
    };
    let moved = |kept, asked| PlanError::NetworkMoved {
        cluster: cluster.name.to_string(),
        kept: text(kept),
        asked: text(asked),
    };
    let kept = inventory.cluster.as_ref().map(|record| record.subnet6);
    match (cluster.network.ipv6, kept) {
        (Ipv6Wish::Chosen, Some(kept)) => Ok(kept),
        (Ipv6Wish::Chosen, None) => {
            let taken = &inventory.taken_networks6;
            Ok(Some(choose_subnet6(cluster.name.as_str(), taken).net()))
        }
        (Ipv6Wish::Off, Some(kept @ Some(_))) => Err(moved(kept, None)),
        (Ipv6Wish::Off, _) => Ok(None),
        (Ipv6Wish::Fixed(asked), Some(kept)) if kept != Some(asked) => {
            Err(moved(kept, Some(asked)))
        }
        (Ipv6Wish::Fixed(asked), Some(_)) => Ok(Some(asked)),
        (Ipv6Wish::Fixed(asked), None) => {
            let overlaps = |taken: &&Ipv6Net| taken.contains(&asked) || asked.contains(*taken);
            match inventory.taken_networks6.iter().find(overlaps) {
                Some(taken) => Err(PlanError::Subnet6Taken {
                    subnet: asked,
                    taken: *taken,
                }),
                None => Ok(Some(asked)),
            }
        }
    }
}

/// What changes of what the machines are told, in the spec's words.
pub(super) fn changes(old: Option<&ClusterRecord>, new: &ClusterRecord) -> Vec<&'static str> {
    old.map_or_else(Vec::new, |old| old.told.differences(&new.told))
}

/// The kept subnet, or the asked one, or a free one; in this order.
fn subnet(cluster: &Cluster, inventory: &Inventory) -> Result<Subnet, PlanError> {
    if let NetworkMode::Attach { .. } = cluster.network.mode {
        return Subnet::new(choice::NO_SUBNET).map_err(PlanError::Address);
    }
    let asked = cluster.network.subnet;
    if let Some(record) = &inventory.cluster {
        return match asked {
            Some(asked) if asked.trunc() != record.subnet => Err(PlanError::SubnetMoved {
                cluster: record.name.clone(),
                kept: record.subnet,
                asked,
            }),
            _ => Subnet::new(record.subnet).map_err(PlanError::Address),
        };
    }
    let Some(asked) = asked else {
        return address::choose_subnet(cluster.name.as_str(), &inventory.taken_networks)
            .map_err(PlanError::Address);
    };
    let overlaps =
        |taken: &&Ipv4Net| taken.contains(&asked.network()) || asked.contains(&taken.network());
    match inventory.taken_networks.iter().find(overlaps) {
        Some(taken) => Err(PlanError::SubnetTaken {
            subnet: asked,
            taken: *taken,
        }),
        None => Subnet::new(asked.trunc()).map_err(PlanError::Address),
    }
}
