//! kiln boots clusters of Ignition-configured machines straight on QEMU.
//!
//! The modules stand in the order in which `kiln up` goes through them; see
//! ARCHITECTURE.md for the story.

pub mod cluster;
pub mod error;
pub mod ignition;
pub mod keys;
pub mod spec;
pub mod state;
pub mod supervisor;
