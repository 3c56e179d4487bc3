//! What other tools are told of the cluster, tried with the real ssh and scp.

use std::process::Command;

use crate::boot::three::NODES;
use crate::support::home::{BOOT, Home};
use crate::support::run::run;

/// From a shell that knows nothing of kiln: no `KILN_HOME`, no `PATH` but the system's.
pub(super) fn plain_ssh_works_by_the_exported_settings(home: &Home) {
    let settings = home.folder().join("ssh config");
    let printed = home.kiln(&["ssh-config"]).ok().stdout;
    std::fs::write(&settings, &printed).unwrap();
    for (asked, name) in [("node-2", "node-2"), ("node-3.demo.internal", "node-3")] {
        let mut ssh = Command::new("ssh");
        ssh.env_remove("KILN_HOME").arg("-F").arg(&settings);
        let ran = run(ssh.args([asked, "hostname"]), BOOT).ok();
        assert_eq!(ran.stdout, format!("{name}\n"));
    }
    let one = home.kiln(&["ssh-config", "node-1"]).ok().stdout;
    assert_eq!(one.matches("\nHost ").count(), 1, "{one}");
    assert_eq!(printed.matches("\nHost ").count(), 3, "{printed}");
}

pub(super) fn files_are_copied_there_and_back(home: &Home) {
    home.write("sent: 100%", "over the fabric\n");
    let there = home.within(BOOT, &["cp", "./sent: 100%", "node-1:/tmp/a file"]);
    there.ok();
    let seen = home.ssh("node-1", "cat '/tmp/a file'");
    assert_eq!(seen, "over the fabric\n");
    home.within(BOOT, &["-q", "cp", "node-1:/tmp/a file", "back"])
        .ok();
    let back = std::fs::read_to_string(home.folder().join("back")).unwrap();
    assert_eq!(back, "over the fabric\n");
    home.kiln(&["cp", "node-1:/etc/hostname", "node-2:/tmp/"])
        .exits(2)
        .says("only one side of a copy can be a machine's");
    home.kiln(&["cp", "node-9:/etc/hostname", "."]).exits(7);
}

/// The form that Ansible reads; its ssh is tried with the very words that it would take.
pub(super) fn ansible_is_told_how_to_get_in(home: &Home) {
    let listed = home.kiln(&["inventory", "--list"]).ok().stdout;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["node"]["hosts"], serde_json::json!(NODES));
    assert_eq!(listed["all"]["children"], serde_json::json!(["node"]));
    let host = home.kiln(&["inventory", "--host", "node-2"]).ok().stdout;
    let host: serde_json::Value = serde_json::from_str(&host).unwrap();
    assert_eq!(listed["_meta"]["hostvars"]["node-2"], host);
    assert_eq!(host["kiln_index"], 2);
    assert_eq!(host["kiln_ip"], home.machine("node-2")["reserved_ip"]);
    let text = |key: &str| host[key].as_str().unwrap().to_owned();
    let line = format!(
        "exec ssh {} {}@{} hostname",
        text("ansible_ssh_common_args"),
        text("ansible_user"),
        text("ansible_host"),
    );
    let mut shell = Command::new("sh");
    shell.env_remove("KILN_HOME").args(["-c", &line]);
    assert_eq!(run(&mut shell, BOOT).ok().stdout, "node-2\n");
}
