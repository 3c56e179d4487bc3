//! What machines go through: stopped, started, restarted by others and by themselves, panicked,
//! killed, and frozen. Always the right state with the right reason, and the neighbor unharmed.

use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::events::Events;
use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User};
use crate::support::process;

/// How soon kiln tells of something that QEMU or the kernel has told it.
const SOON: Duration = Duration::from_secs(2);

#[test]
fn machines_stop_start_crash_and_come_back() {
    let home = Home::new(Lane::Wide, User::Myself, "life", &["alpha", "beta"]);
    home.write_spec(
        &guest::tiny("x86_64").image(""),
        &json!({"pair": {"names": ["alpha", "beta"], "memory": "256MiB"}}),
    );
    home.within(BOOT, &["up"]).ok();
    let mut events = home.events();

    a_stopped_guest_obeys_the_power_button(&home);
    a_started_one_keeps_its_address(&home);
    a_guest_that_reboots_stays_in_its_process(&home, &mut events);
    a_guest_that_powers_off_is_stopped(&home, &mut events);
    home.kiln(&["start", "alpha", "--wait", "none"]).ok();
    a_panicked_guest_has_crashed_and_comes_back(&home, &mut events);
    home.within(BOOT, &["wait", "alpha"]).ok();
    a_paused_machine_goes_on(&home);
    a_killed_qemu_has_crashed_and_comes_back(&home, &mut events);
    a_frozen_qemu_is_unresponsive_and_can_be_killed(&home, &mut events);

    drop(events);
    a_port_comes_and_goes_while_it_runs(&home);
    home.down();
}

fn a_port_comes_and_goes_while_it_runs(home: &Home) {
    let (alpha, boot) = (home.pid("alpha"), home.ssh("alpha", BOOT_ID));
    let spec = |ports: Value| {
        home.write_spec(
            &guest::tiny("x86_64").image(""),
            &json!({"pair": {"names": ["alpha", "beta"], "memory": "256MiB", "ports": ports}}),
        );
        home.within(BOOT, &["up"]).ok();
    };
    spec(json!([":22"]));
    let port = home.machine("alpha")["ports"][0]["host"].as_u64().unwrap();
    let address = (Ipv4Addr::LOCALHOST, u16::try_from(port).unwrap());
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(BOOT)).unwrap();
    let mut banner = [0; 8];
    stream.read_exact(&mut banner).unwrap();
    assert_eq!(&banner, b"SSH-2.0-");
    spec(json!([]));
    assert!(TcpStream::connect(address).is_err());
    assert_eq!(home.pid("alpha"), alpha);
    assert_eq!(home.ssh("alpha", BOOT_ID), boot);
}

const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

/// It takes seconds, where one that did not hear would take the whole grace of a minute or more.
fn a_stopped_guest_obeys_the_power_button(home: &Home) {
    let alpha = home.machine("alpha");
    home.within(BOOT, &["stop", "beta"])
        .ok()
        .took_at_most(Duration::from_secs(20));
    let beta = home.machine("beta");
    assert_eq!(beta["state"], "stopped");
    assert_eq!(beta["reason"], "");
    assert_eq!(beta["pid"], Value::Null);
    assert_eq!(home.machine("alpha"), alpha);
    assert!(process::with_uuid(&home.cluster().uuid("beta")).is_empty());
    // Stopping what is stopped is nothing, and cannot be waited for to be ready.
    home.kiln(&["stop", "beta"]).ok();
    home.kiln(&["wait", "beta"]).exits(6);
    let refused = home.kiln(&["ssh", "beta", "--", "true"]).exits(1);
    assert_eq!(
        refused.stderr,
        "error: machine `beta` is stopped\n\nhint: `kiln -c life start beta` starts it\n"
    );
}

fn a_started_one_keeps_its_address(home: &Home) {
    let before = home.machine("beta");
    home.within(BOOT, &["start", "beta"]).ok();
    let after = home.machine("beta");
    assert_eq!(after["state"], "ready");
    for same in ["mac", "reserved_ip"] {
        assert_eq!(after[same], before[same]);
    }
    assert_eq!(
        home.ssh("alpha", "ping -c1 -W5 beta >&2; hostname"),
        "alpha\n"
    );
    let pid = home.pid("beta");
    home.kiln(&["start", "beta"]).ok();
    assert_eq!(home.pid("beta"), pid, "starting what runs is nothing");
}

/// Meanwhile the other one is restarted from outside, and gets another process.
fn a_guest_that_reboots_stays_in_its_process(home: &Home, events: &mut Events) {
    let (alpha, beta) = (home.pid("alpha"), home.pid("beta"));
    let before = boot_id(home, "alpha");
    asked(home, "alpha", "sudo reboot");
    events.next("alpha", "reset", Duration::from_secs(30));
    assert_eq!(home.machine("alpha")["state"], "running");
    home.within(BOOT, &["restart", "beta"]).ok();
    assert_ne!(home.pid("beta"), beta);
    let ready = events.next("alpha", "ready", BOOT);
    assert_eq!(ready["status"]["state"], "ready");
    assert_ne!(ready["status"]["report"]["boot_id"], before.as_str());
    assert_ne!(boot_id(home, "alpha"), before);
    assert_eq!(home.pid("alpha"), alpha);
}

fn boot_id(home: &Home, machine: &str) -> String {
    let id = home.ssh(machine, "cat /proc/sys/kernel/random/boot_id");
    id.trim_end().to_owned()
}

/// What ends the guest also ends the connection that asked for it, one way or another.
fn asked(home: &Home, machine: &str, command: &str) {
    home.within(Duration::from_secs(30), &["ssh", machine, "--", command]);
}

fn a_guest_that_powers_off_is_stopped(home: &Home, events: &mut Events) {
    asked(home, "alpha", "sudo poweroff");
    let stopped = events.next("alpha", "stopped", Duration::from_secs(30));
    assert_eq!(stopped["detail"], "powered off by the guest");
    let alpha = home.machine("alpha");
    assert_eq!(alpha["state"], "stopped");
    assert_eq!(alpha["reason"], "powered off by the guest");
    assert_eq!(home.machine("beta")["state"], "ready");
}

fn a_panicked_guest_has_crashed_and_comes_back(home: &Home, events: &mut Events) {
    asked(home, "beta", "sudo sh -c 'echo c >/proc/sysrq-trigger'");
    let crashed = events.next("beta", "crashed", Duration::from_secs(10));
    let why = crashed["detail"].as_str().unwrap();
    assert!(
        why.contains("Kernel panic - not syncing: sysrq triggered crash"),
        "{crashed}"
    );
    assert!(why.ends_with("will be started again"), "{crashed}");
    events.next("beta", "starting", Duration::from_secs(10));
    events.next("beta", "ready", BOOT);
}

fn a_paused_machine_goes_on(home: &Home) {
    home.kiln(&["pause", "alpha"]).ok();
    assert_eq!(home.machine("alpha")["state"], "paused");
    home.kiln(&["resume", "alpha"]).ok();
    assert_eq!(home.machine("alpha")["state"], "ready");
    assert_eq!(home.ssh("alpha", "hostname"), "alpha\n");
}

fn a_killed_qemu_has_crashed_and_comes_back(home: &Home, events: &mut Events) {
    let pid = home.pid("alpha");
    process::signal(pid, Signal::SIGKILL);
    let crashed = events.next("alpha", "crashed", SOON);
    let why = crashed["detail"].as_str().unwrap();
    assert!(why.starts_with("signal 9"), "{crashed}");
    events.next("alpha", "running", Duration::from_secs(10));
    assert_ne!(home.pid("alpha"), pid);
    home.within(BOOT, &["wait", "alpha"]).ok();
}

fn a_frozen_qemu_is_unresponsive_and_can_be_killed(home: &Home, events: &mut Events) {
    process::signal(home.pid("beta"), Signal::SIGSTOP);
    events.next("beta", "unresponsive", Duration::from_secs(5));
    assert_eq!(home.machine("beta")["state"], "unresponsive");
    assert_eq!(home.machine("alpha")["state"], "ready");
    home.kiln(&["kill", "beta"]).ok().took_at_most(SOON);
    let beta = home.machine("beta");
    assert_eq!(beta["state"], "stopped");
    assert_eq!(beta["reason"], "killed");
}
