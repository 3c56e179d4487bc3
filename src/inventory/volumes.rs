//! The spec's volume group, and which of its volumes this cluster made.

use std::fs;

use crate::cluster::Cluster;
use crate::host::Host;
use crate::host::distribution::Piece;
use crate::lvm::name::GroupName;
use crate::lvm::program::LvmError;
use crate::plan::{GroupFacts, GroupRefusal};

/// What lvm2 says of the spec's group; `None` where the spec has none, and lvm2 is not asked.
pub(super) fn look(cluster: &Cluster, host: &Host) -> Option<Result<GroupFacts, GroupRefusal>> {
    let group = cluster.volume_group.as_ref()?;
    Some(facts(group, host).map_err(|error| GroupRefusal {
        group: group.to_string(),
        why: crate::error::in_one_line(&error),
        install: match error {
            LvmError::NotInstalled => host.distribution.install(Piece::Lvm),
            LvmError::NotRoot
            | LvmError::NoGroup { .. }
            | LvmError::NoDeviceMapper
            | LvmError::Random { .. }
            | LvmError::Run { .. }
            | LvmError::Failed { .. }
            | LvmError::Nonsense { .. }
            | LvmError::Ambiguous { .. }
            | LvmError::Other { .. }
            | LvmError::Vanished { .. } => None,
        },
    }))
}

fn facts(name: &GroupName, host: &Host) -> Result<GroupFacts, LvmError> {
    let lvm = host.lvm();
    let group = lvm.group(name)?;
    Ok(GroupFacts {
        volumes: lvm.volumes(&group.uuid)?,
        group,
        token: fs::read_to_string("/proc/sys/kernel/random/uuid")
            .map_err(|source| LvmError::Random { source })?
            .trim()
            .to_owned(),
    })
}
