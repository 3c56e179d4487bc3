//! kiln boots clusters of Ignition-configured machines straight on QEMU.
//!
//! The modules stand in the order in which `kiln up` goes through them; see
//! ARCHITECTURE.md for the story.

pub mod agent;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod command;
pub mod error;
pub mod folder;
pub mod host;
pub mod ignition;
pub mod image;
pub mod inventory;
pub mod keys;
pub mod lvm;
pub mod memo;
pub mod plan;
pub mod report;
pub mod spec;
pub mod stage;
pub mod state;
pub mod supervisor;
pub mod tool;
