//! What kiln shows of the cluster: to people, to programs, and always the same.

use std::collections::{BTreeMap, BTreeSet};

use kiln::state::layout::Socket;
use serde_json::Value;

use crate::boot::three::NODES;
use crate::support::home::{Home, machine_of, pid_of};
use crate::support::process;
use crate::support::socket::Talk;

fn pids(ps: &Value) -> Vec<Option<u32>> {
    NODES.map(|name| pid_of(&machine_of(ps, name))).to_vec()
}

/// `kiln plan` knows each machine's address before there is a machine.
pub(super) fn addresses_in_the_plan(home: &Home) -> BTreeMap<&'static str, String> {
    let plan = home.kiln(&["plan"]).ok();
    let address = |name| {
        let line = plan.stdout.lines().find(|line| line.contains(name))?;
        let (_, address) = line.strip_suffix(')')?.rsplit_once(", ")?;
        Some((name, address.to_owned()))
    };
    let planned: BTreeMap<_, _> = NODES.iter().copied().filter_map(address).collect();
    assert_eq!(planned.len(), 3, "{plan}");
    home.assert_clean();
    planned
}

/// The fields that DESIGN.md fixes are there, and what they say is true.
pub(super) fn ps_has_the_fixed_form(home: &Home, planned: &BTreeMap<&str, String>) -> Value {
    let ps = home.json(&["ps"]);
    assert_eq!(ps["cluster"], "demo");
    assert_eq!(ps["network"]["mode"], "fabric");
    assert!(process::is_alive(pid_of(&ps["supervisor"]).unwrap()));
    assert_eq!(ps["machines"].as_array().unwrap().len(), 3);
    for name in NODES {
        let machine = machine_of(&ps, name);
        let has: BTreeSet<&str> = machine
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let fixed = [
            "name",
            "arch",
            "accel",
            "state",
            "reason",
            "ready",
            "pid",
            "mac",
            "reserved_ip",
            "addresses",
            "ports",
            "image",
            "started_at",
        ];
        for field in fixed {
            assert!(has.contains(field), "no `{field}` in {machine}");
        }
        assert_eq!(machine["state"], "ready");
        assert_eq!(machine["reason"], "");
        assert_eq!(machine["ready"], true);
        assert_eq!(machine["arch"], "x86_64");
        assert_eq!(machine["reserved_ip"], planned[name].as_str());
        // Seen in use, by the lease or by frames: the report is not needed for it.
        let addresses = machine["addresses"].as_array().unwrap();
        assert_eq!(addresses.len(), 1, "{machine}");
        assert_eq!(addresses[0]["ip"], planned[name].as_str());
        let source = addresses[0]["source"].as_str().unwrap();
        assert!(["lease", "frames"].contains(&source), "{machine}");
        let uuid = home.cluster().uuid(name);
        assert_eq!(process::with_uuid(&uuid), [pid_of(&machine).unwrap()]);
    }
    ps
}

pub(super) fn emulation_is_said(home: &Home, ps: &Value, up: &str) {
    let ps_says = home.kiln(&["ps"]).ok().stderr;
    for name in NODES {
        let machine = machine_of(ps, name);
        if machine["accel"] == "tcg" {
            for said in [up, &ps_says] {
                let note = said.lines().find(|line| line.contains("emulated"));
                let note = note.unwrap_or_else(|| panic!("nothing is said: {said}"));
                assert!(note.starts_with("note: ") && note.contains(name), "{said}");
            }
        }
    }
}

pub(super) fn a_second_up_changes_nothing(home: &Home, before: &Value) {
    home.kiln(&["up"]).ok().says("nothing to do");
    let up = home.json(&["up"]);
    assert_eq!(pids(&up), pids(before));
    assert_eq!(up["machines"], home.json(&["ps"])["machines"]);
    assert_eq!(up["machines"], before["machines"]);
    // One that is asked for alone takes nothing from the others.
    home.kiln(&["up", "node-2"]).ok().says("nothing to do");
    assert_eq!(home.ssh("node-3", "hostname"), "node-3\n");
}

pub(super) fn the_looking_verbs_show_it(home: &Home, ps: &Value) {
    let ls = home.json(&["ls"]);
    assert_eq!(ls["clusters"].as_array().unwrap().len(), 1);
    assert_eq!(ls["clusters"][0]["cluster"], "demo");
    assert_eq!(ls["clusters"][0]["machines"]["ready"], 3);

    let reserved = machine_of(ps, "node-2")["reserved_ip"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        home.kiln(&["ip", "node-2"]).ok().stdout,
        format!("{reserved}\n")
    );
    assert_eq!(home.kiln(&["ip"]).ok().stdout.lines().count(), 4);

    let inspected = home.json(&["inspect", "node-2"]);
    assert_eq!(inspected["machines"].as_array().unwrap().len(), 1);
    assert_eq!(
        machine_of(&inspected, "node-2")["record"]["memory_mib"],
        256
    );

    let events = home.kiln(&["events", "--no-follow"]).ok();
    assert_eq!(events.stdout.lines().count(), 3, "{events}");
    assert!(
        events.stdout.lines().all(|line| line.contains("ready")),
        "{events}"
    );

    let logs = home.kiln(&["logs", "node-1"]).ok();
    assert!(
        logs.stdout.contains("Ignition finished successfully"),
        "{logs}"
    );
    assert!(
        !logs.stdout.contains('\u{1b}'),
        "control bytes reach the terminal: {logs}"
    );
    let last = home.kiln(&["logs", "node-1", "-n", "2"]).ok();
    assert_eq!(last.stdout.lines().count(), 2, "{last}");
    home.kiln(&["logs", "node-1", "--qemu"]).ok();
    home.kiln(&["logs", "--supervisor"]).ok();

    let explained = home.json(&["explain", "node-1"]);
    let argv: Vec<&str> = explained["argv"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let cmdline = std::fs::read(format!("/proc/{}/cmdline", home.pid("node-1"))).unwrap();
    let cmdline = String::from_utf8(cmdline).unwrap();
    let runs: Vec<&str> = cmdline.trim_end_matches('\0').split('\0').collect();
    assert_eq!(argv, runs, "`explain` and what runs differ");
    assert_eq!(
        explained["reasons"].as_array().unwrap().len(),
        argv_options(&argv)
    );

    let rendered: Value =
        serde_json::from_str(&home.kiln(&["render", "node-1"]).ok().stdout).unwrap();
    let merged = &rendered["ignition"]["config"]["merge"];
    assert_eq!(merged.as_array().unwrap().len(), 1, "{rendered}");

    // `wait` for what is reached already returns at once, and says what is.
    let waited = home.json(&["wait", "node-1", "--for", "address"]);
    assert_eq!(machine_of(&waited, "node-1")["state"], "ready");
    let unknown = home.kiln(&["--json", "ip", "node-4"]).exits(7).error();
    assert_eq!(unknown["code"], "unknown");
}

fn argv_options(argv: &[&str]) -> usize {
    argv.iter()
        .skip(1)
        .filter(|arg| arg.starts_with('-'))
        .count()
}

/// The console is a socket that anyone of the user's can talk to while kiln runs on.
pub(super) fn the_console_is_at_a_prompt(home: &Home) {
    let mut console = Talk::to(&home.cluster().machine("node-3").socket(Socket::Console));
    console.say("\necho $((6 * 7))-$(hostname)\n");
    console.hear("42-node-3");
}
