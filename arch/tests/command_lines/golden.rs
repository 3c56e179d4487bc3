//! Whole command lines, in `tests/golden`: `UPDATE_EXPECT=1` writes them anew, and then a person
//! reads the difference.

use expect_test::expect_file;
use kiln_arch::command::QemuCommand;
use kiln_arch::machine::{Accel, ChildFd, Machine};
use kiln_arch::{Arch, render, render_uplink};

use crate::fixture::{self, ways};

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
fn every_way_of_every_board() {
    for way in ways() {
        let command = render(&way.machine()).unwrap();
        check(&format!("{}.args", way.name()), &command.to_string());
    }
}

#[test]
fn the_accelerator_changes_the_processor_and_the_board_s_options_and_nothing_else() {
    for way in ways() {
        let [tcg, kvm] = [Accel::Tcg, Accel::Kvm].map(|accel| {
            let machine = Machine {
                accel,
                ..way.machine()
            };
            render(&machine).unwrap()
        });
        assert_eq!(tcg.args().len(), kvm.args().len());
        let pairs = tcg.args().iter().zip(kvm.args());
        let changed: Vec<(&str, &str)> = pairs
            .filter(|(tcg, kvm)| tcg.value != kvm.value)
            .map(|(tcg, kvm)| (tcg.option, kvm.value.as_ref().unwrap().to_str().unwrap()))
            .filter(|(option, _)| (way.arch, *option) != (Arch::Ppc64le, "-machine"))
            .collect();
        let name = way.name();
        assert_eq!(changed, [("-accel", "kvm"), ("-cpu", "host")], "{name}");
    }
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the crate reads no folder; its tests look at their own"
)]
fn no_golden_file_is_left_over() {
    let mut known: Vec<String> = ways()
        .iter()
        .map(|way| format!("{}.args", way.name()))
        .collect();
    for arch in Arch::ALL {
        known.push(format!("{arch}-shell.sh"));
        known.push(format!("{arch}-buses.args"));
        known.push(format!("{arch}-direct.reasons"));
    }
    known.extend(["tpm.args", "uplink.args", "uplink.reasons"].map(str::to_owned));
    known.sort();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    let mut found: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, known);
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
fn disks_of_every_bus_on_every_board() {
    for arch in Arch::ALL {
        let command = render(&fixture::buses(arch)).unwrap();
        check(&format!("{arch}-buses.args"), &command.to_string());
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
fn the_uplink_has_no_guest() {
    let command = render_uplink(&fixture::uplink()).unwrap();
    check("uplink.args", &command.to_string());
    check("uplink.reasons", &explained(&command));
}
