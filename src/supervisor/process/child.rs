//! From fork to exec.
//!
//! Own code in place of `std::process::Command`, for two reasons: that one's
//! error pipe takes whichever number is free, also one that the child wants for
//! a descriptor; and its errors do not say which step failed.
//!
//! Everything that allocates or may lock is done before the fork; the child
//! makes system calls and nothing else, for another thread of the parent may
//! have held any lock.

#![expect(
    unsafe_code,
    reason = "fork, and what comes between it and exec, is in system calls"
)]

use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::ptr::null;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{self, c_char, c_int, c_long, c_uint, c_ulong};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2};

use super::step::{SpawnError, Step};
use super::{Companion, Identity};
use crate::detached::clone_process;

/// What the child becomes.
pub(super) struct Plan {
    pub(super) program: PathBuf,
    /// Its `argv[0]`; the program's path when absent.
    pub(super) name: Option<OsString>,
    pub(super) args: Vec<OsString>,
    pub(super) environment: Vec<OsString>,
    pub(super) fds: Vec<(OwnedFd, RawFd)>,
    pub(super) output: OwnedFd,
    pub(super) role: Role,
    /// Other programs with the same rights, in the same session and process group.
    pub(super) companions: Vec<Companion>,
}

/// The pids of what was started.
#[derive(Debug, Clone)]
pub(super) struct Started {
    pub(super) pid: u32,
    /// In the order in which they were asked for.
    pub(super) companions: Vec<u32>,
}

#[derive(Clone, Copy)]
pub(super) enum Role {
    /// A child of ours that nobody trusts.
    Confined(Identity),
    /// A process of its own with our rights, child of init.
    Daemon,
}

/// Everything that the child needs, in the form in which the kernel takes it.
struct Ready {
    main: Target,
    companions: Vec<Target>,
    /// As all other descriptors here, with a number above every wanted one.
    input: OwnedFd,
    report: OwnedFd,
    role: Role,
    descriptors: c_int,
}

/// A program that is to be executed.
struct Target {
    program: CString,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    output: OwnedFd,
    fds: Vec<(OwnedFd, RawFd)>,
    umask: libc::mode_t,
    /// A mount that nobody else sees, and where it goes.
    mount: Option<(OwnedFd, &'static CStr)>,
    /// Own what `argv` and `envp` point to.
    _strings: Vec<CString>,
}

/// In place of a step in the child's report: its pid follows.
const PID: i32 = 0;
/// Added to what the first companion reports; twice to what the second one does, and so on.
const COMPANION: i32 = 64;

/// Starts it, waits until it runs the program, and gives its pid.
pub(super) fn start(plan: Plan) -> Result<Started, SpawnError> {
    let program = plan.program.clone();
    let beside: Vec<PathBuf> = plan
        .companions
        .iter()
        .map(|it| it.program.clone())
        .collect();
    let role = plan.role;
    let (mut report, ready) = prepare(plan)?;
    let failed = |source: io::Error| SpawnError::Prepare {
        program: program.clone(),
        source,
    };

    // No handler of ours may run in the child.
    let mut before = SigSet::empty();
    pthread_sigmask(
        SigmaskHow::SIG_SETMASK,
        Some(&SigSet::all()),
        Some(&mut before),
    )
    .map_err(|error| failed(error.into()))?;
    // SAFETY: the child calls `run` only, which keeps to system calls.
    let forked = unsafe {
        let forked = libc::fork();
        if forked == 0 {
            run(&ready);
        }
        Errno::result(forked)
    };
    // Cannot fail: the arguments are as good as they were above.
    let restored = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    drop(ready);
    let child = forked
        .map(Pid::from_raw)
        .map_err(|error| failed(error.into()))?;
    restored.map_err(|error| failed(error.into()))?;

    // The daemon's own parent ends at once; a confined child only on failure.
    if let Role::Daemon = role {
        reap(child);
    }
    let mut said = Vec::new();
    let read = report.read_to_end(&mut said);
    let mut words = said
        .chunks_exact(4)
        .map(|word| i32::from_ne_bytes(word.try_into().unwrap_or_default()));
    let (mut pid, mut companions, mut failure) = (None, Vec::new(), None);
    while let (Some(what), Some(value)) = (words.next(), words.next()) {
        let by = match usize::try_from(what / COMPANION) {
            Ok(0) => Some(&program),
            Ok(count) => beside.get(count - 1),
            Err(_) => None,
        };
        match (what % COMPANION, what / COMPANION) {
            (PID, 0) => pid = u32::try_from(value).ok(),
            // Each is begun when the one before has said its number.
            (PID, _) => companions.extend(u32::try_from(value).ok()),
            _ => {
                let step = Step::ALL
                    .into_iter()
                    .find(|&step| step as i32 == what % COMPANION);
                if let (None, Some(step), Some(by)) = (&failure, step, by) {
                    failure = Some(SpawnError::Child {
                        program: by.clone(),
                        step,
                        source: io::Error::from_raw_os_error(value),
                    });
                }
            }
        }
    }
    let started = match (failure, read, pid) {
        (Some(failure), _, _) => Err(failure),
        (None, Err(source), _) => Err(SpawnError::Prepare { program, source }),
        (None, Ok(_), None) => Err(SpawnError::Died { program }),
        (None, Ok(_), Some(pid)) => Ok(Started {
            pid,
            companions: companions.clone(),
        }),
    };
    if started.is_err()
        && let Role::Confined(_) = role
    {
        // Neither goes on without the other.
        companions.into_iter().for_each(abandon);
        abandon(child.as_raw().cast_unsigned());
    }
    started
}

/// Ends a child that cannot be held.
pub(super) fn abandon(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        // It is our child and not waited for, so the number is still its own.
        if kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
            reap(Pid::from_raw(pid));
        }
    }
}

fn reap(child: Pid) {
    while waitpid(child, None) == Err(Errno::EINTR) {}
}

fn prepare(plan: Plan) -> Result<(File, Ready), SpawnError> {
    let Plan {
        program,
        name,
        args,
        environment,
        fds,
        output,
        role,
        companions,
    } = plan;
    let failed = |source: io::Error| SpawnError::Prepare {
        program: program.clone(),
        source,
    };
    // Above all wanted numbers, nothing can be overwritten before it was moved.
    let beside = companions.iter().flat_map(|it| &it.fds);
    let wanted = fds.iter().chain(beside).map(|&(_, number)| number);
    let above = 1 + wanted.max().unwrap_or(2);

    let (report, writer) = pipe2(OFlag::O_CLOEXEC).map_err(|error| failed(error.into()))?;
    let null = File::open("/dev/null").map_err(failed)?;
    let ready = Ready {
        companions: companions
            .into_iter()
            .map(|it| companion(it, above))
            .collect::<Result<_, _>>()?,
        input: raise(null.into(), above).map_err(failed)?,
        report: raise(writer, above).map_err(failed)?,
        main: {
            let name = name.unwrap_or_else(|| program.clone().into_os_string());
            target(program, name, args, environment, fds, output, above)?
        },
        role,
        descriptors: above.max(65_536),
    };
    Ok((report.into(), ready))
}

fn companion(companion: Companion, above: RawFd) -> Result<Target, SpawnError> {
    let Companion {
        program,
        args,
        fds,
        output,
        umask,
        mount,
    } = companion;
    let failed = |source: io::Error| SpawnError::Prepare {
        program: program.clone(),
        source,
    };
    let mount = match mount {
        Some((mount, place)) => Some((raise(mount, above).map_err(failed)?, place)),
        None => None,
    };
    let name = program.clone().into_os_string();
    let target = target(program, name, args, Vec::new(), fds, output, above)?;
    Ok(Target {
        umask,
        mount,
        ..target
    })
}

fn target(
    program: PathBuf,
    name: OsString,
    args: Vec<OsString>,
    environment: Vec<OsString>,
    fds: Vec<(OwnedFd, RawFd)>,
    output: OwnedFd,
    above: RawFd,
) -> Result<Target, SpawnError> {
    let nul = |_| SpawnError::Nul {
        program: program.clone(),
    };
    let failed = |source: io::Error| SpawnError::Prepare {
        program: program.clone(),
        source,
    };
    for (place, &(_, number)) in fds.iter().enumerate() {
        if number < 3 || fds[..place].iter().any(|&(_, other)| other == number) {
            return Err(SpawnError::Number { program, number });
        }
    }
    let raise = |fd: OwnedFd| raise(fd, above).map_err(failed);
    let strings = [name]
        .into_iter()
        .chain(args)
        .map(|text| CString::new(text.into_vec()))
        .collect::<Result<Vec<CString>, _>>()
        .map_err(nul)?;
    let mut variables = environment
        .into_iter()
        .map(|text| CString::new(text.into_vec()))
        .collect::<Result<Vec<CString>, _>>()
        .map_err(nul)?;
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings
            .iter()
            .map(|text| text.as_ptr())
            .chain([null()])
            .collect()
    };
    let (argv, envp) = (pointers(&strings), pointers(&variables));
    variables.extend(strings);

    Ok(Target {
        program: CString::new(program.clone().into_os_string().into_vec()).map_err(nul)?,
        argv,
        envp,
        output: raise(output)?,
        fds: fds
            .into_iter()
            .map(|(fd, number)| Ok((raise(fd)?, number)))
            .collect::<Result<Vec<_>, SpawnError>>()?,
        umask: 0o077,
        mount: None,
        _strings: variables,
    })
}

fn raise(fd: OwnedFd, above: RawFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() >= above {
        return Ok(fd);
    }
    let raised = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(above))?;
    // SAFETY: the kernel just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(raised) })
}

/// The child's life until exec.
///
/// SAFETY: to be called after fork, in the child. Allocates nothing, locks
/// nothing, and does not return.
unsafe fn run(ready: &Ready) -> ! {
    // SAFETY: system calls on numbers, and on memory that `ready` owns.
    unsafe {
        let step = match steps(ready) {
            Ok(never) => match never {},
            Err(step) => step,
        };
        report(ready, step as i32, *libc::__errno_location());
        libc::_exit(127)
    }
}

unsafe fn report(ready: &Ready, what: i32, value: i32) {
    let words = [what, value];
    // SAFETY: the words are there, eight bytes of them; a pipe takes those whole.
    unsafe {
        libc::write(
            ready.report.as_raw_fd(),
            words.as_ptr().cast(),
            size_of_val(&words),
        );
    }
}

/// Each step in turn; the one that failed, with `errno` set.
///
/// SAFETY: as [`run`].
unsafe fn steps(ready: &Ready) -> Result<std::convert::Infallible, Step> {
    // SAFETY: system calls on numbers, and on memory that `ready` owns.
    unsafe {
        // All zero is the default action, whatever the architecture's layout.
        // By the raw call, because libc keeps two signals to itself, and those
        // too may have come to us ignored.
        let default = [0u64; 8];
        for signal in 1..=64 {
            // Fails for the two that cannot be changed.
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const default,
                null::<u8>(),
                8,
            );
        }
        check(c_long::from(libc::setsid()), Step::Session)?;
        if let Role::Daemon = ready.role {
            // The session's leader goes, so that the daemon can never get a
            // terminal, and init inherits it.
            match libc::fork() {
                0 => {}
                -1 => return Err(Step::Fork),
                _ => libc::_exit(0),
            }
        }
        report(ready, PID, libc::getpid());
        let mut offset = 0;
        for companion in &ready.companions {
            offset += COMPANION;
            // A child of our parent's, who can so wait for it; in our session and process group.
            match clone_process(libc::CLONE_PARENT) {
                0 => {
                    let step = match become_program(ready, companion) {
                        Ok(never) => match never {},
                        Err(step) => step,
                    };
                    report(ready, offset + step as i32, *libc::__errno_location());
                    libc::_exit(127)
                }
                -1 => return Err(Step::Fork),
                // In the order of the list, whichever of them is the faster.
                pid => report(
                    ready,
                    offset + PID,
                    c_int::try_from(pid).unwrap_or_default(),
                ),
            }
        }
        become_program(ready, &ready.main)
    }
}

/// The steps that end in exec, in the process that is to run `target`.
///
/// SAFETY: as [`run`].
unsafe fn become_program(ready: &Ready, target: &Target) -> Result<std::convert::Infallible, Step> {
    // SAFETY: system calls on numbers, and on memory that `ready` owns.
    unsafe {
        libc::umask(target.umask);
        if let Some((mount, place)) = &target.mount {
            check(attach(mount, place), Step::Mount)?;
        }
        check(c_long::from(libc::chdir(c"/".as_ptr())), Step::Directory)?;
        // 1 and not 0: the kernel gives dumps to a core_pattern program at any
        // limit but 1, and writes none to files below a page.
        let limit = libc::rlimit {
            rlim_cur: 1,
            rlim_max: 1,
        };
        check(
            c_long::from(libc::setrlimit(libc::RLIMIT_CORE, &limit)),
            Step::Limits,
        )?;

        close_all_at_exec(ready.descriptors);
        for (number, fd) in [(0, &ready.input), (1, &target.output), (2, &target.output)] {
            check(
                c_long::from(libc::dup2(fd.as_raw_fd(), number)),
                Step::Descriptors,
            )?;
        }
        for (fd, number) in &target.fds {
            check(
                c_long::from(libc::dup2(fd.as_raw_fd(), *number)),
                Step::Descriptors,
            )?;
        }

        if let Role::Confined(identity) = ready.role {
            confine(identity)?;
        }
        let none = SigSet::empty();
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ref(), std::ptr::null_mut());
        libc::execve(
            target.program.as_ptr(),
            target.argv.as_ptr(),
            target.envp.as_ptr(),
        );
        Err(Step::Execute)
    }
}

/// Puts a mount where only this process and its children see it. Asks for root.
///
/// SAFETY: as [`run`].
unsafe fn attach(mount: &OwnedFd, place: &CStr) -> c_long {
    // SAFETY: system calls on numbers and on text that the caller owns.
    unsafe {
        let unshared = libc::unshare(libc::CLONE_NEWNS);
        if unshared != 0 {
            return c_long::from(unshared);
        }
        // Nothing that is done here shows outside.
        let own = libc::MS_REC | libc::MS_PRIVATE;
        let (none, root) = (null::<c_char>(), c"/".as_ptr());
        let alone = libc::mount(none, root, none, own, null());
        if alone != 0 {
            return c_long::from(alone);
        }
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            place.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_SYMLINKS,
        )
    }
}

/// SAFETY: as [`run`].
unsafe fn close_all_at_exec(descriptors: c_int) {
    // SAFETY: system calls on numbers.
    unsafe {
        let closed = libc::syscall(
            libc::SYS_close_range,
            3,
            c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
        if closed != 0 {
            // Linux before 5.11, or a filter.
            for number in 3..descriptors {
                libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
    }
}

/// For a short-lived program, between fork and exec: what a [`Companion`] has of mounts and rights.
///
/// # Errors
/// The kernel's.
pub fn confined(identity: Identity, mount: Option<&(OwnedFd, &'static CStr)>) -> io::Result<()> {
    let confined = || {
        if let Some((mount, place)) = mount {
            // SAFETY: a descriptor and a text that are there.
            check(unsafe { attach(mount, place) }, Step::Mount)?;
        }
        // SAFETY: it is only this process, which is about to become another program.
        unsafe { confine(identity) }
    };
    confined().map_err(|_| io::Error::last_os_error())
}

/// Gives up everything that can be given up.
///
/// SAFETY: as [`run`].
unsafe fn confine(identity: Identity) -> Result<(), Step> {
    const VERSION_3: u32 = 0x2008_0522;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    // SAFETY: system calls on numbers and on these structs, which are the
    // kernel's. The raw calls, because libc's own tell all threads and may lock.
    unsafe {
        for capability in 0..64 as c_ulong {
            // Allowed to some only; the others have nothing to gain (below).
            libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
        }
        if let Identity::Drop { uid, gid } = identity {
            check(
                libc::syscall(libc::SYS_setgroups, 0, null::<libc::gid_t>()),
                Step::Identity,
            )?;
            check(
                libc::syscall(libc::SYS_setresgid, gid, gid, gid),
                Step::Identity,
            )?;
            check(
                libc::syscall(libc::SYS_setresuid, uid, uid, uid),
                Step::Identity,
            )?;
        }
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        );
        let header = Header {
            version: VERSION_3,
            pid: 0,
        };
        let nothing = [[0u32; 3]; 2];
        check(
            libc::syscall(libc::SYS_capset, &raw const header, &raw const nothing),
            Step::Privileges,
        )?;
        check(
            c_long::from(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)),
            Step::Privileges,
        )
    }
}

fn check(result: c_long, step: Step) -> Result<(), Step> {
    if result < 0 { Err(step) } else { Ok(()) }
}
