//! What runs while machines run: one process for each cluster, parent of its
//! QEMUs and the only one that speaks QMP to them.

pub mod process;
pub mod qmp;
