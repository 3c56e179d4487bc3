//! One machine's final Ignition config.
//!
//! ```text
//! node.ign.j2 ─ template ─▶ node.ign ─ lint ─▶ child ┐
//!                                                     ├─ render ─▶ what the machine reads
//! machine, facts ──────── fragment ───────▶ parent ──┘
//! ```
//! kiln's own fragment is the parent and carries the user's config in
//! `ignition.config.merge`, so that the user's values win; parent and child may
//! be of different 3.x versions. A profile's templates are another child, before
//! the user's.
//!
//! Pure: no file, no process, no clock. A config is a secret: no error, warning
//! or `Debug` here shows more of one than lines, columns and key paths.

mod error;
mod fragment;
mod identity;
mod lint;
mod mounts;
mod profile;
mod render;
mod template;
pub mod validator;

#[cfg(test)]
mod tests;

pub use self::error::{IgnitionError, IgnitionProblem, IgnitionWarning};
pub use self::fragment::{REPORT_PORT, REPORT_SCRIPT, REPORT_UNIT};
pub use self::identity::identity;
pub use self::profile::CONFIG as PROFILE_CONFIG;
pub use self::render::{Facts, Peer, Rendered, render};
