//! A bridge in a real namespace that the test makes for itself, with taps that the test holds in place of QEMUs.
//!
//! Nothing of it is in the namespace of whoever runs the tests, and no right is needed that a user lacks but for
//! `/dev/net/tun`.

#![expect(unsafe_code, reason = "readiness of a raw descriptor")]

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::unistd::{Gid, Uid, read, write};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::*;
use crate::address::gateway_mac;
use crate::address6::Subnet6;
use crate::dhcp::{CLIENT_PORT, SERVER_PORT};
use crate::ether::{self, ARP, Arp, ETHERNET_HEADER, Ethernet, Ipv4, Path, Udp};
use crate::link::watch::How;
use crate::namespace::Maker;

mod ipv6;

const PATIENCE: Duration = Duration::from_secs(5);
/// For what must not come.
const SILENCE: Duration = Duration::from_millis(150);
/// virtio's header, before each frame.
const VNET: usize = 10;

fn machine(name: &str, last: u8) -> Reservation {
    Reservation {
        name: name.to_owned(),
        mac: MacAddr6::new(0xb2, 0x6b, 0, 0, 0, last),
        ip: Ipv4Addr::new(10, 80, 1, last),
    }
}

fn six() -> Subnet6 {
    Subnet6::new("fd00:1:2::/64".parse().unwrap()).unwrap()
}

fn config() -> BridgeConfig {
    BridgeConfig {
        subnet: Subnet::new("10.80.1.0/24".parse().unwrap()).unwrap(),
        gateway_mac: gateway_mac("demo"),
        settings: Settings {
            subnet6: Some(six()),
            ..Settings::new("demo.internal")
        },
        machines: vec![machine("a", 10), machine("b", 11), machine("c", 12)],
        masquerade: true,
    }
}

fn namespace() -> Namespace {
    Namespace::create(Maker::User {
        uid: Uid::effective().as_raw(),
        gid: Gid::effective().as_raw(),
    })
    .unwrap()
}

fn start(namespace: Namespace) -> (Bridge, mpsc::UnboundedReceiver<FabricEvent>) {
    let (events, outbox) = mpsc::unbounded_channel();
    (Bridge::start(config(), namespace, events).unwrap(), outbox)
}

/// The next event that is not of wires.
async fn event(events: &mut mpsc::UnboundedReceiver<FabricEvent>) -> Option<FabricEvent> {
    loop {
        match events.recv().await {
            Some(FabricEvent::Link(_)) => {}
            event => return event,
        }
    }
}

/// A machine, as far as its wire goes.
struct Guest {
    tap: AsyncFd<OwnedFd>,
    machine: Reservation,
}

impl Guest {
    fn new(bridge: &Bridge, machine: Reservation) -> Guest {
        let tap = bridge.tap(&machine.name).unwrap();
        // SAFETY: the descriptor is owned by what is made of it.
        let tap = unsafe { AsyncFd::register_with_interest(tap, Interest::READABLE) }.unwrap();
        Guest { tap, machine }
    }

    fn send(&self, frame: &[u8]) {
        let bytes = [&[0; VNET][..], frame].concat();
        assert_eq!(write(self.tap.get_ref(), &bytes).unwrap(), bytes.len());
    }

    /// The first frame for which `want` has something to say.
    async fn until<T>(&self, want: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        let mut bytes = [0; 2048];
        let wait = async {
            loop {
                let mut ready = self.tap.readable().await.unwrap();
                match ready.try_io(|tap| Ok(read(tap.get_ref(), &mut bytes)?)) {
                    Ok(length) => {
                        if let Some(found) = want(&bytes[VNET..length.unwrap()]) {
                            return found;
                        }
                    }
                    Err(_) => continue,
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.ok()
    }

    /// Whether a datagram with these bytes comes before long.
    async fn hears(&self, bytes: &[u8]) -> bool {
        let heard = self.until(|frame| frame.ends_with(bytes).then_some(()));
        tokio::time::timeout(SILENCE, heard)
            .await
            .is_ok_and(|heard| heard.is_some())
    }

    fn path(&self, mac: MacAddr6, ip: Ipv4Addr) -> Path {
        Path {
            source_mac: self.machine.mac,
            source: self.machine.ip,
            destination_mac: mac,
            destination: ip,
        }
    }

    fn says(&self, other: &Reservation, bytes: &[u8]) {
        let path = self.path(other.mac, other.ip);
        self.send(&ether::udp_frame(path, 4000, 4000, bytes).unwrap());
    }

    /// Asks who has `ip`, in this name.
    fn asks_for(&self, sender: &Reservation, ip: Ipv4Addr) {
        self.send(&question(sender, ip));
    }

    /// The MAC that answers for `ip`.
    async fn finds(&self, ip: Ipv4Addr) -> Option<MacAddr6> {
        self.asks_for(&self.machine, ip);
        self.until(|frame| {
            let ethernet = Ethernet::parse(frame)?;
            let arp = Arp::parse(ethernet.payload).filter(|_| ethernet.kind == ARP)?;
            (arp.sender_ip == ip && !arp.is_request).then_some(arp.sender_mac)
        })
        .await
    }
}

fn question(sender: &Reservation, ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = ether::ethernet_header(MacAddr6::broadcast(), sender.mac, ARP).to_vec();
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(sender.mac.as_bytes());
    frame.extend(sender.ip.octets());
    frame.extend([0; 6]);
    frame.extend(ip.octets());
    frame
}

fn dhcp_request(machine: &Reservation) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
    message.resize(28, 0);
    message.extend(machine.mac.as_bytes());
    message.resize(236, 0);
    message.extend([99, 130, 83, 99, 53, 1, 3, 50, 4]);
    message.extend(machine.ip.octets());
    message.push(255);
    message
}

fn payload(frame: &[u8]) -> Option<Vec<u8>> {
    let packet = Ipv4::parse(&frame[ETHERNET_HEADER..])?;
    Some(Udp::parse(&packet)?.payload.to_vec())
}

#[tokio::test]
async fn a_machine_gets_its_address_its_names_and_its_neighbors() {
    let (bridge, mut events) = start(namespace());
    let [a, b, c] = ["a", "b", "c"]
        .into_iter()
        .zip(10..)
        .map(|(name, last)| Guest::new(&bridge, machine(name, last)))
        .collect::<Vec<_>>()
        .try_into()
        .unwrap_or_else(|_| panic!("three machines"));

    // DHCP: by broadcast, from no address yet; the answer is for the one machine, and so is the question.
    let path = Path {
        source: Ipv4Addr::UNSPECIFIED,
        ..a.path(MacAddr6::broadcast(), Ipv4Addr::BROADCAST)
    };
    let request = dhcp_request(&a.machine);
    a.send(&ether::udp_frame(path, CLIENT_PORT, SERVER_PORT, &request).unwrap());
    let reply = a.until(|frame| payload(frame).filter(|bytes| bytes.first() == Some(&2)));
    assert_eq!(reply.await.unwrap()[16..20], a.machine.ip.octets());
    assert!(!b.hears(&request).await);
    assert!(matches!(
        event(&mut events).await,
        Some(FabricEvent::Lease { machine, ip, .. }) if machine == "a" && ip == IpAddr::V4(a.machine.ip)
    ));

    // ARP: the gateway's by the kernel, a neighbor's by itself.
    let gateway = bridge.config.subnet.gateway();
    assert_eq!(a.finds(gateway).await, Some(bridge.config.gateway_mac));
    assert!(matches!(
        event(&mut events).await,
        Some(FabricEvent::Seen { machine, ip }) if machine == "a" && ip == IpAddr::V4(a.machine.ip)
    ));

    // DNS.
    let mut query = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(b"\x01c\0\0\x01\0\x01");
    let path = a.path(bridge.config.gateway_mac, gateway);
    a.send(&ether::udp_frame(path, 5000, dns::PORT, &query).unwrap());
    let answer = a.until(|frame| payload(frame).filter(|bytes| bytes.starts_with(&[7, 7])));
    assert!(answer.await.unwrap().ends_with(&c.machine.ip.octets()));

    // A neighbor hears what is for it, and nobody else does.
    a.says(&b.machine, b"for b");
    assert!(b.hears(b"for b").await);
    assert!(!c.hears(b"for b").await);
}

#[tokio::test]
async fn a_bridge_that_was_set_down_and_up_is_served_again() {
    let (bridge, mut events) = start(namespace());
    let a = Guest::new(&bridge, machine("a", 10));
    let set_up = |on| {
        let mut state = bridge.lock();
        let link = name(BRIDGE).unwrap();
        match on {
            true => state.route.up(&link).unwrap(),
            false => state.route.down(&link).unwrap(),
        }
    };
    let mut told = async |how| {
        let news = async {
            loop {
                if let Some(FabricEvent::Link(news)) = events.recv().await
                    && news.machine.is_none()
                    && news.how == how
                {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, news).await.unwrap();
    };
    set_up(false);
    told(How::Down).await;
    set_up(true);
    told(How::Up).await;
    let path = Path {
        source: Ipv4Addr::UNSPECIFIED,
        ..a.path(MacAddr6::broadcast(), Ipv4Addr::BROADCAST)
    };
    let request = dhcp_request(&a.machine);
    let request = ether::udp_frame(path, CLIENT_PORT, SERVER_PORT, &request).unwrap();
    a.send(&request);
    let reply = a.until(|frame| payload(frame).filter(|bytes| bytes.first() == Some(&2)));
    assert_eq!(reply.await.unwrap()[16..20], a.machine.ip.octets());
}

#[tokio::test]
async fn a_machine_is_held_to_its_own_addresses() {
    let (bridge, _events) = start(namespace());
    let a = Guest::new(&bridge, machine("a", 10));
    let b = Guest::new(&bridge, machine("b", 11));
    a.says(&b.machine, b"it works");
    assert!(b.hears(b"it works").await);

    let gateway = bridge.config.subnet.gateway();
    let good = a.path(b.machine.mac, b.machine.ip);
    let all = Path {
        destination_mac: MacAddr6::broadcast(),
        destination: Ipv4Addr::BROADCAST,
        ..good
    };
    let as_neighbor = Reservation {
        mac: machine("c", 12).mac,
        ..a.machine.clone()
    };
    let as_gateway = Reservation {
        ip: gateway,
        ..a.machine.clone()
    };
    let lies = [
        // Another's MAC, another's address, the gateway's.
        ether::udp_frame(
            Path {
                source_mac: as_neighbor.mac,
                ..good
            },
            1,
            2,
            b"a lie",
        ),
        ether::udp_frame(
            Path {
                source: machine("c", 12).ip,
                ..good
            },
            1,
            2,
            b"a lie",
        ),
        ether::udp_frame(
            Path {
                source: gateway,
                ..good
            },
            1,
            2,
            b"a lie",
        ),
        ether::udp_frame(
            Path {
                source: Ipv4Addr::UNSPECIFIED,
                ..good
            },
            1,
            2,
            b"a lie",
        ),
        // A DHCP server, to one and to all.
        ether::udp_frame(good, SERVER_PORT, CLIENT_PORT, b"a lie"),
        ether::udp_frame(all, SERVER_PORT, CLIENT_PORT, b"a lie"),
        ether::udp_frame(all, 9, CLIENT_PORT, b"a lie"),
    ];
    for lie in lies {
        a.send(&lie.unwrap());
    }
    // IPv6, and a tag that would hide what is inside.
    for kind in [0x86dd_u16, 0x8100, 0x88cc] {
        let mut frame = ether::ethernet_header(b.machine.mac, a.machine.mac, kind).to_vec();
        frame.extend([0, 0, 8, 0].iter().chain(b"some bytes and a lie"));
        a.send(&frame);
    }
    assert!(!b.hears(b"a lie").await);
    for liar in [&as_neighbor, &as_gateway] {
        a.asks_for(liar, b.machine.ip);
        let mut stolen = question(liar, b.machine.ip);
        stolen[6..12].copy_from_slice(a.machine.mac.as_bytes());
        a.send(&stolen);
    }
    assert!(!b.hears(&b.machine.ip.octets()).await);

    // None of this has moved anything: the neighbor's frames still come to it.
    let c = Guest::new(&bridge, machine("c", 12));
    b.says(&c.machine, b"for c");
    assert!(c.hears(b"for c").await);
    assert!(!a.hears(b"for c").await);
    // A storm is let through in part.
    for _ in 0..2000 {
        a.asks_for(&a.machine, b.machine.ip);
    }
    b.says(&c.machine, b"after the storm");
    assert!(c.hears(b"after the storm").await);
}

/// The supervisor has one thread: a machine that asks without end leaves it time for all else.
#[tokio::test]
async fn a_machine_that_asks_without_end_is_not_all_that_is_heard() {
    const FLOOD: Duration = Duration::from_secs(10);
    let (bridge, mut events) = start(namespace());
    let a = Guest::new(&bridge, machine("a", 10));
    let path = a.path(bridge.config.gateway_mac, bridge.config.subnet.gateway());
    let request = dhcp_request(&a.machine);
    let frame = ether::udp_frame(path, CLIENT_PORT, SERVER_PORT, &request).unwrap();
    let bytes = [&[0; VNET][..], &frame].concat();
    let enough = Arc::new(AtomicBool::new(false));
    let begun = Instant::now();
    for _ in 0..2 {
        let (tap, bytes) = (a.tap.get_ref().try_clone().unwrap(), bytes.clone());
        let enough = Arc::clone(&enough);
        std::thread::spawn(move || {
            while !enough.load(Ordering::Relaxed) && begun.elapsed() < FLOOD {
                // One that finds no room is the machine's own loss.
                let _ = write(&tap, &bytes);
            }
        });
    }
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let took = begun.elapsed();
    enough.store(true, Ordering::Relaxed);
    assert!(took < FLOOD, "nothing else had its turn for {took:?}");
    let mut leases = 0;
    while let Ok(event) = events.try_recv() {
        leases += u64::from(matches!(event, FabricEvent::Lease { .. }));
    }
    assert!(
        (1..=took.as_secs() + 1).contains(&leases),
        "{leases} leases are told in {took:?}"
    );
}

#[tokio::test]
async fn whoever_comes_later_takes_it_up() {
    let first = namespace();
    let again = Namespace {
        net: first.net.try_clone().unwrap(),
        user: Some(first.user.as_ref().unwrap().try_clone().unwrap()),
    };
    let (bridge, events) = start(first);
    let a = Guest::new(&bridge, machine("a", 10));
    let b = Guest::new(&bridge, machine("b", 11));
    drop((bridge, events));
    // Nobody serves it, and the machines still talk.
    a.says(&b.machine, b"alone");
    assert!(b.hears(b"alone").await);

    let (bridge, mut events) = start(again);
    assert_eq!(bridge.links().unwrap().len(), 4);
    assert!(a.finds(bridge.config.subnet.gateway()).await.is_some());
    assert!(matches!(
        event(&mut events).await,
        Some(FabricEvent::Seen { .. })
    ));
    // A tap is there once, goes with its machine, and comes again.
    assert!(matches!(bridge.tap("a"), Err(BridgeError::Tap { .. })));
    drop(a);
    assert_eq!(bridge.links().unwrap().len(), 3);
    let a = Guest::new(&bridge, machine("a", 10));
    a.says(&b.machine, b"again");
    assert!(b.hears(b"again").await);

    // A machine that is not of the cluster any more is not heard any more.
    bridge.set_machines(vec![machine("b", 11)]).unwrap();
    a.says(&b.machine, b"gone");
    assert!(!b.hears(b"gone").await);
    assert!(matches!(bridge.tap("a"), Err(BridgeError::Unknown { .. })));
}

#[tokio::test]
async fn machines_that_were_refused_can_be_told_again() {
    let (bridge, _events) = start(namespace());
    let a = Guest::new(&bridge, machine("a", 10));
    let mut machines = config().machines;
    machines.push(machine("d", 13));
    // A socket that knows nothing of packet rules.
    let route = bridge.namespace.open_one(Inside::Route).unwrap();
    let wrong = Rules::new(route).unwrap();
    let right = std::mem::replace(&mut bridge.lock().rules, wrong);
    bridge.set_machines(machines.clone()).unwrap_err();
    assert!(matches!(bridge.tap("d"), Err(BridgeError::Unknown { .. })));

    bridge.lock().rules = right;
    bridge.set_machines(machines).unwrap();
    let d = Guest::new(&bridge, machine("d", 13));
    d.says(&a.machine, b"from d");
    assert!(a.hears(b"from d").await);
}

#[tokio::test]
async fn connections_begin_at_the_gateway() {
    let (bridge, _events) = start(namespace());
    let a = Guest::new(&bridge, machine("a", 10));
    let deadline = Instant::now() + Duration::from_millis(300);
    let connecting = bridge.connect(a.machine.ip, 80, deadline);
    let gateway = bridge.config.subnet.gateway();
    let asked = a.until(|frame| {
        let ethernet = Ethernet::parse(frame)?;
        let arp = Arp::parse(ethernet.payload).filter(|_| ethernet.kind == ARP)?;
        (arp.target_ip == a.machine.ip).then_some(arp.sender_ip)
    });
    let (connected, asked) = tokio::join!(connecting, asked);
    assert_eq!(asked, Some(gateway));
    assert_eq!(connected.unwrap_err().kind(), io::ErrorKind::TimedOut);
}

#[test]
fn what_a_process_inherited_can_be_had_from_it() {
    let made = namespace();
    let id = made.id().unwrap();
    let user = made.user.as_ref().unwrap().try_clone().unwrap();
    let mut holder = std::process::Command::new("cat")
        .stdin(std::process::Stdio::piped())
        .stdout(made.net.try_clone().unwrap())
        .stderr(user)
        .spawn()
        .unwrap();
    drop(made);
    let (uid, gid) = (Uid::effective().as_raw(), Gid::effective().as_raw());
    let had = |known, maker| Namespace::of_process(holder.id(), known, maker).unwrap();
    let found = had(id, Maker::User { uid, gid }).unwrap();
    assert!(found.user.is_some());
    found.open(&[Inside::Udp, Inside::Tun]).unwrap();
    // Root goes into nobody's user namespace, and nobody into another one than the cluster's.
    assert!(had(id, Maker::Root).unwrap().user.is_none());
    let other = namespace().id().unwrap();
    assert_ne!(other, id);
    assert!(had(other, Maker::User { uid, gid }).is_none());
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn nobody_is_led_into_their_own_namespace() {
    let own = Namespace {
        net: crate::namespace::here().unwrap(),
        user: None,
    };
    let known = own.id().unwrap();
    // One that is behind it in the table is the cluster's.
    let made = namespace();
    let mut holder = std::process::Command::new("cat")
        .stdin(std::process::Stdio::piped())
        .stdout(own.net)
        .stderr(made.net.try_clone().unwrap())
        .spawn()
        .unwrap();
    let had = |known| Namespace::of_process(holder.id(), known, Maker::Root).unwrap();
    assert!(had(known).is_none());
    let id = made.id().unwrap();
    assert_eq!(had(id).unwrap().id().unwrap(), id);
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[tokio::test]
async fn a_large_network_takes_little() {
    for count in [1, 10, 100] {
        let mut config = config();
        config.machines = (0..count)
            .map(|number| machine(&format!("m{number}"), 100 + number))
            .collect();
        let machines = config.machines.clone();
        let begun = Instant::now();
        let (events, _outbox) = mpsc::unbounded_channel();
        let bridge = Bridge::start(config, namespace(), events).unwrap();
        let taps: Vec<OwnedFd> = machines
            .iter()
            .map(|machine| bridge.tap(&machine.name).unwrap())
            .collect();
        println!("{count} ports: {:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(5));
        drop(taps);
    }
}

#[test]
fn trying_it_out_leaves_nothing() {
    let (uid, gid) = (Uid::effective().as_raw(), Gid::effective().as_raw());
    try_out(Maker::User { uid, gid }, &config()).unwrap();
}

#[test]
fn a_namespace_takes_milliseconds() {
    let begun = Instant::now();
    let rounds = 20;
    for _ in 0..rounds {
        namespace().open(&[Inside::Route]).unwrap();
    }
    let each = begun.elapsed() / rounds;
    println!("a namespace, and a socket in it: {each:?}");
    assert!(each < Duration::from_millis(250), "{each:?}");
}
