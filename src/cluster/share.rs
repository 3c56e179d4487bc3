//! Folders of the host that machines mount, and where a guest may mount one.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// A folder of the host that a machine mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Absolute, without links in it; a folder when the spec was read.
    pub from: PathBuf,
    pub to: MountPoint,
    /// Whether the machine only reads it: the host refuses anything else.
    pub readonly: bool,
}

/// Where a guest mounts a share: an absolute path, other than `/`, as systemd writes one: without
/// `.` and `..`, doubled slashes and a slash at its end; at most 200 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MountPoint(String);

/// systemd takes a unit's name of 255 bytes, in which one byte of a path can become four.
const LENGTH_LIMIT: usize = 200;
const UNIT_NAME_LIMIT: usize = 255;
const SUFFIX: &str = ".mount";
/// QEMU's 9p takes a tag of 31 bytes.
const TAG_LIMIT: usize = 31;

/// Why a guest cannot mount a share there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountPointError {
    #[error("`{path}` is not absolute: it is a path of the guest, such as `/var/mnt/src`")]
    Relative { path: String },
    #[error("a share cannot be mounted over the guest's `/`")]
    Root,
    #[error("`{path}` has a component `{component}`")]
    Component { path: String, component: String },
    #[error("`{path}` has a character that no mount unit can hold")]
    Character { path: String },
    #[error("`{path}…` is too long for the name of a mount unit")]
    TooLong { path: String },
}

impl MountPoint {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name that systemd wants for the unit that mounts there (systemd.mount(5)).
    pub fn unit(&self) -> String {
        escaped(&self.0) + SUFFIX
    }

    /// By what the guest mounts it: the unit's name where that is short and plain.
    pub fn tag(&self) -> String {
        let name = escaped(&self.0);
        if name.len() <= TAG_LIMIT && !name.contains('\\') {
            return name;
        }
        let digest = Sha256::digest(self.0.as_bytes());
        let digits: String = digest[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("share-{digits}")
    }
}

/// A path as systemd writes it in the name of a unit (systemd.unit(5), "string escaping"): `/`
/// becomes `-`; letters, digits, `:`, `_` and `.` stay, a `.` at the beginning does not.
fn escaped(path: &str) -> String {
    let mut name = String::new();
    for byte in path.trim_matches('/').bytes() {
        match byte {
            b'/' => name.push('-'),
            b'.' if name.is_empty() => name.push_str("\\x2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => {
                name.push(char::from(byte));
            }
            _ => name.push_str(&format!("\\x{byte:02x}")),
        }
    }
    name
}

impl FromStr for MountPoint {
    type Err = MountPointError;

    fn from_str(text: &str) -> Result<MountPoint, MountPointError> {
        let path = || text.chars().take(80).collect::<String>();
        if !text.starts_with('/') {
            return Err(MountPointError::Relative { path: path() });
        }
        // A backslash at its end would join the next line to it, and white space there goes.
        let is_odd = |c: char| c.is_control() || c == '\\';
        if text.contains(is_odd) || text.trim_end_matches('/').ends_with(char::is_whitespace) {
            let path = path().escape_debug().to_string();
            return Err(MountPointError::Character { path });
        }
        let components = text.split('/').filter(|component| !component.is_empty());
        let components: Vec<&str> = components.collect();
        if let Some(component) = components.iter().find(|it| matches!(**it, "." | "..")) {
            return Err(MountPointError::Component {
                path: path(),
                component: (*component).to_owned(),
            });
        }
        if components.is_empty() {
            return Err(MountPointError::Root);
        }
        let point = MountPoint(format!("/{}", components.join("/")));
        if point.0.len() > LENGTH_LIMIT || point.unit().len() > UNIT_NAME_LIMIT {
            return Err(MountPointError::TooLong { path: path() });
        }
        Ok(point)
    }
}

impl fmt::Display for MountPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    /// The right side is what `systemd-escape --path --suffix=mount` (252) printed.
    const GOLDEN: &[(&str, &str)] = &[
        ("/var/mnt/src", "var-mnt-src.mount"),
        ("/var/mnt/my-src", r"var-mnt-my\x2dsrc.mount"),
        ("//var///mnt/", "var-mnt.mount"),
        ("/.hidden/.b", r"\x2ehidden-.b.mount"),
        ("/srv/a b", r"srv-a\x20b.mount"),
        ("/srv/50%", r"srv-50\x25.mount"),
        ("/srv/a:b_c.d,e", r"srv-a:b_c.d\x2ce.mount"),
        ("/srv/größe", r"srv-gr\xc3\xb6\xc3\x9fe.mount"),
        ("/-", r"\x2d.mount"),
        ("/a/...", "a-....mount"),
    ];

    #[test]
    fn units_are_named_as_systemd_names_them() {
        for (path, unit) in GOLDEN {
            assert_eq!(path.parse::<MountPoint>().unwrap().unit(), *unit, "{path}");
        }
    }

    #[test]
    fn a_tag_is_the_unit_s_name_where_that_is_plain() {
        let tag = |path: &str| path.parse::<MountPoint>().unwrap().tag();
        assert_eq!(tag("/var/mnt/src"), "var-mnt-src");
        assert_eq!(tag("/var/mnt/my-src"), "share-f0dd077516398611");
        assert_ne!(tag("/a-b"), tag("/a/b"));
    }

    #[test]
    fn what_no_guest_could_mount_is_refused() {
        for (path, told) in [
            ("", "`` is not absolute"),
            ("mnt", "`mnt` is not absolute"),
            ("/", "over the guest's `/`"),
            ("///", "over the guest's `/`"),
            ("/var/../etc", "a component `..`"),
            ("/var/./x", "a component `.`"),
            ("/a\nb", "a character"),
            ("/a\\", "a character"),
            ("/a ", "a character"),
            (&format!("/{}", "x".repeat(200)), "too long"),
            (&format!("/{}", "-".repeat(70)), "too long"),
        ] {
            let error = path.parse::<MountPoint>().unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }

    /// The way back, as systemd goes it.
    fn unescaped(name: &str) -> String {
        let mut bytes = vec![b'/'];
        let mut rest = name.as_bytes();
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            match byte {
                b'-' => bytes.push(b'/'),
                b'\\' => {
                    let digits = str::from_utf8(&rest[1..3]).unwrap();
                    bytes.push(u8::from_str_radix(digits, 16).unwrap());
                    rest = &rest[3..];
                }
                _ => bytes.push(byte),
            }
        }
        String::from_utf8(bytes).unwrap()
    }

    proptest! {
        #[test]
        fn any_path_is_refused_or_comes_back_from_its_unit(text in "/?[-a-z./ %:é\\\\]{0,40}") {
            if let Ok(point) = text.parse::<MountPoint>() {
                let unit = point.unit();
                let name = unit.strip_suffix(".mount").unwrap();
                prop_assert_eq!(unescaped(name), point.as_str());
                prop_assert!(unit.len() <= 255 && !name.is_empty() && !name.starts_with('.'));
                prop_assert!(unit.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/'));
                let tag = point.tag();
                prop_assert!((1..=31).contains(&tag.len()) && !tag.contains(['\\', '/', ',']));
                // What was normalized once stays so.
                prop_assert_eq!(&point.to_string().parse::<MountPoint>().unwrap(), &point);
            }
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = text.parse::<MountPoint>();
        }
    }
}
