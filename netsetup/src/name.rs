//! Names of network interfaces, parsed once.
//!
//! Names that kiln makes are computed here from the machine's name, so that the same machine has the same tap on every
//! host and after every restart.

use std::fmt;
use std::str::FromStr;

use crate::address;

/// The longest name that the kernel takes, in bytes (`IFNAMSIZ` less its NUL).
const LONGEST: usize = 15;

/// The name of an interface: 1 to 15 bytes of printable ASCII without `/`, `:` and spaces, and not `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IfName(String);

/// Why a text is no name of an interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IfNameError {
    /// Nothing at all.
    #[error("an interface's name cannot be empty")]
    Empty,
    /// More than the kernel takes.
    #[error("`{name}` is longer than the 15 bytes that an interface's name may have")]
    TooLong {
        /// As given, cut to size.
        name: String,
    },
    /// A character that the kernel refuses, or that would mislead whoever reads it.
    #[error("`{name}` cannot be the name of an interface")]
    Character {
        /// As given.
        name: String,
    },
}

impl FromStr for IfName {
    type Err = IfNameError;

    fn from_str(name: &str) -> Result<IfName, IfNameError> {
        let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
        match name.len() {
            0 => Err(IfNameError::Empty),
            1..=LONGEST if name != "." && name != ".." && name.bytes().all(allowed) => {
                Ok(IfName(name.to_owned()))
            }
            1..=LONGEST => Err(IfNameError::Character {
                name: name.to_owned(),
            }),
            _ => Err(IfNameError::TooLong {
                name: name.chars().take(80).collect(),
            }),
        }
    }
}

impl IfName {
    /// The tap of the machine called `machine` (a DNS label): `t-` and its name, which is cut where it is long and
    /// then told apart by a hash.
    pub fn tap(machine: &str) -> IfName {
        let name = format!("t-{machine}");
        if name.len() <= LONGEST {
            return IfName(name);
        }
        let hash = address::hash(&["tap", machine]) >> 32;
        IfName(format!("{}-{hash:08x}", &name[..6]))
    }

    /// The tap of the machine called `machine` on a bridge of the host's, where other clusters have taps too: `t-`, the
    /// start of its name, and a hash of that and of `mark`, which no other cluster has.
    pub fn host_tap(mark: &str, machine: &str) -> IfName {
        let hash = address::hash(&["host tap", mark, machine]) >> 32;
        let start = machine.get(..4).unwrap_or(machine);
        IfName(format!("t-{start}-{hash:08x}"))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name with a NUL behind it, as netlink carries it.
    pub(crate) fn with_nul(&self) -> Vec<u8> {
        let mut bytes = self.0.clone().into_bytes();
        bytes.push(0);
        bytes
    }

    /// The name in sixteen bytes, as `ifreq` and nftables compare it.
    pub(crate) fn padded(&self) -> [u8; LONGEST + 1] {
        let mut bytes = [0; LONGEST + 1];
        for (to, from) in bytes.iter_mut().zip(self.0.bytes()) {
            *to = from;
        }
        bytes
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, prop_assert_ne, proptest};

    use super::*;

    #[test]
    fn what_the_kernel_refuses_is_no_name() {
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a:b",
            "a b",
            "a\n",
            "ä",
            "sixteen-bytes-16",
        ] {
            assert!(name.parse::<IfName>().is_err(), "{name:?}");
        }
        assert!("fifteen-bytes-1".parse::<IfName>().is_ok());
    }

    #[test]
    fn a_tap_is_called_like_its_machine() {
        assert_eq!(IfName::tap("node-1").as_str(), "t-node-1");
        assert_eq!(IfName::tap("a-rather-long-name").as_str().len(), LONGEST);
    }

    proptest! {
        #[test]
        fn every_machine_has_a_tap_of_its_own(one in "[a-z][a-z0-9-]{0,61}[a-z0-9]", other in "[a-z][a-z0-9-]{0,61}[a-z0-9]") {
            let tap = IfName::tap(&one);
            prop_assert_eq!(tap.as_str().parse::<IfName>(), Ok(tap.clone()));
            prop_assert!(tap.as_str().starts_with("t-"));
            if one != other {
                prop_assert_ne!(tap, IfName::tap(&other));
            }
            let tap = IfName::host_tap("demo", &one);
            prop_assert_eq!(tap.as_str().parse::<IfName>(), Ok(tap.clone()));
            prop_assert_ne!(tap, IfName::host_tap("other", &one));
        }
    }
}
