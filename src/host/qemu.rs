//! Which QEMU runs guests of an architecture here, and its version.
//!
//! The version costs 20 ms to ask for, so it is remembered for as long as the program's file stays
//! what it is; a command on an existing cluster starts no program for it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use kiln_arch::Arch;

use crate::memo::{FileStamp, Memo, path_text};
use crate::tool::{self, ToolError};

/// The oldest QEMU that has `-netdev stream`, on which the fabric stands.
pub const OLDEST: Version = Version(7, 2, 0);

const VERSION_DEADLINE: Duration = Duration::from_secs(10);

/// Major, minor and micro.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16, pub u16, pub u16);

/// A QEMU that can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    /// Absolute.
    pub program: PathBuf,
    pub version: Version,
    /// Which file it is and what it calls itself, the distribution's words included: two builds
    /// that may behave differently differ here.
    pub build: String,
}

impl Qemu {
    /// The versioned board that a new machine of `arch` gets; absent where the distribution has
    /// boards of its own names (RHEL and its kin, whose version says `.el`).
    pub fn board(&self, arch: Arch) -> Option<String> {
        let Version(major, minor, _) = self.version;
        (!self.build.contains(".el")).then(|| arch.board_of(major, minor))
    }
}

/// Why guests of an architecture cannot run here.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QemuError {
    #[error("`{program}` is not installed")]
    Missing { arch: Arch, program: &'static str },
    #[error("cannot look at `{}`", program.display())]
    Look {
        program: PathBuf,
        #[source]
        source: Arc<std::io::Error>,
    },
    #[error("cannot ask `{}` for its version", program.display())]
    Ask {
        program: PathBuf,
        #[source]
        source: Arc<ToolError>,
    },
    #[error("`{} --version` says `{said}`, which is no version of QEMU", program.display())]
    Unreadable { program: PathBuf, said: String },
    #[error("`{}` is QEMU {version}; kiln needs {OLDEST} or newer", program.display())]
    TooOld { program: PathBuf, version: Version },
}

/// The host's QEMUs, each looked for when first asked after.
#[derive(Debug)]
pub struct Qemus {
    path: OsString,
    memo: Memo,
    found: [OnceLock<Result<Qemu, QemuError>>; Arch::ALL.len()],
}

impl Qemus {
    pub(super) fn new(path: OsString, memo: Memo) -> Qemus {
        Qemus {
            path,
            memo,
            found: Default::default(),
        }
    }

    /// The QEMU for guests of `arch`.
    pub fn get(&self, arch: Arch) -> Result<&Qemu, &QemuError> {
        self.found[arch as usize]
            .get_or_init(|| look(arch, &self.path, &self.memo))
            .as_ref()
    }
}

#[cfg(test)]
impl Qemus {
    /// These two, for x86_64 and aarch64, and no others.
    pub(super) fn example([x86_64, aarch64]: [Qemu; 2]) -> Qemus {
        let qemus = Qemus::new(OsString::new(), Memo::new(PathBuf::from("/nonexistent")));
        for (arch, qemu) in [(Arch::X86_64, x86_64), (Arch::Aarch64, aarch64)] {
            qemus.found[arch as usize].set(Ok(qemu)).unwrap();
        }
        qemus
    }
}

/// The program of that name in the folders of `path` that can be executed, absolute.
pub(super) fn find(path: &OsStr, name: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|file| {
            fs::metadata(file)
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
}

fn look(arch: Arch, path: &OsStr, memo: &Memo) -> Result<Qemu, QemuError> {
    let name = arch.qemu_program();
    let program = find(path, name).ok_or(QemuError::Missing {
        arch,
        program: name,
    })?;
    let now = SystemTime::now();
    let metadata = fs::metadata(&program).map_err(|source| QemuError::Look {
        program: program.clone(),
        source: Arc::new(source),
    })?;
    let stamp = FileStamp::of(&metadata);
    let subject = format!("version of {}", path_text(&program));
    let state = stamp.to_string();
    let said = match memo.recall(&subject, &state) {
        Some(said) => said,
        None => {
            let said = ask(&program)?;
            if stamp.is_settled(now) {
                memo.note(&subject, &state, &said);
            }
            said
        }
    };
    let Some(version) = Version::parse(&said) else {
        return Err(QemuError::Unreadable { program, said });
    };
    if version < OLDEST {
        return Err(QemuError::TooOld { program, version });
    }
    Ok(Qemu {
        program,
        version,
        build: format!("{said}; {state}"),
    })
}

/// The first line of what `program --version` prints, at most 200 characters.
fn ask(program: &Path) -> Result<String, QemuError> {
    let mut command = Command::new(program);
    command.arg("--version");
    let finished =
        tool::run(command, Stdio::null(), VERSION_DEADLINE).map_err(|source| QemuError::Ask {
            program: program.to_owned(),
            source: Arc::new(source),
        })?;
    let said = match finished.stdout.trim() {
        "" => finished.stderr,
        _ => finished.stdout,
    };
    Ok(said
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|character| !character.is_control())
        .take(200)
        .collect())
}

impl Version {
    /// From `QEMU emulator version 10.0.2 (Debian …)`.
    fn parse(said: &str) -> Option<Version> {
        let numbers = said
            .strip_prefix("QEMU emulator version ")?
            .split(|character: char| !character.is_ascii_digit() && character != '.')
            .next()?;
        let mut numbers = numbers.split('.').map(|number| number.parse::<u16>().ok());
        Some(Version(
            numbers.next()??,
            numbers.next()??,
            numbers.next().unwrap_or(Some(0))?,
        ))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use tempfile::{TempDir, tempdir};

    use super::*;

    /// A folder with a program that counts how often it is run.
    fn fake(name: &str, says: &str) -> TempDir {
        let home = tempdir().unwrap();
        let program = home.path().join(name);
        let count = home.path().join("runs");
        let count = count.display();
        tool::write_script(&program, &format!("echo run >> '{count}'\necho '{says}'"));
        let stamp = FileStamp::of(&fs::metadata(&program).unwrap());
        while !stamp.is_settled(SystemTime::now()) {
            std::hint::spin_loop();
        }
        home
    }

    fn qemus(home: &TempDir) -> Qemus {
        let path = home.path().as_os_str().to_owned();
        Qemus::new(path, Memo::new(home.path().join("facts")))
    }

    #[test]
    fn the_version_is_asked_for_once_for_each_build() {
        let home = fake(
            "qemu-system-x86_64",
            "QEMU emulator version 9.2.1 (Some Linux)",
        );
        for _ in 0..3 {
            let qemus = qemus(&home);
            let qemu = qemus.get(Arch::X86_64).unwrap();
            assert_eq!(qemu.version, Version(9, 2, 1));
            assert_eq!(qemu.program, home.path().join("qemu-system-x86_64"));
            assert!(qemu.build.contains("(Some Linux)"));
        }
        assert_eq!(
            fs::read_to_string(home.path().join("runs")).unwrap(),
            "run\n"
        );
        let program = home.path().join("qemu-system-x86_64");
        tool::write_script(&program, "echo QEMU emulator version 10.1.0");
        assert_eq!(
            qemus(&home).get(Arch::X86_64).unwrap().version,
            Version(10, 1, 0)
        );
    }

    #[test]
    fn what_is_no_usable_qemu_is_said() {
        let home = fake("qemu-system-x86_64", "QEMU emulator version 6.0.0");
        assert_eq!(
            qemus(&home).get(Arch::Aarch64).unwrap_err().to_string(),
            "`qemu-system-aarch64` is not installed"
        );
        let error = qemus(&home).get(Arch::X86_64).unwrap_err().to_string();
        assert!(
            error.ends_with("is QEMU 6.0.0; kiln needs 7.2.0 or newer"),
            "{error}"
        );
        let home = fake("qemu-system-x86_64", "hello");
        let error = qemus(&home).get(Arch::X86_64).unwrap_err().to_string();
        assert!(
            error.ends_with("says `hello`, which is no version of QEMU"),
            "{error}"
        );
    }

    #[test]
    fn versions_are_read() {
        let parse = |text: &str| Version::parse(&format!("QEMU emulator version {text}"));
        assert_eq!(
            parse("10.0.2 (Debian 1:10.0.2+ds-2)"),
            Some(Version(10, 0, 2))
        );
        assert_eq!(parse("8.2.0-rc1"), Some(Version(8, 2, 0)));
        assert_eq!(parse("11.1"), Some(Version(11, 1, 0)));
        for text in ["", "x", "1", "70000.1.1", "1..2"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(Version::parse("qemu-img version 10.0.2"), None);
    }

    #[test]
    fn only_executable_files_in_absolute_folders_are_found() {
        let home = tempdir().unwrap();
        fs::write(home.path().join("tool"), "").unwrap();
        fs::create_dir(home.path().join("folder")).unwrap();
        assert_eq!(find(home.path().as_os_str(), "tool"), None);
        assert_eq!(find(home.path().as_os_str(), "folder"), None);
        assert_eq!(find(OsStr::new(".:bin"), "sh"), None);
        assert_eq!(find(OsStr::new("/bin"), "sh"), Some("/bin/sh".into()));
    }
}
