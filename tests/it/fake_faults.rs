//! QEMUs and guests that go wrong: the right verdict, in time, and a clean way out.

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use expect_test::expect;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::fake_support::{Ended, World, holds, wait_until, walk};

/// The command's error, without the lines of progress before it.
fn error(ended: &Ended) -> &str {
    let at = ended.stderr.find("error: ").unwrap_or_default();
    &ended.stderr[at..]
}

/// `kiln ps` says so of `node-1`, within `limit`.
#[track_caller]
fn becomes(world: &World, want: &str, limit: Duration) {
    let begun = Instant::now();
    loop {
        let states = world.states();
        if states[0] == want {
            return;
        }
        assert!(begun.elapsed() < limit, "{states:?}, not {want}");
    }
}

#[test]
fn a_qemu_that_ends_at_once_is_told_in_its_own_words_and_leaves_nothing() {
    let world = World::new();
    world.nodes(3, "");
    world.behave(&json!({"node-2": {"exit": {"code": 1, "stderr": "-device x: no such device"}}}));
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(6), "{}", up.stderr);
    assert_eq!(up.stdout, "");
    expect![[r#"
        error: machine node-2 did not come up
          caused by: node-2 is crashed: QEMU exited with status 1: TMP/bin/qemu-system-x86_64: -device x: no such device

        hint: nothing was left behind; `kiln explain MACHINE` shows what QEMU is told
    "#]].assert_eq(error(&up));
    world.assert_clean();
    // Nothing stands in the way of the next one.
    world.behave(&json!({}));
    world.ok(&["up"]);
}

#[test]
fn a_machine_that_does_not_start_takes_only_itself_with_it() {
    let world = World::new();
    world.nodes(2, "");
    world.ok(&["up"]);
    let pids = world.pids();
    world.nodes(3, "");
    world.behave(&json!({"node-3": {"exit": {"code": 1, "stderr": "no room"}}}));
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(6), "{}", up.stderr);
    assert_eq!(world.pids(), pids);
    assert_eq!(world.states(), ["node-1: ready", "node-2: ready"]);
    assert!(!world.machine("demo", "node-3").exists());
}

#[test]
fn a_qemu_that_speaks_nonsense_is_not_waited_for() {
    let world = World::new();
    world.nodes(1, "");
    world.behave(&json!({"node-1": {"nonsense": true}}));
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(6), "{}", up.stderr);
    assert!(up.took < Duration::from_secs(10), "{:?}", up.took);
    expect![[r#"
        error: machine node-1 did not come up
          caused by: node-1 is crashed: QMP does not work: the peer of the QMP socket greeted with `220 fake ESMTP ready`, which is not QMP

        hint: nothing was left behind; `kiln explain MACHINE` shows what QEMU is told
    "#]]
    .assert_eq(error(&up));
    world.assert_clean();
}

#[test]
fn a_qemu_that_never_greets_keeps_nobody_longer_than_they_will_wait() {
    let world = World::new();
    world.nodes(1, "");
    world.behave(&json!({"*": {"hang": true}}));
    let up = world.kiln(&["up", "--timeout", "500ms"]);
    assert_eq!(up.code, Some(5), "{}", up.stderr);
    expect![[r#"
        error: not every machine was ready within 500ms
          caused by: node-1 is starting, and came as far as: start

        hint: the machines run on; `kiln -c demo logs node-1 -f` shows what it does, `kiln -c demo wait --timeout 10m` waits longer
    "#]].assert_eq(error(&up));
    let down = world.kiln(&["down"]);
    assert_eq!(down.code, Some(0), "{}", down.stderr);
    assert!(down.took < Duration::from_secs(6), "{:?}", down.took);
    world.assert_clean();
}

#[test]
fn a_guest_that_does_not_hear_the_button_goes_within_its_grace_and_five_seconds() {
    let world = World::new();
    world.nodes(2, "");
    world.behave(&json!({"*": {"ignore_powerdown": true}, "node-2": {"ignore_powerdown": true, "ignore_quit": true}}));
    world.ok(&["up"]);
    let stop = world.kiln(&["stop", "--timeout", "1s"]);
    assert_eq!(stop.code, Some(0), "{}", stop.stderr);
    assert!(stop.took >= Duration::from_secs(3), "{:?}", stop.took);
    assert!(stop.took <= Duration::from_secs(6), "{:?}", stop.took);
    assert_eq!(world.states(), ["node-1: stopped", "node-2: stopped"]);
}

#[test]
fn a_kernel_panic_is_told_with_its_line() {
    let world = World::new();
    world.nodes(1, "restart: no");
    world.behave(&json!({"*": {"report": null, "panic": 30}}));
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(6), "{}", up.stderr);
    expect![[r#"
        error: machine node-1 did not come up
          caused by: node-1 is crashed: the guest's kernel panicked: [ 1.000000] Kernel panic - not syncing: fake

        hint: `kiln -c demo logs node-1` shows its console, `kiln -c demo logs node-1 --qemu` what QEMU said
    "#]].assert_eq(error(&up));
    assert_eq!(
        world.states(),
        [
            "node-1: crashed (the guest's kernel panicked: [ 1.000000] Kernel panic - not syncing: fake)"
        ]
    );
}

#[test]
fn a_guest_whose_ignition_fails_is_told_with_the_line() {
    let world = World::new();
    world.nodes(1, "");
    world.behave(&json!({"*": {"report": null, "console": [
        [0, "[    0.000000] Linux version 6\n"],
        [5, "[    2.000000] ignition[512]: CRITICAL : failed to fetch config: invalid character\n"],
        [5, "[    2.100000] systemd[1]: ignition-fetch.service: Failed with result 'exit-code'.\n"],
        [5, "You are in emergency mode. After logging in, type \"journalctl -xb\".\n"],
    ]}}));
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(6), "{}", up.stderr);
    expect![[r#"
        error: machine node-1 did not come up
          caused by: node-1 is failed: You are in emergency mode. After logging in, type "journalctl -xb".

        hint: `kiln -c demo logs node-1` shows its console, `kiln -c demo logs node-1 --qemu` what QEMU said
    "#]].assert_eq(error(&up));
    // It runs on, for whoever wants to look.
    assert_eq!(world.pids().len(), 1);
    world.behave(&json!({}));
    world.ok(&["up"]);
    assert_eq!(world.states(), ["node-1: ready"]);
}

#[test]
fn a_guest_that_powers_itself_off_is_stopped() {
    let world = World::new();
    world.nodes(1, "");
    world.behave(&json!({"*": {"poweroff": 100}}));
    world.ok(&["up", "--wait", "running"]);
    world.ok(&["wait", "--for", "stopped"]);
    assert_eq!(
        world.states(),
        ["node-1: stopped (powered off by the guest)"]
    );
}

#[test]
fn a_guest_that_resets_in_a_loop_has_failed_and_one_that_updates_has_not() {
    let world = World::new();
    world.nodes(1, "");
    world.behave(&json!({"*": {"report": null, "resets": [5, 10, 15, 20, 25, 30, 35]}}));
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(6), "{}", up.stderr);
    assert!(
        error(&up).contains("resets itself in a loop"),
        "{}",
        up.stderr
    );
    world.ok(&["down"]);
    world.behave(&json!({"*": {"report": 100, "resets": [5, 10]}}));
    world.ok(&["up"]);
    assert_eq!(world.states(), ["node-1: ready"]);
}

#[test]
fn a_full_disk_pauses_and_resume_goes_on() {
    let world = World::new();
    world.nodes(1, "");
    world.behave(&json!({"*": {"disk_full": 50}}));
    world.ok(&["up", "--wait", "running"]);
    becomes(
        &world,
        "node-1: paused (host disk full)",
        Duration::from_secs(5),
    );
    let pids = world.pids();
    world.ok(&["resume"]);
    becomes(&world, "node-1: ready", Duration::from_secs(5));
    assert_eq!(world.pids(), pids);
}

#[test]
fn events_without_end_do_no_harm() {
    let world = World::new();
    world.nodes(1, "");
    world.behave(&json!({"*": {"flood": 50_000}}));
    world.ok(&["up"]);
    assert_eq!(world.states(), ["node-1: ready"]);
    assert!(resident(&world) < 48 * 1024, "{} KiB", resident(&world));
}

/// The supervisor's memory in KiB. A debug build is larger than what users get.
fn resident(world: &World) -> u64 {
    let pid = world.supervisors()[0].pid;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.unwrap().split_whitespace().nth(1).unwrap();
    number.parse().unwrap()
}

#[test]
fn a_console_without_end_is_cut() {
    let world = World::new();
    world.nodes(1, "");
    // 48 MiB in pieces, as a guest prints them.
    let piece = format!("{}\n", "x".repeat(1023)).repeat(1024);
    let pieces: Vec<_> = (0..48).map(|at| json!([at * 20, piece])).collect();
    world.behave(&json!({"*": {"console": pieces, "report": 1100}}));
    world.ok(&["up"]);
    // The log and the one before it.
    let used = || {
        let mut used = 0;
        walk(&world.machine("demo", "node-1"), &mut |path, metadata| {
            if path.to_string_lossy().contains("console.log") {
                used += metadata.len();
            }
        });
        used
    };
    wait_until("the log is cut", || used() <= 32 << 20);
    assert!(used() > 0);
    assert!(resident(&world) < 48 * 1024, "{} KiB", resident(&world));
    assert!(!world.ok(&["logs", "node-1", "-n", "3"]).is_empty());
}

#[test]
fn a_qemu_that_is_killed_is_crashed_at_once_and_started_again_by_policy() {
    let world = World::new();
    world.nodes(1, "");
    world.ok(&["up"]);
    let first = world.pids()["node-1"];
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    becomes(
        &world,
        "node-1: crashed (signal 9; will be started again)",
        Duration::from_secs(2),
    );
    becomes(&world, "node-1: ready", Duration::from_secs(10));
    assert_ne!(world.pids()["node-1"], first);
}

#[test]
fn a_machine_that_keeps_dying_is_started_after_longer_and_longer_pauses() {
    let world = World::new();
    world.nodes(1, "profile: none");
    // It comes up and dies at once: without a report, to run is all that it can do.
    world.behave(&json!({"*": {"report": null, "abort": 50}}));
    world.ok(&["up", "--wait", "none"]);
    let begun = Instant::now();
    let mut pids = Vec::new();
    while pids.len() < 3 {
        if let Some(pid) = world.pids().get("node-1")
            && pids.last().is_none_or(|(last, _)| last != pid)
        {
            pids.push((*pid, begun.elapsed()));
        }
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
    let pauses: Vec<Duration> = pids.windows(2).map(|two| two[1].1 - two[0].1).collect();
    assert!(pauses[0] >= Duration::from_millis(900), "{pauses:?}");
    assert!(pauses[1] >= Duration::from_millis(1900), "{pauses:?}");
    let down = world.kiln(&["down"]);
    assert_eq!(down.code, Some(0), "{}", down.stderr);
    world.assert_clean();
}

#[test]
fn a_qemu_that_was_adopted_and_is_killed_is_told_with_its_signal() {
    let world = World::new();
    world.nodes(1, "restart: no");
    world.ok(&["up"]);
    world.supervisors()[0].kill();
    let pid = world.pids()["node-1"];
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    // Who was its parent has died: only what the kernel tells everybody is known, which is nothing
    // before Linux 6.15 once init has reaped it.
    wait_until("it is crashed", || {
        world.ps()["node-1"]["state"] == "crashed"
    });
    let told = world.ps()["node-1"]["reason"].clone();
    let unknown = "QEMU was killed or ended; how, its parent alone was told";
    assert!(told == "signal 9" || told == unknown, "{told}");
}

#[test]
fn a_machine_that_waits_for_its_restart_gets_it_from_the_next_supervisor() {
    let world = World::new();
    world.nodes(2, "");
    world.ok(&["up"]);
    let pids = world.pids();
    kill(Pid::from_raw(pids["node-1"]), Signal::SIGKILL).unwrap();
    let record = world.machine("demo", "node-1").join("run.json");
    wait_until("its restart is due", || {
        holds(&record, "will be started again")
    });
    world.supervisors()[0].kill();
    becomes(&world, "node-1: ready", Duration::from_secs(10));
    assert_ne!(world.pids()["node-1"], pids["node-1"]);
    assert_eq!(world.pids()["node-2"], pids["node-2"]);
}

#[test]
fn a_machine_that_shall_not_restart_does_not() {
    let world = World::new();
    world.nodes(1, "restart: no");
    world.ok(&["up"]);
    kill(Pid::from_raw(world.pids()["node-1"]), Signal::SIGKILL).unwrap();
    becomes(&world, "node-1: crashed (signal 9)", Duration::from_secs(2));
    world.ok(&["up"]);
    assert_eq!(world.states(), ["node-1: ready"]);
}

#[test]
fn a_qemu_that_is_stopped_is_unresponsive_and_can_be_killed() {
    let world = World::new();
    world.nodes(1, "");
    world.ok(&["up"]);
    let pid = Pid::from_raw(world.pids()["node-1"]);
    kill(pid, Signal::SIGSTOP).unwrap();
    becomes(
        &world,
        "node-1: unresponsive (QEMU does not answer on QMP)",
        Duration::from_secs(6),
    );
    kill(pid, Signal::SIGCONT).unwrap();
    becomes(&world, "node-1: ready", Duration::from_secs(6));
    kill(pid, Signal::SIGSTOP).unwrap();
    let killed = world.kiln(&["kill"]);
    assert_eq!(killed.code, Some(0), "{}", killed.stderr);
    assert!(killed.took < Duration::from_secs(2), "{:?}", killed.took);
    assert_eq!(world.states(), ["node-1: stopped (killed)"]);
}

#[test]
fn an_uplink_that_does_not_start_is_told_and_the_machines_run() {
    let world = World::new();
    world.nodes(1, "");
    world.behave(&json!({"uplink": {"exit": {"code": 1, "stderr": "slirp is not built in"}}}));
    world.ok(&["up"]);
    assert_eq!(world.states(), ["node-1: ready"]);
    wait_until("the trouble is told", || {
        world.json(&["ps"])["network"]["uplink"] != ""
    });
    let told = world.json(&["ps"])["network"]["uplink"].clone();
    expect![
        "QEMU's user network ended: status 1: TMP/bin/qemu-system-x86_64: slirp is not built in"
    ]
    .assert_eq(&world.plain(told.as_str().unwrap()));
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn ports_that_were_taken_while_nobody_listened_are_told() {
    let world = World::new();
    world.nodes(1, "ports: [\":80\"]");
    world.ok(&["up"]);
    let port = world.ps()["node-1"]["ports"][0]["host"].as_u64().unwrap();
    let address = (Ipv4Addr::LOCALHOST, u16::try_from(port).unwrap());
    world.supervisors()[0].kill();
    wait_until("its port is free", || TcpListener::bind(address).is_ok());
    let taken = TcpListener::bind(address).unwrap();
    let ps = world.kiln(&["ps"]);
    let note = format!(
        "its ports are not published: cannot listen on 127.0.0.1:{port} for the guest's port 80: Address already in use (os error 98); `kiln up` tries again"
    );
    assert!(
        ps.stderr.contains(&format!("note: node-1: {note}\n")),
        "{}",
        ps.stderr
    );
    assert_eq!(world.ps()["node-1"]["state"], "ready");
    assert_eq!(world.ps()["node-1"]["notes"], json!([note]));
    assert!(world.ok(&["events", "--no-follow"]).contains(&note));
    drop(taken);
    let pids = world.pids();
    world.ok(&["up"]);
    assert_eq!(world.pids(), pids);
    assert_eq!(world.ps()["node-1"]["notes"], json!([]));
}

#[test]
fn a_guest_that_rebooted_unwatched_is_not_ready_by_its_old_report() {
    let world = World::new();
    world.nodes(2, "");
    let again = "[    0.000000] Linux version 6.1.0-fake again\n";
    let first = "[    0.000000] Linux version 6.1.0-fake\n";
    world.behave(&json!({
        "node-1": {"report_once": true, "console": [[0, first], [2500, again]]},
        "node-2": {"report_once": true, "console": [[0, first], [2500, "[    2.500000] audit: again\n"]]},
    }));
    world.ok(&["up"]);
    world.supervisors()[0].kill();
    assert_eq!(world.states(), ["node-1: ready", "node-2: ready"]);
    world.supervisors()[0].kill();
    let log = world.machine("demo", "node-1").join("console.log");
    wait_until("it has rebooted", || holds(&log, "again"));
    let ps = world.ps();
    assert_eq!(
        (&ps["node-1"]["state"], &ps["node-1"]["phase"]),
        (&json!("running"), &json!("kernel"))
    );
    assert_eq!(ps["node-2"]["state"], "ready");
}

#[test]
fn a_guest_that_gave_up_unwatched_has_failed() {
    let world = World::new();
    world.nodes(1, "");
    world.behave(&json!({"*": {"report": null, "console": [
        [0, "[    0.000000] Linux version 6\n"],
        [1500, "You are in emergency mode. After logging in, type \"journalctl -xb\".\n"],
    ]}}));
    world.ok(&["up", "--wait", "running"]);
    let record = world.machine("demo", "node-1").join("run.json");
    wait_until("that is recorded", || holds(&record, "running"));
    world.supervisors()[0].kill();
    let log = world.machine("demo", "node-1").join("console.log");
    wait_until("it has given up", || holds(&log, "emergency"));
    assert_eq!(
        world.states(),
        ["node-1: failed (You are in emergency mode. After logging in, type \"journalctl -xb\".)"]
    );
}

#[test]
fn all_logs_are_kept_short() {
    let world = World::new();
    world.nodes(1, "");
    world.ok(&["up"]);
    world.settle(2);
    let cluster = world.home().join("state/clusters/demo");
    let grow = |log: &Path, mebibytes: usize| {
        let mut file = File::options().append(true).open(log).unwrap();
        for _ in 0..mebibytes {
            file.write_all(&[b'x'; 1 << 20]).unwrap();
        }
    };
    let used = |folder: &Path| {
        let mut used = 0;
        walk(folder, &mut |path, metadata| {
            if path.to_string_lossy().contains(".log") {
                used += metadata.len();
            }
        });
        used
    };
    // QEMU goes on at the beginning of a log that was cut, and so does the supervisor.
    for (pid, number) in [(world.pids()["node-1"], 2), (world.supervisors()[0].pid, 2)] {
        let about = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
        let flags = about.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
        assert_ne!(flags & nix::libc::O_APPEND, 0, "{about}");
    }
    let logs = [
        world.machine("demo", "node-1").join("qemu.log"),
        cluster.join("uplink/qemu.log"),
        cluster.join("supervisor.log"),
    ];
    for log in &logs {
        grow(log, 6);
    }
    wait_until("they are cut", || used(&cluster) <= 7 << 20);
    // What grew while nobody watched is cut by the next supervisor.
    world.supervisors()[0].kill();
    wait_until("it is gone", || world.supervisors().is_empty());
    grow(&world.machine("demo", "node-1").join("console.log"), 40);
    for log in &logs {
        grow(log, 6);
    }
    world.ok(&["ps"]);
    wait_until("they are cut", || used(&cluster) <= 23 << 20);
    assert!(used(&world.machine("demo", "node-1")) <= 32 << 20);
    // What was there last is still there.
    assert!(world.ok(&["logs", "node-1", "--qemu"]).len() >= 1 << 20);
}
