//! Taps on a bridge of the host's, held by the test in place of QEMUs: who has which address is known as soon as a frame
//! tells, whoever gives it, and what a machine must not send stays with it.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use kiln_netsetup::address::Reservation;
use kiln_netsetup::attach::{self, Attach, AttachConfig};
use kiln_netsetup::bridge::BridgeError;
use kiln_netsetup::ether::{self, Ethernet, Ipv4, Path, Udp};
use kiln_netsetup::fabric::FabricEvent;
use kiln_netsetup::lease::Source;
use kiln_netsetup::lease::book::{Change, Loss};
use kiln_netsetup::link::Step;
use kiln_netsetup::link::watch::How;
use kiln_netsetup::name::IfName;
use kiln_netsetup::netlink::route::Route;
use macaddr::MacAddr6;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc;

use crate::support::net_tools::Server;
use crate::support::world::World;

/// Of documentation (RFC 5737).
pub(super) const NETWORK: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 0);
/// The host's own address on the bridge.
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const PATIENCE: Duration = Duration::from_secs(20);
/// The promise: from a frame to what is known of it.
const SOON: Duration = Duration::from_secs(1);
/// virtio's header, before each frame.
const VNET: usize = 10;
const MTU: u32 = 4000;

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

/// A bridge as a host has it, with an address and one port, whose other end is given.
pub(super) fn bridge() -> IfName {
    let mut route = Route::here().unwrap();
    let (bridge, inner, outer) = (name("br0"), name("port"), name("peer"));
    let mac = MacAddr6::new(2, 0, 0, 0, 0, 1);
    let made = Step::Bridge {
        name: bridge.clone(),
        mac,
    };
    route.perform(&made).unwrap();
    route.pair(&inner, &outer, "a port of br0").unwrap();
    for (link, last) in [(&inner, 2), (&outer, 3)] {
        let mac = MacAddr6::new(2, 0, 0, 0, 0, last);
        route.fit(link, mac, MTU, "a port of br0").unwrap();
        route.perform(&Step::Silence(link.clone())).unwrap();
    }
    let joined = Step::Join {
        name: inner.clone(),
        bridge: bridge.clone(),
    };
    route.perform(&joined).unwrap();
    let address = Step::Address {
        name: bridge.clone(),
        address: ipnet::Ipv4Net::new_assert(GATEWAY, 24),
    };
    for step in [
        Step::Silence(bridge.clone()),
        address,
        Step::Up(bridge.clone()),
        Step::Up(inner),
        Step::Up(outer),
    ] {
        route.perform(&step).unwrap();
    }
    bridge
}

fn machine(name: &str, last: u8) -> Reservation {
    Reservation {
        name: name.to_owned(),
        mac: MacAddr6::new(0xb2, 0x6b, 0, 0, 0, last),
        ip: Ipv4Addr::new(198, 18, 0, last),
    }
}

fn start(bridge: &IfName) -> (Attach, mpsc::UnboundedReceiver<FabricEvent>) {
    let (events, outbox) = mpsc::unbounded_channel();
    let config = AttachConfig {
        bridge: bridge.clone(),
        cluster: "demo".to_owned(),
        mark: "kiln-test".to_owned(),
        asker: MacAddr6::new(0xb2, 0x6b, 0, 0, 0, 1),
        machines: vec![machine("a", 10), machine("b", 11)],
    };
    (Attach::start(config, events), outbox)
}

/// In a thread of its own network namespace, with a runtime that never leaves it.
fn within<T>(story: impl AsyncFnOnce() -> T) -> T {
    let _world = World::enter();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(story())
}

/// A machine, as far as its wire goes.
struct Guest {
    tap: OwnedFd,
    mac: MacAddr6,
    /// The one that it answers for.
    ip: Cell<Ipv4Addr>,
}

impl Guest {
    fn new(attach: &Attach, machine: &Reservation) -> Guest {
        Guest {
            tap: attach.tap(&machine.name).unwrap(),
            mac: machine.mac,
            ip: Cell::new(Ipv4Addr::UNSPECIFIED),
        }
    }

    fn send(&self, frame: &[u8]) {
        let bytes = [&[0; VNET][..], frame].concat();
        assert_eq!(nix::unistd::write(&self.tap, &bytes).unwrap(), bytes.len());
    }

    /// The first frame for which `want` has something to say.
    async fn until<T>(&self, want: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        self.within(PATIENCE, want).await
    }

    async fn within<T>(&self, within: Duration, want: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + within;
        let mut bytes = [0; 8192];
        while Instant::now() < deadline {
            match nix::unistd::read(&self.tap, &mut bytes) {
                Ok(length) => {
                    self.answer(&bytes[VNET..length]);
                    if let Some(found) = want(&bytes[VNET..length]) {
                        return Some(found);
                    }
                }
                Err(nix::errno::Errno::EAGAIN) => {
                    // The watchers are tasks of this very thread.
                    tokio::task::yield_now().await;
                    let mut fds = [PollFd::new(self.tap.as_fd(), PollFlags::POLLIN)];
                    poll(&mut fds, PollTimeout::from(10u8)).unwrap();
                }
                Err(errno) => panic!("{}", io::Error::from(errno)),
            }
        }
        None
    }

    /// A server finds out by ARP where to send its answer to one that has an address.
    fn answer(&self, frame: &[u8]) {
        let ethernet = Ethernet::parse(frame).filter(|it| it.kind == ether::ARP);
        let arp = ethernet.and_then(|ethernet| ether::Arp::parse(ethernet.payload));
        if let Some(arp) = arp
            && arp.is_request
            && arp.target_ip == self.ip.get()
        {
            self.send(&arp.answer(self.mac));
        }
    }

    /// One message of DHCP to a server, and the type, the address and the server of its answer.
    async fn dhcp(&self, kind: u8, current: Ipv4Addr, more: &[(u8, Ipv4Addr)]) -> Reply {
        let deadline = Instant::now() + PATIENCE;
        // An offer to a discovery, else yes or no.
        let fits = |reply: &Reply| (kind == 1) == (reply.kind == 2);
        // The server may not be there yet.
        while Instant::now() < deadline {
            self.dhcp_one_way(kind, current, more);
            let reply = |frame: &[u8]| Reply::of(frame, self.mac).filter(fits);
            if let Some(reply) = self.within(Duration::from_secs(1), reply).await {
                return reply;
            }
        }
        panic!("no answer to a message of type {kind}")
    }

    fn dhcp_one_way(&self, kind: u8, current: Ipv4Addr, more: &[(u8, Ipv4Addr)]) {
        let mut message = vec![1, 1, 6, 0, 7, 7, 7, 7, 0, 0, 0x80, 0];
        message.extend(current.octets());
        message.resize(28, 0);
        message.extend(self.mac.as_bytes());
        message.resize(236, 0);
        message.extend([99, 130, 83, 99, 53, 1, kind]);
        for (option, ip) in more {
            message.extend([*option, 4]);
            message.extend(ip.octets());
        }
        message.push(255);
        message.resize(300, 0);
        let path = Path {
            source_mac: self.mac,
            source: current,
            destination_mac: MacAddr6::broadcast(),
            destination: Ipv4Addr::BROADCAST,
        };
        self.send(&ether::udp_frame(path, 68, 67, &message).unwrap());
    }

    /// Gets a lease, of `wanted` if it may.
    async fn lease(&self, wanted: Option<Ipv4Addr>) -> Reply {
        let wish: Vec<(u8, Ipv4Addr)> = wanted.map(|ip| (50, ip)).into_iter().collect();
        let none = Ipv4Addr::UNSPECIFIED;
        let offer = self.dhcp(1, none, &wish).await;
        assert_eq!(offer.kind, 2);
        let ack = self
            .dhcp(3, none, &[(50, offer.ip), (54, offer.server)])
            .await;
        assert_eq!(ack.kind, 5);
        self.ip.set(ack.ip);
        ack
    }

    /// Says by ARP that it has `ip`.
    fn announces(&self, ip: Ipv4Addr) {
        self.send(&announcement(self.mac, self.mac, ip));
    }
}

fn announcement(from: MacAddr6, sender: MacAddr6, ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = ether::ethernet_header(MacAddr6::broadcast(), from, ether::ARP).to_vec();
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(sender.as_bytes());
    frame.extend(ip.octets());
    frame.extend([0; 6]);
    frame.extend(ip.octets());
    frame
}

struct Reply {
    at: Instant,
    kind: u8,
    ip: Ipv4Addr,
    server: Ipv4Addr,
}

impl Reply {
    fn of(frame: &[u8], mac: MacAddr6) -> Option<Reply> {
        let ethernet = Ethernet::parse(frame)?;
        let packet = Ipv4::parse(ethernet.payload).filter(|_| ethernet.kind == ether::IPV4)?;
        let message = Udp::parse(&packet).filter(|udp| udp.source == 67)?.payload;
        if message.first() != Some(&2) || message.get(28..34)? != mac.as_bytes() {
            return None;
        }
        let (mut kind, mut server) = (0, Ipv4Addr::UNSPECIFIED);
        let mut options = message.get(240..)?;
        while let [code, length, rest @ ..] = options
            && *code != 255
        {
            let (value, rest) = rest.split_at(usize::from(*length));
            match code {
                53 => kind = value[0],
                54 => server = Ipv4Addr::from(*value.first_chunk::<4>()?),
                _ => {}
            }
            options = rest;
        }
        let ip = Ipv4Addr::from(*message.get(16..)?.first_chunk::<4>()?);
        Some(Reply {
            at: Instant::now(),
            kind,
            ip,
            server,
        })
    }
}

/// The next change of the machine's addresses.
async fn change(events: &mut mpsc::UnboundedReceiver<FabricEvent>, of: &str) -> Change {
    let next = async {
        loop {
            if let Some(FabricEvent::Address { machine, change }) = events.recv().await {
                assert_eq!(machine, of);
                return change;
            }
        }
    };
    let next = tokio::time::timeout(PATIENCE, next).await;
    next.unwrap_or_else(|_| panic!("nothing changed for {of}"))
}

#[track_caller]
fn assert_gained(change: Change, ip: Ipv4Addr, how: Source, since: Instant) {
    let (took, wanted) = (since.elapsed(), IpAddr::V4(ip));
    assert!(
        matches!(change, Change::Gained { ip, source, .. } if ip == wanted && source == how),
        "{change:?} is not {ip} by {how:?}"
    );
    assert!(took < SOON, "{took:?}");
}

#[track_caller]
fn assert_lost(change: Change, ip: Ipv4Addr, how: Loss) {
    let ip = IpAddr::V4(ip);
    assert_eq!(change, Change::Lost { ip, why: how });
}

/// What any server's clients do: ask, renew, change, give back.
async fn a_lease_is_followed(guest: &Guest, events: &mut mpsc::UnboundedReceiver<FabricEvent>) {
    let first = guest.lease(None).await;
    assert_gained(change(events, "a").await, first.ip, Source::Lease, first.at);
    // More than a second later, or it would not be worth a word.
    tokio::time::sleep(SOON).await;
    let again = guest.dhcp(3, first.ip, &[]).await;
    assert_eq!((again.kind, again.ip), (5, first.ip));
    let renewed = change(events, "a").await;
    assert!(
        matches!(renewed, Change::Renewed { ip, .. } if ip == first.ip),
        "{renewed:?}"
    );

    let [a, b, c, last] = first.ip.octets();
    let other = Ipv4Addr::new(a, b, c, last / 10 * 10 + (last + 1) % 10);
    let second = guest.lease(Some(other)).await;
    // Not every server gives an address to one who has another.
    if second.ip != first.ip {
        assert_lost(change(events, "a").await, first.ip, Loss::Replaced);
        assert_gained(
            change(events, "a").await,
            second.ip,
            Source::Lease,
            second.at,
        );
    }
    guest.dhcp_one_way(7, second.ip, &[(54, second.server)]);
    assert_lost(change(events, "a").await, second.ip, Loss::Released);
}

#[test]
fn leases_of_dnsmasq_are_followed_on_the_wire() {
    within(async || {
        let bridge = bridge();
        let _server = Server::dnsmasq("br0", NETWORK, &[]);
        let (attach, mut events) = start(&bridge);
        let guest = Guest::new(&attach, &machine("a", 10));
        a_lease_is_followed(&guest, &mut events).await;
    });
}

#[test]
fn leases_of_dhcpd_are_followed_until_they_expire() {
    within(async || {
        let bridge = bridge();
        let _server = Server::dhcpd("br0", NETWORK, 4, &[]);
        let (attach, mut events) = start(&bridge);
        let guest = Guest::new(&attach, &machine("a", 10));
        a_lease_is_followed(&guest, &mut events).await;
        let lease = guest.lease(None).await;
        assert_gained(
            change(&mut events, "a").await,
            lease.ip,
            Source::Lease,
            lease.at,
        );
        assert_lost(change(&mut events, "a").await, lease.ip, Loss::Expired);
        // A later watcher goes on where this one stopped.
        assert!(lease.at.elapsed() >= Duration::from_secs(3));
    });
}

#[test]
fn static_addresses_are_found_and_those_that_are_left_are_missed() {
    within(async || {
        let (attach, mut events) = start(&bridge());
        let guest = Guest::new(&attach, &machine("a", 10));
        let [first, second] = [20, 21].map(|last| Ipv4Addr::new(203, 0, 113, last));
        let begun = Instant::now();
        guest.announces(first);
        assert_gained(change(&mut events, "a").await, first, Source::Frames, begun);
        let begun = Instant::now();
        guest.announces(second);
        assert_gained(
            change(&mut events, "a").await,
            second,
            Source::Frames,
            begun,
        );
        // It is asked for the first, and is silent; for the second nobody asks.
        let asked = guest.until(|frame| {
            let ethernet = Ethernet::parse(frame).filter(|it| it.kind == ether::ARP)?;
            let arp = ether::Arp::parse(ethernet.payload)?;
            arp.sender_ip.is_unspecified().then_some(arp.target_ip)
        });
        assert_eq!(asked.await, Some(first));
        assert_lost(change(&mut events, "a").await, first, Loss::Silent);

        // Its duplicate address detection is the first that is heard of an address of IPv6.
        let own = "2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap();
        let begun = Instant::now();
        guest.send(&solicitation(guest.mac, own));
        let change = change(&mut events, "a").await;
        assert!(
            matches!(change, Change::Gained { ip, .. } if ip == own),
            "{change:?}"
        );
        assert!(begun.elapsed() < SOON);
    });
}

/// How IPv6 asks whether anybody has `target`, in nobody's name (RFC 4862).
fn solicitation(mac: MacAddr6, target: std::net::Ipv6Addr) -> Vec<u8> {
    let group = MacAddr6::new(0x33, 0x33, 0xff, 0, 0, 7);
    let mut frame = ether::ethernet_header(group, mac, 0x86dd).to_vec();
    frame.extend([0x60, 0, 0, 0, 0, 24, 58, 255]);
    frame.extend([0; 16]);
    frame.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 7]);
    frame.extend([135, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend(target.octets());
    frame
}

#[test]
fn the_host_s_bridge_stays_as_it_was_and_what_a_machine_must_not_send_stays_with_it() {
    within(async || {
        let bridge = bridge();
        let before = attach::examine(&bridge).unwrap();
        assert_eq!(before.mtu, MTU);
        let links = || Route::here().unwrap().links().unwrap().len();
        let count = links();
        let (attach, mut events) = start(&bridge);
        let (a, b) = (machine("a", 10), machine("b", 11));
        let (one, other) = (Guest::new(&attach, &a), Guest::new(&attach, &b));
        assert_eq!(links(), count + 2);
        assert_eq!(attach::examine(&bridge).unwrap(), before);

        // What the neighbor hears, of all that is said; the last of it passes.
        let router = {
            let mut frame = solicitation(one.mac, std::net::Ipv6Addr::UNSPECIFIED);
            frame[14 + 40] = 134;
            frame
        };
        let path = Path {
            source_mac: one.mac,
            source: Ipv4Addr::new(203, 0, 113, 20),
            destination_mac: MacAddr6::broadcast(),
            destination: Ipv4Addr::BROADCAST,
        };
        let as_other = Path {
            source_mac: b.mac,
            ..path
        };
        let own = announcement(one.mac, one.mac, path.source);
        let mut tagged = own[..12].to_vec();
        tagged.extend([0x81, 0, 0, 5]);
        tagged.extend(&own[12..]);
        for forbidden in [
            ether::udp_frame(path, 67, 68, b"offer").unwrap(),
            ether::udp_frame(as_other, 4000, 4000, b"as another").unwrap(),
            announcement(one.mac, b.mac, path.source),
            router,
            tagged,
        ] {
            one.send(&forbidden);
        }
        one.send(&own);
        let first = other.until(|frame| {
            let is_ours = |mac| frame.get(6..12) == Some(MacAddr6::as_bytes(mac));
            (is_ours(&one.mac) || is_ours(&b.mac)).then(|| frame[..own.len()].to_vec())
        });
        assert_eq!(first.await.unwrap(), own);
        // The neighbor's MAC in its frames was not believed either.
        assert!(matches!(
            change(&mut events, "a").await,
            Change::Gained { ip, .. } if ip == path.source
        ));

        // A tap of the name of another's is left alone, and so are another cluster's marks.
        assert!(matches!(attach.tap("a"), Err(BridgeError::Foreign { .. })));
        attach::remove("kiln-tes").unwrap();
        assert_eq!(links(), count + 2);
        drop((one, other));
        wire(&mut events, "a", How::Gone).await;
        assert_eq!(links(), count);
        attach::remove("kiln-test").unwrap();
        attach::remove("kiln-test").unwrap();
        assert_eq!(attach::examine(&bridge).unwrap(), before);
    });
}

async fn wire(events: &mut mpsc::UnboundedReceiver<FabricEvent>, of: &str, how: How) {
    let next = async {
        loop {
            if let Some(FabricEvent::Link(news)) = events.recv().await
                && news.machine.as_deref() == Some(of)
                && news.how == how
            {
                return;
            }
        }
    };
    let next = tokio::time::timeout(PATIENCE, next).await;
    next.unwrap_or_else(|_| panic!("the wire of {of} did not become `{how}`"));
}

#[test]
fn what_is_no_bridge_is_refused_by_name() {
    within(async || {
        bridge();
        let examine = |link| attach::examine(&name(link)).unwrap_err().to_string();
        assert_eq!(examine("br1"), "there is no link `br1` on this host");
        assert_eq!(
            examine("peer"),
            "link `peer` of the host is no bridge (it is a `veth`)"
        );
        assert_eq!(examine("lo"), "link `lo` of the host is no bridge");
    });
}
