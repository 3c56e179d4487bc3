//! A machine on an image that came from a server that behaves like Fedora's.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::image::support::{Vendors, pack};
use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, PROMPT, User, machine_of};
use crate::support::run::run;

#[test]
fn a_machine_boots_from_what_up_has_fetched_and_moves_to_the_next_release() {
    let home = Home::new(Lane::Narrow, User::Myself, "fetched", &["node"]);
    let vendors = Vendors::new();
    for (name, content) in vendors.config() {
        let path = home.home().join("config").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]);
    convert.arg(guest::disk("x86_64").join("disk.raw"));
    run(convert.arg(home.folder().join("guest.qcow2")), PROMPT).ok();
    let mut content = fs::read(home.folder().join("guest.qcow2")).unwrap();
    let mut packed = pack("xz", &["-0", "-T2"], &content);
    let first = vendors.fedora("44.1.1.1", &packed, &content);
    let config = json!({
        "ignition": {"version": "3.3.0"},
        "storage": {"files": [{"path": "/etc/told", "contents": {"source": "data:,told"}}]},
    });
    home.write("node.ign", config.to_string());
    home.write_spec(
        &json!("fedora-coreos:stable"),
        &json!({"node": {"arch": "x86_64", "memory": "512MiB", "ignition": "node.ign", "disk": "1GiB"}}),
    );

    home.within(BOOT, &["up"])
        .ok()
        .says("downloaded, signature good");
    let size = "cat /etc/told; echo; cat /sys/block/vda/size";
    assert_eq!(home.ssh("node", size), "told\n2097152\n");
    let image = |of: &Value| of["image"].clone();
    assert_eq!(
        image(&home.machine("node")),
        "fedora-coreos:stable@44.1.1.1"
    );
    let pid = home.pid("node");
    // The next release comes out, and changes nothing before somebody asks for it.
    let more = [0; 1 << 16];
    packed.extend(pack("xz", &["-0"], &more));
    content.extend(more);
    let second = vendors.fedora("44.2.2.2", &packed, &content);
    home.kiln(&["up"]).ok().says("nothing to do");
    assert_eq!(vendors.server.asked(&first).len(), 1);
    let moved = home.json(&["image", "update"]);
    assert_eq!(moved["images"][0]["moved_from"], "44.1.1.1");
    assert_eq!(
        machine_of(&home.json(&["plan"]), "node")["action"],
        "recreate"
    );
    home.kiln(&["up"]).exits(9);
    assert_eq!(home.pid("node"), pid);
    home.within(BOOT, &["up", "--replace", "--wait", "running"])
        .ok();
    assert_eq!(
        image(&home.machine("node")),
        "fedora-coreos:stable@44.2.2.2"
    );
    assert_eq!(vendors.server.asked(&second).len(), 1);
    // The old one is nobody's now.
    let pruned = home.json(&["image", "prune"]);
    assert_eq!(
        pruned["removed"],
        json!(["fedora-coreos:stable@44.1.1.1 x86_64"])
    );
    fs::remove_dir_all(home.home().join("config")).unwrap();
    home.down();
}
