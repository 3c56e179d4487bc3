//! The packet rules of a cluster, said in [`crate::netlink::nft`]'s words. Pure.
//!
//! They hold the machines to what the fabric's [`Switch`](crate::switch::Switch) holds them to: each sends from its own
//! MAC and its own address alone, is no DHCP server, floods nobody, and reaches nothing that is not its business. What
//! no rule lets through is dropped, so a port is shut until its machine is known.

mod six;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::address::{Reservation, Subnet};
use crate::dhcp;
use crate::ether::{ARP, IPV4, UDP};
use crate::name::IfName;
use crate::nd::Router;
use crate::netlink::nft::{Chain, Expression, Family, Header, Hook, Table};

/// Broadcasts that a machine may send in a second, and at once after a silence; as in the fabric.
pub(crate) const BROADCASTS: u64 = 1000;
pub(crate) const BURST: u32 = 200;

/// Where nothing goes from a machine: link-local addresses (a cloud's metadata, and what the uplink calls itself), "this
/// network", and what is reserved. Loopback and multicast the kernel keeps in by itself.
const FORBIDDEN: [Ipv4Net; 3] = [
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// The rules inside the cluster's namespace.
///
/// `router` is that of IPv6, without which none passes. `uplink` is the link to the world, on which packets leave under its own address when `masquerade` is so.
pub fn inside(
    name: &str,
    subnet: Subnet,
    router: Option<Router>,
    machines: &[Reservation],
    bridge: &IfName,
    uplink: &IfName,
    masquerade: bool,
) -> Vec<Table> {
    let mut chains = common();
    chains.extend(router.iter().flat_map(|_| six::common()));
    chains.extend(machines.iter().map(|machine| port(machine, router)));
    chains.push(Chain {
        name: "arriving".to_owned(),
        hook: Some(Hook::Arriving),
        rules: machines
            .iter()
            .map(|machine| {
                let from = Expression::From(IfName::tap(&machine.name));
                vec![from, Expression::GoTo(chain_of(machine))]
            })
            .collect(),
    });
    // What is for a DHCP server is for kiln, and no business of the other machines.
    let mut passing = vec![vec![
        ethertype(IPV4),
        Expression::Protocol(UDP),
        port_is(2, dhcp::SERVER_PORT),
        Expression::Drop,
    ]];
    passing.extend(six::passing());
    chains.push(Chain {
        name: "passing".to_owned(),
        hook: Some(Hook::Passing),
        rules: passing,
    });
    let frames = Table {
        family: Family::Bridge,
        name: name.to_owned(),
        chains,
    };

    let passing = FORBIDDEN
        .into_iter()
        .map(|net| {
            vec![
                Expression::From(bridge.clone()),
                destination(net),
                Expression::Prohibit,
            ]
        })
        .collect();
    let mut chains = vec![Chain {
        name: "passing".to_owned(),
        hook: Some(Hook::Passing),
        rules: passing,
    }];
    if masquerade {
        chains.push(Chain {
            name: "leaving".to_owned(),
            hook: Some(Hook::Leaving),
            rules: vec![vec![
                Expression::To(uplink.clone()),
                source(subnet.net()),
                Expression::Masquerade,
            ]],
        });
    }
    let packets = Table {
        family: Family::Ip,
        name: name.to_owned(),
        chains,
    };
    vec![frames, packets]
}

/// How the names of the links begin that kiln has on a host.
pub const HOST_LINK: &str = "kiln";

/// The rules on the host itself, where root's uplink ends in `link`: what comes from the cluster leaves under the
/// host's own address, and does not get into another cluster; to it come answers and nothing else.
///
/// `forward` are the links that route for kiln's sake alone. The kernel asks only where a packet comes from, so what
/// comes in by them and is not for a cluster would be routed too: no connection gets through.
pub fn outside(name: &str, subnet: Subnet, link: &IfName, forward: &[IfName]) -> Table {
    let mut passing = vec![
        vec![
            Expression::From(link.clone()),
            Expression::ToAny(HOST_LINK),
            Expression::Prohibit,
        ],
        vec![
            Expression::To(link.clone()),
            Expression::Begins,
            Expression::Drop,
        ],
    ];
    passing.extend(forward.iter().map(|other| {
        vec![
            Expression::From(other.clone()),
            Expression::NotToAny(HOST_LINK),
            Expression::Begins,
            Expression::Drop,
        ]
    }));
    Table {
        family: Family::Ip,
        name: name.to_owned(),
        chains: vec![
            Chain {
                name: "passing".to_owned(),
                hook: Some(Hook::Passing),
                rules: passing,
            },
            Chain {
                name: "leaving".to_owned(),
                hook: Some(Hook::Leaving),
                rules: vec![vec![
                    source(subnet.net()),
                    Expression::NotTo(link.clone()),
                    Expression::Masquerade,
                ]],
            },
        ],
    }
}

/// What the machine may send: its own chain knows its addresses, the rest is common to all.
fn port(machine: &Reservation, router: Option<Router>) -> Chain {
    let mac = machine.mac.as_bytes();
    let own = machine.ip.octets();
    let none = Ipv4Addr::UNSPECIFIED.octets();
    let is = |header, offset, bytes: &[u8]| Expression::Is(header, offset, bytes.to_vec());
    let arp_from = |ip: [u8; 4]| is(Header::Network, 8, &[mac, &ip[..]].concat());
    let mut chain = Chain {
        name: chain_of(machine),
        hook: None,
        rules: vec![
            vec![
                Expression::IsNot(Header::Link, 6, mac.to_vec()),
                Expression::Drop,
            ],
            vec![
                Expression::Bits(Header::Link, 0, vec![1], vec![1]),
                Expression::Above {
                    rate: BROADCASTS,
                    burst: BURST,
                },
                Expression::Drop,
            ],
            vec![
                ethertype(IPV4),
                is(Header::Network, 12, &own),
                Expression::GoTo(OWN.to_owned()),
            ],
            vec![
                ethertype(ARP),
                arp_from(own),
                Expression::GoTo(TALK.to_owned()),
            ],
            vec![
                ethertype(ARP),
                arp_from(none),
                is(Header::Network, 6, &[0, 1]),
                Expression::GoTo(TALK.to_owned()),
            ],
        ],
    };
    let six = router.iter().flat_map(|router| six::port(machine, *router));
    chain.rules.extend(six);
    let rest = vec![Expression::GoTo(NEWCOMER.to_owned())];
    chain.rules.push(rest);
    chain
}

/// Goes on with packets from a machine's own address.
const OWN: &str = "own address";
/// Goes on with ARP in a machine's own name.
const TALK: &str = "arp";
/// Goes on with all else: what is not DHCP of one that has no address yet ends there.
const NEWCOMER: &str = "no address";

/// The chains that all machines' chains go to.
fn common() -> Vec<Chain> {
    let udp = || Expression::Protocol(UDP);
    let chain = |name: &str, rules| Chain {
        name: name.to_owned(),
        hook: None,
        rules,
    };
    vec![
        chain(
            OWN,
            vec![
                vec![udp(), port_is(0, dhcp::SERVER_PORT), Expression::Drop],
                vec![udp(), port_is(2, dhcp::CLIENT_PORT), Expression::Drop],
                vec![Expression::Accept],
            ],
        ),
        chain(
            TALK,
            // Between Ethernet and IPv4: the kinds of addresses, and their lengths.
            vec![
                vec![
                    Expression::Is(Header::Network, 0, vec![0, 1, 8, 0, 6, 4]),
                    Expression::Accept,
                ],
                vec![Expression::Drop],
            ],
        ),
        chain(
            NEWCOMER,
            vec![
                vec![
                    ethertype(IPV4),
                    Expression::Is(Header::Network, 12, vec![0; 4]),
                    udp(),
                    port_is(0, dhcp::CLIENT_PORT),
                    port_is(2, dhcp::SERVER_PORT),
                    Expression::Accept,
                ],
                vec![Expression::Drop],
            ],
        ),
    ]
}

/// Chains are named like taps, which are distinct.
fn chain_of(machine: &Reservation) -> String {
    IfName::tap(&machine.name).to_string()
}

fn ethertype(kind: u16) -> Expression {
    Expression::Is(Header::Link, 12, kind.to_be_bytes().to_vec())
}

/// A port of UDP's header: the sender's at 0, the receiver's at 2.
fn port_is(offset: u32, port: u16) -> Expression {
    Expression::Is(Header::Transport, offset, port.to_be_bytes().to_vec())
}

fn source(net: Ipv4Net) -> Expression {
    within(12, net)
}

fn destination(net: Ipv4Net) -> Expression {
    within(16, net)
}

fn within(offset: u32, net: Ipv4Net) -> Expression {
    Expression::Bits(
        Header::Network,
        offset,
        net.netmask().octets().to_vec(),
        net.network().octets().to_vec(),
    )
}
