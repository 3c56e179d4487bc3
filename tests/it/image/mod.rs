//! Images from servers: found, fetched, verified, pinned, kept, and refused.

mod faults;
mod hostile;
mod machines;
mod server;
mod signer;
mod sources;
mod support;
