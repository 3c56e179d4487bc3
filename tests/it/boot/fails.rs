//! Guests that do not come up: the verdict is the right one, with the lines that tell.

use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::follow::Follow;
use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User};
use crate::support::process;

fn home_with(config: &Value) -> Home {
    let home = Home::new(Lane::Narrow, User::Myself, "fails", &["node"]);
    home.write("node.ign", config.to_string());
    home.write_spec(
        &guest::tiny("x86_64").image(""),
        &json!({"node": {"memory": "256MiB", "ignition": "node.ign"}}),
    );
    home
}

/// The user's config takes the report away: all that is left is silence, which has a deadline.
#[test]
fn a_guest_that_never_reports_is_running_and_out_of_time() {
    let home = home_with(&json!({
        "ignition": {"version": "3.3.0"},
        "storage": {"files": [
            {"path": "/etc/kiln/report", "overwrite": true, "contents": {"source": "data:,"}},
        ]},
    }));
    home.within(BOOT, &["up", "--wait", "running"]).ok();
    let mut console = Follow::of(home.command().args(["logs", "node", "-f"]));
    console.until("guest: node is up after", BOOT);
    // There is nothing to do, and what was to be waited for does not come.
    let timeout = Duration::from_secs(5);
    let up = home
        .within(BOOT, &["--json", "up", "--timeout", "5s"])
        .exits(5)
        .took_at_most(timeout + Duration::from_secs(1));
    assert!(up.took >= timeout, "{up}");
    let error = up.error();
    assert_eq!(error["code"], "timeout");
    assert_eq!(error["message"], "not every machine was ready within 5s");
    let cause = error["causes"][0].as_str().unwrap();
    let logs = home.kiln(&["logs", "node", "-n", "1"]).ok();
    assert_eq!(
        cause,
        format!(
            "node is running, and came as far as: userspace; its console ends with: {}",
            logs.stdout.trim()
        )
    );
    assert!(
        error["hint"].as_str().unwrap().contains("logs node"),
        "{up}"
    );
    // It runs on, and can be looked into.
    let machine = home.machine("node");
    assert_eq!(machine["state"], "running");
    assert_eq!(machine["ready"], false);
    assert_eq!(machine["addresses"][0]["ip"], machine["reserved_ip"]);
    assert_eq!(home.ssh("node", "hostname"), "node\n");
    home.kiln(&["wait", "node", "--for", "address"]).ok();
    home.down();
}

/// Nothing that can be seen from the host is wrong with this config: the disk is not there.
#[test]
fn a_config_that_fails_in_the_guest_is_told_with_its_stage() {
    let home = home_with(&json!({
        "ignition": {"version": "3.3.0"},
        "storage": {"disks": [
            {"device": "/dev/disk/by-id/virtio-absent", "wipeTable": true},
        ]},
    }));
    home.kiln(&["validate"]).ok();
    let up = home.within(BOOT, &["--json", "up"]).exits(6);
    let console = home.cluster().machine("node").console_log();
    let silent = SystemTime::now()
        .duration_since(console.metadata().unwrap().modified().unwrap())
        .unwrap_or_default();
    assert!(
        silent <= Duration::from_secs(5),
        "told {silent:?} after the last line"
    );
    let error = up.error();
    assert_eq!(error["code"], "boot");
    let cause = error["causes"][0].as_str().unwrap();
    assert!(cause.starts_with("node is failed: "), "{cause}");
    assert!(cause.contains("disks"), "{cause}");
    let machine = home.machine("node");
    assert_eq!(machine["state"], "failed");
    assert!(
        machine["reason"].as_str().unwrap().contains("disks"),
        "{machine}"
    );
    let events = home.kiln(&["events", "--no-follow"]).ok();
    assert!(events.stdout.contains("failed"), "{events}");
    // Whoever takes over knows it too.
    process::signal(home.supervisor(), Signal::SIGKILL);
    let adopted = home.machine("node");
    for same in ["pid", "state", "reason"] {
        assert_eq!(adopted[same], machine[same]);
    }
    // It hears no power button: nobody waits a minute for it.
    home.within(BOOT, &["stop"])
        .ok()
        .took_at_most(Duration::from_secs(10));
    home.down();
}
