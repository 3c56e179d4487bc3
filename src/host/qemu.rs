//! Which QEMU runs guests of an architecture here, its version, and its boards.
//!
//! Each costs 20 ms to ask for, so they are remembered for as long as the program's file stays
//! what it is; a command on an existing cluster starts no program for them.

use std::collections::BTreeSet;
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
use crate::tool::{self, Finished, ToolError};

/// The oldest QEMU that has `-netdev stream`, on which the fabric stands; that of Debian 12.
pub const OLDEST: Version = Version(7, 2, 0);

const ASK_DEADLINE: Duration = Duration::from_secs(10);

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
    /// The versioned board that a new machine gets: what the alias stands for, in the words of
    /// whoever built this QEMU. Absent where the board has no versions.
    pub board: Option<String>,
    /// The names of all its boards.
    pub boards: BTreeSet<String>,
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
    #[error("cannot ask `{}` what it is", program.display())]
    Ask {
        program: PathBuf,
        #[source]
        source: Arc<ToolError>,
    },
    #[error("`{} --version` says `{said}`, which is no version of QEMU", program.display())]
    Unreadable { program: PathBuf, said: String },
    #[error("`{}` is QEMU {version}; kiln needs {OLDEST} or newer", program.display())]
    TooOld { program: PathBuf, version: Version },
    #[error("`{}` has no board `{board}`, which {arch} machines have", program.display())]
    NoBoard {
        arch: Arch,
        program: PathBuf,
        board: &'static str,
    },
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
            .get_or_init(|| {
                let name = arch.qemu_program();
                let program = find(&self.path, name).ok_or(QemuError::Missing {
                    arch,
                    program: name,
                })?;
                self.examine(arch, program)
            })
            .as_ref()
    }

    /// This program, as the QEMU for guests of `arch`.
    pub(super) fn examine(&self, arch: Arch, program: PathBuf) -> Result<Qemu, QemuError> {
        let now = SystemTime::now();
        let metadata = fs::metadata(&program).map_err(|source| QemuError::Look {
            program: program.clone(),
            source: Arc::new(source),
        })?;
        let stamp = FileStamp::of(&metadata);
        let state = stamp.to_string();
        let fact = |what: &str, args: &[&str], cut: &dyn Fn(Finished) -> String| {
            let subject = format!("{what} of {}", path_text(&program));
            if let Some(fact) = self.memo.recall(&subject, &state) {
                return Ok(fact);
            }
            let fact = cut(ask(&program, args)?);
            if stamp.is_settled(now) {
                self.memo.note(&subject, &state, &fact);
            }
            Ok(fact)
        };
        let said = fact("version", &["--version"], &first_line)?;
        let Some(version) = Version::parse(&said) else {
            return Err(QemuError::Unreadable { program, said });
        };
        if version < OLDEST {
            return Err(QemuError::TooOld { program, version });
        }
        let listed = fact("boards", &["-machine", "help"], &|help| {
            name_boards(&help.stdout)
        })?;
        let names = || listed.lines().map(|line| line.split(' '));
        let alias = arch.board_alias();
        let Some(board) = names().find_map(|mut names| match names.next() {
            Some(name) if name == alias => Some(names.next().map(str::to_owned)),
            _ => None,
        }) else {
            return Err(QemuError::NoBoard {
                arch,
                program,
                board: alias,
            });
        };
        let boards = names().filter_map(|mut names| names.next().map(str::to_owned));
        Ok(Qemu {
            boards: boards.collect(),
            board,
            build: format!("{said}; {state}"),
            version,
            program,
        })
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
pub(crate) fn find(path: &OsStr, name: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|file| {
            fs::metadata(file)
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
}

/// What `program` prints when asked; it reads nothing.
fn ask(program: &Path, args: &[&str]) -> Result<Finished, QemuError> {
    let mut command = Command::new(program);
    command.args(args);
    tool::run(command, Stdio::null(), ASK_DEADLINE).map_err(|source| QemuError::Ask {
        program: program.to_owned(),
        source: Arc::new(source),
    })
}

/// The first line of what it said, at most 200 characters.
fn first_line(finished: Finished) -> String {
    let said = match finished.stdout.trim() {
        "" => finished.stderr,
        _ => finished.stdout,
    };
    said.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|character| !character.is_control())
        .take(200)
        .collect()
}

/// The names in what `-machine help` prints, one a line; after an alias's, what it stands for.
fn name_boards(help: &str) -> String {
    let mut names = String::new();
    // The first line is a heading.
    for line in help.lines().skip(1) {
        let Some((name, words)) = line.split_once(' ') else {
            continue;
        };
        names.push_str(name);
        if let Some((_, target)) = words.split_once("(alias of ") {
            names.push(' ');
            names.push_str(target.split(')').next().unwrap_or_default());
        }
        names.push('\n');
    }
    names
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

    /// A script that answers as QEMU does, having the boards of 9.2.
    fn answers(version: &str) -> String {
        format!(
            "case $1 in\n-machine) cat <<END\n\
             Supported machines are:\n\
             none                 empty machine\n\
             pc-q35-9.1           Standard PC (Q35 + ICH9, 2009)\n\
             q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-9.2)\n\
             pc-q35-9.2           Standard PC (Q35 + ICH9, 2009)\n\
             END\n;;\n*) echo '{version}' ;;\nesac"
        )
    }

    /// A folder with a program that counts how often it is run.
    fn fake(name: &str, says: &str) -> TempDir {
        let home = tempdir().unwrap();
        let program = home.path().join(name);
        let count = home.path().join("runs");
        let count = count.display();
        tool::write_script(
            &program,
            &format!("echo run >> '{count}'\n{}", answers(says)),
        );
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
    fn each_build_is_asked_once() {
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
            assert_eq!(qemu.board.as_deref(), Some("pc-q35-9.2"));
            let boards: Vec<&str> = qemu.boards.iter().map(String::as_str).collect();
            assert_eq!(boards, ["none", "pc-q35-9.1", "pc-q35-9.2", "q35"]);
        }
        assert_eq!(
            fs::read_to_string(home.path().join("runs")).unwrap(),
            "run\nrun\n"
        );
        let program = home.path().join("qemu-system-x86_64");
        tool::write_script(&program, &answers("QEMU emulator version 10.1.0"));
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
        let home = fake("qemu-system-aarch64", "QEMU emulator version 9.2.0");
        let error = qemus(&home).get(Arch::Aarch64).unwrap_err().to_string();
        assert!(
            error.ends_with("has no board `virt`, which aarch64 machines have"),
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
