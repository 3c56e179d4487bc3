//! How slow emulation is on this host: timed, so that default deadlines fit it.
//!
//! The first `up` with an emulated machine has a tiny guest count in its memory, once until the
//! host reboots or its QEMU changes. Reading the remembered time is free; only
//! [`crate::host::Host::time_tcg`] waits.

use std::time::{Duration, Instant};

use kiln_arch::Arch;

use super::kvm::{self, Accel, run_guest};
use super::payload;
use super::qemu::Qemu;
use crate::memo::Memo;

/// How long the guest may take; it needs a tenth of a second on the machines kiln is made on.
pub(super) const DEADLINE: Duration = Duration::from_secs(2);

/// Of whose QEMU the guest is taken: the first of these that is installed. The time is about the
/// same with each.
pub(super) const TRIED: [Arch; 3] = [Arch::X86_64, Arch::I386, Arch::Aarch64];

/// What the guest took, [`DEADLINE`] where it did not end by then; absent when it was not timed
/// since the host booted.
pub(super) fn remembered(memo: &Memo, boot_id: &str, qemu: &Qemu) -> Option<Duration> {
    let millis = memo.recall(&subject(qemu), &kvm::state(boot_id, qemu))?;
    Some(Duration::from_millis(millis.parse().ok()?))
}

/// Starts the guest and remembers how long it took. Absent when it cannot be run.
pub(super) fn time(memo: &Memo, boot_id: &str, arch: Arch, qemu: &Qemu) -> Option<Duration> {
    let payload = payload::busy(arch)?;
    let begun = Instant::now();
    let ran = run_guest(&qemu.program, &payload, Accel::Tcg, DEADLINE);
    let took = begun.elapsed();
    if let Err(why) = ran
        && took < DEADLINE
    {
        tracing::debug!(%why, "how slow emulation is was not found out");
        return None;
    }
    let millis = took.min(DEADLINE).as_millis();
    let state = kvm::state(boot_id, qemu);
    memo.note(&subject(qemu), &state, &millis.to_string());
    Some(took.min(DEADLINE))
}

fn subject(qemu: &Qemu) -> String {
    format!("tcg by {}", crate::memo::path_text(&qemu.program))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tempfile::tempdir;

    use super::*;
    use crate::host::Host;
    use crate::host::qemu::OLDEST;
    use crate::tool;

    fn fake(program: PathBuf) -> Qemu {
        Qemu {
            program,
            version: OLDEST,
            build: "one".to_owned(),
            board: None,
            boards: [].into(),
        }
    }

    #[test]
    fn the_guests_that_count_come_to_an_end() {
        let home = tempdir().unwrap();
        let host = Host::at_home_in(home.path());
        for arch in TRIED {
            let qemu = host.qemu(arch).unwrap();
            let payload = payload::busy(arch).unwrap();
            let minute = Duration::from_secs(60);
            let ran = run_guest(&qemu.program, &payload, Accel::Tcg, minute);
            assert_eq!(ran, Ok(()), "{arch}");
        }
    }

    #[test]
    fn the_time_is_taken_once() {
        let home = tempdir().unwrap();
        let memo = Memo::new(home.path().join("facts"));
        // It ends as the guest does, and only the first time.
        let program = home.path().join("qemu");
        tool::write_script(&program, "rm \"$0\"; exit 99");
        let qemu = fake(program);
        assert_eq!(remembered(&memo, "boot", &qemu), None);
        let took = time(&memo, "boot", Arch::X86_64, &qemu).unwrap();
        let millis = |time: Duration| time.as_millis();
        assert_eq!(
            remembered(&memo, "boot", &qemu).map(millis),
            Some(millis(took))
        );
        assert_eq!(remembered(&memo, "another boot", &qemu), None);
        assert_eq!(time(&memo, "another boot", Arch::X86_64, &qemu), None);
    }

    #[test]
    fn a_guest_that_does_not_end_is_given_up() {
        let home = tempdir().unwrap();
        let memo = Memo::new(home.path().join("facts"));
        let program = home.path().join("qemu");
        tool::write_script(&program, "exec sleep 60");
        let qemu = fake(program);
        assert_eq!(time(&memo, "boot", Arch::X86_64, &qemu), Some(DEADLINE));
        assert_eq!(remembered(&memo, "boot", &qemu), Some(DEADLINE));
    }
}
