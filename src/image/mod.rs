//! Images: what machines boot from, taken in as the hostile input that it is.
//!
//! A base image is read by an own parser before any QEMU sees it, and is never written to.
//! Machines stand on qcow2 overlays of it, made by qemu-img. Kernels and initial RAM disks
//! are copied into the cache by digest. No format is ever guessed from content, and no header is
//! ever followed to another file.

pub mod base;
pub mod cache;
pub mod data;
mod digest;
pub mod fetch;
pub mod fill;
pub mod flash;
pub mod overlay;
pub mod pins;
pub mod pull;
pub mod qcow2;
pub mod source;
mod sparse;
pub mod store;
mod tables;
pub mod trust;

pub use base::{BaseFacts, ImageError};
