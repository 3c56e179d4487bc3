//! A profile's part of a config: templates that become a child of kiln's own, before the user's.
//!
//! A profile is data: `config.ign.j2`, and files for it to include. The profile `etcd` is one that
//! lies in this program; `basic` has none.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use super::error::{IgnitionError, IgnitionWarning};
use super::render::Facts;
use super::{lint, template};
use crate::cluster::{IgnitionSource, Machine, OwnProfile, Profile};

/// A profile's first file; it gives an Ignition config.
pub const CONFIG: &str = "config.ign.j2";

static ETCD: LazyLock<OwnProfile> = LazyLock::new(|| OwnProfile {
    config: IgnitionSource {
        path: PathBuf::from("kiln's profile etcd/config.ign.j2"),
        text: include_str!("profiles/etcd/config.ign.j2").to_owned(),
        template: true,
    },
    others: BTreeMap::from(
        [
            ("env", include_str!("profiles/etcd/env")),
            ("run", include_str!("profiles/etcd/run")),
            (
                "kiln-etcd.service",
                include_str!("profiles/etcd/kiln-etcd.service"),
            ),
            ("flatcar.conf", include_str!("profiles/etcd/flatcar.conf")),
        ]
        .map(|(name, text)| (name.to_owned(), text.to_owned())),
    ),
});

/// The profile's config for a machine, if the profile has one.
pub(super) fn child(
    machine: &Machine,
    facts: &Facts<'_>,
    warnings: &mut Vec<IgnitionWarning>,
) -> Result<Option<String>, IgnitionError> {
    let templates = match &machine.profile {
        Profile::Basic | Profile::None => return Ok(None),
        Profile::Etcd { .. } => &ETCD,
        Profile::Own(own) => own,
    };
    let text = template::render(&templates.config, &templates.others, machine, facts)?;
    let linted = lint::lint(&templates.config.path, &text)
        .map_err(|error| error.rendered_for(&machine.name))?;
    warnings.extend(linted);
    Ok(Some(text))
}
