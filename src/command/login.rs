//! How the system's ssh gets into a machine: one list of options for `ssh`, `cp`, `ssh-config` and
//! `inventory`.
//!
//! No port has to be published: ssh's ProxyCommand is kiln itself, which asks the supervisor for a
//! stream to the machine's port 22 and hands ssh the descriptor. The host key is pinned, and
//! nothing of the user's own ssh settings or known hosts has a part in it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::command::{Made, Session};
use crate::error::{Error, Exit};

/// The user that CoreOS images and kiln's profiles have.
pub(super) const USER: &str = "core";

/// The options that lead to one machine, in the words of ssh_config(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Login {
    options: Vec<(&'static str, OsString)>,
}

impl Login {
    /// # Errors
    /// The machine has none of kiln's keys, or kiln cannot tell where it lies itself.
    pub(super) fn to(session: &Session<'_>, made: &Made, machine: &str) -> Result<Login, Error> {
        if !made.machine(machine)?.reports {
            return Err(Error::new(
                Exit::Failed,
                format!("machine `{machine}` has `profile: none`: kiln put no key into it"),
            )
            .hint("publish its port 22 and use your own ssh, or `kiln console`"));
        }
        let kiln = std::env::current_exe()
            .map_err(|error| Error::because(Exit::Failed, "cannot tell where kiln lies", &error))?;
        let home = session.host.kiln_home.as_deref();
        let proxy = proxy_command(&kiln, home, &made.record.name, machine);
        Ok(Login {
            options: vec![
                ("HostKeyAlias", machine.into()),
                ("IdentityFile", quoted(&made.files.private_key())),
                ("IdentitiesOnly", "yes".into()),
                ("UserKnownHostsFile", quoted(&made.files.known_hosts())),
                ("GlobalKnownHostsFile", "/dev/null".into()),
                ("StrictHostKeyChecking", "yes".into()),
                ("UpdateHostKeys", "no".into()),
                ("ProxyUseFdpass", "yes".into()),
                ("LogLevel", "ERROR".into()),
                ("ProxyCommand", proxy),
            ],
        })
    }

    /// As arguments of ssh and scp: nothing of the user's own settings is read.
    pub(super) fn args(&self) -> Vec<OsString> {
        let mut args = vec!["-F".into(), "none".into()];
        for (key, value) in &self.options {
            let mut option = OsString::from(format!("{key}="));
            option.push(value);
            args.extend(["-o".into(), option]);
        }
        args
    }

    /// As [`Login::args`], and then to run these words there, each as it is: ssh itself would join
    /// them, and the shell there would take them apart in another way.
    pub(super) fn args_to_run(
        &self,
        user: &str,
        machine: &str,
        words: &[OsString],
    ) -> Vec<OsString> {
        let mut args = self.args();
        args.extend(["-l".into(), user.into(), "--".into(), machine.into()]);
        if !words.is_empty() {
            let words: Vec<Vec<u8>> = words
                .iter()
                .map(|word| shell_word(word, Percent::Plain))
                .collect();
            args.push(OsString::from_vec(words.join(&b' ')));
        }
        args
    }

    /// As a section of a configuration file for these names; non-UTF-8 paths keep their bytes.
    pub(super) fn section(&self, names: &str) -> Vec<u8> {
        let mut text = format!("Host {names}\n    User {USER}\n").into_bytes();
        for (key, value) in &self.options {
            text.extend_from_slice(format!("    {key} ").as_bytes());
            text.extend_from_slice(value.as_bytes());
            text.push(b'\n');
        }
        text
    }

    /// As one text of words in a shell's quotes, which Ansible takes apart again.
    ///
    /// # Errors
    /// A path is not UTF-8, which JSON has no form for.
    pub(super) fn shell_words(&self) -> Result<String, Error> {
        let words: Vec<Vec<u8>> = self
            .args()
            .iter()
            .map(|arg| shell_word(arg, Percent::Plain))
            .collect();
        String::from_utf8(words.join(&b' ')).map_err(|error| {
            Error::because(
                Exit::Failed,
                "a folder of kiln's has a name that is not UTF-8",
                &error,
            )
        })
    }
}

/// `"PATH"`, with the characters that ssh_config(5) would read itself said twice or escaped.
fn quoted(path: &Path) -> OsString {
    let mut text = b"\"".to_vec();
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
///
/// `home` is `KILN_HOME`, which whoever calls ssh later need not have set.
fn proxy_command(kiln: &Path, home: Option<&Path>, cluster: &str, machine: &str) -> OsString {
    let mut text = Vec::new();
    if let Some(home) = home {
        let mut word = OsString::from("KILN_HOME=");
        word.push(home);
        text.extend(*b"env ");
        text.extend(shell_word(&word, Percent::Doubled));
        text.push(b' ');
    }
    text.extend(shell_word(kiln.as_os_str(), Percent::Doubled));
    text.extend(format!(" -c {cluster} proxy {machine} 22").into_bytes());
    OsString::from_vec(text)
}

/// Whether `%` has a meaning to whoever reads the word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Percent {
    Plain,
    Doubled,
}

fn shell_word(word: &OsStr, percent: Percent) -> Vec<u8> {
    let mut text = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => text.extend(*b"'\\''"),
            b'%' if percent == Percent::Doubled => text.extend(*b"%%"),
            _ => text.push(*byte),
        }
    }
    text.push(b'\'');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_paths_reach_ssh_as_one_word() {
        assert_eq!(quoted(Path::new("/a b/%h\"\\")), r#""/a b/%%h\"\\""#);
        let kiln = Path::new("/it's 100%/kiln");
        assert_eq!(
            proxy_command(kiln, None, "demo", "node-1"),
            r"'/it'\''s 100%%/kiln' -c demo proxy node-1 22"
        );
        assert_eq!(
            proxy_command(kiln, Some(Path::new("/h o")), "demo", "node-1"),
            r"env 'KILN_HOME=/h o' '/it'\''s 100%%/kiln' -c demo proxy node-1 22"
        );
    }

    #[test]
    fn the_options_are_said_in_three_ways() {
        let login = Login {
            options: vec![
                ("HostKeyAlias", "node-1".into()),
                ("ProxyCommand", "'/a b/kiln' -c demo proxy node-1 22".into()),
            ],
        };
        assert_eq!(
            String::from_utf8(login.section("node-1")).unwrap(),
            "Host node-1
    User core
    HostKeyAlias node-1
    ProxyCommand '/a b/kiln' -c demo proxy node-1 22
"
        );
        assert_eq!(
            login.shell_words().unwrap(),
            r"'-F' 'none' '-o' 'HostKeyAlias=node-1' '-o' 'ProxyCommand='\''/a b/kiln'\'' -c demo proxy node-1 22'"
        );
    }
}
