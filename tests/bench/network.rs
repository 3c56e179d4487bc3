//! Synthetic load, since under emulation the guest is the limit: the switch alone, the fabric's sockets, and taps on a
//! cluster's bridge beside taps on a bridge as anybody makes one.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use kiln_netsetup::address::{Reservation, Subnet, gateway_mac};
use kiln_netsetup::bridge::{Bridge, BridgeConfig};
use kiln_netsetup::ether::{self, Path};
use kiln_netsetup::fabric::{Fabric, FabricConfig};
use kiln_netsetup::namespace::{Inside, Maker, Namespace};
use kiln_netsetup::settings::Settings;
use kiln_netsetup::switch::{Switch, SwitchConfig, Verdict};
use kiln_netsetup::tap;
use macaddr::MacAddr6;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{read, write};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

use crate::Outcome;
use crate::table::{Row, Samples, Target};
use crate::world::World;

/// Bytes of data in a frame: a small one's, and those of one of Ethernet's usual length.
const SMALL: usize = 18;
const USUAL: usize = 1472;
/// virtio's header, before each frame of a tap.
const VNET: usize = 10;
/// Frames that go into a tap before they are taken out of the other: fewer than its queue holds.
const BATCH: usize = 200;

fn machine(number: u8) -> Reservation {
    Reservation {
        name: format!("m{number}"),
        mac: MacAddr6::new(0xb2, 0x6b, 0, 0, 0, number),
        ip: Ipv4Addr::new(10, 80, 1, number),
    }
}

fn subnet() -> Outcome<Subnet> {
    Ok(Subnet::new("10.80.1.0/24".parse()?)?)
}

/// From the first machine to the second.
fn frame(data: usize) -> Outcome<Vec<u8>> {
    let (from, to) = (machine(100), machine(101));
    let path = Path {
        source_mac: from.mac,
        source: from.ip,
        destination_mac: to.mac,
        destination: to.ip,
    };
    Ok(ether::udp_frame(path, 9, 9, &vec![0; data]).ok_or("no frame")?)
}

fn runtime() -> Outcome<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

/// The switch's decisions, and frames through the fabric from socket to socket.
pub(crate) fn switch(_: &World, rounds: usize) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    for (size, data) in [("small", SMALL), ("usual", USUAL)] {
        let (mut alone, mut whole) = (Samples::default(), Samples::default());
        for _ in 0..rounds {
            alone.push_value(decisions(data)?);
            whole.push_value(through_the_fabric(data)?);
        }
        let row = |what: &str, samples: &Samples| {
            let what = format!("{what}, {size} frames");
            Row::single(&what, "k/s", samples.median() / 1000.0, Target::None)
        };
        rows.push(row("switch alone, one core", &alone));
        rows.push(row("fabric, socket to socket", &whole));
    }
    Ok(rows)
}

fn decisions(data: usize) -> Outcome<f64> {
    const FRAMES: u32 = 200_000;
    let begun = Instant::now();
    let mut switch = Switch::new(SwitchConfig {
        subnet: subnet()?,
        gateway_mac: gateway_mac("bench"),
        settings: Settings::new("bench.internal"),
    });
    switch.set_machines(begun, &[machine(100), machine(101)]);
    let from = switch.port("m100").ok_or("no port")?;
    let mut frame = frame(data)?;
    for _ in 0..FRAMES {
        if !matches!(switch.from_machine(begun, from, &mut frame), Verdict::To(_)) {
            return Err("the switch refused the frame".into());
        }
    }
    Ok(f64::from(FRAMES) / begun.elapsed().as_secs_f64())
}

/// The frames that come out in a second. Who writes waits for who reads, so that none is lost on the way.
fn through_the_fabric(data: usize) -> Outcome<f64> {
    const FRAMES: usize = 50_000;
    /// Fewer than a port's queue holds.
    const WINDOW: usize = 100;
    let frame = frame(data)?;
    let framed = [&u32::try_from(frame.len())?.to_be_bytes(), &frame[..]].concat();
    let (mut sender, first) = std::os::unix::net::UnixStream::pair()?;
    let (mut receiver, second) = std::os::unix::net::UnixStream::pair()?;
    let ends = thread::spawn(move || -> std::io::Result<Duration> {
        let window = framed.repeat(WINDOW);
        let mut back = vec![0; window.len()];
        let begun = Instant::now();
        for _ in 0..FRAMES / WINDOW {
            sender.write_all(&window)?;
            receiver.read_exact(&mut back)?;
        }
        Ok(begun.elapsed())
    });
    let config = FabricConfig {
        subnet: subnet()?,
        gateway_mac: gateway_mac("bench"),
        settings: Settings::new("bench.internal"),
        machines: vec![machine(100), machine(101)],
    };
    runtime()?.block_on(async {
        let (fabric, mut events) = Fabric::start(config);
        for (name, stream) in [("m100", first), ("m101", second)] {
            stream.set_nonblocking(true)?;
            fabric.attach(name, UnixStream::from_std(stream)?);
        }
        // The first port that is closed says that all has come.
        while let Some(event) = events.recv().await {
            if format!("{event:?}").starts_with("PortClosed") {
                break;
            }
        }
        fabric.stop().await;
        Outcome::Ok(())
    })?;
    let took = ends.join().map_err(|_| "the ends panicked")??;
    Ok(FRAMES as f64 / took.as_secs_f64())
}

/// Taps on a cluster's bridge and on a hand-made one, by turns; and how long a network takes to make.
pub(crate) fn taps(_: &World, rounds: usize) -> Outcome<Vec<Row>> {
    in_a_namespace_of_its_own()?;
    let runtime = runtime()?;
    let _inside = runtime.enter();
    let mut rows = Vec::new();
    let (bridge, ours) = cluster(2)?;
    let (space, theirs) = by_hand()?;
    for (size, data) in [("small", SMALL), ("usual", USUAL)] {
        let frame = frame(data)?;
        let (mut kilns, mut raws) = (Samples::default(), Samples::default());
        let turn = |taps: &[OwnedFd], samples: &mut Samples| -> Outcome<()> {
            samples.push_value(through_taps(taps, &frame)? / 1000.0);
            Ok(())
        };
        for round in 0..=rounds * 5 {
            // Which is first changes; the first round of all warms up.
            let (mut warm_kiln, mut warm_raw) = (Samples::default(), Samples::default());
            let (kilns, raws) = match round {
                0 => (&mut warm_kiln, &mut warm_raw),
                _ => (&mut kilns, &mut raws),
            };
            if round % 2 == 0 {
                turn(&ours, kilns)?;
                turn(&theirs, raws)?;
            } else {
                turn(&theirs, raws)?;
                turn(&ours, kilns)?;
            }
        }
        let what = format!("tap to tap, {size} frames; raw: a bridge");
        rows.push(Row::beside(&what, "k/s", &raws, &kilns, Target::Share(0.9)));
    }
    drop((bridge, ours, space, theirs));
    for count in [1, 10, 100] {
        let mut samples = Samples::default();
        for _ in 0..rounds {
            let begun = Instant::now();
            let made = cluster(count)?;
            samples.push(begun.elapsed());
            drop(made);
        }
        let what = format!("network of {count} ports");
        rows.push(Row::single(&what, "ms", samples.median(), Target::None));
    }
    Ok(rows)
}

/// Tests and benchmarks make no links where others have theirs.
pub(crate) fn in_a_namespace_of_its_own() -> Outcome<()> {
    let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net"));
    let (own, first) = (of("self")?, of("1")?);
    if own == first {
        return Err(
            "this needs root and a network namespace of its own: `just bench-network`".into(),
        );
    }
    Ok(())
}

fn cluster(count: u8) -> Outcome<(Bridge, Vec<OwnedFd>)> {
    let machines: Vec<Reservation> = (100..100 + count).map(machine).collect();
    let config = BridgeConfig {
        subnet: subnet()?,
        gateway_mac: gateway_mac("bench"),
        settings: Settings::new("bench.internal"),
        machines: machines.clone(),
        masquerade: false,
    };
    let (events, _) = tokio::sync::mpsc::unbounded_channel();
    let bridge = Bridge::start(config, Namespace::create(Maker::Root)?, events)?;
    let taps = machines.iter().map(|machine| bridge.tap(&machine.name));
    let taps = taps.collect::<Result<Vec<OwnedFd>, _>>()?;
    Ok((bridge, taps))
}

/// As `ip` makes it, with nothing set.
fn by_hand() -> Outcome<(Namespace, Vec<OwnedFd>)> {
    let namespace = Namespace::create(Maker::Root)?;
    let tuns = namespace.open(&[Inside::Tun, Inside::Tun])?;
    for (tun, name) in tuns.iter().zip(["t0", "t1"]) {
        tap::make(tun, &name.parse()?)?;
    }
    let space = namespace.net.try_clone()?;
    let made = thread::spawn(move || -> std::io::Result<bool> {
        setns(space, CloneFlags::CLONE_NEWNET)?;
        let script = "ip link add br0 type bridge && ip link set t0 master br0 && ip link set t1 master br0 &&
            ip link set t0 up && ip link set t1 up && ip link set br0 up";
        Ok(Command::new("sh").args(["-c", script]).status()?.success())
    });
    if !made.join().map_err(|_| "the maker panicked")?? {
        return Err("no bridge could be made by hand".into());
    }
    Ok((namespace, tuns))
}

/// The frames in a second that go into the first tap and come out of the second, on one core: the kernel passes a frame
/// on before `write` returns.
fn through_taps(taps: &[OwnedFd], frame: &[u8]) -> Outcome<f64> {
    const BATCHES: usize = 20;
    let [first, second, ..] = taps else {
        return Err("two taps are needed".into());
    };
    let bytes = [&[0; VNET][..], frame].concat();
    let mut back = vec![0; 4096];
    let (mut came, mut took) = (0_usize, Duration::ZERO);
    for _ in 0..BATCHES {
        let begun = Instant::now();
        for _ in 0..BATCH {
            write(first, &bytes)?;
        }
        let mut batch = 0;
        while let Ok(length) = read(second, &mut back) {
            batch += usize::from(length == bytes.len());
        }
        took += begun.elapsed();
        came += batch;
    }
    if came < BATCHES * BATCH * 9 / 10 {
        return Err(format!("of {} frames {came} came", BATCHES * BATCH).into());
    }
    Ok(came as f64 / took.as_secs_f64())
}
