use proptest::prelude::{any, prop, proptest};

use super::*;
use crate::address::{Reservation, Subnet};
use crate::dhcp::Server;
use crate::ether::{self, Path};
use crate::settings::Settings;

const MAC: MacAddr6 = MacAddr6::new(0xb2, 0x6b, 0, 0, 0, 10);
const OTHER: MacAddr6 = MacAddr6::new(0xb2, 0x6b, 0, 0, 0, 11);
const IP: Ipv4Addr = Ipv4Addr::new(10, 80, 1, 10);

/// The reply of kiln's own server to a message of this type, with the address wanted or in use.
fn reply(kind: u8, wanted: Ipv4Addr, client: Ipv4Addr) -> Vec<u8> {
    let server = Server {
        subnet: Subnet::new("10.80.1.0/24".parse().unwrap()).unwrap(),
        mac: OTHER,
        settings: Settings {
            mtu: None,
            ..Settings::new("demo.internal")
        },
    };
    let machine = Reservation {
        name: "a".to_owned(),
        mac: MAC,
        ip: IP,
    };
    let mut request = vec![1, 1, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    request.extend(client.octets());
    request.resize(28, 0);
    request.extend(MAC.as_bytes());
    request.resize(236, 0);
    request.extend([99, 130, 83, 99, 53, 1, kind, 50, 4]);
    request.extend(wanted.octets());
    request.push(255);
    server.answer(&request, |_| Some(&machine)).unwrap()
}

#[test]
fn an_ack_is_a_lease_and_nothing_else_of_a_server_is() {
    let lease = LeaseEvent {
        mac: MAC,
        ip: IP,
        source: Source::Lease,
    };
    assert_eq!(observe(&reply(3, IP, Ipv4Addr::UNSPECIFIED)), Some(lease));
    // An offer, a refusal, and the answer to one who has its address from elsewhere.
    assert_eq!(observe(&reply(1, IP, Ipv4Addr::UNSPECIFIED)), None);
    assert_eq!(
        observe(&reply(3, Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::UNSPECIFIED)),
        None
    );
    assert_eq!(observe(&reply(8, IP, IP)), None);
}

#[test]
fn own_packets_tell_the_address() {
    let path = Path {
        source_mac: MAC,
        source: IP,
        destination_mac: OTHER,
        destination: Ipv4Addr::new(10, 80, 1, 11),
    };
    let seen = LeaseEvent {
        mac: MAC,
        ip: IP,
        source: Source::Frames,
    };
    let frame = ether::udp_frame(path, 5000, 53, b"data").unwrap();
    assert_eq!(observe(&frame), Some(seen));
    let question = Arp {
        is_request: true,
        sender_mac: OTHER,
        sender_ip: path.destination,
        target_mac: MacAddr6::nil(),
        target_ip: IP,
    };
    assert_eq!(observe(&question.answer(MAC)), Some(seen));
    let none = Path {
        source: Ipv4Addr::new(169, 254, 7, 7),
        ..path
    };
    assert_eq!(observe(&ether::udp_frame(none, 1, 2, b"").unwrap()), None);
}

#[test]
fn a_probe_tells_nothing() {
    let probe = Arp {
        is_request: true,
        sender_mac: OTHER,
        sender_ip: IP,
        target_mac: MacAddr6::nil(),
        target_ip: Ipv4Addr::UNSPECIFIED,
    };
    assert_eq!(observe(&probe.answer(MAC)), None);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 14..400), arp in any::<bool>()) {
        bytes[12..14].copy_from_slice(&if arp { ARP } else { IPV4 }.to_be_bytes());
        let _ = observe(&bytes);
    }
}
