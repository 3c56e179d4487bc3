//! Frames in, frames out: everything that kiln does between its machines and the world.
//!
//! The pure parts ([`address`], [`ether`], [`dhcp`], [`dns`], [`lease`], [`switch`]) know neither sockets nor clocks
//! and are tested on bytes alone. [`fabric`] is the shell around them: it moves the frames of a cluster's machines
//! through one process, with no right that an ordinary user lacks. Nothing here knows QEMU's command line or the
//! cluster's spec.

pub mod address;
pub mod dhcp;
pub mod dns;
pub mod ether;
pub mod fabric;
pub mod lease;
pub mod switch;
