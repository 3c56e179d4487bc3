//! What the machines of a cluster are told of their network, besides their own places in it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use kiln_netsetup::settings::Route;

/// What the spec has DHCP and DNS say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// Of the machines' NICs, 1280 to 9000; absent: Ethernet's 1500.
    pub mtu: Option<u16>,
    /// Who is asked for names that are not the cluster's; none: whom the host asks.
    pub dns: Vec<SocketAddr>,
    /// Names besides the machines', in lower case; `*.NAME` is any name below NAME.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    /// Besides the default route.
    pub routes: Vec<Route>,
}
