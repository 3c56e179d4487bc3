//! Machines under the oldest QEMU that kiln takes, Debian 12's 7.2; and from one version to another.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::home::{BOOT, Home, Lane, User, machine_of, pid_of};
use crate::support::{guest, old_qemu, process};

const MACHINES: [&str; 2] = ["arm", "pc"];

#[test]
fn machines_come_up_under_qemu_7_2_and_keep_its_boards() {
    let old = old_qemu::public_copy();
    let bin = old.path().join("bin");
    let mut home = Home::new(Lane::Wide, User::Myself, "old", &MACHINES);
    home.look_in(Some(&bin));
    let arm = guest::tiny("aarch64").image("");
    home.write_spec(
        &guest::tiny("x86_64").image(""),
        &json!({
            "pc": {"memory": "256MiB"},
            "arm": {"memory": "256MiB", "arch": "aarch64", "image": arm},
        }),
    );
    let doctor = home.kiln(&["doctor"]).ok();
    assert!(doctor.stdout.contains("7.2."), "{doctor}");

    home.within(BOOT, &["up"]).ok();
    let ps = home.json(&["ps"]);
    for (name, program, board) in [
        ("pc", "qemu-system-x86_64", "pc-q35-7.2"),
        ("arm", "qemu-system-aarch64", "virt-7.2"),
    ] {
        assert_eq!(machine_of(&ps, name)["state"], "ready", "{ps}");
        let (argv, told) = explained(&home, name);
        assert_eq!(argv, json!(bin.join(program)));
        assert_eq!(told, board);
    }
    they_reach_each_other(&home);

    // The switch went with the supervisor, and its QEMUs take the next one's connection.
    process::signal(home.supervisor(), Signal::SIGKILL);
    let again = home.json(&["ps"]);
    assert_eq!(again["machines"], ps["machines"]);
    assert_ne!(pid_of(&again["supervisor"]), pid_of(&ps["supervisor"]));
    they_reach_each_other(&home);
    home.within(BOOT, &["stop"])
        .ok()
        .took_at_most(Duration::from_secs(30));

    // The host is upgraded: the same machine on a newer QEMU.
    home.look_in(None);
    home.within(BOOT, &["up", "pc"]).ok();
    let (argv, told) = explained(&home, "pc");
    assert_ne!(argv, json!(bin.join("qemu-system-x86_64")));
    assert_eq!(told, "pc-q35-7.2");
    assert_eq!(home.ssh("pc", "hostname"), "pc\n");
    home.down();
}

#[test]
fn a_machine_of_a_newer_qemu_is_not_given_to_an_older() {
    let old = old_qemu::public_copy();
    let mut home = Home::new(Lane::Narrow, User::Myself, "new", &["pc"]);
    home.write("disk.raw", vec![0; 1 << 20]);
    let mut image = guest::tiny("x86_64").image("");
    image["disk"] = json!("./disk.raw");
    home.write_spec(&image, &json!({"pc": {"memory": "256MiB"}}));
    home.within(BOOT, &["up", "--wait", "running"]).ok();
    home.kiln(&["kill"]).ok();
    let (program, board) = explained(&home, "pc");

    home.look_in(Some(&old.path().join("bin")));
    let refused = home.kiln(&["up"]).exits(9);
    let refused = refused.says(&format!("board: {board} -> pc-q35-7.2"));
    refused.says("`kiln up --replace` makes new disks");
    assert_eq!(home.machine("pc")["state"], "stopped");
    // It is started by the QEMU that it was made with, as long as that is there.
    home.kiln(&["start", "--wait", "running"]).ok();
    assert_eq!(explained(&home, "pc"), (program, board));
    home.kiln(&["kill"]).ok();
    home.kiln(&["up", "--replace", "--wait", "running"]).ok();
    assert_eq!(explained(&home, "pc").1, "pc-q35-7.2");
    home.down();
}

/// The program that a machine is started by, and the board that it is told.
fn explained(home: &Home, machine: &str) -> (Value, String) {
    let explained = home.json(&["-c", home.cluster().name(), "explain", machine]);
    let mut argv = explained["argv"].as_array().unwrap().iter();
    let program = argv.next().unwrap().clone();
    argv.find(|word| *word == "-machine").unwrap();
    let told = argv.next().unwrap().as_str().unwrap();
    (program, told.split(',').next().unwrap().to_owned())
}

fn they_reach_each_other(home: &Home) {
    for (from, to) in [("pc", "arm"), ("arm", "pc")] {
        home.ssh(from, &format!("ping -c1 -W5 {to}"));
    }
}
