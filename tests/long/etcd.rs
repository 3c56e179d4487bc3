//! The profile `etcd` over its whole life, under a client that writes and reads all the while.

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use serde_json::json;

use crate::support::discovery::Discovery;
use crate::support::etcd::{Writer, members, ports};
use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User};
use crate::support::world::{OUTSIDE, World};

const NAMES: [&str; 5] = ["node-1", "node-2", "node-3", "node-4", "node-5"];
/// One after the other, each with a boot and an election.
const LONG: Duration = BOOT.saturating_mul(6);

fn home(name: &str, mode: &str, more: &serde_json::Value) -> Home {
    let home = Home::new(Lane::Wide, User::Myself, name, &NAMES);
    let mut group = json!({"count": 3, "memory": "384MiB", "profile": "etcd", "ports": [":2379"]});
    let more = more.as_object().unwrap().clone();
    group.as_object_mut().unwrap().extend(more);
    home.write_spec_in(
        mode,
        &guest::etcd("x86_64").image(""),
        &json!({"node": group}),
    );
    home
}

/// Runs a command under the client and tells its figures.
fn under_a_client(home: &Home, args: &[&str]) {
    let ports: Vec<u16> = ports(home).into_iter().take(3).collect();
    let writer = Writer::begin(&ports);
    let begun = Instant::now();
    home.within(LONG, args).ok();
    let took = begun.elapsed();
    let written = writer.end(&ports);
    eprintln!("kiln {}: {took:.1?}, {written:?}", args.join(" "));
    assert!(written.acknowledged > 10, "{written:?}");
}

#[test]
fn all_members_are_replaced_one_by_one_and_etcd_grows_and_shrinks() {
    let home = home("etcd", "fabric", &json!({}));
    home.within(BOOT * 2, &["up"]).ok();
    let three: Vec<u16> = ports(&home);
    let before = members(&three);
    let all = ["node-1", "node-2", "node-3"];
    under_a_client(
        &home,
        &[&["reprovision", "--rolling", "1"], &all[..]].concat(),
    );
    let after = members(&three);
    assert_eq!(
        (after.len(), after.intersection(&before).count()),
        (3, 0),
        "{after:?}"
    );

    let pids = all.map(|name| home.pid(name));
    under_a_client(&home, &["up", "--scale", "node=5"]);
    assert_eq!(members(&three).len(), 5);
    under_a_client(&home, &["up", "--scale", "node=3"]);
    assert_eq!(members(&three), after);
    assert_eq!(all.map(|name| home.pid(name)), pids);
    home.down();
}

/// In a world of its own: the server stands outside, and the machines find it there.
#[test]
fn three_members_find_each_other_by_a_discovery_server_as_root() {
    guest::etcd("x86_64");
    let world = World::enter();
    let server = Discovery::default();
    let serving = server.clone();
    let address = outside(&world, serving);
    let url = format!("http://{address}/new");
    let home = home("found", "namespace", &json!({"discovery": url}));
    home.within(BOOT * 2, &["up"]).ok();
    let found: Vec<String> = members(&ports(&home))
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(found, ["node-1", "node-2", "node-3"]);
    let tokens = server.tokens();
    assert_eq!(tokens.len(), 1);
    assert_eq!(
        (
            tokens["token-1"].size.as_str(),
            tokens["token-1"].members.len()
        ),
        ("3", 3)
    );
    home.down();
}

/// Has the server stand in the world outside, for as long as the test's process lives.
fn outside(world: &World, server: Discovery) -> SocketAddr {
    let space = world.space.try_clone().unwrap();
    let (tell, address) = channel();
    thread::spawn(move || {
        setns(space, CloneFlags::CLONE_NEWNET).unwrap();
        let listener = TcpListener::bind((OUTSIDE, 0)).unwrap();
        tell.send(listener.local_addr().unwrap()).unwrap();
        server.serve(&listener);
    });
    address.recv().unwrap()
}
