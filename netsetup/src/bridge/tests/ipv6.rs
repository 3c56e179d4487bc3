//! IPv6 in the bridge: each machine has its own address, and nobody but kiln is a router.

use std::net::Ipv6Addr;

use super::*;
use crate::address6::link_local;
use crate::ether6::{IPV6, Ipv6, Path6, icmp6_frame};

#[tokio::test]
async fn ipv6_is_each_machine_s_own_and_kiln_s_alone_to_route() {
    let (bridge, mut events) = start(namespace());
    let a = Guest::new(&bridge, machine("a", 10));
    let b = Guest::new(&bridge, machine("b", 11));
    let own = |guest: &Guest| six().machine(guest.machine.mac);
    let link: Ipv6Addr = "fe80::abcd".parse().unwrap();
    let router = link_local(bridge.config.gateway_mac);
    let all: Ipv6Addr = "ff02::1".parse().unwrap();
    let many = MacAddr6::new(0x33, 0x33, 0, 0, 0, 1);
    let says = |from: Ipv6Addr, mac: MacAddr6, to: Ipv6Addr, message: &[u8]| {
        let path = Path6 {
            source_mac: a.machine.mac,
            source: from,
            destination_mac: mac,
            destination: to,
        };
        a.send(&icmp6_frame(path, message).unwrap());
    };
    let nd = |kind: u8, target: Ipv6Addr| {
        let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        message.extend(target.octets());
        // Where the sender, or the target, is.
        message.extend([kind - 134, 1]);
        message.extend(a.machine.mac.as_bytes());
        message
    };
    let icmp = |frame: &[u8]| {
        let ethernet = Ethernet::parse(frame).filter(|it| it.kind == IPV6)?;
        let packet = Ipv6::parse(ethernet.payload).filter(|it| it.icmp().is_some())?;
        Some((ethernet.source, packet.source, packet.payload.to_vec()))
    };
    let a_hears =
        |kind: u8| a.until(move |frame| icmp(frame).filter(|(_, _, message)| message[0] == kind));
    // The bridge has multicast go to all, so it hears more than it is asked.
    let b_hears = |kind: u8, source: Ipv6Addr, target: Ipv6Addr| {
        b.until(move |frame| {
            let (_, from, message) = icmp(frame)?;
            let is_it = message[0] == kind && message.get(8..24) == Some(&target.octets());
            (is_it && from == source).then_some(())
        })
    };

    // The prefix by the router, where the router is by the kernel, and a neighbor by itself.
    says(
        link,
        many,
        "ff02::2".parse().unwrap(),
        &[133, 0, 0, 0, 0, 0, 0, 0],
    );
    let (mac, from, message) = a_hears(134).await.unwrap();
    assert_eq!((mac, from), (bridge.config.gateway_mac, router));
    assert_eq!(message[32..40], six().net().network().octets()[..8]);
    says(own(&a), many, all, &nd(135, six().gateway()));
    let (mac, from, _) = a_hears(136).await.unwrap();
    assert_eq!((mac, from), (bridge.config.gateway_mac, six().gateway()));
    assert!(matches!(
        event(&mut events).await,
        Some(FabricEvent::Seen { machine, ip }) if machine == "a" && ip == own(&a)
    ));
    says(
        own(&a),
        bridge.config.gateway_mac,
        six().gateway(),
        &[128, 0, 0, 0, 1, 2, 3, 4],
    );
    assert_eq!(a_hears(129).await.unwrap().2[4..], [1, 2, 3, 4]);
    for source in [own(&a), link] {
        says(source, many, all, &nd(135, own(&b)));
        assert!(b_hears(135, source, own(&b)).await.is_some());
    }
    says(own(&a), b.machine.mac, own(&b), &nd(136, own(&a)));
    assert!(b_hears(136, own(&a), own(&a)).await.is_some());
    // Another address than its own is taken, says kiln.
    let other: Ipv6Addr = "fd00:1:2::77".parse().unwrap();
    says(Ipv6Addr::UNSPECIFIED, many, all, &nd(135, other));
    assert_eq!(a_hears(136).await.unwrap().1, other);

    // As a router, as its neighbor, as kiln, and behind an extension header: the neighbor hears none of it.
    let marked = |mut message: Vec<u8>| {
        message.extend(b"posing");
        message
    };
    let other = link_local(b.machine.mac);
    let third = six().machine(machine("c", 12).mac);
    for (source, message) in [
        (own(&a), vec![134; 16]),
        (link, vec![134; 16]),
        (router, vec![134; 16]),
        (own(&a), vec![137; 40]),
        (router, nd(135, own(&b))),
        (third, nd(135, own(&b))),
        (third, vec![128, 0, 0, 0]),
        (own(&a), nd(136, third)),
        (own(&a), nd(136, six().gateway())),
        (link, nd(136, router)),
        (link, nd(136, third)),
        (link, vec![133, 0, 0, 0, 0, 0, 0, 0]),
        (other, nd(136, other)),
        (Ipv6Addr::UNSPECIFIED, nd(136, other)),
        (Ipv6Addr::UNSPECIFIED, nd(135, other)),
        (Ipv6Addr::UNSPECIFIED, nd(135, own(&b))),
        (link, vec![128, 0, 0, 0]),
        (Ipv6Addr::UNSPECIFIED, vec![128, 0, 0, 0]),
    ] {
        for (mac, to) in [(many, all), (b.machine.mac, own(&b))] {
            says(source, mac, to, &marked(message.clone()));
            assert!(!b.hears(b"posing").await, "{source} {mac} {message:?}");
        }
    }
    for (next, ports) in [
        (17, [2, 35, 2, 34]),
        (0, [58, 0, 0, 0]),
        (60, [58, 0, 0, 0]),
    ] {
        let path = Path6 {
            source_mac: a.machine.mac,
            source: own(&a),
            destination_mac: b.machine.mac,
            destination: own(&b),
        };
        let mut frame = icmp6_frame(path, &marked(ports.to_vec())).unwrap();
        frame[ETHERNET_HEADER + 6] = next;
        frame[ETHERNET_HEADER + 40..][..4].copy_from_slice(&ports);
        a.send(&frame);
        assert!(!b.hears(b"posing").await, "{next}");
    }
    says(own(&a), b.machine.mac, own(&b), &marked(vec![128, 0, 0, 0]));
    assert!(b.hears(b"posing").await);
}
