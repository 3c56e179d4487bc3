//! A host of a test's own: a network namespace in which the test's thread and all that it starts live, and another one
//! behind a wire, which is the world outside. Nothing of it is in the namespaces of whoever runs the tests.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use ipnet::Ipv4Net;
use kiln_netsetup::link::Step;
use kiln_netsetup::name::IfName;
use kiln_netsetup::namespace;
use kiln_netsetup::netlink::nft::Rules;
use kiln_netsetup::netlink::route::{Route, Way};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::Uid;

/// The addresses on the wire; the networks are those of documentation (RFC 5737).
const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The same for another network of the host.
const BACK: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const YARD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// For what must not come through.
const PATIENCE: Duration = Duration::from_secs(2);
/// What the world outside answers any HTTP request with.
pub(crate) const GREETING: &str = "hello from the world outside";

/// The host, as long as the thread lives that made it.
#[derive(Debug)]
pub(crate) struct World {
    /// Where the greeting is to be had.
    pub(crate) outside: SocketAddr,
    /// The namespace outside.
    space: OwnedFd,
    /// Hears what comes to the host's other network.
    yard: UdpSocket,
}

/// What of a host's network could be left changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Traces {
    links: Vec<(String, bool)>,
    tables: Vec<String>,
    /// The addresses and routes of the kernel's own tables, and its settings, by file.
    kernel: BTreeMap<PathBuf, String>,
}

impl World {
    /// Moves this thread into a new one. As in a container, nobody has set the host to route packets.
    pub(crate) fn enter() -> World {
        assert!(
            Uid::effective().is_root(),
            "this test makes network namespaces as a host has them; run it as root"
        );
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .unwrap();
        open_tun();
        // Whoever is in the group of nobody may ping, as on most hosts.
        fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
        let mut route = Route::here().unwrap();
        up(&mut route, "lo");
        let (wire, far) = (name("wire"), name("far"));
        route.pair(&wire, &far, "the world outside").unwrap();
        let (space, outside) = world_outside();
        route.relocate(&far, space.as_fd()).unwrap();
        lay(&mut route, "wire", HOST);
        let out = Way {
            to: Ipv4Net::default(),
            gateway: Some(OUTSIDE),
            link: wire,
            source: HOST,
        };
        route.route(&out).unwrap();
        World {
            outside: outside(),
            space,
            yard: yard(&mut route),
        }
    }

    /// Whether the neighbor outside gets a connection when it routes by the host.
    pub(crate) fn neighbor_connects(&self, to: SocketAddr) -> bool {
        self.outside_by_host(to.ip(), move || {
            TcpStream::connect_timeout(&to, PATIENCE).is_ok()
        })
    }

    /// Whether a datagram of the neighbor's comes to another network of the host, when it routes by the host.
    pub(crate) fn neighbor_is_led_on(&self) -> bool {
        let to = self.yard.local_addr().unwrap();
        self.outside_by_host(to.ip(), move || {
            let socket = UdpSocket::bind((OUTSIDE, 0)).unwrap();
            socket.send_to(b"through the host", to).unwrap();
        });
        self.yard.recv(&mut [0; 64]).is_ok()
    }

    /// Has the host route what comes from outside, or not.
    pub(crate) fn lead_on(&self, on: bool) {
        Route::here().unwrap().forward(&name("wire"), on).unwrap();
    }

    fn outside_by_host<T: Send + 'static>(
        &self,
        to: IpAddr,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let space = self.space.try_clone().unwrap();
        let IpAddr::V4(to) = to else {
            panic!("{to} is not of this world")
        };
        let there = move || {
            setns(space, CloneFlags::CLONE_NEWNET).unwrap();
            let by_host = Way {
                to: to.into(),
                gateway: Some(HOST),
                link: name("far"),
                source: OUTSIDE,
            };
            Route::here().unwrap().route(&by_host).unwrap();
            act()
        };
        thread::spawn(there).join().unwrap()
    }

    /// Links, and whether they route packets on; packet rules, addresses, routes, settings.
    pub(crate) fn traces(&self) -> Traces {
        let links = Route::here().unwrap().links().unwrap().into_iter();
        let mut links: Vec<_> = links
            .map(|link| (link.name.to_string(), link.forwards))
            .collect();
        links.sort();
        Traces {
            links,
            tables: Rules::here().unwrap().tables().unwrap(),
            kernel: kernel(),
        }
    }
}

/// What the kernel tells of this thread's namespace in files: IPv4's addresses and routes, and all settings that are no
/// counts of what is open just now.
fn kernel() -> BTreeMap<PathBuf, String> {
    let tables = ["fib_trie", "route"].map(|file| Path::new("/proc/thread-self/net").join(file));
    let mut files = tables.to_vec();
    let mut folders = ["ipv4", "ipv6", "bridge", "netfilter"]
        .map(|folder| Path::new("/proc/sys/net").join(folder))
        .to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => files.push(entry.path()),
            }
        }
    }
    files.retain(|file| !file.ends_with("nf_conntrack_count"));
    let read = |file: PathBuf| {
        // Some can only be written to.
        let text = fs::read_to_string(&file).ok()?;
        Some((file, text))
    };
    files.into_iter().filter_map(read).collect()
}

/// Puts a `/dev/net/tun` in place that everybody may open, as hosts have it and containers often do not. Only this
/// thread and its children see it.
fn open_tun() {
    const TUN: &str = "/dev/net/tun";
    assert!(Path::new(TUN).exists(), "these tests need {TUN}");
    let folder = tempfile::tempdir().unwrap();
    // A file system of its own, since that of temporary files may be one without devices.
    mount(
        Some("tun"),
        folder.path(),
        Some("tmpfs"),
        MsFlags::MS_NOSUID,
        None::<&str>,
    )
    .unwrap();
    let own = folder.path().join("tun");
    mknod(&own, SFlag::S_IFCHR, Mode::all(), makedev(10, 200)).unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o666)).unwrap();
    mount(
        Some(&own),
        TUN,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .unwrap();
    umount2(folder.path(), MntFlags::MNT_DETACH).unwrap();
}

/// A namespace with a web server, and what waits for that once the wire is there.
fn world_outside() -> (OwnedFd, impl FnOnce() -> SocketAddr) {
    let (tell_space, space) = channel();
    let (tell_ready, ready) = channel();
    let (tell_laid, laid) = channel();
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        tell_space.send(namespace::here().unwrap()).unwrap();
        laid.recv().unwrap();
        let mut route = Route::here().unwrap();
        up(&mut route, "lo");
        lay(&mut route, "far", OUTSIDE);
        let listener = TcpListener::bind((OUTSIDE, 0)).unwrap();
        tell_ready.send(listener.local_addr().unwrap()).unwrap();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // One that says nothing, or does not listen, is its own loss.
            let _ = stream.read(&mut [0; 1024]);
            let _ = write!(
                stream,
                "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{GREETING}",
                GREETING.len()
            );
        }
    });
    let wait = move || {
        tell_laid.send(()).unwrap();
        ready.recv().unwrap()
    };
    (space.recv().unwrap(), wait)
}

/// Another network of the host, and a socket of somebody's in it.
fn yard(route: &mut Route) -> UdpSocket {
    let (back, yard) = (name("back"), name("yard"));
    route.pair(&back, &yard, "another network").unwrap();
    let (tell_space, space) = channel::<OwnedFd>();
    let (tell_laid, laid) = channel::<()>();
    let there = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        tell_space.send(namespace::here().unwrap()).unwrap();
        laid.recv().unwrap();
        let mut route = Route::here().unwrap();
        lay(&mut route, "yard", YARD);
        let out = Way {
            to: Ipv4Net::default(),
            gateway: Some(BACK),
            link: name("yard"),
            source: YARD,
        };
        route.route(&out).unwrap();
        let socket = UdpSocket::bind((YARD, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    });
    route
        .relocate(&yard, space.recv().unwrap().as_fd())
        .unwrap();
    lay(route, "back", BACK);
    tell_laid.send(()).unwrap();
    there.join().unwrap()
}

fn lay(route: &mut Route, link: &str, address: Ipv4Addr) {
    let address = Ipv4Net::new_assert(address, 24);
    let link = name(link);
    route
        .perform(&Step::Address {
            name: link.clone(),
            address,
        })
        .unwrap();
    route.up(&link).unwrap();
}

fn up(route: &mut Route, link: &str) {
    route.up(&name(link)).unwrap();
}

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}
