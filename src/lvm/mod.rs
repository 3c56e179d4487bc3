//! Logical volumes of LVM: their names, what lvm2 says of them, and the calls that change them.
//!
//! `storage: {vg: …}` puts the disks that kiln makes into a volume group of the host's. A volume
//! is ours by a tag that no other one has ([`name::tag`]), which ledger or disk list held before
//! the volume was made, and by its UUID from when it is known; never by its name. Everything goes
//! through the `lvm` program: its JSON reports are the readers, and no name is ever part of a text
//! that something parses. Nothing here decides what is made.

pub mod name;
pub mod node;
pub mod program;
pub mod report;
