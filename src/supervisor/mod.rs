//! The parent of a cluster's QEMUs: one process, one event loop.

mod control;
pub mod dispatcher;
pub mod launch;
pub mod machine;
mod message;
mod ports;
pub mod protocol;
mod slot;
mod uplink;
mod watch;
