//! The small choices of a plan, each a function of what it depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use kiln_arch::machine::IgnitionTransport;
use sha2::{Digest, Sha256};

use crate::cluster::{
    AccelWish, Cluster, FirmwareWish, Machine, Network, NetworkMode, Profile, ROOT_SERIAL,
    RestartPolicy, Size,
};
use crate::host::distribution::Piece;
use crate::host::firmware::{Firmware, Uefi};
use crate::host::kvm::KvmState;
use crate::host::qemu::Qemu;
use crate::plan::volumes::{self, Owner};
use crate::plan::{Action, HostFacts, ImageFacts, Inventory, Known, PlanError, Step};
use crate::report::view::mode_word;
use crate::state::record::{
    AccelRecord, ClusterRecord, DiskRecord, FirmwareKind, FirmwareRecord, MachineRecord,
    ModeRecord, PortRecord, RestartRecord, TransportRecord, WayOutRecord,
};

/// Free host ports are chosen from here: below the kernel's ephemeral range (from 32768).
const FREE_PORTS: std::ops::Range<u16> = 20000..30000;

/// What systemd keeps for services without an account (61184 to 65519, its UIDS-GIDS document).
const UIDS: std::ops::Range<u32> = 61184..65520;

/// The uid of a new cluster's QEMUs where kiln is root: one that no other cluster has, so that who
/// broke out of one cluster's guest gets no hold of another's.
pub(super) fn uid(cluster: &str, taken: &BTreeSet<u32>) -> Result<u32, PlanError> {
    let hash = cluster.bytes().fold(0u32, |hash, byte| {
        hash.wrapping_mul(31).wrapping_add(u32::from(byte))
    });
    let first = UIDS.start + hash % (UIDS.end - UIDS.start);
    (first..UIDS.end)
        .chain(UIDS.start..first)
        .find(|uid| !taken.contains(uid))
        .ok_or_else(|| PlanError::NoUid {
            cluster: cluster.to_owned(),
        })
}

/// The accelerator, and why it is not what one would expect.
pub(super) fn accel(
    machine: &Machine,
    host: &HostFacts,
) -> Result<(AccelRecord, String), PlanError> {
    let native = machine.arch.is_native_on(host.arch);
    match (machine.accel, &host.kvm) {
        (AccelWish::Tcg, _) => Ok((AccelRecord::Tcg, String::new())),
        (AccelWish::Kvm, _) if !native => Err(PlanError::ForeignKvm {
            machine: machine.name.to_string(),
            arch: machine.arch,
            host: host.arch,
        }),
        (AccelWish::Kvm, KvmState::Fails(why)) => Err(PlanError::NoKvm {
            machine: machine.name.to_string(),
            why: why.clone(),
        }),
        (AccelWish::Kvm, KvmState::Unknown | KvmState::Works) => {
            Ok((AccelRecord::Kvm, String::new()))
        }
        (AccelWish::Auto, _) if !native => {
            Ok((AccelRecord::Tcg, format!("the host is {}", host.arch)))
        }
        (AccelWish::Auto, KvmState::Works) => Ok((AccelRecord::Kvm, String::new())),
        (AccelWish::Auto, KvmState::Fails(why)) => Ok((AccelRecord::Tcg, why.clone())),
        (AccelWish::Auto, KvmState::Unknown) => Ok((
            AccelRecord::Tcg,
            "KVM was not tried yet; `kiln up` tries it".to_owned(),
        )),
    }
}

/// The machine's UEFI, or none where the board's own firmware boots it.
///
/// The build that it has is kept for as long as it is installed: its variables belong to it.
pub(super) fn firmware(
    machine: &Machine,
    image: &ImageFacts,
    board: Option<&str>,
    host: &HostFacts,
    old: Option<&MachineRecord>,
) -> Result<Option<FirmwareRecord>, PlanError> {
    let arch = machine.arch;
    let (uefi, kind) = match machine.firmware {
        FirmwareWish::Auto if arch.needs_uefi() && image.kernel.is_none() => {
            (Uefi::Open, FirmwareKind::Uefi)
        }
        FirmwareWish::Auto | FirmwareWish::Bios => return Ok(None),
        FirmwareWish::Uefi => (Uefi::Open, FirmwareKind::Uefi),
        FirmwareWish::UefiSecure => (Uefi::Secure, FirmwareKind::UefiSecure),
    };
    // One that has no version by its own name is of the same family.
    let board = board.map_or_else(|| arch.board_of(0, 0), str::to_owned);
    let record = |firmware: &Firmware| FirmwareRecord {
        kind,
        code: firmware.code.path.clone(),
        code_format: firmware.code.format,
        template: firmware.template.path.clone(),
        vars_format: firmware.template.format,
    };
    let kept = old.and_then(|old| old.firmware.as_ref()).filter(|kept| {
        let mut usable = host.firmwares.usable.iter();
        usable.any(|it| it.fits(arch, &board, uefi) && record(it) == **kept)
    });
    match kept {
        Some(kept) => Ok(Some(kept.clone())),
        None => match host.firmwares.choose(arch, &board, uefi) {
            Some(firmware) => Ok(Some(record(firmware))),
            None => Err(PlanError::NoFirmware {
                machine: machine.name.to_string(),
                arch,
                uefi,
                faults: host.firmwares.faults.clone(),
                install: host.distribution.install(Piece::Uefi(arch)),
            }),
        },
    }
}

/// The program that emulates the machine's TPM, where it wants one.
pub(super) fn tpm(machine: &Machine, host: &HostFacts) -> Result<Option<PathBuf>, PlanError> {
    match &host.swtpm {
        _ if !machine.tpm => Ok(None),
        Some(program) => Ok(Some(program.clone())),
        None => Err(PlanError::NoTpm {
            machine: machine.name.to_string(),
            install: host.distribution.install(Piece::Swtpm),
        }),
    }
}

pub(super) fn transport(transport: IgnitionTransport) -> TransportRecord {
    match transport {
        IgnitionTransport::FwCfg => TransportRecord::FwCfg,
        IgnitionTransport::VirtioBlk => TransportRecord::VirtioBlk,
    }
}

/// Takes this QEMU's newest board where it has the machine's own no more, or not yet.
///
/// A machine that runs is left alone. For one with a disk the other board is as another machine:
/// what is on the disk was installed for the first.
pub(super) fn board_that_is_there(step: &mut Step, qemu: &Qemu) {
    let starts = match step.action {
        Action::Create | Action::Recreate | Action::Restart | Action::Start => true,
        Action::Keep | Action::Change | Action::Remove => false,
    };
    let Some(record) = step.record.as_mut().filter(|_| starts) else {
        return;
    };
    let Some(old) = record.board.take_if(|board| !qemu.boards.contains(board)) else {
        return;
    };
    record.board = qemu.board.clone();
    let new = record.board.as_deref().unwrap_or("another board");
    let mut why = format!(
        "board: {old} -> {new}: `{}` is QEMU {}, which does not have the former",
        qemu.program.display(),
        qemu.version
    );
    if record.disk.is_some() {
        why.push_str("; one that has it would keep the disk (needs a new disk)");
        step.action = Action::Recreate;
    }
    step.why.push(why);
}

/// Whole MiB, rounded down; the spec has checked the range.
pub(super) fn mebibytes(size: Size) -> u32 {
    u32::try_from(size.bytes() >> 20).unwrap_or(u32::MAX)
}

/// The root disk: as large as asked, else as it was, else as its base; it grows and never shrinks.
pub(super) fn disk(
    machine: &Machine,
    image: &ImageFacts,
    old: Option<&MachineRecord>,
    inventory: &Inventory,
    cluster: &ClusterRecord,
    host: &HostFacts,
) -> Result<Option<DiskRecord>, PlanError> {
    let Some(base) = &image.disk else {
        return Ok(None);
    };
    let group = volumes::group(inventory)?;
    let uuid = host.files.uuid(machine.name.as_str());
    let owner = Owner::new(cluster, &uuid, machine, ROOT_SERIAL);
    let volume = group
        .map(|group| volumes::root(group, inventory, &owner))
        .transpose()?;
    let rounded = |size| group.map_or(size, |group| group.rounded(size));
    let was = old
        .and_then(|old| old.disk.as_ref())
        .filter(|disk| disk.base == base.base)
        .map_or(base.size, |disk| disk.size);
    let want = machine.disk.map(|want| rounded(want.bytes()));
    if let (Some(asked), Some(want)) = (machine.disk, want)
        && want < was
    {
        return Err(PlanError::DiskShrinks {
            machine: machine.name.to_string(),
            line: machine.line,
            want: asked,
            least: Size::from_bytes(was),
        });
    }
    Ok(Some(DiskRecord {
        size: want.unwrap_or_else(|| rounded(was)),
        volume,
        bus: machine.root_bus.into(),
        ..base.clone()
    }))
}

pub(super) fn restart(policy: RestartPolicy) -> RestartRecord {
    match policy {
        RestartPolicy::No => RestartRecord::No,
        RestartPolicy::OnFailure => RestartRecord::OnFailure,
        RestartPolicy::Always => RestartRecord::Always,
    }
}

pub(super) fn reports(profile: &Profile) -> bool {
    match profile {
        Profile::Basic | Profile::Etcd { .. } | Profile::Own(_) => true,
        Profile::None => false,
    }
}

/// How the machines are joined, and why so: kept for the cluster's life.
///
/// `tried` says whether `namespace` works, or why not.
pub(super) fn mode(
    wish: &NetworkMode,
    kept: Option<&ClusterRecord>,
    tried: Option<&Result<(), String>>,
) -> Result<(ModeRecord, String), PlanError> {
    let asked = match wish {
        NetworkMode::Auto => None,
        NetworkMode::Namespace => Some(ModeRecord::Namespace),
        NetworkMode::Fabric => Some(ModeRecord::Fabric),
        NetworkMode::User => Some(ModeRecord::User),
        NetworkMode::Attach { .. } => Some(ModeRecord::Attach),
    };
    if let Some(record) = kept {
        return match asked {
            Some(asked) if asked != record.mode => Err(PlanError::ModeMoved {
                cluster: record.name.clone(),
                kept: record.mode_text(),
                asked: mode_word(asked).to_owned(),
            }),
            Some(_) | None => Ok((record.mode, record.mode_reason.clone())),
        };
    }
    match (asked, tried) {
        (Some(mode @ (ModeRecord::Fabric | ModeRecord::User | ModeRecord::Attach)), _) => {
            Ok((mode, String::new()))
        }
        (Some(ModeRecord::Namespace), Some(Err(why))) => {
            Err(PlanError::NoNamespace { why: why.clone() })
        }
        (Some(ModeRecord::Namespace), _) => Ok((ModeRecord::Namespace, String::new())),
        (None, Some(Ok(()))) => Ok((ModeRecord::Namespace, "it works here".to_owned())),
        (None, Some(Err(why))) => Ok((
            ModeRecord::Fabric,
            format!("`namespace` does not work here ({why})"),
        )),
        (None, None) => Ok((ModeRecord::Fabric, "`namespace` was not tried".to_owned())),
    }
}

/// Stands for the subnet of a cluster that has none; nobody is told of it. Of a network for tests of devices (RFC 2544).
pub(super) const NO_SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 16);

/// What MACs and addresses are computed from: the cluster's name, and where they could meet those of other hosts' clusters
/// also what tells this one from them.
pub(super) fn seed(cluster: &str, mode: ModeRecord, host: &HostFacts) -> String {
    match mode {
        ModeRecord::Attach => {
            format!("{cluster} {} {}", host.machine_id, host.files.host_mark())
        }
        ModeRecord::Fabric | ModeRecord::Namespace | ModeRecord::User => cluster.to_owned(),
    }
}

/// The cluster's domain: kept for its life, for it stands in configs and keys.
pub(super) fn domain(cluster: &Cluster, kept: Option<&ClusterRecord>) -> Result<String, PlanError> {
    let asked = format!("{}.{}", cluster.name, cluster.network.domain);
    match kept {
        Some(record) if record.domain != asked => Err(PlanError::NetworkMoved {
            cluster: record.name.clone(),
            kept: format!("the domain `{}`", record.domain),
            asked: format!("`{asked}`"),
        }),
        Some(_) | None => Ok(asked),
    }
}

/// How the machines get out, if the spec lets them: kept for the cluster's life, but for what is only a source of addresses.
pub(super) fn way_out(
    wish: &Network,
    mode: ModeRecord,
    kept: Option<&ClusterRecord>,
    host: &HostFacts,
) -> Result<WayOutRecord, PlanError> {
    if let NetworkMode::Attach { bridge, leases } = &wish.mode {
        let asked = bridge.to_string();
        if let Some(record) = kept
            && record.bridge() != Some(asked.as_str())
        {
            return Err(PlanError::ModeMoved {
                cluster: record.name.clone(),
                kept: record.mode_text(),
                asked: format!("attach {asked}"),
            });
        }
        if let Some(Err(why)) = &host.bridge {
            let why = why.clone();
            return Err(PlanError::NoBridge { bridge: asked, why });
        }
        return Ok(WayOutRecord::Bridge {
            bridge: asked,
            leases: leases.clone(),
        });
    }
    let uplink = wish.uplink;
    let word = |uplink| if uplink { "an uplink" } else { "no uplink" };
    match kept {
        Some(record) if uplink == (record.way_out == WayOutRecord::Nowhere) => {
            Err(PlanError::NetworkMoved {
                cluster: record.name.clone(),
                kept: word(!uplink).to_owned(),
                asked: word(uplink).to_owned(),
            })
        }
        Some(record) => Ok(record.way_out.clone()),
        None if uplink => Ok(new_way_out(mode, host)),
        None => Ok(WayOutRecord::Nowhere),
    }
}

fn new_way_out(mode: ModeRecord, host: &HostFacts) -> WayOutRecord {
    match mode {
        ModeRecord::Fabric => WayOutRecord::Qemu,
        ModeRecord::Namespace if host.is_root => WayOutRecord::Host {
            link: host.files.host_link(),
        },
        ModeRecord::Namespace => WayOutRecord::Helper {
            pasta: host.pasta.clone(),
            slirp4netns: host.slirp4netns.clone(),
        },
        ModeRecord::User | ModeRecord::Attach => WayOutRecord::Own,
    }
}

/// Host ports: fixed ones must be free, others are chosen by the machine's name and kept.
#[derive(Debug)]
pub(super) struct Ports {
    taken: BTreeSet<u16>,
    /// What the machines of this cluster have already; their own listeners are no obstacle.
    own: BTreeMap<String, Vec<PortRecord>>,
}

impl Ports {
    pub(super) fn new(inventory: &Inventory) -> Ports {
        let own: BTreeMap<String, Vec<PortRecord>> = inventory
            .machines
            .iter()
            .filter_map(|(name, known)| match known {
                Known::Whole { record, .. } => Some((name.clone(), record.ports.clone())),
                Known::Damaged { .. } => None,
            })
            .collect();
        let kept: BTreeSet<u16> = own.values().flatten().map(|port| port.host).collect();
        Ports {
            taken: inventory.taken_ports.union(&kept).copied().collect(),
            own,
        }
    }

    pub(super) fn choose(
        &mut self,
        machine: &Machine,
        uuid: &str,
        old: Option<&MachineRecord>,
    ) -> Result<Vec<PortRecord>, PlanError> {
        let name = machine.name.to_string();
        let own = self.own.get(&name).cloned().unwrap_or_default();
        let mut chosen: Vec<PortRecord> = Vec::new();
        for port in &machine.ports {
            let guest = port.guest.get();
            let host = match port.host {
                Some(host) => {
                    let host = host.get();
                    let mine = own.iter().any(|port| port.host == host);
                    if self.taken.contains(&host) && !mine {
                        return Err(PlanError::PortTaken {
                            machine: name,
                            port: host,
                        });
                    }
                    host
                }
                None => {
                    let kept = old.into_iter().flat_map(|old| &old.ports).find(|kept| {
                        kept.guest == guest
                            && kept.bind == port.bind
                            && !chosen.iter().any(|port| port.host == kept.host)
                    });
                    match kept {
                        Some(kept) => kept.host,
                        None => self.free(&name, uuid, guest)?,
                    }
                }
            };
            self.taken.insert(host);
            chosen.push(PortRecord {
                bind: port.bind,
                host,
                guest,
            });
        }
        Ok(chosen)
    }

    /// By the machine's uuid: another cluster's machine of the same name, which may be stopped just
    /// now, begins to look elsewhere.
    fn free(&self, machine: &str, uuid: &str, guest: u16) -> Result<u16, PlanError> {
        let digest = Sha256::digest(format!("{uuid}:{guest}"));
        let count = FREE_PORTS.end - FREE_PORTS.start;
        let start = u16::from_be_bytes([digest[0], digest[1]]) % count;
        (0..count)
            .map(|step| FREE_PORTS.start + (start + step) % count)
            .find(|port| !self.taken.contains(port))
            .ok_or_else(|| PlanError::NoPort {
                machine: machine.to_owned(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_mode_that_works_is_taken_and_said() {
        let works = Ok(());
        let fails = Err("open /dev/net/tun: no".to_owned());
        let check = |wish, tried: Option<&Result<(), String>>, want, told: &str| {
            let (mode, why) = mode(&wish, None, tried).unwrap();
            assert_eq!((mode, why.contains(told)), (want, true), "{why}");
        };
        let (fabric, namespace) = (ModeRecord::Fabric, ModeRecord::Namespace);
        check(NetworkMode::Auto, Some(&works), namespace, "works");
        check(NetworkMode::Auto, Some(&fails), fabric, "/dev/net/tun");
        check(NetworkMode::Fabric, None, fabric, "");
        check(NetworkMode::Namespace, Some(&works), namespace, "");
        assert!(matches!(
            mode(&NetworkMode::Namespace, None, Some(&fails)),
            Err(PlanError::NoNamespace { .. })
        ));
    }

    #[test]
    fn no_two_clusters_have_one_uid() {
        let first = uid("demo", &BTreeSet::new()).unwrap();
        assert!(UIDS.contains(&first));
        assert_eq!(uid("demo", &BTreeSet::from([1, 2])).unwrap(), first);
        let mut taken = BTreeSet::new();
        for _ in UIDS {
            assert!(taken.insert(uid("demo", &taken).unwrap()));
        }
        assert!(taken.iter().all(|uid| UIDS.contains(uid)));
        assert!(matches!(uid("demo", &taken), Err(PlanError::NoUid { .. })));
    }
}
