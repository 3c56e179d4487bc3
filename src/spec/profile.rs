//! What is put into the machines of a group: a word, or a folder of templates.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::document::Node;
use super::error::{Fault, Place};
use super::fields::{self, Fields};
use super::files::{self, Folders};
use super::group::PlacedMachine;
use super::suggest;
use crate::cluster::{Discovery, IgnitionSource, NetworkMode, OwnProfile, Profile, Size};
use crate::ignition::PROFILE_CONFIG;

/// kiln's own profiles.
const WORDS: [&str; 3] = ["basic", "etcd", "none"];
/// All files of a profile together.
const LIMIT: Size = Size::from_mib(8);
/// A profile has a handful of files.
const FILES_LIMIT: usize = 100;
/// Who gives tokens to everybody.
const PUBLIC: &str = "https://discovery.etcd.io/new";

/// The keys `profile` and `discovery`.
pub(super) fn profile(
    fields: &mut Fields,
    folders: Folders<'_>,
    cloud_init: bool,
) -> Result<Profile, Fault> {
    let profile = fields
        .take_as("profile", |node, key| {
            let profile = of(&node, key, folders)?;
            let has_templates = matches!(profile, Profile::Etcd { .. } | Profile::Own(_));
            if cloud_init && has_templates {
                let why = "this profile is for Ignition, and the group has `cloud_init`";
                return Err(Fault::bad_value(node.place, key, why));
            }
            Ok(profile)
        })?
        .unwrap_or(Profile::Basic);
    let Some(node) = fields.take("discovery") else {
        return Ok(profile);
    };
    if !matches!(profile, Profile::Etcd { .. }) {
        let why = "only machines with `profile: etcd` have anything to discover";
        return Err(Fault::bad_value(node.place, "discovery", why));
    }
    Ok(Profile::Etcd {
        discovery: Some(discovery(node, "discovery")?),
    })
}

fn of(node: &Node, key: &str, folders: Folders<'_>) -> Result<Profile, Fault> {
    let place = node.place;
    let word = fields::text(node.clone(), key)?;
    match word.as_str() {
        "basic" => return Ok(Profile::Basic),
        "etcd" => return Ok(Profile::Etcd { discovery: None }),
        "none" => return Ok(Profile::None),
        "etcd_fleet" | "etcd-fleet" => {
            return Err(Fault::bad_value(
                place,
                key,
                "fleet was given up by its makers in 2018 and is in no image any more",
            )
            .hint(
                "write `profile: etcd`, and put the units that fleet ran into the group's `ignition:`",
            ));
        }
        _ => {}
    }
    if word.contains('/') || word.starts_with('~') {
        let folder = folders.resolve(place, key, &word)?;
        return own(place, key, &folder);
    }
    let beside = Some(folders.spec.join("profiles"));
    let candidates: Vec<PathBuf> = beside
        .into_iter()
        .chain(folders.config.map(|config| config.join("profiles")))
        .map(|profiles| profiles.join(&word))
        .collect();
    if word != "."
        && word != ".."
        && let Some(folder) = candidates.iter().find(|it| it.is_dir())
    {
        return own(place, key, folder);
    }
    let shown: String = word.chars().take(80).collect();
    let looked: Vec<String> = candidates
        .iter()
        .map(|folder| format!("`{}`", folder.display()))
        .collect();
    let fault = Fault::bad_value(
        place,
        key,
        format!(
            "there is no profile `{shown}`: kiln has {}",
            suggest::list(&WORDS)
        ),
    );
    Err(match suggest::nearest(&word, &WORDS) {
        Some(word) => fault.hint(format!("did you mean `{word}`?")),
        None => fault.hint(format!(
            "a profile of your own is a folder with a `{PROFILE_CONFIG}`: {}, or a path with a `/`",
            looked.join(" or ")
        )),
    })
}

/// Reads a folder of templates; folders in it are left alone.
fn own(place: Place, key: &str, folder: &Path) -> Result<Profile, Fault> {
    let fault = |reason: String| Fault::bad_value(place, key, reason);
    let failed = |error| {
        fault(format!(
            "cannot read the folder `{}`: {error}",
            folder.display()
        ))
    };
    let mut paths = std::fs::read_dir(folder)
        .and_then(|entries| {
            let entries = entries.take(FILES_LIMIT + 1);
            entries
                .map(|entry| Ok(entry?.path()))
                .collect::<Result<Vec<PathBuf>, _>>()
        })
        .map_err(failed)?;
    if paths.len() > FILES_LIMIT {
        return Err(fault(format!(
            "`{}` has more than {FILES_LIMIT} files",
            folder.display()
        )));
    }
    paths.sort();
    let mut others = BTreeMap::new();
    let mut config = None;
    let mut left = LIMIT.bytes();
    for path in paths {
        // Names are written in the templates, which are UTF-8; hidden files are editors'.
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.map(str::to_owned) else {
            continue;
        };
        if path.is_dir() || name.starts_with('.') || name.ends_with('~') {
            continue;
        }
        let text =
            files::text(&path, Size::from_bytes(left)).map_err(files::fault(place, "profile"))?;
        left -= text.len() as u64;
        if name == PROFILE_CONFIG {
            config = Some(IgnitionSource {
                path,
                text,
                template: true,
            });
        } else {
            others.insert(name, text);
        }
    }
    let config =
        config.ok_or_else(|| fault(format!("`{}` has no `{PROFILE_CONFIG}`", folder.display())))?;
    Ok(Profile::Own(OwnProfile { config, others }))
}

/// Refuses members of one etcd that look for each other in two ways.
pub(super) fn refuse_different(machines: &[PlacedMachine]) -> Result<(), Fault> {
    let mut first = None;
    for placed in machines {
        let Profile::Etcd { discovery } = &placed.machine.profile else {
            continue;
        };
        if first.get_or_insert(discovery) != &discovery {
            let why = "all members of the cluster's etcd have to find each other in the same way";
            return Err(Fault::bad_value(placed.place, "discovery", why).hint(
                "write the same `discovery` in each group with `profile: etcd`, or in none",
            ));
        }
    }
    Ok(())
}

/// Refuses members of an etcd that do not know each other's addresses, or cannot reach them.
pub(super) fn refuse_apart(machines: &[PlacedMachine], mode: &NetworkMode) -> Result<(), Fault> {
    let why = match mode {
        NetworkMode::Auto | NetworkMode::Namespace | NetworkMode::Fabric => return Ok(()),
        NetworkMode::User => "with `mode: user` no member of etcd reaches another",
        NetworkMode::Attach { .. } => {
            "members of etcd need addresses that are known before they boot, and on a bridge of the host's kiln knows none"
        }
    };
    let is_member = |it: &&PlacedMachine| matches!(it.machine.profile, Profile::Etcd { .. });
    match machines.iter().find(is_member) {
        None => Ok(()),
        Some(placed) => {
            Err(Fault::bad_value(placed.place, "profile", why).hint("leave `network.mode` out"))
        }
    }
}

/// Whether a text is the address of a discovery token, without a character that a shell or systemd
/// could read otherwise.
pub fn is_discovery_token(text: &str) -> bool {
    matches!(address(text), Some(path) if path != "new")
}

/// The path of an address that has a host and a path.
fn address(text: &str) -> Option<&str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/[]".contains(&byte);
    let rest = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))?;
    let (host, path) = rest.split_once('/')?;
    let is_whole = !host.is_empty() && !path.is_empty() && text.len() <= 1000;
    (is_whole && rest.bytes().all(is_plain)).then_some(path)
}

fn discovery(node: Node, key: &str) -> Result<Discovery, Fault> {
    let place = node.place;
    let text = fields::text(node, key)?;
    if text == "new" {
        return Ok(Discovery::New(PUBLIC.to_owned()));
    }
    match address(&text) {
        Some("new") => Ok(Discovery::New(text)),
        Some(_) => Ok(Discovery::At(text)),
        None => Err(Fault::bad_value(
            place,
            key,
            "this is neither `new` nor the address of a discovery token",
        )
        .hint(
            "write `new`, `http://HOST:PORT/new` to ask a server of your own, or `http://HOST:PORT/TOKEN`",
        )),
    }
}
