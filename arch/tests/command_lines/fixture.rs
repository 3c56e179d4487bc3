//! Machines to render: one for each way in which a board can begin, under each accelerator.
//!
//! `tests/it` starts the same machines on the real QEMU.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::{NonZeroU16, NonZeroU32};

use kiln_arch::Arch;
use kiln_arch::machine::{
    Accel, Access, ChildFd, Console, ConsoleBackend, DiskBus, Drive, Firmware, Format, Forward,
    Ignition, IgnitionTransport, Image, Kernel, Machine, MiB, Nic, NicBackend, Pflash, Port,
    PortName, Protocol, Run, Sandbox, Sector, Share, ShareServer, Socket, Source, Uplink,
    UplinkPort, UserNet,
};
use macaddr::MacAddr6;

/// Hands out descriptors' numbers.
#[derive(Debug, Default)]
struct Fds(u16);

impl Fds {
    fn next(&mut self) -> ChildFd {
        self.0 += 1;
        ChildFd::nth(self.0 - 1).unwrap()
    }

    fn source(&mut self) -> Source {
        Source::Fd(self.next())
    }

    fn socket(&mut self) -> Socket {
        Socket::Listener(self.next())
    }
}

/// What starts a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chip {
    Own,
    Uefi,
    Secure,
}

/// What it then boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Boot {
    Kernel,
    Disk,
}

/// One way in which a board begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) arch: Arch,
    pub(crate) chip: Chip,
    pub(crate) boot: Boot,
}

/// Every way of every board.
pub(crate) fn ways() -> Vec<Way> {
    let mut ways = Vec::new();
    for arch in Arch::ALL {
        let chips: &[Chip] = match arch {
            Arch::X86_64 => &[Chip::Own, Chip::Uefi, Chip::Secure],
            Arch::Aarch64 => &[Chip::Own, Chip::Uefi],
            Arch::I386 | Arch::S390x | Arch::Ppc64le => &[Chip::Own],
        };
        for &chip in chips {
            for boot in [Boot::Kernel, Boot::Disk] {
                // It has no firmware of its own, and nothing else reads a disk.
                if (arch, chip, boot) != (Arch::Aarch64, Chip::Own, Boot::Disk) {
                    ways.push(Way { arch, chip, boot });
                }
            }
        }
    }
    ways
}

impl Way {
    /// Such as `x86_64-uefi-disk`.
    pub(crate) fn name(self) -> String {
        let chip = match self.chip {
            Chip::Own => "",
            Chip::Uefi => "uefi-",
            Chip::Secure => "secure-",
        };
        let boot = match self.boot {
            Boot::Kernel => "direct",
            Boot::Disk => "disk",
        };
        format!("{}-{chip}{boot}", self.arch)
    }

    /// Kernels are booted under TCG and disks under KVM; what the accelerator changes is the same
    /// for both, and has a test of its own.
    pub(crate) fn machine(self) -> Machine {
        let mut machine = match self.boot {
            Boot::Kernel => direct(self.arch),
            Boot::Disk => disk(self.arch),
        };
        let mut fds = Fds(FLASH);
        machine.firmware = match self.chip {
            Chip::Own => Firmware::Board,
            Chip::Uefi => Firmware::Uefi(flash(&mut fds)),
            Chip::Secure => Firmware::UefiSecure(flash(&mut fds)),
        };
        let by = |transport, fds: &mut Fds| Ignition::ConfigBy(transport, fds.source());
        match (self.chip, self.boot) {
            (Chip::Own, Boot::Kernel | Boot::Disk) => {}
            (Chip::Uefi, Boot::Kernel) => {
                machine.ignition = Ignition::None;
                machine.nics.push(Nic {
                    mtu: None,
                    mac: mac(4),
                    backend: NicBackend::User(user_net(Vec::new())),
                });
            }
            (Chip::Uefi, Boot::Disk) => machine.ignition = Ignition::Config(fds.source()),
            (Chip::Secure, Boot::Kernel) => {
                machine.ignition = by(IgnitionTransport::FwCfg, &mut fds);
            }
            (Chip::Secure, Boot::Disk) => {
                machine.ignition = by(IgnitionTransport::VirtioBlk, &mut fds);
            }
        }
        machine
    }
}

/// The numbers of flash chips' descriptors, and of what comes after them, begin behind all others.
const FLASH: u16 = 20;

pub(crate) fn mib(amount: u32) -> MiB {
    MiB(NonZeroU32::new(amount).unwrap())
}

fn mac(last: u8) -> MacAddr6 {
    MacAddr6::new(0x52, 0x54, 0x00, 0xAB, 0xCD, last)
}

/// As the supervisor starts a machine: all by descriptors, a kernel of one's own, an overlay, the
/// fabric.
pub(crate) fn direct(arch: Arch) -> Machine {
    let mut fds = Fds::default();
    Machine {
        cluster: "demo".to_owned(),
        name: "node-1".to_owned(),
        uuid: Some("6b696c6e-0000-8000-8000-000000000001".to_owned()),
        arch,
        accel: Accel::Tcg,
        board_version: None,
        cpus: NonZeroU16::new(1).unwrap(),
        memory: mib(256),
        firmware: Firmware::Board,
        tpm: None,
        monitors: vec![fds.socket(), fds.socket()],
        console: Console {
            backend: ConsoleBackend::Socket(fds.socket()),
            log: Some(fds.source()),
        },
        ports: [
            PortName::Report,
            PortName::GuestAgent,
            PortName::IgnitionJournal,
        ]
        .map(|name| Port {
            name,
            socket: fds.socket(),
        })
        .into(),
        nics: vec![Nic {
            mtu: None,
            mac: mac(1),
            backend: NicBackend::Stream(fds.socket()),
        }],
        kernel: Some(Kernel {
            image: fds.source(),
            initrd: Some(fds.source()),
            cmdline: format!("console={} ignition.platform.id=qemu", arch.console_tty()),
        }),
        drives: vec![Drive {
            image: Image::Qcow2 {
                source: fds.source(),
                backing: Some(Box::new(Image::Qcow2 {
                    source: fds.source(),
                    backing: None,
                })),
            },
            access: Access::ReadWrite,
            serial: Some("root".to_owned()),
            bus: DiskBus::Virtio,
            sector: Sector::Bytes512,
        }],
        ignition: Ignition::Config(fds.source()),
        shares: Vec::new(),
        sandbox: Sandbox::Full,
        run: Run::Supervised,
    }
}

/// A machine that boots from its disk by its firmware, under KVM, on a tap; with data disks.
pub(crate) fn disk(arch: Arch) -> Machine {
    let mut fds = Fds::default();
    // Of the oldest QEMU that kiln takes.
    let board_version = match arch {
        Arch::I386 => "pc-i440fx-7.2",
        Arch::X86_64 => "pc-q35-7.2",
        Arch::Aarch64 => "virt-7.2",
        Arch::S390x => "s390-ccw-virtio-7.2",
        Arch::Ppc64le => "pseries-7.2",
    };
    Machine {
        accel: Accel::Kvm,
        board_version: Some(board_version.to_owned()),
        cpus: NonZeroU16::new(4).unwrap(),
        memory: mib(2048),
        monitors: vec![fds.socket()],
        console: Console {
            backend: ConsoleBackend::Socket(fds.socket()),
            log: None,
        },
        ports: Vec::new(),
        nics: vec![Nic {
            mtu: Some(9000),
            mac: mac(2),
            backend: NicBackend::Tap(fds.next()),
        }],
        firmware: Firmware::Board,
        kernel: None,
        drives: vec![
            Drive {
                image: Image::Qcow2 {
                    source: fds.source(),
                    backing: Some(Box::new(Image::Raw(fds.source()))),
                },
                access: Access::ReadWrite,
                serial: None,
                bus: DiskBus::Virtio,
                sector: Sector::Bytes512,
            },
            Drive {
                image: Image::Raw(fds.source()),
                access: Access::ReadWrite,
                serial: Some("data".to_owned()),
                bus: DiskBus::Virtio,
                sector: Sector::Bytes4096,
            },
            Drive {
                image: Image::Qcow2 {
                    source: fds.source(),
                    backing: None,
                },
                access: Access::ReadOnly,
                serial: Some("tools".to_owned()),
                bus: DiskBus::Virtio,
                sector: Sector::Bytes512,
            },
        ],
        ignition: Ignition::None,
        ..direct(arch)
    }
}

/// A machine with disks on other buses than virtio's, the root disk too.
pub(crate) fn buses(arch: Arch) -> Machine {
    let mut machine = disk(arch);
    let mut fds = Fds(FLASH);
    if arch == Arch::Aarch64 {
        machine.kernel = Some(Kernel {
            image: fds.source(),
            initrd: None,
            cmdline: String::new(),
        });
    }
    let [root, data, tools] = machine.drives.as_mut_slice() else {
        unreachable!("it has three drives");
    };
    root.bus = DiskBus::Scsi;
    root.serial = Some("root".to_owned());
    if arch != Arch::S390x {
        data.bus = DiskBus::Nvme;
    }
    tools.bus = DiskBus::Scsi;
    machine
}

/// What `explain --shell` prints: all by path, on QEMU's own network, with nobody to look after it.
pub(crate) fn shell(arch: Arch) -> Machine {
    Machine {
        monitors: Vec::new(),
        console: Console {
            backend: ConsoleBackend::Stdio,
            log: Some(path("/run/kiln/console.log")),
        },
        ports: vec![Port {
            name: PortName::GuestAgent,
            socket: Socket::Path("/run/kiln/agent,1.sock".into()),
        }],
        nics: vec![Nic {
            mtu: None,
            mac: mac(3),
            backend: NicBackend::User(user_net(vec![
                Forward {
                    protocol: Protocol::Tcp,
                    listen: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 2222),
                    guest: SocketAddrV4::new(Ipv4Addr::new(10, 80, 1, 15), 22),
                },
                Forward {
                    protocol: Protocol::Udp,
                    listen: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 5353),
                    guest: SocketAddrV4::new(Ipv4Addr::new(10, 80, 1, 15), 53),
                },
            ])),
        }],
        kernel: Some(Kernel {
            image: path("/srv/it's a kernel"),
            initrd: None,
            cmdline: "quiet a=b,c".to_owned(),
        }),
        drives: vec![Drive {
            image: Image::Qcow2 {
                source: path("/srv/a,b/\"root\".qcow2"),
                backing: Some(Box::new(Image::Raw(path("/srv/base.raw")))),
            },
            access: Access::ReadWrite,
            serial: None,
            bus: DiskBus::Virtio,
            sector: Sector::Bytes512,
        }],
        ignition: Ignition::Config(path("/run/kiln/a,b.ign")),
        run: Run::Alone,
        sandbox: Sandbox::Absent,
        ..direct(arch)
    }
}

/// As [`direct`], with folders of the host by both ways.
pub(crate) fn shares(arch: Arch) -> Machine {
    let mut fds = Fds(30);
    let share = |tag: &str, server| Share {
        tag: tag.to_owned(),
        server,
    };
    Machine {
        shares: vec![
            share("var-src", ShareServer::Virtiofs(fds.next())),
            share(
                "var-tools",
                ShareServer::Qemu {
                    folder: fds.source(),
                    access: Access::ReadOnly,
                },
            ),
            share(
                "var-out",
                ShareServer::Qemu {
                    folder: fds.source(),
                    access: Access::ReadWrite,
                },
            ),
        ],
        ..direct(arch)
    }
}

pub(crate) fn uplink() -> Uplink {
    let mut fds = Fds::default();
    Uplink {
        cluster: "demo".to_owned(),
        uuid: "6b696c6e-0000-8000-8000-000000000002".to_owned(),
        arch: Arch::X86_64,
        net: user_net(Vec::new()),
        switch: UplinkPort::Stream(fds.socket()),
        monitor: fds.socket(),
        sandbox: Sandbox::Full,
    }
}

pub(crate) fn path(path: &str) -> Source {
    Source::Path(path.into())
}

fn flash(fds: &mut Fds) -> Pflash {
    Pflash {
        code: fds.source(),
        code_format: Format::Raw,
        vars: fds.source(),
        vars_format: Format::Qcow2,
    }
}

fn user_net(forwards: Vec<Forward>) -> UserNet {
    UserNet {
        net: "10.80.1.0/24".parse().unwrap(),
        host: Ipv4Addr::new(10, 80, 1, 1),
        dns: Ipv4Addr::new(10, 80, 1, 2),
        lease: None,
        forwards,
    }
}
