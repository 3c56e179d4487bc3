//! A machine that poses as everybody else and shouts: its neighbor loses no ping, learns nothing wrong, and renews its
//! lease meanwhile.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use kiln_netsetup::address::gateway_mac;
use kiln_netsetup::ether::{self, ARP, Path as Way};
use macaddr::MacAddr6;
use serde_json::Value;

use crate::support::home::{BOOT, Home, machine_of};
use crate::support::run::run;

/// So many DISCOVERs, of so many clients.
const DISCOVERS: u16 = 10_000;
const CLIENTS: u16 = 100;
/// So many broadcasts of a kilobyte.
const BROADCASTS: u16 = 5_000;
/// How often each lie is told.
const LIES: u16 = 20;

/// Who is on the network, as far as frames go.
#[derive(Clone, Copy)]
struct Host {
    mac: MacAddr6,
    ip: Ipv4Addr,
}

impl Host {
    fn of(ps: &Value, name: &str) -> Host {
        let machine = machine_of(ps, name);
        let text = |key: &str| machine[key].as_str().unwrap().to_owned();
        Host {
            mac: text("mac").parse().unwrap(),
            ip: text("reserved_ip").parse().unwrap(),
        }
    }
}

/// `node-3` attacks `node-2`, which pings `node-1` and the gateway.
pub(super) fn a_hostile_machine_harms_nobody(home: &Home, ps: &Value) {
    let [peer, victim, attacker] = ["node-1", "node-2", "node-3"].map(|name| Host::of(ps, name));
    let base = u32::from(victim.ip) & !0xff;
    let gateway = Host {
        mac: gateway_mac(home.cluster().name()),
        ip: Ipv4Addr::from(base + 1),
    };
    let mut attack = posing(attacker, victim, peer, gateway);
    attack.extend(serving(attacker, victim, gateway));
    let lies = attack.into_iter().map(|frame| (LIES, frame));
    let (mut packed, mut count) = (Vec::new(), 0);
    for (times, frame) in lies.chain(shouting(attacker)) {
        packed.extend(times.to_be_bytes());
        packed.extend(u16::try_from(frame.len()).unwrap().to_be_bytes());
        packed.extend(frame);
        count += u32::from(times);
    }
    home.write("frames", packed);
    home.write("send-frames", std::fs::read(sender()).unwrap());
    for file in ["send-frames", "frames"] {
        home.within(BOOT, &["-q", "cp", file, "node-3:/tmp/"]).ok();
    }

    let before = home.ssh("node-2", LOOK);
    home.ssh("node-2", &prepare(peer.ip, gateway.ip));
    let attacked = home.within(
        BOOT,
        &[
            "ssh",
            "node-3",
            "--",
            "chmod +x /tmp/send-frames; sudo /tmp/send-frames eth0 </tmp/frames",
        ],
    );
    assert_eq!(attacked.ok().stdout, format!("sent {count} frames\n"));
    // The lease was renewed while the attack went on, or right after it.
    let told = home.ssh(
        "node-2",
        "touch /tmp/enough; until [ -e /tmp/done ]; do usleep 100000; done; cat /tmp/pings; cat /run/dhcp.told",
    );
    let pings: Vec<&str> = told
        .lines()
        .filter(|line| line.contains("packets transmitted"))
        .collect();
    assert!(pings.len() >= 2, "{told}");
    for line in pings {
        assert!(line.contains(", 0% packet loss"), "{told}");
    }
    assert!(told.contains(&format!("renew {}\n", victim.ip)), "{told}");
    assert_eq!(home.ssh("node-2", LOOK), before);
    // Nor does kiln take for a machine's address what another says.
    let after = home.json(&["ps"]);
    assert_eq!(after["machines"], ps["machines"]);
}

/// What the neighbor knows: addresses and routes of both versions, and who has the addresses of the others.
const LOOK: &str = "ip -o address show dev eth0 | sed 's/valid_lft.*//'; ip route; ip -6 route show dev eth0 | sed 's/expires.*//'; \
     cat /etc/resolv.conf; ip neighbor show dev eth0 | sed -n 's/ REACHABLE\\| STALE\\| DELAY\\| PROBE//; s/ used.*//; / lladdr /p' | sort";

/// The neighbor pings until it is told that it is enough, and asks for its lease again and again.
fn prepare(peer: Ipv4Addr, gateway: Ipv4Addr) -> String {
    format!(
        "sudo sed -i '2i echo \"$1 $ip\" >>/run/dhcp.told' /usr/lib/guest/dhcp
        rm -f /tmp/pings /tmp/enough /tmp/done
        cat >/tmp/pinger <<'END'
while :; do
    last=0; [ ! -e /tmp/enough ] || last=1
    sudo kill -USR1 $(cat /run/udhcpc.eth0)
    ping -c 10 -i 0.1 -W 10 {peer} >>/tmp/pings
    ping -c 10 -i 0.1 -W 10 {gateway} >>/tmp/pings
    [ $last = 0 ] || break
done
touch /tmp/done
END
        setsid sh /tmp/pinger </dev/null >/tmp/pinger.log 2>&1 &
        until grep -q transmitted /tmp/pings; do usleep 50000; done"
    )
}

/// In the name of the neighbor, of its MAC, of the gateway; to all and to each.
fn posing(attacker: Host, victim: Host, peer: Host, gateway: Host) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let all = MacAddr6::broadcast();
    // With the neighbor's MAC, by which a bridge that learns would send it everything.
    for (mac, ip) in [
        (victim.mac, victim.ip),
        (victim.mac, attacker.ip),
        (gateway.mac, gateway.ip),
    ] {
        frames.push(arp(mac, all, 1, Host { mac, ip }, ip));
        frames.push(datagram(mac, ip, all, Ipv4Addr::BROADCAST, 9, 9, b"moved"));
        frames.push(datagram(mac, ip, peer.mac, peer.ip, 9, 9, b"moved"));
    }
    // With its own MAC and another's address, asked for or not.
    for posed in [victim, gateway, peer] {
        let lie = Host {
            mac: attacker.mac,
            ip: posed.ip,
        };
        for to in [all, victim.mac, peer.mac, gateway.mac] {
            for kind in [1, 2] {
                for target in [posed.ip, victim.ip, peer.ip] {
                    frames.push(arp(attacker.mac, to, kind, lie, target));
                    // The truth outside and the lie inside, and the other way round.
                    frames.push(arp(posed.mac, to, kind, lie, target));
                    frames.push(arp(attacker.mac, to, kind, posed, target));
                }
            }
            frames.push(datagram(
                attacker.mac,
                posed.ip,
                to,
                victim.ip,
                53,
                4000,
                b"lie",
            ));
        }
    }
    // Behind a tag, the same again.
    let tagged: Vec<Vec<u8>> = frames
        .iter()
        .map(|frame| [&frame[..12], &[0x81, 0, 0, 0], &frame[12..]].concat())
        .collect();
    frames.extend(tagged);
    frames
}

/// As a DHCP server, and as an IPv6 router.
fn serving(attacker: Host, victim: Host, gateway: Host) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let all = MacAddr6::broadcast();
    let wrong = Ipv4Addr::from(u32::from(victim.ip) ^ 0x80);
    for kind in [2_u8, 5, 6] {
        let mut message = vec![2, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0x80, 0, 0, 0, 0, 0];
        message.extend(wrong.octets());
        message.extend([0; 8]);
        message.extend(victim.mac.as_bytes());
        message.resize(236, 0);
        message.extend([99, 130, 83, 99, 53, 1, kind, 54, 4]);
        message.extend(gateway.ip.octets());
        message.extend([51, 4, 0, 0, 0, 60, 1, 4, 255, 255, 255, 0, 3, 4]);
        message.extend(attacker.ip.octets());
        message.extend([6, 4]);
        message.extend(attacker.ip.octets());
        message.push(255);
        for (mac, ip) in [
            (attacker.mac, attacker.ip),
            (attacker.mac, gateway.ip),
            (gateway.mac, gateway.ip),
        ] {
            for (to, at) in [
                (all, Ipv4Addr::BROADCAST),
                (victim.mac, victim.ip),
                (victim.mac, wrong),
            ] {
                frames.push(datagram(mac, ip, to, at, 67, 68, &message));
            }
        }
    }
    // A router advertisement with a prefix to take addresses from, to all nodes and to the neighbor alone.
    let mut advertisement = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    advertisement.extend([
        3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0,
    ]);
    advertisement.extend([0xfd, 0x66, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    advertisement.extend([1, 1]);
    advertisement.extend(attacker.mac.as_bytes());
    for to in [MacAddr6::new(0x33, 0x33, 0, 0, 0, 1), victim.mac] {
        frames.push(icmp6(attacker.mac, to, &advertisement));
    }
    frames
}

/// More than anybody can hear.
fn shouting(attacker: Host) -> Vec<(u16, Vec<u8>)> {
    let shout = |ip, from_port, to_port, data: &[u8]| {
        let (mac, all) = (attacker.mac, MacAddr6::broadcast());
        datagram(mac, ip, all, Ipv4Addr::BROADCAST, from_port, to_port, data)
    };
    let discover = |client: u16| {
        let [high, low] = client.to_be_bytes();
        let mut message = vec![1, 1, 6, 0, 0, 0, high, low];
        message.resize(28, 0);
        // Half of them for machines that there are not.
        let posed = match client % 2 {
            0 => attacker.mac,
            _ => MacAddr6::new(2, 0, 0, 0, high, low),
        };
        message.extend(posed.as_bytes());
        message.resize(236, 0);
        message.extend([99, 130, 83, 99, 53, 1, 1, 255]);
        (
            DISCOVERS / CLIENTS,
            shout(Ipv4Addr::UNSPECIFIED, 68, 67, &message),
        )
    };
    let storm = shout(attacker.ip, 9, 9, &[0x55; 1000]);
    (0..CLIENTS)
        .map(discover)
        .chain([(BROADCASTS, storm)])
        .collect()
}

fn datagram(
    mac: MacAddr6,
    ip: Ipv4Addr,
    to: MacAddr6,
    at: Ipv4Addr,
    from_port: u16,
    to_port: u16,
    data: &[u8],
) -> Vec<u8> {
    let way = Way {
        source_mac: mac,
        source: ip,
        destination_mac: to,
        destination: at,
    };
    ether::udp_frame(way, from_port, to_port, data).unwrap()
}

fn arp(from: MacAddr6, to: MacAddr6, kind: u8, sender: Host, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ether::ethernet_header(to, from, ARP).to_vec();
    frame.extend([0, 1, 8, 0, 6, 4, 0, kind]);
    frame.extend(sender.mac.as_bytes());
    frame.extend(sender.ip.octets());
    frame.extend(to.as_bytes());
    frame.extend(target.octets());
    frame
}

/// From the link-local address fe80::66 to all nodes.
fn icmp6(from: MacAddr6, to: MacAddr6, message: &[u8]) -> Vec<u8> {
    let mut source = [0; 16];
    source[..2].copy_from_slice(&[0xfe, 0x80]);
    source[15] = 0x66;
    let mut target = [0; 16];
    target[..2].copy_from_slice(&[0xff, 2]);
    target[15] = 1;
    let length = u16::try_from(message.len()).unwrap();
    let pseudo = [
        &source[..],
        &target,
        &u32::from(length).to_be_bytes(),
        &[0, 0, 0, 58],
        message,
    ];
    let sum = ether::checksum(&pseudo.concat()).to_be_bytes();
    let mut frame = ether::ethernet_header(to, from, 0x86dd).to_vec();
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([58, 255]);
    frame.extend(source);
    frame.extend(target);
    frame.extend(message);
    frame[56..58].copy_from_slice(&sum);
    frame
}

/// The program that sends them, which runs in any guest of this host's architecture.
fn sender() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/tools/send-frames.rs");
        let program = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("send-frames.{}", std::process::id()));
        let mut rustc = Command::new("rustc");
        rustc
            .args([
                "--edition",
                "2024",
                "-O",
                "-C",
                "target-feature=+crt-static",
            ])
            .args(["-C", "panic=abort", "-C", "strip=symbols"])
            .arg("-o")
            .arg(&program)
            .arg(source);
        run(&mut rustc, Duration::from_secs(120)).ok();
        program
    });
    built.clone()
}
