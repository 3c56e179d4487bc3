//! What machines are told of their network, as it lies on the disk.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;
use kiln_netsetup::settings::{Route, Settings};
use serde::{Deserialize, Serialize};

use crate::cluster::told::Told;

/// See [`Told`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToldRecord {
    #[serde(default)]
    pub mtu: Option<u16>,
    #[serde(default)]
    pub dns: Vec<SocketAddr>,
    #[serde(default)]
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    #[serde(default)]
    pub routes: Vec<RouteRecord>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRecord {
    pub to: Ipv4Net,
    pub via: Ipv4Addr,
}

impl From<&Told> for ToldRecord {
    fn from(told: &Told) -> ToldRecord {
        let route = |Route { to, via }: &Route| RouteRecord { to: *to, via: *via };
        ToldRecord {
            mtu: told.mtu,
            dns: told.dns.clone(),
            hosts: told.hosts.clone(),
            routes: told.routes.iter().map(route).collect(),
        }
    }
}

impl ToldRecord {
    /// With these settings, in a network of this domain; `resolvers` are the host's.
    pub fn settings(&self, domain: &str, isolated: bool, resolvers: &[SocketAddr]) -> Settings {
        let route = |RouteRecord { to, via }: &RouteRecord| Route { to: *to, via: *via };
        let asked = match self.dns.as_slice() {
            [] => resolvers,
            own => own,
        };
        Settings {
            domain: domain.to_owned(),
            mtu: self.mtu,
            isolated,
            hosts: self.hosts.clone(),
            routes: self.routes.iter().map(route).collect(),
            resolvers: asked.to_vec(),
        }
    }

    /// What is different in `new`, in the spec's words.
    pub fn differences(&self, new: &ToldRecord) -> Vec<&'static str> {
        let ToldRecord {
            mtu,
            dns,
            hosts,
            routes,
        } = self;
        let all = [
            ("mtu", *mtu == new.mtu),
            ("dns", *dns == new.dns),
            ("hosts", *hosts == new.hosts),
            ("routes", *routes == new.routes),
        ];
        let changed = all.into_iter().filter(|(_, same)| !same);
        changed.map(|(what, _)| what).collect()
    }
}
