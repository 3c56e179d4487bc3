//! A host of a test's own: a network namespace in which the test's thread and all that it starts live, and another one
//! behind a wire, which is the world outside. Nothing of it is in the namespaces of whoever runs the tests.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;

use ipnet::Ipv4Net;
use kiln_netsetup::link::Step;
use kiln_netsetup::name::IfName;
use kiln_netsetup::namespace;
use kiln_netsetup::netlink::nft::Rules;
use kiln_netsetup::netlink::route::{Route, Way};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::Uid;
use tempfile::TempDir;

/// The addresses on the wire; the networks are those of documentation (RFC 5737).
const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// What the world outside answers any HTTP request with.
pub(crate) const GREETING: &str = "hello from the world outside";

/// The host, as long as the thread lives that made it.
#[derive(Debug)]
pub(crate) struct World {
    /// Where the greeting is to be had.
    pub(crate) outside: SocketAddr,
    _tun: TempDir,
}

/// What of a host's network could be left changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Traces {
    links: Vec<(String, bool)>,
    tables: Vec<String>,
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
        let tun = open_tun();
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
            _tun: tun,
        }
    }

    /// Links, and whether they route packets on, and packet rules.
    pub(crate) fn traces(&self) -> Traces {
        let links = Route::here().unwrap().links().unwrap().into_iter();
        let mut links: Vec<_> = links
            .map(|link| (link.name.to_string(), link.forwards))
            .collect();
        links.sort();
        Traces {
            links,
            tables: Rules::here().unwrap().tables().unwrap(),
        }
    }
}

/// A `/dev/net/tun` that everybody may open, as hosts have it and containers often do not.
fn open_tun() -> TempDir {
    const TUN: &str = "/dev/net/tun";
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let device =
        fs::metadata(TUN).unwrap_or_else(|error| panic!("these tests need {TUN}: {error}"));
    assert!(device.file_type().is_char_device());
    if device.permissions().mode() & 0o666 != 0o666 {
        let own = folder.path().join("tun");
        mknod(&own, SFlag::S_IFCHR, Mode::all(), makedev(10, 200)).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o666)).unwrap();
        bind(&own, Path::new(TUN));
    }
    folder
}

fn bind(from: &Path, to: &Path) {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
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
