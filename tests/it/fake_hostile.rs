//! Headers that guests wrote, and those of hostile images: no tool and no QEMU is led to another file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::fake_support::World;

/// What stands in the file that must not be read.
const MARKER: &str = "the-marker-that-nobody-may-see";

/// From here on qemu-img says what it was asked, and does it.
fn trace(world: &World) {
    let tool = fs::canonicalize(world.path("bin/qemu-img")).unwrap();
    let script = format!(
        "#!/bin/sh\nprintf '%s\\n' \"$*\" >>{log}\nexec {tool} \"$@\"\n",
        log = world.path("asked").display(),
        tool = tool.display()
    );
    fs::remove_file(world.path("bin/qemu-img")).unwrap();
    world.write("bin/qemu-img", script);
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(world.path("bin/qemu-img"), mode).unwrap();
}

/// Each call names the format of each image that it opens, and what lies below it.
#[track_caller]
fn all_named_formats(world: &World, least: usize) {
    let asked = fs::read_to_string(world.path("asked")).unwrap();
    let asked: Vec<&str> = asked.lines().filter(|line| *line != "--version").collect();
    assert!(asked.len() >= least, "{asked:?}");
    for line in asked {
        let verb = line.split(' ').next().unwrap();
        let is_named = match verb {
            // An image that is only written; what it lies over is not opened.
            "create" => {
                line.contains("-f qcow2") && (!line.contains(" -b ") || line.contains("-u -F "))
            }
            "resize" => line.split_once("json:").is_some_and(|(_, node)| {
                let mut nodes = serde_json::Deserializer::from_str(node).into_iter::<Value>();
                let node = nodes.next().unwrap().unwrap();
                node["driver"] == "qcow2"
                    && node["file"]["driver"] == "file"
                    && node["backing"].is_null()
            }),
            _ => false,
        };
        assert!(is_named, "{line}");
    }
}

/// The image again, lying over the file with the marker, as a guest could write it.
fn lead_to(path: &Path, secret: &Path, format: &str) {
    let ended = Command::new("qemu-img")
        .args(["rebase", "-u", "-f", "qcow2", "-F", format, "-b"])
        .args([secret, path])
        .output()
        .unwrap();
    assert!(ended.status.success(), "{ended:?}");
}

#[test]
fn no_header_that_a_guest_wrote_is_followed() {
    let world = World::new();
    trace(&world);
    let secret = world.path("secret");
    world.write("secret", MARKER.repeat(100_000));
    world.write("spec/disk.raw", vec![7; 1 << 20]);
    // A raw disk into which a guest wrote a header.
    world.write("spec/mine.raw", vec![1; 1 << 20]);
    let spec = |root: &str, data: &str| {
        world.spec(&format!(
            "cluster: demo\nimage: ./disk.raw\nmachines:\n  node:\n    accel: tcg\n    disk: {root}\n    \
             disks: [{{size: {data}, serial: a}}, {{file: mine.raw, serial: mine}}]\n"
        ));
    };
    spec("2MiB", "1MiB");
    world.ok(&["up"]);
    world.ok(&["stop"]);
    let root = world.machine("demo", "node").join("disk.qcow2");
    let data = world.home().join("state/clusters/demo.disks/node/a.qcow2");
    lead_to(&root, &secret, "raw");
    let header = world.path("header");
    fs::copy(&root, &header).unwrap();
    world.write("spec/mine.raw", fs::read(&header).unwrap());
    let kept = fs::read(&data).unwrap();
    lead_to(&data, &secret, "raw");

    // The data disk lies over nothing; one that says otherwise is refused, before it is touched.
    spec("3MiB", "2MiB");
    let up = world.kiln(&["up"]);
    assert_eq!(up.code, Some(9), "{}", up.stderr);
    assert!(up.stderr.contains("it has a backing file"), "{}", up.stderr);
    assert!(!up.stderr.contains(MARKER));
    fs::write(&data, kept).unwrap();

    // The root disk lies over the image whatever its header says, and a raw disk has no header.
    world.ok(&["up"]);
    let argv = world
        .qemus()
        .into_iter()
        .find(|qemu| qemu.name().contains("node"))
        .unwrap()
        .argv;
    let nodes: Vec<Value> = argv
        .iter()
        .filter_map(|word| serde_json::from_str(word).ok())
        .filter(Value::is_object)
        .collect();
    assert_eq!(nodes.len(), 3, "{argv:?}");
    let told = |node: &Value| (node["driver"].clone(), node["backing"]["driver"].clone());
    let told: Vec<_> = nodes.iter().map(told).collect();
    let null = Value::Null;
    assert_eq!(
        told,
        [
            ("qcow2".into(), "raw".into()),
            ("qcow2".into(), null.clone()),
            ("raw".into(), null),
        ]
    );
    assert!(argv.iter().all(|word| !word.contains("secret")), "{argv:?}");
    for verb in [
        &["ps", "--json"][..],
        &["inspect"],
        &["logs"],
        &["explain", "node"],
        &["plan"],
    ] {
        let ended = world.kiln(verb);
        assert!(
            !ended.stdout.contains(MARKER) && !ended.stderr.contains(MARKER),
            "{verb:?}"
        );
    }
    world.ok(&["stop"]);
    // Nothing of it was copied anywhere.
    let found = Command::new("grep")
        .args(["-rlF", MARKER])
        .args([world.home(), world.path("spec")])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    world.ok(&["down"]);
    world.assert_clean();
    // Root and data made, root and data grown; the hostile ones not at all.
    all_named_formats(&world, 4);
}

#[test]
fn local_images_that_lead_elsewhere_are_refused_before_any_tool_sees_them() {
    let world = World::new();
    trace(&world);
    let sound = crate::image::support::image(1, 52);
    world.write("secret", MARKER);
    let lead = |name: &str, backing: &Path, format: &str| {
        world.write(name, &sound);
        lead_to(&world.path(name), backing, format);
    };
    lead("spec/passwd.qcow2", Path::new("/etc/passwd"), "raw");
    lead("spec/secret.qcow2", &world.path("secret"), "raw");
    // Each lies over the other.
    lead(
        "spec/loop-a.qcow2",
        &world.path("spec/loop-b.qcow2"),
        "qcow2",
    );
    lead(
        "spec/loop-b.qcow2",
        &world.path("spec/loop-a.qcow2"),
        "qcow2",
    );
    lead("spec/self.qcow2", &world.path("spec/self.qcow2"), "qcow2");
    let json =
        "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}}";
    lead("spec/json.qcow2", Path::new(json), "raw");
    let mut huge = sound.clone();
    huge[24..32].copy_from_slice(&(1_u64 << 50).to_be_bytes());
    world.write("spec/huge.qcow2", huge);
    let mut data_file = sound.clone();
    data_file[79] |= 1 << 2;
    world.write("spec/data-file.qcow2", data_file);
    let mut unknown = sound.clone();
    unknown[74] |= 1;
    world.write("spec/unknown.qcow2", unknown);
    for name in [
        "passwd",
        "secret",
        "loop-a",
        "self",
        "json",
        "huge",
        "data-file",
        "unknown",
    ] {
        world.spec(&format!(
            "cluster: demo\nimage: ./{name}.qcow2\nmachines: {{node: {{accel: tcg}}}}\n"
        ));
        for verb in ["plan", "up"] {
            let ended = world.kiln(&[verb]);
            assert_eq!(ended.code, Some(9), "{name}: {}", ended.stderr);
            assert!(ended.stderr.contains("refused to use"), "{}", ended.stderr);
            assert!(
                !ended.stderr.contains(MARKER) && !ended.stderr.contains("root:x"),
                "{}",
                ended.stderr
            );
        }
        // Nor as a disk beside the root disk.
        world.nodes(1, &format!("disks: [{{file: {name}.qcow2}}]"));
        let up = world.kiln(&["up"]);
        assert_eq!(up.code, Some(9), "{name}: {}", up.stderr);
        world.assert_clean();
    }
    world.write(
        "spec/vmdk.qcow2",
        [b"KDMV".as_slice(), &[0; 70_000]].concat(),
    );
    world.spec("cluster: demo\nimage: ./vmdk.qcow2\nmachines: {node: {accel: tcg}}\n");
    assert_eq!(world.kiln(&["up"]).code, Some(3));
    assert!(!world.path("asked").exists(), "qemu-img was asked");
}
