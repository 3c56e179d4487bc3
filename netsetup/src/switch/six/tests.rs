use macaddr::MacAddr6;
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

use super::*;
use crate::address::{Reservation, Subnet};
use crate::address6::{Subnet6, link_local};
use crate::ether6::{IPV6, Path6, icmp6_frame};
use crate::settings::Settings;
use crate::switch::SwitchConfig;

const GATEWAY: MacAddr6 = MacAddr6::new(0xb2, 0x6b, 0, 0, 0, 1);
const ALL: &str = "ff02::1";

fn machine(last: u8) -> Reservation {
    Reservation {
        name: format!("node-{last}"),
        mac: MacAddr6::new(0xb2, 0x6b, 0, 0, 0, last),
        ip: std::net::Ipv4Addr::new(10, 80, 1, last),
    }
}

fn six() -> Subnet6 {
    Subnet6::new("fd00:1:2::/64".parse().unwrap()).unwrap()
}

fn own(last: u8) -> Ipv6Addr {
    six().machine(machine(last).mac)
}

fn switch() -> Switch {
    let mut switch = Switch::new(SwitchConfig {
        subnet: Subnet::new("10.80.1.0/24".parse().unwrap()).unwrap(),
        gateway_mac: GATEWAY,
        settings: Settings {
            subnet6: Some(six()),
            ..Settings::new("demo.internal")
        },
    });
    switch.set_machines(Instant::now(), &[machine(10), machine(11), machine(12)]);
    switch
}

/// A packet of machine 10's.
fn frame(from: Ipv6Addr, mac: MacAddr6, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let path = Path6 {
        source_mac: machine(10).mac,
        source: from,
        destination_mac: mac,
        destination: to,
    };
    let mut frame = icmp6_frame(path, payload).unwrap();
    frame[20] = next;
    if next != ICMPV6 {
        // It has no checksum there.
        frame[54..].copy_from_slice(payload);
    }
    frame
}

fn send(frame: &[u8]) -> Verdict {
    switch().from_machine(Instant::now(), PortId(0), &mut frame.to_vec())
}

fn nd(kind: u8, target: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    message
}

fn ip(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn many() -> MacAddr6 {
    MacAddr6::new(0x33, 0x33, 0, 0, 0, 1)
}

#[test]
fn packets_go_to_their_machine_and_questions_to_whom_they_ask_for() {
    let udp = [0x9c, 0x40, 0, 80, 0, 8, 0, 0];
    let to = |last: u8| machine(last).mac;
    assert_eq!(
        send(&frame(own(10), to(11), own(11), UDP, &udp)),
        Verdict::To(PortId(1))
    );
    for from in [own(10), ip("fe80::abcd")] {
        let asked = frame(
            from,
            many(),
            ip("ff02::1:ff00:b"),
            ICMPV6,
            &nd(135, own(12)),
        );
        assert_eq!(send(&asked), Verdict::To(PortId(2)));
        let told = frame(from, to(11), own(11), ICMPV6, &nd(136, own(10)));
        assert_eq!(send(&told), Verdict::To(PortId(1)));
    }
    let hello = frame(own(10), many(), ip("ff02::fb"), UDP, &udp);
    assert_eq!(send(&hello), Verdict::Flood);
    for asked in [own(10), ip("fe80::77"), ip("2001:db8::1")] {
        let frame = frame(own(10), many(), ip(ALL), ICMPV6, &nd(135, asked));
        assert_eq!(send(&frame), Verdict::Drop(Refusal::Nobody), "{asked}");
    }
}

#[test]
fn kiln_answers_for_itself() {
    for message in [
        nd(135, six().gateway()),
        nd(135, link_local(GATEWAY)),
        vec![133, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let asked = frame(ip("fe80::abcd"), many(), ip(ALL), ICMPV6, &message);
        assert!(matches!(send(&asked), Verdict::Reply(_)), "{message:?}");
    }
    let ping = frame(
        own(10),
        GATEWAY,
        six().gateway(),
        ICMPV6,
        &[128, 0, 0, 0, 1, 2],
    );
    assert!(matches!(send(&ping), Verdict::Reply(_)));
}

#[test]
fn nobody_poses_as_a_router_or_as_another() {
    let to = machine(11).mac;
    let (mine, link, router) = (own(10), ip("fe80::abcd"), link_local(GATEWAY));
    let nothing = Ipv6Addr::UNSPECIFIED;
    let other = link_local(machine(11).mac);
    let udp = |from: u16, to: u16| {
        let mut bytes = from.to_be_bytes().to_vec();
        bytes.extend(to.to_be_bytes());
        bytes.extend([0, 8, 0, 0]);
        bytes
    };
    for (source, next, payload, want) in [
        (mine, ICMPV6, vec![134; 16], Refusal::Router),
        (link, ICMPV6, vec![134; 16], Refusal::Router),
        (mine, ICMPV6, vec![137; 40], Refusal::Router),
        (link, ICMPV6, vec![137; 40], Refusal::Forbidden),
        (router, ICMPV6, vec![134; 16], Refusal::ForeignAddress),
        (router, ICMPV6, nd(135, own(11)), Refusal::ForeignAddress),
        (own(11), ICMPV6, nd(135, own(12)), Refusal::ForeignAddress),
        (mine, ICMPV6, nd(136, own(12)), Refusal::ForeignAddress),
        (
            mine,
            ICMPV6,
            nd(136, six().gateway()),
            Refusal::ForeignAddress,
        ),
        (link, ICMPV6, nd(136, own(12)), Refusal::ForeignAddress),
        (link, ICMPV6, nd(136, router), Refusal::ForeignAddress),
        (other, ICMPV6, nd(136, other), Refusal::ForeignAddress),
        (nothing, ICMPV6, nd(136, other), Refusal::ForeignAddress),
        (nothing, ICMPV6, nd(135, other), Refusal::Nobody),
        (mine, UDP, udp(547, 546), Refusal::DhcpServer),
        (mine, UDP, udp(5000, 546), Refusal::DhcpServer),
        (link, UDP, udp(547, 546), Refusal::Forbidden),
        (link, TCP, vec![0; 20], Refusal::Forbidden),
        (nothing, UDP, udp(1, 2), Refusal::ForeignAddress),
        // Hop-by-hop options, routing, destination options.
        (
            mine,
            0,
            vec![58, 0, 0, 0, 0, 0, 0, 0, 134, 0],
            Refusal::Protocol,
        ),
        (
            mine,
            43,
            vec![58, 0, 0, 0, 0, 0, 0, 0, 134, 0],
            Refusal::Protocol,
        ),
        (
            mine,
            60,
            vec![58, 0, 0, 0, 0, 0, 0, 0, 134, 0],
            Refusal::Protocol,
        ),
    ] {
        for (mac, destination) in [(many(), ip(ALL)), (to, own(11))] {
            let sent = send(&frame(source, mac, destination, next, &payload));
            assert_eq!(sent, Verdict::Drop(want), "{source} {next} {payload:?}");
        }
    }
    // Neighbor discovery that has passed a router is none.
    let mut far = frame(mine, to, own(11), ICMPV6, &nd(136, mine));
    far[21] = 64;
    assert_eq!(send(&far), Verdict::Drop(Refusal::Malformed));
}

#[test]
fn without_a_network_of_it_nothing_passes() {
    let mut switch = switch();
    switch.set_settings(Settings::new("demo.internal"));
    let mut ping = frame(own(10), machine(11).mac, own(11), ICMPV6, &[128, 0, 0, 0]);
    let verdict = switch.from_machine(Instant::now(), PortId(0), &mut ping);
    assert_eq!(verdict, Verdict::Drop(Refusal::Protocol));
}

proptest! {
    #[test]
    fn what_passes_is_in_the_machine_s_own_name(
        bytes in prop::collection::vec(any::<u8>(), 0..120),
        next in 0u8..140,
        source in 0usize..5,
        to in 0usize..3,
    ) {
        let link = ip("fe80::abcd");
        let source = [own(10), own(11), link, link_local(GATEWAY), Ipv6Addr::UNSPECIFIED][source];
        let (mac, to) = [(GATEWAY, six().gateway()), (machine(11).mac, own(11)), (many(), ip(ALL))][to];
        let mut payload = bytes;
        payload.resize(payload.len().max(4), 0);
        let frame = frame(source, mac, to, next, &payload);
        match send(&frame) {
            Verdict::To(_) | Verdict::Flood => {
                let packet = Ipv6::parse(&frame[14..]).unwrap();
                let finds = matches!(packet.icmp(), Some(135 | 136));
                prop_assert!(source == own(10) || finds && [link, Ipv6Addr::UNSPECIFIED].contains(&source));
                prop_assert!(!matches!(packet.icmp(), Some(134 | 137)));
            }
            Verdict::Reply(reply) => {
                prop_assert_eq!(&reply[6..12], GATEWAY.as_bytes());
                prop_assert_eq!(crate::ether::u16_at(&reply, 12), Some(IPV6));
            }
            Verdict::Drop(_) => {}
            other @ (Verdict::Uplink | Verdict::Tcp | Verdict::Ask(_)) => {
                prop_assert!(false, "{other:?}");
            }
        }
    }
}
