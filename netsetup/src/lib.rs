//! Frames in, frames out: everything that kiln does between its machines and the world.
//!
//! The pure parts ([`address`], [`ether`], [`dhcp`], [`dns`], [`lease`], [`switch`], [`name`], [`link`], [`nat`],
//! [`settings`], [`pcapng`], and for IPv6 [`address6`], [`ether6`] and [`nd`]) know
//! neither sockets nor clocks and are tested on bytes alone. There are two shells around them. [`fabric`] moves the
//! frames of a cluster's machines through one process, with no right that an ordinary user lacks. [`bridge`] leaves that
//! to the kernel, in a [`namespace`] of the cluster's own; [`attach`] joins machines to a bridge that the host has already.
//! [`netlink`] and [`tap`] are the tools of both. [`capture`] and [`pcapng`] are for who wants to see the frames. Nothing
//! here knows QEMU's command line or the cluster's spec.

pub mod address;
pub mod address6;
pub mod attach;
pub mod bridge;
pub mod capture;
pub mod dhcp;
pub mod dns;
pub mod ether;
pub mod ether6;
pub mod fabric;
pub mod lease;
pub mod link;
pub mod name;
pub mod namespace;
pub mod nat;
pub mod nd;
pub mod netlink;
pub mod pcapng;
pub mod settings;
pub mod sniff;
pub mod switch;
pub mod tap;
