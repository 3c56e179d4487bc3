//! The switch: many frames through one, from its machines and from the uplink. No frame that comes out is in another's
//! name.

use std::time::{Duration, Instant};

use kiln_netsetup::address::Reservation;
use kiln_netsetup::ether::{ARP, Arp, ETHERNET_HEADER, Ethernet, IPV4, Ipv4};
use kiln_netsetup::switch::{PortId, Switch, SwitchConfig, Verdict};
use macaddr::MacAddr6;

use crate::frames::{gateway, machine, subnet};

fn fresh(now: Instant) -> (Switch, Vec<Reservation>) {
    let machines: Vec<Reservation> = (10..13).map(machine).collect();
    let mut switch = Switch::new(SwitchConfig {
        subnet: subnet(),
        gateway_mac: gateway(),
        domain: "demo.internal".to_owned(),
        mtu: None,
    });
    switch.set_machines(now, &machines);
    (switch, machines)
}

/// Cuts the input into frames, each behind a byte of its choice and one of its length in units of four.
pub fn pieces(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let [choice, length, rest @ ..] = bytes else {
            return None;
        };
        let (piece, rest) = rest.split_at(rest.len().min(usize::from(*length) * 4));
        bytes = rest;
        Some((*choice, piece))
    })
}

pub fn switch(bytes: &[u8]) {
    let start = Instant::now();
    let (mut switch, machines) = fresh(start);
    for (count, (choice, piece)) in (0..).zip(pieces(bytes)) {
        let now = start + Duration::from_micros(10) * count;
        let index = usize::from(choice % 3);
        let own = &machines[index];
        let port: PortId = switch.port(&own.name).unwrap();
        let mut frame = piece.to_vec();
        // Most of the input would end at the first look, were its addresses not often right.
        if choice & 4 != 0
            && let Some(header) = frame.first_chunk_mut::<ETHERNET_HEADER>()
        {
            header[6..12].copy_from_slice(own.mac.as_bytes());
            let kind = if choice & 8 != 0 { ARP } else { IPV4 };
            header[12..].copy_from_slice(&kind.to_be_bytes());
            if choice & 16 != 0 {
                header[..6].copy_from_slice(gateway().as_bytes());
            }
            let source = if kind == IPV4 { 26 } else { 28 };
            if choice & 32 != 0
                && let Some(field) = frame.get_mut(source..source + 4)
            {
                field.copy_from_slice(&own.ip.octets());
            }
        }
        let before = frame.clone();
        match switch.from_machine(now, port, &mut frame) {
            Verdict::Drop(_) => continue,
            Verdict::To(to) => {
                assert_eq!(frame, before);
                assert!(switch.machine(to).is_some() && to != port || before[..6] == before[6..12]);
            }
            Verdict::Flood => assert_eq!(frame, before),
            Verdict::Uplink => {
                let packet = Ipv4::parse(&frame[ETHERNET_HEADER..]).unwrap();
                assert_eq!(packet.source, own.ip);
                assert!(!packet.destination.is_loopback() && !packet.destination.is_unspecified());
                assert!(!subnet().contains(packet.destination));
            }
            Verdict::Reply(reply) => {
                let reply = Ethernet::parse(&reply).unwrap();
                assert_eq!(reply.source, gateway());
                assert!(reply.destination == own.mac || reply.destination == MacAddr6::broadcast());
            }
            Verdict::Ask(query) => {
                if let Some(reply) = switch.dns_reply(&query, &query.message) {
                    assert_eq!(reply[..6], *own.mac.as_bytes());
                }
            }
            Verdict::Tcp => {}
        }
        let frame = Ethernet::parse(&before).unwrap();
        assert_eq!(frame.source, own.mac);
        if frame.kind == ARP {
            let arp = Arp::parse(frame.payload).unwrap();
            assert_eq!(arp.sender_mac, own.mac);
            assert!(arp.sender_ip == own.ip || arp.sender_ip.is_unspecified());
        } else {
            let packet = Ipv4::parse(frame.payload).unwrap();
            assert!(packet.source == own.ip || packet.source.is_unspecified());
        }
    }
}

pub fn uplink(bytes: &[u8]) {
    let (switch, machines) = fresh(Instant::now());
    for (choice, piece) in pieces(bytes) {
        let mut frame = piece.to_vec();
        if choice & 1 != 0
            && let Some(header) = frame.first_chunk_mut::<ETHERNET_HEADER>()
        {
            let kind = if choice & 2 != 0 { ARP } else { IPV4 };
            header[12..].copy_from_slice(&kind.to_be_bytes());
        }
        match switch.from_uplink(&mut frame) {
            Verdict::Drop(_) => {}
            Verdict::To(port) => {
                let to = switch.machine(port).unwrap();
                let frame = Ethernet::parse(&frame).unwrap();
                assert_eq!((frame.source, frame.destination), (gateway(), to.mac));
                let packet = Ipv4::parse(frame.payload).unwrap();
                assert!(machines.iter().all(|machine| machine.ip != packet.source));
                assert_ne!(packet.source, subnet().gateway());
            }
            Verdict::Reply(reply) => assert!(Arp::parse(&reply[ETHERNET_HEADER..]).is_some()),
            other => panic!("{other:?} for a frame of the uplink"),
        }
    }
}
