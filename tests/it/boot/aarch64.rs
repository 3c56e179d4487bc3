//! A machine of another architecture, on the same fabric and by the same verbs.

use serde_json::json;

use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User};

#[test]
fn an_aarch64_machine_comes_up() {
    let home = Home::new(Lane::Narrow, User::Myself, "arm", &["node"]);
    home.write_spec(
        &guest::tiny("aarch64").image(""),
        &json!({"node": {"memory": "256MiB", "arch": "aarch64", "ports": [":80"]}}),
    );
    home.within(BOOT, &["up"]).ok();
    let machine = home.machine("node");
    assert_eq!(machine["arch"], "aarch64");
    assert_eq!(machine["state"], "ready");
    assert_eq!(machine["addresses"][0]["ip"], machine["reserved_ip"]);
    assert_eq!(home.ssh("node", "uname -m; hostname"), "aarch64\nnode\n");
    let explained = home.kiln(&["explain", "node"]).ok();
    assert!(
        explained.stdout.contains("qemu-system-aarch64"),
        "{explained}"
    );
    // It hears the power button, which here is a GPIO pin.
    home.within(BOOT, &["stop"])
        .ok()
        .took_at_most(std::time::Duration::from_secs(20));
    home.down();
}
