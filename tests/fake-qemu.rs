//! A QEMU without a machine in it: what kiln sees of QEMU behaves, nothing else is there.
//!
//! It takes any arguments, and understands those that kiln renders: `--version` and `-machine help`,
//! as whom the file `VERSION` beside it says it is, or 10.0.2; `-chardev
//! socket,id=I,fd=N,…` with `-mon`, `-serial` and `-device virtserialport`; `-add-fd`;
//! `-netdev stream,…,addr.type=fd,addr.str=N`; `-name guest=CLUSTER/MACHINE`; `-S`; `-action`.
//! It greets on QMP as 10.0.2 does, obeys `cont`, `stop`, `system_powerdown`, `system_reset`,
//! `quit` and SIGTERM, answers the queries that kiln asks, and refuses other commands. Its guest
//! "boots" at the first `cont`: it prints on the console, then reports.
//!
//! kiln clears the environment, so what is to go wrong stands in `FAKE.json` in the folder of the
//! program's name (`argv[0]`; a link to this program will do). Its keys are machines, `*` is all
//! others, and `uplink` (which `*` does not mean) the fabric's way out; its values are [`Behavior`]s:
//!
//! ```json
//! {"*": {}, "node-2": {"exit": {"code": 1, "stderr": "no such device"}}}
//! ```
//!
//! Without the file everybody behaves. Times are in milliseconds after the first `cont`.

#![expect(unsafe_code, reason = "descriptors are inherited by number")]

#[path = "fake-qemu/guest.rs"]
mod guest;
#[path = "fake-qemu/monitor.rs"]
mod monitor;
#[path = "fake-qemu/options.rs"]
mod options;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::guest::Guest;
use crate::options::Options;

/// What goes wrong. By default nothing does.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Behavior {
    /// End before QMP is up.
    exit: Option<Exit>,
    /// Accept on QMP and never greet.
    hang: bool,
    /// Greet with what is no QMP.
    nonsense: bool,
    /// Greet so much later.
    greet_after: u64,
    /// The guest does not hear the power button.
    ignore_powerdown: bool,
    /// Answer `quit`, and go on.
    ignore_quit: bool,
    /// So many events of no use, after the first `cont`.
    flood: u32,
    /// What the guest prints, and when.
    console: Vec<(u64, String)>,
    /// When the guest reports; never if null.
    report: Option<u64>,
    /// It reports as soon as this file is there, and not at a time.
    report_at_file: Option<PathBuf>,
    /// It reports to whoever listens first, and to nobody later, as a guest does.
    report_once: bool,
    /// The addresses that it reports.
    addresses: Vec<String>,
    /// The guest's kernel panics.
    panic: Option<u64>,
    /// The guest powers itself off.
    poweroff: Option<u64>,
    /// The guest restarts itself, once at each of these times.
    resets: Vec<u64>,
    /// The host's disk is full; `cont` helps.
    disk_full: Option<u64>,
    /// The process aborts, as at a fault of its own.
    abort: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Exit {
    code: u8,
    stderr: String,
}

impl Behavior {
    fn good() -> Behavior {
        Behavior {
            console: vec![
                (0, "SeaBIOS (version fake)\n".into()),
                (5, "[    0.000000] Linux version 6.1.0-fake\n".into()),
                (10, "guest: ignition files\n".into()),
                (15, "guest: second stage\n".into()),
            ],
            report: Some(20),
            ..Behavior::default()
        }
    }

    /// Of this machine, by the file in this folder.
    fn of(machine: &str, folder: &Path) -> Result<Behavior, String> {
        let path = folder.join("FAKE.json");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Behavior::good());
            }
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        let mut all: BTreeMap<String, serde_json::Map<String, serde_json::Value>> =
            serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        let others = if machine == "uplink" {
            None
        } else {
            all.remove("*")
        };
        let own = all.remove(machine).or(others).unwrap_or_default();
        let says_report = own.contains_key("report");
        let says_console = own.contains_key("console");
        let mut behavior: Behavior = serde_json::from_value(own.into())
            .map_err(|error| format!("{}: {machine}: {error}", path.display()))?;
        if !says_report && behavior.report_at_file.is_none() {
            behavior.report = Behavior::good().report;
        }
        if !says_console {
            behavior.console = Behavior::good().console;
        }
        Ok(behavior)
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os()
        .map(|arg| String::from_utf8_lossy(arg.as_bytes()).into_owned())
        .collect();
    let program = args.first().cloned().unwrap_or_default();
    match run(&program, &args) {
        Ok(code) => code,
        Err(why) => {
            complain(&format!("{program}: {why}"));
            ExitCode::FAILURE
        }
    }
}

fn complain(text: &str) {
    // Whoever closed our stderr does not want to know.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What it says of itself, by the version in the file `VERSION`: its boards are that version's and
/// those of 7.2.
fn about(version_only: bool, folder: &Path) -> String {
    let version = std::fs::read_to_string(folder.join("VERSION"));
    let version = version.as_deref().unwrap_or("10.0.2").trim();
    if version_only {
        return format!("QEMU emulator version {version} (kiln's fake)\n");
    }
    let minor = version.rsplit_once('.').map_or(version, |(minor, _)| minor);
    let mut text = "Supported machines are:\n".to_owned();
    for (alias, prefix) in [("q35", "pc-q35-"), ("virt", "virt-"), ("pc", "pc-i440fx-")] {
        text.push_str(&format!("{prefix}7.2 A board\n"));
        text.push_str(&format!("{alias} A board (alias of {prefix}{minor})\n"));
        text.push_str(&format!("{prefix}{minor} A board (default)\n"));
    }
    text
}

#[tokio::main(flavor = "current_thread")]
async fn run(program: &str, args: &[String]) -> Result<ExitCode, String> {
    let folder = Path::new(program).parent().unwrap_or(Path::new("."));
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    if let ["--version"] | ["-machine", "help"] = words[..] {
        let answer = about(words[0] == "--version", folder);
        let written = std::io::stdout().write_all(answer.as_bytes());
        return written
            .map(|()| ExitCode::SUCCESS)
            .map_err(|error| error.to_string());
    }
    // A test guest of kiln's that wants to leave by this device has left.
    if args.iter().any(|arg| arg.starts_with("isa-debug-exit")) {
        return Ok(ExitCode::from(0x31 << 1 | 1));
    }
    let options = Options::parse(&args[1..])?;
    let behavior = Behavior::of(&options.machine, folder)?;
    if let Some(Exit { code, stderr }) = &behavior.exit {
        complain(&format!("{program}: {stderr}"));
        return Ok(ExitCode::from(*code));
    }

    let log = options.console_log.map(open).transpose()?;
    let guest = Guest::new(&options, behavior, log);
    for &fd in &options.monitors {
        tokio::spawn(monitor::serve(listener(fd)?, guest.clone()));
    }
    for (name, fd) in &options.ports {
        tokio::spawn(guest::port(name.clone(), listener(*fd)?, guest.clone()));
    }
    if !options.paused {
        guest.resume();
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    tokio::select! {
        _ = terminate.recv() => {
            complain(&format!("{program}: terminating on signal 15"));
            guest.quit("host-signal").await;
        }
        () = guest.ended() => {}
    }
    // What was said last is still on its way.
    tokio::time::sleep(Duration::from_millis(5)).await;
    Ok(ExitCode::SUCCESS)
}

/// A listening socket that we were started with.
fn listener(fd: i32) -> Result<UnixListener, String> {
    let bad = |error: std::io::Error| format!("fd={fd}: {error}");
    // SAFETY: the command line hands this number to us, once; nobody else here has it.
    let listener = unsafe { std::os::unix::net::UnixListener::from_raw_fd(fd) };
    listener.set_nonblocking(true).map_err(bad)?;
    UnixListener::from_std(listener).map_err(bad)
}

fn open(fd: i32) -> Result<Arc<File>, String> {
    // SAFETY: as above.
    let file = unsafe { File::from_raw_fd(fd) };
    file.metadata()
        .map_err(|error| format!("fd={fd}: {error}"))?;
    Ok(Arc::new(file))
}
