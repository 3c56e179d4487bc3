//! Every golden command line, started on the real QEMU and asked about by QMP.
//!
//! The machines are the fixture's that `arch/tests/golden` pins, so no line there is one that
//! QEMU refuses, or takes for something else. Each is started as the supervisor does it, paused,
//! with real sockets, descriptors and files in all its places; the kernels are only as whole as
//! QEMU's loaders want them.
//!
//! Two things are not as in the golden lines. The accelerator is TCG in all: KVM works on few
//! hosts, and for foreign guests nowhere; what it changes in a line has a test beside the lines.
//! And where no tap can be made (by ordinary users), QEMU's user network stands for it.

#[path = "../../../arch/tests/command_lines/fixture.rs"]
mod fixture;
mod machine;
mod monitor;
mod props;
mod stage;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use kiln_arch::machine::{Accel, ChildFd, Machine, Run};
use kiln_arch::{Arch, render, render_uplink};

use crate::support::old_qemu;
use machine::Asked;
use props::installed;
use stage::Stage;

/// More at a time would only wait for each other.
const AT_A_TIME: usize = 2;

#[test]
fn the_installed_qemu_takes_every_golden_line() {
    takes_every_line(&installed);
}

#[test]
fn qemu_7_2_takes_every_golden_line() {
    let folder = old_qemu::folder();
    takes_every_line(&|program| folder.join(program));
}

/// Where the program of that name lies.
type Find<'a> = &'a (dyn Fn(&str) -> PathBuf + Sync);

enum Line {
    Machine(String, Machine),
    Shell(Machine),
    Uplink,
}

fn takes_every_line(find: Find<'_>) {
    let ways = fixture::ways();
    let machines = ways.into_iter().map(|way| {
        let machine = Machine {
            accel: Accel::Tcg,
            ..way.machine()
        };
        Line::Machine(way.name(), machine)
    });
    let with_tpm = Arch::ALL.into_iter().filter(|arch| arch.has_tpm());
    let machines = machines.chain(with_tpm.map(|arch| {
        let machine = fixture::direct(arch);
        let tpm = ChildFd::nth(30);
        Line::Machine(format!("{arch}-tpm"), Machine { tpm, ..machine })
    }));
    let machines = machines.chain(Arch::ALL.map(|arch| {
        let machine = fixture::buses(arch);
        let accel = Accel::Tcg;
        Line::Machine(format!("{arch}-buses"), Machine { accel, ..machine })
    }));
    let shells = Arch::ALL.map(|arch| Line::Shell(fixture::shell(arch)));
    let lines: Vec<Line> = machines.chain(shells).chain([Line::Uplink]).collect();
    let left = Mutex::new(lines.iter());
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                let next = || left.lock().unwrap().next();
                while let Some(line) = next() {
                    take(line, find);
                }
            });
        }
    });
}

fn take(line: &Line, find: Find<'_>) {
    match line {
        Line::Machine(name, machine) => {
            let stage = Stage::of(name, machine);
            let command = render(machine).unwrap();
            let program = find(machine.arch.qemu_program());
            let mut qemu = stage.start(&program, command.argv().collect());
            Asked::new(machine, &stage).all(&mut qemu);
            assert_eq!(qemu.end(), "", "{name}");
        }
        Line::Shell(machine) => {
            assert_eq!(machine.run, Run::Alone);
            let stage = Stage::of(&format!("{}-shell", machine.arch), machine);
            let command = render(machine).unwrap();
            let program = find(machine.arch.qemu_program());
            let mut qemu = stage.start_by_shell(&program, command);
            Asked::new(machine, &stage).all(&mut qemu);
            assert_eq!(qemu.end(), "");
        }
        Line::Uplink => uplink(find),
    }
}

fn uplink(find: Find<'_>) {
    let uplink = fixture::uplink();
    let stage = Stage::of_uplink(&uplink);
    let command = render_uplink(&uplink).unwrap();
    let program: &Path = &find(uplink.arch.qemu_program());
    let mut qemu = stage.start(program, command.argv().collect());
    let network = qemu.monitor.human("info network");
    for plugged in [
        "type=user,net=10.80.1.0,restrict=off",
        "type=stream",
        "hub 0",
    ] {
        assert!(network.contains(plugged), "no {plugged}: {network}");
    }
    let said = qemu.end();
    assert!(said.ends_with("warning: hub 0 with no nics\n"), "{said}");
}
