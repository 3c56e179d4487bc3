//! The mount units of a machine's shares.

use serde_json::{Value, json};

use crate::cluster::MountPoint;
use crate::state::record::{ShareByRecord, ShareRecord};

/// How much 9p carries at a time, in bytes: its default of 128 KiB is the newest kernels' only.
const MSIZE: u32 = 128 << 10;

/// A unit for each share, for the guest's systemd.
pub(super) fn units(shares: &[ShareRecord]) -> Vec<Value> {
    let unit = |share: &ShareRecord| {
        let to: MountPoint = share.to.parse().ok()?;
        Some(json!({"name": to.unit(), "enabled": true, "contents": unit(share, &to)}))
    };
    shares.iter().filter_map(unit).collect()
}

/// It is wanted and not required: a guest whose share is gone comes up without it. What needs it says
/// `RequiresMountsFor=`.
fn unit(share: &ShareRecord, to: &MountPoint) -> String {
    let access = if share.readonly { "ro" } else { "rw" };
    let (kind, options) = match share.by {
        ShareByRecord::Virtiofs { .. } => ("virtiofs", access.to_owned()),
        ShareByRecord::NineP => (
            "9p",
            format!("trans=virtio,version=9p2000.L,msize={MSIZE},{access}"),
        ),
    };
    // systemd replaces what a single one begins.
    let place = to.as_str().replace('%', "%%");
    format!(
        "\
[Unit]
Description=Folder of the host on {place}

[Mount]
What={}
Where={place}
Type={kind}
Options={options}

[Install]
WantedBy=local-fs.target
",
        share.tag
    )
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn share(to: &str, readonly: bool, by: ShareByRecord) -> ShareRecord {
        let point: MountPoint = to.parse().unwrap();
        ShareRecord {
            from: "/srv".into(),
            to: to.to_owned(),
            tag: point.tag(),
            readonly,
            by,
            reason: String::new(),
        }
    }

    #[test]
    fn a_unit_mounts_by_the_tag_at_its_own_place() {
        let virtiofs = ShareByRecord::Virtiofs {
            program: "/usr/libexec/virtiofsd".into(),
        };
        let shares = [
            share("/var/mnt/src", true, virtiofs),
            share("/var/50%-off", false, ShareByRecord::NineP),
        ];
        let units = units(&shares);
        let text: Vec<String> = units
            .iter()
            .map(|unit| {
                let text = |key: &str| unit[key].as_str().unwrap();
                format!("# {}\n{}", text("name"), text("contents"))
            })
            .collect();
        expect![[r#"
            # var-mnt-src.mount
            [Unit]
            Description=Folder of the host on /var/mnt/src

            [Mount]
            What=var-mnt-src
            Where=/var/mnt/src
            Type=virtiofs
            Options=ro

            [Install]
            WantedBy=local-fs.target

            # var-50\x25\x2doff.mount
            [Unit]
            Description=Folder of the host on /var/50%%-off

            [Mount]
            What=share-1c10c89ce56dce20
            Where=/var/50%%-off
            Type=9p
            Options=trans=virtio,version=9p2000.L,msize=131072,rw

            [Install]
            WantedBy=local-fs.target
        "#]]
        .assert_eq(&text.join("\n"));
    }
}
