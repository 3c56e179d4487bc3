use proptest::prelude::{any, prop, prop_assert_eq, proptest};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpPacket, ArpRepr, EthernetFrame, Icmpv4Packet, Icmpv4Repr, Ipv4Packet, Ipv4Repr, UdpPacket,
    UdpRepr,
};

use super::*;

const PATH: Path = Path {
    source_mac: MacAddr6::new(0xb2, 0x6b, 1, 2, 3, 4),
    source: Ipv4Addr::new(10, 80, 1, 1),
    destination_mac: MacAddr6::new(0xb2, 0x6b, 5, 6, 7, 8),
    destination: Ipv4Addr::new(10, 80, 1, 10),
};

#[test]
fn an_arp_answer_reads_back() {
    let question = Arp {
        is_request: true,
        sender_mac: PATH.source_mac,
        sender_ip: PATH.source,
        target_mac: MacAddr6::nil(),
        target_ip: PATH.destination,
    };
    let frame = question.answer(PATH.destination_mac);
    let frame = EthernetFrame::new_checked(&frame[..]).unwrap();
    let arp = ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).unwrap()).unwrap();
    assert_eq!(
        format!("{arp}"),
        "ARP type=Ethernet+IPv4 src=b2-6b-05-06-07-08/10.80.1.10 \
         tgt=b2-6b-01-02-03-04/10.80.1.1 op=Reply"
    );
    let own = Arp::parse(frame.payload()).unwrap();
    assert!(!own.is_request);
    assert_eq!(
        (own.sender_mac, own.sender_ip),
        (PATH.destination_mac, PATH.destination)
    );
}

#[test]
fn an_echo_has_the_checksums_that_others_expect() {
    let frame = icmp_frame(PATH, &[0, 0, 9, 9, 0x12, 0x34, 0, 7, b'a', b'b', b'c']).unwrap();
    let frame = EthernetFrame::new_checked(&frame[..]).unwrap();
    let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
    Ipv4Repr::parse(&packet, &ChecksumCapabilities::default()).unwrap();
    let icmp = Icmpv4Packet::new_checked(packet.payload()).unwrap();
    assert_eq!(
        Icmpv4Repr::parse(&icmp, &ChecksumCapabilities::default()).unwrap(),
        Icmpv4Repr::EchoReply {
            ident: 0x1234,
            seq_no: 7,
            data: b"abc"
        }
    );
}

#[test]
fn what_does_not_fit_a_packet_is_not_written() {
    assert!(udp_frame(PATH, 1, 2, &vec![0; 65507]).is_some());
    assert!(udp_frame(PATH, 1, 2, &vec![0; 65508]).is_none());
    assert!(icmp_frame(PATH, &[0, 0]).is_none());
}

#[test]
fn a_packet_that_announces_more_than_it_has_is_none() {
    let frame = udp_frame(PATH, 1, 2, b"data").unwrap();
    let packet = &frame[ETHERNET_HEADER..];
    assert!(Ipv4::parse(packet).is_some());
    assert!(Ipv4::parse(&packet[..packet.len() - 1]).is_none());
    let mut short = packet.to_vec();
    short[0] = 0x44;
    assert!(Ipv4::parse(&short).is_none());
    let mut long = packet.to_vec();
    long[25] += 1;
    assert!(Udp::parse(&Ipv4::parse(&long).unwrap()).is_none());
}

proptest! {
    #[test]
    fn a_datagram_reads_back(data in prop::collection::vec(any::<u8>(), 0..2000), ports: (u16, u16)) {
        let bytes = udp_frame(PATH, ports.0, ports.1.max(1), &data).unwrap();
        let frame = EthernetFrame::new_checked(&bytes[..]).unwrap();
        let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
        let ip = Ipv4Repr::parse(&packet, &ChecksumCapabilities::default()).unwrap();
        let udp = UdpPacket::new_checked(packet.payload()).unwrap();
        let (source, destination) = (ip.src_addr.into(), ip.dst_addr.into());
        UdpRepr::parse(&udp, &source, &destination, &ChecksumCapabilities::default()).unwrap();
        prop_assert_eq!(udp.payload(), &data[..]);

        let own = Ipv4::parse(&bytes[ETHERNET_HEADER..]).unwrap();
        let own = Udp::parse(&own).unwrap();
        prop_assert_eq!((own.source, own.destination), (ports.0, ports.1.max(1)));
        prop_assert_eq!(own.payload, &data[..]);
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = Ethernet::parse(&bytes);
        let _ = Arp::parse(&bytes);
        if let Some(packet) = Ipv4::parse(&bytes) {
            let _ = (Udp::parse(&packet), ports(&packet));
        }
    }
}
