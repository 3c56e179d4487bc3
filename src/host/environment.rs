//! The environment variables that kiln heeds, and no others.

use std::ffi::OsString;
use std::path::PathBuf;

/// What the process was given. An empty variable counts as absent.
#[derive(Debug, Clone, Default)]
pub(super) struct Environment {
    pub(super) kiln_home: Option<PathBuf>,
    pub(super) home: Option<PathBuf>,
    pub(super) state_home: Option<PathBuf>,
    pub(super) config_home: Option<PathBuf>,
    pub(super) cache_home: Option<PathBuf>,
    pub(super) path: OsString,
    pub(super) color: bool,
}

impl Environment {
    /// Asks `get` for each variable.
    pub(super) fn read(get: impl Fn(&str) -> Option<OsString>) -> Environment {
        let get = |name| get(name).filter(|value| !value.is_empty());
        // The XDG base directory specification: relative paths are to be ignored.
        let absolute = |name| {
            get(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        Environment {
            kiln_home: get("KILN_HOME").map(PathBuf::from),
            home: absolute("HOME"),
            state_home: absolute("XDG_STATE_HOME"),
            config_home: absolute("XDG_CONFIG_HOME"),
            cache_home: absolute("XDG_CACHE_HOME"),
            path: get("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin")),
            // https://no-color.org: any value but the empty one.
            color: get("NO_COLOR").is_none() && get("TERM").is_some_and(|term| term != "dumb"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Environment {
        Environment::read(|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name)?;
            Some(OsString::from(found.1))
        })
    }

    #[test]
    fn empty_and_relative_values_are_absent() {
        let environment = read(&[
            ("KILN_HOME", ""),
            ("XDG_STATE_HOME", "relative"),
            ("XDG_CACHE_HOME", "/absolute"),
        ]);
        assert_eq!(environment.kiln_home, None);
        assert_eq!(environment.state_home, None);
        assert_eq!(environment.cache_home, Some(PathBuf::from("/absolute")));
        assert_eq!(environment.path, "/usr/bin:/bin");
    }

    #[test]
    fn color_is_for_terminals_that_can_and_users_who_want() {
        assert!(read(&[("TERM", "xterm")]).color);
        assert!(read(&[("TERM", "xterm"), ("NO_COLOR", "")]).color);
        assert!(!read(&[("TERM", "xterm"), ("NO_COLOR", "1")]).color);
        assert!(!read(&[("TERM", "dumb")]).color);
        assert!(!read(&[]).color);
    }
}
