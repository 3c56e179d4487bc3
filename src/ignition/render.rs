//! The steps in their order: template, lint, fragment.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use kiln_arch::Arch;
use macaddr::MacAddr6;

use super::error::{IgnitionError, IgnitionProblem, IgnitionWarning};
use super::{fragment, lint, profile, template};
use crate::cluster::{ClusterName, IgnitionSource, Machine, MachineName, Profile};
use crate::etcd::Membership;
use crate::keys::KeyPair;
use crate::nocloud::{self, Seed};
use crate::state::record::ShareRecord;

/// By fw_cfg 200 KB cost 4 s and 2 MB cost 80 s under TCG.
const FW_CFG_COMFORT: usize = 1 << 20;

/// What the spec does not say of a machine and its config needs.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub cluster: &'a ClusterName,
    /// The DNS domain that the cluster's names are in, without dots at its ends.
    pub domain: &'a str,
    /// Absent, as its addresses and its peers', where another one gives addresses.
    pub subnet: Option<Ipv4Net>,
    pub gateway: Option<Ipv4Addr>,
    pub ip: Option<Ipv4Addr>,
    /// Where the cluster has IPv6.
    pub ip6: Option<Ipv6Addr>,
    pub mac: MacAddr6,
    /// All machines of the cluster in the spec's order, this one too.
    pub peers: &'a [Peer],
    /// Who may log in as `core`: the cluster's own public key and those of the spec.
    pub authorized_keys: &'a [String],
    /// The folders of the host that it mounts.
    pub shares: &'a [ShareRecord],
    /// The machine's own ssh host key.
    pub host_key: &'a KeyPair,
    /// Its part in the cluster's etcd; only that profile's templates ask.
    pub etcd: &'a Membership,
}

/// A machine as templates see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub name: MachineName,
    pub ip: Option<Ipv4Addr>,
    pub ip6: Option<Ipv6Addr>,
    pub group: MachineName,
    /// Its place in the group, from 1.
    pub index: u32,
}

/// A machine's final config. A secret, so `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Rendered {
    pub config: String,
    /// The user's own part, out of its template: what a validator is to judge.
    pub child: Option<String>,
    /// For cloud-init, the disk that it reads; the config is then what lies on it.
    pub seed: Option<Vec<u8>>,
    pub warnings: Vec<IgnitionWarning>,
}

impl fmt::Debug for Rendered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rendered")
            .field("config", &format_args!("{} bytes", self.config.len()))
            .field("warnings", &self.warnings)
            .finish()
    }
}

/// Makes a machine's config.
///
/// # Errors
/// [`IgnitionError`] when the template fails or the user's text is no Ignition
/// config of spec 3.0 to 3.6.
pub fn render(machine: &Machine, facts: &Facts<'_>) -> Result<Rendered, IgnitionError> {
    if machine.cloud_init
        && let Some(source) = &machine.ignition
    {
        return for_cloud_init(source, machine, facts);
    }
    let mut warnings = Vec::new();
    let child = match &machine.ignition {
        None => None,
        Some(source) => {
            let (text, linted) = if source.template {
                let text = template::render(source, &BTreeMap::new(), machine, facts)?;
                let linted = lint::lint(&source.path, &text)
                    .map_err(|error| error.rendered_for(&machine.name));
                (Cow::Owned(text), linted)
            } else {
                let linted = lint::lint(&source.path, &source.text);
                (Cow::Borrowed(source.text.as_str()), linted)
            };
            warnings.extend(linted?);
            Some(text)
        }
    };
    let child = child.map(Cow::into_owned);
    let config = match (&machine.profile, &child) {
        (Profile::Basic | Profile::Etcd { .. } | Profile::Own(_), child) => {
            let profile = profile::child(machine, facts, &mut warnings)?;
            // What comes later in the list wins: kiln's, the profile's, the user's.
            let children: Vec<&str> = [profile.as_deref(), child.as_deref()]
                .into_iter()
                .flatten()
                .collect();
            fragment::basic(machine, facts, &children).to_string()
        }
        (Profile::None, Some(child)) => child.clone(),
        (Profile::None, None) => fragment::empty().to_string(),
    };
    if reads_fw_cfg(machine.arch) && config.len() > FW_CFG_COMFORT {
        warnings.push(IgnitionWarning::Large { size: config.len() });
    }
    Ok(Rendered {
        config,
        child,
        seed: None,
        warnings,
    })
}

/// What cloud-init reads.
fn for_cloud_init(
    source: &IgnitionSource,
    machine: &Machine,
    facts: &Facts<'_>,
) -> Result<Rendered, IgnitionError> {
    let text = match source.template {
        true => template::render(source, &BTreeMap::new(), machine, facts)?,
        false => source.text.clone(),
    };
    if !nocloud::is_user_data(&text) {
        let error = IgnitionError::in_file(&source.path, IgnitionProblem::NotUserData);
        return Err(match source.template {
            true => error.rendered_for(&machine.name),
            false => error,
        });
    }
    let seed = Seed::of(machine, facts, text);
    Ok(Rendered {
        config: seed.shown(),
        child: None,
        seed: Some(seed.disk()),
        warnings: Vec::new(),
    })
}

fn reads_fw_cfg(arch: Arch) -> bool {
    match arch {
        Arch::X86_64 | Arch::I386 | Arch::Aarch64 => true,
        Arch::S390x | Arch::Ppc64le => false,
    }
}
