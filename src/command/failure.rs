//! Which exit code each module's error means, and what the user can do about it.

use crate::client::ClientError;
use crate::error::{Error, Exit};
use crate::host::qemu::QemuError;
use crate::image::base::Fault;
use crate::image::cache::CacheError;
use crate::image::fetch::FetchError;
use crate::image::flash::FlashError;
use crate::image::overlay::OverlayError;
use crate::image::pull::PullError;
use crate::image::source::resolve::ResolveError;
use crate::image::store::StoreError;
use crate::inventory::InventoryError;
use crate::lvm::node::NodeError;
use crate::lvm::program::LvmError;
use crate::plan::{PlanError, VolumeFault};
use crate::spec::SpecError;
use crate::stage::volumes::{DiskError, VolumeError};
use crate::stage::{DataDiskError, StageError};
use crate::state::files::StateError;
use crate::state::lock::LockError;

impl From<SpecError> for Error {
    fn from(error: SpecError) -> Error {
        let mut told = Error::from_source(Exit::Spec, &error);
        if let Some(snippet) = error.snippet() {
            told.message.push('\n');
            told.message.push_str(snippet);
        }
        match error.hint() {
            Some(hint) => told.hint(hint),
            None => told,
        }
    }
}

impl From<StateError> for Error {
    fn from(error: StateError) -> Error {
        Error::from_source(Exit::Failed, &error)
    }
}

impl From<LockError> for Error {
    fn from(error: LockError) -> Error {
        match &error {
            LockError::Held { .. } => Error::from_source(Exit::Busy, &error)
                .hint("wait for it to end, or look at it with `kiln ps`"),
            LockError::Open { .. } => Error::from_source(Exit::Failed, &error),
        }
    }
}

impl From<InventoryError> for Error {
    fn from(error: InventoryError) -> Error {
        let fault = match &error {
            InventoryError::Cluster { source, .. } if source.is_newer() => {
                return Error::from_source(Exit::Failed, &error)
                    .hint("use the kiln that made the cluster, or a later one");
            }
            InventoryError::Cluster { cluster, .. } => {
                let hint = format!("`kiln -c {cluster} down` removes the cluster");
                return Error::from_source(Exit::Failed, &error).hint(hint);
            }
            InventoryError::Disks { source, .. } if source.is_newer() => {
                return Error::from_source(Exit::Failed, &error)
                    .hint("use the kiln that made the disks, or a later one");
            }
            InventoryError::Disks { .. } => {
                let hint = "mend the list, or look at the disks beside it and remove their folder if they may go";
                return Error::from_source(Exit::Failed, &error).hint(hint);
            }
            InventoryError::Image { source, .. } | InventoryError::DataFile { source, .. } => {
                source.fault()
            }
            InventoryError::Kernel {
                source: StoreError::Source { source },
                ..
            } => source.fault(),
            InventoryError::Kernel { .. } => Fault::Host,
            InventoryError::Pins { .. } | InventoryError::Pin { .. } => {
                return Error::from_source(Exit::Spec, &error).hint(
                    "mend `kiln.lock`, or remove it to have the newest releases pinned anew",
                );
            }
            InventoryError::Cache { source, .. } => return cache_error(source, &error),
        };
        let exit = match fault {
            Fault::Spec => Exit::Spec,
            Fault::Safety => Exit::Unsafe,
            Fault::Host => Exit::Failed,
        };
        Error::from_source(exit, &error)
    }
}

impl From<PlanError> for Error {
    fn from(error: PlanError) -> Error {
        let exit = match &error {
            PlanError::NoQemu { .. }
            | PlanError::NoQemuImg { .. }
            | PlanError::NoFirmware { .. }
            | PlanError::NoTpm { .. }
            | PlanError::NoKvm { .. }
            | PlanError::PortTaken { .. }
            | PlanError::NoPort { .. }
            | PlanError::NoNamespace { .. }
            | PlanError::NoBridge { .. }
            | PlanError::NoUid { .. }
            | PlanError::NoMemory { .. }
            | PlanError::SubnetTaken { .. }
            | PlanError::Subnet6Taken { .. } => Exit::Host,
            PlanError::ForeignKvm { .. }
            | PlanError::MacTaken { .. }
            | PlanError::Address(_)
            | PlanError::DiskShrinks { .. }
            | PlanError::DataDiskShrinks { .. } => Exit::Spec,
            PlanError::SubnetMoved { .. }
            | PlanError::ModeMoved { .. }
            | PlanError::NetworkMoved { .. } => Exit::Unsafe,
            PlanError::Volume(fault) => match fault {
                VolumeFault::Group(_) | VolumeFault::Full { .. } => Exit::Host,
                VolumeFault::Taken { .. } | VolumeFault::Unclear { .. } => Exit::Unsafe,
                VolumeFault::LongName { .. } | VolumeFault::Elsewhere { .. } => Exit::Spec,
            },
            PlanError::Record { .. } | PlanError::Damaged { .. } | PlanError::NoImage { .. } => {
                Exit::Failed
            }
        };
        let told = Error::from_source(exit, &error);
        match &error {
            PlanError::NoQemu { install, .. } | PlanError::NoQemuImg { install, .. } => {
                told.hint(match install {
                    Some(command) => format!("as root: {command}"),
                    None => "`kiln doctor` says what else is missing here".to_owned(),
                })
            }
            PlanError::NoFirmware { install, .. } | PlanError::NoTpm { install, .. } => {
                told.hint(match install {
                    Some(command) => format!("as root: {command}"),
                    None => "`kiln doctor` says what is missing here".to_owned(),
                })
            }
            PlanError::NoKvm { .. } => {
                told.hint("write `accel: auto` or `accel: tcg` to run it emulated")
            }
            PlanError::ForeignKvm { .. } => told.hint("write `accel: auto` or `accel: tcg`"),
            PlanError::PortTaken { machine, port } => told.hint(format!(
                "stop what listens on port {port}, or give `{machine}` another one, or write `\":GUEST\"` for a free one"
            )),
            PlanError::DiskShrinks { .. } => {
                told.hint("a disk never shrinks: leave `disk` out, or ask for more")
            }
            PlanError::DataDiskShrinks { .. } => told.hint(
                "a disk never shrinks: ask for as much or more, or for a new disk by another `serial`",
            ),
            PlanError::SubnetMoved { .. }
            | PlanError::ModeMoved { .. }
            | PlanError::NetworkMoved { .. } => {
                told.hint("`kiln down` first, then `kiln up`")
            }
            PlanError::NoNamespace { .. } => told.hint(
                "`kiln doctor` says what would help; `network.mode: fabric` works everywhere",
            ),
            PlanError::NoBridge { .. } => {
                told.hint("`kiln doctor` lists the bridges that machines can be attached to")
            }
            PlanError::Subnet6Taken { .. } => {
                told.hint("leave `network.ipv6` out, and a free one is chosen")
            }
            PlanError::SubnetTaken { .. } => {
                told.hint("leave `network.subnet` out, and a free one is chosen")
            }
            PlanError::Damaged { .. } | PlanError::Record { .. } => {
                told.hint("`kiln down` removes the cluster; its disks are lost")
            }
            PlanError::Volume(fault) => match fault {
                VolumeFault::Group(refusal) => match &refusal.install {
                    Some(command) => told.hint(format!("as root: {command}")),
                    None => told.hint("`kiln doctor` says what logical volumes need; without `storage`, disks are files"),
                },
                VolumeFault::Full { .. } => {
                    told.hint("ask for smaller disks, or make room: `vgs` and `lvs` show the group")
                }
                VolumeFault::Taken { group, name } => told.hint(format!(
                    "it is left as it is: rename it (`lvrename {group} {name} NAME`), or give the cluster another name"
                )),
                VolumeFault::Unclear { .. } => told.hint("`lvs -o +lv_tags` shows the tags"),
                VolumeFault::LongName { .. } => told.hint("shorten the names"),
                VolumeFault::Elsewhere { group, .. } => told.hint(format!(
                    "say `storage: {{vg: {group}}}`, or ask for a new disk by another `serial`"
                )),
            },
            PlanError::NoMemory { .. } => told.hint(
                "fewer machines or less `memory` fit; `--overcommit` starts them all the same, and the kernel may then end one",
            ),
            PlanError::NoPort { .. }
            | PlanError::NoUid { .. }
            | PlanError::Address(_)
            | PlanError::MacTaken { .. }
            | PlanError::NoImage { .. } => told,
        }
    }
}

impl From<QemuError> for Error {
    fn from(error: QemuError) -> Error {
        Error::from_source(Exit::Host, &error)
            .hint("`kiln doctor` says what is installed, and the command that installs a QEMU here")
    }
}

impl From<StageError> for Error {
    fn from(error: StageError) -> Error {
        match &error {
            StageError::Ignition { source, .. } => {
                let hint = source.hint();
                let told = Error::from_source(Exit::Spec, &error);
                match hint {
                    Some(hint) => told.hint(hint),
                    None => told,
                }
            }
            StageError::Overlay { source, .. } => Error::from_source(of_overlay(source), &error),
            StageError::DataDisk(source) => {
                let exit = match &**source {
                    DataDiskError::Make { source, .. } => of_overlay(source),
                    DataDiskError::Judge { .. } => Exit::Unsafe,
                };
                Error::from_source(exit, &error)
            }
            StageError::Volume(source) => Error::from_source(of_volume(source), &error),
            StageError::Flash {
                source: FlashError::Template(_),
                ..
            } => Error::from_source(Exit::Unsafe, &error),
            StageError::Flash { .. }
            | StageError::Tpm { .. }
            | StageError::State(_)
            | StageError::Disks(_)
            | StageError::Folder(_)
            | StageError::Write(_)
            | StageError::ReadKey { .. }
            | StageError::Key { .. } => Error::from_source(Exit::Failed, &error),
        }
    }
}

fn of_volume(error: &VolumeError) -> Exit {
    match error {
        VolumeError::Disk {
            source: DiskError::Lvm(source),
            ..
        } => match source {
            LvmError::NotInstalled
            | LvmError::NotRoot
            | LvmError::NoGroup { .. }
            | LvmError::NoDeviceMapper => Exit::Host,
            LvmError::Ambiguous { .. } | LvmError::Other { .. } => Exit::Unsafe,
            LvmError::Random { .. }
            | LvmError::Run { .. }
            | LvmError::Failed { .. }
            | LvmError::Nonsense { .. }
            | LvmError::Vanished { .. } => Exit::Failed,
        },
        VolumeError::Disk {
            source: DiskError::Node(NodeError::Other { .. }),
            ..
        } => Exit::Unsafe,
        VolumeError::Disk { .. } | VolumeError::Old { .. } | VolumeError::State(_) => Exit::Failed,
    }
}

fn of_overlay(error: &OverlayError) -> Exit {
    match error {
        OverlayError::Shrinks { .. }
        | OverlayError::TooLarge { .. }
        | OverlayError::LongName { .. }
        | OverlayError::Relative { .. } => Exit::Spec,
        OverlayError::Write { .. } | OverlayError::Tool { .. } | OverlayError::Refused { .. } => {
            Exit::Failed
        }
    }
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Error {
        let hint = match &error {
            ClientError::NoCluster { .. } => {
                return Error::from_source(Exit::Unknown, &error)
                    .hint("`kiln ls` lists the clusters; `kiln up` makes the one of your spec");
            }
            ClientError::Lock {
                source: LockError::Held { .. },
                ..
            } => {
                return Error::from_source(Exit::Busy, &error)
                    .hint("wait for it to end, and say this again");
            }
            ClientError::Hung { cluster, pid, .. } => {
                let wake = match pid {
                    Some(pid) => format!("`kill -CONT {pid}` lets a stopped one go on; "),
                    None => String::new(),
                };
                return Error::from_source(Exit::Timeout, &error).hint(format!(
                    "the machines run on; {wake}`kiln -c {cluster} start` ends it and starts another, as `up`, `stop`, `kill` and `down` do"
                ));
            }
            ClientError::Stuck { pid, .. } => {
                return Error::from_source(Exit::Failed, &error).hint(format!(
                    "the machines run on; end process {pid} yourself, then say this again"
                ));
            }
            ClientError::Gone { .. } => {
                "the machines run on; the next command starts another supervisor"
            }
            ClientError::Silent { .. } | ClientError::Nonsense { .. } => {
                "the machines run on; `kiln logs --supervisor` shows what it said last"
            }
            ClientError::Lock { .. }
            | ClientError::Connect { .. }
            | ClientError::Folder { .. }
            | ClientError::Listen { .. }
            | ClientError::Spawn { .. }
            | ClientError::Refused { .. } => return Error::from_source(Exit::Failed, &error),
        };
        Error::from_source(Exit::Failed, &error).hint(hint)
    }
}

/// What a fault of the cache means; `told` is the error that it is the cause of, or itself.
fn cache_error(cause: &CacheError, told: &(dyn std::error::Error + 'static)) -> Error {
    match cause {
        CacheError::Changed { .. } | CacheError::Damaged { .. } => {
            Error::from_source(Exit::Unsafe, told).hint(
                "`kiln image verify` looks at all images; `kiln image rm` and `kiln image pull` replace one",
            )
        }
        CacheError::Folder { .. }
        | CacheError::Read { .. }
        | CacheError::Write { .. }
        | CacheError::Record { .. }
        | CacheError::Lock { .. } => Error::from_source(Exit::Failed, told),
    }
}

impl From<CacheError> for Error {
    fn from(error: CacheError) -> Error {
        cache_error(&error, &error)
    }
}

impl From<PullError> for Error {
    fn from(error: PullError) -> Error {
        let (exit, hint) = match &error {
            PullError::Resolve { source } => match source {
                ResolveError::Missing { .. } | ResolveError::Arch { .. } => (
                    Exit::Spec,
                    Some("look for its name, its release and its architecture at its maker's"),
                ),
                ResolveError::Http { .. } => (Exit::Failed, Some(NETWORK)),
                ResolveError::Metadata { .. } => (Exit::Failed, None),
            },
            PullError::Fetch { source, .. } => match source {
                FetchError::Missing { .. } => (
                    Exit::Spec,
                    Some("`kiln image update` moves a pinned release that is gone to the newest"),
                ),
                FetchError::Http { .. } => (Exit::Failed, Some(NETWORK)),
                FetchError::Cut { .. } => (
                    Exit::Failed,
                    Some("what was received is kept; the same command goes on from there"),
                ),
                FetchError::Unpack { .. } => (Exit::Unsafe, None),
                FetchError::Write { .. } => (
                    Exit::Failed,
                    Some("`kiln image prune` makes room; what was received is kept"),
                ),
                FetchError::Changed { .. }
                | FetchError::Unknown { .. }
                | FetchError::Length { .. }
                | FetchError::Thread => (Exit::Failed, None),
            },
            PullError::Signature { .. } => (Exit::Failed, Some(NETWORK)),
            PullError::Unsigned { .. } => (
                Exit::Unsafe,
                Some("`insecure: true` in the spec, or `--insecure`, takes it all the same"),
            ),
            PullError::Trust { .. } => (
                Exit::Unsafe,
                Some("if its maker has a new key, docs/images.md says where to put it"),
            ),
            PullError::Digest { .. } => (
                Exit::Unsafe,
                Some(
                    "it is not the file that the digest is of; if it was replaced, `kiln image update` pins the newest",
                ),
            ),
            PullError::Image { .. } => (Exit::Unsafe, None),
            PullError::Keyring { .. } | PullError::ReadKeyring { .. } => (Exit::Spec, None),
            PullError::Cache { source } => return cache_error(source, &error),
            PullError::Write { .. } => (Exit::Failed, None),
        };
        let told = Error::from_source(exit, &error);
        match hint {
            Some(hint) => told.hint(hint),
            None => told,
        }
    }
}

const NETWORK: &str = "a proxy is named by `HTTPS_PROXY`, a company's authority by `SSL_CERT_FILE`; docs/images.md tells of mirrors; without any network, `image: ./disk.qcow2` names a file of yours";
