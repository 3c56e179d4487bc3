//! The steps in their order: template, lint, fragment.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv4Addr;

use kiln_arch::Arch;
use macaddr::MacAddr6;

use super::error::{IgnitionError, IgnitionWarning};
use super::{fragment, lint, template};
use crate::cluster::{ClusterName, Machine, MachineName, Profile};
use crate::keys::KeyPair;

/// By fw_cfg 200 KB cost 4 s and 2 MB cost 80 s under TCG.
const FW_CFG_COMFORT: usize = 1 << 20;

/// What the spec does not say of a machine and its config needs.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub cluster: &'a ClusterName,
    /// The DNS domain that the cluster's names are in, without dots at its ends.
    pub domain: &'a str,
    /// Absent, as its peers', where another one gives addresses.
    pub ip: Option<Ipv4Addr>,
    pub mac: MacAddr6,
    /// All machines of the cluster in the spec's order, this one too.
    pub peers: &'a [Peer],
    /// Who may log in as `core`: the cluster's own public key and those of the spec.
    pub authorized_keys: &'a [String],
    /// The machine's own ssh host key.
    pub host_key: &'a KeyPair,
}

/// A machine as templates see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub name: MachineName,
    pub ip: Option<Ipv4Addr>,
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
    let mut warnings = Vec::new();
    let child = match &machine.ignition {
        None => None,
        Some(source) => {
            let (text, linted) = if source.template {
                let text = template::render(source, machine, facts)?;
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
    let config = match (machine.profile, &child) {
        (Profile::Basic, child) => fragment::basic(machine, facts, child.as_deref()).to_string(),
        (Profile::None, Some(child)) => child.clone(),
        (Profile::None, None) => fragment::empty().to_string(),
    };
    if reads_fw_cfg(machine.arch) && config.len() > FW_CFG_COMFORT {
        warnings.push(IgnitionWarning::Large { size: config.len() });
    }
    Ok(Rendered {
        config,
        child,
        warnings,
    })
}

fn reads_fw_cfg(arch: Arch) -> bool {
    match arch {
        Arch::X86_64 | Arch::I386 | Arch::Aarch64 => true,
        Arch::S390x | Arch::Ppc64le => false,
    }
}
