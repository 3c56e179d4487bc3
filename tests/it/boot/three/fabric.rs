//! What the machines and the host can reach of each other, and what they cannot.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::boot::three::NODES;
use crate::support::home::{Home, machine_of, pid_of};
use crate::support::process;

/// What one HTTP request for `/` is answered with, body and all.
pub(in crate::boot) fn page(port: u16) -> std::io::Result<String> {
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

pub(in crate::boot) fn host_port(machine: &Value) -> u16 {
    assert_eq!(machine["ports"][0]["bind"], "127.0.0.1");
    assert_eq!(machine["ports"][0]["guest"], 80);
    machine["ports"][0]["host"]
        .as_u64()
        .unwrap()
        .try_into()
        .unwrap()
}

pub(super) fn the_machines_reach_each_other_by_name(home: &Home, planned: &BTreeMap<&str, String>) {
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

pub(super) fn the_published_ports_answer(ps: &Value) {
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
pub(super) fn the_fabric_carries_much(home: &Home, ps: &Value) {
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
pub(super) fn a_guest_gets_no_further_than_it_may(home: &Home, ps: &Value) {
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

/// Killed at any moment, it takes nothing with it; the next command starts another.
pub(super) fn the_supervisor_may_die(home: &Home, before: &Value) {
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
pub(super) fn host_is_free(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_err()
}
