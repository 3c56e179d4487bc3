//! `kiln render`: the config that a machine's Ignition or cloud-init reads, secrets included.

use crate::cli::args::{RenderArgs, VarArgs};
use crate::command::{Session, spec};
use crate::error::{Error, Exit};
use crate::keys::KeyPair;
use crate::nocloud::Seed;

pub(super) fn run(session: &mut Session<'_>, args: &RenderArgs) -> Result<(), Error> {
    let name = &args.machine;
    let config = if session.global.cluster.is_some() {
        made(session, name.as_str())?
    } else {
        fresh(session, args)?
    };
    let (text, value) = match Seed::read(&config) {
        Some(seed) => (seed.shown(), seed.value()),
        None => {
            let no_json = |error: &(dyn std::error::Error + 'static)| {
                Error::because(Exit::Failed, "the config is no JSON", error)
            };
            let value = serde_json::from_slice(&config).map_err(|error| no_json(&error))?;
            let text = String::from_utf8(config).map_err(|error| no_json(&error))?;
            (text, value)
        }
    };
    session.report.result(&value, |_| {
        let mut text = text.clone();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text
    })
}

/// What the machine was given.
fn made(session: &Session<'_>, name: &str) -> Result<Vec<u8>, Error> {
    let made = session.made()?;
    made.known(name)?;
    let path = made.files.machine(name).ignition();
    std::fs::read(&path).map_err(|error| {
        Error::because(
            Exit::Failed,
            format!("cannot read `{}`", path.display()),
            &error,
        )
    })
}

/// What the spec gives now: with the cluster's own keys where it exists, else with new ones.
fn fresh(session: &mut Session<'_>, args: &RenderArgs) -> Result<Vec<u8>, Error> {
    let (cluster, plan, _) = spec::planned(session, &[], &VarArgs::default())?;
    let machine = spec::machine(&cluster, &args.machine)?;
    let files = session.roots.cluster(cluster.name.as_str());
    let key = |path: &std::path::Path, comment: &str| -> Result<KeyPair, Error> {
        match std::fs::read_to_string(path) {
            Ok(text) => KeyPair::from_private(&text),
            Err(_) => KeyPair::generate(comment),
        }
        .map_err(|error| Error::from_source(Exit::Failed, &error))
    };
    let login = key(&files.private_key(), "kiln")?;
    let host_key = key(
        &files.machine(args.machine.as_str()).host_key(),
        args.machine.as_str(),
    )?;
    let mut authorized = vec![login.public().to_owned()];
    authorized.extend(cluster.authorized_keys.iter().cloned());
    let peers = crate::stage::peers(&plan, &cluster);
    let rendered = spec::rendered(machine, &cluster, &plan, &peers, &authorized, &host_key)?;
    for warning in &rendered.warnings {
        session.report.note(&warning.to_string());
    }
    Ok(match rendered.seed {
        Some(disk) => disk,
        None => rendered.config.into_bytes(),
    })
}
