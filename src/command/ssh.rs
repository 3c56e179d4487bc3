//! `kiln ssh` and `kiln cp`: the real ssh and scp, over the control socket ([`super::login`]).

use std::ffi::OsString;
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::cli::args::{CopyArgs, ProxyArgs, SshArgs};
use crate::client::{Client, ClientError};
use crate::cluster::MachineName;
use crate::command::login::Login;
use crate::command::{Made, Session};
use crate::error::{Error, Exit};
use crate::supervisor::protocol::ClusterStatus;

pub(super) fn run(session: &Session<'_>, args: &SshArgs) -> Result<(), Error> {
    let made = session.made()?;
    let name = args.machine.as_str();
    let login = Login::to(session, &made, name)?;
    let ssh = program(session)?;
    refuse_dead(&made, name)?;
    let mut command = Command::new(ssh);
    command
        .args(login.args())
        .arg("-l")
        .arg(&args.login)
        .arg("--")
        .arg(name)
        .args(&args.command);
    Err(become_it(command))
}

/// `kiln cp`: the machine is known by the `NAME:` before a path.
pub(super) fn copy(session: &Session<'_>, args: &CopyArgs) -> Result<(), Error> {
    let made = session.made()?;
    let name = the_machine(args)?;
    let login = Login::to(session, &made, name.as_str())?;
    let scp = tool(session.host.tools.scp.as_deref(), "scp")?;
    refuse_dead(&made, name.as_str())?;
    let mut command = Command::new(scp);
    command
        .args(login.args())
        .arg("-o")
        .arg(format!("User={}", args.login));
    if args.recursive {
        command.arg("-r");
    }
    if session.global.quiet {
        command.arg("-q");
    }
    command.arg("--").args(&args.from).arg(&args.to);
    Err(become_it(command))
}

/// The one machine that the paths name; on one side of the copy, because scp would otherwise go
/// from one machine to the other by a way of its own.
fn the_machine(args: &CopyArgs) -> Result<MachineName, Error> {
    let usage = |text: &str| {
        Error::new(Exit::Usage, text).hint(
            "such as `kiln cp node-1:/etc/os-release .` or `kiln cp file node-1:/tmp/`; write a local path with a colon as `./a:b`",
        )
    };
    let from: Vec<Option<MachineName>> = args.from.iter().map(machine_of).collect();
    match (from.first().cloned().flatten(), machine_of(&args.to)) {
        (Some(_), Some(_)) => Err(usage("only one side of a copy can be a machine's")),
        (None, None) => Err(usage("neither side of the copy is a machine's")),
        (None, Some(name)) if from.iter().all(Option::is_none) => Ok(name),
        (Some(name), None) if from.iter().all(|other| other.as_ref() == Some(&name)) => Ok(name),
        (Some(_), None) | (None, Some(_)) => Err(usage("a copy is from or to one machine")),
    }
}

/// As scp reads it: a path is a machine's when a colon comes before any slash.
fn machine_of(path: &OsString) -> Option<MachineName> {
    let bytes = path.as_bytes();
    let colon = bytes.iter().position(|byte| b":/".contains(byte))?;
    if bytes[colon] != b':' {
        return None;
    }
    std::str::from_utf8(&bytes[..colon]).ok()?.parse().ok()
}

/// The system's ssh.
pub(super) fn program<'a>(session: &'a Session<'_>) -> Result<&'a Path, Error> {
    tool(session.host.tools.ssh.as_deref(), "ssh")
}

fn tool<'a>(found: Option<&'a Path>, name: &str) -> Result<&'a Path, Error> {
    found.ok_or_else(|| {
        Error::new(Exit::Host, format!("`{name}` is not installed"))
            .hint("`kiln doctor` says which command installs it here")
    })
}

/// Returns only where the program cannot be run.
fn become_it(mut command: Command) -> Error {
    let error = command.exec();
    Error::because(
        Exit::Host,
        format!(
            "cannot run `{}`",
            Path::new(command.get_program()).display()
        ),
        &error,
    )
}

/// ssh would only say that its proxy gave it nothing. Where no supervisor lives, this one adopts
/// the machines; the proxy then finds it.
pub(super) fn refuse_dead(made: &Made, name: &str) -> Result<(), Error> {
    let status: ClusterStatus = Client::look(&made.files)?.status()?;
    let cluster = &made.record.name;
    match status.machines.iter().find(|machine| machine.name == name) {
        Some(machine) if machine.pid.is_none() => Err(Error::new(
            Exit::Failed,
            format!("machine `{name}` is {}", machine.state.word()),
        )
        .hint(format!("`kiln -c {cluster} start {name}` starts it"))),
        Some(_) | None => Ok(()),
    }
}

/// `kiln proxy`: passes ssh a connected descriptor through stdout.
pub(super) fn proxy(session: &Session<'_>, args: &ProxyArgs) -> Result<(), Error> {
    let made = session.made()?;
    let name = args.machine.as_str();
    made.known(name)?;
    let client = Client::look(&made.files)?;
    let stream = client.stream(name, args.port.get()).map_err(|error| {
        let refused = matches!(error, ClientError::Refused { .. });
        let told = Error::from_source(Exit::Failed, &error);
        if refused {
            told.hint(format!(
                "is it ready? `kiln -c {} ps` tells",
                made.record.name
            ))
        } else {
            told
        }
    })?;
    let fds = [stream.as_raw_fd()];
    sendmsg::<()>(
        std::io::stdout().as_raw_fd(),
        &[IoSlice::new(&[0])],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        None,
    )
    .map_err(|error| {
        Error::because(Exit::Failed, "cannot hand the connection to ssh", &error)
            .hint("`kiln proxy` is for ssh's ProxyCommand with ProxyUseFdpass=yes")
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(from: &[&str], to: &str, want: Result<&str, &str>) {
        let args = CopyArgs {
            from: from.iter().map(OsString::from).collect(),
            to: to.into(),
            recursive: false,
            login: "core".to_owned(),
        };
        let found = the_machine(&args).map(|name| name.to_string());
        assert_eq!(
            found.as_deref().map_err(|error| error.message.as_str()),
            want
        );
    }

    #[test]
    fn one_side_of_a_copy_names_one_machine() {
        check(&["a:/etc/hosts"], ".", Ok("a"));
        check(&["x", "y"], "web-1:", Ok("web-1"));
        check(&["a:/x", "a:/y"], "/tmp", Ok("a"));
        check(&["./a:b", "/c:d"], "web:/tmp", Ok("web"));
        let neither = Err("neither side of the copy is a machine's");
        check(&["x"], "y", neither);
        check(&["./a:b"], "/c:d", neither);
        check(&["A_:x"], "y", neither);
        check(
            &["a:x"],
            "b:y",
            Err("only one side of a copy can be a machine's"),
        );
        let one = Err("a copy is from or to one machine");
        check(&["a:x", "b:y"], ".", one);
        check(&["x", "b:y"], "c:", one);
    }
}
