//! What `kiln doctor` says: one line for each thing that kiln needs or likes to have.
//!
//! Each check is a pure function of what was found; only [`examine`] touches the host. Nothing is
//! printed here.

use std::time::Duration;

mod network;

use kiln_arch::Arch;

use super::distribution::{Distribution, Piece};
use super::firmware::{Firmwares, Uefi};
use super::kvm::{Ask, KvmState};
use super::probe::Host;
use super::qemu::{Qemu, QemuError};
use super::timing;
use crate::error::in_one_line;
use crate::folder::{self, FolderError};
use crate::lvm::program::LvmError;
use crate::lvm::report as lvm;

/// Below this many open files, a supervisor of some fifty machines runs out.
const ENOUGH_FILES: u64 = 1024;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Short and stable: scripts look for it.
    pub name: String,
    pub status: Status,
    /// What there is, as a clause for people.
    pub found: String,
    /// What the user can do, most often a command to run; absent where all is well.
    pub remedy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    Ok,
    /// kiln works, with less.
    Warn,
    /// Something that was asked of kiln will not work.
    Missing,
}

/// Looks at everything; tries KVM again and makes kiln's folders. Takes at most some seconds.
pub fn examine(host: &mut Host) -> Vec<Check> {
    let mut checks = Vec::new();
    let installer = host.installer();
    for arch in Arch::ALL {
        checks.push(qemu(arch, host.arch, host.qemu(arch), installer));
    }
    let firmwares = host.firmwares();
    for arch in Arch::ALL.into_iter().filter(|arch| arch.has_uefi()) {
        checks.push(uefi(arch, Uefi::Open, firmwares, host.distribution));
        if arch.has_secure_boot() {
            checks.push(uefi(arch, Uefi::Secure, firmwares, host.distribution));
        }
    }
    if let Some(arch) = host.arch {
        checks.push(kvm(&host.try_kvm(arch, Ask::Again)));
    }
    host.time_tcg();
    checks.push(tcg(host.tcg_time()));
    for (piece, name, path, use_) in [
        (
            Piece::Ssh,
            "ssh",
            &host.tools.ssh,
            "`kiln ssh` and `kiln cp`",
        ),
        (
            Piece::QemuImg,
            "qemu-img",
            &host.tools.qemu_img,
            "looking at disks by hand",
        ),
        (
            Piece::IgnitionValidate,
            "ignition-validate",
            &host.tools.ignition_validate,
            "a second opinion on Ignition configs",
        ),
        (
            Piece::Swtpm,
            "swtpm",
            &host.tools.swtpm,
            "machines with `tpm: true`",
        ),
    ] {
        let found = path.as_ref().map(|path| path.display().to_string());
        checks.push(tool(name, found, use_, installer.install(piece)));
    }
    checks.push(lvm(&host.lvm().version(), host.is_root(), installer));
    for (name, path) in [
        ("state folder", &host.folders.state),
        ("cache folder", &host.folders.cache),
        ("runtime folder", &host.folders.runtime),
    ] {
        let shown = path.display().to_string();
        checks.push(folder(name, shown, folder::make_private(path)));
    }
    checks.push(virtiofsd(host));
    checks.extend(network::examine(host));
    checks.push(open_files(host.open_files));
    checks
}

fn qemu(
    arch: Arch,
    host: Option<Arch>,
    found: Result<&Qemu, &QemuError>,
    distribution: Distribution,
) -> Check {
    let name = arch.qemu_program().to_owned();
    match found {
        Ok(qemu) => Check {
            name,
            status: Status::Ok,
            found: format!(
                "{} {}, board {}",
                qemu.program.display(),
                qemu.version,
                qemu.board.as_deref().unwrap_or(arch.board_alias())
            ),
            remedy: None,
        },
        Err(error) => Check {
            name,
            // Guests of other architectures are a wish; the host's own are what kiln is for.
            status: match host == Some(arch) {
                true => Status::Missing,
                false => Status::Warn,
            },
            found: format!("{}; it is for {arch} machines", in_one_line(error)),
            remedy: distribution.install(Piece::Qemu(arch)),
        },
    }
}

fn uefi(arch: Arch, uefi: Uefi, firmwares: &Firmwares, distribution: Distribution) -> Check {
    let name = match uefi {
        Uefi::Open => format!("uefi {arch}"),
        Uefi::Secure => format!("uefi-secure {arch}"),
    };
    match firmwares.choose(arch, &arch.board_of(0, 0), uefi) {
        Some(firmware) => Check {
            name,
            status: Status::Ok,
            found: firmware.code.path.display().to_string(),
            remedy: None,
        },
        None => Check {
            name,
            status: Status::Warn,
            found: match (uefi, arch.needs_uefi()) {
                (Uefi::Secure, _) => "not installed; it is for `firmware: uefi-secure`",
                (Uefi::Open, true) => "not installed; without it machines boot no disk",
                (Uefi::Open, false) => "not installed; it is for `firmware: uefi`",
            }
            .to_owned(),
            remedy: distribution.install(Piece::Uefi(arch)),
        },
    }
}

fn kvm(state: &KvmState) -> Check {
    let (status, found, remedy) = match state {
        KvmState::Works => (Status::Ok, "a test guest ran".to_owned(), None),
        KvmState::Unknown => (Status::Warn, "not tried".to_owned(), None),
        KvmState::Fails(why) => (
            Status::Warn,
            format!("{why}; machines run under TCG, which is slower"),
            why.contains("group `kvm`")
                .then(|| "usermod -aG kvm \"$USER\", then log in again".to_owned()),
        ),
    };
    Check {
        name: "kvm".to_owned(),
        status,
        found,
        remedy,
    }
}

fn tcg(took: Option<Duration>) -> Check {
    let minutes =
        |arch| timing::stretched(Duration::from_secs(60), arch, took).as_secs_f64() / 60.0;
    let times = format!(
        "default deadlines of emulated machines are {:.0} to {:.0} times as long",
        minutes(Arch::X86_64),
        minutes(Arch::Ppc64le)
    );
    Check {
        name: "tcg".to_owned(),
        status: Status::Ok,
        found: match took {
            Some(took) => format!("a test guest took {:.2} s; {times}", took.as_secs_f64()),
            None => format!("not timed; {times}"),
        },
        remedy: None,
    }
}

fn tool(name: &str, found: Option<String>, use_: &str, install: Option<String>) -> Check {
    let name = name.to_owned();
    match found {
        Some(path) => Check {
            name,
            status: Status::Ok,
            found: path,
            remedy: None,
        },
        None => Check {
            found: format!("`{name}` is not installed; it is for {use_}"),
            name,
            status: Status::Warn,
            remedy: install,
        },
    }
}

fn lvm(version: &Result<String, LvmError>, is_root: bool, distribution: Distribution) -> Check {
    let warn = |found: String, remedy| Check {
        name: "lvm".to_owned(),
        status: Status::Warn,
        found,
        remedy,
    };
    let text = match version {
        Ok(text) => text,
        Err(LvmError::NotInstalled) => {
            return warn(
                "`lvm` is not installed; it is for `storage: {vg: …}`".to_owned(),
                distribution.install(Piece::Lvm),
            );
        }
        Err(error) => return warn(in_one_line(error), None),
    };
    let own = format!("lvm2 {}", lvm::own_version(text).unwrap_or("of no version"));
    match lvm::driver_version(text) {
        // Only root gets an answer from device-mapper, and only root needs one.
        _ if !is_root => Check {
            name: "lvm".to_owned(),
            status: Status::Ok,
            found: format!("{own}, which only root can use"),
            remedy: None,
        },
        Some(driver) => Check {
            name: "lvm".to_owned(),
            status: Status::Ok,
            found: format!("{own}, device-mapper {driver}"),
            remedy: None,
        },
        None => warn(
            format!("{own}, and this kernel has no device-mapper; `storage: {{vg: …}}` needs it"),
            Some("modprobe dm-mod, or a kernel that has it".to_owned()),
        ),
    }
}

fn virtiofsd(host: &Host) -> Check {
    let (status, found) = match host.virtiofsd() {
        Ok(program) => (Status::Ok, program.display().to_string()),
        Err(why) => (
            Status::Warn,
            format!("{why}; `shares` go by 9p, which is slower"),
        ),
    };
    Check {
        name: "virtiofsd".to_owned(),
        remedy: match host.tools.virtiofsd {
            Some(_) => None,
            None => host.installer().install(Piece::Virtiofsd),
        },
        status,
        found,
    }
}

fn folder(name: &str, path: String, made: Result<(), FolderError>) -> Check {
    let name = name.to_owned();
    match made {
        Ok(()) => Check {
            name,
            status: Status::Ok,
            found: path,
            remedy: None,
        },
        Err(error) => Check {
            name,
            status: Status::Missing,
            found: in_one_line(&error),
            remedy: Some("set KILN_HOME to a folder of yours".to_owned()),
        },
    }
}

fn open_files((soft, hard): (u64, u64)) -> Check {
    let enough = soft >= ENOUGH_FILES;
    Check {
        name: "open files".to_owned(),
        status: if enough { Status::Ok } else { Status::Warn },
        found: format!("{soft} at a time, {hard} at most"),
        remedy: (!enough).then(|| format!("ulimit -n {}", hard.min(ENOUGH_FILES))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::qemu::Version;

    #[test]
    fn a_missing_qemu_comes_with_the_command_that_installs_it() {
        let error = QemuError::Missing {
            arch: Arch::Aarch64,
            program: "qemu-system-aarch64",
        };
        let check = |host| qemu(Arch::Aarch64, host, Err(&error), Distribution::Debian);
        assert_eq!(
            check(Some(Arch::Aarch64)),
            Check {
                name: "qemu-system-aarch64".to_owned(),
                status: Status::Missing,
                found: "`qemu-system-aarch64` is not installed; it is for aarch64 machines"
                    .to_owned(),
                remedy: Some("apt-get install qemu-system-arm".to_owned()),
            }
        );
        assert_eq!(check(Some(Arch::X86_64)).status, Status::Warn);
        assert_eq!(check(None).status, Status::Warn);
    }

    #[test]
    fn an_installed_qemu_is_shown_with_its_version() {
        let found = Qemu {
            program: "/usr/bin/qemu-system-x86_64".into(),
            version: Version(10, 0, 2),
            build: String::new(),
            board: Some("pc-q35-10.0".to_owned()),
            boards: ["pc-q35-10.0".to_owned()].into(),
        };
        let check = qemu(Arch::X86_64, None, Ok(&found), Distribution::Other);
        assert_eq!(check.status, Status::Ok);
        assert_eq!(
            check.found,
            "/usr/bin/qemu-system-x86_64 10.0.2, board pc-q35-10.0"
        );
    }

    #[test]
    fn kvm_that_fails_says_why_and_what_happens_instead() {
        let check = kvm(&KvmState::Fails("there is no /dev/kvm".to_owned()));
        assert_eq!(check.status, Status::Warn);
        assert_eq!(
            check.found,
            "there is no /dev/kvm; machines run under TCG, which is slower"
        );
        assert_eq!(kvm(&KvmState::Works).status, Status::Ok);
    }

    #[test]
    fn lvm_without_device_mapper_is_told_to_root() {
        let version = Ok("  LVM version:     2.03.16(2) (2022-05-18)\n".to_owned());
        let check = lvm(&version, true, Distribution::Debian);
        assert_eq!(check.status, Status::Warn);
        assert!(check.found.contains("no device-mapper"), "{}", check.found);
        let check = lvm(&version, false, Distribution::Debian);
        assert_eq!(check.found, "lvm2 2.03.16(2), which only root can use");
        let missing = Err(LvmError::NotInstalled);
        let check = lvm(&missing, true, Distribution::Debian);
        assert_eq!(check.remedy.as_deref(), Some("apt-get install lvm2"));
    }

    #[test]
    fn few_open_files_are_warned_of_within_the_hard_limit() {
        assert_eq!(open_files((1024, 4096)).status, Status::Ok);
        let check = open_files((256, 512));
        assert_eq!(check.status, Status::Warn);
        assert_eq!(check.remedy.as_deref(), Some("ulimit -n 512"));
    }

    #[test]
    fn a_whole_examination_names_each_thing_once() {
        let home = tempfile::tempdir().unwrap();
        let checks = examine(&mut Host::at_home_in(home.path()));
        let mut names: Vec<&str> = checks.iter().map(|check| check.name.as_str()).collect();
        // Root needs no helper to get out, and others cannot use the host's bridges.
        let many = 23;
        assert_eq!(names.len(), many);
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), many);
    }
}
