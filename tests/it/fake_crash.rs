//! Processes of kiln itself that are killed, many that run at once, and files that were torn.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::fake_support::{World, wait_until};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn machines_outlive_their_supervisor_and_are_adopted() {
    let world = World::new();
    world.nodes(3, "");
    world.behave(&json!({"*": {"addresses": ["10.213.7.50"]}}));
    world.ok(&["up"]);
    world.ok(&["pause", "node-2"]);
    world.ok(&["stop", "node-3"]);
    let before = world.ps();
    for _ in 0..3 {
        let old = world.supervisors()[0].clone();
        old.kill();
        let ps = world.kiln(&["ps"]);
        assert_eq!(ps.code, Some(0), "{}", ps.stderr);
        assert!(ps.took < Duration::from_secs(2), "{:?}", ps.took);
        assert_eq!(world.ps(), before);
        let new = world.supervisors();
        assert_eq!(new.len(), 1);
        assert_ne!(new[0].pid, old.pid);
    }
    world.ok(&["resume", "node-2"]);
    world.ok(&["up"]);
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn a_supervisor_may_die_at_any_moment_of_a_start() {
    let world = World::new();
    world.nodes(2, "");
    world.ok(&["up"]);
    for round in 0..8 {
        world.ok(&["stop", "--timeout", "0s"]);
        let supervisor = world.supervisors()[0].clone();
        let going = world.start(&["start"]);
        thread::sleep(ms(round * 6));
        supervisor.kill();
        // It lost its supervisor and says so, or was done before.
        let ended = going.end();
        assert!(matches!(ended.code, Some(0 | 1 | 5 | 6)), "{ended:?}");
        world.ok(&["up"]);
        assert_eq!(world.states(), ["node-1: ready", "node-2: ready"]);
        world.settle(3);
        assert_eq!(world.supervisors().len(), 1);
    }
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn a_machine_that_died_unwatched_is_crashed() {
    let world = World::new();
    world.nodes(2, "");
    world.ok(&["up"]);
    world.supervisors()[0].kill();
    let pid = world
        .qemus()
        .iter()
        .find(|qemu| qemu.argv.iter().any(|word| word.contains("demo/node-1")))
        .unwrap()
        .clone();
    pid.kill();
    wait_until("it is gone", || {
        world.qemus().iter().all(|qemu| qemu.pid != pid.pid)
    });
    assert_eq!(
        world.states(),
        [
            "node-1: crashed (QEMU ended while no supervisor watched it)",
            "node-2: ready"
        ]
    );
    world.ok(&["up"]);
    assert_eq!(world.states(), ["node-1: ready", "node-2: ready"]);
}

#[test]
fn an_up_that_was_killed_at_any_moment_is_made_good_by_the_next() {
    let world = World::new();
    world.nodes(2, "ports: [\":80\"]");
    // The first one also fills the cache; how long the others take is what the rounds part.
    let whole = (0..3).map(|_| {
        let took = world.kiln(&["up"]).took;
        world.ok(&["down", "--timeout", "0s"]);
        took
    });
    let whole = whole.min().unwrap();
    let mut killed = 0;
    for round in 0..10 {
        // From the first instant to the end, every other time with a `gc` between.
        let ended = world.start(&["up"]).killed_after(whole * round / 10);
        killed += u32::from(ended.signal == Some(9));
        if round % 2 == 0 {
            world.ok(&["gc"]);
        }
        let up = world.kiln(&["up"]);
        assert_eq!(up.code, Some(0), "round {round}: {}", up.stderr);
        assert_eq!(world.states(), ["node-1: ready", "node-2: ready"]);
        // One that the killed `up` started may still find out that it came too late.
        wait_until("one supervisor is left", || world.supervisors().len() == 1);
        world.ok(&["down", "--timeout", "0s"]);
        world.assert_clean();
    }
    assert!(killed > 5, "{killed}");
}

#[test]
fn after_a_killed_up_down_or_gc_alone_is_enough() {
    let world = World::new();
    world.write("spec/disk.raw", vec![7; 1 << 20]);
    world.spec("cluster: demo\nimage: ./disk.raw\nmachines:\n  node: {count: 2, accel: tcg, ignition: node.ign}\n");
    let whole = world.kiln(&["up"]).took;
    world.ok(&["down", "--timeout", "0s"]);
    for round in 0..10 {
        world.start(&["up"]).killed_after(whole * round / 10);
        if round % 2 == 0 {
            world.ok(&["gc"]);
        }
        // Nothing may be there yet, or no longer.
        let down = world.kiln(&["down", "--timeout", "0s"]);
        assert_eq!(down.code, Some(0), "round {round}: {}", down.stderr);
        world.ok(&["gc"]);
        world.assert_clean();
    }
}

#[test]
fn a_down_that_was_killed_at_any_moment_is_ended_by_the_next() {
    let world = World::new();
    world.nodes(2, "");
    for round in 0..10 {
        world.ok(&["up"]);
        world.start(&["down"]).killed_after(ms(round * 9));
        let down = world.kiln(&["down"]);
        assert_eq!(down.code, Some(0), "round {round}: {}", down.stderr);
        world.ok(&["gc"]);
        world.assert_clean();
    }
}

#[test]
fn a_scaling_that_was_killed_at_any_moment_is_made_good() {
    let world = World::new();
    for round in 0..9 {
        world.nodes(3, "");
        world.ok(&["up"]);
        let kept = world.pids();
        world.nodes(2, "");
        world.start(&["up"]).killed_after(ms(round * 8));
        match round % 3 {
            0 => world
                .supervisors()
                .iter()
                .for_each(|process| process.kill()),
            1 => drop(world.ok(&["gc"])),
            _ => {}
        }
        world.ok(&["up"]);
        let pids = world.pids();
        assert_eq!(
            pids.keys().collect::<Vec<_>>(),
            ["node-1", "node-2"],
            "round {round}"
        );
        assert!(pids.iter().all(|(name, pid)| kept[name] == *pid));
        world.settle(3);
        assert!(!world.machine("demo", "node-3").exists());
    }
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn the_same_up_twenty_times_at_once_makes_one_cluster() {
    let world = World::new();
    world.nodes(2, "");
    let ended: Vec<_> = thread::scope(|scope| {
        let all: Vec<_> = (0..20)
            .map(|_| scope.spawn(|| world.kiln(&["up"])))
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(ended.iter().any(|ended| ended.code == Some(0)));
    for ended in &ended {
        assert!(ended.took < Duration::from_secs(20), "{:?}", ended.took);
        match ended.code {
            Some(0) => {}
            Some(8) => assert!(
                ended.stderr.starts_with("error: another kiln"),
                "{}",
                ended.stderr
            ),
            _ => panic!("{ended:?}"),
        }
    }
    world.settle(3);
    assert_eq!(world.supervisors().len(), 1);
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn twenty_clusters_at_once_have_a_subnet_each() {
    let world = World::new();
    for number in 0..20 {
        let spec =
            "image: {kernel: ../vmlinuz}\nmachines:\n  node: {accel: tcg, ports: [\":80\"]}\n";
        let spec = format!("cluster: c{number}\n{spec}");
        world.write(&format!("spec/c{number}/kiln.yaml"), spec);
    }
    thread::scope(|scope| {
        for number in 0..20 {
            let world = &world;
            scope.spawn(move || {
                let file = format!("c{number}/kiln.yaml");
                world.ok(&["-f", &file, "up"]);
            });
        }
    });
    let listed = world.json(&["ls"]);
    let clusters = listed["clusters"].as_array().unwrap();
    let subnets: BTreeSet<&str> = clusters
        .iter()
        .map(|cluster| cluster["subnet"].as_str().unwrap())
        .collect();
    assert_eq!(subnets.len(), 20);
    let mut ports = BTreeSet::new();
    for number in 0..20 {
        let result = world.json(&["-c", &format!("c{number}"), "ps"]);
        ports.insert(result["machines"][0]["ports"][0]["host"].as_u64().unwrap());
    }
    assert_eq!(ports.len(), 20);
    thread::scope(|scope| {
        for number in 0..20 {
            let world = &world;
            scope.spawn(move || world.ok(&["-c", &format!("c{number}"), "down"]));
        }
    });
    world.assert_clean();
}

/// What a file may turn into when a disk or a hand is careless.
const TORN: [&str; 4] = ["", "{\"schema\": 1, \"na", "\0\0\0\0", "[1, 2]"];

#[test]
fn a_machine_whose_record_is_torn_is_damaged_and_the_others_work() {
    let world = World::new();
    world.nodes(3, "");
    for (round, garbage) in TORN.into_iter().enumerate() {
        world.ok(&["up"]);
        let pids = world.pids();
        let record = world.machine("demo", "node-2").join("machine.json");
        fs::write(&record, garbage).unwrap();
        // The supervisor that lives knows it better, until it is killed.
        world.supervisors()[0].kill();
        let states = world.states();
        assert_eq!(states[0], "node-1: ready");
        assert!(
            states[1].starts_with("node-2: damaged (`TMP/"),
            "{states:?}"
        );
        assert_eq!(states[2], "node-3: ready");
        world.ok(&["restart", "node-1"]);
        world.ok(&["stop", "node-3"]);
        assert_eq!(world.pids().get("node-3"), None);
        let listed = world.json(&["ls"]);
        assert_eq!(
            listed["clusters"][0]["machines"],
            json!({"damaged": 1, "ready": 1, "stopped": 1})
        );
        let up = world.kiln(&["up"]);
        assert_eq!(up.code, Some(1), "{}", up.stderr);
        assert!(up.stderr.contains("node-2` is damaged"), "{}", up.stderr);
        assert_eq!(fs::read_to_string(&record).unwrap(), garbage);
        if round % 2 == 0 {
            world.supervisors()[0].kill();
        }
        let down = world.kiln(&["down"]);
        assert_eq!(down.code, Some(0), "{}", down.stderr);
        assert!(pids.len() == 3);
        world.assert_clean();
    }
}

#[test]
fn a_run_record_that_is_torn_costs_nothing() {
    let world = World::new();
    world.nodes(2, "");
    for garbage in TORN {
        world.ok(&["up"]);
        let pids = world.pids();
        world.supervisors()[0].kill();
        fs::write(world.machine("demo", "node-1").join("run.json"), garbage).unwrap();
        // Found again by what stands in its arguments.
        assert_eq!(world.pids(), pids);
        world.ok(&["up"]);
        assert_eq!(world.pids(), pids);
        world.ok(&["down"]);
        world.assert_clean();
    }
}

#[test]
fn a_cluster_whose_record_is_torn_is_listed_and_goes() {
    let world = World::new();
    world.nodes(2, "");
    for (round, garbage) in TORN.into_iter().enumerate() {
        world.ok(&["up"]);
        let record = world.home().join("state/clusters/demo/cluster.json");
        fs::write(&record, garbage).unwrap();
        if round % 2 == 0 {
            world.supervisors()[0].kill();
        }
        let ls = world.ok(&["ls"]);
        assert!(
            ls.contains("damaged: `TMP/") || ls.contains("damaged: "),
            "{ls}"
        );
        // A neighbor is not kept from anything.
        world.write(
            "spec/other.yaml",
            "cluster: other\nimage: {kernel: vmlinuz}\nmachines:\n  node: {accel: tcg}\n",
        );
        world.ok(&["-f", "other.yaml", "up"]);
        world.ok(&["-f", "other.yaml", "down"]);
        let ps = world.kiln(&["ps"]);
        assert_eq!(ps.code, Some(1), "{}", ps.stderr);
        assert!(
            ps.stderr.contains("hint: `kiln -c demo down`"),
            "{}",
            ps.stderr
        );
        let down = world.kiln(&["down"]);
        assert_eq!(down.code, Some(0), "{}", down.stderr);
        world.assert_clean();
    }
}

#[test]
fn what_a_newer_kiln_wrote_is_refused_and_left_alone() {
    let world = World::new();
    world.nodes(1, "");
    world.ok(&["up"]);
    world.settle(2);
    let record = world.home().join("state/clusters/demo/cluster.json");
    let text = fs::read_to_string(&record).unwrap();
    let newer = text.replace("\"schema\": 1", "\"schema\": 2");
    assert_ne!(text, newer);
    fs::write(&record, &newer).unwrap();
    let before = world.tree();
    for verb in ["up", "plan", "ps", "stop", "start", "down"] {
        let ended = world.kiln(&[verb]);
        assert_eq!(ended.code, Some(1), "{verb}: {}", ended.stderr);
        assert!(
            ended.stderr.contains("was written by a newer kiln"),
            "{verb}: {}",
            ended.stderr
        );
    }
    assert_eq!(fs::read_to_string(&record).unwrap(), newer);
    assert_eq!(world.tree(), before);
    fs::write(&record, &text).unwrap();
    world.ok(&["up"]);
}

/// A process of this test's, which is none of kiln's.
struct Stranger(std::process::Child);

impl Stranger {
    fn new() -> Stranger {
        let mut command = Command::new("sleep");
        command.arg("600").stdin(Stdio::null());
        Stranger(command.spawn().unwrap())
    }

    /// Field 22 of its `/proc/PID/stat`.
    fn start_time(&self) -> u64 {
        let stat =
            fs::read_to_string(PathBuf::from(format!("/proc/{}/stat", self.0.id()))).unwrap();
        let after = stat.rsplit_once(')').unwrap().1;
        after.split_whitespace().nth(19).unwrap().parse().unwrap()
    }

    #[track_caller]
    fn assert_lives(&mut self) {
        assert_eq!(self.0.try_wait().unwrap(), None, "it was signalled");
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_that_is_not_ours_is_never_signalled() {
    let world = World::new();
    world.nodes(1, "");
    let mut stranger = Stranger::new();
    for (pid, start_time) in [
        (stranger.0.id(), stranger.start_time()),
        (stranger.0.id(), stranger.start_time() - 1),
        (1, 0),
    ] {
        world.ok(&["up"]);
        world.supervisors()[0].kill();
        for qemu in world.qemus() {
            qemu.kill();
        }
        wait_until("they are gone", || world.qemus().is_empty());
        let path = world.machine("demo", "node-1").join("run.json");
        let mut run: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        run["process"] = json!({"pid": pid, "start_time": start_time});
        run["state"] = json!("ready");
        fs::write(&path, run.to_string()).unwrap();
        assert_eq!(
            world.states(),
            ["node-1: crashed (QEMU ended while no supervisor watched it)"]
        );
        world.ok(&["kill"]);
        world.ok(&["stop"]);
        stranger.assert_lives();
        world.supervisors()[0].kill();
        fs::write(&path, run.to_string()).unwrap();
        world.ok(&["up"]);
        stranger.assert_lives();
        world.ok(&["down"]);
        stranger.assert_lives();
        world.assert_clean();
    }
}

#[test]
fn a_host_that_was_rebooted_is_no_fault_of_the_machines() {
    let world = World::new();
    world.nodes(2, "");
    world.ok(&["up"]);
    let before = world.ps();
    for process in world.processes() {
        process.kill();
    }
    wait_until("they are gone", || world.processes().is_empty());
    fs::remove_dir_all(world.home().join("run")).unwrap();
    for name in ["node-1", "node-2"] {
        let path = world.machine("demo", name).join("run.json");
        let mut run: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        run["boot_id"] = json!("00000000-0000-0000-0000-000000000000");
        fs::write(&path, run.to_string()).unwrap();
    }
    assert_eq!(
        world.states(),
        [
            "node-1: stopped (host rebooted)",
            "node-2: stopped (host rebooted)"
        ]
    );
    world.ok(&["up"]);
    for (name, machine) in world.ps() {
        assert_eq!(machine["state"], "ready");
        assert_eq!(machine["reserved_ip"], before[&name]["reserved_ip"]);
    }
}

#[test]
fn clusters_whose_names_ask_for_one_uid_have_two() {
    let world = World::new();
    let uid = |name: &str| {
        let spec = format!(
            "cluster: {name}\nimage: {{kernel: vmlinuz}}\nmachines:\n  node: {{accel: tcg}}\n"
        );
        world.write("spec/kiln.yaml", spec);
        world.ok(&["up"]);
        world.json(&["inspect"])["cluster"]["qemu_uid"].as_u64()
    };
    let (first, second) = (uid("aau"), uid("eqq"));
    if nix::unistd::geteuid().is_root() {
        assert_eq!(first.map(|first| first + 1), second);
    } else {
        assert_eq!((first, second), (None, None), "only root has uids to give");
    }
}
