//! Disks that are logical volumes, with the real lvm2: made, kept, grown, and gone to the last one.
//!
//! See `support/lvm.sh` for what of lvm2 is not run where a kernel has no device-mapper.

use std::fs;

use expect_test::expect;

use crate::fake_support::World;
use crate::support::volumes::Group;

/// What the root disks begin with.
fn base() -> Vec<u8> {
    let mut bytes = vec![0; 2 << 20];
    bytes[..8].copy_from_slice(b"the base");
    bytes
}

struct Story {
    world: World,
    group: Group,
}

impl Story {
    fn new(mib: u64) -> Story {
        let world = World::new();
        let group = Group::new(&world.path(""), &world.path("bin"), mib);
        world.write("spec/disk.raw", base());
        Story { world, group }
    }

    /// A cluster `demo` on the group, with these lines for its machines.
    fn spec(&self, count: u32, more: &str) {
        let mut text = format!(
            "cluster: demo\nimage: ./disk.raw\nstorage: {{vg: {}}}\nmachines:\n  node:\n    \
             count: {count}\n    accel: tcg\n    ignition: node.ign\n",
            self.group.name
        );
        for line in more.lines() {
            text.push_str(&format!("    {line}\n"));
        }
        self.world.spec(&text);
    }
}

/// Whether it is the base and then nothing.
fn is_fresh(content: &[u8]) -> bool {
    let base = base();
    content[..base.len()] == base && content[base.len()..].iter().all(|byte| *byte == 0)
}

#[test]
fn a_cluster_on_a_volume_group_leaves_it_as_it_was_as_root() {
    let story = Story::new(64);
    let Story { world, group } = &story;
    group.lvm(&[
        "lvcreate",
        "-q",
        "-an",
        "-Zn",
        "-Wn",
        "-L3m",
        "-n",
        "mine",
        &group.name,
    ]);
    let before = group.seen();
    story.spec(
        2,
        "disk: 5MiB\ndisks: [{size: 3MiB, serial: logs}, {size: 1MiB, serial: a_b}]",
    );
    assert_eq!(world.json(&["plan"])["volume_group"], group.name.as_str());
    assert_eq!(group.seen(), before);
    world.ok(&["up"]);
    expect![[r#"
        [
            "kiln.demo.node-1.a+b 1",
            "kiln.demo.node-1.logs 3",
            "kiln.demo.node-1.root 5",
            "kiln.demo.node-2.a+b 1",
            "kiln.demo.node-2.logs 3",
            "kiln.demo.node-2.root 5",
            "mine 3",
        ]
    "#]]
    .assert_debug_eq(&group.volumes());
    let (root, logs) = ("kiln.demo.node-1.root", "kiln.demo.node-1.logs");
    assert!(is_fresh(&group.content(root)));
    assert!(group.content(logs).iter().all(|byte| *byte == 0));
    let tags = group.of(root, "lv_tags");
    assert!(
        tags.starts_with("kiln/") && tags.contains("/node-1/root/"),
        "{tags}"
    );
    let disks = world.json(&["ps"])["machines"][0]["disks"].clone();
    let told: Vec<(&str, u64)> = disks
        .as_array()
        .unwrap()
        .iter()
        .map(|disk| {
            (
                disk["path"].as_str().unwrap(),
                disk["size"].as_u64().unwrap(),
            )
        })
        .collect();
    let nodes = [root, logs, "kiln.demo.node-1.a+b"].map(|name| world.plain(&group.node(name)));
    assert_eq!(
        told,
        [
            (nodes[0].as_str(), 5 << 20),
            (nodes[1].as_str(), 3 << 20),
            (nodes[2].as_str(), 1 << 20)
        ]
    );
    // No image that a guest writes has a header.
    let qemus = world.qemus();
    let qemu = qemus
        .iter()
        .find(|qemu| qemu.name().starts_with("demo/node-1"))
        .unwrap();
    assert!(
        !qemu.argv.iter().any(|word| word.contains("qcow2")),
        "{:?}",
        qemu.argv
    );
    assert!(
        qemu.argv.iter().any(|word| word.contains("host_device")),
        "{:?}",
        qemu.argv
    );

    let up = world.kiln(&["up"]);
    assert!(up.stderr.contains("nothing to do"), "{}", up.stderr);
    world.ok(&["restart"]);
    // The base may go: a volume has all of it. Then it is back, and another one.
    fs::rename(world.path("spec/disk.raw"), world.path("away")).unwrap();
    world.ok(&["restart"]);
    fs::rename(world.path("away"), world.path("spec/disk.raw")).unwrap();
    fs::write(group.node(root), "written by the guest").unwrap();
    let (old, kept) = (group.of(root, "lv_uuid"), group.of(logs, "lv_uuid"));
    world.ok(&["reprovision", "node-1"]);
    assert_ne!(group.of(root, "lv_uuid"), old);
    assert_eq!(group.of(logs, "lv_uuid"), kept);
    assert!(is_fresh(&group.content(root)));
    world.ok(&["stop", "--timeout", "0s"]);
    // As after a boot of the host.
    group.deactivate();
    world.ok(&["start"]);
    assert_eq!(world.states(), ["node-1: ready", "node-2: ready"]);

    // A machine that goes takes its root disk with it.
    story.spec(
        1,
        "disk: 5MiB\ndisks: [{size: 3MiB, serial: logs}, {size: 1MiB, serial: a_b}]",
    );
    world.ok(&["up"]);
    assert_eq!(group.volumes().len(), 6);
    assert_eq!(
        world.json(&["ps"])["kept_disks"].as_array().unwrap().len(),
        2
    );
    world.ok(&["down", "--timeout", "0s"]);
    assert_eq!(group.seen(), before);
    world.assert_clean();
    world.ok(&["down"]);
}

#[test]
fn data_disks_on_volumes_are_kept_and_attached_again_as_root() {
    let story = Story::new(32);
    let Story { world, group } = &story;
    let before = group.seen();
    story.spec(
        1,
        "disks: [{size: 1MiB, serial: keep, keep: true}, {size: 1MiB, serial: go}]",
    );
    world.ok(&["up"]);
    let keep = "kiln.demo.node-1.keep";
    let uuid = group.of(keep, "lv_uuid");
    fs::write(group.node(keep), "kept content").unwrap();
    let down = world.kiln(&["down"]);
    assert!(
        down.stdout.contains("kept: `keep` of node-1 (1MiB, TMP/"),
        "{}",
        down.stdout
    );
    assert_eq!(group.volumes(), ["kiln.demo.node-1.keep 1"]);
    for _ in 0..2 {
        world.ok(&["down"]);
        world.ok(&["gc"]);
    }
    assert_eq!(
        world.json(&["ls"])["clusters"][0]["kept_disks"][0]["serial"],
        "keep"
    );
    world.ok(&["up"]);
    assert_eq!(group.of(keep, "lv_uuid"), uuid);
    assert!(group.content(keep).starts_with(b"kept content"));
    world.ok(&["down", "--keep-disks"]);
    assert_eq!(group.volumes().len(), 2);
    // Where the spec has no group any more, a disk stays where it was made.
    world.nodes(
        1,
        "disks: [{size: 1MiB, serial: keep}, {size: 1MiB, serial: file}]",
    );
    world.ok(&["up"]);
    assert!(group.content(keep).starts_with(b"kept content"));
    assert_eq!(group.volumes().len(), 2);
    world.nodes(1, "disks: [{size: 2MiB, serial: keep}]");
    assert_eq!(world.kiln(&["up"]).code, Some(3));
    world.ok(&["down", "--remove-disks"]);
    assert_eq!(group.seen(), before);
    world.assert_clean();
}

#[test]
fn a_full_group_is_refused_before_anything_is_made_as_root() {
    let story = Story::new(20);
    let Story { world, group } = &story;
    let before = group.seen();
    story.spec(3, "disk: 5MiB\ndisks: [{size: 2MiB}]");
    for verb in ["plan", "up"] {
        let ended = world.kiln(&[verb]);
        assert_eq!(ended.code, Some(4), "{}", ended.stderr);
        let told = format!(
            "error: volume group `{}` has 20MiB free, and the disks that are to be made or to grow take 21MiB\n",
            group.name
        );
        assert!(ended.stderr.starts_with(&told), "{}", ended.stderr);
        assert_eq!(group.seen(), before);
        world.assert_clean();
    }
    // Some of them have room; what goes makes room for what comes.
    world.ok(&["up", "node-1", "node-2"]);
    assert_eq!(world.kiln(&["up"]).code, Some(4));
    assert_eq!(group.volumes().len(), 4);
    world.ok(&["reprovision", "node-1", "node-2"]);
    story.spec(2, "disk: 9MiB\ndisks: [{size: 2MiB}]");
    let ended = world.kiln(&["up"]);
    assert!(
        ended
            .stderr
            .contains("has 6MiB free, and the disks that are to be made or to grow take 8MiB"),
        "{}",
        ended.stderr
    );
    world.ok(&["down", "--timeout", "0s"]);
    assert_eq!(group.seen(), before);
    world.assert_clean();
}

#[test]
fn a_volume_of_someone_else_is_left_untouched_as_root() {
    let story = Story::new(32);
    let Story { world, group } = &story;
    let foreign = "kiln.demo.node-1.root";
    group.lvm(&[
        "lvcreate",
        "-q",
        "-an",
        "-Zn",
        "-Wn",
        "-L3m",
        "--addtag",
        "kiln/of/another",
        "-n",
        foreign,
        &group.name,
    ]);
    let before = group.seen();
    story.spec(1, "");
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(9), "{}", up.stderr);
    let told = format!(
        "volume group `{}` has a volume `{foreign}`, which is not this cluster's",
        group.name
    );
    assert!(up.stderr.contains(&told), "{}", up.stderr);
    world.ok(&["down"]);
    world.ok(&["gc"]);
    assert_eq!(group.seen(), before);
    world.assert_clean();

    // Ours is ours under another name too, and one in its place is not.
    group.lvm(&["lvremove", "-q", "-y", &format!("{}/{foreign}", group.name)]);
    let empty = group.seen();
    world.ok(&["up"]);
    group.lvm(&["lvrename", "-q", &group.name, foreign, "renamed"]);
    group.lvm(&[
        "lvcreate",
        "-q",
        "-an",
        "-Zn",
        "-Wn",
        "-L3m",
        "-n",
        foreign,
        &group.name,
    ]);
    world.ok(&["restart"]);
    assert_eq!(world.kiln(&["reprovision", "node-1"]).code, Some(9));
    world.ok(&["down", "--timeout", "0s"]);
    assert_eq!(group.volumes(), [format!("{foreign} 3")]);
    group.lvm(&["lvremove", "-q", "-y", &format!("{}/{foreign}", group.name)]);
    assert_eq!(group.seen(), empty);
    // One that got kiln's tag by hand is not what kiln made.
    world.ok(&["up"]);
    let tag = group.of(foreign, "lv_tags");
    group.lvm(&[
        "lvcreate",
        "-q",
        "-an",
        "-Zn",
        "-Wn",
        "-L3m",
        "--addtag",
        &tag,
        "-n",
        "copy",
        &group.name,
    ]);
    let down = world.kiln(&["down", "--timeout", "0s"]);
    assert_eq!(down.code, Some(1), "{}", down.stderr);
    assert_eq!(group.volumes().len(), 2);
    group.lvm(&[
        "lvchange",
        "-q",
        "--deltag",
        &tag,
        &format!("{}/copy", group.name),
    ]);
    world.ok(&["down"]);
    assert_eq!(group.volumes(), ["copy 3"]);
    world.assert_clean();
}

#[test]
fn volumes_grow_with_zeros_and_never_shrink_as_root() {
    let story = Story::new(64);
    let Story { world, group } = &story;
    let before = group.seen();
    story.spec(1, "disk: 4MiB\ndisks: [{size: 1MiB, serial: logs}]");
    world.ok(&["up"]);
    let (root, logs) = ("kiln.demo.node-1.root", "kiln.demo.node-1.logs");
    let pid = world.pids()["node-1"];
    fs::write(group.node(logs), [b'g'; 1 << 20]).unwrap();
    // While it runs.
    story.spec(1, "disk: 7500KiB\ndisks: [{size: 3MiB, serial: logs}]");
    let plan = world.ok(&["plan"]);
    assert!(
        plan.contains("disk `logs`: 1MiB -> 3MiB (while it runs)"),
        "{plan}"
    );
    world.ok(&["up"]);
    assert_eq!(world.pids()["node-1"], pid);
    assert_eq!(
        group.volumes(),
        ["kiln.demo.node-1.logs 3", "kiln.demo.node-1.root 8"]
    );
    let content = group.content(logs);
    assert_eq!(content.len(), 3 << 20);
    assert!(content[..1 << 20].iter().all(|byte| *byte == b'g'));
    assert!(content[1 << 20..].iter().all(|byte| *byte == 0));
    assert!(is_fresh(&group.content(root)));
    assert!(!group.of(logs, "lv_tags").contains("zero"));
    let up = world.kiln(&["up"]);
    assert!(up.stderr.contains("nothing to do"), "{}", up.stderr);
    // While it is down.
    world.ok(&["stop", "--timeout", "0s"]);
    story.spec(1, "disk: 9MiB\ndisks: [{size: 3MiB, serial: logs}]");
    world.ok(&["up"]);
    assert!(is_fresh(&group.content(root)));
    assert_eq!(group.content(root).len(), 9 << 20);
    // Never.
    for (disk, data) in [("8MiB", "3MiB"), ("9MiB", "1MiB")] {
        story.spec(
            1,
            &format!("disk: {disk}\ndisks: [{{size: {data}, serial: logs}}]"),
        );
        let up = world.kiln(&["up"]);
        assert_eq!(up.code, Some(3), "{}", up.stderr);
        assert!(up.stderr.contains("never shrinks"), "{}", up.stderr);
    }
    // What somebody removed is not made anew without a word.
    world.ok(&["stop", "--timeout", "0s"]);
    group.deactivate();
    let name = |volume: &str| format!("{}/{volume}", group.name);
    story.spec(1, "disk: 9MiB\ndisks: [{size: 3MiB, serial: logs}]");
    for volume in [logs, root] {
        group.lvm(&["lvremove", "-q", "-y", &name(volume)]);
        let up = world.kiln(&["up"]);
        assert_eq!(up.code, Some(9), "{}", up.stderr);
        assert!(
            up.stderr.contains("is gone: somebody removed"),
            "{}",
            up.stderr
        );
    }
    world.ok(&["up", "--replace"]);
    assert!(is_fresh(&group.content(root)));
    assert!(group.content(logs).iter().all(|byte| *byte == 0));
    // From volumes to files is another root disk.
    world.spec("cluster: demo\nimage: ./disk.raw\nmachines:\n  node:\n    count: 1\n    accel: tcg\n    ignition: node.ign\n    disk: 9MiB\n    disks: [{size: 3MiB, serial: logs}]\n");
    assert_eq!(world.kiln(&["up"]).code, Some(9));
    world.ok(&["up", "--replace"]);
    assert_eq!(group.volumes(), ["kiln.demo.node-1.logs 3"]);
    world.ok(&["down", "--timeout", "0s"]);
    assert_eq!(group.seen(), before);
    world.assert_clean();
}

/// What an `up` asks before it does anything: the version, the group and its volumes, twice.
const ASKED: u32 = 6;

/// Has `args` killed after each call of lvm2's, from this one on, until it is done before. `then`
/// looks at what each time has left.
fn killed_at_each_call(story: &Story, args: &[&str], first: u32, mut then: impl FnMut(u32)) -> u32 {
    for calls in first.. {
        story.group.kill_after(calls);
        let ended = story.world.kiln(args);
        story.group.kill_nobody();
        if ended.signal != Some(9) {
            assert_eq!(ended.code, Some(0), "call {calls}: {}", ended.stderr);
            return calls;
        }
        then(calls);
    }
    unreachable!()
}

#[test]
fn an_up_on_volumes_may_be_killed_at_any_call_as_root() {
    let story = Story::new(64);
    let Story { world, group } = &story;
    let before = group.seen();
    story.spec(1, "disks: [{size: 1MiB, serial: d}]");
    let calls = killed_at_each_call(&story, &["up"], ASKED, |call| {
        if call % 2 == 0 {
            world.ok(&["gc"]);
            // No record has the machine; the list has its data disk.
            let left = group.volumes();
            assert!(
                !left.iter().any(|line| line.contains("root")),
                "call {call}: {left:?}"
            );
        } else {
            world.ok(&["up"]);
            assert!(
                is_fresh(&group.content("kiln.demo.node-1.root")),
                "call {call}"
            );
            let data = group.content("kiln.demo.node-1.d");
            assert!(data.iter().all(|byte| *byte == 0), "call {call}");
        }
        world.ok(&["down", "--timeout", "0s"]);
        assert_eq!(group.seen(), before, "call {call}");
        world.assert_clean();
    });
    assert!(calls > 10, "{calls}");
    let calls = killed_at_each_call(&story, &["down", "--timeout", "0s"], 1, |call| {
        if call % 2 == 0 {
            world.ok(&["up"]);
        }
    });
    assert!(calls > 3, "{calls}");
    assert_eq!(group.seen(), before);
    world.assert_clean();
}

#[test]
fn a_volume_whose_growth_is_killed_grows_all_the_same_as_root() {
    let story = Story::new(64);
    let Story { world, group } = &story;
    let before = group.seen();
    let spec = |size: u64| story.spec(1, &format!("disks: [{{size: {size}MiB, serial: d}}]"));
    spec(1);
    world.ok(&["up"]);
    let data = "kiln.demo.node-1.d";
    let mut size = 2;
    spec(size);
    // What the guest writes stays, and what is new is zero.
    let is_right = |size: u64| {
        let content = group.content(data);
        let (old, new) = content.split_at(usize::try_from(size - 1).unwrap() << 20);
        content.len() as u64 == size << 20
            && old.iter().all(|byte| *byte == b'g')
            && new.iter().all(|byte| *byte == 0)
    };
    let write = |size: u64| {
        fs::write(
            group.node(data),
            vec![b'g'; usize::try_from(size).unwrap() << 20],
        )
    };
    write(1).unwrap();
    killed_at_each_call(&story, &["up"], ASKED, |call| {
        world.ok(&["up"]);
        assert!(is_right(size), "call {call}");
        write(size).unwrap();
        size += 1;
        spec(size);
    });
    assert!(is_right(size));
    assert!(size > 4, "{size}");
    world.ok(&["down", "--timeout", "0s"]);
    assert_eq!(group.seen(), before);
    world.assert_clean();
}

#[test]
fn an_up_that_fails_takes_its_volumes_back_as_root() {
    let story = Story::new(64);
    let Story { world, group } = &story;
    let before = group.seen();
    let real = fs::canonicalize(world.path("bin/qemu-img")).unwrap();
    let becomes = |path: &std::path::Path| {
        fs::remove_file(world.path("bin/qemu-img")).unwrap();
        std::os::unix::fs::symlink(path, world.path("bin/qemu-img")).unwrap();
    };
    world.write(
        "fails",
        "#!/bin/sh\necho 'qemu-img: Input/output error' >&2\nexit 1\n",
    );
    fs::set_permissions(
        world.path("fails"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    becomes(&world.path("fails"));
    story.spec(1, "disks: [{size: 1MiB}]");
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(1), "{}", up.stderr);
    assert!(up.stderr.contains("Input/output error"), "{}", up.stderr);
    assert_eq!(group.seen(), before);
    world.assert_clean();
    // What was there before stays.
    becomes(&real);
    world.ok(&["up"]);
    let (seen, pids) = (group.seen(), world.pids());
    becomes(&world.path("fails"));
    story.spec(2, "disks: [{size: 1MiB}]");
    assert_eq!(world.kiln(&["up", "node-2"]).code, Some(1));
    assert_eq!((group.seen(), world.pids()), (seen, pids));
    world.ok(&["down", "--timeout", "0s"]);
    assert_eq!(group.seen(), before);
    world.assert_clean();
}

#[test]
fn what_a_host_lacks_for_volumes_is_said_as_root() {
    let world = World::new();
    world.write("spec/disk.raw", base());
    let spec = |group: &str| {
        world.spec(&format!(
            "cluster: demo\nimage: ./disk.raw\nstorage: {{vg: {group}}}\nmachines:\n  node:\n    accel: tcg\n    ignition: node.ign\n"
        ));
    };
    let refused = |what: &str| {
        let up = world.kiln(&["up"]);
        assert_eq!(up.code, Some(4), "{}", up.stderr);
        assert!(up.stderr.contains(what), "{}", up.stderr);
        world.assert_clean();
    };
    spec("vg0");
    refused(
        "cannot put disks into volume group `vg0`: logical volumes need `lvm`, which is not installed",
    );
    assert_eq!(world.kiln(&["validate"]).code, Some(0));
    // As the kernels that these tests run on mostly are.
    world.write(
        "bin/lvm",
        "#!/bin/sh\necho '  LVM version:     2.03.16(2) (2022-05-18)'\n",
    );
    fs::set_permissions(
        world.path("bin/lvm"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    refused("this kernel has no device-mapper");
    let doctor = world.kiln(&["doctor"]);
    assert!(
        doctor.stdout.contains("no device-mapper"),
        "{}",
        doctor.stdout
    );
    fs::remove_file(world.path("bin/lvm")).unwrap();
    let group = Group::new(&world.path(""), &world.path("bin"), 8);
    refused("there is no volume group `vg0`");
    for name in ["-vg", "a b", "..", "'a,b'"] {
        spec(name);
        assert_eq!(world.kiln(&["up"]).code, Some(3), "{name}");
    }
    drop(group);
}
