//! A machine alone, on QEMU's own user-mode network.

use serde_json::json;

use super::attach::capture;
use crate::boot::three::fabric::{host_port, page};
use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User, machine_of, pid_of};
use crate::support::process;
use crate::support::world::{GREETING, World};

#[test]
fn a_machine_alone_gets_out_and_is_reached() {
    // The first build of it downloads packages.
    let tiny = guest::tiny("x86_64");
    let world = World::enter();
    let before = world.traces();
    let home = Home::new(Lane::Narrow, User::Ordinary, "solo", &["node"]);
    home.write(
        "node.ign",
        json!({
            "ignition": {"version": "3.3.0"},
            "storage": {"files": [{"path": "/var/www/index.html", "contents": {"source": "data:,a%20page"}}]},
        })
        .to_string(),
    );
    let image = json!({
        "kernel": home.copy(&tiny.kernel), "initrd": home.copy(&tiny.initrd), "cmdline": tiny.cmdline,
    });
    home.write_spec_in(
        "user",
        &image,
        &json!({"node": {"memory": "256MiB", "ignition": "node.ign", "ports": [":80"]}}),
    );
    home.within(BOOT, &["up"]).ok();
    let ps = home.json(&["ps"]);
    assert_eq!(ps["network"]["mode"], "user", "{ps}");
    let machine = machine_of(&ps, "node");
    assert_eq!(
        machine["addresses"][0]["ip"], machine["reserved_ip"],
        "{machine}"
    );
    assert_eq!(world.traces(), before);
    let get = format!("wget -qO- http://{}/", world.outside);
    let mut greeting = String::new();
    let frames = capture(&home, "node", || greeting = home.ssh("node", &get));
    assert_eq!(greeting, GREETING);
    let to = format!(
        "> {}: Flags [S]",
        world.outside.to_string().replace(':', ".")
    );
    assert!(
        frames.iter().any(|frame| frame.contains(&to)),
        "{frames:#?}"
    );
    assert!(page(host_port(&machine)).unwrap().ends_with("a page"));

    process::signal(
        pid_of(&ps["supervisor"]).unwrap(),
        nix::sys::signal::Signal::SIGKILL,
    );
    assert_eq!(home.ssh("node", &get), GREETING);
    assert!(page(host_port(&machine)).unwrap().ends_with("a page"));
    home.down();
}
