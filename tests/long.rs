//! Boots that take minutes more than a change has. `just test-long` runs them.
#![cfg(test)]

#[path = "it/support/mod.rs"]
#[expect(dead_code, reason = "the other tests use more of it")]
mod support;

use support::configs::{Kind, come_up};
use support::full::boots_twice;

const ARCHES: [&str; 5] = ["i386", "x86_64", "aarch64", "s390x", "ppc64le"];

/// By fw_cfg a large config takes more than a minute, each.
#[test]
fn a_large_config_on_every_architecture() {
    come_up("large", &ARCHES.map(|arch| (arch, Kind::Large)));
}

#[test]
fn an_empty_config_on_every_architecture() {
    come_up("empty", &ARCHES.map(|arch| (arch, Kind::Empty)));
}

#[test]
fn no_config_on_any_architecture() {
    come_up("absent", &ARCHES.map(|arch| (arch, Kind::Absent)));
}

#[test]
fn nothing_at_all_on_any_architecture() {
    come_up("nothing", &ARCHES.map(|arch| (arch, Kind::Nothing)));
}

#[test]
fn a_file_system_without_its_disk_on_every_architecture() {
    come_up("disks", &ARCHES.map(|arch| (arch, Kind::NoDisk)));
}

#[test]
fn the_full_guest_boots_by_uefi() {
    boots_twice("full-uefi", "x86_64", "uefi", "scsi", "BdsDxe: starting");
}

#[test]
fn the_full_guest_boots_by_secure_boot() {
    boots_twice(
        "full-secure",
        "x86_64",
        "uefi-secure",
        "virtio",
        "EFI stub: UEFI Secure Boot is enabled.",
    );
}

#[test]
fn the_full_guest_boots_on_aarch64() {
    boots_twice("full-arm", "aarch64", "uefi", "nvme", "BdsDxe: starting");
}
