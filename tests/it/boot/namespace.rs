//! Machines that the kernel joins, in a network namespace of their cluster: for root, and for a user who may do nothing.

mod attach;
mod user;
mod wire;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::boot::attack;
use crate::boot::three::NODES;
use crate::boot::three::fabric::{host_port, page};
use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User, machine_of, pid_of};
use crate::support::process;
use crate::support::world::{GREETING, World};

/// As in `examples/three`: each machine serves a page that says who it is.
fn example(home: &Home, mode: &str) {
    let guest = guest::tiny("x86_64");
    let config =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/three/node.ign.j2");
    home.write("node.ign.j2", std::fs::read(config).unwrap());
    let (kernel, initrd) = (home.copy(&guest.kernel), home.copy(&guest.initrd));
    home.write_spec_in(
        mode,
        &json!({"kernel": kernel, "initrd": initrd, "cmdline": guest.cmdline}),
        &json!({"node": {
            "count": 3, "memory": "256MiB", "ignition": "node.ign.j2",
            "vars": {"greeting": "Hello"}, "ports": [":80"],
        }}),
    );
}

fn addresses(ps: &Value) -> BTreeMap<&'static str, String> {
    NODES
        .map(|name| {
            let machine = machine_of(ps, name);
            (name, machine["reserved_ip"].as_str().unwrap().to_owned())
        })
        .into()
}

#[test]
fn root_s_machines_are_joined_by_the_kernel() {
    // The first build of it downloads packages.
    guest::tiny("x86_64");
    let world = World::enter();
    let before = world.traces();
    let home = Home::new(Lane::Wide, User::Myself, "demo", &NODES);
    example(&home, "auto");
    home.within(BOOT, &["up"]).ok();
    let ps = home.json(&["ps"]);
    assert_eq!(ps["network"]["mode"], "namespace", "{ps}");
    assert_ne!(ps["network"]["reason"], "", "{ps}");
    assert_ne!(world.traces(), before);

    the_machines_are_joined(&home, &ps);
    they_reach_the_world(&home, &world);
    // By their addresses too, from the host itself.
    for (name, ip) in addresses(&ps) {
        let stream = TcpStream::connect((ip.as_str(), 80));
        assert!(stream.is_ok(), "{name} at {ip}: {stream:?}");
    }
    // The host is no router for those outside, though it routes.
    let inside = format!("{}:80", addresses(&ps)["node-2"]);
    assert!(!world.neighbor_connects(inside.parse().unwrap()));
    assert!(!world.neighbor_is_led_on());
    a_machine_gets_no_further_than_it_may(&home, &ps);
    attack::a_hostile_machine_harms_nobody(&home, &ps);
    all_of_kiln_may_die(&home, &ps, User::Myself);
    they_reach_the_world(&home, &world);
    // The mode is kept, whatever the spec says later.
    example(&home, "fabric");
    home.kiln(&["up"]).exits(9).says("in mode `namespace`");
    home.down();
    assert_eq!(world.traces(), before);
    // What they were kept from is there to be had.
    world.lead_on(true);
    assert!(world.neighbor_is_led_on());
    world.lead_on(false);
}

#[test]
fn a_user_s_machines_are_joined_by_the_kernel() {
    // The first build of it downloads packages.
    guest::tiny("x86_64");
    let world = World::enter();
    let before = world.traces();
    let home = Home::new(Lane::Wide, User::Ordinary, "demo", &NODES);
    example(&home, "namespace");
    home.within(BOOT, &["up"]).ok();
    let ps = home.json(&["ps"]);
    assert_eq!(ps["network"]["mode"], "namespace", "{ps}");
    // None of it is the host's.
    assert_eq!(world.traces(), before);

    the_machines_are_joined(&home, &ps);
    they_reach_the_world(&home, &world);
    a_machine_gets_no_further_than_it_may(&home, &ps);
    attack::a_hostile_machine_harms_nobody(&home, &ps);
    all_of_kiln_may_die(&home, &ps, User::Ordinary);
    they_reach_the_world(&home, &world);
    home.down();
    assert_eq!(world.traces(), before);
}

/// They have the addresses that were known beforehand, find each other by name, and are reached by ssh and by published
/// ports.
fn the_machines_are_joined(home: &Home, ps: &Value) {
    let addresses = addresses(ps);
    for name in NODES {
        let machine = machine_of(ps, name);
        assert_eq!(machine["state"], "ready");
        let seen = machine["addresses"].as_array().unwrap();
        assert!(
            seen.iter()
                .any(|seen| seen["ip"] == addresses[name].as_str() && seen["source"] == "lease"),
            "{machine}"
        );
        let mut script = "set -e; hostname\n".to_owned();
        for peer in NODES {
            script += &format!(
                "nslookup -type=a {peer}.demo.internal | grep -F {}\n",
                addresses[peer]
            );
            script += &format!("ping -c1 -W5 {peer} >&2; wget -qO- http://{peer}/\n");
        }
        let seen = home.ssh(name, &script);
        assert!(seen.starts_with(&format!("{name}\n")), "{seen}");
        for peer in NODES {
            assert!(seen.contains(&format!("Hello from {peer}, ")), "{seen}");
        }
        let answer = page(host_port(&machine)).unwrap();
        assert!(answer.contains(&format!("Hello from {name}, ")), "{answer}");
    }
    let net = home.json(&["net"]);
    assert_eq!(net["network"], ps["network"]);
    for (port, name) in net["ports"].as_array().unwrap().iter().zip(NODES) {
        assert_eq!(port["ip"], addresses[name].as_str(), "{net}");
        assert_eq!(port["traffic"]["link"], format!("t-{name}"), "{net}");
        assert!(port["traffic"]["sent"].as_u64().unwrap() > 10, "{net}");
        assert!(port["traffic"]["received"].as_u64().unwrap() > 10, "{net}");
    }
}

fn they_reach_the_world(home: &Home, world: &World) {
    let page = format!("wget -qO- http://{}/", world.outside);
    // The way out may be a little later than the machines.
    let script =
        format!("for i in 1 2 3 4 5 6 7 8 9 10; do {page} && exit 0; sleep 1; done; exit 1");
    assert!(home.ssh("node-2", &script).ends_with(GREETING));
}

/// Not to what listens on the host's loopback, and not under another's address.
fn a_machine_gets_no_further_than_it_may(home: &Home, ps: &Value) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let subnet = ps["network"]["subnet"].as_str().unwrap();
    let base = subnet.strip_suffix("0/24").unwrap();
    let wire = [2, 3, 15].map(|last| format!("169.254.77.{last}"));
    let own = [1, 2, 3].map(|last| format!("{base}{last}"));
    for ip in own.iter().chain(&wire) {
        let command = format!("nc -w2 {ip} {port} </dev/null");
        let refused = home.within(Duration::from_secs(30), &["ssh", "node-1", "--", &command]);
        assert_ne!(refused.code, Some(0), "{refused}");
    }
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);

    let free = format!("{base}254");
    assert!(!addresses(ps).values().any(|ip| *ip == free));
    let script = format!(
        "sudo ip addr add {free}/24 dev eth0; ping -c2 -W1 -I {free} node-2; got=$?; \
         sudo ip addr del {free}/24 dev eth0; exit $got"
    );
    let posed = home.within(Duration::from_secs(30), &["ssh", "node-1", "--", &script]);
    assert_ne!(posed.code, Some(0), "{posed}");
    assert!(posed.stdout.contains("100% packet loss"), "{posed}");
}

/// The supervisor and whoever leads out, in the middle of a ping between machines, of which at most two replies are lost;
/// the next command manages all of it.
fn all_of_kiln_may_die(home: &Home, before: &Value, user: User) {
    let peer = &addresses(before)["node-2"];
    home.ssh(
        "node-1",
        &format!("rm -f /tmp/ping; setsid ping -c 40 -i 0.1 {peer} >/tmp/ping 2>&1 </dev/null & until grep -q seq=5 /tmp/ping; do usleep 50000; done"),
    );
    let supervisor = pid_of(&before["supervisor"]).unwrap();
    let helpers = home.helpers();
    assert!(helpers.contains(&supervisor));
    if user == User::Ordinary {
        assert!(helpers.len() > 1, "nobody leads out: {helpers:?}");
    }
    for pid in helpers {
        process::signal(pid, Signal::SIGKILL);
    }
    let ps = home
        .kiln(&["--json", "ps"])
        .ok()
        .took_at_most(Duration::from_secs(2))
        .result();
    assert_ne!(pid_of(&ps["supervisor"]).unwrap(), supervisor);
    assert_eq!(ps["machines"], before["machines"]);
    assert_eq!(ps["network"], before["network"]);
    let told = home.ssh(
        "node-1",
        "until grep transmitted /tmp/ping; do usleep 100000; done",
    );
    let numbers: Vec<u32> = told
        .split([' ', ','])
        .filter_map(|word| word.parse().ok())
        .collect();
    assert!(numbers[1] + 2 >= numbers[0] && numbers[0] == 40, "{told}");
    the_machines_are_joined(home, &ps);
}

/// Whatever is killed, and whenever: the host's links, addresses, routes, settings and packet rules are as before, and
/// no process and no namespace is left. `KILN_TEST_ROUNDS` says how many rounds there are, `KILN_TEST_SEED` which ones.
#[test]
fn rounds_of_up_and_down_leave_the_host_as_it_was() {
    let image = guest::tiny("x86_64").image("");
    let number = |name| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let rounds = number("KILN_TEST_ROUNDS").unwrap_or(6);
    let mut dice = Dice(number("KILN_TEST_SEED").unwrap_or_else(|| RandomState::new().hash_one(0)));
    println!("KILN_TEST_SEED={}", dice.0);
    let world = World::enter();
    let before = world.traces();
    let home = Home::new(Lane::Narrow, User::Myself, "round", &["node"]);
    home.write_spec_in(
        "namespace",
        &image,
        &json!({"node": {"memory": "128MiB", "accel": "tcg"}}),
    );
    for round in 0..rounds {
        let did = match round {
            // Nobody, the supervisor, QEMU too, QEMU alone.
            0..4 => one_is_killed_while_it_stands(&home, round),
            _ => all_may_be_killed_at_any_moment(&home, &mut dice),
        };
        home.within(BOOT, &["down", "--timeout", "0s"]).ok();
        home.assert_clean();
        assert_eq!(world.traces(), before, "after round {round}: {did}");
    }
}

fn one_is_killed_while_it_stands(home: &Home, round: u64) -> String {
    home.within(BOOT, &["up", "--wait", "running"]).ok();
    let ps = home.json(&["ps"]);
    let (supervisor, qemu) = (pid_of(&ps["supervisor"]), pid_of(&machine_of(&ps, "node")));
    let space = process::namespaces(qemu.unwrap());
    assert!(!space.is_empty());
    if matches!(round, 1 | 2) {
        process::signal(supervisor.unwrap(), Signal::SIGKILL);
    }
    if matches!(round, 2 | 3) {
        process::signal(qemu.unwrap(), Signal::SIGKILL);
    }
    home.within(BOOT, &["down", "--timeout", "0s"]).ok();
    for space in space {
        assert_eq!(process::holders(&space), Vec::<u32>::new(), "{space:?}");
    }
    format!("kind {round}")
}

/// A command, its supervisor or both are killed while it is at it, and then, or not, `gc` comes before `down`.
fn all_may_be_killed_at_any_moment(home: &Home, dice: &mut Dice) -> String {
    let mut did = Vec::new();
    let commands: [&[&str]; 3] = [
        &["up", "--wait", "running"],
        &["restart", "node", "--timeout", "0s"],
        &["down", "--timeout", "0s"],
    ];
    if dice.roll(2) == 0 {
        home.within(BOOT, commands[0]).ok();
        did.push("up".to_owned());
    }
    for _ in 0..=dice.roll(2) {
        let command = commands[usize::try_from(dice.roll(3)).unwrap()];
        let moment = Duration::from_millis(dice.roll(700));
        let whom = dice.roll(3);
        did.push(format!("{command:?}, killed after {moment:?}: {whom}"));
        let mut child = home
            .command()
            .args(command)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // No state is waited for: any moment will do.
        std::thread::sleep(moment);
        if whom != 0 {
            let mut helpers = home.helpers();
            helpers.retain(|pid| *pid != child.id());
            for pid in helpers {
                // It may be gone by itself.
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
        }
        if whom != 1 {
            let _ = child.kill();
        }
        child.wait().unwrap();
    }
    if dice.roll(2) == 0 {
        home.within(BOOT, &["gc"]).ok();
        did.push("gc".to_owned());
    }
    did.join("; ")
}

/// Numbers that look random and come again for the same seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }
}
