//! A machine on an image that came from a server.

use std::process::Command;

use serde_json::json;

use crate::image::server::Server;
use crate::image::support::{pack, sha256};
use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, PROMPT, User};
use crate::support::run::run;

#[test]
fn a_machine_boots_from_what_up_has_fetched() {
    let home = Home::new(Lane::Narrow, User::Myself, "fetched", &["node"]);
    // The guest puts its root on an empty disk at its first boot.
    let base = home.folder().join("base.qcow2");
    run(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&base)
            .arg("512M"),
        PROMPT,
    )
    .ok();
    let packed = pack("xz", &[], &std::fs::read(&base).unwrap());
    let server = Server::new();
    server.put("/disk.qcow2.xz", packed.clone());
    let mut image = guest::tiny("x86_64").image("root=/dev/disk/by-id/virtio-root");
    image["disk"] = json!({
        "disk": server.url("/disk.qcow2.xz"),
        "sha256": sha256(&packed),
    });
    home.write_spec(
        &image,
        &json!({"node": {"memory": "256MiB", "disk": "1GiB"}}),
    );

    home.within(BOOT, &["up"])
        .ok()
        .says("downloaded, digest right");
    let seen = home.ssh(
        "node",
        "cat /proc/mounts | grep ' / '; echo mine | sudo tee /kept; sync",
    );
    assert!(seen.contains(" / ext4 rw"), "{seen}");
    home.within(BOOT, &["restart"]).ok();
    assert_eq!(home.ssh("node", "cat /kept"), "mine\n");
    home.kiln(&["up"]).ok().says("nothing to do");
    let pruned = home.json(&["image", "prune"]);
    assert_eq!(pruned["removed"], json!([]), "{pruned}");
    home.down();
    home.kiln(&["image", "prune"]).ok();
}
