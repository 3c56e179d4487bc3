//! The real Ansible, from PyPI, with kiln as its inventory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User};
use crate::support::run::run;

/// It downloads some ten megabytes.
const INSTALL: Duration = Duration::from_secs(600);
const VERSION: &str = "ansible-core>=2.17,<2.20";

/// Ansible's program, installed once into a folder of the tests' own.
fn ansible() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ansible");
    let done = folder.join("done");
    if !done.exists() {
        let _ = fs::remove_dir_all(&folder);
        run(
            Command::new("python3").args(["-m", "venv"]).arg(&folder),
            INSTALL,
        )
        .ok();
        let mut pip = Command::new(folder.join("bin/pip"));
        run(pip.args(["install", "--quiet", VERSION]), INSTALL).ok();
        fs::write(done, "").unwrap();
    }
    folder.join("bin/ansible")
}

#[test]
fn ansible_reaches_all_machines_by_the_inventory() {
    let ansible = ansible();
    let names = ["db", "web-1", "web-2"];
    let home = Home::new(Lane::Wide, User::Myself, "play", &names);
    let group = json!({"memory": "320MiB"});
    let mut pair = group.clone();
    pair["count"] = 2.into();
    home.write_spec(
        &guest::direct("python", "x86_64").image(""),
        &json!({"db": group, "web": pair}),
    );
    home.within(BOOT, &["up"]).ok();
    // What `home.command` runs, without its words.
    let kiln = env!("CARGO_BIN_EXE_kiln");
    let inventory = home.folder().join("inventory");
    let script = format!(
        "#!/bin/sh\nKILN_HOME='{}' exec '{kiln}' -c play inventory \"$@\"\n",
        home.home().display()
    );
    fs::write(&inventory, script).unwrap();
    fs::set_permissions(&inventory, fs::Permissions::from_mode(0o755)).unwrap();
    let play = |pattern: &str| {
        let mut command = Command::new(&ansible);
        command
            .args([pattern, "-m", "ping", "-o", "-T", "120", "-i"])
            .arg(&inventory)
            .env("HOME", home.folder())
            .current_dir(home.folder());
        run(&mut command, BOOT * 2).ok().stdout
    };
    let told = play("all");
    for name in names {
        let line = told
            .lines()
            .find(|line| line.starts_with(&format!("{name} | SUCCESS")));
        let line = line.unwrap_or_else(|| panic!("{name} did not answer: {told}"));
        assert!(line.contains(r#""ping": "pong""#), "{line}");
    }
    assert_eq!(play("web").lines().count(), 2);
    home.down();
}
