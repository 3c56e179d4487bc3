//! Runs a short-lived helper program to its end, or to a deadline.
//!
//! For programs that answer and exit, such as `qemu-system-x86_64 --version`; the machines' own
//! QEMUs are the supervisor's. What a tool prints goes to memory files, so that no reader is
//! needed and no pipe can fill up; nothing is left on the disk, and the tool dies with its caller.
#![expect(unsafe_code, reason = "a child's last steps before exec")]

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getppid};

/// Of what a tool prints, this many bytes of each stream are kept.
const KEPT_OUTPUT: u64 = 64 * 1024;

/// How a tool ended, and the beginning of what it printed.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Why a tool gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("cannot start `{program}`")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot wait for `{program}`")]
    Wait {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("`{program}` did not end within {} s", deadline.as_secs_f32())]
    Deadline {
        program: String,
        deadline: Duration,
        /// What it had said on stderr until then.
        stderr: String,
    },
}

/// Runs `command` with `stdin` and waits at most `deadline`; then it is killed.
///
/// An exit status other than 0 is not an error here. The messages are asked for in English.
pub fn run(command: Command, stdin: Stdio, deadline: Duration) -> Result<Finished, ToolError> {
    run_kept(command, stdin, deadline, KEPT_OUTPUT)
}

/// As [`run`], for a tool of whose output up to `kept` bytes of each stream are wanted.
///
/// # Errors
/// [`ToolError`]
pub fn run_kept(
    mut command: Command,
    stdin: Stdio,
    deadline: Duration,
    kept: u64,
) -> Result<Finished, ToolError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let start = |source| ToolError::Start {
        program: program.clone(),
        source,
    };
    let wait = |source| ToolError::Wait {
        program: program.clone(),
        source,
    };
    let mut stdout = memory_file().map_err(start)?;
    let mut stderr = memory_file().map_err(start)?;
    command
        .env("LC_ALL", "C")
        .stdin(stdin)
        .stdout(stdout.try_clone().map_err(start)?)
        .stderr(stderr.try_clone().map_err(start)?);
    die_with_caller(&mut command);
    leave_no_core(&mut command);
    let mut child = command.spawn().map_err(start)?;
    let ended = wait_until(&mut child, deadline).map_err(wait)?;
    let stderr = text(&mut stderr, kept).map_err(wait)?;
    match ended {
        Some(status) => Ok(Finished {
            status,
            stdout: text(&mut stdout, kept).map_err(wait)?,
            stderr,
        }),
        None => Err(ToolError::Deadline {
            program: program.clone(),
            deadline,
            stderr,
        }),
    }
}

/// A file in memory with this content, to be a tool's standard input.
///
/// # Errors
/// No memory is to be had.
pub fn input(bytes: &[u8]) -> io::Result<File> {
    let mut file = memory_file()?;
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

fn memory_file() -> io::Result<File> {
    Ok(memfd_create("kiln-tool", MFdFlags::MFD_CLOEXEC).map(File::from)?)
}

/// Reaps the child when it ends, or at the deadline, when it is killed first and `None` comes back.
fn wait_until(child: &mut Child, deadline: Duration) -> io::Result<Option<ExitStatus>> {
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    let (sender, receiver) = mpsc::channel();
    // It only looks: the pid stays the child's own until this thread reaps it.
    let watch = move || {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(Pid::from_raw(pid)), flags) == Err(Errno::EINTR) {}
        // The caller may have given up, and then does not listen.
        let _ = sender.send(());
    };
    let watcher = thread::Builder::new().spawn(watch);
    let in_time = watcher.is_ok() && receiver.recv_timeout(deadline).is_ok();
    if !in_time {
        child.kill()?;
    }
    let status = child.wait()?;
    // The child is gone, so the watcher ends by itself; it cannot panic.
    let _ = watcher?.join();
    Ok(in_time.then_some(status))
}

/// The program is killed when the thread that starts it ends.
pub fn die_with_caller(command: &mut Command) {
    let parent = Pid::this();
    let last_steps = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != parent {
            return Err(Errno::ESRCH.into());
        }
        Ok(())
    };
    // SAFETY: the closure makes two system calls and touches no memory but its own.
    unsafe { command.pre_exec(last_steps) };
}

fn leave_no_core(command: &mut Command) {
    let last_step = || Ok(setrlimit(Resource::RLIMIT_CORE, 0, 0)?);
    // SAFETY: the closure makes one system call and touches no memory but its own.
    unsafe { command.pre_exec(last_step) };
}

fn text(file: &mut File, kept: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(kept).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Writes an executable shell script, by a child: were it written here, a test that forks at that
/// moment would hold it open for writing, and starting it would fail with "text file busy".
#[cfg(test)]
pub(crate) fn write_script(path: &std::path::Path, lines: &str) {
    let status = Command::new("/bin/sh")
        .args([
            "-c",
            "printf '#!/bin/sh\\n%s\\n' \"$2\" >\"$1\" && chmod 755 \"$1\"",
            "-",
        ])
        .arg(path)
        .arg(lines)
        .status();
    assert!(status.unwrap().success());
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn shell(script: &str, deadline: Duration) -> Result<Finished, ToolError> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        run(command, Stdio::null(), deadline)
    }

    #[test]
    fn both_streams_and_the_status_come_back() {
        let finished = shell("echo out; echo err >&2; exit 3", Duration::from_secs(10)).unwrap();
        assert_eq!(finished.status.code(), Some(3));
        assert_eq!(finished.stdout, "out\n");
        assert_eq!(finished.stderr, "err\n");
    }

    #[test]
    fn a_tool_that_hangs_is_killed_at_its_deadline_and_its_words_are_kept() {
        let begun = Instant::now();
        let error = shell("echo stuck >&2; exec sleep 60", Duration::from_millis(300)).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert!(
            matches!(&error, ToolError::Deadline { stderr, .. } if stderr == "stuck\n"),
            "{error:?}"
        );
        assert_eq!(error.to_string(), "`/bin/sh` did not end within 0.3 s");
    }

    #[test]
    fn a_tool_that_is_not_there_cannot_be_started() {
        let error = run(
            Command::new("/nonexistent/tool"),
            Stdio::null(),
            Duration::from_secs(1),
        )
        .unwrap_err();
        assert!(matches!(error, ToolError::Start { .. }));
    }

    #[test]
    fn a_flood_is_cut_and_does_not_block() {
        let finished = shell("yes | head -c 1000000", Duration::from_secs(10)).unwrap();
        assert_eq!(finished.stdout.len(), 64 * 1024);
    }
}
