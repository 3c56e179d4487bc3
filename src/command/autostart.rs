//! `kiln autostart`: a unit of systemd's by which a cluster comes up again after the host was booted.
//!
//! The unit starts what was made, as it was made: no spec is read and nothing is changed. It is
//! enabled as systemd does it, by a link in the folder of the target that wants it, so that nothing
//! of systemd has to run for that.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Serialize;

use crate::cli::args::{AutostartArgs, AutostartVerb};
use crate::command::Session;
use crate::error::{Error, Exit};
use crate::state::layout::ClusterFiles;
use crate::tool;

/// Where an administrator's units lie.
const SYSTEM_UNITS: &str = "/etc/systemd/system";
/// There while systemd runs (sd_booted(3)).
const RUNNING: &str = "/run/systemd/system";
const RELOAD_DEADLINE: Duration = Duration::from_secs(30);

/// The unit of one cluster, and where it lies.
struct Unit {
    name: String,
    /// The first line of it: by this it is known to be ours.
    mark: String,
    folder: PathBuf,
    target: &'static str,
    is_user: bool,
}

#[derive(Serialize)]
struct View<'a> {
    unit: &'a str,
    path: PathBuf,
    enabled: bool,
    text: String,
}

pub(super) fn run(session: &Session<'_>, args: &AutostartArgs) -> Result<(), Error> {
    let made = session.made()?;
    let unit = Unit::of(session, &made.files, args.user || !session.host.is_root())?;
    let text = unit.text(session, &made.record.name)?;
    match args.verb {
        AutostartVerb::Show => {}
        AutostartVerb::Enable => {
            unit.enable(&text)?;
            unit.reload(session);
            if unit.is_user {
                session.report.note(
                    "a user's units start at the user's first login; `loginctl enable-linger` has them start with the host",
                );
            }
        }
        AutostartVerb::Disable => {
            unit.disable()?;
            unit.reload(session);
        }
    }
    let view = View {
        unit: &unit.name,
        path: unit.path(),
        enabled: unit.link().symlink_metadata().is_ok(),
        text,
    };
    session.report.result(&view, |_| match args.verb {
        AutostartVerb::Show => view.text.clone(),
        AutostartVerb::Enable => format!("{} starts with the host\n", view.path.display()),
        AutostartVerb::Disable => format!("{} is gone\n", view.path.display()),
    })
}

/// Removes the units of a cluster that is taken down; there are none, as a rule.
pub(super) fn forget(session: &Session<'_>, files: &ClusterFiles) {
    for is_user in [true, false] {
        let Ok(unit) = Unit::of(session, files, is_user) else {
            continue;
        };
        if unit.is_ours().is_ok_and(|ours| ours) {
            match unit.disable() {
                Ok(()) => unit.reload(session),
                Err(error) => session.report.note(&error.message),
            }
        }
    }
}

impl Unit {
    fn of(session: &Session<'_>, files: &ClusterFiles, is_user: bool) -> Result<Unit, Error> {
        let folder = match (is_user, &session.host.user_units) {
            (false, _) => PathBuf::from(SYSTEM_UNITS),
            (true, Some(folder)) => folder.clone(),
            (true, None) => {
                return Err(Error::new(
                    Exit::Host,
                    "there is no folder for your units: HOME is not set",
                ));
            }
        };
        Ok(Unit {
            name: format!("kiln-{}.service", files.name()),
            mark: format!(
                "# Made by `kiln autostart` for {}.",
                files.folder().display()
            ),
            folder,
            target: if is_user {
                "default.target"
            } else {
                "multi-user.target"
            },
            is_user,
        })
    }

    fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    fn link(&self) -> PathBuf {
        self.folder
            .join(format!("{}.wants", self.target))
            .join(&self.name)
    }

    fn text(&self, session: &Session<'_>, cluster: &str) -> Result<String, Error> {
        let host = &session.host;
        let kiln = std::env::current_exe().map_err(|error| {
            Error::because(Exit::Failed, "cannot tell where this kiln lies", &error)
        })?;
        let mut variables = vec![("PATH", PathBuf::from(&host.path))];
        match (&host.kiln_home, host.is_root()) {
            (Some(home), _) => variables.push(("KILN_HOME", home.clone())),
            (None, true) => {}
            (None, false) => {
                let folders = &host.folders;
                for (name, folder) in [
                    ("XDG_STATE_HOME", &folders.state),
                    ("XDG_CACHE_HOME", &folders.cache),
                ] {
                    variables.extend(folder.parent().map(|it| (name, it.to_owned())));
                }
            }
        }
        let mut environment = String::new();
        for (name, value) in variables {
            let pair = quoted(&format!("{name}={}", utf8(&value)?));
            environment.push_str(&format!("Environment={pair}\n"));
        }
        // A user's own instance of systemd knows nothing of the network.
        let after = match self.is_user {
            true => "",
            false => "Wants=network-online.target\nAfter=network-online.target\n",
        };
        let kiln = quoted(&utf8(&kiln)?).replace('$', "$$");
        Ok(format!(
            "{mark}\n\
             [Unit]\n\
             Description=kiln cluster {cluster}\n\
             {after}\
             \n\
             [Service]\n\
             Type=oneshot\n\
             RemainAfterExit=yes\n\
             {environment}\
             ExecStart={kiln} -c {cluster} start --wait running\n\
             ExecStop={kiln} -c {cluster} stop\n\
             # Emulated guests take their time.\n\
             TimeoutStartSec=15min\n\
             TimeoutStopSec=10min\n\
             \n\
             [Install]\n\
             WantedBy={target}\n",
            mark = self.mark,
            target = self.target,
        ))
    }

    /// Whether there is a unit of this name, and it is of this cluster.
    fn is_ours(&self) -> Result<bool, Error> {
        match fs::read_to_string(self.path()) {
            Ok(text) if text.lines().next() == Some(&self.mark) => Ok(true),
            Ok(_) => Err(Error::new(
                Exit::Unsafe,
                format!(
                    "`{}` is none of this cluster's units",
                    self.path().display()
                ),
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.failed("read", &error)),
        }
    }

    fn enable(&self, text: &str) -> Result<(), Error> {
        self.is_ours()?;
        let link = self.link();
        let wants = link.parent().unwrap_or(&self.folder);
        let write = || {
            fs::create_dir_all(wants)?;
            // Whole or not at all.
            let new = self.folder.join(format!(".{}.new", self.name));
            fs::write(&new, text)?;
            readable(&new)?;
            fs::rename(&new, self.path())?;
            match symlink(Path::new("..").join(&self.name), &link) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                _ => Ok(()),
            }
        };
        write().map_err(|error| self.failed("write", &error))
    }

    fn disable(&self) -> Result<(), Error> {
        if !self.is_ours()? {
            return Ok(());
        }
        for path in [self.link(), self.path()] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.failed("remove", &error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn failed(&self, what: &str, error: &io::Error) -> Error {
        Error::because(
            Exit::Failed,
            format!("cannot {what} the unit `{}`", self.path().display()),
            error,
        )
    }

    /// Has a systemd that runs read its units again; it does so by itself at the next boot.
    fn reload(&self, session: &Session<'_>) {
        let words: &[&str] = match self.is_user {
            true => &["--user", "daemon-reload"],
            false => &["daemon-reload"],
        };
        let said = format!("systemctl {}", words.join(" "));
        if !Path::new(RUNNING).exists() {
            session.report.note(&format!(
                "systemd does not run here: `{said}` was not run, and nothing was tried out"
            ));
            return;
        }
        let mut command = Command::new("systemctl");
        command.args(words);
        let done = tool::run(command, Stdio::null(), RELOAD_DEADLINE);
        if !done.is_ok_and(|done| done.status.success()) {
            session
                .report
                .note(&format!("`{said}` failed: run it yourself, or boot"));
        }
    }
}

/// The unit holds no secret, and systemd's tools read it as anyone.
fn readable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

fn utf8(path: &Path) -> Result<String, Error> {
    match path.to_str() {
        Some(text) if !text.contains(char::is_control) => Ok(text.to_owned()),
        Some(_) | None => Err(Error::new(
            Exit::Failed,
            format!("a unit cannot name `{}`", path.display()),
        )),
    }
}

/// A word as systemd.syntax(7) and systemd.unit(5) read it.
fn quoted(word: &str) -> String {
    let escaped = word
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('%', "%%");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_quoted_for_systemd() {
        assert_eq!(quoted("/a b/100%\"\\"), "\"/a b/100%%\\\"\\\\\"");
    }
}
