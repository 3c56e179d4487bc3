//! `kiln explain --shell`: a command line that needs no kiln.

use std::process::Command;

use serde_json::json;

use crate::support::follow::Follow;
use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User};

#[test]
fn the_explained_command_runs_by_itself() {
    let home = Home::new(Lane::Narrow, User::Myself, "alone", &["node"]);
    home.write(
        "node.ign",
        json!({
            "ignition": {"version": "3.3.0"},
            "storage": {"files": [{"path": "/etc/told", "contents": {"source": "data:,told"}}]},
        })
        .to_string(),
    );
    home.write_spec(
        &guest::tiny("x86_64").image(""),
        &json!({"node": {"memory": "256MiB", "ignition": "node.ign"}}),
    );
    // Made, and stopped at once: from here on kiln has nothing to do with it.
    home.within(BOOT, &["up", "--wait", "running"]).ok();
    home.kiln(&["kill"]).ok();
    let shell = home.kiln(&["explain", "node", "--shell"]).ok().stdout;

    let elsewhere = tempfile::tempdir().unwrap();
    let mut qemu = Follow::of(
        Command::new("sh")
            .args(["-c", &format!("exec {shell}")])
            .env_clear()
            .current_dir(elsewhere.path()),
    );
    // It has Ignition's host name, and an address of QEMU's own network.
    let console = qemu.until("guest: node is up after", BOOT);
    drop(qemu);
    assert!(
        console.contains("Ignition finished successfully"),
        "{console}"
    );
    assert!(console.contains("/etc/told"), "{console}");
    assert!(console.contains("guest: address 10."), "{console}");
    home.down();
}
