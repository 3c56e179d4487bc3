//! The packet rules for IPv6: what [`crate::switch`] lets a machine say, in the kernel's words. Pure.

use std::net::Ipv6Addr;

use crate::address::Reservation;
use crate::address6::link_local;
use crate::ether::UDP;
use crate::ether6::{
    ICMPV6, IPV6, NEIGHBOR_ADVERTISEMENT, NEIGHBOR_SOLICITATION, REDIRECT, ROUTER_ADVERTISEMENT,
    ROUTER_SOLICITATION,
};
use crate::nd::Router;
use crate::netlink::nft::{Chain, Expression, Header};
use crate::switch::six::{DHCP6_CLIENT, DHCP6_SERVER, PAYLOADS};

use super::{ethertype, port_is};

/// Goes on with packets from a machine's own address.
const OWN: &str = "own ipv6 address";
/// Goes on with those from a link-local one, or from none: neighbor discovery, and nothing else.
const LINK: &str = "neighbors";

/// Where the fields are, from the start of the packet. There is no extension header where they are looked at.
const NEXT: u32 = 6;
const SOURCE: u32 = 8;
const KIND: u32 = 40;
const TARGET: u32 = 48;

/// The rules of a machine's own chain, before all that end it.
pub(super) fn port(machine: &Reservation, router: Router) -> Vec<Vec<Expression>> {
    let own = router.subnet.machine(machine.mac);
    vec![
        // It tells of no address but those of its MAC: with another's it could have that one give it up (RFC 4862, 5.4.4).
        vec![
            ethertype(IPV6),
            icmp(),
            kind(NEIGHBOR_ADVERTISEMENT),
            not(TARGET, own),
            not(TARGET, link_local(machine.mac)),
            Expression::Drop,
        ],
        vec![
            ethertype(IPV6),
            is(SOURCE, own),
            Expression::GoTo(OWN.to_owned()),
        ],
        vec![ethertype(IPV6), is(SOURCE, router.own()), Expression::Drop],
        vec![
            ethertype(IPV6),
            Expression::Bits(Header::Network, SOURCE, vec![0xff, 0xc0], vec![0xfe, 0x80]),
            Expression::GoTo(LINK.to_owned()),
        ],
        vec![
            ethertype(IPV6),
            is(SOURCE, Ipv6Addr::UNSPECIFIED),
            Expression::GoTo(LINK.to_owned()),
        ],
    ]
}

/// The chains that all machines' chains go to.
pub(super) fn common() -> Vec<Chain> {
    let chain = |name: &str, rules| Chain {
        name: name.to_owned(),
        hook: None,
        rules,
    };
    let udp = || next(UDP);
    let mut own = vec![
        vec![udp(), port_is(0, DHCP6_SERVER), Expression::Drop],
        vec![udp(), port_is(2, DHCP6_CLIENT), Expression::Drop],
        vec![icmp(), kind(ROUTER_ADVERTISEMENT), Expression::Drop],
        vec![icmp(), kind(REDIRECT), Expression::Drop],
    ];
    own.extend(PAYLOADS.map(|payload| vec![next(payload), Expression::Accept]));
    own.push(vec![Expression::Drop]);
    let finds = [
        ROUTER_SOLICITATION,
        NEIGHBOR_SOLICITATION,
        NEIGHBOR_ADVERTISEMENT,
    ];
    let mut link: Vec<Vec<Expression>> = finds
        .map(|it| vec![icmp(), kind(it), Expression::Accept])
        .into();
    link.push(vec![Expression::Drop]);
    vec![chain(OWN, own), chain(LINK, link)]
}

/// Who asks for a router asks kiln, and that is no business of the other machines. Nor is what has no sender: kiln says
/// which addresses are taken, and a machine that seems to want another's would have that one give it up (RFC 4862, 5.4.3).
pub(super) fn passing() -> [Vec<Expression>; 2] {
    [
        vec![
            ethertype(IPV6),
            icmp(),
            kind(ROUTER_SOLICITATION),
            Expression::Drop,
        ],
        vec![
            ethertype(IPV6),
            is(SOURCE, Ipv6Addr::UNSPECIFIED),
            Expression::Drop,
        ],
    ]
}

fn next(payload: u8) -> Expression {
    Expression::Is(Header::Network, NEXT, vec![payload])
}

fn icmp() -> Expression {
    next(ICMPV6)
}

fn kind(kind: u8) -> Expression {
    Expression::Is(Header::Network, KIND, vec![kind])
}

fn is(offset: u32, ip: Ipv6Addr) -> Expression {
    Expression::Is(Header::Network, offset, ip.octets().to_vec())
}

fn not(offset: u32, ip: Ipv6Addr) -> Expression {
    Expression::IsNot(Header::Network, offset, ip.octets().to_vec())
}
