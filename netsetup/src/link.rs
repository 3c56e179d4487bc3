//! Which links there are to be, and what is there: out come the steps between. Pure.
//!
//! A cluster's bridge learns nothing from traffic. Each port has its machine's MAC written into the forwarding table
//! and gets no frame for another, so a machine that lies about its MAC can at most be silent itself.

pub mod watch;

use ipnet::{Ipv4Net, Ipv6Net};
use macaddr::MacAddr6;

use crate::name::IfName;

/// A link that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: IfName,
    /// The number of the bridge that it is a port of.
    pub master: Option<u32>,
    /// Whether it is set up.
    pub up: bool,
    /// The text that whoever made it left on it.
    pub alias: Option<String>,
    /// Whether packets that come in by it are routed on.
    pub forwards: bool,
    /// What went through it.
    pub traffic: Traffic,
}

/// What went through a link, as its host counts: received is what came in by it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets that came in.
    pub received: u64,
    /// Bytes that came in.
    pub received_bytes: u64,
    /// Packets that went out.
    pub sent: u64,
    /// Bytes that went out.
    pub sent_bytes: u64,
    /// Packets that were lost, either way.
    pub dropped: u64,
}

/// The links of one cluster's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The bridge's name.
    pub bridge: IfName,
    /// Its MAC: the gateway's.
    pub mac: MacAddr6,
    /// Its address, and the subnet's length.
    pub address: Ipv4Net,
    /// Its IPv6 addresses, where it has some.
    pub six: Option<[Ipv6Net; 2]>,
    /// Its ports, those that are not there yet included.
    pub ports: Vec<Port>,
    /// The MTU of the bridge and its ports, where it is not Ethernet's.
    pub mtu: Option<u16>,
}

/// A machine's tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The tap's name.
    pub tap: IfName,
    /// The MAC of the machine behind it.
    pub mac: MacAddr6,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make the bridge.
    Bridge {
        /// Its name.
        name: IfName,
        /// Its MAC.
        mac: MacAddr6,
    },
    /// Keep the kernel from giving the link IPv6 addresses of its own, which it would ask the machines about.
    Silence(IfName),
    /// Give it this address.
    Address {
        /// The link.
        name: IfName,
        /// The address, and its subnet's length.
        address: Ipv4Net,
    },
    /// Give it this one as well, at once: nobody else can have it.
    Address6 {
        /// The link.
        name: IfName,
        /// The address, and its network's length.
        address: Ipv6Net,
    },
    /// Make it a port that learns nothing and is flooded with nothing.
    Join {
        /// The tap.
        name: IfName,
        /// The bridge.
        bridge: IfName,
    },
    /// Let frames of this length through.
    Mtu {
        /// The link.
        name: IfName,
        /// Bytes of a packet.
        mtu: u16,
    },
    /// Send frames for this MAC to the port.
    Direct {
        /// The tap.
        name: IfName,
        /// The machine's.
        mac: MacAddr6,
    },
    /// Set it up.
    Up(IfName),
}

/// What is to be done for `present` to become `wanted`; nothing where it is. Ports that are not there wait for their
/// machine, and links that nobody wants are left alone.
pub fn steps(wanted: &Wanted, present: &[Present]) -> Vec<Step> {
    let find = |name: &IfName| present.iter().find(|link| link.name == *name);
    let mtu = |name: &IfName| {
        wanted.mtu.map(|mtu| Step::Mtu {
            name: name.clone(),
            mtu,
        })
    };
    let mut steps = Vec::new();
    if let Some(loopback) = present.iter().find(|link| link.name.as_str() == "lo")
        && !loopback.up
    {
        steps.push(Step::Up(loopback.name.clone()));
    }
    let bridge = find(&wanted.bridge);
    if bridge.is_none() {
        steps.push(Step::Bridge {
            name: wanted.bridge.clone(),
            mac: wanted.mac,
        });
    }
    if !bridge.is_some_and(|bridge| bridge.up) {
        steps.extend(mtu(&wanted.bridge));
        steps.extend([
            Step::Silence(wanted.bridge.clone()),
            Step::Address {
                name: wanted.bridge.clone(),
                address: wanted.address,
            },
        ]);
        let six = wanted.six.iter().flatten().map(|address| Step::Address6 {
            name: wanted.bridge.clone(),
            address: *address,
        });
        steps.extend(six);
        steps.push(Step::Up(wanted.bridge.clone()));
    }
    for Port { tap, mac } in &wanted.ports {
        let Some(link) = find(tap) else { continue };
        // It is set up last, so one that is up has had all the rest.
        if link.up && link.master.is_some() && link.master == bridge.map(|bridge| bridge.index) {
            continue;
        }
        steps.extend(mtu(tap));
        steps.extend([
            Step::Silence(tap.clone()),
            Step::Join {
                name: tap.clone(),
                bridge: wanted.bridge.clone(),
            },
            Step::Direct {
                name: tap.clone(),
                mac: *mac,
            },
            Step::Up(tap.clone()),
        ]);
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            bridge: "cluster".parse().unwrap(),
            mac: MacAddr6::new(2, 0, 0, 0, 0, 1),
            address: "10.80.1.1/24".parse().unwrap(),
            mtu: None,
            six: None,
            ports: ["t-a", "t-b"]
                .into_iter()
                .zip(10..)
                .map(|(tap, last)| Port {
                    tap: tap.parse().unwrap(),
                    mac: MacAddr6::new(2, 0, 0, 0, 0, last),
                })
                .collect(),
        }
    }

    fn link(index: u32, name: &str, master: Option<u32>, up: bool) -> Present {
        Present {
            index,
            name: name.parse().unwrap(),
            master,
            up,
            alias: None,
            forwards: false,
            traffic: Traffic::default(),
        }
    }

    #[test]
    fn an_empty_namespace_gets_loopback_and_bridge() {
        let steps = steps(&wanted(), &[link(1, "lo", None, false)]);
        assert!(matches!(
            &steps[..],
            [
                Step::Up(lo),
                Step::Bridge { .. },
                Step::Silence(_),
                Step::Address { .. },
                Step::Up(bridge),
            ] if lo.as_str() == "lo" && bridge.as_str() == "cluster"
        ));
    }

    #[test]
    fn nothing_is_done_twice() {
        let present = [
            link(1, "lo", None, true),
            link(2, "cluster", None, true),
            link(3, "t-a", Some(2), true),
            link(4, "up0", None, false),
        ];
        assert_eq!(steps(&wanted(), &present), []);
    }

    #[test]
    fn a_tap_whose_maker_was_killed_half_way_is_joined() {
        for (master, up) in [
            (None, false),
            (None, true),
            (Some(2), false),
            (Some(9), true),
        ] {
            let present = [
                link(1, "lo", None, true),
                link(2, "cluster", None, true),
                link(3, "t-b", master, up),
            ];
            let steps = steps(&wanted(), &present);
            assert!(matches!(
                &steps[..],
                [Step::Silence(_), Step::Join { .. }, Step::Direct { mac, .. }, Step::Up(_)]
                    if mac.as_bytes()[5] == 11
            ));
        }
    }
}
