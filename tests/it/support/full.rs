//! The full guest's story: systemd, the report by its unit, and Ignition on the first boot alone.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::home::{Home, Lane, PROMPT, User};
use crate::support::run::{Ran, run};
use crate::support::{guest, virtiofsd};

/// A boot of the full guest takes tens of seconds where it is emulated and alone.
pub(crate) const FULL_BOOT: Duration = Duration::from_secs(400);

/// A file, a user, and a unit of each kind: one that the config brings, one that it turns on, and those of
/// `examples/offline`, whose archive is packed for it.
fn config(home: &Home) -> Value {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/offline");
    run(
        Command::new("cp")
            .arg("-R")
            .arg(&example)
            .arg(home.folder()),
        PROMPT,
    )
    .ok();
    run(
        &mut Command::new(home.folder().join("offline/pack")),
        PROMPT,
    )
    .ok();
    let offline = std::fs::read_to_string(example.join("node.ign")).unwrap();
    let offline: Value = serde_json::from_str(&offline).unwrap();
    let mut config = own_config();
    let units = config["systemd"]["units"].as_array_mut().unwrap();
    units.extend(offline["systemd"]["units"].as_array().unwrap().clone());
    config
}

fn own_config() -> Value {
    let unit = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/touch /var/lib/ran\n\
                [Install]\nWantedBy=multi-user.target\n";
    json!({
        "ignition": {"version": "3.3.0"},
        "passwd": {"users": [{"name": "ada", "groups": ["sudo"]}]},
        "storage": {"files": [{"path": "/etc/told", "contents": {"source": "data:,first"}}]},
        "systemd": {"units": [
            {"name": "own.service", "enabled": true, "contents": unit},
            {"name": "etcd.service", "enabled": true},
            // As docs/report.md has it: up is what has its etcd.
            {"name": "kiln-report.service", "dropins": [
                {"name": "after.conf", "contents": "[Unit]\nRequires=etcd.service\nAfter=etcd.service\n"},
            ]},
        ]},
    })
}

/// Boots it by this firmware, looks into it, and boots it again.
#[track_caller]
pub(crate) fn boots_twice(
    name: &str,
    arch: &'static str,
    firmware: &str,
    root: &str,
    console_says: &str,
) {
    let mut home = Home::new(Lane::Wide, User::Myself, name, &["node"]);
    let programs = virtiofsd::public_copy();
    home.look_in(Some(&programs.path().join("bin")));
    home.write("node.ign", config(&home).to_string());
    let machine = json!({
        "arch": arch, "firmware": firmware, "cpus": 2, "memory": "1GiB", "ignition": "node.ign",
        "shares": [{"from": "offline/archives", "to": "/var/mnt/archives", "readonly": true}], "ports": [":8000"],
        "disk": {"size": "2GiB", "bus": root},
        // Disks as a guest finds them that has udev.
        "disks": [
            {"size": "64MiB", "serial": "fast", "bus": "nvme", "sector": 4096},
            {"size": "65MiB", "serial": "bulk", "bus": "scsi"},
            {"size": "66MiB", "serial": "plain"},
            {"size": "67MiB", "serial": "odd", "bus": "scsi", "sector": 4096},
        ],
    });
    home.write_spec(&json!(guest::full(arch)), &json!({"node": machine}));

    told_time(&home.within(FULL_BOOT, &["up"]).ok());
    let machine = home.machine("node");
    assert_eq!(machine["state"], "ready");
    assert_eq!(machine["addresses"][0]["ip"], machine["reserved_ip"]);
    let page = format!("http://127.0.0.1:{}/", machine["ports"][0]["host"]);
    let hello = "Hello from node, which has this from its host.\n";
    assert_eq!(fetched(&page), hello);
    // By the pinned host key, or ssh would refuse.
    let look = "hostname; uname -m; cat /etc/told; echo; id -nG ada; systemctl is-active own etcd kiln-report \
                qemu-guest-agent; grep -c ignition.firstboot /proc/cmdline; test $(findmnt -bno SIZE /) -gt 1000000000 && echo grown";
    let want = format!("node\n{arch}\nfirst\nada sudo\nactive\nactive\nactive\nactive\n1\ngrown\n");
    assert_eq!(home.ssh("node", look), want);
    let look = "cd /dev/disk/by-id; for disk in nvme-QEMU_NVMe_Ctrl_fast scsi-0QEMU_QEMU_HARDDISK_bulk virtio-plain \
                scsi-0QEMU_QEMU_HARDDISK_odd; do \
                name=$(basename $(readlink $disk)); echo $name $(cat /sys/block/$name/size /sys/block/$name/queue/logical_block_size); done";
    let seen = home.ssh("node", look);
    let letters: Vec<&str> = seen.lines().collect();
    assert_eq!(letters.len(), 4, "{seen}");
    for (line, (begins, size)) in letters.iter().zip([
        ("nvme", " 131072 4096"),
        ("sd", " 133120 512"),
        ("vd", " 135168 512"),
        ("sd", " 137216 4096"),
    ]) {
        assert!(line.starts_with(begins) && line.ends_with(size), "{seen}");
    }
    // Everything has started or will not: nothing that the config or the guest brings has failed.
    let failed = "systemctl is-system-running --wait; systemctl --failed --no-legend --plain";
    assert_eq!(home.ssh("node", failed), "running\n");
    let console = home.kiln(&["logs", "node", "-n", "4000"]).ok().stdout;
    assert!(console.contains(console_says), "{console}");
    home.ssh("node", "echo second | sudo tee /etc/told; sync");

    // The power button; a guest that does not hear it would take a minute.
    home.within(FULL_BOOT, &["stop"])
        .ok()
        .took_at_most(Duration::from_secs(50));
    assert_eq!(home.machine("node")["reason"], "");
    told_time(&home.within(FULL_BOOT, &["start", "node"]).ok());
    assert_eq!(home.machine("node")["state"], "ready");
    let look = "cat /etc/told; systemctl is-active own etcd kiln-report; grep -c ignition.firstboot /proc/cmdline; \
                sudo journalctl --boot --quiet --identifier ignition | wc -l";
    let want = "second\nactive\nactive\nactive\n0\n0\n";
    assert_eq!(
        home.within(FULL_BOOT, &["ssh", "node", "--", look]).stdout,
        want
    );
    assert_eq!(fetched(&page), hello);
    home.down();
}

fn fetched(page: &str) -> String {
    let mut curl = Command::new("curl");
    run(curl.args(["-sS", "--max-time", "60", page]), FULL_BOOT)
        .ok()
        .stdout
}

/// Times that README.md tells; `--nocapture` shows them.
fn told_time(ran: &Ran) {
    eprintln!("{} took {:?}", ran.command, ran.took);
}
