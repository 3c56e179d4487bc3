//! Machines of several architectures with configs that are large, small, absent, or fail in the
//! guest: boots them in one cluster and holds each to what has to become of it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::events::Events;
use crate::support::follow::Follow;
use crate::support::guest;
use crate::support::home::{Home, Lane, User};

/// What a machine's user wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A config with a file of 2 MiB.
    Large,
    /// A config that asks for nothing.
    Empty,
    /// No `ignition` in the spec: what the machine gets is kiln's own part.
    Absent,
    /// Nor kiln's own part.
    Nothing,
    /// A file system on a disk that is not there.
    NoDisk,
}

const LARGE: usize = 2 << 20;
/// How soon after Ignition's last line kiln says that the machine has failed.
const SOON: Duration = Duration::from_secs(5);
/// Five emulated boots on two cores take half a minute, and others may run beside them.
pub(crate) const BOOT_FIVE: Duration = Duration::from_secs(240);
/// A large config takes 80 s by fw_cfg on an idle host, and three machines may be at it.
const LARGE_BY_FW_CFG: Duration = Duration::from_secs(900);

impl Kind {
    fn config(self) -> Option<Value> {
        let with = |storage: Value| {
            let mut config = json!({"ignition": {"version": "3.3.0"}});
            config["storage"] = storage;
            Some(config)
        };
        match self {
            Kind::Large => {
                let source = format!("data:,{}", "x".repeat(LARGE));
                with(json!({"files": [{"path": "/etc/large", "contents": {"source": source}}]}))
            }
            Kind::Empty => with(json!({})),
            Kind::Absent | Kind::Nothing => None,
            Kind::NoDisk => with(json!({"filesystems": [
                {"device": "/dev/disk/by-id/virtio-absent", "format": "ext4", "path": "/var/data"},
            ]})),
        }
    }
}

/// Boots one machine of each, and takes them down.
pub(crate) fn come_up(cluster: &str, wanted: &[(&'static str, Kind)]) {
    let machines: Vec<(String, &'static str, Kind)> = wanted
        .iter()
        .map(|&(arch, kind)| (arch.replace('_', "-"), arch, kind))
        .collect();
    let names: Vec<&str> = machines.iter().map(|(name, ..)| name.as_str()).collect();
    let home = Home::new(Lane::Wide, User::Myself, cluster, &names);
    let mut spec = serde_json::Map::new();
    for (name, arch, kind) in &machines {
        let mut group = json!({
            "arch": arch,
            "memory": "256MiB",
            "image": guest::tiny(arch).image(""),
        });
        if let Some(config) = kind.config() {
            home.write(&format!("{name}.ign"), config.to_string());
            group["ignition"] = format!("{name}.ign").into();
        }
        if *kind == Kind::Nothing {
            group["profile"] = "none".into();
        }
        spec.insert(name.clone(), group);
    }
    home.write(
        "kiln.yaml",
        json!({"cluster": cluster, "machines": spec}).to_string(),
    );

    home.kiln(&["validate"]).ok();
    let up = home.within(BOOT_FIVE, &["up", "--wait", "running"]).ok();
    for (name, arch, kind) in &machines {
        let is_slow = *kind == Kind::Large && !["s390x", "ppc64le"].contains(arch);
        let note = format!("note: {name}: the config has 2733 KiB; the machine reads it slowly");
        assert_eq!(up.stderr.contains(&note), is_slow, "{name}: {up}");
        let own = home.cluster().machine(name).ignition();
        assert_eq!(own.metadata().unwrap().len() % 512, 0, "no whole sectors");
    }
    std::thread::scope(|scope| {
        for (name, _, kind) in &machines {
            let home = &home;
            scope.spawn(move || match kind {
                Kind::Large | Kind::Empty | Kind::Absent => is_ready(home, name, *kind),
                Kind::Nothing => runs(home, name),
                Kind::NoDisk => has_failed(home, name),
            });
        }
    });
    home.down();
}

fn is_ready(home: &Home, name: &str, kind: Kind) {
    let within = if kind == Kind::Large {
        LARGE_BY_FW_CFG
    } else {
        BOOT_FIVE
    };
    home.within(within, &["wait", name]).ok();
    assert_eq!(home.ssh(name, "hostname"), format!("{name}\n"));
    if kind == Kind::Large {
        assert_eq!(home.ssh(name, "wc -c </etc/large"), format!("{LARGE}\n"));
    }
}

/// Nobody reports from it, so it is told by its console.
fn runs(home: &Home, name: &str) {
    let mut console = Follow::of(home.command().args(["logs", name, "-f"]));
    let seen = console.until(&format!("guest: {name} is up after"), BOOT_FIVE);
    assert!(seen.contains("Ignition finished successfully"), "{seen}");
    assert_eq!(home.machine(name)["state"], "running");
}

/// By Ignition's stage and message, at once, and not when some time is over.
fn has_failed(home: &Home, name: &str) {
    let mut events = Events::of(&mut home.command());
    let mut console = Follow::of(home.command().args(["logs", name, "-f"]));
    console.until("CRITICAL : Ignition failed", BOOT_FIVE);
    let failed = events.next(name, "failed", SOON);
    let reason = failed["detail"].as_str().unwrap();
    assert!(
        reason.starts_with("Ignition failed: disks: createFilesystems: "),
        "{failed}"
    );
    assert!(reason.contains("/dev/disk/by-id/virtio-absent"), "{failed}");
    let machine = home.machine(name);
    assert_eq!(machine["state"], "failed");
    assert_eq!(machine["reason"], reason);
    home.kiln(&["wait", name])
        .exits(6)
        .says(&format!("caused by: {name} is failed: {reason}"));
}
