//! Twenty at once; and nobody for as long as a boot takes.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::follow::Follow;
use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User, machine_of};
use crate::support::process;

#[test]
fn twenty_ups_make_one_machine() {
    let home = Home::new(Lane::Narrow, User::Myself, "once", &["node"]);
    home.write_spec(
        &guest::tiny("x86_64").image(""),
        &json!({"node": {"memory": "256MiB"}}),
    );
    let all: Vec<_> = std::thread::scope(|scope| {
        let ups: Vec<_> = (0..20)
            .map(|_| scope.spawn(|| home.within(BOOT, &["up", "--wait", "running"])))
            .collect();
        ups.into_iter().map(|up| up.join().unwrap()).collect()
    });
    let mut did = 0;
    for up in all {
        match up.code {
            Some(0) => did += 1,
            Some(8) => {
                assert!(up.stderr.contains("error: "), "{up}");
                assert!(
                    up.stderr.contains("kiln up"),
                    "it does not say who is at it\n{up}"
                );
            }
            _ => panic!("{up}"),
        }
        up.took_at_most(Duration::from_secs(10));
    }
    assert!(did >= 1, "nobody has done it");
    assert_eq!(process::with_uuid(&home.cluster().uuid("node")).len(), 1);
    let supervisors = process::with("cmdline", "kiln\0supervise\0once\0");
    let supervisors = supervisors.into_iter().filter(|pid| {
        process::with("environ", &format!("KILN_HOME={}\0", home.home().display())).contains(pid)
    });
    assert_eq!(supervisors.count(), 1);
    the_supervisor_may_be_away_while_a_guest_boots(&home);
    assert_eq!(process::with_uuid(&home.cluster().uuid("node")).len(), 1);
    assert_eq!(process::with_uuid(&home.cluster().uplink_uuid()).len(), 1);
    home.down();
}

/// Its guest finds neither DHCP nor anyone who takes its report, and goes on trying.
fn the_supervisor_may_be_away_while_a_guest_boots(home: &Home) {
    let before = home.machine("node");
    assert_eq!(before["state"], "running");
    process::signal(home.supervisor(), Signal::SIGKILL);
    // The console's log is QEMU's: it needs no supervisor.
    let mut console = Follow::of(home.command().args(["logs", "node", "-f"]));
    console.until("guest: node is up after", BOOT);
    let waited = home.within(BOOT, &["--json", "wait"]).ok().result();
    let after = machine_of(&waited, "node");
    assert_eq!(after["pid"], before["pid"]);
    assert_eq!(home.ssh("node", "hostname"), "node\n");
}
