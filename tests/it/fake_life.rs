//! The life of a cluster: each verb through the real binary, on machines that behave.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use expect_test::expect;
use serde_json::{Value, json};

use crate::fake_support::{EMPTY_CONFIG, World, holds, wait_until};

/// `pid` becomes `PID` where a machine has one, times become `TIME`.
fn masked(mut value: Value) -> Value {
    fn walk(value: &mut Value) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    match key.as_str() {
                        "pid" if value.is_u64() => *value = json!("PID"),
                        "started_at" if value.is_string() => *value = json!("TIME"),
                        _ => walk(value),
                    }
                }
            }
            Value::Array(values) => values.iter_mut().for_each(walk),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    walk(&mut value);
    value
}

/// `(0.1 s)` becomes `(TIME)`.
fn without_times(text: &str) -> String {
    let lines = text.lines().map(|line| match line.rsplit_once(" (") {
        Some((before, time)) if time.ends_with(" s)") => format!("{before} (TIME)\n"),
        _ => format!("{line}\n"),
    });
    lines.collect()
}

#[test]
fn a_cluster_comes_up_is_kept_and_goes() {
    let world = World::new();
    world.nodes(3, "");
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(0), "{}", up.stderr);
    expect![[r#"
        NAME    STATE  ADDRESS  PORTS  ENTER
        node-1  ready  -        -      kiln ssh node-1
        node-2  ready  -        -      kiln ssh node-2
        node-3  ready  -        -      kiln ssh node-3
    "#]]
    .assert_eq(&up.stdout);
    world.settle(4);
    assert_eq!(world.supervisors().len(), 1);
    expect![[r#"
        NAME    STATE  ARCH    ACCEL  ADDRESS  PORTS  REASON
        node-1  ready  x86_64  tcg    -        -      -
        node-2  ready  x86_64  tcg    -        -      -
        node-3  ready  x86_64  tcg    -        -      -
    "#]]
    .assert_eq(&world.ok(&["ps"]));
    expect![[r#"
        NAME  MACHINES  NETWORK  SUBNET         SPEC
        demo  3 ready   fabric   10.213.7.0/24  TMP/spec/kiln.yaml
    "#]]
    .assert_eq(&world.ok(&["ls"]));
    let pids = world.pids();
    assert_eq!(pids.len(), 3);

    let again = world.kiln(&["up"]);
    assert_eq!(again.code, Some(0));
    assert_eq!(again.stdout, up.stdout);
    expect![[r#"
        node-1: ready (TIME)
        node-2: ready (TIME)
        node-3: ready (TIME)
        note: nothing to do: all machines are as the spec says
    "#]]
    .assert_eq(&without_times(&again.stderr));
    assert_eq!(world.pids(), pids);

    let down = world.kiln(&["down"]);
    assert_eq!(down.code, Some(0), "{}", down.stderr);
    expect![[r#"
        cluster demo: all of it is gone
    "#]]
    .assert_eq(&down.stdout);
    world.assert_clean();
    let down = world.kiln(&["down"]);
    assert_eq!((down.code, down.stderr.as_str()), (Some(0), ""));
    expect![[r#"
        cluster demo: nothing is there
    "#]]
    .assert_eq(&down.stdout);
    world.assert_clean();
}

#[test]
fn up_prints_a_line_for_each_step_where_nobody_watches() {
    let world = World::new();
    world.nodes(1, "");
    let up = world.kiln(&["up"]);
    // How many phases are seen depends on how fast they follow each other; the last one is.
    let lines: Vec<&str> = up.stderr.lines().collect();
    assert!(
        lines
            .iter()
            .any(|line| line.contains("node-1") && line.contains("ready")),
        "{lines:?}"
    );
    assert!(!up.stderr.contains('\u{1b}'));
    let quiet = world.kiln(&["-q", "restart"]);
    assert_eq!((quiet.code, quiet.stderr.as_str()), (Some(0), ""));
}

#[test]
fn ps_tells_programs_all_that_is_documented() {
    let world = World::new();
    world.nodes(1, "ports: [\":80\"]");
    world.behave(&json!({"*": {"addresses": ["10.213.7.99", "fe80::1", "169.254.3.3"]}}));
    world.ok(&["up"]);
    let mut result = masked(world.json(&["ps"]));
    let port = result["machines"][0]["ports"][0]["host"].take();
    assert!(port.as_u64().is_some_and(|port| port > 0));
    let text = world.plain(&serde_json::to_string_pretty(&result).unwrap());
    expect![[r#"
        {
          "cluster": "demo",
          "kept_disks": [],
          "machines": [
            {
              "accel": "tcg",
              "accel_reason": "",
              "addresses": [
                {
                  "expires": null,
                  "ip": "10.213.7.99",
                  "source": "report"
                }
              ],
              "arch": "x86_64",
              "disks": [],
              "image": "vmlinuz",
              "mac": "b2:6b:c6:e2:b7:b3",
              "name": "node-1",
              "notes": [],
              "phase": "ready",
              "pid": "PID",
              "ports": [
                {
                  "bind": "127.0.0.1",
                  "guest": 80,
                  "host": null
                }
              ],
              "ready": true,
              "reason": "",
              "reserved_ip": "10.213.7.41",
              "shares": [],
              "started_at": "TIME",
              "state": "ready"
            }
          ],
          "network": {
            "domain": "demo.internal",
            "isolated": false,
            "mode": "fabric",
            "notes": [],
            "reason": "",
            "subnet": "10.213.7.0/24",
            "subnet6": "fd63:ec1b:6b58::/64",
            "uplink": ""
          },
          "spec": "TMP/spec/kiln.yaml",
          "supervisor": {
            "pid": "PID"
          }
        }"#]]
    .assert_eq(&text);
    world.ok(&["stop"]);
    let result = masked(world.json(&["ps"]));
    let machine = &result["machines"][0];
    assert_eq!(machine["state"], "stopped");
    assert_eq!(machine["ready"], false);
    assert_eq!(machine["pid"], Value::Null);
    assert_eq!(machine["addresses"], json!([]));
    assert_eq!(machine["started_at"], Value::Null);
}

#[test]
fn machines_stop_start_restart_and_die_by_name() {
    let world = World::new();
    world.nodes(3, "");
    world.ok(&["up"]);
    let first = world.pids();

    world.ok(&["stop", "node-2"]);
    assert_eq!(
        world.states(),
        ["node-1: ready", "node-2: stopped", "node-3: ready"]
    );
    // Nothing to do, and done.
    world.ok(&["stop", "node-2"]);
    world.ok(&["start", "node-2"]);
    world.ok(&["start"]);
    let second = world.pids();
    assert_eq!(second["node-1"], first["node-1"]);
    assert_ne!(second["node-2"], first["node-2"]);
    assert_eq!(second["node-3"], first["node-3"]);

    world.ok(&["restart", "node-1", "node-3"]);
    let third = world.pids();
    assert_ne!(third["node-1"], second["node-1"]);
    assert_eq!(third["node-2"], second["node-2"]);
    assert_ne!(third["node-3"], second["node-3"]);

    world.ok(&["kill", "node-1"]);
    assert_eq!(world.pids().len(), 2);
    world.ok(&["up"]);
    assert_eq!(world.pids().len(), 3);
    assert_eq!(world.pids()["node-2"], third["node-2"]);

    world.ok(&["stop"]);
    assert_eq!(
        world.states(),
        ["node-1: stopped", "node-2: stopped", "node-3: stopped"]
    );
    wait_until("the uplink goes with the last machine", || {
        world.qemus().is_empty()
    });
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn a_machine_is_paused_and_goes_on() {
    let world = World::new();
    world.nodes(1, "");
    world.ok(&["up"]);
    let pids = world.pids();
    world.ok(&["pause"]);
    assert_eq!(world.states(), ["node-1: paused (paused)"]);
    world.ok(&["pause"]);
    world.ok(&["resume"]);
    assert_eq!(world.states(), ["node-1: ready"]);
    assert_eq!(world.pids(), pids);
    // No vCPU runs that could hear the button, and `stop` is not kept waiting by that.
    world.ok(&["pause"]);
    let stop = world.kiln(&["stop"]);
    assert_eq!(stop.code, Some(0), "{}", stop.stderr);
    assert!(stop.took.as_secs() < 10, "{:?}", stop.took);
    let pause = world.kiln(&["pause"]);
    assert_eq!(pause.code, Some(1));
    expect![[r#"
        error: machine `node-1` is stopped
    "#]]
    .assert_eq(&pause.stderr);
}

#[test]
fn up_waits_as_far_as_it_is_told() {
    let world = World::new();
    world.nodes(1, "");
    world.behave(&json!({"*": {"report": null}}));
    let none = world.kiln(&["up", "--wait", "none"]);
    assert_eq!(none.code, Some(0), "{}", none.stderr);
    let running = world.kiln(&["up", "--wait", "running"]);
    assert_eq!(running.code, Some(0), "{}", running.stderr);
    assert_eq!(world.states(), ["node-1: running"]);
    let pids = world.pids();
    wait_until("the guest said all that it says", || {
        world.ok(&["logs", "node-1"]).contains("second stage")
    });
    for stage in ["address", "ready"] {
        let up = world.kiln(&["up", "--wait", stage, "--timeout", "300ms"]);
        assert_eq!(up.code, Some(5), "{}", up.stderr);
        assert!((300..3000).contains(&up.took.as_millis()), "{:?}", up.took);
        let error = up.stderr.find("error:").unwrap();
        if stage == "ready" {
            expect![[r#"
                error: not every machine was ready within 300ms
                  caused by: node-1 is running, and came as far as: userspace; its console ends with: guest: second stage

                hint: the machines run on; `kiln -c demo logs node-1 -f` shows what it does, `kiln -c demo wait --timeout 10m` waits longer
            "#]].assert_eq(&up.stderr[error..]);
        } else {
            expect![[r#"
                error: not every machine was in use of its address within 300ms
                  caused by: node-1 is running, and came as far as: userspace; its console ends with: guest: second stage

                hint: the machines run on; `kiln -c demo logs node-1 -f` shows what it does, `kiln -c demo wait --timeout 10m` waits longer
            "#]].assert_eq(&up.stderr[error..]);
        }
    }
    // Out of time is no reason to take anything away.
    assert_eq!(world.pids(), pids);
}

#[test]
fn a_plan_says_what_up_would_do_and_makes_nothing() {
    let world = World::new();
    world.nodes(2, "");
    expect![[r#"
        cluster demo: network fabric, 10.213.7.0/24
          create    node-1 (x86_64, 10.213.7.41)
          create    node-2 (x86_64, 10.213.7.93)
    "#]]
    .assert_eq(&world.ok(&["plan"]));
    expect![[r#"
        {"schema":1,"ok":true,"result":{"cluster":"demo","subnet":"10.213.7.0/24","changes":true,"network":[],"volume_group":null,"machines":[{"name":"node-1","action":"create","why":[],"arch":"x86_64","ip":"10.213.7.41","mac":"b2:6b:c6:e2:b7:b3","shares":[]},{"name":"node-2","action":"create","why":[],"arch":"x86_64","ip":"10.213.7.93","mac":"b2:6b:b6:43:01:e0","shares":[]}]}}
    "#]].assert_eq(&world.ok(&["plan", "--json"]));
    assert_eq!(world.ok(&["up", "--dry-run"]), world.ok(&["plan"]));
    let made: Vec<String> = world.tree();
    assert!(!made.iter().any(|line| line.contains("demo")), "{made:?}");

    world.ok(&["up"]);
    let pids = world.pids();
    expect![[r#"
        cluster demo: network fabric, 10.213.7.0/24
          keep      node-1 (x86_64, 10.213.7.41)
          keep      node-2 (x86_64, 10.213.7.93)
        nothing to do
    "#]]
    .assert_eq(&world.ok(&["plan"]));

    world.nodes(3, "memory: 2GiB");
    expect![[r#"
        cluster demo: network fabric, 10.213.7.0/24
          restart   node-1 (x86_64, 10.213.7.41)
                    memory: 1024MiB -> 2048MiB (needs a restart)
          restart   node-2 (x86_64, 10.213.7.93)
                    memory: 1024MiB -> 2048MiB (needs a restart)
          create    node-3 (x86_64, 10.213.7.219)
    "#]]
    .assert_eq(&world.ok(&["plan"]));
    assert_eq!(world.pids(), pids);
    // What a config says is told beside it, although both cost no more than a restart.
    world.write("spec/node.ign", r#"{"ignition":{"version":"3.2.0"}}"#);
    let both = world.ok(&["plan"]);
    assert_eq!(
        both.matches("memory: 1024MiB -> 2048MiB").count(),
        2,
        "{both}"
    );
    assert_eq!(
        both.matches("ignition config, vars or image changed")
            .count(),
        2,
        "{both}"
    );
    world.write("spec/node.ign", EMPTY_CONFIG);
    world.ok(&["up"]);
    let after = world.pids();
    assert_eq!(after.len(), 3);
    assert_ne!(after["node-1"], pids["node-1"]);

    world.ok(&["stop", "node-2"]);
    world.nodes(2, "memory: 2GiB");
    expect![[r#"
        cluster demo: network fabric, 10.213.7.0/24
          keep      node-1 (x86_64, 10.213.7.41)
          start     node-2 (x86_64, 10.213.7.93)
          remove    node-3
                    the spec has no such machine any more
    "#]]
    .assert_eq(&world.ok(&["plan"]));
}

#[test]
fn a_disk_is_made_anew_only_when_told() {
    let world = World::new();
    world.write("spec/disk.raw", vec![7; 1 << 20]);
    let spec = |more: &str| {
        world.spec(&format!(
            "cluster: demo\nimage: ./disk.raw\nmachines:\n  node:\n    count: 2\n    accel: tcg\n    ignition: node.ign\n{more}"
        ));
    };
    spec("");
    world.ok(&["up"]);
    world.settle(3);
    let disk = world.machine("demo", "node-1").join("disk.qcow2");
    let pids = world.pids();
    fs::write(world.path("marker"), fs::read(&disk).unwrap()).unwrap();

    world.write(
        "spec/node.ign",
        r#"{"ignition":{"version":"3.3.0"},"storage":{"files":[]}}"#,
    );
    let plan = world.kiln(&["plan"]);
    assert_eq!(plan.code, Some(0));
    assert!(plan.stdout.contains("recreate"), "{}", plan.stdout);
    expect![[r#"
        note: `kiln up` refuses to make the disk of node-1 anew; `kiln up --replace` does it
    "#]]
    .assert_eq(&plan.stderr);
    let before = world.tree();
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(9));
    expect![[r#"
        error: the disk of node-1, node-2 would be lost
          caused by: node-1: ignition config, vars or image changed (needs a new disk)

        hint: Ignition runs once for each disk: `kiln up --replace` makes new disks, what is on the old ones is lost
    "#]].assert_eq(&up.stderr);
    assert_eq!(world.pids(), pids);
    assert_eq!(world.tree(), before);

    world.ok(&["up", "--replace"]);
    let replaced = world.pids();
    assert_eq!(replaced.len(), 2);
    assert!(pids.iter().all(|(name, pid)| replaced[name] != *pid));

    // Only a restart.
    spec("    cpus: 2\n");
    let plan = world.ok(&["plan"]);
    assert!(plan.contains("restart   node-1"), "{plan}");
    assert!(!plan.contains("recreate"), "{plan}");
    world.write("spec/node.ign", EMPTY_CONFIG);
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn a_machine_is_made_anew_by_name() {
    let world = World::new();
    world.nodes(2, "");
    assert_eq!(world.kiln(&["reprovision", "node-1"]).code, Some(7));
    world.ok(&["up"]);
    let before = (world.pids(), world.ps());
    let key =
        |name: &str| fs::read(world.machine("demo", name).join("ssh_host_ed25519_key")).unwrap();
    let keys = (key("node-1"), key("node-2"));

    assert_eq!(world.kiln(&["reprovision"]).code, Some(2));
    assert_eq!(world.kiln(&["reprovision", "node-3"]).code, Some(7));
    world.ok(&["reprovision", "node-2"]);
    let (pids, machines) = (world.pids(), world.ps());
    assert_eq!(pids["node-1"], before.0["node-1"]);
    assert_ne!(pids["node-2"], before.0["node-2"]);
    assert_eq!(key("node-1"), keys.0);
    assert_ne!(key("node-2"), keys.1, "it is another machine to ssh");
    assert_eq!(machines["node-2"]["state"], "ready");
    for fixed in ["reserved_ip", "mac"] {
        assert_eq!(machines["node-2"][fixed], before.1["node-2"][fixed]);
    }
    assert!(world.ok(&["plan"]).ends_with("nothing to do\n"));
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn scaling_down_takes_only_the_last() {
    let world = World::new();
    world.nodes(3, "");
    world.ok(&["up"]);
    let three = world.pids();
    world.nodes(2, "");
    world.ok(&["up"]);
    let two = world.pids();
    assert_eq!(two.len(), 2);
    assert!(two.iter().all(|(name, pid)| three[name] == *pid));
    assert!(!world.machine("demo", "node-3").exists());

    let before = world.ps();
    world.nodes(4, "");
    world.ok(&["up"]);
    let four = world.pids();
    assert_eq!(four.len(), 4);
    assert!(two.iter().all(|(name, pid)| four[name] == *pid));
    let after = world.ps();
    for (name, machine) in before {
        assert_eq!(after[&name]["reserved_ip"], machine["reserved_ip"]);
        assert_eq!(after[&name]["mac"], machine["mac"]);
    }
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn a_scale_is_remembered() {
    let world = World::new();
    world.nodes(3, "");
    world.ok(&["up"]);
    let three = world.pids();
    world.ok(&["up", "--scale", "node=5"]);
    let five = world.pids();
    assert_eq!(five.len(), 5);
    assert!(three.iter().all(|(name, pid)| five[name] == *pid));

    // No word of it is needed again, and each command says that it holds.
    let plan = world.kiln(&["plan"]);
    assert!(plan.stdout.ends_with("nothing to do\n"), "{plan:?}");
    let note = "group `node` is of 5 by an earlier `--scale`, not of 3 as the spec says";
    assert!(plan.stderr.contains(note), "{plan:?}");
    world.ok(&["up"]);
    assert_eq!(world.pids(), five);

    let less = world.ok(&["plan", "--scale", "node=2"]);
    for name in ["node-3", "node-4", "node-5"] {
        assert!(less.contains(&format!("remove    {name}")), "{less}");
    }
    world.ok(&["up", "--scale", "node=2"]);
    let two = world.pids();
    assert_eq!(two.len(), 2);
    assert!(two.iter().all(|(name, pid)| five[name] == *pid));

    // The spec's own number ends it.
    world.ok(&["up", "--scale", "node=3"]);
    let plan = world.kiln(&["plan"]);
    assert!(plan.stdout.ends_with("nothing to do\n"), "{plan:?}");
    assert_eq!(plan.stderr, "");
    assert_eq!(world.pids().len(), 3);

    assert_eq!(world.kiln(&["up", "--scale", "nod=4"]).code, Some(3));
    for wrong in ["node", "node=x", "node=1001", "node=-1", "=3"] {
        assert_eq!(
            world.kiln(&["up", "--scale", wrong]).code,
            Some(2),
            "{wrong}"
        );
    }
    assert_eq!(world.pids().len(), 3);
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn up_of_some_machines_leaves_the_others_alone() {
    let world = World::new();
    world.nodes(3, "");
    world.ok(&["up", "node-2"]);
    assert_eq!(world.pids().keys().collect::<Vec<_>>(), ["node-2"]);
    let first = world.pids();
    world.ok(&["up"]);
    assert_eq!(world.pids().len(), 3);
    assert_eq!(world.pids()["node-2"], first["node-2"]);
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn events_tell_a_life_a_line_each() {
    let world = World::new();
    world.nodes(1, "");
    world.ok(&["up"]);
    let events = world.ok(&["events", "--no-follow", "--json"]);
    for line in events.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert!(event.is_object(), "{line}");
    }
    assert!(events.contains("node-1"), "{events}");
}

#[test]
fn the_console_is_kept_and_shown() {
    let world = World::new();
    world.nodes(1, "");
    world.behave(
        &json!({"*": {"console": [[0, "SeaBIOS\nLinux version 6\n"], [1, "\u{1b}[2Jevil\n"]]}}),
    );
    world.ok(&["up"]);
    wait_until("the console is written", || {
        world.ok(&["logs", "node-1"]).contains("evil")
    });
    let logs = world.ok(&["logs", "node-1"]);
    expect![[r#"
        SeaBIOS
        Linux version 6
        evil
    "#]]
    .assert_eq(&logs);
    assert_eq!(world.ok(&["logs", "node-1", "-n", "1"]).lines().count(), 1);
}

#[test]
fn ten_rounds_leave_nothing() {
    let world = World::new();
    world.nodes(2, "");
    for _ in 0..10 {
        world.ok(&["up", "--wait", "running"]);
        world.ok(&["down", "--timeout", "0s"]);
        world.assert_clean();
    }
}

#[test]
fn a_console_ends_with_its_input_and_has_room_for_one() {
    let world = World::new();
    world.nodes(1, "");
    world.ok(&["up"]);
    // Standard input is /dev/null.
    let alone = world.kiln(&["console", "node-1"]);
    assert_eq!(alone.code, Some(0), "{}", alone.stderr);
    assert!(alone.took < Duration::from_secs(3), "{:?}", alone.took);
    let mut first = world
        .command(&["console", "node-1"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let lock = world.machine("demo", "node-1").join("console.lock");
    wait_until("it is at it", || holds(&lock, "kiln console"));
    let second = world.kiln(&["console", "node-1"]);
    assert_eq!(second.code, Some(8), "{}", second.stderr);
    let who = format!(
        "error: another kiln (pid {}: kiln console) is at it",
        first.id()
    );
    assert!(second.stderr.starts_with(&who), "{}", second.stderr);
    assert!(second.took < Duration::from_secs(3), "{:?}", second.took);
    drop(first.stdin.take());
    assert!(first.wait().unwrap().success());
    assert!(!lock.exists());
    world.ok(&["console", "node-1"]);
}

#[test]
fn ports_come_and_go_while_machines_run() {
    let world = World::new();
    world.nodes(2, "ports: [\":80\"]");
    world.ok(&["up"]);
    let pids = world.pids();
    let host = |index: usize| {
        let port = &world.ps()["node-1"]["ports"][index];
        u16::try_from(port["host"].as_u64().unwrap()).unwrap()
    };
    let listens = |port: u16| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
    let first = host(0);
    assert!(listens(first));
    world.nodes(2, "ports: [\":81\", \":80\"]");
    let plan = world.ok(&["plan"]);
    assert!(plan.contains("change    node-1"), "{plan}");
    assert!(plan.contains("(while it runs)"), "{plan}");
    // What is killed after it has written is mended by the next one, and by the next supervisor.
    world.start(&["up"]).killed_after(Duration::from_millis(60));
    world.supervisors().iter().for_each(|it| it.kill());
    world.ok(&["up"]);
    assert_eq!((host(1), world.pids()), (first, pids.clone()));
    let second = host(0);
    assert!(listens(first) && listens(second));
    world.nodes(2, "ports: [\":81\"]");
    world.ok(&["up"]);
    assert!(!listens(first) && listens(second));
    assert_eq!(world.pids(), pids);
    assert!(world.ok(&["plan"]).ends_with("nothing to do\n"));
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn more_memory_than_there_is_is_refused_unless_told_otherwise() {
    let world = World::new();
    world.nodes(2, "memory: 64MiB");
    world.ok(&["up"]);
    let pids = world.pids();
    world.nodes(3, "memory: 16TiB\ncpus: 255");
    let plan = world.kiln(&["plan"]);
    assert_eq!(plan.code, Some(0), "{}", plan.stderr);
    let refuses = "note: the machines that would run have 48TiB of memory, of which they use ";
    assert!(plan.stderr.contains(refuses), "{}", plan.stderr);
    assert!(
        plan.stderr
            .contains("note: node-1 has 255 cpus, and this host "),
        "{}",
        plan.stderr
    );
    let before = world.tree();
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(4), "{}", up.stderr);
    assert!(
        up.stderr
            .contains("error: the machines that would run have 48TiB"),
        "{}",
        up.stderr
    );
    assert!(
        up.stderr
            .contains("`--overcommit` starts them all the same"),
        "{}",
        up.stderr
    );
    assert_eq!((world.pids(), world.tree()), (pids, before));
    world.ok(&["up", "--overcommit"]);
    // What runs is not called too much later on.
    world.ok(&["up"]);
    assert_eq!(world.pids().len(), 3);
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn a_cluster_starts_with_the_host_by_a_unit_that_systemd_takes() {
    let world = World::new();
    world.nodes(1, "");
    assert_eq!(world.kiln(&["autostart"]).code, Some(7));
    world.ok(&["up"]);
    let unit = world.ok(&["autostart", "--user"]);
    let kiln = env!("CARGO_BIN_EXE_kiln");
    let plain = unit.replace(kiln, "KILN");
    expect![[r#"
        # Made by `kiln autostart` for TMP/home/state/clusters/demo.
        [Unit]
        Description=kiln cluster demo

        [Service]
        Type=oneshot
        RemainAfterExit=yes
        Environment="PATH=TMP/bin"
        Environment="KILN_HOME=TMP/home"
        ExecStart="KILN" -c demo start --wait running
        ExecStop="KILN" -c demo stop
        # Emulated guests take their time.
        TimeoutStartSec=15min
        TimeoutStopSec=10min

        [Install]
        WantedBy=default.target
    "#]]
    .assert_eq(&plain);
    let enabled = world.kiln(&["autostart", "enable", "--user"]);
    assert_eq!(enabled.code, Some(0), "{}", enabled.stderr);
    let units = world.path(".config/systemd/user");
    let path = units.join("kiln-demo.service");
    let written = |path: &std::path::Path| world.plain(&fs::read_to_string(path).unwrap());
    assert_eq!(written(&path), unit);
    let link = units.join("default.target.wants/kiln-demo.service");
    assert_eq!(written(&link), unit);
    // What systemd itself says of it.
    let verified = std::process::Command::new("systemd-analyze")
        .args(["verify", "--user"])
        .arg(&path)
        .env("XDG_RUNTIME_DIR", world.path("spec"))
        .output()
        .expect("`systemd-analyze` is not installed");
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(
        verified.status.success() && !said.contains("kiln-demo"),
        "{said}"
    );

    // What it does after the host was booted.
    world.ok(&["stop"]);
    world.ok(&["-c", "demo", "start", "--wait", "running"]);
    world.ok(&["autostart", "disable", "--user"]);
    assert!(!path.exists() && link.symlink_metadata().is_err());

    // `down` takes it along, and a unit of others is left alone.
    world.ok(&["autostart", "enable", "--user"]);
    world.ok(&["down"]);
    assert!(!path.exists());
    world.ok(&["up"]);
    fs::write(&path, "[Unit]\n").unwrap();
    assert_eq!(world.kiln(&["autostart", "enable", "--user"]).code, Some(9));
    world.ok(&["down"]);
    assert!(path.exists());
    world.assert_clean();
}
