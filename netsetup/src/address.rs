//! Which machine has which address: decided from names alone, before anything runs.
//!
//! The same cluster and machine name give the same MAC and IPv4 address on every host, so an address survives a lost
//! state file, and scaling a cluster moves nobody. This module must not look at the host: what is already taken comes
//! in as an argument.
//!
//! In each subnet the first addresses are special: `.1` is kiln itself (gateway, DHCP, DNS), `.2` and `.3` are what
//! the uplink's slirp calls its own host and name server, and machines get the rest from `.10` on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use macaddr::MacAddr6;

/// Offset in the subnet of the first address that kiln gives a machine.
const FIRST_MACHINE: u32 = 10;
/// Offset of the first that a user may name for one.
const FIRST_NAMED: u32 = 4;

/// Where subnets are taken from, in order. The first is seldom in use; the others serve hosts whose VPN routes all of
/// 10.0.0.0/8.
const POOLS: [Ipv4Net; 3] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 80, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 30, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 128, 0), 17),
];

/// Prefix length of a subnet that kiln chose.
const CHOSEN_PREFIX: u8 = 24;

/// The first two octets of each MAC. The low bits `10` of `b2` say unicast and locally administered, in the quadrant
/// that IEEE 802c leaves to a network's administrator. QEMU's own 52:54:00 is avoided: on a bridge that libvirt's
/// machines share there would be 24 bits to be distinct in, here there are 32, and 52:55 is slirp's.
const MAC_PREFIX: [u8; 2] = [0xb2, 0x6b];

/// An IPv4 network that can hold a cluster: `/16` to `/28`, written without host bits, of unicast addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subnet(Ipv4Net);

impl Subnet {
    /// Takes `net` for a cluster.
    ///
    /// # Errors
    /// The prefix is not from 16 to 28, there are host bits, or the network is one that hosts never route
    /// (0/8, 127/8, 169.254/16, 224/4 and above).
    pub fn new(net: Ipv4Net) -> Result<Subnet, AddressError> {
        if !(16..=28).contains(&net.prefix_len()) {
            return Err(AddressError::Prefix { net });
        }
        if net.trunc() != net {
            return Err(AddressError::HostBits {
                net,
                meant: net.trunc(),
            });
        }
        if !is_routed(net.network()) {
            return Err(AddressError::Unroutable { net });
        }
        Ok(Subnet(net))
    }

    /// The network in `ipnet`'s type.
    pub fn net(&self) -> Ipv4Net {
        self.0
    }

    /// kiln's own address: gateway, DHCP server and name server.
    pub fn gateway(&self) -> Ipv4Addr {
        self.at(1)
    }

    /// What the uplink's slirp takes for its own host address (`-netdev user,host=`). Behind it are the services of
    /// the host's loopback, so the switch lets nothing through to it.
    pub fn uplink_host(&self) -> Ipv4Addr {
        self.at(2)
    }

    /// What the uplink's slirp takes for its name server (`-netdev user,dns=`). Nothing is let through to it either.
    pub fn uplink_dns(&self) -> Ipv4Addr {
        self.at(3)
    }

    /// The subnet's broadcast address.
    pub fn broadcast(&self) -> Ipv4Addr {
        self.0.broadcast()
    }

    /// The network mask.
    pub fn mask(&self) -> Ipv4Addr {
        self.0.netmask()
    }

    /// Whether `ip` lies in the subnet.
    pub fn contains(&self, ip: Ipv4Addr) -> bool {
        self.0.contains(&ip)
    }

    /// How many machines fit: 5 in a `/28`, 245 in a `/24`.
    pub fn capacity(&self) -> u32 {
        self.last() - FIRST_MACHINE + 1
    }

    /// Offset of the last address that a machine may have.
    fn last(&self) -> u32 {
        (1 << (32 - self.0.prefix_len())) - 2
    }

    fn at(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.0.network().to_bits() + offset)
    }

    /// Whether `ip` is one that a machine may have: kiln gives those from the tenth on, and a user may also name one
    /// from the fourth on, behind those of kiln and of the way out.
    pub fn is_for_machines(&self, ip: Ipv4Addr) -> bool {
        self.contains(ip)
            && (FIRST_NAMED..=self.last()).contains(&(ip.to_bits() - self.0.network().to_bits()))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One machine's place in the network, fixed for the life of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The machine's name: one DNS label.
    pub name: String,
    /// The MAC of its NIC.
    pub mac: MacAddr6,
    /// Its address.
    pub ip: Ipv4Addr,
}

/// The place that a user named for a machine; what is absent kiln chooses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fixed {
    /// The MAC of its NIC.
    pub mac: Option<MacAddr6>,
    /// Its address.
    pub ip: Option<Ipv4Addr>,
}

/// Why there is no address to give.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    /// The prefix length is out of range.
    #[error("subnet `{net}` has to be from /16 to /28")]
    Prefix {
        /// As given.
        net: Ipv4Net,
    },
    /// An address inside the network was given in place of the network.
    #[error("subnet `{net}` has bits beyond its prefix, `{meant}` is the network")]
    HostBits {
        /// As given.
        net: Ipv4Net,
        /// The network that it lies in.
        meant: Ipv4Net,
    },
    /// Loopback, link-local, multicast or reserved.
    #[error("subnet `{net}` is not one that machines can have addresses in")]
    Unroutable {
        /// As given.
        net: Ipv4Net,
    },
    /// More machines than addresses.
    #[error("subnet `{subnet}` has {capacity} addresses for machines, and all are reserved")]
    Full {
        /// The cluster's subnet.
        subnet: Subnet,
        /// How many fit.
        capacity: u32,
    },
    /// A reservation was made in another subnet.
    #[error("`{name}` has {ip} reserved, which is no address for machines in `{subnet}`")]
    Outside {
        /// The machine.
        name: String,
        /// What it has.
        ip: Ipv4Addr,
        /// The cluster's subnet now.
        subnet: Subnet,
    },
    /// Somebody else has what a machine is to have.
    #[error("`{name}` cannot have {what}, which {holder} has")]
    Taken {
        /// The machine.
        name: String,
        /// The MAC or address.
        what: String,
        /// Who has it, in words.
        holder: String,
    },
    /// Every subnet of every pool is in use.
    #[error(
        "no free subnet for cluster `{cluster}`: all of 10.80.0.0/16, 172.30.0.0/16 and 192.168.128.0/17 is taken"
    )]
    NoSubnet {
        /// The cluster.
        cluster: String,
    },
}

/// Reserves an address for each of `names` and of those that `fixed` names, and returns these only.
///
/// What `fixed` says is done, or refused. Else what `existing` holds never moves, and its addresses are given to nobody
/// else, whether the machine is in `names` or not (a group may be scaled down for a while). Where two names want the
/// same address, the first in order of name has it.
///
/// # Errors
/// [`AddressError::Full`]; [`AddressError::Taken`] where `fixed` names what kiln itself or another machine has; and
/// [`AddressError::Outside`] where an address that is asked for is not one of `subnet`.
pub fn reserve<'a>(
    cluster: &str,
    names: impl IntoIterator<Item = &'a str>,
    fixed: &BTreeMap<String, Fixed>,
    existing: &BTreeMap<String, (MacAddr6, Ipv4Addr)>,
    subnet: Subnet,
) -> Result<BTreeMap<String, (MacAddr6, Ipv4Addr)>, AddressError> {
    refuse_clashes(cluster, fixed, existing)?;
    let places = existing.values();
    let wishes = fixed.values();
    let mut macs: BTreeSet<MacAddr6> = places.clone().map(|(mac, _)| *mac).collect();
    let mut ips: BTreeSet<Ipv4Addr> = places.map(|(_, ip)| *ip).collect();
    macs.extend(wishes.clone().filter_map(|wish| wish.mac));
    ips.extend(wishes.filter_map(|wish| wish.ip));
    macs.insert(gateway_mac(cluster));

    let mut names: BTreeSet<&str> = names.into_iter().collect();
    names.extend(fixed.keys().map(String::as_str));
    let mut reserved = BTreeMap::new();
    for name in names {
        let wish = fixed.get(name).copied().unwrap_or_default();
        let had = existing.get(name);
        let mac = match wish.mac.or(had.map(|(mac, _)| *mac)) {
            Some(mac) => mac,
            None => free_mac(cluster, name, &macs),
        };
        let ip = match wish.ip.or(had.map(|(_, ip)| *ip)) {
            Some(ip) if subnet.is_for_machines(ip) => ip,
            Some(ip) => {
                return Err(AddressError::Outside {
                    name: name.to_owned(),
                    ip,
                    subnet,
                });
            }
            None => free_ip(cluster, name, subnet, &ips)?,
        };
        macs.insert(mac);
        ips.insert(ip);
        reserved.insert(name.to_owned(), (mac, ip));
    }
    Ok(reserved)
}

/// Refuses what a user named where kiln itself has it, or a machine that is not moved away from it.
fn refuse_clashes(
    cluster: &str,
    fixed: &BTreeMap<String, Fixed>,
    existing: &BTreeMap<String, (MacAddr6, Ipv4Addr)>,
) -> Result<(), AddressError> {
    let taken = |name: &str, what: String, holder: String| AddressError::Taken {
        name: name.to_owned(),
        what,
        holder,
    };
    for (name, wish) in fixed {
        if let Some(mac) = wish.mac
            && mac == gateway_mac(cluster)
        {
            return Err(taken(name, mac_text(mac), "kiln itself".to_owned()));
        }
        for (other, (mac, ip)) in existing.iter().filter(|(other, _)| *other != name) {
            let moved = fixed.get(other).copied().unwrap_or_default();
            let holder = || format!("`{other}`");
            if wish.mac == Some(*mac) && moved.mac.is_none_or(|to| to == *mac) {
                return Err(taken(name, mac_text(*mac), holder()));
            }
            if wish.ip == Some(*ip) && moved.ip.is_none_or(|to| to == *ip) {
                return Err(taken(name, ip.to_string(), holder()));
            }
        }
    }
    Ok(())
}

/// A MAC as it is written everywhere: in lower case.
pub fn mac_text(mac: MacAddr6) -> String {
    mac.to_string().to_ascii_lowercase()
}

/// The MAC of kiln itself in a cluster.
pub fn gateway_mac(cluster: &str) -> MacAddr6 {
    mac(hash(&["gateway", cluster]))
}

/// Chooses a `/24` that overlaps none of `taken` (the host's routes and addresses, other clusters' subnets), the same
/// for the same cluster name where it can. A default route in `taken` takes nothing.
///
/// # Errors
/// [`AddressError::NoSubnet`] when all are taken.
pub fn choose_subnet(cluster: &str, taken: &[Ipv4Net]) -> Result<Subnet, AddressError> {
    for pool in POOLS {
        let count = 1u64 << (CHOSEN_PREFIX - pool.prefix_len());
        let start = hash(&["subnet", cluster]);
        for step in 0..count {
            let index = start.wrapping_add(step) % count;
            let offset = u32::try_from(index).unwrap_or(0) << (32 - CHOSEN_PREFIX);
            let network = Ipv4Addr::from_bits(pool.network().to_bits() + offset);
            let net = Ipv4Net::new_assert(network, CHOSEN_PREFIX);
            if !taken.iter().any(|other| overlap(net, *other)) {
                return Subnet::new(net);
            }
        }
    }
    Err(AddressError::NoSubnet {
        cluster: cluster.to_owned(),
    })
}

/// Whether packets for `ip` may leave a host at all: not "this network", loopback, link-local, multicast or reserved.
pub(crate) fn is_routed(ip: Ipv4Addr) -> bool {
    !(ip.octets()[0] == 0
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.octets()[0] >= 240)
}

fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    other.prefix_len() > 0 && (one.contains(&other.network()) || other.contains(&one.network()))
}

fn free_mac(cluster: &str, name: &str, taken: &BTreeSet<MacAddr6>) -> MacAddr6 {
    let mut seed = hash(&["mac", cluster, name]);
    loop {
        let candidate = mac(seed);
        if !taken.contains(&candidate) {
            return candidate;
        }
        seed = mix(seed.wrapping_add(1));
    }
}

fn free_ip(
    cluster: &str,
    name: &str,
    subnet: Subnet,
    taken: &BTreeSet<Ipv4Addr>,
) -> Result<Ipv4Addr, AddressError> {
    let capacity = subnet.capacity();
    let start = hash(&["ip", cluster, name]) % u64::from(capacity);
    let start = u32::try_from(start).unwrap_or(0);
    (0..capacity)
        .map(|step| subnet.at(FIRST_MACHINE + (start + step) % capacity))
        .find(|ip| !taken.contains(ip))
        .ok_or(AddressError::Full { subnet, capacity })
}

fn mac(hash: u64) -> MacAddr6 {
    let [a, b, c, d, ..] = hash.to_be_bytes();
    MacAddr6::new(MAC_PREFIX[0], MAC_PREFIX[1], a, b, c, d)
}

/// FNV-1a of 64 bits over each part and a byte that ends it, then MurmurHash3's finalizer, because FNV alone leaves
/// the high bits of short names alike. Addresses that users have written down hang on this function: it must never
/// change.
pub(crate) fn hash(parts: &[&str]) -> u64 {
    let mut state: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in part.bytes().chain([0xff]) {
            state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    mix(state)
}

fn mix(mut state: u64) -> u64 {
    state = (state ^ (state >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    state = (state ^ (state >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    state ^ (state >> 33)
}

#[cfg(test)]
mod tests;
