//! Consoles as guests print them. Those of the tiny guest are recorded and
//! shortened; the others have the texts of their programs.

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

#[track_caller]
fn check(console: &str, want: &Expect) {
    let findings: Vec<String> = Scanner::new()
        .feed(console.as_bytes())
        .into_iter()
        .map(|Finding { kind, line }| format!("{kind:?} | {line}\n"))
        .collect();
    want.assert_eq(&findings.concat());
}

const GOOD: &str = "\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1.16.3-debian-1.16.3-2~bpo12+1)\r\n\
Booting from ROM..\r\n\
[    0.000000] Linux version 6.1.0-44-cloud-amd64 (debian-kernel@lists.debian.org)\r\n\
[    3.677031] input: Power Button as /devices/LNXSYSTM:00/LNXPWRBN:00/input/input2\r\n\
guest: first stage\r\n\
guest: ignition fetch-offline\r\n\
INFO     : Ignition Debian 2.14.0+ds1-1+b6\r\n\
INFO     : Stage: fetch-offline\r\n\
INFO     : failed to log systemd journal entry: write unixgram @a5b40->/run/systemd/journal/socket: sendmsg: no such file or directory\r\n\
INFO     : fetch-offline: fetch-offline passed\r\n\
INFO     : Ignition finished successfully\r\n\
guest: ignition files\r\n\
INFO     : Stage: files\r\n\
INFO     : Ignition finished successfully\r\n\
guest: second stage\r\n\
[    9.000000] late kernel words\r\n";

#[test]
fn a_good_boot_goes_through_its_phases() {
    check(
        GOOD,
        &expect![[r#"
            Firmware | SeaBIOS (version 1.16.3-debian-1.16.3-2~bpo12+1)
            Kernel | [ 0.000000] Linux version 6.1.0-44-cloud-amd64 (debian-kernel@lists.debian.org)
            Ignition { stage: "fetch-offline" } | guest: ignition fetch-offline
            Ignition { stage: "files" } | guest: ignition files
            Userspace | guest: second stage
        "#]],
    );
}

#[test]
fn a_config_that_is_not_json_names_the_place() {
    check(
        "INFO     : Stage: fetch-offline\r\n\
         CRITICAL : error at line 0 col 0: unexpected end of JSON input\r\n\
         WARNING  : failed to fetch config: config is not valid\r\n\
         CRITICAL : failed to acquire config: config is not valid\r\n\
         CRITICAL : Ignition failed: config is not valid\r\n\
         guest: Ignition failed in stage fetch-offline\r\n\
         guest: Entering emergency mode. Nothing else will start; look above for the cause.\r\n",
        &expect![[r#"
            Ignition { stage: "fetch-offline" } | INFO : Stage: fetch-offline
            IgnitionFailed | Ignition failed: error at line 0 col 0: unexpected end of JSON input
            Emergency | guest: Entering emergency mode. Nothing else will start; look above for the cause.
        "#]],
    );
}

#[test]
fn a_disk_that_is_not_there_is_named() {
    check(
        "INFO     : Stage: disks\r\n\
         INFO     : disks: createPartitions: op(1): [started]  waiting for devices [/dev/disk/by-id/virtio-nothere]\r\n\
         CRITICAL : disks: createPartitions: op(1): [failed]   waiting for devices [/dev/disk/by-id/virtio-nothere]: dial unix /run/systemd/private: connect: no such file or directory\r\n\
         disks failed\r\n\
         Full config:\r\n\
         {\r\n  \"ignition\": {\r\n    \"config\": {\r\n\
         CRITICAL : Ignition failed: create partitions failed: failed to wait on disks devs: dial unix /run/systemd/private: connect: no such file or directory\r\n\
         guest: Ignition failed in stage disks\r\n",
        &expect![[r#"
            Ignition { stage: "disks" } | INFO : Stage: disks
            IgnitionFailed | Ignition failed: disks: createPartitions: op(1): [failed] waiting for devices [/dev/disk/by-id/virtio-nothere]: dial unix /run/systemd/private: connect: no such file or directory
        "#]],
    );
}

#[test]
fn a_failed_command_is_told_without_its_secrets() {
    check(
        "INFO     : Stage: files\r\n\
         CRITICAL : files: ensureUsers: op(1): [failed]   creating or modifying user \"u\": exit status 1: Cmd: \"useradd\" \"--root\" \"/sysroot\" \"--password\" \"$y$secret\" \"u\" Stdout: \"\" Stderr: \"useradd: group 'x' does not exist\\n\"\r\n\
         CRITICAL : Ignition failed: failed to create users/groups\r\n",
        &expect![[r#"
            Ignition { stage: "files" } | INFO : Stage: files
            IgnitionFailed | Ignition failed: files: ensureUsers: op(1): [failed] creating or modifying user "u": exit status 1 "useradd: group 'x' does not exist\n"
        "#]],
    );
}

#[test]
fn fedora_coreos_says_it_by_the_journal() {
    check(
        "[    0.000000] Linux version 6.9.7-200.fc40.x86_64 (mockbuild@x)\r\n\
         Welcome to \x1b[0;38;5;39mFedora CoreOS 40.20240709.3.1 dracut-101-1.fc40 (Initramfs)\x1b[0m!\r\n\
         [    5.613004] ignition[712]: Ignition 2.19.0\r\n\
         [    5.613120] ignition[712]: Stage: fetch-offline\r\n\
         [    5.800000] ignition[712]: Ignition finished successfully\r\n\
         [\x1b[0;32m  OK  \x1b[0m] Finished \x1b[0;1;39mignition-fetch-offline.service\x1b[0m - Ignition (fetch-offline).\r\n\
         \x20        Starting \x1b[0;1;39mignition-disks.service\x1b[0m - Ignition (disks)...\r\n\
         [   98.120000] ignition[801]: disks: createPartitions: op(1): [failed]   waiting for devices [/dev/vdb]: device unit dev-vdb.device timeout\r\n\
         [   98.130000] ignition[801]: Ignition failed: create partitions failed: failed to wait on disks devs: device unit dev-vdb.device timeout\r\n\
         [\x1b[0;1;31mFAILED\x1b[0m] Failed to start \x1b[0;1;39mignition-disks.service\x1b[0m - Ignition (disks).\r\n\
         Ignition has failed. Please ensure your config is valid. Note that only\r\n\
         Press Enter for emergency shell or wait 5 minutes 0 seconds for reboot.\r\n",
        &expect![[r#"
            Kernel | [ 0.000000] Linux version 6.9.7-200.fc40.x86_64 (mockbuild@x)
            Ignition { stage: "" } | [ 5.613004] ignition[712]: Ignition 2.19.0
            Ignition { stage: "fetch-offline" } | [ 5.613120] ignition[712]: Stage: fetch-offline
            Ignition { stage: "disks" } | Starting ignition-disks.service - Ignition (disks)...
            IgnitionFailed | Ignition failed: disks: createPartitions: op(1): [failed] waiting for devices [/dev/vdb]: device unit dev-vdb.device timeout
            Emergency | Press Enter for emergency shell or wait 5 minutes 0 seconds for reboot. (before: [FAILED] Failed to start ignition-disks.service - Ignition (disks).)
        "#]],
    );
}

#[test]
fn a_quiet_failure_of_ignition_is_still_seen() {
    check(
        "[FAILED] Failed to start Ignition (fetch).\r\n",
        &expect![[r#"
            Ignition { stage: "fetch" } | [FAILED] Failed to start Ignition (fetch).
            IgnitionUnitFailed | [FAILED] Failed to start Ignition (fetch).
        "#]],
    );
}

#[test]
fn a_missing_root_leads_to_the_emergency_shell() {
    check(
        "Welcome to Debian GNU/Linux 12 (bookworm) dracut-059-4 (Initramfs)!\r\n\
         [ TIME ] Timed out waiting for device dev-disk-by\\x2dlabel-root.device - /dev/disk/by-label/root.\r\n\
         [DEPEND] Dependency failed for sysroot.mount - /sysroot.\r\n\
         You are in emergency mode. After logging in, type \"journalctl -xb\" to view\r\n\
         Give root password for maintenance\r\n",
        &expect![[r#"
            Emergency | You are in emergency mode. After logging in, type "journalctl -xb" to view (before: [ TIME ] Timed out waiting for device dev-disk-by\x2dlabel-root.device - /dev/disk/by-label/root.)
        "#]],
    );
}

#[test]
fn grub_that_greets_is_firmware() {
    check(
        "GRUB loading...\r\nWelcome to GRUB!\r\n\r\n[    0.0] Linux version 6.1.0\r\n\
         Welcome to Debian GNU/Linux 12 (bookworm)!\r\n",
        &expect![[r#"
            Firmware | Welcome to GRUB!
            Kernel | [ 0.0] Linux version 6.1.0
            Userspace | Welcome to Debian GNU/Linux 12 (bookworm)!
        "#]],
    );
}

#[test]
fn panics_and_firmware_without_a_disk_are_verdicts() {
    check(
        "[    1.0] Initramfs unpacking failed: write error\n\
         [    1.2] Kernel panic - not syncing: System is deadlocked on memory\n\
         [    1.2] Kernel panic - not syncing: again\n",
        &expect![[r#"
            Kernel | [ 1.0] Initramfs unpacking failed: write error
            KernelPanic | [ 1.2] Kernel panic - not syncing: System is deadlocked on memory (before: [ 1.0] Initramfs unpacking failed: write error)
        "#]],
    );
    check(
        "SeaBIOS (version 1)\nBooting from Hard Disk...\nBoot failed: not a bootable disk\n\nNo bootable device.\n",
        &expect![[r#"
            Firmware | SeaBIOS (version 1)
            NoBoot | No bootable device.
        "#]],
    );
    check(
        "BdsDxe: failed to load Boot0001 \"UEFI Misc Device\" from PciRoot(0x0)/Pci(0x2,0x0): Not Found\n\
         BdsDxe: No bootable option or device was found.\nBdsDxe: Press any key to enter the Boot Manager Menu.\n",
        &expect![[r#"
            Firmware | BdsDxe: failed to load Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x2,0x0): Not Found
            NoBoot | BdsDxe: No bootable option or device was found. (before: BdsDxe: failed to load Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x2,0x0): Not Found)
        "#]],
    );
    check(
        "!!!! X64 Exception Type - 06(#UD - Invalid Opcode)  CPU Apic ID - 00000000 !!!!\n",
        &expect![[r#"
            NoBoot | !!!! X64 Exception Type - 06(#UD - Invalid Opcode) CPU Apic ID - 00000000 !!!!
        "#]],
    );
}

#[test]
fn what_secure_boot_refuses_is_told_by_whoever_refused_it() {
    check(
        "BdsDxe: loading Boot0001 \"UEFI Misc Device\" from PciRoot(0x0)/Pci(0x5,0x0)\r\n\
         BdsDxe: failed to load Boot0001 \"UEFI Misc Device\" from PciRoot(0x0)/Pci(0x5,0x0): Access Denied\r\n\
         BdsDxe: starting Boot0002 \"EFI Internal Shell\" from Fv(7CB8BDC9)/FvFile(7C04A583)\r\n\
         BdsDxe: failed to start Boot0002 \"EFI Internal Shell\" from Fv(7CB8BDC9)/FvFile(7C04A583): Security Violation\r\n\
         BdsDxe: No bootable option or device was found.\r\n",
        &expect![[r#"
            Firmware | BdsDxe: loading Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x5,0x0)
            NoBoot | the firmware refuses what it is to boot, which nobody that it trusts has signed: BdsDxe: failed to load Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x5,0x0): Access Denied
        "#]],
    );
    check(
        "BdsDxe: failed to load Boot0001 \"UEFI Misc Device\" from PciRoot(0x0)/Pci(0x5,0x0): Not Found\r\n\
         BdsDxe: failed to start Boot0002 \"EFI Internal Shell\" from Fv(7CB8BDC9)/FvFile(7C04A583): Security Violation\r\n\
         BdsDxe: No bootable option or device was found.\r\n",
        &expect![[r#"
            Firmware | BdsDxe: failed to load Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x5,0x0): Not Found
            NoBoot | BdsDxe: No bootable option or device was found. (before: BdsDxe: failed to load Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x5,0x0): Not Found)
        "#]],
    );
    check(
        "BdsDxe: starting Boot0001 \"UEFI Misc Device\" from PciRoot(0x0)/Pci(0x5,0x0)\r\n\
         \x1b[24;39H   ERROR   \x1b[25;01H Verification failed: (0x1A) Security Violation    \x1b[26;01H",
        &expect![[r#"
            Firmware | BdsDxe: starting Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x5,0x0)
            NoBoot | shim refuses the boot loader, which nobody that it trusts has signed: Verification failed: (0x1A) Security Violation
        "#]],
    );
    check(
        "Welcome to GRUB!\r\nerror: bad shim signature.\r\nerror: you need to load the kernel first.\r\n",
        &expect![[r#"
            Firmware | Welcome to GRUB!
            NoBoot | error: bad shim signature.
        "#]],
    );
}

#[test]
fn a_shell_of_the_firmware_has_nobody_to_speak_to() {
    check(
        "BdsDxe: failed to load Boot0001 \"UEFI Misc Device\" from PciRoot(0x0)/Pci(0x5,0x0): Not Found\r\n\
         UEFI Interactive Shell v2.2\r\nEDK II\r\n\
         Press ESC in 1 seconds to skip startup.nsh or any other key to continue.\r\n\x1b[0mShell> ",
        &expect![[r#"
            Firmware | BdsDxe: failed to load Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x5,0x0): Not Found
            NoBoot | UEFI's shell waits for a command (before: BdsDxe: failed to load Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x5,0x0): Not Found)
        "#]],
    );
}

#[test]
fn a_new_boot_is_found_anew_only_when_told() {
    let mut scanner = Scanner::new();
    let first = scanner.feed(GOOD.as_bytes());
    assert_eq!(scanner.feed(GOOD.as_bytes()), []);
    scanner.restarted();
    assert_eq!(scanner.feed(GOOD.as_bytes()), first);
}

#[test]
fn endless_lines_cost_one_line_of_memory() {
    let mut scanner = Scanner::new();
    for _ in 0..100 {
        assert_eq!(scanner.feed(&[b'x'; 10_000]), []);
    }
    assert!(scanner.line.capacity() <= 2 * LINE);
    let found = scanner.feed(b"\nKernel panic - not syncing: yes\n");
    assert_eq!(found[0].kind, FindingKind::KernelPanic);
}

proptest! {
    #[test]
    fn how_the_bytes_are_cut_changes_nothing(
        noise in "[\\x00-\\x7fä\\x1b\r\n]{0,80}",
        console in prop::sample::select(vec![GOOD, "[FAILED] x\nKernel panic - not syncing: x\nNo bootable device\n", "x\nShell> ls\n", "\x1b[2J Verification failed: (0x1A) Security Violation |\n"]),
        cuts in prop::collection::vec(1usize..50, 1..6),
    ) {
        let bytes = [noise.as_bytes(), b"\n", console.as_bytes()].concat();
        let whole = Scanner::new().feed(&bytes);
        let mut scanner = Scanner::new();
        let mut found = Vec::new();
        let (mut rest, mut sizes) = (bytes.as_slice(), cuts.iter().cycle());
        while !rest.is_empty() {
            let size = sizes.next().map_or(1, |&size| size.min(rest.len()));
            found.extend(scanner.feed(&rest[..size]));
            rest = &rest[size..];
        }
        prop_assert_eq!(found, whole);
    }

    #[test]
    fn no_bytes_harm(bytes: Vec<u8>) {
        for finding in Scanner::new().feed(&bytes) {
            prop_assert!(!finding.line.chars().any(char::is_control));
        }
    }
}
