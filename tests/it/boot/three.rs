//! The example with three machines: what its user sees, what its guests see, what others can
//! see of it, and what a killed supervisor changes, which is nothing.

pub(super) mod fabric;
mod hidden;
mod shown;
mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::boot::attack;
use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User, machine_of};

pub(super) const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
/// Stands in a file that the Ignition config brings, and nowhere else in the world.
const SECRET: &str = "kiln-test-secret-6f1d0c52a9";

/// `examples/three`, with its guest where it is here, and a secret in its config.
pub(super) fn example(home: &Home) {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/three");
    let spec = std::fs::read_to_string(example.join("kiln.yaml")).unwrap();
    let guest = guest::tiny("x86_64");
    let spec = spec
        .replace(
            "../../target/guests/current/kernel",
            &home.copy(&guest.kernel).to_string_lossy(),
        )
        .replace(
            "../../target/guests/current/initrd",
            &home.copy(&guest.initrd).to_string_lossy(),
        );
    assert!(!spec.contains("target/guests"), "{spec}");
    home.write("kiln.yaml", spec);
    let config = std::fs::read_to_string(example.join("node.ign.j2")).unwrap();
    let secret = format!(
        r#""files": [{{"path": "/etc/secret", "mode": 384, "contents": {{"source": "data:,{SECRET}"}}}},"#
    );
    assert_eq!(config.matches(r#""files": ["#).count(), 1);
    home.write("node.ign.j2", config.replace(r#""files": ["#, &secret));
}

#[test]
fn the_example_with_three_machines() {
    let home = Home::new(Lane::Wide, User::Myself, "demo", &NODES);
    example(&home);

    let planned = shown::addresses_in_the_plan(&home);
    let up = home.within(BOOT, &["up"]).ok();
    let header = up.stdout.lines().next().unwrap_or_default();
    for word in ["NAME", "STATE", "ADDRESS", "PORTS", "ENTER"] {
        assert!(header.contains(word), "{up}");
    }
    for name in NODES {
        let line = up.stdout.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name}: {up}"));
        assert!(line.contains("ready"), "{up}");
        assert!(line.contains(&planned[name]), "{up}");
        assert!(line.ends_with(&format!("kiln ssh {name}")), "{up}");
    }

    let ps = shown::ps_has_the_fixed_form(&home, &planned);
    shown::emulation_is_said(&home, &ps, &up.stderr);
    the_guests_are_as_ignition_was_told(&home, &planned);
    fabric::the_machines_reach_each_other_by_name(&home, &planned);
    fabric::the_published_ports_answer(&ps);
    fabric::the_fabric_carries_much(&home, &ps);
    fabric::a_guest_gets_no_further_than_it_may(&home, &ps);
    attack::a_hostile_machine_harms_nobody(&home, &ps);
    shown::a_second_up_changes_nothing(&home, &ps);
    shown::the_looking_verbs_show_it(&home, &ps);
    tools::plain_ssh_works_by_the_exported_settings(&home);
    tools::files_are_copied_there_and_back(&home);
    tools::ansible_is_told_how_to_get_in(&home);
    shown::the_console_is_at_a_prompt(&home);
    hidden::no_secret_is_seen(&home);
    hidden::qemu_has_no_privileges(&home, &ps);
    fabric::the_supervisor_may_die(&home, &ps);

    home.down();
    let again = home.kiln(&["down"]).ok();
    assert_eq!(again.stdout, "cluster demo: nothing is there\n");
    assert!(fabric::host_is_free(fabric::host_port(&machine_of(
        &ps, "node-1"
    ))));
}

fn the_guests_are_as_ignition_was_told(home: &Home, planned: &BTreeMap<&str, String>) {
    for (index, name) in NODES.iter().enumerate() {
        let seen = home.ssh(
            name,
            "hostname; cat /etc/motd /etc/kiln-demo/peers; grep ^keeper: /etc/passwd; \
             ls /etc/systemd/system; cat /etc/systemd/system-preset/*; sudo cat /etc/secret; \
             echo; cat /var/www/index.html",
        );
        let lines: Vec<&str> = seen.lines().collect();
        let mut want = vec![(*name).to_owned(), format!("Hello from {name}.")];
        want.extend(NODES.map(|peer| format!("{} {peer}", planned[peer])));
        assert_eq!(lines[..5], want, "{seen}");
        assert!(lines[5].starts_with("keeper:x:") && lines[5].ends_with(":/home/keeper:/bin/sh"));
        for line in ["hello.service", "enable hello.service", SECRET] {
            assert!(lines.contains(&line), "no `{line}`: {seen}");
        }
        let greeting = format!(
            "Hello from {name}, {} of 3, at {}.",
            index + 1,
            planned[name]
        );
        assert_eq!(lines.last(), Some(&greeting.as_str()));
    }
    // Each machine has the host key that kiln pinned, and another than its neighbors.
    let pinned = std::fs::read_to_string(home.cluster().known_hosts()).unwrap();
    let keys: BTreeSet<&str> = pinned
        .lines()
        .filter_map(|line| line.split(' ').nth(2))
        .collect();
    assert_eq!(keys.len(), 3, "{pinned}");
    for name in NODES {
        let public = home.ssh(name, "cat /etc/ssh/ssh_host_ed25519_key.pub");
        let key = public.split(' ').nth(1).unwrap().trim_end();
        let line = pinned
            .lines()
            .find(|line| line.starts_with(&format!("{name},")));
        assert!(line.unwrap().contains(key), "{pinned}\n{public}");
    }
    // A machine with another key in its place is refused.
    let swapped = pinned
        .replace("node-1,", "node-x,")
        .replace("node-2,", "node-1,");
    std::fs::write(home.cluster().known_hosts(), swapped).unwrap();
    let refused = home.within(BOOT, &["ssh", "node-1", "--", "true"]);
    assert_ne!(refused.code, Some(0), "{refused}");
    refused.says("Host key verification failed");
    std::fs::write(home.cluster().known_hosts(), pinned).unwrap();
}
