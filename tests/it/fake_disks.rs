//! Data disks: whose they are, when they are kept, and when they go.

use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

use expect_test::expect;
use serde_json::Value;

use crate::fake_support::World;

/// The file of a disk that kiln made.
fn disk(world: &World, machine: &str, serial: &str) -> PathBuf {
    let disks = world.home().join("state/clusters/demo.disks");
    disks.join(machine).join(format!("{serial}.qcow2"))
}

/// By this a file is known to be the same one.
fn inode(world: &World, machine: &str, serial: &str) -> u64 {
    fs::metadata(disk(world, machine, serial)).unwrap().ino()
}

/// A cluster `demo` whose machines have a root disk, and these disks.
fn with_root(world: &World, count: u32, disks: &str) {
    if !world.path("spec/disk.raw").exists() {
        world.write("spec/disk.raw", vec![7; 1 << 20]);
    }
    world.spec(&format!(
        "cluster: demo\nimage: ./disk.raw\nmachines:\n  node:\n    count: {count}\n    accel: tcg\n    \
         ignition: node.ign\n    disks: {disks}\n"
    ));
}

/// The serials of the disks of a machine's QEMU, in their order.
fn serials(world: &World, machine: &str) -> Vec<String> {
    let qemus = world.qemus();
    let qemu = qemus
        .iter()
        .find(|qemu| qemu.name().split(',').next() == Some(&format!("demo/{machine}")))
        .unwrap();
    let serial = |word: &String| Some(word.split_once(",serial=")?.1.split(',').next()?.to_owned());
    qemu.argv.iter().filter_map(serial).collect()
}

fn size(path: &std::path::Path) -> u64 {
    let output = Command::new("qemu-img")
        .args(["info", "-U", "-f", "qcow2", "--output=json"])
        .arg(path)
        .output()
        .unwrap();
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    info["virtual-size"].as_u64().unwrap()
}

/// What became of a machine by the plan: its action, and why.
#[track_caller]
fn planned(world: &World, machine: &str) -> (String, Vec<String>) {
    let plan = world.json(&["plan"]);
    let steps = plan["machines"].as_array().unwrap();
    let step = steps.iter().find(|step| step["name"] == machine).unwrap();
    let why = step["why"].as_array().unwrap();
    (
        step["action"].as_str().unwrap().to_owned(),
        why.iter()
            .map(|why| why.as_str().unwrap().to_owned())
            .collect(),
    )
}

#[test]
fn data_disks_outlive_root_disks_and_machines_and_go_with_the_cluster() {
    let world = World::new();
    with_root(&world, 2, "[{size: 1MiB, serial: logs}, {size: 3MiB}]");
    world.ok(&["up"]);
    assert_eq!(serials(&world, "node-1"), ["root", "logs", "data2"]);
    let path = disk(&world, "node-1", "logs");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    assert_eq!(
        (size(&path), size(&disk(&world, "node-2", "data2"))),
        (1 << 20, 3 << 20)
    );
    let logs = inode(&world, "node-1", "logs");
    let kept = inode(&world, "node-2", "logs");

    world.ok(&["restart"]);
    // A new root disk is none of theirs.
    world.write("spec/node.ign", r#"{"ignition":{"version":"3.4.0"}}"#);
    assert_eq!(world.kiln(&["up"]).code, Some(9));
    world.ok(&["up", "--replace"]);
    assert_eq!(inode(&world, "node-1", "logs"), logs);
    assert_eq!(serials(&world, "node-1"), ["root", "logs", "data2"]);

    // The machine goes with its root disk, and comes back to its data disks.
    with_root(&world, 1, "[{size: 1MiB, serial: logs}, {size: 3MiB}]");
    expect![[r#"
        (
            "remove",
            [
                "the spec has no such machine any more",
                "what is on its root disk is lost",
                "its disk `logs` (1MiB) is kept; `kiln down` removes it",
                "its disk `data2` (3MiB) is kept; `kiln down` removes it",
            ],
        )
    "#]]
    .assert_debug_eq(&planned(&world, "node-2"));
    let up = world.kiln(&["up"]);
    let notes: Vec<&str> = up
        .stderr
        .lines()
        .filter(|line| line.contains("kept"))
        .collect();
    expect![[r#"
        [
            "note: no machine has the disk `logs` of node-2 (1MiB, TMP/home/state/clusters/demo.disks/node-2/logs.qcow2) any more: it is kept until `kiln down`",
            "note: no machine has the disk `data2` of node-2 (3MiB, TMP/home/state/clusters/demo.disks/node-2/data2.qcow2) any more: it is kept until `kiln down`",
        ]
    "#]]
    .assert_debug_eq(&notes);
    assert!(!world.machine("demo", "node-2").exists());
    let left = world.json(&["ps"])["kept_disks"].clone();
    assert_eq!(left.as_array().unwrap().len(), 2);
    assert_eq!(
        (&left[0]["machine"], &left[0]["serial"]),
        (&"node-2".into(), &"logs".into())
    );
    assert!(world.ok(&["ls"]).contains("1 ready, 2 kept disks"));
    world.ok(&["gc"]);
    with_root(&world, 2, "[{size: 1MiB, serial: logs}, {size: 3MiB}]");
    world.ok(&["up"]);
    assert_eq!(inode(&world, "node-2", "logs"), kept);
    assert_eq!(world.json(&["ps"])["kept_disks"], serde_json::json!([]));

    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn a_disk_outlives_down_where_spec_or_command_say_so() {
    let world = World::new();
    world.nodes(
        1,
        "disks: [{size: 1MiB, serial: keep, keep: true}, {size: 1MiB, serial: go}]",
    );
    world.ok(&["up"]);
    let keep = inode(&world, "node-1", "keep");
    let down = world.kiln(&["down"]);
    expect![[r#"
        cluster demo: gone, but for the disks that are kept
        kept: `keep` of node-1 (1MiB, TMP/home/state/clusters/demo.disks/node-1/keep.qcow2)
    "#]]
    .assert_eq(&down.stdout);
    expect![[r#"
        node-1: stopping (0.0 s)
        node-1: stopped (0.0 s)
        note: `kiln up` attaches kept disks again; `kiln -c demo down --remove-disks` removes them
    "#]]
    .assert_eq(&down.stderr);
    assert!(!disk(&world, "node-1", "go").exists());
    // Twice is harmless.
    for _ in 0..2 {
        let down = world.kiln(&["down"]);
        assert_eq!(down.code, Some(0));
        expect![[r#"
            cluster demo: nothing is there
            kept: `keep` of node-1 (1MiB, TMP/home/state/clusters/demo.disks/node-1/keep.qcow2)
        "#]]
        .assert_eq(&down.stdout);
        world.ok(&["gc"]);
    }
    let ls = world.json(&["ls"]);
    assert_eq!(ls["clusters"][0]["cluster"], "demo");
    assert_eq!(ls["clusters"][0]["damage"], "");
    assert_eq!(ls["clusters"][0]["kept_disks"][0]["serial"], "keep");

    // The next cluster of that name has it again; what a `down` kept by command stays kept.
    world.ok(&["up"]);
    assert_eq!(inode(&world, "node-1", "keep"), keep);
    world.ok(&["down", "--keep-disks"]);
    assert!(disk(&world, "node-1", "go").exists());
    world.nodes(1, "disks: [{size: 1MiB, serial: keep}]");
    world.ok(&["up"]);
    assert_eq!(serials(&world, "node-1"), ["keep"]);
    let down = world.json(&["down"]);
    assert_eq!(down["kept_disks"][0]["serial"], "go");
    assert!(!disk(&world, "node-1", "keep").exists());
    expect!["cluster demo: all of it is gone\n"].assert_eq(&world.ok(&["down", "--remove-disks"]));
    world.assert_clean();
}

#[test]
fn disks_that_are_left_are_not_handed_to_another_folders_cluster() {
    let world = World::new();
    world.nodes(1, "disks: [{size: 1MiB, keep: true}]");
    world.ok(&["up"]);
    world.ok(&["down"]);
    let spec = fs::read_to_string(world.path("spec/kiln.yaml")).unwrap();
    for name in ["vmlinuz", "node.ign"] {
        world.write(
            &format!("other/{name}"),
            fs::read(world.path("spec").join(name)).unwrap(),
        );
    }
    world.write("other/kiln.yaml", spec);
    let other = world.path("other/kiln.yaml");
    for verb in [&["up"][..], &["down"], &["down", "--remove-disks"]] {
        let args: Vec<&str> = ["-f", other.to_str().unwrap()]
            .iter()
            .chain(verb)
            .copied()
            .collect();
        let ended = world.kiln(&args);
        assert_eq!(ended.code, Some(9), "{verb:?}: {}", ended.stderr);
    }
    assert!(disk(&world, "node-1", "data1").exists());
    world.ok(&["-c", "demo", "down", "--remove-disks"]);
    world.assert_clean();
    assert_eq!(
        world.kiln(&["-c", "demo", "down", "--remove-disks"]).code,
        Some(7)
    );
}

#[test]
fn disks_come_go_and_grow_at_their_price() {
    let world = World::new();
    world.nodes(1, "disks: [{size: 1MiB, serial: a}]");
    world.ok(&["up"]);
    let pid = world.pids()["node-1"];

    // Larger: while it runs.
    world.nodes(1, "disks: [{size: 2MiB, serial: a, keep: true}]");
    expect![[r#"
        (
            "change",
            [
                "disk `a`: 1MiB -> 2MiB (while it runs)",
                "disk `a`, keep: false -> true",
            ],
        )
    "#]]
    .assert_debug_eq(&planned(&world, "node-1"));
    world.ok(&["up"]);
    assert_eq!(world.pids()["node-1"], pid);
    assert_eq!(planned(&world, "node-1"), ("keep".to_owned(), vec![]));
    let a = world.json(&["ps"])["machines"][0]["disks"][0].clone();
    assert_eq!((&a["size"], &a["keep"]), (&(2 << 20).into(), &true.into()));

    // Smaller: never.
    world.nodes(1, "disks: [{size: 1MiB, serial: a}]");
    let refused = world.kiln(&["up"]);
    assert_eq!(refused.code, Some(3));
    expect![[r#"
        error: disk `a` of machine `node-1` of the group in line 5 is of 2MiB, and the spec asks for 1MiB

        hint: a disk never shrinks: ask for as much or more, or for a new disk by another `serial`
    "#]]
    .assert_eq(&refused.stderr);

    // Another one, and another place.
    world.nodes(
        1,
        "disks: [{size: 1MiB, serial: b}, {size: 2MiB, serial: a}]",
    );
    expect![[r#"
        (
            "restart",
            [
                "disk `a`, keep: true -> false",
                "disk `b`: 1MiB is new (needs a restart)",
            ],
        )
    "#]]
    .assert_debug_eq(&planned(&world, "node-1"));
    world.ok(&["up"]);
    assert_ne!(world.pids()["node-1"], pid);
    assert_eq!(serials(&world, "node-1"), ["b", "a"]);
    world.nodes(
        1,
        "disks: [{size: 2MiB, serial: a}, {size: 1MiB, serial: b}]",
    );
    assert_eq!(
        planned(&world, "node-1").1,
        ["order of disks: b a -> a b (needs a restart)"]
    );

    // One goes from the spec, and stays on the disk; a stopped machine's grow when it starts.
    let b = inode(&world, "node-1", "b");
    world.nodes(1, "disks: [{size: 5MiB, serial: a}]");
    world.ok(&["stop"]);
    assert_eq!(
        planned(&world, "node-1").1,
        [
            "disk `b`: 1MiB -> detached, and kept (needs a restart)",
            "disk `a`: 2MiB -> 5MiB (while it runs)"
        ]
    );
    world.ok(&["up"]);
    assert_eq!(serials(&world, "node-1"), ["a"]);
    assert_eq!(size(&disk(&world, "node-1", "a")), 5 << 20);
    assert_eq!(world.json(&["inspect"])["kept_disks"][0]["serial"], "b");
    world.nodes(
        1,
        "disks: [{size: 5MiB, serial: a}, {size: 1MiB, serial: b}]",
    );
    world.ok(&["up"]);
    assert_eq!(inode(&world, "node-1", "b"), b);
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn a_full_disk_of_the_host_leaves_nothing_of_a_new_disk() {
    let world = World::new();
    let tool = fs::canonicalize(world.path("bin/qemu-img")).unwrap();
    let full = |world: &World, serial: &str| {
        // Makes all disks but this one, of which there is a part.
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *{serial}.new*)\n  echo \"qemu-img: cannot write: No space left on device\" >&2; exit 1;;\nesac\nexec {} \"$@\"\n",
            tool.display()
        );
        fs::remove_file(world.path("bin/qemu-img")).unwrap();
        world.write("bin/qemu-img", script);
        fs::set_permissions(
            world.path("bin/qemu-img"),
            fs::Permissions::from_mode(0o755),
        )
        .unwrap();
    };
    full(&world, "b");
    world.nodes(
        2,
        "disks: [{size: 1MiB, serial: a}, {size: 1MiB, serial: b}]",
    );
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(1), "{}", up.stderr);
    expect![[r#"
        error: cannot make disk `b` of machine `node-1`
          caused by: qemu-img did not make disk `TMP/home/state/clusters/demo.disks/node-1/b.qcow2`: qemu-img: cannot write: No space left on device
    "#]]
    .assert_eq(&up.stderr);
    world.assert_clean();

    // Those that were there before stay as they are.
    world.nodes(1, "disks: [{size: 1MiB, serial: a}]");
    world.ok(&["up"]);
    world.settle(2);
    let (tree, pids) = (world.tree(), world.pids());
    world.nodes(
        2,
        "disks: [{size: 1MiB, serial: a}, {size: 1MiB, serial: c}, {size: 1MiB, serial: b}]",
    );
    assert_eq!(world.kiln(&["up", "node-2"]).code, Some(1));
    assert_eq!((world.tree(), world.pids()), (tree, pids));
    world.ok(&["-c", "demo", "down"]);
    world.assert_clean();
}

#[test]
fn an_up_with_disks_may_be_killed_at_any_moment() {
    let world = World::new();
    with_root(&world, 2, "[{size: 1MiB}, {size: 1MiB, keep: true}]");
    let whole = world.kiln(&["up"]).took;
    world.ok(&["down", "--remove-disks", "--timeout", "0s"]);
    world.assert_clean();
    for round in 0..10 {
        world.start(&["up"]).killed_after(whole * round / 10);
        if round % 2 == 0 {
            world.ok(&["gc"]);
        }
        if round % 4 < 2 {
            world.ok(&["up"]);
            assert_eq!(serials(&world, "node-2"), ["root", "data1", "data2"]);
        }
        // A `down` that is killed may be run again.
        world
            .start(&["down", "--timeout", "0s"])
            .killed_after(whole * (9 - round) / 10);
        let down = world.kiln(&["down", "--timeout", "0s"]);
        assert_eq!(down.code, Some(0), "round {round}: {}", down.stderr);
        for machine in ["node-1", "node-2"] {
            assert!(!disk(&world, machine, "data1").exists(), "round {round}");
        }
        world.ok(&["down", "--remove-disks"]);
        world.assert_clean();
    }
}

#[test]
fn files_of_the_users_are_used_in_place_and_judged_at_each_start() {
    let world = World::new();
    let image = world.path("spec/data.qcow2");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&image)
        .arg("4M")
        .status();
    assert!(made.unwrap().success());
    world.write("spec/data.raw", vec![1; 1 << 16]);
    world.nodes(
        1,
        "disks: [{file: data.qcow2, serial: a}, {file: data.raw, serial: b, readonly: true}]",
    );
    world.ok(&["up"]);
    assert_eq!(serials(&world, "node-1"), ["a", "b"]);
    let disks = world.json(&["ps"])["machines"][0]["disks"].clone();
    assert_eq!(
        (&disks[0]["size"], &disks[0]["readonly"]),
        (&(4 << 20).into(), &false.into())
    );
    assert_eq!(
        (&disks[1]["size"], &disks[1]["readonly"]),
        (&(1 << 16).into(), &true.into())
    );

    // What a guest writes into its raw disk is never a header.
    let sound = fs::read(&image).unwrap();
    world.write("spec/data.raw", &sound);
    world.ok(&["restart"]);
    // One that leads to another file is never followed.
    let mut hostile = sound.clone();
    hostile[79] |= 1 << 2;
    fs::write(&image, &hostile).unwrap();
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(9));
    expect![[r#"
        error: cannot use disk `a` of machine `node-1`
          caused by: refused to use `TMP/spec/data.qcow2` as qcow2
          caused by: it keeps its data in another file
    "#]]
    .assert_eq(&up.stderr);
    world.kiln(&["restart"]);
    assert_eq!(
        world.states(),
        [
            "node-1: crashed (it cannot be launched: its disk `TMP/spec/data.qcow2` cannot be used: refused to use `TMP/spec/data.qcow2` as qcow2: it keeps its data in another file)"
        ]
    );
    world.ok(&["down", "--remove-disks"]);
    world.assert_clean();
    assert_eq!(fs::read(&image).unwrap(), hostile);
}

#[test]
fn disks_whose_list_cannot_be_read_are_not_removed() {
    let world = World::new();
    world.nodes(1, "disks: [{size: 1MiB}]");
    world.ok(&["up"]);
    let pids = world.pids();
    let folder = world.home().join("state/clusters/demo.disks");
    let list = folder.join("disks.json");
    let sound = fs::read_to_string(&list).unwrap();
    let newer = sound.replace("\"schema\": 1", "\"schema\": 999");
    assert_ne!(newer, sound);
    for (text, code) in [(newer.as_str(), 1), ("{", 9)] {
        fs::write(&list, text).unwrap();
        let down = world.kiln(&["down", "--remove-disks"]);
        assert_eq!(down.code, Some(code), "{}", down.stderr);
        assert!(down.stderr.contains("/demo.disks"), "{}", down.stderr);
        assert!(disk(&world, "node-1", "data1").exists());
        // Nothing was stopped for it.
        assert_eq!(world.pids(), pids);
    }
    // Nor when the cluster has gone before.
    world.ok(&["down"]);
    let down = world.kiln(&["down", "--remove-disks"]);
    assert_eq!(down.code, Some(9), "{}", down.stderr);
    assert!(disk(&world, "node-1", "data1").exists());
    // A list of nothing is no loss.
    fs::remove_dir_all(folder.join("node-1")).unwrap();
    world.ok(&["down", "--remove-disks"]);
    world.assert_clean();
}

#[test]
fn a_block_device_is_its_machines_alone_as_root() {
    let world = World::new();
    world.write("device", vec![0; 1 << 20]);
    let losetup = |args: &[&str]| {
        let ended = Command::new("losetup").args(args).output().unwrap();
        assert!(ended.status.success(), "{args:?}: {ended:?}");
        String::from_utf8(ended.stdout).unwrap().trim().to_owned()
    };
    let device = losetup(&["-f", "--show", world.path("device").to_str().unwrap()]);
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let spec = format!("disks: [{{file: {device}, format: raw}}]");
        world.nodes(1, &spec);
        // As a mount has it.
        let held = fs::OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_EXCL)
            .open(&device)
            .unwrap();
        let up = world.kiln(&["up"]);
        assert_eq!(up.code, Some(9), "{}", up.stderr);
        let told = format!("`{device}` is in use");
        assert!(up.stderr.contains(&told), "{}", up.stderr);
        world.assert_clean();
        drop(held);
        // Its own machine is in nobody's way.
        world.ok(&["up"]);
        let up = world.kiln(&["up"]);
        assert!(up.stderr.contains("nothing to do"), "{}", up.stderr);
        world.ok(&["restart"]);
        assert_eq!(world.states(), ["node-1: ready"]);
        world.ok(&["down"]);
        world.assert_clean();
    }));
    losetup(&["-d", &device]);
    seen.unwrap();
}
