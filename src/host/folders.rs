//! Where kiln's things lie: state, cache, sockets, and what the user says for all clusters.
//!
//! Only names are chosen here; [`crate::folder`] makes the folders when something goes in.

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::environment::Environment;

/// The longest path that a unix socket can be bound to, in bytes (`sun_path` less its zero byte).
pub const SOCKET_PATH_LIMIT: usize = 107;

/// The four folders, absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folders {
    /// What must not be lost: clusters, ledgers, overlays.
    pub state: PathBuf,
    /// What can be made anew: images, digests, verdicts.
    pub cache: PathBuf,
    /// Sockets.
    pub runtime: PathBuf,
    /// The user's own: mirrors, keyrings. Only read, never made.
    pub config: PathBuf,
}

impl Folders {
    /// `KILN_HOME` wins; then root's places, then the XDG ones. `None` when a user has no home.
    pub(super) fn choose(environment: &Environment, uid: u32) -> io::Result<Option<Folders>> {
        if let Some(home) = &environment.kiln_home {
            let home = std::path::absolute(home)?;
            return Ok(Some(Folders {
                state: home.join("state"),
                cache: home.join("cache"),
                runtime: home.join("run"),
                config: home.join("config"),
            }));
        }
        if uid == 0 {
            return Ok(Some(Folders {
                state: PathBuf::from("/var/lib/kiln"),
                cache: PathBuf::from("/var/cache/kiln"),
                runtime: PathBuf::from("/run/kiln"),
                config: PathBuf::from("/etc/kiln"),
            }));
        }
        let under = |given: &Option<PathBuf>, default: &str| {
            given
                .clone()
                .or_else(|| Some(environment.home.as_ref()?.join(default)))
                .map(|folder| folder.join("kiln"))
        };
        let Some(state) = under(&environment.state_home, ".local/state") else {
            return Ok(None);
        };
        let Some(cache) = under(&environment.cache_home, ".cache") else {
            return Ok(None);
        };
        // Not in XDG_RUNTIME_DIR: that goes with the user's last session, which the machines outlive,
        // and in cron, su and sudo it is not set, so that they would look elsewhere.
        let Some(config) = under(&environment.config_home, ".config") else {
            return Ok(None);
        };
        Ok(Some(Folders {
            runtime: state.join("run"),
            state,
            cache,
            config,
        }))
    }

    /// The folder for sockets whose names below it are at most `longest` bytes long.
    ///
    /// It is [`Folders::runtime`], or a short name in `/tmp` where that would pass
    /// [`SOCKET_PATH_LIMIT`]. The name is the same in every process; others can make that folder
    /// first, so it has to be made with [`crate::folder::make_private`], which refuses theirs.
    pub fn sockets(&self, uid: u32, longest: usize) -> PathBuf {
        if length(&self.runtime) + "/".len() + longest <= SOCKET_PATH_LIMIT {
            return self.runtime.clone();
        }
        let digest = Sha256::digest(self.runtime.as_os_str().as_encoded_bytes());
        let tag: String = digest[..6]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        PathBuf::from(format!("/tmp/kiln-{uid}-{tag}"))
    }
}

fn length(path: &Path) -> usize {
    path.as_os_str().len()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    #[track_caller]
    fn check(variables: &[(&str, &str)], uid: u32, want: Option<[&str; 4]>) {
        let environment = Environment::read(|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name)?;
            Some(OsString::from(found.1))
        });
        let want = want.map(|[state, cache, runtime, config]| Folders {
            state: state.into(),
            cache: cache.into(),
            runtime: runtime.into(),
            config: config.into(),
        });
        assert_eq!(Folders::choose(&environment, uid).unwrap(), want);
    }

    #[test]
    fn kiln_home_holds_everything_for_root_too() {
        let variables = [
            ("KILN_HOME", "/k"),
            ("XDG_STATE_HOME", "/s"),
            ("HOME", "/h"),
        ];
        let want = Some(["/k/state", "/k/cache", "/k/run", "/k/config"]);
        check(&variables, 0, want);
        check(&variables, 1000, want);
    }

    #[test]
    fn root_uses_the_system_s_places() {
        let want = Some(["/var/lib/kiln", "/var/cache/kiln", "/run/kiln", "/etc/kiln"]);
        check(&[("HOME", "/root"), ("XDG_STATE_HOME", "/s")], 0, want);
    }

    #[test]
    fn a_user_s_places_are_xdg_s() {
        check(
            &[
                ("HOME", "/h"),
                ("XDG_STATE_HOME", "/s"),
                ("XDG_CACHE_HOME", "/c"),
                ("XDG_RUNTIME_DIR", "/r"),
                ("XDG_CONFIG_HOME", "/f"),
            ],
            1000,
            Some(["/s/kiln", "/c/kiln", "/s/kiln/run", "/f/kiln"]),
        );
        check(
            &[("HOME", "/h")],
            1000,
            Some([
                "/h/.local/state/kiln",
                "/h/.cache/kiln",
                "/h/.local/state/kiln/run",
                "/h/.config/kiln",
            ]),
        );
        check(&[("XDG_STATE_HOME", "/s")], 1000, None);
    }

    #[test]
    fn sockets_move_to_a_short_folder_when_the_path_grows_too_long() {
        let runtime = PathBuf::from(format!("/{}", "r".repeat(86)));
        let folders = Folders {
            state: "/s".into(),
            cache: "/c".into(),
            runtime: runtime.clone(),
            config: "/f".into(),
        };
        assert_eq!(folders.sockets(7, 19), runtime);
        let short = folders.sockets(7, 20);
        assert!(short.starts_with("/tmp"), "{short:?}");
        assert_eq!(length(&short), 24);
        assert_eq!(short, folders.sockets(7, 20));
    }
}
