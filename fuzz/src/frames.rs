//! The parsers of frames and of what is in them, each alone.

use std::net::Ipv4Addr;

use kiln_netsetup::address::{Reservation, Subnet, gateway_mac};
use kiln_netsetup::dns::{self, Code, Outcome, Zone};
use kiln_netsetup::ether::{self, Arp, ETHERNET_HEADER, Ethernet, Ipv4, Path, Udp};
use kiln_netsetup::{dhcp, lease};
use macaddr::MacAddr6;

pub fn subnet() -> Subnet {
    Subnet::new("10.80.1.0/24".parse().unwrap()).unwrap()
}

pub fn machine(last: u8) -> Reservation {
    Reservation {
        name: format!("node-{last}"),
        mac: MacAddr6::new(0xb2, 0x6b, 0, 0, 0, last),
        ip: Ipv4Addr::new(10, 80, 1, last),
    }
}

pub fn gateway() -> MacAddr6 {
    gateway_mac("demo")
}

pub fn ether(bytes: &[u8]) {
    let Some(frame) = Ethernet::parse(bytes) else {
        return;
    };
    if let Some(arp) = Arp::parse(frame.payload) {
        let answer = arp.answer(gateway());
        let answer = Arp::parse(&answer[ETHERNET_HEADER..]).unwrap();
        assert_eq!(answer.sender_ip, arp.target_ip);
    }
    let Some(packet) = Ipv4::parse(frame.payload) else {
        return;
    };
    ether::ports(&packet);
    ether::checksum(packet.payload);
    let path = Path {
        source_mac: frame.source,
        source: packet.source,
        destination_mac: frame.destination,
        destination: packet.destination,
    };
    if let Some(udp) = Udp::parse(&packet) {
        let again = ether::udp_frame(path, udp.source, udp.destination, udp.payload).unwrap();
        let again = Ipv4::parse(&again[ETHERNET_HEADER..]).unwrap();
        assert_eq!(ether::checksum(again.header), 0);
        assert_eq!(Udp::parse(&again).unwrap().payload, udp.payload);
    }
    if let Some(frame) = ether::icmp_frame(path, packet.payload) {
        let again = Ipv4::parse(&frame[ETHERNET_HEADER..]).unwrap();
        assert_eq!(ether::checksum(again.payload), 0);
    }
}

/// A DHCP message whose fixed part is as it should be, but for what the input says, and whose options are the input's.
fn message(bytes: &[u8]) -> Vec<u8> {
    let Some((choice, rest)) = bytes.split_first() else {
        return Vec::new();
    };
    let mut message = vec![choice & 3, 1, 6, 0];
    let (fixed, options) = rest.split_at(rest.len().min(24));
    message.extend(fixed);
    message.resize(28, 0);
    message.extend(machine(10).mac.as_bytes());
    message.resize(236, 0);
    message.extend([99, 130, 83, 99]);
    message.extend(options);
    message
}

pub fn dhcp(bytes: &[u8]) {
    answer(bytes);
    answer(&message(bytes));
}

fn answer(bytes: &[u8]) {
    let server = dhcp::Server {
        subnet: subnet(),
        mac: gateway(),
        domain: "demo.internal".to_owned(),
        mtu: Some(1400),
    };
    let machine = machine(10);
    let Some(frame) = server.answer(bytes, |_| Some(&machine)) else {
        return;
    };
    // Whatever was asked, the answer names this machine's address or none, and goes to it or to all.
    let reply = Ethernet::parse(&frame).unwrap();
    assert_eq!(reply.source, gateway());
    assert!(reply.destination == machine.mac || reply.destination == MacAddr6::broadcast());
    let packet = Ipv4::parse(reply.payload).unwrap();
    let yours = ether::ip_at(Udp::parse(&packet).unwrap().payload, 16).unwrap();
    assert!(yours == machine.ip || yours.is_unspecified());
}

pub fn dns(bytes: &[u8]) {
    let machines: Vec<Reservation> = (10..13).map(machine).collect();
    let zone = Zone::new("demo.internal", subnet(), &machines);
    if let Outcome::Answer(answer) = zone.resolve(bytes) {
        assert!(answer.len() <= bytes.len() + 64, "an answer amplifies");
        assert_eq!(answer[..2], bytes[..2]);
        assert_eq!(zone.resolve(&answer), Outcome::Drop);
    }
    let failure = dns::failure(bytes, Code::ServFail);
    assert!(failure.len() <= bytes.len().max(12) + 16);
    let mut cut = bytes.to_vec();
    dns::truncate(&mut cut);
    assert!(cut.len() <= bytes.len());
    let (one, other) = bytes.split_at(bytes.len() / 2);
    dns::is_answer_to(one, other);
    assert!(!dns::is_answer_to(bytes, bytes) || bytes[2] & 0x80 != 0);
}

pub fn lease(bytes: &[u8]) {
    observe(bytes);
    let path = Path {
        source_mac: gateway(),
        source: subnet().gateway(),
        destination_mac: machine(10).mac,
        destination: machine(10).ip,
    };
    if let Some(frame) = ether::udp_frame(path, 67, 68, &message(bytes)) {
        observe(&frame);
    }
}

fn observe(bytes: &[u8]) {
    if let Some(event) = lease::observe(bytes) {
        assert!(!event.ip.is_unspecified() && !event.ip.is_broadcast());
        assert!(!event.ip.is_multicast() && !event.ip.is_link_local());
    }
}
