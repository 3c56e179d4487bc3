use expect_test::{Expect, expect};
use proptest::prelude::{any, prop, proptest};
use smoltcp::wire::{DhcpPacket, DhcpRepr};

use super::*;
use crate::ether::{ETHERNET_HEADER, Ethernet, Ipv4, Udp};

const MAC: MacAddr6 = MacAddr6::new(0xb2, 0x6b, 0, 0, 0, 10);
const IP: Ipv4Addr = Ipv4Addr::new(10, 80, 1, 10);

fn server() -> Server {
    Server {
        subnet: Subnet::new("10.80.1.0/24".parse().unwrap()).unwrap(),
        mac: MacAddr6::new(0xb2, 0x6b, 0, 0, 0, 1),
        settings: Settings::new("demo.internal"),
    }
}

fn machine() -> Reservation {
    Reservation {
        name: "node-1".to_owned(),
        mac: MAC,
        ip: IP,
    }
}

/// A client's message: type, address in use, and further options.
fn message(kind: u8, client: Ipv4Addr, options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1, 1, 6, 0, 0xca, 0xfe, 0xba, 0xbe, 0, 0, 0x80, 0];
    bytes.extend(client.octets());
    bytes.resize(28, 0);
    bytes.extend(MAC.as_bytes());
    bytes.resize(FIXED - 4, 0);
    bytes.extend(COOKIE);
    bytes.extend([53, 1, kind]);
    bytes.extend(options);
    bytes.push(255);
    bytes
}

fn ask(server: &Server, request: &[u8]) -> Option<Vec<u8>> {
    let machine = machine();
    server.answer(request, |mac| (mac == MAC).then_some(&machine))
}

/// What a reply says, as another implementation reads it.
fn read(frame: &[u8]) -> String {
    let ethernet = Ethernet::parse(frame).unwrap();
    let packet = Ipv4::parse(ethernet.payload).unwrap();
    let udp = Udp::parse(&packet).unwrap();
    let dhcp = DhcpPacket::new_checked(udp.payload).unwrap();
    let repr = DhcpRepr::parse(&dhcp).unwrap();
    format!(
        "{} -> {}: {:?} xid={:x} yours={} server={:?} lease={:?} mask={:?} router={:?} dns={:?}",
        packet.source,
        packet.destination,
        repr.message_type,
        repr.transaction_id,
        repr.your_ip,
        repr.server_identifier,
        repr.lease_duration,
        repr.subnet_mask,
        repr.router,
        repr.dns_servers,
    )
}

#[track_caller]
fn check(request: &[u8], want: &Expect) {
    match ask(&server(), request) {
        Some(frame) => want.assert_eq(&read(&frame)),
        None => want.assert_eq("silence"),
    }
}

#[test]
fn discover_is_offered_the_reserved_address() {
    check(
        &message(1, Ipv4Addr::UNSPECIFIED, &[]),
        &expect![
            "10.80.1.1 -> 255.255.255.255: Offer xid=cafebabe yours=10.80.1.10 server=Some(10.80.1.1) lease=Some(2592000) mask=Some(255.255.255.0) router=Some(10.80.1.1) dns=Some([10.80.1.1])"
        ],
    );
}

#[test]
fn a_request_for_the_reserved_address_is_acknowledged() {
    check(
        &message(
            3,
            Ipv4Addr::UNSPECIFIED,
            &[54, 4, 10, 80, 1, 1, 50, 4, 10, 80, 1, 10],
        ),
        &expect![
            "10.80.1.1 -> 255.255.255.255: Ack xid=cafebabe yours=10.80.1.10 server=Some(10.80.1.1) lease=Some(2592000) mask=Some(255.255.255.0) router=Some(10.80.1.1) dns=Some([10.80.1.1])"
        ],
    );
}

#[test]
fn a_renewal_is_answered_to_its_address() {
    check(
        &message(3, IP, &[]),
        &expect![
            "10.80.1.1 -> 10.80.1.10: Ack xid=cafebabe yours=10.80.1.10 server=Some(10.80.1.1) lease=Some(2592000) mask=Some(255.255.255.0) router=Some(10.80.1.1) dns=Some([10.80.1.1])"
        ],
    );
}

#[test]
fn a_request_for_another_address_is_refused() {
    check(
        &message(3, Ipv4Addr::UNSPECIFIED, &[50, 4, 192, 168, 122, 7]),
        &expect![
            "10.80.1.1 -> 255.255.255.255: Nak xid=cafebabe yours=0.0.0.0 server=Some(10.80.1.1) lease=None mask=None router=None dns=None"
        ],
    );
}

#[test]
fn inform_gets_options_and_no_lease() {
    check(
        &message(8, IP, &[]),
        &expect![
            "10.80.1.1 -> 10.80.1.10: Ack xid=cafebabe yours=0.0.0.0 server=Some(10.80.1.1) lease=None mask=Some(255.255.255.0) router=Some(10.80.1.1) dns=Some([10.80.1.1])"
        ],
    );
}

#[test]
fn what_is_not_for_this_server_gets_silence() {
    let none = Ipv4Addr::UNSPECIFIED;
    // Another server's offer was taken; nothing is wanted; declined; released; types of servers; no such type.
    check(
        &message(3, none, &[54, 4, 10, 80, 1, 9]),
        &expect!["silence"],
    );
    check(&message(3, none, &[]), &expect!["silence"]);
    for kind in [0, 2, 4, 5, 6, 7, 9, 255] {
        check(&message(kind, none, &[]), &expect!["silence"]);
    }
    let mut relayed = message(1, none, &[]);
    relayed[24] = 10;
    check(&relayed, &expect!["silence"]);
    let mut reply = message(1, none, &[]);
    reply[0] = 2;
    check(&reply, &expect!["silence"]);
    let mut stranger = message(1, none, &[]);
    stranger[33] ^= 1;
    check(&stranger, &expect!["silence"]);
}

#[test]
fn a_client_id_changes_nothing() {
    let plain = ask(&server(), &message(1, Ipv4Addr::UNSPECIFIED, &[]));
    let with_id = message(1, Ipv4Addr::UNSPECIFIED, &[61, 5, 0xff, 1, 2, 3, 4]);
    assert_eq!(ask(&server(), &with_id), plain);
}

#[test]
fn an_offer_is_these_bytes() {
    let mut server = server();
    server.settings.mtu = Some(9000);
    let frame = ask(&server, &message(1, Ipv4Addr::UNSPECIFIED, &[])).unwrap();
    let options = &frame[ETHERNET_HEADER + 28 + FIXED..];
    let hex: Vec<String> = options.iter().map(|byte| format!("{byte:02x}")).collect();
    expect!["35 01 02 36 04 0a 50 01 01 33 04 00 27 8d 00 01 04 ff ff ff 00 1c 04 0a 50 01 ff 03 04 0a 50 01 01 06 04 0a 50 01 01 0c 06 6e 6f 64 65 2d 31 0f 0d 64 65 6d 6f 2e 69 6e 74 65 72 6e 61 6c 77 0f 04 64 65 6d 6f 08 69 6e 74 65 72 6e 61 6c 00 1a 02 23 28 ff"].assert_eq(&hex.join(" "));
}

#[test]
fn who_has_no_way_out_is_told_of_no_router() {
    let mut server = server();
    server.settings.isolated = true;
    let told = read(&ask(&server, &message(1, Ipv4Addr::UNSPECIFIED, &[])).unwrap());
    assert!(told.contains("router=None dns=Some"), "{told}");
}

#[test]
fn routes_are_told_with_the_default_one_among_them() {
    let mut server = server();
    server.settings.routes = [("10.1.0.0/16", 20), ("192.0.2.128/25", 21)]
        .map(|(to, via)| Route {
            to: to.parse().unwrap(),
            via: Ipv4Addr::new(10, 80, 1, via),
        })
        .into();
    let hex = |server: &Server| {
        let bytes = server.routes();
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        hex.join(" ")
    };
    let own = "10 0a 01 0a 50 01 14 19 c0 00 02 80 0a 50 01 15";
    assert_eq!(hex(&server), format!("{own} 00 0a 50 01 01"));
    server.settings.isolated = true;
    assert_eq!(hex(&server), own);
}

proptest! {
    #[test]
    fn any_options_get_a_reply_that_reads_or_silence(kind in 1u8..=8, options in prop::collection::vec(any::<u8>(), 0..60)) {
        if let Some(frame) = ask(&server(), &message(kind, Ipv4Addr::UNSPECIFIED, &options)) {
            read(&frame);
        }
    }

    #[test]
    fn any_bytes_get_silence_or_a_reply(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = ask(&server(), &bytes);
    }
}
