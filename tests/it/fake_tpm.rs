//! TPMs as far as no guest is needed: the real swtpm beside the fake QEMU.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use expect_test::expect;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgid};
use serde_json::json;

use crate::fake_support::{Running, World, wait_until};

fn with_tpm() -> World {
    let world = World::new();
    world.link_tool("swtpm");
    world.nodes(1, "tpm: true");
    world
}

fn tpms(world: &World) -> Vec<Running> {
    let mut found = world.processes();
    found.retain(|process| process.argv[0].ends_with("/swtpm"));
    found
}

/// A `swtpm` that is this script.
fn script(world: &World, lines: &str) {
    world.write("bin/swtpm", format!("#!/bin/sh\n{lines}\n"));
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(world.path("bin/swtpm"), mode).unwrap();
}

#[test]
fn without_swtpm_nothing_is_made() {
    let world = World::new();
    world.nodes(1, "tpm: true");
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(4), "{}", up.stderr);
    let told = up.stderr.lines().next().unwrap();
    expect![
        "error: machine `node-1` asks for a TPM, and `swtpm`, which emulates it, is not installed"
    ]
    .assert_eq(told);
    world.assert_clean();
}

#[test]
fn a_tpm_is_beside_its_qemu_and_its_state_is_kept_until_down() {
    let world = with_tpm();
    world.ok(&["up"]);
    // The fake QEMU has no TPM initialized, so there is no state but this.
    let state = world.machine("demo", "node-1").join("tpm/state");
    fs::write(&state, "kept").unwrap();
    for _ in 0..20 {
        let [tpm] = &tpms(&world)[..] else {
            panic!("{:?}", world.processes());
        };
        let group = |pid| getpgid(Some(Pid::from_raw(pid))).unwrap();
        assert_eq!(group(tpm.pid), group(world.pids()["node-1"]));
        world.ok(&["kill"]);
        wait_until("the TPM is gone", || tpms(&world).is_empty());
        world.ok(&["start"]);
    }
    assert_eq!(fs::read_to_string(&state).unwrap(), "kept");
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn a_tpms_log_is_kept_short() {
    let world = with_tpm();
    world.ok(&["up"]);
    let log = world.machine("demo", "node-1").join("swtpm.log");
    let mut file = fs::OpenOptions::new().append(true).open(&log).unwrap();
    for _ in 0..6 {
        file.write_all(&[b'x'; 1 << 20]).unwrap();
    }
    wait_until("it is cut", || log.metadata().unwrap().len() <= 1 << 20);
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn a_tpm_outlives_the_supervisor_and_not_its_qemu() {
    let world = with_tpm();
    world.ok(&["up"]);
    let before = tpms(&world);
    let supervisor = world.json(&["ps"])["supervisor"]["pid"].as_i64().unwrap();
    let supervisor = Pid::from_raw(supervisor.try_into().unwrap());
    kill(supervisor, Signal::SIGKILL).unwrap();
    assert_eq!(world.states(), ["node-1: ready"]);
    assert_eq!(tpms(&world), before);
    // One that cannot see the end of its channel is killed with the group all the same.
    kill(Pid::from_raw(before[0].pid), Signal::SIGSTOP).unwrap();
    world.ok(&["kill"]);
    wait_until("the TPM is gone", || tpms(&world).is_empty());
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn a_tpm_that_does_not_start_has_its_words_told() {
    let world = World::new();
    script(&world, "echo 'swtpm: broken seal' >&2; exit 3");
    world.nodes(1, "tpm: true\nrestart: no");
    // QEMU ends by itself then, with words of its own; the fake one has to be ended.
    world.behave(&json!({"node-1": {"report": null}}));
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(6), "{}", up.stderr);
    assert_eq!(
        world.states(),
        ["node-1: crashed (its TPM ended (status 3): swtpm: broken seal)"]
    );
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn a_machine_whose_tpm_dies_has_crashed() {
    let world = with_tpm();
    world.nodes(1, "tpm: true\nrestart: no");
    world.ok(&["up"]);
    tpms(&world)[0].kill();
    wait_until("the machine is seen to have crashed", || {
        world.states() == ["node-1: crashed (its TPM ended (signal 9))"]
    });
    world.ok(&["down"]);
    world.assert_clean();
}
