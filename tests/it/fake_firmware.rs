//! The choice of firmware as far as no guest is needed: descriptors in the user's own folder, which
//! come before the host's, and machines that the fake QEMU makes up.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use expect_test::expect;
use serde_json::json;

use crate::fake_support::{QEMU, World};

/// Masks all descriptors that the host has.
fn without_firmware(world: &World) {
    for folder in ["/etc/qemu/firmware", "/usr/share/qemu/firmware"] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            world.write(&format!(".config/qemu/firmware/{name}"), "");
        }
    }
}

#[test]
fn without_firmware_nothing_is_made_and_the_broken_descriptor_is_named() {
    let world = World::new();
    without_firmware(&world);
    world.write(".config/qemu/firmware/99-torn.json", "{");
    for (firmware, told) in [("uefi", "UEFI"), ("uefi-secure", "UEFI with secure boot")] {
        world.nodes(1, &format!("firmware: {firmware}"));
        let up = world.kiln(&["up"]);
        assert_eq!(up.code, Some(4), "{}", up.stderr);
        let want = format!(
            "error: machine `node-1` needs {told} for x86_64, which is not installed; \
             `TMP/.config/qemu/firmware/99-torn.json` "
        );
        assert!(up.stderr.starts_with(&want), "{}", up.stderr);
        assert_eq!(world.kiln(&["plan"]).code, Some(4));
        // The spec is no worse for it.
        assert_eq!(world.kiln(&["validate"]).code, Some(0));
    }
    world.assert_clean();
}

/// A build whose code is `code` and whose template of variables holds `vars`.
fn build(world: &World, name: &str, vars: &str) {
    build_of(world, name, "raw", b"code", vars);
}

fn build_of(world: &World, name: &str, format: &str, code: &[u8], vars: &str) {
    world.write(&format!("builds/{name}.code"), code);
    world.write(&format!("builds/{name}.vars"), vars);
    let at = world.path("builds").join(name);
    let text = json!({
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": format!("{}.code", at.display()), "format": format},
            "nvram-template": {"filename": format!("{}.vars", at.display()), "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
        "features": [],
    });
    world.write(
        &format!(".config/qemu/firmware/{name}.json"),
        text.to_string(),
    );
}

#[test]
fn a_machine_keeps_its_firmware_and_its_variables() {
    let world = World::new();
    without_firmware(&world);
    build(&world, "50-first", "first");
    world.nodes(1, "firmware: uefi");
    world.ok(&["up"]);
    let vars = world.machine("demo", "node-1").join("uefi-vars.fd");
    assert_eq!(fs::read_to_string(&vars).unwrap(), "first");
    assert_eq!(vars.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    fs::write(&vars, "the guest's").unwrap();

    // A better one comes, and a template changes: neither is this machine's.
    build(&world, "10-better", "better");
    world.write("builds/50-first.vars", "changed");
    world.ok(&["restart"]);
    let up = world.kiln(&["up"]);
    assert!(up.stderr.contains("nothing to do"), "{}", up.stderr);
    assert_eq!(fs::read_to_string(&vars).unwrap(), "the guest's");
    let explained = world.ok(&["explain", "node-1"]);
    assert!(explained.contains("pflash0=uefi-code"), "{explained}");

    // Its own goes: it gets the other, with that one's variables, when the user says `up`.
    fs::remove_file(world.path("builds/50-first.code")).unwrap();
    let plan = world.json(&["plan"]);
    assert_eq!(plan["machines"][0]["action"], "restart");
    let why = world.plain(plan["machines"][0]["why"][0].as_str().unwrap());
    expect!["firmware: UEFI of TMP/builds/50-first.code -> UEFI of TMP/builds/10-better.code, with new UEFI variables (needs a restart)"]
        .assert_eq(&why);
    // One that fails before the record is written leaves the old ones.
    let config = world.machine("demo", "node-1").join("config.ign");
    fs::remove_file(&config).unwrap();
    fs::create_dir(&config).unwrap();
    assert_eq!(world.kiln(&["up"]).code, Some(1));
    assert_eq!(fs::read_to_string(&vars).unwrap(), "the guest's");
    fs::remove_dir(&config).unwrap();
    world.ok(&["up"]);
    assert_eq!(fs::read_to_string(&vars).unwrap(), "better");
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn a_disk_for_arm_asks_for_uefi_before_anything_is_made() {
    let world = World::new();
    without_firmware(&world);
    let arm = world.path("bin/qemu-system-aarch64");
    fs::rename(world.path("bin").join(QEMU), &arm).unwrap();
    world.write("spec/disk.raw", vec![0; 1 << 20]);
    world.spec("cluster: demo\nimage: disk.raw\nmachines: {node: {arch: aarch64}}\n");
    for verb in ["plan", "up", "explain"] {
        let args: &[&str] = if verb == "explain" {
            &["explain", "node"]
        } else {
            &[verb]
        };
        let ended = world.kiln(args);
        assert_eq!(ended.code, Some(4), "{verb}: {}", ended.stderr);
        let want = "error: machine `node` needs UEFI for aarch64, which is not installed\n";
        assert!(ended.stderr.starts_with(want), "{verb}: {}", ended.stderr);
    }
    world.assert_clean();
}

#[test]
fn an_image_may_ask_for_its_config_on_a_disk() {
    let world = World::new();
    world.spec(
        "cluster: demo\n\
         image: {kernel: vmlinuz, ignition_transport: virtio-blk}\n\
         machines: {node: {ignition: node.ign}}\n",
    );
    let explained = world.ok(&["explain", "node"]);
    assert!(!explained.contains("-fw_cfg"), "{explained}");
    assert!(explained.contains("serial=ignition"), "{explained}");
    world.ok(&["up"]);
    world.spec(
        "cluster: demo\n\
         image: {kernel: vmlinuz, ignition_transport: fw_cfg}\n\
         machines: {node: {ignition: node.ign}}\n",
    );
    let plan = world.json(&["plan"]);
    assert_eq!(
        plan["machines"][0]["why"],
        json!(["ignition transport: virtio-blk -> fw_cfg (needs a restart)"])
    );
    world.ok(&["up"]);
    let explained = world.ok(&["explain", "node"]);
    assert!(explained.contains("opt/com.coreos/config"), "{explained}");
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn firmware_whose_header_leads_elsewhere_is_not_started() {
    let world = World::new();
    without_firmware(&world);
    let mut code = crate::image::support::image(1, 51);
    build_of(&world, "50-odd", "qcow2", &code, "vars");
    world.nodes(1, "firmware: uefi");
    world.ok(&["up"]);
    world.ok(&["stop"]);
    // The feature bit of a data file.
    code[79] |= 1 << 2;
    world.write("builds/50-odd.code", &code);
    world.kiln(&["start"]);
    let states = world.states();
    assert!(
        states[0].contains("50-odd.code") && states[0].contains("keeps its data in another file"),
        "{states:?}"
    );
    world.ok(&["down"]);
    world.assert_clean();
}
