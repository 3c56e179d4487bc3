//! Supervisors that live and do not answer, those that die under a command, and locks that nobody
//! lets go of: who looks is told, who changes something goes on, and nobody waits for ever.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::fake_support::{Running, World, wait_until};

/// Returns when it has taken effect: a busy host lets a process run on for a moment.
fn signal(process: &Running, signal: Signal) {
    kill(Pid::from_raw(process.pid), signal).unwrap();
    if signal == Signal::SIGSTOP {
        let stat = format!("/proc/{}/stat", process.pid);
        wait_until("it is stopped", || {
            fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
        });
    }
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn who_only_looks_is_told_of_a_stopped_supervisor_and_leaves_it_alone() {
    let world = World::new();
    world.nodes(2, "");
    world.ok(&["up"]);
    world.settle(3);
    let before = world.ps();
    let supervisor = world.supervisors()[0].clone();
    signal(&supervisor, Signal::SIGSTOP);
    let pid = supervisor.pid;
    let why = format!(
        "the supervisor of cluster `demo` (pid {pid}) does not answer: it is stopped, as by SIGSTOP"
    );
    let ps = world.kiln(&["ps"]);
    assert_eq!(ps.code, Some(0), "{}", ps.stderr);
    assert!(ps.took < secs(4), "{:?}", ps.took);
    assert!(
        ps.stderr
            .contains(&format!("{why}; so this is what the records say")),
        "{}",
        ps.stderr
    );
    assert!(
        ps.stderr.contains(&format!("`kill -CONT {pid}`")),
        "{}",
        ps.stderr
    );
    for (name, machine) in world.ps() {
        for key in ["state", "pid", "addresses", "reserved_ip", "started_at"] {
            assert_eq!(machine[key], before[&name][key], "{name} {key}");
        }
    }
    let wait = world.kiln(&["wait"]);
    assert_eq!(wait.code, Some(5), "{}", wait.stderr);
    assert!(wait.took < secs(4), "{:?}", wait.took);
    assert!(
        wait.stderr.starts_with(&format!("error: {why}\n")),
        "{}",
        wait.stderr
    );
    let listed = world.json(&["ls"]);
    assert_eq!(listed["clusters"][0]["machines"], json!({"ready": 2}));
    signal(&supervisor, Signal::SIGCONT);
    assert_eq!(world.ps(), before);
    assert_eq!(world.supervisors(), [supervisor]);
}

#[test]
fn who_changes_something_takes_over_from_a_stopped_supervisor() {
    let world = World::new();
    world.nodes(2, "");
    world.ok(&["up"]);
    world.settle(3);
    let pids = world.pids();
    for verbs in [["up"].as_slice(), &["pause"], &["resume"], &["start"]] {
        let old = world.supervisors()[0].clone();
        signal(&old, Signal::SIGSTOP);
        let ended = world.kiln(verbs);
        assert_eq!(ended.code, Some(0), "{verbs:?}: {}", ended.stderr);
        assert!(ended.took < secs(8), "{verbs:?}: {:?}", ended.took);
        assert_eq!(world.pids(), pids, "{verbs:?}");
        let new = world.supervisors();
        assert_eq!(new.len(), 1, "{verbs:?}");
        assert_ne!(new[0].pid, old.pid, "{verbs:?}");
    }
    signal(&world.supervisors()[0], Signal::SIGSTOP);
    world.ok(&["kill"]);
    assert_eq!(
        world.states(),
        ["node-1: stopped (killed)", "node-2: stopped (killed)"]
    );
    world.ok(&["up"]);
    signal(&world.supervisors()[0], Signal::SIGSTOP);
    let down = world.kiln(&["down"]);
    assert_eq!(down.code, Some(0), "{}", down.stderr);
    assert!(down.took < secs(10), "{:?}", down.took);
    world.assert_clean();
}

#[test]
fn a_stopped_supervisor_of_a_torn_record_goes_with_its_cluster() {
    let world = World::new();
    world.nodes(1, "");
    world.ok(&["up"]);
    signal(&world.supervisors()[0], Signal::SIGSTOP);
    fs::write(world.home().join("state/clusters/demo/cluster.json"), "{").unwrap();
    let down = world.kiln(&["down"]);
    assert_eq!(down.code, Some(0), "{}", down.stderr);
    world.assert_clean();
}

#[test]
fn many_who_find_a_stopped_supervisor_replace_it_once() {
    let world = World::new();
    world.nodes(2, "");
    world.ok(&["up"]);
    world.settle(3);
    let pids = world.pids();
    signal(&world.supervisors()[0], Signal::SIGSTOP);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| world.ok(&["resume"]));
        }
    });
    assert_eq!(world.supervisors().len(), 1);
    assert_eq!(world.pids(), pids);
}

#[test]
fn a_supervisor_whose_sockets_lose_their_names_has_others() {
    let world = World::new();
    world.nodes(2, "");
    world.ok(&["up"]);
    world.settle(3);
    let before = world.ps();
    let supervisor = world.supervisors();
    let run = world.home().join("run");
    for _ in 0..3 {
        // As at the end of a session: the folder, with all that is in it.
        while fs::remove_dir_all(&run).is_err() {}
        let ps = world.kiln(&["ps"]);
        assert_eq!(ps.code, Some(0), "{}", ps.stderr);
        assert!(ps.took < secs(2), "{:?}", ps.took);
        assert_eq!(world.ps(), before);
    }
    assert_eq!(world.supervisors(), supervisor);
    // Of a folder above that is moved the kernel tells nobody: another one takes over.
    fs::rename(&run, world.home().join("moved")).unwrap();
    world.ok(&["restart", "node-1"]);
    assert_eq!(world.supervisors().len(), 1);
    assert_eq!(world.pids()["node-2"], before["node-2"]["pid"]);
    fs::remove_dir_all(world.home().join("moved")).unwrap();
    world.ok(&["pause"]);
    world.ok(&["resume"]);
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn a_new_supervisor_regains_the_sockets_whose_names_are_lost() {
    let world = World::new();
    world.nodes(2, "");
    world.ok(&["up"]);
    world.settle(3);
    let (before, qemus) = (world.ps(), world.qemus());
    for _ in 0..2 {
        world.supervisors()[0].kill();
        wait_until("it is gone", || world.supervisors().is_empty());
        fs::remove_dir_all(world.home().join("run")).unwrap();
        assert_eq!(world.ps(), before);
        wait_until("the uplink is met", || {
            world.json(&["ps"])["network"]["uplink"] == ""
        });
        assert_eq!(world.qemus(), qemus);
    }
    // By the new names as by the old: QMP, and the console.
    world.ok(&["pause", "node-1"]);
    world.ok(&["resume", "node-1"]);
    let inspected = world.json(&["inspect", "node-1"]);
    let sockets = inspected["machines"][0]["sockets"].as_str().unwrap();
    let sockets = world.path(sockets.strip_prefix("TMP/").unwrap());
    UnixStream::connect(sockets.join("console.sock")).unwrap();
    world.ok(&["stop"]);
    world.ok(&["up"]);
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn who_waits_outlives_a_supervisor() {
    let world = World::new();
    world.nodes(2, "");
    // So that the command still waits when the second of its supervisors is gone.
    let gate = world.path("report");
    world.behave(&json!({"*": {"report_at_file": gate}}));
    let up = world.start(&["up"]);
    world.settle(3);
    for _ in 0..2 {
        let old = world.supervisors()[0].clone();
        old.kill();
        wait_until("another one is there", || {
            world.supervisors().first().is_some_and(|new| *new != old)
        });
    }
    world.write("report", "");
    let up = up.end();
    assert_eq!(up.code, Some(0), "{}", up.stderr);
    assert_eq!(world.states(), ["node-1: ready", "node-2: ready"]);

    let wait = world.start(&["wait", "--for", "stopped"]);
    thread::sleep(Duration::from_millis(300));
    world.supervisors()[0].kill();
    world.ok(&["stop"]);
    let wait = wait.end();
    assert_eq!(wait.code, Some(0), "{}", wait.stderr);
}

#[test]
fn who_follows_events_hears_the_next_supervisor() {
    let world = World::new();
    world.nodes(1, "");
    world.ok(&["up"]);
    let mut events = world.command(&["events", "--json"]).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let mut next =
        || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["state"], "ready");
    world.supervisors()[0].kill();
    // As at the beginning, it is told how the machines are.
    let mut state = next();
    while state["name"] != "node-1" {
        state = next();
    }
    world.ok(&["kill"]);
    while next()["event"] != "stopped" {}
    // The end of the cluster is the end of its events.
    world.ok(&["down"]);
    let ended = events.wait_with_output().unwrap();
    assert_eq!(
        ended.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&ended.stderr)
    );
}

#[test]
fn nobody_waits_for_a_lock_for_ever() {
    let world = World::new();
    world.nodes(1, "");
    world.ok(&["up"]);
    let other = "cluster: other\nimage: {kernel: vmlinuz}\nmachines:\n  node: {accel: tcg}\n";
    world.write("spec/other.yaml", other);
    world.supervisors()[0].kill();
    let hold = |below: &str| {
        let file = File::options().write(true).open(world.home().join(below));
        let file = file.unwrap();
        file.lock().unwrap();
        file
    };
    let _spawn = hold("state/clusters/demo.spawn");
    let _reservations = hold("state/reservations.lock");
    thread::scope(|scope| {
        for args in [["ps"].as_slice(), &["-f", "other.yaml", "up"], &["stop"]] {
            let world = &world;
            scope.spawn(move || {
                let ended = world.kiln(args);
                assert_eq!(ended.code, Some(8), "{args:?}: {}", ended.stderr);
                assert!(ended.took < secs(12), "{:?}", ended.took);
                let holder = format!("(pid {}: ", std::process::id());
                assert!(ended.stderr.contains(&holder), "{}", ended.stderr);
            });
        }
    });
    assert!(!world.home().join("state/clusters/other").exists());
}

#[test]
fn an_image_that_takes_long_to_read_keeps_no_other_cluster_waiting() {
    let world = World::new();
    let image = File::create(world.path("spec/large.raw")).unwrap();
    image.set_len(6 << 30).unwrap();
    let machines = "machines:\n  node: {accel: tcg, ignition: node.ign}\n";
    let digest = "a".repeat(64);
    world.write(
        "spec/slow.yaml",
        format!(
            "cluster: slow\nimage: {{disk: large.raw, format: raw, sha256: {digest}}}\n{machines}"
        ),
    );
    world.write(
        "spec/quick.yaml",
        format!("cluster: quick\nimage: {{kernel: vmlinuz}}\n{machines}"),
    );
    let mut slow = world.command(&["-f", "slow.yaml", "up"]).spawn().unwrap();
    let begun = world.home().join("state/clusters/slow.lock");
    wait_until("it has begun", || begun.exists());
    world.ok(&["-f", "quick.yaml", "up"]);
    assert!(slow.try_wait().unwrap().is_none(), "6 GiB in no time");
    slow.kill().unwrap();
    slow.wait().unwrap();
    world.ok(&["-f", "quick.yaml", "down"]);
}
