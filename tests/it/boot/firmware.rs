//! Disks that firmware boots, or does not: UEFI, secure boot, TPM.

use serde_json::json;

use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User};

/// Two machines, one of them emulated on most hosts, and their firmware before them.
const BOOT_BOTH: std::time::Duration = BOOT.saturating_mul(2);

#[test]
fn disks_boot_by_uefi_with_secure_boot_and_a_tpm_or_on_arm() {
    let home = Home::new(Lane::Wide, User::Myself, "firmware", &["pc", "arm"]);
    let config = json!({
        "ignition": {"version": "3.3.0"},
        "storage": {"files": [{"path": "/etc/told", "contents": {"source": "data:,told"}}]},
    });
    home.write("node.ign", config.to_string());
    let machine = |arch| {
        json!({
            "arch": arch,
            "image": guest::disk(arch).join("disk.raw"),
            "memory": "512MiB",
            "ignition": "node.ign",
        })
    };
    let (mut pc, arm) = (machine("x86_64"), machine("aarch64"));
    pc["firmware"] = "uefi-secure".into();
    pc["tpm"] = true.into();
    home.write_spec(&pc["image"].clone(), &json!({"pc": pc, "arm": arm}));
    home.within(BOOT_BOTH, &["up"]).ok();

    for (name, uname) in [("pc", "x86_64"), ("arm", "aarch64")] {
        // By fw_cfg, under UEFI too.
        let look =
            "cat /etc/told; echo; uname -m; hostname; test -d /sys/firmware/efi && echo uefi";
        let want = format!("told\n{uname}\n{name}\nuefi\n");
        assert_eq!(home.ssh(name, look), want);
        // The firmware has written what it boots into the machine's own variables.
        let vars = std::fs::read(home.cluster().machine(name).uefi_vars()).unwrap();
        let word: Vec<u8> = "BootOrder"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        assert!(
            vars.windows(word.len()).any(|bytes| bytes == word),
            "{name}"
        );
    }
    let console = home.kiln(&["logs", "pc"]).ok().stdout;
    assert!(
        console.contains("EFI stub: UEFI Secure Boot is enabled."),
        "{console}"
    );
    let tpm = home.ssh(
        "pc",
        "cd /sys/class/tpm/tpm0; cat tpm_version_major pcr-sha256/7 pcr-sha256/23",
    );
    let lines: Vec<&str> = tpm.lines().collect();
    let nothing = "0".repeat(64);
    assert_eq!(lines[0], "2");
    assert_ne!(lines[1], nothing, "the firmware measured nothing");
    assert_eq!(lines[2], nothing, "nobody measures this one");
    let shell = home.kiln(&["explain", "pc", "--shell"]).ok();
    shell.says("without the TPM");
    home.down();
}

#[test]
fn a_disk_that_the_firmware_does_not_boot_is_a_failure_with_its_words() {
    let home = Home::new(
        Lane::Wide,
        User::Myself,
        "refused",
        &["foreign", "uefi", "bios"],
    );
    let empty = home.folder().join("empty.raw");
    std::fs::File::create(&empty)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let foreign = guest::disk("x86_64").join("foreign.raw");
    let machine = |firmware: &str, image| json!({"memory": "512MiB", "firmware": firmware, "image": image, "profile": "basic"});
    home.write_spec(
        &json!("empty.raw"),
        &json!({
            "foreign": machine("uefi-secure", &foreign),
            "uefi": machine("uefi", &empty),
            "bios": machine("bios", &empty),
        }),
    );
    home.within(BOOT, &["up", "--wait", "running"]).ok();
    for (name, reason) in [
        ("bios", "No bootable device."),
        (
            "foreign",
            "the firmware refuses what it is to boot, which nobody that it trusts has signed: BdsDxe: ",
        ),
        ("uefi", "UEFI's shell waits for a command (before: BdsDxe: "),
    ] {
        home.within(BOOT, &["wait", name]).exits(6);
        let machine = home.machine(name);
        assert_eq!(machine["state"], "failed", "{machine}");
        let told = machine["reason"].as_str().unwrap();
        assert!(told.starts_with(reason), "{machine}");
    }
    home.down();
}
