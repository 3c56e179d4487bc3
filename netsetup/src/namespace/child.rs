//! The child that steps inside: from fork to its end in a millisecond or two.
//!
//! Between fork and exit it makes system calls and nothing else, for another thread of the parent may have held any
//! lock. What it opened comes over a socket pair, or the step that failed and the kernel's error number.

#![expect(
    unsafe_code,
    reason = "fork, and what the child does, is in system calls"
)]

use std::ffi::CStr;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc::{self, c_int};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg,
    setsockopt, socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::{Inside, Maker, Namespace, NamespaceError};

/// How long the child may take, in seconds. It takes milliseconds, also on a busy host.
const DEADLINE: i64 = 10;
/// Descriptors that are passed at a time; the kernel takes 253.
pub(crate) const MOST: usize = 64;

/// How the child gets inside.
pub(super) enum Way<'a> {
    Make(Maker),
    Enter(&'a Namespace),
}

/// What the child does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Step {
    /// Make a user namespace, and a network namespace in it.
    UserNamespace = 1,
    /// Make a network namespace.
    NetworkNamespace,
    /// Say who is root in it.
    Map,
    /// Have packets routed on in it.
    Forwarding,
    /// Enter the cluster's namespaces.
    Enter,
    /// Open a socket in it.
    Socket,
    /// Open `/dev/net/tun`.
    Tun,
    /// Open the namespaces' own files in /proc.
    Handles,
    /// Pass them out.
    Pass,
}

impl Step {
    const ALL: [Step; 9] = [
        Step::UserNamespace,
        Step::NetworkNamespace,
        Step::Map,
        Step::Forwarding,
        Step::Enter,
        Step::Socket,
        Step::Tun,
        Step::Handles,
        Step::Pass,
    ];
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::UserNamespace => "make a user namespace",
            Step::NetworkNamespace => "make a network namespace",
            Step::Map => "be root in the new user namespace",
            Step::Forwarding => "set net.ipv4.ip_forward in the new network namespace",
            Step::Enter => "enter the cluster's network namespace",
            Step::Socket => "open a socket in the cluster's network namespace",
            Step::Tun => "open /dev/net/tun",
            Step::Handles => "open the new namespaces in /proc",
            Step::Pass => "pass descriptors out of the network namespace",
        })
    }
}

/// What the child needs, made before the fork.
struct Ready<'a> {
    way: Way<'a>,
    wanted: &'a [Inside],
    report: OwnedFd,
    /// `0 UID 1` and `0 GID 1`.
    uid_map: String,
    gid_map: String,
}

/// Runs the child and gives what it opened: with [`Way::Make`] the namespaces, then what is wanted.
pub(super) fn run(way: Way<'_>, wanted: &[Inside]) -> Result<Vec<OwnedFd>, NamespaceError> {
    let start = |errno: Errno| NamespaceError::Start(errno.into());
    let (ours, report) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(start)?;
    setsockopt(&ours, sockopt::ReceiveTimeout, &TimeVal::seconds(DEADLINE)).map_err(start)?;
    let (uid, gid) = match way {
        Way::Make(Maker::User { uid, gid }) => (uid, gid),
        Way::Make(Maker::Root) | Way::Enter(_) => (0, 0),
    };
    let ready = Ready {
        way,
        wanted,
        report,
        uid_map: format!("0 {uid} 1"),
        gid_map: format!("0 {gid} 1"),
    };
    // No handler of the parent's may run in the child.
    let mut before = SigSet::empty();
    pthread_sigmask(
        SigmaskHow::SIG_SETMASK,
        Some(&SigSet::all()),
        Some(&mut before),
    )
    .map_err(start)?;
    // SAFETY: the child calls `inside` only, which keeps to system calls and ends it.
    let forked = unsafe {
        let forked = libc::fork();
        if forked == 0 {
            inside(&ready);
        }
        Errno::result(forked)
    };
    // Cannot fail: the arguments are as good as they were above.
    let restored = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    drop(ready);
    let child = forked.map(Pid::from_raw).map_err(start)?;
    let received = receive(&ours);
    if received.is_err() {
        // It is our child and not waited for, so the number is still its own.
        let _ = kill(child, Signal::SIGKILL);
    }
    while waitpid(child, None) == Err(Errno::EINTR) {}
    restored.map_err(start)?;
    received
}

fn receive(socket: &OwnedFd) -> Result<Vec<OwnedFd>, NamespaceError> {
    let mut words = [0; 8];
    let mut space = nix::cmsg_space!([RawFd; MOST]);
    let mut slices = [IoSliceMut::new(&mut words)];
    let message = loop {
        match recvmsg::<UnixAddr>(
            socket.as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(Errno::EINTR) => {}
            other => break other.map_err(|errno| NamespaceError::Start(errno.into()))?,
        }
    };
    let length = message.bytes;
    let mut fds = Vec::new();
    for control in message
        .cmsgs()
        .map_err(|errno| NamespaceError::Start(errno.into()))?
    {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            fds.extend(numbers.into_iter().map(|number| {
                // SAFETY: the kernel just made it for us, and nobody else has it.
                unsafe { OwnedFd::from_raw_fd(number) }
            }));
        }
    }
    let word =
        |at: usize| i32::from_ne_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]]);
    if length < words.len() {
        return Err(NamespaceError::Died);
    }
    match Step::ALL.into_iter().find(|step| *step as i32 == word(0)) {
        None => Ok(fds),
        Some(step) => Err(NamespaceError::Step {
            step,
            source: io::Error::from_raw_os_error(word(4)),
        }),
    }
}

/// The child's life.
///
/// SAFETY: to be called after fork, in the child. Allocates nothing, locks nothing, and does not return.
unsafe fn inside(ready: &Ready<'_>) -> ! {
    // SAFETY: system calls on numbers, and on memory that `ready` or this frame owns.
    unsafe {
        let mut fds = [-1; MOST];
        let (step, errno, count) = match steps(ready, &mut fds) {
            Ok(count) => (0, 0, count),
            Err(step) => (step as c_int, *libc::__errno_location(), 0),
        };
        if pass(ready, [step, errno], &fds[..count]) < 0 {
            pass(ready, [Step::Pass as c_int, *libc::__errno_location()], &[]);
        }
        libc::_exit(0)
    }
}

/// Sends two words and the descriptors.
///
/// SAFETY: as [`inside`].
unsafe fn pass(ready: &Ready<'_>, words: [c_int; 2], fds: &[c_int]) -> isize {
    #[repr(C, align(8))]
    struct Control([u8; 16 + MOST * size_of::<c_int>()]);
    let mut control = Control([0; 16 + MOST * size_of::<c_int>()]);
    let mut slice = libc::iovec {
        iov_base: words.as_ptr().cast_mut().cast(),
        iov_len: size_of_val(&words),
    };
    // SAFETY: all zero is a message of nothing; what it points to lives until the call is over, and `Control` has room
    // for a header and `MOST` descriptors.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut slice;
        message.msg_iovlen = 1;
        if let Ok(bytes) = u32::try_from(size_of_val(fds))
            && bytes > 0
        {
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(bytes) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(bytes) as _;
            libc::CMSG_DATA(header).copy_from_nonoverlapping(fds.as_ptr().cast(), size_of_val(fds));
        }
        libc::sendmsg(
            ready.report.as_raw_fd(),
            &raw const message,
            libc::MSG_NOSIGNAL,
        )
    }
}

/// Each step in turn; how many descriptors there are, or the step that failed, with `errno` set.
///
/// SAFETY: as [`inside`].
unsafe fn steps(ready: &Ready<'_>, fds: &mut [c_int; MOST]) -> Result<usize, Step> {
    let mut count = 0;
    let mut keep = |fd: c_int, step: Step| {
        // More than fit are asked for by nobody.
        let slot = fds.get_mut(count).filter(|_| fd >= 0).ok_or(step)?;
        *slot = fd;
        count += 1;
        Ok(())
    };
    // SAFETY: system calls on numbers, and on memory that `ready` owns.
    unsafe {
        match &ready.way {
            Way::Make(maker) => {
                match maker {
                    Maker::Root => {
                        check(libc::unshare(libc::CLONE_NEWNET), Step::NetworkNamespace)?;
                    }
                    Maker::User { .. } => {
                        check(libc::unshare(libc::CLONE_NEWUSER), Step::UserNamespace)?;
                        write(c"/proc/self/setgroups", b"deny", Step::Map)?;
                        write(c"/proc/self/uid_map", ready.uid_map.as_bytes(), Step::Map)?;
                        write(c"/proc/self/gid_map", ready.gid_map.as_bytes(), Step::Map)?;
                        check(libc::unshare(libc::CLONE_NEWNET), Step::NetworkNamespace)?;
                    }
                }
                write(c"/proc/sys/net/ipv4/ip_forward", b"1", Step::Forwarding)?;
                // Where it is there (br_netfilter), frames between machines would be taken for packets that this
                // namespace routes. Where it cannot be set, they only go a longer way: so before Linux 5.3, which had
                // one setting for all namespaces, but its file in the first one alone and so not here.
                let _ = write(
                    c"/proc/sys/net/bridge/bridge-nf-call-iptables",
                    b"0",
                    Step::Forwarding,
                );
                keep(open(c"/proc/self/ns/net", libc::O_RDONLY), Step::Handles)?;
                if let Maker::User { .. } = maker {
                    keep(open(c"/proc/self/ns/user", libc::O_RDONLY), Step::Handles)?;
                }
            }
            Way::Enter(namespace) => {
                if let Some(user) = &namespace.user {
                    let entered = libc::setns(user.as_raw_fd(), libc::CLONE_NEWUSER);
                    check(entered, Step::Enter)?;
                }
                let entered = libc::setns(namespace.net.as_raw_fd(), libc::CLONE_NEWNET);
                check(entered, Step::Enter)?;
            }
        }
        for wanted in ready.wanted {
            let (family, kind, protocol) = match wanted {
                Inside::Tun => {
                    keep(
                        open(c"/dev/net/tun", libc::O_RDWR | libc::O_NONBLOCK),
                        Step::Tun,
                    )?;
                    continue;
                }
                Inside::Route => (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE),
                Inside::Netfilter => (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER),
                Inside::Udp => (libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, 0),
                Inside::Tcp => (libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0),
                Inside::Packet => (libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, 0),
            };
            keep(
                libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol),
                Step::Socket,
            )?;
        }
    }
    Ok(count)
}

/// SAFETY: as [`inside`].
unsafe fn open(path: &CStr, flags: c_int) -> c_int {
    // SAFETY: the path is a C string.
    unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) }
}

/// SAFETY: as [`inside`].
unsafe fn write(path: &CStr, bytes: &[u8], step: Step) -> Result<(), Step> {
    // SAFETY: the path is a C string, and the bytes are there.
    unsafe {
        let fd = open(path, libc::O_WRONLY);
        check(fd, step)?;
        let written = libc::write(fd, bytes.as_ptr().cast(), bytes.len());
        // The child ends before long; what matters is whether it was written.
        if written < 0 { Err(step) } else { Ok(()) }
    }
}

fn check(result: c_int, step: Step) -> Result<(), Step> {
    if result < 0 { Err(step) } else { Ok(()) }
}
