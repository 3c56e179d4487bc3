//! Rolling: machine by machine, and what is told and left when it goes wrong or is broken off.

use std::time::Duration;

use expect_test::expect;
use serde_json::json;

use crate::fake_support::{World, wait_until};

/// The words of `rolling:` notes on stderr.
fn turns(stderr: &str) -> Vec<&str> {
    let lines = stderr.lines();
    lines
        .filter_map(|line| line.strip_prefix("note: rolling: "))
        .collect()
}

/// An error and what follows it.
fn failure(stderr: &str) -> &str {
    &stderr[stderr.find("error:").unwrap()..]
}

#[test]
fn machines_are_restarted_and_made_anew_by_turns() {
    let world = World::new();
    world.nodes(5, "");
    // Nothing runs yet: nothing is rolled.
    let up = world.kiln(&["up", "--rolling"]);
    assert_eq!((up.code, turns(&up.stderr).len()), (Some(0), 0), "{up:?}");
    let first = world.pids();
    world.nodes(5, "cpus: 2");
    let up = world.kiln(&["up", "--rolling", "2"]);
    assert_eq!(up.code, Some(0), "{}", up.stderr);
    assert_eq!(
        turns(&up.stderr),
        [
            "node-1, node-2 (1 to 2 of 5)",
            "node-3, node-4 (3 to 4 of 5)",
            "node-5 (5 of 5)"
        ]
    );
    let second = world.pids();
    assert!(second.iter().all(|(name, pid)| first[name] != *pid));
    assert!(world.ok(&["plan"]).ends_with("nothing to do\n"));

    // One that is down comes first, and those that are not named stay.
    world.ok(&["stop", "node-4"]);
    let roll = world.kiln(&["restart", "--rolling", "1", "node-3", "node-4"]);
    assert_eq!(roll.code, Some(0), "{}", roll.stderr);
    assert_eq!(turns(&roll.stderr), ["node-4 (1 of 2)", "node-3 (2 of 2)"]);
    let roll = world.kiln(&["reprovision", "node-1", "node-2", "--rolling"]);
    assert_eq!(roll.code, Some(0), "{}", roll.stderr);
    assert_eq!(turns(&roll.stderr), ["node-1 (1 of 2)", "node-2 (2 of 2)"]);
    assert_eq!(world.pids()["node-5"], second["node-5"]);

    for verb in ["up", "restart"] {
        let wrong = world.kiln(&[verb, "--rolling", "--wait", "none"]);
        assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
        assert_eq!(world.kiln(&[verb, "--rolling", "0"]).code, Some(2));
    }
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn a_roll_stops_at_the_first_failure_and_the_next_up_does_the_rest() {
    let world = World::new();
    world.nodes(3, "");
    world.ok(&["up"]);
    let before = world.pids();
    world.nodes(3, "cpus: 2");
    world.behave(&json!({"node-2": {"report": null, "panic": 1}}));
    let up = world.kiln(&["up", "--rolling"]);
    assert_eq!(up.code, Some(6), "{}", up.stderr);
    assert_eq!(turns(&up.stderr), ["node-1 (1 of 3)", "node-2 (2 of 3)"]);
    expect![[r#"
        error: the rolling stopped at node-2; done before: node-1; left as they were: node-3
          caused by: machine node-2 did not come up
          caused by: node-2 is crashed: the guest's kernel panicked: [ 1.000000] Kernel panic - not syncing: fake

        hint: `kiln -c demo logs node-2` shows its console, `kiln -c demo logs node-2 --qemu` what QEMU said; the same command does the rest
    "#]].assert_eq(failure(&up.stderr));
    let after = world.pids();
    assert_ne!(after["node-1"], before["node-1"]);
    assert_eq!(after["node-3"], before["node-3"]);
    expect![[r#"
        cluster demo: network fabric, 10.213.7.0/24
          keep      node-1 (x86_64, 10.213.7.41)
          start     node-2 (x86_64, 10.213.7.93)
          restart   node-3 (x86_64, 10.213.7.219)
                    cpus: 1 -> 2 (needs a restart)
    "#]]
    .assert_eq(&world.ok(&["plan"]));

    // What failed is started first, so that no second one is missed beside it.
    world.behave(&json!({}));
    let up = world.kiln(&["up", "--rolling"]);
    assert_eq!(up.code, Some(0), "{}", up.stderr);
    assert_eq!(turns(&up.stderr), ["node-3 (1 of 1)"]);
    assert_eq!(world.pids()["node-1"], after["node-1"]);
    assert!(world.ok(&["plan"]).ends_with("nothing to do\n"));

    world.behave(&json!({"node-1": {"report": null}}));
    let roll = world.kiln(&["restart", "--rolling", "--timeout", "500ms"]);
    assert_eq!(roll.code, Some(5), "{}", roll.stderr);
    let told = failure(&roll.stderr);
    assert!(told.contains("left as they were: node-2, node-3"), "{told}");
    assert!(
        told.contains("`kiln restart --rolling 1 node-1 node-2 node-3` does the rest"),
        "{told}"
    );
}

#[test]
fn a_cluster_that_is_not_whole_is_not_rolled() {
    let world = World::new();
    world.nodes(3, "");
    world.ok(&["up", "node-1", "node-2"]);
    let before = world.pids();
    world.nodes(3, "cpus: 2");
    world.behave(&json!({"node-3": {"exit": {"code": 1, "stderr": "no such device"}}}));
    let up = world.kiln(&["up", "--rolling"]);
    assert_eq!(up.code, Some(6), "{}", up.stderr);
    assert_eq!(turns(&up.stderr).len(), 0);
    assert_eq!(world.pids(), before);
    // As without `--rolling`: what never ran is taken away again.
    assert!(!world.machine("demo", "node-3").exists());
}

#[test]
fn whatever_is_killed_in_the_middle_the_next_up_ends_it() {
    let world = World::new();
    world.nodes(3, "");
    world.ok(&["up"]);
    for (round, delay) in [30, 120, 250, 400, 700].into_iter().enumerate() {
        let cpus = round + 2;
        world.nodes(3, &format!("cpus: {cpus}"));
        let going = world.start(&["up", "--rolling"]);
        going.killed_after(Duration::from_millis(delay));
        if round % 2 == 1 {
            for supervisor in world.supervisors() {
                supervisor.kill();
            }
        }
        let up = world.kiln(&["up", "--rolling"]);
        assert_eq!(up.code, Some(0), "after {delay} ms: {}", up.stderr);
        assert_eq!(
            world.states(),
            ["node-1: ready", "node-2: ready", "node-3: ready"]
        );
        for qemu in world.qemus() {
            let smp = ["-smp".to_owned(), cpus.to_string()];
            let has = qemu.argv.windows(2).any(|words| words == smp);
            assert!(has || qemu.name().starts_with("demo/uplink"), "{qemu:?}");
        }
        let plan = world.ok(&["plan"]);
        assert!(
            plan.ends_with("nothing to do\n"),
            "after {delay} ms: {plan}"
        );
    }
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn a_scaling_that_is_killed_is_ended_by_the_next_up() {
    let world = World::new();
    world.nodes(3, "memory: 64MiB");
    world.ok(&["up"]);
    let three = world.pids();
    for (count, delay) in [(5, 20), (3, 40), (6, 80), (3, 120), (7, 200), (2, 300)] {
        let scale = format!("node={count}");
        world
            .start(&["up", "--scale", &scale])
            .killed_after(Duration::from_millis(delay));
        if count > 5 {
            for supervisor in world.supervisors() {
                supervisor.kill();
            }
        }
        world.ok(&["up", "--scale", &scale]);
        let pids = world.pids();
        assert_eq!(pids.len(), count, "{pids:?}");
        for (name, pid) in three.iter().take(count) {
            assert_eq!(pids[name], *pid, "{name} is another one");
        }
        wait_until("those that went are gone", || {
            world.qemus().len() == count + 1
        });
    }
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn a_restart_that_is_broken_off_is_mended_by_the_next_up() {
    let world = World::new();
    world.nodes(2, "");
    world.behave(&json!({"node-1": {"ignore_powerdown": true}}));
    world.ok(&["up"]);
    let going = world.start(&["restart", "--grace", "4s"]);
    wait_until("one is stopping yet", || {
        world.states() == ["node-1: stopping", "node-2: stopped"]
    });
    let ended = going.interrupted();
    assert_eq!(ended.code, Some(130), "{ended:?}");
    expect![[r#"
        note: broken off; what runs, runs on: node-1 (stopping); what does not run: node-2 (stopped)
        `kiln up` does the rest, `kiln -c demo down` takes all of it away
    "#]]
    .assert_eq(&ended.stderr[ended.stderr.find("note: broken off").unwrap()..]);
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(0), "{}", up.stderr);
    assert_eq!(world.states(), ["node-1: ready", "node-2: ready"]);
}

#[test]
fn an_up_that_is_broken_off_says_what_runs_on_and_damages_nothing() {
    let world = World::new();
    world.nodes(2, "");
    world.behave(&json!({"*": {"report": null}}));
    let going = world.start(&["up"]);
    wait_until("both run", || {
        world
            .home()
            .join("state/clusters/demo/cluster.json")
            .exists()
            && world.states() == ["node-1: running", "node-2: running"]
    });
    let ended = going.interrupted();
    assert_eq!(ended.code, Some(130), "{ended:?}");
    expect![[r#"
        note: broken off; what runs, runs on: node-1 (running), node-2 (running)
        `kiln up` does the rest, `kiln -c demo down` takes all of it away
    "#]]
    .assert_eq(&ended.stderr[ended.stderr.find("note: broken off").unwrap()..]);
    world.ok(&["down"]);

    // Whenever it is killed, nobody calls a machine damaged that is not made yet.
    for delay in [5, 10, 15, 20, 30, 40, 60, 80] {
        let going = world.start(&["up", "--wait", "running"]);
        going.killed_after(Duration::from_millis(delay));
        let ps = world.kiln(&["-c", "demo", "ps"]);
        assert!(ps.code == Some(0) || ps.code == Some(7), "{ps:?}");
        assert!(!ps.stdout.contains("damaged"), "{}", ps.stdout);
        world.ok(&["up", "--wait", "running"]);
        world.ok(&["down", "--timeout", "0s"]);
        world.assert_clean();
    }
}
