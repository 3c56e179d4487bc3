//! The example with five machines, each of another architecture: what holds for one holds for all.

use std::path::Path;
use std::time::Duration;

use kiln::state::layout::Socket;
use serde_json::Value;

use crate::boot::three::fabric::{host_port, page};
use crate::support::configs::BOOT_FIVE;
use crate::support::guest;
use crate::support::home::{Home, Lane, User, machine_of};
use crate::support::socket::Talk;

/// Machines and what they are: name, architecture, `uname -m`.
const FIVE: [(&str, &str, &str); 5] = [
    ("i386", "i386", "i686"),
    ("x86-64", "x86_64", "x86_64"),
    ("aarch64", "aarch64", "aarch64"),
    ("s390x", "s390x", "s390x"),
    ("ppc64le", "ppc64le", "ppc64le"),
];

/// `examples/five`, with its guests where they are here.
fn example(home: &Home) {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/five");
    let mut spec = std::fs::read_to_string(example.join("kiln.yaml")).unwrap();
    for (_, arch, _) in FIVE {
        let guest = guest::tiny(arch);
        let there = format!("../../target/guests/five/{arch}/");
        spec = spec
            .replace(&format!("{there}kernel"), guest.kernel.to_str().unwrap())
            .replace(&format!("{there}initrd"), guest.initrd.to_str().unwrap());
    }
    assert!(!spec.contains("../../target"), "{spec}");
    home.write("kiln.yaml", spec);
    let config = std::fs::read_to_string(example.join("node.ign.j2")).unwrap();
    home.write("node.ign.j2", config);
}

#[test]
fn five_architectures_in_one_cluster() {
    let home = Home::new(
        Lane::Wide,
        User::Myself,
        "five",
        &FIVE.map(|(name, ..)| name),
    );
    example(&home);
    home.within(BOOT_FIVE, &["up"]).ok();
    let ps = home.json(&["ps"]);
    assert_eq!(ps["machines"].as_array().unwrap().len(), FIVE.len());

    for (name, arch, uname) in FIVE {
        let machine = machine_of(&ps, name);
        assert_eq!(machine["state"], "ready", "{machine}");
        assert_eq!(machine["arch"], arch);
        assert_eq!(machine["addresses"][0]["ip"], machine["reserved_ip"]);
        it_is_as_ignition_was_told(&home, name, arch, uname);
        it_reaches_all(&home, &ps, name);
        let answer = page(host_port(&machine)).unwrap();
        assert!(
            answer.ends_with(&format!("Hello from {name}.\n")),
            "{answer}"
        );
        its_agent_answers(&home, name);
        its_console_is_at_a_prompt(&home, name);
        ignition_comes_its_own_way(&home, name);
    }

    // Each hears the power button in its own way; one that did not would be killed much later.
    home.within(BOOT_FIVE, &["stop"])
        .ok()
        .took_at_most(Duration::from_secs(20));
    for (name, ..) in FIVE {
        let machine = home.machine(name);
        assert_eq!(machine["state"], "stopped", "{machine}");
        assert_eq!(machine["reason"], "", "{machine}");
        let logs = home.kiln(&["logs", name]).ok();
        assert!(logs.stdout.contains("guest: poweroff"), "{logs}");
    }
    home.down();
}

/// A file, a user and the host name.
fn it_is_as_ignition_was_told(home: &Home, name: &str, arch: &str, uname: &str) {
    let seen = home.ssh(
        name,
        "hostname; uname -m; cat /etc/motd; grep ^keeper /etc/passwd | cut -d: -f1",
    );
    assert_eq!(
        seen,
        format!("{name}\n{uname}\nThis is {name}, of {arch}.\nkeeper-{arch}\n")
    );
}

fn it_reaches_all(home: &Home, ps: &Value, name: &str) {
    let mut script = "set -e\n".to_owned();
    for (peer, ..) in FIVE {
        let ip = machine_of(ps, peer)["reserved_ip"].clone();
        let ip = ip.as_str().unwrap();
        script += &format!("nslookup -type=a {peer}.five.internal | grep -F {ip} >&2\n");
        script += &format!("ping -c1 -W10 {peer} >&2\n");
        script += &format!("wget -qO- http://{peer}/\n");
    }
    let want: String = FIVE
        .iter()
        .map(|(peer, ..)| format!("Hello from {peer}.\n"))
        .collect();
    assert_eq!(home.ssh(name, &script), want);
}

/// QEMU's guest agent, on its own port.
fn its_agent_answers(home: &Home, name: &str) {
    let mut agent = Talk::to(&home.cluster().machine(name).socket(Socket::Agent));
    agent.say("{\"execute\":\"guest-get-host-name\"}\n");
    let seen = agent.hear(&format!("\"host-name\": \"{name}\""));
    assert!(seen.contains("return"), "{seen}");
}

/// The console is the one that the kernel and the shell use.
fn its_console_is_at_a_prompt(home: &Home, name: &str) {
    let mut console = Talk::to(&home.cluster().machine(name).socket(Socket::Console));
    console.say("\necho $((6 * 7))-$(hostname)\n");
    console.hear(&format!("42-{name}"));
    let logs = home.kiln(&["logs", name]).ok();
    for text in [
        "Linux version ",
        "Ignition finished successfully",
        &format!("42-{name}"),
    ] {
        assert!(logs.stdout.contains(text), "no `{text}`: {logs}");
    }
}

/// By fw_cfg and no disk, or by a disk and no fw_cfg: QEMU's arguments as they run.
fn ignition_comes_its_own_way(home: &Home, name: &str) {
    let explained = home.json(&["explain", name]);
    let argv: Vec<&str> = explained["argv"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let cmdline = std::fs::read(format!("/proc/{}/cmdline", home.pid(name))).unwrap();
    let cmdline = String::from_utf8(cmdline).unwrap();
    let runs: Vec<&str> = cmdline.trim_end_matches('\0').split('\0').collect();
    assert_eq!(argv, runs, "`explain` and what runs differ");

    let value_of = |option| {
        let at = argv.iter().position(|arg| *arg == option)?;
        argv.get(at + 1).copied()
    };
    let disk = argv
        .iter()
        .find(|arg| arg.contains("\"serial\":\"ignition\"") || arg.contains("serial=ignition"));
    let fw_cfg = value_of("-fw_cfg");
    match name {
        "s390x" | "ppc64le" => {
            let bus = if name == "s390x" {
                "virtio-blk-ccw"
            } else {
                "virtio-blk-pci"
            };
            assert_eq!(fw_cfg, None);
            let disk = disk.unwrap_or_else(|| panic!("{name} has no Ignition disk: {argv:?}"));
            assert!(disk.contains(bus), "{disk}");
        }
        _ => {
            assert!(
                fw_cfg.is_some_and(|item| item.contains("name=opt/com.coreos/config")),
                "{argv:?}"
            );
            assert_eq!(disk, None);
        }
    }
    let foreign = match name {
        "s390x" => "-pci",
        _ => "-ccw",
    };
    assert!(
        !argv
            .iter()
            .any(|arg| arg.contains("virtio") && arg.contains(foreign)),
        "{argv:?}"
    );
}
