//! The packet rules for machines on a bridge of the host's, said in [`crate::netlink::nft`]'s words. Pure.
//!
//! They see frames that come from kiln's own taps and no others. A machine sends from its own MAC alone, is no server of
//! DHCP and no router of IPv6 to others, floods nobody, speaks to no bridge as one, and reaches no other VLAN. Which
//! addresses it uses is free, since whoever owns the network gives them.

use macaddr::MacAddr6;

use crate::address::Reservation;
use crate::dhcp;
use crate::ether::{ARP, IPV4, UDP};
use crate::name::IfName;
use crate::nat::{BROADCASTS, BURST};
use crate::netlink::nft::{Chain, Expression, Family, Header, Hook, Table};

/// EtherTypes of VLAN tags (IEEE 802.1Q), and of IPv6.
const VLANS: [u16; 2] = [0x8100, 0x88a8];
const IPV6: u16 = 0x86dd;
/// ICMP for IPv6: a router's advertisement, and what it says to send packets elsewhere.
const ICMP6: u8 = 58;
const ROUTER: u8 = 134;
const REDIRECT: u8 = 137;
/// A server of DHCP for IPv6.
const SERVER6: u16 = 547;
/// What bridges say to each other, and never pass on (IEEE 802.1D): 01:80:c2:00:00:00 to 0f.
const BRIDGES: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0];
const BRIDGES_MASK: [u8; 6] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xf0];

/// Goes on with frames from a machine's own MAC.
const COMMON: &str = "own mac";

/// The rules for these machines, in a table called `mark`. Answers to `asker`, which hears them before the rules do, are
/// nobody else's.
pub(super) fn table(mark: &str, machines: &[Reservation], asker: MacAddr6) -> Table {
    let mut chains = vec![common(asker)];
    chains.extend(machines.iter().map(|machine| port(mark, machine)));
    chains.push(Chain {
        name: "arriving".to_owned(),
        hook: Some(Hook::Watching),
        rules: machines
            .iter()
            .map(|machine| {
                let tap = IfName::host_tap(mark, &machine.name);
                let chain = tap.to_string();
                vec![Expression::From(tap), Expression::GoTo(chain)]
            })
            .collect(),
    });
    Table {
        family: Family::Bridge,
        name: mark.to_owned(),
        chains,
    }
}

/// What only this machine may send.
fn port(mark: &str, machine: &Reservation) -> Chain {
    let mac = machine.mac.as_bytes().to_vec();
    Chain {
        name: IfName::host_tap(mark, &machine.name).to_string(),
        hook: None,
        rules: vec![
            vec![
                Expression::IsNot(Header::Link, 6, mac.clone()),
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
                ethertype(ARP),
                Expression::IsNot(Header::Network, 8, mac),
                Expression::Drop,
            ],
            vec![Expression::GoTo(COMMON.to_owned())],
        ],
    }
}

/// What no machine may send.
fn common(asker: MacAddr6) -> Chain {
    let from_port = |kind, port: u16| {
        vec![
            ethertype(kind),
            Expression::Protocol(UDP),
            Expression::Is(Header::Transport, 0, port.to_be_bytes().to_vec()),
            Expression::Drop,
        ]
    };
    let of_router = |message: u8| {
        vec![
            ethertype(IPV6),
            Expression::Protocol(ICMP6),
            Expression::Is(Header::Transport, 0, vec![message]),
            Expression::Drop,
        ]
    };
    let mut rules = vec![vec![
        Expression::Is(Header::Link, 0, asker.as_bytes().to_vec()),
        Expression::Drop,
    ]];
    rules.push(vec![
        Expression::Bits(Header::Link, 0, BRIDGES_MASK.to_vec(), BRIDGES.to_vec()),
        Expression::Drop,
    ]);
    rules.extend(VLANS.map(|kind| vec![ethertype(kind), Expression::Drop]));
    rules.push(from_port(IPV4, dhcp::SERVER_PORT));
    rules.push(from_port(IPV6, SERVER6));
    rules.extend([ROUTER, REDIRECT].map(of_router));
    Chain {
        name: COMMON.to_owned(),
        hook: None,
        rules,
    }
}

fn ethertype(kind: u16) -> Expression {
    Expression::Is(Header::Link, 12, kind.to_be_bytes().to_vec())
}
