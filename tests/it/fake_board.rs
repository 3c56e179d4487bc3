//! A machine keeps the board that it was made with, whatever QEMU comes and goes.

use expect_test::expect;

use crate::fake_support::World;

const DISK: &str =
    "cluster: demo\nimage: ./disk.raw\nmachines:\n  node: {accel: tcg, ignition: node.ign}\n";

/// A machine with a disk that was made under this version, and stopped.
fn made_under(version: &str) -> World {
    let world = World::new();
    world.becomes(version);
    world.write("spec/disk.raw", vec![7; 1 << 20]);
    world.spec(DISK);
    world.ok(&["up"]);
    world.ok(&["stop"]);
    world
}

/// The board in the words that QEMU is told.
fn board(world: &World) -> String {
    let explained = world.json(&["-c", "demo", "explain", "node"]);
    let mut argv = explained["argv"].as_array().unwrap().iter();
    argv.find(|word| *word == "-machine").unwrap();
    let told = argv.next().unwrap().as_str().unwrap();
    told.split(',').next().unwrap().to_owned()
}

#[test]
fn a_newer_qemu_changes_no_machine() {
    let world = made_under("7.2.22");
    world.becomes("10.0.2");
    world.ok(&["start"]);
    assert_eq!(board(&world), "pc-q35-7.2");
    world.ok(&["stop"]);
    let planned = world.ok(&["plan"]);
    assert!(!planned.contains("board"), "{planned}");
    world.ok(&["up"]);
    assert_eq!(board(&world), "pc-q35-7.2");
    world.ok(&["down"]);
    world.ok(&["up"]);
    assert_eq!(board(&world), "pc-q35-10.0");
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn an_older_qemu_is_not_given_a_machine_that_it_cannot_run() {
    let world = made_under("10.0.2");
    world.becomes("7.2.22");
    let start = world.kiln(&["start"]);
    assert_eq!(start.code, Some(4));
    expect![[r#"
        error: machine `node` has the board `pc-q35-10.0`, and `TMP/bin/qemu-system-x86_64` is QEMU 7.2.22, which has no such board

        hint: install a QEMU that has it, such as the one that the machine was made with; `kiln up --replace` makes the machine anew
    "#]]
    .assert_eq(&start.stderr);
    assert_eq!(world.kiln(&["restart"]).stderr, start.stderr);
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(9));
    expect![[r#"
        error: the disk of node would be lost
          caused by: node: board: pc-q35-10.0 -> pc-q35-7.2: `TMP/bin/qemu-system-x86_64` is QEMU 7.2.22, which does not have the former; one that has it would keep the disk (needs a new disk)

        hint: Ignition runs once for each disk: `kiln up --replace` makes new disks, what is on the old ones is lost
    "#]]
    .assert_eq(&up.stderr);
    assert_eq!(world.states(), ["node: stopped"]);
    // What was refused has changed nothing.
    world.becomes("10.0.2");
    world.ok(&["start"]);
    assert_eq!(board(&world), "pc-q35-10.0");

    // One that runs is left alone, and its QEMU is the one that it was started with.
    world.becomes("7.2.22");
    world.ok(&["start"]);
    world.ok(&["up"]);
    assert_eq!(board(&world), "pc-q35-10.0");
    world.ok(&["up", "--replace"]);
    world.ok(&["stop"]);
    world.ok(&["up", "--replace"]);
    assert_eq!(board(&world), "pc-q35-7.2");
    world.ok(&["down"]);
}

#[test]
fn a_machine_without_a_disk_takes_the_board_that_there_is() {
    let world = World::new();
    world.spec("cluster: demo\nimage: {kernel: vmlinuz}\nmachines:\n  node: {accel: tcg, ignition: node.ign}\n");
    world.ok(&["up"]);
    world.ok(&["stop"]);
    world.becomes("7.2.22");
    let planned = world.ok(&["plan"]);
    let why = "board: pc-q35-10.0 -> pc-q35-7.2: `TMP/bin/qemu-system-x86_64` is QEMU 7.2.22";
    assert!(world.plain(&planned).contains(why), "{planned}");
    world.ok(&["up"]);
    assert_eq!(board(&world), "pc-q35-7.2");
    world.ok(&["down"]);
}

#[test]
fn a_qemu_that_is_too_old_is_refused() {
    let world = World::new();
    world.nodes(1, "");
    world.becomes("6.2.0");
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(4));
    expect![[r#"
        error: `TMP/bin/qemu-system-x86_64` is QEMU 6.2.0; kiln needs 7.2.0 or newer

        hint: `kiln doctor` says what is installed, and the command that installs a QEMU here
    "#]]
    .assert_eq(&up.stderr);
    let doctor = world.kiln(&["doctor"]);
    assert_eq!(doctor.code, Some(4));
    assert!(doctor.stdout.contains("is QEMU 6.2.0"), "{}", doctor.stdout);
    assert!(!world.home().join("state").join("clusters/demo").exists());
}
