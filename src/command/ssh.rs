//! `kiln ssh`: the real ssh, over the control socket, with the host key pinned.
//!
//! No port has to be published: ssh's ProxyCommand is kiln itself, which asks the
//! supervisor for a stream to the machine's port 22 and hands ssh the descriptor.

use std::ffi::{OsStr, OsString};
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::cli::args::{ProxyArgs, SshArgs};
use crate::client::{Client, ClientError};
use crate::command::Session;
use crate::error::{Error, Exit};
use crate::supervisor::protocol::ClusterStatus;

pub(super) fn run(session: &Session<'_>, args: &SshArgs) -> Result<(), Error> {
    let made = session.made()?;
    let name = args.machine.as_str();
    if !made.machine(name)?.reports {
        return Err(Error::new(
            Exit::Failed,
            format!("machine `{name}` has `profile: none`: kiln put no key into it"),
        )
        .hint("publish its port 22 and use your own ssh, or `kiln console`"));
    }
    let Some(ssh) = &session.host.tools.ssh else {
        return Err(Error::new(Exit::Host, "`ssh` is not installed")
            .hint("`kiln doctor` says which command installs it here"));
    };
    // Where no supervisor lives, this one adopts the machines; the proxy then finds it.
    let status = Client::look(&made.files)?.status()?;
    refuse_dead(&status, &made.record.name, name)?;
    let kiln = std::env::current_exe()
        .map_err(|error| Error::because(Exit::Failed, "cannot tell where kiln lies", &error))?;
    let cluster = &made.record.name;
    let error = Command::new(ssh)
        .arg("-F")
        .arg("none")
        .arg("-i")
        .arg(made.files.private_key())
        .args(["-o", "IdentitiesOnly=yes"])
        .arg("-o")
        .arg(option("UserKnownHostsFile", &made.files.known_hosts()))
        .args(["-o", "GlobalKnownHostsFile=/dev/null"])
        .args(["-o", "StrictHostKeyChecking=yes"])
        .args(["-o", "UpdateHostKeys=no"])
        .args(["-o", "ProxyUseFdpass=yes"])
        .args(["-o", "LogLevel=ERROR"])
        .arg("-o")
        .arg(format!("HostKeyAlias={name}"))
        .arg("-o")
        .arg(proxy_command(&kiln, cluster, name))
        .arg("-l")
        .arg(&args.login)
        .arg("--")
        .arg(name)
        .args(&args.command)
        .exec();
    Err(Error::because(
        Exit::Host,
        format!("cannot run `{}`", ssh.display()),
        &error,
    ))
}

/// ssh would only say that its proxy gave it nothing.
fn refuse_dead(status: &ClusterStatus, cluster: &str, name: &str) -> Result<(), Error> {
    match status.machines.iter().find(|machine| machine.name == name) {
        Some(machine) if machine.pid.is_none() => Err(Error::new(
            Exit::Failed,
            format!("machine `{name}` is {}", machine.state.word()),
        )
        .hint(format!("`kiln -c {cluster} start {name}` starts it"))),
        Some(_) | None => Ok(()),
    }
}

/// `KEY="PATH"`, with the characters that ssh_config(5) would read itself said twice or escaped.
fn option(key: &str, path: &Path) -> OsString {
    let mut text = format!("{key}=\"").into_bytes();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'"' | b'\\' => text.extend([b'\\', *byte]),
            b'%' => text.extend(*b"%%"),
            _ => text.push(*byte),
        }
    }
    text.push(b'"');
    OsString::from_vec(text)
}

/// ssh gives this to the user's shell, behind an `exec`, after it has replaced `%` sequences.
fn proxy_command(kiln: &Path, cluster: &str, machine: &str) -> OsString {
    let mut text = b"ProxyCommand=".to_vec();
    text.extend(shell_word(kiln.as_os_str()));
    text.extend(format!(" -c {cluster} proxy {machine} 22").into_bytes());
    OsString::from_vec(text)
}

fn shell_word(word: &OsStr) -> Vec<u8> {
    let mut text = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => text.extend(*b"'\\''"),
            b'%' => text.extend(*b"%%"),
            _ => text.push(*byte),
        }
    }
    text.push(b'\'');
    text
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

    #[test]
    fn odd_paths_reach_ssh_as_one_word() {
        assert_eq!(
            option("UserKnownHostsFile", Path::new("/a b/%h\"\\")),
            r#"UserKnownHostsFile="/a b/%%h\"\\""#
        );
        assert_eq!(
            proxy_command(Path::new("/it's 100%/kiln"), "demo", "node-1"),
            r"ProxyCommand='/it'\''s 100%%/kiln' -c demo proxy node-1 22"
        );
    }
}
