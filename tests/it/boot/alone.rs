//! `kiln explain --shell`: a command line that needs no kiln.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User};
use crate::support::process;

#[test]
fn the_explained_command_runs_by_itself() {
    let home = Home::new(Lane::Narrow, User::Myself, "alone", &["node"]);
    home.write(
        "node.ign",
        json!({
            "ignition": {"version": "3.3.0"},
            "storage": {"files": [{"path": "/etc/told", "contents": {"source": "data:,told"}}]},
        })
        .to_string(),
    );
    home.write_spec(
        &guest::tiny("x86_64").image(""),
        &json!({"node": {"memory": "256MiB", "ignition": "node.ign"}}),
    );
    // Made, and stopped at once: from here on kiln has nothing to do with it.
    home.within(BOOT, &["up", "--wait", "running"]).ok();
    home.kiln(&["kill"]).ok();
    let shell = home.kiln(&["explain", "node", "--shell"]).ok().stdout;

    let elsewhere = tempfile::tempdir().unwrap();
    let mut child = Command::new("sh")
        .args(["-c", &format!("exec {shell}")])
        .env_clear()
        .current_dir(elsewhere.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let (tell, chunks) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stdout.read(&mut buffer) {
            if tell.send(buffer[..read].to_vec()).is_err() {
                return;
            }
        }
    });
    let deadline = Instant::now() + BOOT;
    let mut console = Vec::new();
    // It has Ignition's host name, and an address of QEMU's own network.
    let wanted = ["Ignition finished successfully", "guest: node is up after"];
    while !wanted.iter().all(|text| process::contains(&console, text)) {
        let left = deadline.saturating_duration_since(Instant::now());
        match chunks.recv_timeout(left) {
            Ok(chunk) => console.extend(chunk),
            Err(error) => {
                let _ = child.kill();
                panic!("{error}: {}", String::from_utf8_lossy(&console));
            }
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let console = String::from_utf8_lossy(&console);
    assert!(console.contains("/etc/told"), "{console}");
    assert!(console.contains("guest: address 10."), "{console}");
    home.within(Duration::from_secs(20), &["down"]).ok();
    home.assert_clean();
}
