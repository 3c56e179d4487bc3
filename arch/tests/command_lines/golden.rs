//! Whole command lines, in `tests/golden`: `UPDATE_EXPECT=1` writes them anew, and then a person
//! reads the difference.

use expect_test::expect_file;
use kiln_arch::command::QemuCommand;
use kiln_arch::machine::ChildFd;
use kiln_arch::{Arch, render, render_uplink};

use crate::fixture;

#[track_caller]
fn check(name: &str, text: &str) {
    expect_file![format!("../golden/{name}")].assert_eq(&format!("{text}\n"));
}

/// Each option with its reason, as `kiln explain` has them.
fn explained(command: &QemuCommand) -> String {
    command
        .args()
        .iter()
        .map(|arg| format!("{:<16} {}", arg.option, arg.reason))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn every_board_boots_a_kernel() {
    for arch in Arch::ALL {
        let command = render(&fixture::direct(arch)).unwrap();
        check(&format!("{arch}-direct.args"), &command.to_string());
    }
}

#[test]
fn every_board_boots_a_disk() {
    for arch in Arch::ALL {
        let command = render(&fixture::disk(arch)).unwrap();
        check(&format!("{arch}-disk.args"), &command.to_string());
    }
}

#[test]
fn every_board_has_a_line_for_the_shell() {
    for arch in Arch::ALL {
        let command = render(&fixture::shell(arch)).unwrap();
        let line = command.shell().into_string().unwrap();
        check(&format!("{arch}-shell.sh"), &line);
    }
}

#[test]
fn every_argument_says_why_it_is_there() {
    for arch in Arch::ALL {
        let command = render(&fixture::direct(arch)).unwrap();
        check(&format!("{arch}-direct.reasons"), &explained(&command));
    }
}

#[test]
fn boards_that_take_uefi_boot_by_it_and_have_a_tpm() {
    for arch in [Arch::X86_64, Arch::Aarch64] {
        let command = render(&fixture::uefi(arch)).unwrap();
        check(&format!("{arch}-uefi.args"), &command.to_string());
    }
}

#[test]
fn every_tpm_sits_where_its_board_has_it() {
    let mut text = String::new();
    for arch in Arch::ALL.into_iter().filter(|arch| arch.has_tpm()) {
        let mut machine = fixture::direct(arch);
        machine.tpm = ChildFd::nth(30);
        let command = render(&machine).unwrap().to_string();
        let lines = command.lines().filter(|line| line.contains("tpm"));
        text.extend(
            [arch.name(), "\n"]
                .into_iter()
                .chain(lines.flat_map(|line| [line, "\n"])),
        );
    }
    check("tpm.args", text.trim_end());
}

#[test]
fn a_pc_boots_by_secure_uefi() {
    let command = render(&fixture::secure()).unwrap();
    check("x86_64-secure.args", &command.to_string());
}

#[test]
fn the_uplink_has_no_guest() {
    let command = render_uplink(&fixture::uplink()).unwrap();
    check("uplink.args", &command.to_string());
    check("uplink.reasons", &explained(&command));
}
