//! Data disks as the guest has them: in order, by serial, as large as the spec says, and its own.

use serde_json::{Value, json};

use std::process::Command;

use crate::support::guest::{self, Guest};
use crate::support::home::{BOOT, Home, Lane, PROMPT, User};
use crate::support::run::run;

/// A line for each disk in the order of the kernel's names: serial, size in sectors of 512 bytes.
/// That of Ignition's config, which some architectures have, is left out.
const LOOK: &str = "for disk in /sys/block/vd*; do serial=; read -r serial <$disk/serial; \
     [ $serial = ignition ] || { test -b /dev/disk/by-id/virtio-$serial && echo $serial $(cat $disk/size); }; done";

struct Story {
    home: Home,
    guest: Guest,
    arch: &'static str,
}

impl Story {
    fn begin(arch: &'static str) -> Story {
        let home = Home::new(Lane::Narrow, User::Myself, "data", &["node"]);
        // The guest puts its root on an empty disk at its first boot.
        let base = home.folder().join("base.qcow2");
        let mut make = Command::new("qemu-img");
        make.args(["create", "-q", "-f", "qcow2"]).arg(&base);
        run(make.arg("256M"), PROMPT).ok();
        let guest = guest::tiny(arch);
        Story { home, guest, arch }
    }

    /// The spec, with these disks and this file of Ignition's. Without a root disk of this size
    /// the guest's root is in its memory.
    fn spec(&self, root: Option<&str>, told: &str, disks: &Value) {
        let config = json!({
            "ignition": {"version": "3.3.0"},
            "storage": {"files": [
                {"path": "/etc/told", "contents": {"source": format!("data:,{told}")}},
            ]},
        });
        self.home.write("node.ign", config.to_string());
        let mut node = json!({
            "arch": self.arch, "memory": "512MiB", "ignition": "node.ign", "disks": disks,
        });
        let mut image = self.guest.image("");
        if let Some(root) = root {
            node["disk"] = root.into();
            image = self.guest.image("root=/dev/disk/by-id/virtio-root");
            image["disk"] = "base.qcow2".into();
        }
        self.home.write_spec(&image, &json!({"node": node}));
    }

    fn sees(&self) -> String {
        self.home.ssh("node", LOOK)
    }

    fn write(&self, serial: &str, text: &str) {
        let disk = format!("/dev/disk/by-id/virtio-{serial}");
        let write = format!("echo {text} | sudo dd of={disk} conv=fsync 2>/dev/null");
        self.home.ssh("node", &write);
    }

    fn read(&self, serial: &str) -> String {
        let disk = format!("/dev/disk/by-id/virtio-{serial}");
        let text = self.home.ssh("node", &format!("sudo head -n 1 {disk}"));
        text.trim_end().to_owned()
    }
}

#[test]
fn data_disks_keep_what_was_written_and_grow_while_the_machine_runs() {
    let story = Story::begin("x86_64");
    let home = &story.home;
    let disks = json!([{"size": "64MiB", "serial": "logs"}, {"size": "96MiB", "serial": "db"}]);
    story.spec(Some("256MiB"), "first", &disks);
    home.within(BOOT, &["up"]).ok();
    assert_eq!(story.sees(), "root 524288\nlogs 131072\ndb 196608\n");
    story.write("logs", "written-to-logs");
    story.write("db", "written-to-db");

    // The root disk and a data disk grow under the guest.
    let pid = home.pid("node");
    let disks = json!([{"size": "64MiB", "serial": "logs"}, {"size": "128MiB", "serial": "db"}]);
    story.spec(Some("300MiB"), "first", &disks);
    home.kiln(&["up"]).ok();
    assert_eq!(home.pid("node"), pid);
    assert_eq!(story.sees(), "root 614400\nlogs 131072\ndb 262144\n");
    home.kiln(&["up"]).ok().says("nothing to do");

    // A new root disk, and one more data disk before the others, which a user brought.
    home.write("tools.raw", "made-by-the-user\n".repeat(4096).into_bytes());
    let disks = json!([
        {"file": "tools.raw", "serial": "tools", "readonly": true},
        {"size": "64MiB", "serial": "logs"},
        {"size": "128MiB", "serial": "db"},
        {"size": "64MiB", "serial": "native", "sector": 4096},
    ]);
    story.spec(Some("300MiB"), "second", &disks);
    home.within(BOOT, &["up", "--replace"]).ok();
    assert_eq!(home.ssh("node", "cat /etc/told"), "second");
    assert_eq!(
        story.sees(),
        "root 614400\ntools 136\nlogs 131072\ndb 262144\nnative 131072\n"
    );
    assert_eq!(story.read("logs"), "written-to-logs");
    assert_eq!(story.read("db"), "written-to-db");
    assert_eq!(story.read("tools"), "made-by-the-user");
    let sectors = "cat /sys/block/vd?/queue/logical_block_size";
    assert_eq!(home.ssh("node", sectors), "512\n512\n512\n512\n4096\n");
    let denied = "echo x | sudo dd of=/dev/disk/by-id/virtio-tools conv=fsync 2>&1 || echo refused";
    assert!(home.ssh("node", denied).contains("refused"));

    home.kiln(&["down", "--keep-disks"]).ok();
    assert_eq!(
        home.json(&["down"])["kept_disks"].as_array().unwrap().len(),
        3
    );
    home.kiln(&["down", "--remove-disks"]).ok();
}

/// That the order is the spec's, and none is in the way of Ignition's own disk, on each board.
#[track_caller]
fn a_machine_has_its_disks(arch: &'static str) {
    let story = Story::begin(arch);
    // A raw disk into which a guest wrote a header that names a file of the host's.
    let secret = story.home.folder().join("secret");
    story.home.write("secret", "not-for-guests\n".repeat(4096));
    let header = story.home.folder().join("header.raw");
    let mut make = Command::new("qemu-img");
    make.args(["create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b"]);
    run(make.args([&secret, &header]).arg("1M"), PROMPT).ok();
    let length = std::fs::metadata(&header).unwrap().len();
    let raw = json!({"file": "header.raw", "serial": "raw"});
    let seen_raw = format!("raw {}\n", length.div_ceil(512));

    let disks =
        json!([{"size": "64MiB", "serial": "logs"}, {"size": "96MiB", "serial": "db"}, raw]);
    story.spec(None, "first", &disks);
    story.home.within(BOOT, &["up"]).ok();
    assert_eq!(story.sees(), format!("logs 131072\ndb 196608\n{seen_raw}"));
    let look = "disk=/dev/disk/by-id/virtio-raw; sudo head -c 3 $disk; \
                sudo cat $disk | grep -c not-for-guests || true";
    assert_eq!(story.home.ssh("node", look), "QFI0\n");
    assert_eq!(story.home.ssh("node", "cat /etc/told"), "first");
    story.write("db", "written");
    let disks =
        json!([{"size": "80MiB", "serial": "logs"}, {"size": "96MiB", "serial": "db"}, raw]);
    story.spec(None, "first", &disks);
    story.home.kiln(&["up"]).ok();
    assert_eq!(story.sees(), format!("logs 163840\ndb 196608\n{seen_raw}"));
    story.home.within(BOOT, &["restart"]).ok();
    assert_eq!(story.read("db"), "written");
    story.home.down();
}

#[test]
fn an_s390x_machine_has_its_disks_in_order() {
    a_machine_has_its_disks("s390x");
}

#[test]
fn a_ppc64le_machine_has_its_disks_in_order() {
    a_machine_has_its_disks("ppc64le");
}
