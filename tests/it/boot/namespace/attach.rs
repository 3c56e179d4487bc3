//! Machines on a bridge of the host's, where others give the addresses: two servers, and nobody.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_netsetup::name::IfName;
use kiln_netsetup::netlink::route::{Route, Way};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use super::wire::{self, GATEWAY, NETWORK};
use crate::boot::three::fabric::{host_port, page};
use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User, machine_of, pid_of};
use crate::support::net_tools::{Server, frames_of};
use crate::support::process;
use crate::support::world::World;

const MACHINES: [&str; 3] = ["by-dnsmasq", "by-dhcpd", "by-hand"];
const STATIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
const MOVED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 21);

fn spec(home: &Home, bridge: &str) {
    let guest = guest::tiny("x86_64");
    // What its DHCP client runs first sets an address, and says nothing but a first question.
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = deconfig ] || exit 0\nip link set \"$interface\" up\n\
         ip address add {STATIC}/24 dev \"$interface\"\nping -c1 -W1 {GATEWAY}\nexit 0\n"
    );
    let file = |path: &str, text: &str| {
        let source = format!("data:;base64,{}", STANDARD.encode(text));
        json!({"path": path, "mode": 0o755, "overwrite": true, "contents": {"source": source}})
    };
    let page = file("/var/www/index.html", "a page\n");
    let config = |files: Value| {
        json!({"ignition": {"version": "3.3.0"}, "storage": {"files": files}}).to_string()
    };
    home.write("page.ign", config(json!([page])));
    let by_hand = [page, file("/usr/lib/guest/dhcp", &script)];
    home.write("static.ign", config(json!(by_hand)));
    let machine = |ignition: &str| json!({"memory": "256MiB", "accel": "tcg", "ignition": ignition, "ports": [":80"]});
    let spec = json!({
        "cluster": home.cluster().name(),
        "image": guest.image(""),
        "network": {"mode": {"attach": bridge}},
        "machines": {
            "by-dnsmasq": machine("page.ign"),
            "by-dhcpd": machine("page.ign"),
            "by-hand": machine("static.ign"),
        },
    });
    home.write("kiln.yaml", spec.to_string());
}

/// The address and its source, as `ip` has them.
#[track_caller]
fn address(home: &Home, name: &str) -> (Ipv4Addr, String) {
    let seen = &machine_of(&home.json(&["ip"]), name)["addresses"][0];
    let ip = seen["ip"]
        .as_str()
        .unwrap_or_else(|| panic!("{name} has no address"));
    (
        ip.parse().unwrap(),
        seen["source"].as_str().unwrap().to_owned(),
    )
}

#[test]
fn machines_on_a_bridge_are_known_whoever_gives_addresses() {
    // The first build of it downloads packages.
    guest::tiny("x86_64");
    let world = World::enter();
    let home = Home::new(Lane::Wide, User::Myself, "demo", &MACHINES);
    // Nothing is made where there is no bridge, or something else.
    spec(&home, "br0");
    home.kiln(&["up"]).exits(4).says("there is no link `br0`");
    spec(&home, "lo");
    home.kiln(&["up"])
        .exits(4)
        .says("link `lo` of the host is no bridge");
    home.assert_clean();

    wire::bridge();
    let before = world.traces();
    spec(&home, "br0");
    let plan = home.json(&["plan"]);
    assert_eq!(plan["subnet"], Value::Null, "{plan}");
    let mac = |name| machine_of(&plan, name)["mac"].as_str().unwrap().to_owned();
    let dnsmasq = Server::dnsmasq("br0", NETWORK, &[&mac("by-dnsmasq")]);
    let _dhcpd = Server::dhcpd("br0", NETWORK, 600, &[&mac("by-dhcpd")]);
    home.within(BOOT, &["up", "--wait", "address"]).ok();
    home.within(BOOT, &["wait"]).ok();

    let ps = home.json(&["ps"]);
    assert_eq!(ps["network"]["mode"], "attach", "{ps}");
    for (name, range, source) in [
        ("by-dnsmasq", 50..60, "lease"),
        ("by-dhcpd", 70..80, "lease"),
        ("by-hand", 20..21, "frames"),
    ] {
        let (ip, how) = address(&home, name);
        assert!(
            range.contains(&ip.octets()[3]) && how == source,
            "{name}: {ip}, {how}"
        );
        let machine = machine_of(&ps, name);
        assert_eq!(machine["reserved_ip"], Value::Null);
        assert_eq!(
            machine["addresses"][0]["expires"].is_string(),
            source == "lease"
        );
        assert_eq!(home.kiln(&["ip", name]).ok().stdout, format!("{ip}\n"));
        assert_eq!(home.ssh(name, "hostname"), format!("{name}\n"));
        let page = page(host_port(&machine)).unwrap();
        assert!(page.ends_with("a page\n"), "{page}");
    }
    changes_are_followed(&home);
    frames_are_captured(&home);
    the_supervisor_may_die(&home, &dnsmasq);
    home.down();
    assert_eq!(world.traces(), before);
}

/// By guests, and by nobody's word but what is on the wire.
fn changes_are_followed(home: &Home) {
    let mut events = home.events();
    let detached = |name, script: &str| {
        home.ssh(
            name,
            &format!("setsid sudo sh -c '{script}' >/dev/null 2>&1 </dev/null &"),
        );
    };
    let mut told = |name: &str, want: &str| {
        let within = Duration::from_secs(60);
        events.until(&format!("`{want}` of {name}"), within, |event| {
            let detail = event["detail"].as_str().unwrap_or_default();
            event["machine"] == name && event["event"] == "lease" && detail.starts_with(want)
        })
    };
    detached("by-dhcpd", "kill -USR1 $(cat /run/udhcpc.eth0)");
    let (ip, _) = address(home, "by-dhcpd");
    told("by-dhcpd", &format!("renewed {ip} (lease for "));

    let (ip, _) = address(home, "by-dnsmasq");
    detached(
        "by-dnsmasq",
        "sleep 1; kill -USR2 $(cat /run/udhcpc.eth0); sleep 2; kill -USR1 $(cat /run/udhcpc.eth0)",
    );
    told("by-dnsmasq", &format!("lost {ip} (released)"));
    let again = told("by-dnsmasq", "gained 203.0.113.5");
    assert_eq!(
        again["status"]["addresses"][0]["source"], "lease",
        "{again}"
    );

    detached(
        "by-hand",
        &format!(
            "ip address del {STATIC}/24 dev eth0; ip address add {MOVED}/24 dev eth0; ping -c1 -W1 {GATEWAY}"
        ),
    );
    told("by-hand", &format!("gained {MOVED} (frames)"));
    let lost = told("by-hand", &format!("lost {STATIC} (not answered for)"));
    let now = lost["status"]["addresses"].as_array().unwrap();
    assert!(
        !now.iter().any(|seen| seen["ip"] == STATIC.to_string()),
        "{lost}"
    );
    assert_eq!(address(home, "by-hand").0, MOVED);
    assert_eq!(home.ssh("by-hand", "hostname"), "by-hand\n");
}

/// All that a command makes go over the wire is in the file, and Ctrl-C ends it in good order.
pub(super) fn capture(home: &Home, name: &str, during: impl FnOnce()) -> Vec<String> {
    let file = home.folder().join("capture.pcapng");
    let pipe = home.folder().join("capture.fifo");
    mkfifo(&pipe, Mode::from_bits_truncate(0o600)).unwrap();
    // Also where kiln is another user.
    fs::set_permissions(&pipe, Permissions::from_mode(0o666)).unwrap();
    let (tell, begun) = channel();
    let (from, to) = (pipe.clone(), file.clone());
    let reader = thread::spawn(move || {
        let (mut from, mut to) = (File::open(from).unwrap(), File::create(to).unwrap());
        let mut buffer = [0; 65536];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            to.write_all(&buffer[..read]).unwrap();
            let _ = tell.send(());
        }
    });
    let mut command = home.command();
    command.args(["--json", "capture", name, "-w"]).arg(&pipe);
    let capture = command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Its first bytes come when it hears.
    begun.recv_timeout(BOOT).unwrap();
    during();
    process::signal(capture.id(), Signal::SIGINT);
    let said = capture.wait_with_output().unwrap();
    assert!(said.status.success(), "{said:?}");
    let told: Value = serde_json::from_slice(&said.stdout).unwrap();
    reader.join().unwrap();
    fs::remove_file(&pipe).unwrap();
    let frames = frames_of(&file);
    assert_eq!(told["result"]["frames"], frames.len(), "{told}");
    assert_eq!(told["result"]["dropped"], 0, "{told}");
    frames
}

fn frames_are_captured(home: &Home) {
    let (ip, _) = address(home, "by-dhcpd");
    let frames = capture(home, "by-dhcpd", || {
        home.ssh("by-dhcpd", "ping -c2 -s 777 203.0.113.1 >&2");
    });
    let line = |from, to| format!("{from} > {to}: ICMP echo");
    for (from, to) in [(ip, GATEWAY), (GATEWAY, ip)] {
        let found = frames
            .iter()
            .filter(|frame| frame.contains(&line(from, to)));
        assert_eq!(found.count(), 2, "{frames:#?}");
    }
    let mut command = home.command();
    let piped = command.args(["capture", "nobody"]).output().unwrap();
    assert_eq!(piped.status.code(), Some(7));
}

/// What is leased while nobody listens is read in the server's own file.
fn the_supervisor_may_die(home: &Home, dnsmasq: &Server) {
    assert!(dnsmasq.leases().exists());
    let before = home.json(&["ps"]);
    process::signal(pid_of(&before["supervisor"]).unwrap(), Signal::SIGKILL);
    let after = home.json(&["ps"]);
    assert_eq!(after["machines"], before["machines"]);
    for name in MACHINES {
        assert_eq!(home.ssh(name, "hostname"), format!("{name}\n"));
    }
}

#[test]
fn a_route_that_comes_later_and_overlaps_is_told() {
    let image = guest::tiny("x86_64").image("");
    let _world = World::enter();
    let home = Home::new(Lane::Narrow, User::Myself, "vpn", &["node"]);
    home.write(
        "kiln.yaml",
        json!({
            "cluster": "vpn", "image": image,
            "network": {"mode": "fabric", "subnet": "10.80.9.0/24"},
            "machines": {"node": {"memory": "128MiB", "accel": "tcg"}},
        })
        .to_string(),
    );
    home.within(BOOT, &["up", "--wait", "running"]).ok();
    let mut events = home.events();
    let wire: IfName = "wire".parse().unwrap();
    let vpn = Way {
        to: "10.80.0.0/16".parse().unwrap(),
        gateway: None,
        link: wire.clone(),
        source: "198.51.100.2".parse().unwrap(),
    };
    let elsewhere = Way {
        to: "10.81.0.0/16".parse().unwrap(),
        ..vpn.clone()
    };
    let mut route = Route::here().unwrap();
    route.route(&elsewhere).unwrap();
    route.route(&vpn).unwrap();
    let mut told = |text: &str| {
        events.until(text, Duration::from_secs(20), |event| {
            event["event"] == "route" && event["detail"] == text
        });
    };
    told("10.80.0.0/16 by link wire overlaps 10.80.9.0/24");
    let notes = home.json(&["ps"])["network"]["notes"].clone();
    assert_eq!(notes.as_array().unwrap().len(), 1, "{notes}");
    home.kiln(&["net"]).ok().says("10.80.0.0/16 by link wire");
    // Its routes go with it.
    route.down(&wire).unwrap();
    told("10.80.0.0/16 by link wire is gone");
    assert_eq!(home.json(&["ps"])["network"]["notes"], json!([]));
    home.down();
}
