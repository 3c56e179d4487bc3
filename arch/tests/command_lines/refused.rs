//! What no board can do, and in which words it is said.

use expect_test::{Expect, expect};
use kiln_arch::machine::{
    ChildFd, ConsoleBackend, DiskBus, Firmware, Format, Ignition, IgnitionTransport, Image,
    Machine, Pflash, Socket, Source,
};
use kiln_arch::{Arch, render};

use crate::fixture::{self, direct, disk, mib};

#[track_caller]
fn check(machine: &Machine, want: &Expect) {
    want.assert_eq(&render(machine).unwrap_err().to_string());
}

/// `direct` on a PC, changed.
fn pc(change: impl FnOnce(&mut Machine)) -> Machine {
    let mut machine = direct(Arch::X86_64);
    change(&mut machine);
    machine
}

#[test]
fn nothing_to_boot() {
    let machine = pc(|machine| {
        machine.kernel = None;
        machine.drives.clear();
    });
    check(
        &machine,
        &expect!["machine `node-1` has neither a kernel nor a disk to boot from"],
    );
}

#[test]
fn arm_without_firmware_boots_no_disk() {
    check(
        &disk(Arch::Aarch64),
        &expect!["aarch64 machines have no firmware of their own: boot a kernel, or give UEFI"],
    );
}

#[test]
fn boards_without_uefi_refuse_it() {
    let flash = Pflash {
        code: fixture::path("/code.fd"),
        code_format: Format::Raw,
        vars: fixture::path("/vars.fd"),
        vars_format: Format::Raw,
    };
    for arch in [Arch::I386, Arch::S390x, Arch::Ppc64le] {
        let mut machine = disk(arch);
        machine.firmware = Firmware::Uefi(flash.clone());
        let error = render(&machine).unwrap_err().to_string();
        assert_eq!(error, format!("{arch} machines cannot boot by UEFI"));
    }
    let mut machine = disk(Arch::Aarch64);
    machine.firmware = Firmware::UefiSecure(flash);
    check(
        &machine,
        &expect!["aarch64 machines cannot boot by UEFI with secure boot"],
    );
}

#[test]
fn a_tpm_where_there_is_none() {
    let mut machine = direct(Arch::S390x);
    machine.tpm = ChildFd::nth(30);
    check(&machine, &expect!["s390x machines have no TPM"]);
}

#[test]
fn fw_cfg_where_there_is_none() {
    for arch in [Arch::S390x, Arch::Ppc64le] {
        let mut machine = direct(arch);
        let config = fixture::path("/a.ign");
        machine.ignition = Ignition::ConfigBy(IgnitionTransport::FwCfg, config);
        let error = render(&machine).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("{arch} machines take no Ignition config by fw_cfg, only by virtio-blk")
        );
    }
}

#[test]
fn memory_that_the_board_cannot_divide() {
    let mut machine = direct(Arch::Ppc64le);
    machine.memory = mib(300);
    check(
        &machine,
        &expect!["memory of ppc64le machines is a multiple of 256 MiB, which 300 MiB is not"],
    );
}

#[test]
fn a_version_of_another_board() {
    let machine = pc(|machine| machine.board_version = Some("virt-10.0".to_owned()));
    check(
        &machine,
        &expect!["`virt-10.0` is no version of the x86_64 board `q35`"],
    );
}

#[test]
fn more_devices_than_slots() {
    let machine = pc(|machine| {
        let mut drive = machine.drives[0].clone();
        drive.image = Image::Raw(fixture::path("/data.raw"));
        machine.drives = vec![drive; 40];
    });
    check(
        &machine,
        &expect!["44 devices are too many: the x86_64 board has room for 30"],
    );
}

#[test]
fn a_serial_that_the_guest_would_see_cut() {
    let machine = pc(|machine| machine.drives[0].serial = Some("x".repeat(21)));
    check(
        &machine,
        &expect![
            "disk serial `xxxxxxxxxxxxxxxxxxxxx` is longer than the 20 bytes that a guest sees"
        ],
    );
}

#[test]
fn nvme_where_there_is_none() {
    let mut machine = fixture::buses(Arch::S390x);
    machine.drives[1].bus = DiskBus::Nvme;
    check(&machine, &expect!["s390x machines have no NVMe disks"]);
    let mut machine = fixture::disk(Arch::Ppc64le);
    machine.drives[0].bus = DiskBus::Nvme;
    machine.drives[0].serial = Some("root".to_owned());
    check(
        &machine,
        &expect!["the firmware of ppc64le machines boots from no NVMe disk"],
    );
    let machine = pc(|machine| {
        machine.drives[0].bus = DiskBus::Nvme;
        machine.drives[0].serial = None;
    });
    check(
        &machine,
        &expect!["an NVMe disk has a serial, and drive 0 has none"],
    );
}

#[test]
fn a_socket_path_that_the_kernel_refuses() {
    let machine = pc(|machine| {
        let path = format!("/{}", "x".repeat(107));
        machine.console.backend = ConsoleBackend::Socket(Socket::Path(path.into()));
    });
    let error = render(&machine).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "socket path `/{}` is longer than the 107 bytes that the kernel takes",
            "x".repeat(107)
        )
    );
}

#[test]
fn an_image_path_that_json_cannot_hold() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let machine = pc(|machine| {
        let path = OsStr::from_bytes(b"/\xff.raw");
        machine.drives[0].image = Image::Raw(Source::Path(path.into()));
    });
    check(
        &machine,
        &expect!["image path `/�.raw` is not UTF-8, which is all that QEMU takes for one"],
    );
}

#[test]
fn control_bytes_in_plain_values() {
    let machine = pc(|machine| machine.name = "a\nb".to_owned());
    check(
        &machine,
        &expect!["value of `-name` holds the control byte 0x0a, which cannot be passed on"],
    );
    let machine = pc(|machine| machine.kernel.as_mut().unwrap().cmdline.push('\0'));
    check(
        &machine,
        &expect!["value of `-append` holds the control byte 0x00, which cannot be passed on"],
    );
}

#[test]
fn control_bytes_in_json() {
    let machine = pc(|machine| machine.drives[0].image = Image::Raw(fixture::path("/a\nb")));
    check(
        &machine,
        &expect!["value of `-blockdev` holds the control byte 0x0a, which cannot be passed on"],
    );
}

#[test]
fn one_descriptor_for_two_things() {
    let machine = pc(|machine| {
        machine.monitors = vec![Socket::Listener(ChildFd::FIRST); 2];
    });
    check(
        &machine,
        &expect!["descriptor 3 was promised to two options"],
    );
}
