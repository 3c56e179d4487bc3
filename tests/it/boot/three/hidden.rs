//! What others on the host can see of the cluster, and what QEMU itself can.

use std::os::unix::fs::PermissionsExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::unistd::Uid;
use serde_json::Value;

use crate::boot::three::{NODES, SECRET};
use crate::support::home::{Home, machine_of, pid_of};
use crate::support::process;

/// The secret as it is, and in each of the three ways that it can stand in base64: kiln's
/// fragment carries the user's config as a `data:` URL.
fn secrets() -> Vec<String> {
    let encoded = (0..3).map(|skipped| {
        let rest = &SECRET.as_bytes()[skipped..];
        STANDARD.encode(&rest[..rest.len() / 3 * 3])
    });
    encoded.chain([SECRET.to_owned()]).collect()
}

/// No part of the config is in a command line, an environment, a log, what is shown, or in a
/// file that others may read, although the umask is 0.
pub(super) fn no_secret_is_seen(home: &Home) {
    let secrets = secrets();
    for secret in &secrets {
        for file in ["cmdline", "environ"] {
            let pids = process::with(file, secret);
            assert_eq!(pids, Vec::<u32>::new(), "in /proc/PID/{file}");
        }
    }
    let has_secret = |bytes: &[u8]| {
        secrets
            .iter()
            .any(|secret| process::contains(bytes, secret))
    };
    let shown: [&[&str]; 9] = [
        &["logs", "node-1"],
        &["logs", "node-1", "--qemu"],
        &["logs", "--supervisor"],
        &["inspect"],
        &["ps", "--json"],
        &["events", "--no-follow", "--json"],
        &["explain", "node-1"],
        &["explain", "node-1", "--shell"],
        &["plan", "--json"],
    ];
    for args in shown {
        let ran = home.kiln(args).ok();
        assert!(!has_secret(ran.stdout.as_bytes()), "{ran}");
        assert!(!has_secret(ran.stderr.as_bytes()), "{ran}");
    }
    let mut holders = 0;
    for (path, metadata) in process::tree(&home.home()) {
        let mode = metadata.permissions().mode() & 0o7777;
        if metadata.is_dir() {
            assert_eq!(mode, 0o700, "{}", path.display());
            continue;
        }
        // Blobs are read by the QEMUs of others than their owner, through a descriptor.
        let open = path.starts_with(home.home().join("cache/blobs"));
        assert!(open || mode & 0o077 == 0, "{mode:o} {}", path.display());
        if metadata.is_file() && has_secret(&std::fs::read(&path).unwrap()) {
            assert_eq!(mode, 0o600, "{}", path.display());
            holders += 1;
        }
    }
    assert_ne!(holders, 0, "the test looks for the wrong text");
    assert_eq!(
        home.home().metadata().unwrap().permissions().mode() & 0o7777,
        0o700
    );
}

/// What a guest that broke out of QEMU would find.
pub(super) fn qemu_has_no_privileges(home: &Home, ps: &Value) {
    let sockets = process::unix_sockets();
    for name in NODES {
        let files = home.cluster().machine(name);
        let pid = pid_of(&machine_of(ps, name)).unwrap();
        let own = Uid::effective();
        let uids: Vec<u32> = process::status(pid, "Uid")
            .split_whitespace()
            .map(|id| id.parse().unwrap())
            .collect();
        if own.is_root() {
            let supervisor = process::status(pid_of(&ps["supervisor"]).unwrap(), "Uid");
            assert!(supervisor.starts_with("0\t"), "{supervisor}");
            assert!(
                uids.iter().all(|uid| *uid == uids[0] && *uid != 0),
                "{uids:?}"
            );
            assert_eq!(process::status(pid, "Groups"), "");
        } else {
            assert!(uids.iter().all(|uid| *uid == own.as_raw()), "{uids:?}");
        }
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(process::status(pid, set), "0000000000000000", "{set}");
        }
        if own.is_root() {
            assert_eq!(process::status(pid, "CapBnd"), "0000000000000000");
        }
        assert_eq!(process::status(pid, "NoNewPrivs"), "1");
        assert_eq!(process::status(pid, "Seccomp"), "2");
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"))
            .unwrap();
        // One byte: where a program takes core dumps, zero would not keep them from it.
        assert_eq!(core.split_whitespace().nth(4), Some("1"), "{core}");
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        assert_eq!(environment, b"", "QEMU has an environment");

        for (number, target) in process::descriptors(pid) {
            let text = target.to_string_lossy();
            let socket = text
                .strip_prefix("socket:[")
                .and_then(|rest| rest.strip_suffix(']'));
            let its_own = match socket {
                // Listeners and what they accepted; nothing that it could have connected itself.
                Some(inode) => sockets
                    .get(&inode.parse().unwrap())
                    .is_some_and(|path| path.starts_with(&files.sockets)),
                None => {
                    text.starts_with("anon_inode:")
                        || text == "/dev/null"
                        || text == "/dev/kvm"
                        || text == "/memfd:kiln-ignition (deleted)"
                        || target == files.console_log()
                        || target == files.qemu_log()
                        || target.starts_with(&files.sockets)
                        || target.starts_with(home.home().join("cache/blobs"))
                }
            };
            assert!(
                its_own,
                "{name} has a foreign descriptor: {number} -> {text}"
            );
        }
    }
}
