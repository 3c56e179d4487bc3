//! A machine with a disk: its own, kept over stops, and never made anew without a word.

use serde_json::json;

use std::process::Command;

use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, PROMPT, User, machine_of};
use crate::support::process;
use crate::support::run::run;

fn config(text: &str) -> String {
    json!({
        "ignition": {"version": "3.3.0"},
        "storage": {"files": [
            {"path": "/etc/told", "contents": {"source": format!("data:,{text}")}},
        ]},
    })
    .to_string()
}

#[test]
fn a_disk_is_kept_until_the_user_says_otherwise() {
    let home = Home::new(Lane::Narrow, User::Myself, "disk", &["node"]);
    // The guest puts its root on an empty disk at its first boot.
    let base = home.folder().join("base.qcow2");
    run(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&base)
            .arg("512M"),
        PROMPT,
    )
    .ok();
    let base_before = std::fs::read(&base).unwrap();
    let mut image = guest::tiny("x86_64").image("root=/dev/disk/by-id/virtio-root");
    image["disk"] = "base.qcow2".into();
    home.write("node.ign", config("first"));
    home.write_spec(
        &image,
        &json!({"node": {"memory": "256MiB", "disk": "1GiB", "ignition": "node.ign"}}),
    );

    home.within(BOOT, &["up"]).ok();
    let look = "cat /etc/told; echo; cat /proc/mounts | grep ' / '; cat /sys/block/vda/size";
    let seen = home.ssh("node", look);
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[0], "first");
    assert!(lines[1].contains(" / ext4 rw"), "{seen}");
    assert_eq!(lines[2], "2097152", "the disk has not grown to 1 GiB");
    home.ssh(
        "node",
        "test -b /dev/disk/by-id/virtio-root && echo mine | sudo tee /kept && sync",
    );

    home.within(BOOT, &["restart"]).ok();
    assert_eq!(home.ssh("node", "cat /kept /etc/told"), "mine\nfirst");
    assert_eq!(
        std::fs::read(&base).unwrap(),
        base_before,
        "the base was written to"
    );

    // A changed config would do nothing on the disk that there is.
    home.write("node.ign", config("second"));
    let plan = home.json(&["plan"]);
    assert_eq!(machine_of(&plan, "node")["action"], "recreate");
    assert_eq!(plan["changes"], true);
    let pid = home.pid("node");
    let refused = home.kiln(&["--json", "up"]).exits(9).error();
    assert_eq!(refused["code"], "unsafe");
    assert_eq!(refused["message"], "the disk of node would be lost");
    assert!(
        refused["hint"]
            .as_str()
            .unwrap()
            .contains("kiln up --replace")
    );
    assert_eq!(home.pid("node"), pid);
    assert_eq!(home.ssh("node", "cat /kept"), "mine\n");

    home.within(BOOT, &["up", "--replace"]).ok();
    assert_eq!(home.ssh("node", "cat /etc/told; test ! -e /kept"), "second");
    assert_eq!(process::with_uuid(&home.cluster().uuid("node")).len(), 1);
    home.kiln(&["up"]).ok().says("nothing to do");
    home.down();
}
