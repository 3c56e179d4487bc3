//! IPv6 addresses of a cluster: a prefix of its own, and in it an address for each MAC. Pure.
//!
//! The prefix is a unique local one (RFC 4193) whose global ID comes from the cluster's name, so that it is the same
//! after a lost state file. A machine's address is the one that it makes of its MAC by itself (RFC 4862 with modified
//! EUI-64, RFC 4291, appendix A), so it is known before the machine boots and no server has to hand it out.

use std::fmt;
use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use macaddr::MacAddr6;

use crate::address::{AddressError, hash};

/// An IPv6 network that can hold a cluster: a `/64` of unique local addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subnet6(Ipv6Net);

impl Subnet6 {
    /// Takes `net` for a cluster.
    ///
    /// # Errors
    /// It is no `/64` within fc00::/7, or has bits beyond its prefix.
    pub fn new(net: Ipv6Net) -> Result<Subnet6, AddressError> {
        if net.prefix_len() != 64 || net.trunc() != net || !net.addr().is_unique_local() {
            return Err(AddressError::Prefix6 { net });
        }
        Ok(Subnet6(net))
    }

    /// The network in `ipnet`'s type.
    pub fn net(&self) -> Ipv6Net {
        self.0
    }

    /// kiln's own address.
    pub fn gateway(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.0.network().to_bits() | 1)
    }

    /// The address of the machine with this MAC.
    pub fn machine(&self, mac: MacAddr6) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.0.network().to_bits() | u128::from(interface(mac)))
    }

    /// Whether `ip` lies in the network.
    pub fn contains(&self, ip: Ipv6Addr) -> bool {
        self.0.contains(&ip)
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The link-local address of kiln, made of its MAC as hosts make theirs.
pub fn link_local(mac: MacAddr6) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(interface(mac)))
}

/// Chooses a network that overlaps none of `taken`, the same for the same cluster name where it can.
pub fn choose_subnet6(cluster: &str, taken: &[Ipv6Net]) -> Subnet6 {
    let mut global = hash(&["ula", cluster]) >> 24;
    loop {
        let net = Ipv6Addr::from_bits(0xfd << 120 | u128::from(global) << 80);
        let net = Ipv6Net::new_assert(net, 64);
        let overlaps = |other: &Ipv6Net| {
            other.prefix_len() > 7 && (other.contains(&net) || net.contains(other))
        };
        if !taken.iter().any(overlaps) {
            return Subnet6(net);
        }
        // Forty bits: there are more networks than anybody has taken.
        global = (global + 1) & 0xff_ffff_ffff;
    }
}

/// Modified EUI-64: `ff:fe` in the middle, and the bit that says "locally administered" turned over.
fn interface(mac: MacAddr6) -> u64 {
    let [a, b, c, d, e, f] = mac.into_array();
    u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_alone_give_these_networks_and_addresses_for_ever() {
        let subnet = choose_subnet6("demo", &[]);
        assert_eq!(choose_subnet6("demo", &["::/0".parse().unwrap()]), subnet);
        assert_ne!(choose_subnet6("other", &[]), subnet);
        assert_ne!(choose_subnet6("demo", &[subnet.net()]), subnet);
        let wide = Ipv6Net::new(subnet.net().addr(), 40).unwrap().trunc();
        assert!(!wide.contains(&choose_subnet6("demo", &[wide]).net()));
        let mac = MacAddr6::new(0x52, 0x54, 0, 0x12, 0x34, 0x56);
        let known = Subnet6::new("fd00:1:2:3::/64".parse().unwrap()).unwrap();
        assert_eq!(
            known.machine(mac).to_string(),
            "fd00:1:2:3:5054:ff:fe12:3456"
        );
        assert_eq!(known.gateway().to_string(), "fd00:1:2:3::1");
        assert_eq!(link_local(mac).to_string(), "fe80::5054:ff:fe12:3456");
        expect_test::expect!["fd63:ec1b:6b58::/64"].assert_eq(&subnet.to_string());
    }

    #[test]
    fn odd_networks_are_refused() {
        for text in [
            "fd00::/63",
            "fd00::1/64",
            "2001:db8::/64",
            "fe80::/64",
            "::/64",
        ] {
            assert!(Subnet6::new(text.parse().unwrap()).is_err(), "{text}");
        }
    }
}
