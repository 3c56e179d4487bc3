//! A cloud image that knows no Ignition, by the same spec.

use serde_json::json;

use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User};

const USER_DATA: &str = "\
#cloud-config
write_files:
  - {path: /etc/told, content: \"{{ vars.word }} for {{ machine.name }}\\n\"}
runcmd:
  - [sh, -c, 'echo ran >/etc/ran']
";

#[test]
fn cloud_init_makes_the_machine_that_the_spec_asks_for() {
    let home = Home::new(Lane::Narrow, User::Myself, "cloud", &["sky"]);
    let image = home.copy(&guest::build("cloud", "x86_64").join("disk.qcow2"));
    home.write("user-data.yaml.j2", USER_DATA);
    home.write_spec(
        &json!(image),
        &json!({"sky": {
            "memory": "1GiB", "cpus": 2, "cloud_init": "user-data.yaml.j2", "vars": {"word": "made"},
        }}),
    );
    home.kiln(&["validate"]).ok();
    home.within(BOOT * 6, &["up", "--timeout", "14m"]).ok();
    let seen = home.ssh(
        "sky",
        "hostname; id -un; cat /etc/told; sudo cloud-init status --wait >/dev/null; cat /etc/ran; cloud-init query instance_id",
    );
    assert!(
        seen.starts_with("sky\ncore\nmade for sky\nran\nkiln-"),
        "{seen}"
    );
    // Another boot of the same disk is the same instance: nothing is made twice.
    home.ssh("sky", "sudo rm /etc/ran");
    home.within(BOOT * 6, &["restart", "--timeout", "14m"]).ok();
    assert_eq!(
        home.ssh("sky", "ls /etc/ran /etc/told 2>/dev/null || true"),
        "/etc/told\n"
    );
    let rendered = home.kiln(&["render", "sky"]).ok().stdout;
    assert!(
        rendered.contains("--- user-data\n#cloud-config\n"),
        "{rendered}"
    );
    home.down();
}
