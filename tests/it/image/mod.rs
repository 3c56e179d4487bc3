//! Images from servers: found, fetched, verified, pinned, kept, and refused.

mod faults;
mod hostile;
mod machines;
mod secure;
pub(crate) mod server;
mod signer;
mod sources;
pub(crate) mod support;
