//! The benchmark: kiln beside the same QEMU command lines started raw, by turns, in one run.
//!
//! `just bench` runs it. A raw QEMU is what a shell would start: the machine's own arguments and
//! descriptors, opened beforehand by a small launcher that then becomes QEMU. Its time goes from
//! that exec to the answer to `qmp_capabilities`; kiln's is that of the whole command. Raw and kiln
//! take turns, so that whatever else the host does falls on both. Every guest is killed before the
//! next turn. A missed target is said and is no failure: a benchmark is no test.
//!
//! How many frames the fabric passes is measured beside the switch, in `netsetup`.

mod disks;
mod memory;
mod pull;
mod qmp;
mod raw;
mod table;
mod world;

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::table::{Row, Samples, Target};
use crate::world::{Cluster, World};

type Outcome<T> = Result<T, Box<dyn Error>>;

const USAGE: &str = "\
usage: bench [--guest FOLDER] [--kiln PROGRAM] [--rounds N] [--only WORD] [--json]

  --guest FOLDER   holds `kernel`, `initrd` and `cmdline`; built by tests/guest/build when absent
  --kiln PROGRAM   the kiln to measure; the one beside this program when absent
  --rounds N       pairs of each kind (default 20; fewer where one takes long)
  --only WORD      start, up, ten, plan, memory, disks or pull
";

/// What was said on the command line.
#[derive(Debug)]
struct Asked {
    guest: Option<PathBuf>,
    kiln: Option<PathBuf>,
    rounds: usize,
    only: Option<String>,
    json: bool,
}

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let outcome = match words.next() {
        Some(word) if word == raw::LAUNCHER => raw::launch(words),
        first => asked(first.into_iter().chain(words)).and_then(|asked| bench(&asked)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = format!("bench: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                text.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            // Where nobody reads stderr, the status says it.
            let _ = writeln!(std::io::stderr(), "{text}");
            ExitCode::FAILURE
        }
    }
}

fn asked(mut words: impl Iterator<Item = std::ffi::OsString>) -> Outcome<Asked> {
    let mut asked = Asked {
        guest: None,
        kiln: None,
        rounds: 20,
        only: None,
        json: false,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(USAGE);
        match word.to_str() {
            Some("--guest") => asked.guest = Some(value()?.into()),
            Some("--kiln") => asked.kiln = Some(value()?.into()),
            Some("--rounds") => asked.rounds = value()?.to_string_lossy().parse()?,
            Some("--only") => asked.only = Some(value()?.to_string_lossy().into_owned()),
            Some("--json") => asked.json = true,
            _ => return Err(USAGE.into()),
        }
    }
    if asked.rounds == 0 {
        return Err(USAGE.into());
    }
    Ok(asked)
}

fn bench(asked: &Asked) -> Outcome<()> {
    let world = World::new(asked.guest.as_deref(), asked.kiln.as_deref())?;
    let rounds = asked.rounds;
    let few = rounds.div_ceil(4);
    type Measure = fn(&World, usize) -> Outcome<Vec<Row>>;
    let measures: [(&str, Measure, usize); 7] = [
        ("start", start, rounds),
        ("up", up, rounds),
        ("ten", ten, few),
        ("plan", plan, rounds),
        ("memory", memory, 1),
        ("disks", disks::disks, rounds),
        ("pull", pull::pull, rounds.div_ceil(10)),
    ];
    let mut rows = Vec::new();
    for (name, measure, rounds) in measures {
        if asked.only.as_ref().is_none_or(|only| only == name) {
            let _ = writeln!(std::io::stderr(), "bench: {name}, {rounds} rounds");
            rows.extend(measure(&world, rounds)?);
        }
    }
    let mut out = std::io::stdout().lock();
    if asked.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?;
    } else {
        write!(out, "{}", table::text(&rows))?;
    }
    Ok(())
}

/// Runs both by turns, the first one changing, and gives the samples of each.
fn by_turns(
    rounds: usize,
    mut raw: impl FnMut() -> Outcome<Duration>,
    mut kiln: impl FnMut() -> Outcome<Duration>,
) -> Outcome<(Samples, Samples)> {
    // The first of each warms the page cache and is not counted.
    raw()?;
    kiln()?;
    let (mut raws, mut kilns) = (Samples::default(), Samples::default());
    for round in 0..rounds {
        if round % 2 == 0 {
            raws.push(raw()?);
            kilns.push(kiln()?);
        } else {
            kilns.push(kiln()?);
            raws.push(raw()?);
        }
    }
    Ok((raws, kilns))
}

/// `kiln start` of a machine that was made and stopped.
fn start(world: &World, rounds: usize) -> Outcome<Vec<Row>> {
    let cluster = world.cluster("start", 1)?;
    cluster.kiln(&["up", "--wait", "running"])?;
    cluster.kiln(&["kill"])?;
    let (raws, kilns) = by_turns(
        rounds,
        || raw::all(&cluster),
        || {
            world.settle();
            let took = cluster.kiln(&["start", "--wait", "running"])?;
            cluster.kiln(&["kill"])?;
            Ok(took)
        },
    )?;
    cluster.kiln(&["down"])?;
    Ok(vec![Row::pair(
        "start of a stopped machine",
        &raws,
        &kilns,
        Target::Over(15.0),
    )])
}

/// `kiln up` of a machine that is not there, image and host known from before.
fn up(world: &World, rounds: usize) -> Outcome<Vec<Row>> {
    pairs_of_up(world, rounds, "up", 1, |raws, kilns| {
        Row::pair("up of a new machine", raws, kilns, Target::Over(60.0))
    })
}

/// Ten machines at once.
fn ten(world: &World, rounds: usize) -> Outcome<Vec<Row>> {
    pairs_of_up(world, rounds, "ten", 10, |raws, kilns| {
        Row::pair(
            "up of ten machines at once",
            raws,
            kilns,
            Target::Ratio(1.15),
        )
    })
}

fn pairs_of_up(
    world: &World,
    rounds: usize,
    name: &str,
    count: usize,
    row: impl Fn(&Samples, &Samples) -> Row,
) -> Outcome<Vec<Row>> {
    let cluster = world.cluster(name, count)?;
    // The raw QEMUs are those of a cluster that stays: what `up` makes goes with `down`.
    let model = world.cluster(&format!("{name}-model"), count)?;
    model.kiln(&["up", "--wait", "running"])?;
    model.kiln(&["kill"])?;
    let (raws, kilns) = by_turns(
        rounds,
        || raw::all(&model),
        || {
            world.settle();
            let took = cluster.kiln(&["up", "--wait", "running"])?;
            cluster.kiln(&["kill"])?;
            cluster.kiln(&["down"])?;
            Ok(took)
        },
    )?;
    model.kiln(&["down"])?;
    Ok(vec![row(&raws, &kilns)])
}

/// `kiln plan` of a large spec.
fn plan(world: &World, rounds: usize) -> Outcome<Vec<Row>> {
    const MACHINES: usize = 500;
    let cluster = world.cluster("plan", MACHINES)?;
    cluster.kiln(&["plan"])?;
    let mut samples = Samples::default();
    for _ in 0..rounds {
        samples.push(cluster.kiln(&["plan"])?);
    }
    Ok(vec![Row::single(
        "plan of 500 machines",
        "ms",
        samples.median(),
        Target::AtMost(100.0),
    )])
}

/// What the supervisor holds for one machine and for ten that reported and talk on the network.
fn memory(world: &World, _rounds: usize) -> Outcome<Vec<Row>> {
    let held = |count: usize| -> Outcome<memory::Held> {
        let cluster: Cluster<'_> = world.cluster(&format!("memory-{count}"), count)?;
        let begun = Instant::now();
        cluster.kiln(&["up", "--wait", "ready", "--timeout", "10m"])?;
        let _ = writeln!(
            std::io::stderr(),
            "bench: {count} ready after {:.1} s",
            begun.elapsed().as_secs_f64()
        );
        let held = memory::of(cluster.supervisor()?)?;
        cluster.kiln(&["kill"])?;
        cluster.kiln(&["down"])?;
        Ok(held)
    };
    let (one, ten) = (held(1)?, held(10)?);
    let mib = |kib: u64| kib as f64 / 1024.0;
    Ok(vec![
        Row::single(
            "supervisor of ten, resident",
            "MiB",
            mib(ten.resident),
            Target::AtMost(8.0),
        ),
        Row::single("  of that its own", "MiB", mib(ten.anonymous), Target::None),
        Row::single(
            "  of that files (program, libc)",
            "MiB",
            mib(ten.file),
            Target::None,
        ),
        Row::single(
            "supervisor of one, resident",
            "MiB",
            mib(one.resident),
            Target::None,
        ),
        Row::single(
            "one machine more",
            "KiB",
            ten.anonymous.saturating_sub(one.anonymous) as f64 / 9.0,
            Target::None,
        ),
    ])
}
