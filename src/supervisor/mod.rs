//! The parent of a cluster's QEMUs: one process, one event loop.
//!
//! It is the only one that speaks QMP, and the owner of the switch. Commands talk
//! to it over the control socket ([`protocol`]). If it dies the machines live, and
//! the next command starts a new one, which adopts them.

pub mod beside;
pub mod capture;
pub mod console;
mod control;
pub mod diagnose;
pub mod dispatcher;
mod door;
pub mod journal;
pub mod launch;
pub mod machine;
mod message;
mod network;
mod ports;
pub mod process;
pub mod protocol;
pub mod qmp;
mod regain;
mod routes;
mod share;
mod slot;
mod tpm;
mod uplink;
pub mod watch;
