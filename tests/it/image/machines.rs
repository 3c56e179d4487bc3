//! Machines that stand on fetched images: `up` fetches, and nothing goes that is needed.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::fake_support::{World, wait_until};
use crate::image::server::Manners;
use crate::image::support::{Net, image};

fn bases(net: &Net) -> Vec<Value> {
    let list = net.world.json(&["image", "ls"]);
    list["images"].as_array().unwrap().clone()
}

#[test]
fn up_fetches_and_what_a_machine_stands_on_stays() {
    let net = Net::new();
    let path = net.fedora("44.1.1.1", &image(1, 31));
    net.spec(&json!("fedora-coreos:stable"));
    net.world.ok(&["up", "--wait", "running"]);
    assert_eq!(net.server.asked(&path).len(), 1);
    let machine = &net.world.ps()["node"];
    assert_eq!(machine["image"], "fedora-coreos:stable@44.1.1.1");
    assert_eq!(bases(&net)[0]["used_by"], json!(["demo/node"]));
    let ended = net.world.kiln(&["image", "rm", "fedora-coreos:stable"]);
    assert_eq!(ended.code, Some(9), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("needed by demo/node"),
        "{}",
        ended.stderr
    );
    let left = net.world.json(&["image", "prune"])["left"].clone();
    assert_eq!(
        left["fedora-coreos:stable@44.1.1.1 x86_64"],
        "needed by demo/node"
    );
    net.world.ok(&["up", "--wait", "running"]);

    // A machine that is stopped needs it as well, and what is fetched anew stays the same file.
    net.world.ok(&["stop", "--timeout", "0s"]);
    net.world.ok(&["image", "prune"]);
    net.world.ok(&["up", "--wait", "ready", "--force-download"]);
    assert_eq!(net.server.asked(&path).len(), 1);
    net.world.ok(&["wait", "--for", "ready"]);

    // A newer release is another image: the disk would be lost.
    net.fedora("44.2.2.2", &image(1, 32));
    net.world.ok(&["image", "update"]);
    let ended = net.world.kiln(&["up", "--wait", "running"]);
    assert_eq!(ended.code, Some(9), "{}", ended.stderr);
    net.world.ok(&["up", "--wait", "running", "--replace"]);
    assert_eq!(
        net.world.ps()["node"]["image"],
        "fedora-coreos:stable@44.2.2.2"
    );
    net.world
        .ok(&["image", "rm", "fedora-coreos:stable@44.1.1.1"]);

    net.world.ok(&["down", "--timeout", "0s"]);
    net.world.assert_clean();
    let removed = net.world.json(&["image", "prune"]);
    assert_eq!(removed["removed"].as_array().unwrap().len(), 1);
    assert_eq!(net.cached(), Vec::<String>::new());
}

#[test]
fn prune_during_up_takes_nothing_that_is_needed() {
    let net = Net::new();
    let first = net.fedora("44.1.1.1", &image(1, 33));
    let second = image(1, 34);
    let held = "/second.qcow2";
    net.server.put_with(held, second.clone(), Manners::Held);
    let spec = json!({
        "cluster": "demo",
        "network": {"subnet": "10.213.9.0/24"},
        "machines": {
            "a": {"image": "fedora-coreos:stable", "accel": "tcg", "arch": "x86_64"},
            "b": {
                "image": {"disk": net.server.url(held), "sha256": crate::image::support::sha256(&second)},
                "accel": "tcg",
                "arch": "x86_64",
            },
        },
    });
    net.world.spec(&spec.to_string());
    let up = net.world.start(&["up", "--wait", "running"]);
    wait_until("the second image is asked for", || {
        !net.server.asked(held).is_empty()
    });
    // The first is here, and no machine's record names it yet.
    let pruned = net.world.json(&["image", "prune"]);
    assert_eq!(pruned["removed"], json!([]), "{pruned}");
    let why = "in use by another kiln";
    assert_eq!(pruned["left"]["fedora-coreos:stable@44.1.1.1 x86_64"], why);
    net.server.release();
    let ended = up.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(net.server.asked(&first).len(), 1);
    assert_eq!(bases(&net).len(), 2);
    net.world.ok(&["down", "--timeout", "0s"]);
}

#[test]
fn an_image_that_was_changed_in_the_cache_is_not_booted_from() {
    let net = Net::new();
    net.fedora("44.1.1.1", &image(1, 35));
    net.spec(&json!("fedora-coreos:stable"));
    net.world.ok(&["image", "pull"]);
    let path = net.real(&bases(&net)[0]["path"]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, &bytes).unwrap();
    for args in [
        &["up"][..],
        &["plan"],
        &["image", "verify"],
        &["image", "pull"],
    ] {
        let ended = net.world.kiln(args);
        assert_eq!(ended.code, Some(9), "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("was changed"), "{}", ended.stderr);
    }
    net.world.assert_clean();
    net.world.ok(&["image", "rm", "fedora-coreos:stable"]);
    net.world.ok(&["up", "--wait", "running"]);
    net.world.ok(&["down", "--timeout", "0s"]);
    // Only touched, it is the same.
    let path = net.real(&bases(&net)[0]["path"]);
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, &bytes).unwrap();
    net.world.ok(&["plan"]);
}

#[test]
fn an_unverified_image_is_called_so() {
    let net = Net::new();
    let content = image(1, 36);
    let path = "/flatcar/amd64-usr/4230.2.3/flatcar_production_qemu_image.img";
    net.server.put(path, content);
    net.spec(&json!({"disk": "flatcar:stable@4230.2.3", "insecure": true}));
    let ended = net.world.kiln(&["up", "--wait", "running"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("taken unverified"),
        "{}",
        ended.stderr
    );
    let machine = &net.world.ps()["node"];
    assert_eq!(machine["image"], "flatcar:stable@4230.2.3 (not verified)");
    net.world.ok(&["down", "--timeout", "0s"]);
}

#[test]
fn kernels_that_no_machine_boots_go_with_the_images() {
    let world = World::new();
    world.nodes(1, "");
    world.ok(&["up"]);
    let blobs = || {
        fs::read_dir(world.home().join("cache/blobs"))
            .unwrap()
            .count()
    };
    assert_eq!(blobs(), 1);
    world.ok(&["stop"]);
    let pruned = world.json(&["image", "prune"]);
    assert_eq!((&pruned["removed"], blobs()), (&json!([]), 1));
    world.ok(&["start"]);
    world.ok(&["down"]);
    let pruned = world.json(&["image", "prune"]);
    let gone = pruned["removed"][0].as_str().unwrap();
    assert!(gone.starts_with("the kernel or initrd sha256-"), "{pruned}");
    assert_eq!(blobs(), 0);
    world.ok(&["up"]);
    world.ok(&["down"]);
    world.assert_clean();
}
