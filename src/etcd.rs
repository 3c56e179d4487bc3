//! etcd, as far as the profile of that name needs to know it: who is a member, and how it is asked.
//!
//! [`Membership`] is what a machine's config says, out of the plan's choice. [`api`] speaks to a
//! member over a stream that somebody else made; it starts nothing and waits for nobody.

pub mod api;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::Serialize;

use crate::cluster::{Cluster, Profile};
use crate::state::record::{ClusterRecord, EtcdRecord};

/// The port of etcd's clients.
pub const CLIENT_PORT: u16 = 2379;
/// The port of the other members.
pub const PEER_PORT: u16 = 2380;

/// etcd's own defaults, in milliseconds.
const BEAT: u32 = 100;
const ELECTION: u32 = 1000;
/// An emulated machine needs seconds for what others do in a hundredth of one.
const SLOW_BEAT: u32 = 1000;
const SLOW_ELECTION: u32 = 10_000;

/// One machine's part in the cluster's etcd, as the profile's templates see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Membership {
    token: String,
    state: &'static str,
    members: Vec<Member>,
    discovery: Option<String>,
    heartbeat_ms: u32,
    election_ms: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Member {
    name: String,
    ip: Ipv4Addr,
}

impl Membership {
    /// By the choice that was made for the machine. One for which none was made yet is shown as one
    /// of the first members.
    pub fn of(
        record: Option<&EtcdRecord>,
        cluster: &Cluster,
        reserved: &ClusterRecord,
    ) -> Membership {
        let first = EtcdRecord {
            token: String::new(),
            joins: false,
            members: members(cluster).map(str::to_owned).collect(),
            slow: false,
            discovery: None,
            joined: false,
        };
        let ip = |name: &str| Some(reserved.reservations.get(name)?.ip);
        Membership::new(record.unwrap_or(&first), ip)
    }

    /// By the choice, and where each member is.
    pub fn new(record: &EtcdRecord, ip: impl Fn(&str) -> Option<Ipv4Addr>) -> Membership {
        Membership {
            token: record.token.clone(),
            state: if record.joins { "existing" } else { "new" },
            members: record
                .members
                .iter()
                .filter_map(|name| {
                    let (name, ip) = (name.clone(), ip(name)?);
                    Some(Member { name, ip })
                })
                .collect(),
            discovery: record.discovery.clone().filter(|_| !record.joins),
            heartbeat_ms: if record.slow { SLOW_BEAT } else { BEAT },
            election_ms: if record.slow { SLOW_ELECTION } else { ELECTION },
        }
    }
}

/// The names of the spec's members, in its order.
pub fn members(cluster: &Cluster) -> impl Iterator<Item = &str> {
    cluster
        .machines
        .iter()
        .filter(|machine| matches!(machine.profile, Profile::Etcd { .. }))
        .map(|machine| machine.name.as_str())
}

/// How the others reach a member.
pub fn peer_url(ip: Ipv4Addr) -> String {
    format!("http://{ip}:{PEER_PORT}")
}

/// The name of the machine that has this address for its peers.
pub fn name_at<'a>(url: &str, record: &'a ClusterRecord) -> Option<&'a str> {
    let reservations: &BTreeMap<_, _> = &record.reservations;
    reservations
        .iter()
        .find(|(_, reserved)| peer_url(reserved.ip) == url)
        .map(|(name, _)| name.as_str())
}
