//! The parent of a cluster's QEMUs: one process, one event loop.

pub mod machine;
pub mod protocol;
