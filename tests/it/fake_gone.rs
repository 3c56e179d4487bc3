//! Disks that somebody removed: said, and never replaced by empty ones without a word.

use std::fs;
use std::path::PathBuf;

use expect_test::expect;

use crate::fake_support::World;

fn data(world: &World) -> PathBuf {
    let disks = world.home().join("state/clusters/demo.disks");
    disks.join("node-1/a.qcow2")
}

#[test]
fn a_data_disk_that_somebody_removed_is_made_anew_only_when_asked_for() {
    let world = World::new();
    world.nodes(1, "disks: [{size: 1MiB, serial: a, keep: true}]");
    world.ok(&["up"]);
    let pid = world.pids()["node-1"];
    fs::remove_file(data(&world)).unwrap();
    let refused = || {
        let up = world.kiln(&["up"]);
        assert_eq!(up.code, Some(9), "{}", up.stderr);
        expect![[r#"
            error: disk `a` of node-1 is gone: somebody removed `TMP/home/state/clusters/demo.disks/node-1/a.qcow2`

            hint: put the file back; `kiln up --replace` makes an empty disk in its place, what was on the old one is lost
        "#]]
        .assert_eq(&up.stderr);
        assert!(!data(&world).exists());
    };
    refused();
    // Its machine has it as long as it runs.
    assert_eq!(world.pids()["node-1"], pid);
    let plan = world.json(&["plan"]);
    assert_eq!(plan["machines"][0]["action"], "restart");
    let why = plan["machines"][0]["why"][0].as_str().unwrap();
    assert!(why.starts_with("its disk `a` is gone"), "{why}");
    world.ok(&["stop"]);
    refused();
    // Also for a cluster that is made again, and for one whose machine comes back.
    world.ok(&["up", "--replace"]);
    assert!(data(&world).exists());
    world.ok(&["up"]);
    world.ok(&["down"]);
    fs::remove_file(data(&world)).unwrap();
    refused();
    // What went by kiln is no loss.
    world.ok(&["down", "--remove-disks"]);
    world.ok(&["up"]);
    world.ok(&["down", "--remove-disks"]);
    world.assert_clean();
}

#[test]
fn a_root_disk_that_somebody_removed_is_made_anew_only_when_asked_for() {
    let world = World::new();
    world.write("spec/disk.raw", vec![7; 1 << 20]);
    world.spec("cluster: demo\nimage: ./disk.raw\nmachines: {node: {accel: tcg}}\n");
    world.ok(&["up"]);
    world.ok(&["stop"]);
    let root = world.machine("demo", "node").join("disk.qcow2");
    let kept = fs::read(&root).unwrap();
    fs::remove_file(&root).unwrap();
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(9), "{}", up.stderr);
    assert!(
        up.stderr.contains("disk `root` of node is gone"),
        "{}",
        up.stderr
    );
    fs::write(&root, kept).unwrap();
    world.ok(&["up"]);
    world.ok(&["stop"]);
    fs::remove_file(&root).unwrap();
    world.ok(&["up", "--replace"]);
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn an_up_that_lets_a_disk_grow_says_so() {
    let world = World::new();
    world.nodes(
        1,
        "disks: [{size: 1MiB, serial: a}, {size: 1MiB, serial: n, bus: nvme}]",
    );
    world.ok(&["up"]);
    let pid = world.pids()["node-1"];
    world.nodes(
        1,
        "disks: [{size: 2MiB, serial: a}, {size: 1MiB, serial: n, bus: nvme}]",
    );
    let up = world.kiln(&["up"]);
    let told = "note: disk `a` of node-1 has grown to 2MiB\n";
    assert!(up.stderr.contains(told), "{}", up.stderr);
    assert_eq!(world.pids()["node-1"], pid);
    // QEMU tells no guest of an NVMe disk's new size.
    world.nodes(
        1,
        "disks: [{size: 2MiB, serial: a}, {size: 3MiB, serial: n, bus: nvme}]",
    );
    let plan = world.json(&["plan"]);
    assert_eq!(
        plan["machines"][0]["why"][0],
        "disk `n`: 1MiB -> 3MiB (needs a restart)"
    );
    let up = world.kiln(&["up"]);
    let told = "note: disk `n` of node-1 has grown to 3MiB\n";
    assert!(up.stderr.contains(told), "{}", up.stderr);
    assert_ne!(world.pids()["node-1"], pid);
    let buses = world.json(&["ps"])["machines"][0]["disks"].clone();
    assert_eq!(
        (&buses[0]["bus"], &buses[1]["bus"]),
        (&"virtio".into(), &"nvme".into())
    );
    world.ok(&["down"]);
    world.assert_clean();
}
