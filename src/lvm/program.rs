//! The `lvm` program: each call has a deadline, and volumes are changed by UUID.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::name::{self, GroupName};
use super::report::{self, GROUP_COLUMNS, Group, VOLUME_COLUMNS, Volume};
use crate::state::record::VolumeRecord;
use crate::tool::{self, Finished, ToolError};

/// lvm2 takes some tens of milliseconds, and waits for others that work on the same group.
const DEADLINE: Duration = Duration::from_secs(60);
/// A row has about 400 bytes.
const LONGEST_REPORT: u64 = 16 * 1024 * 1024;

/// Why lvm2 did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum LvmError {
    #[error("logical volumes need `lvm`, which is not installed")]
    NotInstalled,
    #[error("only root can use logical volumes")]
    NotRoot,
    #[error("there is no volume group `{group}`")]
    NoGroup { group: String },
    #[error("this kernel has no device-mapper, without which no logical volume can be used")]
    NoDeviceMapper,
    #[error("the kernel gives no random numbers")]
    Random {
        #[source]
        source: io::Error,
    },
    #[error("cannot run lvm2")]
    Run {
        #[source]
        source: ToolError,
    },
    #[error("`lvm {command}` failed: {said}")]
    Failed { command: &'static str, said: String },
    #[error("`lvm {command}` says what kiln does not understand")]
    Nonsense {
        command: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("volumes {} have the same tag `{tag}` of kiln's", names.join(", "))]
    Ambiguous { tag: String, names: Vec<String> },
    #[error("volume `{name}` has kiln's tag `{tag}` and is not the one that kiln made")]
    Other { name: String, tag: String },
    #[error("volume `{name}` was made and is not there")]
    Vanished { name: String },
}

/// lvm2, as this user can use it. Nothing is run before something is asked of it.
#[derive(Debug, Clone)]
pub struct Lvm {
    program: Option<PathBuf>,
    is_root: bool,
}

impl Lvm {
    /// `program` where it is installed.
    pub fn new(program: Option<&Path>, is_root: bool) -> Lvm {
        Lvm {
            program: program.map(Path::to_owned),
            is_root,
        }
    }

    /// What `lvm version` prints. Any user may ask.
    ///
    /// # Errors
    /// [`LvmError`]: it is not there, or does not run.
    pub fn version(&self) -> Result<String, LvmError> {
        Ok(self.run(self.command()?, &["version"])?.stdout)
    }

    /// The group of that name, on a host where its volumes can be used.
    ///
    /// # Errors
    /// [`LvmError`], which says what is missing.
    pub fn group(&self, name: &GroupName) -> Result<Group, LvmError> {
        self.may()?;
        if report::driver_version(&self.version()?).is_none() {
            return Err(LvmError::NoDeviceMapper);
        }
        // All are listed, since a group that is not there is a failure like any other else.
        let text = self.told("vgs", &["-o", GROUP_COLUMNS])?;
        let groups = report::groups(&text).map_err(|source| LvmError::Nonsense {
            command: "vgs",
            source,
        })?;
        let found = groups.into_iter().find(|group| group.name == name.as_str());
        found.ok_or_else(|| LvmError::NoGroup {
            group: name.to_string(),
        })
    }

    /// All volumes of the group of that UUID; none where there is no such group.
    ///
    /// # Errors
    /// [`LvmError`]
    pub fn volumes(&self, group_uuid: &str) -> Result<Vec<Volume>, LvmError> {
        self.may()?;
        let text = self.told("lvs", &["-o", VOLUME_COLUMNS])?;
        let mut volumes = report::volumes(&text).map_err(|source| LvmError::Nonsense {
            command: "lvs",
            source,
        })?;
        volumes.retain(|volume| volume.group_uuid == group_uuid);
        Ok(volumes)
    }

    /// The volume that is kiln's by this record, where it is there.
    ///
    /// # Errors
    /// [`LvmError`]
    pub fn find(&self, record: &VolumeRecord) -> Result<Option<Volume>, LvmError> {
        ours(record, self.volumes(&record.group_uuid)?)
    }

    /// Makes the volume of so many bytes in whole extents, which has no content of worth yet, and
    /// gives it as it then is. Its record has to stand in ledger or list already.
    ///
    /// # Errors
    /// [`LvmError`]: most often that the name is taken, or the group full.
    pub fn create(&self, record: &VolumeRecord, bytes: u64) -> Result<Volume, LvmError> {
        self.may()?;
        // What lies at its beginning is wiped before anything of the host's may look at it.
        let fixed = ["--yes", "--type", "linear", "-ay", "-Wy", "-Zy"];
        let size = in_bytes(bytes);
        let own = [
            "--addtag",
            &record.tag,
            "--addtag",
            name::UNFINISHED,
            "--size",
            &size,
            "--name",
            &record.name,
            &record.group,
        ];
        self.change("lvcreate", &[&fixed[..], &own].concat())?;
        self.find(record)?.ok_or_else(|| LvmError::Vanished {
            name: record.name.clone(),
        })
    }

    /// Puts a tag on the volume.
    ///
    /// # Errors
    /// [`LvmError`]
    pub fn tag(&self, volume: &Volume, tag: &str) -> Result<(), LvmError> {
        let by = by_uuid(volume);
        let args = ["--addtag", tag, "--select", &by, &volume.group];
        self.change("lvchange", &args)
    }

    /// Takes a tag off the volume.
    ///
    /// # Errors
    /// [`LvmError`]
    pub fn untag(&self, volume: &Volume, tag: &str) -> Result<(), LvmError> {
        let by = by_uuid(volume);
        let args = ["--deltag", tag, "--select", &by, &volume.group];
        self.change("lvchange", &args)
    }

    /// Makes the volume's node.
    ///
    /// # Errors
    /// [`LvmError`]
    pub fn activate(&self, volume: &Volume) -> Result<(), LvmError> {
        let by = by_uuid(volume);
        self.change("lvchange", &["-ay", "--select", &by, &volume.group])
    }

    /// Makes the node be as the group says, and lets those go on that use it.
    ///
    /// # Errors
    /// [`LvmError`]
    pub fn refresh(&self, volume: &Volume) -> Result<(), LvmError> {
        let by = by_uuid(volume);
        self.change("lvchange", &["--refresh", "--select", &by, &volume.group])
    }

    /// Makes the volume as large as so many bytes; it is smaller, and may be in use.
    ///
    /// # Errors
    /// [`LvmError`]: most often that the group is full.
    pub fn extend(&self, volume: &Volume, bytes: u64) -> Result<(), LvmError> {
        // lvextend takes names alone; this one was read with the volume's tag a moment ago.
        let target = format!("{}/{}", volume.group, volume.name);
        let size = in_bytes(bytes);
        self.change("lvextend", &["--yes", "--size", &size, &target])
    }

    /// Removes the volume that is kiln's by this record, if it is there.
    ///
    /// # Errors
    /// [`LvmError`]; it is then still there.
    pub fn remove(&self, record: &VolumeRecord) -> Result<(), LvmError> {
        let Some(volume) = self.find(record)? else {
            return Ok(());
        };
        let by = by_uuid(&volume);
        let args = ["--yes", "--force", "--select", &by, &volume.group];
        self.change("lvremove", &args)
    }

    fn may(&self) -> Result<(), LvmError> {
        match self.is_root {
            true => Ok(()),
            false => Err(LvmError::NotRoot),
        }
    }

    fn command(&self) -> Result<Command, LvmError> {
        let program = self.program.as_ref().ok_or(LvmError::NotInstalled)?;
        let mut command = Command::new(program);
        // It warns of open descriptors that it is not told of; kiln's close by themselves.
        command.env("LVM_SUPPRESS_FD_WARNINGS", "1");
        Ok(command)
    }

    fn told(&self, verb: &'static str, args: &[&str]) -> Result<String, LvmError> {
        let fixed = [verb, "--reportformat", "json", "--units", "b", "--nosuffix"];
        let finished = self.run(self.command()?, &[&fixed[..], args].concat())?;
        succeeded(verb, finished)
    }

    fn change(&self, verb: &'static str, args: &[&str]) -> Result<(), LvmError> {
        self.may()?;
        let finished = self.run(self.command()?, &[&[verb][..], args].concat())?;
        succeeded(verb, finished).map(drop)
    }

    fn run(&self, mut command: Command, args: &[&str]) -> Result<Finished, LvmError> {
        command.args(args.iter().map(OsStr::new));
        tool::run_kept(command, Stdio::null(), DEADLINE, LONGEST_REPORT)
            .map_err(|source| LvmError::Run { source })
    }
}

/// The one of `volumes` that is kiln's by this record.
///
/// # Errors
/// [`LvmError::Ambiguous`] and [`LvmError::Other`]: somebody has copied the tag.
pub fn ours(record: &VolumeRecord, volumes: Vec<Volume>) -> Result<Option<Volume>, LvmError> {
    let mut found: Vec<Volume> = volumes
        .into_iter()
        .filter(|volume| {
            name::is_tag(&record.tag)
                && volume.group_uuid == record.group_uuid
                && volume.has_tag(&record.tag)
        })
        .collect();
    if found.len() > 1 {
        return Err(LvmError::Ambiguous {
            tag: record.tag.clone(),
            names: found.into_iter().map(|volume| volume.name).collect(),
        });
    }
    let Some(volume) = found.pop() else {
        return Ok(None);
    };
    if record
        .made
        .as_ref()
        .is_some_and(|made| made.uuid != volume.uuid)
    {
        return Err(LvmError::Other {
            name: volume.name,
            tag: record.tag.clone(),
        });
    }
    Ok(Some(volume))
}

/// With a lower-case letter the unit is of 1024s, and this one is of 1.
fn in_bytes(bytes: u64) -> String {
    format!("{bytes}b")
}

fn by_uuid(volume: &Volume) -> String {
    format!("lv_uuid={}", volume.uuid)
}

fn succeeded(command: &'static str, finished: Finished) -> Result<String, LvmError> {
    if finished.status.success() {
        return Ok(finished.stdout);
    }
    let lines = finished.stderr.lines().map(str::trim);
    let said: Vec<&str> = lines
        .filter(|line| !line.is_empty() && !line.starts_with("WARNING:"))
        .collect();
    Err(LvmError::Failed {
        command,
        said: match said.is_empty() {
            true => finished.status.to_string(),
            false => said.join("; "),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::record::MadeVolumeRecord;

    fn record(made: Option<&str>) -> VolumeRecord {
        VolumeRecord {
            group: "vg0".to_owned(),
            group_uuid: "g".to_owned(),
            name: "kiln.demo.a.root".to_owned(),
            tag: "kiln/u/a/root/t".to_owned(),
            made: made.map(|uuid| MadeVolumeRecord {
                uuid: uuid.to_owned(),
                path: "/dev/vg0/kiln.demo.a.root".into(),
            }),
        }
    }

    fn volume(uuid: &str, tags: &str) -> Volume {
        let row = format!(
            r#"{{"report":[{{"lv":[{{"vg_uuid":"g","vg_name":"vg0","lv_uuid":"{uuid}",
            "lv_name":"kiln.demo.a.root","lv_size":"4194304","lv_tags":"{tags}","lv_path":"","lv_suspended":"",
            "lv_kernel_major":"-1","lv_kernel_minor":"-1"}}]}}]}}"#
        );
        report::volumes(&row).unwrap().remove(0)
    }

    #[test]
    fn a_volume_is_ours_by_tag_and_uuid_and_never_by_its_name() {
        let tagged = || volume("u1", "x,kiln/u/a/root/t");
        let foreign = || volume("u2", "kiln/u/a/root/other");
        let found = |made, volumes| ours(&record(made), volumes);
        assert_eq!(found(None, vec![foreign()]).unwrap(), None);
        for made in [None, Some("u1")] {
            let found = found(made, vec![foreign(), tagged()]).unwrap();
            assert_eq!(found, Some(tagged()));
        }
        let error = found(Some("u9"), vec![tagged()]).unwrap_err();
        assert!(matches!(error, LvmError::Other { .. }), "{error}");
        let error = found(None, vec![tagged(), tagged()]).unwrap_err();
        assert!(matches!(error, LvmError::Ambiguous { .. }), "{error}");
        // A ledger that someone edited.
        let edited = VolumeRecord {
            tag: "x".to_owned(),
            ..record(None)
        };
        assert_eq!(ours(&edited, vec![tagged()]).unwrap(), None);
    }

    #[test]
    fn who_cannot_use_it_is_told_why() {
        let group: GroupName = "vg0".parse().unwrap();
        let error = Lvm::new(Some(Path::new("/nonexistent")), false).group(&group);
        assert!(matches!(error, Err(LvmError::NotRoot)));
        let error = Lvm::new(None, true).group(&group);
        assert!(matches!(error, Err(LvmError::NotInstalled)));
    }

    #[test]
    fn what_it_says_is_told_without_its_warnings() {
        let home = tempfile::tempdir().unwrap();
        let program = home.path().join("lvm");
        let says = |lines: &str| {
            crate::tool::write_script(&program, lines);
            Lvm::new(Some(&program), true).volumes("g").unwrap_err()
        };
        let error =
            says("echo '  WARNING: no' >&2; echo '  Volume group \"x\" is full' >&2; exit 5");
        assert_eq!(
            error.to_string(),
            "`lvm lvs` failed: Volume group \"x\" is full"
        );
        assert!(matches!(says("echo '{'"), LvmError::Nonsense { .. }));
    }
}
