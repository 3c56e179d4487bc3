//! Whether machines can be attached to a bridge of this host's.

use std::fs::OpenOptions;

use kiln_netsetup::attach;
use kiln_netsetup::name::IfName;

use crate::error::in_one_line;

/// Looks at the bridge called `name`, and at what else it takes; changes nothing.
///
/// # Errors
/// What is in the way, as a clause for people.
pub fn look(name: &IfName, is_root: bool) -> Result<(), String> {
    if !is_root {
        return Err("only root may make taps on a bridge of the host's".to_owned());
    }
    attach::examine(name).map_err(|error| in_one_line(&error))?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map(drop)
        .map_err(|error| format!("cannot open `/dev/net/tun`: {error}"))
}

/// The bridges of this host.
///
/// # Errors
/// The kernel does not say, as a clause for people.
pub fn all() -> Result<Vec<String>, String> {
    let names = attach::bridges().map_err(|error| in_one_line(&error))?;
    Ok(names.iter().map(ToString::to_string).collect())
}
