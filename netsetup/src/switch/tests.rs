use proptest::prelude::{
    Just, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};

use super::*;
use crate::ether::Path;

const GATEWAY: MacAddr6 = MacAddr6::new(0xb2, 0x6b, 0, 0, 0, 1);
const GATEWAY_IP: Ipv4Addr = Ipv4Addr::new(10, 80, 1, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);
const SLIRP: MacAddr6 = MacAddr6::new(0x52, 0x55, 10, 80, 1, 2);

fn machine(last: u8) -> Reservation {
    Reservation {
        name: format!("node-{last}"),
        mac: MacAddr6::new(0xb2, 0x6b, 0, 0, 0, last),
        ip: Ipv4Addr::new(10, 80, 1, last),
    }
}

fn switch() -> Switch {
    let mut switch = Switch::new(SwitchConfig {
        subnet: Subnet::new("10.80.1.0/24".parse().unwrap()).unwrap(),
        gateway_mac: GATEWAY,
        settings: Settings::new("demo.internal"),
    });
    switch.set_machines(Instant::now(), &[machine(10), machine(11), machine(12)]);
    switch
}

/// A datagram from machine 10 to a MAC and an address.
fn datagram(mac: MacAddr6, ip: Ipv4Addr, port: u16) -> Vec<u8> {
    let path = Path {
        source_mac: machine(10).mac,
        source: machine(10).ip,
        destination_mac: mac,
        destination: ip,
    };
    ether::udp_frame(path, 40000, port, b"hello").unwrap()
}

fn arp(is_request: bool, sender: &Reservation, target_ip: Ipv4Addr) -> Vec<u8> {
    let inverse = Arp {
        is_request: true,
        sender_mac: MacAddr6::nil(),
        sender_ip: target_ip,
        target_mac: MacAddr6::nil(),
        target_ip: sender.ip,
    };
    let mut frame = inverse.answer(sender.mac);
    frame[..6].copy_from_slice(MacAddr6::broadcast().as_bytes());
    frame[21] = if is_request { 1 } else { 2 };
    frame
}

/// What becomes of a frame that machine 10 sends.
fn send(frame: &[u8]) -> Verdict {
    let mut frame = frame.to_vec();
    switch().from_machine(Instant::now(), PortId(0), &mut frame)
}

fn dropped(refusal: Refusal) -> Verdict {
    Verdict::Drop(refusal)
}

#[test]
fn a_frame_for_a_machine_goes_to_its_port_alone_and_unchanged() {
    let frame = datagram(machine(11).mac, machine(11).ip, 9);
    let mut sent = frame.clone();
    let verdict = switch().from_machine(Instant::now(), PortId(0), &mut sent);
    assert_eq!((verdict, sent), (Verdict::To(PortId(1)), frame));
    assert_eq!(
        send(&datagram(machine(99).mac, machine(99).ip, 9)),
        dropped(Refusal::Nobody)
    );
}

#[test]
fn another_mac_or_address_is_refused_from_the_first_frame_on() {
    let good = datagram(machine(11).mac, machine(11).ip, 9);
    let mut mac = good.clone();
    mac[11] = 12;
    assert_eq!(send(&mac), dropped(Refusal::ForeignMac));
    let mut ip = good.clone();
    ip[29] = 12;
    assert_eq!(send(&ip), dropped(Refusal::ForeignAddress));
    let mut none = good;
    none[26..30].fill(0);
    assert_eq!(send(&none), dropped(Refusal::ForeignAddress));
    let thief = |mac, ip| Reservation {
        mac,
        ip,
        ..machine(10)
    };
    let (own, other) = (machine(10), machine(12));
    for is_request in [true, false] {
        let lie = arp(is_request, &thief(own.mac, other.ip), machine(11).ip);
        assert_eq!(send(&lie), dropped(Refusal::ForeignAddress));
        let mut lie = arp(is_request, &thief(other.mac, own.ip), machine(11).ip);
        lie[6..12].copy_from_slice(own.mac.as_bytes());
        assert_eq!(send(&lie), dropped(Refusal::ForeignMac));
        let lie = arp(is_request, &thief(own.mac, GATEWAY_IP), machine(11).ip);
        assert_eq!(send(&lie), dropped(Refusal::ForeignAddress));
    }
    let lie = arp(
        false,
        &thief(own.mac, Ipv4Addr::UNSPECIFIED),
        machine(11).ip,
    );
    assert_eq!(send(&lie), dropped(Refusal::ForeignAddress));
}

#[test]
fn arp_goes_to_whom_it_asks_for() {
    let own = machine(10);
    assert_eq!(
        send(&arp(true, &own, machine(12).ip)),
        Verdict::To(PortId(2))
    );
    assert_eq!(
        send(&arp(false, &own, machine(12).ip)),
        Verdict::To(PortId(2))
    );
    let probe = Reservation {
        ip: Ipv4Addr::UNSPECIFIED,
        ..own.clone()
    };
    assert_eq!(
        send(&arp(true, &probe, machine(12).ip)),
        Verdict::To(PortId(2))
    );
    // An announcement, an address that is nobody's, and slirp's own.
    for ip in [
        own.ip,
        machine(99).ip,
        machine(2).ip,
        machine(3).ip,
        OUTSIDE,
    ] {
        assert_eq!(send(&arp(true, &own, ip)), dropped(Refusal::Nobody));
    }
    let Verdict::Reply(reply) = send(&arp(true, &own, GATEWAY_IP)) else {
        panic!("the gateway does not answer");
    };
    let reply = Arp::parse(&reply[ETHERNET_HEADER..]).unwrap();
    assert_eq!((reply.sender_mac, reply.sender_ip), (GATEWAY, GATEWAY_IP));
    assert_eq!((reply.target_mac, reply.target_ip), (own.mac, own.ip));
}

#[test]
fn the_world_is_reached_through_slirp_and_the_host_is_not() {
    let mut frame = datagram(GATEWAY, OUTSIDE, 53);
    let verdict = switch().from_machine(Instant::now(), PortId(0), &mut frame);
    assert_eq!(verdict, Verdict::Uplink);
    let ethernet = Ethernet::parse(&frame).unwrap();
    assert_eq!((ethernet.destination, ethernet.source), (SLIRP, GATEWAY));

    for ip in [
        "10.80.1.2",
        "10.80.1.3",
        "10.80.1.0",
        "10.80.1.255",
        "10.80.1.77",
        "10.80.1.11",
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "0.1.2.3",
        "169.254.169.254",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
    ] {
        let ip: Ipv4Addr = ip.parse().unwrap();
        for mac in [GATEWAY, SLIRP] {
            let verdict = send(&datagram(mac, ip, 80));
            if matches!(verdict, Verdict::Drop(_)) {
                continue;
            }
            let Verdict::Reply(reply) = &verdict else {
                panic!("{ip} by {mac}: {verdict:?}");
            };
            let told = Ipv4::parse(&reply[ETHERNET_HEADER..]).unwrap();
            assert_eq!(
                (told.source, told.destination),
                (GATEWAY_IP, machine(10).ip)
            );
            // Unreachable, prohibited; then the head of the packet that it is about.
            assert_eq!(told.payload[..2], [3, 13]);
            assert_eq!(told.payload[24..28], ip.octets());
        }
    }
    let metadata = Ipv4Addr::new(169, 254, 169, 254);
    assert!(matches!(
        send(&datagram(GATEWAY, metadata, 80)),
        Verdict::Reply(_)
    ));
    assert_eq!(
        send(&datagram(GATEWAY, Ipv4Addr::BROADCAST, 80)),
        dropped(Refusal::Forbidden)
    );
    assert_eq!(
        send(&datagram(SLIRP, OUTSIDE, 80)),
        dropped(Refusal::Nobody)
    );
}

#[test]
fn nothing_leaves_a_network_without_a_way_out() {
    let mut switch = switch();
    switch.config.settings.isolated = true;
    let mut frame = datagram(GATEWAY, Ipv4Addr::new(192, 0, 2, 1), 80);
    let verdict = switch.from_machine(Instant::now(), PortId::new(0), &mut frame);
    let Verdict::Reply(reply) = verdict else {
        panic!("{verdict:?}")
    };
    let ethernet = Ethernet::parse(&reply).unwrap();
    let packet = Ipv4::parse(ethernet.payload).unwrap();
    assert_eq!(packet.payload[..2], [3, 13]);
}

#[test]
fn a_source_route_goes_nowhere() {
    let mut frame = datagram(GATEWAY, OUTSIDE, 53);
    // Loose source route by 127.0.0.1, in place of the first bytes of the datagram.
    frame[14] = 0x47;
    frame[34..42].copy_from_slice(&[131, 7, 4, 127, 0, 0, 1, 0]);
    assert_eq!(send(&frame), dropped(Refusal::Forbidden));
}

#[test]
fn a_machine_is_no_dhcp_server() {
    for (source, destination) in [(67, 68), (67, 9), (9, 68)] {
        let mut frame = datagram(MacAddr6::broadcast(), Ipv4Addr::BROADCAST, destination);
        frame[34..36].copy_from_slice(&u16::to_be_bytes(source));
        assert_eq!(send(&frame), dropped(Refusal::DhcpServer));
        let mut frame = datagram(machine(11).mac, machine(11).ip, destination);
        frame[34..36].copy_from_slice(&u16::to_be_bytes(source));
        assert_eq!(send(&frame), dropped(Refusal::DhcpServer));
        // In fragments too.
        frame[20] = 0x20;
        assert_eq!(send(&frame), dropped(Refusal::DhcpServer));
    }
}

#[test]
fn other_protocols_do_not_pass() {
    // IPv6, VLAN, double VLAN, LLDP, EAPOL, a length.
    for kind in [0x86ddu16, 0x8100, 0x88a8, 0x88cc, 0x888e, 46] {
        let mut frame = datagram(machine(11).mac, machine(11).ip, 9);
        frame[12..14].copy_from_slice(&kind.to_be_bytes());
        assert_eq!(send(&frame), dropped(Refusal::Protocol));
    }
}

#[test]
fn broadcasts_are_flooded_until_there_are_too_many() {
    let mut switch = switch();
    let now = Instant::now();
    let mut frame = datagram(MacAddr6::broadcast(), Ipv4Addr::BROADCAST, 9);
    let verdicts: Vec<Verdict> = (0..1000)
        .map(|_| switch.from_machine(now, PortId(0), &mut frame))
        .collect();
    assert_eq!(verdicts[0], Verdict::Flood);
    assert_eq!(verdicts[999], dropped(Refusal::Storm));
    // One machine's storm is not another's.
    let mut other = frame.clone();
    other[11] = 11;
    other[29] = 11;
    assert_eq!(
        switch.from_machine(now, PortId(1), &mut other),
        Verdict::Flood
    );
}

#[test]
fn kiln_answers_pings_and_names_and_takes_tcp() {
    let path = Path {
        source_mac: machine(10).mac,
        source: machine(10).ip,
        destination_mac: GATEWAY,
        destination: GATEWAY_IP,
    };
    let ping = ether::icmp_frame(path, &[8, 0, 0, 0, 1, 2, 3, 4, b'x']).unwrap();
    let Verdict::Reply(echo) = send(&ping) else {
        panic!("no echo");
    };
    let packet = Ipv4::parse(&echo[ETHERNET_HEADER..]).unwrap();
    assert_eq!(
        (packet.source, packet.destination),
        (GATEWAY_IP, machine(10).ip)
    );
    assert_eq!(packet.payload[4..], [1, 2, 3, 4, b'x']);
    assert_eq!(ether::checksum(packet.payload), 0);

    let query = |name: &[u8]| {
        let mut query = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        query.extend(name);
        query.extend([0, 0, 1, 0, 1]);
        query
    };
    let ours = ether::udp_frame(path, 5353, 53, &query(b"\x07node-11")).unwrap();
    let Verdict::Reply(answer) = send(&ours) else {
        panic!("no answer");
    };
    let packet = Ipv4::parse(&answer[ETHERNET_HEADER..]).unwrap();
    let udp = Udp::parse(&packet).unwrap();
    assert_eq!((udp.source, udp.destination), (53, 5353));
    assert!(udp.payload.ends_with(&[10, 80, 1, 11]));

    let foreign = query(b"\x07example");
    let Verdict::Ask(asked) = send(&ether::udp_frame(path, 5353, 53, &foreign).unwrap()) else {
        panic!("not forwarded");
    };
    assert_eq!((asked.port, &asked.message), (5353, &foreign));

    let mut tcp = ping;
    tcp[23] = ether::TCP;
    assert_eq!(send(&tcp), Verdict::Tcp);
}

#[test]
fn slirp_reaches_machines_and_only_with_outside_addresses() {
    let frame = |source: Ipv4Addr, destination: Ipv4Addr| {
        let path = Path {
            source_mac: SLIRP,
            source,
            destination_mac: GATEWAY,
            destination,
        };
        ether::udp_frame(path, 53, 40000, b"hello").unwrap()
    };
    let mut good = frame(OUTSIDE, machine(11).ip);
    assert_eq!(switch().from_uplink(&mut good), Verdict::To(PortId(1)));
    let ethernet = Ethernet::parse(&good).unwrap();
    assert_eq!(
        (ethernet.destination, ethernet.source),
        (machine(11).mac, GATEWAY)
    );

    for (source, destination, refusal) in [
        (OUTSIDE, machine(99).ip, Refusal::Nobody),
        (OUTSIDE, GATEWAY_IP, Refusal::Nobody),
        (OUTSIDE, Ipv4Addr::BROADCAST, Refusal::Nobody),
        (machine(12).ip, machine(11).ip, Refusal::ForeignAddress),
        (machine(2).ip, machine(11).ip, Refusal::ForeignAddress),
        (Ipv4Addr::LOCALHOST, machine(11).ip, Refusal::ForeignAddress),
    ] {
        let verdict = switch().from_uplink(&mut frame(source, destination));
        assert_eq!(verdict, dropped(refusal), "{source} to {destination}");
    }
    // "Port unreachable", in the name of slirp's host.
    let mut error = frame(machine(2).ip, machine(11).ip);
    error[23] = ether::ICMP;
    assert_eq!(switch().from_uplink(&mut error), Verdict::To(PortId(1)));
    // Who has machine 11? kiln has.
    let host = Reservation {
        mac: SLIRP,
        ip: machine(2).ip,
        ..machine(2)
    };
    let Verdict::Reply(reply) = switch().from_uplink(&mut arp(true, &host, machine(11).ip)) else {
        panic!("no answer");
    };
    let reply = Arp::parse(&reply[ETHERNET_HEADER..]).unwrap();
    assert_eq!(
        (reply.sender_mac, reply.sender_ip),
        (GATEWAY, machine(11).ip)
    );
    assert_eq!(
        switch().from_uplink(&mut arp(true, &host, machine(99).ip)),
        dropped(Refusal::Nobody)
    );
}

#[test]
fn scaling_keeps_the_ports_of_those_who_stay() {
    let mut switch = switch();
    let now = Instant::now();
    let gone = switch.set_machines(now, &[machine(13), machine(12), machine(10)]);
    assert_eq!(gone, [PortId(1)]);
    let ports = [10, 12, 13].map(|last| switch.port_of(machine(last).ip));
    assert_eq!(ports, [Some(PortId(0)), Some(PortId(2)), Some(PortId(1))]);
    assert_eq!(switch.port_of(machine(11).ip), None);
    assert_eq!(switch.port("node-13"), Some(PortId(1)));
    let mut frame = datagram(machine(11).mac, machine(11).ip, 9);
    assert_eq!(
        switch.from_machine(now, PortId(0), &mut frame),
        dropped(Refusal::Nobody)
    );
    let moved = Reservation {
        ip: machine(44).ip,
        ..machine(12)
    };
    assert_eq!(
        switch.set_machines(now, &[machine(10), machine(13), moved]),
        [PortId(2)]
    );
}

/// Frames that get past the first checks: plausible headers with arbitrary parts.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let last = || prop_oneof![0u8..4, 10u8..13, any::<u8>()];
    let mac = (any::<u8>(), last()).prop_map(|(pick, last)| match pick % 8 {
        0 => MacAddr6::broadcast(),
        1 => MacAddr6::new(1, 0, 0x5e, 0, 0, last),
        2 => SLIRP,
        _ => MacAddr6::new(0xb2, 0x6b, 0, 0, 0, last),
    });
    let ip = prop_oneof![
        last().prop_map(|last| Ipv4Addr::new(10, 80, 1, last)),
        Just(OUTSIDE),
        any::<[u8; 4]>().prop_map(Ipv4Addr::from),
    ];
    let port = || prop_oneof![Just(53u16), Just(67), Just(68), any::<u16>()];
    let data = prop::collection::vec(any::<u8>(), 0..64);
    let change = prop::option::of((any::<prop::sample::Index>(), any::<u8>()));
    (mac, ip, last(), (port(), port()), data, change, 0u8..3).prop_map(
        |(mac, ip, sender, ports, data, change, form)| {
            let path = Path {
                source_mac: machine(sender).mac,
                source: machine(sender).ip,
                destination_mac: mac,
                destination: ip,
            };
            let mut frame = match form {
                0 => ether::udp_frame(path, ports.0, ports.1, &data).unwrap(),
                1 => arp(data.len() % 2 == 0, &machine(sender), ip),
                _ => ether::icmp_frame(path, &[&[8, 0, 0, 0, 1, 2, 3, 4], &data[..]].concat())
                    .unwrap(),
            };
            if let Some((at, byte)) = change {
                let at = at.index(frame.len());
                frame[at] = byte;
            }
            frame
        },
    )
}

proptest! {
    #[test]
    fn nothing_comes_out_in_the_name_of_another(frame in frames()) {
        let mut out = frame.clone();
        let verdict = switch().from_machine(Instant::now(), PortId(0), &mut out);
        let own = machine(10);
        match verdict {
            Verdict::Drop(_) => return Ok(()),
            Verdict::To(port) => {
                prop_assert_eq!(&out, &frame);
                prop_assert!(port.index() < 3);
            }
            Verdict::Flood => prop_assert_eq!(&out, &frame),
            Verdict::Uplink => {
                let packet = Ipv4::parse(&out[ETHERNET_HEADER..]).unwrap();
                prop_assert!(!packet.destination.is_loopback());
                prop_assert!(packet.destination.octets()[..3] != [10, 80, 1]);
                prop_assert_eq!(&out[ETHERNET_HEADER..], &frame[ETHERNET_HEADER..]);
            }
            Verdict::Reply(reply) => {
                let ethernet = Ethernet::parse(&reply).unwrap();
                prop_assert_eq!(ethernet.source, GATEWAY);
                let to = ethernet.destination;
                prop_assert!(to == own.mac || to == MacAddr6::broadcast());
                match ethernet.kind {
                    ARP => prop_assert!(Arp::parse(ethernet.payload).is_some()),
                    _ => {
                        let packet = Ipv4::parse(ethernet.payload).unwrap();
                        prop_assert_eq!(ether::checksum(packet.header), 0);
                        prop_assert_eq!(packet.source, GATEWAY_IP);
                    }
                }
            }
            Verdict::Tcp | Verdict::Ask(_) => {}
        }
        let ethernet = Ethernet::parse(&frame).unwrap();
        prop_assert_eq!(ethernet.source, own.mac);
        if let Some(arp) = Arp::parse(ethernet.payload).filter(|_| ethernet.kind == ARP) {
            prop_assert_eq!(arp.sender_mac, own.mac);
            prop_assert!(arp.sender_ip == own.ip || arp.sender_ip.is_unspecified());
        } else {
            let packet = Ipv4::parse(ethernet.payload).unwrap();
            prop_assert!(packet.source == own.ip || packet.source.is_unspecified());
        }
    }

    #[test]
    fn no_bytes_make_it_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        arp in any::<bool>(),
        to_gateway in any::<bool>(),
    ) {
        if let Some(header) = bytes.first_chunk_mut::<ETHERNET_HEADER>() {
            let to = if to_gateway { GATEWAY } else { MacAddr6::broadcast() };
            *header = ether::ethernet_header(to, machine(10).mac, if arp { ARP } else { IPV4 });
        }
        let mut switch = switch();
        let _ = switch.from_machine(Instant::now(), PortId(0), &mut bytes.clone());
        let _ = switch.from_uplink(&mut bytes);
    }
}
