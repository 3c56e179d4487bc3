//! kiln boots clusters of Ignition-configured machines straight on QEMU.
//!
//! The modules stand in the order in which `kiln up` goes through them; see
//! ARCHITECTURE.md for the story.

pub mod cluster;
pub mod folder;
pub mod host;
pub mod image;
pub mod memo;
pub mod tool;
