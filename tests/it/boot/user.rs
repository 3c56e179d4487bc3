//! The same for a user who may do nothing: no root, no group, no `/dev/kvm`, no `/dev/net/tun`.

use crate::boot::three::fabric::{host_port, page};
use crate::boot::three::{NODES, example};
use crate::support::home::{BOOT, Home, Lane, User, machine_of, pid_of};
use crate::support::process;

#[test]
fn an_ordinary_user_boots_the_example() {
    let home = Home::new(Lane::Wide, User::Ordinary, "demo", &NODES);
    example(&home);
    home.within(BOOT, &["up"]).ok();
    let ps = home.json(&["ps"]);
    for name in NODES {
        let machine = machine_of(&ps, name);
        assert_eq!(machine["state"], "ready");
        let pid = pid_of(&machine).unwrap();
        assert!(!process::status(pid, "Uid").starts_with("0\t"));
        assert_eq!(process::status(pid, "CapEff"), "0000000000000000");
        assert_eq!(process::status(pid, "NoNewPrivs"), "1");
        assert_eq!(process::status(pid, "Seccomp"), "2");
        let answer = page(host_port(&machine)).unwrap();
        assert!(answer.contains(&format!("Hello from {name}, ")), "{answer}");
    }
    for (name, peer) in [
        ("node-1", "node-2"),
        ("node-2", "node-3"),
        ("node-3", "node-1"),
    ] {
        let seen = home.ssh(
            name,
            &format!("id -un; ping -c1 -W5 {peer} >&2; wget -qO- http://{peer}/"),
        );
        assert!(seen.starts_with("core\n"), "{seen}");
        assert!(seen.contains(&format!("Hello from {peer}, ")), "{seen}");
    }
    home.down();
}
