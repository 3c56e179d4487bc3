//! What becomes of the configs that a machine may have. `tests/long.rs` has each on each
//! architecture; here are those that tell the most in the least time.

use crate::support::configs::{Kind, come_up};

/// Each by the transport of its architecture: disk, disk, fw_cfg, fw_cfg.
#[test]
fn large_empty_and_absent_configs_come_up() {
    come_up(
        "configs",
        &[
            ("ppc64le", Kind::Large),
            ("s390x", Kind::Nothing),
            ("i386", Kind::Empty),
            ("aarch64", Kind::Absent),
        ],
    );
}

/// Nothing that can be seen from the host is wrong with it. x86_64 has a test of its own.
#[test]
fn a_disk_that_is_not_there_is_told_on_each_architecture() {
    let foreign = ["i386", "aarch64", "s390x", "ppc64le"];
    come_up("no-disk", &foreign.map(|arch| (arch, Kind::NoDisk)));
}
