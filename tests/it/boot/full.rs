//! A real distribution on a disk: systemd, and what it does with what kiln gives it.

use serde_json::json;

use crate::support::full::{FULL_BOOT, boots_twice};
use crate::support::guest;
use crate::support::home::{Home, Lane, User};

#[test]
fn the_full_guest_boots_from_its_disk_and_runs_ignition_once() {
    boots_twice("full", "x86_64", "bios", "nvme", "Welcome to GRUB!");
}

/// Under systemd the console shows that a stage failed; why stands in the journal, which comes by its port.
/// The signed chain has brought it so far.
#[test]
fn the_journal_says_why_ignition_failed_in_the_full_guest() {
    let home = Home::new(Lane::Wide, User::Myself, "fullfails", &["node"]);
    // The root, which is another file system and not to be wiped.
    home.write(
        "node.ign",
        json!({
            "ignition": {"version": "3.3.0"},
            "storage": {"filesystems": [{"device": "/dev/disk/by-label/root", "format": "xfs", "path": "/var/data"}]},
        })
        .to_string(),
    );
    let machine = json!({
        "firmware": "uefi-secure", "cpus": 2, "memory": "1GiB", "ignition": "node.ign",
    });
    home.write_spec(&json!(guest::full("x86_64")), &json!({"node": machine}));
    home.within(FULL_BOOT, &["up", "--wait", "running"]).ok();
    let mut events = home.events();
    let error = home.within(FULL_BOOT, &["--json", "up"]).exits(6).error();
    assert_eq!(error["code"], "boot");
    let cause = error["causes"][0].as_str().unwrap();
    assert!(cause.starts_with("node is failed: "), "{cause}");
    assert!(cause.contains("disks"), "{cause}");

    // On a slow host the console's word stands until the journal has come.
    let why = "Ignition failed: disks: createFilesystems: filesystem at \"/dev/disk/by-label/root\" is not of the correct type";
    let mut reason = String::new();
    while !reason.starts_with(why) {
        let failed = events.next("node", "failed", FULL_BOOT);
        failed["status"]["reason"]
            .as_str()
            .unwrap()
            .clone_into(&mut reason);
    }
    let machine = home.machine("node");
    assert_eq!(machine["state"], "failed");
    assert_eq!(machine["reason"], reason.as_str());
    let console = home.kiln(&["logs", "node", "-n", "4000"]).ok().stdout;
    assert!(
        console.contains("EFI stub: UEFI Secure Boot is enabled."),
        "{console}"
    );
    assert!(
        !console.contains("is not of the correct type"),
        "the console says it too: {console}"
    );
    drop(events);
    home.down();
}
