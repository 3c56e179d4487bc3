//! What is legal in a spec and yet looks like a mistake.

use std::fmt;
use std::path::PathBuf;

use super::error::Place;

/// Returned beside the cluster, for the caller to print.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpecWarning {
    /// `insecure: true` beside a local file.
    InsecureLocalImage { place: Place },
    /// A raw image that begins like a qcow2 one.
    RawLooksLikeQcow2 { place: Place, path: PathBuf },
    /// `vars:` that no template reads.
    UnusedVars { place: Place, group: String },
    /// A subnet of addresses that belong to others.
    PublicSubnet { place: Place },
    /// A count of an earlier `--scale` that the spec does not have.
    Scaled {
        /// Of the spec's count.
        place: Place,
        group: String,
        count: u16,
        scaled: u16,
    },
}

impl SpecWarning {
    pub fn place(&self) -> Place {
        match self {
            SpecWarning::InsecureLocalImage { place }
            | SpecWarning::RawLooksLikeQcow2 { place, .. }
            | SpecWarning::UnusedVars { place, .. }
            | SpecWarning::PublicSubnet { place }
            | SpecWarning::Scaled { place, .. } => *place,
        }
    }
}

impl fmt::Display for SpecWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SpecWarning::InsecureLocalImage { .. } => f.write_str(
                "`insecure: true` changes nothing for a local file: only downloads carry signatures",
            ),
            SpecWarning::RawLooksLikeQcow2 { path, .. } => write!(
                f,
                "`{}` is taken as raw, but begins like a qcow2 image; the machine will see those bytes",
                path.display()
            ),
            SpecWarning::UnusedVars { group, .. } => write!(
                f,
                "group `{group}` has `vars`, but its Ignition config is not a template: say `template: true` or end its name in `.j2`"
            ),
            SpecWarning::PublicSubnet { .. } => f.write_str(
                "`subnet` is not a private one: the machines cannot reach the hosts that own these addresses",
            ),
            SpecWarning::Scaled {
                group,
                count,
                scaled,
                ..
            } => write!(
                f,
                "group `{group}` is of {scaled} by an earlier `--scale`, not of {count} as the spec says; `kiln up --scale {group}={count}` goes back"
            ),
        }
    }
}
