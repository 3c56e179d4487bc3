//! What stands in an Ignition config is nobody's business but the guest's and its user's.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use nix::sys::stat::{Mode, umask};
use serde_json::json;

use crate::fake_support::{World, holds, wait_until, walk};

/// Spelled so that it is found in plain and in a `data:` URL of base64 alike.
const MARKER: &str = "hunter2-is-the-secret";
/// Three alignments of the marker in base64, less what its neighbors decide.
const ENCODED: [&str; 3] = [
    "aHVudGVyMi1pcy10aGUtc2VjcmV0",
    "h1bnRlcjItaXMtdGhlLXNlY3Jld",
    "odW50ZXIyLWlzLXRoZS1zZWNyZX",
];

fn config() -> String {
    format!(
        r#"{{"ignition":{{"version":"3.3.0"}},"storage":{{"files":[{{"path":"/etc/secret","mode":384,"contents":{{"source":"data:,{MARKER}"}}}}]}}}}"#
    )
}

fn shows(text: &str) -> bool {
    text.contains(MARKER) || ENCODED.iter().any(|encoded| text.contains(encoded))
}

fn file_shows(path: &Path) -> bool {
    holds(path, MARKER) || ENCODED.iter().any(|encoded| holds(path, encoded))
}

/// As [`World::kiln`], under the worst umask there is; what was printed, both streams.
fn said(world: &World, args: &[&str]) -> String {
    let mut command = world.command(args);
    #[expect(unsafe_code, reason = "the umask of the child alone")]
    // SAFETY: umask is safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            umask(Mode::empty());
            Ok(())
        });
    }
    let output = command.output().unwrap();
    let both = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[test]
fn a_secret_is_in_no_output_no_process_and_no_file_that_others_can_read() {
    let world = World::new();
    world.nodes(2, "vars: {token: hunter2-is-the-secret}");
    world.write("spec/node.ign", config());
    let mut all = String::new();
    for args in [
        &["-vv", "validate"][..],
        &["-vv", "plan"],
        &["plan", "--json"],
        &["-vv", "up"],
        &["ps", "--json"],
        &["ls", "--json"],
        &["inspect", "--json"],
        &["inspect"],
        &["events", "--no-follow", "--json"],
        &["explain", "node-1"],
        &["explain", "node-1", "--json"],
        &["explain", "node-1", "--shell"],
        &["logs", "node-1"],
        &["logs", "node-1", "--qemu"],
        &["logs", "--supervisor"],
        &["restart", "node-2", "--json"],
    ] {
        let text = said(&world, args);
        assert!(!shows(&text), "kiln {args:?} shows it: {text}");
        all.push_str(&text);
    }
    assert!(all.contains("node-1"), "{all}");
    // Whoever asks for the config gets it: the marker is one that the test can find.
    assert!(shows(&said(&world, &["render", "node-1"])));

    world.settle(3);
    let processes = world.processes();
    assert_eq!(
        processes.len(),
        4,
        "two machines, the uplink, the supervisor"
    );
    for process in &processes {
        for file in ["cmdline", "environ"] {
            let path = format!("/proc/{}/{file}", process.pid);
            assert!(!file_shows(Path::new(&path)), "{path}");
        }
    }

    let blobs = world.home().join("cache/blobs");
    let mut seen = 0;
    walk(&world.home(), &mut |path, metadata| {
        let mode = metadata.mode() & 0o7777;
        let kind = metadata.file_type();
        if kind.is_dir() {
            assert_eq!(mode, 0o700, "{}", path.display());
        } else if kind.is_file() {
            // Kernels are no secrets, and nobody may change one: they lie read-only in the cache.
            let open = if path.starts_with(&blobs) {
                0o222
            } else {
                0o177
            };
            assert_eq!(mode & open, 0, "{} is {mode:04o}", path.display());
            if file_shows(path) {
                seen += 1;
                // The second is what `explain --shell` was asked for.
                let name = path.file_name().unwrap();
                assert!(name == "config.ign" || name == "shell.ign", "{name:?}");
                assert_eq!(mode, 0o600);
            }
        } else {
            // To execute a socket means nothing.
            assert_eq!(mode & 0o077, 0, "{} is {mode:04o}", path.display());
        }
    });
    assert_eq!(seen, 3, "one config for each machine, and one for a shell");
}

#[test]
fn no_error_shows_what_stands_in_a_config() {
    let world = World::new();
    world.nodes(1, "");
    for broken in [
        // Cut off in the middle of the secret, of another type, of another version, unknown.
        config().replace("\"}}]}}", ""),
        config().replace("384", "\"hunter2-is-the-secret\""),
        config().replace("3.3.0", "2.3.0"),
        config().replace("3.3.0", MARKER),
        config().replace("\"mode\"", "\"mood\""),
        config().replace(
            "\"path\":\"/etc/secret\"",
            "\"path\":\"hunter2-is-the-secret\"",
        ),
        config().replace("data:,", "gopher:,"),
    ] {
        world.write("spec/node.ign", &broken);
        for args in [
            &["-vv", "up", "--dry-run"][..],
            &["validate", "--json"],
            &["-vv", "up"],
        ] {
            let text = said(&world, args);
            assert!(!shows(&text), "{broken}: kiln {args:?} shows it: {text}");
        }
    }
    world.write(
        "spec/node.ign.j2",
        config().replace("384", "{{ vars.absent }}"),
    );
    world.spec("cluster: demo\nimage: {kernel: vmlinuz}\nmachines:\n  node: {accel: tcg, ignition: node.ign.j2}\n");
    let text = said(&world, &["-vv", "up"]);
    assert!(text.contains("vars.absent"), "{text}");
    assert!(!shows(&text), "{text}");
}

#[test]
fn a_failed_up_leaves_no_secret_behind() {
    let world = World::new();
    world.nodes(2, "");
    world.write("spec/node.ign", config());
    world.behave(&json!({"node-2": {"exit": {"code": 1, "stderr": "no"}}}));
    let text = said(&world, &["up"]);
    assert!(text.contains("nothing was left behind"), "{text}");
    assert!(!shows(&text), "{text}");
    wait_until("all is gone", || world.processes().is_empty());
    walk(&world.home(), &mut |path, metadata| {
        assert!(
            !metadata.is_file() || !file_shows(path),
            "{}",
            path.display()
        );
    });
}

#[test]
fn an_ignition_config_reaches_qemu_sealed_and_by_no_name() {
    let world = World::new();
    world.nodes(1, "");
    world.write("spec/node.ign", config());
    world.ok(&["up"]);
    let qemus = world.qemus();
    let machine = qemus
        .iter()
        .find(|qemu| qemu.argv.iter().any(|word| word.contains("demo/node-1")))
        .unwrap();
    let fw_cfg = machine
        .argv
        .iter()
        .find(|word| word.contains("opt/com.coreos/config"))
        .unwrap();
    let (_, path) = fw_cfg.split_once("file=/proc/self/fd/").unwrap();
    let fd = fs::read_link(format!("/proc/{}/fd/{path}", machine.pid)).unwrap();
    assert!(fd.to_string_lossy().starts_with("/memfd:"), "{fd:?}");
    // A later start finds the same one.
    world.ok(&["restart"]);
    assert_eq!(world.pids().len(), 1);
}
