//! Shares as far as no guest is needed: who serves them, and why, beside the fake QEMU.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::fake_support::World;

const SHARE: &str = "shares: [{from: ./src, to: /var/mnt/my-src, readonly: true}]";

fn with_share() -> World {
    let world = World::new();
    fs::create_dir(world.path("spec/src")).unwrap();
    world.nodes(1, SHARE);
    world
}

/// A `virtiofsd` that is this script.
fn script(world: &World, lines: &str) {
    world.write("bin/virtiofsd", format!("#!/bin/sh\n{lines}\n"));
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(world.path("bin/virtiofsd"), mode).unwrap();
}

/// The share in the plan.
fn planned(world: &World) -> Value {
    world.json(&["plan"])["machines"][0]["shares"][0].clone()
}

#[test]
fn a_virtiofsd_that_does_not_work_is_said_and_done_without() {
    let world = with_share();
    script(
        &world,
        "echo '[now ERROR virtiofsd] no namespaces here' >&2; exit 1",
    );
    let share = planned(&world);
    assert_eq!(share["by"], "9p");
    assert_eq!(share["to"], "/var/mnt/my-src");
    let reason = share["reason"].as_str().unwrap();
    let end = "bin/virtiofsd` does not work here (exit status: 1): no namespaces here";
    assert!(reason.ends_with(end), "{reason}");
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(0), "{}", up.stderr);
    assert!(
        up.stderr.contains("node-1: shares by 9p: "),
        "{}",
        up.stderr
    );
    let shown = world.json(&["ps"])["machines"][0]["shares"][0].clone();
    assert_eq!(shown, share);
    // QEMU has the folder by a descriptor, and keeps the guest from writing to it.
    let qemu = world
        .processes()
        .into_iter()
        .find(|it| it.name().starts_with("demo/node-1"));
    let argv = qemu.unwrap().argv.join(" ");
    assert!(
        argv.contains("-fsdev local,id=share0,path=/proc/self/fd/"),
        "{argv}"
    );
    assert!(argv.contains(",readonly=on"), "{argv}");
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn a_virtiofsd_that_hangs_is_done_without() {
    let world = with_share();
    script(&world, "exec sleep 60");
    assert_eq!(planned(&world)["by"], "9p");
    world.assert_clean();
}

#[test]
fn a_share_is_changed_by_a_restart_and_a_folder_that_is_gone_is_said() {
    let world = with_share();
    script(&world, "exit 1");
    world.ok(&["up"]);
    fs::create_dir(world.path("spec/other")).unwrap();
    world.nodes(1, &SHARE.replace("./src", "./other"));
    let step = world.json(&["plan"])["machines"][0].clone();
    assert_eq!(step["action"], "restart");
    let why = step["why"][0].as_str().unwrap();
    assert!(why.starts_with("share `/var/mnt/my-src`: "), "{why}");
    world.ok(&["up"]);

    fs::remove_dir(world.path("spec/other")).unwrap();
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(3), "{}", up.stderr);
    assert!(up.stderr.contains("other` does not exist"), "{}", up.stderr);
    world.ok(&["down"]);
    world.assert_clean();
}
