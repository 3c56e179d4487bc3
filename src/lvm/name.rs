//! The names that LVM takes, and those that kiln gives.
//!
//! lvm(8), "VALID NAMES": letters, digits, `+`, `_`, `.` and `-`, not beginning with `-`; some words
//! with `_` and two beginnings are lvm's own. Tags may have `/` and others too.

use std::fmt;
use std::str::FromStr;

/// What device-mapper takes (DM_NAME_LEN, linux/dm-ioctl.h, less the zero).
const LONGEST: usize = 127;
/// All of kiln's tags begin so, and no other one's.
const TAG: &str = "kiln/";
/// On a volume that has not got its content yet.
pub const UNFINISHED: &str = "kiln.unfinished";

/// On a volume that grows, before the bytes: what lies behind them is not zero yet.
const ZERO_FROM: &str = "kiln.zero-from.";

/// The name of a volume group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupName(String);

/// Why a text is not a volume group's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupNameError {
    #[error("a volume group's name has 1 to {LONGEST} bytes, and this one {length}")]
    Length { length: usize },
    #[error(
        "`{name}` is not a volume group's name: use letters, digits, `+`, `_`, `.` and `-`, not beginning with `-`"
    )]
    Character { name: String },
}

impl FromStr for GroupName {
    type Err = GroupNameError;

    fn from_str(name: &str) -> Result<GroupName, GroupNameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+_.-".contains(&byte);
        if name.is_empty() || name.len() > LONGEST {
            return Err(GroupNameError::Length { length: name.len() });
        }
        if name.starts_with('-') || [".", ".."].contains(&name) || !name.bytes().all(allowed) {
            return Err(GroupNameError::Character {
                name: name.chars().take(80).collect(),
            });
        }
        Ok(GroupName(name.to_owned()))
    }
}

impl GroupName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a new volume is called: for people, nothing is known by it.
///
/// `None` where device-mapper's name, in which hyphens are doubled, would be too long. Cluster and
/// machine are DNS labels and a serial has no `+`, so that no two disks have one name; words that
/// lvm keeps for itself have a `_`.
pub fn volume(group: &str, cluster: &str, machine: &str, serial: &str) -> Option<String> {
    let serial = serial.replace('_', "+");
    let name = format!("kiln.{cluster}.{machine}.{serial}");
    let length = |name: &str| name.len() + name.matches('-').count();
    (length(group) + 1 + length(&name) <= LONGEST).then_some(name)
}

/// A tag that no other volume has, on whatever host: of the machine's UUID, for people the names,
/// and a random `token`.
pub fn tag(uuid: &str, machine: &str, serial: &str, token: &str) -> String {
    format!("{TAG}{uuid}/{machine}/{serial}/{token}")
}

/// Whether [`tag`] may have made it: a ledger that someone edited leads to nothing else.
pub fn is_tag(tag: &str) -> bool {
    tag.starts_with(TAG)
}

/// The tag of a volume that grows from so many bytes.
pub fn zero_from(bytes: u64) -> String {
    format!("{ZERO_FROM}{bytes}")
}

/// The bytes that [`zero_from`] put into a tag.
pub fn is_zero_from(tag: &str) -> Option<u64> {
    tag.strip_prefix(ZERO_FROM)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lvm_takes_is_a_group() {
        for name in ["vg0", "a.b_c+d-e", "0", &"v".repeat(127)] {
            assert_eq!(name.parse::<GroupName>().unwrap().as_str(), name);
        }
        for name in [
            "", "-v", ".", "..", "a b", "a,b", "a/b", "a\n", "%s", "@t", "ä",
        ] {
            assert!(name.parse::<GroupName>().is_err(), "{name:?}");
        }
        assert!("v".repeat(128).parse::<GroupName>().is_err());
    }

    #[test]
    fn a_name_has_nothing_that_lvm_keeps_for_itself() {
        assert_eq!(
            volume("vg0", "demo", "node-1", "a_tmeta.b-c").unwrap(),
            "kiln.demo.node-1.a+tmeta.b-c"
        );
        let long = "m".repeat(63);
        assert!(volume("vg0", "c", &long, "root").is_some());
        assert_eq!(volume(&"v".repeat(60), "c", &long, "root"), None);
        // 62 bytes of name, of which the hyphens count twice.
        let hyphens = format!("m{}m", "-".repeat(50));
        assert_eq!(volume("vg0", &"c".repeat(12), &hyphens, "root"), None);
    }
}
