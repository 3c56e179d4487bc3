//! How a process ended that is not our child: its parent is told, and whoever looks in time.

#![expect(unsafe_code, reason = "a pidfd's information is had by ioctl(2)")]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::request_code_readwrite;

use super::{Exit, proc};

/// `struct pidfd_info` in its first form (include/uapi/linux/pidfd.h).
#[repr(C)]
#[derive(Default)]
struct Info {
    mask: u64,
    cgroup: u64,
    /// pid, tgid, ppid, and the real, effective, saved and file system's uid and gid.
    ids: [u32; 11],
    exit_code: i32,
}

/// `PIDFD_INFO_EXIT`, from Linux 6.15 on: there once the process was reaped.
const INFO_EXIT: u64 = 1 << 3;

/// How the process ended, which has ended. While nobody has reaped it, /proc tells, and the pidfd
/// afterwards; an older kernel forgets.
pub(super) fn exit(pidfd: BorrowedFd<'_>, pid: u32, start_time: u64) -> Exit {
    let status = proc::exit_status(pid, start_time).or_else(|| told_by(pidfd));
    match status.and_then(|status| u32::try_from(status).ok()) {
        // As wait(2) packs it: the signal's number with the bit of a core dump, or 0 and the code.
        Some(status) if status & 0x7f == 0 => Exit::Code(((status >> 8) & 0xff).cast_signed()),
        Some(status) => Exit::Signal((status & 0x7f).cast_signed()),
        None => Exit::Unknown,
    }
}

fn told_by(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let mut info = Info {
        mask: INFO_EXIT,
        ..Info::default()
    };
    let request = request_code_readwrite!(0xff, 11, size_of::<Info>());
    // SAFETY: the kernel writes as many bytes as the request's number says, which `info` has.
    let result = unsafe { nix::libc::ioctl(pidfd.as_raw_fd(), request, &raw mut info) };
    (result == 0 && info.mask & INFO_EXIT != 0).then_some(info.exit_code)
}
