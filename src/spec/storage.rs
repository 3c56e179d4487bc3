//! `storage:`: where the disks are that kiln makes.

use super::document::Node;
use super::error::Fault;
use super::fields::{self, Fields, Keys};
use crate::lvm::name::GroupName;

const KEYS: Keys = Keys {
    known: &["vg"],
    not_built: &[],
};

/// Reads `storage: {vg: NAME}`. Whether there is such a group is the plan's to say.
pub(super) fn storage(node: Node) -> Result<GroupName, Fault> {
    let mut fields = Fields::new(node, "`storage`".to_owned(), KEYS)?;
    let Some(node) = fields.take("vg") else {
        return Err(fields.missing("vg"));
    };
    let place = node.place;
    fields::text(node, "vg")?
        .parse()
        .map_err(|error| Fault::bad_value(place, "vg", error))
}
