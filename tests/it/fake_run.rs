//! `kiln run` on this host: its exit codes, and that nothing is left however it ends.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::fake_support::{World, wait_until};

fn world() -> World {
    let world = World::new();
    spec(&world, "disks: [{size: 1MiB, serial: data, keep: true}]");
    for tool in ["sh", "cat", "env", "sleep"] {
        world.link_tool(tool);
    }
    world
}

fn spec(world: &World, more: &str) {
    world.spec(&format!(
        "cluster: demo\nimage: {{kernel: vmlinuz}}\nmachines:\n  node:\n    count: 2\n    accel: tcg\n    {more}\n"
    ));
}

#[test]
fn the_exit_code_is_the_commands_and_nothing_is_left() {
    let world = world();
    let script = r#"echo "$KILN_MACHINES"; cat "$KILN_SSH_CONFIG" >&2; exit 7"#;
    let ended = world.kiln(&["run", "kiln.yaml", "--here", "--", "sh", "-c", script]);
    assert_eq!(ended.code, Some(7), "{}", ended.stderr);
    assert_eq!(ended.stdout, "node-1 node-2\n");
    assert!(ended.stderr.contains("Host node-2 node-2.demo-run-"));
    world.assert_clean();
}

#[test]
fn the_real_cluster_stands_beside_it() {
    let world = world();
    world.ok(&["up"]);
    let before = world.ps();
    let script = r#"case $KILN_CLUSTER in demo-run-*) ;; *) exit 1;; esac"#;
    let ended = world.kiln(&["run", "--here", "--", "sh", "-c", script]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(world.ps(), before);
    world.ok(&["down", "--remove-disks"]);
    world.assert_clean();
}

#[test]
fn what_cannot_run_is_refused_before_anything_is_made() {
    let world = world();
    for (args, code) in [
        (&["run", "--on", "node-3", "--", "true"][..], 7),
        (&["run", "missing.yaml", "--", "true"], 3),
        (&["-c", "demo", "run", "--", "true"], 2),
        (&["-f", "kiln.yaml", "run", "kiln.yaml", "--", "true"], 2),
        (&["run", "--here"], 2),
    ] {
        let ended = world.kiln(args);
        assert_eq!(ended.code, Some(code), "{args:?}: {}", ended.stderr);
    }
    spec(&world, "profile: none");
    let ended = world.kiln(&["run", "--", "true"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("`--here`"), "{}", ended.stderr);
    world.assert_clean();
}

#[test]
fn a_failed_boot_and_a_missing_program_leave_nothing() {
    let world = world();
    let missing = world.kiln(&["run", "--here", "--", "no-such-program"]);
    assert_eq!(missing.code, Some(1), "{}", missing.stderr);
    world.assert_clean();
    world.behave(&json!({"node-2": {"panic": 30, "report": null}}));
    let failed = world.kiln(&["run", "--json", "--here", "--", "true"]);
    assert_eq!(failed.code, Some(6), "{}", failed.stderr);
    assert!(
        failed.stdout.contains(r#""code":"boot""#),
        "{}",
        failed.stdout
    );
    world.assert_clean();
}

#[test]
fn signals_end_it_cleanly_at_the_boot_and_at_the_command() {
    let world = world();
    let started = world.path("started");
    let script = format!("echo > {}; exec sleep 60", started.display());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // The guests never report: it is in the boot.
        world.behave(&json!({"*": {"report": null}}));
        let going = world.start(&["run", "--here", "--", "true"]);
        world.settle(3);
        kill(Pid::from_raw(going.pid()), signal).unwrap();
        assert_eq!(going.end().code, Some(128 + signal as i32));
        world.assert_clean();
        if signal == Signal::SIGINT {
            // The command's part is to hear of a Ctrl-C from the terminal.
            continue;
        }
        world.behave(&json!({}));
        let going = world.start(&["run", "--here", "--", "sh", "-c", &script]);
        wait_until("the command runs", || started.exists());
        kill(Pid::from_raw(going.pid()), signal).unwrap();
        let ended = going.end();
        assert_eq!(ended.code, Some(128 + signal as i32), "{}", ended.stderr);
        fs::remove_file(&started).unwrap();
        world.assert_clean();
    }
}

#[test]
fn gc_takes_away_what_a_killed_run_left_and_no_other() {
    let world = world();
    world.behave(&json!({"*": {"report": null}}));
    let going = world.start(&["run", "--here", "--", "true"]);
    world.settle(3);
    let told = world.ok(&["gc"]);
    assert!(!told.contains("demo-run"), "{told}");
    assert_eq!(world.qemus().len(), 3);
    let ended = going.killed_after(Duration::ZERO);
    assert_eq!(ended.signal, Some(9));
    // Its `up` dies with it, at some step.
    wait_until("its `up` is gone", || {
        world.ok(&["gc"]).contains("removed cluster demo-run-")
    });
    world.assert_clean();
}
