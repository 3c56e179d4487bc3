//! The file format: `kiln.yaml` becomes a [`crate::cluster::Cluster`].
//!
//! The text is read into a tree whose every node knows its line and column
//! (`document`), and the tree is taken apart key by key (`fields`, `image`,
//! `disks`, `port`, `group`). What comes out cannot be wrong by itself; what is wrong is
//! said with file, line, column, what is allowed, and a suggestion. A key whose
//! feature this kiln lacks is refused, never ignored.
//!
//! This module reads the spec and the files that it names (Ignition configs,
//! public keys, the first bytes of images). It must not read the environment,
//! probe the host, write or print.

mod config;
mod disks;
mod document;
mod error;
mod fields;
mod files;
mod find;
mod fixed;
mod group;
mod image;
mod init;
mod load;
mod network;
mod port;
mod profile;
mod share;
mod storage;
mod stream;
mod suggest;
mod told;
mod vars;
mod warning;

#[cfg(test)]
mod tests;

pub use self::error::{Place, Problem, SpecError};
pub use self::find::{FindError, SPEC_FILE_NAME, find};
pub use self::init::init_template;
pub use self::load::{Context, Loaded, Scale, cluster_name, load};
pub use self::profile::is_discovery_token;
pub use self::vars::{Vars, value};
pub use self::warning::SpecWarning;
