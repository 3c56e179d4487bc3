//! The fabric over real socket pairs, with peers that speak the frame protocol as QEMU does.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;
use crate::address::gateway_mac;
use crate::ether::{self, ARP, Arp, ETHERNET_HEADER, Ethernet, Ipv4, Path, Udp};

mod guest;
mod names;
mod streams;

const PATIENCE: Duration = Duration::from_secs(10);

fn subnet() -> Subnet {
    Subnet::new("10.80.1.0/24".parse().unwrap()).unwrap()
}

fn machine(last: u8) -> Reservation {
    Reservation {
        name: format!("node-{last}"),
        mac: MacAddr6::new(0xb2, 0x6b, 0, 0, 0, last),
        ip: Ipv4Addr::new(10, 80, 1, last),
    }
}

fn start(resolvers: Vec<SocketAddr>) -> (Fabric, mpsc::UnboundedReceiver<FabricEvent>) {
    Fabric::start(FabricConfig {
        subnet: subnet(),
        gateway_mac: gateway_mac("demo"),
        settings: Settings {
            resolvers,
            ..Settings::new("demo.internal")
        },
        machines: (10..14).map(machine).collect(),
    })
}

/// A NIC whose frames the test writes and reads itself.
struct Nic {
    stream: UnixStream,
    machine: Reservation,
}

impl Nic {
    fn join(fabric: &Fabric, last: u8) -> Nic {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let machine = machine(last);
        fabric.attach(&machine.name, theirs);
        Nic {
            stream: ours,
            machine,
        }
    }

    fn uplink(fabric: &Fabric) -> Nic {
        let (ours, theirs) = UnixStream::pair().unwrap();
        fabric.attach_uplink(theirs);
        let machine = Reservation {
            mac: MacAddr6::new(0x52, 0x55, 10, 80, 1, 2),
            ..machine(2)
        };
        Nic {
            stream: ours,
            machine,
        }
    }

    async fn send(&mut self, frame: &[u8]) {
        let prefix = u32::try_from(frame.len()).unwrap().to_be_bytes();
        self.stream
            .write_all(&[&prefix, frame].concat())
            .await
            .unwrap();
    }

    async fn next(&mut self) -> Vec<u8> {
        let frame = async {
            let mut frame = vec![0; self.stream.read_u32().await.unwrap() as usize];
            self.stream.read_exact(&mut frame).await.unwrap();
            frame
        };
        timeout(PATIENCE, frame).await.expect("no frame came")
    }

    /// The data of the next frame, which has to be a UDP datagram.
    async fn next_data(&mut self) -> Vec<u8> {
        let frame = self.next().await;
        let packet = Ipv4::parse(&frame[ETHERNET_HEADER..]).unwrap();
        Udp::parse(&packet).unwrap().payload.to_vec()
    }

    fn datagram(&self, to: &Reservation, port: u16, data: &[u8]) -> Vec<u8> {
        let path = Path {
            source_mac: self.machine.mac,
            source: self.machine.ip,
            destination_mac: to.mac,
            destination: to.ip,
        };
        ether::udp_frame(path, 40000, port, data).unwrap()
    }
}

fn gateway() -> Reservation {
    Reservation {
        name: String::new(),
        mac: gateway_mac("demo"),
        ip: subnet().gateway(),
    }
}

/// The next one that is not of wires, which come and go in each test.
async fn event(events: &mut mpsc::UnboundedReceiver<FabricEvent>) -> String {
    loop {
        let event = timeout(PATIENCE, events.recv())
            .await
            .expect("no event came");
        if !matches!(event, Some(FabricEvent::Link(_))) {
            return format!("{:?}", event.unwrap());
        }
    }
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

#[tokio::test]
async fn frames_reach_their_machine_and_lies_do_not() {
    let (fabric, mut events) = start(Vec::new());
    let (mut a, mut b, mut c) = (
        Nic::join(&fabric, 10),
        Nic::join(&fabric, 11),
        Nic::join(&fabric, 12),
    );
    let mut lie = a.datagram(&b.machine, 9, b"lie");
    lie[11] = 12;
    a.send(&lie).await;
    a.send(&a.datagram(&b.machine, 9, b"truth")).await;
    assert_eq!(b.next_data().await, b"truth");
    // Nothing has come to the third: what it gets first is what is sent to it now.
    b.send(&b.datagram(&c.machine, 9, b"third")).await;
    assert_eq!(c.next_data().await, b"third");
    assert_eq!(
        event(&mut events).await,
        r#"Seen { machine: "node-10", ip: 10.80.1.10 }"#
    );
    assert_eq!(
        event(&mut events).await,
        r#"Seen { machine: "node-11", ip: 10.80.1.11 }"#
    );
    let counters = fabric.counters().await.unwrap().machines;
    let (name, first) = &counters[0];
    assert_eq!(
        (
            name.as_str(),
            first.frames_in,
            first.refused,
            first.frames_out
        ),
        ("node-10", 2, 1, 0)
    );
    fabric.stop().await;
}

#[tokio::test]
async fn a_stream_may_come_in_any_pieces() {
    let (fabric, _events) = start(Vec::new());
    let (mut a, mut b) = (Nic::join(&fabric, 10), Nic::join(&fabric, 11));
    let one = a.datagram(&b.machine, 9, b"one");
    let two = a.datagram(&b.machine, 9, &[2; 1400]);
    let mut bytes = Vec::new();
    for frame in [&one, &two, &one] {
        bytes.extend(u32::try_from(frame.len()).unwrap().to_be_bytes());
        bytes.extend(frame);
    }
    for piece in bytes.chunks(7) {
        a.stream.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(
        [b.next().await, b.next().await, b.next().await],
        [one.clone(), two, one]
    );
}

#[tokio::test]
async fn an_address_is_leased_and_reported_once() {
    let (fabric, mut events) = start(Vec::new());
    let mut a = Nic::join(&fabric, 10);
    let mut request = vec![1, 1, 6, 0, 1, 2, 3, 4];
    request.resize(28, 0);
    request.extend(a.machine.mac.as_bytes());
    request.resize(236, 0);
    request.extend([99, 130, 83, 99, 53, 1, 3, 50, 4, 10, 80, 1, 10, 255]);
    let path = Path {
        source_mac: a.machine.mac,
        source: Ipv4Addr::UNSPECIFIED,
        destination_mac: MacAddr6::broadcast(),
        destination: Ipv4Addr::BROADCAST,
    };
    let request = ether::udp_frame(path, 68, 67, &request).unwrap();
    for _ in 0..1000 {
        a.send(&request).await;
        assert_eq!(a.next_data().await[16..20], [10, 80, 1, 10]);
    }
    assert_eq!(
        event(&mut events).await,
        r#"Lease { machine: "node-10", ip: 10.80.1.10, mac: MacAddr6([178, 107, 0, 0, 0, 10]) }"#
    );
    // Far fewer than a thousand, however slow the test ran.
    assert!(events.len() < 60, "{} more events", events.len());
}

#[tokio::test]
async fn who_does_not_read_loses_frames_and_stalls_nobody() {
    let (fabric, _events) = start(Vec::new());
    let (mut a, b, mut c) = (
        Nic::join(&fabric, 10),
        Nic::join(&fabric, 11),
        Nic::join(&fabric, 12),
    );
    let frame = a.datagram(&b.machine, 9, &[0; 1400]);
    for _ in 0..5000 {
        a.send(&frame).await;
    }
    a.send(&a.datagram(&c.machine, 9, b"through")).await;
    assert_eq!(c.next_data().await, b"through");
    let counters = fabric.counters().await.unwrap().machines;
    assert!(counters[1].1.dropped > 3000, "{counters:?}");
    assert_eq!(counters[1].1.dropped + counters[1].1.frames_out, 5000);
}

#[tokio::test]
async fn ports_come_and_go() {
    let (fabric, mut events) = start(Vec::new());
    let (mut a, b) = (Nic::join(&fabric, 10), Nic::join(&fabric, 11));
    drop(b);
    let mut wires = Vec::new();
    while let Some(FabricEvent::Link(news)) = events.recv().await {
        wires.push(format!("{} {}", news.machine.unwrap(), news.how));
        if wires.len() == 3 {
            break;
        }
    }
    assert_eq!(wires, ["node-10 up", "node-11 up", "node-11 gone"]);
    assert_eq!(
        event(&mut events).await,
        r#"PortClosed { machine: "node-11", cause: None }"#
    );
    // A new socket for the same machine; the old one of the first is closed by a second attach.
    let mut b = Nic::join(&fabric, 11);
    let mut again = Nic::join(&fabric, 10);
    again.send(&again.datagram(&b.machine, 9, b"again")).await;
    assert_eq!(b.next_data().await, b"again");
    assert_eq!(a.stream.read(&mut [0; 1]).await.unwrap(), 0);
    assert!(event(&mut events).await.starts_with("Seen"));

    again.stream.write_all(&[0, 2, 0, 0]).await.unwrap();
    let said = event(&mut events).await;
    assert!(
        said.contains("a frame of 131072 bytes was announced"),
        "{said}"
    );
    let (_, theirs) = UnixStream::pair().unwrap();
    fabric.attach("nobody", theirs);
    assert!(event(&mut events).await.contains("nobody"));

    // Scaled away: closed without a word.
    fabric.set_machines(vec![machine(10)]);
    assert_eq!(b.stream.read(&mut [0; 1]).await.unwrap(), 0);
    assert!(events.is_empty());
}

#[tokio::test]
async fn the_uplink_sees_what_goes_out_and_nothing_else() {
    let (fabric, mut events) = start(Vec::new());
    let mut a = Nic::join(&fabric, 10);
    let mut uplink = Nic::uplink(&fabric);
    let outside = Reservation {
        ip: Ipv4Addr::new(93, 184, 216, 34),
        ..gateway()
    };
    let host = Reservation {
        ip: subnet().uplink_host(),
        ..gateway()
    };
    let loopback = Reservation {
        ip: Ipv4Addr::LOCALHOST,
        ..gateway()
    };
    for to in [&host, &loopback, &outside] {
        a.send(&a.datagram(to, 80, b"out")).await;
    }
    // The first two come back as "unreachable, prohibited".
    for _ in 0..2 {
        let told = a.next().await;
        assert_eq!(told[ETHERNET_HEADER + 20..][..2], [3, 13]);
    }
    let frame = uplink.next().await;
    let packet = Ipv4::parse(&frame[ETHERNET_HEADER..]).unwrap();
    assert_eq!(
        (packet.source, packet.destination),
        (a.machine.ip, outside.ip)
    );
    let ask = Arp {
        is_request: true,
        sender_mac: MacAddr6::nil(),
        sender_ip: a.machine.ip,
        target_mac: MacAddr6::nil(),
        target_ip: uplink.machine.ip,
    };
    let mut ask = ask.answer(uplink.machine.mac);
    ask[21] = 1;
    uplink.send(&ask).await;
    let reply = uplink.next().await;
    let ethernet = Ethernet::parse(&reply).unwrap();
    assert_eq!(ethernet.kind, ARP);
    assert_eq!(
        Arp::parse(ethernet.payload).unwrap().sender_mac,
        gateway().mac
    );
    let mut back = frame.clone();
    back[26..30].copy_from_slice(&outside.ip.octets());
    back[30..34].copy_from_slice(&a.machine.ip.octets());
    uplink.send(&back).await;
    assert_eq!(a.next_data().await, b"out");
    assert!(event(&mut events).await.starts_with("Seen"));
    drop(uplink);
    assert_eq!(event(&mut events).await, "UplinkClosed { cause: None }");
}
