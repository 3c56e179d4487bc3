//! This host, probed once: who we are, where our files lie, what is installed and what works.
//!
//! With `Inventory::collect`, [`Host::probe`] is the only reader of the environment; what it found
//! is plain data for the plan. It makes nothing on the disk but remembered facts in the cache, and
//! starts no program when those facts still hold.

pub mod bridge;
pub mod distribution;
pub mod doctor;
mod environment;
pub mod firmware;
pub mod folders;
pub mod kvm;
pub mod namespace;
mod network;
mod payload;
mod probe;
pub mod qemu;
pub mod room;
mod tcg;
pub mod timing;
pub mod virtiofsd;

pub use probe::{Host, HostError, Tools, native_arch};
