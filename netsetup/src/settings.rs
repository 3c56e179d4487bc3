//! What a network's machines are told besides their addresses, the same in each mode. Pure.

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
}

impl Settings {
    /// A network with this domain and nothing special about it.
    pub fn new(domain: impl Into<String>) -> Settings {
        Settings {
            domain: domain.into(),
            mtu: None,
            isolated: false,
        }
    }
}
