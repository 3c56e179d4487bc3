//! kiln's own part of a config: who the machine is, who may log in, and how it
//! reports that it is up.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::mounts;
use super::render::Facts;
use crate::cluster::Machine;

/// The virtio-serial port that the report goes to.
///
/// The protocol: one line of JSON for each boot,
/// `{"kiln":1,"event":"ready","boot_id":"…","hostname":"…","addresses":["10.0.2.15"]}`.
pub const REPORT_PORT: &str = "org.kiln.report.0";

/// What speaks the protocol in a machine: POSIX shell and `ip`.
pub const REPORT_SCRIPT: &str = include_str!("report.sh");

/// Every Ignition that speaks spec 3 takes this one, whatever the child's version is.
const VERSION: &str = "3.0.0";

/// Wanted twice, and the condition makes it nothing where there is no kiln. By the boot: a port that
/// systemd in the initramfs saw already is no news after the switch to the root, and starts nothing.
/// By the port: its name may come after the boot has passed, for QEMU tells it some time after the
/// driver has come up. A `BindsTo=` would hold the boot up for a port that never comes.
pub const REPORT_UNIT: &str = "\
[Unit]
Description=Report to kiln that this machine is up
ConditionPathExists=/dev/virtio-ports/org.kiln.report.0
Wants=network-online.target
After=network-online.target sshd.service sshd.socket ssh.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /etc/kiln/report

[Install]
WantedBy=multi-user.target dev-virtio\\x2dports-org.kiln.report.0.device
";

/// A config that asks for nothing.
pub(super) fn empty() -> Value {
    json!({"ignition": {"version": VERSION}})
}

/// The parent of `children` for a machine of any profile but `none`.
pub(super) fn basic(machine: &Machine, facts: &Facts<'_>, children: &[&str]) -> Value {
    let merge: Vec<Value> = children
        .iter()
        .map(|text| json!({"source": data_url(text)}))
        .collect();
    let report = json!({"name": "kiln-report.service", "enabled": true, "contents": REPORT_UNIT});
    let mut units = vec![report];
    units.extend(mounts::units(facts.shares));
    json!({
        "ignition": {"version": VERSION, "config": {"merge": merge}},
        "passwd": {"users": [{"name": "core", "sshAuthorizedKeys": login_keys(facts)}]},
        "storage": {"files": [
            file("/etc/hostname", 0o644, &format!("{}\n", machine.name)),
            file("/etc/ssh/ssh_host_ed25519_key", 0o600, facts.host_key.private()),
            file(
                "/etc/ssh/ssh_host_ed25519_key.pub",
                0o644,
                &format!("{}\n", facts.host_key.public()),
            ),
            file("/etc/kiln/report", 0o755, REPORT_SCRIPT),
        ]},
        "systemd": {"units": units},
    })
}

/// Each key once: Ignition refuses a list that holds one twice.
fn login_keys<'a>(facts: &Facts<'a>) -> Vec<&'a str> {
    let mut keys: Vec<&str> = Vec::new();
    for key in facts.authorized_keys {
        if !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    keys
}

fn file(path: &str, mode: u32, contents: &str) -> Value {
    json!({
        "path": path,
        "mode": mode,
        // An image may bring its own; Ignition would stop at it.
        "overwrite": true,
        "contents": {"source": data_url(contents)},
    })
}

fn data_url(contents: &str) -> String {
    format!("data:;base64,{}", STANDARD.encode(contents))
}
