//! `kiln run`: boots a throw-away cluster, runs a command in it, and leaves nothing behind.
//!
//! ```text
//! lock NAME.run ─▶ `kiln up` under that name ─▶ the command ─▶ down, disks and all ─▶ unlock
//! ```
//! The cluster has a name of its own, so that the spec's real cluster may stand beside it. `up` is a
//! process of its own, because it then may be ended at any of its steps; whatever it left goes the
//! one way down. Who holds the lock wants the cluster; when nobody does, `kiln gc` takes it down.

mod child;

use std::ffi::OsString;
use std::io::{IsTerminal, Read, Seek};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use self::child::{Ended, Manners, Signals};
use crate::cli::Global;
use crate::cli::args::RunArgs;
use crate::cluster::{Cluster, ClusterName, DataSource, Machine, Profile};
use crate::command::login::Login;
use crate::command::{Made, Session, down, spec, tools};
use crate::error::{Error, Exit};
use crate::folder;
use crate::report::output::Report;
use crate::state::layout::ClusterFiles;
use crate::state::lock::Lock;
use crate::tool;

/// Of the real name, this many bytes begin the throw-away one: it ends in `-run-` and eight digits.
const NAME_KEPT: usize = 40 - "-run-01234567".len();

pub(super) fn run(global: &Global, report: &Report, args: &RunArgs) -> Result<ExitCode, Error> {
    let global = alias(global, report, args)?;
    let session = Session::open(&global, report)?;
    let cluster = spec::read(&session, &[])?.cluster;
    // A machine that cannot be run in is refused before anything is made.
    let machine = match args.here {
        true => None,
        false => Some(machine(&cluster, args)?),
    };
    let files = session.roots.cluster(cluster.name.as_str());
    folder::make_private(&session.roots.clusters())
        .map_err(|error| Error::from_source(Exit::Failed, &error))?;
    let mine = Lock::try_take(&files.run_lock(), "kiln run")?;
    let signals = Signals::listen()
        .map_err(|error| Error::because(Exit::Failed, "cannot listen for signals", &error))?;
    let ended = boot(&session, &signals, args).and_then(|booted| match booted {
        Ended::Code(0) => work(&session, &signals, args, machine, &files),
        Ended::Code(_) | Ended::Signal(_) => Ok(booted),
    });
    let gone = down::throw_away(&session, &files, grace(&cluster));
    if gone.is_ok() {
        mine.remove();
    }
    match (ended, gone) {
        (Ok(ended), Ok(())) => Ok(ended.into()),
        (Err(error), Ok(())) => Err(error),
        (Ok(_), Err(error)) => Err(error.hint("`kiln gc` removes what is left")),
        (Err(error), Err(second)) => {
            Err(error.cause(format!("and it could not be cleaned up: {second}")))
        }
    }
}

/// What was said, for a cluster of the spec's under another name.
fn alias(global: &Global, report: &Report, args: &RunArgs) -> Result<Global, Error> {
    let usage = |text: &str| Err(Error::new(Exit::Usage, text));
    if global.cluster.is_some() {
        return usage("`run` makes a cluster of its own, so `-c` has no meaning to it");
    }
    let file = match (&args.spec, &global.file) {
        (Some(_), Some(_)) => return usage("the spec is named twice: by `-f` and as SPEC"),
        (Some(path), None) | (None, Some(path)) => path.clone(),
        (None, None) => spec::find(&Session::open(global, report)?)?,
    };
    let name = throw_away_name(&crate::spec::cluster_name(&file)?)?;
    Ok(Global {
        file: Some(file),
        cluster: Some(name.clone()),
        alias: Some(name),
        ..global.clone()
    })
}

/// `demo-run-1f0c93aa`: no other run's, also not of one that was killed.
fn throw_away_name(real: &ClusterName) -> Result<ClusterName, Error> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let hash = Sha256::digest(format!("{} {}", std::process::id(), now.as_nanos()));
    let digits: String = hash
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let kept: String = real.as_str().chars().take(NAME_KEPT).collect();
    format!("{}-run-{digits}", kept.trim_end_matches('-'))
        .parse()
        .map_err(|error| Error::from_source(Exit::Failed, &error))
}

/// The machine to run in.
fn machine<'a>(cluster: &'a Cluster, args: &RunArgs) -> Result<&'a Machine, Error> {
    let machine = match &args.on {
        Some(name) => spec::machine(cluster, name)?,
        None => cluster.machines.first().ok_or_else(|| {
            Error::new(Exit::Spec, "the spec has no machine to run in")
                .hint("give a group a `count`, or run the command on this host by `--here`")
        })?,
    };
    if machine.profile == Profile::None {
        return Err(Error::new(
            Exit::Usage,
            format!(
                "machine `{}` has `profile: none`: kiln puts no key into it",
                machine.name
            ),
        )
        .hint("name another machine by `--on`, or run the command on this host by `--here`"));
    }
    Ok(machine)
}

/// Guests of a throw-away cluster need no graceful end, unless they write to a file that stays.
fn grace(cluster: &Cluster) -> Option<Duration> {
    let stays = |source: &DataSource| match source {
        DataSource::File { readonly, .. } => !readonly,
        DataSource::Made { .. } => false,
    };
    let mut disks = cluster.machines.iter().flat_map(|machine| &machine.disks);
    match disks.any(|disk| stays(&disk.source)) {
        true => None,
        false => Some(Duration::ZERO),
    }
}

/// Runs `kiln up`, whose result nobody reads; its errors it tells itself.
fn boot(session: &Session<'_>, signals: &Signals, args: &RunArgs) -> Result<Ended, Error> {
    let failed =
        |error: &std::io::Error| Error::because(Exit::Failed, "cannot run `kiln up`", error);
    let kiln = std::env::current_exe().map_err(|error| failed(&error))?;
    let mut stdout = tool::input(&[]).map_err(|error| failed(&error))?;
    let mut command = Command::new(kiln);
    command
        .args(up_words(session.global, args))
        .stdin(Stdio::null());
    command.stdout(stdout.try_clone().map_err(|error| failed(&error))?);
    tool::die_with_caller(&mut command);
    let ended = child::run(command, signals, Manners::EndAtOnce).map_err(|error| failed(&error))?;
    if session.report.json() && ended != Ended::Code(0) {
        let mut text = Vec::new();
        stdout
            .rewind()
            .and_then(|()| stdout.read_to_end(&mut text))
            .map_err(|error| failed(&error))?;
        session.report.write(&text)?;
    }
    Ok(ended)
}

fn up_words(global: &Global, args: &RunArgs) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    if let Some(file) = &global.file {
        words.extend(["--file".into(), file.into()]);
    }
    if let Some(name) = &global.alias {
        words.extend(["--alias".into(), name.to_string().into()]);
    }
    words.extend((0..global.verbose).map(|_| "--verbose".into()));
    for (said, flag) in [
        (global.json, "--json"),
        (global.quiet, "--quiet"),
        (global.no_color, "--no-color"),
    ] {
        words.extend(said.then(|| flag.into()));
    }
    words.push("up".into());
    if let Some(timeout) = args.timeout {
        let timeout = format!("{}ms", timeout.as_millis());
        words.extend(["--timeout".into(), timeout.into()]);
    }
    words
}

/// Runs the command; the machines are ready.
fn work(
    session: &Session<'_>,
    signals: &Signals,
    args: &RunArgs,
    machine: Option<&Machine>,
    files: &ClusterFiles,
) -> Result<Ended, Error> {
    let made = session.made()?;
    let mut command = match machine {
        Some(machine) => in_guest(session, &made, machine, args)?,
        None => here(session, &made, args, files)?,
    };
    let program = Path::new(command.get_program()).display().to_string();
    if machine.is_some() {
        tool::die_with_caller(&mut command);
    }
    child::run(command, signals, Manners::Wait)
        .map_err(|error| Error::because(Exit::Failed, format!("cannot run `{program}`"), &error))
}

fn in_guest(
    session: &Session<'_>,
    made: &Made,
    machine: &Machine,
    args: &RunArgs,
) -> Result<Command, Error> {
    let name = machine.name.as_str();
    let login = Login::to(session, made, name)?;
    let mut command = Command::new(super::ssh::program(session)?);
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        command.arg("-t");
    }
    command.args(login.args_to_run(&args.login, name, &args.command));
    Ok(command)
}

/// The command on this host, with what it needs to find the cluster.
fn here(
    session: &Session<'_>,
    made: &Made,
    args: &RunArgs,
    files: &ClusterFiles,
) -> Result<Command, Error> {
    let Some((program, words)) = args.command.split_first() else {
        return Err(Error::new(Exit::Usage, "there is no command to run"));
    };
    let names = &made.record.machines;
    let config = files.folder().join("ssh_config");
    let mut batch = folder::Batch::default();
    batch
        .add(&config, &tools::ssh_config_text(session, made, names)?)
        .and_then(|()| batch.keep())
        .map_err(|error| Error::from_source(Exit::Failed, &error))?;
    let mut command = Command::new(program);
    command
        .args(words)
        .env("KILN_CLUSTER", &made.record.name)
        .env("KILN_MACHINES", names.join(" "))
        .env("KILN_SSH_CONFIG", config);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throw_away_name_is_a_name_of_its_own() {
        for real in [
            "demo",
            "a",
            &"b".repeat(40),
            &format!("{}-{}", "c".repeat(26), "d"),
        ] {
            let real: ClusterName = real.parse().unwrap();
            let name = throw_away_name(&real).unwrap();
            assert!(
                name.as_str()
                    .starts_with(real.as_str().get(..4).unwrap_or(real.as_str()))
            );
            assert_ne!(name, throw_away_name(&real).unwrap());
        }
    }
}
