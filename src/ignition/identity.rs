//! What a machine's disk belongs to.
//!
//! Ignition runs once for each disk. A disk that was made for one source does
//! not become another machine because a file changed, so the disk remembers
//! this hash and the plan compares.

use sha2::{Digest, Sha256};

use crate::cluster::{Machine, Profile};

/// A hash over what the user wrote for a machine: Ignition source, `vars`, profile and image.
///
/// It does not depend on addresses, keys or other machines, so that scaling a
/// cluster leaves its disks alone. `image` is any text that stands for the image.
/// 64 lower-case hexadecimal digits.
pub fn identity(machine: &Machine, image: &str) -> String {
    // kiln's own templates are not in it, so that a newer kiln asks for no new disk.
    let profile = match &machine.profile {
        Profile::Basic => "basic".to_owned(),
        Profile::Etcd { .. } => "etcd".to_owned(),
        Profile::Own(own) => serde_json::json!([own.config.text, own.others]).to_string(),
        Profile::None => "none".to_owned(),
    };
    let (kind, source) = match &machine.ignition {
        None => ("absent", ""),
        Some(source) if machine.cloud_init => ("cloud-init", source.text.as_str()),
        Some(source) if source.template => ("template", source.text.as_str()),
        Some(source) => ("config", source.text.as_str()),
    };
    // A map of JSON values always has a text, and its keys are sorted.
    let vars = serde_json::json!(machine.vars).to_string();
    let mut hash = Sha256::new();
    for part in ["kiln disk 1", &profile, kind, source, &vars, image] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
