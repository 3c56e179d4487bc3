//! Why there is no plan.

use std::path::PathBuf;

use ipnet::{Ipv4Net, Ipv6Net};
use kiln_arch::Arch;
use kiln_netsetup::address::AddressError;

use super::volumes::VolumeFault;
use crate::cluster::Size;
use crate::host::firmware::Uefi;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("machine `{machine}` needs `{program}`, which is not installed")]
    NoQemu {
        machine: String,
        program: String,
        install: Option<String>,
    },
    #[error("machine `{machine}` has a disk, and `qemu-img`, which makes it, is not installed")]
    NoQemuImg {
        machine: String,
        install: Option<String>,
    },
    #[error(
        "machine `{machine}` needs {uefi} for {arch}, which is not installed{}",
        rejected(faults)
    )]
    NoFirmware {
        machine: String,
        arch: Arch,
        uefi: Uefi,
        /// Descriptors that cannot be used, which may be why: which, and what is wrong.
        faults: Vec<(PathBuf, String)>,
        install: Option<String>,
    },
    #[error("machine `{machine}` asks for a TPM, and `swtpm`, which emulates it, is not installed")]
    NoTpm {
        machine: String,
        install: Option<String>,
    },
    #[error("machine `{machine}` asks for KVM, which does not work here: {why}")]
    NoKvm { machine: String, why: String },
    #[error(
        "machine `{machine}` asks for KVM, but its architecture `{arch}` is not the host's (`{host}`)"
    )]
    ForeignKvm {
        machine: String,
        arch: Arch,
        host: Arch,
    },
    #[error("cannot give the machines addresses")]
    Address(#[source] AddressError),
    #[error(
        "the subnet of cluster `{cluster}` is {kept} and cannot change to {asked} while the cluster exists"
    )]
    SubnetMoved {
        cluster: String,
        kept: Ipv4Net,
        asked: Ipv4Net,
    },
    #[error(
        "the network of cluster `{cluster}` is in mode `{kept}` and cannot change to `{asked}` while the cluster exists"
    )]
    ModeMoved {
        cluster: String,
        kept: String,
        asked: String,
    },
    #[error(
        "the network of cluster `{cluster}` has {kept} and cannot change to {asked} while the cluster exists"
    )]
    NetworkMoved {
        cluster: String,
        kept: String,
        asked: String,
    },
    #[error(
        "machine `{machine}` cannot have the MAC {mac}, which a machine of cluster `{other}` has"
    )]
    MacTaken {
        machine: String,
        mac: String,
        other: String,
    },
    #[error("cannot attach machines to bridge `{bridge}`: {why}")]
    NoBridge { bridge: String, why: String },
    #[error("`network.mode: namespace` does not work here: {why}")]
    NoNamespace { why: String },
    #[error("subnet {subnet} overlaps {taken}, which is in use on this host")]
    SubnetTaken { subnet: Ipv4Net, taken: Ipv4Net },
    #[error("IPv6 network {subnet} overlaps {taken}, which is in use on this host")]
    Subnet6Taken { subnet: Ipv6Net, taken: Ipv6Net },
    #[error("host port {port} of machine `{machine}` is taken")]
    PortTaken { machine: String, port: u16 },
    #[error("no free uid is left for the QEMUs of cluster `{cluster}`")]
    NoUid { cluster: String },
    #[error("no free host port is left for machine `{machine}`")]
    NoPort { machine: String },
    #[error("the record of cluster `{cluster}` cannot be used: {why}")]
    Record { cluster: String, why: String },
    #[error("machine `{machine}` is damaged: {why}")]
    Damaged { machine: String, why: String },
    #[error(
        "machine `{machine}` of the group in line {line} asks for a disk of {want}, and it has one of {least}, or its image is as large"
    )]
    DiskShrinks {
        machine: String,
        line: u64,
        want: Size,
        least: Size,
    },
    #[error(
        "disk `{serial}` of machine `{machine}` of the group in line {line} is of {least}, and the spec asks for {want}"
    )]
    DataDiskShrinks {
        machine: String,
        line: u64,
        serial: String,
        want: Size,
        least: Size,
    },
    #[error(transparent)]
    Volume(#[from] VolumeFault),
    #[error(
        "the machines that would run have {wanted} of memory, of which they use {held} now, and this host has {left} left"
    )]
    NoMemory {
        wanted: Size,
        held: Size,
        left: Size,
    },
    #[error("nothing is known of the image of machine `{machine}`")]
    NoImage { machine: String },
}

/// What is wrong with descriptors that might have been what is missing.
fn rejected(faults: &[(PathBuf, String)]) -> String {
    faults
        .iter()
        .map(|(path, why)| format!("; `{}` {why}", path.display()))
        .collect()
}
