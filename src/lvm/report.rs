//! What `vgs` and `lvs` say with `--reportformat json`, as types. Pure.
//!
//! lvmreport(7): an object `report`, a list of objects of which each has the rows of its kind;
//! every value is a string. Sizes are asked for in bytes without a unit.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, de};

use super::name;

/// The columns that [`groups`] needs.
pub(super) const GROUP_COLUMNS: &str = "vg_uuid,vg_name,vg_extent_size,vg_free_count";
/// The columns that [`volumes`] needs.
pub(super) const VOLUME_COLUMNS: &str = "vg_uuid,vg_name,lv_uuid,lv_name,lv_size,lv_tags,lv_path,lv_suspended,lv_kernel_major,lv_kernel_minor";

/// A volume group.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Group {
    #[serde(rename = "vg_uuid")]
    pub uuid: String,
    #[serde(rename = "vg_name")]
    pub name: String,
    /// In bytes; never 0.
    #[serde(rename = "vg_extent_size", deserialize_with = "extent")]
    pub extent: u64,
    /// Extents that no volume has.
    #[serde(rename = "vg_free_count", deserialize_with = "number")]
    pub free: u64,
}

/// A logical volume, of whatever origin.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Volume {
    #[serde(rename = "vg_uuid")]
    pub group_uuid: String,
    #[serde(rename = "vg_name")]
    pub group: String,
    #[serde(rename = "lv_uuid")]
    pub uuid: String,
    #[serde(rename = "lv_name")]
    pub name: String,
    /// In bytes.
    #[serde(rename = "lv_size", deserialize_with = "number")]
    pub size: u64,
    #[serde(rename = "lv_tags", deserialize_with = "words")]
    pub tags: Vec<String>,
    /// The node's name, where it is active.
    #[serde(rename = "lv_path")]
    pub path: PathBuf,
    #[serde(rename = "lv_suspended")]
    suspended: String,
    #[serde(rename = "lv_kernel_major", deserialize_with = "number")]
    major: i64,
    #[serde(rename = "lv_kernel_minor", deserialize_with = "number")]
    minor: i64,
}

impl Volume {
    /// The node's device number; `None` while the volume is not active.
    pub fn device(&self) -> Option<nix::libc::dev_t> {
        let major = u32::try_from(self.major).ok()?;
        let minor = u32::try_from(self.minor).ok()?;
        Some(nix::libc::makedev(major, minor))
    }

    /// Whether who uses the node waits: an lvm2 was killed while it changed the volume.
    pub fn is_suspended(&self) -> bool {
        self.suspended == "suspended"
    }

    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|other| other == tag)
    }

    /// What lies behind so many bytes was here before it grew, and is not zero yet.
    pub fn zero_from(&self) -> Option<u64> {
        self.tags
            .iter()
            .filter_map(|tag| name::is_zero_from(tag))
            .min()
    }

    /// Whether it has got its content.
    pub fn is_finished(&self) -> bool {
        !self.has_tag(name::UNFINISHED)
    }
}

#[derive(Deserialize)]
struct Reports<T> {
    report: Vec<T>,
}

#[derive(Deserialize)]
struct GroupRows {
    vg: Vec<Group>,
}

#[derive(Deserialize)]
struct VolumeRows {
    lv: Vec<Volume>,
}

/// The groups that `vgs` lists.
///
/// # Errors
/// It is not what lvm2 prints.
pub fn groups(text: &str) -> Result<Vec<Group>, serde_json::Error> {
    let reports: Reports<GroupRows> = serde_json::from_str(text)?;
    Ok(reports.report.into_iter().flat_map(|it| it.vg).collect())
}

/// The volumes that `lvs` lists.
///
/// # Errors
/// It is not what lvm2 prints.
pub fn volumes(text: &str) -> Result<Vec<Volume>, serde_json::Error> {
    let reports: Reports<VolumeRows> = serde_json::from_str(text)?;
    Ok(reports.report.into_iter().flat_map(|it| it.lv).collect())
}

/// The version of the kernel's device-mapper, of what `lvm version` prints; `None` where lvm2 does
/// not find it.
pub fn driver_version(text: &str) -> Option<&str> {
    text.lines()
        .find_map(|line| line.trim().strip_prefix("Driver version:"))
        .map(str::trim)
}

/// lvm2's own version, of what `lvm version` prints.
pub fn own_version(text: &str) -> Option<&str> {
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("LVM version:"))?;
    line.split_whitespace().next()
}

fn number<'de, D: Deserializer<'de>, T: std::str::FromStr>(from: D) -> Result<T, D::Error> {
    let text = String::deserialize(from)?;
    text.parse()
        .map_err(|_| de::Error::custom(format!("`{text}` is no number")))
}

fn extent<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    match number(from)? {
        0 => Err(de::Error::custom("an extent of 0 bytes")),
        bytes => Ok(bytes),
    }
}

fn words<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let text = String::deserialize(from)?;
    let words = text.split(',').filter(|word| !word.is_empty());
    Ok(words.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    // As lvm2 2.03.16 prints it.
    const LVS: &str = r#"
  {
      "report": [
          {
              "lv": [
                  {"vg_uuid":"8R31Sp-Po7E-xhzK-jA6t-Ium6-c157-cxldfd", "vg_name":"ktest", "lv_uuid":"ZmUmj3-Jcgj-T8u1-be7n-a7T4-AJxr-Xnxcqo", "lv_name":"kiln.demo.node-1.root", "lv_size":"12582912", "lv_tags":"kiln.unfinished,kiln/8f-aa/node-1/root/abc", "lv_path":"/dev/ktest/kiln.demo.node-1.root", "lv_suspended":"unknown", "lv_kernel_major":"-1", "lv_kernel_minor":"-1"},
                  {"vg_uuid":"8R31Sp-Po7E-xhzK-jA6t-Ium6-c157-cxldfd", "vg_name":"ktest", "lv_uuid":"x", "lv_name":"mine", "lv_size":"4194304", "lv_tags":"", "lv_path":"/dev/ktest/mine", "lv_suspended":"suspended", "lv_kernel_major":"253", "lv_kernel_minor":"7"}
              ]
          }
      ]
  }
"#;

    #[test]
    fn volumes_are_read_with_their_tags_and_nodes() {
        let volumes = volumes(LVS).unwrap();
        let [ours, mine] = volumes.as_slice() else {
            panic!("{volumes:?}");
        };
        assert!(ours.has_tag("kiln/8f-aa/node-1/root/abc") && !ours.is_finished());
        assert_eq!((ours.size, ours.device()), (12 << 20, None));
        assert!(mine.tags.is_empty() && mine.is_finished());
        assert!(mine.is_suspended() && !ours.is_suspended());
        assert_eq!(mine.device(), Some(nix::libc::makedev(253, 7)));
    }

    #[test]
    fn groups_are_read_and_nonsense_is_not() {
        let text = r#"{"report": [{"vg": [{"vg_uuid":"u", "vg_name":"vg0",
            "vg_extent_size":"4194304", "vg_free_count":"127"}]}]}"#;
        let group = Group {
            uuid: "u".to_owned(),
            name: "vg0".to_owned(),
            extent: 4 << 20,
            free: 127,
        };
        assert_eq!(groups(text).unwrap(), [group]);
        assert!(groups(&text.replace("4194304", "0")).is_err());
        assert!(groups(&text.replace("127", "many")).is_err());
        assert!(groups("").is_err());
        assert!(volumes("{\"report\": [{\"lv\": [{").is_err());
    }

    #[test]
    fn a_kernel_without_device_mapper_is_known_by_what_is_not_said() {
        let text = "  LVM version:     2.03.16(2) (2022-05-18)\n  Library version: 1.02.185\n";
        assert_eq!(driver_version(text), None);
        assert_eq!(own_version(text), Some("2.03.16(2)"));
        let text = format!("{text}  Driver version:  4.48.0\n");
        assert_eq!(driver_version(&text), Some("4.48.0"));
    }
}
