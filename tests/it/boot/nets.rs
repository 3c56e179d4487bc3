//! What a spec says of the network, seen from real guests: in the switch and in the kernel's bridge alike.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User, machine_of};
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
