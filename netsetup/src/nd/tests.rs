use proptest::prelude::{any, prop, proptest};

use super::*;
use crate::ether::{Checksum, ETHERNET_HEADER, Ethernet};
use crate::ether6::{ICMPV6, IPV6};

const MACHINE: MacAddr6 = MacAddr6::new(0x52, 0x54, 0, 0x12, 0x34, 0x56);

fn router() -> Router {
    Router {
        subnet: Subnet6::new("fd00:1:2::/64".parse().unwrap()).unwrap(),
        mac: MacAddr6::new(0xb2, 0x6b, 0, 0, 0, 1),
        mtu: Some(9000),
    }
}

/// What the router answers a message; a whole frame was made of it, and is read again.
fn answered(from: &str, to: &str, message: &[u8]) -> Option<(MacAddr6, String, Vec<u8>)> {
    let path = Path6 {
        source_mac: MACHINE,
        source: from.parse().unwrap(),
        destination_mac: MacAddr6::broadcast(),
        destination: to.parse().unwrap(),
    };
    let frame = icmp6_frame(path, message).unwrap();
    let packet = Ipv6::parse(&frame[ETHERNET_HEADER..]).unwrap();
    let reply = router().answer_all(MACHINE, &packet)?;
    let ethernet = Ethernet::parse(&reply).unwrap();
    assert_eq!((ethernet.kind, ethernet.source), (IPV6, router().mac));
    let packet = Ipv6::parse(ethernet.payload).unwrap();
    assert_eq!((packet.next, packet.hops), (ICMPV6, 255));
    let mut sum = Checksum::default();
    sum.add(&packet.source.octets());
    sum.add(&packet.destination.octets());
    sum.add(&u32::try_from(packet.payload.len()).unwrap().to_be_bytes());
    sum.add(&[0, 0, 0, ICMPV6]);
    sum.add(packet.payload);
    assert_eq!(sum.finish(), 0);
    let way = format!("{} -> {}", packet.source, packet.destination);
    Some((ethernet.destination, way, packet.payload.to_vec()))
}

fn neighbor(kind: u8, target: &str) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.parse::<Ipv6Addr>().unwrap().octets());
    message
}

#[test]
fn who_asks_for_a_router_is_told_the_prefix_and_no_way_out() {
    let (mac, way, message) = answered("fe80::9", "ff02::2", &[133, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(
        (mac, way.as_str()),
        (MACHINE, "fe80::b06b:ff:fe00:1 -> fe80::9")
    );
    let hex: Vec<String> = message.iter().map(|byte| format!("{byte:02x}")).collect();
    expect_test::expect!["86 00 70 ae 40 00 00 00 00 00 00 00 00 00 00 00 03 04 40 c0 ff ff ff ff ff ff ff ff 00 00 00 00 fd 00 00 01 00 02 00 00 00 00 00 00 00 00 00 00 05 01 00 00 00 00 23 28 01 01 b2 6b 00 00 00 01"]
        .assert_eq(&hex.join(" "));
    let (_, way, _) = answered("::", "ff02::2", &[133, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(way, "fe80::b06b:ff:fe00:1 -> ff02::1");
}

#[test]
fn kiln_is_found_and_answers_pings() {
    let asked = neighbor(135, "fd00:1:2::1");
    let (_, way, message) = answered("fd00:1:2::9", "ff02::1:ff00:1", &asked).unwrap();
    assert_eq!(way, "fd00:1:2::1 -> fd00:1:2::9");
    assert_eq!((message[0], message[4]), (136, 0x60));
    assert_eq!(message[26..], router().mac.as_bytes()[..]);
    let (_, way, message) = answered("fd00:1:2::9", "fd00:1:2::1", &[128, 0, 0, 0, 7, 7]).unwrap();
    assert_eq!(way, "fd00:1:2::1 -> fd00:1:2::9");
    assert_eq!((message[0], &message[4..]), (129, &[7, 7][..]));
}

#[test]
fn a_machine_gets_no_address_but_its_own() {
    let tries = |target: &str| answered("::", "ff02::1:ff00:1", &neighbor(135, target));
    for other in ["fd00:1:2::77", "fd00:1:2::1", "fe80::b06b:ff:fe00:1"] {
        let (_, way, message) = tries(other).unwrap();
        assert_eq!(way, format!("{other} -> ff02::1"));
        assert_eq!((message[0], message[4]), (136, 0x20));
    }
    for own in ["fd00:1:2::5054:ff:fe12:3456", "fe80::9", "fd00:1:3::1"] {
        assert_eq!(tries(own), None, "{own}");
    }
}

proptest! {
    #[test]
    fn no_packet_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), kind in 128u8..140) {
        let mut packet = vec![0x60, 0, 0, 0, 0, 60, 58, 255];
        packet.resize(40, 0);
        packet.push(kind);
        packet.extend(bytes);
        let length = u8::try_from(packet.len() - 40).unwrap();
        packet[5] = length;
        if let Some(packet) = Ipv6::parse(&packet) {
            let _ = router().answer_all(MACHINE, &packet);
        }
    }
}
