//! `shares:` of a group: folders of the host that its machines mount.

use std::fs;
use std::io;

use super::document::Node;
use super::error::Fault;
use super::fields::{self, Fields, Keys};
use super::files::Folders;
use crate::cluster::{MountPoint, Share};

const KEYS: Keys = Keys {
    known: &["from", "to", "readonly"],
    not_built: &[],
};

/// Shares of a machine at most: each is a device, and the smallest board has 30 slots for all.
const COUNT_LIMIT: usize = 8;

/// Reads `shares:` of a group, and looks whether its folders are there.
pub(super) fn shares(
    node: Node,
    key: &str,
    owner: &str,
    folders: Folders<'_>,
) -> Result<Vec<Share>, Fault> {
    let place = node.place;
    let nodes = fields::list(node, key)?;
    if nodes.len() > COUNT_LIMIT {
        let why = format!(
            "{} shares are too many; at most {COUNT_LIMIT} are allowed",
            nodes.len()
        );
        return Err(Fault::bad_value(place, key, why));
    }
    let mut shares: Vec<Share> = Vec::new();
    for (index, node) in (1..).zip(nodes) {
        let place = node.place;
        let share = share(node, index, owner, folders)?;
        if shares.iter().any(|other| other.to == share.to) {
            let why = format!("a second share is mounted on `{}`", share.to);
            return Err(Fault::bad_value(place, "to", why));
        }
        shares.push(share);
    }
    Ok(shares)
}

fn share(node: Node, index: u16, owner: &str, folders: Folders<'_>) -> Result<Share, Fault> {
    let mut fields = Fields::new(node, format!("share {index} of {owner}"), KEYS)?;
    let from = match fields.take("from") {
        Some(node) => {
            let place = node.place;
            let path = folders.resolve(place, "from", &fields::text(node, "from")?)?;
            let shown = path.display();
            let fault = |why: String| Fault::bad_value(place, "from", why);
            // Links are followed now, so that a later one leads nowhere else.
            let real = fs::canonicalize(&path).map_err(|error| {
                let missing = error.kind() == io::ErrorKind::NotFound;
                fault(match missing {
                    true => format!("`{shown}` does not exist"),
                    false => format!("`{shown}` cannot be looked at: {error}"),
                })
            })?;
            if !real.is_dir() {
                return Err(fault(format!("`{shown}` is not a folder")));
            }
            real
        }
        None => return Err(fields.missing("from")),
    };
    let to: MountPoint = match fields.take("to") {
        Some(node) => {
            let place = node.place;
            let text = fields::text(node, "to")?;
            let parsed = text.parse();
            parsed.map_err(|error| Fault::bad_value(place, "to", error))?
        }
        None => return Err(fields.missing("to")),
    };
    let readonly = fields
        .take_as("readonly", |node, key| fields::boolean(&node, key))?
        .unwrap_or(false);
    Ok(Share { from, to, readonly })
}
