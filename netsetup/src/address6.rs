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

/// How often another network is tried: the wider the networks that others have, the more often it takes.
const TRIES: u32 = 256;

/// Chooses a network that overlaps none of `taken`, the same for the same cluster name where it can. Where others have all
/// of fd00::/8, they have none of it in particular, as with a default route, and their narrower networks alone count.
pub fn choose_subnet6(cluster: &str, taken: &[Ipv6Net]) -> Subnet6 {
    let candidate = |turn: u32| {
        let turn = turn.to_string();
        let global = match turn.as_str() {
            "0" => hash(&["ula", cluster]),
            turn => hash(&["ula", cluster, turn]),
        } >> 24;
        let net = Ipv6Addr::from_bits(0xfd << 120 | u128::from(global) << 80);
        Ipv6Net::new_assert(net, 64)
    };
    let free = |beyond: u8| {
        let overlaps = move |net: &Ipv6Net, other: &Ipv6Net| {
            other.prefix_len() > beyond && (other.contains(net) || net.contains(other))
        };
        (0..TRIES)
            .map(candidate)
            .find(|net| !taken.iter().any(|other| overlaps(net, other)))
    };
    // Those wider than a site's own are left out at last: there are 2^40 sites.
    let found = free(8).or_else(|| free(39));
    Subnet6(found.unwrap_or_else(|| candidate(0)))
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
        // A VPN may lead all such addresses away.
        let all: Ipv6Net = "fd00::/8".parse().unwrap();
        assert_eq!(choose_subnet6("demo", &[all]), subnet);
        assert_ne!(choose_subnet6("demo", &[all, subnet.net()]), subnet);
        let halves: [Ipv6Net; 2] = ["fd00::/9", "fd80::/9"].map(|net| net.parse().unwrap());
        let half = choose_subnet6("demo", &halves[..1]);
        assert!(halves[1].contains(&half.net()));
        assert_eq!(choose_subnet6("demo", &halves), subnet);
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
