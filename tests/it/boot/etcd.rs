//! The profile `etcd`, with the real etcd in tiny guests.

use serde_json::json;

use crate::support::etcd::{Writer, members, ports};
use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User};

/// Three members, one of which is made anew while a client writes and reads all the while.
#[test]
fn a_member_is_replaced_and_no_acknowledged_write_is_lost() {
    let names = ["node-1", "node-2", "node-3"];
    let home = Home::new(Lane::Wide, User::Myself, "etcd", &names);
    home.write_spec(
        &guest::etcd("x86_64").image(""),
        &json!({"node": {"count": 3, "memory": "384MiB", "profile": "etcd", "ports": [":2379"]}}),
    );
    home.within(BOOT * 2, &["up"]).ok();
    let ports = ports(&home);
    let before = members(&ports);
    let listed: Vec<&str> = before.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(listed, names);
    let pids = names.map(|name| home.pid(name));

    let writer = Writer::begin(&ports);
    home.within(BOOT * 2, &["reprovision", "node-2"])
        .ok()
        .says("etcd: node-2 leaves")
        .says("etcd: node-2 joins");
    let written = writer.end(&ports);
    eprintln!("{written:?}");
    assert!(written.acknowledged > 3, "{written:?}");

    let after = members(&ports);
    let new = |name: &str| after.difference(&before).any(|(it, _)| it == name);
    assert!(
        new("node-2") && !new("node-1") && !new("node-3"),
        "{after:?}"
    );
    assert_eq!((after.len(), home.pid("node-1")), (3, pids[0]));
    assert_eq!(home.pid("node-3"), pids[2]);

    // All at once would be the end of its data.
    home.kiln(&["reprovision", "node-1", "node-2", "node-3"])
        .exits(9)
        .says("all 3 members of etcd would go at once")
        .says("`--rolling 1`");
    // Nor is one taken out while another does not work: that one, or one that looks for a new leader.
    home.kiln(&["pause", "node-3"]).ok();
    home.within(BOOT, &["reprovision", "node-2"])
        .exits(9)
        .says("of etcd does not work; nothing was changed");
    home.kiln(&["resume", "node-3"]).ok();
    assert_eq!(members(&ports), after);
    home.down();
}
