//! What a network's machines are told besides their addresses, the same in each mode. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;

/// What kiln's DHCP and DNS say of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The cluster's domain without a dot at its end, by convention `CLUSTER.internal`; unqualified names are searched
    /// in it.
    pub domain: String,
    /// The MTU of the machines' NICs, 576 or more; 1500 where nothing is said.
    pub mtu: Option<u16>,
    /// Whether the network has no way out: no default route is given, and no name is asked of anybody else.
    pub isolated: bool,
    /// Names besides the machines', in lower case, which are known as they stand and below the domain. `*.NAME` is any
    /// name below NAME.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    /// Routes that machines are given besides the default one.
    pub routes: Vec<Route>,
    /// Who is asked for names that are not the network's, in this order.
    pub resolvers: Vec<SocketAddr>,
}

/// A route by a host of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub to: Ipv4Net,
    /// By whom.
    pub via: Ipv4Addr,
}

impl Settings {
    /// A network with this domain and nothing special about it.
    pub fn new(domain: impl Into<String>) -> Settings {
        Settings {
            domain: domain.into(),
            mtu: None,
            isolated: false,
            hosts: BTreeMap::new(),
            routes: Vec::new(),
            resolvers: Vec::new(),
        }
    }
}
