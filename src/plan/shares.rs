//! The shares of a plan: who serves each of them to the guest.

use std::path::PathBuf;

use super::HostFacts;
use crate::cluster::{Machine, Share};
use crate::state::record::{MachineRecord, ShareByRecord, ShareRecord};

/// The machine's shares: by virtiofs where that works, else by 9p.
///
/// A machine keeps what it has: its mount units say by which of the two, and a host on which a
/// virtiofsd comes or fails changes no machine that runs.
pub(super) fn choose(
    machine: &Machine,
    host: &HostFacts,
    old: Option<&MachineRecord>,
) -> Vec<ShareRecord> {
    let old = old.filter(|old| old.arch == machine.arch.to_string());
    let chosen = machine.shares.iter().map(|share| {
        let to = share.to.as_str();
        let kept = old.and_then(|old| old.shares.iter().find(|old| old.to == to));
        let best = best(machine, host);
        match (kept.map(|kept| (&kept.by, &kept.reason)), best) {
            (None | Some((ShareByRecord::Virtiofs { .. }, _)), Ok(program)) => {
                let by = ShareByRecord::Virtiofs { program };
                record(share, by, String::new())
            }
            (None, Err(why)) => record(share, ShareByRecord::NineP, why),
            (Some((by, why)), _) => record(share, by.clone(), why.clone()),
        }
    });
    chosen.collect()
}

fn record(share: &Share, by: ShareByRecord, reason: String) -> ShareRecord {
    ShareRecord {
        from: share.from.clone(),
        to: share.to.to_string(),
        tag: share.to.tag(),
        readonly: share.readonly,
        by,
        reason,
    }
}

/// The virtiofsd that can serve this machine, or why there is none.
///
/// virtiofs passes on the guest kernel's own numbers as they are, in its byte order: a ppc64le guest
/// that opens a file asks an x86_64 host for a folder, and an s390x guest is not understood at all.
fn best(machine: &Machine, host: &HostFacts) -> Result<PathBuf, String> {
    if !machine.arch.is_native_on(host.arch) {
        return Err(format!(
            "virtiofs is for guests of the host's own architecture, which is {}",
            host.arch
        ));
    }
    match &host.virtiofsd {
        Some(Ok(program)) => Ok(program.clone()),
        Some(Err(why)) => Err(why.clone()),
        None => Err("`virtiofsd` was not tried".to_owned()),
    }
}

impl ShareRecord {
    /// The word for how it is served.
    pub fn word(&self) -> &'static str {
        match self.by {
            ShareByRecord::Virtiofs { .. } => "virtiofs",
            ShareByRecord::NineP => "9p",
        }
    }
}
