//! What a spec says of the network, seen from real guests: in the switch and in the kernel's bridge alike.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User, machine_of, pid_of};
use crate::support::world::World;

const MAC: &str = "52:54:00:ab:cd:ef";

fn spec(home: &Home, mode: &str) {
    let guest = guest::tiny("x86_64");
    let (kernel, initrd) = (home.copy(&guest.kernel), home.copy(&guest.initrd));
    let spec = json!({
        "cluster": home.cluster().name(),
        "image": {"kernel": kernel, "initrd": initrd, "cmdline": guest.cmdline},
        "network": {"mode": mode, "subnet": "10.80.7.0/24", "uplink": false},
        "machines": {
            "alpha": {"memory": "256MiB", "address": "10.80.7.20", "mac": MAC},
            "beta": {"memory": "256MiB"},
        },
    });
    home.write("kiln.yaml", spec.to_string());
}

/// A cluster whose machine is told all that a spec can have it told; `known` are names besides.
fn told(home: &Home, mode: &str, server: SocketAddr, known: &Value) {
    let guest = guest::tiny("x86_64");
    let (kernel, initrd) = (home.copy(&guest.kernel), home.copy(&guest.initrd));
    let spec = json!({
        "cluster": home.cluster().name(),
        "image": {"kernel": kernel, "initrd": initrd, "cmdline": guest.cmdline},
        "network": {
            "mode": mode, "subnet": "10.80.8.0/24", "domain": "lab.example", "mtu": 9000,
            "dns": server.to_string(), "hosts": known,
            "routes": [{"to": "203.0.113.0/24", "via": "10.80.8.20"}],
        },
        "machines": {"alpha": {"memory": "256MiB"}},
    });
    home.write("kiln.yaml", spec.to_string());
}

/// A name server that gives this address for whatever it is asked.
fn name_server(address: [u8; 4]) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            let name = query[12..length]
                .iter()
                .position(|byte| *byte == 0)
                .unwrap();
            let mut answer = query[..12 + name + 5].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(address);
            let _ = socket.send_to(&answer, from);
        }
    });
    at
}

#[test]
fn machines_are_told_what_the_spec_says_in_the_fabric() {
    let home = Home::new(Lane::Narrow, User::Myself, "told", &["alpha"]);
    the_machine_is_told(&home, "fabric");
}

#[test]
fn machines_are_told_what_the_spec_says_in_a_namespace() {
    // The first build of it downloads packages.
    guest::tiny("x86_64");
    let _world = World::enter();
    let home = Home::new(Lane::Narrow, User::Myself, "told", &["alpha"]);
    the_machine_is_told(&home, "namespace");
}

fn the_machine_is_told(home: &Home, mode: &str) {
    let (one, other) = (name_server([192, 0, 2, 1]), name_server([192, 0, 2, 2]));
    let registry = json!({"registry": "10.0.0.5", "*.apps": ["10.0.0.6", "10.0.0.7"]});
    told(home, mode, one, &registry);
    home.within(BOOT, &["up"]).ok();
    let ps = home.json(&["ps"]);
    assert_eq!(ps["network"]["domain"], "told.lab.example", "{ps}");
    let seen = home.ssh(
        "alpha",
        "set -e; cat /etc/resolv.conf /sys/class/net/eth0/mtu; ip route\n\
         nslookup -type=a alpha.told.lab.example; nslookup -type=a registry.told.lab.example\n\
         nslookup -type=a registry; nslookup -type=a x.apps.told.lab.example\n\
         nslookup -type=a www.example.com; ping -c1 -W5 -s 8000 10.80.8.1",
    );
    for told in [
        "search told.lab.example",
        "nameserver 10.80.8.1",
        "9000",
        "default via 10.80.8.1",
        "203.0.113.0/24 via 10.80.8.20",
        "10.0.0.5",
        "10.0.0.6",
        "10.0.0.7",
        "192.0.2.1",
        "0% packet loss",
    ] {
        assert!(seen.contains(told), "no `{told}`: {seen}");
    }
    let ip = machine_of(&ps, "alpha")["reserved_ip"].clone();
    let hosts = home.kiln(&["hosts"]).ok().stdout;
    assert_eq!(
        hosts,
        format!("{} alpha.told.lab.example alpha\n", ip.as_str().unwrap())
    );
    let hosts = home.json(&["hosts"]);
    let names = json!(["alpha.told.lab.example", "alpha"]);
    assert_eq!(hosts, json!({"hosts": [{"ip": ip, "names": names}]}));

    // What they are told changes while they run.
    told(home, mode, other, &json!({"registry": "10.0.0.9"}));
    let planned = home.kiln(&["plan"]).ok().stdout;
    for what in ["dns", "hosts"] {
        let told = format!("change    network: {what} (while it runs)");
        assert!(planned.contains(&told), "{planned}");
    }
    home.within(BOOT, &["up"]).ok();
    assert_eq!(
        home.pid("alpha"),
        pid_of(&machine_of(&ps, "alpha")).unwrap()
    );
    let seen = home.ssh(
        "alpha",
        "nslookup -type=a registry; nslookup -type=a www.example.com",
    );
    assert!(
        seen.contains("10.0.0.9") && seen.contains("192.0.2.2"),
        "{seen}"
    );
    home.down();
}

#[test]
fn a_network_is_as_the_spec_says_in_the_fabric() {
    let home = Home::new(Lane::Narrow, User::Myself, "nets", &["alpha", "beta"]);
    spec(&home, "fabric");
    the_network_is_as_the_spec_says(&home);
    home.down();
}

#[test]
fn a_network_is_as_the_spec_says_in_a_namespace() {
    // The first build of it downloads packages.
    guest::tiny("x86_64");
    let world = World::enter();
    let before = world.traces();
    let home = Home::new(Lane::Narrow, User::Myself, "nets", &["alpha", "beta"]);
    spec(&home, "namespace");
    the_network_is_as_the_spec_says(&home);
    // Nothing leads out of it, so the host is as it was.
    assert_eq!(world.traces(), before);
    home.down();
    assert_eq!(world.traces(), before);
}

fn the_network_is_as_the_spec_says(home: &Home) {
    home.within(BOOT, &["up"])
        .ok()
        .says("the network has no uplink");
    let ps = home.json(&["ps"]);
    assert_eq!(ps["network"]["isolated"], true, "{ps}");
    assert_eq!(ps["network"]["uplink"], "", "{ps}");
    a_machine_is_where_the_spec_puts_it(home, &ps);
    nothing_leads_out(home);
    // It cannot change under a cluster that is there.
    let text = std::fs::read_to_string(home.folder().join("kiln.yaml")).unwrap();
    home.write(
        "kiln.yaml",
        text.replace("\"uplink\":false", "\"uplink\":true"),
    );
    home.kiln(&["up"]).exits(9).says("has no uplink");
    home.write("kiln.yaml", text);
}

fn a_machine_is_where_the_spec_puts_it(home: &Home, ps: &Value) {
    let alpha = machine_of(ps, "alpha");
    assert_eq!(
        (&alpha["reserved_ip"], &alpha["mac"]),
        (&json!("10.80.7.20"), &json!(MAC))
    );
    let seen = alpha["addresses"].as_array().unwrap();
    assert!(
        seen.iter().any(|seen| seen["ip"] == "10.80.7.20"),
        "{alpha}"
    );
    let told = home.ssh("alpha", "ip addr show eth0");
    assert!(
        told.contains(MAC) && told.contains("10.80.7.20/24"),
        "{told}"
    );
    let told = home.ssh("beta", "nslookup -type=a alpha; ping -c1 -W5 alpha");
    assert!(
        told.contains("10.80.7.20") && told.contains("0% packet loss"),
        "{told}"
    );
}

fn nothing_leads_out(home: &Home) {
    let told = home.ssh(
        "beta",
        "ip route; nslookup example.com; ping -c1 -W2 192.0.2.1; echo \"ended with $?\"",
    );
    assert!(!told.contains("default"), "{told}");
    assert!(told.contains("NXDOMAIN"), "{told}");
    assert!(!told.contains("ended with 0"), "{told}");
    // Nor by a route of its own making.
    let told = home.within(
        Duration::from_secs(30),
        &[
            "ssh",
            "beta",
            "--",
            "sudo ip route add default via 10.80.7.1; ping -c1 -W2 192.0.2.1",
        ],
    );
    assert_ne!(told.code, Some(0), "{told}");
    assert!(told.stdout.contains("100% packet loss"), "{told}");
}
