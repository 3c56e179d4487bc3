//! The seed disk of cloud images that know no Ignition: cloud-init's data source NoCloud.
//!
//! A read-only disk labeled `CIDATA` holds `user-data`, which is the user's file as it is;
//! `meta-data`, with an instance id that a new root disk changes; and `vendor-data`, kiln's own part:
//! what both say is the user's to decide. Pure: no file, no process, no clock.

mod iso;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cluster::{Machine, Profile};
use crate::ignition::{Facts, REPORT_SCRIPT, REPORT_UNIT};

/// cloud-init looks for this label, in either case.
const LABEL: &str = "CIDATA";
/// Between the parts of a MIME message; no part has such a line.
const BOUNDARY: &str = "==kiln==";

/// How a user-data begins that cloud-init understands, in its documentation's order.
const HEADERS: [&str; 9] = [
    "#cloud-config",
    "#!",
    "#include",
    "#cloud-boothook",
    "#cloud-config-archive",
    "#part-handler",
    "## template: jinja",
    "Content-Type: multipart",
    "MIME-Version:",
];

/// What lies on the disk. Secrets, so `Debug` shows none of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed {
    meta_data: String,
    user_data: String,
    vendor_data: String,
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seed").finish_non_exhaustive()
    }
}

/// Whether cloud-init would know what this is.
pub fn is_user_data(text: &str) -> bool {
    HEADERS.iter().any(|header| text.starts_with(header))
}

impl Seed {
    /// That of a machine, with the user's own text.
    pub fn of(machine: &Machine, facts: &Facts<'_>, user_data: String) -> Seed {
        // The host key is as old as the root disk.
        let hash = Sha256::digest(facts.host_key.public());
        let id: String = hash
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let mut meta_data = json!({"instance-id": format!("kiln-{id}")});
        let mut vendor_data = String::new();
        if machine.profile != Profile::None {
            meta_data["local-hostname"] = machine.name.as_str().into();
            meta_data["public-keys"] = json!(facts.authorized_keys);
            vendor_data = message(facts);
        }
        Seed {
            meta_data: format!("{meta_data}\n"),
            user_data,
            vendor_data,
        }
    }

    /// The bytes of the disk.
    pub fn disk(&self) -> Vec<u8> {
        // In the order of the names, as the file system wants it.
        let files = [
            ("META-DATA.;1", self.meta_data.as_bytes()),
            ("USER-DATA.;1", self.user_data.as_bytes()),
            ("VENDOR-DATA.;1", self.vendor_data.as_bytes()),
        ];
        iso::image(LABEL, &files)
    }

    /// What lies on a disk of ours; `None` for anything else.
    pub fn read(disk: &[u8]) -> Option<Seed> {
        let text = |name| String::from_utf8(iso::file(disk, name)?.to_vec()).ok();
        Some(Seed {
            meta_data: text("META-DATA.;1")?,
            user_data: text("USER-DATA.;1")?,
            vendor_data: text("VENDOR-DATA.;1")?,
        })
    }

    /// All of it, for programs.
    pub fn value(&self) -> Value {
        json!({
            "meta-data": self.meta_data,
            "vendor-data": self.vendor_data,
            "user-data": self.user_data,
        })
    }

    /// All of it, for people.
    pub fn shown(&self) -> String {
        let mut text = String::new();
        for (name, content) in [
            ("meta-data", &self.meta_data),
            ("vendor-data", &self.vendor_data),
            ("user-data", &self.user_data),
        ] {
            text.push_str(&format!("--- {name}\n{content}"));
            if !content.ends_with('\n') {
                text.push('\n');
            }
        }
        text
    }
}

/// kiln's own part. The user's `runcmd` or `users` would take the place of ours, so what has to
/// happen in any case is a script: a boothook, which runs at each boot.
fn message(facts: &Facts<'_>) -> String {
    let config: Value = json!({
        "preserve_hostname": false,
        "ssh_keys": {
            "ed25519_private": facts.host_key.private(),
            "ed25519_public": facts.host_key.public(),
        },
    });
    let hook = include_str!("nocloud/boothook.sh")
        .replace("@KEYS@", &encoded(&facts.authorized_keys.join("\n")))
        .replace("@REPORT@", &encoded(REPORT_SCRIPT))
        .replace("@UNIT@", &encoded(REPORT_UNIT));
    let part = |kind: &str, text: &str| {
        format!("--{BOUNDARY}\nContent-Type: text/{kind}; charset=\"utf-8\"\n\n{text}\n")
    };
    format!(
        "Content-Type: multipart/mixed; boundary=\"{BOUNDARY}\"\nMIME-Version: 1.0\n\n{}{}--{BOUNDARY}--\n",
        part("cloud-config", &format!("#cloud-config\n{config}")),
        part("cloud-boothook", &hook),
    )
}

fn encoded(text: &str) -> String {
    STANDARD.encode(format!("{}\n", text.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_is_known_by_its_first_line() {
        for text in [
            "#cloud-config\na: b\n",
            "#!/bin/sh\n",
            "Content-Type: multipart/mixed",
        ] {
            assert!(is_user_data(text), "{text}");
        }
        for text in ["", "a: b", "# cloud-config", "{\"ignition\":{}}"] {
            assert!(!is_user_data(text), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let seed = Seed {
            meta_data: "{}\n".to_owned(),
            user_data: "x".repeat(5000),
            vendor_data: String::new(),
        };
        let disk = seed.disk();
        assert_eq!(disk.len() % 2048, 0);
        assert_eq!(Seed::read(&disk), Some(seed));
        assert_eq!(Seed::read(b"{}"), None);
        assert_eq!(Seed::read(&[0; 50_000]), None);
        let mut broken = disk;
        broken[20 * 2048] = 0;
        assert_eq!(Seed::read(&broken), None);
    }
}
