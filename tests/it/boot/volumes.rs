//! Disks on logical volumes as a real QEMU and its guest have them.
//!
//! The group is the real lvm2's; `support/lvm.sh` says what stands in for device-mapper.

use serde_json::json;

use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User};
use crate::support::run::run;
use crate::support::volumes::Group;

/// A line for each disk: serial, and size in sectors of 512 bytes.
const LOOK: &str = "for disk in /sys/block/vd*; do read -r serial <$disk/serial; \
     test -b /dev/disk/by-id/virtio-$serial && echo $serial $(cat $disk/size); done";

#[test]
fn a_guest_has_volumes_that_keep_what_it_wrote_and_grow_under_it_as_root() {
    let guest = guest::tiny("x86_64");
    let mut home = Home::new(Lane::Narrow, User::Myself, "volumes", &["node"]);
    let bin = home.folder().join("bin");
    let group = Group::new(home.folder(), &bin, 400);
    home.look_in(Some(&bin));
    let before = group.seen();
    // The guest puts its root on an empty disk at its first boot: one with old bytes is none.
    let base = home.folder().join("base.qcow2");
    let mut make = std::process::Command::new("qemu-img");
    make.args(["create", "-q", "-f", "qcow2"]).arg(&base);
    run(make.arg("128M"), BOOT).ok();
    home.write("node.ign", r#"{"ignition": {"version": "3.3.0"}}"#);
    let spec = |root: Option<&str>, logs: &str| {
        let mut image = guest.image("root=/dev/disk/by-id/virtio-root");
        image["disk"] = "base.qcow2".into();
        let mut node = json!({
            "arch": "x86_64", "memory": "512MiB", "ignition": "node.ign",
            "disks": [{"size": logs, "serial": "logs", "keep": true}],
        });
        if let Some(root) = root {
            node["disk"] = root.into();
        }
        let spec = json!({
            "cluster": "volumes", "image": image, "network": {"mode": "fabric"},
            "storage": {"vg": group.name}, "machines": {"node": node},
        });
        home.write("kiln.yaml", spec.to_string());
    };
    spec(None, "20MiB");
    home.within(BOOT, &["up"]).ok();
    assert_eq!(home.ssh("node", LOOK), "root 262144\nlogs 40960\n");
    // Of a user that may open no device: it was handed the volumes.
    let status = std::fs::read_to_string(format!("/proc/{}/status", home.pid("node"))).unwrap();
    let uids = status
        .lines()
        .find(|line| line.starts_with("Uid:"))
        .unwrap();
    assert!(!uids.split_whitespace().any(|uid| uid == "0"), "{uids}");
    let logs = "/dev/disk/by-id/virtio-logs";
    let count = format!("sudo cat {logs} | wc -c; sudo cat {logs} | tr -d '\\0' | wc -c");
    assert_eq!(home.ssh("node", &count), "20971520\n0\n");
    let write = format!("echo written | sudo dd of={logs} conv=fsync 2>/dev/null");
    home.ssh(
        "node",
        &format!("echo written | sudo tee /etc/written >/dev/null && sync && {write}"),
    );

    let pid = home.pid("node");
    spec(Some("140MiB"), "30MiB");
    home.within(BOOT, &["up"]).ok();
    assert_eq!(home.pid("node"), pid);
    assert_eq!(home.ssh("node", LOOK), "root 286720\nlogs 61440\n");
    let told = format!("sudo cat {logs} | tr -d '\\0'");
    assert_eq!(home.ssh("node", &told), "written\n");

    home.within(BOOT, &["restart"]).ok();
    assert_eq!(home.ssh("node", "cat /etc/written"), "written\n");
    assert_eq!(home.ssh("node", &told), "written\n");
    home.within(BOOT, &["down"]).ok();
    let kept = "kiln.volumes.node.logs";
    assert_eq!(group.volumes(), [format!("{kept} 30")]);
    assert!(group.content(kept).starts_with(b"written\n"));
    home.within(BOOT, &["down", "--remove-disks"]).ok();
    assert_eq!(group.seen(), before);
    home.assert_clean();
    drop((home, group));
}

#[test]
fn who_is_not_root_is_told_that_volumes_are_roots() {
    let home = Home::new(Lane::Narrow, User::Ordinary, "volumes", &["node"]);
    home.write("disk.raw", [0; 4096]);
    let spec = json!({
        "cluster": "volumes", "image": "disk.raw", "network": {"mode": "fabric"},
        "storage": {"vg": "vg0"}, "machines": {"node": {"arch": "x86_64", "accel": "tcg"}},
    });
    home.write("kiln.yaml", spec.to_string());
    let up = home.kiln(&["up"]);
    assert_eq!(up.code, Some(4), "{}", up.stderr);
    assert!(
        up.stderr.contains("only root can use logical volumes"),
        "{}",
        up.stderr
    );
    home.assert_clean();
}
