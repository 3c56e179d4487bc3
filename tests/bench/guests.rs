//! What guests get through the networks, in one run and by turns: `namespace`, `fabric`, a bridge made by hand, and
//! QEMU's own slirp. The guests are the same everywhere; a raw one is reached by a second card on a slirp of its own.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::network::in_a_namespace_of_its_own;
use crate::table::{Row, Samples, Target};
use crate::world::{Cluster, World};

/// The host's address that guests send to: no loopback, which kiln's guests cannot reach. Of RFC 5737.
const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// Where guests send from one to the other.
const PORT: u16 = 5001;
/// What is sent, in MiB.
const AMOUNT: u32 = 32;
/// For a guest to boot on a busy host.
const BOOT: Duration = Duration::from_secs(300);

/// Two guests of one network, or one with the host.
struct Pair<'a> {
    way: Way<'a>,
    /// The second guest's address.
    peer: Option<String>,
    to_peer: Samples,
    to_host: Samples,
    latency: Samples,
}

enum Way<'a> {
    Kiln(Cluster<'a>),
    Raw(Vec<Raw>),
}

impl<'a> Pair<'a> {
    fn new(way: Way<'a>, peer: Option<String>) -> Outcome<Pair<'a>> {
        let pair = Pair {
            way,
            peer,
            to_peer: Samples::default(),
            to_host: Samples::default(),
            latency: Samples::default(),
        };
        pair.ssh(
            0,
            &format!("dd if=/dev/zero of=/tmp/much bs=1M count={AMOUNT} 2>&1"),
        )?;
        if pair.peer.is_some() {
            let listen = format!(
                "setsid sh -c 'while :; do nc -l -p {PORT} >/dev/null </dev/null; done' </dev/null >/dev/null 2>&1 &"
            );
            pair.ssh(1, &listen)?;
        }
        Ok(pair)
    }

    fn ssh(&self, guest: usize, script: &str) -> Outcome<String> {
        match &self.way {
            Way::Kiln(cluster) => cluster.ssh(&format!("node-{}", guest + 1), script),
            Way::Raw(guests) => guests[guest].ssh(script),
        }
    }

    fn measure(&mut self, port: u16) -> Outcome<()> {
        if let Some(peer) = self.peer.clone() {
            self.to_peer.push_value(self.sends(&peer, PORT)?);
            let said = self.ssh(0, &format!("ping -q -c 20 -i 0.05 {peer}"))?;
            // round-trip min/avg/max = 0.5/0.7/1.2 ms
            let average = said
                .rsplit(" = ")
                .next()
                .and_then(|times| times.split('/').nth(1));
            self.latency
                .push_value(average.ok_or("ping says no time")?.parse()?);
        }
        let megabits = self.sends(&HOST.to_string(), port)?;
        self.to_host.push_value(megabits);
        Ok(())
    }

    /// Mbit in a second, by the guest's clock: nc ends when the other side has taken all and closes.
    fn sends(&self, to: &str, port: u16) -> Outcome<f64> {
        let script = format!(
            "for i in 1 2 3 4 5 6 7 8 9 10; do read a b </proc/uptime; nc {to} {port} </tmp/much && \
             {{ read c d </proc/uptime; echo $a $c; exit; }}; usleep 200000; done; exit 1"
        );
        let said = self.ssh(0, &script)?;
        let times: Vec<f64> = said
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        let [begun, ended] = times[..] else {
            return Err(format!("the guest says `{said}`").into());
        };
        Ok(f64::from(AMOUNT) * 8.0 * 1.048_576 / (ended - begun))
    }
}

pub(crate) fn guests(world: &World, rounds: usize) -> Outcome<Vec<Row>> {
    in_a_namespace_of_its_own()?;
    by_ip(&format!(
        "link set lo up; address add {HOST}/32 dev lo; link add hand type bridge; address add 10.99.0.1/24 dev hand; \
         link set hand up; tuntap add hand1 mode tap; tuntap add hand2 mode tap; \
         link set hand1 master hand; link set hand2 master hand; link set hand1 up; link set hand2 up"
    ))?;
    let port = sink()?;
    let key = Key::new(&world.raw("key")?)?;
    let kiln = |mode: &str| -> Outcome<Pair<'_>> {
        let cluster = world.cluster_in(mode, mode, 2)?;
        cluster.kiln(&["up", "--timeout", "10m"])?;
        let peer = cluster.address("node-2")?;
        Pair::new(Way::Kiln(cluster), Some(peer))
    };
    let mut namespace = kiln("namespace")?;
    let mut fabric = kiln("fabric")?;
    let mut hand = {
        let pair = vec![
            Raw::boot(world, &key, Some(("hand1", "10.99.0.11")))?,
            Raw::boot(world, &key, Some(("hand2", "10.99.0.12")))?,
        ];
        Pair::new(Way::Raw(pair), Some("10.99.0.12".to_owned()))?
    };
    let mut slirp = Pair::new(Way::Raw(vec![Raw::boot(world, &key, None)?]), None)?;
    for round in 0..rounds {
        let mut pairs = [&mut namespace, &mut hand, &mut fabric, &mut slirp];
        pairs.rotate_left(round % 4);
        for pair in pairs {
            pair.measure(port)?;
        }
    }
    let mbit =
        |what, raw, kiln, target| Row::beside(what, "Mb/s", raw, kiln, Target::Share(target));
    Ok(vec![
        mbit(
            "namespace, to a guest; raw: a bridge",
            &hand.to_peer,
            &namespace.to_peer,
            0.9,
        ),
        mbit(
            "namespace, to the host; raw: a bridge",
            &hand.to_host,
            &namespace.to_host,
            0.9,
        ),
        Row::pair(
            "namespace, ping; raw: a bridge",
            &hand.latency,
            &namespace.latency,
            Target::None,
        ),
        mbit(
            "fabric, to a guest; raw: slirp to host",
            &slirp.to_host,
            &fabric.to_peer,
            1.0,
        ),
        mbit(
            "fabric, to the host; raw: slirp",
            &slirp.to_host,
            &fabric.to_host,
            0.7,
        ),
        Row::pair(
            "fabric, ping; raw: a bridge",
            &hand.latency,
            &fabric.latency,
            Target::None,
        ),
    ])
}

fn by_ip(steps: &str) -> Outcome<()> {
    for step in steps.split(';') {
        let done = Command::new("ip").args(step.split_whitespace()).status()?;
        if !done.success() {
            return Err(format!("`ip {step}` failed").into());
        }
    }
    Ok(())
}

/// Takes all that is sent to the port that it gives, for as long as the program runs.
fn sink() -> Outcome<u16> {
    let listener = TcpListener::bind((HOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut bytes = vec![0; 256 * 1024];
                while let Ok(1..) = stream.read(&mut bytes) {}
            });
        }
    });
    Ok(port)
}

/// A key pair, and the config that lets it in.
struct Key {
    private: PathBuf,
    config: PathBuf,
}

impl Key {
    fn new(folder: &Path) -> Outcome<Key> {
        let private = folder.join("key");
        let mut keygen = Command::new("ssh-keygen");
        keygen
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&private);
        if !keygen.status()?.success() {
            return Err("no key could be made".into());
        }
        let public = std::fs::read_to_string(private.with_extension("pub"))?;
        let config = folder.join("config.ign");
        let user = serde_json::json!({"name": "core", "sshAuthorizedKeys": [public.trim_end()]});
        let text =
            serde_json::json!({"ignition": {"version": "3.3.0"}, "passwd": {"users": [user]}});
        std::fs::write(&config, text.to_string())?;
        Ok(Key { private, config })
    }
}

/// A QEMU as a shell would start it.
struct Raw {
    child: Child,
    port: u16,
    key: PathBuf,
}

impl Raw {
    /// With a card on a tap and an address there, besides that on slirp.
    fn boot(world: &World, key: &Key, tap: Option<(&str, &str)>) -> Outcome<Raw> {
        // Free now, and nobody else is in this network namespace.
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let (kernel, initrd, cmdline) = world.guest()?;
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-nodefaults",
            "-display",
            "none",
            "-M",
            "q35",
            "-accel",
            "tcg",
            "-cpu",
            "max",
        ])
        .args(["-m", "256M", "-kernel"])
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", &cmdline, "-serial", "null", "-fw_cfg"])
        .arg(format!(
            "name=opt/com.coreos/config,file={}",
            key.config.display()
        ))
        .args([
            "-netdev",
            &format!("user,id=slirp,hostfwd=tcp:127.0.0.1:{port}-:22"),
        ])
        .args(["-device", "virtio-net-pci,netdev=slirp,romfile="]);
        if let Some((name, _)) = tap {
            let mac = format!("52:54:00:00:00:{:02x}", name.bytes().last().unwrap_or(0));
            qemu.args([
                "-netdev",
                &format!("tap,id=tap,ifname={name},script=no,downscript=no"),
            ])
            .args([
                "-device",
                &format!("virtio-net-pci,netdev=tap,romfile=,mac={mac}"),
            ]);
        }
        let child = qemu.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let raw = Raw {
            child,
            port,
            key: key.private.clone(),
        };
        let begun = Instant::now();
        while let Err(error) = raw.ssh("true") {
            if begun.elapsed() > BOOT {
                return Err(format!("a raw guest does not come up: {error}").into());
            }
            thread::sleep(Duration::from_millis(500));
        }
        if let Some((_, ip)) = tap {
            let script = format!(
                "sudo ip address add {ip}/24 dev eth1; sudo ip link set eth1 up; sudo ip route add {HOST} via 10.99.0.1"
            );
            raw.ssh(&script)?;
        }
        Ok(raw)
    }

    fn ssh(&self, script: &str) -> Outcome<String> {
        let output: Output = Command::new("ssh")
            .args([
                "-F",
                "none",
                "-o",
                "BatchMode=yes",
                "-o",
                "StrictHostKeyChecking=no",
            ])
            .args([
                "-o",
                "UserKnownHostsFile=/dev/null",
                "-o",
                "ConnectTimeout=10",
                "-o",
                "LogLevel=ERROR",
            ])
            .arg("-i")
            .arg(&self.key)
            .args(["-p", &self.port.to_string(), "core@127.0.0.1", script])
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
