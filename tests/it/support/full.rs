//! The full guest's story: systemd, the report by its unit, and Ignition on the first boot alone.

use std::time::Duration;

use serde_json::json;

use crate::support::guest;
use crate::support::home::{Home, Lane, User};
use crate::support::run::Ran;

/// A boot of the full guest takes tens of seconds where it is emulated and alone.
pub(crate) const FULL_BOOT: Duration = Duration::from_secs(400);

/// A file, a user, and a unit of each kind: one that the config brings, and one that it turns on.
fn config() -> serde_json::Value {
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
    let home = Home::new(Lane::Wide, User::Myself, name, &["node"]);
    home.write("node.ign", config().to_string());
    let machine = json!({
        "arch": arch, "firmware": firmware, "cpus": 2, "memory": "1GiB", "ignition": "node.ign",
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
    home.down();
}

/// Times that README.md tells; `--nocapture` shows them.
fn told_time(ran: &Ran) {
    eprintln!("{} took {:?}", ran.command, ran.took);
}
