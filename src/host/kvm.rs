//! Whether KVM runs guests here: tried, not seen.
//!
//! `/dev/kvm` opens on hosts whose guests then hang, so the first machine that wants KVM has a
//! tiny guest started before it, with a deadline. The verdict holds until the host reboots or its
//! QEMU changes. Reading the remembered one is free; only [`crate::host::Host::try_kvm`] waits.

use std::fs::OpenOptions;
use std::io::{self, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use kiln_arch::Arch;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::payload::{self, Payload, Proof};
use super::qemu::Qemu;
use crate::memo::Memo;
use crate::tool::{self, ToolError};

/// How long the test guest may take; it needs 50 ms where KVM works.
pub const DEADLINE: Duration = Duration::from_secs(2);

const DEVICE: &str = "/dev/kvm";

/// What is known of KVM for guests of the host's own architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmState {
    /// The device opens, and nobody has tried it since the host booted.
    Unknown,
    /// A guest ran.
    Works,
    /// The reason, as a clause for people.
    Fails(String),
}

/// Whether a verdict from before is good enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Take the remembered one, as every command does.
    Remembered,
    /// Try again, for a host that was too busy the first time or was put right; for `doctor`.
    Again,
}

/// What can be told without starting anything.
pub(super) fn remembered(memo: &Memo, boot_id: &str, qemu: &Qemu) -> KvmState {
    if let Err(why) = open_device(Path::new(DEVICE)) {
        return KvmState::Fails(why);
    }
    match memo.recall(&subject(qemu), &state(boot_id, qemu)) {
        None => KvmState::Unknown,
        Some(verdict) if verdict.is_empty() => KvmState::Works,
        Some(why) => KvmState::Fails(why),
    }
}

/// Starts the test guest, unless the device does not even open, and remembers how it went.
pub(super) fn try_boot(memo: &Memo, boot_id: &str, arch: Arch, qemu: &Qemu) -> KvmState {
    if let Err(why) = open_device(Path::new(DEVICE)) {
        return KvmState::Fails(why);
    }
    let verdict = payload::for_arch(arch)
        .ok_or_else(|| "kiln has no test guest for this architecture yet".to_owned())
        .and_then(|payload| run_guest(&qemu.program, &payload, Accel::Kvm, DEADLINE))
        .map_err(|trouble| format!("{DEVICE} opens, but {trouble}"));
    let note = match &verdict {
        Ok(()) => "",
        Err(why) => why,
    };
    memo.note(&subject(qemu), &state(boot_id, qemu), note);
    verdict.map_or_else(KvmState::Fails, |()| KvmState::Works)
}

fn subject(qemu: &Qemu) -> String {
    format!("kvm by {}", crate::memo::path_text(&qemu.program))
}

/// What a verdict of a test guest depends on.
pub(super) fn state(boot_id: &str, qemu: &Qemu) -> String {
    // Another kiln may bring another test guest.
    let kiln = env!("CARGO_PKG_VERSION");
    format!("boot {boot_id}; kiln {kiln}; {}", qemu.build)
}

/// An error is the reason, as a clause for people.
fn open_device(device: &Path) -> Result<(), String> {
    let name = device.display();
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!("there is no {name}")),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(format!(
            "{name} may not be opened by this user, who is perhaps not in the group `kvm`"
        )),
        Err(error) => Err(format!("{name} cannot be opened: {error}")),
    }
}

/// The group by which a QEMU without root's rights may open the device; absent where everyone
/// may. An error is the reason why none may, as a clause for people.
pub(super) fn group() -> Result<Option<u32>, String> {
    match std::fs::metadata(DEVICE) {
        // Who opens it says what is wrong.
        Err(_) => Ok(None),
        Ok(found) => group_of(found.mode(), found.gid()),
    }
}

fn group_of(mode: u32, gid: u32) -> Result<Option<u32>, String> {
    let (for_all, for_group) = (0o006, 0o060);
    if mode & for_all == for_all {
        Ok(None)
    } else if mode & for_group == for_group {
        Ok(Some(gid))
    } else {
        Err(format!(
            "{DEVICE} is for root alone, and kiln's QEMUs do not run as root (`chgrp kvm {DEVICE} && chmod 660 {DEVICE}` opens it to them)"
        ))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accel {
    Kvm,
    Tcg,
}

/// An error is the reason, as a clause for people.
pub(super) fn run_guest(
    program: &Path,
    payload: &Payload,
    accel: Accel,
    deadline: Duration,
) -> Result<(), String> {
    let firmware = in_memory(&payload.firmware)
        .map_err(|error| format!("the test guest could not be made: {error}"))?;
    // The processor that kiln's machines get, which must work as well.
    let (accel, cpu) = match accel {
        Accel::Kvm => ("kvm", "host"),
        Accel::Tcg => ("tcg", "max"),
    };
    let mut command = Command::new(program);
    command
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-m", "32"])
        .args(payload.args)
        .args(["-accel", accel, "-cpu", cpu])
        .args(["-bios", "/proc/self/fd/0"]);
    let finished = match tool::run(command, firmware, deadline) {
        Ok(finished) => finished,
        Err(ToolError::Deadline { stderr, .. }) => {
            let said = complaint(&stderr);
            return Err(format!(
                "a test guest did not run within {} s{said}",
                deadline.as_secs_f32()
            ));
        }
        Err(error @ (ToolError::Start { .. } | ToolError::Wait { .. })) => {
            return Err(error.to_string());
        }
    };
    let ran = match payload.proof {
        Proof::Exit(status) => finished.status.code() == Some(status),
        Proof::Output(output) => finished.status.success() && finished.stdout == output,
    };
    if ran {
        return Ok(());
    }
    Err(format!(
        "a test guest did not run: QEMU ended with {}{}",
        finished.status,
        complaint(&finished.stderr)
    ))
}

fn in_memory(bytes: &[u8]) -> io::Result<Stdio> {
    let mut file = std::fs::File::from(memfd_create("kiln-test-guest", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(Stdio::from(file))
}

/// QEMU's first line that is no warning, for the end of a sentence; may be empty.
fn complaint(stderr: &str) -> String {
    let line = stderr
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.contains("warning:"));
    match line {
        None => String::new(),
        Some(line) => {
            let line: String = line
                .chars()
                .filter(|character| !character.is_control())
                .take(200)
                .collect();
            format!(" (it said `{line}`)")
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_device_for_root_alone_is_of_no_use_to_root() {
        assert_eq!(group_of(0o020_666, 7), Ok(None));
        assert_eq!(group_of(0o020_660, 7), Ok(Some(7)));
        assert!(group_of(0o020_600, 0).is_err());
    }

    use std::path::PathBuf;
    use std::time::Instant;

    use tempfile::tempdir;

    use super::*;
    use crate::host::qemu::{self, Version};

    /// Without it, a guest that is broken itself would pass for a host without KVM.
    #[test]
    fn the_test_guests_run_under_tcg() {
        for arch in [Arch::X86_64, Arch::Aarch64] {
            let path = std::env::var_os("PATH").unwrap();
            let name = arch.qemu_program();
            let program = qemu::find(&path, name)
                .unwrap_or_else(|| panic!("{name} is missing: this test needs it"));
            let payload = payload::for_arch(arch).unwrap();
            let minute = Duration::from_secs(60);
            assert_eq!(run_guest(&program, &payload, Accel::Tcg, minute), Ok(()));
        }
    }

    fn fake(script: &str) -> (tempfile::TempDir, PathBuf) {
        let home = tempdir().unwrap();
        let program = home.path().join("qemu");
        tool::write_script(&program, script);
        (home, program)
    }

    #[test]
    fn a_guest_that_hangs_is_no_working_kvm() {
        let (_home, program) =
            fake("echo 'warning: x' >&2; echo 'KVM internal error' >&2; exec sleep 60");
        let begun = Instant::now();
        let deadline = Duration::from_millis(200);
        let payload = payload::for_arch(Arch::X86_64).unwrap();
        assert_eq!(
            run_guest(&program, &payload, Accel::Kvm, deadline).unwrap_err(),
            "a test guest did not run within 0.2 s (it said `KVM internal error`)"
        );
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn an_exit_that_the_guest_did_not_bring_about_is_no_working_kvm() {
        let (_home, program) = fake("exit 0");
        for arch in [Arch::X86_64, Arch::Aarch64] {
            let payload = payload::for_arch(arch).unwrap();
            assert_eq!(
                run_guest(&program, &payload, Accel::Kvm, DEADLINE).unwrap_err(),
                "a test guest did not run: QEMU ended with exit status: 0"
            );
        }
    }

    #[test]
    fn a_device_that_does_not_open_says_why() {
        let home = tempdir().unwrap();
        let device = home.path().join("kvm");
        assert_eq!(
            open_device(&device).unwrap_err(),
            format!("there is no {}", device.display())
        );
        assert!(
            open_device(home.path())
                .unwrap_err()
                .contains("cannot be opened: ")
        );
    }

    #[test]
    fn the_verdict_holds_for_one_boot_and_one_build() {
        let home = tempdir().unwrap();
        let memo = Memo::new(home.path().to_owned());
        let qemu = Qemu {
            program: "/q".into(),
            version: Version(10, 0, 2),
            build: "one".to_owned(),
            board: None,
            boards: [].into(),
        };
        memo.note(&subject(&qemu), &state("boot-1", &qemu), "why");
        let recall = |boot: &str, qemu: &Qemu| memo.recall(&subject(qemu), &state(boot, qemu));
        assert_eq!(recall("boot-1", &qemu).as_deref(), Some("why"));
        assert_eq!(recall("boot-2", &qemu), None);
        let rebuilt = Qemu {
            build: "two".to_owned(),
            ..qemu
        };
        assert_eq!(recall("boot-1", &rebuilt), None);
    }
}
