//! A folder as a mount of its own that is attached to nothing and known by a descriptor alone.
//!
//! Whoever is handed one reaches that folder and nothing above it, by no right to the folders on the
//! way; the kernel keeps a read-only one from being written to; and the folder's owner can be mapped
//! to another user, who then does there what the owner could. All of this asks for root, and the
//! mapping for a file system that allows it (ext4, xfs, btrfs, tmpfs; not overlayfs).
#![expect(unsafe_code, reason = "mounts by descriptor have no safe wrappers")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::libc::{self, c_int, c_long};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// Who is to have the rights of the folder's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

/// Makes such a mount of the folder that is open. No set-user-id bit and no device works in it.
///
/// # Errors
/// The kernel's: among others EPERM for who is no root or is in a container without the right to
/// mount, EINVAL for a file system without mapped owners.
pub fn mount(folder: &File, readonly: bool, owner: Option<User>) -> io::Result<OwnedFd> {
    let found = folder.metadata()?;
    let users = match owner {
        Some(user) => Some(mapping((found.uid(), user.uid), (found.gid(), user.gid))?),
        None => None,
    };
    let flags = libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC
        | u32::try_from(libc::AT_EMPTY_PATH).unwrap_or_default();
    // SAFETY: a number and two constants; the descriptor that comes back is new.
    let mount = unsafe {
        let fd = libc::syscall(libc::SYS_open_tree, folder.as_raw_fd(), c"".as_ptr(), flags);
        owned(fd)?
    };
    let mut set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    if readonly {
        set |= libc::MOUNT_ATTR_RDONLY;
    }
    if users.is_some() {
        set |= libc::MOUNT_ATTR_IDMAP;
    }
    let users = users.as_ref().map_or(0, |users| users.as_raw_fd());
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(users).unwrap_or_default(),
    };
    // SAFETY: the struct is the kernel's, and as long as is said.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    Errno::result(done)?;
    Ok(mount)
}

/// A user namespace that says which user on the disk is which one here.
fn mapping(user: (u32, u32), group: (u32, u32)) -> io::Result<OwnedFd> {
    let parent = Pid::this().as_raw();
    // SAFETY: the new process makes system calls and nothing else.
    let pid = unsafe {
        let pid = clone_process(libc::CLONE_NEWUSER);
        if pid == 0 {
            // It has all of kiln's descriptors, locks among them, and goes when kiln is killed.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            while libc::getppid() == parent {
                libc::pause();
            }
            libc::_exit(0);
        }
        Errno::result(pid)?
    };
    let pid = Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?);
    let made = (|| {
        for (file, (on_disk, here)) in [("uid_map", user), ("gid_map", group)] {
            fs::write(
                format!("/proc/{pid}/{file}"),
                format!("{on_disk} {here} 1\n"),
            )?;
        }
        Ok(File::open(format!("/proc/{pid}/ns/user"))?.into())
    })();
    // It is our child and not waited for, so the number is still its own.
    let _ = kill(pid, Signal::SIGKILL);
    while waitpid(pid, None) == Err(Errno::EINTR) {}
    made
}

/// As fork, with these flags of clone(2) besides.
///
/// # Safety
/// As with fork, the new process may only make system calls: another thread may hold any lock.
pub(crate) unsafe fn clone_process(flags: c_int) -> c_long {
    let flags = c_long::from(flags | libc::SIGCHLD);
    // SAFETY: without memory of its own the new process has a copy of ours, as by fork.
    unsafe {
        #[cfg(target_arch = "s390x")]
        return libc::syscall(libc::SYS_clone, 0, flags, 0, 0, 0);
        #[cfg(not(target_arch = "s390x"))]
        libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0)
    }
}

/// SAFETY: the number, if it is one, is of a descriptor that nobody else has.
unsafe fn owned(fd: c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
    // SAFETY: as the caller says.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn path(mount: &OwnedFd) -> PathBuf {
        format!("/proc/self/fd/{}", mount.as_raw_fd()).into()
    }

    #[test]
    fn a_mount_maps_the_owner_and_keeps_what_is_read_only_as_root() {
        if !nix::unistd::geteuid().is_root() {
            // The whole is tried by `kiln` itself, which then goes without: `host/virtiofsd.rs`.
            let folder = File::open("/").unwrap();
            assert!(mount(&folder, true, None).is_err());
            return;
        }
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("file"), "text").unwrap();
        std::os::unix::fs::chown(home.path(), Some(1234), Some(1235)).unwrap();
        let folder = File::open(home.path()).unwrap();
        let user = User {
            uid: 61184,
            gid: 61185,
        };
        let Ok(mapped) = mount(&folder, false, Some(user)) else {
            panic!(
                "the file system of {} maps no owners",
                home.path().display()
            );
        };
        let found = fs::metadata(path(&mapped)).unwrap();
        assert_eq!((found.uid(), found.gid()), (61184, 61185));
        // Others are nobody there.
        let other = fs::metadata(path(&mapped).join("file")).unwrap();
        assert_eq!(other.uid(), 65534);

        let readonly = mount(&folder, true, None).unwrap();
        assert_eq!(
            fs::read_to_string(path(&readonly).join("file")).unwrap(),
            "text"
        );
        let refused = fs::write(path(&readonly).join("file"), "other").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        // There is nothing above.
        assert!(path(&readonly).join("../file").exists());
    }
}
