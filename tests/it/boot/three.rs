//! The example with three machines: what its user sees, what its guests see, what others can
//! see of it, and what a killed supervisor changes, which is nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use nix::unistd::Uid;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User, machine_of, pid_of};
use crate::support::process;

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

/// What one HTTP request for `/` is answered with, body and all.
pub(super) fn page(port: u16) -> std::io::Result<String> {
    get(port, "/").map(|answer| String::from_utf8_lossy(&answer).into_owned())
}

fn get(port: u16, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

pub(super) fn host_port(machine: &Value) -> u16 {
    assert_eq!(machine["ports"][0]["bind"], "127.0.0.1");
    assert_eq!(machine["ports"][0]["guest"], 80);
    machine["ports"][0]["host"]
        .as_u64()
        .unwrap()
        .try_into()
        .unwrap()
}

fn pids(ps: &Value) -> Vec<Option<u32>> {
    NODES.map(|name| pid_of(&machine_of(ps, name))).to_vec()
}

#[test]
fn the_example_with_three_machines() {
    let home = Home::new(Lane::Wide, User::Myself, "demo", &NODES);
    example(&home);

    let planned = addresses_in_the_plan(&home);
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

    let ps = ps_has_the_fixed_form(&home, &planned);
    emulation_is_said(&home, &ps, &up.stderr);
    the_guests_are_as_ignition_was_told(&home, &planned);
    the_machines_reach_each_other_by_name(&home, &planned);
    the_published_ports_answer(&ps);
    the_fabric_carries_much(&home, &ps);
    a_guest_gets_no_further_than_it_may(&home, &ps);
    a_second_up_changes_nothing(&home, &ps);
    the_looking_verbs_show_it(&home, &ps);
    the_console_is_at_a_prompt(&home);
    no_secret_is_seen(&home);
    qemu_has_no_privileges(&home, &ps);
    the_supervisor_may_die(&home, &ps);

    home.down();
    let again = home.kiln(&["down"]).ok();
    assert_eq!(again.stdout, "cluster demo: nothing is there\n");
    assert!(host_is_free(host_port(&machine_of(&ps, "node-1"))));
}

/// `kiln plan` knows each machine's address before there is a machine.
fn addresses_in_the_plan(home: &Home) -> BTreeMap<&'static str, String> {
    let plan = home.kiln(&["plan"]).ok();
    let address = |name| {
        let line = plan.stdout.lines().find(|line| line.contains(name))?;
        let (_, address) = line.strip_suffix(')')?.rsplit_once(", ")?;
        Some((name, address.to_owned()))
    };
    let planned: BTreeMap<_, _> = NODES.iter().copied().filter_map(address).collect();
    assert_eq!(planned.len(), 3, "{plan}");
    home.assert_clean();
    planned
}

/// The fields that DESIGN.md fixes are there, and what they say is true.
fn ps_has_the_fixed_form(home: &Home, planned: &BTreeMap<&str, String>) -> Value {
    let ps = home.json(&["ps"]);
    assert_eq!(ps["cluster"], "demo");
    assert_eq!(ps["network"]["mode"], "fabric");
    assert!(process::is_alive(pid_of(&ps["supervisor"]).unwrap()));
    assert_eq!(ps["machines"].as_array().unwrap().len(), 3);
    for name in NODES {
        let machine = machine_of(&ps, name);
        let has: BTreeSet<&str> = machine
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let fixed = [
            "name",
            "arch",
            "accel",
            "state",
            "reason",
            "ready",
            "pid",
            "mac",
            "reserved_ip",
            "addresses",
            "ports",
            "image",
            "started_at",
        ];
        for field in fixed {
            assert!(has.contains(field), "no `{field}` in {machine}");
        }
        assert_eq!(machine["state"], "ready");
        assert_eq!(machine["reason"], "");
        assert_eq!(machine["ready"], true);
        assert_eq!(machine["arch"], "x86_64");
        assert_eq!(machine["reserved_ip"], planned[name].as_str());
        // Seen in use, by the lease or by frames: the report is not needed for it.
        let addresses = machine["addresses"].as_array().unwrap();
        assert_eq!(addresses.len(), 1, "{machine}");
        assert_eq!(addresses[0]["ip"], planned[name].as_str());
        let source = addresses[0]["source"].as_str().unwrap();
        assert!(["lease", "frames"].contains(&source), "{machine}");
        let uuid = home.cluster().uuid(name);
        assert_eq!(process::with_uuid(&uuid), [pid_of(&machine).unwrap()]);
    }
    ps
}

fn emulation_is_said(home: &Home, ps: &Value, up: &str) {
    let ps_says = home.kiln(&["ps"]).ok().stderr;
    for name in NODES {
        let machine = machine_of(ps, name);
        if machine["accel"] == "tcg" {
            for said in [up, &ps_says] {
                let note = said.lines().find(|line| line.contains("emulated"));
                let note = note.unwrap_or_else(|| panic!("nothing is said: {said}"));
                assert!(note.starts_with("note: ") && note.contains(name), "{said}");
            }
        }
    }
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

fn the_machines_reach_each_other_by_name(home: &Home, planned: &BTreeMap<&str, String>) {
    for name in NODES {
        let mut script = "set -e\n".to_owned();
        for peer in NODES {
            script += &format!(
                "nslookup -type=a {peer}.demo.internal | grep -F {}\n",
                planned[peer]
            );
            script += &format!("ping -c1 -W5 {peer} >&2\n");
            script += &format!("wget -qO- http://{peer}/\n");
        }
        let seen = home.ssh(name, &script);
        for peer in NODES {
            assert!(
                seen.contains(&format!("Hello from {peer}, ")),
                "{name}: {seen}"
            );
        }
    }
}

fn the_published_ports_answer(ps: &Value) {
    for name in NODES {
        let answer = page(host_port(&machine_of(ps, name))).unwrap();
        assert!(
            answer.starts_with("HTTP/1.") && answer.contains(" 200 "),
            "{answer}"
        );
        assert!(answer.contains(&format!("Hello from {name}, ")), "{answer}");
    }
}

/// Every byte arrives, between guests and out of them, and many can ask at once.
fn the_fabric_carries_much(home: &Home, ps: &Value) {
    let port = host_port(&machine_of(ps, "node-1"));
    let told = home.ssh(
        "node-1",
        "sudo sh -c 'head -c 4000000 /dev/urandom >/var/www/much'; sha256sum </var/www/much",
    );
    let sum = told.split(' ').next().unwrap();
    let answer = get(port, "/much").unwrap();
    let body = &answer[answer.len() - 4_000_000..];
    let got: String = Sha256::digest(body)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(got, sum);
    let seen = home.ssh("node-2", "wget -qO- http://node-1/much | sha256sum");
    assert!(seen.starts_with(sum), "{seen}");
    std::thread::scope(|scope| {
        let askers: Vec<_> = (0..30)
            .map(|_| scope.spawn(|| page(port).unwrap()))
            .collect();
        for asker in askers {
            assert!(asker.join().unwrap().contains("Hello from node-1, "));
        }
    });
}

/// Not to what listens on the host's loopback, and not under another's address.
fn a_guest_gets_no_further_than_it_may(home: &Home, ps: &Value) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let subnet = ps["network"]["subnet"].as_str().unwrap();
    let base = subnet.strip_suffix("0/24").unwrap();
    // kiln's own address, and those under which QEMU's user network would let it out.
    for last in 1..=3 {
        let refused = home.within(
            Duration::from_secs(30),
            &[
                "ssh",
                "node-1",
                "--",
                &format!("nc -w2 {base}{last} {port} </dev/null"),
            ],
        );
        assert_eq!(refused.code, Some(1), "{refused}");
    }
    listener.set_nonblocking(true).unwrap();
    let error = listener.accept().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);

    let reserved = NODES.map(|name| machine_of(ps, name)["reserved_ip"].clone());
    let free = (10..).map(|last| format!("{base}{last}"));
    let free = free
        .into_iter()
        .find(|ip| !reserved.contains(&Value::from(ip.as_str())));
    let free = free.unwrap();
    let posed = home.within(
        Duration::from_secs(30),
        &[
            "ssh",
            "node-1",
            "--",
            &format!(
                "sudo ip addr add {free}/24 dev eth0; ping -c1 -W2 -I {free} node-2; got=$?; \
                 sudo ip addr del {free}/24 dev eth0; exit $got"
            ),
        ],
    );
    assert_eq!(posed.code, Some(1), "{posed}");
    assert!(posed.stdout.contains("100% packet loss"), "{posed}");
    // What was tried shows nowhere as an address of the machine's.
    assert_eq!(
        home.machine("node-1")["addresses"],
        machine_of(ps, "node-1")["addresses"]
    );
}

fn a_second_up_changes_nothing(home: &Home, before: &Value) {
    home.kiln(&["up"]).ok().says("nothing to do");
    let up = home.json(&["up"]);
    assert_eq!(pids(&up), pids(before));
    assert_eq!(up["machines"], home.json(&["ps"])["machines"]);
    assert_eq!(up["machines"], before["machines"]);
    // One that is asked for alone takes nothing from the others.
    home.kiln(&["up", "node-2"]).ok().says("nothing to do");
    assert_eq!(home.ssh("node-3", "hostname"), "node-3\n");
}

fn the_looking_verbs_show_it(home: &Home, ps: &Value) {
    let ls = home.json(&["ls"]);
    assert_eq!(ls["clusters"].as_array().unwrap().len(), 1);
    assert_eq!(ls["clusters"][0]["cluster"], "demo");
    assert_eq!(ls["clusters"][0]["machines"]["ready"], 3);

    let reserved = machine_of(ps, "node-2")["reserved_ip"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        home.kiln(&["ip", "node-2"]).ok().stdout,
        format!("{reserved}\n")
    );
    assert_eq!(home.kiln(&["ip"]).ok().stdout.lines().count(), 4);

    let inspected = home.json(&["inspect", "node-2"]);
    assert_eq!(inspected["machines"].as_array().unwrap().len(), 1);
    assert_eq!(
        machine_of(&inspected, "node-2")["record"]["memory_mib"],
        256
    );

    let events = home.kiln(&["events", "--no-follow"]).ok();
    assert_eq!(events.stdout.lines().count(), 3, "{events}");
    assert!(
        events.stdout.lines().all(|line| line.contains("ready")),
        "{events}"
    );

    let logs = home.kiln(&["logs", "node-1"]).ok();
    assert!(
        logs.stdout.contains("Ignition finished successfully"),
        "{logs}"
    );
    assert!(
        !logs.stdout.contains('\u{1b}'),
        "control bytes reach the terminal: {logs}"
    );
    let last = home.kiln(&["logs", "node-1", "-n", "2"]).ok();
    assert_eq!(last.stdout.lines().count(), 2, "{last}");
    home.kiln(&["logs", "node-1", "--qemu"]).ok();
    home.kiln(&["logs", "--supervisor"]).ok();

    let explained = home.json(&["explain", "node-1"]);
    let argv: Vec<&str> = explained["argv"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let cmdline = std::fs::read(format!("/proc/{}/cmdline", home.pid("node-1"))).unwrap();
    let cmdline = String::from_utf8(cmdline).unwrap();
    let runs: Vec<&str> = cmdline.trim_end_matches('\0').split('\0').collect();
    assert_eq!(argv, runs, "`explain` and what runs differ");
    assert_eq!(
        explained["reasons"].as_array().unwrap().len(),
        argv_options(&argv)
    );

    let rendered: Value =
        serde_json::from_str(&home.kiln(&["render", "node-1"]).ok().stdout).unwrap();
    let merged = &rendered["ignition"]["config"]["merge"];
    assert_eq!(merged.as_array().unwrap().len(), 1, "{rendered}");

    // `wait` for what is reached already returns at once, and says what is.
    let waited = home.json(&["wait", "node-1", "--for", "address"]);
    assert_eq!(machine_of(&waited, "node-1")["state"], "ready");
    let unknown = home.kiln(&["--json", "ip", "node-4"]).exits(7).error();
    assert_eq!(unknown["code"], "unknown");
}

fn argv_options(argv: &[&str]) -> usize {
    argv.iter()
        .skip(1)
        .filter(|arg| arg.starts_with('-'))
        .count()
}

/// The console is a socket that anyone of the user's can talk to while kiln runs on.
fn the_console_is_at_a_prompt(home: &Home) {
    use kiln::state::layout::Socket;
    let socket = home.cluster().machine("node-3").socket(Socket::Console);
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
        .write_all(b"\necho $((6 * 7))-$(hostname)\n")
        .unwrap();
    let mut seen = Vec::new();
    let mut buffer = [0; 1024];
    while !process::contains(&seen, "42-node-3") {
        let read = stream.read(&mut buffer);
        let read =
            read.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&seen)));
        assert_ne!(read, 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend(&buffer[..read]);
    }
}

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
fn no_secret_is_seen(home: &Home) {
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
fn qemu_has_no_privileges(home: &Home, ps: &Value) {
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

/// Killed at any moment, it takes nothing with it; the next command starts another.
fn the_supervisor_may_die(home: &Home, before: &Value) {
    let peer = machine_of(before, "node-2")["reserved_ip"]
        .as_str()
        .unwrap()
        .to_owned();
    // In the guest, from before to after: it counts, and notes when its neighbor answered.
    let answered = |more: u32| {
        format!(
            "had=$(cat /tmp/answers 2>/dev/null | wc -l); \
             until [ $(cat /tmp/answers 2>/dev/null | wc -l) -ge $((had + {more})) ]; do usleep 50000; done"
        )
    };
    home.ssh(
        "node-1",
        &format!(
            "setsid sh -c 'while :; do ping -c1 -W1 {peer} >/dev/null && cut -d\" \" -f1 /proc/uptime >>/tmp/answers; usleep 50000; done' \
             >/dev/null 2>&1 & echo $! >/tmp/pinger; {}", answered(3)
        ),
    );
    let supervisor = pid_of(&before["supervisor"]).unwrap();
    let killed = Instant::now();
    process::signal(supervisor, Signal::SIGKILL);
    let ps = home
        .kiln(&["--json", "ps"])
        .ok()
        .took_at_most(Duration::from_secs(2))
        .result();
    let adopted = killed.elapsed();
    assert_ne!(pid_of(&ps["supervisor"]).unwrap(), supervisor);
    assert_eq!(ps["machines"], before["machines"]);
    the_published_ports_answer(&ps);
    let seen = home.ssh(
        "node-1",
        &format!(
            "kill -0 $(cat /tmp/pinger) && {}; kill $(cat /tmp/pinger); cat /tmp/answers",
            answered(3)
        ),
    );
    let answers: Vec<f64> = seen.lines().filter_map(|line| line.parse().ok()).collect();
    let gaps = answers.windows(2).map(|pair| pair[1] - pair[0]);
    let longest = gaps.fold(0.0, f64::max);
    let limit = adopted + Duration::from_secs(2);
    assert!(answers.len() >= 6, "{seen}");
    assert!(
        longest <= limit.as_secs_f64(),
        "no answer for {longest} s, {limit:?} are allowed"
    );
    the_machines_reach_each_other_by_name(
        home,
        &NODES
            .map(|name| {
                (
                    name,
                    machine_of(&ps, name)["reserved_ip"]
                        .as_str()
                        .unwrap()
                        .to_owned(),
                )
            })
            .into(),
    );
}

/// Nobody listens there any more.
fn host_is_free(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_err()
}
